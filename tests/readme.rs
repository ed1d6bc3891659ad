//! What the README promises about requests is what the library does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use vhost_user_frontend::message::Request;

const README: &str = include_str!("../README.md");
const HEADER: &str = include_str!("../include/vhost_user_frontend.h");

/// The rows of the request table: id, name, function.
fn rows() -> Vec<(u32, &'static str, &'static str)> {
    README
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
            let id = cells.next()?.parse().ok()?;
            Some((id, cells.next()?, cells.next()?.trim_matches('`')))
        })
        .collect()
}

#[test]
fn the_table_names_all_requests_of_the_protocol() {
    let ids: Vec<u32> = rows().iter().map(|(id, ..)| *id).collect();
    assert_eq!(ids, (1..=45).collect::<Vec<u32>>());
}

#[test]
fn the_table_says_which_are_there() {
    for (id, name, function) in rows() {
        match Request::ALL.iter().find(|request| request.id() == id) {
            Some(request) => {
                assert_eq!(request.info().name.as_str(), name, "request {id}");
                assert!(
                    HEADER.contains(&format!(" {function}(")),
                    "{function} is not in the header"
                );
            }
            None => assert_eq!(function, "not yet", "request {id}"),
        }
    }
}
