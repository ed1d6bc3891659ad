//! What the back-end has mapped into the device's shared memory regions.

use crate::message::ShmemArea;
use nix::errno::Errno;
use std::collections::BTreeMap;

/// Most mappings at once; a virtio-fs window of 128 GiB has as many of 2 MiB.
pub(super) const MAX_MAPPINGS: usize = 1 << 16;
/// The only flag: the mapping may be written.
const WRITABLE: u64 = 1;

/// Whether two areas have bytes of a region in common.
pub(super) fn overlap(one: &ShmemArea, other: &ShmemArea) -> bool {
    let begins_in = |a: &ShmemArea, b: &ShmemArea| {
        let into = a.shm_offset.checked_sub(b.shm_offset);
        into.is_some_and(|into| into < b.len)
    };
    one.shmid == other.shmid && (begins_in(one, other) || begins_in(other, one))
}

/// Mappings that live, by region and place. They never overlap.
#[derive(Debug, Default)]
pub(super) struct Mappings(BTreeMap<(u8, u64), ShmemArea>);

impl Mappings {
    /// Whether this can be mapped into a region of `size` bytes, while the caller is still
    /// to be told of so many that are `gone`.
    pub(super) fn check(&self, area: &ShmemArea, size: u64, gone: usize) -> Result<(), Errno> {
        let end = area.shm_offset.checked_add(area.len).ok_or(Errno::EINVAL)?;
        let file_end = area.fd_offset.checked_add(area.len);
        if area.len == 0 || end > size || file_end.is_none() || area.flags & !WRITABLE != 0 {
            return Err(Errno::EINVAL);
        }
        // Only the last one that begins before our end can overlap.
        let before = self
            .0
            .range((area.shmid, 0)..(area.shmid, end))
            .next_back()
            .map(|(_, other)| other.shm_offset.saturating_add(other.len));
        if before.is_some_and(|other_end| other_end > area.shm_offset) {
            return Err(Errno::EEXIST);
        }
        if self.0.len().saturating_add(gone) >= MAX_MAPPINGS {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// Remembers one that has been checked and done.
    pub(super) fn insert(&mut self, area: ShmemArea) {
        self.0.insert((area.shmid, area.shm_offset), area);
    }

    /// The whole mapping that this describes.
    pub(super) fn find(&self, area: &ShmemArea) -> Result<ShmemArea, Errno> {
        match self.0.get(&(area.shmid, area.shm_offset)) {
            Some(known) if known.len == area.len => Ok(*known),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, area: &ShmemArea) {
        self.0.remove(&(area.shmid, area.shm_offset));
    }

    /// Forgets all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = ShmemArea> + use<> {
        std::mem::take(&mut self.0).into_values()
    }
}
