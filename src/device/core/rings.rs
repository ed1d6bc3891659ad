//! What is known of each ring, and what may be done with the in-flight buffer.

use super::requests::{Placed, Unplaced};
use super::{Core, Live, Mode};
use crate::device::access::Access;
use crate::device::plan::{Drain, RingWanted};
use crate::device::ring::{CanTell, Origin, Place, RingSlot, RingState, Unread};
use crate::error::{Error, Kind, Result};
use crate::message::ProtocolFeatures;

impl Core {
    /// A ring is no longer wanted. `lost_at`: its base, if its back-end was lost and that
    /// is known, and whether no request of it is unfinished.
    pub(in crate::device) fn unwant(
        &mut self,
        index: usize,
        stop: Drain,
        lost_at: Option<(u32, bool)>,
    ) {
        let packed = self.packed();
        let may_run = self.may_run(index);
        let current = self.generation();
        let fenced = self.old().next().is_some() && !self.wanted.held;
        let (Some(slot), Some(wanted)) =
            (self.rings.get_mut(index), self.wanted.rings.get_mut(index))
        else {
            return;
        };
        let run = wanted.run.take();
        slot.refused = None;
        let Some(kept) = slot.kept.take().filter(|_| run.is_some()) else {
            return;
        };
        match &mut slot.state {
            RingState::Running { began } => {
                wanted.stop = stop;
                let (began, then) = (*began, None);
                slot.state = RingState::Stopping { began, then };
                if let Mode::Up(live) = &mut self.mode {
                    live.will_stop(index, kept.used_check(packed));
                }
                return;
            }
            // Only the run before it still has to stop.
            RingState::Stopping { then, .. } if may_run => {
                if let Origin::At(place) = kept.origin {
                    *then = Some(place);
                }
                return;
            }
            _ => {}
        }
        // It never got to run, or not again.
        let of_its_past = current.is_some_and(|current| {
            slot.state.has_requests_in(current) && kept.unfinished() != Some(current)
        });
        if of_its_past && !may_run {
            // A start anew that was given up does not undo what its past has left.
            return;
        }
        let unread = kept.unread().filter(|_| fenced && lost_at.is_none());
        let lost = |buffer| RingState::Lost { buffer, unread };
        slot.state = match (kept.origin, lost_at) {
            (Origin::At(place), _) => RingState::at(place),
            (Origin::Used(buffer), Some((base, drained))) => RingState::at(Place {
                base,
                unfinished: buffer.filter(|_| !drained),
            }),
            (Origin::Used(buffer), None) => lost(buffer),
            (Origin::Available, Some((base, _))) => RingState::Stopped { base },
            (Origin::Available, None) => lost(None),
            (Origin::Stopped | Origin::Unknown, _) => return,
        };
    }

    /// The guest has reset the device: nothing of any ring goes on.
    pub(in crate::device) fn reset_rings(&mut self) {
        let packed = self.packed();
        for (index, slot) in self.rings.iter_mut().enumerate() {
            let before = std::mem::take(slot);
            if let (RingState::Running { .. }, Some(kept)) = (before.state, before.kept) {
                if let Mode::Up(live) = &mut self.mode {
                    live.will_stop(index, kept.used_check(packed));
                }
            }
        }
        self.wanted.rings.fill(RingWanted {
            run: None,
            stop: Drain::Skip,
        });
        self.buffer = None;
        if let Mode::Up(live) = &mut self.mode {
            live.is_reset();
        }
    }

    /// The back-end in use may use this ring.
    fn may_run(&self, index: usize) -> bool {
        self.live().is_some_and(|live| live.actual.may_run(index))
    }

    /// A ring is stopped here, and nothing of it is under way.
    pub(super) fn stopped(&mut self, index: usize, place: Place, debt: Option<u16>) {
        let Some(slot) = self.rings.get_mut(index) else {
            return;
        };
        let mut at = place;
        if let RingState::Stopping { then, .. } = slot.state {
            at = then.unwrap_or(place);
            slot.state = RingState::at(at);
        }
        if let Some(kept) = slot.kept.as_mut() {
            if kept.origin == Origin::Stopped {
                kept.origin = Origin::At(at);
                kept.debt = debt.or(kept.debt);
            }
        }
        if place.unfinished.is_some() {
            self.keep_buffer();
        }
    }

    /// The base from which a stopped ring goes on, and the in-flight buffer with the
    /// requests that it goes on with.
    pub(in crate::device) fn base_of_stopped(&self, index: usize) -> Result<Place> {
        let unknown = |text: &'static str| Err(Error::new(Kind::State, text));
        match self.rings.get(index).map(|ring| &ring.state) {
            Some(RingState::Stopped { base }) => Ok(Place::at(*base)),
            Some(RingState::Unfinished { base, buffer }) => {
                let (base, buffer) = (*base, *buffer);
                if self.generation() != Some(buffer) {
                    return unknown(
                        "the ring has unfinished requests in an in-flight buffer that was replaced",
                    );
                }
                let live = self
                    .live()
                    .filter(|live| live.actual.sent.protocol.is_some());
                let tracks = ProtocolFeatures::INFLIGHT_SHMFD;
                if live.is_some_and(|live| !live.actual.agreed(tracks)) {
                    return unknown(
                        "the ring has unfinished requests in an in-flight buffer, and this \
                         back-end does not offer INFLIGHT_SHMFD",
                    );
                }
                Ok(Place {
                    base,
                    unfinished: Some(buffer),
                })
            }
            Some(RingState::New) | None => unknown("the ring was never started"),
            Some(RingState::Starting | RingState::Running { .. }) => {
                unknown("the ring is not stopped")
            }
            Some(RingState::Stopping { .. }) => unknown("the ring is being stopped"),
            Some(RingState::Lost {
                unread: Some(_), ..
            }) => unknown("the base is read once the back-end that was lost is gone"),
            Some(RingState::Lost { .. }) => {
                unknown("the back-end was lost while the ring ran, and how far it got is not known")
            }
        }
    }

    /// From where a stopped ring goes on. `can_tell`: what its indices are known to say.
    pub(in crate::device) fn resumed(&self, index: usize, can_tell: CanTell) -> Result<Origin> {
        match self.rings.get(index).map(|ring| &ring.state) {
            Some(RingState::Stopping { then, .. }) => Ok(then.map_or(Origin::Stopped, Origin::At)),
            // The next back-end gets it after the place was read.
            Some(RingState::Lost {
                unread: Some(unread),
                ..
            }) if self.live().is_none() && can_tell.knows(unread.origin) => Ok(unread.origin),
            _ => self.base_of_stopped(index).map(Origin::At),
        }
    }

    /// Nothing is lost by resuming a stopped ring, where there is anything to resume.
    pub(super) fn has_base(&self, index: usize) -> bool {
        let state = self.rings.get(index).map(|ring| &ring.state);
        matches!(state, Some(RingState::New)) || self.base_of_stopped(index).is_ok()
    }

    /// A ring that was to be stopped never ran, as its start was refused: it is where it
    /// was to begin.
    pub(super) fn never_ran(&mut self, index: usize) {
        if let Mode::Up(live) = &mut self.mode {
            live.will_stop(index, None);
        }
        let Some(slot) = self.rings.get_mut(index) else {
            return;
        };
        let RingState::Stopping { began, then } = slot.state else {
            return;
        };
        let place = then.unwrap_or(began);
        slot.state = RingState::at(place);
        if let Some(kept) = slot.kept.as_mut() {
            if kept.origin == Origin::Stopped {
                kept.origin = Origin::At(place);
            }
        }
    }

    /// Takes down what becomes of the rings as their back-end is lost. `from`: where
    /// those go on that are to.
    pub(super) fn lose_rings(&mut self, live: &Live, access: &Access, from: Option<Origin>) {
        let actual = &live.actual;
        let rest = self.origin_after_loss(actual);
        let buffer = actual.sent.inflight.or(actual.confirmed.inflight);
        let of_buffer = |origin| match origin {
            Origin::Used(_) => Origin::Used(buffer),
            origin => origin,
        };
        for index in 0..self.rings.len() {
            let goes_on = self.goes_on(index, access);
            let Some(slot) = self.rings.get_mut(index) else {
                continue;
            };
            if let Some(kept) = &mut slot.kept {
                kept.call_before = None;
            }
            if access.run(index).is_none() {
                if let RingState::Starting = slot.state {
                    slot.state = match slot.kept.as_ref().map(|kept| kept.origin) {
                        Some(Origin::At(place)) => RingState::at(place),
                        _ => RingState::Lost {
                            buffer: None,
                            unread: None,
                        },
                    };
                }
                self.never_ran(index);
                continue;
            }
            let unread = match slot.state {
                RingState::Stopping { then: None, .. } if slot.kept.is_none() => {
                    let indices = live.indices_of_stopping(index);
                    indices.zip(rest).map(|(indices, origin)| Unread {
                        origin: of_buffer(origin),
                        indices,
                    })
                }
                _ => None,
            };
            // Of a run before a reset nothing goes on.
            if let RingState::Running { .. } | RingState::Stopping { .. } = slot.state {
                slot.state = RingState::Lost { buffer, unread };
            }
            if let (true, Some(kept)) = (goes_on, &mut slot.kept) {
                kept.origin = from.map_or(Origin::Unknown, of_buffer);
                kept.has_run = true;
            }
        }
        self.keep_buffer();
    }

    /// Rings that are stopped and whose base is to be read, which no back-end moves any
    /// longer.
    pub(in crate::device) fn unread_bases(&self) -> Vec<Unplaced> {
        if self.old().next().is_some() {
            return Vec::new();
        }
        let rings = self.rings.iter().enumerate();
        let unread = |(index, ring): (usize, &RingSlot)| {
            let unread = ring.state.unread()?.clone();
            Some(Unplaced { index, unread })
        };
        rings.filter_map(unread).collect()
    }

    /// Takes down their bases.
    pub(in crate::device) fn place_unread(&mut self, places: &[Placed]) {
        for read in places {
            let base = self.base_of(read.index, places);
            let Some(slot) = self.rings.get_mut(read.index) else {
                continue;
            };
            let RingState::Lost { buffer, unread } = &mut slot.state else {
                continue;
            };
            let Some(unread) = unread.take_if(|unread| unread.origin == read.origin) else {
                continue;
            };
            if let Some((base, drained)) = base {
                let unfinished = match unread.origin {
                    Origin::Used(_) => buffer.filter(|_| !drained),
                    _ => None,
                };
                slot.state = RingState::at(Place { base, unfinished });
            }
        }
        self.keep_buffer();
        self.news();
    }

    /// Whether a ring that ran is to go on from its place.
    pub(super) fn goes_on(&self, index: usize, access: &Access) -> bool {
        let runs = access.run(index);
        let kept = self.rings.get(index).and_then(|ring| ring.kept.as_ref());
        let same = runs == self.wanted.start(index);
        runs.is_some() && kept.is_some_and(|kept| same || kept.origin == Origin::Stopped)
    }
}
