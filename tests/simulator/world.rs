//! A guest, its VMM, the device and its back-ends, which take turns in one thread; and the
//! promises of the device, which are checked after every turn.

use super::action::{Action, Op, caps, kind};
use super::backend::{BASIC, BackEnd, Fault, IN_ORDER, Slot, same_eventfd};
use super::ledger::{Class, Ledger, RINGS, Request, Run, Violation};
use super::packed::{Counting, PACKED};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vhost_user_frontend::message;
use vhost_user_frontend::{
    Base, Device, DeviceOptions, Event, EventKind, Kind, MemoryState, OnUnfenced, OutOfOrder, Peer,
    Policy, Recovery, Region, Ring, RingIndices, StopMode, Timeout,
};

const REGIONS: usize = 4;
const REGION_SIZE: u64 = 0x1_0000;
const AREA_SIZE: u64 = 0x1000;
const AREAS: usize = 4;
const SIZES: [u16; 3] = [4, 8, 16];
const PACKED_SIZES: [u16; 3] = [4, 5, 16];
// Parts of an area.
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x400;
const DATA: u64 = 0x800;

/// With a healthy back-end the device settles within this many rounds.
const ENOUGH: u32 = 400;
/// Most back-ends at a time whose connection was given up.
const MAX_OLD: usize = 6;

/// The guest address of the memory of a ring.
pub fn area_addr(ring: usize, area: usize) -> u64 {
    let (region, first) = match ring {
        0 | 1 => (0, ring * AREAS),
        _ => (1, 0),
    };
    region_addr(region) + AREA_SIZE * u64::try_from(first + area).unwrap()
}

fn region_addr(region: usize) -> u64 {
    REGION_SIZE * (1 + u64::try_from(region).unwrap())
}

fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

/// Reads the indices of a ring in guest memory.
struct Indices {
    file: Arc<File>,
    area: u64,
    /// Whether the used and the available index can be read.
    knows: u32,
    counting: Counting,
    /// Up to where the driver has seen used descriptors, in a packed ring.
    seen: Arc<AtomicU16>,
}

fn half(file: &File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at).unwrap();
    u16::from_le_bytes(bytes)
}

/// The used position of a ring in guest memory, if the driver has `seen` this.
fn used_position(file: &File, area: u64, counting: Counting, seen: u16) -> u16 {
    match counting.packed {
        false => half(file, area + USED + 2),
        true => counting.used(seen, |slot| half(file, area + 16 * u64::from(slot) + 14)),
    }
}

impl RingIndices for Indices {
    fn used(&self) -> Option<u16> {
        let seen = self.seen.load(Ordering::Relaxed);
        let used = used_position(&self.file, self.area, self.counting, seen);
        (self.knows >= 1).then(|| self.counting.place(used))
    }
    fn available(&self) -> Option<u16> {
        let split = !self.counting.packed && self.knows >= 2;
        split.then(|| half(&self.file, self.area + AVAILABLE + 2))
    }
}

/// What the first action of a history chooses.
struct Setup {
    policy: OutOfOrder,
    proceeds: bool,
    config_size: u32,
    skips_drain: bool,
    /// In the end the device is reset, and its ring runs again.
    resets: bool,
}

impl Setup {
    fn of(history: &[Action]) -> Self {
        let bits = match history.first() {
            Some(first) if first.op == Op::Open => first.a,
            _ => 0,
        };
        Self {
            policy: match bits & 3 {
                1 => OutOfOrder::ReplayFromUsed,
                2 => OutOfOrder::ResumeFromAvailable,
                _ => OutOfOrder::NeedsReset,
            },
            proceeds: bits >> 2 & 3 == 3,
            config_size: if bits >> 4 & 1 == 0 { 0 } else { 8 },
            // The caller may leave a protocol feature out.
            skips_drain: bits >> 5 & 7 != 7,
            resets: bits >> 8 & 3 == 0,
        }
    }
}

/// What REFUSED has reported, until the caller asks again.
#[derive(Debug, Default)]
struct Refused {
    /// A region that is wanted.
    memory: bool,
    /// The release of a region. The end of the connection releases it.
    removal: bool,
    /// The start of a ring, which is no longer started.
    starts: [bool; RINGS],
    /// Another call descriptor of a ring that goes on with the one that it has.
    calls: [bool; RINGS],
}

impl Refused {
    fn any(&self) -> bool {
        self.memory || self.removal || self.starts != [false; RINGS] || self.calls != [false; RINGS]
    }
}

/// What the caller has called a ring.
struct RingFds {
    kick: EventFd,
    calls: [EventFd; 2],
    call: usize,
}

/// Everything.
pub struct World {
    device: Device,
    time: Arc<AtomicU64>,
    pub ledger: Ledger,
    proceeds: bool,
    resets: bool,
    config_size: u32,
    /// The files of each region, by version. Only the first version of those with rings.
    files: [[Arc<File>; 2]; REGIONS],
    inodes: [[u64; 2]; REGIONS],
    rings: [RingFds; RINGS],
    /// Areas that a back-end may still write.
    busy: [[bool; AREAS]; RINGS],
    back: Option<BackEnd>,
    old: Vec<BackEnd>,
    connections: u32,
    needs_fd: bool,
    refused: Refused,
    // What the caller wants.
    features: Option<u64>,
    memory: BTreeMap<usize, usize>,
    /// The generation at the last reset.
    reset_at: u64,
    /// The generation at the last change of memory.
    memory_at: u64,
    /// The generation at the last start of each ring.
    started_at: [u64; RINGS],
    /// LOST said NEEDS_RESET when there had been this many connections: no later
    /// back-end may run a ring before the next reset.
    held_since: Option<u32>,
    /// NEEDS_RESET was reported since the last reset.
    needs_reset: bool,
    /// Steps and calls without free descriptors, and how many are free.
    starved: (u32, u64),
    next_request: u64,
}

fn open_limit() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap()
}

/// Waits until threads of the library have closed what it does not keep.
pub fn all_are_closed() {
    let end = Instant::now() + Duration::from_secs(20);
    while vhost_user_frontend::descriptors_being_closed() > 0 {
        assert!(Instant::now() < end, "a thread of the library does not end");
        std::thread::yield_now();
    }
}

/// Runs with this many free descriptors.
fn starve<T>(free: u64, body: impl FnOnce() -> T) -> T {
    all_are_closed();
    let probe = File::open("/dev/null").unwrap();
    let lowest = u64::try_from(probe.as_raw_fd()).unwrap();
    drop(probe);
    let (soft, hard) = open_limit();
    setrlimit(Resource::RLIMIT_NOFILE, lowest + free, hard).unwrap();
    let result = body();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    result
}

impl World {
    /// Before the first action.
    pub fn new(history: &[Action], only: BTreeSet<Class>, trace: bool) -> Self {
        let setup = Setup::of(history);
        let time = Arc::new(AtomicU64::new(0));
        let begin = Instant::now();
        let clock = {
            let time = Arc::clone(&time);
            Arc::new(move || begin + Duration::from_nanos(time.load(Ordering::Relaxed)))
        };
        let seconds = |n| Timeout::After(Duration::from_secs(n));
        let options = DeviceOptions {
            num_rings: u32::try_from(RINGS).unwrap(),
            config_size: setup.config_size,
            protocol_features: match setup.skips_drain {
                true => u64::MAX,
                false => !(1 << 23),
            },
            reconnect: Policy {
                first_delay: Duration::from_millis(1),
                max_delay: Duration::from_millis(1),
                jitter_percent: 0,
                slow_delay: Duration::from_millis(2),
            },
            fence: seconds(2),
            on_unfenced: match setup.proceeds {
                true => OnUnfenced::Proceed,
                false => OnUnfenced::Wait,
            },
            out_of_order: setup.policy,
            quick: seconds(1),
            slow: seconds(2),
            drain: seconds(4),
            clock,
            ..DeviceOptions::default()
        };
        let file = || {
            let file = File::from(memfd_create(c"region", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(REGION_SIZE).unwrap();
            Arc::new(file)
        };
        let files: [[Arc<File>; 2]; REGIONS] = std::array::from_fn(|region| {
            let first = file();
            let second = if region < 2 {
                Arc::clone(&first)
            } else {
                file()
            };
            [first, second]
        });
        let inode = |file: &Arc<File>| file.metadata().unwrap().ino();
        Self {
            inodes: files.each_ref().map(|both| both.each_ref().map(inode)),
            device: Device::open(Peer::Fd, options).unwrap(),
            time,
            ledger: Ledger::new(only, trace),
            proceeds: setup.proceeds,
            resets: setup.resets,
            config_size: setup.config_size,
            files,
            rings: std::array::from_fn(|_| RingFds {
                kick: eventfd(),
                calls: [eventfd(), eventfd()],
                call: 0,
            }),
            busy: Default::default(),
            back: None,
            old: Vec::new(),
            connections: 0,
            needs_fd: false,
            refused: Refused::default(),
            features: None,
            memory: BTreeMap::new(),
            reset_at: 0,
            memory_at: 0,
            started_at: [0; RINGS],
            held_since: None,
            needs_reset: false,
            starved: (0, 0),
            next_request: 1,
        }
    }

    fn broken(&self) -> bool {
        self.ledger.violation.is_some()
    }

    // ---- the device ----

    fn with_device<T>(&mut self, call: impl FnOnce(&Device) -> T) -> T {
        let (calls, free) = &mut self.starved;
        if *calls == 0 {
            return call(&self.device);
        }
        *calls -= 1;
        let (free, device) = (*free, &self.device);
        starve(free, || call(device))
    }

    /// The device does one step, and its event is taken; whether there was one.
    fn process(&mut self) -> bool {
        self.ledger.steps += 1;
        let event = match self.with_device(Device::process) {
            Ok(event) => event,
            Err(error) => {
                self.ledger
                    .violate(Class::Panic, format!("process(): {error}"));
                return false;
            }
        };
        let Some(event) = event else {
            self.ledger.all_announced();
            self.check_status();
            self.check();
            return false;
        };
        self.ledger.say(|| {
            let error = event.error.as_ref().map(ToString::to_string);
            let (kind, recovery) = (event.kind, event.recovery);
            format!("event {kind:?}, recovery {recovery:?}, {error:?}")
        });
        if event
            .error
            .as_ref()
            .is_some_and(|it| it.kind == Kind::Panic)
        {
            let error = &event.error;
            self.ledger.violate(Class::Panic, format!("{error:?}"));
        }
        match event.kind {
            EventKind::NeedsFd => self.needs_fd = true,
            EventKind::Lost => {
                let lenient = [Recovery::ReplayFromUsed, Recovery::ResumeFromAvailable];
                if lenient.contains(&event.recovery) {
                    self.ledger.announce_leniency();
                }
                if event.recovery == Recovery::NeedsReset {
                    self.held_since = Some(self.connections);
                }
                // The region is released with the end of the connection.
                self.refused.removal = false;
            }
            EventKind::Unfenced if self.proceeds => self.ledger.announce_leniency(),
            EventKind::NeedsReset | EventKind::Recovered if event.generation < self.reset_at => {
                let text = format!("{:?} of the time before the reset", event.kind);
                self.ledger.violate(Class::Events, text);
            }
            EventKind::NeedsReset => self.needs_reset = true,
            EventKind::Applied => {
                self.refused = Refused::default();
                self.check_applied(true);
            }
            EventKind::Refused => self.note_refused(&event),
            _ => {}
        }
        self.check();
        true
    }

    /// Takes down what REFUSED reports, unless the caller has asked again since.
    fn note_refused(&mut self, event: &Event) {
        let Some(error) = &event.error else {
            return;
        };
        let Some(ring) = error.ring.and_then(|ring| usize::try_from(ring).ok()) else {
            if event.generation >= self.memory_at {
                match error.request {
                    Some(message::Request::RemMemReg) => self.refused.removal = true,
                    _ => self.refused.memory = true,
                }
            }
            return;
        };
        let Some(run) = self.ledger.current[ring].filter(|_| self.ledger.wanted[ring]) else {
            return;
        };
        if event.generation < self.started_at[ring] {
            return;
        }
        let runs = |back: &BackEnd| back.rings[ring].started && back.rings[ring].run == Some(run);
        let is_call = error.request == Some(message::Request::SetVringCall);
        if is_call && self.back.as_ref().is_some_and(runs) {
            self.refused.calls[ring] = true;
        } else {
            // The device no longer starts it, and drains it where it ran.
            self.refused.starts[ring] = true;
            self.ledger.wanted[ring] = false;
            self.ledger.runs[run].modes.push_back(0);
        }
    }

    fn retire(&mut self) {
        if let Some(back) = self.back.take_if(|back| back.gone) {
            self.ledger.say(|| format!("{} is gone", back.name));
        }
        self.old.retain(|back| !back.gone);
    }

    fn connect(&mut self, capabilities: u32) {
        if !self.needs_fd {
            return;
        }
        self.needs_fd = false;
        self.old.extend(self.back.take());
        if self.old.len() > MAX_OLD {
            self.old.remove(0);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connections += 1;
        let name = format!("back-end {}", self.connections);
        self.ledger.say(|| format!("{name} connects"));
        self.back = Some(BackEnd::new(name, theirs, capabilities));
        if let Err(error) = self.with_device(|device| device.set_fd(ours.into())) {
            self.ledger.say(|| format!("set_fd(): {error}"));
            self.back = None;
            self.needs_fd = true;
        }
    }

    fn serve(&mut self) -> bool {
        let served = match &mut self.back {
            Some(back) => back.serve(&mut self.ledger),
            None => false,
        };
        if served {
            self.ledger.steps += 1;
            self.retire();
            self.check();
        }
        served
    }

    fn each_ring(&mut self, work: impl Fn(&mut BackEnd, usize, &mut Ledger)) {
        if let Some(back) = &mut self.back {
            for ring in 0..RINGS {
                work(back, ring, &mut self.ledger);
            }
        }
    }

    /// Whether anything has happened.
    fn round(&mut self, with_rings: bool) -> bool {
        let mut happened = self.process();
        for _ in 0..16 {
            if self.broken() || !self.serve() {
                break;
            }
            happened = true;
        }
        if with_rings {
            self.ledger.steps += 1;
            self.each_ring(|back, ring, ledger| {
                back.take(ring, 2, ledger);
                back.complete(ring, 2, ledger);
            });
            self.poll();
            self.check();
        }
        happened
    }

    // ---- the caller ----

    fn region(&self, region: usize, version: usize) -> Result<Region, vhost_user_frontend::Error> {
        let file = &self.files[region][version];
        Region::new(region_addr(region), REGION_SIZE, 0, file.as_fd())
    }

    fn note<T>(&mut self, what: &str, result: Result<T, vhost_user_frontend::Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.kind == Kind::Panic => {
                self.ledger
                    .violate(Class::Panic, format!("{what}: {error}"));
                None
            }
            Err(error) => {
                self.ledger.say(|| format!("{what}: {error}"));
                None
            }
        }
    }

    /// `more`: 1 for IN_ORDER, and 2 for RING_PACKED.
    fn set_features(&mut self, more: u32) {
        let offered = self.device.info().offered_features;
        let in_order = if more & 1 == 0 { 0 } else { IN_ORDER & offered };
        // A driver does not change the layout of its rings before a reset.
        let packed = match self.features {
            Some(features) => PACKED & features,
            None if more & 2 == 0 => 0,
            None => PACKED & offered,
        };
        let features = BASIC | in_order | packed;
        let result = self.with_device(|device| device.set_features(features));
        if self.note("set_features()", result).is_some() {
            self.features = Some(features);
        }
    }

    fn set_memory(&mut self, mask: u32, versions: u32, gap: bool) {
        let memory: BTreeMap<usize, usize> = (0..REGIONS)
            .filter(|region| mask >> region & 1 != 0)
            .map(|region| {
                let version = if region < 2 {
                    0
                } else {
                    versions >> region & 1
                };
                (region, usize::try_from(version).unwrap())
            })
            .collect();
        let regions = memory
            .iter()
            .map(|(region, version)| self.region(*region, *version));
        let regions: Vec<_> = regions.collect::<Result<_, _>>().unwrap();
        let result = self.with_device(|device| device.set_memory(regions, gap));
        if self.note("set_memory()", result).is_some() {
            self.memory = memory;
            self.memory_is_changed();
        }
    }

    fn add(&mut self, region: usize, version: usize) {
        let version = if region < 2 { 0 } else { version };
        let Ok(it) = self.region(region, version) else {
            return;
        };
        let result = self.with_device(|device| device.add_memory(it));
        if self.note("add_memory()", result).is_some() {
            self.memory.insert(region, version);
            self.memory_is_changed();
        }
    }

    fn memory_is_changed(&mut self) {
        self.refused.memory = false;
        self.refused.removal = false;
        self.memory_at = self.device.info().generation;
    }

    fn remove(&mut self, region: usize) {
        let addr = region_addr(region);
        let result = self.with_device(|device| device.remove_memory(addr, REGION_SIZE));
        if self.note("remove_memory()", result).is_some() {
            self.memory.remove(&region);
            self.memory_is_changed();
        }
    }

    fn file_of(&self, ring: usize) -> Arc<File> {
        Arc::clone(&self.files[usize::from(ring > 1)][0])
    }

    fn area_offset(ring: usize, area: usize) -> u64 {
        area_addr(ring, area) - region_addr(usize::from(ring > 1))
    }

    /// Starts rings, as the guest's driver and the VMM together do.
    fn start(&mut self, mask: u32, bases: u32, rest: u32) {
        let packed = self.features.is_some_and(|features| features & PACKED != 0);
        let sizes = if packed { PACKED_SIZES } else { SIZES };
        let mut starts = Vec::new();
        for ring in (0..RINGS).filter(|ring| mask >> ring & 1 != 0) {
            if self.ledger.wanted[ring] {
                continue;
            }
            let number = u32::try_from(ring).unwrap();
            let current = self.ledger.current[ring];
            let base = match bases >> (2 * ring) & 3 {
                1 => Base::Resume,
                2 => match self.device.vring_base(number) {
                    Ok(base) => Base::At(base),
                    Err(_) => continue,
                },
                _ => Base::New,
            };
            let (area, size, seen) = match (base, current) {
                (Base::New, _) => {
                    // The driver uses memory that no back-end can still write.
                    let Some(area) = (0..AREAS).find(|area| !self.busy[ring][*area]) else {
                        continue;
                    };
                    let size = sizes[usize::try_from(rest & 3).unwrap() % sizes.len()];
                    let zeros = vec![0; usize::try_from(AREA_SIZE).unwrap()];
                    let at = Self::area_offset(ring, area);
                    self.file_of(ring).write_all_at(&zeros, at).unwrap();
                    (area, size, Arc::default())
                }
                (_, Some(run)) => {
                    let it = &self.ledger.runs[run];
                    (it.area, it.size, Arc::clone(&it.seen))
                }
                (_, None) => continue,
            };
            starts.push((ring, base, area, size, seen));
        }
        if starts.is_empty() {
            return;
        }
        let knows = rest >> 2 & 3;
        let ring_of =
            |(ring, base, area, size, seen): &(usize, Base, usize, u16, Arc<AtomicU16>)| {
                let at = area_addr(*ring, *area);
                let fds = &self.rings[*ring];
                Ring {
                    index: u32::try_from(*ring).unwrap(),
                    size: u32::from(*size),
                    descriptor: at,
                    available: at + AVAILABLE,
                    used: at + USED,
                    base: *base,
                    kick: fds.kick.as_fd(),
                    call: Some(fds.calls[fds.call].as_fd()),
                    err: None,
                    indices: (knows > 0).then(|| {
                        let indices: Arc<dyn RingIndices> = Arc::new(Indices {
                            file: self.file_of(*ring),
                            area: Self::area_offset(*ring, *area),
                            knows,
                            counting: Counting {
                                packed,
                                size: *size,
                            },
                            seen: Arc::clone(seen),
                        });
                        indices
                    }),
                }
            };
        let rings: Vec<_> = starts.iter().map(ring_of).collect();
        let (calls, free) = self.starved;
        let result = match calls {
            0 => self.device.start(&rings),
            _ => starve(free, || self.device.start(&rings)),
        };
        drop(rings);
        self.starved.0 = calls.saturating_sub(1);
        if self.note("start()", result).is_none() {
            return;
        }
        let generation = self.device.info().generation;
        for (ring, base, area, size, seen) in starts {
            self.started_at[ring] = generation;
            self.refused.starts[ring] = false;
            self.refused.calls[ring] = false;
            let runs = self.ledger.current[ring];
            let serves = |back: &BackEnd| back.rings[ring].started && back.rings[ring].run == runs;
            let served = self.living().any(serves);
            let ledger = &mut self.ledger;
            if let Some(run) = runs.filter(|_| !served) {
                // Stop calls that found nothing to stop.
                ledger.runs[run].modes.clear();
            }
            if base == Base::New {
                ledger.withdraw(ring);
                ledger.current[ring] = Some(ledger.runs.len());
                ledger.runs.push(Run {
                    ring,
                    area,
                    size,
                    packed,
                    withdrawn: false,
                    lenient: false,
                    hidden: false,
                    ran_unbuffered: false,
                    knows_used: knows > 0,
                    modes: VecDeque::new(),
                    sent_before_stop: 0,
                    free: (0..size).collect(),
                    available: 0,
                    used: 0,
                    seen,
                    heads: BTreeMap::new(),
                    places: BTreeMap::new(),
                });
            } else if let Some(run) = ledger.current[ring] {
                ledger.runs[run].knows_used = knows > 0;
            }
            ledger.wanted[ring] = true;
            self.busy[ring][area] = true;
        }
    }

    fn stop(&mut self, mask: u32, mode: u32) {
        let mode = mode % 3;
        let numbers: Vec<u32> = (0..u32::try_from(RINGS).unwrap())
            .filter(|ring| mask >> ring & 1 != 0)
            .collect();
        let named = (mask & 7 != 0).then_some(&numbers[..]);
        let mode_of = [StopMode::Drain, StopMode::SkipDrain, StopMode::Abandon];
        let how = mode_of[usize::try_from(mode).unwrap()];
        let sent = self.back.as_ref().map_or(0, BackEnd::sent);
        for ring in 0..RINGS {
            let number = u32::try_from(ring).unwrap();
            let it = named.is_none_or(|named| named.contains(&number));
            self.refused.starts[ring] &= !it;
            self.refused.calls[ring] &= !it;
            let ledger = &mut self.ledger;
            if let (true, true, Some(run)) = (it, ledger.wanted[ring], ledger.current[ring]) {
                ledger.runs[run].modes.push_back(mode);
                ledger.runs[run].sent_before_stop = sent;
                ledger.wanted[ring] = false;
            }
        }
        self.with_device(|device| device.stop(named, how));
    }

    fn reset(&mut self) {
        self.with_device(Device::reset);
        for ring in 0..RINGS {
            self.ledger.withdraw(ring);
        }
        self.features = None;
        self.held_since = None;
        self.needs_reset = false;
        self.refused.starts = [false; RINGS];
        self.refused.calls = [false; RINGS];
        self.reset_at = self.device.info().generation;
        if let Some(back) = &mut self.back {
            back.must_reset = back.can_reset();
        }
    }

    fn set_call(&mut self, ring: usize, which: usize) {
        let number = u32::try_from(ring).unwrap();
        let (calls, free) = self.starved;
        let call = Some(self.rings[ring].calls[which].as_fd());
        let result = match calls {
            0 => self.device.set_call(number, call),
            _ => starve(free, || self.device.set_call(number, call)),
        };
        self.starved.0 = calls.saturating_sub(1);
        if self.note("set_call()", result).is_some() {
            self.rings[ring].call = which;
            self.refused.calls[ring] = false;
            self.started_at[ring] = self.device.info().generation;
        }
    }

    // ---- the guest ----

    fn submit(&mut self, ring: usize, count: u32) {
        let (true, Some(run)) = (self.ledger.wanted[ring], self.ledger.current[ring]) else {
            return;
        };
        let file = self.file_of(ring);
        let it = &mut self.ledger.runs[run];
        let area = Self::area_offset(ring, it.area);
        for _ in 0..count {
            let Some(head) = it.free.pop_front() else {
                return;
            };
            let id = self.next_request;
            self.next_request += 1;
            let data = area + DATA + 16 * u64::from(head);
            file.write_all_at(&id.to_le_bytes(), data).unwrap();
            let addr = area_addr(ring, it.area) + DATA + 16 * u64::from(head);
            let slot = u64::from(it.counting().slot(it.available));
            if it.packed {
                let flags = it.counting().available_flags(it.available);
                let descriptor = [
                    &addr.to_le_bytes()[..],
                    &16_u32.to_le_bytes(),
                    &head.to_le_bytes(),
                    &flags.to_le_bytes(),
                ];
                let at = area + 16 * slot;
                file.write_all_at(&descriptor.concat(), at).unwrap();
            } else {
                let descriptor = [addr.to_le_bytes(), 16_u64.to_le_bytes()].concat();
                let at = area + 16 * u64::from(head);
                file.write_all_at(&descriptor, at).unwrap();
                let at = area + AVAILABLE + 4 + 2 * slot;
                file.write_all_at(&head.to_le_bytes(), at).unwrap();
                let index = it.available.wrapping_add(1).to_le_bytes();
                file.write_all_at(&index, area + AVAILABLE + 2).unwrap();
            }
            it.places.insert(it.available, id);
            it.available = it.available.wrapping_add(1);
            it.heads.insert(head, id);
            let request = Request {
                run,
                executed: 0,
                completed: false,
            };
            self.ledger.requests.insert(id, request);
        }
    }

    fn poll(&mut self) {
        for ring in 0..RINGS {
            let Some(run) = self.ledger.current[ring] else {
                continue;
            };
            let file = self.file_of(ring);
            let area = Self::area_offset(ring, self.ledger.runs[run].area);
            let index = self.used_index(run);
            loop {
                let it = &mut self.ledger.runs[run];
                if it.used == index {
                    break;
                }
                let slot = u64::from(it.counting().slot(it.used));
                let head = match it.packed {
                    true => half(&file, area + 16 * slot + 12),
                    false => half(&file, area + USED + 4 + 8 * slot),
                };
                it.used = it.used.wrapping_add(1);
                it.seen.store(it.used, Ordering::Relaxed);
                match it.heads.remove(&head) {
                    Some(id) => {
                        it.free.push_back(head);
                        let request = self.ledger.requests.get_mut(&id).unwrap();
                        request.completed = true;
                        if request.executed == 0 {
                            let text = format!("request {id} is completed, and was not executed");
                            self.ledger.suspect(run, Class::Lost, text);
                        }
                    }
                    None => {
                        let text = format!("ring {ring}: descriptor {head} is completed again");
                        self.ledger.suspect(run, Class::Twice, text);
                    }
                }
            }
        }
    }

    // ---- what is promised ----

    /// Back-ends that can still do something.
    fn living(&self) -> impl Iterator<Item = &BackEnd> {
        self.back.iter().chain(&self.old)
    }

    /// Whether this region of a back-end is one that the caller wants to share.
    fn is_shared(&self, guest_addr: u64, size: u64, inode: u64) -> bool {
        self.memory.iter().any(|(region, version)| {
            region_addr(*region) == guest_addr
                && size == REGION_SIZE
                && self.inodes[*region][*version] == inode
        })
    }

    /// The first access that a living back-end still has to what is not wanted any more.
    fn access(&self) -> Option<(Class, String)> {
        if let Some(text) = self.region_access() {
            return Some((Class::Fence, text));
        }
        self.ring_access()
    }

    /// The first ring that a living back-end still uses although it is not wanted, or has
    /// before a reset that it has not received.
    fn ring_access(&self) -> Option<(Class, String)> {
        for back in self.living() {
            for (index, ring) in back.rings.iter().enumerate() {
                let wanted = self.ledger.wanted[index] && ring.run == self.ledger.current[index];
                if wanted || !ring.accesses() || back.slots.is_empty() {
                    continue;
                }
                let Some(run) = ring.run else { continue };
                let text = format!("{} still serves ring {index} (run {run})", back.name);
                if ring.started {
                    return Some((Class::Fence, text));
                }
                if self.ledger.runs[run].knows_used {
                    let text = format!("{text}: {} requests in flight", ring.late().len());
                    return Some((Class::Used, text));
                }
            }
            if back.must_reset && !back.slots.is_empty() {
                let text = format!("{} has not received the reset", back.name);
                return Some((Class::Confirm, text));
            }
        }
        None
    }

    /// Regions alone.
    fn region_access(&self) -> Option<String> {
        let stale = |back| Some((back, self.stale_slot(back)?));
        let (back, slot) = self.living().find_map(stale)?;
        Some(format!(
            "{} has the region at {:#x}",
            back.name, slot.guest_addr
        ))
    }

    /// Checks every promise.
    fn check(&mut self) {
        if self.broken() {
            return;
        }
        let quiet = self.device.quiet();
        if quiet.quiesced {
            match self.access() {
                Some((class, text)) => {
                    self.ledger.violate(class, format!("quiesced, but {text}"));
                }
                None => {
                    for ring in 0..RINGS {
                        let run = self.ledger.current[ring].filter(|_| self.ledger.wanted[ring]);
                        let area = run.map(|run| self.ledger.runs[run].area);
                        let kept = self.ledger.current[ring].map(|it| self.ledger.runs[it].area);
                        for (at, busy) in self.busy[ring].iter_mut().enumerate() {
                            *busy &= area == Some(at) || kept == Some(at);
                        }
                    }
                }
            }
        }
        let state = self.device.memory_state();
        let safe = [
            MemoryState::Applied,
            MemoryState::Absent,
            MemoryState::Failed,
        ];
        let access = safe.contains(&state).then(|| self.region_access());
        if let Some(text) = access.flatten() {
            let text = format!("memory is {state:?}, but {text}");
            self.ledger.violate(Class::Memory, text);
        }
        let is_reset = self.device.virtio_status(0) == 0;
        if let Some((class, text)) = is_reset.then(|| self.ring_access()).flatten() {
            let text = format!("the status is 0, but {text}");
            self.ledger.violate(class, text);
        }
        self.check_bases(quiet.bases_valid);
        self.check_held();
        self.check_applied(false);
    }

    fn used_index(&self, run: usize) -> u16 {
        let it = &self.ledger.runs[run];
        let area = Self::area_offset(it.ring, it.area);
        used_position(&self.file_of(it.ring), area, it.counting(), it.used)
    }

    fn check_bases(&mut self, valid: bool) {
        for ring in 0..RINGS {
            let Some(run) = self.ledger.current[ring].filter(|_| !self.ledger.wanted[ring]) else {
                continue;
            };
            let served = |back: &BackEnd| {
                let ring = &back.rings[ring];
                ring.accesses() && ring.run == Some(run)
            };
            if self.ledger.runs[run].lenient || self.living().any(served) {
                continue;
            }
            let number = u32::try_from(ring).unwrap();
            let Ok(base) = self.device.vring_base(number) else {
                continue;
            };
            let counting = self.ledger.runs[run].counting();
            let (base, base_used) = counting.of_base(base);
            let mut buffered = match &self.ledger.buffer {
                Some(buffer) => buffer.entries(ring),
                None => Vec::new(),
            };
            buffered.retain(|(_, id)| {
                let request = self.ledger.requests.get(id);
                request.is_some_and(|request| request.run == run)
            });
            let used = counting.add(self.used_index(run), 0);
            if counting.packed && base_used != used {
                let text = format!("ring {ring}: base has used position {base_used}, not {used}");
                self.ledger.suspect(run, Class::Bases, text);
            }
            let wrong = self.ledger.resumes_wrongly(run, base, used, &buffered, &[]);
            if let Some((_, text)) = wrong {
                let text = format!("ring {ring} (bases_valid {valid}): {text}");
                self.ledger.suspect(run, Class::Bases, text);
            }
        }
    }

    /// Whether what is applied has arrived.
    fn check_applied(&mut self, thoroughly: bool) {
        let info = self.device.info();
        if info.applied != Some(info.generation) {
            return;
        }
        let Some(text) = self.not_applied(thoroughly) else {
            return;
        };
        self.ledger
            .violate(Class::Applied, format!("applied, but {text}"));
    }

    fn not_applied(&self, thoroughly: bool) -> Option<String> {
        // The device learns that a back-end is gone when it next looks.
        let back = self.back.as_ref()?;
        if let Some(slot) = self.stale_slot(back) {
            let at = slot.guest_addr;
            return Some(format!("the region at {at:#x} is still there"));
        }
        let (has, wanted) = (back.slots.len(), self.memory.len());
        let Some(features) = self.features else {
            // Memory stays over a reset; none is shared before the features are known.
            return match () {
                () if back.rings.iter().any(|ring| ring.started) => {
                    Some("a ring runs after the reset".to_owned())
                }
                () if back.must_reset => Some("it has not received the reset".to_owned()),
                () if has != 0 && has != wanted => {
                    Some(format!("it has {has} regions, not {wanted}"))
                }
                () => None,
            };
        };
        if back.features != Some(features | 1 << 30) {
            let has = back.features;
            return Some(format!("features are {has:x?}, not {features:x}"));
        }
        if has != wanted {
            return Some(format!("it has {has} regions, not {wanted}"));
        }
        let runs = back.rings.iter().any(|ring| ring.started);
        if let Some(text) = back.lacks(runs) {
            return Some(text.to_owned());
        }
        for (index, ring) in back.rings.iter().enumerate() {
            let wanted = self.ledger.wanted[index];
            let Some(run) = self.ledger.current[index].filter(|_| wanted) else {
                if ring.started {
                    return Some(format!("ring {index} runs"));
                }
                continue;
            };
            let it = &self.ledger.runs[run];
            let addr = area_addr(index, it.area);
            let right = ring.started
                && ring.run == Some(run)
                && ring.enabled
                && ring.size == u32::from(it.size)
                && ring.descriptor == addr;
            if !right {
                return Some(format!("ring {index} does not run as wanted"));
            }
            let fds = &self.rings[index];
            if thoroughly && !same_eventfd(ring.kick.as_ref(), &fds.kick) {
                return Some(format!("ring {index} has another kick descriptor"));
            }
            if thoroughly && !same_eventfd(ring.call.as_ref(), &fds.calls[fds.call]) {
                return Some(format!("ring {index} has another call descriptor"));
            }
        }
        None
    }

    /// A region that the back-end has, and that is not wanted.
    fn stale_slot<'back>(&self, back: &'back BackEnd) -> Option<&'back Slot> {
        let mut slots = back.slots.iter();
        slots.find(|slot| !self.is_shared(slot.guest_addr, slot.size, slot.inode))
    }

    /// No ring runs on a back-end that came after LOST has said NEEDS_RESET.
    fn check_held(&mut self) {
        let Some(since) = self.held_since.filter(|since| *since < self.connections) else {
            return;
        };
        let rings = self.back.iter().flat_map(|back| &back.rings);
        if rings.into_iter().any(|ring| ring.started) {
            let text = format!("a ring runs, and waits for a reset since connection {since}");
            self.ledger.violate(Class::Events, text);
        }
    }

    /// All events were taken: the status byte says what they have said.
    fn check_status(&mut self) {
        let bit = self.device.virtio_status(15) & 64 != 0;
        if bit != self.needs_reset {
            let text = format!("DEVICE_NEEDS_RESET is {bit}, and the events say otherwise");
            self.ledger.violate(Class::Events, text);
        }
    }

    // ---- actions ----

    fn fault(&mut self, code: u32, fault: Fault) {
        let back = self.back.as_mut();
        if let Some(back) = back.filter(|back| back.faults.len() < 4) {
            back.faults.push((kind(code), fault));
        }
    }

    /// One action.
    pub fn act(&mut self, action: &Action) {
        let Action { op, a, b, c } = *action;
        self.ledger.steps += 1;
        self.ledger.say(|| format!("> {action}"));
        let ring = usize::try_from(a).unwrap() % RINGS;
        let region = usize::try_from(a).unwrap() % REGIONS;
        match op {
            Op::Open => {}
            Op::Process => self.times(a, |world| {
                world.process();
            }),
            Op::Serve => self.times(a, |world| {
                world.serve();
            }),
            Op::Run => self.rounds(a, false),
            Op::Work => self.rounds(a, true),
            Op::Time => self.pass(u64::from(a)),
            Op::Connect => self.connect(a),
            Op::Features => self.set_features(a),
            Op::Memory => self.set_memory(a, b, c & 1 != 0),
            Op::Add => self.add(region, usize::try_from(b & 1).unwrap()),
            Op::Remove => self.remove(region),
            Op::Start => self.start(a, b, c),
            Op::Stop => self.stop(a, b),
            Op::Reset => self.reset(),
            Op::SetCall => self.set_call(ring, usize::try_from(b & 1).unwrap()),
            Op::Config => {
                if self.config_size > 0 {
                    let result = self.with_device(|device| device.write_config(a & 7, &[7]));
                    self.note("write_config()", result);
                }
            }
            Op::Reconnect => self.device.reconnect(),
            Op::Starve => self.starved = (a % 16, u64::from(b % 8)),
            Op::Submit => self.submit(ring, b % 64),
            Op::Poll => self.poll(),
            Op::Take => {
                if let Some(back) = &mut self.back {
                    back.take(ring, b % 64, &mut self.ledger);
                }
            }
            Op::Complete => {
                if let Some(back) = &mut self.back {
                    for _ in 0..b % 64 {
                        back.complete(ring, c % 3, &mut self.ledger);
                    }
                }
            }
            Op::Refuse => self.fault(a, Fault::Refuse),
            Op::Malform => self.fault(a, Fault::Malform(b)),
            Op::Cut => self.fault(a, Fault::Cut(b)),
            Op::Mute => self.fault(a, Fault::Mute(b)),
            Op::Garbage => {
                if let Some(back) = &mut self.back {
                    back.garbage();
                }
            }
            Op::Hinder => {
                // Where the kernel has no asynchronous requests, threads write these.
                all_are_closed();
                if let Some(back) = &mut self.back {
                    back.hinder(a, &mut self.ledger);
                }
            }
            Op::Close => {
                if let Some(back) = &mut self.back {
                    back.gone = true;
                }
            }
            Op::OldServe => {
                for back in &mut self.old {
                    for _ in 0..a % 64 {
                        back.serve(&mut self.ledger);
                    }
                }
            }
            Op::OldComplete => {
                for back in &mut self.old {
                    for ring in 0..RINGS {
                        back.complete(ring, 0, &mut self.ledger);
                    }
                }
            }
            Op::OldClose => {
                // Also the last one, where no other has connected yet.
                let which = usize::try_from(a).unwrap() % (self.old.len() + 1);
                match self.old.get_mut(which) {
                    Some(back) => back.gone = true,
                    None => {
                        if let Some(back) = self.back.as_mut().filter(|it| it.was_given_up()) {
                            back.gone = true;
                        }
                    }
                }
            }
        }
        self.retire();
        self.check();
    }

    fn times(&mut self, count: u32, turn: impl Fn(&mut Self)) {
        for _ in 0..count % 64 {
            if self.broken() {
                return;
            }
            turn(self);
        }
    }

    /// Rounds, until nothing happens in two of them.
    fn rounds(&mut self, count: u32, with_rings: bool) {
        let mut idle = 0;
        for _ in 0..count % 64 {
            if self.broken() || idle >= 2 {
                return;
            }
            idle = match self.round(with_rings) {
                true => 0,
                false => idle + 1,
            };
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.time
            .fetch_add(milliseconds * 1_000_000, Ordering::Relaxed);
    }

    // ---- the end ----

    /// Takes turns with healthy back-ends until this holds; whether it does.
    fn settles(&mut self, until: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..ENOUGH {
            self.round(true);
            if self.broken() || until(self) {
                return true;
            }
            let given_up = self.back.as_ref().is_none_or(BackEnd::was_given_up);
            if given_up {
                self.back = None;
            }
            self.connect(caps::HEALTHY);
            self.pass(20);
        }
        false
    }

    /// All that is wanted has come about, was refused, or waits for a reset.
    fn is_settled(&self) -> bool {
        self.is_applied() || (self.device.info().connected && self.is_refused())
    }

    /// All that is left was refused, as was reported.
    fn is_refused(&self) -> bool {
        let wait = || self.device.wait(Timeout::After(Duration::ZERO));
        self.refused.any() && wait().is_err_and(|error| error.kind != Kind::TimedOut)
    }

    /// All that is wanted has come about, or waits for a reset.
    fn is_applied(&self) -> bool {
        let info = self.device.info();
        let waits = info.needs_reset && self.ledger.wanted.contains(&true);
        info.connected && (waits || info.applied == Some(info.generation))
    }

    /// Each ring that runs has completed all requests.
    fn is_idle(&self) -> bool {
        let waits = self.device.info().needs_reset;
        (0..RINGS).all(|ring| {
            let run = self.ledger.current[ring].filter(|_| self.ledger.wanted[ring]);
            let back = self.back.as_ref();
            let runs = back.is_some_and(|back| back.rings[ring].started);
            run.is_none_or(|run| {
                self.ledger.runs[run].lenient
                    || (waits && !runs)
                    || self.ledger.outstanding(run).is_empty()
            })
        })
    }

    /// The caller asks again for all that was refused.
    fn ask_again(&mut self) {
        let versions = self.memory.iter();
        let versions = versions.fold(0, |all, (region, version)| all | version << region);
        let mask = self.memory.keys().fold(0, |all, region| all | 1 << region);
        self.set_memory(mask, u32::try_from(versions).unwrap(), true);
        for ring in 0..RINGS {
            if self.refused.starts[ring] {
                self.stop(1 << ring, 0);
            } else if self.refused.calls[ring] {
                self.set_call(ring, self.rings[ring].call);
            }
        }
    }

    fn unsettled(&mut self, what: &str) {
        let (info, quiet) = (self.device.info(), self.device.quiet());
        let text = format!(
            "{what}: connected {}, generation {}, applied {:?}, {quiet:?}",
            info.connected, info.generation, info.applied
        );
        self.ledger.violate(Class::Settle, text);
    }

    /// Whatever has happened, a healthy back-end ends it well.
    fn finish(&mut self) {
        self.starved = (0, 0);
        self.ledger
            .say(|| "> the end: old back-ends end, a healthy one comes".to_owned());
        self.old.clear();
        self.back = None;
        if !self.settles(Self::is_settled) {
            return self.unsettled("the device does not settle");
        }
        if !self.settles(Self::is_idle) {
            let runs = self
                .ledger
                .current
                .map(|run| run.map(|run| self.ledger.outstanding(run)));
            return self.unsettled(&format!("requests are not completed: {runs:?}"));
        }
        if self.refused.any() && !self.broken() {
            self.ask_again();
            if !self.settles(Self::is_applied) {
                return self.unsettled("what was refused is refused again");
            }
        }
        if !self.resets {
            return;
        }
        self.ledger.say(|| "> the end: reset".to_owned());
        self.reset();
        if !self.settles(|world| world.device.quiet().quiesced) {
            return self.unsettled("a reset does not quiesce the device");
        }
        if !self.settles(Self::is_settled) {
            return self.unsettled("the device does not settle after a reset");
        }
        self.set_features(0);
        self.set_memory(1, 0, true);
        self.start(1, 0, 2 << 2);
        self.submit(0, 3);
        let works = |world: &Self| world.is_settled() && world.is_idle() && world.ledger.wanted[0];
        if !self.settles(works) {
            return self.unsettled("a ring does not run after a reset");
        }
        self.stop(0, 0);
        if !self.settles(|world| world.is_settled() && world.device.quiet().quiesced) {
            return self.unsettled("a ring does not stop");
        }
        match self.device.vring_base(0) {
            Ok(3) => {}
            other => self
                .ledger
                .violate(Class::Settle, format!("the base is {other:?}, not 3")),
        }
    }
}

/// What came of a history.
#[derive(Debug)]
pub struct Outcome {
    pub steps: u64,
    pub violation: Option<Violation>,
    pub trace: Vec<String>,
}

/// Plays a history, and checks every promise after each step.
pub fn play(history: &[Action], only: &BTreeSet<Class>, trace: bool) -> Outcome {
    let mut world = World::new(history, only.clone(), trace);
    for action in history {
        if world.broken() {
            break;
        }
        world.act(action);
    }
    if !world.broken() {
        world.finish();
    }
    let World { ledger, .. } = world;
    Outcome {
        steps: ledger.steps,
        violation: ledger.violation,
        trace: ledger.trace.unwrap_or_default(),
    }
}
