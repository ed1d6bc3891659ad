#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::super::memory::{FileId, GuestRegion};
use super::*;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

const PAGE: u64 = 4096;
const VERSION_1: u64 = 1 << 32;
const BIT_30: u64 = bit(virtio::F_PROTOCOL_FEATURES);
const PACKED: u64 = bit(virtio::F_RING_PACKED);
/// An interpreter is slow.
const CASES: u32 = if cfg!(miri) { 4 } else { 2000 };

/// A page of one file; what matters is which.
fn region(at: u64) -> GuestRegion {
    static FD: LazyLock<Arc<OwnedFd>> =
        LazyLock::new(|| Arc::new(UnixStream::pair().unwrap().0.into()));
    GuestRegion {
        // Neighbours are never coalesced.
        guest_addr: at * 2 * PAGE,
        size: PAGE,
        offset: 0,
        fd: FD.clone(),
        file: FileId { dev: 1, ino: at },
    }
}

fn list(regions: &[u64]) -> MemoryList {
    MemoryList::new(regions.iter().map(|at| region(*at)).collect()).unwrap()
}

/// As transcripts have it.
fn word(step: &Step) -> String {
    let place = |region: &GuestRegion| region.guest_addr / 2 / PAGE;
    match step {
        Step::GetFeatures => "GET_FEATURES".to_owned(),
        Step::GetProtocolFeatures => "GET_PROTOCOL_FEATURES".to_owned(),
        Step::SetProtocolFeatures(_) => "SET_PROTOCOL_FEATURES".to_owned(),
        Step::SetOwner => "SET_OWNER".to_owned(),
        Step::GetQueueNum => "GET_QUEUE_NUM".to_owned(),
        Step::GetMaxMemSlots => "GET_MAX_MEM_SLOTS".to_owned(),
        Step::GetShmemConfig => "GET_SHMEM_CONFIG".to_owned(),
        Step::OpenChannel => "CHANNEL".to_owned(),
        Step::GetConfig => "GET_CONFIG".to_owned(),
        Step::SetFeatures(_) => "SET_FEATURES".to_owned(),
        Step::SetStatus(status) => format!("STATUS {status}"),
        Step::ResetDevice => "RESET_DEVICE".to_owned(),
        Step::Forget => "(reset)".to_owned(),
        Step::Memory(MemoryStep::SetTable(table)) => {
            let places: Vec<_> = table.iter().map(|it| place(it).to_string()).collect();
            format!("TABLE {}", places.join("+"))
        }
        Step::Memory(MemoryStep::Add(region)) => format!("ADD {}", place(region)),
        Step::Memory(MemoryStep::Remove(region)) => format!("REM {}", place(region)),
        Step::GetInflight(key) => {
            format!("GET_INFLIGHT {}x{}", key.num_queues, key.queue_size)
        }
        Step::SetInflight => "SET_INFLIGHT".to_owned(),
        Step::Ring(index, part) => match part {
            RingStep::Call => format!("CALL {index}"),
            RingStep::Num => format!("NUM {index}"),
            RingStep::Base => format!("BASE {index}"),
            RingStep::Addr => format!("ADDR {index}"),
            RingStep::Err => format!("ERR {index}"),
            RingStep::Kick => format!("KICK {index}"),
            RingStep::Enable => format!("ENABLE {index}"),
            RingStep::Disable => format!("DISABLE {index}"),
            RingStep::Stop(Drain::Finish) => format!("STOP {index}"),
            RingStep::Stop(Drain::Skip) => format!("SKIP {index}"),
            RingStep::Forget => format!("(forget {index})"),
        },
    }
}

/// What a back-end offers.
#[derive(Debug, Clone, Copy)]
struct Offer {
    features: u64,
    protocol: ProtocolFeatures,
}

const PLAIN: Offer = Offer {
    features: VERSION_1 | PACKED | BIT_30,
    protocol: ProtocolFeatures::REPLY_ACK,
};

impl Offer {
    fn with(self, more: ProtocolFeatures) -> Self {
        let protocol = self.protocol.union(more);
        Self { protocol, ..self }
    }

    fn answer(self, step: &Step) -> u64 {
        match step {
            Step::GetFeatures => self.features,
            Step::GetProtocolFeatures => self.protocol.bits(),
            Step::GetQueueNum => 4,
            Step::GetMaxMemSlots => 8,
            Step::GetInflight(_) => 1,
            _ => 0,
        }
    }
}

/// A device of two rings and a region of memory, of which nothing runs.
fn wanted() -> Wanted {
    Wanted {
        protocol: u64::MAX,
        features: Some(VERSION_1),
        memory: list(&[0]),
        num_rings: 2,
        rings: vec![None; 2],
        ..Wanted::default()
    }
}

fn ring(start: u64) -> Option<RingWanted> {
    Some(RingWanted {
        start,
        call: start,
        err: false,
        size: 64,
    })
}

/// A device with a back-end that answers each request before the next.
struct Rig {
    offer: Offer,
    wanted: Wanted,
    actual: Actual,
}

impl Rig {
    fn new(offer: Offer, wanted: Wanted) -> Self {
        let actual = Actual::new(&wanted, None);
        Self {
            offer,
            wanted,
            actual,
        }
    }

    /// The same, brought up.
    fn up(offer: Offer, wanted: Wanted) -> Self {
        let mut rig = Self::new(offer, wanted);
        rig.go();
        rig
    }

    /// All the way; the steps in words.
    fn go(&mut self) -> String {
        let mut words = Vec::new();
        loop {
            match self.actual.next(&self.wanted) {
                Next::Do(step) => {
                    words.push(word(&step));
                    self.actual.begun(&step, &self.wanted);
                    let told = self.offer.answer(&step);
                    self.actual.done(&step, told, &self.wanted);
                }
                Next::Wait => panic!("it waits, and all is answered: {words:?}"),
                Next::Nothing => return words.join(", "),
            }
            assert!(words.len() < 100, "it does not end: {words:?}");
        }
    }

    fn start(&mut self, index: usize, start: u64) {
        self.wanted.rings[index] = ring(start);
    }

    fn stop(&mut self, index: usize) {
        self.wanted.rings[index] = None;
    }

    /// As the caller of a device does it.
    fn reset(&mut self) {
        self.wanted.resets += 1;
        self.wanted.features = None;
        self.wanted.drain = Drain::Skip;
        self.wanted.rings.fill(None);
    }
}

// ---- the canonical order ----

/// All that there is to do for two rings.
fn bring_up(offer: Offer, change: impl FnOnce(&mut Wanted)) -> String {
    let mut wanted = wanted();
    wanted.rings = vec![ring(1), ring(2)];
    change(&mut wanted);
    Rig::new(offer, wanted).go()
}

#[test]
fn without_bit_30_there_is_nothing_to_agree_on_or_to_enable() {
    let offer = Offer {
        features: VERSION_1,
        ..PLAIN
    };
    assert_eq!(
        bring_up(offer, |_| {}),
        "GET_FEATURES, SET_OWNER, SET_FEATURES, TABLE 0, CALL 0, NUM 0, BASE 0, CALL 1, \
         NUM 1, BASE 1, ADDR 0, KICK 0, ADDR 1, KICK 1"
    );
}

#[test]
fn a_plain_back_end_is_told_ring_by_ring_and_enabled_last() {
    let order = "GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER, \
                 SET_FEATURES, TABLE 0, CALL 0, NUM 0, BASE 0, CALL 1, NUM 1, BASE 1, \
                 ADDR 0, KICK 0, ADDR 1, KICK 1, ENABLE 0, ENABLE 1";
    assert_eq!(bring_up(PLAIN, |_| {}), order);
    // Acknowledgements are the connection's business.
    let nothing = Offer {
        protocol: ProtocolFeatures::empty(),
        ..PLAIN
    };
    assert_eq!(bring_up(nothing, |_| {}), order);
    // The layout of a ring is in its features and addresses.
    let packed = |wanted: &mut Wanted| wanted.features = Some(VERSION_1 | PACKED);
    assert_eq!(bring_up(PLAIN, packed), order);
}

#[test]
fn an_error_descriptor_comes_before_the_kick() {
    let order = bring_up(PLAIN, |wanted| {
        for ring in wanted.rings.iter_mut().flatten() {
            ring.err = true;
        }
    });
    let rings = "ADDR 0, ERR 0, KICK 0, ADDR 1, ERR 1, KICK 1, ENABLE 0, ENABLE 1";
    assert!(order.ends_with(rings), "{order}");
}

#[test]
fn memory_in_slots_comes_one_by_one() {
    let offer = PLAIN.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
    let order = bring_up(offer, |wanted| wanted.memory = list(&[5, 0, 3]));
    let memory = "SET_OWNER, GET_MAX_MEM_SLOTS, SET_FEATURES, ADD 0, ADD 3, ADD 5, CALL 0";
    assert!(order.contains(memory), "{order}");
}

#[test]
fn an_in_flight_buffer_comes_before_any_address_and_kick() {
    let offer = PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD);
    let order = bring_up(offer, |wanted| {
        wanted.rings[1].as_mut().unwrap().size = 256;
    });
    let buffer = "BASE 1, GET_INFLIGHT 2x256, SET_INFLIGHT, ADDR 0";
    assert!(order.contains(buffer), "{order}");
}

#[test]
fn a_back_end_that_wants_no_in_flight_buffer_gets_none() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    loop {
        let Next::Do(step) = rig.actual.next(&rig.wanted) else {
            break;
        };
        assert_ne!(step, Step::SetInflight);
        rig.actual.begun(&step, &rig.wanted);
        let told = match step {
            Step::GetInflight(_) => 0,
            _ => rig.offer.answer(&step),
        };
        rig.actual.done(&step, told, &rig.wanted);
    }
    assert!(rig.actual.rings[0].enabled);
}

#[test]
fn with_a_status_the_driver_is_there_first_and_ready_last() {
    let order = bring_up(PLAIN.with(ProtocolFeatures::STATUS), |_| {});
    assert!(
        order.contains("SET_FEATURES, STATUS 11, TABLE 0,") && order.ends_with(", STATUS 15"),
        "{order}"
    );
}

#[test]
fn everything_has_its_place() {
    let order = bring_up(PLAIN.with(ProtocolFeatures::all()), |wanted| {
        wanted.channel = true;
        wanted.config_size = 60;
        wanted.num_rings = 1;
        wanted.rings.truncate(1);
    });
    assert_eq!(
        order,
        "GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER, \
         GET_QUEUE_NUM, GET_MAX_MEM_SLOTS, GET_SHMEM_CONFIG, CHANNEL, GET_CONFIG, \
         SET_FEATURES, STATUS 11, ADD 0, CALL 0, NUM 0, BASE 0, GET_INFLIGHT 1x64, \
         SET_INFLIGHT, ADDR 0, KICK 0, ENABLE 0, STATUS 15"
    );
}

#[test]
fn of_many_rings_only_those_that_are_wanted_are_told_of() {
    let order = bring_up(PLAIN.with(ProtocolFeatures::MQ), |wanted| {
        wanted.rings = vec![ring(1), None, ring(2), None];
    });
    assert!(
        order.ends_with(
            "GET_QUEUE_NUM, SET_FEATURES, TABLE 0, CALL 0, NUM 0, BASE 0, CALL 2, NUM 2, \
             BASE 2, ADDR 0, KICK 0, ADDR 2, KICK 2, ENABLE 0, ENABLE 2"
        ),
        "{order}"
    );
}

#[test]
fn before_the_guest_has_a_driver_only_the_handshake_is_made() {
    let offer = PLAIN.with(ProtocolFeatures::STATUS);
    let mut wanted = wanted();
    wanted.features = None;
    let mut rig = Rig::new(offer, wanted);
    assert!(rig.go().ends_with("SET_OWNER"));
    assert!(rig.actual.connected(&rig.wanted));
}

// ---- what is acknowledged ----

#[test]
fn a_bit_is_not_acknowledged_without_what_it_needs() {
    use ProtocolFeatures as P;
    let acked = |offered: P, change: &dyn Fn(&mut Wanted)| {
        let mut wanted = Wanted {
            protocol: u64::MAX,
            channel: true,
            config_size: 1,
            ..Wanted::default()
        };
        change(&mut wanted);
        acknowledge(offered.bits() | 1 << 63, &wanted)
    };
    assert_eq!(acked(P::all(), &|_| {}), SERVED);
    let silent = acked(P::all(), &|wanted| wanted.channel = false);
    assert!(!silent.intersects(P::BACKEND_REQ | P::BACKEND_SEND_FD | P::SHMEM | P::SHARED_OBJECT));
    assert!(!acked(P::all(), &|wanted| wanted.config_size = 0).contains(P::CONFIG));
    let skip = P::GET_VRING_BASE_SKIP_DRAIN | P::GET_VRING_BASE_INFLIGHT;
    assert_eq!(acked(skip, &|_| {}), P::empty());
    let chosen = acked(P::all(), &|wanted| wanted.protocol = P::MQ.bits());
    assert_eq!(chosen, P::MQ);
}

// ---- changes ----

#[test]
fn one_ring_starts_and_stops_while_another_runs() {
    let all = ProtocolFeatures::STATUS | ProtocolFeatures::INFLIGHT_SHMFD;
    let mut rig = Rig::new(PLAIN.with(all), wanted());
    rig.start(0, 1);
    assert!(rig.go().ends_with("STATUS 15"));
    rig.start(1, 2);
    assert_eq!(rig.go(), "CALL 1, NUM 1, BASE 1, ADDR 1, KICK 1, ENABLE 1");
    rig.stop(0);
    assert_eq!(rig.go(), "DISABLE 0, STOP 0");
    rig.start(0, 3);
    assert_eq!(rig.go(), "CALL 0, NUM 0, BASE 0, ADDR 0, KICK 0, ENABLE 0");
    // Started anew before it was seen to stop.
    rig.start(0, 4);
    assert_eq!(
        rig.go(),
        "DISABLE 0, STOP 0, CALL 0, NUM 0, BASE 0, ADDR 0, KICK 0, ENABLE 0"
    );
    assert_eq!(rig.go(), "");
}

#[test]
fn a_call_descriptor_is_swapped_in_one_message() {
    let mut rig = Rig::new(PLAIN, wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.go();
    rig.wanted.rings[1].as_mut().unwrap().call = 3;
    assert_eq!(rig.go(), "CALL 1");
}

#[test]
fn rings_are_stopped_as_the_caller_chose_where_that_was_agreed() {
    use ProtocolFeatures as P;
    let skip = P::GET_VRING_BASE_SKIP_DRAIN | P::GET_VRING_BASE_INFLIGHT | P::INFLIGHT_SHMFD;
    let bare = Offer {
        features: VERSION_1,
        ..PLAIN
    };
    for (offer, words) in [
        (PLAIN, "DISABLE 0, STOP 0"),
        (PLAIN.with(skip), "DISABLE 0, SKIP 0"),
        // Without bit 30 there is nothing to disable.
        (bare, "STOP 0"),
    ] {
        let mut rig = Rig::new(offer, wanted());
        rig.start(0, 1);
        rig.go();
        rig.wanted.drain = Drain::Skip;
        rig.stop(0);
        assert_eq!(rig.go(), words);
    }
}

#[test]
fn nothing_goes_on_before_a_ring_has_stopped() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS), wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.go();
    rig.stop(0);
    rig.stop(1);
    rig.wanted.memory = list(&[]);
    let mut steps = Vec::new();
    while let Next::Do(step) = rig.actual.next(&rig.wanted) {
        rig.actual.begun(&step, &rig.wanted);
        steps.push(step);
    }
    let words: Vec<_> = steps.iter().map(word).collect();
    assert_eq!(words, ["DISABLE 0", "DISABLE 1", "STOP 0", "STOP 1"]);
    for step in &steps[..3] {
        rig.actual.done(step, 7, &rig.wanted);
        assert_eq!(rig.actual.next(&rig.wanted), Next::Wait);
    }
    rig.actual.done(&steps[3], 7, &rig.wanted);
    assert_eq!(rig.go(), "REM 0");
}

#[test]
fn a_reset_is_made_in_the_best_way_there_is_and_keeps_memory() {
    use ProtocolFeatures as P;
    let cases = [
        (P::RESET_DEVICE | P::STATUS, "RESET_DEVICE", "STATUS 11, "),
        (P::RESET_DEVICE, "RESET_DEVICE", ""),
        (P::STATUS, "STATUS 0", "STATUS 11, "),
        (P::empty(), "(reset)", ""),
    ];
    for (more, reset, status) in cases {
        let mut rig = Rig::new(PLAIN.with(more | P::INFLIGHT_SHMFD), wanted());
        rig.start(0, 1);
        rig.go();
        rig.reset();
        assert_eq!(rig.go(), format!("DISABLE 0, STOP 0, {reset}"));
        rig.wanted.features = Some(VERSION_1);
        rig.start(0, 2);
        let anew = rig.go();
        let begin = format!("SET_FEATURES, {status}CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x64, ");
        assert!(anew.starts_with(&begin), "{anew}");
    }
}

#[test]
fn a_reset_says_no_more_than_there_is_to_say() {
    let offer = PLAIN.with(ProtocolFeatures::RESET_DEVICE);
    // Before the guest's driver came.
    let mut rig = Rig::up(
        offer,
        Wanted {
            features: None,
            ..wanted()
        },
    );
    rig.reset();
    assert_eq!(rig.go(), "(reset)");
    // Before a ring has run.
    let mut rig = Rig::up(offer, wanted());
    rig.reset();
    assert_eq!(rig.go(), "RESET_DEVICE");
    // In the middle of a ring's start.
    let mut rig = Rig::up(offer, wanted());
    rig.start(0, 1);
    let Next::Do(step) = rig.actual.next(&rig.wanted) else {
        panic!("nothing to do")
    };
    rig.actual.begun(&step, &rig.wanted);
    rig.reset();
    assert_eq!(rig.go(), "(forget 0), RESET_DEVICE");
    // On a connection that is new.
    rig.reset();
    rig.wanted.features = Some(VERSION_1);
    rig.actual = Actual::new(&rig.wanted, None);
    assert!(!rig.go().contains("RESET"));
}

#[test]
fn other_features_stop_all_rings_first() {
    let offer = PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD);
    let mut rig = Rig::new(offer, wanted());
    rig.start(0, 1);
    rig.go();
    rig.wanted.features = Some(VERSION_1 | PACKED);
    assert_eq!(
        rig.go(),
        "DISABLE 0, STOP 0, SET_FEATURES, CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x64, \
         SET_INFLIGHT, ADDR 0, KICK 0, ENABLE 0"
    );
}

#[test]
fn memory_changes_without_touching_rings() {
    for (more, grown, shrunk) in [
        (ProtocolFeatures::empty(), "TABLE 0+1", "TABLE 0"),
        (ProtocolFeatures::CONFIGURE_MEM_SLOTS, "ADD 1", "REM 1"),
    ] {
        let mut rig = Rig::new(PLAIN.with(more), wanted());
        rig.start(0, 1);
        rig.go();
        rig.wanted.memory = list(&[0, 1]);
        assert_eq!(rig.go(), grown);
        rig.wanted.memory = list(&[0]);
        assert_eq!(rig.go(), shrunk);
    }
}

#[test]
fn rings_that_are_held_do_not_start() {
    let mut rig = Rig::new(
        PLAIN,
        Wanted {
            held: true,
            ..wanted()
        },
    );
    rig.start(0, 1);
    assert!(rig.go().ends_with("TABLE 0"));
    rig.wanted.held = false;
    assert!(rig.go().starts_with("CALL 0"));
}

// ---- the in-flight buffer ----

/// A device that has lost its back-end, with what that kept.
fn regained(rig: &Rig, key: InflightKey) -> Rig {
    Rig {
        offer: rig.offer,
        wanted: rig.wanted.clone(),
        actual: Actual::new(&rig.wanted, Some(key)),
    }
}

const KEY: InflightKey = InflightKey {
    packed: false,
    num_queues: 2,
    queue_size: 256,
};

#[test]
fn the_buffer_of_the_connection_before_is_handed_over() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.wanted.rings[1].as_mut().unwrap().size = 256;
    let order = regained(&rig, KEY).go();
    assert!(order.contains("BASE 1, SET_INFLIGHT, ADDR 0"), "{order}");
}

#[test]
fn a_buffer_with_room_to_spare_is_not_given_up() {
    // The larger ring was stopped, the other still has requests in flight.
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    let order = regained(&rig, KEY).go();
    assert!(order.contains("BASE 0, SET_INFLIGHT, ADDR 0"), "{order}");
}

#[test]
fn a_buffer_that_is_too_small_is_replaced_when_no_ring_runs() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    rig.go();
    rig.stop(0);
    rig.go();
    rig.start(0, 2);
    rig.wanted.rings[0].as_mut().unwrap().size = 256;
    let order = rig.go();
    let buffer = "CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x256, SET_INFLIGHT, ADDR 0";
    assert!(order.starts_with(buffer), "{order}");
}

// ---- any sequence ----

/// What a ring was told, each part for which start.
#[derive(Debug, Clone, Default)]
struct ModelRing {
    call: Option<u64>,
    num: Option<u64>,
    base: Option<u64>,
    addr: Option<u64>,
    err: Option<u64>,
    kick: Option<u64>,
    enabled: bool,
    size: u32,
    stopping: bool,
}

/// A back-end that insists on the order of the protocol.
#[derive(Debug)]
struct Model {
    offer: Offer,
    told_features: bool,
    told_protocol: bool,
    protocol: Option<ProtocolFeatures>,
    owner: bool,
    shmem: bool,
    channel: bool,
    features: Option<u64>,
    status: u32,
    memory: BTreeMap<u64, GuestRegion>,
    /// This buffer is in use.
    inflight: Option<InflightKey>,
    rings: Vec<ModelRing>,
}

impl Model {
    fn new(offer: Offer, rings: usize) -> Self {
        Self {
            offer,
            told_features: false,
            told_protocol: false,
            protocol: None,
            owner: false,
            shmem: false,
            channel: false,
            features: None,
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
    fn take(&mut self, step: &Step, wanted: &Wanted, buffer: Option<InflightKey>) {
        use ProtocolFeatures as P;
        match step {
            Step::GetFeatures => assert!(!std::mem::replace(&mut self.told_features, true)),
            Step::GetProtocolFeatures => {
                assert!(self.told_features && self.offer.features & BIT_30 != 0);
                self.told_protocol = true;
            }
            Step::SetProtocolFeatures(agreed) => {
                assert!(self.told_protocol && self.protocol.is_none());
                assert!((self.offer.protocol & SERVED).contains(*agreed));
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
            Step::SetStatus(0) => {
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
            Step::ResetDevice => {
                assert!(self.agreed(P::RESET_DEVICE) && self.quiet());
                self.reset();
            }
            Step::Forget => {
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
            Step::SetInflight => {
                assert!(self.quiet(), "a buffer that is in use would be lost");
                self.inflight = Some(buffer.expect("there is a buffer"));
            }
            Step::Ring(index, part) => self.tell_ring(*index, *part, wanted),
        }
    }

    fn runs(&self, ring: &ModelRing) -> bool {
        ring.kick.is_some() && (ring.enabled || self.features.is_some_and(|it| it & BIT_30 == 0))
    }

    fn reset(&mut self) {
        self.features = None;
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
        let want = wanted.rings[index];
        assert!(features.is_some() && !ring.stopping);
        let now = want.map(|it| it.start);
        let told = features.is_some_and(|it| it & BIT_30 != 0);
        let stale = ring.kick.is_some() && ring.kick != now
            || features != wanted_features(wanted, self.offer)
            || want.is_none();
        match part {
            RingStep::Forget => assert_eq!(ring.kick, None),
            RingStep::Disable | RingStep::Stop(_) if !stale => panic!("{part:?} of a wanted ring"),
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
            RingStep::Call => ring.call = want.map(|it| it.call),
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
    fn answer(&mut self, step: &Step) -> u64 {
        if let Step::Ring(index, RingStep::Stop(_)) = step {
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
    fn check(&self, wanted: &Wanted) {
        let features = wanted_features(wanted, self.offer);
        assert_eq!(self.features, features);
        let there: Vec<_> = self.memory.values().cloned().collect();
        let slots = self.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
        // A table is never empty, and nothing is sent before there is a driver.
        let told = features.is_some() || !there.is_empty();
        if told && (slots || !wanted.memory.is_empty()) {
            assert_eq!(there, wanted.memory.to_vec());
        }
        for (ring, want) in self.rings.iter().zip(&wanted.rings) {
            let want = want.filter(|_| !wanted.held || ring.kick.is_some());
            assert_eq!(ring.kick, want.map(|it| it.start));
            let Some(want) = want else { continue };
            assert_eq!(ring.call, Some(want.call));
            assert!(self.runs(ring) && ring.size == want.size);
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

/// What a caller does, as far as a device lets it, and what becomes of messages.
#[derive(Debug, Clone)]
enum Act {
    Start {
        ring: Index,
        large: bool,
        err: bool,
    },
    Stop {
        ring: Index,
        skip: bool,
    },
    SwapCall(Index),
    Features(u64),
    Add(u64),
    Remove(u64),
    Reset,
    ConfigChanged,
    Lose {
        held: bool,
    },
    /// So many requests are sent, if there are so many.
    Send(usize),
    /// And answered.
    Answer(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let ring = any::<Index>;
    let place = 0..4_u64;
    prop_oneof![
        4 => (ring(), any::<bool>(), any::<bool>())
            .prop_map(|(ring, large, err)| Act::Start { ring, large, err }),
        2 => (ring(), any::<bool>()).prop_map(|(ring, skip)| Act::Stop { ring, skip }),
        1 => ring().prop_map(Act::SwapCall),
        1 => select(vec![VERSION_1, VERSION_1 | PACKED]).prop_map(Act::Features),
        1 => place.clone().prop_map(Act::Add),
        1 => place.prop_map(Act::Remove),
        1 => Just(Act::Reset),
        1 => Just(Act::ConfigChanged),
        1 => prop::bool::weighted(0.2).prop_map(|held| Act::Lose { held }),
        4 => (1..20_usize).prop_map(Act::Send),
        4 => (1..20_usize).prop_map(Act::Answer),
    ]
}

/// A caller, a device, its connection and the back-end.
#[derive(Debug)]
struct Play {
    wanted: Wanted,
    actual: Actual,
    model: Model,
    /// Sent and not answered.
    under_way: VecDeque<Step>,
    /// The caller's device keeps it over a loss.
    buffer: Option<InflightKey>,
    numbers: u64,
    steps: usize,
}

impl Play {
    fn new(offer: Offer, wanted: Wanted) -> Self {
        Self {
            actual: Actual::new(&wanted, None),
            model: Model::new(offer, wanted.rings.len()),
            wanted,
            under_way: VecDeque::new(),
            buffer: None,
            numbers: 0,
            steps: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn act(&mut self, act: &Act) {
        let rings = self.wanted.rings.len();
        match act {
            Act::Start { ring, large, err } => {
                let index = ring.index(rings);
                let size = if *large { 256 } else { 64 };
                let any = self.wanted.rings.iter().any(Option::is_some);
                let too_large = self
                    .buffer
                    .is_some_and(|it| u32::from(it.queue_size) < size);
                let busy = any && too_large;
                let ready = self.wanted.features.is_some() && !self.wanted.memory.is_empty();
                let free = self.wanted.rings[index].is_none();
                if ready && free && !busy && !self.wanted.held {
                    let start = self.number();
                    self.wanted.rings[index] = Some(RingWanted {
                        start,
                        call: start,
                        err: *err,
                        size,
                    });
                }
            }
            Act::Stop { ring, skip } => {
                self.wanted.drain = if *skip { Drain::Skip } else { Drain::Finish };
                self.wanted.rings[ring.index(rings)] = None;
            }
            Act::SwapCall(ring) => {
                let call = self.number();
                if let Some(ring) = &mut self.wanted.rings[ring.index(rings)] {
                    ring.call = call;
                }
            }
            Act::Features(features) => {
                if self.wanted.rings.iter().all(Option::is_none) {
                    self.wanted.features = Some(*features);
                }
            }
            Act::Add(at) => {
                // Refused where it is there already.
                let _ = self.wanted.memory.add(region(*at));
            }
            Act::Remove(at) => {
                let needed = self.wanted.rings.iter().any(Option::is_some);
                if !needed || self.wanted.memory.len() > 1 {
                    let gone = region(*at);
                    let _ = self.wanted.memory.remove(gone.guest_addr, gone.size);
                }
            }
            Act::Reset => {
                self.wanted.resets += 1;
                self.wanted.features = None;
                self.wanted.held = false;
                self.wanted.drain = Drain::Skip;
                self.wanted.rings.fill(None);
                self.buffer = None;
            }
            Act::ConfigChanged => {
                if self.actual.config == Asked::Told(()) {
                    self.actual.config = Asked::Not;
                }
            }
            Act::Lose { held } => {
                self.wanted.held |=
                    *held && self.actual.rings.iter().any(|ring| ring.start.is_some());
                self.under_way.clear();
                self.actual = Actual::new(&self.wanted, self.buffer);
                self.model = Model::new(self.model.offer, rings);
            }
            Act::Send(times) => {
                for _ in 0..*times {
                    self.send();
                }
            }
            Act::Answer(times) => {
                for _ in 0..*times {
                    self.answer();
                }
            }
        }
    }

    /// As the device does it. Whether there was anything to send.
    fn send(&mut self) -> bool {
        if self.under_way.back().is_some_and(Step::alone) {
            return false;
        }
        let Next::Do(step) = self.actual.next(&self.wanted) else {
            return false;
        };
        self.steps += 1;
        self.model.take(&step, &self.wanted, self.buffer);
        if matches!(step, Step::Forget | Step::SetStatus(0)) {
            self.buffer = None;
        }
        self.actual.begun(&step, &self.wanted);
        if !matches!(step, Step::Forget | Step::Ring(_, RingStep::Forget)) {
            self.under_way.push_back(step);
        }
        true
    }

    fn answer(&mut self) -> bool {
        let Some(step) = self.under_way.pop_front() else {
            return false;
        };
        let told = self.model.answer(&step);
        match &step {
            Step::GetInflight(key) => self.buffer = Some(*key),
            Step::ResetDevice => self.buffer = None,
            _ => {}
        }
        self.actual.done(&step, told, &self.wanted);
        true
    }

    /// Until there is nothing to do.
    fn finish(&mut self) {
        self.steps = 0;
        while self.send() || self.answer() {
            // Handshake, memory, and all of each ring twice.
            let most = 20 + 8 + 16 * self.wanted.rings.len();
            assert!(self.steps < most, "it does not end");
        }
        assert_eq!(self.actual.next(&self.wanted), Next::Nothing);
        self.model.check(&self.wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_wants_end_in_what_is_wanted(
        bit_30 in prop::bool::weighted(0.9),
        protocol in any::<u64>(),
        more in any::<u64>(),
        channel: bool,
        config in 0..2_u32,
        rings in 1..4_usize,
        fixed: bool,
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let offer = Offer {
            features: VERSION_1 | PACKED | if bit_30 { BIT_30 } else { 0 },
            // Mostly offered.
            protocol: ProtocolFeatures::from_bits_truncate(protocol | more),
        };
        let wanted = Wanted {
            protocol: u64::MAX,
            channel,
            config_size: config * 60,
            num_rings: if fixed { u32::try_from(rings).unwrap() } else { 0 },
            features: Some(VERSION_1),
            memory: list(&[0]),
            rings: vec![None; rings],
            ..Wanted::default()
        };
        let mut play = Play::new(offer, wanted);
        for act in &acts {
            play.act(act);
        }
        play.finish();
        // Once more says nothing more.
        play.finish();
        prop_assert_eq!(play.steps, 0);
    }
}
