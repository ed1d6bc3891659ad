//! What a back-end refuses is reported, and nothing else suffers: the connection stays,
//! and the request is not repeated before the caller asks again.

use super::{Core, Mode};
use crate::device::event::{Event, EventKind};
use crate::device::memory::{GuestRegion, MemoryList, MemoryStep, Slots};
use crate::device::plan::{Drain, RingStep, Step};
use crate::device::ring::{self, RingState};
use crate::error::Error;

impl Core {
    /// A refusal of this step concerns only a part of the device.
    pub(super) fn is_local(step: &Step) -> bool {
        matches!(
            step,
            Step::Memory(_)
                | Step::Ring { .. }
                | Step::SetMtu(_)
                | Step::SendRarp(_)
                | Step::GpuSocket(_)
        )
    }

    /// A step with this number was refused.
    pub(super) fn refused(&mut self, step: &Step, number: u64, error: Error) {
        let Mode::Up(live) = &mut self.mode else {
            return;
        };
        let had = live
            .actual
            .confirmed
            .memory
            .as_ref()
            .map(Slots::accepted)
            .cloned();
        live.actual.refuse(number);
        // A later request takes the place of what was refused.
        let is_table = matches!(step, Step::Memory(MemoryStep::SetTable(_)));
        if is_table && live.actual.memory_is_unconfirmed() {
            return;
        }
        match step {
            Step::Memory(step) => self.memory_step_refused(step, &had.unwrap_or_default(), error),
            Step::Ring { index, start, part } => {
                self.ring_step_refused(*index, *start, *part, error)
            }
            Step::SetMtu(mtu) => self.mtu_refused(*mtu, error),
            Step::SendRarp(announcement) => self.announcement_refused(*announcement, error),
            Step::GpuSocket(number) => self.gpu_socket_refused(*number, error),
            _ => {}
        }
    }

    /// Why not all that is wanted can be done, if so.
    pub(in crate::device) fn refusal(&self) -> Option<&Error> {
        let rings = self.rings.iter().filter_map(|ring| ring.refused.as_ref());
        let mtu = self.mtu_refused.iter();
        self.memory_refused.iter().chain(rings).chain(mtu).next()
    }

    /// The caller asks anew for memory.
    pub(super) fn forget_refused_memory(&mut self) {
        self.memory_refused = None;
        self.refused_regions.clear();
        if let Mode::Up(live) = &mut self.mode {
            live.actual.ask_again();
        }
    }

    /// Another back-end may take what this one has refused. What two have refused is not
    /// asked of a third: some close the connection after a refusal, and it would go on
    /// like this.
    pub(super) fn ask_another_for_memory(&mut self) {
        let refused = std::mem::take(&mut self.refused_regions);
        let (twice, once): (Vec<_>, Vec<_>) = refused
            .into_iter()
            .partition(|region| self.refused_before.contains(region));
        self.refused_before.extend(once);
        if twice.is_empty() {
            self.forget_refused_memory();
        }
        self.wanted.memory = self.memory.without(&twice);
        self.refused_regions = twice;
    }

    fn memory_step_refused(&mut self, step: &MemoryStep, had: &MemoryList, error: Error) {
        let refused = match step {
            MemoryStep::Add(region) => vec![region.clone()],
            MemoryStep::Remove(_) => Vec::new(),
            // What is new in the table; in the first table of a back-end, what the one
            // before has refused.
            MemoryStep::SetTable(table) => {
                let table = MemoryList::new(table.clone()).unwrap_or_default();
                let is_new =
                    |region: &&GuestRegion| table.includes(region) && !had.includes(region);
                let new: Vec<_> = self.wanted.memory.iter().filter(is_new).cloned().collect();
                let before = |region: &&GuestRegion| self.refused_before.contains(region);
                match new.iter().filter(before).cloned().collect::<Vec<_>>() {
                    before if before.is_empty() => new,
                    before => before,
                }
            }
        };
        // What is not wanted any longer, or wanted again, concerns no caller.
        let concerns = match step {
            MemoryStep::Add(region) => self.memory.includes(region),
            MemoryStep::Remove(region) => !self.memory.includes(region) && had.includes(region),
            MemoryStep::SetTable(_) => true,
        };
        if !concerns {
            return;
        }
        let name = match (step, refused.as_slice()) {
            (MemoryStep::Remove(region), _) => format!("{region}, stays accessible: "),
            (_, []) => "the table without a region that was taken away: ".to_owned(),
            (_, [region]) => format!("{region}: "),
            (_, [region, ..]) => {
                format!("{region}, and {} more: ", refused.len().saturating_sub(1))
            }
        };
        let text = format!("{name}{}", error.message);
        let error = error.saying(text);
        self.refused_regions.extend(refused);
        self.wanted.memory = self.memory.without(&self.refused_regions);
        self.memory_refused = Some(error.clone());
        self.report_refusal(error.clone());
        // Rings that lie there cannot run.
        let features = self.wanted.features.unwrap_or_default();
        for index in 0..self.rings.len() {
            let kept = self.rings.get(index).and_then(|ring| ring.kept.as_ref());
            if kept.is_some_and(|kept| !ring::lies_in(kept, features, &self.wanted.memory)) {
                self.ring_refused(index, error.clone());
            }
        }
    }

    fn ring_step_refused(&mut self, index: usize, start: u64, part: RingStep, error: Error) {
        let wanted = self.wanted.rings.get_mut(index);
        let Some(run) = wanted.and_then(|wanted| wanted.run.as_mut()) else {
            return;
        };
        // What is being stopped is stopped all the same.
        if run.start != start || part == RingStep::Disable {
            return;
        }
        let running = match &self.mode {
            Mode::Up(live) => live.actual.confirmed.rings.get(index).filter(|it| it.kick),
            _ => None,
        };
        match (part, running.and_then(|ring| ring.call)) {
            // The ring goes on with the descriptor that it has.
            (RingStep::Call(refused), Some(_)) if refused != run.call => {}
            (RingStep::Call(_), Some(call)) => {
                run.call = call;
                if let Some(slot) = self.rings.get_mut(index) {
                    slot.refused = Some(error.clone());
                    if let Some(kept) = &mut slot.kept {
                        kept.call = kept.call_before.take().unwrap_or_else(|| kept.call.take());
                    }
                }
                self.report_refusal(error);
            }
            _ => {
                if let (RingStep::Kick, Some(slot)) = (part, self.rings.get_mut(index)) {
                    // It was asked to run, and does not.
                    if let RingState::Running { .. } = slot.state {
                        slot.state = RingState::Starting;
                    }
                }
                self.ring_refused(index, error);
            }
        }
    }

    /// A ring cannot be started, and is not wanted any longer.
    pub(in crate::device) fn ring_refused(&mut self, index: usize, error: Error) {
        let error = error.ring(u32::try_from(index).unwrap_or(u32::MAX));
        // It ran before a loss, and the guest waits for it.
        let kept = self.rings.get(index).and_then(|slot| slot.kept.as_ref());
        let broken = kept.is_some_and(|kept| kept.has_run);
        self.unwant(index, Drain::Finish, None);
        if let Some(slot) = self.rings.get_mut(index) {
            slot.refused = Some(error.clone());
        }
        self.report_refusal(error);
        if broken && !std::mem::replace(&mut self.broken, true) {
            self.tell(EventKind::NeedsReset);
        }
    }

    pub(in crate::device) fn report_refusal(&mut self, error: Error) {
        let event = Event {
            error: Some(error),
            ..self.event(EventKind::Refused)
        };
        self.events.push(event);
        self.news();
    }
}
