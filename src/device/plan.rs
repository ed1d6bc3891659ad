//! The canonical order: from what is wanted and what a back-end has been told, the
//! next request. First start, hot-plug, a new call descriptor and the replay after
//! a loss are all the same here. Pure: nothing is sent, and time does not pass.
//!
//! The order is that of "Lifecycle" in the specification where that says one, and
//! otherwise the one that all back-ends take: a call descriptor before anything
//! else of a ring (DPDK allocates the ring on it), NUM and BASE before ADDR
//! (libvhost-user and rust-vmm read the used index then) and before the in-flight
//! buffer (older DPDK), that before any KICK (libvhost-user), ENABLE of all rings
//! last, and DRIVER_OK after that (DPDK runs nothing before). All rings that are to
//! stop are disabled first: a kick that arrives while a ring stops ends the thread of
//! a `vhost-user-backend` that serves it, unless the ring is disabled.

#[cfg(test)]
mod tests;

use super::memory::{self, MemoryList, MemoryStep, Sent};
use crate::message::{ProtocolFeatures, virtio};

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

/// How a ring is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Drain {
    /// GET_VRING_BASE: what the device has taken is finished first.
    #[default]
    Finish,
    /// GET_VRING_BASE_SKIP_DRAIN, where that was agreed.
    Skip,
}

/// A ring that is to run, as far as the order depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingWanted {
    /// Another number is another start.
    pub(super) start: u64,
    /// Another number is another descriptor.
    pub(super) call: u64,
    /// An error descriptor is given.
    pub(super) err: bool,
    pub(super) size: u32,
}

/// What the caller wants.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// Protocol features that may be acknowledged.
    pub(super) protocol: u64,
    /// How many rings the device has; 0: as many as are started.
    pub(super) num_rings: u32,
    /// Serve the back-end's requests.
    pub(super) channel: bool,
    /// Bytes of the configuration space; 0 for none.
    pub(super) config_size: u32,
    /// What the guest's driver acknowledged.
    pub(super) features: Option<u64>,
    pub(super) memory: MemoryList,
    /// By index.
    pub(super) rings: Vec<Option<RingWanted>>,
    /// How rings that are no longer wanted are stopped.
    pub(super) drain: Drain,
    /// How often the device was reset.
    pub(super) resets: u64,
    /// No ring may start before the next reset.
    pub(super) held: bool,
}

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

/// What a ring has been told since it was last stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RingActual {
    /// For which start. `None`: nothing.
    pub(super) start: Option<u64>,
    pub(super) call: Option<u64>,
    num: bool,
    base: bool,
    addr: bool,
    err: bool,
    pub(super) kick: bool,
    enabled: bool,
    stopping: bool,
}

/// For what an in-flight buffer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InflightKey {
    pub(super) packed: bool,
    pub(super) num_queues: u16,
    pub(super) queue_size: u16,
}

impl InflightKey {
    /// A buffer for this is one for `other`, too.
    fn holds(self, other: Self) -> bool {
        self.packed == other.packed
            && self.num_queues >= other.num_queues
            && self.queue_size >= other.queue_size
    }
}

/// What a back-end has been told on its connection, and has told.
#[derive(Debug, Clone, Default)]
pub(super) struct Actual {
    pub(super) offered: Asked<u64>,
    pub(super) offered_protocol: Asked<u64>,
    pub(super) protocol: Option<ProtocolFeatures>,
    owner: bool,
    pub(super) queue_num: Asked<u64>,
    pub(super) slots: Asked<u64>,
    pub(super) shmem: Asked<()>,
    channel: bool,
    pub(super) config: Asked<()>,
    pub(super) features: Option<u64>,
    pub(super) memory: Option<Sent>,
    /// The buffer that there is, which may be older than the connection.
    pub(super) buffer: Asked<Option<InflightKey>>,
    /// It was handed over on this connection.
    pub(super) inflight: bool,
    pub(super) rings: Vec<RingActual>,
    status: u32,
    resets: u64,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures(ProtocolFeatures),
    SetOwner,
    GetQueueNum,
    GetMaxMemSlots,
    GetShmemConfig,
    OpenChannel,
    GetConfig,
    SetFeatures(u64),
    SetStatus(u32),
    ResetDevice,
    /// A reset that needs no message.
    Forget,
    Memory(MemoryStep),
    GetInflight(InflightKey),
    SetInflight,
    Ring(usize, RingStep),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RingStep {
    Call,
    Num,
    Base,
    Addr,
    Err,
    Kick,
    Enable,
    /// Before it is stopped.
    Disable,
    Stop(Drain),
    /// The ring never ran: no message.
    Forget,
}

impl Step {
    /// Nothing follows before it is answered: what comes next depends on it.
    pub(super) fn alone(&self) -> bool {
        matches!(
            self,
            Self::SetProtocolFeatures(_)
                | Self::SetOwner
                | Self::OpenChannel
                | Self::SetFeatures(_)
                | Self::ResetDevice
                | Self::GetInflight(_)
        )
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    Do(Step),
    /// Nothing before an answer that is outstanding.
    Wait,
    /// Nothing: the back-end has been told all that is wanted.
    Nothing,
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

/// Protocol features that the device makes use of.
pub(super) const SERVED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::BACKEND_SEND_FD)
    .union(ProtocolFeatures::HOST_NOTIFIER)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::SHARED_OBJECT)
    .union(ProtocolFeatures::DEVICE_STATE)
    .union(ProtocolFeatures::SHMEM)
    .union(ProtocolFeatures::GPA_ADDRESSES)
    .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
    .union(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN);

/// What is acknowledged of what is offered: never a bit without what it needs.
fn acknowledge(offered: u64, wanted: &Wanted) -> ProtocolFeatures {
    let mut agreed = ProtocolFeatures::from_bits_truncate(offered & wanted.protocol) & SERVED;
    if !wanted.channel {
        agreed.remove(ProtocolFeatures::BACKEND_REQ);
    }
    if !agreed.contains(ProtocolFeatures::BACKEND_REQ) {
        agreed.remove(
            ProtocolFeatures::BACKEND_SEND_FD
                | ProtocolFeatures::HOST_NOTIFIER
                | ProtocolFeatures::SHARED_OBJECT
                | ProtocolFeatures::SHMEM,
        );
    }
    if wanted.config_size == 0 {
        agreed.remove(ProtocolFeatures::CONFIG);
    }
    // Twice, as one needs another that needs a third.
    for (feature, needs) in crate::message::PROTOCOL_FEATURE_NEEDS
        .iter()
        .chain(&crate::message::PROTOCOL_FEATURE_NEEDS)
    {
        if !agreed.contains(*needs) {
            agreed.remove(*feature);
        }
    }
    agreed
}

impl Actual {
    /// A new connection. The in-flight buffer of the one before stays.
    pub(super) fn new(wanted: &Wanted, buffer: Option<InflightKey>) -> Self {
        Self {
            buffer: buffer.map_or(Asked::Not, |key| Asked::Told(Some(key))),
            rings: vec![RingActual::default(); wanted.rings.len()],
            // It has never been anything but reset.
            resets: wanted.resets,
            ..Self::default()
        }
    }

    pub(super) fn agreed(&self, feature: ProtocolFeatures) -> bool {
        self.protocol.is_some_and(|agreed| agreed.contains(feature))
    }

    pub(super) fn packed(&self) -> bool {
        self.features.unwrap_or_default() & bit(virtio::F_RING_PACKED) != 0
    }

    /// Whether any ring may be running, and not only until it is stopped: that comes
    /// before all that follows.
    pub(super) fn runs_on(&self, wanted: &Wanted) -> bool {
        let mut rings = self.rings.iter().zip(&wanted.rings);
        rings.any(|(ring, want)| ring.start.is_some() && want.map(|it| it.start) == ring.start)
    }

    /// The handshake has gone through.
    pub(super) fn connected(&self, wanted: &Wanted) -> bool {
        !matches!(self.handshake(wanted), Next::Do(_) | Next::Wait)
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
            if self.protocol.is_none() {
                return Next::Do(Step::SetProtocolFeatures(acknowledge(offered, wanted)));
            }
        }
        if !self.owner {
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
        if self.agreed(ProtocolFeatures::BACKEND_REQ) && !self.channel {
            return Next::Do(Step::OpenChannel);
        }
        if self.agreed(ProtocolFeatures::CONFIG) {
            ask!(self.config, Step::GetConfig);
        }
        Next::Nothing
    }

    fn device(&self, wanted: &Wanted) -> Next {
        let features = wanted.features.map(|features| self.with_ours(features));
        let anew = self.resets != wanted.resets;
        let other = self.features.is_some() && self.features != features;
        match self.stops(wanted, anew || other) {
            Next::Nothing => {}
            next => return next,
        }
        if anew {
            return Next::Do(self.reset());
        }
        let Some(features) = features else {
            // Reset: what was shared still is, and may be taken away.
            return match self.memory.as_ref().filter(|sent| sent.any()) {
                Some(sent) => Self::share(sent, wanted).unwrap_or(Next::Nothing),
                None => Next::Nothing,
            };
        };
        if self.features != Some(features) {
            return Next::Do(Step::SetFeatures(features));
        }
        if self.agreed(ProtocolFeatures::STATUS) && self.status & status::AGREED != status::AGREED {
            return Next::Do(Step::SetStatus(status::AGREED));
        }
        let sent = self.memory.as_ref();
        if let Some(next) = sent.and_then(|sent| Self::share(sent, wanted)) {
            return next;
        }
        match wanted.held {
            true => Next::Nothing,
            false => self.starts(wanted),
        }
    }

    fn share(sent: &Sent, wanted: &Wanted) -> Option<Next> {
        memory::next(sent, &wanted.memory).map(|step| Next::Do(Step::Memory(step)))
    }

    fn with_ours(&self, features: u64) -> u64 {
        let offered = self.offered.told().unwrap_or_default();
        (features & !OURS) | (offered & bit(virtio::F_PROTOCOL_FEATURES))
    }

    /// Rings that are not wanted, or not as they run.
    fn stops(&self, wanted: &Wanted, all: bool) -> Next {
        let mut stopping = false;
        let stale = |index: usize, ring: &RingActual| {
            let want = wanted.rings.get(index).and_then(Option::as_ref);
            ring.start.is_some() && (all || want.map(|want| want.start) != ring.start)
        };
        for (index, ring) in self.rings.iter().enumerate() {
            if ring.enabled && !ring.stopping && stale(index, ring) {
                return Next::Do(Step::Ring(index, RingStep::Disable));
            }
        }
        for (index, ring) in self.rings.iter().enumerate() {
            stopping |= ring.stopping;
            let stale = stale(index, ring);
            if stale && !ring.kick {
                return Next::Do(Step::Ring(index, RingStep::Forget));
            }
            if stale && !ring.stopping {
                let skip = wanted.drain == Drain::Skip
                    && self.agreed(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN);
                let drain = if skip { Drain::Skip } else { Drain::Finish };
                return Next::Do(Step::Ring(index, RingStep::Stop(drain)));
            }
        }
        match stopping {
            // Memory may go only when nobody uses it.
            true => Next::Wait,
            false => Next::Nothing,
        }
    }

    /// The device as new; the connection stays.
    fn reset(&self) -> Step {
        match self.features {
            Some(_) if self.agreed(ProtocolFeatures::RESET_DEVICE) => Step::ResetDevice,
            Some(_) if self.agreed(ProtocolFeatures::STATUS) => Step::SetStatus(0),
            // Where there is neither, stopped rings have to do.
            _ => Step::Forget,
        }
    }

    /// Rings that are wanted and have not been told all.
    fn starts(&self, wanted: &Wanted) -> Next {
        let rings = || {
            let actual = self.rings.iter().enumerate();
            actual
                .zip(&wanted.rings)
                .filter_map(|((index, actual), wanted)| Some((index, actual, (*wanted)?)))
        };
        let (mut count, mut largest) = (wanted.num_rings, 0);
        for (index, ring, want) in rings() {
            largest = want.size.max(largest);
            count = count.max(u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1));
            let step = match ring {
                _ if ring.call != Some(want.call) => RingStep::Call,
                RingActual { num: false, .. } => RingStep::Num,
                RingActual { base: false, .. } => RingStep::Base,
                _ => continue,
            };
            return Next::Do(Step::Ring(index, step));
        }
        if self.agreed(ProtocolFeatures::INFLIGHT_SHMFD) && largest != 0 {
            let key = InflightKey {
                packed: self.packed(),
                num_queues: u16::try_from(count).unwrap_or(u16::MAX),
                queue_size: u16::try_from(largest).unwrap_or(u16::MAX),
            };
            match self.buffer {
                Asked::Asking => return Next::Wait,
                Asked::Told(Some(has)) if has.holds(key) && self.inflight => {}
                Asked::Told(Some(has)) if has.holds(key) => return Next::Do(Step::SetInflight),
                // It wants none.
                Asked::Told(None) => {}
                _ => return Next::Do(Step::GetInflight(key)),
            }
        }
        for (index, ring, want) in rings() {
            let step = match ring {
                RingActual { addr: false, .. } => RingStep::Addr,
                RingActual { err: false, .. } if want.err => RingStep::Err,
                RingActual { kick: false, .. } => RingStep::Kick,
                _ => continue,
            };
            return Next::Do(Step::Ring(index, step));
        }
        // Without bit 30 rings are enabled from the start.
        let told = self.features.unwrap_or_default() & bit(virtio::F_PROTOCOL_FEATURES) != 0;
        for (index, ring, _) in rings() {
            if told && !ring.enabled {
                return Next::Do(Step::Ring(index, RingStep::Enable));
            }
        }
        let any = rings().next().is_some();
        if any && self.agreed(ProtocolFeatures::STATUS) && self.status != status::RUNNING {
            return Next::Do(Step::SetStatus(status::RUNNING));
        }
        Next::Nothing
    }

    /// A step goes out. Whatever fails ends the connection, so what needs no
    /// answer counts as done.
    pub(super) fn begun(&mut self, step: &Step, wanted: &Wanted) {
        match step {
            Step::GetFeatures => self.offered = Asked::Asking,
            Step::GetProtocolFeatures => self.offered_protocol = Asked::Asking,
            Step::GetQueueNum => self.queue_num = Asked::Asking,
            Step::GetMaxMemSlots => self.slots = Asked::Asking,
            Step::GetShmemConfig => self.shmem = Asked::Asking,
            Step::GetConfig => self.config = Asked::Asking,
            Step::GetInflight(_) => {
                self.buffer = Asked::Asking;
                self.inflight = false;
            }
            Step::SetInflight => self.inflight = true,
            Step::SetStatus(0) | Step::Forget => self.as_new(wanted),
            Step::SetStatus(status) => self.status = *status,
            Step::Memory(step) => {
                if let Some(sent) = &mut self.memory {
                    sent.apply(step);
                }
            }
            Step::Ring(index, step) => {
                let want = wanted.rings.get(*index).copied().flatten();
                if let Some(ring) = self.rings.get_mut(*index) {
                    ring.begun(*step, want);
                }
            }
            Step::SetProtocolFeatures(_)
            | Step::SetOwner
            | Step::OpenChannel
            | Step::SetFeatures(_)
            | Step::ResetDevice => {}
        }
    }

    /// A step has succeeded, with what it told.
    pub(super) fn done(&mut self, step: &Step, told: u64, wanted: &Wanted) {
        match step {
            Step::GetFeatures => {
                self.offered = Asked::Told(told);
                if told & bit(virtio::F_PROTOCOL_FEATURES) == 0 {
                    self.memory = Some(Sent::new(false));
                }
            }
            Step::GetProtocolFeatures => self.offered_protocol = Asked::Told(told),
            Step::SetProtocolFeatures(agreed) => {
                self.protocol = Some(*agreed);
                let configure = agreed.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
                self.memory = Some(Sent::new(configure));
            }
            Step::SetOwner => self.owner = true,
            Step::GetQueueNum => self.queue_num = Asked::Told(told),
            Step::GetMaxMemSlots => self.slots = Asked::Told(told),
            Step::GetShmemConfig => self.shmem = Asked::Told(()),
            Step::OpenChannel => self.channel = true,
            Step::GetConfig => self.config = Asked::Told(()),
            Step::SetFeatures(features) => {
                self.features = Some(*features);
                // Its layout depends on them.
                self.inflight = false;
            }
            Step::ResetDevice => self.as_new(wanted),
            Step::GetInflight(key) => {
                self.buffer = Asked::Told((told != 0).then_some(*key));
            }
            Step::Ring(index, RingStep::Stop(_)) => {
                if let Some(ring) = self.rings.get_mut(*index) {
                    *ring = RingActual::default();
                }
            }
            Step::SetInflight
            | Step::SetStatus(_)
            | Step::Forget
            | Step::Memory(_)
            | Step::Ring(..) => {}
        }
    }

    /// The in-flight buffer is of no more use.
    pub(super) fn drop_buffer(&mut self) {
        if self.buffer != Asked::Asking {
            self.buffer = Asked::Not;
            self.inflight = false;
        }
    }

    /// What a reset takes away. Memory and the channel stay.
    fn as_new(&mut self, wanted: &Wanted) {
        self.resets = wanted.resets;
        self.features = None;
        self.status = 0;
        self.inflight = false;
        self.buffer = Asked::Not;
    }
}

impl RingActual {
    fn begun(&mut self, step: RingStep, want: Option<RingWanted>) {
        self.start = self.start.or(want.map(|want| want.start));
        match step {
            RingStep::Call => self.call = want.map(|want| want.call),
            RingStep::Num => self.num = true,
            RingStep::Base => self.base = true,
            RingStep::Addr => self.addr = true,
            RingStep::Err => self.err = true,
            RingStep::Kick => self.kick = true,
            RingStep::Enable => self.enabled = true,
            RingStep::Disable => self.enabled = false,
            RingStep::Stop(_) => self.stopping = true,
            RingStep::Forget => *self = Self::default(),
        }
    }
}
