//! Threads that share one connection and must not keep each other waiting, and
//! what is said of it when things go wrong in between.

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
    Answer, BRIEF, CASES, Call, Case, Descriptor, FEATURES, PATIENCE, Peer, REPLY, adopted, after,
    both, drain, fill, hex, memory, message, no_fd_leak, patient, protocol, ready_for, start,
    wait_until,
};
use libc::{c_int, c_void, siginfo_t};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::fmt::Debug;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::Request;
use vhost_user_frontend::{
    BackendClient, Class, Error, Kind, OnTimeout, Options, Phase, Result, Timeout,
};
use vmm_sys_util::signal::register_signal_handler;

const MILLISECOND: Duration = Duration::from_millis(1);

/// Without acknowledgements: some requests expect no reply.
fn plain(options: Options) -> (BackendClient, Peer) {
    adopted(FEATURES, protocol(false), options)
}

/// Options with which a call that has a deadline waits in poll, and one that has
/// none in recvmsg.
fn unbounded() -> Options {
    Options {
        quick: Timeout::Never,
        slow: Timeout::Never,
        drain: Timeout::Never,
        ..Options::default()
    }
}

/// A whole answer to GET_VRING_BASE.
fn base_reply(ring: u32, base: u32) -> Vec<u8> {
    let payload = [ring, base].map(u32::to_ne_bytes).concat();
    message(Request::GetVringBase.id(), REPLY, &payload)
}

fn fails_with<T: Debug>(result: Result<T>, kind: Kind, context: &str) -> Error {
    let error = result.expect_err(context);
    assert_eq!(error.kind, kind, "{context}: {error}");
    error
}

// ---- threads that are stopped for a while ----

impl<T> Call<'_, T> {
    /// Stops the thread where it is: a system call in which it waits returns
    /// EINTR when the thread goes on. `None` if the call has returned.
    fn hold(&self) -> Option<Held> {
        register_signal_handler(libc::SIGUSR1, wait_in_handler).unwrap();
        IS_HELD.store(false, SeqCst);
        HOLD.store(true, SeqCst);
        let held = Held;
        let sent = self.signal(libc::SIGUSR1);
        let gone = || self.handle.is_finished() || !sent;
        wait_until("the thread stops", PATIENCE, || {
            IS_HELD.load(SeqCst) || gone()
        });
        IS_HELD.load(SeqCst).then_some(held)
    }
}

static HOLD: AtomicBool = AtomicBool::new(false);
static IS_HELD: AtomicBool = AtomicBool::new(false);

/// Dropping it lets the thread go on.
struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        HOLD.store(false, SeqCst);
    }
}

extern "C" fn wait_in_handler(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let errno = Errno::last_raw();
    IS_HELD.store(true, SeqCst);
    while HOLD.load(SeqCst) {
        thread::sleep(MILLISECOND);
    }
    Errno::set_raw(errno);
}

// ---- who waits for what ----

#[test]
fn who_waits_only_for_room_never_waits_for_a_message() {
    let _leak = no_fd_leak();
    let (client, peer) = plain(patient());
    thread::scope(|scope| {
        let asked = start(scope, || client.get_vring_base(0, Timeout::Default));
        peer.expect(Request::GetVringBase);
        let filler = fill(&client);
        let writer = start(scope, || client.set_vring_num(1, 8));
        writer.settle();
        let queued = start(scope, || client.set_vring_num(2, 8));
        queued.settle();
        // Nobody waits for a message after this, and none will come.
        peer.send(&base_reply(0, 7), &[]);
        assert_eq!(asked.at_once().unwrap(), 7);
        queued.settle();
        drain(&peer, filler + 2);
        writer.at_once().unwrap();
        queued.at_once().unwrap();
    });
    peer.expect_silence();
}

#[test]
fn what_one_thread_finds_wrong_ends_every_wait_at_once() {
    let _leak = no_fd_leak();
    let ways = [
        ("recvmsg", Timeout::Default),
        // More than half of the shortest deadline is needed to block in one call.
        ("poll", after(4500)),
    ];
    for (way, timeout) in ways {
        let (client, peer) = plain(patient());
        thread::scope(|scope| {
            let base = |ring, timeout| {
                let client = &client;
                let call = start(scope, move || client.get_vring_base(ring, timeout));
                peer.expect(Request::GetVringBase);
                call
            };
            let oldest = base(0, Timeout::Default);
            let finder = base(1, Timeout::Default);
            let reader = base(2, timeout);
            fill(&client);
            let writer = start(scope, || client.set_vring_num(3, 8));
            writer.settle();
            let queued = start(scope, || client.set_vring_num(4, 8));
            for waits in [&oldest, &finder, &reader] {
                waits.settle();
            }
            queued.settle();

            // The oldest reads both answers. That the second one is for another
            // ring is for its own thread to find, when the next one reads.
            let held = finder.hold().unwrap();
            peer.send(&[base_reply(0, 7), base_reply(9, 7)].concat(), &[]);
            assert_eq!(oldest.at_once().unwrap(), 7, "{way}");
            reader.settle();
            queued.settle();
            drop(held);
            let found = fails_with(finder.at_once(), Kind::Protocol, way);
            assert_eq!(found.ring, Some(1), "{way}");
            let error = fails_with(reader.at_once(), Kind::Protocol, way);
            assert_eq!(error.ring, Some(2), "{way}");
            for (ring, call) in [(3, writer), (4, queued)] {
                let error = fails_with(call.at_once(), Kind::Protocol, way);
                assert_eq!(error.request, Some(Request::SetVringNum), "{way}");
                assert_eq!(error.ring, Some(ring), "{way}");
            }
        });
        let poisoned = Kind::Poisoned(Class::Protocol);
        fails_with(client.get_features(), poisoned, way);
    }
}

#[test]
fn a_request_that_was_never_sent_is_not_said_to_be_done() {
    let _leak = no_fd_leak();
    type End = fn(&BackendClient, &Peer);
    let ends: [(End, Kind); 3] = [
        (|_, peer| peer.hang_up(), Kind::Disconnected),
        (|client, _| client.abort(), Kind::Canceled),
        (
            |_, peer| peer.reply(Request::GetFeatures, &[]),
            Kind::Protocol,
        ),
    ];
    for (end, kind) in ends {
        let context = format!("{kind:?}");
        let (client, peer) = plain(patient());
        thread::scope(|scope| {
            let reader = start(scope, || client.get_vring_base(0, Timeout::Default));
            peer.expect(Request::GetVringBase);
            reader.settle();
            fill(&client);
            let writer = start(scope, || client.set_vring_num(1, 8));
            writer.settle();
            let queued = start(scope, || client.set_vring_num(2, 8));
            queued.settle();
            let barrier = start(scope, || client.set_vring_enable(3, true));
            barrier.settle();
            // The reader is the first to notice.
            let held = writer.hold().unwrap();
            end(&client, &peer);
            fails_with(reader.at_once(), kind, &context);
            drop(held);
            for call in [writer, queued, barrier] {
                fails_with(call.at_once(), kind, &context);
            }
        });
    }
}

#[test]
fn a_message_that_a_new_request_finds_ends_every_wait_at_once() {
    let _leak = no_fd_leak();
    let (client, peer) = plain(patient());
    thread::scope(|scope| {
        let asked = start(scope, || client.get_vring_base(0, Timeout::Default));
        peer.expect(Request::GetVringBase);
        asked.settle();
        fill(&client);
        let writer = start(scope, || client.set_vring_num(1, 8));
        writer.settle();
        let queued = start(scope, || client.set_vring_num(2, 8));
        queued.settle();
        peer.send(&base_reply(0, 7), &[]);
        assert_eq!(asked.at_once().unwrap(), 7);
        queued.settle();
        // Both wait for room, so nobody sees this before the next request.
        peer.ack(Request::GetQueueNum, 1);
        let found = client.get_features();
        fails_with(writer.at_once(), Kind::Protocol, "polling for room");
        fails_with(queued.at_once(), Kind::Protocol, "in the queue");
        fails_with(found, Kind::Protocol, "the new one");
    });
}

// ---- a lock of the caller's ----

#[test]
fn a_lock_that_callers_hold_around_each_call_is_never_in_the_way() {
    const THREADS: usize = 4;
    const ANSWERS: u32 = 200;
    let _leak = no_fd_leak();
    for reply_ack in [false, true] {
        let (client, peer) = adopted(FEATURES, protocol(reply_ack), unbounded());
        let lock = Mutex::new(());
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let calls: Vec<_> = (0..THREADS)
                .map(|_| {
                    start(scope, || {
                        loop {
                            let _held = lock.lock().unwrap();
                            if let Err(error) = client.get_features() {
                                return error;
                            }
                            if let Err(error) = client.set_vring_enable(0, true) {
                                return error;
                            }
                        }
                    })
                })
                .collect();
            // It does not take the lock.
            let looks = start(scope, || {
                let mut looks = 0_u64;
                while !over.load(SeqCst) {
                    assert_eq!(client.acked_features(), FEATURES);
                    assert_eq!(client.acked_protocol_features(), protocol(reply_ack));
                    assert!(client.read_notifier().as_raw_fd() >= 0);
                    looks += 1;
                }
                looks
            });
            for _ in 0..ANSWERS {
                let request = peer.receive();
                match request.code {
                    1 => peer.ack(Request::GetFeatures, FEATURES),
                    _ if reply_ack => peer.ack(Request::SetVringEnable, 0),
                    _ => {} // a barrier comes
                }
            }
            // One waits with the lock in its hands, the others for the lock.
            peer.receive();
            for call in &calls {
                call.settle();
            }
            assert!(lock.try_lock().is_err());
            over.store(true, SeqCst);
            assert!(looks.at_once() > 0);
            client.abort();
            for call in calls {
                fails_with(Err::<(), _>(call.at_once()), Kind::Canceled, "a call");
            }
        });
    }
}

// ---- the last look ----

#[test]
fn whose_deadline_passes_leaves_what_another_thread_waits_for() {
    let _leak = no_fd_leak();
    let (client, peer) = plain(unbounded());
    thread::scope(|scope| {
        let waiting = start(scope, || client.get_vring_base(0, Timeout::After(PATIENCE)));
        peer.expect(Request::GetVringBase);
        waiting.settle();
        fill(&client);
        // It is woken, but gets no processor before the other one has looked.
        let held = waiting.hold().unwrap();
        peer.send(&base_reply(0, 7), &[]);
        let brief = client.get_vring_base(1, after(20));
        let error = fails_with(brief, Kind::TimedOut, "the other");
        assert_eq!(error.phase, Phase::Send, "{error}");
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let unread = recv(client.read_notifier().as_raw_fd(), &mut [0; 64], flags);
        assert_eq!(unread, Ok(20), "the answer was taken away");
        drop(held);
        assert_eq!(waiting.at_once().unwrap(), 7);
    });
}

#[test]
fn an_answer_is_not_lost_when_the_deadline_of_another_thread_passes_then() {
    let _leak = no_fd_leak();
    for round in 0..150 {
        let (client, peer) = plain(Options {
            on_timeout: OnTimeout::Keep,
            ..unbounded()
        });
        thread::scope(|scope| {
            let waiting = start(scope, || client.get_vring_base(0, after(4000)));
            peer.expect(Request::GetVringBase);
            fill(&client);
            let brief = start(scope, || client.get_vring_base(1, after(4)));
            // The answer arrives about when the other one looks for the last time.
            let at = Instant::now() + Duration::from_micros(4000 + 3 * round);
            while Instant::now() < at {
                std::hint::spin_loop();
            }
            peer.send(&base_reply(0, 7), &[]);
            fails_with(brief.at_once(), Kind::TimedOut, "the other");
            assert_eq!(waiting.at_once().unwrap(), 7, "round {round}");
        });
    }
}

#[test]
fn an_answer_in_pieces_that_arrived_while_the_thread_was_stopped_counts() {
    let _leak = no_fd_leak();
    let case = Case::of(Request::GetInflightFd);
    let Answer::Own(payload, _) = case.answer else {
        panic!("it has a reply");
    };
    let reply = message(case.request.id(), REPLY, &hex(payload));
    let deadline = 2 * BRIEF;
    // Kernels do not read on behind a piece that carried descriptors.
    for split in [1, 12, 20] {
        let attempt = || {
            let options = Options {
                slow: Timeout::After(deadline),
                ..patient()
            };
            let (client, peer) = plain(options);
            thread::scope(|scope| {
                let begin = Instant::now();
                let call = start(scope, || (case.call)(&client));
                peer.expect(case.request);
                let sent = Instant::now();
                let held = call.hold()?;
                if begin.elapsed() >= deadline {
                    return None; // this machine is too busy
                }
                peer.send(&reply[..split], &[memory(7)]);
                peer.send(&reply[split..], &[]);
                thread::sleep(deadline.saturating_sub(sent.elapsed()) + MILLISECOND);
                drop(held);
                Some(call.at_once())
            })
        };
        let result = (0..20).find_map(|_| attempt());
        let result = result.expect("the thread is stopped before its deadline");
        result.unwrap_or_else(|error| panic!("split at {split}: {error}"));
    }
}

// ---- what is said ----

#[test]
fn a_request_whose_barrier_does_not_fit_is_not_said_to_be_unsent() {
    let _leak = no_fd_leak();
    for on_timeout in [OnTimeout::Poison, OnTimeout::Keep] {
        let context = format!("{on_timeout:?}");
        let (client, peer) = plain(Options {
            slow: Timeout::After(BRIEF),
            on_timeout,
            ..patient()
        });
        let filler = fill(&client);
        drain(&peer, 1); // room for one message
        let result = client.set_vring_enable(3, true);
        let error = fails_with(result, Kind::TimedOut, &context);
        assert_eq!(error.phase, Phase::Barrier, "{context}: {error}");
        assert_eq!(error.request, Some(Request::SetVringEnable), "{context}");
        let text = error.to_string();
        assert!(!text.contains("nothing was sent"), "{context}: {text}");

        drain(&peer, filler - 1);
        peer.expect(Request::SetVringEnable);
        peer.expect_silence();
        match on_timeout {
            OnTimeout::Poison => {
                let poisoned = Kind::Poisoned(Class::Transport);
                fails_with(client.get_features(), poisoned, &context);
                peer.expect_silence();
            }
            OnTimeout::Keep => {
                let answer = || {
                    peer.expect(Request::GetFeatures);
                    peer.ack(Request::GetFeatures, FEATURES);
                };
                let (features, ()) = both(|| client.get_features(), answer);
                assert_eq!(features.unwrap(), FEATURES);
            }
        }
    }
}

#[test]
fn abort_at_any_point_of_a_call_is_never_taken_for_a_failure() {
    let _leak = no_fd_leak();
    type Ask = fn(&BackendClient) -> Result<()>;
    let calls: [(&str, Ask); 3] = [
        ("sending", |client| client.set_vring_num(0, 8)),
        ("recvmsg", |client| {
            client.get_vring_base(0, Timeout::Default).map(drop)
        }),
        ("poll", |client| {
            client.get_vring_base(0, after(4500)).map(drop)
        }),
    ];
    for (name, ask) in calls {
        for round in 0..150 {
            let context = format!("{name}, round {round}");
            let (client, peer) = plain(patient());
            thread::scope(|scope| {
                let answers = base_reply(0, 7);
                // It reads as much as is there, and answers each request.
                scope.spawn(move || {
                    while let Ok((bytes, _)) = peer.read(20, MsgFlags::MSG_WAITALL) {
                        if bytes.len() < 20
                            || (name != "sending" && peer.try_send(&answers).is_err())
                        {
                            break;
                        }
                    }
                });
                let call = start(scope, || {
                    loop {
                        if let Err(error) = ask(&client) {
                            return error;
                        }
                    }
                });
                thread::sleep(Duration::from_micros(round));
                // Every other time, wherever the thread is just then.
                let held = (round % 2 == 0).then(|| call.hold().unwrap());
                client.abort();
                drop(held);
                fails_with(Err::<(), _>(call.at_once()), Kind::Canceled, &context);
            });
            fails_with(ask(&client), Kind::Canceled, &context);
        }
    }
}

/// While it lives, this process can open no further descriptor.
struct NoMoreFiles(libc::rlimit);

fn no_more_files() -> NoMoreFiles {
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `before` outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) };
    assert_eq!(result, 0);
    let none = libc::rlimit {
        rlim_cur: 0,
        ..before
    };
    // SAFETY: `none` outlives the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
    assert_eq!(result, 0);
    NoMoreFiles(before)
}

impl Drop for NoMoreFiles {
    fn drop(&mut self) {
        // SAFETY: the limit outlives the call.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.0) };
        assert_eq!(result, 0);
    }
}

#[test]
fn a_descriptor_that_finds_no_place_is_not_the_fault_of_the_back_end() {
    // Tests of this file run one at a time: nobody else needs a descriptor.
    let _leak = no_fd_leak();
    for case in CASES {
        let Answer::Own(payload, Descriptor::With) = case.answer else {
            continue;
        };
        let context = format!("{:?}", case.request);
        let (client, peer) = ready_for(case.request, false, patient());
        let reply = message(case.request.id(), REPLY, &hex(payload));
        let answer = || {
            peer.expect(case.request);
            let full = no_more_files();
            peer.send(&reply, &[memory(7)]);
            full
        };
        let (result, full) = both(|| (case.call)(&client), answer);
        drop(full);
        let error = fails_with(result, Kind::Os(Errno::EMFILE), &context);
        assert_eq!(error.class(), Class::Local, "{context}");
        assert_eq!(error.code(), -libc::EMFILE, "{context}");
        assert_eq!(error.phase, Phase::Reply, "{context}: {error}");
        assert_eq!(error.request, Some(case.request), "{context}");
        let poisoned = Kind::Poisoned(Class::Local);
        fails_with(client.get_features(), poisoned, &context);
    }
}

#[test]
fn only_what_was_acknowledged_is_blamed_for_a_hang_up() {
    let _leak = no_fd_leak();
    // What the back-end said to SET_VRING_NUM, and whether that one is blamed.
    let answers: [(&[u64], bool); 4] = [
        (&[1], false),
        (&[0, 1], false),
        (&[0], true),
        (&[1, 0], true),
    ];
    for (values, blamed) in answers {
        for asked_before in [false, true] {
            let context = format!("{values:?}, asked before the hang-up: {asked_before}");
            let (client, peer) = adopted(FEATURES, protocol(true), patient());
            for value in values {
                let answer = || {
                    peer.expect(Request::SetVringNum);
                    peer.ack(Request::SetVringNum, *value);
                };
                let (result, ()) = both(|| client.set_vring_num(0, 8), answer);
                let kind = result.err().map(|error| error.kind);
                assert_eq!(kind, (*value != 0).then_some(Kind::Nack), "{context}");
            }
            let result = if asked_before {
                let answer = || {
                    peer.expect(Request::GetFeatures);
                    peer.hang_up();
                };
                both(|| client.get_features(), answer).0
            } else {
                peer.hang_up();
                client.get_features()
            };
            let text = fails_with(result, Kind::Disconnected, &context).to_string();
            let named = text.contains("acknowledged");
            assert_eq!(named, blamed, "{context}: {text}");
        }
    }
}

// ---- a back-end that never answers ----

/// So many answers may be outstanding before even [`OnTimeout::Keep`] gives up.
const UNANSWERED: u32 = 64;

fn give_up_on(client: &BackendClient, requests: u32) {
    for ring in 0..requests {
        let context = format!("request {ring}");
        let result = client.get_vring_base(ring, after(0));
        let error = fails_with(result, Kind::TimedOut, &context);
        assert_eq!(error.phase, Phase::Reply, "{context}: {error}");
    }
}

fn answer_late(peer: &Peer, requests: u32) {
    for ring in 0..requests {
        assert_eq!(peer.expect(Request::GetVringBase).u32_at(0), ring);
        peer.send(&base_reply(ring, 7), &[]);
    }
}

fn keep() -> Options {
    Options {
        on_timeout: OnTimeout::Keep,
        ..patient()
    }
}

#[test]
fn keep_gives_up_a_connection_on_which_nothing_is_ever_answered() {
    let _leak = no_fd_leak();
    let (client, peer) = plain(keep());
    give_up_on(&client, UNANSWERED + 1);
    let poisoned = Kind::Poisoned(Class::Transport);
    fails_with(client.get_features(), poisoned, "nothing is answered");
    answer_late(&peer, UNANSWERED + 1);
    fails_with(client.get_features(), poisoned, "it is too late");
    peer.expect_silence();
}

#[test]
fn keep_forgives_as_long_as_the_answers_come_some_time() {
    let _leak = no_fd_leak();
    let (client, peer) = plain(keep());
    for _ in 0..3 {
        give_up_on(&client, UNANSWERED);
        let answer = || {
            answer_late(&peer, UNANSWERED);
            peer.expect(Request::GetFeatures);
            peer.ack(Request::GetFeatures, FEATURES);
        };
        let (features, ()) = both(|| client.get_features(), answer);
        assert_eq!(features.unwrap(), FEATURES);
    }
}

// ---- accepting ----

/// Moves this thread, if that can be: two threads meet more often on two
/// processors.
fn prefer_processor(number: u32) {
    let mask: libc::c_ulong = 1 << number;
    let size = size_of_val(&mask);
    // SAFETY: the call reads so many bytes of the mask, which outlives it.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, &raw const mask) };
}

#[test]
fn threads_that_accept_leave_the_listener_as_it_was() {
    const ROUNDS: usize = 200;
    let _leak = no_fd_leak();
    let name = format!("vhost_user_frontend threads {}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let before = TimeVal::new(7, 0);
    setsockopt(&listener, sockopt::ReceiveTimeout, &before).unwrap();
    let options = Options {
        connect: Timeout::After(PATIENCE),
        ..Options::default()
    };
    let accept = || BackendClient::accept(listener.as_fd(), &options).map(drop);
    // Two threads that run all the time meet before and after each attempt.
    let arrived = AtomicUsize::new(0);
    let meet = |meeting: usize| {
        arrived.fetch_add(1, SeqCst);
        let start = Instant::now();
        while arrived.load(SeqCst) < 2 * meeting {
            assert!(start.elapsed() < PATIENCE, "the other thread is gone");
            std::hint::spin_loop();
        }
    };
    let other = || {
        prefer_processor(0);
        for round in 0..ROUNDS {
            meet(2 * round + 1);
            accept().unwrap();
            meet(2 * round + 2);
        }
    };
    let this = || {
        prefer_processor(1);
        for round in 0..ROUNDS {
            let connected = [(); 2].map(|()| UnixStream::connect_addr(&address).unwrap());
            meet(2 * round + 1);
            accept().unwrap();
            meet(2 * round + 2);
            let left = getsockopt(&listener, sockopt::ReceiveTimeout).unwrap();
            assert_eq!(left, before, "round {round}");
            drop(connected);
        }
    };
    thread::scope(|scope| {
        start(scope, other);
        start(scope, this);
    });
}
