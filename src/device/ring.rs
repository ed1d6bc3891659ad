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

/// Where a ring stands, or begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) base: u32,
    /// The in-flight buffer with its unfinished requests.
    pub(super) unfinished: Option<u64>,
}

impl Place {
    /// A base with nothing unfinished.
    pub(super) const fn at(base: u32) -> Self {
        Self {
            base,
            unfinished: None,
        }
    }
}

/// From where a ring that is wanted starts on the next connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    At(Place),
    /// From where the run before stops, once that is known.
    Stopped,
    /// From the used index, which is to be read; with the rest in this buffer.
    Used(Option<u64>),
    /// From the available index, which is to be read.
    Available,
    /// From nowhere, before the device is reset.
    Unknown,
}

/// A ring that is to run, as the caller has described it.
pub(super) struct Kept {
    pub(super) addr: VringAddr,
    pub(super) size: u32,
    pub(super) origin: Origin,
    pub(super) kick: Arc<OwnedFd>,
    pub(super) call: Option<Arc<OwnedFd>>,
    pub(super) err: Option<Arc<OwnedFd>>,
    /// The call descriptor that the back-end has, while another is on its way to it.
    pub(super) call_before: Option<Option<Arc<OwnedFd>>>,
    pub(super) indices: Option<Arc<dyn RingIndices>>,
    pub(super) can_tell: CanTell,
    /// Where the used index stands behind a base with nothing unfinished, where that is
    /// known: requests of before the start that nothing will complete.
    pub(super) debt: Option<u16>,
    /// It has run on a back-end that was lost.
    pub(super) has_run: bool,
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
    /// It ran before, and its place has to be read.
    pub(super) fn unplaced(&self) -> bool {
        matches!(self.origin, Origin::Used(_) | Origin::Available)
    }

    /// The buffer with the requests that it goes on with.
    pub(super) fn unfinished(&self) -> Option<u64> {
        match self.origin {
            Origin::At(place) => place.unfinished,
            Origin::Used(unfinished) => unfinished,
            _ => None,
        }
    }

    /// To read its base later, as a back-end that was lost may still move it.
    pub(super) fn unread(&self) -> Option<Unread> {
        Some(Unread {
            origin: Some(self.origin).filter(|_| self.unplaced())?,
            indices: Arc::clone(self.indices.as_ref()?),
        })
    }

    /// By which a drained ring is recognised.
    pub(super) fn used_check(&self, packed: bool) -> Option<UsedCheck> {
        Some(UsedCheck {
            indices: Arc::clone(
                self.indices
                    .as_ref()
                    .filter(|_| self.can_tell.used.is_some())?,
            ),
            debt: self.debt?,
            size: self.size,
            packed,
        })
    }
}

/// Compares the used index of a ring with the base at which it was stopped: back-ends
/// exist that answer GET_VRING_BASE before they have completed what they took.
#[derive(Clone)]
pub(super) struct UsedCheck {
    pub(super) indices: Arc<dyn RingIndices>,
    debt: u16,
    size: u32,
    packed: bool,
}

impl std::fmt::Debug for UsedCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UsedCheck").finish_non_exhaustive()
    }
}

impl UsedCheck {
    /// The debt with which the ring goes on.
    pub(super) fn debt(&self) -> Option<u16> {
        Some(self.debt)
    }

    /// The base of a ring whose used index has reached it. For a packed ring it also has
    /// the place for the next used descriptor, and may have been sent before that moved.
    pub(super) fn drained_base(&self, base: u32) -> u32 {
        let low = u16::try_from(base & 0xffff).unwrap_or_default();
        match self.packed {
            true => base_at(low, true),
            false => base,
        }
    }

    /// How many requests the back-end has taken and not completed.
    pub(super) fn unfinished(&self, base: u32, used: u16) -> u32 {
        let low = u16::try_from(base & 0xffff).unwrap_or_default();
        if !self.packed {
            return u32::from(low.wrapping_sub(self.debt).wrapping_sub(used));
        }
        // Bit 15 is the wrap counter.
        let place = |index: u16| u32::from(index & 0x7fff);
        let wrapped = if (low ^ used) & 0x8000 == 0 {
            0
        } else {
            self.size
        };
        place(low).wrapping_add(wrapped).wrapping_sub(place(used))
    }
}

/// All that is known of a ring, apart from what is wanted of it.
#[derive(Debug, Clone, Default)]
pub(super) enum RingState {
    /// It was not started since the device was opened or reset.
    #[default]
    New,
    /// A back-end is being told about it, and was not asked to start it.
    Starting,
    /// A back-end was asked to start it here.
    Running { began: Place },
    /// A back-end was or will be asked to stop it.
    Stopping {
        /// Where the run began: there the ring stands if its start is refused.
        began: Place,
        /// Where a start was to begin that was withdrawn before the stop was answered:
        /// there the ring stands after it.
        then: Option<Place>,
    },
    /// It is stopped, and no request is unfinished.
    Stopped { base: u32 },
    /// It is stopped or its back-end was lost; the in-flight buffer of this generation
    /// has its unfinished requests.
    Unfinished { base: u32, buffer: u64 },
    /// Its back-end was lost, and its base is not known.
    Lost {
        /// Unfinished requests may be in this in-flight buffer.
        buffer: Option<u64>,
        /// The ring is stopped, and its base is to be read once no back-end moves it.
        unread: Option<Unread>,
    },
}

impl RingState {
    /// A ring at rest.
    pub(super) fn at(Place { base, unfinished }: Place) -> Self {
        match unfinished {
            Some(buffer) => Self::Unfinished { base, buffer },
            None => Self::Stopped { base },
        }
    }

    /// It stopped at this base, with requests in an in-flight buffer.
    pub(super) fn is_unfinished_at(&self, at: u32) -> bool {
        matches!(self, Self::Unfinished { base, .. } if *base == at)
    }

    /// Requests of its last run may be in this in-flight buffer.
    pub(super) fn has_requests_in(&self, generation: u64) -> bool {
        match self {
            Self::Unfinished { buffer, .. } => *buffer == generation,
            Self::Lost { buffer, .. } => *buffer == Some(generation),
            _ => false,
        }
    }

    /// How its base is to be read.
    pub(super) fn unread(&self) -> Option<&Unread> {
        match self {
            Self::Lost { unread, .. } => unread.as_ref(),
            _ => None,
        }
    }
}

/// A base that is to be read.
#[derive(Clone)]
pub(super) struct Unread {
    pub(super) origin: Origin,
    pub(super) indices: Arc<dyn RingIndices>,
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unread").finish_non_exhaustive()
    }
}

/// One ring of a device.
#[derive(Debug, Default)]
pub(super) struct RingSlot {
    /// As it is wanted; `None`: stopped.
    pub(super) kept: Option<Kept>,
    pub(super) state: RingState,
    /// The back-end has refused to start it, or another call descriptor.
    pub(super) refused: Option<Error>,
}

impl RingSlot {
    /// It is wanted from now on.
    pub(super) fn want(&mut self, kept: Kept) {
        self.kept = Some(kept);
        self.refused = None;
        match &mut self.state {
            RingState::Stopping { then, .. } => *then = None,
            RingState::Lost { unread, .. } => *unread = None,
            _ => {}
        }
    }

    /// A back-end may use it, and goes on with it.
    pub(super) fn is_used(&self) -> bool {
        match self.state {
            RingState::Running { .. } => true,
            RingState::Stopping { .. } => self.goes_on_when_stopped(),
            _ => false,
        }
    }

    /// It is wanted from where the run before stops.
    pub(super) fn goes_on_when_stopped(&self) -> bool {
        let origin = self.kept.as_ref().map(|kept| kept.origin);
        origin == Some(Origin::Stopped)
    }
}

/// What [`RingIndices`] of a ring tell at its start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CanTell {
    pub(super) used: Option<u16>,
    available: bool,
}

impl CanTell {
    /// Asks, so not under a lock.
    pub(super) fn of(ring: &Ring<'_>) -> Self {
        let indices = ring.indices.as_ref();
        Self {
            used: indices.and_then(|it| it.used()),
            available: indices.is_some_and(|it| it.available().is_some()),
        }
    }

    /// A ring can be placed from here.
    pub(super) fn knows(&self, origin: Origin) -> bool {
        match origin {
            Origin::Used(_) => self.used.is_some(),
            Origin::Available => self.available,
            _ => false,
        }
    }

    /// The debt of a ring that is started here. A packed ring has none, or it is not
    /// known.
    pub(super) fn debt(&self, origin: Origin, packed: bool) -> Option<u16> {
        match origin {
            Origin::At(Place {
                base,
                unfinished: None,
            }) => {
                let base = u16::try_from(base & 0xffff).unwrap_or_default();
                let debt = base.wrapping_sub(self.used?);
                Some(debt).filter(|debt| !packed || *debt == 0)
            }
            _ => Some(0),
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
