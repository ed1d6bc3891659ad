//! Guests that are reset over and over on one connection, and memory that comes and
//! goes under load: nothing grows, and nothing goes over the wire that should not.

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

use blk_peer::{PATIENCE, Peer, deadline};
use blk_ring::{GuestMemory, Layout};
use device::{blk_peer, blk_ring, stepper, vmm};
use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use stepper::{Manners, Stepper, everything};
use vhost_user_frontend::message::{BackendRequest, ProtocolFeatures, Request, ShmemArea};
use vhost_user_frontend::{
    BackendHandler, Base, Device, EventKind, Kind, Region, StopMode, Timeout,
};
use vmm::{Random, Vmm};

// ---- what there is of it ----

thread_local! {
    /// Bytes that this thread has on the heap.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn hold(bytes: usize, sign: isize) {
    HELD.set(HELD.get() + sign * isize::try_from(bytes).unwrap_or(0));
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        hold(block.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, block: Block) {
        hold(block.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, block) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Descriptors are counted, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

// ---- resets ----

fn reset_in_place(vmm: &mut Vmm) {
    vmm.device.reset();
    vmm.negotiate_again();
    vmm.start(Base::New);
}

#[test]
fn a_thousand_resets_leave_nothing_behind() {
    let _alone = alone();
    let with = |without: ProtocolFeatures| everything() - without;
    let (reset, status) = (ProtocolFeatures::RESET_DEVICE, ProtocolFeatures::STATUS);
    let cases = [
        (with(status), Some(Request::ResetDevice)),
        (with(reset), Some(Request::SetStatus)),
        (with(reset | status), None),
    ];
    for (protocol, request) in cases {
        let manners = Manners {
            protocol,
            ..Manners::default()
        };
        let mut vmm = Vmm::new(Layout::Split, 2, |_| {});
        let mut peer = Stepper::beside(&vmm, manners);
        vmm.until_beside(EventKind::Connected, &mut peer);
        vmm.negotiate_again();
        vmm.start(Base::New);
        let mut before = (0, 0);
        for count in 0..1000 {
            vmm.until_applied_beside(&mut peer);
            assert_eq!(peer.told.running(), [0, 1]);
            // Once everything has been there once.
            vmm.seen = Vec::with_capacity(16);
            vmm.events.clear();
            peer.log = Vec::with_capacity(256);
            let now = (open_fds(), HELD.get());
            if count < 10 {
                before = now;
            }
            assert_eq!(now.0, before.0, "after {count}");
            assert!(now.1 <= before.1 + 4096, "{before:?} {now:?}");
            reset_in_place(&mut vmm);
        }
        vmm.until_applied_beside(&mut peer);
        let told = |it: &&(Request, Vec<u8>)| Some(it.0) == request;
        let resets = peer.log.iter().filter(told).count();
        assert_eq!(resets > 0, request.is_some());
        assert_eq!(peer.wrong, Vec::<String>::new());
        assert_eq!(peer.connections, 1);
        assert_eq!(vmm.device.info().connections, 1);
    }
}

/// It is new: nothing goes on where it was stopped for the reset.
#[test]
fn a_ring_that_was_reset_stands_nowhere() {
    let _alone = alone();
    let mut vmm = Vmm::new(Layout::Split, 2, |_| {});
    let mut peer = Stepper::beside(&vmm, Manners::default());
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.negotiate_again();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    vmm.device.stop(Some(&[0]), StopMode::Drain);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(vmm.device.vring_base(0).unwrap(), 0);
    vmm.device.reset();
    vmm.until_applied_beside(&mut peer);
    vmm.negotiate_again();
    for index in [0, 1] {
        let error = vmm.device.vring_base(index).unwrap_err();
        assert_eq!(error.kind, Kind::State, "{error}");
        let at = usize::try_from(index).unwrap();
        let ring = vmm.ring(at, Base::Resume);
        assert_eq!(vmm.device.start(&[ring]).unwrap_err().kind, Kind::State);
    }
}

/// Knows which pages are mapped, and that nothing is mapped over anything.
#[derive(Default)]
struct Mapped {
    pages: Mutex<BTreeSet<u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Mapped {
    fn count(&self) -> usize {
        self.pages.lock().unwrap().len()
    }

    fn mind(&self, fine: bool, what: &str, area: &ShmemArea) {
        if !fine {
            self.wrong.lock().unwrap().push(format!("{what}: {area:?}"));
        }
    }
}

impl BackendHandler for Mapped {
    fn handles(&self, request: BackendRequest) -> bool {
        request == BackendRequest::ShmemMap
    }
    fn shmem_map(&self, area: &ShmemArea, _fd: OwnedFd) -> i32 {
        let fine = self.pages.lock().unwrap().insert(area.shm_offset / PAGE);
        self.mind(fine, "mapped twice", area);
        0
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        let fine = self.pages.lock().unwrap().remove(&(area.shm_offset / PAGE));
        self.mind(fine, "unmapped twice", area);
        0
    }
}

const PAGE: u64 = 4096;

/// Two rings run on a back-end that may map pages.
fn with_shared_memory(without: ProtocolFeatures) -> (Vmm, Stepper, Arc<Mapped>) {
    let more = ProtocolFeatures::SHMEM | ProtocolFeatures::BACKEND_SEND_FD;
    let manners = Manners {
        protocol: (everything() | more) - without,
        ..Manners::default()
    };
    let mapped = Arc::new(Mapped::default());
    let handler = Arc::clone(&mapped);
    let mut vmm = Vmm::new(Layout::Split, 2, |options| options.handler = Some(handler));
    let mut peer = Stepper::beside(&vmm, manners);
    vmm.until_beside(EventKind::Connected, &mut peer);
    vmm.negotiate_again();
    vmm.start(Base::New);
    vmm.until_applied_beside(&mut peer);
    (vmm, peer, mapped)
}

/// Until so many pages are mapped.
fn until_mapped(count: usize, mapped: &Mapped, vmm: &mut Vmm, peer: &mut Stepper) {
    let patience = deadline();
    while mapped.count() != count {
        assert!(Instant::now() < patience, "{} are mapped", mapped.count());
        vmm.turn_beside(peer, usize::MAX, PATIENCE);
    }
}

#[test]
fn a_reset_of_any_kind_takes_mappings_away() {
    let _alone = alone();
    let (reset, status) = (ProtocolFeatures::RESET_DEVICE, ProtocolFeatures::STATUS);
    for without in [status, reset, reset | status] {
        let (mut vmm, mut peer, mapped) = with_shared_memory(without);
        // Twice: the driver may have it mapped anew.
        for _ in 0..2 {
            peer.map_page(0);
            until_mapped(1, &mapped, &mut vmm, &mut peer);
            vmm.device.reset();
            vmm.until_applied_beside(&mut peer);
            assert_eq!(mapped.count(), 0, "without {without:?}");
            vmm.negotiate_again();
            vmm.start(Base::New);
            vmm.until_applied_beside(&mut peer);
        }
        assert_eq!(peer.connections, 1);
        assert_eq!(peer.wrong, Vec::<String>::new());
        assert_eq!(*mapped.wrong.lock().unwrap(), Vec::<String>::new());
    }
}

/// More than are told of in one step.
const MANY: usize = 200;

/// A device that has been reset, and has told the first of what that took away.
fn in_the_middle_of_a_reset() -> (Vmm, Stepper, Arc<Mapped>) {
    let (mut vmm, mut peer, mapped) = with_shared_memory(ProtocolFeatures::STATUS);
    for page in 0..MANY {
        peer.map_page(u64::try_from(page).unwrap());
        until_mapped(page + 1, &mapped, &mut vmm, &mut peer);
    }
    vmm.device.reset();
    let patience = deadline();
    while mapped.count() == MANY {
        assert!(Instant::now() < patience);
        peer.serve(usize::MAX);
        vmm.process();
    }
    assert!(mapped.count() > 0 && mapped.pages.lock().unwrap().contains(&0));
    (vmm, peer, mapped)
}

#[test]
fn mappings_that_a_reset_took_away_are_told_although_the_back_end_ends() {
    let _alone = alone();
    let (mut vmm, mut peer, mapped) = in_the_middle_of_a_reset();
    peer.hang_up();
    vmm.until_beside(EventKind::Lost, &mut peer);
    assert_eq!(mapped.count(), 0);
    assert_eq!(*mapped.wrong.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn what_is_mapped_anew_after_a_reset_comes_after_what_it_took_away() {
    let _alone = alone();
    let (mut vmm, mut peer, mapped) = in_the_middle_of_a_reset();
    // The last one that is told.
    peer.map_page(0);
    vmm.process();
    until_mapped(1, &mapped, &mut vmm, &mut peer);
    vmm.until_applied_beside(&mut peer);
    assert_eq!(*mapped.wrong.lock().unwrap(), Vec::<String>::new());
    assert_eq!(*mapped.pages.lock().unwrap(), BTreeSet::from([0]));
}

/// Under load, with requests in flight at each reset.
#[test]
fn a_busy_guest_is_reset_on_one_connection() {
    let _alone = alone();
    let mut random = Random::new();
    for (layout, args) in [
        (Layout::Split, &["--queues", "4"][..]),
        (Layout::Packed, &["--queues", "4", "--out-of-order"][..]),
    ] {
        let mut vmm = Vmm::new(layout, 4, |_| {});
        let peer = Peer::start(&vmm.place, args);
        vmm.bring_up();
        let before = open_fds();
        let pid = vmm.device.info().peer.unwrap().pid;
        assert_eq!(u32::try_from(pid).unwrap(), peer.0.id());
        for _ in 0..50 {
            vmm.busy_for(&mut random, 1000);
            vmm.device.reset();
            // The rings are the guest's again when they are stopped.
            vmm.device.wait(Timeout::After(PATIENCE)).unwrap();
            assert!(vmm.device.quiet().quiesced);
            vmm.collect();
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
        let info = vmm.device.info();
        assert_eq!(info.connections, 1);
        assert_eq!(info.peer.unwrap().pid, pid);
        assert_eq!(vmm.count(EventKind::Lost), 0);
    }
}

// ---- memory ----

const PLUGGED: u64 = 0x1_0000_0000;
const SIZE: u64 = 1 << 20;

fn plugged(index: u64, memory: &GuestMemory) -> Region {
    let at = PLUGGED + index * 2 * SIZE;
    Region::new(at, SIZE, 0, memory.region().fd).unwrap()
}

/// Plugs and unplugs at random, so many times, and what is there in the end.
fn plug(
    device: &Device,
    random: &mut Random,
    there: &mut BTreeSet<u64>,
    most: usize,
    memory: &GuestMemory,
) {
    let index = random.below(40);
    if there.remove(&index) {
        device
            .remove_memory(PLUGGED + index * 2 * SIZE, SIZE)
            .unwrap();
        return;
    }
    match device.add_memory(plugged(index, memory)) {
        Ok(()) => assert!(there.insert(index)),
        Err(error) => {
            assert_eq!(there.len() + 1, most, "{error}");
            assert_eq!(
                error.kind,
                Kind::Argument(nix::errno::Errno::ENOSPC),
                "{error}"
            );
        }
    }
}

/// With I/O: the region that the rings are in is never taken away.
#[test]
fn memory_comes_and_goes_under_load() {
    let _alone = alone();
    let mut random = Random::new();
    let mut vmm = Vmm::new(Layout::Split, 4, |_| {});
    let _peer = Peer::start(&vmm.place, &["--queues", "4"]);
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let lines = Arc::clone(&log);
    let sink = move |record: &vhost_user_frontend::TraceRecord| {
        assert_eq!(record.dropped, 0);
        lines.lock().unwrap().push(record.text().to_owned());
    };
    vmm.device.set_trace(Some(Arc::new(sink))).unwrap();
    vmm.bring_up();
    let before = open_fds();
    let memory = GuestMemory::new(SIZE);
    let mut there = BTreeSet::new();
    for _ in 0..500 {
        plug(&vmm.device, &mut random, &mut there, 32, &memory);
        vmm.keep_busy(&mut random);
        if random.below(2) == 0 {
            vmm.until_applied();
        }
    }
    while let Some(index) = there.pop_first() {
        let at = PLUGGED + index * 2 * SIZE;
        vmm.device.remove_memory(at, SIZE).unwrap();
    }
    vmm.until_applied();
    vmm.until_done();
    vmm.check();
    assert!(vmm.device.quiet().quiesced);
    drop(memory);
    assert_eq!(open_fds(), before);
    assert_eq!(vmm.count(EventKind::Lost), 0);
    let lines = log.lock().unwrap();
    let counted = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
    assert!(counted("> ADD_MEM_REG") > 100);
    assert!(counted("> REM_MEM_REG") > 100);
    let ram = format!("guest-addr={:#x} ", vmm.region_addr());
    let of_ram = |line: &&String| line.contains("MEM_REG") && line.contains(&ram);
    let touched: Vec<_> = lines.iter().filter(of_ram).collect();
    assert_eq!(touched.len(), 1, "{touched:?}");
}

/// What the back-end holds is always what is wanted, whatever it can hold.
#[test]
fn all_numbers_of_slots() {
    let _alone = alone();
    let mut random = Random::new();
    for slots in [0, 8, 32, 509] {
        let mut manners = Manners {
            slots,
            ..Manners::default()
        };
        if slots == 0 {
            manners.protocol -= ProtocolFeatures::CONFIGURE_MEM_SLOTS;
        }
        let mut vmm = Vmm::new(Layout::Split, 2, |_| {});
        let mut peer = Stepper::beside(&vmm, manners);
        vmm.until_beside(EventKind::Connected, &mut peer);
        vmm.negotiate_again();
        vmm.start(Base::New);
        vmm.until_applied_beside(&mut peer);
        let most = usize::try_from(if slots == 0 { 8 } else { slots }).unwrap();
        let memory = GuestMemory::new(SIZE);
        let mut there = BTreeSet::new();
        for _ in 0..500 {
            plug(&vmm.device, &mut random, &mut there, most, &memory);
            if random.below(2) == 0 {
                vmm.until_applied_beside(&mut peer);
                let addresses = there.iter().map(|index| PLUGGED + index * 2 * SIZE);
                let wanted: Vec<u64> = [vmm.region_addr()].into_iter().chain(addresses).collect();
                let told: Vec<u64> = peer.told.memory.keys().copied().collect();
                assert_eq!(told, wanted, "{slots}");
            }
        }
        vmm.until_applied_beside(&mut peer);
        assert_eq!(peer.wrong, Vec::<String>::new());
        assert_eq!(vmm.count(EventKind::Lost), 0);
        let ram = vmm.region_addr().to_ne_bytes();
        let removed = |it: &&(Request, Vec<u8>)| it.0 == Request::RemMemReg && it.1[8..16] == ram;
        assert_eq!(peer.log.iter().filter(removed).count(), 0);
        no_address_of_ours(&peer);
    }
}

/// No eight bytes in a row, wherever they begin, are an address of this process.
fn no_address_of_ours(peer: &Stepper) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let ranges: Vec<_> = maps
        .lines()
        .map(|line| {
            let (from, rest) = line.split_once('-').unwrap();
            hex(from)..hex(rest.split_once(' ').unwrap().0)
        })
        .collect();
    assert!(ranges.len() > 10);
    let ours = u64::try_from(std::ptr::from_ref(peer).addr()).unwrap();
    assert!(ranges.iter().any(|range| range.contains(&ours)));
    let mut seen = 0;
    for (request, payload) in &peer.log {
        for bytes in payload.windows(8) {
            let value = u64::from_ne_bytes(bytes.try_into().unwrap());
            let found = ranges.iter().find(|range| range.contains(&value));
            assert!(found.is_none(), "{request:?} has {value:#x}");
            seen += 1;
        }
    }
    assert!(seen > 1000, "{seen}");
}

/// The caller has reserved memory for it once.
#[test]
fn shared_memory_stays_as_large_as_on_the_first_back_end() {
    let _alone = alone();
    let (mut vmm, mut peer, mapped) = with_shared_memory(ProtocolFeatures::empty());
    let first = peer.manners.window;
    for other in [first * 2, first / 2, 0] {
        peer.manners.window = other;
        peer.hang_up();
        let patience = deadline();
        let error = loop {
            assert!(Instant::now() < patience);
            let error = vmm.until_beside(EventKind::Lost, &mut peer).error.unwrap();
            if error.kind == Kind::Protocol {
                break error;
            }
        };
        assert_eq!(error.request, Some(Request::GetShmemConfig), "{error}");
        assert_eq!(error.value, Some(other), "{error}");
        for part in ["region 0", &format!("{other:#x}"), &format!("{first:#x}")] {
            assert!(error.message.contains(part), "{error}");
        }
        assert!(peer.told.channel.is_none());
        assert_eq!(vmm.device.info().shmem_sizes[0], first);
        peer.manners.window = first;
        vmm.device.reconnect();
        vmm.until_applied_beside(&mut peer);
    }
    peer.map_page(0);
    until_mapped(1, &mapped, &mut vmm, &mut peer);
}
