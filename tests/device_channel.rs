//! The back-end's channel, translations that are posted, and what is acknowledged
//! because of them.

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

use blk_peer::{PATIENCE, deadline};
use blk_ring::Layout;
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stepper::{Manners, OFFERED, Stepper, early, everything};
use vhost_user_frontend::message::{
    BackendRequest, Iotlb, ProtocolFeatures, Request, ShmemArea, iotlb,
};
use vhost_user_frontend::{
    BackendHandler, DeviceOptions, Error, Event, EventKind, HostNotifier, Kind, Phase, Recovery,
    StopMode, Timeout, Uuid,
};
use vmm::{FEATURES, Vmm};

const PLATFORM: u64 = 1 << 33;
const CONFIG_CHANGE: u32 = BackendRequest::ConfigChange.id();
const SHMEM_MAP: u32 = BackendRequest::ShmemMap.id();
/// Flags of a request on the channel, without and with a wish for an answer.
const QUIET: u32 = 0x1;
const ASKS: u32 = 0x9;
/// Flags that no request has.
const WRONG: u32 = 0x5;

const INVALIDATE: Iotlb = Iotlb {
    iova: 0x1000,
    size: 0x1000,
    user_addr: 0,
    perm: 0,
    kind: iotlb::INVALIDATE,
    padding: [0; 6],
};

/// The limit of descriptors is that of the process, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves these requests, with success.
struct Serves(&'static [BackendRequest]);

impl BackendHandler for Serves {
    fn handles(&self, request: BackendRequest) -> bool {
        self.0.contains(&request)
    }
    fn iotlb_miss(&self, _iova: u64, _perm: u8) -> i32 {
        0
    }
    fn shmem_map(&self, _area: &ShmemArea, _fd: OwnedFd) -> i32 {
        0
    }
    fn shmem_unmap(&self, _area: &ShmemArea) -> i32 {
        0
    }
}

fn handler(requests: &'static [BackendRequest]) -> Option<Arc<dyn BackendHandler>> {
    Some(Arc::new(Serves(requests)))
}

/// A device that is all set up.
fn settled(manners: Manners, more: u64, change: impl FnOnce(&mut DeviceOptions)) -> (Vmm, Stepper) {
    let mut vmm = Vmm::new(Layout::Split, 2, |options| {
        early(options);
        options.assume_features = Some(OFFERED | more);
        options.stall = Duration::from_secs(60);
        change(options);
    });
    let mut peer = Stepper::beside(&vmm, manners);
    vmm.device.set_features(FEATURES | more).unwrap();
    vmm.device.set_memory(vec![vmm.region()], false).unwrap();
    vmm.start(vhost_user_frontend::Base::New);
    vmm.until_applied_beside(&mut peer);
    vmm.events.clear();
    (vmm, peer)
}

/// A device whose guest has an IOMMU.
fn with_iommu(change: impl FnOnce(&mut DeviceOptions)) -> (Vmm, Stepper) {
    let manners = Manners {
        features: OFFERED | PLATFORM,
        ..Manners::default()
    };
    settled(manners, PLATFORM, |options| {
        options.handler = handler(&[BackendRequest::Iotlb]);
        change(options);
    })
}

fn error(event: Event) -> Error {
    event.error.unwrap()
}

/// The end of the channel is reported, and the loss that it leads to.
fn lost_over_the_channel(vmm: &mut Vmm, peer: &mut Stepper, kind: Kind) {
    let closed = error(vmm.until_beside(EventKind::ChannelClosed, peer));
    assert_eq!(closed.kind, kind, "{closed}");
    assert!(closed.to_string().contains("channel has ended"), "{closed}");
    let lost = error(vmm.until_beside(EventKind::Lost, peer));
    assert_eq!((lost.kind, lost.to_string()), (kind, closed.to_string()));
    vmm.until_applied_beside(peer);
    assert_eq!(vmm.device.info().connections, 2);
    assert_eq!(vmm.count(EventKind::ChannelClosed), 1);
}

// ---- the end of the channel ----

#[test]
fn a_malformed_message_loses_a_device_that_reads_the_configuration() {
    let _alone = alone();
    let (mut vmm, mut peer) = settled(Manners::default(), 0, |options| {
        options.out_of_order = vhost_user_frontend::OutOfOrder::ReplayFromUsed;
    });
    peer.send_on_channel(CONFIG_CHANGE, WRONG, &[], None);
    // The rings go on over it.
    let closed = vmm.until_beside(EventKind::ChannelClosed, &mut peer);
    assert_eq!(error(closed).kind, Kind::Protocol);
    let lost = vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(lost.recovery, Recovery::Inflight);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.device.info().connections, 2);
    // The next channel is a good one.
    peer.manners.config[9] = 99;
    peer.config_changed();
    vmm.until_beside(EventKind::ConfigChanged, &mut peer);
}

#[test]
fn the_end_of_the_channel_loses_a_device_that_depends_on_it() {
    let _alone = alone();
    let depends = [
        settled(Manners::default(), 0, |_| {}),
        with_iommu(|options| options.config_size = 0),
        settled(
            Manners {
                protocol: everything() | ProtocolFeatures::SHMEM,
                ..Manners::default()
            },
            0,
            |options| {
                options.config_size = 0;
                options.handler = handler(&[BackendRequest::ShmemMap]);
            },
        ),
    ];
    for (mut vmm, mut peer) in depends {
        drop(peer.told.channel.take());
        lost_over_the_channel(&mut vmm, &mut peer, Kind::Disconnected);
    }
}

#[test]
fn a_device_that_does_not_depend_on_the_channel_goes_on_without_it() {
    let _alone = alone();
    for malformed in [true, false] {
        let manners = Manners {
            features: OFFERED | PLATFORM,
            ..Manners::default()
        };
        let (mut vmm, mut peer) = settled(manners, 0, |options| {
            options.config_size = 0;
            options.handler = handler(&[BackendRequest::Iotlb]);
        });
        match malformed {
            true => peer.send_on_channel(CONFIG_CHANGE, WRONG, &[], None),
            false => drop(peer.told.channel.take()),
        }
        let closed = error(vmm.until_beside(EventKind::ChannelClosed, &mut peer));
        let kind = if malformed {
            Kind::Protocol
        } else {
            Kind::Disconnected
        };
        assert_eq!(closed.kind, kind, "{closed}");
        vmm.device.stop(Some(&[1]), StopMode::Drain);
        vmm.until_applied_beside(&mut peer);
        thread::sleep(Duration::from_millis(100));
        vmm.calm(&mut peer);
        assert_eq!(vmm.count(EventKind::ChannelClosed), 1);
        assert_eq!(vmm.count(EventKind::Lost), 0);
        assert!(vmm.device.info().settled);
        vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
        // Translations would need it.
        vmm.device.stop(None, StopMode::Drain);
        let refused = vmm.device.set_features(FEATURES | PLATFORM).unwrap_err();
        assert_eq!(refused.kind, Kind::NotNegotiated);
        assert!(
            refused.to_string().contains("channel has ended"),
            "{refused}"
        );
        vmm.until_applied_beside(&mut peer);
        assert_eq!(vmm.device.info().connections, 1);
    }
}

/// The process ends: the channel happens to be closed first.
#[test]
fn the_end_of_the_back_end_is_not_taken_for_that_of_the_channel() {
    let _alone = alone();
    let (mut vmm, mut peer) = settled(Manners::default(), 0, |_| {});
    drop(peer.told.channel.take());
    // The device sees that much.
    vmm.process();
    vmm.process();
    peer.hang_up();
    let lost = error(vmm.until_beside(EventKind::Lost, &mut peer));
    assert!(lost.to_string().contains("closed the connection"), "{lost}");
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.count(EventKind::ChannelClosed), 0);
}

#[test]
fn a_descriptor_that_finds_no_place_ends_the_channel() {
    let _alone = alone();
    let manners = Manners {
        protocol: everything() | ProtocolFeatures::SHMEM | ProtocolFeatures::BACKEND_SEND_FD,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = settled(manners, 0, |options| {
        options.handler = handler(&[BackendRequest::ShmemMap]);
    });
    peer.map_page(0);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    for _ in 0..4 {
        vmm.process();
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    lost_over_the_channel(&mut vmm, &mut peer, Kind::Os(Errno::EMFILE));
}

// ---- what the back-end has set ----

/// Notes what the back-end has set, and what is gone.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note(&self, what: String) -> i32 {
        self.0.lock().unwrap().push(what);
        0
    }
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl BackendHandler for Notes {
    fn handles(&self, _request: BackendRequest) -> bool {
        true
    }
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        let state = if notifier.is_some() { "set" } else { "gone" };
        self.note(format!("notifier {ring} {state}"))
    }
    fn shared_object_added(&self, uuid: &Uuid) {
        self.note(format!("object {} added", uuid[0]));
    }
    fn shared_object_removed(&self, uuid: &Uuid) {
        self.note(format!("object {} gone", uuid[0]));
    }
}

/// A lost back-end's doorbell pages and shared objects are withdrawn before the next one
/// is there, and those of a device that is reset, too.
#[test]
fn what_a_back_end_has_set_ends_with_it_and_with_a_reset() {
    let _alone = alone();
    let more = ProtocolFeatures::HOST_NOTIFIER
        | ProtocolFeatures::SHARED_OBJECT
        | ProtocolFeatures::BACKEND_SEND_FD;
    for (reset, without) in [
        (false, ProtocolFeatures::empty()),
        (true, ProtocolFeatures::empty()),
        // There is no message then.
        (
            true,
            ProtocolFeatures::RESET_DEVICE | ProtocolFeatures::STATUS,
        ),
    ] {
        let notes = Arc::new(Notes::default());
        let theirs: Arc<dyn BackendHandler> = Arc::<Notes>::clone(&notes);
        let manners = Manners {
            protocol: (everything() | more) - without,
            ..Manners::default()
        };
        let (mut vmm, mut peer) = settled(manners, 0, |options| {
            options.handler = Some(theirs);
        });
        let page = memfd_create(c"page", MFdFlags::MFD_CLOEXEC).unwrap();
        let area = [1_u64, 4096, 0].map(u64::to_ne_bytes).concat();
        let notifier = BackendRequest::HostNotifier.id();
        peer.send_on_channel(notifier, QUIET, &area, Some(page.as_fd()));
        let add = BackendRequest::SharedObjectAdd.id();
        peer.send_on_channel(add, QUIET, &[7; 16], None);
        vmm.calm(&mut peer);
        assert_eq!(notes.take(), ["notifier 1 set", "object 7 added"]);
        match reset {
            true => drop(vmm.device.reset()),
            false => peer.hang_up(),
        }
        let connections = vmm.device.info().connections;
        while vmm.device.info().connections == connections && notes.0.lock().unwrap().is_empty() {
            vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
        }
        vmm.calm(&mut peer);
        assert_eq!(
            notes.take(),
            ["notifier 1 gone", "object 7 gone"],
            "{reset}"
        );
    }
}

/// Maps what it is asked to. While it maps the first page, the back-end answers all that
/// it has been asked, and asks for the next page.
#[derive(Default)]
struct MapsTwo {
    peer: Mutex<Option<Stepper>>,
    notes: Notes,
}

impl BackendHandler for MapsTwo {
    fn handles(&self, request: BackendRequest) -> bool {
        request == BackendRequest::ShmemMap
    }
    fn shmem_map(&self, area: &ShmemArea, _fd: OwnedFd) -> i32 {
        if let (0, Some(peer)) = (area.shm_offset, &mut *self.peer.lock().unwrap()) {
            peer.serve(usize::MAX);
            peer.map_page(1);
        }
        self.notes.note(format!("map {:#x}", area.shm_offset))
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        self.notes.note(format!("unmap {:#x}", area.shm_offset))
    }
}

/// It is there together with the acknowledgement, and read in the same turn.
#[test]
fn what_is_mapped_after_a_reset_stays() {
    let _alone = alone();
    let manners = Manners {
        protocol: everything() | ProtocolFeatures::SHMEM | ProtocolFeatures::BACKEND_SEND_FD,
        ..Manners::default()
    };
    let pages = Arc::new(MapsTwo::default());
    let theirs: Arc<dyn BackendHandler> = Arc::<MapsTwo>::clone(&pages);
    let (mut vmm, mut peer) = settled(manners, 0, |options| options.handler = Some(theirs));
    // No ring runs any more, so the next thing that the back-end hears is the reset.
    vmm.device.stop(None, StopMode::Drain);
    vmm.calm(&mut peer);
    peer.log.clear();
    vmm.device.reset();
    vmm.process();
    peer.map_page(0);
    *pages.peer.lock().unwrap() = Some(peer);
    vmm.process();
    let mut peer = pages.peer.lock().unwrap().take().unwrap();
    vmm.calm(&mut peer);
    assert_eq!(peer.log[0].0, Request::ResetDevice);
    assert_eq!(pages.notes.take(), ["map 0x0", "map 0x1000", "unmap 0x0"]);
}

// ---- refused requests ----

#[test]
fn requests_that_the_library_refuses_are_reported() {
    let _alone = alone();
    let (mut vmm, mut peer) = settled(Manners::default(), 0, |_| {});
    let area = [0_u64, 0, 0, 4096, 1].map(u64::to_ne_bytes).concat();
    let cases: [(u32, &[u8], Kind, &str); 4] = [
        (
            SHMEM_MAP,
            &area,
            Kind::Protocol,
            "BACKEND_SHMEM_MAP on the back-end's channel was refused with EINVAL: it has \
             the wrong number of file descriptors",
        ),
        (
            BackendRequest::ShmemUnmap.id(),
            &area,
            Kind::NotNegotiated,
            "BACKEND_SHMEM_UNMAP on the back-end's channel was refused with EPERM: the \
             feature that it belongs to was not acknowledged",
        ),
        (
            CONFIG_CHANGE,
            &area,
            Kind::Protocol,
            "BACKEND_CONFIG_CHANGE_MSG on the back-end's channel was refused with EINVAL: \
             its payload has the wrong size",
        ),
        (
            77,
            &[],
            Kind::Argument(Errno::EOPNOTSUPP),
            "a request on the back-end's channel was refused with EOPNOTSUPP: this library \
             knows no request with this number",
        ),
    ];
    for (id, payload, kind, text) in cases {
        for _ in 0..3 {
            peer.send_on_channel(id, QUIET, payload, None);
        }
        let event = vmm.until_beside(EventKind::ChannelRefused, &mut peer);
        assert_eq!(event.count, 3);
        let error = error(event);
        assert_eq!((error.kind, error.to_string()), (kind, text.to_owned()));
        assert_eq!(error.value, Some(id.into()));
        assert_eq!(error.request, None);
    }
    vmm.calm(&mut peer);
    assert_eq!(vmm.count(EventKind::ChannelRefused), cases.len());
    assert_eq!(vmm.device.info().connections, 1);
}

/// An event loop may take events until there are none: it has to come to an end.
#[test]
fn a_flood_of_refused_requests_is_reported_now_and_then() {
    let _alone = alone();
    let (mut vmm, mut peer) = settled(Manners::default(), 0, |_| {});
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_millis(350) {
        peer.send_on_channel(77, QUIET, &[], None);
        sent += 1;
        vmm.process();
    }
    let tenths = begun.elapsed().as_millis() / 100 + 1;
    let events = vmm.count(EventKind::ChannelRefused);
    let most = usize::try_from(tenths).unwrap();
    assert!(events > 1 && events <= most, "{events} in {tenths}");
    // The last come though nothing else happens, and none is forgotten over a loss.
    let total = |vmm: &Vmm| vmm.events.iter().map(|event| event.count).sum::<u32>();
    let patience = deadline();
    while total(&vmm) < sent {
        assert!(Instant::now() < patience, "{} of {sent}", total(&vmm));
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    peer.send_on_channel(77, QUIET, &[], None);
    vmm.process();
    vmm.process();
    peer.hang_up();
    vmm.until_beside(EventKind::Lost, &mut peer);
    let refused = vmm.until_beside(EventKind::ChannelRefused, &mut peer);
    assert_eq!(refused.count, 1);
}

#[test]
fn a_function_that_is_not_there_is_named_and_a_refusal_of_the_caller_is_not() {
    let _alone = alone();
    struct Refuses;
    impl BackendHandler for Refuses {
        fn handles(&self, request: BackendRequest) -> bool {
            request == BackendRequest::SharedObjectLookup
        }
        fn shared_object_lookup(&self, _uuid: &[u8; 16]) -> Result<OwnedFd, i32> {
            Err(-libc::ENOENT)
        }
    }
    let manners = Manners {
        protocol: everything() | ProtocolFeatures::SHARED_OBJECT,
        ..Manners::default()
    };
    let (mut vmm, mut peer) = settled(manners, 0, |options| {
        options.handler = Some(Arc::new(Refuses));
    });
    let (lookup, add) = (
        BackendRequest::SharedObjectLookup.id(),
        BackendRequest::SharedObjectAdd.id(),
    );
    peer.send_on_channel(lookup, ASKS, &[7; 16], None);
    peer.send_on_channel(add, ASKS, &[7; 16], None);
    let refused = error(vmm.until_beside(EventKind::ChannelRefused, &mut peer));
    let text = "BACKEND_SHARED_OBJECT_ADD on the back-end's channel was refused with \
                EOPNOTSUPP: the caller supplied no function for it";
    assert_eq!(refused.to_string(), text);
    vmm.calm(&mut peer);
    assert_eq!(vmm.count(EventKind::ChannelRefused), 1);
    let answers = [
        (lookup, i64::from(-libc::ENOENT)),
        (add, i64::from(-libc::EOPNOTSUPP)),
    ];
    assert_eq!(peer.answers_on_channel(), answers);
}

#[test]
fn a_flood_of_refused_requests_displaces_no_event() {
    let _alone = alone();
    let (mut vmm, mut peer) = settled(Manners::default(), 0, |_| {});
    // Nobody takes the events meanwhile.
    let wait = |vmm: &Vmm, peer: &mut Stepper| {
        thread::scope(|scope| {
            let device = Arc::clone(&vmm.device);
            let waits = scope.spawn(move || device.wait(Timeout::After(PATIENCE)));
            while !waits.is_finished() {
                peer.serve(usize::MAX);
                thread::yield_now();
            }
            waits.join().unwrap().unwrap();
        });
    };
    const ROUNDS: u32 = 100;
    for round in 0..ROUNDS {
        for request in BackendRequest::ALL {
            peer.send_on_channel(request.id(), QUIET, &[1; 3], None);
            peer.send_on_channel(1000 + round, QUIET, &[], None);
        }
        if round == 0 {
            peer.manners.refuses = Some(Request::SetConfig);
            vmm.device.write_config(32, &[42]).unwrap();
        } else {
            vmm.device.write_config(32, &[32]).unwrap();
        }
        wait(&vmm, &mut peer);
        peer.manners.refuses = None;
    }
    let each = u32::try_from(BackendRequest::ALL.len()).unwrap();
    let patience = deadline();
    let counts = |vmm: &Vmm| {
        let mut counts = BTreeMap::<_, u32>::new();
        let refused = vmm.events.iter();
        for event in refused.filter(|it| it.kind == EventKind::ChannelRefused) {
            let text = event.error.as_ref().unwrap().to_string();
            *counts.entry(text).or_default() += event.count;
        }
        counts
    };
    while counts(&vmm).values().sum::<u32>() < 2 * each * ROUNDS {
        assert!(Instant::now() < patience, "{:?}", counts(&vmm));
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    let counts = counts(&vmm);
    assert_eq!(counts.len(), BackendRequest::ALL.len() + 1, "{counts:?}");
    assert_eq!(counts.values().max(), Some(&(each * ROUNDS)));
    assert_eq!(counts.values().min(), Some(&ROUNDS));
    assert!(vmm.events.iter().all(|event| event.missed == 0));
    assert_eq!(vmm.events[0].kind, EventKind::ConfigRefused);
}

// ---- posted translations ----

#[test]
fn an_invalidation_is_waited_for() {
    let _alone = alone();
    let (mut vmm, mut peer) = with_iommu(|_| {});
    assert!(vmm.device.info().settled);
    let taken = peer.taken;
    vmm.device.post_iotlb(&INVALIDATE).unwrap();
    let before = vmm.device.info();
    assert!(!before.settled && before.applied == Some(before.generation));
    // The back-end does not take it.
    while vmm.turn_beside(&mut peer, taken, Duration::ZERO) {}
    let short = Timeout::After(Duration::from_millis(50));
    let error = vmm.device.wait(short).unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut, "{error}");
    assert!(!vmm.device.info().settled);
    thread::scope(|scope| {
        let device = Arc::clone(&vmm.device);
        let waits = scope.spawn(move || {
            device.wait(Timeout::After(PATIENCE)).unwrap();
            device.info().settled
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        peer.serve(usize::MAX);
        assert!(waits.join().unwrap());
    });
    assert_eq!(peer.count(Request::IotlbMsg), 1);
    vmm.calm(&mut peer);
    assert_eq!(vmm.count(EventKind::IotlbRefused), 0);
}

/// An event loop learns of the answer without a call that waits.
#[test]
fn an_event_loop_sees_when_an_invalidation_is_done() {
    let _alone = alone();
    let (mut vmm, mut peer) = with_iommu(|_| {});
    for _ in 0..3 {
        vmm.device.post_iotlb(&INVALIDATE).unwrap();
    }
    let patience = deadline();
    while !vmm.device.info().settled {
        assert!(Instant::now() < patience, "never");
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    assert_eq!(peer.count(Request::IotlbMsg), 3);
}

#[test]
fn a_refused_invalidation_fails_the_waits_and_is_reported() {
    let _alone = alone();
    let (mut vmm, mut peer) = with_iommu(|_| {});
    peer.manners.refuses = Some(Request::IotlbMsg);
    // Whether the event is taken before, by another thread, does not matter.
    for taken_before in [false, true] {
        for _ in 0..2 {
            vmm.device.post_iotlb(&INVALIDATE).unwrap();
        }
        let waits = |vmm: &Vmm, peer: &mut Stepper| {
            thread::scope(|scope| {
                let each: Vec<_> = (0..2)
                    .map(|_| {
                        let device = Arc::clone(&vmm.device);
                        scope.spawn(move || device.wait(Timeout::After(PATIENCE)))
                    })
                    .collect();
                if !taken_before {
                    thread::sleep(Duration::from_millis(50));
                    peer.serve(usize::MAX);
                }
                each.into_iter()
                    .map(|it| it.join().unwrap())
                    .collect::<Vec<_>>()
            })
        };
        let refused = |vmm: &mut Vmm, peer: &mut Stepper| {
            let event = vmm.until_beside(EventKind::IotlbRefused, peer);
            assert_eq!(event.count, 2);
            error(event)
        };
        let mut results = Vec::new();
        let event = match taken_before {
            true => {
                let event = refused(&mut vmm, &mut peer);
                results.push(vmm.device.wait(Timeout::After(PATIENCE)));
                event
            }
            false => {
                results.extend(waits(&vmm, &mut peer));
                refused(&mut vmm, &mut peer)
            }
        };
        for result in results {
            let error = result.unwrap_err();
            assert_eq!(error.kind, Kind::Nack, "{error}");
            assert_eq!(error.request, Some(Request::IotlbMsg));
            assert_eq!(error.value, Some(1));
            assert_eq!(error.to_string(), event.to_string());
        }
        // It has been reported, and nothing is outstanding.
        vmm.calm(&mut peer);
        assert!(vmm.device.info().settled);
        vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
    }
    assert_eq!(vmm.count(EventKind::IotlbRefused), 2);
    assert_eq!(vmm.count(EventKind::Lost), 0);
}

#[test]
fn an_unanswered_invalidation_stalls_and_then_loses_the_connection() {
    let _alone = alone();
    let (stall, quick) = (Duration::from_millis(50), Duration::from_millis(300));
    let (mut vmm, mut peer) = with_iommu(|options| {
        options.stall = stall;
        options.quick = Timeout::After(quick);
    });
    peer.manners.silent_from = Some(Request::IotlbMsg);
    let begun = Instant::now();
    vmm.device.post_iotlb(&INVALIDATE).unwrap();
    // What is asked for behind it is not what is named.
    vmm.device.write_config(32, &[42]).unwrap();
    let stalled = error(vmm.until_beside(EventKind::Stalled, &mut peer));
    assert_eq!(stalled.request, Some(Request::IotlbMsg), "{stalled}");
    assert!(begun.elapsed() >= stall);
    let lost = error(vmm.until_beside(EventKind::Lost, &mut peer));
    assert_eq!((lost.kind, lost.phase), (Kind::TimedOut, Phase::Reply));
    assert_eq!(lost.request, Some(Request::IotlbMsg), "{lost}");
    assert!(begun.elapsed() >= quick);
    assert_eq!(vmm.count(EventKind::Stalled), 1);
    // The next back-end has no translations: nothing is outstanding.
    peer.manners.silent_from = None;
    vmm.until_applied_beside(&mut peer);
    assert!(vmm.device.info().settled);
    vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
    assert_eq!(peer.manners.config[32], 42);
}

/// The back-end works in order: what was posted waits behind a ring that drains.
#[test]
fn an_invalidation_behind_a_slow_request_has_its_time_after_that() {
    let _alone = alone();
    let (mut vmm, mut peer) = with_iommu(|options| {
        options.quick = Timeout::After(Duration::from_millis(150));
    });
    let taken = peer.taken;
    vmm.device.stop(None, StopMode::Drain);
    while vmm.turn_beside(&mut peer, taken + 2, Duration::ZERO) {}
    // Both rings are disabled, and the first stops.
    vmm.device.post_iotlb(&INVALIDATE).unwrap();
    let end = Instant::now() + Duration::from_millis(400);
    while Instant::now() < end {
        vmm.turn_beside(&mut peer, taken + 2, Duration::from_millis(20));
    }
    assert_eq!(vmm.count(EventKind::Lost), 0);
    let patience = deadline();
    while !vmm.device.info().settled {
        assert!(Instant::now() < patience, "never");
        vmm.turn_beside(&mut peer, usize::MAX, PATIENCE);
    }
    assert_eq!(vmm.count(EventKind::Lost), 0);
    assert_eq!(peer.count(Request::IotlbMsg), 1);
}

// ---- what an IOMMU needs ----

#[test]
fn an_iommu_needs_a_channel_and_acknowledgements() {
    let _alone = alone();
    let (channel, acks) = (ProtocolFeatures::BACKEND_REQ, ProtocolFeatures::REPLY_ACK);
    let served: &'static [BackendRequest] = &[BackendRequest::Iotlb];
    let cases = [
        (
            channel,
            ProtocolFeatures::all(),
            Some(served),
            "does not offer BACKEND_REQ (bit 5)",
        ),
        (
            acks,
            ProtocolFeatures::all(),
            Some(served),
            "does not offer REPLY_ACK (bit 3)",
        ),
        (
            channel | acks,
            ProtocolFeatures::all(),
            Some(served),
            "does not offer REPLY_ACK (bit 3), BACKEND_REQ (bit 5)",
        ),
        (
            ProtocolFeatures::empty(),
            ProtocolFeatures::all() - acks,
            Some(served),
            "options of the device do not allow REPLY_ACK (bit 3)",
        ),
        (
            ProtocolFeatures::empty(),
            ProtocolFeatures::all(),
            None,
            "do not allow BACKEND_REQ (bit 5); BACKEND_REQ needs backend_ops",
        ),
    ];
    for (without, allowed, served, text) in cases {
        // Known when the guest chooses, and not known yet.
        for assumed in [false, true] {
            let features = OFFERED | PLATFORM;
            let mut vmm = Vmm::new(Layout::Split, 1, |options| {
                options.config_size = 0;
                options.protocol_features = allowed.bits();
                options.handler = served.and_then(handler);
                options.assume_features = Some(features).filter(|_| assumed);
                options.reconnect.slow_delay = Duration::from_secs(60);
            });
            let manners = Manners {
                features,
                protocol: everything() - without,
                ..Manners::default()
            };
            let mut peer = Stepper::beside(&vmm, manners);
            let error = match assumed {
                true => {
                    vmm.device.set_features(FEATURES | PLATFORM).unwrap();
                    error(vmm.until_beside(EventKind::Lost, &mut peer))
                }
                false => {
                    vmm.until_beside(EventKind::Connected, &mut peer);
                    vmm.device.set_features(FEATURES).unwrap();
                    vmm.device.set_features(FEATURES | PLATFORM).unwrap_err()
                }
            };
            assert_eq!(error.kind, Kind::NotNegotiated, "{error}");
            let said = error.to_string();
            assert!(said.contains(text), "{said}");
            assert!(said.contains("VIRTIO_F_ACCESS_PLATFORM"), "{said}");
            assert_eq!(peer.count(Request::SetFeatures), 0);
        }
    }
}

// ---- what is acknowledged ----

#[test]
fn features_of_the_channel_are_acknowledged_with_their_functions() {
    use ProtocolFeatures as P;
    let _alone = alone();
    let channel = P::SHMEM | P::HOST_NOTIFIER | P::SHARED_OBJECT | P::BACKEND_SEND_FD;
    let cases: [(Option<&'static [BackendRequest]>, P); 3] = [
        (None, P::empty()),
        (
            Some(&[BackendRequest::HostNotifier]),
            P::HOST_NOTIFIER | P::BACKEND_SEND_FD,
        ),
        (Some(BackendRequest::ALL), channel),
    ];
    for (served, agreed) in cases {
        let manners = Manners {
            protocol: everything() | channel,
            ..Manners::default()
        };
        let (vmm, peer) = settled(manners, 0, |options| {
            options.handler = served.and_then(handler);
        });
        assert_eq!(peer.told.protocol, (everything() | agreed).bits());
        assert_eq!(vmm.device.info().protocol_features, peer.told.protocol);
        let asked = peer.count(Request::GetShmemConfig) == 1;
        assert_eq!(asked, agreed.contains(P::SHMEM));
    }
}
