//! The configuration space: what the back-end tells, what is the caller's own, and
//! what the guest writes.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/blk_peer.rs"]
mod blk_peer;
#[path = "common/blk_ring.rs"]
mod blk_ring;
#[path = "common/stepper.rs"]
mod stepper;
#[path = "common/vmm.rs"]
mod vmm;

use blk_peer::PATIENCE;
use blk_ring::Layout;
use nix::errno::Errno;
use std::time::Duration;
use stepper::{Manners, OFFERED, Stepper, everything};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{EventKind, Kind, OutOfOrder};
use vmm::Vmm;

fn rig(manners: Manners) -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 2, |options| {
        options.assume_features = Some(OFFERED);
        options.out_of_order = OutOfOrder::ReplayFromUsed;
        options.reconnect.first_delay = Duration::from_micros(10);
    });
    let peer = Stepper::at(&vmm.place.file("sock"), manners);
    vmm.want_all();
    (vmm, peer)
}

fn settled() -> (Vmm, Stepper) {
    let (mut vmm, mut peer) = rig(Manners::default());
    vmm.until_applied_beside(&mut peer);
    vmm.events.clear();
    (vmm, peer)
}

/// Until nothing more happens.
fn calm(vmm: &mut Vmm, peer: &mut Stepper) {
    while vmm.turn_beside(peer, usize::MAX, Duration::ZERO) {}
}

fn config(vmm: &Vmm, at: u32) -> [u8; 4] {
    let mut bytes = [0; 4];
    vmm.device.read_config(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_change_is_read_before_it_is_told() {
    let (mut vmm, mut peer) = rig(Manners::default());
    vmm.until_applied_beside(&mut peer);
    let reads = |peer: &Stepper| peer.count(Request::GetConfig);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    let before = vmm.device.read_config(0, &mut []).unwrap();
    assert_eq!(reads(&peer), 1);
    peer.manners.config[9] = 99;
    peer.config_changed();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
    assert_eq!(config(&vmm, 8), [8, 99, 10, 11]);
    assert_ne!(vmm.device.read_config(0, &mut []).unwrap(), before);
    assert_eq!(reads(&peer), 2);

    // What the caller has put over it stays, and hides a change.
    vmm.device.overlay_config(8, &[1, 2]).unwrap();
    peer.manners.config[8] = 77;
    peer.config_changed();
    while reads(&peer) < 3 {
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    calm(&mut vmm, &mut peer);
    assert_eq!(config(&vmm, 8), [1, 2, 10, 11]);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 1);

    // A back-end that comes back as another disk is a change, too.
    peer.manners.config[10] = 55;
    peer.hang_up();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
    assert_eq!(config(&vmm, 8), [1, 2, 55, 11]);
}

#[test]
fn a_write_reaches_the_back_end() {
    let (mut vmm, mut peer) = rig(Manners::default());
    vmm.until_applied_beside(&mut peer);
    vmm.device.overlay_config(20, &[200]).unwrap();
    vmm.device.write_config(32, &[42]).unwrap();
    // The caller's own stays here.
    vmm.device.write_config(20, &[201]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::SetConfig), 1);
    assert_eq!(peer.manners.config[32], 42);
    assert_eq!(peer.manners.config[20], 20);
    assert_eq!(config(&vmm, 32)[0], 42);
    assert_eq!(config(&vmm, 20)[0], 201);
}

#[test]
fn a_write_that_is_refused_is_told_and_undone() {
    let (mut vmm, mut peer) = rig(Manners::default());
    vmm.until_applied_beside(&mut peer);
    peer.manners.refuses = Some(Request::SetConfig);
    vmm.device.write_config(32, &[42]).unwrap();
    let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    let error = refused.error.unwrap();
    assert_eq!(error.request, Some(Request::SetConfig));
    assert_eq!(error.value, Some(1));
    calm(&mut vmm, &mut peer);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    // The guest reads what the device has, not what it would have liked.
    assert_eq!(config(&vmm, 32)[0], 32);
}

/// The guest reads on what was told last, and somebody has to know.
#[test]
fn a_refusal_to_tell_it_again_is_told() {
    let (mut vmm, mut peer) = settled();
    peer.manners.refuses = Some(Request::GetConfig);
    peer.manners.config[9] = 99;
    peer.config_changed();
    let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    let error = refused.error.unwrap();
    assert_eq!(error.request, Some(Request::GetConfig));
    assert_eq!(error.kind, Kind::Nack);
    calm(&mut vmm, &mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    // Once: it is not asked again before it changes again.
    assert_eq!(peer.count(Request::GetConfig), 2);
    assert_eq!(vmm.count(EventKind::ConfigRefused), 1);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    assert!(vmm.is_applied());

    // So does one that comes in its place.
    peer.hang_up();
    let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    assert_eq!(refused.error.unwrap().request, Some(Request::GetConfig));
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    peer.manners.refuses = None;
    peer.config_changed();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
    assert_eq!(config(&vmm, 8), [8, 99, 10, 11]);
    assert_eq!(vmm.count(EventKind::ConfigRefused), 2);
}

/// Nothing was told before that could be wrong now.
#[test]
fn one_that_never_had_a_configuration_is_believed() {
    let without = Manners {
        refuses: Some(Request::GetConfig),
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(without);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GetConfig), 1);
    peer.config_changed();
    while peer.count(Request::GetConfig) < 2 {
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    calm(&mut vmm, &mut peer);
    assert_eq!(vmm.count(EventKind::ConfigRefused), 0);
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

// ---- writes ----

/// Where each write goes, and what it writes.
fn writes(peer: &Stepper) -> Vec<(u8, Vec<u8>)> {
    let log = peer.log.iter().filter(|it| it.0 == Request::SetConfig);
    log.map(|(_, payload)| (payload[0], payload[12..].to_vec()))
        .collect()
}

/// The caller's own bytes are told to nobody, wherever they lie.
#[test]
fn a_write_leaves_the_callers_own_out() {
    let (mut vmm, mut peer) = settled();
    vmm.device.overlay_config(33, &[200]).unwrap();
    vmm.device.overlay_config(36, &[201]).unwrap();
    vmm.device.write_config(32, &[1, 2, 3, 4, 5]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(writes(&peer), [(32, vec![1]), (34, vec![3, 4])]);
    assert_eq!(config(&vmm, 32), [1, 2, 3, 4]);
}

/// Nothing was written where the call failed.
#[test]
fn a_write_without_room_changes_nothing() {
    let (vmm, _peer) = settled();
    for _ in 0..64 {
        vmm.device.write_config(32, &[42]).unwrap();
    }
    let before = vmm.device.read_config(0, &mut []).unwrap();
    let error = vmm.device.write_config(33, &[42]).unwrap_err();
    assert_eq!(error.kind, Kind::Os(Errno::EAGAIN));
    assert_eq!(config(&vmm, 32), [42, 33, 34, 35]);
    assert_eq!(vmm.device.read_config(0, &mut []).unwrap(), before);
    // What concerns nobody else needs no room.
    vmm.device.overlay_config(34, &[0]).unwrap();
    vmm.device.write_config(34, &[43]).unwrap();
    assert_eq!(config(&vmm, 32), [42, 33, 43, 35]);
}

/// It was lost on the way, and nobody knows how far it came.
#[test]
fn a_write_that_was_not_confirmed_is_told_to_the_next() {
    let (mut vmm, mut peer) = settled();
    peer.manners.silent_from = Some(Request::SetConfig);
    for (at, byte) in [(32, 42), (33, 43), (32, 44)] {
        vmm.device.write_config(at, &[byte]).unwrap();
    }
    vmm.process();
    peer.serve(usize::MAX);
    // This one is not even sent any more.
    peer.hang_up();
    vmm.device.write_config(34, &[45]).unwrap();
    // Another process, which has never seen any of them.
    peer.manners = Manners::default();
    peer.log.clear();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    let all = [
        (32, vec![42]),
        (33, vec![43]),
        (32, vec![44]),
        (34, vec![45]),
    ];
    assert_eq!(writes(&peer), all);
    assert_eq!(config(&vmm, 32), [44, 43, 45, 35]);
    // The guest has seen nothing else all the time.
    assert_eq!(vmm.count(EventKind::ConfigChanged), 0);

    // What was confirmed is the back-end's to keep.
    peer.log.clear();
    peer.manners = Manners::default();
    peer.hang_up();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
    calm(&mut vmm, &mut peer);
    assert_eq!(writes(&peer), []);
    assert_eq!(config(&vmm, 32), [32, 33, 34, 35]);
}

/// One that no back-end survives is not told for ever.
#[test]
fn a_write_that_back_ends_die_of_is_given_up() {
    let (mut vmm, mut peer) = settled();
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.device.write_config(33, &[43]).unwrap();
    for _ in 0..2 {
        peer.manners.silent_from = Some(Request::SetConfig);
        let told = peer.count(Request::SetConfig);
        while peer.count(Request::SetConfig) == told {
            vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
        }
        peer.hang_up();
        peer.manners = Manners::default();
        vmm.until_beside(EventKind::Lost, &mut peer);
    }
    let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    assert_eq!(refused.error.unwrap().request, Some(Request::SetConfig));
    peer.log.clear();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(writes(&peer), [(33, vec![43])]);
    assert_eq!(config(&vmm, 32), [32, 43, 34, 35]);
}

/// A reset is the end of what was written before it.
#[test]
fn a_write_is_not_told_after_a_reset() {
    let (mut vmm, mut peer) = settled();
    // One on its way, one not.
    peer.manners.silent_from = Some(Request::SetConfig);
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.process();
    peer.serve(usize::MAX);
    vmm.device.write_config(33, &[43]).unwrap();
    vmm.device.reset();
    vmm.device.write_config(34, &[44]).unwrap();
    peer.manners = Manners::default();
    peer.hang_up();
    peer.log.clear();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(writes(&peer), [(34, vec![44])]);
    assert_eq!(config(&vmm, 32), [32, 33, 44, 35]);

    // On one connection, too.
    vmm.device.write_config(33, &[43]).unwrap();
    vmm.device.reset();
    vmm.until_applied_beside(&mut peer);
    calm(&mut vmm, &mut peer);
    assert_eq!(writes(&peer), [(34, vec![44])]);
    assert_eq!(config(&vmm, 32), [32, 33, 44, 35]);
}

/// What is read was told before the guest wrote.
#[test]
fn what_is_read_does_not_undo_a_later_write() {
    let (mut vmm, mut peer) = settled();
    peer.config_changed();
    // Until it is asked, and has answered.
    let reads = peer.count(Request::GetConfig);
    while peer.count(Request::GetConfig) == reads {
        vmm.process();
        peer.serve(usize::MAX);
    }
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.device.write_config(32, &[43]).unwrap();
    while !vmm.is_applied() {
        vmm.process();
        assert_eq!(config(&vmm, 32), [43, 33, 34, 35]);
        peer.serve(usize::MAX);
    }
    calm(&mut vmm, &mut peer);
    assert_eq!(config(&vmm, 32), [43, 33, 34, 35]);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 0);
}

/// One that is refused is undone, and no other.
#[test]
fn a_refusal_does_not_undo_a_later_write() {
    let (mut vmm, mut peer) = settled();
    peer.manners.refuses = Some(Request::SetConfig);
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    peer.manners.refuses = None;
    vmm.device.write_config(33, &[43]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 32), [32, 43, 34, 35]);
}

/// Nobody takes it, and that is said.
#[test]
fn a_write_that_no_back_end_takes_is_refused() {
    let without = Manners {
        protocol: everything() - ProtocolFeatures::CONFIG,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(without);
    vmm.until_applied_beside(&mut peer);
    vmm.device.write_config(32, &[42]).unwrap();
    let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    let error = refused.error.unwrap();
    assert_eq!(error.kind, Kind::NotNegotiated);
    assert_eq!(error.request, Some(Request::SetConfig));
    assert_eq!(peer.count(Request::SetConfig), 0);
    vmm.until_applied_beside(&mut peer);
}
