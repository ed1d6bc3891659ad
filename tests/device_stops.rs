//! Rings that are stopped while there is no back-end, or before it has answered: where
//! they stood is known wherever the next back-end would have known from where to go on.

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

use blk_peer::{PATIENCE, Peer, deadline};
use blk_ring::Layout;
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::errno::Errno;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Barrier, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use stepper::{Manners, OFFERED, Stepper, everything};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{
    Base, Device, Event, EventKind, Kind, OutOfOrder, Recovery, Ring, RingIndices, StopMode,
    Timeout,
};
use vmm::{IN_ORDER, Vmm};

const INFLIGHT: ProtocolFeatures = ProtocolFeatures::INFLIGHT_SHMFD;

fn without(feature: ProtocolFeatures) -> Manners {
    Manners {
        protocol: everything() - feature,
        features: OFFERED | IN_ORDER,
        ..Manners::default()
    }
}

/// Two rings that run, and this policy. `more` features are acknowledged.
fn runs(manners: Manners, policy: OutOfOrder, more: u64) -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 2, |options| {
        options.out_of_order = policy;
        options.reconnect.first_delay = Duration::from_micros(10);
        options.reconnect.max_delay = Duration::from_millis(1);
    });
    let mut peer = Stepper::beside(&vmm, manners);
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.device.set_features(vmm.features() | more).unwrap();
    let region = vmm.region();
    vmm.device.set_memory(vec![region], false).unwrap();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    (vmm, peer)
}

/// They have come so far when they are lost, and nobody has seen the next back-end.
fn lose(vmm: &mut Vmm, peer: &mut Stepper, used: u16) -> Recovery {
    for ring in &vmm.rings {
        ring.pretend_used(used);
    }
    peer.hang_up();
    until_lost(vmm).recovery
}

/// Nobody is served meanwhile, and no guest looks at its rings.
fn until_lost(vmm: &mut Vmm) -> Event {
    let patience = deadline();
    loop {
        assert!(Instant::now() < patience);
        vmm.process();
        let events = std::mem::take(&mut vmm.events).into_iter();
        if let Some(event) = events.rev().find(|event| event.kind == EventKind::Lost) {
            return event;
        }
    }
}

/// Stopped while away, and resumed on the next back-end.
fn goes_on_from(vmm: &mut Vmm, peer: &mut Stepper, base: u32) {
    let quiet = vmm.device.stop(None, StopMode::Drain);
    assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
    for ring in [0, 1] {
        assert_eq!(vmm.device.vring_base(ring).unwrap(), base);
    }
    // Nobody asks the caller any more: rings may move on as they like.
    for ring in &vmm.rings {
        ring.pretend_used(99);
    }
    vmm.start(Base::Resume);
    vmm.until_applied_beside(peer);
    assert_eq!(peer.told.running(), [0, 1]);
    for ring in peer.told.rings.values() {
        assert_eq!(ring.base, base);
    }
    assert_eq!(peer.wrong, Vec::<String>::new());
    assert_eq!(vmm.count(EventKind::NeedsReset), 0);
}

#[test]
fn with_a_buffer_it_stood_at_the_used_index() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    assert_eq!(lose(&mut vmm, &mut peer, 5), Recovery::Inflight);
    goes_on_from(&mut vmm, &mut peer, 5);
    // With the rest.
    assert_eq!(peer.told.inflight, Some((2, 64)));
    assert_eq!(peer.count(Request::GetInflightFd), 1);
}

#[test]
fn in_order_it_stood_at_the_used_index() {
    let (mut vmm, mut peer) = runs(without(INFLIGHT), OutOfOrder::NeedsReset, IN_ORDER);
    assert_eq!(lose(&mut vmm, &mut peer, 6), Recovery::InOrder);
    goes_on_from(&mut vmm, &mut peer, 6);
}

#[test]
fn it_stood_where_the_caller_chose_to_go_on() {
    let (mut vmm, mut peer) = runs(without(INFLIGHT), OutOfOrder::ReplayFromUsed, 0);
    assert_eq!(lose(&mut vmm, &mut peer, 7), Recovery::ReplayFromUsed);
    goes_on_from(&mut vmm, &mut peer, 7);

    let available = OutOfOrder::ResumeFromAvailable;
    let (mut vmm, mut peer) = runs(without(INFLIGHT), available, 0);
    for _ in 0..3 {
        vmm.write(0, 1);
        vmm.write(1, 17);
    }
    let recovery = lose(&mut vmm, &mut peer, 0);
    assert_eq!(recovery, Recovery::ResumeFromAvailable);
    goes_on_from(&mut vmm, &mut peer, 3);
}

/// Some of what was made available was completed, and nobody knows which.
#[test]
fn where_a_reset_is_needed_nothing_is_known() {
    let (mut vmm, mut peer) = runs(without(INFLIGHT), OutOfOrder::NeedsReset, 0);
    assert_eq!(lose(&mut vmm, &mut peer, 5), Recovery::NeedsReset);
    let quiet = vmm.device.stop(None, StopMode::Drain);
    assert!(quiet.quiesced && !quiet.bases_valid, "{quiet:?}");
    let error = vmm.device.vring_base(0).unwrap_err();
    assert_eq!(error.kind, Kind::State, "{error}");
}

/// It may still move the index, and the index cannot be read later.
#[test]
fn while_the_back_end_may_still_write_nothing_is_known() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    vmm.device.stop(Some(&[1]), StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    // What has no right to come ends the connection, and not the back-end.
    peer.babble();
    until_lost(&mut vmm);
    assert!(!vmm.device.quiet().quiesced);
    let quiet = vmm.device.stop(None, StopMode::Drain);
    assert!(!quiet.quiesced && !quiet.bases_valid, "{quiet:?}");
    assert_eq!(vmm.device.vring_base(1).unwrap(), 0);
    let error = vmm.device.vring_base(0).unwrap_err();
    assert_eq!(error.kind, Kind::State, "{error}");
}

/// A ring that starts anew needs another buffer, and one that was stopped with
/// unfinished requests needs this one.
#[test]
fn a_ring_does_not_start_anew_at_the_cost_of_another() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    lose(&mut vmm, &mut peer, 5);
    assert!(vmm.device.stop(None, StopMode::Drain).bases_valid);
    let first = vmm.ring(0, Base::New);
    let error = vmm.device.start(&[first]).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
    assert!(error.message.contains("ring 0 has unfinished"), "{error}");
    let mixed = [vmm.ring(0, Base::New), vmm.ring(1, Base::Resume)];
    let error = vmm.device.start(&mixed).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
    // Nothing has changed.
    assert_eq!(vmm.device.vring_base(0).unwrap(), 5);
    assert_eq!(vmm.device.vring_base(1).unwrap(), 5);
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    assert_eq!(peer.count(Request::GetInflightFd), 2);
}

/// The base that a ring was stopped at is the same as to resume it, also if requests of
/// it are in the buffer.
#[test]
fn ring_started_at_the_base_of_its_stop_resumes() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    lose(&mut vmm, &mut peer, 5);
    assert!(vmm.device.stop(None, StopMode::Drain).bases_valid);
    for base in [Base::At(4), Base::At(6)] {
        let error = vmm.device.start(&[vmm.ring(0, base)]).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
    }
    vmm.device.start(&[vmm.ring(0, Base::At(5))]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0]);
    assert_eq!(peer.told.rings[&0].base, 5);
    assert_eq!(peer.told.inflight, Some((2, 64)));
    vmm.device.start(&[vmm.ring(1, Base::At(5))]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    assert_eq!(peer.told.rings[&1].base, 5);
    assert_eq!(peer.count(Request::GetInflightFd), 1);
    assert_eq!(peer.wrong, Vec::<String>::new());
}

/// A back-end without a buffer does not have the requests.
#[test]
fn ring_started_at_the_base_of_its_stop_needs_the_buffer() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    lose(&mut vmm, &mut peer, 5);
    assert!(vmm.device.stop(None, StopMode::Drain).bases_valid);
    peer.manners = without(INFLIGHT);
    vmm.until_beside(EventKind::Connected, &mut peer);
    let refusal = |base| vmm.device.start(&[vmm.ring(0, base)]).unwrap_err();
    let error = refusal(Base::At(5));
    assert_eq!(error.kind, Kind::State, "{error}");
    assert!(error.message.contains("INFLIGHT_SHMFD"), "{error}");
    assert_eq!(error.to_string(), refusal(Base::Resume).to_string());
}

/// Neither a larger ring nor a back-end without a buffer forgets what is in it.
#[test]
fn what_goes_on_with_the_buffer_needs_it() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    lose(&mut vmm, &mut peer, 5);
    assert!(vmm.device.stop(None, StopMode::Drain).bases_valid);
    let larger = Ring {
        size: 128,
        ..vmm.ring(0, Base::Resume)
    };
    let error = vmm.device.start(&[larger]).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
    vmm.start(Base::Resume);
    peer.manners = without(INFLIGHT);
    let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
    assert!(error.message.contains("INFLIGHT_SHMFD"), "{error}");
    assert_eq!(peer.told.running(), [0_u32; 0]);
}

/// With data: the rest of the requests is completed, each once, by the next life of
/// a back-end that finishes them in any order.
#[test]
fn paused_without_a_back_end_and_resumed() {
    for layout in [Layout::Split, Layout::Packed] {
        let mut vmm = Vmm::new(layout, 1, |_| {});
        let mut peer = Peer::start(&vmm.place, &["--out-of-order"]);
        vmm.bring_up();
        for _ in 0..10 {
            vmm.fill(0);
            peer.kill();
            vmm.until(EventKind::Lost);
            vmm.collect();
            let quiet = vmm.device.stop(None, StopMode::Drain);
            assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
            peer = Peer::start(&vmm.place, &["--out-of-order"]);
            vmm.until(EventKind::Connected);
            vmm.start(Base::Resume);
            vmm.until_applied();
            vmm.until_done();
        }
        vmm.check();
    }
}

/// A device with two rings, neither begun, that asks where each stands; and its back-end.
fn two_rings() -> (Vmm, Stepper) {
    let vmm = Vmm::new(Layout::Split, 2, |options| {
        options.assume_features = Some(OFFERED);
        options.out_of_order = OutOfOrder::ReplayFromUsed;
    });
    let peer = Stepper::beside(&vmm, Manners::default());
    vmm.device.set_features(vmm.features()).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    (vmm, peer)
}

/// Stops the device that asks it.
struct Stopping {
    device: Weak<Device>,
    asked: Arc<AtomicI32>,
}

impl RingIndices for Stopping {
    fn used(&self) -> Option<u16> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(device) = self.device.upgrade().filter(|_| asked > 0) {
            // Neither may it wait, nor is it waited for.
            let error = device.wait(Timeout::After(PATIENCE)).unwrap_err();
            assert_eq!(error.kind, Kind::State, "{error}");
            assert_eq!(device.process().unwrap_err().kind, Kind::State);
            if asked == 1 {
                device.stop(Some(&[1]), StopMode::Drain);
            }
        }
        Some(4)
    }
}

#[test]
fn who_is_asked_by_a_stop_may_stop() {
    let (mut vmm, mut peer) = two_rings();
    let asked = Arc::new(AtomicI32::new(0));
    let stopping = Arc::new(Stopping {
        device: Arc::downgrade(&vmm.device),
        asked: Arc::clone(&asked),
    });
    let first = Ring {
        indices: Some(stopping),
        ..vmm.ring(0, Base::New)
    };
    vmm.device.start(&[first]).unwrap();
    let second = vmm.ring(1, Base::New);
    vmm.device.start(&[second]).unwrap();
    vmm.until_applied_beside(&mut peer);
    lose(&mut vmm, &mut peer, 3);
    assert!(vmm.device.stop(Some(&[0]), StopMode::Drain).bases_valid);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(vmm.device.vring_base(0).unwrap(), 4);
    assert_eq!(vmm.device.vring_base(1).unwrap(), 3);
}

/// Stops the very ring that is asked for.
struct StoppingItself {
    device: Weak<Device>,
    asked: Arc<AtomicI32>,
}

impl RingIndices for StoppingItself {
    fn used(&self) -> Option<u16> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(asked < 9, "it is asked again and again");
        if let Some(device) = self.device.upgrade().filter(|_| asked > 0) {
            device.stop(None, StopMode::Drain);
        }
        Some(4)
    }
}

/// It is not asked once more, for ever, where it stands.
#[test]
fn who_is_asked_by_a_stop_may_stop_that_very_ring() {
    let (mut vmm, mut peer) = two_rings();
    let asked = Arc::new(AtomicI32::new(0));
    let stopping = Arc::new(StoppingItself {
        device: Arc::downgrade(&vmm.device),
        asked: Arc::clone(&asked),
    });
    let first = Ring {
        indices: Some(stopping),
        ..vmm.ring(0, Base::New)
    };
    let second = vmm.ring(1, Base::New);
    vmm.device.start(&[first, second]).unwrap();
    vmm.until_applied_beside(&mut peer);
    lose(&mut vmm, &mut peer, 3);
    let quiet = vmm.device.stop(Some(&[0]), StopMode::Drain);
    assert!(quiet.quiesced, "{quiet:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // The ring of which nobody is asked at that moment is asked for, as ever.
    assert_eq!(vmm.device.vring_base(1).unwrap(), 3);
    // Nobody is held up by who has asked.
    vmm.device.reset();
}

/// Stops the device that asks it, once two threads of it do.
struct Meeting {
    device: Weak<Device>,
    asked: AtomicI32,
    both: Barrier,
}

impl RingIndices for Meeting {
    fn used(&self) -> Option<u16> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        // Both rings are asked for when they are started.
        if let Some(device) = self.device.upgrade().filter(|_| (2..4).contains(&asked)) {
            self.both.wait();
            device.stop(None, StopMode::Drain);
        }
        Some(4)
    }
}

/// One of them is asked because the rings are stopped, the other because the next
/// back-end has come.
#[test]
fn two_who_are_asked_may_both_stop() {
    let (mut vmm, mut peer) = two_rings();
    let meeting = Arc::new(Meeting {
        device: Arc::downgrade(&vmm.device),
        asked: AtomicI32::new(0),
        both: Barrier::new(2),
    });
    let ring = |index| Ring {
        indices: Some(meeting.clone()),
        ..vmm.ring(index, Base::New)
    };
    vmm.device.start(&[ring(0), ring(1)]).unwrap();
    vmm.until_applied_beside(&mut peer);
    lose(&mut vmm, &mut peer, 3);

    let (tell, told) = mpsc::channel();
    let (device, tells) = (Arc::clone(&vmm.device), tell.clone());
    thread::spawn(move || {
        device.stop(Some(&[0]), StopMode::Drain);
        tells.send("stopped").unwrap();
    });
    let patience = deadline();
    while meeting.asked.load(Ordering::SeqCst) < 3 {
        assert!(Instant::now() < patience);
        thread::yield_now();
    }
    let (device, asked) = (Arc::clone(&vmm.device), Arc::clone(&meeting));
    thread::spawn(move || {
        while asked.asked.load(Ordering::SeqCst) < 4 {
            assert!(Instant::now() < patience);
            device.process().unwrap();
        }
        tell.send("processed").unwrap();
    });
    let mut done = [(); 2].map(|()| {
        told.recv_timeout(PATIENCE)
            .expect("they wait for each other")
    });
    done.sort_unstable();
    assert_eq!(done, ["processed", "stopped"]);
    assert!(vmm.device.quiet().quiesced);
}

/// No ring at all begins anew then.
#[test]
fn the_start_of_no_ring_forgets_nothing() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    lose(&mut vmm, &mut peer, 5);
    assert!(vmm.device.stop(None, StopMode::Drain).bases_valid);
    vmm.device.start(&[]).unwrap();
    assert_eq!(vmm.device.vring_base(0).unwrap(), 5);
    goes_on_from(&mut vmm, &mut peer, 5);
    assert_eq!(peer.count(Request::GetInflightFd), 1);
}

/// Nor does a larger ring take the place of what another has in the buffer.
#[test]
fn a_buffer_with_unfinished_requests_is_not_replaced() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    lose(&mut vmm, &mut peer, 5);
    assert!(vmm.device.stop(None, StopMode::Drain).bases_valid);
    let larger = Ring {
        size: 128,
        ..vmm.ring(1, Base::At(0))
    };
    let error = vmm.device.start(&[larger]).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EBUSY), "{error}");
    assert!(error.message.contains("ring 1 has unfinished"), "{error}");
    goes_on_from(&mut vmm, &mut peer, 5);
}

/// The answer to the stop before it says where the ring of before stood, and not this
/// one.
#[test]
fn a_ring_that_never_ran_stands_where_it_began() {
    for reset in [true, false] {
        let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
        // Where it stood is what the back-end was told.
        vmm.device.stop(None, StopMode::Drain);
        vmm.until_applied_beside(&mut peer);
        vmm.start(Base::At(8));
        vmm.until_applied_beside(&mut peer);
        match reset {
            true => _ = vmm.device.reset(),
            false => _ = vmm.device.stop(None, StopMode::Drain),
        }
        vmm.device.set_features(vmm.features()).unwrap();
        let [first, second] = [vmm.ring(0, Base::New), vmm.ring(1, Base::At(3))];
        vmm.device.start(&[first, second]).unwrap();
        let quiet = vmm.device.stop(None, StopMode::Drain);
        assert!(!quiet.quiesced);
        // A run before a reset leaves nothing behind; any other may until it has stopped.
        for messages in peer.taken..peer.taken + 200 {
            let quiet = vmm.device.quiet();
            if quiet.quiesced {
                assert!(quiet.bases_valid, "{quiet:?}");
                break;
            }
            let stopping = quiet.bases_valid == reset;
            let stopped = quiet.bases_valid && peer.told.running().is_empty();
            assert!(stopping || stopped, "{quiet:?}");
            vmm.until_taken(&mut peer, messages);
        }
        assert!(vmm.device.quiet().quiesced);
        assert_eq!(vmm.device.vring_base(0).unwrap(), 0);
        assert_eq!(vmm.device.vring_base(1).unwrap(), 3);
        vmm.until_applied_beside(&mut peer);
        assert!(vmm.device.quiet().bases_valid);
    }
}

/// Nor does the loss of that one change it.
#[test]
fn a_ring_that_never_ran_is_not_lost() {
    let (mut vmm, mut peer) = runs(Manners::default(), OutOfOrder::NeedsReset, 0);
    vmm.device.reset();
    vmm.device.set_features(vmm.features()).unwrap();
    vmm.start(Base::At(3));
    vmm.device.stop(None, StopMode::Drain);
    lose(&mut vmm, &mut peer, 5);
    let quiet = vmm.device.quiet();
    assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
    assert_eq!(vmm.device.vring_base(0).unwrap(), 3);
}

/// Two requests of each ring are not completed when its stop is answered.
fn stopped_early(policy: OutOfOrder, lacks: ProtocolFeatures) -> (Vmm, Stepper) {
    let (mut vmm, mut peer) = runs(without(INFLIGHT | lacks), policy, 0);
    for ring in &vmm.rings {
        ring.pretend_used(u16::MAX - 1);
    }
    vmm.device.stop(None, StopMode::Drain);
    while peer.count(Request::GetVringBase) < 2 {
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    for _ in 0..20 {
        vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(1));
    }
    let quiet = vmm.device.quiet();
    assert!(!quiet.quiesced && !quiet.bases_valid, "{quiet:?}");
    (vmm, peer)
}

#[test]
fn a_ring_is_stopped_when_its_used_index_reaches_its_base() {
    let (mut vmm, mut peer) = stopped_early(OutOfOrder::NeedsReset, ProtocolFeatures::empty());
    for ring in &vmm.rings {
        ring.pretend_used(0);
    }
    vmm.until_applied_beside(&mut peer);
    let quiet = vmm.device.quiet();
    assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
    assert_eq!(vmm.device.vring_base(1).unwrap(), 0);
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

#[test]
fn a_ring_that_is_not_drained_costs_the_connection() {
    for (policy, base) in [
        (OutOfOrder::ReplayFromUsed, Some(u32::from(u16::MAX) - 1)),
        (OutOfOrder::NeedsReset, None),
    ] {
        let (mut vmm, mut peer) = stopped_early(policy, ProtocolFeatures::empty());
        let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
        assert_eq!(error.kind, Kind::Protocol, "{error}");
        assert_eq!(
            (error.request, error.ring),
            (Some(Request::GetVringBase), Some(0))
        );
        assert_eq!(error.value, Some(2), "{error}");
        assert!(error.message.contains("2 requests unfinished"), "{error}");
        assert!(!vmm.device.quiet().quiesced);
        // It closes its end, and the index moves no longer.
        while !vmm.device.quiet().quiesced {
            vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
        }
        assert_eq!(vmm.device.quiet().bases_valid, base.is_some());
        assert_eq!(vmm.device.vring_base(0).ok(), base);
    }
}

/// Nothing has to be known yet: the base is read before the next back-end gets the ring.
#[test]
fn a_ring_whose_stop_was_cut_off_is_resumed_at_once() {
    let (mut vmm, mut peer) = stopped_early(OutOfOrder::ReplayFromUsed, ProtocolFeatures::empty());
    vmm.until_beside(EventKind::Lost, &mut peer);
    assert!(!vmm.device.quiet().quiesced);
    vmm.start(Base::Resume);
    // The old back-end completes one more request before it is gone.
    for ring in &vmm.rings {
        ring.pretend_used(u16::MAX);
    }
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    for ring in peer.told.rings.values() {
        assert_eq!(ring.base, u32::from(u16::MAX));
    }
}

/// A policy that needs a reset knows no base, now or later.
#[test]
fn a_ring_whose_stop_was_cut_off_is_not_resumed_without_a_base() {
    let (mut vmm, mut peer) = stopped_early(OutOfOrder::NeedsReset, ProtocolFeatures::empty());
    vmm.until_beside(EventKind::Lost, &mut peer);
    let error = vmm.try_start(Base::Resume).unwrap_err();
    assert_eq!(error.kind, Kind::State, "{error}");
}

/// The acknowledgement of the reset says that the rings are stopped, whatever their used
/// indices are. Without one the used index alone does.
#[test]
fn reset_by_a_request_ends_the_drain() {
    let (device, status) = (ProtocolFeatures::RESET_DEVICE, ProtocolFeatures::STATUS);
    for (lacks, request) in [
        (ProtocolFeatures::empty(), Some(Request::ResetDevice)),
        (device, Some(Request::SetStatus)),
        (device | status, None),
    ] {
        let (mut vmm, mut peer) = stopped_early(OutOfOrder::NeedsReset, lacks);
        let before = request.map(|request| peer.count(request));
        assert!(!vmm.device.reset().quiesced);
        match request {
            Some(request) => {
                while !vmm.device.quiet().quiesced {
                    assert_eq!(vmm.count(EventKind::Lost), 0, "{request:?}");
                    vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
                }
                assert_eq!(Some(peer.count(request) - 1), before);
            }
            None => {
                for _ in 0..20 {
                    vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(1));
                    assert!(!vmm.device.quiet().quiesced);
                }
                vmm.rings.iter().for_each(|ring| ring.pretend_used(0));
            }
        }
        vmm.until_applied_beside(&mut peer);
        let quiet = vmm.device.quiet();
        assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
        assert_eq!(vmm.count(EventKind::Lost), 0, "{request:?}");
    }
}
