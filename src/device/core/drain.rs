//! Rings that are being stopped. Back-ends exist that answer GET_VRING_BASE with
//! requests in flight, and complete them afterwards: where the used index is known, a
//! ring counts as stopped once it has reached the base.

use super::requests::{Placed, Unplaced};
use super::{Core, Live, Mode};
use crate::device::plan::{Drain, ResetBy, Settling};
use crate::device::ring::{Origin, Place, RingIndices, Unread, UsedCheck};
use crate::error::Error;
use crate::message::Request;
use crate::socket::Pollable;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the used index has to reach the base.
const GRACE: Duration = Duration::from_secs(1);
/// Between two looks at it: the first, and the longest.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(20);

/// A ring that is being stopped.
#[derive(Debug)]
pub(super) struct Draining {
    index: usize,
    check: UsedCheck,
    /// Its stop was answered, and its used index may not have reached the base.
    answered: Option<Answered>,
}

#[derive(Debug)]
struct Answered {
    base: u32,
    until: Option<Instant>,
    next_look: Instant,
    pause: Duration,
}

impl Draining {
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.answered.as_ref().map(|answered| answered.next_look)
    }
}

impl Live {
    /// A ring is to be stopped. `check`: how to see that it is drained.
    pub(super) fn will_stop(&mut self, index: usize, check: Option<UsedCheck>) {
        self.draining.retain(|ring| ring.index != index);
        self.draining.extend(check.map(|check| Draining {
            index,
            check,
            answered: None,
        }));
    }

    /// To read where a ring stands that is being stopped.
    pub(super) fn indices_of_stopping(&self, index: usize) -> Option<Arc<dyn RingIndices>> {
        let ring = self.draining.iter().find(|ring| ring.index == index)?;
        Some(Arc::clone(&ring.check.indices))
    }

    /// The device is reset. If a request does that, its acknowledgement says that the
    /// rings are stopped, whatever their used indices are.
    pub(super) fn is_reset(&mut self) {
        if self.actual.reset_by() != ResetBy::Stopping {
            self.draining.clear();
            self.actual.settling.clear();
        }
    }
}

impl Core {
    /// The back-end has answered the stop of a ring, in this way, with its base.
    pub(super) fn stop_answered(
        &mut self,
        (index, start): (usize, u64),
        drain: Drain,
        base: u32,
        now: Instant,
    ) {
        let Mode::Up(live) = &mut self.mode else {
            return;
        };
        let ring = live.draining.iter_mut().find(|ring| ring.index == index);
        let debt = ring.as_ref().and_then(|ring| ring.check.debt());
        if let (Drain::Finish, Some(ring)) = (drain, ring) {
            live.actual.settling.push(Settling { index, start });
            ring.answered = Some(Answered {
                base,
                until: now.checked_add(GRACE),
                next_look: now,
                pause: FIRST_LOOK,
            });
            return;
        }
        live.will_stop(index, None);
        let buffer = live.actual.confirmed.inflight.or(live.actual.sent.inflight);
        let unfinished = buffer.filter(|_| drain == Drain::Skip);
        self.stopped(index, Place { base, unfinished }, debt);
    }

    /// The bases of rings that are being stopped are not asked for any longer.
    pub(in crate::device) fn forget_stops(&mut self) {
        if let Mode::Up(live) = &mut self.mode {
            live.draining.clear();
        }
    }

    /// The rings whose used index is to be read now.
    pub(in crate::device) fn unread_drains(&self, now: Instant) -> Vec<Unplaced> {
        let draining = self.live().into_iter().flat_map(|live| &live.draining);
        let due = draining.filter(|ring| ring.next_look().is_some_and(|look| look <= now));
        let read = |ring: &Draining| Unplaced {
            index: ring.index,
            unread: Unread {
                origin: Origin::Used(None),
                indices: Arc::clone(&ring.check.indices),
            },
        };
        due.map(read).collect()
    }

    /// Used indices were read.
    pub(in crate::device) fn drained(&mut self, places: &[Placed], poll: &Pollable, now: Instant) {
        let Mode::Up(live) = &mut self.mode else {
            return;
        };
        let mut done = Vec::new();
        let mut late = None;
        for Draining {
            index,
            check,
            answered,
        } in &mut live.draining
        {
            let place = places.iter().find(|place| place.index == *index);
            let (Some(place), Some(answered)) = (place, answered) else {
                continue;
            };
            // An index that cannot be read says nothing.
            let base = answered.base;
            let unfinished = place.used.map_or(0, |used| check.unfinished(base, used));
            if unfinished == 0 {
                let base = place.used.map_or(base, |_| check.drained_base(base));
                done.push((*index, base, check.debt()));
            } else if answered.until.is_some_and(|until| until <= now) {
                late.get_or_insert((*index, base, unfinished));
            } else {
                answered.next_look = now.checked_add(answered.pause).unwrap_or(now);
                answered.pause = answered.pause.saturating_mul(2).min(LONGEST_LOOK);
            }
        }
        let is_done = |index: usize| done.iter().any(|(at, ..)| *at == index);
        live.draining.retain(|ring| !is_done(ring.index));
        live.actual.settling.retain(|ring| !is_done(ring.index));
        for (index, base, debt) in done {
            self.stopped(index, Place::at(base), debt);
            self.news();
        }
        if let Some((index, base, unfinished)) = late {
            let text = format!(
                "the back-end has stopped the ring at {base:#x} with {unfinished} requests \
                 unfinished, and may still write guest memory"
            );
            let error = Error::protocol(text)
                .of(Request::GetVringBase)
                .ring(u32::try_from(index).unwrap_or(u32::MAX))
                .value(u64::from(unfinished));
            self.lose(error, false, poll, now);
        }
    }
}
