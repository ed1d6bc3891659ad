//! The facts of the protocol, written down apart from the code in
//! `docs/protocol.tsv`, and the library's own table: one says what the other does.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::CASES;
use std::collections::HashMap;
use vhost_user_frontend::message::{
    Answered, BackendGate, BackendRequest, Bounds, Gate, ProtocolFeatures, Reply, Request,
    RequestInfo, protocol_feature_name,
};

const FACTS: &str = include_str!("../docs/protocol.tsv");
const HEADER: &str = include_str!("../include/vhost_user_frontend.h");
const README: &str = include_str!("../README.md");

type Row = HashMap<&'static str, &'static str>;

/// The rows of one direction.
fn rows(direction: &str) -> Vec<Row> {
    let mut lines = FACTS.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<_> = lines.next().unwrap().split('\t').collect();
    let rows = lines.map(|line| {
        let cells: Vec<_> = line.split('\t').collect();
        assert_eq!(cells.len(), names.len(), "{line}");
        names.iter().copied().zip(cells).collect::<Row>()
    });
    rows.filter(|row| row["direction"] == direction).collect()
}

/// In the words of the file.
fn bounds(bounds: Bounds) -> String {
    match (bounds.min, bounds.max) {
        (min, max) if min == max => min.to_string(),
        (min, max) => format!("{min}-{max}"),
    }
}

fn gate(gate: Gate) -> String {
    let name =
        |feature: ProtocolFeatures| protocol_feature_name(feature.bits().trailing_zeros()).unwrap();
    match gate {
        Gate::Open => "-".to_owned(),
        Gate::Offered(bit) => format!("offered:{bit}"),
        Gate::Acked(bit) => format!("acked:{bit}"),
        Gate::Protocol(feature) => format!("protocol:{}", name(feature)),
        Gate::Both(feature, bit) => format!("protocol:{}+acked:{bit}", name(feature)),
    }
}

fn reply(reply: Reply) -> (&'static str, String) {
    match reply {
        Reply::Ack(_) => ("ack", "8".to_owned()),
        Reply::Status => ("status", "8".to_owned()),
        Reply::Silent => ("none", "0".to_owned()),
        Reply::Always(size) => ("always", bounds(size)),
    }
}

fn request(row: &Row) -> Request {
    let id: u32 = row["id"].parse().unwrap();
    let found = Request::ALL.iter().find(|request| request.id() == id);
    *found.unwrap_or_else(|| panic!("the library has no request {id}"))
}

/// The row of the library's table that this row of the file is about.
fn info(row: &Row) -> RequestInfo {
    let request = request(row);
    match row["form"] {
        "-" => *request.info(),
        "xen" => request.xen_info(),
        "postcopy" => request.info().postcopy_table(),
        "postcopy-ack" => request.info().postcopy_ack(),
        form => panic!("there is no form {form}"),
    }
}

#[test]
fn the_facts_are_those_of_the_whole_protocol() {
    for (direction, count) in [("front-end", 45), ("back-end", 10)] {
        let ids: Vec<u32> = rows(direction)
            .iter()
            .filter(|row| row["form"] == "-")
            .map(|row| row["id"].parse().unwrap())
            .collect();
        assert_eq!(ids, (1..=count).collect::<Vec<_>>(), "{direction}");
    }
}

#[test]
fn every_request_of_the_library_is_a_fact() {
    let plain = rows("front-end")
        .into_iter()
        .filter(|row| row["form"] == "-");
    let facts: Vec<_> = plain.map(|row| (request(&row), row["name"])).collect();
    let table: Vec<_> = Request::ALL
        .iter()
        .map(|request| (*request, request.info().name.as_str()))
        .collect();
    assert_eq!(facts, table);
    // Other forms than those that differ are not in the file.
    for request in Request::ALL {
        let larger = request.xen_info().payload != request.info().payload;
        let facts = rows("front-end");
        let known = facts
            .iter()
            .any(|row| row["form"] == "xen" && row["id"] == request.id().to_string());
        assert_eq!(larger, known, "{request:?}");
    }
}

#[test]
fn every_fact_is_what_the_library_does() {
    for row in rows("front-end") {
        let (context, info) = (format!("{row:?}"), info(&row));
        let (kind, size) = reply(info.reply);
        assert_eq!(row["name"], info.name.as_str(), "{context}");
        assert_eq!(row["request"], bounds(info.payload), "{context}");
        assert_eq!(
            (row["reply"], row["reply_payload"]),
            (kind, &*size),
            "{context}"
        );
        assert_eq!(row["fds"], bounds(info.fds_out), "{context}");
        assert_eq!(row["reply_fds"], bounds(info.fds_in), "{context}");
        assert_eq!(row["gate"], gate(info.gate), "{context}");
    }
}

/// The comment before the prototype of a function.
fn documentation(function: &str) -> &'static str {
    let prototype = format!("int {function}(");
    let at = HEADER.find(&prototype);
    let before = &HEADER[..at.unwrap_or_else(|| panic!("{function} is not in the header"))];
    &before[before.rfind("/**").unwrap()..]
}

#[test]
fn every_request_has_its_function_its_words_and_its_tests() {
    for row in rows("front-end") {
        let (name, function) = (row["name"], row["function"]);
        let words = documentation(function);
        assert!(
            words.contains(&format!("({name})")),
            "{function} does not name {name}"
        );
        // What it needs, in the words of the header.
        let (request, gate) = (request(&row), row["gate"]);
        if let Some(feature) = gate.strip_prefix("protocol:") {
            let feature = feature.split('+').next().unwrap();
            let constant = format!("VUF_PROTOCOL_F_{feature}");
            assert!(words.contains(&constant), "{function}: {constant}");
        }
        assert_eq!(
            gate != "-",
            words.contains("VUF_E_NOT_NEGOTIATED") || words.contains("was not offered"),
            "{function}"
        );
        if row["form"] == "-" {
            assert!(
                CASES.iter().any(|case| case.request == request),
                "{name} has no transcript"
            );
            let line = format!("| {} | {name} | `{function}` |", row["id"]);
            assert!(README.contains(&line), "the README has no {line}");
        }
    }
}

#[test]
fn every_request_of_the_back_end_is_a_fact_and_has_its_function() {
    let rows = rows("back-end");
    assert_eq!(rows.len(), BackendRequest::ALL.len());
    let at = HEADER.find("struct vuf_backend_ops {").unwrap();
    let ops = &HEADER[at..at + HEADER[at..].find("\n};").unwrap()];
    for (row, request) in rows.iter().zip(BackendRequest::ALL) {
        let (context, info) = (format!("{row:?}"), request.info());
        assert_eq!(row["id"], request.id().to_string(), "{context}");
        let name = format!("BACKEND_{}", row["name"]);
        assert_eq!(name, info.name.as_str(), "{context}");
        assert_eq!(row["request"], bounds(info.payload), "{context}");
        let always = info.answered == Answered::Always;
        assert_eq!(row["reply"] == "always", always, "{context}");
        // What may come along is allowed; one crate sends more than it should.
        let least = row["fds"].split('-').next().unwrap().parse().unwrap();
        let most = row["fds"].split('-').next_back().unwrap().parse().unwrap();
        assert!(
            info.fds.contain(least) && info.fds.contain(most),
            "{context}"
        );
        assert!(most == 1 || always || info.fds.max == 0, "{context}");
        let gate = match info.gate {
            BackendGate::Acked(bit) => format!("acked:{bit}"),
            BackendGate::Protocol(mask) => {
                assert_eq!(mask.count_ones(), 1, "{context}");
                let name = protocol_feature_name(mask.trailing_zeros()).unwrap();
                format!("protocol:{name}")
            }
        };
        assert_eq!(row["gate"], gate, "{context}");
        let member = format!("(*{})(", row["function"]);
        assert!(ops.contains(&member), "there is no {member}");
        assert!(ops.contains(&name), "the header does not name {name}");
    }
}
