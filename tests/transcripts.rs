//! What each request puts on the wire, byte by byte, and what comes of a
//! well-made answer. The bytes are written out in the table of [`common`].

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
    Answer, CASES, Case, Descriptor, FEATURES, PACKED, Peer, REPLY, adopted, both, connected, file,
    files, handshake, hex, identity, lead_to, memory, message, patient, protocol, protocol_for,
};
use nix::sys::socket::MsgFlags;
use std::os::fd::{AsFd, BorrowedFd};
use vhost_user_frontend::message::{
    Barrier, CryptoAsym, CryptoSym, Gate, Inflight, Iotlb, Log, MemRegion, ProtocolFeatures,
    Request, VringAddr, protocol_feature_name,
};
use vhost_user_frontend::{
    BackendClient, CryptoKind, Direction, Kind, Options, Result, SharedRegion, Timeout, code,
};

/// Receives with one read what must be this message, with these descriptors.
fn expect_bytes(peer: &Peer, bytes: &[u8], fds: &[BorrowedFd<'_>], context: &str) {
    let (got, received) = peer.read(bytes.len(), MsgFlags::empty()).unwrap();
    assert_eq!(got, bytes, "{context}");
    let received: Vec<_> = received.iter().map(|fd| identity(fd.as_fd())).collect();
    let passed: Vec<_> = fds.iter().map(|fd| identity(*fd)).collect();
    assert_eq!(received, passed, "{context}");
}

/// A client on which everything was agreed, message by message.
fn negotiated(request: Request, reply_ack: bool, running: bool) -> (BackendClient, Peer) {
    let protocol = protocol_for(request, reply_ack);
    let (client, peer) = match request {
        Request::VringKick if !reply_ack => adopted(FEATURES, protocol, patient()),
        _ => handshake(FEATURES, protocol, patient()),
    };
    lead_to(request, reply_ack, &client, &peer);
    if running && request != Request::SetOwner {
        both(
            || client.set_vring_kick(3, Some(file(0))).unwrap(),
            || common::answer(&peer, Case::of(Request::SetVringKick), reply_ack, true),
        );
    }
    (client, peer)
}

fn check_transcript(case: &Case, reply_ack: bool, running: bool) {
    let context = format!(
        "{:?}, REPLY_ACK {reply_ack}, running {running}",
        case.request
    );
    let (client, peer) = negotiated(case.request, reply_ack, running);
    let mut bytes = hex(case.wire);
    let acked = match case.answer {
        Answer::Ack(_) => reply_ack,
        Answer::Status => true,
        Answer::Own(..) | Answer::Nothing => false,
    };
    if acked {
        bytes[4] = 0x09;
    }
    let fds: Vec<_> = files()[..case.fds].iter().map(AsFd::as_fd).collect();
    let (result, ()) = both(
        || (case.call)(&client),
        || {
            expect_bytes(&peer, &bytes, &fds, &context);
            match case.answer {
                Answer::Own(payload, descriptor) => {
                    let fd = [memory(7)];
                    let fds = if descriptor == Descriptor::With {
                        &fd[..]
                    } else {
                        &[]
                    };
                    peer.send(&message(case.request.id(), REPLY, &hex(payload)), fds);
                }
                Answer::Ack(_) | Answer::Status if acked => peer.ack(case.request, 0),
                Answer::Ack(barrier) => {
                    let wanted = match barrier {
                        Barrier::Never => false,
                        Barrier::Always => true,
                        Barrier::WhileRunning => running,
                    };
                    if wanted {
                        let get_features = hex(Case::of(Request::GetFeatures).wire);
                        expect_bytes(&peer, &get_features, &[], &context);
                        peer.ack(Request::GetFeatures, FEATURES);
                    }
                }
                Answer::Nothing | Answer::Status => {}
            }
        },
    );
    result.unwrap_or_else(|error| panic!("{context}: {error}"));
    peer.expect_silence();
}

fn check_all(reply_ack: bool, running: bool) {
    for case in CASES {
        check_transcript(case, reply_ack, running);
    }
}

#[test]
fn every_request_has_exactly_one_transcript() {
    let cases: Vec<_> = CASES.iter().map(|case| case.request).collect();
    assert_eq!(cases, Request::ALL);
}

#[test]
fn with_reply_ack_what_can_be_acknowledged_asks_for_it_and_nothing_else_does() {
    check_all(true, false);
}

#[test]
fn with_reply_ack_running_rings_add_no_barrier() {
    check_all(true, true);
}

#[test]
fn without_reply_ack_a_barrier_follows_what_must_be_complete() {
    check_all(false, false);
}

#[test]
fn without_reply_ack_a_barrier_follows_changes_to_a_running_ring() {
    check_all(false, true);
}

#[test]
fn an_adopted_connection_takes_every_ring_for_running() {
    for request in [
        Request::SetFeatures,
        Request::SetVringAddr,
        Request::SetVringCall,
    ] {
        let (client, peer) = adopted(FEATURES, protocol(false), patient());
        let case = Case::of(request);
        let (result, ()) = both(
            || (case.call)(&client),
            || common::answer(&peer, case, false, true),
        );
        result.unwrap();
        peer.expect_silence();
    }
}

/// One call on a client without REPLY_ACK, and what it sends.
struct Variant {
    name: &'static str,
    call: fn(&BackendClient) -> Result<()>,
    wire: &'static str,
    fds: usize,
}

fn region(index: u64) -> MemRegion {
    MemRegion {
        guest_addr: index << 32,
        size: 0x1000,
        user_addr: index << 40,
        mmap_offset: index << 12,
        ..MemRegion::default()
    }
}

#[test]
fn arguments_at_their_limits_are_encoded() {
    const VARIANTS: &[Variant] = &[
        Variant {
            name: "a kick without a descriptor",
            call: |client| client.set_vring_kick(0xfe, None),
            wire: "0c000000 01000000 08000000  fe01000000000000",
            fds: 0,
        },
        Variant {
            name: "a call without a descriptor",
            call: |client| client.set_vring_call(0, None),
            wire: "0d000000 01000000 08000000  0001000000000000",
            fds: 0,
        },
        Variant {
            name: "an err without a descriptor",
            call: |client| client.set_vring_err(0xff, None),
            wire: "0e000000 01000000 08000000  ff01000000000000",
            fds: 0,
        },
        Variant {
            name: "the last ring",
            call: |client| client.set_vring_err(0xff, Some(file(0))),
            wire: "0e000000 01000000 08000000  ff00000000000000",
            fds: 1,
        },
        Variant {
            name: "the largest ring",
            call: |client| client.set_vring_num(0xff, 0x8000),
            wire: "08000000 01000000 08000000  ff000000 00800000",
            fds: 0,
        },
        Variant {
            name: "disabling a ring",
            call: |client| client.set_vring_enable(1, false),
            wire: "12000000 01000000 08000000  01000000 00000000",
            fds: 0,
        },
        Variant {
            name: "eight regions, each with its own descriptor",
            call: |client| {
                let regions: Vec<_> = (0..8_u64)
                    .zip(files())
                    .map(|(index, file)| SharedRegion {
                        region: region(index),
                        fd: file.as_fd(),
                    })
                    .collect();
                client.set_mem_table(&regions)
            },
            wire: "05000000 01000000 08010000  08000000 00000000
                   0000000000000000 0010000000000000 0000000000000000 0000000000000000
                   0000000001000000 0010000000000000 0000000000010000 0010000000000000
                   0000000002000000 0010000000000000 0000000000020000 0020000000000000
                   0000000003000000 0010000000000000 0000000000030000 0030000000000000
                   0000000004000000 0010000000000000 0000000000040000 0040000000000000
                   0000000005000000 0010000000000000 0000000000050000 0050000000000000
                   0000000006000000 0010000000000000 0000000000060000 0060000000000000
                   0000000007000000 0010000000000000 0000000000070000 0070000000000000",
            fds: 8,
        },
        Variant {
            name: "a little-endian ring",
            call: |client| client.set_vring_endian(0xff, 0),
            wire: "17000000 01000000 08000000  ff000000 00000000",
            fds: 0,
        },
        Variant {
            name: "the least MTU",
            call: |client| client.net_set_mtu(68),
            wire: "14000000 01000000 08000000  4400000000000000",
            fds: 0,
        },
        Variant {
            name: "the largest MTU",
            call: |client| client.net_set_mtu(65535),
            wire: "14000000 01000000 08000000  ffff000000000000",
            fds: 0,
        },
        Variant {
            name: "a whole status",
            call: |client| client.set_status(0xff),
            wire: "27000000 01000000 08000000  ff00000000000000",
            fds: 0,
        },
        Variant {
            name: "the whole of an address space is invalidated",
            call: |client| {
                client.send_iotlb(&Iotlb {
                    iova: 1,
                    size: u64::MAX,
                    user_addr: u64::MAX,
                    perm: 0,
                    kind: 3,
                    padding: [0; 6],
                })
            },
            wire: "16000000 09000000 20000000  0100000000000000 ffffffffffffffff ffffffffffffffff
                   00 03 000000000000",
            fds: 0,
        },
        Variant {
            name: "the last byte of the configuration space",
            call: |client| client.set_config(0xfff, 0, &[0x5a]),
            wire: "19000000 01000000 0d000000  ff0f0000 01000000 00000000 5a",
            fds: 0,
        },
    ];
    for variant in VARIANTS {
        let (client, peer) = adopted(FEATURES, protocol(false), patient());
        let bytes = hex(variant.wire);
        let fds: Vec<_> = files()[..variant.fds].iter().map(AsFd::as_fd).collect();
        let (result, ()) = both(
            || (variant.call)(&client),
            || {
                expect_bytes(&peer, &bytes, &fds, variant.name);
                let code = u32::from(bytes[0]);
                if code == Request::IotlbMsg.id() {
                    peer.ack(Request::IotlbMsg, 0);
                }
                // SET_MEM_TABLE, SET_VRING_CALL, SET_VRING_ENABLE, SET_STATUS.
                if [5, 13, 18, 39].contains(&code) {
                    peer.expect(Request::GetFeatures);
                    peer.ack(Request::GetFeatures, FEATURES);
                }
            },
        );
        result.unwrap_or_else(|error| panic!("{}: {error}", variant.name));
        peer.expect_silence();
    }
}

#[test]
fn a_full_configuration_space_goes_both_ways() {
    let data: Vec<u8> = (0..=255).collect();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let mut buffer = [0; 256];
    let ((), ()) = both(
        || {
            client.set_config(0, 0, &data).unwrap();
            client.get_config(0, 0, &mut buffer).unwrap();
        },
        || {
            let sent = peer.expect(Request::SetConfig);
            assert_eq!(sent.payload[..12], hex("00000000 00010000 00000000"));
            assert_eq!(sent.payload[12..], data);
            peer.ack(Request::SetConfig, 0);
            let asked = peer.expect(Request::GetConfig);
            assert_eq!(
                asked.payload,
                [hex("00000000 00010000 00000000"), vec![0; 256]].concat()
            );
            peer.reply(Request::GetConfig, &sent.payload);
        },
    );
    assert_eq!(buffer[..], data);
}

#[test]
fn the_barrier_comes_only_while_that_ring_runs() {
    let call = |client: &BackendClient, index| client.set_vring_call(index, Some(file(0)));
    let (client, peer) = handshake(FEATURES, protocol(false), patient());
    client.set_vring_kick(70, Some(file(0))).unwrap();
    peer.expect(Request::SetVringKick);

    call(&client, 6).unwrap(); // 6 and 70 differ in more than their low bits
    peer.expect(Request::SetVringCall);
    peer.expect_silence();

    let barrier = || {
        peer.expect(Request::SetVringCall);
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, FEATURES);
    };
    both(|| call(&client, 70), barrier).0.unwrap();

    let stop = || {
        peer.expect(Request::GetVringBase);
        peer.reply(Request::GetVringBase, &hex("46000000 00000000"));
    };
    both(|| client.get_vring_base(70, Timeout::Default), stop)
        .0
        .unwrap();
    call(&client, 70).unwrap();
    peer.expect(Request::SetVringCall);
    client.set_features(FEATURES).unwrap(); // no ring runs any more
    peer.expect(Request::SetFeatures);
    peer.expect_silence();
}

#[test]
fn a_handshake_without_features_to_agree_on_needs_two_messages() {
    let (client, peer) = connected(patient());
    let agree = || -> Result<()> {
        assert_eq!(client.get_features()?, 0);
        client.set_features(0)?;
        client.set_owner()
    };
    let (result, ()) = both(agree, || {
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, 0);
    });
    result.unwrap();
    assert_eq!(peer.expect(Request::SetFeatures).flags, 0x1);
    assert_eq!(peer.expect(Request::SetOwner).flags, 0x1);
    assert_eq!(client.acked_features(), 0);
    assert_eq!(client.acked_protocol_features(), ProtocolFeatures::empty());
}

#[test]
fn what_was_agreed_can_be_asked_for() {
    let (client, _peer) = handshake(FEATURES, protocol(true), patient());
    assert_eq!(client.acked_features(), FEATURES);
    assert_eq!(client.acked_protocol_features(), protocol(true));
}

/// The result of one call that is answered with this payload.
fn answered<T: Send>(
    features: u64,
    protocol: ProtocolFeatures,
    request: Request,
    payload: &str,
    fds: &[BorrowedFd<'_>],
    call: impl FnOnce(&BackendClient) -> Result<T> + Send,
) -> Result<T> {
    let (client, peer) = adopted(features, protocol, patient());
    let reply = message(request.id(), REPLY, &hex(payload));
    let (result, ()) = both(
        || call(&client),
        || {
            peer.expect(request);
            peer.send(&reply, fds);
        },
    );
    result
}

#[test]
fn a_base_is_returned_as_it_is_meant() {
    let packed = FEATURES | PACKED;
    let draining = ProtocolFeatures::INFLIGHT_SHMFD;
    let parking = draining | ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
    let table = [
        ("split", FEATURES, draining, "03000000 ffff0000", 0xffff),
        (
            "packed, whole",
            packed,
            draining,
            "03000000 34927812",
            0x1278_9234,
        ),
        (
            "packed, cut to 16 bits",
            packed,
            draining,
            "03000000 34920000",
            0x9234_9234,
        ),
        (
            "packed, parking, whole",
            packed,
            parking,
            "03000000 34927812",
            0x1278_9234,
        ),
        (
            "packed, parking, used index 0",
            packed,
            parking,
            "03000000 34920000",
            0x9234,
        ),
    ];
    for (name, features, protocol, reply, base) in table {
        let request = Request::GetVringBase;
        let call = |client: &BackendClient| client.get_vring_base(3, Timeout::Default);
        let result = answered(features, protocol, request, reply, &[], call);
        assert_eq!(result.unwrap(), base, "{name}");
    }
}

#[test]
fn a_packed_base_goes_out_whole() {
    let (client, peer) = adopted(FEATURES | PACKED, protocol(false), patient());
    client.set_vring_base(3, 0x8000_8000).unwrap();
    let bytes = hex("0a000000 01000000 08000000  03000000 00800080");
    expect_bytes(&peer, &bytes, &[], "packed base");
}

#[test]
fn a_back_end_may_want_no_inflight_buffer() {
    let payload = "0000000000000000 0000000000000000 0200 0001 00000000";
    let expected = Inflight {
        mmap_size: 0,
        mmap_offset: 0,
        num_queues: 2,
        queue_size: 256,
        padding: 0,
    };
    // The rust-vmm back-ends send a descriptor even then.
    for fds in [&[][..], &[memory(7)]] {
        let call = |client: &BackendClient| client.get_inflight_fd(2, 256);
        let request = Request::GetInflightFd;
        let result = answered(FEATURES, protocol(true), request, payload, fds, call);
        let (inflight, fd) = result.unwrap();
        assert_eq!(inflight, expected);
        assert!(fd.is_none());
    }
}

#[test]
fn device_state_moves_over_our_descriptor_or_theirs() {
    let table = [
        (
            Direction::Save,
            "00000000 00000000",
            "0001000000000000",
            None,
        ),
        (
            Direction::Save,
            "00000000 00000000",
            "0000000000000000",
            Some(file(5)),
        ),
        (
            Direction::Load,
            "01000000 00000000",
            "0001000000000000",
            None,
        ),
    ];
    for (direction, asked, reply, theirs) in table {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        let request = Request::SetDeviceStateFd;
        let (result, ()) = both(
            || client.set_device_state_fd(direction, file(2)),
            || {
                let message_in = peer.expect(request);
                assert_eq!(message_in.payload, hex(asked));
                assert_eq!(message_in.fds.len(), 1);
                assert_eq!(identity(message_in.fds[0].as_fd()), identity(file(2)));
                peer.send(
                    &message(request.id(), REPLY, &hex(reply)),
                    theirs.as_slice(),
                );
            },
        );
        let returned = result.unwrap().map(|fd| identity(fd.as_fd()));
        assert_eq!(returned, theirs.map(identity));
    }
}

/// A call that must be refused before anything is sent.
type Refused = (&'static str, i32, fn(&BackendClient) -> Result<()>);

#[test]
fn arguments_that_back_ends_choke_on_never_reach_the_wire() {
    const LOG: Log = Log {
        mmap_size: 0x1000,
        mmap_offset: 0,
    };
    const ADDR: VringAddr = VringAddr {
        index: 0,
        flags: 0,
        descriptor: 0x1000,
        used: 0x2000,
        available: 0x3000,
        log: 0,
    };
    const IOTLB: Iotlb = Iotlb {
        iova: 0x1000,
        size: 0x1000,
        user_addr: 0x2000,
        perm: 1,
        kind: 2,
        padding: [0; 6],
    };
    const SYM: CryptoSym = CryptoSym {
        cipher_alg: 0,
        key_len: 0,
        hash_alg: 0,
        hash_result_len: 0,
        auth_key_len: 0,
        add_len: 0,
        op_type: 0,
        direction: 0,
        hash_mode: 0,
        alg_chain_order: 0,
        padding: 0,
        pointers: [0; 2],
        key: [0; 64],
        auth_key: [0; 512],
    };
    const ASYM: CryptoAsym = CryptoAsym {
        algo: 0,
        key_type: 0,
        key_len: 0,
        padding: 0,
        pointer: 0,
        padding_algo: 0,
        hash_algo: 0,
        key: [0; 1024],
    };
    fn create(client: &BackendClient, op_code: u64, session: CryptoSym) -> Result<()> {
        let kind = CryptoKind::Sym(&session);
        client.create_crypto_session(op_code, kind).map(drop)
    }
    fn create_asym(client: &BackendClient, op_code: u64, session: CryptoAsym) -> Result<()> {
        let kind = CryptoKind::Asym(&session);
        client.create_crypto_session(op_code, kind).map(drop)
    }
    fn table(client: &BackendClient, regions: &[MemRegion]) -> Result<()> {
        let shared: Vec<_> = regions
            .iter()
            .map(|&region| SharedRegion {
                region,
                fd: file(0),
            })
            .collect();
        client.set_mem_table(&shared)
    }
    const REFUSED: &[Refused] = &[
        ("a ring beyond 8 bits", -libc::EINVAL, |c| {
            c.set_vring_kick(256, None)
        }),
        ("stopping a ring beyond 8 bits", -libc::EINVAL, |c| {
            c.get_vring_base(256, Timeout::Default).map(drop)
        }),
        ("a ring of size 0", -libc::EINVAL, |c| c.set_vring_num(0, 0)),
        ("a split ring of odd size", -libc::EINVAL, |c| {
            c.set_vring_num(0, 3)
        }),
        ("a ring too large", -libc::EINVAL, |c| {
            c.set_vring_num(0, 0x1_0000)
        }),
        ("a split base with more than 16 bits", -libc::EINVAL, |c| {
            c.set_vring_base(0, 0x1_0000)
        }),
        ("an unknown address flag", -libc::EINVAL, |c| {
            c.set_vring_addr(&VringAddr { flags: 2, ..ADDR })
        }),
        ("a descriptor table off its alignment", -libc::EINVAL, |c| {
            c.set_vring_addr(&VringAddr {
                descriptor: 0x1008,
                ..ADDR
            })
        }),
        ("a used ring off its alignment", -libc::EINVAL, |c| {
            c.set_vring_addr(&VringAddr {
                used: 0x2002,
                ..ADDR
            })
        }),
        ("an available ring off its alignment", -libc::EINVAL, |c| {
            c.set_vring_addr(&VringAddr {
                available: 0x3001,
                ..ADDR
            })
        }),
        ("an empty memory table", -libc::EINVAL, |c| table(c, &[])),
        ("nine regions", -libc::EINVAL, |c| {
            table(c, &(0..9).map(region).collect::<Vec<_>>())
        }),
        ("a region of size 0", -libc::EINVAL, |c| {
            table(
                c,
                &[MemRegion {
                    size: 0,
                    ..region(1)
                }],
            )
        }),
        ("overlapping regions", -libc::EINVAL, |c| {
            table(c, &[region(1), region(1)])
        }),
        ("a region that wraps", -libc::EINVAL, |c| {
            table(
                c,
                &[MemRegion {
                    guest_addr: u64::MAX,
                    ..region(1)
                }],
            )
        }),
        ("a region off its page", -libc::EINVAL, |c| {
            c.remove_mem_region(&MemRegion {
                mmap_offset: 8,
                ..region(1)
            })
        }),
        ("a log with an offset", -libc::EINVAL, |c| {
            c.set_log_base(
                &Log {
                    mmap_offset: 0x1000,
                    ..LOG
                },
                file(0),
            )
        }),
        ("a log that is no multiple of 8", -libc::EINVAL, |c| {
            c.set_log_base(
                &Log {
                    mmap_size: 0x1001,
                    ..LOG
                },
                file(0),
            )
        }),
        ("no configuration space", -libc::EINVAL, |c| {
            c.get_config(0, 0, &mut [])
        }),
        ("too much configuration space", -libc::EINVAL, |c| {
            c.get_config(0, 0, &mut [0; 257])
        }),
        ("beyond the configuration space", -libc::EINVAL, |c| {
            c.set_config(0xfff, 0, &[0; 2])
        }),
        ("no inflight queues", -libc::EINVAL, |c| {
            c.get_inflight_fd(0, 256).map(drop)
        }),
        (
            "protocol features that are not served",
            -libc::EINVAL,
            |c| c.set_protocol_features(1 << 24),
        ),
        (
            "a protocol feature without what it needs",
            -libc::EINVAL,
            |c| c.set_protocol_features(1 << 20),
        ),
        (
            "in-band notifications without their channel",
            -libc::EINVAL,
            |c| c.set_protocol_features(1 << 14 | 1 << 3),
        ),
        (
            "in-band notifications without acknowledgements",
            -libc::EINVAL,
            |c| c.set_protocol_features(1 << 14 | 1 << 5),
        ),
        ("skipping a drain without a buffer", -libc::EINVAL, |c| {
            c.set_protocol_features(1 << 23 | 1 << 20)
        }),
        ("a second owner", code::STATE, |c| c.set_owner()),
        ("too small an MTU", -libc::EINVAL, |c| c.net_set_mtu(67)),
        ("too large an MTU", -libc::EINVAL, |c| c.net_set_mtu(65536)),
        ("no byte order", -libc::EINVAL, |c| c.set_vring_endian(0, 2)),
        (
            "the byte order of a ring beyond 8 bits",
            -libc::EINVAL,
            |c| c.set_vring_endian(256, 0),
        ),
        ("notifying a ring beyond 8 bits", -libc::EINVAL, |c| {
            c.vring_kick(256)
        }),
        ("leaving a ring beyond 8 bits", -libc::EINVAL, |c| {
            c.get_vring_base_skip_drain(256).map(drop)
        }),
        ("a status of 9 bits", -libc::EINVAL, |c| c.set_status(0x100)),
        ("an IOTLB miss", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb { kind: 1, ..IOTLB })
        }),
        ("an access failure", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb { kind: 4, ..IOTLB })
        }),
        ("a translation for nobody", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb { perm: 0, ..IOTLB })
        }),
        ("an unknown permission", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb { perm: 4, ..IOTLB })
        }),
        ("an unknown permission to end", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb {
                perm: 4,
                kind: 3,
                ..IOTLB
            })
        }),
        ("an empty translation", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb { size: 0, ..IOTLB })
        }),
        ("a translation that wraps", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb {
                iova: u64::MAX - 0xffe,
                ..IOTLB
            })
        }),
        ("a translation to what wraps", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb {
                user_addr: u64::MAX - 0xffe,
                ..IOTLB
            })
        }),
        ("an IOTLB padding that says something", -libc::EINVAL, |c| {
            c.send_iotlb(&Iotlb {
                padding: [0, 0, 0, 0, 0, 1],
                ..IOTLB
            })
        }),
        ("an operation that creates nothing", -libc::EINVAL, |c| {
            create(c, 3, SYM)
        }),
        (
            "a symmetric session of the other kind",
            -libc::EINVAL,
            |c| create(c, 0x404, SYM),
        ),
        (
            "an asymmetric session of the other kind",
            -libc::EINVAL,
            |c| create_asym(c, 2, ASYM),
        ),
        ("a key too long", -libc::EINVAL, |c| {
            create(c, 2, CryptoSym { key_len: 65, ..SYM })
        }),
        ("an authentication key too long", -libc::EINVAL, |c| {
            let session = CryptoSym {
                auth_key_len: 513,
                ..SYM
            };
            create(c, 2, session)
        }),
        ("a key longer than it says", -libc::EINVAL, |c| {
            let session = CryptoSym {
                key_len: 63,
                key: [1; 64],
                ..SYM
            };
            create(c, 2, session)
        }),
        ("a pointer in a session", -libc::EINVAL, |c| {
            let session = CryptoSym {
                pointers: [0, 1],
                ..SYM
            };
            create(c, 2, session)
        }),
        ("a pointer in an asymmetric session", -libc::EINVAL, |c| {
            create_asym(c, 0x404, CryptoAsym { pointer: 1, ..ASYM })
        }),
        ("an asymmetric key too long", -libc::EINVAL, |c| {
            let session = CryptoAsym {
                key_len: 1025,
                ..ASYM
            };
            create_asym(c, 0x404, session)
        }),
    ];
    for (name, code, call) in REFUSED {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        let error = call(&client).expect_err(name);
        assert_eq!(error.code(), *code, "{name}: {error}");
        assert!(error.request.is_some(), "{name}: {error}");
        peer.expect_silence();
    }
}

#[test]
fn who_inherits_a_connection_may_acknowledge_what_another_was_offered() {
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let acknowledge = || {
        peer.expect(Request::SetFeatures);
        peer.send(&message(Request::SetFeatures.id(), 0x5, &[0; 8]), &[]);
    };
    let result = both(|| client.set_features(FEATURES | PACKED), acknowledge).0;
    assert_eq!(result.map_err(|error| error.to_string()), Ok(()));
    assert_eq!(client.acked_features(), FEATURES | PACKED);
}

#[test]
fn a_request_whose_feature_was_not_agreed_never_reaches_the_wire() {
    // SET_LOG_BASE is among them: without LOG_SHMFD nobody can say whether it
    // is answered.
    let gated: Vec<_> = CASES
        .iter()
        .filter(|case| {
            use Request as R;
            !matches!(
                case.request,
                R::GetFeatures
                    | R::SetFeatures
                    | R::SetOwner
                    | R::ResetOwner
                    | R::SetMemTable
                    | R::SetLogFd
                    | R::SetVringNum
                    | R::SetVringAddr
                    | R::SetVringBase
                    | R::GetVringBase
                    | R::SetVringKick
                    | R::SetVringCall
                    | R::SetVringErr
                    | R::SetProtocolFeatures
                    | R::GpuSetSocket
            )
        })
        .collect();
    assert_eq!(gated.len(), 30);
    for case in gated {
        let (client, peer) = adopted(1 << 32, ProtocolFeatures::empty(), patient());
        let error = (case.call)(&client).expect_err("it must be refused");
        assert_eq!(error.kind, Kind::NotNegotiated, "{error}");
        assert_eq!(error.code(), code::NOT_NEGOTIATED);
        assert_eq!(error.request, Some(case.request));
        peer.expect_silence();
    }
}

#[test]
fn a_closed_gate_names_the_bit_that_is_missing() {
    let refused = |case: &Case, features, protocol: ProtocolFeatures, text: &str| {
        let (client, peer) = adopted(features, protocol, patient());
        let error = (case.call)(&client).expect_err("it must be refused");
        assert_eq!(error.kind, Kind::NotNegotiated, "{error}");
        assert!(error.to_string().contains(text), "{error}: no {text}");
        peer.expect_silence();
    };
    for case in CASES {
        let agreed = protocol_for(case.request, true);
        let virtio = |bit: u32| {
            let text = format!("virtio feature bit {bit} ");
            refused(case, FEATURES & !(1 << bit), agreed, &text);
        };
        let protocol = |feature: ProtocolFeatures| {
            let bit = feature.bits().trailing_zeros();
            let name = protocol_feature_name(bit).unwrap();
            let text = format!("{name} (bit {bit}) has not been acknowledged");
            refused(case, FEATURES, agreed - feature, &text);
        };
        match case.request.info().gate {
            Gate::Open | Gate::Offered(_) => {}
            Gate::Acked(bit) => virtio(bit),
            Gate::Protocol(feature) => protocol(feature),
            Gate::Both(feature, bit) => {
                protocol(feature);
                virtio(bit);
            }
        }
    }
}

#[test]
fn what_has_no_effect_alone_may_be_acknowledged_alone() {
    // Back-ends offer HOST_NOTIFIER, SHMEM and BACKEND_SEND_FD so.
    for feature in [10, 11, 22] {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        client.set_protocol_features(1 << feature).unwrap();
        peer.expect(Request::SetProtocolFeatures);
    }
}

#[test]
fn resetting_the_device_forgets_the_features_only() {
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let reset = Case::of(Request::ResetDevice);
    let answer = || common::answer(&peer, reset, true, false);
    both(|| client.reset_device(), answer).0.unwrap();
    assert_eq!(client.acked_features(), 0);
    assert_eq!(client.acked_protocol_features(), protocol(true));
    let error = client.set_vring_enable(0, true).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated, "{error}");
    let error = client.set_owner().unwrap_err();
    assert_eq!(error.kind, Kind::State, "{error}");
    peer.expect_silence();
    // A refused one forgets nothing.
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let refuse = || {
        peer.expect(Request::ResetDevice);
        peer.ack(Request::ResetDevice, 1);
    };
    both(|| client.reset_device(), refuse).0.unwrap_err();
    assert_eq!(client.acked_features(), FEATURES);
}

#[test]
fn a_message_that_notifies_starts_the_ring() {
    let protocol = protocol(false) | ProtocolFeatures::INBAND_NOTIFICATIONS;
    let (client, peer) = adopted(FEATURES, protocol, patient());
    let stop = || {
        peer.expect(Request::GetVringBaseSkipDrain);
        peer.reply(Request::GetVringBaseSkipDrain, &hex("03000000 00000000"));
    };
    both(|| client.get_vring_base_skip_drain(3), stop)
        .0
        .unwrap();
    client.set_vring_call(3, Some(file(0))).unwrap(); // no barrier: it has stopped
    peer.expect(Request::SetVringCall);
    client.vring_kick(3).unwrap();
    peer.expect(Request::VringKick);
    peer.expect_silence();
    let barrier = || {
        peer.expect(Request::SetVringCall);
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, FEATURES);
    };
    both(|| client.set_vring_call(3, None), barrier).0.unwrap();
}

#[test]
fn a_base_without_a_drain_is_never_completed() {
    let request = Request::GetVringBaseSkipDrain;
    for protocol in [ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN, protocol(true)] {
        let call = |client: &BackendClient| client.get_vring_base_skip_drain(3);
        let reply = "03000000 34920000";
        let result = answered(FEATURES | PACKED, protocol, request, reply, &[], call);
        assert_eq!(result.unwrap(), 0x9234);
    }
}

#[test]
fn an_asymmetric_session_has_a_key_of_its_own() {
    let mut session = CryptoAsym {
        algo: 1,
        key_type: 2,
        key_len: 1024,
        padding: 0,
        pointer: 0,
        padding_algo: 3,
        hash_algo: 4,
        key: [0x5a; 1024],
    };
    session.key[1023] = 0xa5;
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let call = || client.create_crypto_session(0x404, CryptoKind::Asym(&session));
    let answer = || {
        let got = peer.expect(Request::CreateCryptoSession);
        assert_eq!((got.flags, got.payload.len()), (1, 1072));
        let head = hex("0404000000000000 01000000 02000000 00040000 00000000
                        0000000000000000 03000000 04000000");
        assert_eq!(got.payload[..40], head);
        assert_eq!(got.payload[40..1064], session.key);
        assert_eq!(got.payload[1064..], [0; 8]);
        peer.reply(Request::CreateCryptoSession, &vec![0; 1072]);
    };
    assert_eq!(both(call, answer).0.unwrap(), 0);
    assert!(!format!("{session:?}").contains("90"), "a key is shown");
}

#[test]
fn a_shared_object_may_come_with_any_body() {
    for payload in ["", "00", "ffffffffffffffffffffffffffffffff"] {
        let call = |client: &BackendClient| client.get_shared_object(&[1; 16]);
        let request = Request::GetSharedObject;
        let fds = [memory(7)];
        let result = answered(FEATURES, protocol(true), request, payload, &fds, call);
        assert_eq!(identity(result.unwrap().as_fd()), identity(memory(7)));
    }
}

#[test]
fn a_client_made_for_few_rings_refuses_others() {
    let options = Options {
        max_rings: 2,
        ..patient()
    };
    let (client, peer) = adopted(FEATURES, protocol(false), options);
    client.set_vring_num(1, 8).unwrap();
    peer.expect(Request::SetVringNum);
    let error = client.set_vring_num(2, 8).unwrap_err();
    assert_eq!((error.code(), error.ring), (-libc::EINVAL, Some(2)));
    peer.expect_silence();
}

#[test]
fn with_gpa_addresses_a_region_lies_at_its_guest_address() {
    let protocol = ProtocolFeatures::CONFIGURE_MEM_SLOTS | ProtocolFeatures::GPA_ADDRESSES;
    let (client, peer) = adopted(FEATURES, protocol, patient());
    let error = client.remove_mem_region(&region(1)).unwrap_err();
    assert_eq!(error.code(), -libc::EINVAL);
    peer.expect_silence();
}
