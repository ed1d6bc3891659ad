//! What makes a device as it is wanted: one step at a time, none of which waits.
//! The order is the business of [`plan`](super::plan), connections that of
//! [`link`](super::link).

mod buffer;
mod channel;
mod config_space;
mod drain;
mod exiting;
mod reason;
mod refusals;
mod requests;
mod rings;
mod transport;

pub(super) use channel::{PostedRefusals, Watched};
pub(super) use requests::{Placed, Unplaced};

use super::access::Access;
use super::config::{Config, Write};
use super::event::{Event, EventKind, Events, Recovery};
use super::fence::Fence;
use super::link::{Link, Process};
use super::memory::{GuestRegion, MemoryList};
use super::plan::{Actual, Held, Step, Wanted};
use super::questions::Questions;
use super::ring::RingSlot;
use super::ring_count::AbsentRings;
use super::{DeviceOptions, MemoryState, Quiet};
use crate::backend_client::{BackendClient, BackendHandler, Begun, FD_WINDOW, WINDOW};
use crate::connection::{ThreadMark, TraceSink};
use crate::error::Error;
use crate::message::{Inflight, SHMEM_REGIONS};
use crate::socket::{self, Credentials, ForeignFd, Pollable, Watch};
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often a send is tried that waits for room which cannot be polled for.
const THROTTLE: Duration = Duration::from_millis(1);

/// The buffer in which a back-end keeps track of requests in flight, kept over its
/// lives. It is never mapped here.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) held: Held,
    body: Inflight,
    fd: ForeignFd,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct UnderWay {
    what: What,
    begun: Begun,
    /// Since when it is the one that the back-end works at.
    since: Instant,
}

impl UnderWay {
    fn due(&self) -> Option<Instant> {
        self.since.checked_add(self.begun.timeout()?)
    }
}

/// What it is for.
#[derive(Debug)]
enum What {
    /// And its number in [`Actual`].
    Step(Step, u64),
    /// A write to the configuration space: a refusal is no end. And how often the
    /// device had been reset before.
    ConfigWrite(Write, u64),
    /// A question of the caller's, by number: a refusal is no end.
    Question(u64),
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) client: Arc<BackendClient>,
    /// What is at the other end.
    pub(super) process: Option<Process>,
    pub(super) actual: Actual,
    under_way: VecDeque<UnderWay>,
    /// Rings that are being stopped, and of which it can be seen whether they are drained.
    draining: Vec<drain::Draining>,
    pub(super) connected: bool,
    /// Rings that were started, whose descriptors are to be written.
    started: Vec<usize>,
    stalled: bool,
    /// It has ended, and its process may be ending.
    ending: Option<exiting::Ending>,
    /// Where rings stand has been read, if they ran before.
    pub(super) placed: bool,
    pub(super) watched: Watched,
}

impl Live {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> Option<Credentials> {
        let peer = socket::peer_credentials(self.client.read_notifier())?;
        // The kernel names who has made the two ends: where that was done here, it is not
        // known who has the other.
        let ours = u32::try_from(peer.pid) == Ok(std::process::id());
        let seen = if ours { 0 } else { peer.pid };
        let pid = self.process.as_ref().map_or(seen, |process| process.pid);
        Some(Credentials { pid, ..peer })
    }

    /// Each request was answered.
    pub(super) fn is_all_answered(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Something was sent about this ring since all was answered last.
    pub(super) fn is_being_set_up(&self, ring: usize) -> bool {
        let sent = self.actual.sent.rings.get(ring);
        !sent.is_some_and(|ring| ring.kick) || self.started.contains(&ring)
    }

    /// As much is unanswered as may be.
    fn window_is_full(&self) -> bool {
        let with_fds = self.under_way.iter().filter(|it| it.begun.carries_fds());
        self.under_way.len() >= WINDOW || with_fds.count() >= FD_WINDOW
    }
}

/// A back-end whose connection was given up, and that may not be gone yet.
#[derive(Debug)]
pub(super) struct Old {
    pub(super) fence: Fence<Arc<BackendClient>>,
    /// What it may still use.
    access: Access,
}

#[derive(Debug)]
pub(super) enum Mode {
    /// No connection.
    Down,
    Up(Box<Live>),
    /// The one before is being shut out.
    Fencing(Old, Refused),
}

/// The back-end said no, and will hardly think better of it soon.
pub(super) type Refused = bool;

pub(super) struct Core {
    pub(super) options: Arc<DeviceOptions>,
    pub(super) config: Arc<Config>,
    pub(super) handler: Arc<dyn BackendHandler>,
    /// The back-end has said that its configuration space has changed.
    pub(super) changed: Arc<AtomicBool>,
    pub(super) link: Link,
    pub(super) mode: Mode,
    pub(super) wanted: Wanted,
    /// All guest memory, as the caller wants it.
    pub(super) memory: MemoryList,
    pub(super) rings: Vec<RingSlot>,
    pub(super) starts: u64,
    pub(super) generation: u64,
    /// Something is wanted that no step has looked at.
    pub(super) unseen: bool,
    /// Counts whatever somebody may wait for.
    pub(super) news: u64,
    pub(super) applied: Option<u64>,
    pub(super) events: Events,
    pub(super) history: reason::History,
    pub(super) buffer: Option<Buffer>,
    /// How many in-flight buffers there have been.
    pub(super) buffers: u64,
    /// How many connections there have been.
    pub(super) lives: u64,
    /// The sizes of the shared memory regions, as the first back-end has returned them.
    pub(super) shmem: Option<Box<[u64; SHMEM_REGIONS]>>,
    /// What is offered, as the back-end told last.
    pub(super) offered: Option<u64>,
    /// How rings go on that ran when a back-end was lost, until they run again.
    pub(super) recovering: Option<Recovery>,
    /// A ring that ran before a loss cannot run again before the next reset.
    pub(super) broken: bool,
    /// Threads in functions of the caller's that read where rings stand, and which
    /// rings. One that stops another ring in there is here twice.
    pub(super) reading: Vec<(ThreadMark, Vec<usize>)>,
    /// Regions that a back-end has refused, and which are not shared before the caller
    /// changes its memory again; and why.
    pub(super) refused_regions: Vec<GuestRegion>,
    /// Refused by a back-end before this one, in the memory that is wanted.
    pub(super) refused_before: Vec<GuestRegion>,
    pub(super) memory_refused: Option<Error>,
    /// The connection went on after that: the next back-end is asked again. Otherwise
    /// it would be lost in turn, and rings with it.
    pub(super) refusal_is_past: bool,
    /// The back-end has refused the MTU that was wanted.
    pub(super) mtu_refused: Option<Error>,
    /// How many addresses were to be announced.
    pub(super) announcements: u64,
    /// The display's socket, until a back-end has it.
    pub(super) gpu: Option<OwnedFd>,
    /// How many of these there have been.
    pub(super) gpu_sockets: u64,
    pub(super) questions: Questions,
    /// What this back-end lacks: another connection will hardly help.
    pub(super) unfit: Option<Error>,
    /// Old back-ends that may still write guest memory, which were not waited for.
    pub(super) ghosts: Vec<Old>,
    pub(super) unfenced: bool,
    /// Writes to the configuration space that were not sent yet.
    pub(super) writes: VecDeque<Write>,
    pub(super) refusals: PostedRefusals,
    /// Connections that are over; their handlers have to hear of it.
    pub(super) retired: Vec<Arc<BackendClient>>,
    /// Descriptors of rings that are to be written, without the lock.
    pub(super) notices: Vec<Arc<OwnedFd>>,
    /// Rings that the back-end does not have.
    pub(super) absent: AbsentRings,
    pub(super) trace: Option<TraceSink>,
    /// All that some thread may still be in, also of those that are over: their
    /// messages may still be told.
    pub(super) clients: Vec<Weak<BackendClient>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("mode", &self.mode)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

impl Core {
    pub(super) fn live(&self) -> Option<&Live> {
        match &self.mode {
            Mode::Up(live) => Some(live),
            _ => None,
        }
    }

    pub(super) fn event(&mut self, kind: EventKind) -> Event {
        Event {
            kind,
            generation: self.generation,
            error: None,
            recovery: Recovery::default(),
            count: 0,
            delay: None,
            missed: 0,
            peer: None,
        }
    }

    fn tell(&mut self, kind: EventKind) {
        let event = self.event(kind);
        self.events.push(event);
        self.news();
    }

    /// Something else is wanted from now on.
    pub(super) fn moved(&mut self) {
        self.generation = self.generation.saturating_add(1);
        self.unseen = true;
    }

    /// This memory, which was checked, is wanted from now on.
    pub(super) fn share(&mut self, memory: MemoryList) {
        self.wanted.memory.clone_from(&memory);
        self.memory = memory;
        self.forget_refused_memory();
        self.refused_before.clear();
        self.moved();
    }

    /// What old back-ends may still use.
    fn old(&self) -> impl Iterator<Item = &Access> {
        let fencing = match &self.mode {
            Mode::Fencing(old, _) => Some(old),
            _ => None,
        };
        fencing
            .into_iter()
            .chain(&self.ghosts)
            .map(|old| &old.access)
    }

    /// How far the back-end has got with the memory that is wanted.
    pub(super) fn memory_state(&self) -> MemoryState {
        if self.unfenced {
            return MemoryState::Unconfirmed;
        }
        if self.old().any(|access| !access.is_nothing()) {
            return MemoryState::Pending;
        }
        let refused = self.memory_refused.is_some();
        let Some(live) = self.live() else {
            return match refused {
                true => MemoryState::Failed,
                false => MemoryState::Absent,
            };
        };
        let has = live.actual.sent.memory.as_ref();
        let has_any = has.is_some_and(|memory| memory.any());
        let done = has.is_some()
            && live.actual.memory_step(&self.wanted).is_none()
            && !live.actual.memory_is_unconfirmed();
        if self.shares_beyond() {
            let is_wanted = |region: &GuestRegion| self.memory.includes(region);
            let stuck = !live.actual.stuck().iter().all(is_wanted);
            // Or a table without it was refused.
            return match stuck || (refused && done) {
                true => MemoryState::Unconfirmed,
                false => MemoryState::Pending,
            };
        }
        match () {
            () if refused => MemoryState::Failed,
            () if done => MemoryState::Applied,
            // It has none before the features are agreed.
            () if self.wanted.features.is_none() && !has_any => MemoryState::Absent,
            () => MemoryState::Pending,
        }
    }

    /// The back-end in use may use memory that is not wanted.
    fn shares_beyond(&self) -> bool {
        let live = self.live();
        live.is_some_and(|live| live.actual.access().reaches_beyond(&self.memory))
    }

    /// What is left of rings that were stopped, and of memory that was taken away.
    pub(super) fn quiet(&self) -> Quiet {
        let beyond = self.shares_beyond();
        let mut stopped = self.rings.iter().enumerate();
        Quiet {
            quiesced: !beyond && self.rings_are_quiet(),
            bases_valid: stopped.all(|(index, ring)| ring.kept.is_some() || self.has_base(index)),
        }
    }

    /// No back-end uses a ring that is not wanted, and no reset is under way.
    pub(super) fn rings_are_quiet(&self) -> bool {
        let current = self.live().is_some_and(|live| {
            live.actual
                .access()
                .runs_beyond(|ring| self.wanted.start(ring))
                || live.actual.is_resetting(&self.wanted)
        });
        let old = self.old().any(|access| !access.is_nothing()) || self.unfenced;
        let unread = self.rings.iter().any(|ring| ring.state.unread().is_some());
        !current && !old && !unread
    }

    /// Whether this thread is in a function that is to tell where this ring stands.
    pub(super) fn reads(&self, here: ThreadMark, ring: usize) -> bool {
        let mut reading = self.reading.iter();
        reading.any(|(mark, rings)| *mark == here && rings.contains(&ring))
    }

    // ---- waiting ----

    /// Something has happened that somebody may wait for: a step was begun or
    /// answered, a connection is there or gone.
    pub(super) fn news(&mut self) {
        self.news = self.news.wrapping_add(1);
    }

    /// All that is wanted stands, and nothing is outstanding.
    pub(super) fn settled(&self) -> bool {
        self.applied == Some(self.generation) && self.posted_settled()
    }

    /// All that the back-end takes was sent and is confirmed, and it has refused the rest.
    pub(super) fn refused_for_good(&self) -> Option<Error> {
        let live = self.live()?;
        let idle = live.connected
            && live.under_way.is_empty()
            && live.actual.settling.is_empty()
            && !live.actual.is_unconfirmed()
            && !self.unseen;
        self.refusal().filter(|_| idle).cloned()
    }

    /// The descriptors to wait for: of the connection, of its channel, and of
    /// whatever stands in for it.
    pub(super) fn watches(&self) -> impl Iterator<Item = Watch<'_>> {
        let (socket, channel) = match &self.mode {
            Mode::Up(live) => {
                let (mut socket, _) = live.client.interest();
                // One that has ended would be readable all the time.
                socket.read &= live.ending.is_none();
                let channel = live.client.channel_interest();
                (Some(socket), channel.map(|(channel, _)| channel))
            }
            Mode::Fencing(old, _) => (Some(old.fence.watch()), None),
            Mode::Down => (None, None),
        };
        let one = [socket, channel, self.link.watch()].into_iter().flatten();
        one.chain(self.ghosts.iter().map(|old| old.fence.watch()))
    }

    /// When there is something to do because of the time.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.unseen || !self.unread_bases().is_empty() {
            return Some(now);
        }
        let of_mode = match &self.mode {
            Mode::Up(live) => {
                let throttled = live.client.interest().1.then(|| now.checked_add(THROTTLE));
                let channel = live.client.channel_interest();
                let waits = channel.is_some_and(|(_, waits)| waits).then_some(now);
                let first = live.under_way.front().filter(|_| !live.works_at_posted());
                let first = first.and_then(|first| {
                    let deadline = first.due();
                    let stall = first.since.checked_add(self.options.stall);
                    let stall = stall.filter(|_| !live.stalled);
                    [deadline, stall].into_iter().flatten().min()
                });
                let drains = live
                    .draining
                    .iter()
                    .filter_map(drain::Draining::next_look)
                    .min();
                let watched = live.watched_due(self.options.stall);
                let ending = live.ending.as_ref().map(exiting::Ending::due);
                let all = [throttled.flatten(), first, waits, drains, watched, ending];
                all.into_iter().flatten().min()
            }
            Mode::Fencing(old, _) => old.fence.due(),
            Mode::Down => None,
        };
        let ghost = self.ghosts.iter().filter_map(|old| old.fence.due()).min();
        [of_mode, self.link.due(), ghost]
            .into_iter()
            .flatten()
            .min()
    }
}

pub(super) fn readable(fd: BorrowedFd<'_>) -> Watch<'_> {
    Watch {
        fd,
        read: true,
        write: false,
        end: false,
    }
}

/// A descriptor that is not watched any more, and may stay open.
pub(super) fn forget(poll: &Pollable, fd: BorrowedFd<'_>) {
    let nothing = Watch {
        read: false,
        ..readable(fd)
    };
    // It is not there any more in any case.
    let _ = poll.watch(nothing);
}
