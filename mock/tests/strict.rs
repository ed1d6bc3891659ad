//! What the strict modes do over a real socket: message by message, written by
//! hand, as a front-end with a bug would send them.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::no_leak;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use vuf_mock_backend::{Mock, Outcome, Script};

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 9;
/// Long enough for the mock to have read what was there.
const A_MOMENT: Duration = Duration::from_millis(30);

struct FrontEnd {
    socket: UnixStream,
    mock: Mock,
}

/// What comes back.
#[derive(Debug, PartialEq, Eq)]
enum Back {
    Value(u64),
    Bytes(Vec<u8>),
    Nothing,
    Closed,
}

impl FrontEnd {
    fn new(script: &str) -> Self {
        let (socket, mock) = Mock::spawn(Script::parse(script).unwrap()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        Self { socket, mock }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    fn tell(&mut self, code: u32, flags: u32, payload: &[u8]) {
        let size = u32::try_from(payload.len()).unwrap();
        let header = [code, flags, size].map(u32::to_ne_bytes).concat();
        self.write(&[&header[..], payload].concat());
    }

    fn back(&mut self) -> Back {
        let mut header = [0; 12];
        match self.socket.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Back::Nothing,
            Err(_) => return Back::Closed,
        }
        let mut payload = vec![0; usize::from(header[8])];
        self.socket.read_exact(&mut payload).unwrap();
        match payload.as_slice().try_into() {
            Ok(value) => Back::Value(u64::from_ne_bytes(value)),
            Err(_) => Back::Bytes(payload),
        }
    }

    fn ask(&mut self, code: u32, flags: u32, payload: &[u8]) -> Back {
        self.tell(code, flags, payload);
        self.back()
    }

    /// As every mode wants it before it acknowledges.
    fn agree_on_reply_ack(&mut self) {
        assert!(matches!(self.ask(1, VERSION, &[]), Back::Value(_)));
        assert!(matches!(self.ask(15, VERSION, &[]), Back::Value(_)));
        self.tell(16, VERSION, &8_u64.to_ne_bytes());
    }

    fn finish(self) -> Outcome {
        drop(self.socket);
        self.mock.finish().unwrap()
    }
}

fn long(value: u64) -> [u8; 8] {
    value.to_ne_bytes()
}

const STRICT: [&str; 4] = ["dpdk", "libvhost-user", "rust-vmm-old", "rust-vmm-new"];

#[test]
fn a_body_in_pieces() {
    let _guard = no_leak();
    for mode in STRICT {
        let mut front = FrontEnd::new(&format!("mode {mode}"));
        front.write(&[2_u32, VERSION, 8].map(u32::to_ne_bytes).concat());
        front.write(&[0, 0, 0]);
        thread::sleep(A_MOMENT);
        assert_eq!(front.back(), Back::Closed, "{mode}");
        let unmet = front.finish().unmet;
        assert_eq!(unmet.len(), 1);
        assert!(
            unmet[0].ends_with("a message must arrive whole"),
            "{unmet:?}"
        );
    }
    let mut front = FrontEnd::new("");
    front.write(&[16_u32, VERSION, 8].map(u32::to_ne_bytes).concat());
    for byte in long(8) {
        front.write(&[byte]);
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(
        front.ask(3, NEED_REPLY, &[]),
        Back::Value(0),
        "polite waits"
    );
    assert!(front.finish().is_met());
}

#[test]
fn a_header_in_pieces() {
    let _guard = no_leak();
    for mode in STRICT {
        let mut front = FrontEnd::new(&format!("mode {mode}"));
        let header = [1_u32, NEED_REPLY, 0].map(u32::to_ne_bytes).concat();
        front.write(&header[..8]);
        thread::sleep(A_MOMENT);
        if mode == "libvhost-user" {
            // It takes the rest for the beginning of the next: request 0.
            assert!(matches!(front.back(), Back::Value(_)));
            front.write(&header[8..]);
        }
        assert_eq!(front.back(), Back::Closed, "{mode}");
        assert!(!front.finish().is_met());
    }
}

#[test]
fn a_message_that_is_too_large() {
    let _guard = no_leak();
    for (mode, most) in [
        ("dpdk", 1072),
        ("libvhost-user", 272),
        ("rust-vmm-new", 4096),
    ] {
        let mut front = FrontEnd::new(&format!("mode {mode}"));
        front.write(&[25_u32, VERSION, most + 1].map(u32::to_ne_bytes).concat());
        assert_eq!(front.back(), Back::Closed, "{mode}");
        assert!(front.finish().unmet[0].contains("too large"));
    }
}

#[test]
fn when_need_reply_is_honoured() {
    let _guard = no_leak();
    for (mode, at_once, without_query) in [
        ("polite", false, true),
        ("dpdk", true, true),
        ("libvhost-user", true, true),
        ("rust-vmm-old", false, false),
        ("rust-vmm-new", false, true),
    ] {
        let mut front = FrontEnd::new(&format!("mode {mode}"));
        let answered = |answered| {
            if answered {
                Back::Value(0)
            } else {
                Back::Nothing
            }
        };
        assert_eq!(
            front.ask(8, NEED_REPLY, &long(0x100_0000_0000)),
            answered(at_once),
            "{mode}"
        );
        front.tell(1, VERSION, &[]);
        assert!(matches!(front.back(), Back::Value(_)));
        front.tell(16, VERSION, &long(8));
        // This is how a front-end hangs that reconnects without asking again.
        assert_eq!(
            front.ask(3, NEED_REPLY, &[]),
            answered(without_query),
            "{mode}"
        );
        front.tell(15, VERSION, &[]);
        assert!(matches!(front.back(), Back::Value(_)));
        assert_eq!(front.ask(10, NEED_REPLY, &[0; 8]), Back::Value(0), "{mode}");
        assert!(front.finish().is_met(), "{mode}");
    }
}

#[test]
fn what_a_refusal_looks_like() {
    let _guard = no_leak();
    // SET_FEATURES that nobody takes: not offered, and without VERSION_1.
    for (mode, asked, then, unasked) in [
        ("dpdk", Back::Value(1), Back::Value(0), Back::Closed),
        ("libvhost-user", Back::Value(0), Back::Closed, Back::Closed),
        ("rust-vmm-old", Back::Value(1), Back::Closed, Back::Closed),
        ("rust-vmm-new", Back::Value(1), Back::Closed, Back::Closed),
    ] {
        let mut front = FrontEnd::new(&format!("mode {mode}"));
        front.agree_on_reply_ack();
        assert_eq!(front.ask(2, NEED_REPLY, &long(1 << 60)), asked, "{mode}");
        let goes_on = then != Back::Closed;
        let next = if goes_on {
            front.ask(3, NEED_REPLY, &[])
        } else {
            front.back()
        };
        assert_eq!(next, then, "{mode}");
        let unmet = front.finish().unmet;
        let right = format!("{mode} refuses SET_FEATURES need-reply value=0x1000000000000000: ");
        assert!(
            unmet.len() == 1 && unmet[0].starts_with(&right),
            "{unmet:?}"
        );

        let mut front = FrontEnd::new(&format!("mode {mode}"));
        front.agree_on_reply_ack();
        assert_eq!(front.ask(2, VERSION, &long(1 << 60)), unasked, "{mode}");
        front.finish();
    }
}

#[test]
fn dpdk_nacks_in_place_of_a_reply() {
    let _guard = no_leak();
    let mut front = FrontEnd::new("mode dpdk\nexpect GET_SHMEM_CONFIG refused");
    assert_eq!(front.ask(44, NEED_REPLY, &[]), Back::Value(1));
    assert!(front.finish().is_met(), "it was expected");
}

#[test]
fn libvhost_user_may_stay_and_say_nothing() {
    let _guard = no_leak();
    let mut front =
        FrontEnd::new("mode libvhost-user\ndevice when-broken silent\nexpect any refused");
    assert_eq!(front.ask(2, NEED_REPLY, &long(0)), Back::Value(0));
    assert_eq!(front.ask(1, VERSION, &[]), Back::Nothing);
    assert!(front.finish().is_met());
}

#[test]
fn a_second_owner() {
    let _guard = no_leak();
    for (mode, second) in [
        ("polite", Back::Value(0)),
        ("dpdk", Back::Value(0)),
        ("libvhost-user", Back::Value(0)),
        ("rust-vmm-old", Back::Value(1)),
        ("rust-vmm-new", Back::Value(1)),
    ] {
        let mut front = FrontEnd::new(&format!("mode {mode}"));
        front.agree_on_reply_ack();
        assert_eq!(front.ask(3, NEED_REPLY, &[]), Back::Value(0), "{mode}");
        let closes = second == Back::Value(1);
        assert_eq!(front.ask(3, NEED_REPLY, &[]), second, "{mode}");
        assert_eq!(front.back() == Back::Closed, closes, "{mode}");
        front.finish();
    }
}

#[test]
fn libvhost_user_echoes_need_reply() {
    let _guard = no_leak();
    let mut front = FrontEnd::new("mode libvhost-user");
    front.tell(1, NEED_REPLY, &[]);
    let mut bytes = [0; 20];
    front.socket.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..12], [1_u32, 0xd, 8].map(u32::to_ne_bytes).concat());
    assert!(front.finish().is_met());
}

#[test]
fn libvhost_user_writes_a_reply_in_two_parts() {
    let _guard = no_leak();
    for (mode, first) in [("libvhost-user", 12), ("dpdk", 36)] {
        let mut front = FrontEnd::new(&format!(
            "mode {mode}\ndevice protocol-features +INFLIGHT_SHMFD"
        ));
        let wish = [&[0; 16][..], &[1, 0, 0, 1, 0, 0, 0, 0]].concat();
        front.tell(31, VERSION, &wish);
        thread::sleep(A_MOMENT);
        // A read ends after the part that carries a descriptor.
        assert_eq!(front.socket.read(&mut [0; 99]).unwrap(), first, "{mode}");
        assert!(front.finish().is_met());
    }
}

#[test]
fn never_is_for_all_that_follows() {
    let _guard = no_leak();
    let mut front = FrontEnd::new("on GET_QUEUE_NUM: never");
    front.agree_on_reply_ack();
    for code in [17, 1, 15] {
        assert_eq!(front.ask(code, VERSION, &[]), Back::Nothing, "{code}");
    }
    let log = front.finish().log;
    assert!(
        log.ends_with(
            &[
                "> GET_FEATURES",
                "> GET_PROTOCOL_FEATURES",
                "= the front-end closed"
            ]
            .map(str::to_owned)
        ),
        "{log:?}"
    );
}
