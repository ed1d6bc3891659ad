#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

use super::*;
use proptest::prelude::*;

/// What another reader makes of a text, without its numbers.
fn plain(value: &serde_json::Value) -> Json {
    use serde_json::Value;
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(_) => Json::Number,
        Value::String(text) => Json::String(text.clone()),
        Value::Array(values) => Json::Array(values.iter().map(plain).collect()),
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| (name.clone(), plain(value));
            Json::Object(members.iter().map(member).collect())
        }
    }
}

/// With members in one order, whatever the text has.
fn sorted(value: Json) -> Json {
    match value {
        Json::Array(values) => Json::Array(values.into_iter().map(sorted).collect()),
        Json::Object(members) => {
            let mut members: Vec<_> = members
                .into_iter()
                .map(|(name, value)| (name, sorted(value)))
                .collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(members)
        }
        value => value,
    }
}

/// Both readers agree, except where this one is stricter on purpose.
fn agree(text: &[u8]) {
    let other = serde_json::from_slice::<serde_json::Value>(text);
    match (parse(text), other) {
        (Ok(ours), Ok(theirs)) => assert_eq!(sorted(ours), sorted(plain(&theirs))),
        (Ok(_), Err(error)) => {
            // It has to hold the number.
            assert!(error.to_string().contains("out of range"), "{error}");
        }
        (Err(wrong), Ok(_)) => {
            let stricter = ["too deep a nesting", "a name that is there twice"];
            assert!(stricter.contains(&wrong.what), "{wrong}: {text:?}");
        }
        (Err(wrong), Err(_)) => assert!(wrong.at <= text.len(), "{wrong}"),
    }
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn what_another_program_writes_is_read(value in value(), pretty in any::<bool>()) {
        let text = match pretty {
            true => serde_json::to_string_pretty(&value),
            false => serde_json::to_string(&value),
        };
        let read = parse(text.expect("a text").as_bytes()).expect("JSON");
        prop_assert_eq!(sorted(read), sorted(plain(&value)));
    }

    #[test]
    fn damaged_texts_are_read_as_another_reader_does(
        value in value(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..4),
    ) {
        let mut text = serde_json::to_vec(&value).expect("a text");
        for (at, byte, how) in damage {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match how {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
        }
        agree(&text);
    }

    #[test]
    fn made_of_its_own_characters(text in r#"([\[\]{}",:\\ue0-9.+\- \n]|true|null|\\u[dD][89c][0-9]{2}){0,40}"#) {
        agree(text.as_bytes());
    }

    #[test]
    fn any_bytes(text in prop::collection::vec(any::<u8>(), 0..64)) {
        agree(&text);
    }
}

#[test]
fn known_texts() {
    let texts: &[&[u8]] = &[
        b"",
        b" ",
        b"{}",
        b"[]",
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"{\"a\":1,}",
        b"{\"a\" 1}",
        b"{a:1}",
        b"{\"a\":}",
        b"01",
        b"-",
        b"-0",
        b"-01",
        b"1.",
        b".5",
        b"1e",
        b"1e+",
        b"1E-7",
        b"+1",
        b"0x10",
        b"NaN",
        b"nul",
        b"nullx",
        b"true false",
        b"\"",
        b"\"\\\"",
        b"\"\\x\"",
        b"\"\\\xc3\xa4\"",
        b"\"\\u+123\"",
        b"\"\\u12\"",
        b"\"\\u12\xc3\xa4\"",
        b"\"\\ud800\"",
        b"\"\\udc00\"",
        b"\"\\ud800\\u0041\"",
        b"\"\\ud83d\\ude00\"",
        b"\"\\u0000\"",
        b"\"\n\"",
        b"\"\x7f\"",
        b"\"\xff\"",
        b"\xef\xbb\xbf{}",
        b"// {}",
        b"'a'",
        b"[1]]",
        b"1e999",
    ];
    for text in texts {
        agree(text);
    }
}

#[test]
fn a_name_that_is_there_twice_is_refused() {
    let wrong = parse(br#"{"binary": "/a", "binary": "/b"}"#).expect_err("twice");
    assert_eq!((wrong.at, wrong.what), (17, "a name that is there twice"));
    // Also where it is written in another way.
    assert!(parse(br#"{"a": 1, "\u0061": 2}"#).is_err());
}

#[test]
fn it_goes_only_so_deep() {
    let depth = usize::try_from(MAX_DEPTH).expect("a small number");
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(parse(nested(depth).as_bytes()).is_ok());
    let wrong = parse(nested(depth + 1).as_bytes()).expect_err("too deep");
    assert_eq!((wrong.at, wrong.what), (depth, "too deep a nesting"));
    // Beside each other is no nesting.
    let wide = format!("[{}[]]", "[[]],".repeat(1000));
    assert!(parse(wide.as_bytes()).is_ok());
    // No stack is used up.
    assert!(parse(&b"[".repeat(MAX_SIZE)).is_err());
    assert!(parse(&b"{\"\":".repeat(MAX_SIZE / 4)).is_err());
}

#[test]
fn it_is_only_so_long() {
    let text = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    assert!(parse(text(MAX_SIZE).as_bytes()).is_ok());
    assert!(parse(text(MAX_SIZE + 1).as_bytes()).is_err());
}
