//! What the caller wants, as far as the order of requests depends on it.

use crate::device::memory::MemoryList;
use std::collections::VecDeque;

/// How a ring is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::device) enum Drain {
    /// GET_VRING_BASE: the device completes the requests that it has taken first.
    #[default]
    Finish,
    /// GET_VRING_BASE_SKIP_DRAIN, if that was agreed and there is an in-flight buffer.
    Skip,
}

/// A ring that is to run, as far as the order depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) struct Run {
    /// Each start has a number of its own.
    pub(in crate::device) start: u64,
    /// Each call descriptor has a number of its own.
    pub(in crate::device) call: u64,
    /// An error descriptor is given.
    pub(in crate::device) err: bool,
    pub(in crate::device) size: u32,
}

/// What the caller wants of one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::device) struct RingWanted {
    /// The start that is to run; `None` if the ring is to be stopped.
    pub(in crate::device) run: Option<Run>,
    /// How the run before is stopped.
    pub(in crate::device) stop: Drain,
}

/// An address that a network device is to announce once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) struct Announcement {
    /// Each has a number of its own, which grows.
    pub(in crate::device) number: u64,
    pub(in crate::device) mac: [u8; 6],
}

/// What the caller wants.
#[derive(Debug, Clone, Default)]
pub(in crate::device) struct Wanted {
    /// Protocol features that may be acknowledged.
    pub(in crate::device) protocol: u64,
    /// How many rings the device has; 0: as many as are started.
    pub(in crate::device) num_rings: u32,
    /// The largest size a ring will have; 0: that of the largest ring that runs.
    pub(in crate::device) max_ring_size: u32,
    /// Serve the back-end's requests.
    pub(in crate::device) channel: bool,
    /// Bytes of the configuration space; 0 for none, or [`CONFIG_SIZE_LATER`].
    pub(in crate::device) config_size: u32,
    /// What the guest's driver acknowledged.
    pub(in crate::device) features: Option<u64>,
    /// The largest frame of a network device.
    pub(in crate::device) mtu: Option<u32>,
    /// Addresses that a network device is to announce, in their order.
    pub(in crate::device) announce: VecDeque<Announcement>,
    /// The display's socket of a GPU; each has a number of its own.
    pub(in crate::device) gpu: Option<u64>,
    /// The byte order of the rings of a legacy driver: big-endian, or little-endian.
    pub(in crate::device) big_endian: Option<bool>,
    /// Without the regions that a back-end has refused.
    pub(in crate::device) memory: MemoryList,
    /// By index.
    pub(in crate::device) rings: Vec<RingWanted>,
    /// How often the device was reset.
    pub(in crate::device) resets: u64,
    /// No ring may start before the next reset.
    pub(in crate::device) held: bool,
}

impl Wanted {
    /// The start of this ring that is to run.
    pub(in crate::device) fn start(&self, ring: usize) -> Option<u64> {
        self.run(ring).map(|run| run.start)
    }

    /// Rings are wanted that may not start before the next reset.
    pub(in crate::device) fn waits_for_reset(&self) -> bool {
        self.held && self.rings.iter().any(|ring| ring.run.is_some())
    }

    pub(in crate::device) fn run(&self, ring: usize) -> Option<Run> {
        self.rings.get(ring)?.run
    }
}
