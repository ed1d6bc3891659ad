//! Asking for what comes next, and taking what was answered.

use super::{Buffer, Core, Mode, UnderWay, What};
use crate::backend_client::{Answer, BackendClient, Begun, Op, Timeout};
use crate::device::event::{Event, EventKind};
use crate::device::memory::{self, Limits, MemoryStep};
use crate::device::plan::{self, Drain, Held, Next, ResetBy, RingStep, Step, Wanted};
use crate::device::questions::Question;
use crate::device::ring::{self, Kept, Origin, Place, RingSlot, RingState, Unread};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{
    ConfigHeader, Inflight, ProtocolFeatures, Request, SHMEM_REGIONS, VringState, virtio,
};
use crate::socket::Pollable;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A ring whose place has to be read.
pub(in crate::device) struct Unplaced {
    pub(in crate::device) index: usize,
    pub(in crate::device) unread: Unread,
}

/// What was read.
pub(in crate::device) struct Placed {
    pub(in crate::device) index: usize,
    pub(in crate::device) origin: Origin,
    pub(in crate::device) used: Option<u16>,
    pub(in crate::device) available: Option<u16>,
}

impl Placed {
    /// From where the ring goes on.
    fn place(&self) -> Option<u16> {
        match self.origin {
            Origin::Available => self.available,
            _ => self.used,
        }
    }

    /// All that the driver has made available is used: no request is unfinished.
    fn is_drained(&self, packed: bool) -> bool {
        !packed && self.used.is_some() && self.used == self.available
    }
}

impl Core {
    /// The rings whose place has to be read, as no back-end moves it any longer.
    pub(in crate::device) fn unplaced(&self) -> Vec<Unplaced> {
        let rings = self.rings.iter().enumerate();
        let unplaced = |(index, ring): (usize, &RingSlot)| {
            let unread = ring.kept.as_ref()?.unread()?;
            Some(Unplaced { index, unread })
        };
        rings.filter_map(unplaced).collect()
    }

    /// As [`unplaced`](Self::unplaced), unless a back-end that was lost may still move
    /// the rings, or they wait for a reset: then their place is not known.
    pub(in crate::device) fn left_behind(&self) -> Vec<Unplaced> {
        match self.mode {
            Mode::Down | Mode::Up(_) if !self.unfenced && !self.wanted.held => self.unplaced(),
            _ => Vec::new(),
        }
    }

    pub(super) fn packed(&self) -> bool {
        let features = self.wanted.features.unwrap_or_default();
        features & 1_u64.wrapping_shl(virtio::F_RING_PACKED) != 0
    }

    /// The base of this ring, according to what was read, and whether no request of it
    /// is unfinished.
    pub(in crate::device) fn base_of(&self, ring: usize, places: &[Placed]) -> Option<(u32, bool)> {
        let read = places.iter().find(|place| place.index == ring)?;
        let place = read.place()?;
        let packed = self.packed();
        Some((ring::base_at(place, packed), read.is_drained(packed)))
    }

    /// Takes down what was read.
    pub(in crate::device) fn place(&mut self, places: &[Placed]) {
        let packed = self.packed();
        for read in places {
            // The ring may have been stopped and started meanwhile.
            let Some(slot) = self.rings.get_mut(read.index) else {
                continue;
            };
            let kept = slot.kept.as_mut();
            let Some(kept) = kept.filter(|kept| kept.origin == read.origin) else {
                continue;
            };
            let unfinished = kept.unfinished().filter(|_| !read.is_drained(packed));
            let Some(place) = read.place() else {
                kept.origin = Origin::Unknown;
                self.wanted.held = true;
                self.tell(EventKind::NeedsReset);
                continue;
            };
            let base = ring::base_at(place, packed);
            // What was made available and not used is given up.
            let behind = read.used.map(|used| place.wrapping_sub(used));
            kept.debt = behind.filter(|behind| !packed || *behind == 0);
            let place = Place { base, unfinished };
            kept.origin = Origin::At(place);
            slot.state = RingState::at(place);
        }
        self.keep_buffer();
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
        let done = match self.ending(now) {
            None => self.answered(looked, now).and_then(|()| self.ask(now)),
            Some(None) => return,
            Some(Some(error)) => return self.lose(error, false, poll, now),
        };
        let done = done.and_then(|()| self.watch_channel(looked, now));
        if let Err(error) = done {
            self.report_refused(now);
            if let Some(error) = self.end(error, now) {
                self.lose(error, false, poll, now);
            }
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
                        self.settle(first, outcome, now)?;
                    }
                }
                // The deadline of what was posted before it comes first.
                None if live.works_at_posted() => return Ok(()),
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

    fn settle(&mut self, of: UnderWay, outcome: Result<Answer>, now: Instant) -> Result<()> {
        let confirms = of.begun.confirms();
        let (step, number, answer) = match (of.what, outcome) {
            (What::ConfigWrite(write, _), Ok(_)) => {
                self.config.accepted(&write);
                return Ok(());
            }
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
            (What::Step(Step::GetConfig, number), Err(error))
                if matches!(error.kind, Kind::Nack) =>
            {
                self.done(&Step::GetConfig, number, 0, confirms);
                return self.config_not_returned(error);
            }
            (What::Step(step, number), Err(error))
                if matches!(error.kind, Kind::Nack) && Self::is_local(&step) =>
            {
                self.refused(&step, number, error);
                return Ok(());
            }
            (What::Step(..), Err(error)) => return Err(error),
            (What::Step(step, number), Ok(answer)) => (step, number, answer),
            (What::Question(number), outcome) => return self.question_answered(number, outcome),
        };
        let told = match (&step, answer) {
            (Step::GetConfig, Answer::Config(bytes)) => {
                self.config_returned(&bytes);
                0
            }
            (Step::GetInflight(key), Answer::Inflight(body, fd)) => {
                let key = *key;
                self.buffers = self.buffers.saturating_add(1);
                let generation = self.buffers;
                let held = Held { generation, key };
                self.buffer = fd.map(|fd| Buffer { held, body, fd });
                let held = self.buffer.as_ref().map(|buffer| buffer.held);
                if let Mode::Up(live) = &mut self.mode {
                    live.actual.has_buffer(held);
                }
                0
            }
            (Step::GetShmemConfig, Answer::Shmem(config)) => {
                self.shmem_returned(&config.memory_sizes);
                0
            }
            (
                Step::Ring {
                    index,
                    start,
                    part: RingStep::Stop(drain),
                },
                Answer::Base(base),
            ) => {
                self.stop_answered((*index, *start), *drain, base, now);
                0
            }
            (_, Answer::Number(number)) => number,
            _ => 0,
        };
        self.done(&step, number, told, confirms);
        if matches!(step, Step::GetFeatures) {
            self.offered = Some(told & !plan::OURS);
        }
        Ok(())
    }

    /// A step has succeeded. `confirms`: the back-end has processed it.
    fn done(&mut self, step: &Step, number: u64, told: u64, confirms: bool) {
        if let Mode::Up(live) = &mut self.mode {
            live.actual.answer(step, told);
            if confirms {
                live.actual.confirm(number);
            }
        }
        self.forget_confirmed();
    }

    /// Begins what comes next, as far as nothing has to be answered first.
    fn ask(&mut self, now: Instant) -> Result<()> {
        loop {
            let Mode::Up(live) = &mut self.mode else {
                return Ok(());
            };
            let waits = !live.placed
                || self.unfit.is_some()
                || live.window_is_full()
                || matches!(live.under_way.back(),
                    Some(UnderWay { what: What::Step(step, _), .. }) if step.alone());
            if waits {
                return Ok(());
            }
            if !live.connected && live.actual.connected(&self.wanted) {
                if let Err(error) = self.check_offer() {
                    self.unfit = Some(error);
                    return Ok(());
                }
                if let Err(error) = self.refuse_absent_rings() {
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
                Next::Close if self.shares_beyond() => return Err(last_region()),
                Next::Close => self.write(now),
            };
            match begun {
                Ok(true) => self.answered(false, now)?,
                Ok(false) => {
                    self.idle();
                    if !self.confirms_all(now)? && !self.reads_config_again() {
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
        let offers = |error: Error| error.of(Request::GetFeatures).value(offered);
        let required = lacks(self.options.required_features);
        missing("is required", required, self.virtio_names(required)).map_err(offers)?;
        let assumed = lacks(self.options.assume_features.unwrap_or_default());
        missing("was assumed", assumed, self.virtio_names(assumed)).map_err(offers)?;
        let acked = lacks(self.wanted.features.unwrap_or_default());
        missing(
            "the guest has acknowledged",
            acked,
            self.virtio_names(acked),
        )
        .map_err(offers)?;
        let protocol = live.actual.offered_protocol.told().unwrap_or_default();
        let required = self.options.required_protocol_features & !protocol;
        let names = crate::message::bit_names(required, crate::message::protocol_feature_name);
        let offers = |error: Error| error.of(Request::GetProtocolFeatures).value(protocol);
        missing("is required", required, names).map_err(offers)?;
        // Nothing else is known to complete each request once.
        let kept = self.rings.iter().filter_map(|ring| ring.kept.as_ref());
        let buffered = kept.into_iter().any(|kept| kept.unfinished().is_some());
        let needed = ProtocolFeatures::INFLIGHT_SHMFD;
        if buffered && !live.actual.agreed(needed) {
            let bits = needed.bits();
            let names = crate::message::bit_names(bits, crate::message::protocol_feature_name);
            missing("the rings go on with", bits, names).map_err(offers)?;
        }
        self.check_platform(self.wanted.features.unwrap_or_default())?;
        self.check_endian(self.wanted.features, self.wanted.big_endian)?;
        let slots = Limits {
            slots: live.actual.slots.told(),
            configure: live.actual.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        };
        memory::fits(&self.wanted.memory, slots)
    }

    /// The caller reserves memory for the regions once, as large as the first back-end
    /// has them.
    fn shmem_returned(&mut self, sizes: &[u64; SHMEM_REGIONS]) {
        let first = self.shmem.get_or_insert_with(|| Box::new(*sizes));
        let mut regions = sizes.iter().zip(first.iter()).enumerate();
        if let Some((region, (size, first))) = regions.find(|(_, (size, first))| size != first) {
            let text = format!(
                "shared memory region {region} has {size:#x} bytes, and had {first:#x} on the \
                 first back-end of this device"
            );
            let error = Error::protocol(text).of(Request::GetShmemConfig);
            self.unfit = Some(error.value(*size));
        }
    }

    fn handshake_done(&mut self) {
        if let Mode::Up(live) = &mut self.mode {
            live.connected = true;
        }
        self.tell(EventKind::Connected);
        self.check_announcements();
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

    /// Sends the next question of the caller's; whether there was one.
    fn ask_question(&mut self, now: Instant) -> Result<bool> {
        let Mode::Up(live) = &mut self.mode else {
            return Ok(false);
        };
        let Some((number, question)) = self.questions.next() else {
            return Ok(false);
        };
        let op = match &question {
            Question::Status => Op::GetStatus,
            Question::SharedObject(uuid) => Op::GetSharedObject(uuid),
        };
        // A failure is the end of the connection, which is the answer.
        let begun = live.client.begin(&op, Timeout::Default)?;
        live.under_way.push_back(UnderWay {
            what: What::Question(number),
            begun,
            since: now,
        });
        Ok(true)
    }

    /// Begins the next question or write to the configuration space; whether there was one.
    fn write(&mut self, now: Instant) -> Result<bool> {
        if self.ask_question(now)? {
            return Ok(true);
        }
        let (Mode::Up(live), Some(write)) = (&mut self.mode, self.writes.pop_front()) else {
            return Ok(self.reads_config_after_writes());
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

    pub(super) fn config_refused(&mut self, error: Error) {
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

    /// Where requests are not acknowledged, one more shows that the back-end has
    /// processed all that was sent. Whether there was anything.
    fn confirms_all(&mut self, now: Instant) -> Result<bool> {
        let Some(live) = self.live() else {
            return Ok(false);
        };
        let needed = live.under_way.is_empty() && live.actual.is_unconfirmed();
        if needed {
            self.begin(Step::Barrier, now)?;
        }
        Ok(needed)
    }

    /// All that is wanted was sent.
    fn idle(&mut self) {
        let Mode::Up(live) = &mut self.mode else {
            return;
        };
        if !live.under_way.is_empty()
            || live.actual.is_unconfirmed()
            || !live.actual.settling.is_empty()
        {
            return;
        }
        self.refusal_is_past = self.memory_refused.is_some();
        // Notifications may have been lost while the ring was set up, and while
        // there was no back-end.
        for index in std::mem::take(&mut live.started) {
            let slot = self.rings.get_mut(index);
            if let Some(kept) = slot.and_then(|slot| slot.kept.as_mut()) {
                kept.call_before = None;
                let call = kept.call.as_ref().map(Arc::clone);
                self.notices
                    .extend([Some(Arc::clone(&kept.kick)), call].into_iter().flatten());
            }
        }
        if !self.wanted.held {
            if let Some(recovery) = self.recovering.take() {
                if self.wanted.rings.iter().any(|ring| ring.run.is_some()) {
                    let event = Event {
                        recovery,
                        ..self.event(EventKind::Recovered)
                    };
                    self.events.push(event);
                    self.news();
                }
            }
        }
        let done = self.refusal().is_none() && !self.wanted.waits_for_reset();
        if done && self.applied != Some(self.generation) {
            self.history.is_applied();
            self.applied = Some(self.generation);
            self.tell(EventKind::Applied);
        }
    }

    /// Sends a step.
    fn begin(&mut self, step: Step, now: Instant) -> Result<()> {
        self.news();
        if matches!(step, Step::GetInflight(_)) {
            self.check_replaced()?;
        }
        let Mode::Up(live) = &mut self.mode else {
            return Ok(());
        };
        if let Step::Reset(by, _) = step {
            self.buffer = None;
            if by == ResetBy::Stopping {
                live.client.resources_are_gone();
            }
        }
        if step.is_silent() {
            live.actual.send(&step);
            if let Step::Ring { index, .. } = step {
                self.never_ran(index);
            }
            return Ok(());
        }
        let client = &live.client;
        let default = Timeout::Default;
        let begun = match &step {
            Step::OpenChannel => client.begin_channel(Arc::clone(&self.handler)),
            Step::Memory(change) => begin_memory(client, change),
            Step::SetInflight(_) => match &self.buffer {
                Some(buffer) => {
                    client.begin(&Op::SetInflightFd(buffer.body, buffer.fd.as_fd()), default)
                }
                None => Err(lost_track()),
            },
            Step::GpuSocket(_) => match &self.gpu {
                Some(socket) => client.begin(&Op::GpuSetSocket(socket.as_fd()), default),
                None => Err(lost_track()),
            },
            Step::Ring { index, part, .. } => {
                let kept = self.rings.get(*index).and_then(|ring| ring.kept.as_ref());
                begin_ring(client, *index, *part, kept)
            }
            plain => client.begin(&plain_op(plain, &self.wanted)?, default),
        }?;
        if let Step::Ring { index, part, .. } = step {
            // An interrupt may have gone to the call descriptor of before.
            let runs = live.actual.sent.rings.get(index).is_some_and(|it| it.kick);
            if part == RingStep::Kick || (matches!(part, RingStep::Call(_)) && runs) {
                live.started.push(index);
            }
        }
        let number = live.actual.send(&step);
        live.under_way.push_back(UnderWay {
            what: What::Step(step.clone(), number),
            begun,
            since: now,
        });
        if let Step::Ring { index, start, part } = step {
            self.ring_step_sent(index, start, part);
        }
        Ok(())
    }

    /// What becomes of a ring as a step is sent.
    fn ring_step_sent(&mut self, index: usize, start: u64, part: RingStep) {
        let packed = self.packed();
        let goes_on = self.wanted.start(index) == Some(start);
        let (Some(slot), Mode::Up(live)) = (self.rings.get_mut(index), &mut self.mode) else {
            return;
        };
        let Some(kept) = &mut slot.kept else {
            return;
        };
        match (part, &slot.state) {
            (RingStep::Kick, _) => {
                if let Origin::At(began) = kept.origin {
                    slot.state = RingState::Running { began };
                }
            }
            // It pauses.
            (RingStep::Stop(_), RingState::Running { began }) if goes_on => {
                live.will_stop(index, kept.used_check(packed));
                kept.origin = Origin::Stopped;
                kept.has_run = true;
                let (began, then) = (*began, None);
                slot.state = RingState::Stopping { began, then };
                if let Some(wanted) = self.wanted.rings.get_mut(index) {
                    wanted.stop = Drain::Finish;
                }
            }
            (RingStep::Call(_), RingState::Running { .. }) => {}
            (RingStep::Call(_), _) => slot.state = RingState::Starting,
            _ => {}
        }
    }
}

pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The plan and what is kept for it have come apart.
pub(super) fn lost_track() -> Error {
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
    kept: Option<&Kept>,
) -> Result<Begun> {
    let index = number(index);
    let default = Timeout::Default;
    match part {
        RingStep::Disable => return client.begin(&Op::SetVringEnable(index, false), default),
        RingStep::Stop(Drain::Finish) => return client.begin(&Op::GetVringBase(index), default),
        RingStep::Stop(Drain::Skip) => {
            return client.begin(&Op::GetVringBaseSkipDrain(index), default);
        }
        _ => {}
    }
    let kept = kept.ok_or_else(lost_track)?;
    let op = match part {
        RingStep::Call(_) => Op::SetVringCall(index, kept.call.as_deref().map(AsFd::as_fd)),
        RingStep::Num => Op::SetVringNum(VringState {
            index,
            num: kept.size,
        }),
        RingStep::Base => {
            let Origin::At(Place { base: num, .. }) = kept.origin else {
                let text = "the base of the ring cannot be read any longer";
                return Err(Error::new(Kind::State, text).ring(index));
            };
            Op::SetVringBase(VringState { index, num })
        }
        RingStep::Endian(big) => Op::SetVringEndian(VringState {
            index,
            num: u32::from(big),
        }),
        RingStep::Addr => Op::SetVringAddr(kept.addr),
        RingStep::Err => Op::SetVringErr(index, kept.err.as_deref().map(AsFd::as_fd)),
        RingStep::Kick => Op::SetVringKick(index, Some(kept.kick.as_fd())),
        RingStep::Enable => Op::SetVringEnable(index, true),
        RingStep::Disable | RingStep::Stop(_) | RingStep::Forget => return Err(lost_track()),
    };
    client.begin(&op, default)
}

fn last_region() -> Error {
    let text = "the connection is closed to take the last memory region away: the back-end does \
                not offer CONFIGURE_MEM_SLOTS";
    Error::new(Kind::Canceled, text)
}

fn plain_op(step: &Step, wanted: &Wanted) -> Result<Op<'static>> {
    Ok(match step {
        Step::GetFeatures | Step::Barrier => Op::GetFeatures,
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
        Step::SetMtu(mtu) => Op::NetSetMtu(*mtu),
        Step::SendRarp(announcement) => Op::SendRarp(announcement.mac),
        Step::Reset(ResetBy::ResetDevice, _) => Op::ResetDevice,
        Step::Reset(ResetBy::SetStatus, _) => Op::SetStatus(0),
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
