//! Several devices with one list of memory.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/blk_peer.rs"]
mod blk_peer;
#[path = "common/blk_ring.rs"]
mod blk_ring;
#[path = "common/vmm.rs"]
mod vmm;

use blk_peer::{PATIENCE, Peer as BlkPeer};
use blk_ring::{GuestMemory, Layout};
use nix::errno::Errno;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_user_frontend::{
    Base, Device, EventKind, Kind, MemoryGroup, MemoryState, Peer, Region, Timeout,
};
use vmm::{FEATURES, Vmm};

const PLUGGED: u64 = 0x8000_0000;
const SIZE: u64 = 1 << 20;

/// Another region than that of the rings.
fn plugged() -> Region {
    let memory = GuestMemory::new(SIZE);
    Region::new(PLUGGED, SIZE, 0, memory.region().fd).unwrap()
}

fn patience() -> Timeout {
    Timeout::After(PATIENCE)
}

#[test]
fn all_get_what_is_plugged_and_one_that_is_gone_holds_up_nobody() {
    let mut vmms: Vec<_> = (0..3).map(|_| Vmm::new(Layout::Split, 1, |_| {})).collect();
    let mut peers: Vec<_> = vmms[..2]
        .iter()
        .map(|vmm| BlkPeer::start(&vmm.place, &[]))
        .collect();
    // All see the same memory; the rings of the first lie in it.
    let group = MemoryGroup::new();
    let ram = vmms[0].region();
    group.set_memory(vec![ram], false).unwrap();
    for vmm in &vmms {
        group.join(&vmm.device).unwrap();
    }
    let again = group.join(&vmms[0].device).unwrap_err();
    assert_eq!(again.kind, Kind::State);
    for vmm in &mut vmms[..2] {
        vmm.until(EventKind::Connected);
        vmm.device.set_features(vmm.features()).unwrap();
    }
    assert!(group.wait(patience()).unwrap());
    let states =
        |vmms: &[Vmm]| -> Vec<_> { vmms.iter().map(|vmm| vmm.device.memory_state()).collect() };
    let (applied, absent) = (MemoryState::Applied, MemoryState::Absent);
    assert_eq!(states(&vmms), [applied, applied, absent]);

    vmms[0].start(Base::New);
    vmms[0].until_applied();
    for _ in 0..20 {
        group.add_memory(plugged()).unwrap();
        assert!(group.wait(patience()).unwrap());
        assert_eq!(states(&vmms), [applied, applied, absent]);
        group.remove_memory(PLUGGED, SIZE).unwrap();
        assert!(group.wait(patience()).unwrap());
        assert_eq!(states(&vmms), [applied, applied, absent]);
        vmms[0].fill(0);
        vmms[0].until_done();
    }
    vmms[0].check();

    // What a running ring needs goes away for none of them.
    let (at, size) = (0x10_0000, SIZE);
    let error = group.remove_memory(at, size).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
    assert_eq!(states(&vmms), [applied, applied, absent]);

    // One dies; the plug goes on, and reaches it when it is back.
    peers[1].kill();
    group.add_memory(plugged()).unwrap();
    assert!(group.wait(patience()).unwrap());
    assert_eq!(states(&vmms), [applied, absent, absent]);
    peers[1] = BlkPeer::start(&vmms[1].place, &[]);
    vmms[1].until(EventKind::Connected);
    vmms[1].until_applied();
    assert_eq!(states(&vmms), [applied, applied, absent]);

    // Who leaves keeps what it has.
    group.leave(&vmms[1].device);
    group.remove_memory(PLUGGED, SIZE).unwrap();
    assert!(group.wait(patience()).unwrap());
    group.join(&vmms[1].device).unwrap();
    assert!(group.wait(patience()).unwrap());
    assert_eq!(states(&vmms), [applied, applied, absent]);
}

#[test]
fn a_back_end_that_says_nothing_is_pending() {
    let mut vmm = Vmm::new(Layout::Split, 1, |_| {});
    let mut peer = BlkPeer::start(&vmm.place, &[]);
    let group = MemoryGroup::new();
    group.set_memory(vec![vmm.region()], false).unwrap();
    group.join(&vmm.device).unwrap();
    vmm.until(EventKind::Connected);
    vmm.device.set_features(vmm.features()).unwrap();
    assert!(group.wait(patience()).unwrap());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(peer.0.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGSTOP,
    )
    .unwrap();
    group.add_memory(plugged()).unwrap();
    group.remove_memory(PLUGGED, SIZE).unwrap();
    group.add_memory(plugged()).unwrap();
    let soon = Timeout::After(Duration::from_millis(50));
    assert!(!group.wait(soon).unwrap());
    assert_eq!(vmm.device.memory_state(), MemoryState::Pending);
    peer.kill();
    assert!(group.wait(patience()).unwrap());
    assert_eq!(vmm.device.memory_state(), MemoryState::Absent);
}

/// A device whose back-end takes the connection and says nothing, ever; and its end
/// of the connection.
fn silent() -> (Arc<Device>, UnixStream) {
    let mut options = vmm::options(1);
    options.assume_features = Some(FEATURES);
    options.quick = Timeout::After(10 * PATIENCE);
    let device = Device::open(Peer::Fd, options).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    device.set_fd(ours.into()).unwrap();
    device.set_features(FEATURES).unwrap();
    (Arc::new(device), theirs)
}

/// Nobody else does anything for any of them.
#[test]
fn one_that_says_nothing_does_not_hold_up_those_behind_it() {
    let vmm = Vmm::new(Layout::Split, 1, |options| {
        options.assume_features = Some(FEATURES);
    });
    let _peer = BlkPeer::start(&vmm.place, &[]);
    vmm.device.set_features(FEATURES).unwrap();
    let (first, theirs) = silent();
    let group = MemoryGroup::new();
    group.set_memory(vec![vmm.region()], false).unwrap();
    group.join(&first).unwrap();
    group.join(&vmm.device).unwrap();
    let since = Instant::now();
    let behind = &vmm.device;
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| group.wait(patience()));
        while behind.memory_state() != MemoryState::Applied {
            assert!(since.elapsed() < PATIENCE / 2);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(first.memory_state(), MemoryState::Pending);
        assert!(!wait.is_finished());
        drop(theirs);
        assert!(wait.join().unwrap().unwrap());
    });
    assert_eq!(first.memory_state(), MemoryState::Absent);
}
