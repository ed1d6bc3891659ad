//! The back-end is killed at random moments, over and over, while every request is
//! followed from the driver to the disk. `VUF_KILLS` says how often in each setting.

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

use blk_peer::{PATIENCE, Peer, Place, deadline};
use blk_ring::{Layout, pattern};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vhost_user_frontend::{Base, EventKind, OutOfOrder, Recovery, Timeout};
use vmm::{Random, Vmm};

const RINGS: u32 = 4;

fn kills() -> u64 {
    std::env::var("VUF_KILLS").map_or(20, |text| text.parse().unwrap())
}

/// Descriptors are counted, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn peer(vmm: &Vmm, args: &[&str]) -> Peer {
    Peer::start(&vmm.place, &[&["--queues", "4"], args].concat())
}

/// One that dies over one of its next requests, at any moment in the life of it.
fn mortal(vmm: &Vmm, args: &[&str], random: &mut Random) -> Peer {
    let after = (1 + random.below(100)).to_string();
    let points = ["taken", "done", "used", "cleared"];
    let at = points[usize::try_from(random.below(4)).unwrap()];
    let dies = ["--crash-after", &after, "--crash-at", at];
    peer(vmm, &[args, &dies].concat())
}

/// Each request completes exactly once, however often the back-end dies, also
/// while it is being brought up.
fn nothing_is_lost(layout: Layout, args: &[&str], policy: OutOfOrder, expected: Recovery) {
    let _alone = alone();
    let mut random = Random::new();
    let mut vmm = Vmm::new(layout, RINGS, |options| options.out_of_order = policy);
    let mut back_end = peer(&vmm, args);
    vmm.bring_up();
    let before = open_fds();
    for kill in 0..kills() {
        if kill % 2 == 0 {
            vmm.busy_for(&mut random, 4000);
            back_end.kill();
            // Dead before it is told everything, one time in four.
            while random.below(4) == 0 {
                back_end = peer(&vmm, args);
                vmm.busy_for(&mut random, 6000);
                back_end.kill();
            }
            back_end = mortal(&vmm, args, &mut random);
        } else {
            while back_end.0.try_wait().unwrap().is_none() {
                vmm.busy_for(&mut random, 1000);
            }
            back_end = peer(&vmm, args);
            vmm.until(EventKind::Recovered);
            vmm.until_applied();
            assert_eq!(open_fds(), before);
        }
    }
    vmm.until_done();
    vmm.check();
    assert_eq!(vmm.count(EventKind::NeedsReset), 0);
    let lost = vmm.seen.iter().filter(|seen| seen.0 == EventKind::Lost);
    let ways: Vec<_> = lost.map(|seen| seen.1).collect();
    // Several in a row that nobody took are one.
    assert!(
        u64::try_from(ways.len()).unwrap() >= kills() / 2,
        "{ways:?}"
    );
    let known = |way: &Recovery| *way == expected || *way == Recovery::Idle;
    assert!(ways.iter().all(known), "{ways:?}");
}

fn with_a_buffer(layout: Layout, args: &[&str]) {
    nothing_is_lost(layout, args, OutOfOrder::NeedsReset, Recovery::Inflight);
}

#[test]
fn split_with_a_buffer() {
    with_a_buffer(Layout::Split, &[]);
}

#[test]
fn split_with_a_buffer_out_of_order() {
    with_a_buffer(Layout::Split, &["--out-of-order"]);
}

#[test]
fn packed_with_a_buffer() {
    with_a_buffer(Layout::Packed, &[]);
}

#[test]
fn packed_with_a_buffer_out_of_order() {
    with_a_buffer(Layout::Packed, &["--out-of-order"]);
}

#[test]
fn split_in_order() {
    let args = ["--no-inflight", "--in-order"];
    let policy = OutOfOrder::NeedsReset;
    nothing_is_lost(Layout::Split, &args, policy, Recovery::InOrder);
}

/// The peer works in order, though it does not say so.
#[test]
fn split_replayed_from_the_used_index() {
    let args = ["--no-inflight"];
    let policy = OutOfOrder::ReplayFromUsed;
    nothing_is_lost(Layout::Split, &args, policy, Recovery::ReplayFromUsed);
}

/// What that policy means where it is wrong: the peer takes four requests and
/// completes the last one first. From the used index it begins with the second, so
/// that the last is done again and the first, which it overtook, never.
#[test]
fn out_of_order_a_replay_does_some_twice_and_others_never() {
    let _alone = alone();
    let policy = OutOfOrder::ReplayFromUsed;
    let mut vmm = Vmm::new(Layout::Split, 1, |options| options.out_of_order = policy);
    let args = ["--no-inflight", "--out-of-order"];
    let dies = ["--crash-after", "4", "--crash-at", "cleared"];
    let mut back_end = Peer::start(&vmm.place, &[&args[..], &dies].concat());
    vmm.negotiate(0);
    // All are there when the ring is started, and are taken together.
    let heads: Vec<_> = (0..4)
        .map(|sector| {
            vmm.write(0, sector);
            vmm.rings[0].last_head()
        })
        .collect();
    vmm.start(Base::New);
    let lost = vmm.until(EventKind::Lost);
    assert_eq!(lost.recovery, Recovery::ReplayFromUsed);
    back_end.wait_for_death();
    assert_eq!(vmm.rings[0].used_heads(), [heads[3]]);
    assert_eq!(sectors(&vmm.place), [3]);

    let _next = Peer::start(&vmm.place, &args);
    // Without the driver, which could make no sense of what is used now.
    vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
    let deadline = deadline();
    while vmm.rings[0].used_base() < vmm.rings[0].avail_base() {
        assert!(Instant::now() < deadline, "{:?}", vmm.rings[0].used_heads());
        let mut fds = [PollFd::new(vmm.rings[0].call.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        let _ = vmm.rings[0].call.read();
    }
    let twice = [heads[3], heads[3], heads[2], heads[1]];
    assert_eq!(vmm.rings[0].used_heads(), twice);
    assert_eq!(sectors(&vmm.place), [3, 2, 1]);
    // All that was made available counts as used, so nobody comes back to the first.
    assert_eq!(vmm.place.sector(0), pattern(0));
}

/// Of the requests that were executed since the last time.
fn sectors(place: &Place) -> Vec<u64> {
    let journal = place.take_journal();
    let sector = |line: &String| line.split(' ').nth(1).unwrap().parse().unwrap();
    journal.iter().map(sector).collect()
}

/// Where nothing tells what was done, the guest is told before, and resets.
#[test]
fn neither_needs_a_reset() {
    let _alone = alone();
    let mut random = Random::new();
    let args = ["--no-inflight", "--out-of-order"];
    for layout in [Layout::Split, Layout::Packed] {
        let mut vmm = Vmm::new(layout, RINGS, |options| {
            options.out_of_order = OutOfOrder::NeedsReset;
        });
        let mut back_end = peer(&vmm, &args);
        vmm.bring_up();
        let before = open_fds();
        for kill in 1..=kills() / 2 {
            vmm.busy_for(&mut random, 4000);
            back_end.kill();
            let lost = vmm.until(EventKind::Lost);
            assert_eq!(lost.recovery, Recovery::NeedsReset);
            vmm.until(EventKind::NeedsReset);
            back_end = peer(&vmm, &args);
            vmm.until(EventKind::Connected);
            let told = usize::try_from(kill).unwrap();
            assert_eq!(vmm.count(EventKind::NeedsReset), told);
            vmm.collect();

            vmm.device.reset();
            vmm.accept_the_disk();
            vmm = vmm.begin_anew();
            vmm.negotiate_again();
            vmm.start(Base::New);
            vmm.until_applied();
            assert_eq!(open_fds(), before);
        }
        vmm.keep_busy(&mut random);
        vmm.until_done();
        vmm.check();
        assert_eq!(vmm.count(EventKind::Recovered), 0);
    }
}
