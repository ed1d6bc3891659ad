//! What a back-end may still use of the guest's memory. Memory is safe to unmap, and a
//! ring is quiet, only if no back-end's [`Access`] has it.

use super::memory::{GuestRegion, MemoryList};

/// What one back-end may use, until the removal is confirmed or the back-end is gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// Some may be there twice.
    regions: Vec<GuestRegion>,
    /// By index: the start of the ring that may be running.
    rings: Vec<Option<u64>>,
}

impl Access {
    /// It may use these rings.
    pub(super) fn of_rings(rings: impl Iterator<Item = Option<u64>>) -> Self {
        Self {
            rings: rings.collect(),
            ..Self::default()
        }
    }

    /// The start of a ring that it may use.
    pub(super) fn run(&self, index: usize) -> Option<u64> {
        self.rings.get(index).copied().flatten()
    }

    /// From now on it may use this region.
    pub(super) fn may_use(&mut self, region: &GuestRegion) {
        self.regions.push(region.clone());
    }

    /// From now on it may use this ring.
    pub(super) fn may_run(&mut self, index: usize, start: u64) {
        if let Some(ring) = self.rings.get_mut(index) {
            *ring = Some(start);
        }
    }

    /// It can use nothing.
    pub(super) fn is_nothing(&self) -> bool {
        self.regions.is_empty() && self.rings.iter().all(Option::is_none)
    }

    /// It may use memory that is not in the list.
    pub(super) fn reaches_beyond(&self, memory: &MemoryList) -> bool {
        self.regions.iter().any(|region| !memory.includes(region))
    }

    /// It may use a ring other than for the start that is wanted.
    pub(super) fn runs_beyond(&self, wanted: impl Fn(usize) -> Option<u64>) -> bool {
        let mut rings = self.rings.iter().enumerate();
        rings.any(|(index, start)| start.is_some() && *start != wanted(index))
    }
}
