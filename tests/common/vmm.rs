//! A virtual machine monitor in small: a device, its rings as a guest drives them,
//! and an event loop of one thread.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::print_stdout, reason = "what a random test began with is said")]

use crate::blk_peer::{PATIENCE, Place, SECTORS, deadline};
use crate::blk_ring::{BlkRequest, BlkRing, GuestMemory, Layout, Op, pattern};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vhost_user_frontend::{
    Base, Device, DeviceOptions, Error, Event, EventKind, Peer, Policy, Recovery, Region, Ring,
    RingIndices,
};

/// VERSION_1 and FLUSH.
pub const FEATURES: u64 = 1 << 32 | 1 << 9;
pub const PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;
pub const RING_SIZE: u16 = 64;

/// Where a ring stands, for whoever asks from any thread.
pub struct Stand {
    /// Split: read from the used ring. Packed: only the driver knows.
    read: Box<dyn Fn() -> u16 + Send + Sync>,
    avail: Arc<AtomicU16>,
}

impl RingIndices for Stand {
    fn used(&self) -> Option<u16> {
        Some((self.read)())
    }

    fn available(&self) -> Option<u16> {
        Some(self.avail.load(Ordering::SeqCst))
    }
}

pub struct Vmm {
    pub place: Place,
    pub device: Arc<Device>,
    pub memory: Rc<GuestMemory>,
    pub rings: Vec<BlkRing>,
    /// What the device was told of each ring's place.
    used: Vec<Arc<AtomicU16>>,
    avail: Vec<Arc<AtomicU16>>,
    pub events: VecDeque<Event>,
    /// Tag of each sector.
    pub disk: Vec<u64>,
    tags: u64,
    /// Completed requests by ring and number, and how often.
    pub completed: BTreeMap<(usize, u64), u32>,
    pub layout: Layout,
    pub turns: u64,
    /// Sectors that a request in flight is about, and their tag before it.
    pub busy: BTreeMap<u64, u64>,
    /// Every loss and how rings went on, and everything else that was told.
    pub seen: Vec<(EventKind, Recovery)>,
}

/// Chance that can be repeated.
pub struct Random(u64);

impl Random {
    /// From `VUF_SEED`, or another each time; said, so that it can be repeated.
    pub fn new() -> Self {
        let given = std::env::var("VUF_SEED").ok();
        let nanoseconds = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::from(now.subsec_nanos()) << 16 | 1
        };
        let seed = given.map_or_else(nanoseconds, |text| text.parse().unwrap());
        println!("VUF_SEED={seed}");
        Self(seed)
    }

    /// Below this.
    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// As soon as it can be, so that tests are.
pub fn at_once() -> Policy {
    Policy {
        first_delay: Duration::from_millis(2),
        max_delay: Duration::from_millis(50),
        jitter_percent: 0,
        slow_delay: Duration::from_millis(100),
    }
}

pub fn options(rings: u32) -> DeviceOptions {
    DeviceOptions {
        num_rings: rings,
        config_size: 60,
        reconnect: at_once(),
        ..DeviceOptions::default()
    }
}

impl Vmm {
    pub fn new(layout: Layout, rings: u32, change: impl FnOnce(&mut DeviceOptions)) -> Self {
        let place = Place::new();
        let peer = Peer::Path(place.file("sock"));
        Self::reaching(place, peer, layout, rings, change)
    }

    pub fn reaching(
        place: Place,
        peer: Peer,
        layout: Layout,
        rings: u32,
        change: impl FnOnce(&mut DeviceOptions),
    ) -> Self {
        let mut options = options(rings);
        change(&mut options);
        let memory = GuestMemory::new(1 << 20);
        let number = |_| Arc::new(AtomicU16::new(0));
        Self {
            device: Arc::new(Device::open(peer, options).unwrap()),
            rings: (0..rings)
                .map(|index| BlkRing::new(&memory, layout, index, RING_SIZE))
                .collect(),
            memory,
            place,
            used: (0..rings).map(number).collect(),
            avail: (0..rings).map(number).collect(),
            events: VecDeque::new(),
            disk: (0..SECTORS).collect(),
            tags: 0x1_0000,
            completed: BTreeMap::new(),
            layout,
            turns: 0,
            busy: BTreeMap::new(),
            seen: Vec::new(),
        }
    }

    pub fn features(&self) -> u64 {
        match self.layout {
            Layout::Split => FEATURES,
            Layout::Packed => FEATURES | PACKED,
        }
    }

    pub fn region(&self) -> Region {
        let region = self.memory.region();
        let (at, size) = (region.region.guest_addr, region.region.size);
        Region::new(at, size, 0, region.fd).unwrap()
    }

    /// Where that begins.
    pub fn region_addr(&self) -> u64 {
        self.memory.region().region.guest_addr
    }

    /// Shares memory and says that the driver is there.
    pub fn negotiate(&mut self, more: u64) {
        self.until(EventKind::Connected);
        let features = self.features() | (more & self.device.info().offered_features);
        self.device.set_features(features).unwrap();
        self.device.set_memory(vec![self.region()], false).unwrap();
    }

    pub fn ring(&self, index: usize, base: Base) -> Ring<'_> {
        let ring = &self.rings[index];
        let read: Box<dyn Fn() -> u16 + Send + Sync> = match self.layout {
            Layout::Split => ring.used_reader(),
            Layout::Packed => {
                let used = Arc::clone(&self.used[index]);
                Box::new(move || used.load(Ordering::SeqCst))
            }
        };
        let addr = ring.guest_addr();
        Ring {
            index: ring.index,
            size: ring.size.into(),
            descriptor: addr.descriptor,
            available: addr.available,
            used: addr.used,
            base,
            kick: ring.kick.as_fd(),
            call: Some(ring.call.as_fd()),
            err: Some(ring.err.as_fd()),
            indices: Some(Arc::new(Stand {
                read,
                avail: Arc::clone(&self.avail[index]),
            })),
        }
    }

    /// Starts all rings.
    pub fn start(&mut self, base: Base) {
        self.try_start(base).unwrap();
    }

    pub fn try_start(&mut self, base: Base) -> Result<(), Error> {
        self.note();
        let rings: Vec<_> = (0..self.rings.len()).map(|i| self.ring(i, base)).collect();
        self.device.start(&rings)
    }

    /// Connects, negotiates, starts.
    pub fn bring_up(&mut self) {
        self.negotiate(IN_ORDER);
        self.start(Base::New);
        self.until_applied();
    }

    /// Until the back-end has been told all that is wanted.
    pub fn until_applied(&mut self) {
        while !self.is_applied() {
            self.until(EventKind::Applied);
        }
    }

    /// Wants everything, whoever may be there.
    pub fn want_all(&mut self) {
        self.device.set_features(self.features()).unwrap();
        self.device.set_memory(vec![self.region()], false).unwrap();
        self.start(Base::New);
    }

    /// What the device may ask: where each ring stands.
    fn note(&self) {
        for (ring, (used, avail)) in self.rings.iter().zip(self.used.iter().zip(&self.avail)) {
            used.store(ring.used_place(), Ordering::SeqCst);
            avail.store(ring.avail_index(), Ordering::SeqCst);
        }
    }

    /// One round of the event loop, which waits for something to happen.
    pub fn turn(&mut self, longest: Duration) {
        self.turns += 1;
        let mut fds = vec![PollFd::new(self.device.notifier(), PollFlags::POLLIN)];
        fds.extend(
            self.rings
                .iter()
                .map(|ring| PollFd::new(ring.call.as_fd(), PollFlags::POLLIN)),
        );
        let longest = PollTimeout::try_from(longest).unwrap();
        poll(&mut fds, longest).unwrap();
        let device = fds[0].any() == Some(true);
        drop(fds);
        self.collect();
        if device {
            self.process();
        }
    }

    /// One step of the device.
    pub fn process(&mut self) {
        if let Some(event) = self.device.process().unwrap() {
            self.seen.push((event.kind, event.recovery));
            self.events.push_back(event);
        }
    }

    /// How often this was told.
    pub fn count(&self, kind: EventKind) -> usize {
        self.seen.iter().filter(|seen| seen.0 == kind).count()
    }

    pub fn is_applied(&self) -> bool {
        let info = self.device.info();
        info.applied == Some(info.generation)
    }

    /// Takes what the device has completed.
    pub fn collect(&mut self) -> Vec<BlkRequest> {
        let mut done = Vec::new();
        for (index, ring) in self.rings.iter_mut().enumerate() {
            let _ = ring.call.read();
            for request in ring.poll_all() {
                *self.completed.entry((index, request.number)).or_default() += 1;
                self.busy.remove(&request.sector);
                assert_eq!(request.status, 0, "{request:?}");
                if request.op == Op::Read {
                    let tag = self.disk[usize::try_from(request.sector).unwrap()];
                    assert_eq!(request.data, pattern(tag), "sector {}", request.sector);
                }
                done.push(request);
            }
        }
        self.note();
        done
    }

    /// Until this has happened; the event.
    pub fn until(&mut self, kind: EventKind) -> Event {
        let deadline = deadline();
        loop {
            while let Some(event) = self.events.pop_front() {
                if event.kind == kind {
                    return event;
                }
            }
            assert!(Instant::now() < deadline, "never {kind:?}");
            self.turn(PATIENCE);
        }
    }

    /// Until nothing is in flight.
    pub fn until_done(&mut self) {
        let deadline = deadline();
        while self.rings.iter().any(|ring| ring.in_flight() > 0) {
            assert!(Instant::now() < deadline, "in flight for too long");
            self.turn(Duration::from_millis(100));
        }
    }

    pub fn tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// Makes a write available, of a sector that no other request is about.
    pub fn write(&mut self, ring: usize, sector: u64) -> u64 {
        let tag = self.tag();
        self.disk[usize::try_from(sector).unwrap()] = tag;
        let number = self.rings[ring].submit(Op::Write { tag }, sector);
        self.note();
        number
    }

    /// Fills the ring with writes to sectors of its own, and kicks.
    pub fn fill(&mut self, ring: usize) {
        let first = u64::try_from(ring).unwrap() * 16;
        let mut sectors = first..first + 16;
        while self.rings[ring].has_room() {
            let Some(sector) = sectors.next() else { break };
            self.write(ring, sector);
        }
        self.rings[ring].kick();
    }

    /// Keeps all rings full of writes and reads of sectors that no other request is
    /// about.
    pub fn keep_busy(&mut self, random: &mut Random) {
        for ring in 0..self.rings.len() {
            let first = u64::try_from(ring).unwrap() * 16;
            let start = random.below(16);
            let mut any = false;
            for at in 0..16 {
                let sector = first + (start + at) % 16;
                if self.busy.contains_key(&sector) || !self.rings[ring].has_room() {
                    continue;
                }
                let tag = self.disk[usize::try_from(sector).unwrap()];
                self.busy.insert(sector, tag);
                match random.below(4) {
                    0 => drop(self.rings[ring].submit(Op::Read, sector)),
                    _ => drop(self.write(ring, sector)),
                }
                any = true;
            }
            if any {
                self.rings[ring].kick();
            }
        }
        self.note();
    }

    /// Keeps the rings busy, for at most so many microseconds. Returns while the
    /// back-end is at work on what was made available last, most likely.
    pub fn busy_for(&mut self, random: &mut Random, most: u64) {
        let end = Instant::now() + Duration::from_micros(random.below(most));
        while Instant::now() < end {
            self.keep_busy(random);
            self.turn(Duration::from_millis(1));
        }
        self.keep_busy(random);
        let end = Instant::now() + Duration::from_micros(random.below(120));
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }

    /// What was in flight was done or not, and nothing in between; from here on it
    /// is what the disk has.
    pub fn accept_the_disk(&mut self) {
        for (sector, before) in std::mem::take(&mut self.busy) {
            let found = self.place.sector(sector);
            let tag = &mut self.disk[usize::try_from(sector).unwrap()];
            if found != pattern(*tag) {
                assert_eq!(found, pattern(before), "sector {sector}");
                *tag = before;
            }
        }
    }

    /// The guest is rebooted: its rings are new, and what was in flight is not.
    pub fn begin_anew(mut self) -> Self {
        self.memory = GuestMemory::new(1 << 20);
        let (layout, memory) = (self.layout, &self.memory);
        let rings = 0..u32::try_from(self.rings.len()).unwrap();
        self.rings = rings
            .map(|index| BlkRing::new(memory, layout, index, RING_SIZE))
            .collect();
        self.completed.clear();
        self
    }

    /// The driver of a guest that was reset: the connection is there already.
    pub fn negotiate_again(&mut self) {
        self.device.set_features(self.features()).unwrap();
        self.device.set_memory(vec![self.region()], false).unwrap();
    }

    /// Everything written is on the disk, and nothing was completed twice.
    pub fn check(&self) {
        for (sector, tag) in self.disk.iter().enumerate() {
            let sector = u64::try_from(sector).unwrap();
            assert_eq!(self.place.sector(sector), pattern(*tag), "sector {sector}");
        }
        for ((ring, number), times) in &self.completed {
            assert_eq!(*times, 1, "ring {ring}, request {number}");
        }
    }
}
