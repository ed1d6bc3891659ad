//! Back-ends that hang, refuse, die while they are greeted, come back as less than
//! they were, or are somebody else's.

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

use blk_peer::{PATIENCE, Place, deadline};
use blk_ring::{GuestMemory, Layout};
use device::{blk_peer, blk_ring, stepper, vmm};
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use stepper::{Manners, OFFERED, Stepper, early, everything};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{
    Base, Class, DeviceOptions, Error, EventKind, Kind, MemoryState, OutOfOrder, Peer, Phase,
    Recovery, Region, Ring, StopMode, Timeout,
};
use vmm::Vmm;

/// For a deadline that is meant to pass.
const BRIEF: Timeout = Timeout::After(Duration::from_millis(50));
const SLOW: Duration = Duration::from_millis(60);

fn hasty(options: &mut DeviceOptions) {
    early(options);
    options.reconnect.max_delay = Duration::from_millis(1);
    options.reconnect.slow_delay = SLOW;
}

fn impatient(options: &mut DeviceOptions) {
    hasty(options);
    (options.quick, options.slow, options.drain) = (BRIEF, BRIEF, BRIEF);
    options.stall = Duration::from_millis(10);
}

fn rig(manners: Manners, change: impl FnOnce(&mut DeviceOptions)) -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 2, change);
    let peer = Stepper::beside(&vmm, manners);
    vmm.want_all();
    (vmm, peer)
}

/// Every kind of request of a bring-up, in order, with a stop of one ring at the
/// end.
fn requests(protocol: ProtocolFeatures) -> Vec<Request> {
    let manners = Manners {
        protocol,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(manners, hasty);
    vmm.until_applied_beside(&mut peer);
    let mut kinds = Vec::new();
    for (request, _) in &peer.log {
        if !kinds.contains(request) {
            kinds.push(*request);
        }
    }
    kinds
}

#[test]
fn a_request_that_is_not_answered_is_named() {
    let all = requests(everything());
    assert!(all.len() >= 18, "{all:?}");
    for (at, request) in all.iter().enumerate() {
        let manners = Manners {
            silent_from: Some(*request),
            ..Manners::default()
        };
        let (mut vmm, mut peer) = rig(manners, impatient);
        // Nobody ever answers this one.
        let unanswered = match request {
            Request::SetProtocolFeatures => all[at + 1],
            _ => *request,
        };
        // On a busy machine others may take long, too, or the deadline may have passed
        // before anybody looks.
        let mut stalls = 0;
        let error = loop {
            let event = vmm.next_beside(&mut peer);
            let named = |error: &Error| error.request == Some(unanswered);
            match (event.kind, event.error) {
                (EventKind::Stalled, Some(error)) if named(&error) => stalls += 1,
                (EventKind::Lost, Some(error)) if named(&error) && stalls > 0 => break error,
                (EventKind::Lost, _) => stalls = 0,
                _ => {}
            }
        };
        assert_eq!(error.kind, Kind::TimedOut, "{error}");
        assert_eq!(error.phase, Phase::Reply, "{error}");
        assert_eq!(error.class(), Class::Transport, "{error}");
        assert_eq!(stalls, 1, "{request:?}");
        peer.manners.silent_from = None;
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.told.running(), [0, 1], "{request:?}");
        assert_eq!(peer.wrong, Vec::<String>::new(), "{request:?}");
    }
}

/// Without acknowledgements only the request behind shows it.
#[test]
fn a_barrier_that_is_not_answered_names_its_request() {
    let protocol = everything() - ProtocolFeatures::REPLY_ACK;
    for request in [Request::AddMemReg, Request::SetVringEnable] {
        let manners = Manners {
            protocol,
            silent_from: Some(request),
            ..Manners::default()
        };
        let (mut vmm, mut peer) = rig(manners, |options| {
            hasty(options);
            options.slow = Timeout::After(Duration::from_millis(200));
        });
        let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
        assert_eq!(error.kind, Kind::TimedOut, "{error}");
        assert_eq!(error.request, Some(request), "{error}");
        assert_eq!(error.phase, Phase::Barrier, "{error}");
    }
}

#[test]
fn a_refusal_is_a_loss_and_is_tried_again_slowly() {
    let told_otherwise = [
        Request::GetFeatures,
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures,
        Request::GetQueueNum,
        Request::GetMaxMemSlots,
        Request::GetConfig,
        Request::GetInflightFd,
    ];
    let mut all = requests(everything());
    all.retain(|request| !told_otherwise.contains(request) && !LOCAL.contains(request));
    assert!(all.len() >= 5, "{all:?}");
    for request in all {
        let manners = Manners {
            refuses: Some(request),
            ..Manners::default()
        };
        let (mut vmm, mut peer) = rig(manners, hasty);
        let lost = vmm.until_beside(EventKind::Lost, &mut peer);
        let error = lost.error.unwrap();
        assert_eq!(error.class(), Class::Refused, "{error}");
        assert_eq!(error.request, Some(request), "{error}");
        assert_eq!(error.value, Some(1), "{error}");
        let before = peer.connections;
        while peer.connections == before {
            vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
        }
        peer.manners.refuses = None;
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.told.running(), [0, 1], "{request:?}");
    }
}

/// Refused, these concern one ring or one region.
const LOCAL: [Request; 8] = [
    Request::AddMemReg,
    Request::SetVringCall,
    Request::SetVringNum,
    Request::SetVringBase,
    Request::SetVringAddr,
    Request::SetVringErr,
    Request::SetVringKick,
    Request::SetVringEnable,
];

#[test]
fn a_local_refusal_is_reported_and_the_connection_stays() {
    let made = requests(everything());
    for request in LOCAL.into_iter().filter(|request| made.contains(request)) {
        let manners = Manners {
            refuses: Some(request),
            ..Manners::default()
        };
        let (mut vmm, mut peer) = rig(manners, hasty);
        let refused = vmm.until_beside(EventKind::Refused, &mut peer);
        let error = refused.error.unwrap();
        assert_eq!(error.request, Some(request), "{error}");
        assert_eq!((error.kind, error.value), (Kind::Nack, Some(1)), "{error}");
        for _ in 0..100 {
            vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(1));
        }
        assert!(peer.told.running().is_empty(), "{request:?}");
        let error = vmm.device.wait(Timeout::After(PATIENCE)).unwrap_err();
        assert_eq!((error.request, error.kind), (Some(request), Kind::Nack));
        assert_eq!(vmm.count(EventKind::Lost), 0, "{request:?}");
        assert_eq!(vmm.count(EventKind::NeedsReset), 0, "{request:?}");
        let asked = peer.count(request);
        assert!(asked <= 2, "{request:?} was sent {asked} times");

        peer.manners.refuses = None;
        let region = vmm.region();
        vmm.device.set_memory(vec![region], false).unwrap();
        vmm.start(Base::New);
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.told.running(), [0, 1], "{request:?}");
        assert_eq!(peer.connections, 1);
    }
}

/// A region at one of these addresses.
fn more_memory(at: u64) -> Region {
    let memory = GuestMemory::new(1 << 20);
    Region::new(at, 1 << 20, 0, memory.region().fd).unwrap()
}

const SECOND: u64 = 0x8000_0000;
const THIRD: u64 = 0x9000_0000;

/// Two tables are sent, each with a region more, before the first is answered. Those with
/// so many regions are refused.
fn tables_in_a_row(refuses_when: fn(Request, &[u8]) -> bool) -> (Vmm, Stepper) {
    let manners = Manners {
        protocol: everything() - ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        refuses_when,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(manners, hasty);
    vmm.until_applied_beside(&mut peer);
    // Rings would have to stop in between.
    vmm.device.stop(None, StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    let tables = peer.count(Request::SetMemTable);
    for at in [SECOND, THIRD] {
        vmm.device.add_memory(more_memory(at)).unwrap();
        (0..10).for_each(|_| vmm.process());
    }
    vmm.calm(&mut peer);
    let tables = peer.count(Request::SetMemTable) - tables;
    assert!((2..=3).contains(&tables), "{tables} tables");
    assert_eq!(vmm.count(EventKind::Lost), 0);
    (vmm, peer)
}

/// Addresses that the text of a refusal names.
fn named(vmm: &mut Vmm) -> Vec<u64> {
    let refused = vmm.until(EventKind::Refused).error.unwrap();
    assert_eq!(refused.request, Some(Request::SetMemTable), "{refused}");
    assert!(!refused.message.contains("more"), "{refused}");
    let ram = vmm.region_addr();
    let names = |at: &u64| refused.message.contains(&format!("guest_addr {at:#x},"));
    [ram, SECOND, THIRD].into_iter().filter(names).collect()
}

#[test]
fn refused_table_in_a_row_names_the_region_that_it_adds() {
    let (mut vmm, peer) =
        tables_in_a_row(|request, table| request == Request::SetMemTable && table[0] == 3);
    assert_eq!(named(&mut vmm), [THIRD]);
    assert_eq!(vmm.count(EventKind::Refused), 1);
    assert_eq!(vmm.device.memory_state(), MemoryState::Failed);
    let has: Vec<_> = peer.told.memory.keys().copied().collect();
    assert_eq!(has, [vmm.region_addr(), SECOND]);
}

/// The table behind it takes its place.
#[test]
fn refused_table_that_is_replaced_is_not_reported() {
    let (vmm, peer) =
        tables_in_a_row(|request, table| request == Request::SetMemTable && table[0] == 2);
    assert_eq!(vmm.count(EventKind::Refused), 0);
    assert!(vmm.is_applied());
    assert_eq!(vmm.device.memory_state(), MemoryState::Applied);
    assert_eq!(peer.told.memory.len(), 3);
}

/// A first table that is refused leaves no region that is wanted, which is no reason to
/// close the connection. Only when the caller takes the memory away is there one: any part
/// of the table may be in use.
#[test]
fn refused_first_table_closes_nothing_before_the_memory_is_taken_away() {
    let manners = Manners {
        protocol: everything() - ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        refuses: Some(Request::SetMemTable),
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(manners, hasty);
    vmm.until_beside(EventKind::Refused, &mut peer);
    vmm.calm(&mut peer);
    let error = vmm.device.wait(Timeout::After(PATIENCE)).unwrap_err();
    assert_eq!(error.kind, Kind::Nack, "{error}");
    assert_eq!(vmm.device.memory_state(), MemoryState::Failed);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    assert_eq!((peer.connections, peer.count(Request::SetMemTable)), (1, 1));

    vmm.device.set_memory(Vec::new(), false).unwrap();
    assert!(!vmm.device.quiet().quiesced);
    assert_eq!(vmm.device.memory_state(), MemoryState::Pending);
    let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
    assert_eq!(error.kind, Kind::Canceled, "{error}");
    vmm.until_beside(EventKind::Connected, &mut peer);
    assert!(vmm.device.quiet().quiesced);
    vmm.calm(&mut peer);
    assert_eq!((peer.connections, peer.count(Request::SetMemTable)), (2, 1));
    assert_eq!(vmm.count(EventKind::Lost), 1);
}

/// More requests than may be unanswered at once: the refusal of the first is there before
/// the last is sent.
#[test]
fn refused_disable_of_many_rings_is_not_repeated() {
    const RINGS: u32 = 72;
    let manners = Manners {
        queues: RINGS.into(),
        refuses_when: |request, state| request == Request::SetVringEnable && state[4..8] == [0; 4],
        ..Manners::default()
    };
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        hasty(options);
        options.num_rings = RINGS;
    });
    let mut peer = Stepper::beside(&vmm, manners);
    vmm.device.set_features(vmm.features()).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    // With few descriptors: an ordinary user has no more than 256.
    let ring = |index| Ring {
        index,
        call: None,
        err: None,
        ..vmm.ring(0, Base::New)
    };
    let rings: Vec<_> = (0..RINGS).map(ring).collect();
    vmm.device.start(&rings).unwrap();
    drop(rings);
    vmm.until_applied_beside(&mut peer);
    let rings = usize::try_from(RINGS).unwrap();
    assert_eq!(peer.count(Request::SetVringEnable), rings);
    vmm.device.stop(None, StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    // Each once, and stopped all the same.
    assert_eq!(peer.count(Request::SetVringEnable), 2 * rings);
    assert_eq!(peer.count(Request::GetVringBase), rings);
    assert_eq!(peer.told.running(), [0_u32; 0]);
    let quiet = vmm.device.quiet();
    assert!(quiet.quiesced && quiet.bases_valid, "{quiet:?}");
    assert_eq!(vmm.count(EventKind::Refused), 0);
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

/// No configuration space and no buffer are fine.
#[test]
fn some_refusals_are_answers() {
    for request in [Request::GetConfig, Request::GetInflightFd] {
        let manners = Manners {
            refuses: Some(request),
            ..Manners::default()
        };
        let (mut vmm, mut peer) = rig(manners, hasty);
        vmm.until_applied_beside(&mut peer);
        assert_eq!(vmm.count(EventKind::Lost), 0);
        assert_eq!(peer.told.running(), [0, 1]);
        assert!(peer.told.inflight.is_some() == (request == Request::GetConfig));
    }
}

/// Whoever only waits takes no events. How the rings go on is still told.
#[test]
fn how_rings_go_on_is_not_hidden_by_a_loss_that_follows() {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    vmm.until_applied_beside(&mut peer);
    vmm.events.clear();
    peer.manners.reads = 5;
    peer.hang_up();
    let device = std::sync::Arc::clone(&vmm.device);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| device.wait(Timeout::After(PATIENCE)));
        let patience = deadline();
        while peer.connections < 5 {
            assert!(Instant::now() < patience);
            peer.serve(usize::MAX);
        }
        peer.manners.reads = usize::MAX;
        while !waiter.is_finished() {
            peer.serve(usize::MAX);
        }
        waiter.join().unwrap().unwrap();
    });
    let lost = vmm.until(EventKind::Lost);
    assert_eq!(lost.recovery, Recovery::Inflight);
}

// ---- a dying listener ----

/// Bytes of a bring-up: those read and those written, and how many of each when the
/// handshake was through.
fn bytes() -> ([usize; 2], [usize; 2]) {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    vmm.until_beside(EventKind::Connected, &mut peer);
    // The last answer of the handshake was the one to GET_CONFIG.
    let last = peer.log.iter().position(|it| it.0 == Request::GetConfig);
    let sizes = peer.log[..=last.unwrap()].iter().map(|it| 12 + it.1.len());
    let handshake = [sizes.sum(), 0];
    vmm.until_applied_beside(&mut peer);
    ([peer.bytes().0, peer.bytes().1], handshake)
}

#[test]
fn a_back_end_that_dies_at_any_byte_is_tried_again() {
    let (all, handshake) = bytes();
    for k in 1..=all[0].max(all[1]) {
        for reading in [true, false] {
            let mut manners = Manners::default();
            match reading {
                true if k <= all[0] => manners.reads = k,
                false if k <= all[1] => manners.writes = k,
                _ => continue,
            }
            let (mut vmm, mut peer) = rig(manners, hasty);
            // It dies three times, and is well then. With the buffer of before it is
            // told less the next time, and may not come so far.
            let patience = deadline();
            while !vmm.is_applied() && (peer.connections < 3 || peer.is_connected()) {
                assert!(Instant::now() < patience, "{k} bytes");
                vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
            }
            peer.manners = Manners::default();
            let connected = vmm.count(EventKind::Connected);
            vmm.until_applied_beside(&mut peer);
            let what = format!("{k} bytes, reading: {reading}");
            assert_eq!(peer.told.running(), [0, 1], "{what}");
            assert_eq!(peer.wrong, Vec::<String>::new(), "{what}");
            let connections = vmm.device.info().connections;
            assert!((2..=4).contains(&connections), "{what}: {connections}");
            if reading && k < handshake[0] {
                assert_eq!(connected, 0, "{what}");
            }
            for (kind, recovery) in &vmm.seen {
                let harmless = matches!(
                    recovery,
                    Recovery::Idle | Recovery::ReplayFromUsed | Recovery::Inflight
                );
                assert!(harmless && *kind != EventKind::NeedsReset, "{what}");
            }
        }
    }
}

// ---- away ----

#[test]
fn the_delays_grow_and_nothing_is_given_up() {
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        options.assume_features = Some(OFFERED);
        options.reconnect.first_delay = Duration::from_millis(1);
        options.reconnect.max_delay = Duration::from_millis(8);
        options.reconnect.jitter_percent = 0;
    });
    vmm.want_all();
    let mut delays = Vec::new();
    for attempt in 1..=8 {
        let retrying = vmm.until(EventKind::Retrying);
        assert_eq!(retrying.count, attempt);
        let error = retrying.error.unwrap();
        assert_eq!(error.phase, Phase::Connect, "{error}");
        delays.push(retrying.delay.unwrap().as_millis());
    }
    assert_eq!(delays, [1, 2, 4, 8, 8, 8, 8, 8]);
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.until_applied_beside(&mut peer);
    // The attempts before it was there do not count as losses.
    peer.hang_up();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.delay, Some(Duration::from_millis(1)));
    vmm.until_applied_beside(&mut peer);
}

#[test]
fn the_caller_need_not_wait_for_the_next_attempt() {
    let mut vmm = Vmm::new(Layout::Split, 1, |options| {
        options.assume_features = Some(OFFERED);
        options.reconnect.first_delay = Duration::from_secs(3600);
        options.reconnect.max_delay = Duration::from_secs(3600);
    });
    vmm.want_all();
    vmm.until(EventKind::Retrying);
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.device.reconnect();
    vmm.until_applied_beside(&mut peer);
}

// ---- less than before ----

/// What is missing is named, tried for slowly, and taken when it is back.
fn comes_back_as(less: impl Fn(&mut Manners), named: &str, recovery: Recovery) {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    vmm.until_applied_beside(&mut peer);
    // It has a request unfinished.
    vmm.write(0, 1);
    let full = peer.manners.clone();
    less(&mut peer.manners);
    peer.hang_up();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.recovery, recovery);
    for _ in 0..2 {
        let lost = vmm.until_beside(EventKind::Lost, &mut peer);
        let error = lost.error.unwrap();
        assert!(error.message.contains(named), "{error}");
        assert_eq!(lost.delay, Some(SLOW));
        let before = peer.connections;
        while peer.connections == before {
            vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
        }
    }
    assert_eq!(peer.told.running(), [0_u32; 0]);
    peer.manners = full;
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    assert_eq!(peer.wrong, Vec::<String>::new());
    assert_eq!(vmm.count(EventKind::Connected), 2);
}

#[test]
fn a_feature_that_is_gone_is_named() {
    let less = |manners: &mut Manners| manners.features &= !(1 << 9);
    comes_back_as(less, "9", Recovery::Inflight);
}

#[test]
fn slots_that_are_gone_are_named() {
    let less = |manners: &mut Manners| manners.slots = 0;
    comes_back_as(less, "slots", Recovery::Inflight);
}

/// The rings were told to go on from the buffer. Without one, what was completed out
/// of order would be done again, behind the caller's back.
#[test]
fn a_buffer_that_is_not_supported_any_more_is_named() {
    let less = |manners: &mut Manners| manners.protocol -= ProtocolFeatures::INFLIGHT_SHMFD;
    comes_back_as(less, "INFLIGHT_SHMFD", Recovery::Inflight);
}

/// More is no harm.
#[test]
fn a_back_end_may_come_back_as_more() {
    let manners = Manners {
        protocol: ProtocolFeatures::REPLY_ACK,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = rig(manners, hasty);
    vmm.until_applied_beside(&mut peer);
    peer.manners = Manners::default();
    peer.hang_up();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.recovery, Recovery::ReplayFromUsed);
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    assert!(peer.told.inflight.is_some());
    assert_eq!(vmm.count(EventKind::NeedsReset), 0);
}

/// The caller came late, not the back-end.
#[test]
fn an_answer_that_nobody_has_read_yet_is_no_stall() {
    let (mut vmm, mut peer) = rig(Manners::default(), |options| {
        hasty(options);
        options.stall = Duration::from_millis(20);
    });
    vmm.until_applied_beside(&mut peer);
    vmm.device.set_call(0, None).unwrap();
    vmm.process();
    assert!(peer.serve(usize::MAX));
    std::thread::sleep(Duration::from_millis(40));
    while vmm.turn_beside(&mut peer, usize::MAX, Duration::ZERO) {}
    assert!(vmm.is_applied());
    assert_eq!(vmm.count(EventKind::Stalled), 0);
}

/// Which rings were how large decides over the buffer. One that is stopped
/// meanwhile does not make it another, or what is in flight is forgotten.
#[test]
fn the_buffer_outlives_the_largest_ring() {
    let (mut vmm, mut peer) = rig(Manners::default(), |options| {
        hasty(options);
        options.num_rings = 2;
    });
    vmm.device.stop(None, StopMode::Drain);
    let small = vmm.ring(0, Base::New);
    let large = vhost_user_frontend::Ring {
        size: 128,
        ..vmm.ring(1, Base::New)
    };
    vmm.device.start(&[small, large]).unwrap();
    vmm.until_applied_beside(&mut peer);
    let stop = StopMode::Drain;
    vmm.device.stop(Some(&[1]), stop);
    vmm.until_applied_beside(&mut peer);
    let asked = |peer: &Stepper| {
        let log = peer.log.iter();
        log.filter(|it| it.0 == Request::GetInflightFd).count()
    };
    assert_eq!(asked(&peer), 1);
    peer.hang_up();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.recovery, Recovery::Inflight);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(asked(&peer), 1, "it began with an empty buffer");
    assert!(peer.told.inflight.is_some());
}

/// What was in flight when the rings were abandoned is nothing of rings that begin
/// anew.
#[test]
fn rings_that_begin_anew_have_a_new_buffer() {
    let anew = |told: fn(&mut Vmm, &mut Stepper)| {
        let (mut vmm, mut peer) = rig(Manners::default(), hasty);
        vmm.until_applied_beside(&mut peer);
        told(&mut vmm, &mut peer);
        assert_eq!(peer.count(Request::GetInflightFd), 1);
        vmm.start(Base::New);
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.connections, 2);
        assert_eq!(peer.told.inflight, Some((2, 64)));
        assert_eq!(peer.count(Request::GetInflightFd), 2);
    };
    anew(|vmm, peer| {
        vmm.device.stop(None, StopMode::Abandon);
        vmm.until_beside(EventKind::Connected, peer);
    });
    // The same where it is lost before it has stopped them.
    anew(|vmm, peer| {
        vmm.write(0, 1);
        vmm.write(1, 17);
        vmm.device.stop(None, StopMode::Drain);
        peer.hang_up();
        vmm.until_beside(EventKind::Connected, peer);
        vmm.until_applied_beside(peer);
    });
    // And where it is not there yet.
    anew(|vmm, _| _ = vmm.device.stop(None, StopMode::Abandon));
}

/// What was left in it is for rings that go on.
#[test]
fn rings_that_were_stopped_and_go_on_keep_their_buffer() {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    vmm.until_applied_beside(&mut peer);
    vmm.device.stop(None, StopMode::SkipDrain);
    vmm.until_applied_beside(&mut peer);
    peer.hang_up();
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.start(Base::Resume);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.inflight, Some((2, 64)));
    assert_eq!(peer.count(Request::GetInflightFd), 1);
}

/// No later back-end could use the buffer either.
#[test]
fn unmappable_in_flight_buffer_is_not_handed_on() {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    peer.buffer = Some(File::open("/").unwrap().into());
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    let error = lost.error.unwrap();
    assert_eq!(error.kind, Kind::Protocol, "{error}");
    assert_eq!(error.request, Some(Request::GetInflightFd), "{error}");
    assert_eq!(peer.count(Request::SetInflightFd), 0);
    peer.buffer = None;
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.inflight, Some((2, 64)));
}

/// A ring that is larger than the buffer was made for needs another buffer, once
/// nothing is in flight any more.
#[test]
fn the_buffer_grows_with_a_ring() {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.inflight, Some((2, 64)));
    vmm.device.stop(None, StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    let large = vhost_user_frontend::Ring {
        size: 128,
        ..vmm.ring(1, Base::New)
    };
    vmm.device.start(&[large]).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.inflight, Some((2, 128)));
}

// ---- somebody else's ----

#[test]
fn a_second_front_end_waits_for_its_turn() {
    let (mut first, mut peer) = rig(Manners::default(), hasty);
    first.until_applied_beside(&mut peer);
    let path = Peer::Path(first.place.file("sock"));
    let mut second = Vmm::reaching(Place::new(), path, Layout::Split, 2, impatient);
    second.want_all();
    let error = second.until(EventKind::Lost).error.unwrap();
    assert_eq!(error.kind, Kind::TimedOut, "{error}");
    assert_eq!(error.request, Some(Request::GetFeatures), "{error}");
    assert!(error.message.contains("in use"), "{error}");
    assert_eq!(second.count(EventKind::Connected), 0);
    assert!(first.is_applied());
    let Vmm { device, place, .. } = first;
    drop(device);
    second.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
    drop(place);
}

#[test]
fn a_full_backlog_is_tried_again() {
    let place = Place::new();
    let path = place.file("sock");
    let listener = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    // As many as the kernel lets wait.
    let mut waiting = Vec::new();
    while let Ok(one) = socket2_connect(&path) {
        waiting.push(one);
    }
    let mut vmm = Vmm::reaching(place, Peer::Path(path), Layout::Split, 2, hasty);
    vmm.want_all();
    let error = vmm.until(EventKind::Retrying).error.unwrap();
    assert!(error.message.contains("backlog"), "{error}");
    drop(waiting);
    let mut peer = Stepper::with(listener, Manners::default());
    vmm.until_applied_beside(&mut peer);
}

fn socket2_connect(path: &std::path::Path) -> nix::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let one = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(one.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(one)
}

// ---- who connects, and who supplies ----

#[test]
fn peers_connect_to_the_device() {
    let place = Place::new();
    let path = place.file("sock");
    // Left behind by somebody who is gone.
    drop(UnixListener::bind(&path).unwrap());
    let mode = 0o600;
    let listen = Peer::Listen {
        path: path.clone(),
        mode,
    };
    let mut vmm = Vmm::reaching(place, listen, Layout::Split, 2, hasty);
    vmm.want_all();
    let mut peer = Stepper::on(UnixStream::connect(&path).unwrap(), Manners::default());
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);

    // Another is turned away while that one is there.
    let mut other = Stepper::on(UnixStream::connect(&path).unwrap(), Manners::default());
    let refused = vmm.until_beside(EventKind::PeersRefused, &mut peer);
    assert_eq!(refused.count, 1);
    let patience = deadline();
    while other.is_connected() {
        assert!(Instant::now() < patience);
        other.step();
    }
    assert_eq!(other.log, []);
    assert!(vmm.is_applied());

    // And takes its place when it is gone.
    peer.hang_up();
    let mut next = Stepper::on(UnixStream::connect(&path).unwrap(), Manners::default());
    vmm.until_beside(EventKind::Lost, &mut next);
    vmm.until_beside(EventKind::Recovered, &mut next);
    assert_eq!(next.told.running(), [0, 1]);
    assert_eq!(vmm.device.info().connections, 2);
    drop(vmm);
    assert!(!path.exists(), "the file stays behind");
}

#[test]
fn sockets_are_supplied() {
    let place = Place::new();
    let mut vmm = Vmm::reaching(place, Peer::Fd, Layout::Split, 2, hasty);
    vmm.want_all();
    vmm.until(EventKind::NeedsFd);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Stepper::on(theirs, Manners::default());
    vmm.device.set_fd(ours.into()).unwrap();
    vmm.until_applied_beside(&mut peer);

    peer.hang_up();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.delay, None);
    vmm.until_beside(EventKind::NeedsFd, &mut peer);
    assert_eq!(vmm.count(EventKind::NeedsFd), 2);
    let (ours, theirs) = UnixStream::pair().unwrap();
    peer.begin(theirs);
    vmm.device.set_fd(ours.into()).unwrap();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    assert_eq!(peer.told.running(), [0, 1]);

    // One that is no socket is not taken.
    let file = std::fs::File::open("/dev/null").unwrap();
    let error: Error = vmm.device.set_fd(file.into()).unwrap_err();
    assert_eq!(error.class(), Class::Local, "{error}");
}

// ---- memory ----

/// What one back-end refused the next may take.
#[test]
fn memory_that_was_refused_is_told_to_the_next() {
    let (mut vmm, mut peer) = rig(Manners::default(), hasty);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.device.memory_state(), MemoryState::Applied);
    peer.manners.refuses = Some(Request::AddMemReg);
    let more = GuestMemory::new(1 << 20);
    let more = Region::new(0x8000_0000, 1 << 20, 0, more.region().fd).unwrap();
    vmm.device.add_memory(more).unwrap();
    assert_eq!(vmm.device.memory_state(), MemoryState::Pending);
    let refused = vmm
        .until_beside(EventKind::Refused, &mut peer)
        .error
        .unwrap();
    assert_eq!(refused.request, Some(Request::AddMemReg));
    assert!(refused.to_string().contains("0x80000000"), "{refused}");
    assert_eq!(vmm.device.memory_state(), MemoryState::Failed);
    assert!(vmm.device.quiet().quiesced);
    assert_eq!(peer.told.running(), [0, 1]);
    // It is asked again only by a change of the memory, or on another connection.
    for _ in 0..100 {
        vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(1));
    }
    assert_eq!(peer.count(Request::AddMemReg), 2);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    peer.manners.refuses = None;
    peer.hang_up();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.device.memory_state(), MemoryState::Applied);
}

/// What was taken away and not confirmed may still be written, though nothing is left
/// of what was shared.
#[test]
fn a_removal_that_is_not_answered_is_waited_for() {
    let (mut vmm, mut peer) = rig(Manners::default(), |options| {
        impatient(options);
        options.fence = BRIEF;
    });
    vmm.until_applied_beside(&mut peer);
    vmm.device.stop(None, StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    peer.manners.silent_from = Some(Request::RemMemReg);
    vmm.device.set_memory(Vec::new(), false).unwrap();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.error.unwrap().request, Some(Request::RemMemReg));
    assert_eq!(vmm.device.memory_state(), MemoryState::Pending);
    assert!(!vmm.device.quiet().quiesced);
    // Nobody serves it meanwhile.
    vmm.until(EventKind::Unfenced);
    assert_eq!(vmm.device.memory_state(), MemoryState::Unconfirmed);
    vmm.until_beside(EventKind::Fenced, &mut peer);
    assert!(vmm.device.quiet().quiesced);
}

/// They do not go on, and whether they could need not be known.
#[test]
fn rings_that_begin_anew_need_no_reset() {
    let (mut vmm, mut peer) = rig(
        Manners {
            protocol: everything() - ProtocolFeatures::INFLIGHT_SHMFD,
            ..Manners::default()
        },
        |options| {
            hasty(options);
            options.out_of_order = OutOfOrder::NeedsReset;
        },
    );
    vmm.until_applied_beside(&mut peer);
    vmm.device.stop(None, StopMode::Drain);
    vmm.start(Base::New);
    peer.hang_up();
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.recovery, Recovery::Idle);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.told.running(), [0, 1]);
}
/// As a table in doubt may be in use, each region that was not in the last good one is
/// refused; and no other.
#[test]
fn two_refused_tables_in_a_row_leave_the_first_region() {
    let (mut vmm, peer) =
        tables_in_a_row(|request, table| request == Request::SetMemTable && table[0] > 1);
    let refused = vmm.until(EventKind::Refused).error.unwrap();
    let text = &refused.message;
    assert!(text.contains("guest_addr 0x80000000,"), "{refused}");
    assert!(text.contains("and 1 more"), "{refused}");
    assert_eq!(vmm.count(EventKind::Refused), 1);
    assert_eq!(vmm.device.memory_state(), MemoryState::Failed);
    let has: Vec<_> = peer.told.memory.keys().copied().collect();
    assert_eq!(has, [vmm.region_addr()]);
}
