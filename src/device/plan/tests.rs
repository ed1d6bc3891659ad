#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod changes;
mod inflight;
mod model;
mod order;
mod sequences;

use super::super::memory::{FileId, GuestRegion};
use super::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

const PAGE: u64 = 4096;
const VERSION_1: u64 = 1 << 32;
const BIT_30: u64 = bit(virtio::F_PROTOCOL_FEATURES);
const PACKED: u64 = bit(virtio::F_RING_PACKED);

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
