//! What makes a device as it is wanted: one step at a time, none of which waits.
//! The order is the business of [`plan`](super::plan), connections that of
//! [`link`](super::link).

use super::config::Config;
use super::event::{Event, EventKind, Events, Recovery};
use super::fence::{Fence, Fenced};
use super::link::{Happened, Link};
use super::plan::{self, Actual, Drain, InflightKey, Next, RingStep, Step, Wanted};
use super::ring::{self, Kept, Origin, RingIndices};
use super::{DeviceOptions, MemoryState, OnUnfenced, OutOfOrder, memory};
use crate::backend_client::{Answer, BackendClient, BackendHandler, Begun, Op, Timeout};
use crate::connection::TraceSink;
use crate::error::{Class, Error, Kind, Phase, Result};
use crate::message::{
    ConfigHeader, Inflight, ProtocolFeatures, Request, SHMEM_REGIONS, VringState, virtio,
};
use crate::socket::{self, Pollable, Watch};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many requests may be unanswered. A back-end that writes its answers in two
/// pieces has room for more than twice as many.
const WINDOW: usize = 16;

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
    /// A write to the configuration space: a refusal is no end.
    ConfigWrite,
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) client: Arc<BackendClient>,
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
    /// A change of memory is not answered yet.
    pub(super) fn memory_under_way(&self) -> bool {
        let mut steps = self.under_way.iter();
        steps.any(|it| matches!(it.what, What::Step(Step::Memory(_))))
    }
}

#[derive(Debug)]
pub(super) enum Mode {
    /// No connection.
    Down,
    Up(Box<Live>),
    /// The one before is being shut out.
    Fencing(Fence, Refused),
}

/// Where a ring was when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stood {
    /// It never ran.
    #[default]
    Nowhere,
    At(u32),
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
    pub(super) applied: Option<u64>,
    pub(super) events: Events,
    pub(super) buffer: Option<Buffer>,
    /// How many connections there have been.
    pub(super) lives: u64,
    /// What is offered, as the back-end told last.
    pub(super) offered: Option<u64>,
    pub(super) recovering: bool,
    /// A back-end refused the memory that is wanted.
    pub(super) memory_refused: bool,
    /// What this back-end lacks: another connection will hardly help.
    pub(super) unfit: Option<Error>,
    /// An old back-end that may still write guest memory, which was not waited for.
    pub(super) ghost: Option<Fence>,
    pub(super) unfenced: bool,
    pub(super) writes: VecDeque<(u32, Vec<u8>)>,
    /// Connections that are over; their handlers have to hear of it.
    pub(super) retired: Vec<Arc<BackendClient>>,
    pub(super) trace: Option<TraceSink>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("mode", &self.mode)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

fn names(bits: u64) -> String {
    crate::message::bit_names(bits, virtio::name)
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
        }
    }

    fn tell(&mut self, kind: EventKind) {
        let event = self.event(kind);
        self.events.push(event);
    }

    /// Something else is wanted from now on.
    pub(super) fn moved(&mut self) {
        self.generation = self.generation.saturating_add(1);
    }

    /// A ring is no longer wanted.
    pub(super) fn unwant(&mut self, index: usize) {
        let kept = self.kept.get_mut(index).and_then(Option::take);
        if let Some(want) = self.wanted.rings.get_mut(index) {
            *want = None;
        }
        let ran = self.live().is_some_and(|live| {
            let ring = live.actual.rings.get(index);
            ring.is_some_and(|ring| ring.kick)
        });
        if let (Some(kept), Some(stood)) = (kept, self.stood.get_mut(index)) {
            *stood = match kept.origin {
                // It never got to run.
                Origin::At(base) if !ran => Stood::At(base),
                _ => Stood::Unknown,
            };
        }
    }

    /// How far the back-end has got with the memory that is wanted.
    pub(super) fn memory_state(&self) -> MemoryState {
        match &self.mode {
            _ if self.unfenced => MemoryState::Unconfirmed,
            Mode::Fencing(..) => MemoryState::Pending,
            Mode::Down | Mode::Up(_) if self.memory_refused => MemoryState::Failed,
            Mode::Down => MemoryState::Absent,
            Mode::Up(live) => {
                let sent = live.actual.memory.as_ref();
                let told = sent.is_some_and(|sent| {
                    memory::next(sent, &self.wanted.memory).is_none()
                        && !sent.stale(&self.wanted.memory)
                });
                match told && !live.memory_under_way() {
                    true => MemoryState::Applied,
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

    /// Whether the in-flight buffer, if rings depend on it, has room for these as
    /// well.
    pub(super) fn buffer_holds(&self, starts: &[(usize, Kept)]) -> bool {
        let Some(buffer) = &self.buffer else {
            return true;
        };
        let depends = self.kept.iter().any(Option::is_some);
        !depends
            || starts.iter().all(|(index, kept)| {
                usize::from(buffer.key.num_queues) > *index
                    && u32::from(buffer.key.queue_size) >= kept.size
            })
    }

    // ---- connections ----

    /// Gets or loses a connection, as far as that needs no waiting.
    pub(super) fn transport(&mut self, poll: &Pollable, now: Instant) {
        if let Some(ghost) = &mut self.ghost {
            if ghost.step(now) == Some(Fenced::Gone) {
                forget(poll, ghost.watch().fd);
                self.ghost = None;
                self.unfenced = false;
                self.tell(EventKind::Fenced);
            }
        }
        match &mut self.mode {
            Mode::Fencing(fence, refused) => {
                let refused = *refused;
                match fence.step(now) {
                    Some(Fenced::Gone) => {
                        forget(poll, fence.watch().fd);
                        self.mode = Mode::Down;
                        self.link.failed(now, refused);
                        if std::mem::take(&mut self.unfenced) {
                            self.tell(EventKind::Fenced);
                        }
                    }
                    Some(Fenced::Unfenced) => {
                        self.unfenced = true;
                        self.tell(EventKind::Unfenced);
                        self.proceed(now);
                    }
                    None => {}
                }
            }
            Mode::Down => {
                let happened = self.link.step(now, None);
                self.linked(happened, now);
            }
            Mode::Up(live) => {
                let current = live.client.read_notifier();
                let happened = self.link.step(now, Some(current));
                self.linked(happened, now);
            }
        }
    }

    /// Goes on beside a back-end that cannot be shut out, if the caller chose so.
    fn proceed(&mut self, now: Instant) {
        if self.options.on_unfenced != OnUnfenced::Proceed {
            return;
        }
        match std::mem::replace(&mut self.mode, Mode::Down) {
            Mode::Fencing(fence, refused) => {
                // Of several the first: it has been there longest.
                self.ghost.get_or_insert(fence);
                self.link.failed(now, refused);
            }
            mode => self.mode = mode,
        }
    }

    fn linked(&mut self, happened: Option<Happened>, now: Instant) {
        match happened {
            Some(Happened::Connected(fd)) => self.up(fd, now),
            Some(Happened::Retrying {
                attempt,
                error,
                delay,
            }) => {
                let event = Event {
                    count: attempt,
                    error: Some(error),
                    delay: Some(delay),
                    ..self.event(EventKind::Retrying)
                };
                self.events.push(event);
            }
            Some(Happened::NeedsFd) => self.tell(EventKind::NeedsFd),
            Some(Happened::Refused { peers }) => {
                let event = Event {
                    count: peers,
                    ..self.event(EventKind::PeersRefused)
                };
                self.events.push(event);
            }
            None => {}
        }
    }

    fn up(&mut self, fd: OwnedFd, now: Instant) {
        match BackendClient::from_fd(fd, &self.options.client()) {
            Ok(client) => {
                client.drive_by_steps();
                // It fails only inside a callback.
                let _ = client.set_trace(self.trace.clone());
                let key = self.buffer.as_ref().map(|buffer| buffer.key);
                self.mode = Mode::Up(Box::new(Live {
                    client: Arc::new(client),
                    actual: Actual::new(&self.wanted, key),
                    under_way: VecDeque::new(),
                    connected: false,
                    started: Vec::new(),
                    stalled: false,
                    placed: !self.kept.iter().flatten().any(Kept::unplaced),
                    shmem: [0; SHMEM_REGIONS],
                }));
                self.lives = self.lives.saturating_add(1);
                self.changed.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                let delay = self.link.failed(now, false);
                let event = Event {
                    error: Some(error),
                    count: self.link.attempt(),
                    delay,
                    ..self.event(EventKind::Retrying)
                };
                self.events.push(event);
            }
        }
    }

    /// The connection is of no further use.
    pub(super) fn lose(&mut self, error: Error, refused: Refused, poll: &Pollable, now: Instant) {
        let live = match std::mem::replace(&mut self.mode, Mode::Down) {
            Mode::Up(live) => live,
            mode => {
                self.mode = mode;
                return;
            }
        };
        let recovery = self.recovery(&live.actual);
        for (index, actual) in live.actual.rings.iter().enumerate() {
            if !actual.kick {
                continue;
            }
            if let Some(stood) = self.stood.get_mut(index) {
                *stood = Stood::Unknown;
            }
            let want = self.wanted.rings.get(index).copied().flatten();
            let same = want.is_some_and(|want| Some(want.start) == actual.start);
            match self.kept.get_mut(index) {
                // What begins elsewhere still does.
                Some(Some(kept)) if same || kept.origin == Origin::Stopped => {
                    kept.origin = match recovery {
                        Recovery::ResumeFromAvailable => Origin::Available,
                        _ => Origin::Used,
                    };
                }
                _ => {}
            }
        }
        if recovery != Recovery::Idle {
            self.recovering = true;
        }
        let mut error = error;
        if error.kind == Kind::TimedOut && live.actual.offered.told().is_none() {
            error.message = "the back-end took the connection and does not answer; \
                             is it in use by another front-end?"
                .into();
        }
        let refused = refused || matches!(error.class(), Class::Refused);
        let socket = live.client.read_notifier();
        forget(poll, socket);
        // Somebody who never saw memory cannot write it.
        let harmless = live.actual.memory.as_ref().is_none_or(|sent| !sent.any());
        let gone = harmless || socket::peer_is_gone(socket);
        let kept_open = match gone {
            true => None,
            false => socket::duplicate(socket).ok(),
        };
        let mut delay = None;
        match kept_open {
            Some(socket) => {
                let fence = Fence::new(socket, self.options.fence_limit(), now);
                self.link.stop();
                self.mode = Mode::Fencing(fence, refused);
            }
            None => delay = self.link.failed(now, refused),
        }
        self.retired.push(live.client);
        let event = Event {
            error: Some(error),
            recovery,
            delay,
            count: self.link.attempt(),
            ..self.event(EventKind::Lost)
        };
        self.events.push(event);
        if recovery == Recovery::NeedsReset {
            self.wanted.held = true;
            self.tell(EventKind::NeedsReset);
        }
        self.applied = None;
    }

    /// How the rings that ran go on.
    fn recovery(&self, actual: &Actual) -> Recovery {
        let ran = || {
            let pairs = actual.rings.iter().zip(&self.kept);
            pairs.filter_map(|(ring, kept)| ring.kick.then_some(kept.as_ref()?))
        };
        if ran().next().is_none() {
            return Recovery::Idle;
        }
        let features = actual.features.unwrap_or_default();
        let has = |bit: u32| features & 1_u64.wrapping_shl(bit) != 0;
        let know = |origin| ran().all(|kept| kept.knows(origin));
        let packed = has(virtio::F_RING_PACKED);
        let from_used = |recovery| match know(Origin::Used) {
            true => recovery,
            false => Recovery::NeedsReset,
        };
        if actual.inflight {
            return from_used(Recovery::Inflight);
        }
        match self.options.out_of_order {
            _ if packed => Recovery::NeedsReset,
            _ if has(virtio::F_IN_ORDER) => from_used(Recovery::InOrder),
            OutOfOrder::NeedsReset => Recovery::NeedsReset,
            OutOfOrder::ReplayFromUsed => from_used(Recovery::ReplayFromUsed),
            OutOfOrder::ResumeFromAvailable => match know(Origin::Available) {
                true => Recovery::ResumeFromAvailable,
                false => Recovery::NeedsReset,
            },
        }
    }

    // ---- requests ----

    /// The rings whose place has to be read, now that nobody moves it any more; and
    /// who knows it.
    pub(super) fn unplaced(&self) -> Vec<(usize, Origin, Arc<dyn RingIndices>)> {
        let kept = self.kept.iter().enumerate();
        kept.filter_map(|(index, kept)| {
            let kept = kept.as_ref().filter(|kept| kept.unplaced())?;
            Some((index, kept.origin, Arc::clone(kept.indices.as_ref()?)))
        })
        .collect()
    }

    /// Here they are.
    pub(super) fn place(&mut self, places: &[(usize, Origin, Option<u16>)]) {
        let packed = self.wanted.features.unwrap_or_default()
            & 1_u64.wrapping_shl(virtio::F_RING_PACKED)
            != 0;
        for (index, origin, place) in places {
            // It may have been stopped and started meanwhile.
            let kept = self.kept.get_mut(*index).and_then(Option::as_mut);
            let kept = kept.filter(|kept| kept.origin == *origin);
            match (kept, place) {
                (Some(kept), Some(place)) => {
                    kept.origin = Origin::At(ring::base_at(*place, packed))
                }
                (Some(_), None) => {
                    self.wanted.held = true;
                    self.tell(EventKind::NeedsReset);
                }
                (None, _) => {}
            }
        }
        if let Mode::Up(live) = &mut self.mode {
            live.placed = true;
        }
    }

    /// Takes what was answered, and asks for what comes next.
    /// `looked`: what has arrived was read just before, so that a deadline that has
    /// passed is one of the back-end's and not of this process, which may have been
    /// stopped.
    pub(super) fn advance(&mut self, looked: bool, poll: &Pollable, now: Instant) {
        let done = self.answered(looked, now).and_then(|()| self.ask(now));
        if let Err(error) = done {
            self.lose(error, false, poll, now);
        } else if let Some(error) = self.unfit.take() {
            self.lose(error, true, poll, now);
        }
    }

    /// Takes the answers that are there, in order.
    fn answered(&mut self, looked: bool, now: Instant) -> Result<()> {
        loop {
            let Mode::Up(live) = &mut self.mode else {
                return Ok(());
            };
            let Some(first) = live.under_way.front() else {
                return match live.client.lost() {
                    Some(error) => Err(error),
                    None => Ok(()),
                };
            };
            match live.client.outcome(&first.begun) {
                Some(outcome) => {
                    live.stalled = false;
                    let first = live.under_way.pop_front();
                    if let Some(next) = live.under_way.front_mut() {
                        next.since = now;
                    }
                    if let Some(first) = first {
                        self.settle(first.what, outcome)?;
                    }
                }
                None if looked && first.due().is_some_and(|due| due <= now) => {
                    return Err(live.client.overdue(&first.begun));
                }
                None => {
                    let stalls = now.saturating_duration_since(first.since) >= self.options.stall;
                    let request = first.begun.request();
                    if stalls && !std::mem::replace(&mut live.stalled, true) {
                        let text = "the back-end has not answered yet; it is waited for";
                        let error = Error::new(Kind::TimedOut, text).of(request);
                        let event = Event {
                            error: Some(error.during(Phase::Reply)),
                            ..self.event(EventKind::Stalled)
                        };
                        self.events.push(event);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn settle(&mut self, what: What, outcome: Result<Answer>) -> Result<()> {
        let step = match (what, outcome) {
            (What::ConfigWrite, Err(error)) if matches!(error.kind, Kind::Nack) => {
                let event = Event {
                    error: Some(error),
                    ..self.event(EventKind::ConfigRefused)
                };
                self.events.push(event);
                return Ok(());
            }
            (What::ConfigWrite, outcome) => return outcome.map(drop),
            // It has none, as old DPDK.
            (What::Step(Step::GetConfig), Err(error)) if matches!(error.kind, Kind::Nack) => {
                self.done(&Step::GetConfig, 0);
                return Ok(());
            }
            (What::Step(step), Err(error)) => {
                self.memory_refused =
                    matches!(step, Step::Memory(_)) && matches!(error.class(), Class::Refused);
                return Err(error);
            }
            (What::Step(step), Ok(answer)) => (step, answer),
        };
        let (step, answer) = step;
        let told = match (&step, answer) {
            (Step::GetConfig, Answer::Config(bytes)) => {
                // Not of what the guest has never seen.
                let first = self.lives <= 1 && self.live().is_some_and(|live| !live.connected);
                if self.config.update(&bytes) && !first {
                    self.tell(EventKind::ConfigChanged);
                }
                0
            }
            (Step::GetInflight(key), Answer::Inflight(body, fd)) => {
                let key = *key;
                check_buffer(&body, fd.as_ref())?;
                self.buffer = fd.map(|fd| Buffer { key, body, fd });
                u64::from(self.buffer.is_some())
            }
            (Step::GetShmemConfig, Answer::Shmem(config)) => {
                if let Mode::Up(live) = &mut self.mode {
                    live.shmem = config.memory_sizes;
                }
                0
            }
            (Step::Ring(index, RingStep::Stop(_)), Answer::Base(base)) => {
                if let Some(stood) = self.stood.get_mut(*index) {
                    *stood = Stood::At(base);
                }
                0
            }
            (_, Answer::Number(number)) => number,
            _ => 0,
        };
        self.done(&step, told);
        if matches!(step, Step::GetFeatures) {
            self.offered = Some(told & !plan::OURS);
        }
        if matches!(step, Step::ResetDevice) {
            self.buffer = None;
        }
        Ok(())
    }

    fn done(&mut self, step: &Step, told: u64) {
        if let Mode::Up(live) = &mut self.mode {
            live.actual.done(step, told, &self.wanted);
        }
    }

    /// Begins what comes next, as far as nothing has to be answered first.
    fn ask(&mut self, now: Instant) -> Result<()> {
        loop {
            let Mode::Up(live) = &mut self.mode else {
                return Ok(());
            };
            if live.connected
                && matches!(live.actual.config, plan::Asked::Told(()))
                && live.actual.agreed(ProtocolFeatures::CONFIG)
                && self.changed.swap(false, Ordering::Relaxed)
            {
                live.actual.config = plan::Asked::Not;
            }
            let waits = !live.placed
                || live.under_way.len() >= WINDOW
                || matches!(live.under_way.back(),
                    Some(UnderWay { what: What::Step(step), .. }) if step.alone());
            if waits {
                return Ok(());
            }
            if !live.connected && live.actual.connected(&self.wanted) {
                if let Err(error) = self.check_offer() {
                    self.unfit = Some(error);
                    return Ok(());
                }
                self.handshake_done();
                continue;
            }
            match live.actual.next(&self.wanted) {
                Next::Do(step) => self.begin(step, now)?,
                Next::Wait => return Ok(()),
                Next::Nothing => return self.idle(now),
            }
            self.answered(false, now)?;
        }
    }

    /// What the device cannot do without, by name.
    fn check_offer(&self) -> Result<()> {
        let Some(live) = self.live() else {
            return Ok(());
        };
        let missing = |what: &str, bits: u64, names: String| match bits {
            0 => Ok(()),
            _ => Err(Error::new(
                Kind::NotNegotiated,
                format!("the back-end does not offer what {what}: {names}"),
            )),
        };
        let offered = live.actual.offered.told().unwrap_or_default();
        let lacks = |bits: u64| bits & !offered & !plan::OURS;
        let required = lacks(self.options.required_features);
        missing("is required", required, names(required))?;
        let assumed = lacks(self.options.assume_features.unwrap_or_default());
        missing("was assumed", assumed, names(assumed))?;
        let acked = lacks(self.wanted.features.unwrap_or_default());
        missing("the guest has acknowledged", acked, names(acked))?;
        let protocol = live.actual.offered_protocol.told().unwrap_or_default();
        let required = self.options.required_protocol_features & !protocol;
        let names = crate::message::bit_names(required, crate::message::protocol_feature_name);
        missing("is required", required, names)?;
        let slots = super::memory::Limits {
            slots: live.actual.slots.told(),
            configure: live.actual.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        };
        super::memory::fits(&self.wanted.memory, slots)
    }

    fn handshake_done(&mut self) {
        if let Mode::Up(live) = &mut self.mode {
            live.connected = true;
        }
        self.link.settled();
        self.tell(EventKind::Connected);
    }

    /// All that is wanted has been told.
    fn idle(&mut self, now: Instant) -> Result<()> {
        if let Some((offset, data)) = self.writes.front() {
            let Mode::Up(live) = &mut self.mode else {
                return Ok(());
            };
            if live.actual.agreed(ProtocolFeatures::CONFIG) {
                let header = ConfigHeader {
                    offset: *offset,
                    size: u32::try_from(data.len()).unwrap_or_default(),
                    flags: 0,
                };
                let begun = live
                    .client
                    .begin(&Op::SetConfig(header, data), Timeout::Default)?;
                live.under_way.push_back(UnderWay {
                    what: What::ConfigWrite,
                    begun,
                    since: now,
                });
            }
            self.writes.pop_front();
            return Ok(());
        }
        let Mode::Up(live) = &mut self.mode else {
            return Ok(());
        };
        if !live.under_way.is_empty() {
            return Ok(());
        }
        // Notifications may have been lost while the ring was set up, and while
        // there was no back-end.
        for index in std::mem::take(&mut live.started) {
            if let Some(kept) = self.kept.get(index).and_then(Option::as_ref) {
                let call = kept.call.as_deref();
                for fd in [Some(&*kept.kick), call].into_iter().flatten() {
                    // One that cannot be written is nobody's but the caller's.
                    let _ = socket::notify(fd.as_fd());
                }
            }
        }
        if self.applied != Some(self.generation) {
            self.applied = Some(self.generation);
            if self.recovering && !self.wanted.held {
                self.recovering = false;
                if self.wanted.rings.iter().any(Option::is_some) {
                    self.tell(EventKind::Recovered);
                }
            }
            self.tell(EventKind::Applied);
        }
        Ok(())
    }

    /// Sends a step.
    fn begin(&mut self, step: Step, now: Instant) -> Result<()> {
        let Mode::Up(live) = &mut self.mode else {
            return Ok(());
        };
        if matches!(step, Step::Forget | Step::SetStatus(0)) {
            self.buffer = None;
        }
        if matches!(step, Step::Forget | Step::Ring(_, RingStep::Forget)) {
            live.actual.begun(&step, &self.wanted);
            return Ok(());
        }
        let client = &live.client;
        let kept = |index: usize| self.kept.get(index).and_then(Option::as_ref);
        let stood = |index: usize| self.stood.get(index).copied().unwrap_or_default();
        let default = Timeout::Default;
        let begun = match &step {
            Step::OpenChannel => client.begin_channel(Arc::clone(&self.handler)),
            Step::Memory(change) => begin_memory(client, change),
            Step::SetInflight => match &self.buffer {
                Some(buffer) => {
                    client.begin(&Op::SetInflightFd(buffer.body, buffer.fd.as_fd()), default)
                }
                None => Err(lost_track()),
            },
            Step::Ring(index, RingStep::Stop(drain)) => {
                let ring = number(*index);
                let op = match drain {
                    Drain::Finish => Op::GetVringBase(ring),
                    Drain::Skip => Op::GetVringBaseSkipDrain(ring),
                };
                client.begin(&op, default)
            }
            Step::Ring(index, part) => match kept(*index) {
                Some(kept) => begin_ring(client, *index, *part, kept, stood(*index)),
                None => Err(lost_track()),
            },
            plain => client.begin(&plain_op(plain, &self.wanted)?, default),
        }?;
        // An interrupt may have gone to the call descriptor of before.
        let swapped = |ring: usize| live.actual.rings.get(ring).is_some_and(|ring| ring.kick);
        match &step {
            Step::Ring(index, RingStep::Kick) => live.started.push(*index),
            Step::Ring(index, RingStep::Call) if swapped(*index) => live.started.push(*index),
            _ => {}
        }
        live.actual.begun(&step, &self.wanted);
        live.under_way.push_back(UnderWay {
            what: What::Step(step),
            begun,
            since: now,
        });
        Ok(())
    }

    // ---- waiting ----

    /// Changes with whatever somebody may wait for.
    pub(super) fn stage(&self) -> impl PartialEq + use<> {
        let up = matches!(self.mode, Mode::Up(_));
        (self.applied, self.generation, self.lives, up)
    }

    /// All that is wanted stands, and nothing is outstanding.
    pub(super) fn settled(&self) -> bool {
        self.applied == Some(self.generation)
    }

    /// The descriptors to wait for: of the connection, of its channel, and of
    /// whatever stands in for it.
    pub(super) fn watches(&self) -> [Option<Watch<'_>>; 4] {
        let (socket, channel) = match &self.mode {
            Mode::Up(live) => {
                let (socket, _) = live.client.interest();
                let channel = live.client.backend_notifier().map(readable);
                (Some(socket), channel)
            }
            Mode::Fencing(fence, _) => (Some(fence.watch()), None),
            Mode::Down => (None, None),
        };
        let ghost = self.ghost.as_ref().map(Fence::watch);
        [socket, channel, self.link.watch(), ghost]
    }

    /// When there is something to do because of the time.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let of_mode = match &self.mode {
            Mode::Up(live) => {
                let throttled = live.client.interest().1.then(|| now.checked_add(THROTTLE));
                let first = live.under_way.front().and_then(|first| {
                    let deadline = first.due();
                    let stall = first.since.checked_add(self.options.stall);
                    let stall = stall.filter(|_| !live.stalled);
                    [deadline, stall].into_iter().flatten().min()
                });
                [throttled.flatten(), first].into_iter().flatten().min()
            }
            Mode::Fencing(fence, _) => fence.due(),
            Mode::Down => None,
        };
        let ghost = self.ghost.as_ref().and_then(Fence::due);
        [of_mode, self.link.due(), ghost]
            .into_iter()
            .flatten()
            .min()
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// A back-end could shrink its buffer later as well; it is not mapped here, and a
/// size that does not fit shows a back-end that is wrong from the beginning.
fn check_buffer(body: &Inflight, fd: Option<&OwnedFd>) -> Result<()> {
    let Some(fd) = fd else {
        return Ok(());
    };
    let failed = |errno| Error::os(errno, "cannot look at the in-flight buffer");
    let stat = nix::sys::stat::fstat(fd).map_err(failed)?;
    let there = u64::try_from(stat.st_size).unwrap_or_default();
    match body.mmap_offset.checked_add(body.mmap_size) {
        Some(end) if end <= there => Ok(()),
        _ => {
            let text = "the in-flight buffer is larger than its file";
            Err(Error::protocol(text)
                .of(Request::GetInflightFd)
                .value(body.mmap_size))
        }
    }
}

/// The plan and what is kept for it have come apart.
fn lost_track() -> Error {
    Error::new(Kind::Panic, "a step for something that is not there")
}

pub(super) fn readable(fd: BorrowedFd<'_>) -> Watch<'_> {
    Watch {
        fd,
        read: true,
        write: false,
        end: false,
    }
}

/// Before a descriptor is closed of which there is a duplicate: it would stay.
fn forget(poll: &Pollable, fd: BorrowedFd<'_>) {
    let nothing = Watch {
        read: false,
        ..readable(fd)
    };
    // It is not there any more in any case.
    let _ = poll.watch(nothing);
}

fn begin_memory(client: &BackendClient, change: &super::memory::MemoryStep) -> Result<Begun> {
    use super::memory::MemoryStep;
    let default = Timeout::Default;
    match change {
        MemoryStep::SetTable(table) => {
            let regions: Vec<_> = table.iter().map(|region| region.shared()).collect();
            client.begin(&Op::SetMemTable(&regions), default)
        }
        MemoryStep::Add(region) => client.begin(&Op::AddMemRegion(&region.shared()), default),
        MemoryStep::Remove(region) => {
            client.begin(&Op::RemoveMemRegion(&region.shared().region), default)
        }
    }
}

fn begin_ring(
    client: &BackendClient,
    index: usize,
    part: RingStep,
    kept: &Kept,
    stood: Stood,
) -> Result<Begun> {
    let index = number(index);
    let fd = |fd: &Option<Arc<OwnedFd>>| fd.clone();
    let (call, err) = (fd(&kept.call), fd(&kept.err));
    let op = match part {
        RingStep::Call => Op::SetVringCall(index, call.as_deref().map(AsFd::as_fd)),
        RingStep::Num => Op::SetVringNum(VringState {
            index,
            num: kept.size,
        }),
        RingStep::Base => {
            let text = "where the ring stands cannot be read any more";
            let num = match (kept.origin, stood) {
                (Origin::At(base), _) | (Origin::Stopped, Stood::At(base)) => Some(base),
                _ => None,
            };
            let num = num.ok_or_else(|| Error::new(Kind::State, text).ring(index))?;
            Op::SetVringBase(VringState { index, num })
        }
        RingStep::Addr => Op::SetVringAddr(&kept.addr),
        RingStep::Err => Op::SetVringErr(index, err.as_deref().map(AsFd::as_fd)),
        RingStep::Kick => Op::SetVringKick(index, Some(kept.kick.as_fd())),
        RingStep::Enable => Op::SetVringEnable(index, true),
        RingStep::Stop(_) | RingStep::Forget => return Err(lost_track()),
    };
    client.begin(&op, Timeout::Default)
}

fn plain_op(step: &Step, wanted: &Wanted) -> Result<Op<'static>> {
    Ok(match step {
        Step::GetFeatures => Op::GetFeatures,
        Step::GetProtocolFeatures => Op::GetProtocolFeatures,
        Step::SetProtocolFeatures(features) => Op::SetProtocolFeatures(features.bits()),
        Step::SetOwner => Op::SetOwner,
        Step::GetQueueNum => Op::GetQueueNum,
        Step::GetMaxMemSlots => Op::GetMaxMemSlots,
        Step::GetShmemConfig => Op::GetShmemConfig,
        Step::GetConfig => Op::GetConfig(ConfigHeader {
            offset: 0,
            size: wanted.config_size,
            flags: 0,
        }),
        Step::SetFeatures(features) => Op::SetFeatures(*features),
        Step::SetStatus(status) => Op::SetStatus(*status),
        Step::ResetDevice => Op::ResetDevice,
        Step::GetInflight(key) => Op::GetInflightFd(Inflight {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues: key.num_queues,
            queue_size: key.queue_size,
            padding: 0,
        }),
        _ => return Err(lost_track()),
    })
}
