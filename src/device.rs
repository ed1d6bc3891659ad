//! The device (layer 2): what a caller wants of a back-end, made so and kept so
//! over every loss of it. Calls record what is wanted; an event loop that calls
//! [`Device::process`] makes it so, and nothing here waits but [`Device::wait`].

#![forbid(unsafe_code)]

mod config;
mod core;
mod event;
mod fence;
mod group;
mod link;
pub(crate) mod memfd;
pub(crate) mod memory;
mod options;
mod plan;
mod ring;
#[cfg(test)]
mod testing;

use self::config::Config;
use self::core::{Core, Live, Mode, Stood, readable};
use self::event::Events;
use self::memory::{GuestRegion, Limits, MemoryList};
use self::plan::{Drain, RingWanted, Wanted};
use self::ring::{Kept, Origin};
use crate::backend_client::{BackendHandler, HostNotifier, Timeout, Uuid};
use crate::connection::{Counters, ThreadMark, TraceSink};
use crate::error::{Error, Kind, Result};
use crate::message::{BackendRequest, Iotlb, ProtocolFeatures, SHMEM_REGIONS, ShmemArea, virtio};
use crate::socket::{self, Alarm, Bell, Credentials, Deadline, Pollable};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use event::{Event, EventKind, Recovery};
pub use group::{MemoryGroup, MemoryState};
pub use link::{Peer, Policy};
pub use memory::GuestRegion as Region;
pub use options::{DeviceOptions, OnUnfenced, OutOfOrder};
pub use ring::{Base, Ring, RingIndices};

/// How rings are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopMode {
    /// The device finishes what it has taken (GET_VRING_BASE).
    #[default]
    Drain,
    /// It does not, where that was agreed (GET_VRING_BASE_SKIP_DRAIN); what is left
    /// stands in the in-flight buffer. Otherwise as `Drain`.
    SkipDrain,
    /// The connection is ended, and nothing is known of where the rings stood.
    Abandon,
}

/// What is left of rings that were stopped, or of memory that was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// No back-end uses it any more. Otherwise guest memory may still be written.
    pub quiesced: bool,
    /// Where each of the rings stood is known.
    pub bases_valid: bool,
}

/// What is known of a device.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// There is a connection, and its handshake went through.
    pub connected: bool,
    /// Virtio features that the back-end offers, or offered last, or is assumed to;
    /// without those that belong to the library.
    pub offered_features: u64,
    /// Those acknowledged on this connection.
    pub acked_features: u64,
    /// Protocol features that the back-end offers.
    pub offered_protocol_features: u64,
    /// Those acknowledged.
    pub protocol_features: u64,
    /// GET_QUEUE_NUM, if it was asked. Some back-ends count pairs.
    pub queue_num: Option<u64>,
    /// GET_MAX_MEM_SLOTS, if it was asked.
    pub max_mem_slots: Option<u64>,
    /// Sizes of the shared memory regions by `shmid`.
    pub shmem_sizes: [u64; SHMEM_REGIONS],
    /// Who is at the other end.
    pub peer: Option<Credentials>,
    /// Counts what was asked for.
    pub generation: u64,
    /// Up to where it was done; `None` while there is no connection.
    pub applied: Option<u64>,
    /// How many connections there have been.
    pub connections: u64,
    /// The rings wait for a reset of the device.
    pub needs_reset: bool,
    /// A back-end that was given up may still write guest memory.
    pub unfenced: bool,
}

/// A vhost-user device.
///
/// Any thread may call any method. Those that say what is wanted never wait, and
/// succeed without a back-end, too: then they apply once there is one.
pub struct Device {
    core: Mutex<Core>,
    config: Arc<Config>,
    /// The number of the thread that drives the connection, without the lock; 0 for
    /// none.
    driving: AtomicUsize,
    /// Another one wanted to meanwhile.
    missed: AtomicBool,
    /// Threads in [`wait`](Self::wait).
    waiting: Mutex<Vec<Arc<Bell>>>,
    /// Ready when there is something to do on a socket.
    traffic: Pollable,
    /// Ready when there is an event, or something to do because of the time.
    alarm: Alarm,
    /// Ready when either is.
    notifier: Pollable,
    closed: AtomicBool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

/// The caller's handler, and the news that the library wants for itself.
struct Handler {
    theirs: Option<Arc<dyn BackendHandler>>,
    changed: Arc<AtomicBool>,
}

const UNHANDLED: i32 = -libc::EOPNOTSUPP;

impl BackendHandler for Handler {
    fn handles(&self, request: BackendRequest) -> bool {
        let theirs = self.theirs.as_ref();
        request == BackendRequest::ConfigChange || theirs.is_some_and(|it| it.handles(request))
    }
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.iotlb_miss(iova, perm))
    }
    fn iotlb_access_fail(&self, message: &Iotlb) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.iotlb_access_fail(message))
    }
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.host_notifier(ring, notifier))
    }
    fn shared_object_lookup(&self, uuid: &Uuid) -> std::result::Result<OwnedFd, i32> {
        self.theirs
            .as_ref()
            .map_or(Err(UNHANDLED), |it| it.shared_object_lookup(uuid))
    }
    fn shmem_map(&self, area: &ShmemArea, fd: OwnedFd) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.shmem_map(area, fd))
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.shmem_unmap(area))
    }
    fn config_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }
    fn vring_call(&self, ring: u8) {
        if let Some(it) = &self.theirs {
            it.vring_call(ring);
        }
    }
    fn vring_err(&self, ring: u8) {
        if let Some(it) = &self.theirs {
            it.vring_err(ring);
        }
    }
    fn shared_object_added(&self, uuid: &Uuid) {
        if let Some(it) = &self.theirs {
            it.shared_object_added(uuid);
        }
    }
    fn shared_object_removed(&self, uuid: &Uuid) {
        if let Some(it) = &self.theirs {
            it.shared_object_removed(uuid);
        }
    }
}

/// The thread that drives does no longer, whatever happens to it.
struct Driving<'a>(&'a AtomicUsize);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// A thread waits.
struct Waiting<'a>(&'a Device, Arc<Bell>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiters();
        waiting.retain(|bell| !Arc::ptr_eq(bell, &self.1));
    }
}

fn held() -> Error {
    let text = "rings that ran when the back-end was lost wait for a reset of the device";
    Error::new(Kind::State, text)
}

fn busy(text: &'static str) -> Error {
    Error::new(Kind::Argument(Errno::EBUSY), text)
}

impl Device {
    /// A device whose back-end is reached like this. Nothing is sent before
    /// [`process`](Self::process) or [`wait`](Self::wait) is called.
    pub fn open(peer: Peer, options: DeviceOptions) -> Result<Self> {
        options.check()?;
        let made = |errno| Error::os(errno, "cannot make what the device waits with");
        let mut link = link::Link::new(peer, options.reconnect)?;
        link.begin(Instant::now());
        let config = Arc::new(Config::new(options.config_size));
        let changed = Arc::new(AtomicBool::new(false));
        let handler = Handler {
            theirs: options.handler.clone(),
            changed: Arc::clone(&changed),
        };
        let rings = usize::try_from(options.rings()).unwrap_or_default();
        let wanted = Wanted {
            protocol: options.protocol_features,
            channel: options.handler.is_some() || options.config_size > 0,
            config_size: options.config_size,
            rings: vec![None; rings],
            ..Wanted::default()
        };
        let core = Core {
            offered: options.assume_features,
            options: Arc::new(options),
            config: Arc::clone(&config),
            handler: Arc::new(handler),
            changed,
            link,
            mode: Mode::Down,
            wanted,
            kept: (0..rings).map(|_| None).collect(),
            stood: vec![Stood::default(); rings],
            starts: 0,
            generation: 0,
            applied: None,
            events: Events::default(),
            buffer: None,
            lives: 0,
            recovering: false,
            memory_refused: false,
            unfit: None,
            ghost: None,
            unfenced: false,
            writes: VecDeque::new(),
            retired: Vec::new(),
            trace: None,
        };
        let device = Self {
            core: Mutex::new(core),
            config,
            driving: AtomicUsize::new(0),
            missed: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
            traffic: Pollable::new().map_err(made)?,
            alarm: Alarm::new().map_err(made)?,
            notifier: Pollable::new().map_err(made)?,
            closed: AtomicBool::new(false),
        };
        for fd in [device.traffic.fd(), device.alarm.fd()] {
            device.notifier.watch(readable(fd)).map_err(made)?;
        }
        device.arm(&device.lock());
        Ok(device)
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic under the lock is caught by the caller, who closes.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Arc<Bell>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- driving ----

    /// The one descriptor to poll: readable when [`process`](Self::process) has
    /// something to do or an event to give. It stays the same.
    pub fn notifier(&self) -> BorrowedFd<'_> {
        self.notifier.fd()
    }

    /// Does a bounded part of what there is to do, without waiting, and gives the
    /// next event.
    pub fn process(&self) -> Result<Option<Event>> {
        self.turn()?;
        let mut core = self.lock();
        let event = core.events.pop();
        self.arm(&core);
        Ok(event)
    }

    /// Waits until the back-end has been told all that is wanted.
    ///
    /// Events are left for [`process`](Self::process). Fails with
    /// [`Kind::TimedOut`], and with [`Kind::State`] where rings wait for a reset of
    /// the device.
    pub fn wait(&self, timeout: Timeout) -> Result<()> {
        self.wait_until(timeout, |core| {
            if core.wanted.held && core.wanted.rings.iter().any(Option::is_some) {
                return Some(Err(held()));
            }
            core.settled().then_some(Ok(()))
        })
    }

    /// Drives until there is a result.
    fn wait_until(
        &self,
        timeout: Timeout,
        result: impl Fn(&Core) -> Option<Result<()>>,
    ) -> Result<()> {
        let deadline = Deadline::after(timeout.or(DEFAULT_WAIT));
        let made = |errno| Error::os(errno, "cannot make what the device waits with");
        let bell = Arc::new(Bell::new().map_err(made)?);
        self.waiters().push(Arc::clone(&bell));
        let waiting = Waiting(self, bell);
        loop {
            let drove = self.turn()?;
            waiting.1.silence();
            let core = self.lock();
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::new(Kind::Canceled, "the device is being closed"));
            }
            if let Some(result) = result(&core) {
                return result;
            }
            if deadline.passed() {
                let what = match &core.mode {
                    Mode::Up(_) => "the back-end has not done all of what is wanted",
                    Mode::Fencing(..) => "the back-end that was lost has not closed its connection",
                    Mode::Down => "there is no back-end",
                };
                return Err(Error::new(Kind::TimedOut, what));
            }
            let now = Instant::now();
            let until = match core.due(now) {
                Some(due) if drove => deadline.no_later_than(due.saturating_duration_since(now)),
                _ => deadline,
            };
            drop(core);
            // What another thread is at stays readable as long as it is.
            let bell = readable(waiting.1.fd());
            let traffic = if drove {
                readable(self.traffic.fd())
            } else {
                bell
            };
            socket::wait([traffic, bell], until)
                .map_err(|errno| Error::os(errno, "cannot wait for the back-end"))?;
        }
    }

    /// One step of everything, unless another thread is at it: whether it is not.
    /// That wakes who waits here, when it is done.
    fn turn(&self) -> Result<bool> {
        let here = ThreadMark::here().number();
        // Once more after the flag is set: who drives looks at it last.
        for _ in 0..2 {
            let (free, order) = (0, Ordering::SeqCst);
            match self.driving.compare_exchange(free, here, order, order) {
                Ok(_) => {
                    self.drive();
                    if self.missed.swap(false, Ordering::SeqCst) {
                        self.wake();
                    }
                    return Ok(true);
                }
                Err(driver) if driver == here => {
                    let text = "this call may not be made by a function that the library calls";
                    return Err(Error::new(Kind::State, text));
                }
                Err(_) => self.missed.store(true, Ordering::SeqCst),
            }
        }
        Ok(false)
    }

    fn drive(&self) {
        let driving = Driving(&self.driving);
        let mut core = self.lock();
        let before = core.stage();
        core.transport(&self.traffic, Instant::now());
        let client = core.live().map(|live| Arc::clone(&live.client));
        if let Some(client) = client {
            // What was asked for meanwhile, in one go with what is there.
            core.advance(&self.traffic, Instant::now());
            // Handlers run here.
            drop(core);
            client.step();
            core = self.lock();
            core.advance(&self.traffic, Instant::now());
        }
        let retired = std::mem::take(&mut core.retired);
        self.arm(&core);
        let moved = before != core.stage();
        let client = core.live().map(|live| Arc::clone(&live.client));
        drop(core);
        if let Some(client) = client {
            client.tell_begun();
        }
        for client in retired {
            // Mappings that are gone are reported here.
            client.tell_begun();
            client.finish_handlers();
        }
        drop(driving);
        if moved {
            self.wake();
        }
    }

    /// Threads that wait look again.
    fn wake(&self) {
        self.waiters().iter().for_each(|bell| bell.ring());
    }

    /// Makes the descriptor for polling say what there is to do.
    fn arm(&self, core: &Core) {
        for watch in core.watches().into_iter().flatten() {
            // What cannot be watched for is looked at when something else is.
            let _ = self.traffic.watch(watch);
        }
        let now = Instant::now();
        let due = core.due(now).map(|due| due.saturating_duration_since(now));
        self.alarm.set(match core.events.is_empty() {
            true => due,
            false => Some(Duration::ZERO),
        });
    }

    /// Something else is wanted: the event loop is woken for it.
    fn moved(&self, mut core: MutexGuard<'_, Core>) {
        core.moved();
        drop(core);
        self.alarm.set(Some(Duration::ZERO));
        self.wake();
    }

    // ---- what is known ----

    /// What is known of the device and its back-end.
    pub fn info(&self) -> DeviceInfo {
        let core = self.lock();
        let live = core.live();
        let actual = live.map(|live| &live.actual);
        let protocol = actual.and_then(|actual| actual.protocol);
        DeviceInfo {
            connected: live.is_some_and(|live| live.connected),
            offered_features: core.offered.unwrap_or_default() & !plan::OURS,
            acked_features: actual.and_then(|it| it.features).unwrap_or_default() & !plan::OURS,
            offered_protocol_features: actual
                .and_then(|it| it.offered_protocol.told())
                .unwrap_or_default(),
            protocol_features: protocol.map(|it| it.bits()).unwrap_or_default(),
            queue_num: actual.and_then(|it| it.queue_num.told()),
            max_mem_slots: actual.and_then(|it| it.slots.told()),
            shmem_sizes: live.map_or([0; SHMEM_REGIONS], |live| live.shmem),
            peer: live.and_then(|live| socket::peer_credentials(live.client.read_notifier())),
            generation: core.generation,
            applied: core.applied,
            connections: core.lives,
            needs_reset: core.wanted.held,
            unfenced: core.unfenced,
        }
    }

    /// What the connection has done so far; `None` while there is none.
    pub fn counters(&self) -> Option<Counters> {
        self.lock().live().map(|live| live.client.counters())
    }

    /// Has `sink` told of every message, on this connection and all that follow.
    pub fn set_trace(&self, sink: Option<TraceSink>) -> Result<()> {
        let mut core = self.lock();
        core.trace = sink.clone();
        let client = core.live().map(|live| Arc::clone(&live.client));
        drop(core);
        client.map_or(Ok(()), |client| client.set_trace(sink))
    }

    // ---- what is wanted ----

    /// The virtio features that the guest's driver has acknowledged: of those
    /// offered. Rings must be stopped.
    pub fn set_features(&self, features: u64) -> Result<()> {
        let mut core = self.lock();
        if core.wanted.rings.iter().any(Option::is_some) {
            return Err(busy("features cannot change while rings run"));
        }
        let features = features & !plan::OURS;
        let Some(offered) = core.offered else {
            let text = "what the back-end offers is not known yet, and nothing is assumed";
            return Err(Error::new(Kind::State, text));
        };
        match features & !offered {
            0 => {}
            surplus => {
                let names = crate::message::bit_names(surplus, virtio::name);
                let text = format!("features has bits that the back-end does not offer: {names}");
                return Err(Error::invalid(text));
            }
        }
        core.wanted.features = Some(features);
        self.moved(core);
        Ok(())
    }

    /// All guest memory, in any order. While rings run, what is there already has
    /// to stay, unless `allow_gap`.
    pub fn set_memory(&self, regions: Vec<GuestRegion>, allow_gap: bool) -> Result<()> {
        let list = MemoryList::new(regions)?;
        self.change_memory(allow_gap, |memory| {
            *memory = list;
            Ok(())
        })
    }

    /// One region more.
    pub fn add_memory(&self, region: GuestRegion) -> Result<()> {
        self.change_memory(false, |memory| memory.add(region))
    }

    /// Takes away the region with these bounds. Whether no back-end uses it any
    /// more: before that it must not be unmapped, and [`quiet`](Self::quiet) tells.
    pub fn remove_memory(&self, guest_addr: u64, size: u64) -> Result<Quiet> {
        self.change_memory(true, |memory| memory.remove(guest_addr, size))?;
        Ok(self.quiet())
    }

    fn change_memory(
        &self,
        allow_gap: bool,
        change: impl FnOnce(&mut MemoryList) -> Result<()>,
    ) -> Result<()> {
        let core = self.lock();
        let mut memory = core.wanted.memory.clone();
        change(&mut memory)?;
        Self::check_change(&core, &memory, allow_gap)?;
        self.share(core, memory);
        Ok(())
    }

    /// Whether a list could be [applied](Self::apply_memory).
    pub(crate) fn check_memory(&self, memory: &MemoryList, allow_gap: bool) -> Result<()> {
        Self::check_change(&self.lock(), memory, allow_gap)
    }

    /// What was checked is wanted from now on.
    pub(crate) fn apply_memory(&self, memory: &MemoryList) {
        self.share(self.lock(), memory.clone());
    }

    fn share(&self, mut core: MutexGuard<'_, Core>, memory: MemoryList) {
        core.wanted.memory = memory;
        core.memory_refused = false;
        self.moved(core);
    }

    fn check_change(core: &Core, memory: &MemoryList, allow_gap: bool) -> Result<()> {
        if let Some(live) = core.live() {
            if live.connected {
                memory::fits(memory, Self::limits(live))?;
            }
            let sent = live.actual.memory.as_ref();
            let changes = sent.and_then(|sent| memory::changes_live(sent, memory));
            let runs = live.actual.runs_on(&core.wanted);
            if let (Some(region), true, false) = (changes, runs, allow_gap) {
                let text = format!("{region}, would change while rings run");
                return Err(Error::new(Kind::Argument(Errno::EBUSY), text));
            }
        }
        // Rings that are to run need their memory, whoever is there now.
        let features = core.wanted.features.unwrap_or_default();
        for kept in core.kept.iter().flatten() {
            if !ring::lies_in(kept, features, memory) {
                let index = kept.addr.index;
                let text = format!("ring {index} lies in what would be taken away");
                return Err(Error::new(Kind::Argument(Errno::EBUSY), text).ring(index));
            }
        }
        Ok(())
    }

    /// How far the back-end has got with the memory that is wanted.
    pub fn memory_state(&self) -> MemoryState {
        self.lock().memory_state()
    }

    /// Waits until the memory is not [`MemoryState::Pending`]; whether it is not.
    pub(crate) fn wait_for_memory(&self, timeout: Timeout) -> Result<bool> {
        let told = |core: &Core| (core.memory_state() != MemoryState::Pending).then_some(Ok(()));
        match self.wait_until(timeout, told) {
            Ok(()) => Ok(true),
            Err(error) if error.kind == Kind::TimedOut => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn limits(live: &Live) -> Limits {
        Limits {
            slots: live.actual.slots.told(),
            configure: live.actual.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        }
    }

    /// Whether the back-end could hold these regions; without one, whether any
    /// could.
    pub fn memory_fits(&self, regions: Vec<GuestRegion>) -> Result<()> {
        self.fits(&MemoryList::new(regions)?)
    }

    pub(crate) fn fits(&self, list: &MemoryList) -> Result<()> {
        let core = self.lock();
        let unknown = Limits {
            slots: None,
            configure: true,
        };
        memory::fits(list, core.live().map_or(unknown, Self::limits))
    }

    /// Starts rings that do not run, all or none of them.
    pub fn start(&self, rings: &[Ring<'_>]) -> Result<()> {
        let mut core = self.lock();
        if core.wanted.held {
            return Err(held());
        }
        let Some(features) = core.wanted.features else {
            let text = "features come first";
            return Err(Error::new(Kind::State, text));
        };
        let packed = features & 1_u64.wrapping_shl(virtio::F_RING_PACKED) != 0;
        let mut starts = Vec::with_capacity(rings.len());
        for ring in rings {
            let kept = self
                .keep(&core, ring, features, packed)
                .map_err(|error| error.ring(ring.index))?;
            let index = usize::try_from(ring.index).unwrap_or(usize::MAX);
            if starts.iter().any(|(other, _)| *other == index) {
                return Err(Error::invalid("a ring is there twice").ring(ring.index));
            }
            starts.push((index, kept));
        }
        for (index, kept) in starts {
            core.starts = core.starts.saturating_add(1);
            let start = core.starts;
            let wanted = RingWanted {
                start,
                call: start,
                err: kept.err.is_some(),
                size: kept.size,
            };
            if let (Some(place), Some(want)) = (core.kept.get_mut(index), Some(wanted)) {
                *place = Some(kept);
                if let Some(place) = core.wanted.rings.get_mut(index) {
                    *place = Some(want);
                }
            }
        }
        self.moved(core);
        Ok(())
    }

    /// Checks a ring, and duplicates what is kept of it.
    fn keep(&self, core: &Core, ring: &Ring<'_>, features: u64, packed: bool) -> Result<Kept> {
        let index = usize::try_from(ring.index).unwrap_or(usize::MAX);
        let Some(place) = core.kept.get(index) else {
            let rings = core.kept.len();
            return Err(Error::invalid(format!("the device has {rings} rings")));
        };
        if place.is_some() {
            return Err(busy("the ring runs already"));
        }
        ring::check(ring, features, &core.wanted.memory)?;
        let origin = match ring.base {
            Base::New => Origin::At(ring::new_base(packed)),
            Base::At(base) if !packed && base > u32::from(u16::MAX) => {
                return Err(Error::invalid(
                    "base has more than 16 bits, and the ring is split",
                ));
            }
            Base::At(base) => Origin::At(base),
            Base::Resume => Origin::Stopped,
        };
        let stops = core.live().and_then(|live| live.actual.rings.get(index));
        let origin = match (origin, core.stood.get(index)) {
            (Origin::Stopped, Some(Stood::At(base))) => Origin::At(*base),
            (Origin::Stopped, _) if stops.is_some_and(|ring| ring.kick) => Origin::Stopped,
            (Origin::Stopped, _) => {
                let text = "where the ring was stopped is not known";
                return Err(Error::new(Kind::State, text));
            }
            (origin, _) => origin,
        };
        let keep = |fd: BorrowedFd<'_>| {
            let kept = socket::duplicate(fd).map_err(|errno| match errno {
                Errno::EBADF => Error::bad_fd("a descriptor of the ring is not open"),
                _ => Error::os(errno, "cannot keep a descriptor of the ring"),
            });
            kept.map(Arc::new)
        };
        Ok(Kept {
            addr: ring::addr_of(ring),
            size: ring.size,
            origin,
            kick: keep(ring.kick)?,
            call: ring.call.map(keep).transpose()?,
            err: ring.err.map(keep).transpose()?,
            indices: ring.indices.clone(),
        })
    }

    /// Gives a ring another descriptor for the device to write, also while it runs.
    pub fn set_call(&self, index: u32, call: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut core = self.lock();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let call = call
            .map(|fd| socket::duplicate(fd).map(Arc::new))
            .transpose()
            .map_err(|_| Error::bad_fd("call is not open").ring(index))?;
        core.starts = core.starts.saturating_add(1);
        let number = core.starts;
        let Core { kept, wanted, .. } = &mut *core;
        match (kept.get_mut(at), wanted.rings.get_mut(at)) {
            (Some(Some(kept)), Some(Some(wanted))) => {
                kept.call = call;
                wanted.call = number;
            }
            _ => {
                let text = "the ring does not run";
                return Err(Error::new(Kind::State, text).ring(index));
            }
        }
        self.moved(core);
        Ok(())
    }

    /// Stops rings; `None` for all. Never fails: what is left is in the result, and
    /// later in [`quiet`](Self::quiet).
    pub fn stop(&self, rings: Option<&[u32]>, mode: StopMode) -> Quiet {
        let mut core = self.lock();
        core.wanted.drain = match mode {
            StopMode::SkipDrain => Drain::Skip,
            StopMode::Drain | StopMode::Abandon => Drain::Finish,
        };
        for index in 0..core.kept.len() {
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            if rings.is_none_or(|rings| rings.contains(&number)) {
                core.unwant(index);
            }
        }
        if mode == StopMode::Abandon {
            let error = Error::new(Kind::Canceled, "the caller abandoned the connection");
            core.lose(error, false, &self.traffic, Instant::now());
        }
        self.moved(core);
        self.quiet()
    }

    /// Whether what was stopped or taken away is really out of use.
    pub fn quiet(&self) -> Quiet {
        let core = self.lock();
        let rings = core.live().is_some_and(|live| {
            let rings = live.actual.rings.iter().zip(&core.wanted.rings);
            rings.into_iter().any(|(actual, wanted)| {
                actual.start.is_some() && wanted.map(|it| it.start) != actual.start
            })
        });
        let memory = core.live().is_some_and(|live| {
            let sent = live.actual.memory.as_ref();
            sent.is_some_and(|sent| sent.stale(&core.wanted.memory)) || live.memory_under_way()
        });
        let fencing = matches!(core.mode, Mode::Fencing(..)) || core.unfenced;
        let stopped = core.kept.iter().zip(&core.stood);
        Quiet {
            quiesced: !(rings || memory || fencing),
            bases_valid: stopped
                .filter(|(kept, _)| kept.is_none())
                .all(|(_, stood)| *stood != Stood::Unknown),
        }
    }

    /// Where a ring stood when it was stopped.
    pub fn vring_base(&self, index: u32) -> Result<u32> {
        let core = self.lock();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        match (core.stood.get(at), core.kept.get(at)) {
            (Some(Stood::At(base)), Some(None)) => Ok(*base),
            _ => {
                let text = "where the ring was stopped is not known";
                Err(Error::new(Kind::State, text).ring(index))
            }
        }
    }

    /// Resets the device, as its driver does: no ring runs, no feature is
    /// acknowledged. Memory and the connection stay. Never fails.
    pub fn reset(&self) -> Quiet {
        let mut core = self.lock();
        core.wanted.resets = core.wanted.resets.saturating_add(1);
        core.wanted.features = None;
        core.wanted.held = false;
        // What is started after this is new.
        core.recovering = false;
        core.wanted.drain = Drain::Skip;
        core.wanted.rings.fill(None);
        core.kept.iter_mut().for_each(|kept| *kept = None);
        core.stood.fill(Stood::default());
        core.buffer = None;
        self.moved(core);
        self.quiet()
    }

    // ---- configuration space ----

    /// Copies from the configuration space: the caller's own fields, and what the
    /// back-end told last. Takes no lock of the device and never waits. The
    /// generation, which changes with the content.
    pub fn read_config(&self, offset: u32, buffer: &mut [u8]) -> Result<u32> {
        self.config.read(offset, buffer)
    }

    /// Makes bytes of the configuration space the caller's own.
    pub fn overlay_config(&self, offset: u32, data: &[u8]) -> Result<()> {
        self.config.overlay(offset, data)
    }

    /// The guest writes its configuration space: the back-end is told, except of
    /// what is the caller's own.
    pub fn write_config(&self, offset: u32, data: &[u8]) -> Result<()> {
        if let Some(write) = self.config.write(offset, data)? {
            let mut core = self.lock();
            if core.writes.len() >= MAX_WRITES {
                return Err(Error::new(
                    Kind::Os(Errno::EAGAIN),
                    "too many writes wait for the back-end",
                ));
            }
            core.writes.push_back(write);
            self.moved(core);
        }
        Ok(())
    }

    // ---- the connection ----

    /// Tries to connect now, however long the next attempt was put off.
    pub fn reconnect(&self) {
        let mut core = self.lock();
        if matches!(core.mode, Mode::Down) {
            core.link.begin(Instant::now());
        }
        drop(core);
        self.alarm.set(Some(Duration::ZERO));
        self.wake();
    }

    /// A connected socket for a device whose sockets the caller supplies. Taken.
    pub fn set_fd(&self, fd: OwnedFd) -> Result<()> {
        let mut core = self.lock();
        core.link.supply(fd, Instant::now())?;
        drop(core);
        self.alarm.set(Some(Duration::ZERO));
        self.wake();
        Ok(())
    }

    /// Whether [`set_fd`](Self::set_fd) would take this.
    pub(crate) fn check_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.lock().link.check_supplied(fd)
    }

    /// Sends a translation to the back-end, or ends one, without waiting; may be
    /// called by a handler. Its user address is a guest address.
    pub fn post_iotlb(&self, entry: &Iotlb) -> Result<()> {
        let client = self.lock().live().map(|live| Arc::clone(&live.client));
        let Some(client) = client else {
            return Err(Error::new(Kind::Disconnected, "there is no back-end"));
        };
        client.post_iotlb(entry)?;
        // It may not have fit.
        self.arm(&self.lock());
        Ok(())
    }

    /// Ends every wait, for ever.
    pub(crate) fn abort(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }
}

/// How many writes to the configuration space wait for the back-end.
const MAX_WRITES: usize = 64;
const DEFAULT_WAIT: Option<Duration> = Some(Duration::from_secs(60));
