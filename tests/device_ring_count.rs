//! Rings that the back-end cannot have: reported by name, and not asked for again.

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

use blk_ring::Layout;
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::errno::Errno;
use stepper::{Manners, Stepper, early, everything};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{Base, Class, EventKind, Kind, StopMode, Timeout};
use vmm::Vmm;

fn vmm(rings: u32) -> Vmm {
    Vmm::new(Layout::Split, rings, early)
}

fn peer(vmm: &Vmm, queues: u64, rings: u32) -> Stepper {
    let manners = Manners {
        queues,
        rings,
        ..Manners::default()
    };
    Stepper::beside(vmm, manners)
}

/// A back-end with one queue has ring 0, the other one of a pair if it counts pairs,
/// and perhaps a control queue.
#[test]
fn ring_beyond_the_queue_count_is_refused_with_the_reason() {
    let mut vmm = vmm(4);
    let mut peer = peer(&vmm, 1, 1);
    vmm.device.set_features(vmm.features()).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    vmm.until_applied_beside(&mut peer);
    let error = vmm.device.start(&[vmm.ring(3, Base::New)]).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EINVAL));
    assert_eq!(error.ring, Some(3));
    for part in ["ring 3", "GET_QUEUE_NUM", "1"] {
        assert!(error.message.contains(part), "{error}");
    }
    vmm.calm(&mut peer);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    // The rest of the device works.
    vmm.device.start(&[vmm.ring(0, Base::New)]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0]);
}

/// The ring was wanted before the count was known: it is reported once, and the others
/// run.
#[test]
fn ring_wanted_before_the_count_is_reported_once_and_given_up() {
    let mut vmm = vmm(4);
    vmm.want_all();
    let mut peer = peer(&vmm, 1, 3);
    let refused = vmm.until_beside(EventKind::Refused, &mut peer);
    let error = refused.error.unwrap();
    assert_eq!(error.ring, Some(3));
    assert_eq!(error.class(), Class::Refused);
    for part in ["ring 3", "GET_QUEUE_NUM is 1"] {
        assert!(error.message.contains(part), "{error}");
    }
    vmm.calm(&mut peer);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    assert_eq!(vmm.count(EventKind::Refused), 1);
    assert_eq!(peer.told.running(), [0, 1, 2]);
    // A caller that only waits learns it as well, until it gives up the ring.
    let error = vmm.device.wait(Timeout::Default).unwrap_err();
    assert_eq!((error.kind, error.ring), (Kind::Nack, Some(3)));
    vmm.device.stop(Some(&[3]), StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    vmm.device.wait(Timeout::Default).unwrap();

    // The next back-end is not asked for it, either.
    vmm.events.clear();
    peer.hang_up();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1, 2]);
    assert_eq!(vmm.count(EventKind::Refused), 1);
    // It stands where it was to begin.
    assert_eq!(vmm.device.vring_base(3).unwrap(), 0);
}

/// Ring 1 is the second one of a pair, or not there. The back-end closes the connection
/// when it is named.
#[test]
fn ring_that_may_exist_is_given_up_after_two_losses() {
    let (mq, ack) = (ProtocolFeatures::MQ, ProtocolFeatures::REPLY_ACK);
    for without in [ProtocolFeatures::empty(), mq, ack, mq | ack] {
        let mut vmm = vmm(2);
        vmm.want_all();
        let mut peer = peer(&vmm, 1, 1);
        peer.manners.protocol = everything() - without;
        let refused = vmm.until_beside(EventKind::Refused, &mut peer);
        let error = refused.error.unwrap();
        assert_eq!(error.ring, Some(1));
        assert_eq!(error.class(), Class::Refused);
        assert!(error.message.contains("does not have ring 1"), "{error}");
        // The others are started on the connection that follows.
        vmm.until_beside(EventKind::Connected, &mut peer);
        vmm.calm(&mut peer);
        assert_eq!(peer.told.running(), [0], "{without:?}");
        assert_eq!(vmm.count(EventKind::Refused), 1);
        assert_eq!(vmm.count(EventKind::Lost), 2);
        assert_eq!(vmm.count(EventKind::NeedsReset), 0);
    }
}

/// A back-end that dies for another reason is asked for all rings again.
#[test]
fn ring_that_the_back_end_has_is_never_given_up() {
    let mut vmm = vmm(2);
    vmm.want_all();
    // Two queues are two rings at least; this one dies at the second all the same.
    let mut peer = peer(&vmm, 2, 1);
    for _ in 0..4 {
        vmm.until_beside(EventKind::Lost, &mut peer);
    }
    peer.manners.rings = 2;
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    assert_eq!(vmm.count(EventKind::Refused), 0);
}

/// One loss at the first request of a ring may be chance.
#[test]
fn ring_is_not_given_up_after_one_loss() {
    let mut vmm = vmm(2);
    vmm.want_all();
    let mut peer = peer(&vmm, 1, 1);
    vmm.until_beside(EventKind::Lost, &mut peer);
    peer.manners.rings = 2;
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    // Nor after several, once it has run.
    peer.manners.rings = 1;
    peer.hang_up();
    for _ in 0..3 {
        vmm.until_beside(EventKind::Lost, &mut peer);
    }
    // It has run, so the back-end has it.
    assert_eq!(vmm.count(EventKind::Refused), 0);
}

/// A guest that uses a ring cannot do without it: the back-end does not fit.
#[test]
fn back_end_without_a_ring_that_ran_is_refused() {
    let mut vmm = vmm(4);
    vmm.want_all();
    let mut peer = peer(&vmm, 4, 4);
    vmm.until_applied_beside(&mut peer);
    vmm.events.clear();
    vmm.seen.clear();
    peer.manners.queues = 1;
    peer.hang_up();
    vmm.until_beside(EventKind::Lost, &mut peer);
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    let error = lost.error.unwrap();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.message.contains("ring 3"), "{error}");
    // The slow delay: an upgrade may bring it back.
    assert_eq!(lost.delay, Some(vmm::at_once().slow_delay));
    peer.manners.queues = 4;
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1, 2, 3]);
    assert_eq!(vmm.count(EventKind::Refused), 0);
}

#[test]
fn info_says_how_many_rings_can_be_started() {
    for (rings, queues, most) in [
        (4, 1, 3),
        (2, 1, 2),
        (4, 128, 4),
        (4, 0, 1),
        (4, u64::MAX, 4),
    ] {
        let mut vmm = vmm(rings);
        assert_eq!(vmm.device.info().max_rings, None);
        let mut peer = peer(&vmm, queues, rings);
        vmm.until_applied_beside(&mut peer);
        assert_eq!(vmm.device.info().max_rings, Some(most), "{queues}");
        vmm.device.set_features(vmm.features()).unwrap();
        vmm.device.set_memory(vec![vmm.region()], false).unwrap();
        for index in 0..rings {
            let at = usize::try_from(index).unwrap();
            let started = vmm.device.start(&[vmm.ring(at, Base::New)]);
            assert_eq!(started.is_ok(), index < most, "{queues} {index}");
        }
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.told.running().len(), usize::try_from(most).unwrap());
    }
    // Without MQ nothing is known.
    let mut vmm = vmm(4);
    let mut peer = peer(&vmm, 1, 4);
    peer.manners.protocol = everything() - ProtocolFeatures::MQ;
    vmm.want_all();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.device.info().max_rings, None);
    assert_eq!(peer.count(Request::GetQueueNum), 0);
    assert_eq!(peer.told.running(), [0, 1, 2, 3]);
}
