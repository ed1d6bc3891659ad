#![allow(
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::*;
use crate::device::testing::PATIENCE;
use crate::device::{Base, DeviceOptions, Peer, Ring, memfd};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::gettid;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::mpsc::channel;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

const FEATURES: u64 = 1 << 32;
const RAM: u64 = 0x10_0000;
const SIZE: u64 = 0x10_0000;

/// Without a back-end: its rings are wanted all the same.
fn device() -> Arc<Device> {
    let options = DeviceOptions {
        num_rings: 1,
        assume_features: Some(FEATURES),
        ..DeviceOptions::default()
    };
    let device = Device::open(Peer::Fd, options).unwrap();
    device.set_features(FEATURES).unwrap();
    Arc::new(device)
}

fn ram() -> GuestRegion {
    let file = memfd::create(OsStr::new("ram"), SIZE, None, false).unwrap();
    GuestRegion::new(RAM, SIZE, 0, file.as_fd()).unwrap()
}

/// Of a ring that lies in it.
fn start(device: &Device) -> Result<()> {
    let kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
    device.start(&[Ring {
        index: 0,
        size: 16,
        descriptor: RAM,
        available: RAM + 0x1000,
        used: RAM + 0x2000,
        base: Base::New,
        kick: kick.as_fd(),
        call: None,
        err: None,
        indices: None,
    }])
}

/// Whether this thread of ours waits for something.
fn is_asleep(thread: nix::unistd::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    // The name may have anything in it, parentheses too.
    stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().starts_with(" S"))
}

/// A call on a thread of its own, which is done, or waits.
fn begin<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    call: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let (told, tell) = channel();
    let begun = scope.spawn(move || {
        told.send(gettid()).unwrap();
        call()
    });
    let thread = tell.recv_timeout(PATIENCE).unwrap();
    let since = Instant::now();
    while !begun.is_finished() && !is_asleep(thread) {
        assert!(since.elapsed() < PATIENCE);
        thread::yield_now();
    }
    begun
}

/// A removal gets as far as a device that is locked; meanwhile a ring is started on
/// the one before it, in what is to be removed.
#[test]
fn a_ring_starts_before_its_memory_goes_or_not_at_all() {
    let mut members = [device(), device()];
    // Wherever they lie.
    for _ in 0..2 {
        members.reverse();
        let [first, last] = &members;
        let group = MemoryGroup::new();
        group.set_memory(vec![ram()], false).unwrap();
        group.join(first).unwrap();
        group.join(last).unwrap();
        let (removed, started) = thread::scope(|scope| {
            let held = last.lock();
            let removal = begin(scope, || group.remove_memory(RAM, SIZE));
            let start = begin(scope, || start(first));
            drop(held);
            (removal.join().unwrap(), start.join().unwrap())
        });
        let kept = match (&removed, &started) {
            (Ok(()), Err(error)) => {
                assert_eq!(error.kind, Kind::Argument(Errno::EINVAL), "{error}");
                0
            }
            (Err(error), Ok(())) => {
                assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
                1
            }
            _ => panic!("{removed:?}, {started:?}"),
        };
        // And so it is for all of them.
        assert_eq!(group.lock().memory.len(), kept);
        for device in &members {
            assert_eq!(device.lock().wanted.memory.len(), kept);
            device.reset();
            device.set_features(FEATURES).unwrap();
        }
    }
}
