//! What the back-end has mapped into the device's shared memory regions.

use super::refusals::Refusal;
use crate::message::ShmemArea;
use crate::socket::{self, Unmappable};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// Most mappings at once; a virtio-fs window of 128 GiB has as many of 2 MiB.
pub(super) const MAX_MAPPINGS: usize = 1 << 16;
/// The only flag: the mapping may be written.
const WRITABLE: u64 = 1;

/// The pages of its region that an area takes, in bytes: they are mapped whole.
fn whole_pages(area: &ShmemArea, page: u64) -> u64 {
    area.len.checked_next_multiple_of(page).unwrap_or(area.len)
}

/// Whether two areas, which begin with a page, have a page of a region in common.
pub(super) fn overlap(one: &ShmemArea, other: &ShmemArea) -> bool {
    let page = socket::page_size();
    let begins_in = |a: &ShmemArea, b: &ShmemArea| {
        let into = a.shm_offset.checked_sub(b.shm_offset);
        into.is_some_and(|into| into < whole_pages(b, page))
    };
    one.shmid == other.shmid && (begins_in(one, other) || begins_in(other, one))
}

/// Refuses a file that cannot be mapped like this.
pub(super) fn check_file(area: &ShmemArea, fd: BorrowedFd<'_>) -> Result<(), Refusal> {
    let writes = area.flags & WRITABLE != 0;
    socket::check_mappable(fd, area.fd_offset, area.len, writes).map_err(|reason| {
        let errno = match reason {
            Unmappable::NotOpen | Unmappable::Sealed => Errno::EACCES,
            Unmappable::EndsBefore | Unmappable::OfNoMemory => Errno::EINVAL,
        };
        Refusal::new(errno, reason.why())
    })
}

/// Mappings that live, by region and place. They never have a page in common.
#[derive(Debug, Default)]
pub(super) struct Mappings(BTreeMap<(u8, u64), ShmemArea>);

impl Mappings {
    /// Whether this can be mapped into a region of `size` bytes, while the caller is still
    /// to be told of so many that are `gone`.
    pub(super) fn check(&self, area: &ShmemArea, size: u64, gone: usize) -> Result<(), Refusal> {
        let outside = "it is empty, not within its region or its file, or has unknown flags";
        let outside = Refusal::invalid(outside);
        let end = area.shm_offset.checked_add(area.len).ok_or(outside)?;
        let file_end = area.fd_offset.checked_add(area.len);
        if area.len == 0 || end > size || file_end.is_none() || area.flags & !WRITABLE != 0 {
            return Err(outside);
        }
        let page = socket::page_size();
        let begins = |offset: u64| offset.checked_rem(page) == Some(0);
        if !begins(area.shm_offset) || !begins(area.fd_offset) {
            return Err(Refusal::invalid("it does not begin with a page"));
        }
        // Only the last one that begins before our end can overlap.
        let end = area.shm_offset.saturating_add(whole_pages(area, page));
        let before = self
            .0
            .range((area.shmid, 0)..(area.shmid, end))
            .next_back()
            .map(|(_, other)| other.shm_offset.saturating_add(whole_pages(other, page)));
        if before.is_some_and(|other_end| other_end > area.shm_offset) {
            return Err(Refusal::new(Errno::EEXIST, "it overlaps a mapping"));
        }
        if self.0.len().saturating_add(gone) >= MAX_MAPPINGS {
            return Err(Refusal::new(Errno::ENOSPC, "there are too many mappings"));
        }
        Ok(())
    }

    /// Remembers one that has been checked and done.
    pub(super) fn insert(&mut self, area: ShmemArea) {
        self.0.insert((area.shmid, area.shm_offset), area);
    }

    /// The whole mapping that this describes.
    pub(super) fn find(&self, area: &ShmemArea) -> Result<ShmemArea, Refusal> {
        match self.0.get(&(area.shmid, area.shm_offset)) {
            Some(known) if known.len == area.len => Ok(*known),
            _ => Err(Refusal::invalid("it is not a mapping that was made")),
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
