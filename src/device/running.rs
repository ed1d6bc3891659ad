//! Rings: started, stopped, reset.

use super::core::{Core, Placed};
use super::plan::{Drain, RingWanted, Run};
use super::ring::{self, Base, CanTell, Kept, Origin, Place, Ring, RingState};
use super::{Device, busy, held};
use crate::backend_client::Timeout;
use crate::connection::ThreadMark;
use crate::error::{Error, Kind, Result};
use crate::message::virtio;
use crate::room::room_for;
use crate::socket;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

/// Bits of the device status (virtio specification, "Device Status Field").
const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_NEEDS_RESET: u8 = 64;

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
        room_for::<(Kept, CanTell)>(rings.len())?;
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
        core.check_buffer(&starts)?;
        for (index, kept) in starts {
            core.starts = core.starts.saturating_add(1);
            let start = core.starts;
            let run = Run {
                start,
                call: start,
                err: kept.err.is_some(),
                size: kept.size,
            };
            let Core { rings, wanted, .. } = &mut *core;
            if let (Some(slot), Some(wanted)) = (rings.get_mut(index), wanted.rings.get_mut(index))
            {
                slot.want(kept);
                *wanted = RingWanted {
                    run: Some(run),
                    ..*wanted
                };
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
        let Some(slot) = core.rings.get(index) else {
            let rings = core.rings.len();
            return Err(Error::invalid(format!("the device has {rings} rings")));
        };
        if slot.kept.is_some() {
            return Err(busy("the ring runs already"));
        }
        core.check_ring_exists(index)?;
        ring::check(ring, features, &core.wanted.memory)?;
        let max = core.options.max_ring_size;
        if max != 0 && ring.size > max {
            let size = ring.size;
            let text = format!("a ring of {size} descriptors, and max_ring_size is {max}");
            return Err(Error::invalid(text));
        }
        let at = |base| Origin::At(Place::at(base));
        let stopping = matches!(slot.state, RingState::Stopping { .. });
        let origin = match ring.base {
            Base::New => at(ring::new_base(packed)),
            Base::At(base) if !packed && base > u32::from(u16::MAX) => {
                return Err(Error::invalid(
                    "base has more than 16 bits, and the ring is split",
                ));
            }
            // The base that the ring was stopped at, which is the same as resuming it.
            Base::At(base) => match core.base_of_stopped(index) {
                Ok(stopped) if stopped.base == base => Origin::At(stopped),
                Err(error) if slot.state.is_unfinished_at(base) => return Err(error),
                _ => at(base),
            },
            Base::Resume => core.resumed(index, can_tell)?,
        };
        // The index of a ring that is still being stopped moves. That of a new ring is 0.
        let debt = match origin {
            Origin::At(Place {
                unfinished: None, ..
            }) if stopping => (ring.base == Base::New).then_some(0),
            origin => can_tell.debt(origin, packed),
        };
        let keep = |fd: BorrowedFd<'_>, name| socket::keep_notifier(fd, name).map(Arc::new);
        Ok(Kept {
            addr: ring::addr_of(ring),
            size: ring.size,
            origin,
            kick: keep(ring.kick, "kick of the ring")?,
            call: (ring.call.map(|fd| keep(fd, "call of the ring"))).transpose()?,
            err: (ring.err.map(|fd| keep(fd, "err of the ring"))).transpose()?,
            call_before: None,
            indices: ring.indices.clone(),
            can_tell,
            debt,
            has_run: false,
        })
    }

    /// Gives a ring another descriptor for the device to write, also while it runs.
    pub fn set_call(&self, index: u32, call: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut core = self.lock();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let call = call
            .map(|fd| socket::keep_notifier(fd, "call").map(Arc::new))
            .transpose()
            .map_err(|error| error.ring(index))?;
        core.starts = core.starts.saturating_add(1);
        let number = core.starts;
        let Core { rings, wanted, .. } = &mut *core;
        let slot = rings.get_mut(at);
        let run = wanted.rings.get_mut(at).and_then(|it| it.run.as_mut());
        match (slot, run) {
            (Some(slot), Some(run)) => {
                if let Some(kept) = &mut slot.kept {
                    let before = std::mem::replace(&mut kept.call, call);
                    kept.call_before.get_or_insert(before);
                }
                slot.refused = None;
                run.call = number;
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
            left.retain(|ring| named(ring.index) && !core.reads(here, ring.index));
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
        let drain = match mode {
            StopMode::SkipDrain => Drain::Skip,
            StopMode::Drain | StopMode::Abandon => Drain::Finish,
        };
        for index in (0..core.rings.len()).filter(|index| named(*index)) {
            let lost_at = core.base_of(index, &places);
            core.unwant(index, drain, lost_at);
        }
        core.keep_buffer();
        if mode == StopMode::Abandon {
            // Their bases are not asked for.
            core.forget_stops();
            let error = Error::new(Kind::Canceled, "the caller abandoned the connection");
            core.lose(error, false, &self.traffic, self.now());
        }
        self.moved(core);
        self.quiet()
    }

    /// Whether what was stopped or taken away is really out of use.
    pub fn quiet(&self) -> Quiet {
        self.lock().quiet()
    }

    /// Waits until it is, or until it cannot be waited for any longer.
    pub fn wait_quiet(&self, timeout: Timeout) -> Quiet {
        // Whatever ends the wait early, what is left is told.
        let _ = self.wait_until(timeout, |core| core.quiet().quiesced.then_some(Ok(())));
        self.quiet()
    }

    /// The base at which a ring was stopped.
    pub fn vring_base(&self, index: u32) -> Result<u32> {
        let core = self.lock();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if core.rings.get(at).is_some_and(|ring| ring.kept.is_some()) {
            let text = "the ring is not stopped";
            return Err(Error::new(Kind::State, text).ring(index));
        }
        let stopped = core.base_of_stopped(at);
        stopped
            .map(|place| place.base)
            .map_err(|error| error.ring(index))
    }

    /// The device status that the guest reads, if its driver has `written` this one:
    /// with DEVICE_NEEDS_RESET where rings cannot go on, and not 0 before a reset is
    /// done and no back-end uses the rings.
    pub fn virtio_status(&self, written: u8) -> u8 {
        let core = self.lock();
        match written {
            0 if core.rings_are_quiet() => 0,
            0 => STATUS_ACKNOWLEDGE,
            _ if core.wanted.held || core.broken => written | STATUS_NEEDS_RESET,
            _ => written,
        }
    }

    /// Resets the device, as its driver does: no ring runs, no feature is
    /// acknowledged. Memory and the connection stay. Never fails.
    pub fn reset(&self) -> Quiet {
        let mut core = self.unread(self.lock());
        core.wanted.resets = core.wanted.resets.saturating_add(1);
        core.wanted.features = None;
        core.wanted.held = false;
        core.broken = false;
        core.reset_rings();
        // What is started after this is new.
        core.recovering = None;
        core.events.forget_recovery();
        if !core.writes.is_empty() {
            core.writes.clear();
            // The guest has to read what the back-end has.
            core.changed.store(true, Ordering::Relaxed);
        }
        self.moved(core);
        self.quiet()
    }
}
