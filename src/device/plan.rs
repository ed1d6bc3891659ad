//! The canonical order: from what is wanted, and what was sent to a back-end, the next
//! request. First start, hot-plug, a new call descriptor and the replay after a loss
//! are all the same here. Pure: nothing is sent, and time does not pass.
//!
//! There are two views of a back-end: what was sent, which says what comes next, and
//! what is confirmed, which says what is done. Between them lies what may have
//! happened; [`Actual::access`] counts all of it.
//!
//! The order is that of "Lifecycle" in the specification where that says one, and
//! otherwise the one that all back-ends take: a call descriptor before anything
//! else of a ring (DPDK allocates the ring on it), NUM and BASE before ADDR
//! (libvhost-user and rust-vmm read the used index then, for which they need ENDIAN) and
//! before the in-flight buffer (older DPDK), that before any KICK (libvhost-user), KICK once
//! all before it is acknowledged, ENABLE of all rings last, and DRIVER_OK after that (DPDK
//! runs nothing before). The MTU comes before any ring: it decides how large buffers are.
//! All rings that are to stop are disabled first: a kick that arrives while a ring stops
//! ends the thread of a `vhost-user-backend` that serves it, unless the ring is disabled.

mod step;
#[cfg(test)]
mod tests;
mod view;
mod wanted;

pub(super) use step::{Next, ResetBy, RingStep, Step};
pub(super) use view::{RingView, View};
pub(super) use wanted::{Announcement, Drain, RingWanted, Run, Wanted};

use super::access::Access;
use super::acknowledged;
use super::memory::{self, GuestRegion, MemoryStep, RefusedMemory, Slots};
use super::options::CONFIG_SIZE_LATER;
use crate::message::{ProtocolFeatures, virtio};
use std::collections::VecDeque;

/// The device status (virtio specification, "Device Status Field").
pub(super) mod status {
    pub(in crate::device) const ACKNOWLEDGE: u32 = 1;
    pub(in crate::device) const DRIVER: u32 = 2;
    pub(in crate::device) const DRIVER_OK: u32 = 4;
    pub(in crate::device) const FEATURES_OK: u32 = 8;
    /// Before any ring runs.
    pub(in crate::device) const AGREED: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    pub(in crate::device) const RUNNING: u32 = AGREED | DRIVER_OK;
}

const fn bit(n: u32) -> u64 {
    1_u64.wrapping_shl(n)
}

/// Bits that belong to the library, and that a guest never sees.
pub(super) const OURS: u64 = bit(virtio::F_PROTOCOL_FEATURES) | bit(virtio::F_LOG_ALL);

/// Something that the back-end is asked once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Asked<T> {
    #[default]
    Not,
    /// It has not answered yet.
    Asking,
    Told(T),
}

impl<T: Copy> Asked<T> {
    pub(super) fn told(self) -> Option<T> {
        match self {
            Self::Told(value) => Some(value),
            _ => None,
        }
    }
}

/// For what an in-flight buffer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InflightKey {
    pub(super) packed: bool,
    pub(super) num_queues: u16,
    pub(super) queue_size: u16,
}

impl InflightKey {
    /// A buffer for this can serve as one for `other`.
    pub(super) fn holds(self, other: Self) -> bool {
        self.packed == other.packed
            && self.num_queues >= other.num_queues
            && self.queue_size >= other.queue_size
    }

    /// There is room for this ring.
    pub(super) fn fits(self, index: usize, size: u32) -> bool {
        usize::from(self.num_queues) > index && u32::from(self.queue_size) >= size
    }
}

/// An in-flight buffer that the device keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// Each buffer that a back-end has made has a number of its own.
    pub(super) generation: u64,
    pub(super) key: InflightKey,
}

/// Asks once, and goes on with the answer.
macro_rules! ask {
    ($asked:expr, $step:expr) => {
        match $asked {
            Asked::Not => return Next::Do($step),
            Asked::Asking => return Next::Wait,
            Asked::Told(told) => told,
        }
    };
}

/// A ring whose stop was answered, with requests that the back-end has not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settling {
    pub(super) index: usize,
    pub(super) start: u64,
}

/// What is known of a back-end on its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Actual {
    pub(super) offered: Asked<u64>,
    pub(super) offered_protocol: Asked<u64>,
    pub(super) queue_num: Asked<u64>,
    pub(super) slots: Asked<u64>,
    pub(super) shmem: Asked<()>,
    pub(super) config: Asked<()>,
    /// The buffer that there is, which may be older than the connection.
    pub(super) buffer: Asked<Option<Held>>,
    pub(super) sent: View,
    pub(super) confirmed: View,
    /// What was sent and is not confirmed, with a number each.
    unconfirmed: VecDeque<(u64, Step)>,
    count: u64,
    /// Rings that the back-end may still use, although it has answered their stop.
    pub(super) settling: Vec<Settling>,
    /// What the back-end has refused on this connection, which is not sent again.
    refused: RefusedMemory,
}

impl Actual {
    /// A new connection. The in-flight buffer of the one before is kept.
    pub(super) fn new(wanted: &Wanted, buffer: Option<Held>) -> Self {
        let view = View {
            rings: vec![RingView::default(); wanted.rings.len()],
            // It has never been anything but reset.
            resets: wanted.resets,
            ..View::default()
        };
        Self {
            buffer: buffer.map_or(Asked::Not, |held| Asked::Told(Some(held))),
            sent: view.clone(),
            confirmed: view,
            ..Self::default()
        }
    }

    pub(super) fn agreed(&self, feature: ProtocolFeatures) -> bool {
        self.sent
            .protocol
            .is_some_and(|agreed| agreed.contains(feature))
    }

    pub(super) fn packed(&self) -> bool {
        self.sent.features.unwrap_or_default() & bit(virtio::F_RING_PACKED) != 0
    }

    /// Any ring may be running, and is to go on.
    pub(super) fn runs_on(&self, wanted: &Wanted) -> bool {
        let mut rings = self.sent.rings.iter().enumerate();
        rings.any(|(index, ring)| ring.start.is_some() && ring.start == wanted.start(index))
    }

    /// The handshake has gone through.
    pub(super) fn connected(&self, wanted: &Wanted) -> bool {
        !matches!(self.handshake(wanted), Next::Do(_) | Next::Wait)
    }

    /// Something was sent that is not confirmed.
    pub(super) fn is_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// A change of memory was sent that is not confirmed.
    pub(super) fn memory_is_unconfirmed(&self) -> bool {
        let mut steps = self.unconfirmed.iter();
        steps.any(|(_, step)| matches!(step, Step::Memory(_)))
    }

    /// The next request about memory.
    pub(super) fn memory_step(&self, wanted: &Wanted) -> Option<MemoryStep> {
        let slots = self.sent.memory.as_ref()?;
        memory::next(slots, &wanted.memory, &self.refused)
    }

    /// What the back-end may use: what is confirmed, and all that was sent since.
    pub(super) fn access(&self) -> Access {
        let mut access = Access::of_rings(self.confirmed.rings.iter().map(started));
        if let Some(memory) = &self.confirmed.memory {
            memory.regions().for_each(|region| access.may_use(region));
        }
        for (_, step) in &self.unconfirmed {
            match step {
                Step::Memory(MemoryStep::Add(region)) => access.may_use(region),
                Step::Memory(MemoryStep::SetTable(table)) => {
                    table.iter().for_each(|region| access.may_use(region));
                }
                Step::Ring {
                    index,
                    start,
                    part: RingStep::Kick,
                } => access.may_run(*index, *start),
                _ => {}
            }
        }
        for ring in &self.settling {
            access.may_run(ring.index, ring.start);
        }
        access
    }

    /// The back-end may use this ring.
    pub(super) fn may_run(&self, index: usize) -> bool {
        let kicked = |(_, step): &(u64, Step)| matches!(step, Step::Ring { index: at, part: RingStep::Kick, .. } if *at == index);
        let confirmed = self.confirmed.rings.get(index);
        confirmed.is_some_and(|ring| ring.kick)
            || self.settling.iter().any(|ring| ring.index == index)
            || self.unconfirmed.iter().any(kicked)
    }

    /// A reset of the device was not confirmed yet. `false` where there is nothing to
    /// reset.
    pub(super) fn is_resetting(&self, wanted: &Wanted) -> bool {
        self.confirmed.resets != wanted.resets
            && (self.confirmed.features.is_some() || self.sent.features.is_some())
    }

    /// What is to be done next.
    pub(super) fn next(&self, wanted: &Wanted) -> Next {
        match self.handshake(wanted) {
            Next::Nothing => self.device(wanted),
            next => next,
        }
    }

    /// What does not depend on the guest.
    fn handshake(&self, wanted: &Wanted) -> Next {
        let offered = ask!(self.offered, Step::GetFeatures);
        if offered & bit(virtio::F_PROTOCOL_FEATURES) != 0 {
            let offered = ask!(self.offered_protocol, Step::GetProtocolFeatures);
            if self.sent.protocol.is_none() {
                return Next::Do(Step::SetProtocolFeatures(acknowledged::of(offered, wanted)));
            }
        }
        if !self.sent.owner {
            return Next::Do(Step::SetOwner);
        }
        if self.agreed(ProtocolFeatures::MQ) {
            ask!(self.queue_num, Step::GetQueueNum);
        }
        if self.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            ask!(self.slots, Step::GetMaxMemSlots);
        }
        if self.agreed(ProtocolFeatures::SHMEM) {
            // Before the channel: a mapping is refused whose region is not known.
            ask!(self.shmem, Step::GetShmemConfig);
        }
        if self.agreed(ProtocolFeatures::BACKEND_REQ) && !self.sent.channel {
            return Next::Do(Step::OpenChannel);
        }
        if self.agreed(ProtocolFeatures::CONFIG) && wanted.config_size != CONFIG_SIZE_LATER {
            ask!(self.config, Step::GetConfig);
        }
        Next::Nothing
    }

    fn device(&self, wanted: &Wanted) -> Next {
        let features = wanted.features.map(|features| self.with_ours(features));
        let anew = self.sent.resets != wanted.resets;
        let other = self.sent.features.is_some() && self.sent.features != features;
        match self.stops(wanted, anew || other) {
            Next::Nothing => {}
            next => return next,
        }
        if anew {
            return Next::Do(Step::Reset(self.reset_by(), wanted.resets));
        }
        if let Some(number) = wanted.gpu.filter(|_| self.sent.gpu != wanted.gpu) {
            return Next::Do(Step::GpuSocket(number));
        }
        let Some(features) = features else {
            // Reset: what was shared still is, and may be taken away.
            return match self.sent.memory.as_ref().filter(|memory| memory.any()) {
                Some(_) => self.share(wanted).unwrap_or(Next::Nothing),
                None => Next::Nothing,
            };
        };
        if self.sent.features != Some(features) {
            return Next::Do(Step::SetFeatures(features));
        }
        if self.agreed(ProtocolFeatures::STATUS)
            && self.sent.status & status::AGREED != status::AGREED
        {
            return Next::Do(Step::SetStatus(status::AGREED));
        }
        if let Some(mtu) = self.mtu(wanted).filter(|mtu| self.sent.mtu != Some(*mtu)) {
            return Next::Do(Step::SetMtu(mtu));
        }
        if let Some(next) = self.share(wanted) {
            return next;
        }
        match wanted.held {
            true => Next::Nothing,
            false => self.starts(wanted),
        }
    }

    fn share(&self, wanted: &Wanted) -> Option<Next> {
        if let Some(step) = self.memory_step(wanted) {
            // A region whose removal is refused is there still.
            let removal =
                |(_, step): &(u64, Step)| matches!(step, Step::Memory(MemoryStep::Remove(_)));
            let waits = matches!(step, MemoryStep::Add(_)) && self.unconfirmed.iter().any(removal);
            return Some(match waits {
                true => Next::Wait,
                false => Next::Do(Step::Memory(step)),
            });
        }
        let last = self.sent.memory.as_ref()?.keeps_the_last(&wanted.memory);
        last.then_some(Next::Close)
    }

    /// The largest frame, where both sides have agreed on it.
    fn mtu(&self, wanted: &Wanted) -> Option<u32> {
        let features = self.sent.features.unwrap_or_default();
        let takes = self.agreed(ProtocolFeatures::MTU) && features & bit(virtio::NET_F_MTU) != 0;
        wanted.mtu.filter(|_| takes)
    }

    /// The byte order of rings, where the back-end is to be informed of it. Those of a
    /// driver with VERSION_1 are little-endian.
    fn big_endian(&self, wanted: &Wanted) -> Option<bool> {
        let features = self.sent.features.unwrap_or_default();
        let legacy = features & bit(virtio::F_VERSION_1) == 0;
        let takes = legacy && self.agreed(ProtocolFeatures::CROSS_ENDIAN);
        wanted.big_endian.filter(|_| takes)
    }

    fn with_ours(&self, features: u64) -> u64 {
        let offered = self.offered.told().unwrap_or_default();
        (features & !OURS) | (offered & bit(virtio::F_PROTOCOL_FEATURES))
    }

    /// Rings that run have to stop for a while: for a whole table of memory, which some
    /// back-ends acknowledge while rings run, and do not give to these; or for a larger
    /// in-flight buffer.
    fn pauses(&self, wanted: &Wanted) -> bool {
        let table = matches!(self.memory_step(wanted), Some(MemoryStep::SetTable(_)));
        let grows = match (self.buffer, self.inflight_key(wanted)) {
            (Asked::Told(Some(held)), Some(key)) => {
                self.sent.inflight == Some(held.generation) && !held.key.holds(key)
            }
            _ => false,
        };
        table || grows
    }

    /// Rings that are not wanted, or not as they run.
    fn stops(&self, wanted: &Wanted, all: bool) -> Next {
        let runs = self.sent.rings.iter().any(|ring| ring.addr);
        let pause = runs && self.pauses(wanted);
        let stale = |index: usize, ring: &RingView| {
            ring.start.is_some()
                && (all || (pause && ring.addr) || wanted.start(index) != ring.start)
        };
        let step = |index, ring: &RingView, part| {
            let start = ring.start.unwrap_or_default();
            Next::Do(Step::Ring { index, start, part })
        };
        for (index, ring) in self.sent.rings.iter().enumerate() {
            if ring.enabled && stale(index, ring) {
                return step(index, ring, RingStep::Disable);
            }
        }
        for (index, ring) in self.sent.rings.iter().enumerate() {
            if !stale(index, ring) {
                continue;
            }
            if !ring.kick {
                return step(index, ring, RingStep::Forget);
            }
            let goes_on = wanted.start(index) == ring.start;
            let how = wanted.rings.get(index).map(|wanted| wanted.stop);
            let skips = self.agreed(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN)
                && self.sent.inflight.is_some();
            let drain = how.filter(|_| skips && !goes_on).unwrap_or_default();
            return step(index, ring, RingStep::Stop(drain));
        }
        // Memory may go only when no ring uses it.
        let mut rings = self.sent.rings.iter().enumerate();
        match rings.any(|(index, ring)| ring.start.is_none() && self.may_run(index)) {
            true => Next::Wait,
            false => Next::Nothing,
        }
    }

    /// The device as new; the connection stays.
    pub(super) fn reset_by(&self) -> ResetBy {
        match self.sent.features {
            Some(_) if self.agreed(ProtocolFeatures::RESET_DEVICE) => ResetBy::ResetDevice,
            Some(_) if self.agreed(ProtocolFeatures::STATUS) => ResetBy::SetStatus,
            _ => ResetBy::Stopping,
        }
    }

    /// The in-flight buffer that the wanted rings need.
    fn inflight_key(&self, wanted: &Wanted) -> Option<InflightKey> {
        if !self.agreed(ProtocolFeatures::INFLIGHT_SHMFD) {
            return None;
        }
        let (mut count, mut largest) = (wanted.num_rings, 0);
        for (index, ring) in wanted.rings.iter().enumerate() {
            if let Some(run) = ring.run {
                largest = run.size.max(largest);
                count = count.max(u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1));
            }
        }
        let largest = Some(largest).filter(|size| *size > 0)?;
        Some(InflightKey {
            packed: self.packed(),
            num_queues: u16::try_from(count).unwrap_or(u16::MAX),
            queue_size: u16::try_from(largest.max(wanted.max_ring_size)).unwrap_or(u16::MAX),
        })
    }

    /// Rings that are wanted and do not run yet.
    fn starts(&self, wanted: &Wanted) -> Next {
        let rings = || {
            let rings = self.sent.rings.iter().enumerate();
            rings.filter_map(|(index, ring)| Some((index, ring, wanted.run(index)?)))
        };
        let step = |index, run: Run, part| {
            let start = run.start;
            Next::Do(Step::Ring { index, start, part })
        };
        let order = self.big_endian(wanted);
        for (index, ring, run) in rings() {
            let part = match (ring, order) {
                _ if ring.call != Some(run.call) => RingStep::Call(run.call),
                (RingView { num: false, .. }, _) => RingStep::Num,
                (RingView { base: false, .. }, _) => RingStep::Base,
                (RingView { endian: false, .. }, Some(big)) => RingStep::Endian(big),
                _ => continue,
            };
            return step(index, run, part);
        }
        if let Some(key) = self.inflight_key(wanted) {
            match self.buffer {
                Asked::Asking => return Next::Wait,
                Asked::Told(Some(held)) if held.key.holds(key) => {
                    if self.sent.inflight != Some(held.generation) {
                        return Next::Do(Step::SetInflight(held.generation));
                    }
                }
                // It wants none.
                Asked::Told(None) => {}
                _ => return Next::Do(Step::GetInflight(key)),
            }
        }
        for (index, ring, run) in rings() {
            let part = match ring {
                RingView { addr: false, .. } => RingStep::Addr,
                RingView { err: false, .. } if run.err => RingStep::Err,
                _ => continue,
            };
            return step(index, run, part);
        }
        // A ring whose base was refused would run from another.
        let kicks = || rings().filter(|(_, ring, _)| !ring.kick);
        if self.agreed(ProtocolFeatures::REPLY_ACK)
            && kicks().any(|(index, ring, _)| self.confirmed.rings.get(index) != Some(ring))
        {
            return Next::Wait;
        }
        if let Some((index, _, run)) = kicks().next() {
            return step(index, run, RingStep::Kick);
        }
        // Without bit 30 rings are enabled from the start.
        let enables = self.sent.features.unwrap_or_default() & bit(virtio::F_PROTOCOL_FEATURES);
        for (index, ring, run) in rings() {
            if enables != 0 && !ring.enabled {
                return step(index, run, RingStep::Enable);
            }
        }
        let any = rings().next().is_some();
        if any && self.agreed(ProtocolFeatures::STATUS) && self.sent.status != status::RUNNING {
            return Next::Do(Step::SetStatus(status::RUNNING));
        }
        let mut left = wanted.announce.iter();
        let next = left.find(|it| it.number > self.sent.announced);
        match next.filter(|_| any && self.agreed(ProtocolFeatures::RARP)) {
            Some(next) => Next::Do(Step::SendRarp(*next)),
            None => Next::Nothing,
        }
    }

    // ---- what becomes of a step ----

    /// A step goes out; its number.
    pub(super) fn send(&mut self, step: &Step) -> u64 {
        match step {
            Step::GetFeatures => self.offered = Asked::Asking,
            Step::GetProtocolFeatures => self.offered_protocol = Asked::Asking,
            Step::GetQueueNum => self.queue_num = Asked::Asking,
            Step::GetMaxMemSlots => self.slots = Asked::Asking,
            Step::GetShmemConfig => self.shmem = Asked::Asking,
            Step::GetConfig => self.config = Asked::Asking,
            Step::GetInflight(_) => self.buffer = Asked::Asking,
            Step::Reset(..) => self.buffer = Asked::Not,
            _ => {}
        }
        self.sent.apply(step);
        let number = self.count;
        self.count = self.count.saturating_add(1);
        self.unconfirmed.push_back((number, step.clone()));
        if step.is_silent() && self.unconfirmed.len() == 1 {
            self.confirm(number);
        }
        number
    }

    /// The step with this number, and all before it, have been processed.
    pub(super) fn confirm(&mut self, number: u64) {
        while let Some((at, step)) = self.unconfirmed.front() {
            // Behind it may be some that need no message.
            if *at > number && !step.is_silent() {
                return;
            }
            if let Step::Memory(MemoryStep::SetTable(_)) = step {
                self.refused.table_is_known();
            }
            self.confirmed.apply(step);
            self.unconfirmed.pop_front();
        }
    }

    /// The answer to a question; a `number` that tells nothing is 0.
    pub(super) fn answer(&mut self, step: &Step, number: u64) {
        match step {
            Step::GetFeatures => {
                self.offered = Asked::Told(number);
                if number & bit(virtio::F_PROTOCOL_FEATURES) == 0 {
                    self.sent.memory = Some(Slots::new(false));
                    self.confirmed.memory = Some(Slots::new(false));
                }
            }
            Step::GetProtocolFeatures => self.offered_protocol = Asked::Told(number),
            Step::GetQueueNum => self.queue_num = Asked::Told(number),
            Step::GetMaxMemSlots => self.slots = Asked::Told(number),
            Step::GetShmemConfig => self.shmem = Asked::Told(()),
            Step::GetConfig => self.config = Asked::Told(()),
            _ => {}
        }
    }

    /// GET_INFLIGHT_FD was answered, with a buffer or without.
    pub(super) fn has_buffer(&mut self, held: Option<Held>) {
        self.buffer = Asked::Told(held);
    }

    /// The step with this number was refused: it has changed nothing, but for a table
    /// of memory, of which any part may be in use.
    pub(super) fn refuse(&mut self, number: u64) {
        let at = self.unconfirmed.iter().position(|(at, _)| *at == number);
        let Some((_, step)) = at.and_then(|at| self.unconfirmed.remove(at)) else {
            return;
        };
        match &step {
            Step::Memory(step) => {
                if let Some(memory) = &mut self.confirmed.memory {
                    memory.refused(step, &mut self.refused);
                }
            }
            // The ring is stopped next, enabled or not.
            Step::Ring {
                part: RingStep::Disable,
                ..
            } => self.confirmed.apply(&step),
            _ => {}
        }
        self.sent = self.confirmed.clone();
        for (_, step) in &self.unconfirmed {
            self.sent.apply(step);
        }
    }

    /// The in-flight buffer is not to be used again.
    pub(super) fn drop_buffer(&mut self) {
        if self.buffer != Asked::Asking {
            self.buffer = Asked::Not;
        }
    }

    /// The caller has changed its memory: what was refused may be sent again.
    pub(super) fn ask_again(&mut self) {
        self.refused.ask_again();
    }

    /// The back-end has refused to let go of these.
    pub(super) fn stuck(&self) -> &[GuestRegion] {
        &self.refused.stuck
    }
}

fn started(ring: &RingView) -> Option<u64> {
    ring.start.filter(|_| ring.kick)
}
