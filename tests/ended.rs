//! What calls are told on a connection that has ended, and how late a deadline
//! may be.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{
    BRIEF, CASES, FEATURES, Peer, adopted, after, connected, no_fd_leak, patient, protocol,
};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{BackendClient, Class, Kind, Options, Timeout};

/// Ways in which a connection ends, and what every later call answers.
type Ending = (&'static str, fn(&BackendClient, &Peer), Kind);
const ENDINGS: [Ending; 4] = [
    ("an abort", |client, _| client.abort(), Kind::Canceled),
    (
        "a hang-up that a call noticed",
        |client, peer| {
            peer.hang_up();
            client.get_features().unwrap_err();
        },
        Kind::Disconnected,
    ),
    (
        "a message that nobody asked for",
        |client, peer| {
            peer.ack(Request::GetFeatures, 0);
            client.get_features().unwrap_err();
        },
        Kind::Poisoned(Class::Protocol),
    ),
    (
        "a deadline that passed",
        |client, _| {
            client.get_features().unwrap_err();
        },
        Kind::Poisoned(Class::Transport),
    ),
];

#[test]
fn a_closed_gate_does_not_hide_that_the_connection_has_ended() {
    let _leak = no_fd_leak();
    for (ending, end, kind) in ENDINGS {
        // Nothing is agreed, so most gates are closed and most orders wrong.
        let options = Options {
            quick: Timeout::After(BRIEF),
            ..patient()
        };
        let (client, peer) = connected(options);
        end(&client, &peer);
        for case in CASES {
            let error = (case.call)(&client).expect_err(ending);
            assert_eq!(
                error.kind, kind,
                "{:?} after {ending}: {error}",
                case.request
            );
            assert_eq!(error.request, Some(case.request), "after {ending}");
        }
    }
}

#[test]
fn a_second_owner_does_not_hide_that_the_connection_has_ended() {
    let _leak = no_fd_leak();
    for (ending, end, kind) in ENDINGS {
        let options = Options {
            quick: Timeout::After(BRIEF),
            ..patient()
        };
        let (client, peer) = adopted(FEATURES, ProtocolFeatures::empty(), options);
        end(&client, &peer);
        assert_eq!(client.set_owner().unwrap_err().kind, kind, "after {ending}");
    }
}

#[test]
fn a_send_into_a_closed_connection_ends_it() {
    let _leak = no_fd_leak();
    for case in CASES {
        let (client, peer) = adopted(FEATURES, protocol(false), patient());
        drop(peer);
        // This one does not wait for an answer, so it is the send that fails.
        let first = client.set_vring_num(0, 8).unwrap_err();
        assert_eq!(first.kind, Kind::Disconnected);
        let error = (case.call)(&client).expect_err("the peer is gone");
        let text = error.to_string();
        let context = format!("{:?}: {text}", case.request);
        assert_eq!(error.kind, Kind::Disconnected, "{context}");
        assert!(
            text.contains("SET_VRING_NUM"),
            "no first cause in {context}"
        );
    }
}

#[test]
fn answers_sent_before_the_back_end_closed_are_still_read() {
    // A thread that finds the connection closed for sending must not take the
    // answer from another one that waits for it.
    let _leak = no_fd_leak();
    for _ in 0..200 {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| client.get_queue_num());
            peer.expect(Request::GetQueueNum);
            let sender = scope.spawn(|| while client.get_features().is_ok() {});
            peer.ack(Request::GetQueueNum, 7);
            peer.hang_up();
            assert_eq!(waiting.join().unwrap().unwrap(), 7);
            sender.join().unwrap();
        });
    }
}

#[test]
fn a_short_deadline_is_not_late() {
    let _leak = no_fd_leak();
    for milliseconds in [2, 5, 10, 20, 40, 60] {
        let wanted = Duration::from_millis(milliseconds);
        // The scheduler may spoil most attempts, hardly all of them.
        let mut late: Vec<_> = (0..15)
            .map(|_| {
                let options = Options {
                    quick: after(milliseconds),
                    ..patient()
                };
                let (client, _peer) = connected(options);
                let start = Instant::now();
                let error = client.get_features().unwrap_err();
                let took = start.elapsed();
                assert_eq!(error.kind, Kind::TimedOut);
                assert!(took >= wanted, "{took:?} for {wanted:?}");
                took.saturating_sub(wanted)
            })
            .collect();
        late.sort();
        // A socket's own timeout counts in kernel ticks, which are up to 10 ms.
        assert!(late[0] < Duration::from_millis(2), "{wanted:?}: {late:?}");
    }
}
