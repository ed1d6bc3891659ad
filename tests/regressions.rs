//! What was reproduced against the front-end that most monitors use, each with
//! the sentence of what goes wrong there. Other tests hold the details; these
//! name the cases.

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
    AT_ONCE, FEATURES, REPLY, adopted, both, connected, connected_on, cpu_time, file, memory,
    message, no_fd_leak, patient, protocol,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{Log, Request};
use vhost_user_frontend::{Kind, Options, Timeout};

const SHORT: Duration = Duration::from_millis(200);

fn short() -> Options {
    Options {
        quick: Timeout::After(SHORT),
        ..patient()
    }
}

/// Elsewhere a receive timeout on the socket has no effect, and a silent peer
/// blocks the caller for ever.
#[test]
fn r1_a_silent_peer_costs_one_deadline() {
    let _leak = no_fd_leak();
    let (client, _peer) = connected(short());
    let start = Instant::now();
    let error = client.get_features().unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut, "{error}");
    assert!(start.elapsed() >= SHORT);
    assert!(start.elapsed() < SHORT + AT_ONCE);
}

/// Elsewhere the descriptor cannot be had while a request waits, so that no other
/// thread can cancel it.
#[test]
fn r2_a_waiting_request_can_be_cancelled_from_another_thread() {
    let _leak = no_fd_leak();
    let (client, peer) = connected(patient());
    let cancel = || {
        peer.expect(Request::GetFeatures);
        assert!(client.read_notifier().as_raw_fd() >= 0);
        let start = Instant::now();
        client.abort();
        start
    };
    let (result, start) = both(|| client.get_features(), cancel);
    assert!(start.elapsed() < AT_ONCE);
    assert_eq!(result.unwrap_err().kind, Kind::Canceled);
}

/// Elsewhere a non-blocking socket makes the caller spin.
#[test]
fn r3_a_non_blocking_socket_is_waited_for_without_spinning() {
    let _leak = no_fd_leak();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (client, _peer) = connected_on(ours, theirs, short());
    let before = cpu_time();
    let error = client.get_features().unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut, "{error}");
    assert!(cpu_time() - before < SHORT / 4);
}

/// Elsewhere one reply too many is taken as the answer to the next request of the
/// same code.
#[test]
fn r4_a_surplus_reply_answers_nothing() {
    let _leak = no_fd_leak();
    let (client, peer) = connected(patient());
    let twice = || {
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, FEATURES);
    };
    assert_eq!(both(|| client.get_features(), twice).0.unwrap(), FEATURES);
    peer.ack(Request::GetFeatures, 0xbad);
    let error = client.get_features().unwrap_err();
    assert_eq!(error.kind, Kind::Protocol, "{error}");
    peer.expect_silence();
}

/// Elsewhere the connection is used on after a garbage reply, as if nothing had
/// happened.
#[test]
fn r5_after_garbage_nothing_more_is_sent() {
    let _leak = no_fd_leak();
    let (client, peer) = connected(patient());
    let garbage = || {
        peer.expect(Request::GetFeatures);
        peer.send(&message(0xdead_beef, REPLY, &[0; 8]), &[]);
    };
    let error = both(|| client.get_features(), garbage).0.unwrap_err();
    assert_eq!(error.kind, Kind::Protocol, "{error}");
    let error = client.get_features().unwrap_err();
    assert!(matches!(error.kind, Kind::Poisoned(_)), "{error}");
    peer.expect_silence();
}

/// Elsewhere SET_LOG_BASE leaves an answer unread, and the next call fails on it.
#[test]
fn r6_the_answer_to_set_log_base_is_consumed() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let log = Log {
        mmap_size: 0x1000,
        mmap_offset: 0,
    };
    // libvhost-user leaves stale bytes in it.
    let stale = || {
        peer.expect(Request::SetLogBase);
        peer.reply(Request::SetLogBase, &0x1000_u64.to_ne_bytes());
    };
    both(|| client.set_log_base(&log, file(0)), stale)
        .0
        .unwrap();
    let next = || {
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, FEATURES);
    };
    assert_eq!(both(|| client.get_features(), next).0.unwrap(), FEATURES);
}

/// Elsewhere the descriptor that GET_INFLIGHT_FD brings survives an exec.
#[test]
fn r7_a_received_descriptor_is_close_on_exec() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let buffer = || {
        peer.expect(Request::GetInflightFd);
        let payload = [0x1000_u64, 0, 0x0100_0001].map(u64::to_ne_bytes).concat();
        peer.send(
            &message(Request::GetInflightFd.id(), REPLY, &payload),
            &[memory(0)],
        );
    };
    let (_, fd) = both(|| client.get_inflight_fd(1, 256), buffer).0.unwrap();
    let flags = fcntl(fd.unwrap(), FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
}
