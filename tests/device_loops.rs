//! Event loops and threads: whoever waits is woken, nobody is woken for nothing,
//! many devices do not wait for one, and any of them may be dropped at any time.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/device.rs"]
mod device;

use blk_peer::{PATIENCE, Place, deadline};
use blk_ring::{GuestMemory, Layout};
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, gettid};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stepper::{Manners, OFFERED, Stepper};
use vhost_user_frontend::message::{Iotlb, ProtocolFeatures, Request, iotlb};
use vhost_user_frontend::{
    Base, Device, DeviceOptions, EventKind, Kind, Peer, Region, Ring, StopMode, Timeout, TraceSink,
};
use vmm::{FEATURES, Random, Vmm};

/// Descriptors are counted, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Whether there is something to do, or comes up within this time.
fn is_ready(device: &Device, longest: Duration) -> bool {
    let mut fds = [PollFd::new(device.notifier(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(longest).unwrap()).unwrap() > 0
}

fn eager(options: &mut DeviceOptions) {
    options.assume_features = Some(OFFERED);
    options.reconnect.first_delay = Duration::from_micros(10);
}

/// All done, and nobody to be woken.
fn applied() -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 2, eager);
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.want_all();
    vmm.until_applied_beside(&mut peer);
    vmm.events.clear();
    (vmm, peer)
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

fn plugged() -> Region {
    let memory = GuestMemory::new(1 << 20);
    Region::new(0x8000_0000, 1 << 20, 0, memory.region().fd).unwrap()
}

// ---- waking ----

#[test]
fn a_call_from_another_thread_wakes_the_loop() {
    let _alone = alone();
    type Call = fn(&Device);
    let calls: [(&str, Call); 6] = [
        ("set_call", |it| {
            it.set_call(1, Some(eventfd().as_fd())).unwrap();
        }),
        ("add_memory", |it| it.add_memory(plugged()).unwrap()),
        ("stop", |it| _ = it.stop(Some(&[1]), StopMode::Drain)),
        ("write_config", |it| it.write_config(3, &[9]).unwrap()),
        ("reset", |it| _ = it.reset()),
        ("abandon", |it| _ = it.stop(None, StopMode::Abandon)),
    ];
    let (mut vmm, mut peer) = applied();
    for (name, call) in calls {
        assert!(!is_ready(&vmm.device, Duration::ZERO), "before {name}");
        let device = Arc::clone(&vmm.device);
        let told = peer.log.len();
        thread::scope(|scope| {
            scope.spawn(|| call(&device));
            assert!(is_ready(&device, PATIENCE), "{name}");
        });
        if name != "abandon" {
            vmm.until_applied_beside(&mut peer);
            assert!(peer.log.len() > told, "{name}");
        }
        vmm.events.clear();
    }
    vmm.until_beside(EventKind::Connected, &mut peer);
}

/// A thread that waits takes in what happens, and leaves the news of it for the loop.
#[test]
fn an_event_that_another_thread_has_queued_wakes_the_loop() {
    let _alone = alone();
    let (mut vmm, mut peer) = applied();
    let device = Arc::clone(&vmm.device);
    device.set_call(1, Some(eventfd().as_fd())).unwrap();
    thread::scope(|scope| {
        // Nobody answers, so that it goes on waiting.
        let waiter = scope.spawn(|| device.wait(Timeout::After(PATIENCE)));
        peer.hang_up();
        let deadline = deadline();
        while device.info().connected {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        // This thread has driven nothing, and the socket is gone.
        assert!(is_ready(&device, Duration::ZERO));
        vmm.until(EventKind::Lost);
        vmm.until_applied_beside(&mut peer);
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn a_socket_and_a_wish_to_connect_wake_the_loop() {
    let _alone = alone();
    let mut vmm = Vmm::reaching(Place::new(), Peer::Fd, Layout::Split, 1, eager);
    vmm.until(EventKind::NeedsFd);
    assert!(!is_ready(&vmm.device, Duration::from_millis(20)));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = Arc::clone(&vmm.device);
    thread::scope(|scope| {
        scope.spawn(|| device.set_fd(ours.into()).unwrap());
        assert!(is_ready(&device, PATIENCE));
    });
    let mut peer = Stepper::on(theirs, Manners::default());
    vmm.until_beside(EventKind::Connected, &mut peer);

    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        options.reconnect.first_delay = Duration::from_secs(3600);
        options.reconnect.max_delay = Duration::from_secs(3600);
    });
    vmm.until(EventKind::Retrying);
    assert!(!is_ready(&vmm.device, Duration::from_millis(20)));
    let device = Arc::clone(&vmm.device);
    thread::scope(|scope| {
        scope.spawn(|| device.reconnect());
        assert!(is_ready(&device, PATIENCE));
    });
    vmm.until(EventKind::Retrying);
}

/// Whether this thread of ours waits for something.
fn is_asleep(thread: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    // The name may have anything in it, parentheses too.
    stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().starts_with(" S"))
}

fn until_asleep(thread: Pid) {
    let patience = deadline();
    while !is_asleep(thread) {
        assert!(Instant::now() < patience);
        thread::yield_now();
    }
}

/// Serves the back-end on a thread of its own.
fn serving(mut peer: Stepper, stop: &AtomicBool) -> Stepper {
    while !stop.load(Ordering::Relaxed) {
        let mut fds: Vec<_> = peer
            .descriptors()
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        poll(&mut fds, 5_u8).unwrap();
        drop(fds);
        peer.serve(usize::MAX);
    }
    peer
}

/// What arms the descriptor again must not forget why it was ready.
#[test]
fn what_is_posted_hides_nothing_that_is_wanted() {
    const PLATFORM: u64 = 1 << 33;
    let _alone = alone();
    let features = OFFERED | PLATFORM;
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        eager(options);
        options.assume_features = Some(features);
    });
    let manners = Manners {
        features,
        ..Manners::default()
    };
    let mut peer = Stepper::beside(&vmm, manners);
    vmm.device.set_features(FEATURES | PLATFORM).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    assert!(!is_ready(&vmm.device, Duration::ZERO));
    let update = Iotlb {
        iova: 0,
        size: 4096,
        user_addr: vmm.region_addr(),
        perm: 3,
        kind: iotlb::UPDATE,
        padding: [0; 6],
    };
    vmm.device.write_config(3, &[9]).unwrap();
    vmm.device.post_iotlb(&update).unwrap();
    assert!(is_ready(&vmm.device, Duration::ZERO));
}

/// One thread waits for quiet, another sees that the back-end is gone, and nothing
/// happens after that.
#[test]
fn a_wait_for_quiet_ends_whoever_saw_it() {
    let _alone = alone();
    let (brief, long) = (Duration::from_millis(20), Duration::from_secs(3600));
    for round in 0..30 {
        let mut vmm = Vmm::new(Layout::Split, 1, |options| {
            eager(options);
            (options.quick, options.slow) = (Timeout::After(brief), Timeout::After(brief));
            options.fence = Timeout::After(long);
            (options.reconnect.first_delay, options.reconnect.max_delay) = (long, long);
        });
        let mut peer = Stepper::beside(&vmm, Manners::default());
        vmm.want_all();
        vmm.until_applied_beside(&mut peer);
        vmm.device.set_call(0, None).unwrap();
        vmm.until(EventKind::Lost);
        assert!(!vmm.device.quiet().quiesced);
        let device = Arc::clone(&vmm.device);
        let (told, tell) = channel();
        thread::scope(|scope| {
            let waiter = scope.spawn(move || {
                told.send(gettid()).unwrap();
                device.wait_quiet(Timeout::After(PATIENCE))
            });
            until_asleep(tell.recv().unwrap());
            peer.hang_up();
            while !vmm.device.quiet().quiesced {
                vmm.process();
            }
            let since = Instant::now();
            assert!(waiter.join().unwrap().quiesced);
            assert!(since.elapsed() < PATIENCE / 2, "round {round}");
        });
    }
}

/// One thread waits, another runs the event loop and takes the bytes away.
#[test]
fn a_wait_ends_whoever_did_the_work() {
    let _alone = alone();
    for round in 0..60 {
        let mut vmm = Vmm::new(Layout::Split, 2, eager);
        let peer = Stepper::beside(&vmm, Manners::default());
        vmm.want_all();
        let stop = AtomicBool::new(false);
        let device = Arc::clone(&vmm.device);
        thread::scope(|scope| {
            let peer = scope.spawn(|| serving(peer, &stop));
            let waiters: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| device.wait(Timeout::After(PATIENCE))))
                .collect();
            // It stops in the middle, or does all of it.
            for _ in 0..round {
                vmm.turn(Duration::from_millis(1));
            }
            for waiter in waiters {
                waiter.join().unwrap().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            let peer = peer.join().unwrap();
            assert_eq!(peer.told.running(), [0, 1]);
            assert_eq!(peer.wrong, Vec::<String>::new());
        });
        assert!(vmm.is_applied());
        // What happened meanwhile was kept.
        vmm.until(EventKind::Applied);
        assert_eq!(vmm.count(EventKind::Connected), 1);
    }
}

/// Another thread is at it again and again, and stops at any moment: the one that
/// waits takes over.
#[test]
fn a_wait_takes_over() {
    let _alone = alone();
    let mut random = Random::new();
    let (vmm, peer) = applied();
    let stop = AtomicBool::new(false);
    let device = &vmm.device;
    thread::scope(|scope| {
        let peer = scope.spawn(|| serving(peer, &stop));
        for round in 0..1000 {
            let calls = random.below(60);
            device.set_call(1, Some(vmm.rings[1].call.as_fd())).unwrap();
            let other = scope.spawn(move || {
                for _ in 0..calls {
                    device.process().unwrap();
                }
            });
            let since = Instant::now();
            device.wait(Timeout::After(PATIENCE)).unwrap();
            // It looks again at its deadline, too.
            assert!(since.elapsed() < PATIENCE / 2, "round {round}");
            other.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(peer.join().unwrap().wrong, Vec::<String>::new());
    });
}

/// A wait that is under way takes part in what is asked for later.
#[test]
fn a_wait_sees_what_is_wanted_meanwhile() {
    let _alone = alone();
    let (vmm, peer) = applied();
    let stop = AtomicBool::new(false);
    let device = Arc::clone(&vmm.device);
    thread::scope(|scope| {
        let peer = scope.spawn(|| serving(peer, &stop));
        for index in 0..50 {
            let call = eventfd();
            device.set_call(index % 2, Some(call.as_fd())).unwrap();
            let other = scope.spawn(|| {
                device.set_call(1, Some(eventfd().as_fd())).unwrap();
                device.wait(Timeout::After(PATIENCE)).unwrap();
            });
            device.wait(Timeout::After(PATIENCE)).unwrap();
            other.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let peer = peer.join().unwrap();
        // Some came too late to be told apart, none is left out.
        assert!(peer.count(Request::SetVringCall) >= 52);
        assert_eq!(peer.wrong, Vec::<String>::new());
    });
    assert!(vmm.is_applied());
}

// ---- not waking ----

/// Nothing is done where there is nothing to do: there is no thread to do it, and
/// the loop is not woken.
#[test]
fn an_idle_device_is_idle() {
    let _alone = alone();
    let second = Duration::from_secs(1);
    let (vmm, _peer) = applied();
    let supplied = Vmm::reaching(Place::new(), Peer::Fd, Layout::Split, 1, |_| {});
    let place = Place::new();
    let path = place.file("sock");
    let listen = Peer::Listen { path, mode: 0o600 };
    let listening = Vmm::reaching(place, listen, Layout::Split, 1, |_| {});
    let away = Vmm::new(Layout::Split, 1, |options| {
        options.reconnect.first_delay = Duration::from_secs(3600);
        options.reconnect.max_delay = Duration::from_secs(3600);
    });
    let all = [&vmm, &supplied, &listening, &away];
    for it in &all[1..] {
        while is_ready(&it.device, Duration::ZERO) {
            it.device.process().unwrap();
        }
    }
    let mut fds = all.map(|it| PollFd::new(it.device.notifier(), PollFlags::POLLIN));
    let woken = poll(&mut fds, PollTimeout::try_from(second).unwrap()).unwrap();
    assert_eq!(woken, 0, "{fds:?}");
}

/// A back-end that hangs is not asked again and again, nor is one that is fenced.
#[test]
fn a_silent_back_end_does_not_keep_the_loop_awake() {
    let _alone = alone();
    let manners = Manners {
        silent_from: Some(Request::SetVringKick),
        ..Manners::default()
    };
    let mut vmm = Vmm::new(Layout::Split, 2, |options| {
        eager(options);
        options.stall = Duration::from_millis(5);
        (options.quick, options.slow) = (
            Timeout::After(Duration::from_millis(50)),
            Timeout::After(Duration::from_millis(50)),
        );
        options.fence = Timeout::After(Duration::from_millis(50));
    });
    let mut peer = Stepper::beside(&vmm, manners);
    vmm.want_all();
    vmm.until_beside(EventKind::Stalled, &mut peer);
    // Nobody serves it from here on.
    let (mut woken, end) = (0, Instant::now() + Duration::from_millis(400));
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        if is_ready(&vmm.device, left) {
            vmm.process();
            woken += 1;
        }
    }
    assert_eq!(vmm.count(EventKind::Lost), 1);
    assert_eq!(vmm.count(EventKind::Unfenced), 1);
    assert!(woken <= 12, "{woken}");
}

/// A device that is connected, and has done all that it was to.
fn idle(config_size: u32) -> (Device, Stepper, Place) {
    let place = Place::new();
    let mut options = vmm::options(1);
    options.config_size = config_size;
    let mut peer = Stepper::at(&place.file("sock"), Manners::default());
    let device = Device::open(Peer::Path(place.file("sock")), options).unwrap();
    let patience = deadline();
    while !(device.info().connected && is_applied(&device)) {
        assert!(Instant::now() < patience);
        peer.serve(usize::MAX);
        if is_ready(&device, Duration::from_millis(1)) {
            device.process().unwrap();
        }
    }
    while is_ready(&device, Duration::ZERO) {
        device.process().unwrap();
    }
    (device, peer, place)
}

/// More than one step takes: the rest has been read, so that no socket tells of it.
#[test]
fn what_was_read_on_the_channel_and_not_done_wakes_the_loop() {
    const NEWS: u32 = 150;
    let _alone = alone();
    let (device, peer, _place) = idle(60);
    assert!(peer.told.channel.is_some());
    for _ in 0..NEWS {
        peer.config_changed();
    }
    while is_ready(&device, Duration::ZERO) {
        device.process().unwrap();
    }
    let served = device.counters().unwrap().backend_requests_served;
    assert_eq!(served, u64::from(NEWS));
}

/// What it waits with, its socket, and its channel if it has one.
#[test]
fn an_idle_device_holds_few_descriptors() {
    let _alone = alone();
    for (config_size, channel, expected) in [(0, false, 4), (60, true, 5)] {
        let (device, peer, _place) = idle(config_size);
        assert_eq!(peer.told.channel.is_some(), channel);
        let before = open_fds();
        device.wait(Timeout::Default).unwrap();
        assert_eq!(open_fds(), before, "after a thread has waited");
        drop(device);
        assert_eq!(before - open_fds(), expected);
    }
}

// ---- many ----

/// One of many: a device with a ring of its own in memory that all share.
struct One {
    device: Device,
    peer: Stepper,
    calls: u32,
}

fn one(memory: &GuestMemory, kick: &EventFd) -> One {
    let mut options = vmm::options(1);
    eager(&mut options);
    options.config_size = 0;
    let device = Device::open(Peer::Fd, options).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    device.set_fd(ours.into()).unwrap();
    device.set_features(FEATURES).unwrap();
    let region = memory.region();
    let (at, size) = (region.region.guest_addr, region.region.size);
    let region = Region::new(at, size, 0, region.fd).unwrap();
    device.set_memory(vec![region], false).unwrap();
    let ring = Ring {
        index: 0,
        size: 64,
        descriptor: at,
        available: at + 4096,
        used: at + 8192,
        base: Base::New,
        kick: kick.as_fd(),
        call: None,
        err: None,
        indices: None,
    };
    device.start(&[ring]).unwrap();
    let protocol = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let manners = Manners {
        protocol,
        ..Manners::default()
    };
    One {
        device,
        peer: Stepper::on(theirs, manners),
        calls: 0,
    }
}

fn is_applied(device: &Device) -> bool {
    let info = device.info();
    info.applied == Some(info.generation)
}

/// Rounds of one loop in which whoever is ready has one call.
fn run(all: &mut [One], silent: Option<usize>) {
    let patience = deadline();
    while all
        .iter()
        .enumerate()
        .any(|(index, it)| Some(index) != silent && !is_applied(&it.device))
    {
        assert!(Instant::now() < patience);
        for (index, it) in all.iter_mut().enumerate() {
            if Some(index) != silent {
                it.peer.serve(usize::MAX);
            }
            if is_ready(&it.device, Duration::ZERO) {
                it.device.process().unwrap();
                it.calls += u32::from(!is_applied(&it.device));
            }
        }
    }
}

#[test]
fn one_that_hangs_delays_nobody() {
    let _alone = alone();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16384), hard).unwrap();
    let memory = GuestMemory::new(1 << 20);
    let kick = eventfd();
    let mut single = [one(&memory, &kick)];
    run(&mut single, None);
    let alone = single[0].calls;
    assert!((3..50).contains(&alone), "{alone}");
    // As many as an ordinary user has descriptors for, of which one takes a dozen.
    let many = usize::try_from(hard.min(16384) / 24).unwrap().min(256);
    let silent = many / 2;
    println!("{many} devices");
    let mut all: Vec<_> = (0..many).map(|_| one(&memory, &kick)).collect();
    run(&mut all, Some(silent));
    for (index, it) in all.iter().enumerate() {
        if index != silent {
            assert_eq!(it.peer.told.running(), [0]);
            assert!(it.calls <= alone + 2, "{index}: {} {alone}", it.calls);
        }
    }
    assert!(!all[silent].device.info().connected);
    assert!(all[silent].calls <= alone + 2);
}

// ---- the trace ----

/// The caller frees what the function used, as soon as it is not set any more.
#[test]
fn the_trace_of_a_connection_that_is_over_is_not_told_later() {
    let _alone = alone();
    let (vmm, _peer) = applied();
    let device = &vmm.device;
    let (inside, entered) = (Arc::new(AtomicBool::new(false)), Barrier::new(2));
    let (entered, first) = (Arc::new(entered), AtomicBool::new(true));
    let sink: TraceSink = {
        let (inside, entered) = (Arc::clone(&inside), Arc::clone(&entered));
        Arc::new(move |_| {
            inside.store(true, Ordering::SeqCst);
            if first.swap(false, Ordering::SeqCst) {
                entered.wait();
                entered.wait();
            }
            inside.store(false, Ordering::SeqCst);
        })
    };
    device.set_trace(Some(sink)).unwrap();
    device.set_call(0, None).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| device.process().unwrap());
        entered.wait();
        // That function is at it; the connection ends meanwhile.
        device.stop(None, StopMode::Abandon);
        let (told, tell) = channel();
        let other = scope.spawn({
            let inside = Arc::clone(&inside);
            move || {
                told.send(gettid()).unwrap();
                device.set_trace(None).unwrap();
                inside.load(Ordering::SeqCst)
            }
        });
        let thread = tell.recv().unwrap();
        while !other.is_finished() && !is_asleep(thread) {
            thread::yield_now();
        }
        entered.wait();
        assert!(!other.join().unwrap(), "it still ran");
    });
}

/// A call that fails has done nothing.
#[test]
fn the_trace_cannot_be_changed_by_itself() {
    let _alone = alone();
    let (mut vmm, mut peer) = applied();
    let (seen, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let sink: TraceSink = {
        let (seen, refused) = (Arc::clone(&seen), Arc::clone(&refused));
        let device = Arc::downgrade(&vmm.device);
        Arc::new(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
            let error = device.upgrade().unwrap().set_trace(None).unwrap_err();
            assert_eq!(error.kind, Kind::State);
            refused.fetch_add(1, Ordering::SeqCst);
        })
    };
    vmm.device.set_trace(Some(sink)).unwrap();
    vmm.device.set_call(0, None).unwrap();
    vmm.until_applied_beside(&mut peer);
    let before = seen.load(Ordering::SeqCst);
    assert!(before >= 2, "{before}");
    // It is set on the next connection as well.
    peer.hang_up();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    let all = seen.load(Ordering::SeqCst);
    assert!(all > before + 10, "{before} {all}");
    assert_eq!(refused.load(Ordering::SeqCst), all);
    vmm.device.set_trace(None).unwrap();
}

/// One of two that set a trace is held up while it tells what was left to tell; the
/// other does not overtake it.
#[test]
fn of_two_that_set_a_trace_one_is_told_everywhere() {
    let _alone = alone();
    let (mut vmm, mut peer) = applied();
    let device = Arc::clone(&vmm.device);
    let (entered, calls) = (Arc::new(Barrier::new(2)), AtomicUsize::new(0));
    let before: TraceSink = {
        let entered = Arc::clone(&entered);
        Arc::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
            // The rest waits for whoever comes next.
            0 => panic!("as it is meant to"),
            1 => {
                entered.wait();
                entered.wait();
            }
            _ => {}
        })
    };
    device.set_trace(Some(before)).unwrap();
    device.set_call(0, None).unwrap();
    device.write_config(3, &[9]).unwrap();
    let process = std::panic::AssertUnwindSafe(|| device.process());
    std::panic::catch_unwind(process).unwrap_err();
    let told = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let sink = |of: usize| -> TraceSink {
        let told = Arc::clone(&told[of]);
        Arc::new(move |_| {
            told.fetch_add(1, Ordering::SeqCst);
        })
    };
    let (first, second) = (sink(0), sink(1));
    thread::scope(|scope| {
        scope.spawn(|| device.set_trace(Some(first)).unwrap());
        entered.wait();
        let (tell, thread) = channel();
        let other = scope.spawn({
            let device = &device;
            move || {
                tell.send(gettid()).unwrap();
                device.set_trace(Some(second)).unwrap();
            }
        });
        let thread = thread.recv().unwrap();
        while !other.is_finished() && !is_asleep(thread) {
            thread::yield_now();
        }
        entered.wait();
    });
    let who = || {
        told.each_ref()
            .map(|told| told.swap(0, Ordering::SeqCst) > 0)
    };
    vmm.until_applied_beside(&mut peer);
    let here = who();
    peer.hang_up();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!([here, who()], [[false, true]; 2]);
    vmm.device.set_trace(None).unwrap();
}

// ---- dropping ----

#[test]
fn it_is_dropped_at_any_message() {
    let _alone = alone();
    let all = applied().1.taken;
    let before = open_fds();
    for at in 0..=all {
        let mut vmm = Vmm::new(Layout::Split, 2, eager);
        let mut peer = Stepper::beside(&vmm, Manners::default());
        vmm.want_all();
        vmm.until_taken(&mut peer, at);
        drop(vmm);
        let patience = deadline();
        while peer.serve(usize::MAX) || peer.is_connected() {
            assert!(Instant::now() < patience, "it is still there after {at}");
        }
        assert_eq!(peer.wrong, Vec::<String>::new());
        drop(peer);
        assert_eq!(open_fds(), before, "after {at}");
    }
}

#[test]
fn it_is_dropped_in_any_state() {
    let _alone = alone();
    let before = open_fds();
    for unfenced in [false, true] {
        // While the back-end of before is being shut out, and after that.
        let mut vmm = Vmm::new(Layout::Split, 2, |options| {
            eager(options);
            options.quick = Timeout::After(Duration::from_millis(20));
            if unfenced {
                options.fence = options.quick;
            }
        });
        let mut peer = Stepper::beside(&vmm, Manners::default());
        vmm.want_all();
        vmm.until_applied_beside(&mut peer);
        vmm.device.set_call(0, None).unwrap();
        vmm.until(EventKind::Lost);
        if unfenced {
            vmm.until(EventKind::Unfenced);
        }
        drop((vmm, peer));
        assert_eq!(open_fds(), before);
    }
    let place = Place::new();
    let path = place.file("sock");
    let listen = Peer::Listen {
        path: path.clone(),
        mode: 0o600,
    };
    let vmm = Vmm::reaching(place, listen, Layout::Split, 1, |_| {});
    let waiting = UnixStream::connect(&path).unwrap();
    drop((vmm, waiting));
    assert_eq!(open_fds(), before);
    let vmm = Vmm::reaching(Place::new(), Peer::Fd, Layout::Split, 1, |_| {});
    let (ours, theirs) = UnixStream::pair().unwrap();
    vmm.device.set_fd(ours.into()).unwrap();
    drop((vmm, theirs));
    assert_eq!(open_fds(), before);
}

// ---- no descriptor is free ----

/// While this lives no descriptor can be opened.
struct NoneFree {
    limits: (u64, u64),
    /// What takes all numbers below the limit.
    _holes: Vec<File>,
}

impl NoneFree {
    fn new() -> Self {
        const LIMIT: u64 = 200;
        let limits = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, LIMIT, limits.1).unwrap();
        let holes = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        Self {
            limits,
            _holes: holes,
        }
    }
}

impl Drop for NoneFree {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.limits.0, self.limits.1).unwrap();
    }
}

/// Nothing is left to keep the connection with; that must not mean that nobody is
/// waited for.
#[test]
fn who_may_still_write_is_waited_for_without_a_free_descriptor() {
    let _alone = alone();
    let brief = Timeout::After(Duration::from_millis(50));
    let mut vmm = Vmm::new(Layout::Split, 2, |options| {
        eager(options);
        (options.quick, options.slow, options.fence) = (brief, brief, brief);
    });
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.want_all();
    vmm.until_applied_beside(&mut peer);
    let call = vmm.rings[0].call.as_fd().try_clone_to_owned().unwrap();
    peer.manners.silent_from = Some(Request::SetVringCall);
    vmm.device.set_call(0, Some(call.as_fd())).unwrap();
    let none = NoneFree::new();
    // Nobody serves it meanwhile.
    vmm.until(EventKind::Lost);
    vmm.until(EventKind::Unfenced);
    assert!(!vmm.device.quiet().quiesced);
    drop(none);
    peer.hang_up();
    peer.manners.silent_from = None;
    vmm.until_beside(EventKind::Fenced, &mut peer);
    vmm.until_applied_beside(&mut peer);
}

#[test]
fn what_cannot_be_kept_is_told_as_that() {
    let _alone = alone();
    let (vmm, _peer) = applied();
    let call = vmm.rings[0].call.as_fd().try_clone_to_owned().unwrap();
    let none = NoneFree::new();
    let error = vmm.device.set_call(0, Some(call.as_fd())).unwrap_err();
    drop(none);
    assert_eq!(error.kind, Kind::Os(Errno::EMFILE), "{error}");
}
