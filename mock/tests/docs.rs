//! The reference can be believed: its examples are understood, and it has all of
//! the language.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use vuf_mock_backend::{Mode, Script};

const REFERENCE: &str = include_str!("../../docs/mock-backend.md");

fn language() -> &'static str {
    REFERENCE.split_once("## The language").unwrap().1
}

/// The blocks that are set off by four blanks.
fn examples() -> Vec<String> {
    let mut examples = Vec::new();
    let mut example = String::new();
    for line in language().lines().chain([""]) {
        match line.strip_prefix("    ") {
            Some(line) => example.push_str(&format!("{line}\n")),
            None if example.is_empty() => {}
            None => examples.push(std::mem::take(&mut example)),
        }
    }
    examples
}

/// The faults: how each is written, and the example.
fn faults() -> Vec<(&'static str, &'static str)> {
    let table = language().split_once("| fault | example |").unwrap().1;
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        (
            cells.next().unwrap(),
            cells.next().unwrap().trim_matches('`'),
        )
    })
    .collect()
}

#[test]
fn examples_are_understood() {
    let examples = examples();
    assert!(examples.len() >= 7, "{}", examples.len());
    for example in examples {
        Script::parse(&example).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
    for (_, example) in faults() {
        Script::parse(example).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
}

/// The names that the parser tells to who mistypes one.
fn names(mistake: &str) -> Vec<String> {
    let error = Script::parse(mistake).unwrap_err().reason;
    let (_, names) = error
        .split_once(" there are ")
        .or(error.split_once(" it has "))
        .unwrap();
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn nothing_is_left_out() {
    let documented: Vec<_> = faults().iter().map(|(written, _)| *written).collect();
    for name in names("on any: x") {
        let written = |text: &&&str| {
            text.starts_with(&format!("`{name}`")) || text.starts_with(&format!("`{name} "))
        };
        assert_eq!(documented.iter().filter(written).count(), 1, "{name}");
    }
    for name in names("device x") {
        assert!(
            language().contains(&format!("    device {name} ")),
            "device {name}"
        );
    }
    for name in names("send X") {
        assert!(language().contains(&name), "{name}");
    }
    for mode in Mode::ALL {
        assert!(language().contains(&format!("| `{mode}` |")), "{mode}");
    }
}

#[test]
fn every_field_is_in_a_table() {
    for request in 1..=45 {
        let error = Script::parse(&format!("expect {request} x"))
            .unwrap_err()
            .reason;
        let conditions = error.split_once(" there are ").unwrap().1;
        for field in conditions
            .split(", ")
            .filter_map(|word| word.strip_suffix('='))
        {
            assert!(
                REFERENCE.contains(&format!("`{field}`"))
                    || REFERENCE.contains(&format!("`{field}=`"))
                    || field == "nth",
                "{request} {field}"
            );
        }
    }
}
