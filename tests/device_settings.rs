//! Settings that each back-end is informed of: the largest frame of a network device, and
//! the byte order of the rings of a legacy driver.

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

use blk_ring::Layout;
use nix::errno::Errno;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use stepper::{Manners, OFFERED, Stepper, everything};
use vhost_user_frontend::message::{BackendRequest, ProtocolFeatures, Request};
use vhost_user_frontend::{
    BackendHandler, Base, Device, DeviceOptions, EventKind, Kind, OutOfOrder, StopMode, Timeout,
};
use vmm::Vmm;

const VERSION_1: u64 = 1 << 32;
const NET_F_MTU: u64 = 1 << 3;
const SHORT: Timeout = Timeout::After(Duration::from_millis(50));
const BIG: bool = !cfg!(target_endian = "big");

fn added() -> ProtocolFeatures {
    ProtocolFeatures::MTU | ProtocolFeatures::CROSS_ENDIAN | ProtocolFeatures::RARP
}

fn rig(options: impl FnOnce(&mut DeviceOptions), manners: Manners) -> (Vmm, Stepper) {
    let vmm = Vmm::new(Layout::Split, 2, |it| {
        it.assume_features = Some(OFFERED | NET_F_MTU);
        it.protocol_features |= added().bits();
        it.out_of_order = OutOfOrder::ReplayFromUsed;
        it.reconnect.first_delay = Duration::from_micros(10);
        it.reconnect.slow_delay = Duration::from_micros(10);
        options(it);
    });
    let peer = Stepper::at(&vmm.place.file("sock"), manners);
    (vmm, peer)
}

fn manners() -> Manners {
    Manners {
        features: OFFERED | NET_F_MTU,
        protocol: everything() | added(),
        ..Manners::default()
    }
}

fn want(vmm: &mut Vmm, features: u64) {
    vmm.device.set_features(features).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    vmm.start(Base::New);
}

/// What was sent with this request, as numbers.
fn numbers(peer: &Stepper, request: Request) -> Vec<u64> {
    let log = peer.log.iter().filter(|it| it.0 == request);
    log.map(|(_, payload)| u64::from_ne_bytes(payload[..8].try_into().unwrap()))
        .collect()
}

fn orders(peer: &Stepper) -> Vec<(u64, u64)> {
    let log = numbers(peer, Request::SetVringEndian);
    log.iter().map(|it| (it & 0xffff_ffff, it >> 32)).collect()
}

#[test]
fn mtu_is_sent_to_each_back_end_and_after_each_reset() {
    let (mut vmm, mut peer) = rig(|_| {}, manners());
    vmm.device.set_mtu(1500).unwrap();
    want(&mut vmm, VERSION_1 | NET_F_MTU);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(numbers(&peer, Request::NetSetMtu), [1500]);
    let order: Vec<_> = peer.log.iter().map(|it| it.0).collect();
    let at = |request| order.iter().position(|it| *it == request).unwrap();
    assert!(at(Request::SetFeatures) < at(Request::NetSetMtu));
    assert!(at(Request::NetSetMtu) < at(Request::SetVringCall));

    // Another one, while rings run.
    vmm.device.set_mtu(9000).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(numbers(&peer, Request::NetSetMtu), [1500, 9000]);
    peer.hang_up();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(numbers(&peer, Request::NetSetMtu), [1500, 9000, 9000]);

    vmm.device.reset();
    vmm.until_applied_beside(&mut peer);
    vmm.device.set_features(VERSION_1 | NET_F_MTU).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(numbers(&peer, Request::NetSetMtu), [1500, 9000, 9000, 9000]);
    assert_eq!(peer.wrong, Vec::<String>::new());
}

#[test]
fn mtu_is_not_sent_without_both_features() {
    let without = Manners {
        protocol: everything(),
        ..manners()
    };
    for (manners, features) in [(manners(), VERSION_1), (without, VERSION_1 | NET_F_MTU)] {
        let (mut vmm, mut peer) = rig(|_| {}, manners);
        vmm.device.set_mtu(1500).unwrap();
        want(&mut vmm, features);
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.count(Request::NetSetMtu), 0);
        assert_eq!(peer.told.running(), [0, 1]);
    }
}

#[test]
fn refused_mtu_is_local_and_not_repeated() {
    let refuses = Manners {
        refuses: Some(Request::NetSetMtu),
        ..manners()
    };
    let (mut vmm, mut peer) = rig(|_| {}, refuses);
    vmm.device.set_mtu(1500).unwrap();
    want(&mut vmm, VERSION_1 | NET_F_MTU);
    let refused = vmm.until_beside(EventKind::Refused, &mut peer);
    let error = refused.error.unwrap();
    assert_eq!(error.request, Some(Request::NetSetMtu));
    assert_eq!(error.kind, Kind::Nack);
    assert!(error.message.contains("1500"), "{error}");
    while vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(20)) {}
    assert_eq!(peer.told.running(), [0, 1]);
    assert!(!vmm.is_applied());
    let error = vmm.device.wait(SHORT).unwrap_err();
    assert_eq!(
        (error.kind, error.request),
        (Kind::Nack, Some(Request::NetSetMtu))
    );
    // Nor of the next one.
    peer.hang_up();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    assert_eq!(peer.count(Request::NetSetMtu), 1);
    // The same value counts as another attempt.
    peer.manners.refuses = None;
    vmm.device.set_mtu(1500).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::NetSetMtu), 2);
    assert_eq!(vmm.count(EventKind::Refused), 1);
}

#[test]
fn mtu_is_refused_where_it_cannot_be_sent() {
    let (vmm, _peer) = rig(
        |options| options.protocol_features &= !added().bits(),
        manners(),
    );
    let error = vmm.device.set_mtu(1500).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
    assert!(error.message.contains("MTU"), "{error}");
    for mtu in [0, 67, 65536] {
        let error = vmm.device.set_mtu(mtu).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(Errno::EINVAL));
    }
}

#[test]
fn byte_order_is_sent_for_each_ring_and_each_back_end() {
    let (mut vmm, mut peer) = rig(|_| {}, manners());
    vmm.device.set_vring_endian(BIG).unwrap();
    want(&mut vmm, 0);
    vmm.until_applied_beside(&mut peer);
    let big = u64::from(BIG);
    assert_eq!(orders(&peer), [(0, big), (1, big)]);
    let error = vmm.device.set_vring_endian(!BIG).unwrap_err();
    assert_eq!(error.kind, Kind::Argument(Errno::EBUSY));
    peer.hang_up();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    assert_eq!(orders(&peer).len(), 4);
    // A driver that is of this machine, on the same back-end.
    vmm.device.stop(None, StopMode::Drain);
    vmm.device.set_vring_endian(!BIG).unwrap();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(orders(&peer)[4..], [(0, 1 - big), (1, 1 - big)]);
    assert_eq!(peer.wrong, Vec::<String>::new());
    // One that knows VERSION_1 has no choice.
    vmm.device.reset();
    vmm.device.set_vring_endian(BIG).unwrap();
    vmm.device.set_features(VERSION_1).unwrap();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(orders(&peer).len(), 6);
}

#[test]
fn ring_whose_byte_order_is_refused_is_not_started() {
    let refuses = Manners {
        refuses: Some(Request::SetVringEndian),
        ..manners()
    };
    let (mut vmm, mut peer) = rig(|_| {}, refuses);
    vmm.device.set_vring_endian(BIG).unwrap();
    want(&mut vmm, 0);
    for ring in 0..2 {
        let refused = vmm.until_beside(EventKind::Refused, &mut peer);
        let error = refused.error.unwrap();
        assert_eq!(error.request, Some(Request::SetVringEndian));
        assert_eq!(error.ring, Some(ring));
    }
    while vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(20)) {}
    assert_eq!(peer.told.running(), [0_u32; 0]);
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

#[test]
fn back_end_that_cannot_know_the_byte_order_is_refused() {
    let without = Manners {
        protocol: everything(),
        ..manners()
    };
    let (mut vmm, mut peer) = rig(|_| {}, without);
    vmm.device.set_vring_endian(BIG).unwrap();
    want(&mut vmm, 0);
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    let error = lost.error.unwrap();
    assert_eq!(error.kind, Kind::NotNegotiated);
    assert!(error.message.contains("CROSS_ENDIAN"), "{error}");
    // Another one has it.
    peer.manners = manners();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(orders(&peer).len(), 2);

    // A call that cannot be followed fails.
    let (mut vmm, mut peer) = rig(
        |options| options.protocol_features &= !added().bits(),
        manners(),
    );
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.device.set_vring_endian(BIG).unwrap();
    let error = vmm.device.set_features(0).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
    vmm.device.set_features(VERSION_1).unwrap();
    vmm.device.set_vring_endian(!BIG).unwrap();
    vmm.device.set_features(0).unwrap();
    let error = vmm.device.set_vring_endian(BIG).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
}

// ---- what is sent once ----

#[test]
fn announcement_waits_for_rings_and_is_sent_once() {
    let (mut vmm, mut peer) = rig(|_| {}, manners());
    vmm.device.send_rarp([1, 2, 3, 4, 5, 6]).unwrap();
    vmm.device.set_features(VERSION_1).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::SendRarp), 0);
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(numbers(&peer, Request::SendRarp), [0x0605_0403_0201]);
    assert_eq!(peer.log.last().map(|it| it.0), Some(Request::SendRarp));
    // It is done.
    peer.hang_up();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::SendRarp), 1);
    // Unconfirmed, it is sent again.
    peer.manners.silent_from = Some(Request::SendRarp);
    vmm.device.send_rarp([7, 2, 3, 4, 5, 6]).unwrap();
    while peer.count(Request::SendRarp) == 1 {
        vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(20));
    }
    peer.manners = manners();
    peer.hang_up();
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(
        numbers(&peer, Request::SendRarp)[1..],
        [0x0605_0403_0207; 2]
    );
    assert_eq!(vmm.count(EventKind::Refused), 0);
}

#[test]
fn announcement_without_the_feature_is_refused() {
    let without = Manners {
        protocol: everything(),
        ..manners()
    };
    let (mut vmm, mut peer) = rig(|_| {}, without);
    vmm.device.send_rarp([1; 6]).unwrap();
    let refused = vmm.until_beside(EventKind::Refused, &mut peer);
    assert_eq!(refused.error.unwrap().kind, Kind::NotNegotiated);
    let error = vmm.device.send_rarp([1; 6]).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
    let (vmm, _peer) = rig(
        |options| options.protocol_features &= !added().bits(),
        manners(),
    );
    let error = vmm.device.send_rarp([1; 6]).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated);
}

#[test]
fn announcements_are_limited() {
    let (vmm, _peer) = rig(|_| {}, manners());
    for _ in 0..16 {
        vmm.device.send_rarp([1; 6]).unwrap();
    }
    let error = vmm.device.send_rarp([1; 6]).unwrap_err();
    assert_eq!(error.kind, Kind::Os(Errno::EAGAIN));
}

#[test]
fn refused_gpu_socket_is_local() {
    let refuses = Manners {
        refuses: Some(Request::GpuSetSocket),
        ..manners()
    };
    let (mut vmm, mut peer) = rig(|_| {}, refuses);
    let (_display, theirs) = UnixStream::pair().unwrap();
    vmm.device.set_gpu_socket(theirs.into()).unwrap();
    want(&mut vmm, VERSION_1);
    let refused = vmm.until_beside(EventKind::Refused, &mut peer);
    assert_eq!(refused.error.unwrap().request, Some(Request::GpuSetSocket));
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GpuSetSocket), 1);
    assert_eq!(peer.told.running(), [0, 1]);
}

// ---- questions ----

struct Adds;

impl BackendHandler for Adds {
    fn handles(&self, request: BackendRequest) -> bool {
        request == BackendRequest::SharedObjectAdd
    }
}

/// A device whose back-end runs, on a thread of its own from now on.
fn beside<T>(vmm: &mut Vmm, peer: &mut Stepper, ask: impl FnOnce(&Device) -> T + Send) -> T
where
    T: Send,
{
    let device = Arc::clone(&vmm.device);
    thread::scope(|scope| {
        let asked = scope.spawn(move || ask(&device));
        while !asked.is_finished() {
            vmm.turn_beside(peer, usize::MAX, Duration::from_millis(1));
        }
        asked.join().unwrap()
    })
}

fn asking() -> (Vmm, Stepper) {
    let manners = Manners {
        protocol: manners().protocol | ProtocolFeatures::SHARED_OBJECT,
        ..manners()
    };
    let (mut vmm, mut peer) = rig(|options| options.handler = Some(Arc::new(Adds)), manners);
    want(&mut vmm, VERSION_1);
    vmm.until_applied_beside(&mut peer);
    (vmm, peer)
}

const LONG: Timeout = Timeout::After(blk_peer::PATIENCE);

#[test]
fn question_is_answered_or_refused() {
    let (mut vmm, mut peer) = asking();
    let status = beside(&mut vmm, &mut peer, |device| device.backend_status(LONG));
    assert_eq!(status.unwrap(), 15);
    let object = |device: &Device| device.shared_object(&[7; 16], LONG);
    beside(&mut vmm, &mut peer, object).unwrap();
    assert_eq!(
        peer.log.last().unwrap(),
        &(Request::GetSharedObject, vec![7; 16])
    );
    peer.manners.refuses = Some(Request::GetSharedObject);
    let error = beside(&mut vmm, &mut peer, object).unwrap_err();
    assert_eq!(error.kind, Kind::Nack);
    assert_eq!(error.request, Some(Request::GetSharedObject));
    assert!(vmm.is_applied());
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

#[test]
fn question_ends_with_the_connection_or_the_time() {
    let (mut vmm, mut peer) = asking();
    peer.manners.silent_from = Some(Request::GetStatus);
    let short = beside(&mut vmm, &mut peer, |device| device.backend_status(SHORT));
    assert_eq!(short.unwrap_err().kind, Kind::TimedOut);
    let device = Arc::clone(&vmm.device);
    let lost = thread::scope(|scope| {
        let asked = scope.spawn(move || device.backend_status(LONG));
        while peer.count(Request::GetStatus) < 2 {
            vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(1));
        }
        peer.manners.silent_from = None;
        peer.hang_up();
        while !asked.is_finished() {
            vmm.turn_beside(&mut peer, usize::MAX, Duration::from_millis(1));
        }
        asked.join().unwrap()
    });
    assert_eq!(lost.unwrap_err().kind, Kind::Disconnected);
    // The next back-end is not asked what the caller gave up.
    vmm.until_beside(EventKind::Recovered, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(peer.count(Request::GetStatus), 2);
    // There is no back-end to ask.
    let (vmm, _peer) = rig(|_| {}, manners());
    let error = vmm.device.backend_status(LONG).unwrap_err();
    assert_eq!(error.kind, Kind::Disconnected);
}
