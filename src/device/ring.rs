//! Rings as the caller describes them.

use super::memory::{self, MemoryList};
use crate::error::{Error, Result};
use crate::message::{VringAddr, virtio};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Where a ring stands, read from guest memory when that is needed: once when the
/// ring is started, and after a back-end was lost. No lock of the device is held
/// meanwhile.
pub trait RingIndices: Send + Sync {
    /// What the device has used. Split: the index field of the used ring. Packed:
    /// bits 0-14 the next used descriptor, 15 its wrap counter.
    fn used(&self) -> Option<u16>;

    /// What the driver has made available: the index field of the available ring.
    fn available(&self) -> Option<u16> {
        None
    }
}

/// Where a ring begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Base {
    /// As a new ring does: 0, and for packed rings with both wrap counters 1.
    #[default]
    New,
    /// Where it was when it was stopped.
    Resume,
    /// Here, in the form of
    /// [`set_vring_base`](crate::BackendClient::set_vring_base).
    At(u32),
}

/// A ring to be started. Addresses are guest addresses.
#[derive(Clone)]
pub struct Ring<'fd> {
    /// Which one.
    pub index: u32,
    /// Descriptors.
    pub size: u32,
    /// Descriptor table (packed: descriptor ring).
    pub descriptor: u64,
    /// Available ring (packed: driver event suppression area).
    pub available: u64,
    /// Used ring (packed: device event suppression area).
    pub used: u64,
    /// Where it begins.
    pub base: Base,
    /// What the driver writes. Kept: duplicated, until the ring is stopped.
    pub kick: BorrowedFd<'fd>,
    /// What the device writes; `None` if the driver polls. Kept.
    pub call: Option<BorrowedFd<'fd>>,
    /// What the device writes when the ring is broken. Kept.
    pub err: Option<BorrowedFd<'fd>>,
    /// Where it stands, for going on after a loss.
    pub indices: Option<Arc<dyn RingIndices>>,
}

impl std::fmt::Debug for Ring<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("index", &self.index)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// From where a ring is started on the next connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    At(u32),
    /// Where the ring was stopped, which is not known before that is done.
    Stopped,
    Used,
    Available,
}

/// What is kept of it.
pub(super) struct Kept {
    pub(super) addr: VringAddr,
    pub(super) size: u32,
    pub(super) origin: Origin,
    pub(super) kick: Arc<OwnedFd>,
    pub(super) call: Option<Arc<OwnedFd>>,
    pub(super) err: Option<Arc<OwnedFd>>,
    pub(super) indices: Option<Arc<dyn RingIndices>>,
    pub(super) can_tell: CanTell,
    /// When the back-end was lost the in-flight buffer had the rest.
    pub(super) buffered: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("addr", &self.addr)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl Kept {
    /// It ran before, and where it stands now has to be read.
    pub(super) fn unplaced(&self) -> bool {
        matches!(self.origin, Origin::Used | Origin::Available)
    }

    /// Whether where it stands can be read.
    pub(super) fn knows(&self, origin: Origin) -> bool {
        match origin {
            Origin::At(_) | Origin::Stopped => true,
            Origin::Used => self.can_tell.used,
            Origin::Available => self.can_tell.available,
        }
    }
}

/// What [`RingIndices`] of a ring tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CanTell {
    used: bool,
    available: bool,
}

impl CanTell {
    /// Asks, so not under a lock.
    pub(super) fn of(ring: &Ring<'_>) -> Self {
        let indices = ring.indices.as_ref();
        Self {
            used: indices.is_some_and(|it| it.used().is_some()),
            available: indices.is_some_and(|it| it.available().is_some()),
        }
    }
}

/// A place as a base.
pub(super) fn base_at(place: u16, packed: bool) -> u32 {
    let place = u32::from(place);
    match packed {
        // The driver's side of it goes on from there, too.
        true => place | place.wrapping_shl(16),
        false => place,
    }
}

/// Where a new ring begins.
pub(super) const fn new_base(packed: bool) -> u32 {
    match packed {
        true => 0x8000_8000,
        false => 0,
    }
}

pub(super) fn addr_of(ring: &Ring<'_>) -> VringAddr {
    VringAddr {
        index: ring.index,
        flags: 0,
        descriptor: ring.descriptor,
        used: ring.used,
        available: ring.available,
        log: 0,
    }
}

/// The parts of a ring: name, address, bytes, alignment. The rust-vmm back-ends
/// hang up on an alignment that is wrong.
fn parts(ring: &VringAddr, size: u32, packed: bool) -> [(&'static str, u64, u64, u64); 3] {
    let size = u64::from(size);
    let of = |each: u64, more: u64| size.saturating_mul(each).saturating_add(more);
    match packed {
        true => [
            ("descriptor ring", ring.descriptor, of(16, 0), 16),
            ("driver event suppression", ring.available, 4, 4),
            ("device event suppression", ring.used, 4, 4),
        ],
        // With the fields behind them that EVENT_IDX uses.
        false => [
            ("descriptor table", ring.descriptor, of(16, 0), 16),
            ("available ring", ring.available, of(2, 6), 2),
            ("used ring", ring.used, of(8, 6), 4),
        ],
    }
}

/// Whether a ring that is to run lies in this memory.
pub(super) fn lies_in(kept: &Kept, features: u64, memory: &MemoryList) -> bool {
    let has = |bit: u32| features & 1_u64.wrapping_shl(bit) != 0;
    // An address for an IOMMU is no place in memory.
    has(virtio::F_ACCESS_PLATFORM)
        || parts(&kept.addr, kept.size, has(virtio::F_RING_PACKED))
            .iter()
            .all(|(_, addr, len, _)| memory::covers(memory, *addr, *len).is_some())
}

/// Checks that a ring lies in memory, as back-ends insist.
pub(super) fn check(ring: &Ring<'_>, features: u64, memory: &MemoryList) -> Result<()> {
    let has = |bit: u32| features & 1_u64.wrapping_shl(bit) != 0;
    let packed = has(virtio::F_RING_PACKED);
    let valid = match packed {
        true => (1..=1 << 15).contains(&ring.size),
        false => ring.size.is_power_of_two() && ring.size <= 1 << 15,
    };
    if !valid {
        return Err(Error::invalid(format!(
            "a ring of {} descriptors: {}",
            ring.size,
            match packed {
                true => "packed, it has 1 to 32768",
                false => "split, it has a power of two up to 32768",
            }
        )));
    }
    for (name, addr, len, alignment) in parts(&addr_of(ring), ring.size, packed) {
        if addr.checked_rem(alignment) != Some(0) {
            let text = format!("the {name} at {addr:#x} is not aligned to {alignment}");
            return Err(Error::invalid(text));
        }
        // An address for an IOMMU is no place in memory.
        if !has(virtio::F_ACCESS_PLATFORM) && memory::covers(memory, addr, len).is_none() {
            return Err(Error::invalid(format!(
                "the {name} at {addr:#x}, {len:#x} bytes, lies in no region of the memory"
            )));
        }
    }
    Ok(())
}
