//! What makes a device as it is wanted: one step at a time, none of which waits.
//! The order is the business of [`plan`](super::plan), connections that of
//! [`link`](super::link).

mod requests;
mod transport;

pub(super) use requests::{Placed, Unplaced};

use super::config::{Config, Write};
use super::event::{Event, EventKind, Events, Recovery};
use super::fence::Fence;
use super::link::{Link, Process};
use super::memory::{self, MemoryList};
use super::plan::{Actual, InflightKey, Step, Wanted};
use super::ring::{Kept, Origin};
use super::{DeviceOptions, MemoryState};
use crate::backend_client::{BackendClient, BackendHandler, Begun, FD_WINDOW, WINDOW};
use crate::connection::{ThreadMark, TraceSink};
use crate::error::Error;
use crate::message::{Inflight, SHMEM_REGIONS};
use crate::socket::{self, Credentials, Pollable, Watch};
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
    key: InflightKey,
    body: Inflight,
    fd: OwnedFd,
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
    Step(Step),
    /// A write to the configuration space: a refusal is no end. And how often the
    /// device had been reset before.
    ConfigWrite(Write, u64),
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) client: Arc<BackendClient>,
    /// What is at the other end.
    pub(super) process: Option<Process>,
    pub(super) actual: Actual,
    under_way: VecDeque<UnderWay>,
    pub(super) connected: bool,
    /// Rings that were started, whose descriptors are to be written.
    started: Vec<usize>,
    stalled: bool,
    /// Where rings stand has been read, if they ran before.
    pub(super) placed: bool,
    pub(super) shmem: [u64; SHMEM_REGIONS],
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

    /// A change of memory is not answered yet.
    pub(super) fn memory_under_way(&self) -> bool {
        let mut steps = self.under_way.iter();
        steps.any(|it| matches!(it.what, What::Step(Step::Memory(_))))
    }

    /// As much is unanswered as may be.
    fn window_is_full(&self) -> bool {
        let with_fds = self.under_way.iter().filter(|it| it.begun.carries_fds());
        self.under_way.len() >= WINDOW || with_fds.count() >= FD_WINDOW
    }
}

#[derive(Debug)]
pub(super) enum Mode {
    /// No connection.
    Down,
    Up(Box<Live>),
    /// The one before is being shut out.
    Fencing(Fence<Arc<BackendClient>>, Refused),
}

/// Where a ring was when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stood {
    /// It never ran.
    #[default]
    Nowhere,
    At(u32),
    /// Its back-end was lost: from there the next would have gone on, with the rest in
    /// the in-flight buffer.
    Buffered(u32),
    /// It is being stopped, or was lost while it ran.
    Unknown,
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
    pub(super) kept: Vec<Option<Kept>>,
    pub(super) stood: Vec<Stood>,
    pub(super) starts: u64,
    pub(super) generation: u64,
    /// Something is wanted that no step has looked at.
    pub(super) unseen: bool,
    /// Counts whatever somebody may wait for.
    pub(super) news: u64,
    pub(super) applied: Option<u64>,
    pub(super) events: Events,
    pub(super) buffer: Option<Buffer>,
    /// How many connections there have been.
    pub(super) lives: u64,
    /// What is offered, as the back-end told last.
    pub(super) offered: Option<u64>,
    pub(super) recovering: bool,
    /// Threads in functions of the caller's that read where rings stand, and which
    /// rings. One that stops another ring in there is here twice.
    pub(super) reading: Vec<(ThreadMark, Vec<usize>)>,
    /// A back-end refused the memory that is wanted.
    pub(super) memory_refused: bool,
    /// What this back-end lacks: another connection will hardly help.
    pub(super) unfit: Option<Error>,
    /// Old back-ends that may still write guest memory, which were not waited for.
    pub(super) ghosts: Vec<Fence<Arc<BackendClient>>>,
    pub(super) unfenced: bool,
    /// Writes to the configuration space that were not sent yet.
    pub(super) writes: VecDeque<Write>,
    /// Connections that are over; their handlers have to hear of it.
    pub(super) retired: Vec<Arc<BackendClient>>,
    /// Descriptors of rings that are to be written, without the lock.
    pub(super) notices: Vec<Arc<OwnedFd>>,
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

    fn event(&mut self, kind: EventKind) -> Event {
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
        self.wanted.memory = memory;
        self.memory_refused = false;
        self.moved();
    }

    /// A ring is no longer wanted. `lost_at`: where it stands, if its back-end was lost
    /// and that is known.
    pub(super) fn unwant(&mut self, index: usize, lost_at: Option<u32>) {
        let kept = self.kept.get_mut(index).and_then(Option::take);
        let wanted = self.wanted.rings.get_mut(index).and_then(Option::take);
        let ran = self.live().is_some_and(|live| {
            let ring = live.actual.rings.get(index);
            // What runs may still be the start before this one.
            ring.is_some_and(|ring| ring.kick && ring.start == wanted.map(|it| it.start))
        });
        let (Some(kept), Some(stood)) = (kept, self.stood.get_mut(index)) else {
            return;
        };
        let base = match kept.origin {
            // It never got to run, or not again.
            Origin::At(base) if !ran => Some(base),
            Origin::Used | Origin::Available => lost_at,
            _ => None,
        };
        *stood = match base {
            Some(base) if kept.buffered => Stood::Buffered(base),
            Some(base) => Stood::At(base),
            None => Stood::Unknown,
        };
    }

    /// How far the back-end has got with the memory that is wanted.
    pub(super) fn memory_state(&self) -> MemoryState {
        match &self.mode {
            _ if self.unfenced => MemoryState::Unconfirmed,
            Mode::Fencing(..) => MemoryState::Pending,
            Mode::Down if self.memory_refused => MemoryState::Failed,
            Mode::Down => MemoryState::Absent,
            Mode::Up(live) => {
                let sent = live.actual.memory.as_ref();
                let told = sent.is_some_and(|sent| {
                    memory::next(sent, &self.wanted.memory).is_none()
                        && !sent.stale(&self.wanted.memory)
                });
                match told && !live.memory_under_way() {
                    true => MemoryState::Applied,
                    false if self.memory_refused => MemoryState::Failed,
                    // It has none before the features are agreed.
                    false
                        if self.wanted.features.is_none()
                            && sent.is_none_or(|sent| !sent.any()) =>
                    {
                        MemoryState::Absent
                    }
                    false => MemoryState::Pending,
                }
            }
        }
    }

    /// Whether this thread is in a function that is to tell where this ring stands.
    pub(super) fn reads(&self, here: ThreadMark, ring: usize) -> bool {
        let mut reading = self.reading.iter();
        reading.any(|(mark, rings)| *mark == here && rings.contains(&ring))
    }

    /// Rings begin anew: what others were at that were lost, and are not to run any
    /// more, is in the in-flight buffer still, and nothing of these.
    pub(super) fn drop_stale_buffer(&mut self) {
        let lost = |stood: &Stood| matches!(stood, Stood::Unknown | Stood::Buffered(_));
        if self.stood.iter().any(lost) && self.kept.iter().all(Option::is_none) {
            self.drop_buffer();
        }
    }

    fn drop_buffer(&mut self) {
        self.buffer = None;
        // Without the rest they cannot go on.
        for stood in &mut self.stood {
            if let Stood::Buffered(_) = stood {
                *stood = Stood::Unknown;
            }
        }
        if let Mode::Up(live) = &mut self.mode {
            live.actual.drop_buffer();
        }
    }

    /// Whether the in-flight buffer, if rings depend on it, has room for these as
    /// well. If none does, another takes its place.
    pub(super) fn buffer_holds(&mut self, starts: &[(usize, Kept)]) -> bool {
        let Some(buffer) = &self.buffer else {
            return true;
        };
        let holds = starts.iter().all(|(index, kept)| {
            usize::from(buffer.key.num_queues) > *index
                && u32::from(buffer.key.queue_size) >= kept.size
        });
        let mut resumed = starts.iter().map(|(_, kept)| kept);
        let depends = self.kept.iter().any(Option::is_some) || resumed.any(|kept| kept.buffered);
        if !holds && !depends {
            self.drop_buffer();
        }
        holds || !depends
    }

    // ---- waiting ----

    /// Something has happened that somebody may wait for: a step was begun or
    /// answered, a connection is there or gone.
    pub(super) fn news(&mut self) {
        self.news = self.news.wrapping_add(1);
    }

    /// All that is wanted stands, and nothing is outstanding.
    pub(super) fn settled(&self) -> bool {
        self.applied == Some(self.generation)
    }

    /// The descriptors to wait for: of the connection, of its channel, and of
    /// whatever stands in for it.
    pub(super) fn watches(&self) -> impl Iterator<Item = Watch<'_>> {
        let (socket, channel) = match &self.mode {
            Mode::Up(live) => {
                let (socket, _) = live.client.interest();
                let channel = live.client.channel_interest();
                (Some(socket), channel.map(|(channel, _)| channel))
            }
            Mode::Fencing(fence, _) => (Some(fence.watch()), None),
            Mode::Down => (None, None),
        };
        let one = [socket, channel, self.link.watch()].into_iter().flatten();
        one.chain(self.ghosts.iter().map(Fence::watch))
    }

    /// When there is something to do because of the time.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.unseen {
            return Some(now);
        }
        let of_mode = match &self.mode {
            Mode::Up(live) => {
                let throttled = live.client.interest().1.then(|| now.checked_add(THROTTLE));
                let channel = live.client.channel_interest();
                let waits = channel.is_some_and(|(_, waits)| waits).then_some(now);
                let first = live.under_way.front().and_then(|first| {
                    let deadline = first.due();
                    let stall = first.since.checked_add(self.options.stall);
                    let stall = stall.filter(|_| !live.stalled);
                    [deadline, stall].into_iter().flatten().min()
                });
                let all = [throttled.flatten(), first, waits];
                all.into_iter().flatten().min()
            }
            Mode::Fencing(fence, _) => fence.due(),
            Mode::Down => None,
        };
        let ghost = self.ghosts.iter().filter_map(Fence::due).min();
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
