//! What was offered and agreed on this connection, and which rings run.
//!
//! Atomics, so that reading them takes no lock: requests of several threads may
//! be outstanding at once.

use super::options::Adopted;
use crate::error::{Error, Kind, Result};
use crate::message::{
    BackendGate, Gate, PROTOCOL_FEATURE_NEEDS, ProtocolFeatures, RequestInfo, SHMEM_REGIONS,
    bit_names as names, protocol_feature_name, virtio,
};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

/// A value that is unknown until the back-end has told.
#[derive(Debug, Default)]
struct Known {
    known: AtomicBool,
    value: AtomicU64,
}

impl Known {
    fn set(&self, value: u64) {
        self.value.store(value, SeqCst);
        self.known.store(true, SeqCst);
    }

    fn get(&self) -> Option<u64> {
        self.known.load(SeqCst).then(|| self.value.load(SeqCst))
    }
}

/// Features that the front-end acknowledges. The back-end may use them as soon as it has
/// received them, which is before the front-end knows.
#[derive(Debug, Default)]
struct Agreed {
    confirmed: AtomicU64,
    /// The last set that was sent.
    sent: AtomicU64,
}

impl Agreed {
    fn propose(&self, features: u64) {
        self.sent.store(features, SeqCst);
    }

    fn confirm(&self, features: u64) {
        self.confirmed.store(features, SeqCst);
    }

    /// The back-end did not receive these, or refused them.
    fn withdraw(&self, features: u64) {
        let confirmed = self.confirmed();
        // Unless others have been sent since.
        let _ = self
            .sent
            .compare_exchange(features, confirmed, SeqCst, SeqCst);
    }

    fn confirmed(&self) -> u64 {
        self.confirmed.load(SeqCst)
    }

    /// Every feature that the back-end may be using.
    fn possible(&self) -> u64 {
        self.confirmed() | self.sent.load(SeqCst)
    }
}

/// How far a postcopy migration has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Postcopy {
    /// There is none.
    Off,
    /// POSTCOPY_ADVISE was answered.
    Advised,
    /// POSTCOPY_LISTEN was answered; the memory table comes next.
    Listening,
    /// The table is on its way or was answered; the back-end waits for the word
    /// that its addresses are known, and would take anything else for that.
    Unconfirmed,
    /// The table stands.
    Confirmed,
}

impl Postcopy {
    const ALL: [Self; 5] = [
        Self::Off,
        Self::Advised,
        Self::Listening,
        Self::Unconfirmed,
        Self::Confirmed,
    ];

    fn number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Advised => 1,
            Self::Listening => 2,
            Self::Unconfirmed => 3,
            Self::Confirmed => 4,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Negotiated {
    offered: Known,
    offered_protocol: Known,
    acked: Agreed,
    protocol: Agreed,
    owner: AtomicBool,
    /// The connection was inherited: what is offered need not have been asked.
    adopted: AtomicBool,
    /// One bit for each ring.
    running: [AtomicU64; 4],
    /// The sizes of the device's shared memory regions, once they are known.
    shmem: OnceLock<Box<[u64; SHMEM_REGIONS]>>,
    /// A number of [`Postcopy`].
    postcopy: AtomicU8,
    /// Memory has been shared on this connection.
    memory: AtomicBool,
}

const fn mask(bit: u32) -> u64 {
    1_u64.wrapping_shl(bit)
}

impl Negotiated {
    pub(super) fn new(adopt: Option<Adopted>) -> Self {
        let this = Self::default();
        if let Some(adopted) = adopt {
            this.adopted.store(true, SeqCst);
            for (agreed, features) in [
                (&this.acked, adopted.features),
                (&this.protocol, adopted.protocol_features),
            ] {
                agreed.propose(features);
                agreed.confirm(features);
            }
            this.owner.store(true, SeqCst);
            // They may be running; a barrier too many does no harm.
            this.running
                .iter()
                .for_each(|word| word.store(u64::MAX, SeqCst));
        }
        this
    }

    // ---- gates ----

    /// Whether everything that a request needs has been agreed.
    pub(super) fn check(&self, info: &RequestInfo) -> Result<()> {
        let missing = |what: String| Err(Error::new(Kind::NotNegotiated, what));
        match info.gate {
            Gate::Offered(bit) if self.acked() & mask(bit) != 0 => Ok(()),
            Gate::Offered(bit) if self.offered.get().is_none() => missing(format!(
                "GET_FEATURES has not shown yet whether the back-end offers virtio feature bit {bit}"
            )),
            Gate::Offered(bit) if self.offered.get().unwrap_or_default() & mask(bit) == 0 => {
                missing(format!(
                    "the back-end does not offer virtio feature bit {bit}"
                ))
            }
            Gate::Protocol(feature) | Gate::Both(feature, _)
                if !self.protocol().contains(feature) =>
            {
                missing(format!(
                    "protocol feature {} has not been acknowledged with SET_PROTOCOL_FEATURES",
                    names(feature.bits(), protocol_feature_name)
                ))
            }
            Gate::Acked(bit) | Gate::Both(_, bit) if self.usable() & mask(bit) == 0 => missing(
                format!("virtio feature bit {bit} has not been acknowledged with SET_FEATURES"),
            ),
            _ => Ok(()),
        }
    }

    /// Features whose requests may be sent. An IOTLB miss can arrive before
    /// VIRTIO_F_ACCESS_PLATFORM is confirmed, and must be answered.
    fn usable(&self) -> u64 {
        self.acked() | (self.acked.possible() & mask(virtio::F_ACCESS_PLATFORM))
    }

    /// What may be acknowledged, if that is known. On an inherited connection it
    /// may have been asked by another process: then it is for the back-end to say.
    fn offered(&self, offered: &Known) -> Option<u64> {
        let adopted = self.adopted.load(SeqCst);
        offered.get().or(adopted.then_some(u64::MAX))
    }

    pub(super) fn check_features(&self, features: u64) -> Result<()> {
        let Some(offered) = self.offered(&self.offered) else {
            return Err(Error::new(
                Kind::State,
                "GET_FEATURES comes first on each connection",
            ));
        };
        match features & !offered {
            0 => Ok(()),
            surplus => Err(Error::invalid(format!(
                "features has bits that the back-end does not offer: {}",
                names(surplus, virtio::name)
            ))),
        }
    }

    pub(super) fn check_protocol(&self, features: u64) -> Result<ProtocolFeatures> {
        let Some(offered) = self.offered(&self.offered_protocol) else {
            return Err(Error::new(
                Kind::State,
                "GET_PROTOCOL_FEATURES comes first on each connection",
            ));
        };
        let list = |bits| names(bits, protocol_feature_name);
        let unserved = features & !ProtocolFeatures::all().bits();
        if unserved != 0 {
            let text = "features has bits that this library does not serve: ";
            return Err(Error::invalid(format!("{text}{}", list(unserved))));
        }
        let surplus = features & !offered;
        if surplus != 0 {
            let text = "features has bits that the back-end does not offer: ";
            return Err(Error::invalid(format!("{text}{}", list(surplus))));
        }
        let features = ProtocolFeatures::from_bits_truncate(features);
        for (feature, needs) in PROTOCOL_FEATURE_NEEDS {
            if features.contains(feature) && !features.contains(needs) {
                return Err(Error::invalid(format!(
                    "features has {} without what it needs: {}",
                    list(feature.bits()),
                    list(needs.bits())
                )));
            }
        }
        Ok(features)
    }

    pub(super) fn check_owner(&self) -> Result<()> {
        if self.owner.load(SeqCst) {
            // The rust-vmm back-ends hang up on a second one.
            let text = "SET_OWNER has been sent on this connection already";
            return Err(Error::new(Kind::State, text));
        }
        Ok(())
    }

    // ---- what is remembered ----

    pub(super) fn set_offered(&self, features: u64) {
        self.offered.set(features);
    }

    /// SET_FEATURES is about to be sent, or a reset (0).
    pub(super) fn propose(&self, features: u64) {
        self.acked.propose(features);
    }

    /// SET_FEATURES failed without effect.
    pub(super) fn withdraw(&self, features: u64) {
        self.acked.withdraw(features);
    }

    pub(super) fn set_acked(&self, features: u64) {
        self.acked.confirm(features);
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked.confirmed()
    }

    pub(super) fn packed(&self) -> bool {
        self.acked() & mask(virtio::F_RING_PACKED) != 0
    }

    pub(super) fn set_offered_protocol(&self, features: u64) {
        self.offered_protocol.set(features);
    }

    pub(super) fn set_protocol(&self, features: ProtocolFeatures) {
        self.protocol.confirm(features.bits());
    }

    /// SET_PROTOCOL_FEATURES is about to be sent.
    pub(super) fn propose_protocol(&self, features: ProtocolFeatures) {
        self.protocol.propose(features.bits());
    }

    /// SET_PROTOCOL_FEATURES failed without effect.
    pub(super) fn withdraw_protocol(&self, features: u64) {
        self.protocol.withdraw(features);
    }

    pub(super) fn protocol(&self) -> ProtocolFeatures {
        ProtocolFeatures::from_bits_truncate(self.protocol.confirmed())
    }

    /// Whether the back-end may send a request with this gate.
    pub(super) fn may_ask(&self, gate: BackendGate) -> bool {
        match gate {
            BackendGate::Acked(bit) => self.acked.possible() & mask(bit) != 0,
            BackendGate::Protocol(mask) => self.protocol.possible() & mask == mask,
        }
    }

    pub(super) fn set_owner(&self, owner: bool) {
        self.owner.store(owner, SeqCst);
    }

    /// After RESET_OWNER: nobody owns the device. Whether its rings have stopped
    /// differs among back-ends.
    pub(super) fn reset(&self) {
        self.set_owner(false);
        self.set_acked(0);
    }

    /// They do not change while the connection lives.
    pub(super) fn set_shmem(&self, sizes: &[u64; SHMEM_REGIONS]) {
        self.shmem.get_or_init(|| Box::new(*sizes));
    }

    /// The size of a shared memory region; 0 where it is not known.
    pub(super) fn shmem_size(&self, shmid: u8) -> u64 {
        let sizes = self.shmem.get();
        let size = sizes.and_then(|sizes| sizes.get(usize::from(shmid)));
        size.copied().unwrap_or_default()
    }

    /// After RESET_DEVICE: the features are to be acknowledged again. Whether
    /// rings have stopped differs among back-ends.
    pub(super) fn reset_device(&self) {
        self.set_acked(0);
    }

    // ---- memory ----

    pub(super) fn set_memory(&self) {
        self.memory.store(true, SeqCst);
    }

    fn postcopy(&self) -> Postcopy {
        let number = self.postcopy.load(SeqCst);
        let known = Postcopy::ALL.into_iter().find(|at| at.number() == number);
        known.unwrap_or(Postcopy::Off)
    }

    pub(super) fn set_postcopy(&self, at: Postcopy) {
        self.postcopy.store(at.number(), SeqCst);
    }

    /// Goes on with a postcopy migration if it is there, else not.
    pub(super) fn step_postcopy(&self, from: Postcopy, to: Postcopy) -> bool {
        self.postcopy
            .compare_exchange(from.number(), to.number(), SeqCst, SeqCst)
            .is_ok()
    }

    /// Whether anything but the word about the memory table may be sent.
    pub(super) fn check_unconfirmed(&self) -> Result<()> {
        match self.postcopy() {
            Postcopy::Unconfirmed => Err(Error::new(
                Kind::State,
                "the back-end waits to be told that its addresses of the memory table are known",
            )),
            _ => Ok(()),
        }
    }

    /// Whether memory may be shared, or taken away, in the ordinary way.
    pub(super) fn check_memory(&self) -> Result<()> {
        match self.postcopy() {
            Postcopy::Off | Postcopy::Advised => Ok(()),
            _ => Err(Error::new(
                Kind::State,
                "the back-end listens for page faults: the table is sent with postcopy_set_mem_table",
            )),
        }
    }

    pub(super) fn check_advise(&self) -> Result<()> {
        let wrong = |text: &'static str| Err(Error::new(Kind::State, text));
        match self.postcopy() {
            // DPDK hangs up on the regions that follow, libvhost-user exits.
            _ if self
                .protocol()
                .contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) =>
            {
                wrong("postcopy does not work with CONFIGURE_MEM_SLOTS, which was acknowledged")
            }
            Postcopy::Off | Postcopy::Advised => Ok(()),
            _ => wrong("the back-end listens already"),
        }
    }

    pub(super) fn check_listen(&self) -> Result<()> {
        let wrong = |text: &'static str| Err(Error::new(Kind::State, text));
        match self.postcopy() {
            Postcopy::Off => wrong("POSTCOPY_ADVISE comes first"),
            // Back-ends fail where there are regions.
            Postcopy::Advised if self.memory.load(SeqCst) => {
                wrong("memory has been shared on this connection already")
            }
            Postcopy::Advised => self.check_advise(),
            _ => wrong("the back-end listens already"),
        }
    }

    pub(super) fn check_end(&self) -> Result<()> {
        match self.postcopy() {
            Postcopy::Off | Postcopy::Advised => {
                Err(Error::new(Kind::State, "POSTCOPY_LISTEN comes first"))
            }
            _ => Ok(()),
        }
    }

    // ---- rings ----

    pub(super) fn set_running(&self, ring: u8, running: bool) {
        let bit = mask(u32::from(ring & 63));
        if let Some(word) = self.running.get(usize::from(ring >> 6)) {
            match running {
                true => word.fetch_or(bit, SeqCst),
                false => word.fetch_and(!bit, SeqCst),
            };
        }
    }

    /// Whether this ring, or where none is named any ring, has been started.
    pub(super) fn running(&self, ring: Option<u8>) -> bool {
        match ring {
            Some(ring) => self
                .running
                .get(usize::from(ring >> 6))
                .is_some_and(|word| word.load(SeqCst) & mask(u32::from(ring & 63)) != 0),
            None => self.running.iter().any(|word| word.load(SeqCst) != 0),
        }
    }

    /// A base as the back-end sent it, as it is meant. `drained`: the back-end was
    /// to finish what it had taken.
    pub(super) fn base(&self, num: u32, drained: bool) -> Result<u32> {
        let (low, high) = (num & 0xffff, num & !0xffff);
        match (self.packed(), high) {
            // DPDK and vhost-user-backend keep 16 bits. All that was taken has
            // been used, so the used half equals the available half, unless the
            // back-end may stop with requests in flight.
            (true, 0)
                if drained
                    && !self
                        .protocol()
                        .contains(ProtocolFeatures::GET_VRING_BASE_INFLIGHT) =>
            {
                Ok(low | low.wrapping_shl(16))
            }
            (true, _) | (false, 0) => Ok(num),
            (false, _) => Err(
                Error::protocol("the base of a split ring has more than 16 bits")
                    .value(u64::from(num)),
            ),
        }
    }
}
