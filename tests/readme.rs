//! What the README and `docs/back-ends.md` promise is what the library does and
//! the tests run.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use vhost_user_frontend::message::{BackendRequest, Request};

const README: &str = include_str!("../README.md");
const BACK_ENDS: &str = include_str!("../docs/back-ends.md");
const FACTS: &str = include_str!("../docs/protocol.tsv");
const HEADER: &str = include_str!("../include/vhost_user_frontend.h");

/// A row of one of the two tables of requests.
struct Row {
    id: u32,
    name: &'static str,
    functions: Vec<&'static str>,
    test: &'static str,
}

/// The rows of the table under this heading.
fn rows(heading: &str) -> Vec<Row> {
    let (_, table) = README.split_once(heading).expect(heading);
    let lines = table.lines().skip(2);
    lines
        .map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            let [id, name, functions, test] = cells[..] else {
                panic!("not a row of a request: {line}");
            };
            Row {
                id: id.parse().expect(line),
                name,
                functions: quoted(functions),
                test: quoted(test).first().copied().expect(line),
            }
        })
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

const OF_FRONT_END: &str = "| id | request | function | test |";
const OF_BACK_END: &str = "| id | request of a back-end | functions | test |";

/// Numbers and names in `docs/protocol.tsv`.
fn facts(direction: &str) -> BTreeSet<(u32, &'static str)> {
    FACTS
        .lines()
        .filter_map(|line| {
            let mut cells = line
                .strip_prefix(direction)?
                .strip_prefix('\t')?
                .split('\t');
            Some((cells.next()?.parse().ok()?, cells.next()?))
        })
        .collect()
}

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The source of a test that is written `program: function`, which must be there
/// and be run: in the program, or in the tests that it has from `lifecycle.h`.
fn program(test: &str) -> String {
    let (program, function) = test.split_once(": ").expect(test);
    let mut text = source(&format!("c-tests/{program}.c"));
    if text.contains("\nLIFE_CHECKS(") && text.contains(" LIFE_CHECKS_WITH(") {
        text += &source("c-tests/lifecycle.h");
    }
    let head = format!("static void {function}(void **state)");
    // A line of a macro goes on.
    let ends = |line: &str| line.trim_end_matches(['\\', ' ']) == head;
    assert!(
        text.lines().any(|line| ends(line.trim_start())),
        "there is no {test}"
    );
    let run = [format!("({function})"), format!("({function}, ")];
    assert!(
        run.iter().any(|run| text.contains(run)),
        "{test} is not run"
    );
    text
}

#[test]
fn the_tables_have_every_request_of_the_protocol() {
    for (heading, direction, count) in [
        (OF_FRONT_END, "front-end", 45),
        (OF_BACK_END, "back-end", 10),
    ] {
        let rows = rows(heading);
        assert_eq!(rows.len(), count, "{heading}");
        let named: BTreeSet<_> = rows.iter().map(|row| (row.id, row.name)).collect();
        assert_eq!(named, facts(direction), "{heading}");
        let words = README.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&format!("{count} of {count}")), "{heading}");
    }
}

#[test]
fn each_request_is_in_the_library() {
    for row in rows(OF_FRONT_END) {
        let known = Request::ALL.iter().find(|request| request.id() == row.id);
        assert_eq!(known.unwrap().info().name.as_str(), row.name);
    }
    for row in rows(OF_BACK_END) {
        let known = BackendRequest::from_id(row.id).unwrap();
        assert_eq!(known.info().name.as_str(), format!("BACKEND_{}", row.name));
    }
}

/// The program of the test calls the function, by itself or through what such
/// programs share, or gives it to the library.
#[test]
fn each_request_has_a_test_that_makes_it() {
    let shared = |program: &str| {
        let files: &[&str] = match program {
            real if real.starts_with("real_") => &[
                "c-tests/device.c",
                "examples/virtq.c",
                "c-tests/pagefaults.c",
            ],
            "test_block" => &["examples/virtio_blk.c"],
            _ => &[],
        };
        files.iter().map(|file| source(file)).collect::<String>()
    };
    for row in rows(OF_FRONT_END) {
        let [function] = row.functions[..] else {
            panic!("{}: one function", row.name);
        };
        assert!(HEADER.contains(&format!(" {function}(")), "{function}");
        let text = program(row.test) + &shared(row.test.split(':').next().unwrap());
        assert!(
            text.contains(&format!("{function}(")),
            "{}: {} does not call {function}",
            row.name,
            row.test
        );
    }
    for row in rows(OF_BACK_END) {
        let text = program(row.test);
        assert!(!row.functions.is_empty());
        for (number, function) in row.functions.iter().enumerate() {
            assert!(HEADER.contains(&format!(" (*{function})(")), "{function}");
            assert!(
                number > 0 || text.contains(&format!(".{function} = ")),
                "{}: {} does not give {function}",
                row.name,
                row.test
            );
        }
    }
}

#[test]
fn what_was_done_with_back_ends_was_done_by_tests() {
    let mut programs = BTreeSet::new();
    let mut back_ends = 0;
    for line in BACK_ENDS.lines() {
        let Some(cells) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            continue;
        };
        let cells: Vec<&str> = cells.split(" | ").collect();
        let [back_end, what, tests] = cells[..] else {
            panic!("not a row: {line}");
        };
        if back_end == "back-end" {
            continue;
        }
        back_ends += usize::from(back_end.starts_with(char::is_alphanumeric));
        let tests = quoted(tests);
        assert!(!tests.is_empty(), "{what}: no test");
        for test in tests {
            program(test);
            programs.insert(test.split(':').next().unwrap());
        }
    }
    assert_eq!(back_ends, 10);
    // None of those that drive back-ends in daily use is left out.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("c-tests");
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(program) = name.strip_suffix(".c").filter(|n| n.starts_with("real_")) {
            assert!(programs.contains(program), "{program} is not mentioned");
        }
    }
}
