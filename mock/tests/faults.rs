//! What the real client makes of a back-end that misbehaves, and what the mock
//! does to the channel and to eventfds.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Guest, client, client_with, met, no_leak};
use nix::errno::Errno;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::{BackendClient, Class, Timeout};
use vuf_mock_backend::{Mock, Script};

/// Longer than an answer takes, and short enough to wait for in a test.
const SHORT: Timeout = Timeout::After(Duration::from_millis(300));

/// How GET_FEATURES goes with this fault.
fn get_features(fault: &str) -> Result<u64, Class> {
    let (client, mock) = client_with(&format!("expect GET_FEATURES: {fault}"), SHORT);
    let result = client.get_features().map_err(|error| error.class());
    drop(client);
    met(mock);
    result
}

#[test]
fn the_client_tells_faults_apart() {
    let _guard = no_leak();
    let good = get_features("delay 1ms").unwrap();
    for harmless in [
        "split 5 5ms",
        "split 12",
        "split 15",
        "pieces 3 1ms",
        "delay 50ms",
        "flags 0xd",
    ] {
        assert_eq!(get_features(harmless), Ok(good), "{harmless}");
    }
    let broken = [
        "code GET_QUEUE_NUM",
        "code 99",
        "flags 0x1",
        "flags 0x6",
        "size 4",
        "size +8",
        "huge",
        "pad 8",
        "trim 8",
        "fds +1",
        "payload 00",
    ];
    for fault in broken {
        assert_eq!(get_features(fault), Err(Class::Protocol), "{fault}");
    }
    for fault in [
        "drop",
        "short 3",
        "short 20",
        "never",
        "delay 10s",
        "close",
        "short 3, close-after",
    ] {
        assert_eq!(get_features(fault), Err(Class::Transport), "{fault}");
    }
}

#[test]
fn a_reply_too_many_is_noticed_by_the_next_request() {
    let _guard = no_leak();
    for fault in ["duplicate", "raw 010000000500000008000000ffffffffffffffff"] {
        let (client, mock) = client_with(&format!("on GET_FEATURES nth=1: {fault}"), SHORT);
        client.get_features().unwrap();
        assert_eq!(
            client.get_protocol_features().unwrap_err().class(),
            Class::Protocol,
            "{fault}"
        );
        drop(client);
        met(mock);
    }
}

#[test]
fn refusals_reach_the_caller() {
    let _guard = no_leak();
    for (mode, closes) in [
        ("polite", false),
        ("dpdk", false),
        ("libvhost-user", false),
        ("rust-vmm-new", true),
    ] {
        let (client, mock) = client(&format!("mode {mode}\non SET_MEM_TABLE: refuse 7"));
        let guest = Guest::new(1);
        guest.negotiate(&client, true).unwrap();
        let error = client.set_mem_table(&[guest.region()]).unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{mode}");
        assert!(error.to_string().contains('7'), "{error}");
        assert_eq!(client.get_features().is_err(), closes, "{mode}");
        drop(client);
        met(mock);
    }
}

#[test]
fn a_descriptor_too_few() {
    let _guard = no_leak();
    let (client, mock) = client_with(
        "on GET_INFLIGHT_FD nth=2: fds -1\non GET_INFLIGHT_FD nth=3: fds +7",
        SHORT,
    );
    Guest::new(1).negotiate(&client, true).unwrap();
    let (inflight, fd) = client.get_inflight_fd(1, 256).unwrap();
    assert!(fd.is_some() && inflight.mmap_size > 0);
    assert!(client.get_inflight_fd(1, 256).is_err());
    drop(client);
    met(mock);
}

#[test]
fn a_back_end_that_stops_reading() {
    let _guard = no_leak();
    let (client, mock) = client_with("stop-reading", SHORT);
    assert_eq!(client.get_features().unwrap_err().class(), Class::Transport);
    drop(client);
    assert_eq!(met(mock).log.last().unwrap(), "= the front-end closed");
    // For a while only.
    let (client, mock) = common::client("expect GET_FEATURES: stop-reading 100ms");
    let start = Instant::now();
    client.get_features().unwrap();
    client.get_protocol_features().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(100));
    drop(client);
    met(mock);
}

#[test]
fn eventfds_are_filled() {
    let _guard = no_leak();
    let (client, mock) = client("expect SET_VRING_ENABLE: fill-eventfds");
    let guest = Guest::new(1);
    guest.negotiate(&client, true).unwrap();
    guest.start(&client).unwrap();
    for eventfd in [&guest.kick[0], &guest.call[0]] {
        assert_eq!(eventfd.write(1), Err(Errno::EAGAIN));
    }
    drop(client);
    assert!(met(mock).log.contains(&"* 2 eventfds filled".to_owned()));
}

#[test]
fn libvhost_user_calls_at_once() {
    let _guard = no_leak();
    for (mode, called) in [("libvhost-user", true), ("dpdk", false)] {
        let (client, mock) = client(&format!("mode {mode}"));
        let guest = Guest::new(1);
        guest.negotiate(&client, true).unwrap();
        guest.start(&client).unwrap();
        assert_eq!(guest.call[0].read().is_ok(), called, "{mode}");
        drop(client);
        met(mock);
    }
}

// ---- the back-end's channel ----

/// A client that has given a channel, and the front-end's end of that.
fn with_channel(script: &str) -> (BackendClient, Mock, UnixStream) {
    let (client, mock) = client(script);
    Guest::new(1).negotiate(&client, true).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    client.set_backend_req_fd(theirs.as_fd()).unwrap();
    (client, mock, ours)
}

/// Reads one request: header and payload.
fn request(channel: &mut UnixStream, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    channel.read_exact(&mut bytes).unwrap();
    bytes
}

/// Answers it.
fn answer(channel: &mut UnixStream, code: u32, value: u64) {
    let header = [code, 5, 8].map(u32::to_ne_bytes).concat();
    channel
        .write_all(&[&header[..], &value.to_ne_bytes()].concat())
        .unwrap();
}

#[test]
fn a_back_end_may_ask_before_it_answers() {
    let _guard = no_leak();
    let script = "on GET_CONFIG: send CONFIG_CHANGE need-reply answer=0";
    let (client, mock, mut channel) = with_channel(script);
    let asked = thread::spawn(move || {
        let mut config = [0; 4];
        client.get_config(0, 0, &mut config).map(|()| config)
    });
    assert_eq!(
        request(&mut channel, 12),
        [2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]
    );
    thread::sleep(Duration::from_millis(20));
    assert!(!asked.is_finished(), "it waits for the answer");
    answer(&mut channel, 2, 0);
    assert_eq!(asked.join().unwrap().unwrap(), [0, 1, 2, 3]);
    let log = met(mock).log.join("\n");
    assert!(log.contains("channel < CONFIG_CHANGE_MSG need-reply\nchannel > CONFIG_CHANGE_MSG value=0\n< GET_CONFIG"), "{log}");
}

#[test]
fn what_is_wrong_with_an_answer_is_told() {
    let _guard = no_leak();
    let send = "expect SET_BACKEND_REQ_FD\nsend CONFIG_CHANGE need-reply within=300ms answer=0";
    let cases: [(&[u32], &str); 6] = [
        (&[2, 5, 8, 1, 0], "the answer is 1, not 0"),
        (&[3, 5, 8, 0, 0], "an answer to request 3"),
        (&[2, 1, 8, 0, 0], "an answer with flags 0x1"),
        (&[2, 5, 4, 0], "an answer of 4 bytes"),
        (&[2, 5, 0xffff_ffff], "an answer of 0xffffffff bytes"),
        (&[], "no answer in time"),
    ];
    for (words, problem) in cases {
        let (client, mock, mut channel) = with_channel(send);
        request(&mut channel, 12);
        let bytes: Vec<u8> = words.iter().copied().flat_map(u32::to_ne_bytes).collect();
        channel.write_all(&bytes).unwrap();
        client.get_features().unwrap(); // the mock is back
        drop(client);
        let outcome = mock.finish().unwrap();
        assert_eq!(
            outcome.unmet,
            [format!("send CONFIG_CHANGE_MSG: {problem}")]
        );
    }
}

#[test]
fn a_back_ends_request_can_be_spoilt_too() {
    let _guard = no_leak();
    let script = "\
expect SET_BACKEND_REQ_FD
send SHMEM_MAP shmid=1 len=0x1000 need-reply no-wait: short 4
send CONFIG_CHANGE: code 99, flags 0x5
";
    let (client, mock, mut channel) = with_channel(script);
    let map = request(&mut channel, 12 + 36);
    assert_eq!(
        (map[0], map[4], map[8], map[12], map[37]),
        (9, 9, 40, 1, 0x10)
    );
    assert_eq!(
        request(&mut channel, 12),
        [99, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    );
    drop(client);
    met(mock);
}

#[test]
fn a_request_before_a_reply_can_be_spoilt() {
    let _guard = no_leak();
    let script = "\
on GET_CONFIG nth=1: send VRING_CALL index=1 need-reply (code 99, split 5 1ms), delay 1ms
on GET_CONFIG nth=2: send VRING_CALL need-reply no-wait (short 4, close-after)
";
    let (client, mock, mut channel) = with_channel(script);
    let asked = thread::spawn(move || {
        let mut config = [0; 4];
        client.get_config(0, 0, &mut config).unwrap();
        client.get_config(0, 0, &mut config).unwrap();
    });
    let whole = request(&mut channel, 12 + 8);
    assert_eq!((whole[0], whole[4], whole[8], whole[12]), (99, 9, 8, 1));
    answer(&mut channel, 99, 7);
    let mut rest = Vec::new();
    channel.read_to_end(&mut rest).unwrap();
    assert_eq!((rest.len(), rest[0]), (16, 4));
    asked.join().unwrap();
    let log = met(mock).log.join("\n");
    let line = "channel < VRING_CALL need-reply index=1 num=0 [code 99, split 5 1ms]";
    assert!(log.contains(line), "{log}");
    for wrong in [
        "on any: send CONFIG_CHANGE (",
        "on any: send CONFIG_CHANGE (close",
        "on any: send CONFIG_CHANGE (close) drop",
        "on any: send CONFIG_CHANGE (close: drop)",
        "on any: drop)",
    ] {
        assert!(Script::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_shared_object_comes_with_its_descriptor() {
    let _guard = no_leak();
    let script = "on GET_CONFIG: send SHARED_OBJECT_LOOKUP within=300ms";
    let problem = "send SHARED_OBJECT_LOOKUP: an answer with 0 descriptors";
    for (value, unmet) in [(0, vec![problem.to_owned()]), (1, vec![])] {
        let (client, mock, mut channel) = with_channel(script);
        let asked = thread::spawn(move || client.get_config(0, 0, &mut [0; 4]));
        request(&mut channel, 12 + 16);
        answer(&mut channel, 8, value);
        asked.join().unwrap().unwrap();
        assert_eq!(mock.finish().unwrap().unmet, unmet);
    }
}

#[test]
fn answers_that_nobody_waited_for_are_passed_over() {
    let _guard = no_leak();
    let script = "\
expect SET_BACKEND_REQ_FD
send VRING_CALL index=1 need-reply no-wait
send VRING_CALL index=2 need-reply answer=2
";
    let (client, mock, mut channel) = with_channel(script);
    request(&mut channel, 40);
    answer(&mut channel, 4, 1);
    answer(&mut channel, 4, 2);
    client.get_features().unwrap();
    drop(client);
    met(mock);
}

#[test]
fn without_a_channel_nothing_can_be_sent() {
    let _guard = no_leak();
    let (client, mock) = client("expect GET_FEATURES\nsend CONFIG_CHANGE");
    client.get_features().unwrap();
    drop(client);
    let right = ["send CONFIG_CHANGE_MSG: the front-end has given no channel"];
    assert_eq!(mock.finish().unwrap().unmet, right);
}
