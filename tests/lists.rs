//! Lists of requests: what goes out, how far ahead, and what is told of it.

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
    BRIEF, FEATURES, Message, Peer, adopted, both, connected_on, cpu_time, file,
    give_up_privileges, identity, limit_fds, many_in_flight, no_fd_leak, only_for_root, patient,
    protocol,
};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vhost_user_frontend::message::{Inflight, Request, VringAddr, VringState};
use vhost_user_frontend::{
    Adopted, BackendClient, Class, Kind, OnTimeout, Op, Options, Phase, Submitted, Timeout,
};

/// How long something is held up.
const HELD: Duration = Duration::from_millis(300);
/// How many requests may be unanswered, and how many that carry descriptors.
const WINDOW: usize = 64;
const FD_WINDOW: usize = 16;

fn num(index: u32, num: u32) -> Op<'static> {
    Op::SetVringNum(VringState { index, num })
}

/// So many requests that can be told apart.
fn nums(number: u32) -> Vec<Op<'static>> {
    (0..number).map(|n| num(n % 256, 1 << (n % 16))).collect()
}

fn ready(reply_ack: bool, options: Options) -> (BackendClient, Peer) {
    adopted(FEATURES, protocol(reply_ack), options)
}

fn request(message: &Message) -> Request {
    *Request::ALL
        .iter()
        .find(|request| request.id() == message.code)
        .unwrap()
}

/// Answers so many requests, each as `value` says.
fn answer(peer: &Peer, number: usize, mut value: impl FnMut(usize) -> u64) -> Vec<Message> {
    (0..number)
        .map(|n| {
            let message = peer.receive();
            assert_eq!(message.flags, 0x9, "an acknowledgement is asked for");
            peer.ack(request(&message), value(n));
            message
        })
        .collect()
}

fn told(submitted: &Submitted) -> (usize, usize, usize, Option<usize>) {
    let failed = submitted.failure.as_ref().and_then(|failure| failure.index);
    (submitted.sent, submitted.applied, submitted.refused, failed)
}

fn all_applied(submitted: &Submitted, number: usize) {
    assert!(submitted.failure.is_none(), "{submitted:?}");
    assert_eq!(told(submitted), (number, number, 0, None));
}

/// The connection is still of use.
fn works(client: &BackendClient, peer: &Peer) {
    let answer = || {
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, FEATURES);
    };
    assert_eq!(both(|| client.get_features(), answer).0.unwrap(), FEATURES);
    peer.expect_silence();
}

#[test]
fn every_kind_of_request_arrives_as_if_sent_alone() {
    let _leak = no_fd_leak();
    let addr = VringAddr {
        index: 2,
        flags: 1,
        descriptor: 0x1000,
        used: 0x2000,
        available: 0x3000,
        log: 0x4000,
    };
    let inflight = Inflight {
        mmap_size: 4096,
        mmap_offset: 0,
        num_queues: 2,
        queue_size: 64,
        padding: 0,
    };
    type Alone<'a> =
        Box<dyn Fn(&BackendClient) -> vhost_user_frontend::Result<()> + Send + Sync + 'a>;
    let mac = [2, 0, 0, 1, 2, 3];
    let list: Vec<(Op<'_>, Alone<'_>)> = vec![
        (num(3, 128), Box::new(|c| c.set_vring_num(3, 128))),
        (
            Op::SetVringAddr(addr),
            Box::new(|c| c.set_vring_addr(&addr)),
        ),
        (
            Op::SetVringBase(VringState { index: 3, num: 7 }),
            Box::new(|c| c.set_vring_base(3, 7)),
        ),
        (
            Op::SetVringEndian(VringState { index: 3, num: 1 }),
            Box::new(|c| c.set_vring_endian(3, 1)),
        ),
        (
            Op::SetInflightFd(inflight, file(3)),
            Box::new(|c| c.set_inflight_fd(&inflight, file(3))),
        ),
        (
            Op::SetVringCall(3, Some(file(0))),
            Box::new(|c| c.set_vring_call(3, Some(file(0)))),
        ),
        (
            Op::SetVringCall(4, None),
            Box::new(|c| c.set_vring_call(4, None)),
        ),
        (
            Op::SetVringErr(3, Some(file(1))),
            Box::new(|c| c.set_vring_err(3, Some(file(1)))),
        ),
        (
            Op::SetVringKick(3, Some(file(2))),
            Box::new(|c| c.set_vring_kick(3, Some(file(2)))),
        ),
        (Op::VringKick(3), Box::new(|c| c.vring_kick(3))),
        (
            Op::SetVringEnable(3, true),
            Box::new(|c| c.set_vring_enable(3, true)),
        ),
        (Op::SetLogFd(file(4)), Box::new(|c| c.set_log_fd(file(4)))),
        (Op::SetStatus(15), Box::new(|c| c.set_status(15))),
        (Op::NetSetMtu(1500), Box::new(|c| c.net_set_mtu(1500))),
        (Op::SendRarp(mac), Box::new(|c| c.send_rarp(mac))),
    ];
    let (client, peer) = ready(true, patient());
    let number = list.len();
    let ops: Vec<_> = list.iter().map(|(op, _)| *op).collect();
    let (submitted, at_once) = both(
        || client.submit(&ops, Timeout::Default),
        || answer(&peer, number, |_| 0),
    );
    all_applied(&submitted, number);
    let one_by_one = || list.iter().for_each(|(_, alone)| alone(&client).unwrap());
    let alone = both(one_by_one, || answer(&peer, number, |_| 0)).1;
    let show = |message: &Message| {
        let fds: Vec<_> = message
            .fds
            .iter()
            .map(std::os::fd::AsFd::as_fd)
            .map(identity)
            .collect();
        (message.code, message.flags, message.payload.clone(), fds)
    };
    for (at_once, alone) in at_once.iter().zip(&alone) {
        assert_eq!(show(at_once), show(alone));
    }
}

#[test]
fn a_list_of_any_length_is_applied_in_order() {
    let _leak = no_fd_leak();
    let (client, peer) = ready(true, patient());
    for number in [0, 1, 32, 63, 64, 65, 96, 97, 1000] {
        let list = nums(number);
        let number = list.len();
        let (submitted, messages) = both(
            || client.submit(&list, Timeout::Default),
            || answer(&peer, number, |_| 0),
        );
        all_applied(&submitted, number);
        for (n, message) in messages.iter().enumerate() {
            assert_eq!(
                (message.u32_at(0), message.u32_at(4)),
                (u32::try_from(n).unwrap() % 256, 1 << (n % 16))
            );
        }
        works(&client, &peer);
    }
}

#[test]
fn no_more_than_the_window_is_unanswered() {
    let _leak = no_fd_leak();
    let with_fds: Vec<_> = (0..100)
        .map(|n| Op::SetVringCall(n, Some(file(0))))
        .collect();
    let mixed: Vec<_> = (0..200)
        .map(|n| match n % 2 {
            0 => num(n, 8),
            _ => Op::SetVringKick(n, Some(file(0))),
        })
        .collect();
    // The request that would be the 17th with a descriptor waits, and all behind it.
    let lists = [
        (nums(1000), WINDOW),
        (with_fds, FD_WINDOW),
        (mixed, 2 * FD_WINDOW + 1),
    ];
    for (list, ahead) in lists {
        let options = Options {
            quick: Timeout::After(BRIEF),
            slow: Timeout::After(BRIEF),
            ..patient()
        };
        let (client, peer) = ready(true, options);
        let submitted = client.submit(&list, Timeout::Default);
        assert_eq!(told(&submitted), (ahead, 0, 0, Some(0)));
        assert_eq!(submitted.failure.unwrap().error.kind, Kind::TimedOut);
        (0..ahead).for_each(|_| drop(peer.receive()));
        peer.expect_silence();
        let after = client.get_features().unwrap_err();
        assert_eq!(after.kind, Kind::Poisoned(Class::Transport), "{after}");
    }
}

#[test]
fn a_late_answer_to_a_list_is_dropped_where_the_connection_is_kept() {
    let _leak = no_fd_leak();
    let options = Options {
        on_timeout: OnTimeout::Keep,
        ..patient()
    };
    let (client, peer) = ready(true, options);
    let list = nums(100);
    let submitted = client.submit(&list, Timeout::After(BRIEF));
    assert_eq!(told(&submitted), (WINDOW, 0, 0, Some(0)));
    answer(&peer, WINDOW, |n| u64::from(n % 2 == 0));
    works(&client, &peer);
}

#[test]
fn a_refusal_ends_the_sending_and_nothing_else() {
    let _leak = no_fd_leak();
    for at in [0, 1, 31, 32, 63, 64, 150, 199] {
        let (client, peer) = ready(true, patient());
        let list = nums(200);
        let front = || {
            let submitted = client.submit(&list, Timeout::Default);
            client.get_features().unwrap();
            submitted
        };
        // Refused, and one more of those that were on their way.
        let refuses = |n: usize| n == at || n == at + 1;
        let back = || {
            for sent in 0.. {
                let request = request(&peer.receive());
                match request {
                    Request::GetFeatures => {
                        peer.ack(request, FEATURES);
                        return sent;
                    }
                    _ => peer.ack(request, if refuses(sent) { 5 } else { 0 }),
                }
            }
            unreachable!()
        };
        let (submitted, sent) = both(front, back);
        assert_eq!(submitted.sent, sent);
        assert!(sent > at && sent <= (at + WINDOW).min(list.len()), "{sent}");
        let refused = usize::from(sent > at + 1) + 1;
        assert_eq!(told(&submitted), (sent, sent - refused, refused, Some(at)));
        let error = submitted.failure.unwrap().error;
        assert_eq!(
            (error.kind, error.request, error.ring, error.value),
            (
                Kind::Nack,
                Some(Request::SetVringNum),
                u32::try_from(at).ok(),
                Some(5)
            )
        );
        works(&client, &peer);
    }
}

#[test]
fn nothing_is_sent_of_a_list_with_a_mistake() {
    let _leak = no_fd_leak();
    // SAFETY: not open, and never used but to be refused.
    let closed = unsafe { BorrowedFd::borrow_raw(987_654) };
    let wrong = [
        (num(256, 8), Request::SetVringNum),
        (num(0, 3), Request::SetVringNum),
        (Op::SetVringCall(0, Some(closed)), Request::SetVringCall),
        (Op::GetFeatures, Request::GetFeatures),
        (Op::GetVringBase(0), Request::GetVringBase),
        (Op::SetFeatures(FEATURES), Request::SetFeatures),
        (Op::ResetDevice, Request::ResetDevice),
        (Op::SetStatus(0), Request::SetStatus),
        (Op::NetSetMtu(1), Request::NetSetMtu),
    ];
    for reply_ack in [true, false] {
        let (client, peer) = ready(reply_ack, patient());
        for (op, request) in &wrong {
            let mut list = nums(100);
            list[99] = *op;
            let submitted = client.submit(&list, Timeout::Default);
            assert_eq!(told(&submitted), (0, 0, 0, Some(99)));
            let error = submitted.failure.unwrap().error;
            assert_eq!(
                (error.class(), error.request),
                (Class::Local, Some(*request))
            );
            peer.expect_silence();
        }
    }
    let without = vhost_user_frontend::message::ProtocolFeatures::REPLY_ACK;
    let (client, peer) = adopted(FEATURES, without, patient());
    let submitted = client.submit(&[num(0, 8), Op::SetStatus(1)], Timeout::Default);
    assert_eq!(told(&submitted), (0, 0, 0, Some(1)));
    assert_eq!(submitted.failure.unwrap().error.kind, Kind::NotNegotiated);
    peer.expect_silence();
}

#[test]
fn without_acknowledgements_one_barrier_shows_that_all_is_processed() {
    let _leak = no_fd_leak();
    let (client, peer) = ready(false, patient());
    for number in [1, 64, 300] {
        let mut list = nums(number - 1);
        list.push(Op::SetVringEnable(0, true));
        let before = client.counters().barriers;
        let (submitted, ()) = both(
            || client.submit(&list, Timeout::Default),
            || {
                (1..number).for_each(|_| drop(peer.expect(Request::SetVringNum)));
                assert_eq!(peer.expect(Request::SetVringEnable).flags, 0x1);
                peer.expect(Request::GetFeatures);
                peer.expect_silence();
                peer.ack(Request::GetFeatures, FEATURES);
            },
        );
        all_applied(&submitted, list.len());
        assert_eq!(client.counters().barriers, before + 1);
    }
    assert!(client.submit(&[], Timeout::Default).failure.is_none());
    peer.expect_silence();
}

#[test]
fn what_a_back_end_without_acknowledgements_refuses_cannot_be_told() {
    let _leak = no_fd_leak();
    let (client, peer) = ready(false, patient());
    let list = nums(10);
    let (submitted, ()) = both(
        || client.submit(&list, Timeout::Default),
        || {
            (0..10).for_each(|_| drop(peer.expect(Request::SetVringNum)));
            peer.expect(Request::GetFeatures);
            peer.hang_up();
        },
    );
    assert_eq!(told(&submitted), (10, 0, 0, None));
    let error = submitted.failure.unwrap().error;
    assert_eq!(
        (error.kind, error.phase),
        (Kind::Disconnected, Phase::Barrier)
    );
}

#[test]
fn a_back_end_that_hangs_up_in_the_middle_is_told_at_the_first_unanswered() {
    let _leak = no_fd_leak();
    let list = nums(200);
    for at in [0, 1, 40, 64, 130] {
        let (client, peer) = ready(true, patient());
        let (submitted, ()) = both(
            || client.submit(&list, Timeout::Default),
            || {
                answer(&peer, at, |_| 0);
                peer.receive();
                peer.hang_up();
            },
        );
        let sent = submitted.sent;
        assert!(sent > at && sent <= at + WINDOW, "{sent}");
        assert_eq!(told(&submitted), (sent, at, 0, Some(at)));
        assert_eq!(submitted.failure.unwrap().error.kind, Kind::Disconnected);
    }
}

#[test]
fn neither_side_blocks_the_other_when_there_is_hardly_any_room() {
    let _leak = no_fd_leak();
    let (ours, theirs) = UnixStream::pair().unwrap();
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &1).unwrap();
    }
    let options = Options {
        adopt: Some(Adopted {
            features: FEATURES,
            protocol_features: protocol(true).bits(),
        }),
        ..patient()
    };
    let (client, peer) = connected_on(ours, theirs, options);
    let list: Vec<_> = (0..2000)
        .map(|n| match n % 5 {
            0 => Op::SetVringCall(n % 256, Some(file(0))),
            _ => num(n % 256, 8),
        })
        .collect();
    // One at a time: this process may not have so many descriptors open.
    let back = || (0..2000).for_each(|_| drop(answer(&peer, 1, |_| 0)));
    let (submitted, ()) = both(|| client.submit(&list, Timeout::Default), back);
    all_applied(&submitted, 2000);
    works(&client, &peer);
}

/// What only waited for room in the socket has not been sent.
#[test]
fn what_there_was_no_room_for_did_not_go_out() {
    let _leak = no_fd_leak();
    let (ours, theirs) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &1).unwrap();
    let options = Options {
        adopt: Some(Adopted {
            features: FEATURES,
            protocol_features: protocol(true).bits(),
        }),
        ..patient()
    };
    let (client, peer) = connected_on(ours, theirs, options);
    let submitted = client.submit(&nums(64), Timeout::After(BRIEF));
    let mut there = 0;
    while let Ok((bytes, _)) = peer.read(20, MsgFlags::MSG_DONTWAIT) {
        assert_eq!(bytes.len(), 20);
        there += 1;
    }
    assert!(there > 0 && there < 64, "{there}");
    assert_eq!(told(&submitted), (there, 0, 0, Some(0)));
    assert_eq!(submitted.failure.unwrap().error.kind, Kind::TimedOut);

    // Nor has it where the back-end goes away instead.
    let (ours, theirs) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &1).unwrap();
    let (client, peer) = connected_on(ours, theirs, options);
    let gone = || {
        std::thread::sleep(HELD);
        peer.hang_up();
    };
    let (submitted, ()) = both(|| client.submit(&nums(64), Timeout::Default), gone);
    assert_eq!(told(&submitted), (there, 0, 0, Some(0)));
    assert_eq!(submitted.failure.unwrap().error.kind, Kind::Disconnected);
}

#[test]
fn a_list_waits_until_its_descriptors_may_be_in_flight() {
    if only_for_root("can put more in flight than an ordinary user may") {
        return;
    }
    let _leak = no_fd_leak();
    let (client, peer) = ready(true, patient());
    let list: Vec<_> = (0..100)
        .map(|n| match n % 2 {
            0 => Op::SetVringCall(n, Some(file(0))),
            _ => num(n, 8),
        })
        .collect();
    let full = many_in_flight();
    let limit = limit_fds(1000);
    let front = || {
        give_up_privileges();
        let before = cpu_time();
        let submitted = client.submit(&list, Timeout::Default);
        (submitted, cpu_time() - before)
    };
    let back = || {
        std::thread::sleep(HELD);
        peer.expect_silence();
        limit_fds(limit);
        drop(full);
        answer(&peer, 100, |_| 0).len()
    };
    let ((submitted, used), answered) = both(front, back);
    all_applied(&submitted, answered);
    assert!(used < HELD / 2, "{used:?} of processor time");
}

#[test]
fn other_threads_have_their_requests_answered_between() {
    let _leak = no_fd_leak();
    let (client, peer) = ready(true, patient());
    let list = nums(2000);
    std::thread::scope(|scope| {
        let lists = scope.spawn(|| client.submit(&list, Timeout::Default));
        let others = scope.spawn(|| {
            for _ in 0..50 {
                assert_eq!(client.get_features().unwrap(), FEATURES);
            }
        });
        for _ in 0..2050 {
            let message = peer.receive();
            match request(&message) {
                Request::GetFeatures => peer.ack(Request::GetFeatures, FEATURES),
                request => peer.ack(request, 0),
            }
        }
        all_applied(&lists.join().unwrap(), 2000);
        others.join().unwrap();
    });
}

#[test]
fn an_abort_ends_a_list() {
    let _leak = no_fd_leak();
    let (client, peer) = ready(true, patient());
    let list = nums(100);
    let (submitted, ()) = both(
        || client.submit(&list, Timeout::Never),
        || {
            answer(&peer, 10, |_| 0);
            client.abort();
        },
    );
    assert_eq!((submitted.applied, submitted.refused), (10, 0));
    let failure = submitted.failure.unwrap();
    assert_eq!(
        (failure.index, failure.error.kind),
        (Some(10), Kind::Canceled)
    );
}

#[test]
fn an_empty_list_says_that_the_connection_has_ended() {
    let _leak = no_fd_leak();
    for acks in [true, false] {
        let (client, _peer) = ready(acks, patient());
        client.abort();
        let failure = client.submit(&[], Timeout::Default).failure.unwrap();
        assert_eq!((failure.index, failure.error.kind), (None, Kind::Canceled));
    }
}
