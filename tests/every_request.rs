//! How each request waits: to its deadline, through an answer that comes byte by
//! byte, and until somebody aborts.

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
    AT_ONCE, Answer, CASES, Call, Case, Descriptor, FEATURES, Peer, REPLY, answer, both, cpu_time,
    drain, file, fill, hex, memory, message, no_fd_leak, patient, ready_for, start,
};
use libc::{c_int, c_void, siginfo_t};
use nix::sys::socket::MsgFlags;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{Barrier, Request};
use vhost_user_frontend::{
    BackendClient, Class, Error, Kind, OnTimeout, Options, Phase, Result, Timeout,
};
use vmm_sys_util::signal::register_signal_handler;

/// A deadline that is meant to pass.
const DEADLINE: Duration = Duration::from_millis(60);
/// How much later a call may return, at best.
const NOISE: Duration = Duration::from_millis(20);
/// The scheduler may spoil one attempt, hardly all of them.
const ATTEMPTS: usize = 8;

// ---- the ways in which a call waits ----

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Reply,
    Barrier,
    Room,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// In one receive, as long as that may take.
    Alone,
    /// In poll.
    Polling,
    /// Asleep, while another thread reads.
    Behind,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    case: &'static Case,
    reply_ack: bool,
    what: What,
    how: How,
}

impl Way {
    /// All there are, as far as each request can wait in one of these.
    fn all(hows: &[How]) -> Vec<Self> {
        let way = |case, how, reply_ack, what| Self {
            case,
            reply_ack,
            what,
            how,
        };
        let mut ways = Vec::new();
        for case in CASES {
            for &how in hows {
                if case.answer != Answer::Nothing {
                    ways.push(way(case, how, true, What::Reply));
                }
                match case.answer {
                    Answer::Own(..) | Answer::Status => {
                        ways.push(way(case, how, false, What::Reply));
                    }
                    Answer::Ack(Barrier::Never) | Answer::Nothing => {}
                    Answer::Ack(_) => ways.push(way(case, how, false, What::Barrier)),
                }
            }
            // Also those that need no answer. Whoever waits for room polls.
            ways.push(way(case, How::Polling, false, What::Room));
        }
        ways
    }

    fn context(&self) -> String {
        format!(
            "{:?} waits for {:?} {:?}, REPLY_ACK {}",
            self.case.request, self.what, self.how, self.reply_ack
        )
    }

    /// Options where only the deadline of this request is short.
    fn impatient(&self) -> Options {
        let mut options = patient();
        *self.deadline(&mut options) = Timeout::After(self.limit());
        options
    }

    /// Options with which it waits as it says, for long.
    fn lasting(&self) -> Options {
        let mut options = patient();
        if self.how == How::Polling {
            // No receive may last longer than the shortest deadline.
            let others = Timeout::After(match self.case.request {
                Request::PostcopyEnd => 5 * DEADLINE, // there are some before it
                _ => Duration::from_millis(2),
            });
            let own = options.quick;
            (options.quick, options.slow, options.drain) = (others, others, others);
            *self.deadline(&mut options) = own;
        }
        options
    }

    fn deadline<'a>(&self, options: &'a mut Options) -> &'a mut Timeout {
        use Request as R;
        match self.case.request {
            R::GetVringBase => &mut options.drain,
            R::SetMemTable
            | R::SetLogBase
            | R::SetVringEnable
            | R::GetInflightFd
            | R::SetInflightFd
            | R::AddMemReg
            | R::RemMemReg
            | R::SetDeviceStateFd
            | R::CheckDeviceState
            | R::CreateCryptoSession
            | R::PostcopyEnd
            | R::ResetDevice => &mut options.slow,
            _ => &mut options.quick,
        }
    }

    /// How short.
    fn limit(&self) -> Duration {
        match self.case.request {
            // They come after others, to which the peer must get in time.
            Request::SetOwner | Request::PostcopyListen | Request::PostcopyEnd => 5 * DEADLINE,
            _ => DEADLINE,
        }
    }

    /// A client, whose socket is full if that is what it waits for; what is in it.
    fn client(&self, options: Options) -> (BackendClient, Peer, usize) {
        let (client, peer) = ready_for(self.case.request, self.reply_ack, options);
        let filler = match self.what {
            What::Room => fill(&client),
            _ => 0,
        };
        (client, peer, filler)
    }

    /// The peer takes the request, and the barrier behind it.
    fn take(&self, peer: &Peer) {
        peer.expect(self.case.request);
        if self.what == What::Barrier {
            peer.expect(Request::GetFeatures);
        }
    }

    /// What the call waits for. The descriptor goes with the first byte.
    fn reply(&self) -> (Vec<u8>, bool) {
        let request = self.case.request.id();
        match (self.what, self.case.answer) {
            (What::Barrier, _) => {
                let features = FEATURES.to_ne_bytes();
                (message(Request::GetFeatures.id(), REPLY, &features), false)
            }
            (_, Answer::Own(payload, descriptor)) => (
                message(request, REPLY, &hex(payload)),
                descriptor == Descriptor::With,
            ),
            _ => (message(request, REPLY, &[0; 8]), false),
        }
    }

    fn phase(&self) -> Phase {
        match self.what {
            What::Reply => Phase::Reply,
            What::Barrier => Phase::Barrier,
            What::Room => Phase::Send,
        }
    }

    /// Checks what the call returned; its words name the request.
    fn fails_with(&self, result: Result<()>, kind: Kind) -> Error {
        let context = self.context();
        let error = result.expect_err(&context);
        assert_eq!(error.kind, kind, "{context}: {error}");
        assert_eq!(error.request, Some(self.case.request), "{context}: {error}");
        let name = self.case.request.info().name.as_str();
        assert!(error.to_string().contains(name), "{context}: {error}");
        error
    }

    fn timed_out(&self, result: Result<()>) {
        let error = self.fails_with(result, Kind::TimedOut);
        let context = self.context();
        assert_eq!(error.code(), -libc::ETIMEDOUT, "{context}");
        assert_eq!(error.class(), Class::Transport, "{context}");
        assert_eq!(error.phase, self.phase(), "{context}: {error}");
    }

    fn canceled(&self, result: Result<()>) {
        let error = self.fails_with(result, Kind::Canceled);
        assert_eq!(error.code(), -libc::ECANCELED, "{}", self.context());
    }

    /// Runs `body` while another thread waits for an answer of its own, if this
    /// is to happen behind one, and returns what that one got.
    fn behind<A>(
        &self,
        client: &BackendClient,
        peer: &Peer,
        body: impl FnOnce() -> A,
    ) -> (A, Option<Result<u32>>) {
        if self.how != How::Behind {
            return (body(), None);
        }
        thread::scope(|scope| {
            let first = start(scope, || client.get_vring_base(0, Timeout::Never));
            peer.expect(Request::GetVringBase);
            first.settle();
            (body(), Some(first.at_once()))
        })
    }
}

fn base_reply(ring: u32, base: u32) -> Vec<u8> {
    let payload = [ring, base].map(u32::to_ne_bytes).concat();
    message(Request::GetVringBase.id(), REPLY, &payload)
}

/// Does something with each of the ways, a few at a time.
fn in_parallel(ways: Vec<Way>, check: impl Fn(&Way) + Sync) {
    const WORKERS: usize = 4;
    let ways = Mutex::new(ways.into_iter());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some(way) = ways.lock().unwrap().next() else {
                        return;
                    };
                    check(&way);
                }
            });
        }
    });
}

/// Tries until it is good enough.
fn at_best<T: std::fmt::Debug>(way: &Way, attempt: impl Fn() -> T, good: impl Fn(&T) -> bool) {
    let mut last = None;
    let found = (0..ATTEMPTS).any(|_| good(last.insert(attempt())));
    assert!(found, "{}: at last {last:?}", way.context());
}

// ---- deadlines ----

#[test]
fn a_silent_peer_costs_the_deadline_and_no_processor_time() {
    let _leak = no_fd_leak();
    in_parallel(Way::all(&[How::Alone, How::Behind]), |way| {
        let attempt = || {
            let (client, peer, _) = way.client(way.impatient());
            let measure = || {
                let (begin, before) = (Instant::now(), cpu_time());
                let result = (way.case.call)(&client);
                let (took, used) = (begin.elapsed(), cpu_time() - before);
                way.timed_out(result);
                peer.try_send(&base_reply(0, 7)).unwrap();
                (took, used)
            };
            let ((took, used), other) = way.behind(&client, &peer, measure);
            // The other one gets its answer all the same.
            assert!(other.is_none_or(|base| base.unwrap() == 7));
            let context = way.context();
            assert!(took >= way.limit(), "{context}: {took:?}");
            assert!(took < way.limit() + AT_ONCE, "{context}: {took:?}");
            (took, used)
        };
        // The other thread is given a moment to deliver what it may have read.
        let delivery = match way.how {
            How::Behind => NOISE,
            _ => Duration::ZERO,
        };
        at_best(way, attempt, |(took, used)| {
            *took < way.limit() + delivery + NOISE && *used < DEADLINE / 6
        });
    });
}

#[test]
fn an_answer_that_comes_byte_by_byte_does_not_move_the_deadline() {
    let _leak = no_fd_leak();
    in_parallel(Way::all(&[How::Alone]), |way| {
        let attempt = || {
            let (client, peer, _) = way.client(way.impatient());
            let over = AtomicBool::new(false);
            let call = || {
                let begin = Instant::now();
                let result = (way.case.call)(&client);
                over.store(true, SeqCst);
                (result, begin.elapsed())
            };
            let trickle = || {
                if way.what == What::Room {
                    // The first of what is in it; there is no room before its end.
                    for _ in (1..20).take_while(|_| !over.load(SeqCst)) {
                        thread::sleep(way.limit() / 6);
                        peer.read(1, MsgFlags::empty()).unwrap();
                    }
                    return;
                }
                way.take(&peer);
                let (reply, descriptor) = way.reply();
                let (first, rest) = reply.split_at(1);
                let fd = [memory(7)];
                peer.send(first, if descriptor { &fd } else { &[] });
                for byte in rest {
                    // All of it takes more than three times the deadline.
                    thread::sleep(way.limit() / 6);
                    if over.load(SeqCst) {
                        return;
                    }
                    peer.send(&[*byte], &[]);
                }
            };
            let ((result, took), ()) = both(call, trickle);
            if result.is_ok() {
                return Duration::MAX; // it did not run before all was there
            }
            way.timed_out(result);
            let context = way.context();
            assert!(took >= way.limit(), "{context}: {took:?}");
            assert!(took < way.limit() + AT_ONCE, "{context}: {took:?}");
            took
        };
        at_best(way, attempt, |took| *took < way.limit() + NOISE);
    });
}

#[test]
fn an_answer_that_comes_byte_by_byte_in_time_is_taken() {
    let _leak = no_fd_leak();
    in_parallel(Way::all(&[How::Alone, How::Polling]), |way| {
        let (client, peer, filler) = way.client(way.lasting());
        let trickle = || {
            if way.what == What::Room {
                thread::sleep(Duration::from_millis(5));
                drain(&peer, filler);
                return answer(&peer, way.case, way.reply_ack, true);
            }
            way.take(&peer);
            let (reply, descriptor) = way.reply();
            let (first, rest) = reply.split_at(1);
            let fd = [memory(7)];
            peer.send(first, if descriptor { &fd } else { &[] });
            for byte in rest {
                thread::sleep(Duration::from_micros(100));
                peer.send(&[*byte], &[]);
            }
        };
        let (result, ()) = both(|| (way.case.call)(&client), trickle);
        result.unwrap_or_else(|error| panic!("{}: {error}", way.context()));
        peer.expect_silence();
    });
}

#[test]
fn with_keep_every_request_can_be_made_again_after_its_deadline() {
    let _leak = no_fd_leak();
    let late = AtomicUsize::new(0);
    in_parallel(Way::all(&[How::Alone]), |way| {
        let options = Options {
            on_timeout: OnTimeout::Keep,
            ..way.impatient()
        };
        let attempt = || {
            let (client, peer, filler) = way.client(options);
            way.timed_out((way.case.call)(&client));
            drain(&peer, filler);
            if way.what != What::Room {
                // What comes too late is dropped, and its descriptor is closed.
                way.take(&peer);
                let (reply, descriptor) = way.reply();
                let fd = [file(6)];
                peer.send(&reply, if descriptor { &fd } else { &[] });
                late.fetch_add(1, SeqCst);
            }
            let again = || answer(&peer, way.case, way.reply_ack, true);
            let (result, ()) = both(|| (way.case.call)(&client), again);
            result.map_err(|error| error.kind)
        };
        at_best(way, attempt, std::result::Result::is_ok);
    });
    assert!(late.into_inner() > CASES.len());
}

// ---- abort ----

/// Makes the call wait, then aborts it by `abort`.
fn aborts(way: &Way, abort: impl Fn(&BackendClient, &Call<'_, Result<()>>)) {
    let attempt = || {
        let (client, peer, _) = way.client(way.lasting());
        let measure = || {
            thread::scope(|scope| {
                let call = start(scope, || (way.case.call)(&client));
                call.settle();
                let begin = Instant::now();
                abort(&client, &call);
                let result = call.at_once();
                let took = begin.elapsed();
                way.canceled(result);
                took
            })
        };
        let (took, other) = way.behind(&client, &peer, measure);
        if let Some(result) = other {
            let error = result.expect_err("the other call");
            assert_eq!(error.kind, Kind::Canceled, "{}: {error}", way.context());
        }
        let begin = Instant::now();
        way.canceled((way.case.call)(&client));
        assert!(begin.elapsed() < AT_ONCE, "{}", way.context());
        took
    };
    at_best(way, attempt, |took| *took < NOISE);
}

#[test]
fn abort_from_another_thread_ends_every_wait() {
    let _leak = no_fd_leak();
    let ways = Way::all(&[How::Alone, How::Polling, How::Behind]);
    in_parallel(ways, |way| aborts(way, |client, _| client.abort()));
}

static TO_ABORT: AtomicPtr<BackendClient> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn abort_in_handler(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: it is null, or a client that lives as long as the calls on it.
    if let Some(client) = unsafe { TO_ABORT.load(SeqCst).as_ref() } {
        client.abort();
    }
}

/// Whether system calls that the handler interrupts go on after it.
fn set_handler(restart: bool) {
    register_signal_handler(libc::SIGUSR1, abort_in_handler).unwrap();
    // SAFETY: an all-zero sigaction is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: it only writes to `action`, which outlives the call.
    let result = unsafe { libc::sigaction(libc::SIGUSR1, std::ptr::null(), &raw mut action) };
    assert_eq!(result, 0);
    if restart {
        action.sa_flags |= libc::SA_RESTART;
    }
    // SAFETY: it is the action that is set already, with another flag.
    let result = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

#[test]
fn abort_from_a_signal_handler_of_the_thread_ends_its_wait() {
    let _leak = no_fd_leak();
    for restart in [false, true] {
        set_handler(restart);
        // One after the other: the handler knows only one client.
        for way in Way::all(&[How::Alone, How::Polling, How::Behind]) {
            aborts(&way, |client, call| {
                TO_ABORT.store(std::ptr::from_ref(client).cast_mut(), SeqCst);
                assert!(call.signal(libc::SIGUSR1), "the call has returned");
            });
            TO_ABORT.store(std::ptr::null_mut(), SeqCst);
        }
    }
}
