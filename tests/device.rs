//! The device: brought up, stopped, reset, lost and regained.

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
use blk_ring::Layout;
use std::time::Duration;
use vhost_user_frontend::{Base, EventKind, Kind, OutOfOrder, Recovery, StopMode, Timeout};
use vmm::{IN_ORDER, Vmm};

const LAYOUTS: [Layout; 2] = [Layout::Split, Layout::Packed];

#[test]
fn it_is_brought_up_and_works() {
    for layout in LAYOUTS {
        let mut vmm = Vmm::new(layout, 2, |_| {});
        let _peer = BlkPeer::start(&vmm.place, &["--queues", "2"]);
        vmm.bring_up();
        for ring in 0..2 {
            vmm.fill(ring);
        }
        vmm.until_done();
        vmm.check();
        assert_eq!(vmm.completed.len(), 32);
    }
}

#[test]
fn it_is_paused_and_resumed() {
    for layout in LAYOUTS {
        let mut vmm = Vmm::new(layout, 1, |_| {});
        let _peer = BlkPeer::start(&vmm.place, &[]);
        vmm.bring_up();
        for _ in 0..5 {
            vmm.fill(0);
            vmm.until_done();
            vmm.device.stop(None, StopMode::Drain);
            vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
            let quiet = vmm.device.quiet();
            assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
            vmm.fill(0);
            vmm.start(Base::Resume);
            vmm.until_done();
        }
        vmm.check();
        assert_eq!(vmm.device.info().connections, 1);
    }
}

#[test]
fn each_request_completes_once_whenever_the_back_end_dies() {
    for layout in LAYOUTS {
        for at in ["taken", "done", "used", "cleared"] {
            for order in [&[][..], &["--out-of-order"][..]] {
                let mut vmm = Vmm::new(layout, 1, |_| {});
                let args = [&["--crash-after", "7", "--crash-at", at][..], order].concat();
                let mut peer = BlkPeer::start(&vmm.place, &args);
                vmm.bring_up();
                vmm.fill(0);
                let lost = vmm.until(EventKind::Lost);
                assert_eq!(lost.recovery, Recovery::Inflight, "{layout:?} {at}");
                assert_eq!(lost.error.unwrap().kind, Kind::Disconnected);
                peer.wait_for_death();
                let _peer = BlkPeer::start(&vmm.place, &[]);
                vmm.until(EventKind::Recovered);
                vmm.until_done();
                vmm.check();
                assert_eq!(vmm.completed.len(), 16);
                assert_eq!(vmm.device.info().connections, 2);
            }
        }
    }
}

#[test]
fn what_is_in_order_goes_on_without_a_buffer() {
    for at in ["taken", "done", "used"] {
        let mut vmm = Vmm::new(Layout::Split, 1, |_| {});
        let args = [
            "--no-inflight",
            "--in-order",
            "--crash-after",
            "5",
            "--crash-at",
            at,
        ];
        let mut peer = BlkPeer::start(&vmm.place, &args);
        vmm.bring_up();
        assert_ne!(vmm.device.info().acked_features & IN_ORDER, 0);
        vmm.fill(0);
        let lost = vmm.until(EventKind::Lost);
        assert_eq!(lost.recovery, Recovery::InOrder);
        peer.wait_for_death();
        let _peer = BlkPeer::start(&vmm.place, &["--no-inflight", "--in-order"]);
        vmm.until(EventKind::Recovered);
        vmm.until_done();
        vmm.check();
    }
}

#[test]
fn what_cannot_go_on_waits_for_a_reset() {
    for layout in LAYOUTS {
        let mut vmm = Vmm::new(layout, 1, |options| {
            options.out_of_order = OutOfOrder::NeedsReset;
        });
        let mut peer = BlkPeer::start(&vmm.place, &["--no-inflight", "--crash-after", "3"]);
        vmm.bring_up();
        vmm.fill(0);
        let lost = vmm.until(EventKind::Lost);
        assert_eq!(lost.recovery, Recovery::NeedsReset);
        vmm.until(EventKind::NeedsReset);
        peer.wait_for_death();
        let _peer = BlkPeer::start(&vmm.place, &["--no-inflight"]);
        vmm.until(EventKind::Connected);
        let error = vmm.device.wait(Timeout::After(PATIENCE)).unwrap_err();
        assert_eq!(error.kind, Kind::State);
        assert!(vmm.device.info().needs_reset);

        // The guest resets the device, and begins anew.
        vmm.device.reset();
        let mut anew = vmm.begin_anew();
        anew.negotiate_again();
        anew.start(Base::New);
        anew.fill(0);
        anew.until_done();
        anew.check();
    }
}

#[test]
fn a_policy_is_followed_and_told_before() {
    let cases = [
        (OutOfOrder::ReplayFromUsed, Recovery::ReplayFromUsed),
        (
            OutOfOrder::ResumeFromAvailable,
            Recovery::ResumeFromAvailable,
        ),
    ];
    for (policy, recovery) in cases {
        let mut vmm = Vmm::new(Layout::Split, 1, |options| options.out_of_order = policy);
        let mut peer = BlkPeer::start(&vmm.place, &["--no-inflight", "--crash-after", "3"]);
        vmm.bring_up();
        vmm.fill(0);
        let lost = vmm.until(EventKind::Lost);
        assert_eq!(lost.recovery, recovery);
        peer.wait_for_death();
        let _peer = BlkPeer::start(&vmm.place, &["--no-inflight"]);
        vmm.until(EventKind::Recovered);
        match policy {
            // In order, as it happens: all are done, none is lost.
            OutOfOrder::ReplayFromUsed => {
                vmm.until_done();
                vmm.check();
            }
            // What the first had taken and not done never completes.
            _ => {
                vmm.device.stop(None, StopMode::Drain);
                vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
                vmm.turn(Duration::ZERO);
                assert!(vmm.rings[0].in_flight() > 0);
            }
        }
    }
}

/// The deadlines of a process that was stopped have passed when it goes on; what
/// arrived meanwhile still counts.
#[test]
fn an_answer_that_waits_is_no_timeout() {
    const SHORT: Duration = Duration::from_millis(30);
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        options.quick = Timeout::After(SHORT);
        options.slow = Timeout::After(SHORT);
    });
    let _peer = BlkPeer::start(&vmm.place, &[]);
    let mut turns = 0;
    while !vmm.device.info().connected {
        vmm.turn(PATIENCE);
        // As if the process had been stopped.
        std::thread::sleep(3 * SHORT);
        turns += 1;
        assert!(turns < 50);
    }
    assert!(vmm.events.iter().all(|event| event.kind != EventKind::Lost));
    assert_eq!(vmm.device.info().connections, 1);
}
