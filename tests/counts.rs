//! What a request costs: heap allocations, system calls and looks at the clock of
//! the calling thread. The peer runs on another thread and does not count.

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
    Answer, CASES, Case, FEATURES, PATIENCE, Peer, adopted, lead_back_to, no_fd_leak, patient,
    protocol, ready_for,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::thread::LocalKey;
use std::time::Duration;
use vhost_user_frontend::message::{BackendRequest, Barrier, Flow, Request, VringState};
use vhost_user_frontend::{BackendClient, BackendHandler, Op, Options, Timeout, TraceRecord};

type Counter = Cell<usize>;

thread_local! {
    static ALLOCATIONS: Counter = const { Cell::new(0) };
    static SENDS: Counter = const { Cell::new(0) };
    static RECEIVES: Counter = const { Cell::new(0) };
    static POLLS: Counter = const { Cell::new(0) };
    static CLOCKS: Counter = const { Cell::new(0) };
    /// Calls that may have put this thread to sleep.
    static WAITS: Counter = const { Cell::new(0) };
    /// The time that this thread is told, while it stands still.
    static STOPPED: Cell<Option<(i64, i64)>> = const { Cell::new(None) };
}

fn count(counter: &'static LocalKey<Counter>) {
    counter.set(counter.get() + 1);
}

fn counted(counter: &'static LocalKey<Counter>, call: impl FnOnce()) -> usize {
    let before = counter.get();
    call();
    counter.get() - before
}

/// Costs of this thread so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    allocations: usize,
    sends: usize,
    receives: usize,
    polls: usize,
    clocks: usize,
}

/// What `call` costs.
fn cost_of(call: impl FnOnce()) -> Cost {
    let counters = [&ALLOCATIONS, &SENDS, &RECEIVES, &POLLS, &CLOCKS];
    let before = counters.map(LocalKey::get);
    call();
    let after = counters.map(LocalKey::get);
    Cost {
        allocations: after[0] - before[0],
        sends: after[1] - before[1],
        receives: after[2] - before[2],
        polls: after[3] - before[3],
        clocks: after[4] - before[4],
    }
}

struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Functions of the C library, as this program's own: the linker takes them for
/// every call in it. Each counts, and makes the system call.
mod system_calls {
    use super::{CLOCKS, POLLS, RECEIVES, SENDS, STOPPED, WAITS, count};
    use libc::{
        c_int, c_long, c_uint, c_void, clockid_t, mmsghdr, msghdr, nfds_t, pollfd, ssize_t,
        timespec,
    };
    use std::sync::atomic::{AtomicPtr, Ordering};

    fn length(result: c_long) -> ssize_t {
        ssize_t::try_from(result).unwrap()
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        count(&SENDS);
        // SAFETY: the caller's promise is passed on.
        length(unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sendmmsg(
        fd: c_int,
        messages: *mut mmsghdr,
        number: c_uint,
        flags: c_int,
    ) -> c_int {
        count(&SENDS);
        // SAFETY: the caller's promise is passed on.
        let done = unsafe { libc::syscall(libc::SYS_sendmmsg, fd, messages, number, flags) };
        c_int::try_from(done).unwrap()
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        count(&RECEIVES);
        if flags & libc::MSG_DONTWAIT == 0 {
            count(&WAITS);
        }
        // SAFETY: the caller's promise is passed on.
        length(unsafe { libc::syscall(libc::SYS_recvmsg, fd, message, flags) })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn poll(fds: *mut pollfd, number: nfds_t, milliseconds: c_int) -> c_int {
        count(&POLLS);
        if milliseconds != 0 {
            count(&WAITS);
        }
        let timeout = timespec {
            tv_sec: (milliseconds / 1000).into(),
            tv_nsec: (milliseconds % 1000 * 1_000_000).into(),
        };
        let timeout = if milliseconds < 0 {
            None
        } else {
            Some(&timeout)
        };
        let timeout = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the caller's promise is passed on; `timeout` outlives the call.
        unsafe { libc::ppoll(fds, number, timeout, std::ptr::null()) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
        static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        count(&CLOCKS);
        let mut real = REAL.load(Ordering::Relaxed);
        if real.is_null() {
            // Of the C library, which makes no system call.
            // SAFETY: the name ends with a zero.
            real = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) };
            assert!(!real.is_null());
            REAL.store(real, Ordering::Relaxed);
        }
        // SAFETY: it is a function of this type.
        let real: unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int =
            unsafe { std::mem::transmute(real) };
        // SAFETY: the caller's promise is passed on.
        let result = unsafe { real(clock, time) };
        if let Some((tv_sec, tv_nsec)) = STOPPED.get() {
            // SAFETY: the caller has room for one.
            unsafe { time.write(timespec { tv_sec, tv_nsec }) };
        }
        result
    }
}

/// Makes a call for which no time passes: what is looked for until some time has
/// passed is then looked for until it is there.
fn while_time_stands_still(call: impl FnOnce()) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0);
    STOPPED.set(Some((now.tv_sec, now.tv_nsec)));
    call();
    STOPPED.set(None);
}

/// Makes the call of a case on this thread, answered on another.
fn answered(client: &BackendClient, peer: &Peer, case: &Case, reply_ack: bool) -> Cost {
    thread::scope(|scope| {
        scope.spawn(|| common::answer(peer, case, reply_ack, true));
        cost_of(|| (case.call)(client).unwrap())
    })
}

/// What each request costs when it is made a second time on a connection.
fn costs(reply_ack: bool) -> impl Iterator<Item = (&'static Case, Cost)> {
    CASES.iter().map(move |case| {
        let (client, peer) = ready_for(case.request, reply_ack, patient());
        answered(&client, &peer, case, reply_ack);
        lead_back_to(case.request, reply_ack, &client, &peer);
        (case, answered(&client, &peer, case, reply_ack))
    })
}

#[test]
fn no_request_allocates_after_the_first() {
    let _leak = no_fd_leak();
    let cost = cost_of(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(cost.allocations, 1, "allocations are counted");
    for reply_ack in [false, true] {
        for (case, cost) in costs(reply_ack) {
            let request = case.request;
            assert_eq!(cost.allocations, 0, "{request:?}, REPLY_ACK {reply_ack}");
        }
    }
}

#[test]
fn each_message_is_one_sendmsg_and_each_answer_one_recvmsg_and_a_look_at_the_clock() {
    let _leak = no_fd_leak();
    for reply_ack in [false, true] {
        for (case, cost) in costs(reply_ack) {
            let (sends, receives) = match case.answer {
                Answer::Nothing => (1, 0),
                Answer::Own(..) | Answer::Status => (1, 1),
                Answer::Ack(_) if reply_ack => (1, 1),
                Answer::Ack(Barrier::Never) => (1, 0),
                Answer::Ack(_) => (2, 1),
            };
            let expected = Cost {
                allocations: cost.allocations,
                sends,
                receives,
                polls: 0,
                // For the deadline, and how long the answer took.
                clocks: 1 + receives,
            };
            assert_eq!(cost, expected, "{:?}, REPLY_ACK {reply_ack}", case.request);
        }
    }
}

#[test]
fn a_deadline_of_its_own_costs_one_poll_more() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let cost = thread::scope(|scope| {
        scope.spawn(|| common::answer(&peer, Case::of(Request::GetVringBase), true, true));
        let timeout = Timeout::After(PATIENCE / 4);
        cost_of(|| assert_eq!(client.get_vring_base(3, timeout).unwrap(), 0x1234))
    });
    assert_eq!((cost.sends, cost.polls, cost.receives), (1, 1, 1));
    assert_eq!(cost.clocks, 3);
}

/// One receive that waits may wait for long: not when a callback of the trace, or an
/// answer before this one, has taken most of the time.
#[test]
fn time_that_passes_within_a_call_is_seen() {
    let _leak = no_fd_leak();
    for (list, passes) in [(false, Flow::Sent), (true, Flow::Received)] {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        let sink = move |record: &TraceRecord| {
            if record.flow == passes {
                let (seconds, nanoseconds) = STOPPED.get().unwrap();
                let most = i64::try_from(PATIENCE.as_secs()).unwrap() * 3 / 4;
                STOPPED.set(Some((seconds + most, nanoseconds)));
            }
        };
        client.set_trace(Some(Arc::new(sink))).unwrap();
        let mut cost = None;
        thread::scope(|scope| {
            scope.spawn(|| {
                if list {
                    (0..2).for_each(|_| drop(peer.expect(Request::SetVringNum)));
                    peer.ack(Request::SetVringNum, 0);
                    while untaken(&peer) > 0 {
                        thread::yield_now();
                    }
                    peer.ack(Request::SetVringNum, 0);
                } else {
                    common::answer(&peer, Case::of(Request::GetFeatures), true, true);
                }
            });
            while_time_stands_still(|| {
                cost = Some(cost_of(|| match list {
                    true => {
                        let list =
                            [0, 1].map(|index| Op::SetVringNum(VringState { index, num: 8 }));
                        let submitted = client.submit(&list, Timeout::After(PATIENCE));
                        assert_eq!(submitted.applied, 2);
                    }
                    false => assert_eq!(client.get_features().unwrap(), FEATURES),
                }));
            });
        });
        let cost = cost.unwrap();
        let expected = (1, 1 + usize::from(list), 1);
        assert_eq!((cost.sends, cost.receives, cost.polls), expected, "{list}");
    }
}

struct Nobody;

impl BackendHandler for Nobody {
    fn handles(&self, _: BackendRequest) -> bool {
        false
    }
}

/// It is served by whoever waits, who therefore waits for both sockets.
#[test]
fn an_open_channel_costs_one_poll_more() {
    const ROUND_TRIPS: usize = 10;
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let cost = thread::scope(|scope| {
        let back_end = scope.spawn(|| {
            let channel = peer.expect(Request::SetBackendReqFd);
            peer.ack(Request::SetBackendReqFd, 0);
            for _ in 0..ROUND_TRIPS + 1 {
                common::answer(&peer, Case::of(Request::SetVringNum), true, true);
            }
            channel // which stays open
        });
        client.open_backend_channel(Arc::new(Nobody)).unwrap();
        let request = || (Case::of(Request::SetVringNum).call)(&client).unwrap();
        request();
        let cost = cost_of(|| (0..ROUND_TRIPS).for_each(|_| request()));
        drop(back_end.join().unwrap());
        cost
    });
    let expected = Cost {
        allocations: 0,
        sends: ROUND_TRIPS,
        receives: ROUND_TRIPS,
        polls: ROUND_TRIPS,
        clocks: 3 * ROUND_TRIPS,
    };
    assert_eq!(cost, expected);
}

/// A system call that shows in a trace and does nothing else.
fn mark(name: &str) {
    assert!(std::fs::metadata(name).is_err());
}

/// `c-tests/check_strace.sh` traces this one and counts for itself.
#[test]
fn ten_round_trips_are_ten_sendmsg_and_ten_recvmsg() {
    const ROUND_TRIPS: usize = 10;
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let cost = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUND_TRIPS + 1 {
                common::answer(&peer, Case::of(Request::GetFeatures), true, true);
            }
        });
        assert_eq!(client.get_features().unwrap(), FEATURES);
        mark("/round-trips-begin");
        let cost = cost_of(|| {
            for _ in 0..ROUND_TRIPS {
                assert_eq!(client.get_features().unwrap(), FEATURES);
            }
        });
        mark("/round-trips-end");
        cost
    });
    let expected = Cost {
        allocations: 0,
        sends: ROUND_TRIPS,
        receives: ROUND_TRIPS,
        polls: 0,
        clocks: 2 * ROUND_TRIPS,
    };
    assert_eq!(cost, expected);
}

/// So many sends and receives, where the back-end answers all that there is at once.
#[test]
fn a_list_is_one_send_for_as_much_as_the_window_takes() {
    let _leak = no_fd_leak();
    for (number, reply_ack, sends, receives) in [
        (1, true, 1, 1),
        (64, true, 1, 1),
        // 64, and when half of them are answered, the next 32, and so on.
        (96, true, 2, 2),
        (160, true, 4, 4),
        // One more is the barrier.
        (64, false, 2, 1),
    ] {
        let list: Vec<_> = (0..number)
            .map(|index| Op::SetVringNum(VringState { index, num: 8 }))
            .collect();
        let (client, peer) = adopted(FEATURES, protocol(reply_ack), patient());
        let submit = |timeout| {
            thread::scope(|scope| {
                scope.spawn(|| answer_in_bursts(&peer, list.len(), reply_ack));
                cost_of(|| {
                    let submitted = client.submit(&list, timeout);
                    assert_eq!(submitted.applied, list.len());
                })
            })
        };
        submit(Timeout::Default);
        // A deadline of the whole is one look more, and one for what it leaves to a
        // barrier.
        let whole = 1 + usize::from(!reply_ack);
        for (timeout, whole) in [(Timeout::Default, 0), (Timeout::After(PATIENCE), whole)] {
            let expected = Cost {
                allocations: 0,
                sends,
                receives,
                polls: 0,
                // When it was sent, for the deadline, and how long the answers took;
                // a barrier is a request like others.
                clocks: whole + 3 * receives,
            };
            assert_eq!(
                submit(timeout),
                expected,
                "{number} requests, REPLY_ACK {reply_ack}, {timeout:?}"
            );
        }
    }
}

/// Whoever spins sleeps in no wait, also where answers come in pieces, each of which
/// is sent when all before it has been taken.
#[test]
fn who_spins_never_sleeps_while_the_time_for_it_lasts() {
    let _leak = no_fd_leak();
    for spins in [true, false] {
        let options = Options {
            spin: Duration::from_millis(u64::from(spins)),
            ..patient()
        };
        let list: Vec<_> = (0..160)
            .map(|index| Op::SetVringNum(VringState { index, num: 8 }))
            .collect();
        let (client, peer) = adopted(FEATURES, protocol(true), options);
        let mut waits = [0; 2];
        thread::scope(|scope| {
            scope.spawn(|| {
                answer_in_pieces(&peer, Request::GetFeatures, FEATURES);
                for _ in &list {
                    answer_in_pieces(&peer, Request::SetVringNum, 0);
                }
            });
            while_time_stands_still(|| {
                waits = [
                    counted(&WAITS, || {
                        assert_eq!(client.get_features().unwrap(), FEATURES)
                    }),
                    counted(&WAITS, || {
                        let submitted = client.submit(&list, Timeout::Default);
                        assert_eq!(submitted.applied, list.len());
                    }),
                ];
            });
        });
        match spins {
            true => assert_eq!(waits, [0, 0]),
            // Each piece, at least.
            false => assert!(waits[0] >= 1 && waits[1] >= list.len(), "{waits:?}"),
        }
    }
}

/// Answers as libvhost-user does, header and payload apart, the latter when the
/// former has been read.
fn answer_in_pieces(peer: &Peer, request: Request, value: u64) {
    peer.expect(request);
    let answer = common::message(request.id(), common::REPLY, &value.to_ne_bytes());
    let (header, payload) = answer.split_at(12);
    for piece in [header, payload] {
        peer.send(piece, &[]);
        while untaken(peer) > 0 {
            thread::yield_now();
        }
    }
}

/// How much memory is taken by what was sent and not received.
fn untaken(peer: &Peer) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: it writes one int to its argument, which outlives the call.
    let result = unsafe { libc::ioctl(peer.0.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0);
    bytes
}

/// Takes as many requests as are unanswered at most, answers the older half of them
/// by one message, and so on; at the end all that are left.
fn answer_in_bursts(peer: &Peer, number: usize, reply_ack: bool) {
    if !reply_ack {
        (0..number).for_each(|_| drop(peer.expect(Request::SetVringNum)));
        peer.expect(Request::GetFeatures);
        return peer.ack(Request::GetFeatures, FEATURES);
    }
    let ack = common::message(Request::SetVringNum.id(), common::REPLY, &[0; 8]);
    let (mut received, mut answered) = (0, 0);
    while answered < number {
        while received < number.min(answered + 64) {
            peer.expect(Request::SetVringNum);
            received += 1;
        }
        let last = received == number;
        let burst = if last { received - answered } else { 32 };
        peer.send(&ack.repeat(burst), &[]);
        answered += burst;
    }
}

/// Nothing is traced, never or no longer: it costs what it did before.
#[test]
fn a_trace_that_is_off_costs_nothing() {
    let _leak = no_fd_leak();
    for reply_ack in [false, true] {
        for case in CASES {
            let (client, peer) = ready_for(case.request, reply_ack, patient());
            answered(&client, &peer, case, reply_ack);
            lead_back_to(case.request, reply_ack, &client, &peer);
            let never = answered(&client, &peer, case, reply_ack);
            client.set_trace(Some(Arc::new(|_| {}))).unwrap();
            lead_back_to(case.request, reply_ack, &client, &peer);
            let on = answered(&client, &peer, case, reply_ack);
            client.set_trace(None).unwrap();
            lead_back_to(case.request, reply_ack, &client, &peer);
            let off = answered(&client, &peer, case, reply_ack);
            let context = format!("{:?}, REPLY_ACK {reply_ack}", case.request);
            assert_eq!((never.allocations, off), (0, never), "{context}");
            // Which shows that it was on; it makes no system call of its own.
            assert!(on.allocations > 0, "{context}");
            // But what it calls may take time.
            let without = Cost {
                allocations: 0,
                clocks: never.clocks,
                ..on
            };
            assert_eq!(without, never, "{context}");
            assert_eq!(
                cost_of(|| assert!(client.counters().timeouts == 0)).allocations,
                0
            );
        }
    }
}
