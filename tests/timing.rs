//! Deadlines, also of connecting, abort, and many threads on one client. How each
//! request waits is in `every_request.rs`.

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
    AT_ONCE, Answer, BRIEF, CASES, Case, FEATURES, Message, PATIENCE, Peer, REPLY, adopted, after,
    both, connected_on, cpu_time, drain, file, fill, hex, identity, memory, message, no_fd_leak,
    open_fds, patient, protocol, protocol_for, ready_for,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{
    Adopted, BackendClient, Class, Kind, OnTimeout, Options, Phase, Result, Timeout, code,
};

/// Short, but long enough for a peer that answers, also on a busy machine.
const SHORT: Duration = Duration::from_millis(300);

fn with_reply_ack(options: Options) -> (BackendClient, Peer) {
    adopted(FEATURES, protocol(true), options)
}

/// The number of the payload of SET_VRING_BASE and GET_VRING_BASE.
fn base_reply(index: u32, base: u32) -> Vec<u8> {
    [index.to_ne_bytes(), base.to_ne_bytes()].concat()
}

fn answer_base(peer: &Peer, request: &Message, base: u32) {
    peer.reply(Request::GetVringBase, &base_reply(request.u32_at(0), base));
}

fn assert_timed_out(result: Result<()>, phase: Phase, context: &str) {
    let error = result.expect_err(context);
    assert_eq!(error.kind, Kind::TimedOut, "{context}: {error}");
    assert_eq!(error.code(), -libc::ETIMEDOUT, "{context}");
    assert_eq!(error.class(), Class::Transport, "{context}");
    assert_eq!(error.phase, phase, "{context}: {error}");
}

// ---- deadlines ----

#[test]
fn a_short_deadline_of_one_class_does_not_cut_another_short() {
    let _leak = no_fd_leak();
    let options = Options {
        quick: Timeout::After(BRIEF),
        drain: Timeout::After(BRIEF),
        ..patient()
    };
    let (client, peer) = with_reply_ack(options);
    let answer = || {
        peer.expect(Request::SetVringEnable);
        thread::sleep(3 * BRIEF);
        peer.ack(Request::SetVringEnable, 0);
    };
    both(|| client.set_vring_enable(0, true), answer).0.unwrap();
}

#[test]
fn a_drain_has_the_deadline_of_its_call() {
    let _leak = no_fd_leak();
    for deadline in [0, 20, 150] {
        let (client, _peer) = with_reply_ack(patient());
        let start = Instant::now();
        let result = client.get_vring_base(0, after(deadline)).map(drop);
        let took = start.elapsed();
        let deadline = Duration::from_millis(deadline);
        assert!(took >= deadline && took < deadline + AT_ONCE, "{took:?}");
        assert_timed_out(result, Phase::Reply, "a drain");
    }
}

#[test]
fn a_call_without_a_deadline_outlasts_those_with_one() {
    let _leak = no_fd_leak();
    let options = Options {
        quick: Timeout::After(BRIEF),
        slow: Timeout::After(BRIEF),
        drain: Timeout::After(BRIEF),
        ..Options::default()
    };
    let (client, peer) = with_reply_ack(options);
    let answer = || {
        let request = peer.expect(Request::GetVringBase);
        thread::sleep(4 * BRIEF);
        answer_base(&peer, &request, 77);
    };
    let (base, ()) = both(|| client.get_vring_base(5, Timeout::Never), answer);
    assert_eq!(base.unwrap(), 77);
}

#[test]
fn an_answer_that_has_arrived_counts_although_the_deadline_has_passed() {
    let _leak = no_fd_leak();
    let options = Options {
        on_timeout: OnTimeout::Keep,
        ..patient()
    };
    let (client, peer) = with_reply_ack(options);
    assert_timed_out(
        client.get_vring_base(3, after(0)).map(drop),
        Phase::Reply,
        "the first",
    );
    // Both answers are there before the second request is made.
    let request = peer.expect(Request::GetVringBase);
    answer_base(&peer, &request, 1);
    answer_base(&peer, &request, 2);
    assert_eq!(client.get_vring_base(3, after(0)).unwrap(), 2);
}

#[test]
fn waiting_takes_no_processor_time() {
    let _leak = no_fd_leak();
    for nonblocking in [false, true] {
        // R3: the socket may be shared with somebody who needs it so.
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(nonblocking).unwrap();
        let options = Options {
            quick: Timeout::After(SHORT),
            on_timeout: OnTimeout::Keep,
            ..patient()
        };
        let (client, peer) = connected_on(ours, theirs, options);
        let before = cpu_time();
        let result = client.get_features().map(drop);
        let used = cpu_time() - before;
        assert_timed_out(result, Phase::Reply, "a silent peer");
        assert!(used < SHORT / 6, "nonblocking {nonblocking}: {used:?}");

        // And it works.
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, 0);
        let answer = || {
            peer.expect(Request::GetFeatures);
            thread::sleep(SHORT / 10);
            peer.ack(Request::GetFeatures, FEATURES);
        };
        assert_eq!(both(|| client.get_features(), answer).0.unwrap(), FEATURES);
    }
}

// ---- connecting ----

/// A path for a socket, in a directory of its own.
struct Place {
    directory: PathBuf,
    socket: PathBuf,
}

fn place(name: &str) -> Place {
    let name = format!("vuf.{}.{name}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).unwrap();
    let socket = directory.join("socket");
    Place { directory, socket }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A socket that is bound, and does not listen yet.
fn bound(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    socket
}

fn assert_connect_is_bounded(path: &Path, wait_for_socket: bool, context: &str) {
    let options = Options {
        connect: Timeout::After(BRIEF),
        wait_for_socket,
        ..patient()
    };
    let (begin, before) = (Instant::now(), cpu_time());
    let result = BackendClient::connect(path, &options).map(drop);
    let (took, used) = (begin.elapsed(), cpu_time() - before);
    assert_timed_out(result, Phase::Connect, context);
    assert!(
        took >= BRIEF && took < BRIEF + AT_ONCE,
        "{context}: {took:?}"
    );
    assert!(used < BRIEF / 3, "{context}: {used:?} of processor time");
}

#[test]
fn connecting_takes_no_longer_than_its_deadline() {
    let _leak = no_fd_leak();
    let place = place("bounded");
    assert_connect_is_bounded(&place.socket, true, "there is no socket");
    let listener = bound(&place.socket);
    assert_connect_is_bounded(&place.socket, true, "nobody listens");
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let _waiting = UnixStream::connect(&place.socket).unwrap();
    for wait_for_socket in [false, true] {
        assert_connect_is_bounded(&place.socket, wait_for_socket, "the backlog is full");
    }
}

#[test]
fn connecting_fails_at_once_unless_it_is_to_wait() {
    let _leak = no_fd_leak();
    let place = place("at-once");
    let refused = |errno| {
        let begin = Instant::now();
        let error = BackendClient::connect(&place.socket, &patient()).unwrap_err();
        assert_eq!(error.kind, Kind::Os(errno), "{error}");
        assert!(begin.elapsed() < AT_ONCE, "{error}");
    };
    refused(Errno::ENOENT);
    let _listener = bound(&place.socket);
    refused(Errno::ECONNREFUSED);
}

#[test]
fn connecting_waits_for_a_socket_and_for_room() {
    let _leak = no_fd_leak();
    let place = place("waits");
    let options = Options {
        wait_for_socket: true,
        connect: Timeout::After(PATIENCE),
        ..patient()
    };
    let serve = || {
        thread::sleep(BRIEF / 2);
        let listener = bound(&place.socket);
        thread::sleep(BRIEF / 2);
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        listener
    };
    let connect = || BackendClient::connect(&place.socket, &options);
    let (client, listener) = both(connect, serve);
    let first = client.unwrap();
    let listener = UnixListener::from(listener);
    let make_room = || {
        thread::sleep(BRIEF);
        listener.accept().unwrap().0
    };
    let (client, _accepted) = both(connect, make_room);
    drop((client.unwrap(), first));
}

#[test]
fn a_back_end_that_never_accepts_is_silent() {
    let _leak = no_fd_leak();
    let place = place("silent");
    let _listener = UnixListener::bind(&place.socket).unwrap();
    let options = Options {
        quick: Timeout::After(BRIEF),
        ..patient()
    };
    let client = BackendClient::connect(&place.socket, &options).unwrap();
    let begin = Instant::now();
    assert_timed_out(client.get_features().map(drop), Phase::Reply, "nobody");
    let took = begin.elapsed();
    assert!(took >= BRIEF && took < BRIEF + AT_ONCE, "{took:?}");
}

// ---- a full socket ----

#[test]
fn a_request_that_never_fitted_into_the_socket_harms_nothing() {
    let _leak = no_fd_leak();
    for on_timeout in [OnTimeout::Poison, OnTimeout::Keep] {
        for case in CASES {
            // They follow an answer to another one, which there is no time for.
            if matches!(case.request, Request::PostcopyListen | Request::PostcopyEnd) {
                continue;
            }
            let context = format!("{:?}, {on_timeout:?}", case.request);
            let brief = after(10);
            let options = Options {
                quick: brief,
                slow: brief,
                drain: brief,
                on_timeout,
                ..Options::default()
            };
            // Without acknowledgements, so that barriers are in it too.
            let adopt = Adopted {
                features: FEATURES,
                protocol_features: protocol_for(case.request, false).bits(),
            };
            let (ours, theirs) = UnixStream::pair().unwrap();
            let options = Options {
                adopt: (case.request != Request::SetOwner).then_some(adopt),
                ..options
            };
            let (client, peer) = connected_on(ours, theirs, options);
            let count = fill(&client);
            let before = open_fds();
            let start = Instant::now();
            let result = (case.call)(&client);
            assert!(start.elapsed() < AT_ONCE, "{context}");
            assert_timed_out(result, Phase::Send, &context);
            assert_eq!(open_fds(), before, "{context}");

            drain(&peer, count);
            peer.expect_silence();
            client.set_vring_err(9, Some(file(2))).unwrap();
            let next = peer.expect(Request::SetVringErr);
            assert_eq!(
                identity(next.fds[0].as_fd()),
                identity(file(2)),
                "{context}"
            );
        }
    }
}

#[test]
fn waiting_for_room_takes_no_processor_time() {
    let _leak = no_fd_leak();
    let options = Options {
        quick: Timeout::After(SHORT),
        ..patient()
    };
    let (client, _peer) = with_reply_ack(options);
    fill(&client);
    let before = cpu_time();
    let result = client.set_vring_num(0, 8);
    let used = cpu_time() - before;
    assert_timed_out(result, Phase::Send, "a full socket");
    assert!(used < SHORT / 6, "{used:?}");
}

#[test]
fn requests_wait_in_order_for_a_peer_that_does_not_read() {
    const THREADS: usize = 6;
    const EACH: usize = 40;
    let _leak = no_fd_leak();
    for reply_ack in [false, true] {
        let (client, peer) = adopted(FEATURES, protocol(reply_ack), patient());
        let filler = fill(&client);
        let done = AtomicUsize::new(0);
        let file_of = |thread: usize, turn: usize| (thread + turn) % 8;
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (client, done) = (&client, &done);
                let ring = u32::try_from(thread).unwrap();
                scope.spawn(move || {
                    for turn in 0..EACH {
                        let base = u32::try_from(turn).unwrap();
                        client.set_vring_base(ring, base).unwrap();
                        let fd = file(file_of(thread, turn));
                        client.set_vring_err(ring, Some(fd)).unwrap();
                        done.fetch_add(1, SeqCst);
                    }
                });
            }
            thread::sleep(BRIEF);
            assert_eq!(done.load(SeqCst), 0, "the socket was full");
            drain(&peer, filler);
            let mut seen = [0; THREADS];
            for _ in 0..THREADS * EACH * 2 {
                let request = peer.receive();
                let thread = usize::try_from(request.u32_at(0)).unwrap();
                let (turn, second) = (seen[thread] / 2, seen[thread] % 2 == 1);
                seen[thread] += 1;
                if second {
                    assert_eq!(request.code, Request::SetVringErr.id());
                    assert_eq!(request.fds.len(), 1);
                    let expected = identity(file(file_of(thread, turn)));
                    assert_eq!(identity(request.fds[0].as_fd()), expected);
                } else {
                    assert_eq!(request.code, Request::SetVringBase.id());
                    assert_eq!(usize::try_from(request.u32_at(4)), Ok(turn));
                    assert!(request.fds.is_empty());
                }
                if reply_ack {
                    let code = request.code;
                    peer.send(&message(code, REPLY, &[0; 8]), &[]);
                }
            }
        });
        assert_eq!(done.load(SeqCst), THREADS * EACH);
        peer.expect_silence();
    }
}

#[test]
fn descriptors_and_the_barrier_wait_for_room_in_order() {
    let _leak = no_fd_leak();
    let case = Case::of(Request::SetMemTable);
    for reply_ack in [false, true] {
        let (client, peer) = adopted(FEATURES, protocol(reply_ack), patient());
        let filler = fill(&client);
        let (result, ()) = both(
            || (case.call)(&client),
            || {
                thread::sleep(BRIEF);
                drain(&peer, filler);
                let request = peer.expect(case.request);
                let got: Vec<_> = request.fds.iter().map(|fd| identity(fd.as_fd())).collect();
                assert_eq!(got, [identity(file(0)), identity(file(1))]);
                if reply_ack {
                    peer.ack(case.request, 0);
                } else {
                    peer.expect(Request::GetFeatures);
                    peer.ack(Request::GetFeatures, FEATURES);
                }
            },
        );
        result.unwrap();
        peer.expect_silence();
    }
}

#[test]
fn an_answer_is_delivered_while_another_thread_waits_for_room() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(false), patient());
    thread::scope(|scope| {
        let asked = scope.spawn(|| client.get_vring_base(3, Timeout::Default));
        let request = peer.expect(Request::GetVringBase);
        let filler = fill(&client);
        let stuck = scope.spawn(|| client.set_vring_err(4, Some(file(1))));
        thread::sleep(BRIEF);
        answer_base(&peer, &request, 42);
        assert_eq!(asked.join().unwrap().unwrap(), 42);
        thread::sleep(BRIEF);
        assert!(!stuck.is_finished(), "the socket is full");
        drain(&peer, filler);
        stuck.join().unwrap().unwrap();
        peer.expect(Request::SetVringErr);
    });
}

#[test]
fn a_hang_up_reaches_those_who_wait_for_room() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(false), patient());
    fill(&client);
    let start = Instant::now();
    thread::scope(|scope| {
        let stuck: Vec<_> = (0..4)
            .map(|ring| {
                let client = &client;
                scope.spawn(move || client.set_vring_err(ring, Some(file(1))))
            })
            .collect();
        thread::sleep(BRIEF);
        peer.hang_up();
        for stuck in stuck {
            let error = stuck.join().unwrap().unwrap_err();
            assert_eq!(error.kind, Kind::Disconnected, "{error}");
            assert_eq!(error.request, Some(Request::SetVringErr));
        }
    });
    assert!(start.elapsed() < AT_ONCE);
}

/// Takes this thread's capabilities away, and with them the exemption from the
/// limit on descriptors in flight.
fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    let header = Header {
        version: 0x2008_0522, // _LINUX_CAPABILITY_VERSION_3
        pid: 0,
    };
    let none = [0_u32; 6];
    // SAFETY: both arguments are what version 3 of the call reads, and outlive it.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) };
    assert_eq!(result, 0, "{}", Errno::last());
}

fn set_open_files_limit(soft: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    let before = limit.rlim_cur;
    limit.rlim_cur = soft;
    // SAFETY: `limit` outlives the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
    before
}

#[test]
fn too_many_descriptors_in_flight_is_a_full_socket() {
    let _leak = no_fd_leak();
    let options = Options {
        quick: Timeout::After(SHORT),
        ..patient()
    };
    let (client, peer) = adopted(FEATURES, protocol(false), options);
    // The limit in flight is the number of files that may be open.
    let limit = set_open_files_limit(64);
    let sender = || {
        drop_capabilities();
        let mut sent = 0_usize;
        loop {
            let before = cpu_time();
            let result = client.set_vring_err(1, Some(file(0)));
            let used = cpu_time() - before;
            match result {
                Ok(()) => sent += 1,
                Err(error) => return (sent, error, used),
            }
        }
    };
    let ((sent, error, used), ()) = both(sender, || {});
    set_open_files_limit(limit);
    for _ in 0..sent {
        assert_eq!(peer.expect(Request::SetVringErr).fds.len(), 1);
    }
    assert!(sent <= 80, "{sent} were sent: the limit did not work");
    assert_timed_out(Err(error), Phase::Send, "too many in flight");
    assert!(used < SHORT / 3, "{used:?} of processor time");
    peer.expect_silence();
    client.set_vring_err(1, Some(file(0))).unwrap();
    peer.expect(Request::SetVringErr);
}

// ---- after a deadline ----

#[test]
fn poison_takes_no_request_after_a_deadline_although_the_answer_comes() {
    let _leak = no_fd_leak();
    let (client, peer) = with_reply_ack(patient());
    let result = client.get_vring_base(3, after(20)).map(drop);
    assert_timed_out(result, Phase::Reply, "a silent peer");
    let request = peer.expect(Request::GetVringBase);
    for answered in [false, true] {
        if answered {
            answer_base(&peer, &request, 1);
        }
        let start = Instant::now();
        for case in CASES {
            let Err(error) = (case.call)(&client) else {
                panic!("{:?} was taken", case.request);
            };
            // An adopted connection has its owner.
            if case.request != Request::SetOwner {
                assert_eq!(error.kind, Kind::Poisoned(Class::Transport), "{error}");
                assert_eq!(error.code(), code::POISONED);
                assert_eq!(error.class(), Class::Transport);
            }
        }
        assert!(start.elapsed() < AT_ONCE);
        peer.expect_silence();
    }
}

fn keep(deadline: Duration) -> Options {
    Options {
        quick: Timeout::After(deadline),
        slow: Timeout::After(deadline),
        drain: Timeout::After(deadline),
        on_timeout: OnTimeout::Keep,
        ..Options::default()
    }
}

#[test]
fn keep_gives_the_next_request_of_a_kind_its_own_answer() {
    let _leak = no_fd_leak();
    // In how many pieces the late answer comes, and whether before the request.
    for (split, early) in [(0, true), (0, false), (5, true), (5, false), (15, false)] {
        let context = format!("split at {split}, early {early}");
        let (client, peer) = with_reply_ack(keep(PATIENCE));
        let first = client.get_vring_base(3, after(20)).map(drop);
        assert_timed_out(first, Phase::Reply, &context);
        let late = peer.expect(Request::GetVringBase);
        let bytes = message(late.code, REPLY, &base_reply(3, 1));
        let send_late = || {
            for piece in [&bytes[..split], &bytes[split..]] {
                if !piece.is_empty() {
                    peer.send(piece, &[]);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        };
        if early {
            send_late();
        }
        let answer = || {
            let request = peer.expect(Request::GetVringBase);
            if !early {
                send_late();
            }
            answer_base(&peer, &request, 2);
        };
        let (second, ()) = both(|| client.get_vring_base(3, Timeout::Default), answer);
        assert_eq!(second.unwrap(), 2, "{context}");
    }
}

#[test]
fn keep_closes_the_descriptors_of_a_late_answer() {
    let _leak = no_fd_leak();
    let case = Case::of(Request::GetInflightFd);
    let Answer::Own(payload, _) = case.answer else {
        panic!("it has a reply");
    };
    let reply = message(case.request.id(), REPLY, &hex(payload));
    let before = open_fds();
    let (client, peer) = with_reply_ack(keep(SHORT));
    assert_timed_out((case.call)(&client), Phase::Reply, "the first");
    peer.expect(case.request);
    peer.send(&reply, &[memory(6)]);
    let answer = || {
        peer.expect(case.request);
        peer.send(&reply, &[memory(7)]);
    };
    // It checks that it gets the last file.
    both(|| (case.call)(&client), answer).0.unwrap();
    assert_eq!(open_fds(), before + 2, "only the connection is open");
}

#[test]
fn keep_tells_apart_whose_descriptor_it_is() {
    let _leak = no_fd_leak();
    let case = Case::of(Request::GetInflightFd);
    let Answer::Own(payload, _) = case.answer else {
        panic!("it has a reply");
    };
    let with_fd = message(case.request.id(), REPLY, &hex(payload));
    let without = message(Request::GetVringBase.id(), REPLY, &base_reply(3, 0x1234));
    let ask = |client: &BackendClient| (Case::of(Request::GetVringBase).call)(client);

    // Late: the one without. Both answers are there before the second request is
    // made, so one read may bring both.
    let (client, peer) = with_reply_ack(keep(PATIENCE));
    let first = client.get_vring_base(3, after(20)).map(drop);
    assert_timed_out(first, Phase::Reply, "without a descriptor");
    peer.send(&without, &[]);
    peer.send(&with_fd, &[memory(7)]);
    (case.call)(&client).unwrap();

    // Late: the one with.
    let (client, peer) = with_reply_ack(keep(SHORT));
    assert_timed_out((case.call)(&client), Phase::Reply, "with a descriptor");
    peer.send(&with_fd, &[memory(7)]);
    peer.send(&without, &[]);
    ask(&client).unwrap();
}

#[test]
fn keep_drops_a_late_refusal() {
    let _leak = no_fd_leak();
    let (client, peer) = with_reply_ack(keep(SHORT));
    assert_timed_out(client.set_vring_num(0, 8), Phase::Reply, "the first");
    peer.expect(Request::SetVringNum);
    peer.ack(Request::SetVringNum, 1);
    let answer = || {
        peer.expect(Request::SetVringNum);
        peer.ack(Request::SetVringNum, 0);
    };
    both(|| client.set_vring_num(0, 8), answer).0.unwrap();
}

#[test]
fn keep_checks_a_late_answer_all_the_same() {
    let _leak = no_fd_leak();
    let late = [
        ("another code", message(99, REPLY, &[0; 8]), 0),
        ("another size", message(11, REPLY, &[0; 7]), 0),
        ("a descriptor", message(11, REPLY, &base_reply(3, 1)), 1),
    ];
    for (name, bytes, fds) in late {
        let (client, peer) = with_reply_ack(keep(PATIENCE));
        let first = client.get_vring_base(3, after(20)).map(drop);
        assert_timed_out(first, Phase::Reply, name);
        let answer = || {
            peer.expect(Request::GetVringBase);
            peer.expect(Request::GetFeatures);
            peer.send(&bytes, &vec![memory(7); fds]);
        };
        let (second, ()) = both(|| client.get_features(), answer);
        let error = second.expect_err(name);
        assert_eq!(error.kind, Kind::Protocol, "{name}: {error}");
        let error = client.get_features().expect_err(name);
        assert_eq!(
            error.kind,
            Kind::Poisoned(Class::Protocol),
            "{name}: {error}"
        );
    }
}

#[test]
fn keep_takes_an_answer_that_nothing_asked_for_as_one() {
    // One request is late and two answers come.
    let _leak = no_fd_leak();
    let (client, peer) = with_reply_ack(keep(SHORT));
    let first = client.get_vring_base(3, after(20)).map(drop);
    assert_timed_out(first, Phase::Reply, "the first");
    let request = peer.expect(Request::GetVringBase);
    let features = || {
        peer.expect(Request::GetFeatures);
        answer_base(&peer, &request, 1);
        peer.ack(Request::GetFeatures, FEATURES);
    };
    both(|| client.get_features(), features).0.unwrap();
    answer_base(&peer, &request, 2);
    let error = client.get_vring_base(3, Timeout::Default).unwrap_err();
    assert_eq!(error.kind, Kind::Protocol, "{error}");
}

// ---- abort ----

/// How a thread comes to wait.
struct Waiting {
    name: &'static str,
    options: fn() -> Options,
    full: bool,
    call: fn(&BackendClient) -> Result<()>,
}

const WAITING: &[Waiting] = &[
    Waiting {
        name: "in a blocking read",
        options: patient,
        full: false,
        call: |client| client.get_features().map(drop),
    },
    Waiting {
        name: "in poll",
        options: patient,
        full: false,
        call: |client| client.get_vring_base(0, after(4000)).map(drop),
    },
    Waiting {
        name: "for ever",
        options: || Options {
            quick: Timeout::Never,
            slow: Timeout::Never,
            drain: Timeout::Never,
            ..Options::default()
        },
        full: false,
        call: |client| client.get_features().map(drop),
    },
    Waiting {
        name: "for an acknowledgement",
        options: patient,
        full: false,
        call: |client| (Case::of(Request::SetMemTable).call)(client),
    },
    Waiting {
        name: "for room",
        options: patient,
        full: true,
        call: |client| client.set_vring_num(0, 8),
    },
];

fn assert_canceled(result: Result<()>, context: &str) {
    let error = result.expect_err(context);
    assert_eq!(error.kind, Kind::Canceled, "{context}: {error}");
    assert_eq!(error.code(), -libc::ECANCELED, "{context}");
}

#[test]
fn abort_ends_every_wait_within_milliseconds() {
    let _leak = no_fd_leak();
    for waiting in WAITING {
        for threads in [1, 4] {
            let context = format!("{threads} threads {}", waiting.name);
            // The scheduler may spoil one attempt, hardly all of them.
            let quickest = (0..5)
                .map(|_| {
                    let (client, _peer) = with_reply_ack((waiting.options)());
                    if waiting.full {
                        fill(&client);
                    }
                    thread::scope(|scope| {
                        let calls: Vec<_> = (0..threads)
                            .map(|_| scope.spawn(|| (waiting.call)(&client)))
                            .collect();
                        thread::sleep(Duration::from_millis(10));
                        assert!(!calls.iter().any(|call| call.is_finished()), "{context}");
                        let start = Instant::now();
                        client.abort();
                        for call in calls {
                            assert_canceled(call.join().unwrap(), &context);
                        }
                        let took = start.elapsed();
                        assert_canceled((waiting.call)(&client), &context);
                        took
                    })
                })
                .min();
            assert!(
                quickest < Some(Duration::from_millis(20)),
                "{context}: {quickest:?}"
            );
        }
    }
}

#[test]
fn after_abort_every_request_is_canceled_at_once() {
    let _leak = no_fd_leak();
    for case in CASES {
        let context = format!("{:?}", case.request);
        let (client, peer) = ready_for(case.request, true, patient());
        client.abort();
        let start = Instant::now();
        assert_canceled((case.call)(&client), &context);
        assert_canceled((case.call)(&client), &context);
        assert!(start.elapsed() < AT_ONCE, "{context}");
        let end = peer.read(1, MsgFlags::empty()).map(|(bytes, _)| bytes);
        assert_eq!(end, Ok(vec![]), "{context}: nothing was sent");
    }
}

#[test]
fn abort_is_never_taken_for_a_hang_up() {
    let _leak = no_fd_leak();
    for round in 0..300_u64 {
        let (client, peer) = with_reply_ack(patient());
        thread::scope(|scope| {
            let calls: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            if let Err(error) = client.get_features() {
                                return error;
                            }
                        }
                    })
                })
                .collect();
            let reply = message(1, REPLY, &FEATURES.to_ne_bytes());
            let peer = &peer;
            scope.spawn(move || {
                let header = |peer: &Peer| peer.read(12, MsgFlags::MSG_WAITALL);
                while header(peer).is_ok_and(|(bytes, _)| bytes.len() == 12) {
                    if peer.try_send(&reply).is_err() {
                        break;
                    }
                }
            });
            thread::sleep(Duration::from_micros(200 + 7 * round));
            client.abort();
            for call in calls {
                let error = call.join().unwrap();
                assert_eq!(error.kind, Kind::Canceled, "round {round}: {error}");
            }
        });
    }
}

#[test]
fn the_descriptor_can_be_had_while_a_request_waits() {
    // R2
    let _leak = no_fd_leak();
    let (client, peer) = with_reply_ack(patient());
    thread::scope(|scope| {
        let call = scope.spawn(|| client.get_features());
        peer.expect(Request::GetFeatures);
        let start = Instant::now();
        assert!(identity(client.read_notifier()).1 > 0);
        assert_eq!(client.acked_features(), FEATURES);
        assert!(start.elapsed() < AT_ONCE);
        assert!(!call.is_finished());
        peer.ack(Request::GetFeatures, FEATURES);
        call.join().unwrap().unwrap();
    });
}

// ---- many threads ----

#[test]
fn each_thread_gets_its_own_answer() {
    const THREADS: u32 = 12;
    let _leak = no_fd_leak();
    // How long the peer thinks before each answer, and in which pieces it comes.
    for (pause, split) in [(0, 0), (3, 0), (1, 12), (1, 17)] {
        let (client, peer) = with_reply_ack(patient());
        let pause = Duration::from_millis(pause);
        thread::scope(|scope| {
            let calls: Vec<_> = (0..THREADS)
                .map(|ring| {
                    let client = &client;
                    scope.spawn(move || {
                        let base = client.get_vring_base(ring, Timeout::Default);
                        assert_eq!(base.unwrap(), 1000 + ring);
                    })
                })
                .collect();
            // All of them are outstanding at once.
            let requests: Vec<_> = calls
                .iter()
                .map(|_| peer.expect(Request::GetVringBase))
                .collect();
            for request in requests {
                let ring = request.u32_at(0);
                let reply = message(request.code, REPLY, &base_reply(ring, 1000 + ring));
                for piece in [&reply[..split], &reply[split..]] {
                    thread::sleep(pause);
                    if !piece.is_empty() {
                        peer.send(piece, &[]);
                    }
                }
            }
            for call in calls {
                call.join().unwrap();
            }
        });
        peer.expect_silence();
    }
}

#[test]
fn threads_that_ask_again_and_again_never_mix_up_answers() {
    const THREADS: u32 = 8;
    const EACH: u32 = 200;
    let _leak = no_fd_leak();
    let (client, peer) = with_reply_ack(patient());
    thread::scope(|scope| {
        for ring in 0..THREADS {
            let client = &client;
            scope.spawn(move || {
                for turn in 0..EACH {
                    // Deadlines of both kinds: the blocking read, and poll.
                    let timeout = if turn % 2 == 0 {
                        Timeout::Default
                    } else {
                        after(4500)
                    };
                    let base = client.get_vring_base(ring, timeout).unwrap();
                    assert_eq!(base, ring << 8 | turn & 0xff);
                    client.set_vring_err(ring, Some(file(3))).unwrap();
                }
            });
        }
        let mut turns = vec![0; usize::try_from(THREADS).unwrap()];
        for _ in 0..THREADS * EACH * 2 {
            let request = peer.receive();
            let ring = request.u32_at(0);
            if request.code == Request::GetVringBase.id() {
                let turn = &mut turns[usize::try_from(ring).unwrap()];
                answer_base(&peer, &request, ring << 8 | *turn & 0xff);
                *turn += 1;
            } else {
                assert_eq!(request.fds.len(), 1);
                peer.ack(Request::SetVringErr, 0);
            }
        }
    });
    peer.expect_silence();
}

/// Asks for the bases of three rings at once; the one of `brief` gives up before
/// the peer answers. Returns the three outcomes in the order of the rings.
fn one_of_three_gives_up(client: &BackendClient, peer: &Peer, brief: u32) -> Vec<Result<u32>> {
    thread::scope(|scope| {
        let mut calls = Vec::new();
        let mut requests = Vec::new();
        for ring in 0..3 {
            let timeout = if ring == brief {
                Timeout::After(SHORT)
            } else {
                Timeout::Default
            };
            calls.push(scope.spawn(move || client.get_vring_base(ring, timeout)));
            requests.push(peer.expect(Request::GetVringBase));
        }
        let start = Instant::now();
        while !calls[usize::try_from(brief).unwrap()].is_finished() {
            assert!(
                start.elapsed() < SHORT + AT_ONCE,
                "its deadline does not pass"
            );
            thread::sleep(Duration::from_millis(1));
        }
        for request in &requests {
            answer_base(peer, request, 100 + request.u32_at(0));
        }
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

#[test]
fn one_thread_gives_up_and_the_others_get_their_answers() {
    let _leak = no_fd_leak();
    for on_timeout in [OnTimeout::Poison, OnTimeout::Keep] {
        for brief in 0..3 {
            let context = format!("{on_timeout:?}, ring {brief}");
            let options = Options {
                on_timeout,
                ..patient()
            };
            let (client, peer) = with_reply_ack(options);
            let results = one_of_three_gives_up(&client, &peer, brief);
            for (ring, result) in (0..3).zip(results) {
                if ring == brief {
                    assert_timed_out(result.map(drop), Phase::Reply, &context);
                } else {
                    assert_eq!(result.unwrap(), 100 + ring, "{context}");
                }
            }
            let answer = || {
                if on_timeout == OnTimeout::Keep {
                    peer.expect(Request::GetFeatures);
                    peer.ack(Request::GetFeatures, FEATURES);
                }
            };
            let (next, ()) = both(|| client.get_features(), answer);
            match on_timeout {
                OnTimeout::Keep => assert_eq!(next.unwrap(), FEATURES, "{context}"),
                OnTimeout::Poison => {
                    let error = next.expect_err(&context);
                    assert_eq!(error.kind, Kind::Poisoned(Class::Transport), "{context}");
                }
            }
            peer.expect_silence();
        }
    }
}

#[test]
fn a_broken_answer_ends_the_wait_of_every_thread() {
    let _leak = no_fd_leak();
    let endings: [(&str, Option<Vec<u8>>, Kind); 2] = [
        (
            "a wrong code",
            Some(message(99, REPLY, &[])),
            Kind::Protocol,
        ),
        ("a hang-up", None, Kind::Disconnected),
    ];
    for (name, bytes, kind) in endings {
        let (client, peer) = with_reply_ack(patient());
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            for ring in 0..4 {
                let (client, sender) = (&client, sender.clone());
                scope.spawn(move || {
                    let result = client.get_vring_base(ring, Timeout::Default);
                    sender.send((ring, result)).unwrap();
                });
            }
            let requests: Vec<_> = (0..4).map(|_| peer.expect(Request::GetVringBase)).collect();
            // The oldest one still gets its answer.
            answer_base(&peer, &requests[0], 7);
            match &bytes {
                Some(bytes) => peer.send(bytes, &[]),
                None => peer.hang_up(),
            }
            let start = Instant::now();
            for _ in 0..4 {
                let (ring, result) = receiver.recv_timeout(PATIENCE).expect(name);
                if ring == requests[0].u32_at(0) {
                    assert_eq!(result.unwrap(), 7, "{name}");
                    continue;
                }
                let error = result.expect_err(name);
                assert_eq!(error.kind, kind, "{name}: {error}");
                assert_eq!(error.ring, Some(ring), "{name}");
                assert_eq!(error.request, Some(Request::GetVringBase), "{name}");
            }
            assert!(start.elapsed() < AT_ONCE, "{name}");
        });
    }
}

#[test]
fn threads_that_receive_descriptors_get_their_own() {
    let _leak = no_fd_leak();
    let protocol = ProtocolFeatures::INFLIGHT_SHMFD | ProtocolFeatures::REPLY_ACK;
    let (client, peer) = adopted(FEATURES, protocol, patient());
    let received: Vec<(u16, OwnedFd)> = thread::scope(|scope| {
        let calls: Vec<_> = (1..=6_u16)
            .map(|queues| {
                let client = &client;
                scope.spawn(move || {
                    let (inflight, fd) = client.get_inflight_fd(queues, 256).unwrap();
                    assert_eq!(inflight.num_queues, queues);
                    (queues, fd.unwrap())
                })
            })
            .collect();
        let requests: Vec<_> = calls
            .iter()
            .map(|_| peer.expect(Request::GetInflightFd))
            .collect();
        for request in requests {
            let mut payload = request.payload;
            payload[0] = 1; // a size
            let queues = usize::from(payload[16]);
            peer.send(&message(31, REPLY, &payload), &[memory(queues)]);
        }
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    for (queues, fd) in received {
        assert_eq!(identity(fd.as_fd()), identity(memory(usize::from(queues))));
    }
}

// ---- looking before sleeping ----

fn spinning(spin: Duration, options: Options) -> (BackendClient, Peer) {
    with_reply_ack(Options { spin, ..options })
}

/// No thread waits in the kernel for an answer that comes in time: there is nothing
/// that a test could count but that it comes, also where there is a channel to serve.
#[test]
fn whoever_spins_gets_every_answer() {
    let _leak = no_fd_leak();
    for spin in [1, 50, 10_000].map(Duration::from_micros) {
        for case in CASES {
            let options = Options { spin, ..patient() };
            let (client, peer) = ready_for(case.request, true, options);
            let answer = || common::answer(&peer, case, true, true);
            both(|| (case.call)(&client), answer).0.unwrap();
        }
    }
}

#[test]
fn whoever_spins_sleeps_after_that() {
    let _leak = no_fd_leak();
    let spin = Duration::from_millis(1);
    let options = Options {
        quick: Timeout::After(SHORT),
        ..patient()
    };
    let (client, _peer) = spinning(spin, options);
    let (start, before) = (Instant::now(), cpu_time());
    let result = client.get_features().map(drop);
    let (took, cpu) = (start.elapsed(), cpu_time() - before);
    assert_timed_out(result, Phase::Reply, "a silent back-end");
    assert!(took >= SHORT && took < SHORT + AT_ONCE, "{took:?}");
    assert!(cpu < SHORT / 4, "{cpu:?} of processor time");
}

#[test]
fn a_deadline_passes_while_spinning() {
    let _leak = no_fd_leak();
    let options = Options {
        quick: after(2),
        ..patient()
    };
    let (client, _peer) = spinning(Duration::from_millis(10), options);
    let start = Instant::now();
    let result = client.get_features().map(drop);
    assert_timed_out(result, Phase::Reply, "a silent back-end");
    assert!(start.elapsed() < AT_ONCE);
}

#[test]
fn an_abort_ends_spinning_as_well() {
    let _leak = no_fd_leak();
    let (client, peer) = spinning(Duration::from_millis(10), patient());
    let abort = || {
        peer.expect(Request::GetFeatures);
        client.abort();
    };
    let error = both(|| client.get_features(), abort).0.unwrap_err();
    assert_eq!(error.kind, Kind::Canceled);
}

#[test]
fn nobody_spins_for_longer_than_a_wake_up_takes() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let options = Options {
        spin: vhost_user_frontend::MAX_SPIN + Duration::from_micros(1),
        ..patient()
    };
    let error = BackendClient::from_fd(ours.into(), &options).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EINVAL));
}
