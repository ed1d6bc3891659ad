//! The in-flight buffer: which rings need it, and when another may take its place.
//!
//! A ring that starts anew must not get a buffer with requests of its past, and one that
//! has unfinished requests in a buffer must not get another. What a call asks for is
//! checked at once. What a loss makes of it later is settled by
//! [`keep_buffer`](Core::keep_buffer): a start that would cost another ring its requests
//! is refused.

use super::requests::lost_track;
use super::{Core, Mode};
use crate::device::busy;
use crate::device::plan::{Drain, Held};
use crate::device::ring::{Kept, Origin, RingState};
use crate::error::{Error, Result};
use crate::message::ProtocolFeatures;

impl Core {
    fn held(&self) -> Option<Held> {
        self.buffer.as_ref().map(|buffer| buffer.held)
    }

    /// The generation of the buffer that there is.
    pub(super) fn generation(&self) -> Option<u64> {
        self.held().map(|held| held.generation)
    }

    /// The back-end in use has this buffer.
    fn has_handed_over(&self, generation: u64) -> bool {
        let live = self.live();
        live.is_some_and(|live| live.actual.sent.inflight == Some(generation))
    }

    /// The ring is being stopped, and its unfinished requests will be in this buffer.
    fn skips_the_drain_of(&self, index: usize, generation: u64) -> bool {
        let stops = self.rings.get(index).map(|ring| &ring.state);
        let how = self.wanted.rings.get(index).map(|ring| ring.stop);
        let skip = ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN;
        matches!(stops, Some(RingState::Stopping { .. }))
            && how == Some(Drain::Skip)
            && self.has_handed_over(generation)
            && self.live().is_some_and(|live| live.actual.agreed(skip))
    }

    /// Requests of the last run of this ring are in the buffer of this generation, or
    /// will be once it has stopped.
    fn leaves_requests_in(&self, index: usize, generation: u64) -> bool {
        self.rings.get(index).is_some_and(|ring| {
            ring.state.has_requests_in(generation) || self.skips_the_drain_of(index, generation)
        })
    }

    /// The ring has unfinished requests in this buffer that it, or a later start of it,
    /// goes on with.
    fn has_entries(&self, index: usize, generation: u64) -> bool {
        let handed = self.has_handed_over(generation);
        self.rings.get(index).is_some_and(|ring| match &ring.kept {
            // A ring that runs is drained before the buffer is replaced.
            Some(_) if handed && matches!(ring.state, RingState::Running { .. }) => false,
            Some(kept) => {
                let resumes =
                    kept.origin == Origin::Stopped && self.leaves_requests_in(index, generation);
                resumes || kept.unfinished() == Some(generation)
            }
            None => match &ring.state {
                RingState::Unfinished { buffer, .. } => *buffer == generation,
                RingState::Lost { buffer, unread } => {
                    unread.is_some() && *buffer == Some(generation)
                }
                _ => self.skips_the_drain_of(index, generation),
            },
        })
    }

    /// The ring uses this buffer, or goes on with what is in it.
    fn depends_on(&self, index: usize, generation: u64) -> bool {
        let handed = self.has_handed_over(generation);
        let uses = self.rings.get(index).is_some_and(|ring| {
            let goes_on = ring.kept.is_some() && ring.is_used();
            goes_on || (ring.kept.is_none() && matches!(ring.state, RingState::Stopping { .. }))
        });
        (handed && uses) || self.has_entries(index, generation)
    }

    /// Whether these rings may start with the in-flight buffer that there is, or with
    /// another one in its place.
    pub(in crate::device) fn check_buffer(&mut self, starts: &[(usize, Kept)]) -> Result<()> {
        let Some(held) = self.held() else {
            return Ok(());
        };
        let generation = held.generation;
        let handed = self.has_handed_over(generation);
        let goes_on = |kept: &Kept| {
            kept.unfinished() == Some(generation) || (handed && kept.origin == Origin::Stopped)
        };
        let start = |index: usize| starts.iter().find(|(at, _)| *at == index);
        let mut rings = 0..self.rings.len();
        let dependent = rings.find(|index| match start(*index) {
            Some((_, kept)) => goes_on(kept),
            None => self.depends_on(*index, generation),
        });
        let mut anew = starts.iter().filter(|(_, kept)| !goes_on(kept));
        let stale = anew.find(|(index, _)| self.leaves_requests_in(*index, generation));
        match (stale, dependent) {
            (Some((ring, _)), Some(other)) => return Err(has_unfinished(*ring, other)),
            (Some(_), None) => self.drop_buffer(),
            (None, _) => {}
        }
        let packed = self.packed();
        let fits = |(index, kept): &(usize, Kept)| fits(held, packed, *index, kept.size);
        if stale.is_some() || starts.iter().all(fits) {
            return Ok(());
        }
        let mut rings = 0..self.rings.len();
        let undrained = rings.find(|index| match start(*index) {
            Some((_, kept)) if kept.origin == Origin::Stopped => {
                self.leaves_requests_in(*index, generation)
            }
            Some((_, kept)) => kept.unfinished() == Some(generation),
            None => self.has_entries(*index, generation),
        });
        match undrained {
            Some(ring) => Err(too_small(held, ring)),
            // Rings that run are drained, and go on with a larger one.
            None => Ok(()),
        }
    }

    /// Rings have left unfinished requests in the buffer: starts that need another one,
    /// or that must not get this one, are refused. If no ring needs it, another takes its
    /// place.
    pub(in crate::device) fn keep_buffer(&mut self) {
        let Some(held) = self.held() else {
            return;
        };
        let generation = held.generation;
        let indices = || 0..self.rings.len();
        let kept = |index: usize| self.rings.get(index)?.kept.as_ref();
        let goes_on = |kept: &Kept| {
            kept.unfinished() == Some(generation)
                || matches!(kept.origin, Origin::Stopped | Origin::Unknown)
        };
        let anew: Vec<usize> = indices()
            .filter(|index| kept(*index).is_some_and(|kept| !goes_on(kept)))
            .collect();
        let stale: Vec<usize> = anew
            .iter()
            .copied()
            .filter(|index| {
                let ring = self.rings.get(*index);
                ring.is_some_and(|ring| ring.state.has_requests_in(generation))
            })
            .collect();
        let mut others = indices().filter(|index| !stale.contains(index));
        let dependent = others.find(|index| self.depends_on(*index, generation));
        if !stale.is_empty() && dependent.is_none() {
            self.drop_buffer();
            return;
        }
        // A ring whose place has to be read first may turn out to be drained.
        let unread = |index: usize| {
            let ring = self.rings.get(index);
            ring.is_some_and(|ring| {
                ring.state.unread().is_some() || ring.kept.as_ref().is_some_and(Kept::unplaced)
            })
        };
        let needs = |index: &usize| self.has_entries(*index, generation) && !unread(*index);
        let undrained = indices().find(needs);
        let packed = self.packed();
        let size = |index: usize| kept(index).map(|kept| kept.size).unwrap_or_default();
        let large: Vec<usize> = anew
            .into_iter()
            .filter(|index| !stale.contains(index) && !fits(held, packed, *index, size(*index)))
            .collect();
        if let Some(other) = dependent {
            for ring in stale {
                self.ring_refused(ring, has_unfinished(ring, other));
            }
        }
        if let Some(other) = undrained {
            for ring in large {
                self.ring_refused(ring, too_small(held, other));
            }
        }
    }

    /// Another buffer is about to be made. Fails if a ring has unfinished requests in the
    /// one that there is: the plan never asks for that.
    pub(super) fn check_replaced(&self) -> Result<()> {
        let needed = self.generation().is_some_and(|generation| {
            (0..self.rings.len()).any(|index| self.has_entries(index, generation))
        });
        match needed {
            false => Ok(()),
            true => Err(lost_track()),
        }
    }

    fn drop_buffer(&mut self) {
        self.buffer = None;
        if let Mode::Up(live) = &mut self.mode {
            live.actual.drop_buffer();
        }
    }
}

/// Whether the buffer can serve a ring. Its layout depends on the kind of the rings.
fn fits(held: Held, packed: bool, index: usize, size: u32) -> bool {
    held.key.packed == packed && held.key.fits(index, size)
}

fn has_unfinished(ring: usize, other: usize) -> Error {
    busy(format!(
        "ring {ring} has unfinished requests of its last run in the in-flight buffer, which ring \
         {other} uses: resume ring {ring} (VUF_RING_BASE_RESUME) and let it complete them, stop \
         the other rings and start all anew in one call, or reset the device"
    ))
}

fn too_small(held: Held, ring: usize) -> Error {
    busy(format!(
        "the in-flight buffer has room for {} rings of {} descriptors, and ring {ring} has \
         unfinished requests in it: start larger or further rings once ring {ring} runs again, or \
         open the device with a larger max_ring_size and num_rings",
        held.key.num_queues, held.key.queue_size
    ))
}
