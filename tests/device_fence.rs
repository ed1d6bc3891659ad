//! A back-end that is stopped while it has a request, and another that takes its
//! place: nothing is written twice, unless the caller chose so.

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

use blk_peer::{PATIENCE, Peer, Place};
use blk_ring::Layout;
use device::{blk_peer, blk_ring, stepper, vmm};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stepper::{Manners, OFFERED, Stepper};
use vhost_user_frontend::{
    self as vuf, BackendProcess, Base, DeviceOptions, EventKind, Kind, MemoryState, OnUnfenced,
    ProcessOptions, StopMode, Timeout,
};
use vmm::Vmm;

fn signal(peer: &Peer, number: libc::c_int) {
    let pid = libc::pid_t::try_from(peer.0.id()).unwrap();
    // SAFETY: kill() takes numbers, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

fn brief(options: &mut DeviceOptions) {
    options.quick = Timeout::After(Duration::from_millis(50));
    options.slow = options.quick;
    options.fence = Timeout::After(Duration::from_millis(50));
}

/// A back-end that is stopped, with requests that it has not seen, and given up; and
/// another in its place.
fn stopped(vmm: &mut Vmm) -> (Peer, Peer) {
    let old = Peer::start(&vmm.place, &[]);
    vmm.bring_up();
    signal(&old, libc::SIGSTOP);
    vmm.fill(0);
    let call = vmm.rings[0].call.as_fd().try_clone_to_owned().unwrap();
    vmm.device.set_call(0, Some(call.as_fd())).unwrap();
    let lost = vmm.until(EventKind::Lost);
    std::fs::remove_file(vmm.place.file("sock")).unwrap();
    let new = Peer::start(&vmm.place, &[]);
    let unfenced = vmm.until(EventKind::Unfenced);
    // Who is to be ended is told: the device has no peer any more.
    for event in [&lost, &unfenced] {
        let pid = event.peer.unwrap().pid;
        assert_eq!(u32::try_from(pid).unwrap(), old.0.id());
    }
    assert_eq!(lost.error.unwrap().kind, Kind::TimedOut);
    (old, new)
}

#[test]
fn the_next_waits_until_the_one_before_is_gone() {
    for layout in [Layout::Split, Layout::Packed] {
        let mut vmm = Vmm::new(layout, 1, brief);
        let (old, _new) = stopped(&mut vmm);
        let info = vmm.device.info();
        assert!(info.unfenced && !info.connected);
        assert!(!vmm.device.quiet().quiesced);
        assert_eq!(vmm.device.memory_state(), MemoryState::Unconfirmed);
        // For as long as it takes: many attempts would fit in here.
        for _ in 0..20 {
            vmm.turn(Duration::from_millis(10));
        }
        assert_eq!(vmm.device.info().connections, 1);
        assert_eq!(vmm.place.take_journal().len(), 0);
        // It may not be reset into the hands of two either.
        assert!(!vmm.device.stop(None, StopMode::Abandon).quiesced);
        assert_eq!(vmm.device.info().connections, 1);
        signal(&old, libc::SIGCONT);
        vmm.until(EventKind::Fenced);
        vmm.until(EventKind::Connected);
        assert_eq!(vmm.count(EventKind::Unfenced), 1);
        assert!(!vmm.device.info().unfenced);
    }
}

#[test]
fn nothing_is_written_twice() {
    for layout in [Layout::Split, Layout::Packed] {
        let mut vmm = Vmm::new(layout, 1, brief);
        let (old, _new) = stopped(&mut vmm);
        signal(&old, libc::SIGCONT);
        vmm.until(EventKind::Recovered);
        vmm.until_done();
        vmm.check();
        assert_eq!(vmm.completed.len(), 16);
        let mut done = vmm.place.take_journal();
        assert_eq!(done.len(), 16);
        done.sort();
        done.dedup();
        assert_eq!(done.len(), 16, "something was written twice");
        assert_eq!(vmm.device.info().connections, 2);
    }
}

#[test]
fn killed_at_last_it_is_gone() {
    let mut vmm = Vmm::new(Layout::Split, 1, brief);
    let (mut old, _new) = stopped(&mut vmm);
    old.kill();
    vmm.until(EventKind::Fenced);
    vmm.until(EventKind::Recovered);
    vmm.until_done();
    vmm.check();
    assert_eq!(vmm.place.take_journal().len(), 16);
}

#[test]
fn the_caller_may_choose_not_to_wait() {
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        brief(options);
        options.on_unfenced = OnUnfenced::Proceed;
    });
    let (mut old, _new) = stopped(&mut vmm);
    vmm.until(EventKind::Recovered);
    vmm.until_done();
    vmm.check();
    let info = vmm.device.info();
    assert!(info.connected && info.unfenced);
    assert!(!vmm.device.quiet().quiesced);
    old.kill();
    vmm.until(EventKind::Fenced);
    assert!(!vmm.device.info().unfenced);
    assert!(vmm.device.quiet().quiesced);
}

/// Each of two that may still write is waited for.
#[test]
fn two_that_are_stopped_are_both_gone_before_it_is_said() {
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        brief(options);
        options.on_unfenced = OnUnfenced::Proceed;
    });
    let (mut first, mut second) = stopped(&mut vmm);
    vmm.until(EventKind::Recovered);
    vmm.until_applied();
    signal(&second, libc::SIGSTOP);
    let call = vmm.rings[0].call.as_fd().try_clone_to_owned().unwrap();
    vmm.device.set_call(0, Some(call.as_fd())).unwrap();
    vmm.until(EventKind::Lost);
    vmm.until(EventKind::Unfenced);
    first.kill();
    for _ in 0..20 {
        vmm.turn(Duration::from_millis(5));
    }
    assert!(vmm.device.info().unfenced, "the second may still write");
    assert_eq!(vmm.count(EventKind::Fenced), 0);
    second.kill();
    vmm.until(EventKind::Fenced);
    assert!(!vmm.device.info().unfenced);
}

/// How many that may still write the library goes on beside.
const MOST: usize = 8;

/// One more that breaks the protocol, and does not close its connection.
fn stubborn(vmm: &mut Vmm) -> Stepper {
    vmm.until(EventKind::NeedsFd);
    let (ours, theirs) = UnixStream::pair().unwrap();
    vmm.device.set_fd(ours.into()).unwrap();
    let mut peer = Stepper::on(theirs, Manners::default());
    vmm.until_applied_beside(&mut peer);
    peer.babble();
    vmm.until(EventKind::Unfenced);
    peer
}

/// As many as it goes on beside, and one more.
fn too_many() -> (Vmm, Vec<Stepper>) {
    let mut vmm = Vmm::reaching(Place::new(), vuf::Peer::Fd, Layout::Split, 1, |options| {
        options.fence = Timeout::After(Duration::from_millis(1));
        options.on_unfenced = OnUnfenced::Proceed;
        options.assume_features = Some(OFFERED);
    });
    vmm.want_all();
    let peers = (0..=MOST).map(|_| stubborn(&mut vmm)).collect();
    assert_waits(&mut vmm);
    (vmm, peers)
}

/// Without another back-end, and until one that may still write is gone.
fn assert_waits(vmm: &mut Vmm) {
    let asked = vmm.count(EventKind::NeedsFd);
    for _ in 0..20 {
        vmm.process();
    }
    assert_eq!(vmm.count(EventKind::NeedsFd), asked);
    assert_eq!(vmm.count(EventKind::Fenced), 0);
    let info = vmm.device.info();
    assert!(info.unfenced && !info.connected);
}

/// Each of them has memory mapped there, and a descriptor here.
#[test]
fn it_goes_on_beside_no_more_than_so_many() {
    let (mut vmm, mut peers) = too_many();
    for gone in [0, 3] {
        drop(peers.remove(gone));
        peers.push(stubborn(&mut vmm));
        assert_waits(&mut vmm);
    }
    drop(peers.remove(MOST - 1));
    vmm.until(EventKind::NeedsFd);
    assert!(vmm.device.info().unfenced);
    drop(peers);
    vmm.until(EventKind::Fenced);
    assert!(!vmm.device.info().unfenced);
}

/// The one that did not fit may still write when all of the others are gone.
#[test]
fn it_is_not_fenced_before_the_last_is_gone() {
    let (mut vmm, mut peers) = too_many();
    let last = peers.pop();
    drop(peers);
    vmm.until(EventKind::NeedsFd);
    assert!(vmm.device.info().unfenced && !vmm.device.quiet().quiesced);
    assert_eq!(vmm.count(EventKind::Fenced), 0);
    drop(last);
    vmm.until(EventKind::Fenced);
    assert!(!vmm.device.info().unfenced && vmm.device.quiet().quiesced);

    let (mut vmm, peers) = too_many();
    drop(peers);
    vmm.until(EventKind::Fenced);
    vmm.until(EventKind::NeedsFd);
    assert_eq!(vmm.count(EventKind::Fenced), 1);
    assert!(!vmm.device.info().unfenced);
}

/// A device whose back-end was started here, and has done what was wanted so far.
fn with_a_process() -> (Vmm, Arc<BackendProcess>) {
    // It has to be there first.
    fn patient(options: &mut DeviceOptions) {
        brief(options);
        options.quick = Timeout::After(Duration::from_secs(2));
        options.slow = options.quick;
    }
    let mut vmm = Vmm::reaching(Place::new(), vuf::Peer::Fd, Layout::Split, 1, patient);
    let arguments = [OsString::from("--file"), vmm.place.file("disk").into()];
    let options = ProcessOptions {
        arguments: arguments.to_vec(),
        ..ProcessOptions::default()
    };
    let process = Arc::new(BackendProcess::start(&blk_peer::program(), &options).unwrap());
    vmm.device.set_process(&process).unwrap();
    vmm.negotiate(0);
    vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
    (vmm, process)
}

/// Of a process that was started here the kernel says that it is this one, which made
/// both ends of the connection.
#[test]
fn a_process_that_was_started_here_is_told_by_its_own_number() {
    let (mut vmm, process) = with_a_process();
    vmm.start(Base::New);
    vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
    process.signal(libc::SIGSTOP).unwrap();
    vmm.fill(0);
    let call = vmm.rings[0].call.as_fd().try_clone_to_owned().unwrap();
    vmm.device.set_call(0, Some(call.as_fd())).unwrap();
    for kind in [EventKind::Lost, EventKind::Unfenced] {
        let peer = vmm.until(kind).peer.unwrap();
        assert_eq!(peer.pid, process.pid(), "{kind:?}");
    }
}

/// What a device knows of does not live on for that: whoever lets go of it waits for its
/// end, and no thread that is in the device does.
#[test]
fn a_process_that_is_let_go_of_ends() {
    let (mut vmm, process) = with_a_process();
    let pid = process.pid();
    drop(process);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(vmm.until(EventKind::Lost).peer.unwrap().pid, pid);
}
