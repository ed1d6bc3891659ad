//! A back-end that is made of the words of the protocol.

use super::*;
use std::collections::BTreeMap;

/// What a ring was told, each part for which start.
#[derive(Debug, Clone, Default)]
struct ModelRing {
    call: Option<u64>,
    num: Option<u64>,
    base: Option<u64>,
    big_endian: Option<bool>,
    addr: Option<u64>,
    err: Option<u64>,
    kick: Option<u64>,
    enabled: bool,
    size: u32,
    stopping: bool,
}

/// A back-end that insists on the order of the protocol.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) offer: Offer,
    told_features: bool,
    told_protocol: bool,
    protocol: Option<ProtocolFeatures>,
    owner: bool,
    shmem: bool,
    channel: bool,
    features: Option<u64>,
    mtu: Option<u32>,
    announced: u64,
    gpu: Option<u64>,
    status: u32,
    memory: BTreeMap<u64, GuestRegion>,
    /// This buffer is in use.
    inflight: Option<InflightKey>,
    rings: Vec<ModelRing>,
}

impl Model {
    pub(super) fn new(offer: Offer, rings: usize) -> Self {
        Self {
            offer,
            told_features: false,
            told_protocol: false,
            protocol: None,
            owner: false,
            shmem: false,
            channel: false,
            features: None,
            mtu: None,
            announced: 0,
            gpu: None,
            status: 0,
            memory: BTreeMap::new(),
            inflight: None,
            rings: vec![ModelRing::default(); rings],
        }
    }

    fn agreed(&self, feature: ProtocolFeatures) -> bool {
        self.protocol.is_some_and(|it| it.contains(feature))
    }

    fn quiet(&self) -> bool {
        self.rings.iter().all(|ring| ring.kick.is_none())
    }

    fn stopping(&self) -> bool {
        self.rings.iter().any(|ring| ring.stopping)
    }

    /// A message arrives.
    pub(super) fn take(&mut self, step: &Step, wanted: &Wanted, buffer: Option<InflightKey>) {
        use ProtocolFeatures as P;
        match step {
            Step::GetFeatures => assert!(!std::mem::replace(&mut self.told_features, true)),
            Step::GetProtocolFeatures => {
                assert!(self.told_features && self.offer.features & BIT_30 != 0);
                self.told_protocol = true;
            }
            Step::SetProtocolFeatures(agreed) => {
                assert!(self.told_protocol && self.protocol.is_none());
                assert!((self.offer.protocol & acknowledged::SERVED).contains(*agreed));
                self.protocol = Some(*agreed);
            }
            Step::SetOwner => assert!(!std::mem::replace(&mut self.owner, true), "twice"),
            Step::GetQueueNum => assert!(self.agreed(P::MQ)),
            Step::GetMaxMemSlots => assert!(self.agreed(P::CONFIGURE_MEM_SLOTS)),
            Step::GetShmemConfig => {
                assert!(self.agreed(P::SHMEM) && !self.channel);
                self.shmem = true;
            }
            Step::OpenChannel => {
                assert!(self.agreed(P::BACKEND_REQ) && !self.channel);
                assert!(self.shmem || !self.agreed(P::SHMEM));
                self.channel = true;
            }
            Step::GetConfig => assert!(self.agreed(P::CONFIG)),
            Step::SetFeatures(features) => {
                assert!(self.owner && self.quiet());
                assert_eq!(features & !self.offer.features, 0);
                assert_eq!((features ^ self.offer.features) & BIT_30, 0);
                self.features = Some(*features);
                self.inflight = None;
            }
            Step::Reset(ResetBy::SetStatus, _) => {
                assert!(self.agreed(P::STATUS) && self.quiet());
                self.reset();
            }
            Step::SetStatus(status) => {
                assert!(self.agreed(P::STATUS) && self.features.is_some());
                assert!(self.status & !status == 0, "{} to {status}", self.status);
                let ready = |ring: &ModelRing| ring.kick.is_none() || self.runs(ring);
                let last = status & status::DRIVER_OK == 0 || self.rings.iter().all(ready);
                assert!(last, "DRIVER_OK is not last");
                self.status = *status;
            }
            Step::SendRarp(announcement) => {
                assert!(self.agreed(P::RARP) && !self.quiet());
                assert!(announcement.number > self.announced, "announced twice");
                self.announced = announcement.number;
            }
            Step::GpuSocket(number) => assert_ne!(self.gpu.replace(*number), Some(*number)),
            Step::SetMtu(mtu) => {
                assert!(self.agreed(P::MTU));
                assert!(self.features.is_some_and(|it| it & NET_MTU != 0));
                self.mtu = Some(*mtu);
            }
            Step::Reset(ResetBy::ResetDevice, _) => {
                assert!(self.agreed(P::RESET_DEVICE) && self.quiet());
                self.reset();
            }
            Step::Reset(ResetBy::Stopping, _) => {
                // It does not know, and there is no way to say so.
                let known = self.features.is_some();
                let way = self.agreed(P::RESET_DEVICE) || self.agreed(P::STATUS);
                assert!(self.quiet() && !(known && way));
                self.features = None;
                self.inflight = None;
            }
            Step::Memory(change) => self.change_memory(change),
            Step::GetInflight(key) => {
                assert!(self.agreed(P::INFLIGHT_SHMFD) && self.features.is_some());
                assert!(key.queue_size > 0 && key.num_queues > 0);
                assert!(self.quiet(), "a buffer that is in use would be lost");
            }
            Step::SetInflight(_) => {
                assert!(self.quiet(), "a buffer that is in use would be lost");
                self.inflight = Some(buffer.expect("there is a buffer"));
            }
            Step::Ring { index, part, .. } => self.tell_ring(*index, *part, wanted),
            Step::Barrier => panic!("all is acknowledged"),
        }
    }

    fn runs(&self, ring: &ModelRing) -> bool {
        ring.kick.is_some() && (ring.enabled || self.features.is_some_and(|it| it & BIT_30 == 0))
    }

    fn reset(&mut self) {
        self.features = None;
        self.mtu = None;
        self.status = 0;
        self.inflight = None;
        self.rings.fill(ModelRing::default());
    }

    fn change_memory(&mut self, change: &MemoryStep) {
        // After a reset what is there may be taken away.
        assert!(self.features.is_some() || !self.memory.is_empty());
        assert!(!self.stopping(), "under a ring that is being stopped");
        let slots = self.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
        match change {
            MemoryStep::SetTable(table) => {
                assert!(!slots && !table.is_empty());
                assert!(self.quiet(), "rings keep the memory that they began with");
                let keyed = |region: &GuestRegion| (region.guest_addr, region.clone());
                self.memory = table.iter().map(keyed).collect();
            }
            MemoryStep::Add(region) => {
                let before = self.memory.insert(region.guest_addr, region.clone());
                assert!(slots && before.is_none());
            }
            MemoryStep::Remove(region) => {
                assert!(slots && self.memory.remove(&region.guest_addr).is_some());
            }
        }
    }

    fn tell_ring(&mut self, index: usize, part: RingStep, wanted: &Wanted) {
        let Self {
            protocol, features, ..
        } = *self;
        let agreed = |feature| protocol.is_some_and(|it| it.contains(feature));
        let memory = !self.memory.is_empty();
        let ring = &mut self.rings[index];
        let want = wanted.run(index);
        assert!(features.is_some() && !ring.stopping);
        let now = want.map(|it| it.start);
        let told = features.is_some_and(|it| it & BIT_30 != 0);
        match part {
            RingStep::Forget => assert_eq!(ring.kick, None),
            RingStep::Disable => {
                assert!(ring.enabled && told);
                ring.enabled = false;
            }
            RingStep::Stop(drain) => {
                assert!(!ring.enabled, "a late kick would be looked at");
                assert!(
                    drain == Drain::Finish || agreed(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN)
                );
                ring.stopping = true;
            }
            RingStep::Call(_) => ring.call = want.map(|it| it.call),
            RingStep::Enable => {
                assert!(ring.kick == now && told);
                ring.enabled = true;
            }
            // The others are for a ring that does not run.
            _ if ring.kick.is_some() => panic!("{part:?} of a ring that runs"),
            RingStep::Num => {
                assert!(ring.call.is_some());
                (ring.num, ring.size) = (now, want.map_or(0, |it| it.size));
            }
            RingStep::Base => {
                assert_eq!(ring.num, now);
                ring.base = now;
            }
            RingStep::Endian(big) => {
                let legacy = features.is_some_and(|it| it & VERSION_1 == 0);
                assert!(legacy && agreed(ProtocolFeatures::CROSS_ENDIAN));
                ring.big_endian = Some(big);
            }
            RingStep::Addr => {
                assert!(ring.num == now && ring.base == now && memory);
                ring.addr = now;
            }
            RingStep::Err => ring.err = now,
            RingStep::Kick => {
                assert!(ring.call.is_some() && ring.addr == now && ring.base == now);
                assert!(ring.err == now || !want.is_some_and(|it| it.err));
                let tracked = |key: InflightKey| has_room(key, index, ring.size);
                let tracks = agreed(ProtocolFeatures::INFLIGHT_SHMFD);
                assert!(
                    !tracks || self.inflight.is_some_and(tracked),
                    "no room in the buffer"
                );
                ring.kick = now;
            }
        }
    }

    /// A message is answered.
    pub(super) fn answer(&mut self, step: &Step) -> u64 {
        if let Step::Ring {
            index,
            part: RingStep::Stop(_),
            ..
        } = step
        {
            let enabled = self.rings[*index].enabled;
            // It forgets all but whether it is enabled.
            self.rings[*index] = ModelRing {
                enabled,
                ..ModelRing::default()
            };
        }
        self.offer.answer(step)
    }

    /// It has been told all that is wanted.
    pub(super) fn check(&self, wanted: &Wanted) {
        let features = wanted_features(wanted, self.offer);
        assert_eq!(self.features, features);
        let there: Vec<_> = self.memory.values().cloned().collect();
        let slots = self.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
        // A table is never empty, and nothing is sent before there is a driver.
        let told = features.is_some() || !there.is_empty();
        if told && (slots || !wanted.memory.is_empty()) {
            assert_eq!(there, wanted.memory.to_vec());
        }
        for (index, ring) in self.rings.iter().enumerate() {
            let want = wanted
                .run(index)
                .filter(|_| !wanted.held || ring.kick.is_some());
            assert_eq!(ring.kick, want.map(|it| it.start));
            let Some(want) = want else { continue };
            assert_eq!(ring.call, Some(want.call));
            assert!(self.runs(ring) && ring.size == want.size);
            let legacy = features.is_some_and(|it| it & VERSION_1 == 0);
            let informed = legacy && self.agreed(ProtocolFeatures::CROSS_ENDIAN);
            let order = wanted.big_endian.filter(|_| informed);
            assert_eq!(ring.big_endian, order);
        }
        assert_eq!(self.gpu, wanted.gpu);
        let runs = wanted.rings.iter().any(|ring| ring.run.is_some()) && !wanted.held;
        if runs && features.is_some() && self.agreed(ProtocolFeatures::RARP) {
            let last = wanted.announce.back().map_or(0, |it| it.number);
            assert!(self.announced >= last);
        }
        let takes = features.is_some_and(|it| it & NET_MTU != 0);
        if takes && self.agreed(ProtocolFeatures::MTU) {
            assert_eq!(self.mtu, wanted.mtu);
        }
        if self.agreed(ProtocolFeatures::STATUS) && features.is_some() {
            let running = self.status == status::RUNNING;
            assert!(running || self.quiet() && self.status == status::AGREED);
        }
    }
}

fn has_room(buffer: InflightKey, index: usize, size: u32) -> bool {
    usize::from(buffer.num_queues) > index && u32::from(buffer.queue_size) >= size
}

fn wanted_features(wanted: &Wanted, offer: Offer) -> Option<u64> {
    Some(wanted.features? | offer.features & BIT_30)
}
