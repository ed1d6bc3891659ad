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

#[path = "common/device.rs"]
mod device;

use blk_peer::PATIENCE;
use blk_ring::Layout;
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::errno::Errno;
use std::time::{Duration, Instant};
use stepper::{Manners, OFFERED, Stepper, early, everything};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{
    Base, CONFIG_SIZE_LATER, Class, Device, EventKind, Kind, Peer, StopMode, Timeout,
};
use vmm::Vmm;

fn rig(manners: Manners) -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 2, early);
    let peer = Stepper::beside(&vmm, manners);
    vmm.want_all();
    (vmm, peer)
}

fn settled() -> (Vmm, Stepper) {
    let (mut vmm, mut peer) = rig(Manners::default());
    vmm.until_applied_beside(&mut peer);
    vmm.events.clear();
    vmm.seen.clear();
    (vmm, peer)
}

fn config(vmm: &Vmm, at: u32) -> [u8; 4] {
    let mut bytes = [0; 4];
    vmm.device.read_config(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_change_is_read_before_it_is_told() {
    let (mut vmm, mut peer) = settled();
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
    vmm.calm(&mut peer);
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
    vmm.calm(&mut peer);
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
    vmm.calm(&mut peer);
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

/// Each refusal is reported, and none of them ends the connection.
#[test]
fn back_end_that_never_returns_a_configuration_is_used() {
    let without = Manners {
        refuses: Some(Request::GetConfig),
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(without);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GetConfig), 1);
    assert_eq!(vmm.count(EventKind::ConfigRefused), 1);
    vmm.events.clear();
    peer.config_changed();
    vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    vmm.calm(&mut peer);
    // A write is accepted, and what it changes is not returned.
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GetConfig), 3);
    assert_eq!(peer.manners.config[32], 42);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 0);
    assert_eq!(peer.told.running(), [0, 1]);
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
    vmm.calm(&mut peer);
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
    vmm.calm(&mut peer);
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
    vmm.calm(&mut peer);
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

// ---- what the guest reads after it has written ----

/// A back-end whose content depends on what was written, as virtio-input's.
fn selecting() -> (Vmm, Stepper) {
    let (mut vmm, mut peer) = settled();
    peer.manners.selects = true;
    peer.log.clear();
    vmm.seen.clear();
    (vmm, peer)
}

#[test]
fn space_is_read_again_after_an_accepted_write() {
    let (mut vmm, mut peer) = selecting();
    vmm.device.write_config(0, &[2]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 0), [2, 1, 6, 3]);
    assert_eq!(config(&vmm, 8), *b"bbbb");
    assert_eq!(peer.count(Request::SetConfig), 1);
    assert_eq!(peer.count(Request::GetConfig), 1);
    // The guest asked for it, so it is not interrupted for it.
    assert_eq!(vmm.count(EventKind::ConfigChanged), 0);
}

#[test]
fn writes_are_sent_in_order_and_one_by_one() {
    let (mut vmm, mut peer) = selecting();
    for select in [1, 2, 1, 1, 3] {
        vmm.device.write_config(0, &[select]).unwrap();
    }
    vmm.device.write_config(1, &[0]).unwrap();
    vmm.until_applied_beside(&mut peer);
    let each = [1, 2, 1, 1, 3].map(|select| (0, vec![select]));
    assert_eq!(writes(&peer)[..5], each);
    assert_eq!(writes(&peer)[5..], [(1, vec![0])]);
    assert_eq!(config(&vmm, 0), [3, 0, 9, 3]);
    let last = &peer.log.last().unwrap().0;
    assert_eq!(*last, Request::GetConfig, "{:?}", peer.log);
}

/// A change that a re-read after a write found first is still reported when the
/// back-end says so.
#[test]
fn change_that_a_read_after_a_write_finds_is_reported() {
    let (mut vmm, mut peer) = settled();
    vmm.seen.clear();
    peer.manners.config[9] = 99;
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 8), [8, 99, 10, 11]);
    peer.config_changed();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
}

// ---- a back-end that does not return it ----

#[test]
fn first_refusal_names_the_size() {
    let small = Manners {
        largest_config: 36,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(small);
    let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    let error = refused.error.unwrap();
    assert_eq!(error.request, Some(Request::GetConfig));
    assert_eq!(error.kind, Kind::Nack);
    assert!(error.message.contains("60 bytes"), "{error}");
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    assert_eq!(vmm.count(EventKind::ConfigRefused), 1);
    let error = vmm.device.read_config(0, &mut [0]).unwrap_err();
    assert_eq!(error.kind, Kind::Nack);
    assert!(error.message.contains("60 bytes"), "{error}");
}

#[test]
fn refusal_ends_the_connection_where_config_is_required() {
    let mut vmm = Vmm::new(Layout::Split, 2, |options| {
        options.required_protocol_features = ProtocolFeatures::CONFIG.bits();
        options.reconnect.slow_delay = Duration::from_secs(1000);
    });
    let small = Manners {
        largest_config: 36,
        ..Manners::default()
    };
    let mut peer = Stepper::beside(&vmm, small);
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    let error = lost.error.unwrap();
    assert_eq!(error.class(), Class::Refused);
    for part in ["60 bytes", "CONFIG is required"] {
        assert!(error.message.contains(part), "{error}");
    }
    // Another attempt may help after an upgrade, but not at once.
    assert_eq!(lost.delay, Some(Duration::from_secs(1000)));
    assert_eq!(vmm.count(EventKind::Connected), 0);
    let error = vmm.device.read_config(0, &mut [0]).unwrap_err();
    assert!(error.message.contains("60 bytes"), "{error}");
}

// ---- a guest that started before the back-end ----

/// The guest may have read something else while there was no back-end.
#[test]
fn first_configuration_is_a_change_where_features_were_assumed() {
    let (mut vmm, mut peer) = rig(Manners::default());
    assert_eq!(
        vmm.device.read_config(0, &mut [0]).unwrap_err().kind,
        Kind::State
    );
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 1);
}

#[test]
fn first_configuration_is_no_change_before_a_guest() {
    let mut vmm = Vmm::new(Layout::Split, 2, |_| {});
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 0);
}

#[test]
fn first_configuration_is_a_change_for_a_reader_that_was_refused() {
    let mut vmm = Vmm::new(Layout::Split, 2, |_| {});
    vmm.device.read_config(0, &mut [0]).unwrap_err();
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
}

#[test]
fn assumed_configuration_yields_to_the_back_ends() {
    let (mut vmm, mut peer) = rig(Manners::default());
    let assumed: Vec<u8> = (0..60).map(|at| if at == 9 { 99 } else { at }).collect();
    vmm.device.assume_config(0, &assumed).unwrap();
    vmm.device.overlay_config(20, &[200]).unwrap();
    assert_eq!(config(&vmm, 8), [8, 99, 10, 11]);
    let before = vmm.device.read_config(0, &mut []).unwrap();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    assert_eq!(config(&vmm, 20), [200, 21, 22, 23]);
    assert_ne!(vmm.device.read_config(0, &mut []).unwrap(), before);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 1);
    // It comes too late to count.
    vmm.device.assume_config(0, &assumed).unwrap();
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
}

#[test]
fn assumption_that_was_right_is_no_change() {
    let (mut vmm, mut peer) = rig(Manners::default());
    let assumed: Vec<u8> = (0..60).collect();
    vmm.device.assume_config(0, &assumed).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.count(EventKind::ConfigChanged), 0);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
}

/// Bytes that nobody has assumed cannot be read before, but a guest may have been shown
/// something.
#[test]
fn partial_assumption_is_a_change() {
    let (mut vmm, mut peer) = rig(Manners::default());
    vmm.device.assume_config(8, &[8, 9]).unwrap();
    let mut two = [0; 2];
    vmm.device.read_config(8, &mut two).unwrap();
    assert_eq!(two, [8, 9]);
    let error = vmm.device.read_config(9, &mut two).unwrap_err();
    assert_eq!(error.kind, Kind::State);
    let error = vmm.device.read_config(7, &mut two).unwrap_err();
    assert_eq!(error.kind, Kind::State);
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
}

// ---- a size that depends on the features ----

fn undecided(protocol: u64) -> Vmm {
    Vmm::new(Layout::Split, 2, |options| {
        options.config_size = CONFIG_SIZE_LATER;
        options.required_protocol_features = protocol;
        options.reconnect.first_delay = Duration::from_micros(10);
        options.reconnect.slow_delay = Duration::from_secs(1000);
    })
}

#[test]
fn size_is_chosen_once_features_are_known() {
    let mut vmm = undecided(ProtocolFeatures::CONFIG.bits());
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(
        vmm.device.info().offered_features & OFFERED,
        OFFERED & !(1 << 30)
    );
    assert_eq!(peer.count(Request::GetConfig), 0);
    let unsized_calls = [
        vmm.device.read_config(0, &mut [0]).map(drop),
        vmm.device.read_current_config(0, &mut [0]).map(drop),
        vmm.device.write_config(0, &[0]),
        vmm.device.overlay_config(0, &[0]),
        vmm.device.assume_config(0, &[0]),
        vmm.device.wait_config(Timeout::After(PATIENCE)),
    ];
    for result in unsized_calls {
        assert_eq!(result.unwrap_err().kind, Kind::State);
    }
    // A change that the back-end announces meanwhile is no reason to ask.
    peer.config_changed();
    vmm.calm(&mut peer);
    assert_eq!(peer.count(Request::GetConfig), 0);

    vmm.device.set_config_size(36).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
    assert_eq!(config(&vmm, 32), [32, 33, 34, 35]);
    assert_eq!(
        vmm.device.read_config(36, &mut [0]).unwrap_err().code(),
        -22
    );
    // From now on it is fixed, for other connections as well.
    assert_eq!(
        vmm.device.set_config_size(60).unwrap_err().kind,
        Kind::State
    );
    vmm.device.set_config_size(36).unwrap();
    let reads = peer.count(Request::GetConfig);
    peer.hang_up();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GetConfig), reads + 1);
    assert_eq!(config(&vmm, 32), [32, 33, 34, 35]);
}

#[test]
fn refused_size_is_replaced_by_a_smaller_one() {
    let mut vmm = undecided(0);
    let small = Manners {
        largest_config: 36,
        ..Manners::default()
    };
    let mut peer = Stepper::beside(&vmm, small);
    vmm.until_beside(EventKind::Connected, &mut peer);
    for size in [96, 60] {
        vmm.device.set_config_size(size).unwrap();
        let refused = vmm.until_beside(EventKind::ConfigRefused, &mut peer);
        let text = refused.error.unwrap().message.to_string();
        assert!(text.contains(&format!("{size} bytes")), "{text}");
    }
    vmm.device.overlay_config(35, &[200]).unwrap();
    vmm.device.set_config_size(36).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 32), [32, 33, 34, 200]);
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

/// Where CONFIG is required the refusal ends the connection; another size is tried at
/// once, and not after the slow delay.
#[test]
fn smaller_size_is_tried_at_once_where_config_is_required() {
    let mut vmm = undecided(ProtocolFeatures::CONFIG.bits());
    let small = Manners {
        largest_config: 36,
        ..Manners::default()
    };
    let mut peer = Stepper::beside(&vmm, small);
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.device.set_config_size(60).unwrap();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.error.unwrap().class(), Class::Refused);
    vmm.device.set_config_size(36).unwrap();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 8), [8, 9, 10, 11]);
}

#[test]
fn size_cannot_change_while_something_depends_on_it() {
    let (mut vmm, mut peer) = rig(Manners {
        largest_config: 36,
        ..Manners::default()
    });
    vmm.device.write_config(32, &[42]).unwrap();
    let busy = vmm.device.set_config_size(36).unwrap_err();
    assert_eq!(busy.kind, Kind::Argument(Errno::EBUSY));
    vmm.until_applied_beside(&mut peer);
    vmm.device.set_config_size(36).unwrap();
    // Until it is asked, and has not been answered.
    let reads = peer.count(Request::GetConfig);
    vmm.process();
    let busy = vmm.device.set_config_size(35).unwrap_err();
    assert_eq!(busy.kind, Kind::Argument(Errno::EBUSY));
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GetConfig), reads + 1);
    assert_eq!(config(&vmm, 32), [42, 33, 34, 35]);

    for (size, errno) in [
        (0, Errno::EINVAL),
        (257, Errno::EINVAL),
        (CONFIG_SIZE_LATER, Errno::EINVAL),
    ] {
        let error = vmm.device.set_config_size(size).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(errno), "{size}");
    }
    let none = Device::open(Peer::Path(vmm.place.file("none")), Default::default()).unwrap();
    assert_eq!(none.set_config_size(36).unwrap_err().kind, Kind::State);
    let waited = none.wait_config(Timeout::After(PATIENCE)).unwrap_err();
    assert_eq!(waited.kind, Kind::State);
}

// ---- data that is not current ----

#[test]
fn reader_learns_that_the_data_is_not_current() {
    let (mut vmm, mut peer) = selecting();
    let mut bytes = [0; 4];
    vmm.device.read_current_config(0, &mut bytes).unwrap();
    vmm.device.write_config(0, &[2]).unwrap();
    // Neither before it is sent, nor after.
    for _ in 0..3 {
        let error = vmm.device.read_current_config(0, &mut bytes).unwrap_err();
        assert_eq!(error.kind, Kind::Os(Errno::EAGAIN));
        assert_eq!(bytes, [0, 1, 2, 3]);
        // The other call never fails for this.
        assert_eq!(config(&vmm, 0), [2, 1, 2, 3]);
        vmm.process();
    }
    vmm.until_applied_beside(&mut peer);
    vmm.device.read_current_config(0, &mut bytes).unwrap();
    assert_eq!(bytes, [2, 1, 6, 3]);
    // The caller's own bytes are nobody else's to change.
    vmm.device.overlay_config(33, &[1]).unwrap();
    vmm.device.write_config(33, &[2]).unwrap();
    vmm.device.read_current_config(0, &mut bytes).unwrap();
    // A read that a change has caused does not make data current for a later write.
    peer.config_changed();
    let reads = peer.count(Request::GetConfig);
    while peer.count(Request::GetConfig) == reads {
        vmm.process();
        peer.serve(usize::MAX);
    }
    vmm.device.write_config(0, &[3]).unwrap();
    vmm.process();
    let error = vmm.device.read_current_config(0, &mut bytes).unwrap_err();
    assert_eq!(error.kind, Kind::Os(Errno::EAGAIN));
    vmm.until_applied_beside(&mut peer);
    vmm.device.read_current_config(0, &mut bytes).unwrap();
    assert_eq!(bytes, [3, 1, 9, 3]);
}

/// A thread of a virtual CPU writes and reads; another one processes, or nobody does.
#[test]
fn reader_waits_until_the_data_is_current() {
    let (vmm, mut peer) = selecting();
    let (wait, mut bytes) = (Timeout::After(PATIENCE), [0; 4]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                peer.serve(usize::MAX);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for select in [1, 3, 2, 4] {
            vmm.device.write_config(0, &[select]).unwrap();
            vmm.device.write_config(1, &[0]).unwrap();
            vmm.device.wait_config(wait).unwrap();
            vmm.device.read_current_config(0, &mut bytes).unwrap();
            assert_eq!(bytes, [select, 0, select * 3, 3]);
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    // It is there already.
    vmm.device.wait_config(wait).unwrap();
    let start = Instant::now();
    vmm.device.write_config(0, &[2]).unwrap();
    let short = Timeout::After(Duration::from_millis(20));
    assert_eq!(
        vmm.device.wait_config(short).unwrap_err().kind,
        Kind::TimedOut
    );
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn reader_learns_that_the_data_will_not_be_current() {
    let (mut vmm, mut peer) = settled();
    peer.manners.refuses = Some(Request::GetConfig);
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.until_applied_beside(&mut peer);
    let error = vmm.device.read_current_config(0, &mut [0]).unwrap_err();
    assert_eq!(error.kind, Kind::Nack);
    let error = vmm
        .device
        .wait_config(Timeout::After(PATIENCE))
        .unwrap_err();
    assert_eq!(error.kind, Kind::Nack);
    // The write was accepted.
    assert_eq!(config(&vmm, 32), [42, 33, 34, 35]);
    peer.manners.refuses = None;
    vmm.device.write_config(33, &[43]).unwrap();
    let error = vmm.device.read_current_config(0, &mut [0]).unwrap_err();
    assert_eq!(error.kind, Kind::Os(Errno::EAGAIN));
    vmm.until_applied_beside(&mut peer);
    vmm.device.read_current_config(32, &mut [0]).unwrap();
    assert_eq!(config(&vmm, 32), [42, 43, 34, 35]);
}

/// A reset discards writes that were not sent; the guest reads what the back-end has.
#[test]
fn reset_makes_the_data_current_again() {
    let (mut vmm, mut peer) = settled();
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.device.reset();
    vmm.until_applied_beside(&mut peer);
    vmm.device.read_current_config(0, &mut [0]).unwrap();
    assert_eq!(config(&vmm, 32), [32, 33, 34, 35]);
    assert_eq!(peer.count(Request::SetConfig), 0);
}

/// A write that one back-end has not answered is sent to the next, and the space is read
/// after that.
#[test]
fn data_is_current_only_after_the_next_back_end_has_the_write() {
    let (mut vmm, mut peer) = selecting();
    peer.manners.silent_from = Some(Request::SetConfig);
    vmm.device.write_config(0, &[2]).unwrap();
    vmm.process();
    peer.serve(usize::MAX);
    peer.hang_up();
    peer.manners = Manners {
        selects: true,
        ..Manners::default()
    };
    vmm.until_beside(EventKind::Lost, &mut peer);
    let error = vmm.device.read_current_config(0, &mut [0]).unwrap_err();
    assert_eq!(error.kind, Kind::Os(Errno::EAGAIN));
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 0), [2, 1, 6, 3]);
    vmm.device.read_current_config(0, &mut [0]).unwrap();
}

/// A back-end without a configuration space takes the place of one that had one.
#[test]
fn back_end_without_a_space_leaves_the_last_one() {
    let (mut vmm, mut peer) = settled();
    peer.manners.protocol = everything() - ProtocolFeatures::CONFIG;
    peer.hang_up();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(config(&vmm, 32), [32, 33, 34, 35]);
    vmm.device.write_config(32, &[42]).unwrap();
    vmm.until_beside(EventKind::ConfigRefused, &mut peer);
    vmm.until_applied_beside(&mut peer);
    // What was refused is undone.
    assert_eq!(config(&vmm, 32), [32, 33, 34, 35]);
    let error = vmm.device.read_current_config(0, &mut [0]).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
    let error = vmm
        .device
        .wait_config(Timeout::After(PATIENCE))
        .unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
}

// ---- refusals in every phase ----

/// What the device is at when the back-end refuses.
type During = (&'static str, fn(&mut Vmm));

const PHASES: [During; 8] = [
    ("running", |_| {}),
    ("stopped", |vmm| {
        vmm.device.stop(None, StopMode::Drain);
    }),
    ("one ring stopped", |vmm| {
        vmm.device.stop(Some(&[1]), StopMode::Drain);
    }),
    ("resumed", |vmm| {
        vmm.device.stop(None, StopMode::Drain);
        vmm.start(Base::Resume);
    }),
    ("reset", |vmm| {
        vmm.device.reset();
    }),
    ("reset and started", |vmm| {
        vmm.device.reset();
        vmm.want_all();
    }),
    ("call descriptor", |vmm| {
        let ring = vmm.ring(0, Base::New);
        vmm.device.set_call(0, ring.call).unwrap();
    }),
    ("more memory", |vmm| {
        let region = vmm.region();
        let (at, size) = (vmm.region_addr() + (1 << 30), 1 << 20);
        drop(region);
        let file = vmm.memory.region();
        let region = vhost_user_frontend::Region::new(at, size, 0, file.fd).unwrap();
        vmm.device.add_memory(region).unwrap();
    }),
];

/// A refused write, and a refused read, are events. Everything else goes on.
#[test]
fn refusals_are_local_in_every_phase() {
    for ack in [true, false] {
        for refused in [Request::SetConfig, Request::GetConfig] {
            for (name, begin) in PHASES {
                let protocol = match ack {
                    true => everything(),
                    false => everything() - ProtocolFeatures::REPLY_ACK,
                };
                let (mut vmm, mut peer) = rig(Manners {
                    protocol,
                    ..Manners::default()
                });
                vmm.until_applied_beside(&mut peer);
                vmm.seen.clear();
                peer.manners.refuses = Some(refused);
                // Before, beside and after.
                vmm.device.write_config(32, &[42]).unwrap();
                begin(&mut vmm);
                // A reset discards writes.
                vmm.device.write_config(33, &[43]).unwrap();
                peer.config_changed();
                vmm.calm(&mut peer);
                vmm.device.write_config(34, &[44]).unwrap();
                vmm.until_applied_beside(&mut peer);
                let what = format!("{name}, {refused:?}, REPLY_ACK {ack}");
                assert_eq!(vmm.count(EventKind::Lost), 0, "{what}");
                assert_eq!(vmm.count(EventKind::NeedsReset), 0, "{what}");
                // Without an acknowledgement a refused write looks accepted.
                let seen = vmm.count(EventKind::ConfigRefused) > 0;
                assert_eq!(seen, ack || refused == Request::GetConfig, "{what}");
                assert_eq!(peer.connections, 1, "{what}");
                assert_eq!(peer.wrong, [""; 0], "{what}");
                if refused == Request::SetConfig {
                    assert_eq!(config(&vmm, 32), [32, 33, 34, 35], "{what}");
                    vmm.device.read_current_config(0, &mut [0]).unwrap();
                }
            }
        }
    }
}
