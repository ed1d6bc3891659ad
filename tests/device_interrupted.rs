//! What is wanted changes at every step of a bring-up and of a replay: the back-end
//! is told the new state, in an order that it can follow.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/device.rs"]
mod device;

use blk_ring::{GuestMemory, Layout, Op};
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::time::Duration;
use stepper::{Manners, OFFERED, Stepper, everything, same_eventfd};
use vhost_user_frontend::message::{ProtocolFeatures, Request};
use vhost_user_frontend::{Base, EventKind, OutOfOrder, Region, StopMode};
use vmm::{FEATURES, Vmm};

const RINGS: u32 = 2;
const PLUGGED: u64 = 0x8000_0000;
const SIZE: u64 = 1 << 20;

/// What comes in between.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    Reset,
    ResetAndStart,
    Plug,
    PlugAndUnplug,
    Swap,
    StopOne,
    Restart,
}

const CHANGES: [Change; 7] = [
    Change::Reset,
    Change::ResetAndStart,
    Change::Plug,
    Change::PlugAndUnplug,
    Change::Swap,
    Change::StopOne,
    Change::Restart,
];

fn plugged() -> Region {
    let memory = GuestMemory::new(SIZE);
    Region::new(PLUGGED, SIZE, 0, memory.region().fd).unwrap()
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

fn manners(protocol: ProtocolFeatures) -> Manners {
    Manners {
        protocol,
        ..Manners::default()
    }
}

/// Everything, without acknowledgements, without slots, and nothing.
fn protocols() -> [ProtocolFeatures; 4] {
    let all = everything();
    [
        all,
        all - ProtocolFeatures::REPLY_ACK,
        all - ProtocolFeatures::CONFIGURE_MEM_SLOTS - ProtocolFeatures::RESET_DEVICE,
        ProtocolFeatures::empty(),
    ]
}

/// A device that wants everything, and one request that is not done.
fn rig(layout: Layout, protocol: ProtocolFeatures) -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(layout, RINGS, |options| {
        options.assume_features = Some(OFFERED);
        options.out_of_order = OutOfOrder::ReplayFromUsed;
        options.reconnect.first_delay = Duration::from_micros(10);
    });
    let peer = Stepper::beside(&vmm, manners(protocol));
    vmm.want_all();
    vmm.rings[0].submit(Op::Flush, 0);
    (vmm, peer)
}

struct Wanted {
    features: Option<u64>,
    memory: Vec<u64>,
    rings: Vec<u32>,
    call: EventFd,
    swapped: bool,
    base: u32,
}

fn change(vmm: &mut Vmm, change: Change, base: u32) -> Wanted {
    let ram = vmm.region_addr();
    let mut wanted = Wanted {
        features: Some(vmm.features()),
        memory: vec![ram],
        rings: vec![0, 1],
        call: eventfd(),
        swapped: false,
        base,
    };
    let device = &vmm.device;
    match change {
        Change::Reset => {
            device.reset();
            (wanted.features, wanted.rings) = (None, Vec::new());
        }
        Change::ResetAndStart => {
            device.reset();
            // The next driver knows less, and uses one ring.
            device.set_features(FEATURES).unwrap();
            vmm.layout = Layout::Split;
            vmm.device.start(&[vmm.ring(1, Base::New)]).unwrap();
            wanted.features = Some(FEATURES);
            wanted.rings = vec![1];
            wanted.base = 0;
        }
        Change::Plug => {
            device.add_memory(plugged()).unwrap();
            wanted.memory.push(PLUGGED);
        }
        Change::PlugAndUnplug => {
            device.add_memory(plugged()).unwrap();
            device.remove_memory(PLUGGED, SIZE).unwrap();
        }
        Change::Swap => {
            device.set_call(1, Some(wanted.call.as_fd())).unwrap();
            wanted.swapped = true;
        }
        Change::StopOne => {
            device.stop(Some(&[0]), StopMode::Drain);
            wanted.rings = vec![1];
        }
        Change::Restart => {
            device.stop(Some(&[1]), StopMode::Drain);
            let again = vmm.ring(1, Base::At(wanted.base));
            vmm.device.start(&[again]).unwrap();
        }
    }
    wanted
}

/// The back-end's last word is what is wanted.
fn check(vmm: &Vmm, peer: &Stepper, wanted: &Wanted, what: &str) {
    let told = &peer.told;
    assert_eq!(peer.wrong, Vec::<String>::new(), "{what}");
    let features = wanted.features.map(|features| features | 1 << 30);
    let agreed = |feature: ProtocolFeatures| told.protocol & feature.bits() != 0;
    let resets = ProtocolFeatures::RESET_DEVICE | ProtocolFeatures::STATUS;
    // Where there is no request to reset, only the next driver's are told.
    if features.is_some() || told.protocol & resets.bits() != 0 {
        assert_eq!(told.features, features, "{what}");
    }
    let memory: Vec<u64> = told.memory.keys().copied().collect();
    // Memory is shared with a driver, not before; and stays shared.
    let none = memory.is_empty() && wanted.features.is_none();
    assert!(none || memory == wanted.memory, "{what}: {memory:x?}");
    assert_eq!(told.running(), wanted.rings, "{what}");
    for index in &wanted.rings {
        let ring = &told.rings[index];
        let ours = &vmm.rings[usize::try_from(*index).unwrap()];
        let addr = ours.guest_addr();
        let addr = (addr.descriptor, addr.used, addr.available);
        assert_eq!(ring.addr, addr, "{what}, ring {index}");
        assert_eq!(ring.num, u32::from(ours.size), "{what}, ring {index}");
        assert_eq!(ring.base, wanted.base, "{what}, ring {index}");
        assert!(ring.enabled, "{what}, ring {index}");
        let swapped = *index == 1 && wanted.swapped;
        let call = if swapped { &wanted.call } else { &ours.call };
        assert!(same_eventfd(ring.call.as_ref(), call), "{what}, {index}");
        let kick = same_eventfd(ring.kick.as_ref(), &ours.kick);
        assert!(kick, "{what}, ring {index}");
        let err = same_eventfd(ring.err.as_ref(), &ours.err);
        assert!(err, "{what}, ring {index}");
    }
    let runs = !wanted.rings.is_empty();
    if agreed(ProtocolFeatures::INFLIGHT_SHMFD) && runs {
        let size = vmm.rings[0].size;
        assert_eq!(told.inflight, Some((2, size)), "{what}");
    }
    if agreed(ProtocolFeatures::STATUS) && runs {
        assert_eq!(told.status, 0xf, "{what}");
    }
    // It does no more than is asked of it.
    let info = vmm.device.info();
    assert_eq!(info.applied, Some(info.generation), "{what}");
    let quiet = vmm.device.quiet();
    assert!(quiet.quiesced, "{what}: {quiet:?}");
}

fn messages(layout: Layout, protocol: ProtocolFeatures) -> usize {
    let (mut vmm, mut peer) = rig(layout, protocol);
    vmm.until_applied_beside(&mut peer);
    peer.taken
}

fn first_base(layout: Layout) -> u32 {
    match layout {
        Layout::Split => 0,
        Layout::Packed => 0x8000_8000,
    }
}

#[test]
fn at_every_step_of_the_bring_up() {
    let mut cases = 0;
    for layout in [Layout::Split, Layout::Packed] {
        let protocols = protocols().into_iter();
        // What packed rings change is independent of the rest.
        let packed = [everything()].into_iter();
        let protocols: Vec<_> = match layout {
            Layout::Split => protocols.collect(),
            Layout::Packed => packed.collect(),
        };
        for protocol in protocols {
            let all = messages(layout, protocol);
            assert!(all >= 15, "{all}");
            for (at, what) in (0..=all).flat_map(|at| CHANGES.map(|what| (at, what))) {
                let (mut vmm, mut peer) = rig(layout, protocol);
                vmm.until_taken(&mut peer, at);
                let wanted = change(&mut vmm, what, first_base(layout));
                vmm.until_applied_beside(&mut peer);
                let text = format!("{what:?} after {at} of {layout:?} {protocol:?}");
                check(&vmm, &peer, &wanted, &text);
                assert_eq!(vmm.count(EventKind::Lost), 0, "{text}");
                cases += 1;
            }
        }
    }
    println!("{cases} cases");
}

#[test]
fn at_every_step_of_a_replay() {
    for protocol in protocols() {
        let (layout, all) = (Layout::Split, messages(Layout::Split, protocol));
        for (at, what) in (0..=all).flat_map(|at| CHANGES.map(|what| (at, what))) {
            let (mut vmm, mut peer) = rig(layout, protocol);
            vmm.until_applied_beside(&mut peer);
            // The ring is used up to here.
            for ring in &vmm.rings {
                ring.pretend_used(7);
            }
            peer.hang_up();
            vmm.until_beside(EventKind::Lost, &mut peer);
            vmm.until_taken(&mut peer, at);
            let before = vmm.count(EventKind::Recovered);
            let wanted = change(&mut vmm, what, 7);
            vmm.until_applied_beside(&mut peer);
            let text = format!("{what:?} after {at} of a replay, {protocol:?}");
            check(&vmm, &peer, &wanted, &text);
            let restarted = matches!(what, Change::Reset | Change::ResetAndStart);
            let recovered = if restarted { before } else { 1 };
            assert_eq!(vmm.count(EventKind::Recovered), recovered, "{text}");
            assert_eq!(vmm.count(EventKind::Lost), 1, "{text}");
        }
    }
}

/// The in-flight buffer of before is handed over again, and after a reset another.
#[test]
fn the_buffer_is_kept_until_a_reset() {
    let asked = |peer: &Stepper| {
        let log = peer.log.iter();
        log.filter(|it| it.0 == Request::GetInflightFd).count()
    };
    let (mut vmm, mut peer) = rig(Layout::Split, everything());
    vmm.until_applied_beside(&mut peer);
    for _ in 0..3 {
        peer.hang_up();
        vmm.until_beside(EventKind::Recovered, &mut peer);
        assert_eq!(asked(&peer), 1);
        assert!(peer.told.inflight.is_some());
    }
    vmm.device.reset();
    let mut vmm = vmm.begin_anew();
    vmm.negotiate_again();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(asked(&peer), 2);
    assert!(peer.told.inflight.is_some());
}
