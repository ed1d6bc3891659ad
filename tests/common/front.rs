//! A device for back-ends that move no data: rings and memory that nobody looks at.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use vhost_user_frontend::{
    Base, Device, DeviceOptions, Event, EventKind, Peer, Policy, Region, Ring, RingIndices, Timeout,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Longer than anything takes here, also on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const VERSION_1: u64 = 1 << 32;
pub const PACKED: u64 = 1 << 34;
/// Where memory begins, and how much it is; the rings lie in it.
pub const RAM: u64 = 0x1_0000;
pub const SIZE: u64 = 0x1_0000;
/// Where more is plugged.
pub const PLUGGED: u64 = 0x1_0000_0000;

/// Each request that was made available has been used, the same number in all rings.
struct Indices(Arc<AtomicU16>);

impl RingIndices for Indices {
    fn used(&self) -> Option<u16> {
        Some(self.0.load(Ordering::Relaxed))
    }
    fn available(&self) -> Option<u16> {
        self.used()
    }
}

/// Tries again as soon as it can.
pub fn at_once() -> Policy {
    Policy {
        first_delay: Duration::from_micros(100),
        max_delay: Duration::from_millis(2),
        jitter_percent: 0,
        slow_delay: Duration::from_millis(1),
    }
}

pub fn options(rings: u32) -> DeviceOptions {
    // No deadline wakes a device that waits in vain.
    let patience = Timeout::After(10 * PATIENCE);
    DeviceOptions {
        num_rings: rings,
        reconnect: at_once(),
        quick: patience,
        slow: patience,
        drain: patience,
        stall: 10 * PATIENCE,
        ..DeviceOptions::default()
    }
}

pub fn eventfd() -> OwnedFd {
    let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    // SAFETY: it is open, and nobody else's any more.
    unsafe { OwnedFd::from_raw_fd(fd.into_raw_fd()) }
}

/// A device and what its rings are made of.
pub struct Front {
    pub device: Device,
    memory: File,
    kick: OwnedFd,
    call: OwnedFd,
    used: Arc<AtomicU16>,
    pub events: Vec<Event>,
}

impl Front {
    pub fn new(peer: Peer, options: DeviceOptions) -> Self {
        let memory = File::from(memfd_create(c"memory", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(4 * SIZE).unwrap();
        Self {
            device: Device::open(peer, options).unwrap(),
            memory,
            kick: eventfd(),
            call: eventfd(),
            used: Arc::default(),
            events: Vec::new(),
        }
    }

    /// A region whose content is that of the `n`th part of the file.
    pub fn region(&self, guest_addr: u64, n: u64) -> Region {
        Region::new(guest_addr, SIZE, n * SIZE, self.memory.as_fd()).unwrap()
    }

    pub fn ring(&self, index: u32, size: u32, base: Base) -> Ring<'_> {
        let at = RAM + u64::from(index) * 0x1000;
        Ring {
            index,
            size,
            descriptor: at,
            available: at + 0x800,
            used: at + 0xc00,
            base,
            kick: self.kick.as_fd(),
            call: Some(self.call.as_fd()),
            err: None,
            indices: Some(Arc::new(Indices(Arc::clone(&self.used)))),
        }
    }

    /// The used index of all rings.
    pub fn pretend_used(&self, index: u16) {
        self.used.store(index, Ordering::Relaxed);
    }

    pub fn start(&self, rings: &[u32], base: Base) {
        let rings: Vec<_> = rings.iter().map(|i| self.ring(*i, 64, base)).collect();
        self.device.start(&rings).unwrap();
    }

    /// The driver is there, and has these features.
    pub fn negotiate(&mut self, features: u64) {
        self.until(|front| front.device.info().connected);
        self.device.set_features(features).unwrap();
        self.device
            .set_memory(vec![self.region(RAM, 0)], false)
            .unwrap();
    }

    /// From the connection to rings that run.
    pub fn bring_up(&mut self, features: u64, rings: &[u32]) {
        self.negotiate(features);
        self.start(rings, Base::New);
        self.settle();
    }

    /// Until the back-end has been told all that is wanted.
    pub fn settle(&mut self) {
        self.until(|front| {
            let info = front.device.info();
            info.applied == Some(info.generation)
        });
    }

    pub fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Whether something was written to the call descriptor; it is empty then.
    pub fn take_call(&self) -> bool {
        let mut number = [0; 8];
        nix::unistd::read(&self.call, &mut number).is_ok()
    }

    /// One round of the event loop, which waits for something to happen.
    pub fn turn(&mut self, longest: Duration) {
        let mut fds = [PollFd::new(self.device.notifier(), PollFlags::POLLIN)];
        // Rounded up, so that it does not spin.
        let longest = PollTimeout::try_from(longest + Duration::from_micros(999)).unwrap();
        if poll(&mut fds, longest).unwrap() == 1 {
            self.events.extend(self.device.process().unwrap());
        }
    }

    /// Runs the event loop until this holds.
    pub fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "never: {:?}", self.events);
            self.turn(PATIENCE);
        }
    }

    /// Until this has happened; all events so far are taken.
    pub fn until_event(&mut self, kind: EventKind) -> Event {
        self.until(|front| front.events.iter().any(|event| event.kind == kind));
        let at = self.events.iter().position(|event| event.kind == kind);
        let event = self.events.swap_remove(at.unwrap());
        self.events.clear();
        event
    }
}
