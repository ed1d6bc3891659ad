//! Asking for what comes next, and taking what was answered.

use super::{Buffer, Core, Mode, Stood, UnderWay, What};
use crate::backend_client::{Answer, BackendClient, Begun, Op, Timeout};
use crate::device::event::{Event, EventKind};
use crate::device::memory::{self, Limits, MemoryStep};
use crate::device::plan::{self, Drain, Next, RingStep, Step, Wanted};
use crate::device::ring::{self, Kept, Origin, RingIndices};
use crate::error::{Class, Error, Kind, Phase, Result};
use crate::message::{ConfigHeader, Inflight, ProtocolFeatures, Request, VringState, virtio};
use crate::socket::Pollable;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A ring, what has to be read of it, and who knows it.
pub(in crate::device) type Unplaced = (usize, Origin, Arc<dyn RingIndices>);

/// What was read.
pub(in crate::device) type Placed = (usize, Origin, Option<u16>);

impl Core {
    /// The rings whose place has to be read, now that nobody moves it any more; and
    /// who knows it.
    pub(in crate::device) fn unplaced(&self) -> Vec<Unplaced> {
        let kept = self.kept.iter().enumerate();
        kept.filter_map(|(index, kept)| {
            let kept = kept.as_ref().filter(|kept| kept.unplaced())?;
            Some((index, kept.origin, Arc::clone(kept.indices.as_ref()?)))
        })
        .collect()
    }

    /// As [`unplaced`](Self::unplaced), while there is no back-end, and where none that
    /// was lost moves them any more. Not where rings wait for a reset: they stand
    /// nowhere that is known.
    pub(in crate::device) fn left_behind(&self) -> Vec<Unplaced> {
        match self.mode {
            Mode::Down if !self.unfenced && !self.wanted.held => self.unplaced(),
            _ => Vec::new(),
        }
    }

    fn packed(&self) -> bool {
        let features = self.wanted.features.unwrap_or_default();
        features & 1_u64.wrapping_shl(virtio::F_RING_PACKED) != 0
    }

    /// Where this ring stands, according to what was read.
    pub(in crate::device) fn base_of(&self, ring: usize, places: &[Placed]) -> Option<u32> {
        let (_, _, place) = places.iter().find(|(index, ..)| *index == ring)?;
        place.map(|place| ring::base_at(place, self.packed()))
    }

    /// Here they are.
    pub(in crate::device) fn place(&mut self, places: &[Placed]) {
        let packed = self.packed();
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
    ///
    /// `looked`: what has arrived was read just before, so that a deadline that has
    /// passed is one of the back-end's and not of this process, which may have been
    /// stopped.
    pub(in crate::device) fn advance(&mut self, looked: bool, poll: &Pollable, now: Instant) {
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
                    self.news = self.news.wrapping_add(1);
                    let first = live.under_way.pop_front();
                    if let Some(next) = live.under_way.front_mut() {
                        next.since = now;
                    }
                    if let Some(first) = first {
                        self.settle(first, outcome)?;
                    }
                }
                None if looked && first.due().is_some_and(|due| due <= now) => {
                    return Err(live.client.overdue(&first.begun));
                }
                None => {
                    let waited = now.saturating_duration_since(first.since);
                    let stalls = looked && waited >= self.options.stall;
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

    fn settle(&mut self, of: UnderWay, outcome: Result<Answer>) -> Result<()> {
        let (step, answer) = match (of.what, outcome) {
            (What::ConfigWrite(..), Ok(_)) => return Ok(()),
            (What::ConfigWrite(..), Err(error)) if matches!(error.kind, Kind::Nack) => {
                self.write_refused(error);
                return Ok(());
            }
            (what @ What::ConfigWrite(..), Err(error)) => {
                // It is still to be told.
                if let Mode::Up(live) = &mut self.mode {
                    live.under_way.push_front(UnderWay { what, ..of });
                }
                return Err(error);
            }
            // It has none, as old DPDK; or the guest reads on what was told last.
            (What::Step(Step::GetConfig), Err(error)) if matches!(error.kind, Kind::Nack) => {
                if self.config.is_known() {
                    self.config_refused(error);
                }
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
        let told = match (&step, answer) {
            (Step::GetConfig, Answer::Config(mut bytes)) => {
                let under_way = self.live().into_iter().flat_map(|live| &live.under_way);
                let sent_later = under_way.filter_map(|it| match &it.what {
                    What::ConfigWrite(write, _) => Some(write),
                    What::Step(_) => None,
                });
                if self
                    .config
                    .update(&mut bytes, sent_later.chain(&self.writes))
                {
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
                let stood = self.stood.get_mut(*index);
                // After a reset it stands nowhere.
                if let Some(stood) = stood.filter(|stood| **stood == Stood::Unknown) {
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
            let waits = !live.placed
                || live.window_is_full()
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
            let begun = match live.actual.next(&self.wanted) {
                Next::Do(step) => self.begin(step, now).map(|()| true),
                Next::Wait => return Ok(()),
                Next::Nothing => self.write(now),
            };
            match begun {
                Ok(true) => self.answered(false, now)?,
                Ok(false) => {
                    self.idle()?;
                    if !self.reads_config_again() {
                        return Ok(());
                    }
                }
                // Why the back-end has hung up may stand in an answer that was not
                // read yet: there is one to come, or the end.
                Err(error) if error.kind == Kind::Disconnected && self.awaits_answers() => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
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
        // Nothing else is known to complete each request once.
        let buffered = self.kept.iter().flatten().any(|kept| kept.buffered);
        let needed = ProtocolFeatures::INFLIGHT_SHMFD;
        if buffered && !live.actual.agreed(needed) {
            let bits = needed.bits();
            let names = crate::message::bit_names(bits, crate::message::protocol_feature_name);
            missing("the rings go on with", bits, names)?;
        }
        let slots = Limits {
            slots: live.actual.slots.told(),
            configure: live.actual.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        };
        memory::fits(&self.wanted.memory, slots)
    }

    fn handshake_done(&mut self) {
        if let Mode::Up(live) = &mut self.mode {
            live.connected = true;
        }
        self.link.settled();
        self.tell(EventKind::Connected);
    }

    /// The configuration space has changed. After all else: it may do so for ever.
    fn reads_config_again(&mut self) -> bool {
        let Mode::Up(live) = &mut self.mode else {
            return false;
        };
        let reads = live.connected
            && matches!(live.actual.config, plan::Asked::Told(()))
            && live.actual.agreed(ProtocolFeatures::CONFIG)
            && self.changed.swap(false, Ordering::Relaxed);
        if reads {
            live.actual.config = plan::Asked::Not;
        }
        reads
    }

    fn awaits_answers(&self) -> bool {
        self.live().is_some_and(|live| !live.under_way.is_empty())
    }

    /// Begins the next write to the configuration space; whether there was one.
    fn write(&mut self, now: Instant) -> Result<bool> {
        let (Mode::Up(live), Some(write)) = (&mut self.mode, self.writes.pop_front()) else {
            return Ok(false);
        };
        if !live.actual.agreed(ProtocolFeatures::CONFIG) {
            let text = "the back-end has no configuration space";
            self.write_refused(Error::new(Kind::NotNegotiated, text).of(Request::SetConfig));
            return Ok(true);
        }
        let header = ConfigHeader {
            offset: write.offset,
            size: u32::try_from(write.data.len()).unwrap_or_default(),
            flags: 0,
        };
        match live
            .client
            .begin(&Op::SetConfig(header, &write.data), Timeout::Default)
        {
            Ok(begun) => live.under_way.push_back(UnderWay {
                what: What::ConfigWrite(write, self.wanted.resets),
                begun,
                since: now,
            }),
            Err(error) => {
                self.writes.push_front(write);
                return Err(error);
            }
        }
        Ok(true)
    }

    fn config_refused(&mut self, error: Error) {
        let event = Event {
            error: Some(error),
            ..self.event(EventKind::ConfigRefused)
        };
        self.events.push(event);
    }

    fn write_refused(&mut self, error: Error) {
        self.config_refused(error);
        // What the guest has written does not stand.
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes to the configuration space that were not confirmed are for the next
    /// back-end, before those that were not sent. Not those before a reset, nor one
    /// over which a second back-end was lost: no other would live for long.
    pub(super) fn write_again(&mut self, mut under_way: VecDeque<UnderWay>, error: Error) {
        if let Some(UnderWay {
            what: What::ConfigWrite(write, _),
            ..
        }) = under_way.front_mut()
        {
            if std::mem::replace(&mut write.fatal, true) {
                under_way.pop_front();
                self.write_refused(error);
            }
        }
        for it in under_way.into_iter().rev() {
            match it.what {
                What::ConfigWrite(write, resets) if resets == self.wanted.resets => {
                    self.writes.push_front(write);
                }
                _ => {}
            }
        }
    }

    /// All that is wanted has been told.
    fn idle(&mut self) -> Result<()> {
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
                let call = kept.call.as_ref().map(Arc::clone);
                self.notices
                    .extend([Some(Arc::clone(&kept.kick)), call].into_iter().flatten());
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
        self.news();
        let Mode::Up(live) = &mut self.mode else {
            return Ok(());
        };
        if matches!(step, Step::Forget | Step::SetStatus(0)) {
            self.buffer = None;
        }
        if matches!(step, Step::Forget) {
            live.client.mappings_are_gone();
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
            Step::Ring(index, RingStep::Disable) => {
                client.begin(&Op::SetVringEnable(number(*index), false), default)
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
}

fn names(bits: u64) -> String {
    crate::message::bit_names(bits, virtio::name)
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

fn begin_memory(client: &BackendClient, change: &MemoryStep) -> Result<Begun> {
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
    let op = match part {
        RingStep::Call => Op::SetVringCall(index, kept.call.as_deref().map(AsFd::as_fd)),
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
        RingStep::Addr => Op::SetVringAddr(kept.addr),
        RingStep::Err => Op::SetVringErr(index, kept.err.as_deref().map(AsFd::as_fd)),
        RingStep::Kick => Op::SetVringKick(index, Some(kept.kick.as_fd())),
        RingStep::Enable => Op::SetVringEnable(index, true),
        RingStep::Disable | RingStep::Stop(_) | RingStep::Forget => return Err(lost_track()),
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
