//! How a device gets and keeps a connection, as its caller sees it: the back-off, and
//! what is reported of a back-end that is absent, unfit or crashing.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/device.rs"]
mod device;

use blk_peer::{PATIENCE, Place};
use blk_ring::{GuestMemory, Layout};
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stepper::{Manners, OFFERED, Stepper, Told, early};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{
    self as vuf, BackendProcess, Device, DeviceOptions, Error, EventKind, Kind, MemoryState,
    Passed, Peer, Phase, Policy, ProcessOptions, Region, StopMode, Timeout, code,
};
use vmm::Vmm;

const MS: Duration = Duration::from_millis(1);
const SECOND: u64 = 0x8000_0000;

/// A clock that only the test moves.
#[derive(Clone)]
struct Time(Arc<Mutex<Instant>>);

impl Time {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn of(&self, options: &mut DeviceOptions) {
        let time = self.clone();
        options.clock = Arc::new(move || time.now());
    }
}

fn usual(options: &mut DeviceOptions) {
    early(options);
    options.reconnect = Policy::default();
}

// ---- back-off ----

/// Lets this time pass beside a back-end that hangs up when it takes this request.
fn crash_at(vmm: &mut Vmm, peer: &mut Stepper, time: &Time, fatal: Request, length: Duration) {
    let end = time.now() + length;
    while time.now() < end {
        while peer.step() {
            if peer.is_connected() && peer.log.last().is_some_and(|last| last.0 == fatal) {
                peer.hang_up();
            }
        }
        vmm.process();
        time.pass(MS);
    }
}

#[test]
fn back_end_that_crashes_after_the_handshake_is_retried_ever_more_slowly() {
    for fatal in [
        Request::SetFeatures,
        Request::SetVringKick,
        Request::SetVringEnable,
    ] {
        let time = Time::new();
        let mut vmm = Vmm::new(Layout::Split, 1, |options| {
            usual(options);
            time.of(options);
        });
        let mut peer = Stepper::beside(&vmm, Manners::default());
        vmm.want_all();
        crash_at(&mut vmm, &mut peer, &time, fatal, 10_000 * MS);
        let lost: Vec<_> = vmm
            .events
            .iter()
            .filter(|event| event.kind == EventKind::Lost)
            .collect();
        // 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 and 5 s, each shortened by a quarter at most.
        assert!((5..=9).contains(&lost.len()), "{fatal:?}: {}", lost.len());
        for (number, event) in (1..).zip(&lost) {
            assert_eq!(event.count, number, "{fatal:?}");
        }
        // Once it is well, and has been for a while, the next loss is a first one.
        let none = Request::ResetDevice;
        for (steady, count) in [(4 * MS, lost.len() + 1), (5000 * MS, 1)] {
            vmm.events.clear();
            while !vmm.is_applied() {
                crash_at(&mut vmm, &mut peer, &time, none, MS);
            }
            crash_at(&mut vmm, &mut peer, &time, none, steady);
            peer.hang_up();
            crash_at(&mut vmm, &mut peer, &time, none, 5 * MS);
            let lost = vmm.until(EventKind::Lost);
            assert_eq!(usize::try_from(lost.count).unwrap(), count, "{steady:?}");
        }
    }
}

/// One that refuses a part and runs the rest has worked for a while, too.
#[test]
fn back_end_that_refuses_a_region_is_retried_as_soon_as_a_healthy_one() {
    for (steady, counts) in [(4 * MS, [1, 2, 3]), (5000 * MS, [1, 1, 1])] {
        let time = Time::new();
        let mut vmm = Vmm::new(Layout::Split, 1, |options| {
            usual(options);
            time.of(options);
        });
        let manners = Manners {
            refuses_when: |request, region| {
                request == Request::AddMemReg && region[8..16] == SECOND.to_ne_bytes()
            },
            ..Manners::default()
        };
        let mut peer = Stepper::beside(&vmm, manners);
        let memory = GuestMemory::new(1 << 20);
        let second = Region::new(SECOND, 1 << 20, 0, memory.region().fd).unwrap();
        vmm.want_all();
        vmm.device.add_memory(second).unwrap();
        let none = Request::ResetDevice;
        for count in counts {
            while peer.told.rings.get(&0).is_none_or(|ring| !ring.enabled) {
                crash_at(&mut vmm, &mut peer, &time, none, MS);
            }
            crash_at(&mut vmm, &mut peer, &time, none, steady);
            assert_eq!(vmm.device.memory_state(), MemoryState::Failed);
            peer.hang_up();
            peer.told = Told::default();
            crash_at(&mut vmm, &mut peer, &time, none, 5 * MS);
            assert_eq!(vmm.until(EventKind::Lost).count, count, "{steady:?}");
        }
        assert!(!vmm.is_applied());
        // Of two back-ends that refused it, each has said so once.
        assert_eq!(vmm.count(EventKind::Refused), 2);
    }
}

/// An absence costs no more than it lasts.
#[test]
fn back_end_that_was_absent_is_reconnected_to_as_soon_as_it_is_there() {
    for name in ["sock", "not/yet/there/sock"] {
        let place = Place::new();
        let path = place.file(name);
        let mut vmm = Vmm::reaching(
            place,
            Peer::Path(path.clone()),
            Layout::Split,
            1,
            |options| {
                options.reconnect.first_delay = PATIENCE;
                options.reconnect.max_delay = PATIENCE;
            },
        );
        for _ in 0..3 {
            vmm.device.reconnect();
            vmm.until(EventKind::Retrying);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut peer = Stepper::at(&path, Manners::default());
            let began = Instant::now();
            vmm.until_beside(EventKind::Connected, &mut peer);
            assert!(began.elapsed() < PATIENCE / 8, "{:?}", began.elapsed());
            std::fs::remove_file(&path).unwrap();
            drop(peer);
            vmm.until(EventKind::Lost);
            vmm.events.clear();
        }
        // Nothing wakes the loop while it waits.
        vmm.device.reconnect();
        vmm.until(EventKind::Retrying);
        while vmm.device.process().unwrap().is_some() {}
        let turns = vmm.turns;
        vmm.turn(200 * MS);
        assert_eq!(vmm.turns, turns + 1);
        assert!(vmm.device.process().unwrap().is_none());
    }
}

/// A forked child has copies of all descriptors, and so the watch of an epoll instance may
/// outlive the descriptor.
#[test]
fn nothing_is_watched_any_more_once_there_is_a_connection() {
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        options.reconnect.first_delay = PATIENCE;
        options.reconnect.max_delay = PATIENCE;
    });
    vmm.until(EventKind::Retrying);
    let copies: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let target = std::fs::read_link(&path).ok()?;
            let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
            // SAFETY: at worst it was closed since, and then this fails.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let inotify = target.to_str() == Some("anon_inode:inotify");
            inotify.then(|| fd.try_clone_to_owned().ok()).flatten()
        })
        .collect();
    assert!(!copies.is_empty());
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.until_beside(EventKind::Connected, &mut peer);
    while vmm.turn_beside(&mut peer, usize::MAX, Duration::ZERO) {}
    // What a look has armed, and one event more.
    std::fs::write(vmm.place.file("another"), "").unwrap();
    std::fs::write(vmm.place.file("third"), "").unwrap();
    let idle = !vmm.turn_beside(&mut peer, usize::MAX, 100 * MS);
    assert!(idle, "the device is woken for nothing");
    drop(copies);
}

// ---- timeouts explain themselves ----

const BRIEF: Timeout = Timeout::After(Duration::from_millis(60));
const AMPLE: Timeout = Timeout::After(PATIENCE);

fn errno(errno: Errno) -> i32 {
    -std::io::Error::from(errno).raw_os_error().unwrap()
}

fn assert_says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// A wait of a device whose back-end is served by another thread.
fn wait_beside(
    vmm: &Vmm,
    peer: &mut Stepper,
    wait: impl FnOnce(&Device) -> vuf::Result<()> + Send,
) -> vuf::Result<()> {
    let device = Arc::clone(&vmm.device);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || wait(&device));
        while !waiter.is_finished() {
            if !peer.serve(usize::MAX) {
                std::thread::sleep(MS);
            }
        }
        waiter.join().unwrap()
    })
}

#[test]
fn timeout_names_the_socket_that_does_not_exist_and_counts_the_attempts() {
    let vmm = Vmm::new(Layout::Split, 1, usual);
    let error = vmm.device.wait(Timeout::After(350 * MS)).unwrap_err();
    assert_eq!((error.kind, error.phase), (Kind::TimedOut, Phase::Connect));
    assert_eq!(error.cause, errno(Errno::ENOENT));
    let path = vmm.place.file("sock");
    assert_says(
        &error,
        &[path.to_str().unwrap(), "No such file", " attempts)"],
    );
    assert_says(&error, &["process() was never called"]);
    vmm.device.process().unwrap();
    let error = vmm.device.wait(BRIEF).unwrap_err();
    assert!(!error.message.contains("process()"), "{error}");
}

#[test]
fn timeout_names_the_required_feature_that_is_missing() {
    let features: fn(&mut DeviceOptions) = |options| {
        options.required_features = 1 << 40 | 1 << 9;
        options.device_id = 2;
    };
    let protocol: fn(&mut DeviceOptions) = |options| {
        options.required_protocol_features = ProtocolFeatures::DEVICE_STATE.bits();
    };
    let (ring_reset, flush) = ("VIRTIO_F_RING_RESET (bit 40)", "VIRTIO_BLK_F_FLUSH (bit 9)");
    for (change, request, names) in [
        (features, Request::GetFeatures, &[ring_reset, flush][..]),
        (
            protocol,
            Request::GetProtocolFeatures,
            &["DEVICE_STATE (bit 19)"],
        ),
    ] {
        let vmm = Vmm::new(Layout::Split, 1, |options| {
            options.reconnect = Policy::default();
            change(options);
        });
        let manners = Manners {
            features: 1 << 30 | 1 << 32,
            ..Manners::default()
        };
        let offered = [manners.features, manners.protocol.bits()];
        let mut peer = Stepper::beside(&vmm, manners);
        let error = wait_beside(&vmm, &mut peer, |device| device.wait(BRIEF)).unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut, "{error}");
        assert_eq!(error.cause, code::NOT_NEGOTIATED, "{error}");
        assert_eq!(error.request, Some(request), "{error}");
        assert!(offered.contains(&error.value.unwrap()), "{error}");
        assert_says(&error, names);
        assert_says(&error, &["the next attempt comes in 2"]);
    }
}

#[test]
fn timeout_names_the_request_that_is_unanswered_and_for_how_long() {
    for silent in [Request::GetFeatures, Request::SetVringEnable] {
        let mut vmm = Vmm::new(Layout::Split, 1, usual);
        let manners = Manners {
            silent_from: Some(silent),
            ..Manners::default()
        };
        let mut peer = Stepper::beside(&vmm, manners);
        vmm.want_all();
        let length = Timeout::After(400 * MS);
        let error = wait_beside(&vmm, &mut peer, |device| device.wait(length)).unwrap_err();
        assert_eq!((error.kind, error.cause), (Kind::TimedOut, 0), "{error}");
        assert_eq!(error.request, Some(silent), "{error}");
        assert_eq!(error.phase, Phase::Reply, "{error}");
        let ring = (silent == Request::SetVringEnable).then_some(0);
        assert_eq!(error.ring, ring, "{error}");
        let (_, time) = error.message.split_once("answered for ").unwrap();
        let time: u64 = time.split(' ').next().unwrap().parse().unwrap();
        assert!((200..=2000).contains(&time), "{error}");
    }
}

#[test]
fn timeout_names_the_loss_where_the_back_end_crashes_each_time() {
    let mut vmm = Vmm::new(Layout::Split, 1, usual);
    vmm.want_all();
    let mut peer = Stepper::beside(&vmm, Manners::default());
    // It reads the header of GET_FEATURES, and no more.
    peer.manners.reads = 12;
    let error = wait_beside(&vmm, &mut peer, |device| device.wait(BRIEF)).unwrap_err();
    assert_eq!(error.cause, code::DISCONNECTED, "{error}");
    assert_eq!(error.request, Some(Request::GetFeatures), "{error}");
    assert_says(
        &error,
        &["closed the connection without an answer", "next attempt"],
    );
}

#[test]
fn timeout_of_a_device_that_needs_others_says_what_it_waits_for() {
    let place = Place::new();
    let path = place.file("listening");
    let listening = Peer::Listen {
        path: path.clone(),
        mode: 0o600,
    };
    for (peer, part) in [(listening, path.to_str().unwrap()), (Peer::Fd, "socket")] {
        let device = Device::open(peer, DeviceOptions::default()).unwrap();
        let error = device.set_features(0).unwrap_err();
        assert_eq!(error.kind, Kind::State, "{error}");
        assert_says(&error, &[part, "process() was never called"]);
        let error = device.wait(BRIEF).unwrap_err();
        assert_eq!((error.kind, error.cause), (Kind::TimedOut, 0), "{error}");
        assert_says(&error, &[part]);
    }
}

// ---- failing fast ----

#[test]
fn wait_for_a_usable_back_end_succeeds_once_there_is_one() {
    let vmm = Vmm::new(Layout::Split, 1, |_| {});
    let error = vmm.device.wait_connected(BRIEF).unwrap_err();
    assert_eq!(error.cause, errno(Errno::ENOENT), "{error}");
    let mut peer = Stepper::beside(&vmm, Manners::default());
    wait_beside(&vmm, &mut peer, |device| device.wait_connected(AMPLE)).unwrap();
    assert!(vmm.device.info().connected);
    assert_ne!(vmm.device.info().offered_features & 1 << 32, 0);
    // Nothing is waited for any more, and a loss that was not noticed is no failure.
    vmm.device
        .wait_connected(Timeout::After(Duration::ZERO))
        .unwrap();
    peer.hang_up();
    wait_beside(&vmm, &mut peer, |device| device.wait_connected(AMPLE)).unwrap();
}

#[test]
fn wait_for_a_usable_back_end_fails_at_once_with_the_reason() {
    struct Case {
        change: fn(&mut DeviceOptions),
        manners: fn(&mut Manners),
        kind: Kind,
        request: Request,
    }
    let none: fn(&mut DeviceOptions) = |_| {};
    for case in [
        Case {
            change: |options| options.required_features = 1 << 40,
            manners: |_| {},
            kind: Kind::NotNegotiated,
            request: Request::GetFeatures,
        },
        Case {
            change: none,
            manners: |manners| manners.refuses = Some(Request::SetOwner),
            kind: Kind::Nack,
            request: Request::SetOwner,
        },
        Case {
            change: none,
            manners: |manners| manners.reads = 12,
            kind: Kind::Disconnected,
            request: Request::GetFeatures,
        },
        Case {
            change: |options| options.quick = BRIEF,
            manners: |manners| manners.silent_from = Some(Request::GetFeatures),
            kind: Kind::TimedOut,
            request: Request::GetFeatures,
        },
    ] {
        let vmm = Vmm::new(Layout::Split, 1, |options| {
            options.reconnect = Policy::default();
            (case.change)(options);
        });
        let mut manners = Manners::default();
        (case.manners)(&mut manners);
        let mut peer = Stepper::beside(&vmm, manners);
        // A second call tries again, and does not return the failure of the first.
        for connections in 1..=2 {
            let began = Instant::now();
            let wait = |device: &Device| device.wait_connected(AMPLE);
            let error = wait_beside(&vmm, &mut peer, wait).unwrap_err();
            assert!(began.elapsed() < PATIENCE / 4, "{error}");
            assert_eq!(error.kind, case.kind, "{error}");
            assert_eq!(error.request, Some(case.request), "{error}");
            assert_eq!(peer.connections, connections, "{error}");
        }
        // The device itself keeps trying.
        peer.manners = Manners {
            features: OFFERED | 1 << 40,
            ..Manners::default()
        };
        wait_beside(&vmm, &mut peer, |device| device.wait_connected(AMPLE)).unwrap();
    }
}

#[test]
fn wait_for_a_usable_back_end_fails_at_once_where_the_protocol_is_broken() {
    let vmm = Vmm::new(Layout::Split, 1, |options| {
        options.reconnect = Policy::default()
    });
    let mut peer = Stepper::beside(&vmm, Manners::default());
    let device = Arc::clone(&vmm.device);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || device.wait_connected(AMPLE));
        while !peer.is_connected() {
            peer.step();
        }
        peer.babble();
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(error.kind, Kind::Protocol, "{error}");
    });
}

// ---- what a loss names ----

fn settled_pair() -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 1, usual);
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.want_all();
    vmm.until_applied_beside(&mut peer);
    (vmm, peer)
}

#[test]
fn loss_of_an_idle_connection_names_no_request() {
    let (mut vmm, mut peer) = settled_pair();
    peer.hang_up();
    let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
    assert_eq!(error.kind, Kind::Disconnected);
    assert_eq!(error.request, None, "{error}");
    assert!(!error.message.contains("without an answer"), "{error}");
    // What was acknowledged last is mentioned as a fact, with its time.
    assert_says(&error, &[" ms before, it acknowledged SET_"]);
}

#[test]
fn loss_with_a_request_outstanding_names_that() {
    let (mut vmm, mut peer) = settled_pair();
    vmm.device.set_call(0, None).unwrap();
    vmm.process();
    peer.hang_up();
    let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
    assert_eq!(error.request, Some(Request::SetVringCall), "{error}");
    assert_says(&error, &["without an answer"]);
}

/// A back-end that this process starts and that does not come far.
fn lost_process(script: &str) -> Error {
    let device = Device::open(Peer::Fd, DeviceOptions::default()).unwrap();
    let options = ProcessOptions {
        arguments: ["-c".into(), script.into()].into(),
        passed: Passed::Connected,
        own_arguments: true,
        ..ProcessOptions::default()
    };
    let process = BackendProcess::start(&PathBuf::from("/bin/sh"), &options).unwrap();
    let process = Arc::new(process);
    device.set_process(&process).unwrap();
    let waited = device.wait_connected(AMPLE).unwrap_err();
    let lost = loop {
        let event = device.process().unwrap().expect("no event");
        if event.kind == EventKind::Lost {
            break event;
        }
    };
    let error = lost.error.unwrap();
    assert_eq!(waited.to_string(), error.to_string());
    assert_eq!(lost.peer.map(|peer| peer.pid), Some(process.pid()));
    let pid = process.pid().to_string();
    assert!(
        !script.contains("exit") || error.message.contains(&pid),
        "{error}"
    );
    error
}

#[test]
fn process_that_exits_at_once_is_reported_with_its_status() {
    let error = lost_process("exit 7");
    assert_eq!((error.kind, error.value), (Kind::Disconnected, Some(7)));
    assert_says(&error, &["exited with status 7"]);
    let error = lost_process("kill -SEGV $$; exit 1");
    assert_says(&error, &["killed by signal 11"]);
    // Its end comes a moment after that of its connection.
    let error = lost_process("exec 3>&-; sleep 0.02; exit 3");
    assert_says(&error, &["exited with status 3"]);
}

#[test]
fn process_that_only_hangs_up_is_a_closed_connection() {
    let error = lost_process("exec 3>&-; sleep 5");
    assert_eq!(error.value, None);
    assert_says(&error, &["closed the connection"]);
}

#[test]
fn wait_for_a_stop_is_explained() {
    let (vmm, mut peer) = settled_pair();
    peer.manners.silent_from = Some(Request::GetVringBase);
    vmm.device.stop(None, StopMode::Drain);
    let quiet = |device: &Device| match device.wait_quiet(BRIEF).quiesced {
        true => Ok(()),
        false => device.wait(Timeout::After(Duration::ZERO)),
    };
    let error = wait_beside(&vmm, &mut peer, quiet).unwrap_err();
    assert_eq!(error.request, Some(Request::GetVringBase), "{error}");
    assert_eq!(error.ring, Some(0), "{error}");
}
