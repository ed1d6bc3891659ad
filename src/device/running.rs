//! Rings: started, stopped, reset.

use super::core::{Core, Mode, Placed, Stood};
use super::plan::{Drain, RingWanted};
use super::ring::{self, Base, CanTell, Kept, Origin, Ring};
use super::{Device, busy, held};
use crate::backend_client::Timeout;
use crate::connection::ThreadMark;
use crate::error::{Error, Kind, Result};
use crate::message::virtio;
use crate::socket;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

/// How rings are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopMode {
    /// The device finishes what it has taken (GET_VRING_BASE).
    #[default]
    Drain,
    /// It does not, where that was agreed (GET_VRING_BASE_SKIP_DRAIN); what is left
    /// stands in the in-flight buffer. Otherwise as `Drain`.
    SkipDrain,
    /// The connection is ended, and nothing is known of where the rings stood.
    Abandon,
}

/// What is left of rings that were stopped, or of memory that was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// No back-end uses it any more. Otherwise guest memory may still be written.
    pub quiesced: bool,
    /// Where each of the rings stood is known.
    pub bases_valid: bool,
}

/// This thread asks the caller where rings stand; no longer, whatever happens to it.
struct Asking<'a>(&'a Device, ThreadMark);

impl<'a> Asking<'a> {
    fn begin(device: &'a Device) -> Self {
        let here = ThreadMark::here();
        device.askers().push(here);
        Self(device, here)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asking = self.0.askers();
        if let Some(at) = asking.iter().position(|mark| *mark == self.1) {
            asking.swap_remove(at);
        }
    }
}

impl Device {
    /// Starts rings that do not run, all or none of them.
    pub fn start(&self, rings: &[Ring<'_>]) -> Result<()> {
        let asking = Asking::begin(self);
        let can_tell: Vec<_> = rings.iter().map(CanTell::of).collect();
        drop(asking);
        let mut core = self.lock();
        if core.wanted.held {
            return Err(held());
        }
        let Some(features) = core.wanted.features else {
            let text = "features come first";
            return Err(Error::new(Kind::State, text));
        };
        let packed = features & 1_u64.wrapping_shl(virtio::F_RING_PACKED) != 0;
        let mut starts = Vec::with_capacity(rings.len());
        for (ring, can_tell) in rings.iter().zip(can_tell) {
            let kept = self
                .keep(&core, ring, can_tell, features, packed)
                .map_err(|error| error.ring(ring.index))?;
            let index = usize::try_from(ring.index).unwrap_or(usize::MAX);
            if starts.iter().any(|(other, _)| *other == index) {
                return Err(Error::invalid("a ring is there twice").ring(ring.index));
            }
            starts.push((index, kept));
        }
        if !rings.is_empty() && rings.iter().all(|ring| ring.base == Base::New) {
            core.drop_stale_buffer();
        }
        if !core.buffer_holds(&starts) {
            let text =
                "more or larger rings than the in-flight buffer of those that run has room for";
            return Err(busy(text));
        }
        for (index, kept) in starts {
            core.starts = core.starts.saturating_add(1);
            let start = core.starts;
            let wanted = RingWanted {
                start,
                call: start,
                err: kept.err.is_some(),
                size: kept.size,
            };
            let Core {
                kept: all,
                wanted: want,
                ..
            } = &mut *core;
            if let (Some(place), Some(want)) = (all.get_mut(index), want.rings.get_mut(index)) {
                *place = Some(kept);
                *want = Some(wanted);
            }
        }
        self.moved(core);
        Ok(())
    }

    /// Checks a ring, and duplicates what is kept of it.
    pub(super) fn keep(
        &self,
        core: &Core,
        ring: &Ring<'_>,
        can_tell: CanTell,
        features: u64,
        packed: bool,
    ) -> Result<Kept> {
        let index = usize::try_from(ring.index).unwrap_or(usize::MAX);
        let Some(place) = core.kept.get(index) else {
            let rings = core.kept.len();
            return Err(Error::invalid(format!("the device has {rings} rings")));
        };
        if place.is_some() {
            return Err(busy("the ring runs already"));
        }
        ring::check(ring, features, &core.wanted.memory)?;
        let origin = match ring.base {
            Base::New => Origin::At(ring::new_base(packed)),
            Base::At(base) if !packed && base > u32::from(u16::MAX) => {
                return Err(Error::invalid(
                    "base has more than 16 bits, and the ring is split",
                ));
            }
            Base::At(base) => Origin::At(base),
            Base::Resume => Origin::Stopped,
        };
        let stops = core.live().and_then(|live| live.actual.rings.get(index));
        let (origin, buffered) = match (origin, core.stood.get(index)) {
            (Origin::Stopped, Some(Stood::At(base))) => (Origin::At(*base), false),
            (Origin::Stopped, Some(Stood::Buffered(base))) => (Origin::At(*base), true),
            (Origin::Stopped, _) if stops.is_some_and(|ring| ring.kick) => (Origin::Stopped, false),
            (Origin::Stopped, _) => {
                let text = "where the ring was stopped is not known";
                return Err(Error::new(Kind::State, text));
            }
            (origin, _) => (origin, false),
        };
        let keep = |fd: BorrowedFd<'_>| socket::keep(fd, "a descriptor of the ring").map(Arc::new);
        Ok(Kept {
            addr: ring::addr_of(ring),
            size: ring.size,
            origin,
            kick: keep(ring.kick)?,
            call: ring.call.map(keep).transpose()?,
            err: ring.err.map(keep).transpose()?,
            indices: ring.indices.clone(),
            can_tell,
            buffered,
        })
    }

    /// Gives a ring another descriptor for the device to write, also while it runs.
    pub fn set_call(&self, index: u32, call: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut core = self.lock();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let call = call
            .map(|fd| socket::keep(fd, "call").map(Arc::new))
            .transpose()
            .map_err(|error| error.ring(index))?;
        core.starts = core.starts.saturating_add(1);
        let number = core.starts;
        let Core { kept, wanted, .. } = &mut *core;
        match (kept.get_mut(at), wanted.rings.get_mut(at)) {
            (Some(Some(kept)), Some(Some(wanted))) => {
                kept.call = call;
                wanted.call = number;
            }
            _ => {
                let text = "the ring does not run";
                return Err(Error::new(Kind::State, text).ring(index));
            }
        }
        self.moved(core);
        Ok(())
    }

    /// Where rings stand that were lost, and are not to go on: read now, as they cannot
    /// be any more once they are stopped. The lock, and what was read. Not of a ring
    /// that is stopped by who is asked for it at this moment.
    fn left_behind(&self, named: impl Fn(usize) -> bool) -> (MutexGuard<'_, Core>, Vec<Placed>) {
        let here = ThreadMark::here();
        let mut core = self.unread(self.lock());
        loop {
            let mut left = core.left_behind();
            left.retain(|(index, ..)| named(*index) && !core.reads(here, *index));
            if left.is_empty() {
                return (core, Vec::new());
            }
            let lives = core.lives;
            let places = self.read_places(core, left);
            core = self.unread(self.lock());
            // Another back-end may have moved them.
            if core.lives == lives {
                return (core, places);
            }
        }
    }

    /// Stops rings; `None` for all. Never fails: what is left is in the result, and
    /// later in [`quiet`](Self::quiet).
    pub fn stop(&self, rings: Option<&[u32]>, mode: StopMode) -> Quiet {
        let named = |index: usize| {
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            rings.is_none_or(|rings| rings.contains(&number))
        };
        let (mut core, places) = self.left_behind(named);
        core.wanted.drain = match mode {
            StopMode::SkipDrain => Drain::Skip,
            StopMode::Drain | StopMode::Abandon => Drain::Finish,
        };
        for index in (0..core.kept.len()).filter(|index| named(*index)) {
            let lost_at = core.base_of(index, &places);
            core.unwant(index, lost_at);
        }
        if mode == StopMode::Abandon {
            let error = Error::new(Kind::Canceled, "the caller abandoned the connection");
            core.lose(error, false, &self.traffic, Instant::now());
        }
        self.moved(core);
        self.quiet()
    }

    /// Whether what was stopped or taken away is really out of use.
    pub fn quiet(&self) -> Quiet {
        Self::quiet_of(&self.lock())
    }

    /// Waits until it is, or until it cannot be waited for any longer.
    pub fn wait_quiet(&self, timeout: Timeout) -> Quiet {
        // Whatever ends the wait early, what is left is told.
        let _ = self.wait_until(timeout, |core| {
            Self::quiet_of(core).quiesced.then_some(Ok(()))
        });
        self.quiet()
    }

    fn quiet_of(core: &Core) -> Quiet {
        let rings = core.live().is_some_and(|live| {
            let rings = live.actual.rings.iter().zip(&core.wanted.rings);
            rings.into_iter().any(|(actual, wanted)| {
                actual.start.is_some() && wanted.map(|it| it.start) != actual.start
            })
        });
        let memory = core.live().is_some_and(|live| {
            let sent = live.actual.memory.as_ref();
            sent.is_some_and(|sent| sent.stale(&core.wanted.memory)) || live.memory_under_way()
        });
        let fencing = matches!(core.mode, Mode::Fencing(..)) || core.unfenced;
        let stopped = core.kept.iter().zip(&core.stood);
        Quiet {
            quiesced: !(rings || memory || fencing),
            bases_valid: stopped
                .filter(|(kept, _)| kept.is_none())
                .all(|(_, stood)| *stood != Stood::Unknown),
        }
    }

    /// Where a ring stood when it was stopped.
    pub fn vring_base(&self, index: u32) -> Result<u32> {
        let core = self.lock();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        match (core.stood.get(at), core.kept.get(at)) {
            (Some(Stood::At(base) | Stood::Buffered(base)), Some(None)) => Ok(*base),
            _ => {
                let text = "where the ring was stopped is not known";
                Err(Error::new(Kind::State, text).ring(index))
            }
        }
    }

    /// Resets the device, as its driver does: no ring runs, no feature is
    /// acknowledged. Memory and the connection stay. Never fails.
    pub fn reset(&self) -> Quiet {
        let mut core = self.unread(self.lock());
        core.wanted.resets = core.wanted.resets.saturating_add(1);
        core.wanted.features = None;
        core.wanted.held = false;
        core.wanted.drain = Drain::Skip;
        core.wanted.rings.fill(None);
        core.kept.iter_mut().for_each(|kept| *kept = None);
        core.stood.fill(Stood::default());
        // What is started after this is new.
        core.recovering = false;
        core.buffer = None;
        if !core.writes.is_empty() {
            core.writes.clear();
            // The guest has to read what the back-end has.
            core.changed.store(true, Ordering::Relaxed);
        }
        self.moved(core);
        self.quiet()
    }
}
