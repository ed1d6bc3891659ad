//! The device (layer 2): what a caller wants of a back-end, made so and kept so
//! over every loss of it. Calls record what is wanted; an event loop that calls
//! [`Device::process`] makes it so, and nothing here waits but [`Device::wait`].

#![forbid(unsafe_code)]

mod access;
mod acknowledged;
mod announce;
mod config;
mod config_api;
mod connecting;
mod core;
mod driving;
mod event;
mod fence;
mod gpu;
mod group;
mod handler;
mod info;
mod link;
pub(crate) mod memfd;
pub(crate) mod memory;
mod mtu;
mod options;
mod plan;
mod presets;
mod questions;
mod ring;
mod ring_count;
mod running;
mod sharing;
#[cfg(test)]
mod testing;
mod visitors;
mod vring_endian;

use self::config::Config;
use self::core::{Core, Mode, PostedRefusals, readable};
use self::event::Events;
use self::handler::Handler;
use self::memory::MemoryList;
use self::plan::{RingWanted, Wanted};
use self::questions::Questions;
use self::ring::RingSlot;
use self::ring_count::AbsentRings;
use self::visitors::Visitors;
use crate::connection::ThreadMark;
use crate::error::{Error, Kind, Result};
use crate::message::Iotlb;
use crate::programs::BackendProcess;
use crate::room::room_for;
use crate::socket::{Alarm, Bell, Pollable};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use event::{Event, EventKind, Recovery};
pub use group::{MemoryGroup, MemoryState};
pub use info::DeviceInfo;
pub use link::{Peer, Policy};
pub use memory::GuestRegion as Region;
pub use options::{CONFIG_SIZE_LATER, Clock, DeviceOptions, OnUnfenced, OutOfOrder};
pub use presets::{config_size_for, hidden_features_for, ring_name};
pub use ring::{Base, Ring, RingIndices};
pub use running::{Quiet, StopMode};

/// A vhost-user device.
///
/// Any thread may call any method. Those that say what is wanted never wait, and
/// succeed without a back-end, too: then they apply once there is one.
pub struct Device {
    core: Mutex<Core>,
    clock: Clock,
    config: Arc<Config>,
    /// The number of the thread that drives the connection, without the lock; 0 for
    /// none.
    driving: AtomicUsize,
    /// Another one wanted to meanwhile.
    missed: AtomicBool,
    /// Where rings stand is read no longer.
    read: Condvar,
    /// Threads that ask the caller where a ring stands that is to be started.
    asking: Mutex<Vec<ThreadMark>>,
    /// Held by who sets the trace, also while it waits: of two that do, the later one
    /// is told everywhere.
    tracing: Mutex<()>,
    /// Threads in [`wait`](Self::wait).
    waiting: Mutex<Vec<Arc<Bell>>>,
    /// Ready when there is something to do on a socket.
    traffic: Pollable,
    /// Ready when there is an event, or something to do because of the time.
    alarm: Alarm,
    /// Ready when either is.
    notifier: Pollable,
    closed: AtomicBool,
    visitors: Arc<Visitors>,
    /// It belongs to a memory group, which states its memory.
    grouped: Arc<AtomicBool>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

/// With how many writes to the configuration space that wait for the back-end no
/// further one is taken.
const MAX_WRITES: usize = 64;

fn made(errno: Errno) -> Error {
    Error::os(errno, "cannot make what the device waits with")
}

fn held() -> Error {
    let text = "rings that ran when the back-end was lost wait for a reset of the device";
    Error::new(Kind::State, text)
}

fn busy(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Argument(Errno::EBUSY), text)
}

impl Device {
    /// A device whose back-end is reached like this. Nothing is sent before
    /// [`process`](Self::process) or [`wait`](Self::wait) is called.
    pub fn open(peer: Peer, options: DeviceOptions) -> Result<Self> {
        options.check()?;
        if options.on_unfenced == OnUnfenced::Kill && !matches!(peer, Peer::Fd) {
            let text = "only a process of which the connection is supplied can be killed";
            return Err(Error::invalid(text));
        }
        let rings = usize::try_from(options.rings()).unwrap_or_default();
        room_for::<(RingSlot, RingWanted)>(rings.saturating_add(1))?;
        let mut link = link::Link::new(peer, options.reconnect)?;
        link.begin((options.clock)());
        let config = Arc::new(Config::new(
            options.config_size,
            options.assume_features.is_some(),
        ));
        let changed = Arc::new(AtomicBool::new(false));
        let handler = Handler {
            theirs: options.handler.clone(),
            changed: Arc::clone(&changed),
        };
        let wanted = Wanted {
            protocol: options.acknowledged(),
            num_rings: options.num_rings,
            channel: options.handler.is_some() || options.config_size > 0,
            config_size: options.config_size,
            rings: vec![RingWanted::default(); rings],
            max_ring_size: options.max_ring_size,
            ..Wanted::default()
        };
        let clock = Arc::clone(&options.clock);
        let core = Core {
            offered: options.assume_features,
            options: Arc::new(options),
            config: Arc::clone(&config),
            handler: Arc::new(handler),
            changed,
            link,
            mode: Mode::Down,
            wanted,
            memory: MemoryList::default(),
            rings: (0..rings).map(|_| RingSlot::default()).collect(),
            starts: 0,
            generation: 0,
            unseen: false,
            news: 0,
            applied: None,
            events: Events::default(),
            history: Default::default(),
            buffer: None,
            buffers: 0,
            shmem: None,
            lives: 0,
            recovering: None,
            broken: false,
            reading: Vec::new(),
            refused_regions: Vec::new(),
            refused_before: Vec::new(),
            memory_refused: None,
            refusal_is_past: false,
            mtu_refused: None,
            questions: Questions::default(),
            announcements: 0,
            gpu: None,
            gpu_sockets: 0,
            unfit: None,
            ghosts: Vec::new(),
            unfenced: false,
            writes: VecDeque::new(),
            refusals: PostedRefusals::default(),
            retired: Vec::new(),
            notices: Vec::new(),
            absent: AbsentRings::default(),
            trace: None,
            clients: Vec::new(),
        };
        let device = Self {
            core: Mutex::new(core),
            clock,
            config,
            driving: AtomicUsize::new(0),
            missed: AtomicBool::new(false),
            read: Condvar::new(),
            asking: Mutex::new(Vec::new()),
            tracing: Mutex::new(()),
            waiting: Mutex::new(Vec::new()),
            traffic: Pollable::new().map_err(made)?,
            alarm: Alarm::new().map_err(made)?,
            notifier: Pollable::new().map_err(made)?,
            closed: AtomicBool::new(false),
            visitors: Arc::default(),
            grouped: Arc::default(),
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

    fn now(&self) -> Instant {
        (self.clock)()
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Arc<Bell>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn askers(&self) -> MutexGuard<'_, Vec<ThreadMark>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- what is wanted ----

    /// The virtio features that the guest's driver has acknowledged: of those
    /// offered. Rings must be stopped.
    pub fn set_features(&self, features: u64) -> Result<()> {
        let mut core = self.lock();
        if core.wanted.rings.iter().any(|ring| ring.run.is_some()) {
            return Err(busy("features cannot change while rings run"));
        }
        let features = features & !plan::OURS;
        let Some(offered) = core.offered else {
            return Err(core.offer_unknown(self.now()));
        };
        match features & !offered {
            0 => {}
            surplus => {
                let names = core.virtio_names(surplus);
                let text = format!("features has bits that the back-end does not offer: {names}");
                return Err(Error::invalid(text));
            }
        }
        if core.live().is_some_and(|live| live.connected) {
            core.check_platform(features)?;
        }
        core.check_endian(Some(features), core.wanted.big_endian)?;
        core.wanted.features = Some(features);
        self.moved(core);
        Ok(())
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
        // Both under the lock, or what the back-end tells meanwhile undoes it.
        let mut core = self.lock();
        let full = core.writes.len() >= MAX_WRITES;
        let parts = self.config.write(offset, data, full)?;
        if !parts.is_empty() {
            core.writes.extend(parts);
            self.moved(core);
        }
        Ok(())
    }

    // ---- the connection ----

    /// Tries to connect now, however long the next attempt was put off.
    pub fn reconnect(&self) {
        let mut core = self.lock();
        if matches!(core.mode, Mode::Down) {
            core.link.begin(self.now());
        }
        drop(core);
        self.rouse();
    }

    /// A connected socket for a device whose sockets the caller supplies. Taken.
    pub fn set_fd(&self, fd: OwnedFd) -> Result<()> {
        let mut core = self.lock();
        core.link.supply(fd, None, self.now())?;
        drop(core);
        self.rouse();
        Ok(())
    }

    /// The same with a back-end that was started here, and the connection to it, which
    /// is taken. Until that is over it is also known whom to kill. The process stays the
    /// caller's: it ends when that lets go of it.
    pub fn set_process(&self, process: &Arc<BackendProcess>) -> Result<()> {
        let mut core = self.lock();
        core.link.check_source()?;
        let fd = process.take_socket()?;
        let process = Some(link::Process::of(process));
        core.link.supply(fd, process, self.now())?;
        drop(core);
        self.rouse();
        Ok(())
    }

    /// Whether [`set_fd`](Self::set_fd) would take this.
    pub(crate) fn check_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.lock().link.check_supplied(fd)
    }

    /// Sends a translation to the back-end, or ends one, without waiting; may be
    /// called by a handler. Its user address is a guest address.
    ///
    /// [`wait`](Self::wait) waits for the answer: until then the back-end may use a
    /// translation that was ended. Without an answer in time
    /// ([`DeviceOptions::quick`]) the connection is lost.
    pub fn post_iotlb(&self, entry: &Iotlb) -> Result<()> {
        let client = self.lock().live().map(|live| Arc::clone(&live.client));
        let Some(client) = client else {
            return Err(Error::new(Kind::Disconnected, "there is no back-end"));
        };
        client.post_iotlb(entry)?;
        self.lock().note_posted(self.now());
        // It may not have fit, it has a deadline, and an answer to something else may
        // have been read meanwhile.
        self.rouse();
        Ok(())
    }

    /// Ends every wait, for ever; nothing is done with the back-end any more.
    pub(crate) fn abort(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// No group uses it any more, which is waited for. Not possible where this thread
    /// does, in a function that the library calls: that is the answer.
    pub(crate) fn leave_groups(&self) -> bool {
        let may_wait = self.visitors.begin_leaving();
        self.abort();
        if may_wait {
            self.visitors.wait();
        }
        may_wait
    }

    /// Drops a forked child's copy, and leaves the parent's connection alone.
    pub(crate) fn close_in_child(self) {
        let Self {
            core,
            config,
            asking,
            waiting,
            visitors,
            ..
        } = self;
        // Other threads of the parent may have been changing these at the fork.
        std::mem::forget((config, asking, waiting, visitors));
        if core.try_lock().is_err() {
            std::mem::forget(core);
            return;
        }
        let core = core.into_inner();
        let core = core.unwrap_or_else(PoisonError::into_inner);
        let current = match core.mode {
            Mode::Up(live) => Some(live.client),
            Mode::Fencing(old, _) => Some(old.fence.into_socket()),
            Mode::Down => None,
        };
        let ghosts = core.ghosts.into_iter().map(|old| old.fence.into_socket());
        let clients = current.into_iter().chain(core.retired).chain(ghosts);
        for client in clients {
            // Some are there twice.
            if let Some(client) = Arc::into_inner(client) {
                client.close_in_child();
            }
        }
    }
}
