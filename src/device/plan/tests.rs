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
mod refusals;
mod sequences;

use super::super::memory::{FileId, GuestRegion, MemoryList};
use super::*;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

const PAGE: u64 = 4096;
const VERSION_1: u64 = 1 << 32;
const NET_MTU: u64 = bit(virtio::NET_F_MTU);
const BIT_30: u64 = bit(virtio::F_PROTOCOL_FEATURES);
const PACKED: u64 = bit(virtio::F_RING_PACKED);

/// A page of one file; what matters is which.
fn region(at: u64) -> GuestRegion {
    static FD: LazyLock<Arc<OwnedFd>> =
        // Not a socket: tests that run beside these count sockets.
        LazyLock::new(|| Arc::new(File::open("/dev/null").unwrap().into()));
    GuestRegion {
        // Neighbours are never coalesced.
        guest_addr: at * 2 * PAGE,
        size: PAGE,
        offset: 0,
        fd: FD.clone(),
        file: FileId {
            dev: 1,
            ino: at,
            is_regular: true,
        },
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
        Step::SetMtu(mtu) => format!("MTU {mtu}"),
        Step::SendRarp(announcement) => format!("RARP {}", announcement.number),
        Step::GpuSocket(number) => format!("GPU {number}"),
        Step::Reset(ResetBy::ResetDevice, _) => "RESET_DEVICE".to_owned(),
        Step::Reset(ResetBy::SetStatus, _) => "STATUS 0".to_owned(),
        Step::Reset(ResetBy::Stopping, _) => "(reset)".to_owned(),
        Step::Barrier => "BARRIER".to_owned(),
        Step::Memory(MemoryStep::SetTable(table)) => {
            let places: Vec<_> = table.iter().map(|it| place(it).to_string()).collect();
            format!("TABLE {}", places.join("+"))
        }
        Step::Memory(MemoryStep::Add(region)) => format!("ADD {}", place(region)),
        Step::Memory(MemoryStep::Remove(region)) => format!("REM {}", place(region)),
        Step::GetInflight(key) => {
            format!("GET_INFLIGHT {}x{}", key.num_queues, key.queue_size)
        }
        Step::SetInflight(_) => "SET_INFLIGHT".to_owned(),
        Step::Ring { index, part, .. } => match part {
            RingStep::Call(_) => format!("CALL {index}"),
            RingStep::Num => format!("NUM {index}"),
            RingStep::Base => format!("BASE {index}"),
            RingStep::Endian(true) => format!("BIG {index}"),
            RingStep::Endian(false) => format!("LITTLE {index}"),
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
        rings: vec![RingWanted::default(); 2],
        ..Wanted::default()
    }
}

fn ring(start: u64) -> RingWanted {
    RingWanted {
        run: Some(Run {
            start,
            call: start,
            err: false,
            size: 64,
        }),
        stop: Drain::Finish,
    }
}

impl Wanted {
    fn run_mut(&mut self, ring: usize) -> &mut Run {
        self.rings[ring].run.as_mut().unwrap()
    }
}

impl Actual {
    /// A step was answered, with a buffer where it asks for one.
    fn done(&mut self, number: u64, step: &Step, told: u64) {
        match step {
            Step::GetInflight(key) => self.has_buffer((told != 0).then_some(Held {
                generation: number,
                key: *key,
            })),
            _ => self.answer(step, told),
        }
        self.confirm(number);
    }
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
                    let number = self.actual.send(&step);
                    let told = self.offer.answer(&step);
                    self.actual.done(number, &step, told);
                }
                Next::Wait => panic!("it waits, and all is answered: {words:?}"),
                Next::Close => panic!("it closes: {words:?}"),
                Next::Nothing => return words.join(", "),
            }
            assert!(words.len() < 100, "it does not end: {words:?}");
        }
    }

    fn start(&mut self, index: usize, start: u64) {
        self.wanted.rings[index] = ring(start);
    }

    fn stop(&mut self, index: usize) {
        self.wanted.rings[index] = RingWanted::default();
    }

    fn stop_as(&mut self, index: usize, stop: Drain) {
        self.wanted.rings[index] = RingWanted { run: None, stop };
    }

    /// As the caller of a device does it.
    fn reset(&mut self) {
        self.wanted.resets += 1;
        self.wanted.features = None;
        self.wanted.rings.fill(RingWanted {
            run: None,
            stop: Drain::Skip,
        });
    }
}
