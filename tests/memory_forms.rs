//! The other forms of requests about memory: as Xen wants them, and as a postcopy
//! migration does, byte by byte; and in which order a postcopy migration goes.

#![cfg(target_endian = "little")]
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
    Case, FEATURES, Peer, REPLY, adopted, both, file, hex, identity, lead_to, memory, message,
    no_fd_leak, patient, protocol, ready_for,
};
use nix::sys::socket::MsgFlags;
use std::os::fd::AsFd;
use vhost_user_frontend::message::{MemRegion, ProtocolFeatures, Request};
use vhost_user_frontend::{BackendClient, Error, Kind, Result, SharedRegion, code};

const REGIONS: [MemRegion; 2] = [
    MemRegion {
        guest_addr: 0,
        size: 0x10_0000,
        user_addr: 0x7f00_1234_5000,
        mmap_offset: 0,
        xen_mmap_flags: 0,
        xen_domid: 0,
    },
    MemRegion {
        guest_addr: 0x1_0000_0000,
        size: 0x20_0000,
        user_addr: 0x7f01_0000_0000,
        mmap_offset: 0x3000,
        xen_mmap_flags: 0,
        xen_domid: 0,
    },
];
const XEN: MemRegion = MemRegion {
    xen_mmap_flags: 0x102,
    xen_domid: 0x1234_5678,
    ..REGIONS[1]
};

fn shared(region: MemRegion, index: usize) -> SharedRegion<'static> {
    SharedRegion {
        region,
        fd: file(index),
    }
}

fn table() -> [SharedRegion<'static>; 2] {
    [shared(REGIONS[0], 0), shared(REGIONS[1], 1)]
}

/// Receives with one read what must be these bytes, with so many descriptors.
fn expect_bytes(peer: &Peer, wire: &str, fds: usize) {
    let bytes = hex(wire);
    let (got, received) = peer.read(bytes.len(), MsgFlags::empty()).unwrap();
    assert_eq!(got, bytes);
    let received: Vec<_> = received.iter().map(|fd| identity(fd.as_fd())).collect();
    let passed: Vec<_> = (0..fds).map(|index| identity(file(index))).collect();
    assert_eq!(received, passed);
}

fn refused<T: std::fmt::Debug>(result: Result<T>, peer: &Peer, code: i32, text: &str) {
    let error: Error = result.expect_err(text);
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(text), "{error}: not {text}");
    assert!(error.request.is_some(), "{error}");
    peer.expect_silence();
}

// ---- Xen ----

fn with_xen() -> (BackendClient, Peer) {
    let features = protocol(true) | ProtocolFeatures::XEN_MMAP;
    adopted(FEATURES, features, patient())
}

#[test]
fn with_xen_mmap_every_region_has_its_flags_and_domain() {
    let _leak = no_fd_leak();
    let (client, peer) = with_xen();
    let plain = shared(REGIONS[0], 0);
    let answer = || {
        expect_bytes(
            &peer,
            "05000000 09000000 58000000  02000000 00000000
             0000000000000000 0000100000000000 00503412007f0000 0000000000000000 00000000 00000000
             0000000001000000 0000200000000000 00000000017f0000 0030000000000000 02010000 78563412",
            2,
        );
        peer.ack(Request::SetMemTable, 0);
    };
    let call = || client.set_mem_table(&[plain, shared(XEN, 1)]);
    both(call, answer).0.unwrap();

    let region = "0000000000000000
        0000000001000000 0000200000000000 00000000017f0000 0030000000000000 02010000 78563412";
    let answer = || {
        expect_bytes(&peer, &format!("25000000 09000000 30000000 {region}"), 1);
        peer.ack(Request::AddMemReg, 0);
    };
    both(|| client.add_mem_region(&shared(XEN, 0)), answer)
        .0
        .unwrap();
    let answer = || {
        expect_bytes(&peer, &format!("26000000 09000000 30000000 {region}"), 0);
        peer.ack(Request::RemMemReg, 0);
    };
    both(|| client.remove_mem_region(&XEN), answer).0.unwrap();
    peer.expect_silence();
}

#[test]
fn eight_regions_of_xen_are_a_table() {
    let _leak = no_fd_leak();
    let (client, peer) = with_xen();
    let regions: Vec<_> = (0..8_u64)
        .map(|index| {
            let region = MemRegion {
                guest_addr: index << 32,
                user_addr: index << 32,
                ..XEN
            };
            shared(region, 0)
        })
        .collect();
    let answer = || {
        let got = peer.expect(Request::SetMemTable);
        assert_eq!((got.payload.len(), got.fds.len()), (8 + 8 * 40, 8));
        peer.ack(Request::SetMemTable, 0);
    };
    both(|| client.set_mem_table(&regions), answer).0.unwrap();
}

#[test]
fn flags_of_xen_must_be_known_and_agreed() {
    let _leak = no_fd_leak();
    let (client, peer) = with_xen();
    for flags in [4, 0x200, 1 << 31] {
        let region = MemRegion {
            xen_mmap_flags: flags,
            ..XEN
        };
        let text = "xen_mmap_flags";
        refused(
            client.remove_mem_region(&region),
            &peer,
            -libc::EINVAL,
            text,
        );
        let result = client.set_mem_table(&[shared(region, 0)]);
        assert_eq!(result.as_ref().unwrap_err().region, Some(0));
        refused(result, &peer, -libc::EINVAL, text);
    }
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    for region in [
        MemRegion {
            xen_mmap_flags: 1,
            ..REGIONS[0]
        },
        MemRegion {
            xen_domid: 1,
            ..REGIONS[0]
        },
    ] {
        let result = client.add_mem_region(&shared(region, 0));
        refused(result, &peer, -libc::EINVAL, "XEN_MMAP");
    }
}

// ---- postcopy ----

/// A client whose back-end listens.
fn listening(reply_ack: bool) -> (BackendClient, Peer) {
    ready_for(Request::PostcopyEnd, reply_ack, patient())
}

const ASKED: &str = "05000000 01000000 48000000  02000000 00000000
    0000000000000000 0000100000000000 00503412007f0000 0000000000000000
    0000000001000000 0000200000000000 00000000017f0000 0030000000000000";
const TOLD: &str = "02000000 00000000
    0000000000000000 0000100000000000 0000a0aa007e0000 0000000000000000
    0000000001000000 0000200000000000 0000b0bb007e0000 0030000000000000";

/// The table, answered well.
fn set_table(client: &BackendClient, peer: &Peer) {
    let mut bases = [0; 2];
    let answer = || {
        expect_bytes(peer, ASKED, 2);
        peer.reply(Request::SetMemTable, &hex(TOLD));
    };
    let call = || client.postcopy_set_mem_table(&table(), &mut bases);
    both(call, answer).0.unwrap();
    assert_eq!(bases, [0x7e00_aaa0_0000, 0x7e00_bbb0_0000]);
}

#[test]
fn the_three_steps_of_a_postcopy_table() {
    let _leak = no_fd_leak();
    for reply_ack in [false, true] {
        let (client, peer) = listening(reply_ack);
        // Without need-reply, whatever was agreed: the answer is the table.
        set_table(&client, &peer);
        client.postcopy_ack_mem_table().unwrap();
        expect_bytes(&peer, "05000000 01000000 08000000  0000000000000000", 0);
        peer.expect_silence();
        // Life goes on.
        let case = Case::of(Request::SetVringNum);
        let answer = || common::answer(&peer, case, reply_ack, false);
        both(|| (case.call)(&client), answer).0.unwrap();
        let case = Case::of(Request::PostcopyEnd);
        let answer = || common::answer(&peer, case, reply_ack, false);
        both(|| (case.call)(&client), answer).0.unwrap();
        // Tables are ordinary again.
        let case = Case::of(Request::SetMemTable);
        let answer = || common::answer(&peer, case, reply_ack, false);
        both(|| (case.call)(&client), answer).0.unwrap();
        peer.expect_silence();
    }
}

#[test]
fn a_postcopy_table_of_xen_is_larger() {
    let _leak = no_fd_leak();
    let features = ProtocolFeatures::PAGEFAULT | ProtocolFeatures::XEN_MMAP;
    let (client, peer) = adopted(FEATURES, features, patient());
    lead_to(Request::PostcopyEnd, false, &client, &peer);
    let answer = || {
        let asked = peer.expect(Request::SetMemTable);
        assert_eq!((asked.flags, asked.payload.len()), (1, 48));
        let mut told = asked.payload.clone();
        told[24..32].copy_from_slice(&0x7e00_u64.to_ne_bytes());
        peer.reply(Request::SetMemTable, &told);
    };
    let mut bases = [0];
    let call = || client.postcopy_set_mem_table(&[shared(XEN, 0)], &mut bases);
    both(call, answer).0.unwrap();
    assert_eq!(bases, [0x7e00]);
}

#[test]
fn until_the_table_is_confirmed_nothing_else_is_sent() {
    let _leak = no_fd_leak();
    let (client, peer) = listening(true);
    set_table(&client, &peer);
    for case in common::CASES {
        let error = (case.call)(&client).expect_err("it must be refused");
        let local = matches!(error.kind, Kind::State | Kind::NotNegotiated);
        assert!(local, "{error}");
        peer.expect_silence();
    }
    let again = client.postcopy_set_mem_table(&table(), &mut [0; 2]);
    refused(again, &peer, code::STATE, "once");
    client.postcopy_ack_mem_table().unwrap();
    peer.expect(Request::SetMemTable);
    let again = client.postcopy_ack_mem_table();
    refused(again, &peer, code::STATE, "once");
    let again = client.postcopy_set_mem_table(&table(), &mut [0; 2]);
    refused(again, &peer, code::STATE, "once");
}

#[test]
fn an_answer_that_is_not_the_table_poisons_the_connection() {
    let _leak = no_fd_leak();
    let good = hex(TOLD);
    let changed = |at: usize| {
        let mut payload = good.clone();
        payload[at] ^= 1;
        payload
    };
    let mut answers: Vec<_> = [0, 4, 8, 16, 32, 40, 48, 64].map(changed).to_vec();
    answers.extend([
        good[..40].to_vec(),
        good[..71].to_vec(),
        [&good[..], &[0; 32]].concat(),
        Vec::new(),
        vec![0; 8],
    ]);
    for payload in answers {
        let (client, peer) = listening(true);
        let mut bases = [7; 2];
        let answer = || {
            peer.expect(Request::SetMemTable);
            peer.reply(Request::SetMemTable, &payload);
        };
        let call = || client.postcopy_set_mem_table(&table(), &mut bases);
        let error = both(call, answer).0.unwrap_err();
        assert_eq!(error.kind, Kind::Protocol, "{error}");
        assert_eq!(error.request, Some(Request::SetMemTable), "{error}");
        assert_eq!(bases, [7; 2]);
        let error = client.get_features().unwrap_err();
        assert!(matches!(error.kind, Kind::Poisoned(_)), "{error}");
    }
    // Nor does it bring a descriptor.
    let (client, peer) = listening(true);
    let answer = || {
        peer.expect(Request::SetMemTable);
        let reply = message(Request::SetMemTable.id(), REPLY, &good);
        peer.send(&reply, &[memory(7)]);
    };
    let mut bases = [7; 2];
    let call = || client.postcopy_set_mem_table(&table(), &mut bases);
    assert_eq!(both(call, answer).0.unwrap_err().kind, Kind::Protocol);
}

#[test]
fn a_bad_table_leaves_the_order_as_it_was() {
    let _leak = no_fd_leak();
    let (client, peer) = listening(true);
    let wrong = client.postcopy_set_mem_table(&table(), &mut [0; 1]);
    refused(wrong, &peer, -libc::EINVAL, "bases");
    let wrong = client.postcopy_set_mem_table(&[], &mut []);
    refused(wrong, &peer, -libc::EINVAL, "regions");
    set_table(&client, &peer);
}

#[test]
fn a_postcopy_migration_goes_in_order() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(
        FEATURES,
        protocol(true) - ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        patient(),
    );
    let state = code::STATE;
    let set_table = |client: &BackendClient| client.postcopy_set_mem_table(&table(), &mut [0; 2]);
    refused(client.postcopy_listen(), &peer, state, "POSTCOPY_ADVISE");
    refused(client.postcopy_end(), &peer, state, "POSTCOPY_LISTEN");
    refused(set_table(&client), &peer, state, "POSTCOPY_LISTEN");
    refused(
        client.postcopy_ack_mem_table(),
        &peer,
        state,
        "memory table",
    );
    lead_to(Request::PostcopyListen, true, &client, &peer);
    refused(client.postcopy_end(), &peer, state, "POSTCOPY_LISTEN");
    refused(set_table(&client), &peer, state, "POSTCOPY_LISTEN");
    let listen = Case::of(Request::PostcopyListen);
    let answer = || common::answer(&peer, listen, true, false);
    both(|| client.postcopy_listen(), answer).0.unwrap();
    refused(client.postcopy_listen(), &peer, state, "already");
    refused(client.postcopy_advise(), &peer, state, "already");
    let text = "postcopy_set_mem_table";
    refused(client.set_mem_table(&table()), &peer, state, text);
    refused(
        client.postcopy_ack_mem_table(),
        &peer,
        state,
        "memory table",
    );
}

#[test]
fn who_listens_has_shared_no_memory_before() {
    let _leak = no_fd_leak();
    let (client, peer) = ready_for(Request::PostcopyListen, true, patient());
    let case = Case::of(Request::SetMemTable);
    let answer = || common::answer(&peer, case, true, false);
    both(|| (case.call)(&client), answer).0.unwrap();
    let result = client.postcopy_listen();
    refused(result, &peer, code::STATE, "memory has been shared");
}

#[test]
fn postcopy_is_refused_where_regions_come_one_by_one() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let result = client.postcopy_advise();
    refused(result, &peer, code::STATE, "CONFIGURE_MEM_SLOTS");
}

#[test]
fn a_refused_step_is_not_taken() {
    let _leak = no_fd_leak();
    let (client, peer) = ready_for(Request::PostcopyListen, true, patient());
    let refuse = |request| {
        peer.expect(request);
        peer.ack(request, 5);
    };
    let listen = || refuse(Request::PostcopyListen);
    let error = both(|| client.postcopy_listen(), listen).0.unwrap_err();
    assert_eq!((error.kind, error.value), (Kind::Nack, Some(5)));
    refused(client.postcopy_end(), &peer, code::STATE, "POSTCOPY_LISTEN");
    // It may be tried again.
    let case = Case::of(Request::PostcopyListen);
    let answer = || common::answer(&peer, case, true, false);
    both(|| (case.call)(&client), answer).0.unwrap();
}
