//! Guest memory: what the caller wants to be shared, what a back-end was sent,
//! and the next step from the one to the other. Nothing is sent from here.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::backend_client::SharedRegion;
use crate::error::{Error, Kind, Result};
use crate::message::{MAX_MEM_REGIONS, MemRegion};
use crate::socket;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

// ---- a region ----

/// Which file it is: several descriptors may be of the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// A range of guest addresses, and the part of a file that lies there. The file
/// is kept open as long as there is a copy of this.
#[derive(Debug, Clone)]
pub struct GuestRegion {
    pub(crate) guest_addr: u64,
    pub(crate) size: u64,
    /// `mmap_offset` on the wire.
    pub(crate) offset: u64,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) file: FileId,
}

impl GuestRegion {
    /// Checks whatever makes back-ends fail later and in fewer words. `fd` is kept:
    /// duplicated.
    pub fn new(guest_addr: u64, size: u64, offset: u64, fd: BorrowedFd<'_>) -> Result<Self> {
        let checked = || {
            check_bounds(guest_addr, size, offset)?;
            // First of all, so that the rest is about one and the same file.
            let fd = socket::keep(fd, "fd")?;
            Ok((check_file(&fd, size, offset)?, fd))
        };
        let (file, fd) = checked().map_err(|error: Error| {
            let text = format!("region at guest_addr {guest_addr:#x}: {}", error.message);
            error.saying(text)
        })?;
        Ok(Self {
            guest_addr,
            size,
            offset,
            fd: Arc::new(fd),
            file,
        })
    }

    /// As layer 1 wants it. The user address is the guest address, so that no
    /// pointer leaves the process.
    pub(crate) fn shared(&self) -> SharedRegion<'_> {
        SharedRegion {
            region: MemRegion {
                guest_addr: self.guest_addr,
                size: self.size,
                user_addr: self.guest_addr,
                mmap_offset: self.offset,
                ..MemRegion::default()
            },
            fd: self.fd.as_fd(),
        }
    }

    /// The first address behind it. It fits: `new` has checked that.
    fn end(&self) -> u64 {
        self.guest_addr.saturating_add(self.size)
    }

    /// Of the same file, at the same distance: where both have an address, the
    /// same byte lies there.
    fn agrees_with(&self, other: &Self) -> bool {
        self.file == other.file
            && self.guest_addr.wrapping_sub(self.offset)
                == other.guest_addr.wrapping_sub(other.offset)
    }
}

/// Through whichever descriptor: a back-end sees no difference.
impl PartialEq for GuestRegion {
    fn eq(&self, other: &Self) -> bool {
        (self.guest_addr, self.size, self.offset, self.file)
            == (other.guest_addr, other.size, other.offset, other.file)
    }
}

/// As errors name it.
impl fmt::Display for GuestRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the region at guest_addr {:#x}, size {:#x}",
            self.guest_addr, self.size
        )
    }
}

fn check_bounds(guest_addr: u64, size: u64, offset: u64) -> Result<()> {
    if size == 0 {
        return Err(Error::invalid("size is 0"));
    }
    let fields = [
        ("guest_addr", guest_addr),
        ("size", size),
        ("mmap_offset", offset),
    ];
    check_alignment(&fields, page_size(), "the page size")?;
    for (name, start) in [("guest_addr", guest_addr), ("mmap_offset", offset)] {
        if start.checked_add(size).is_none() {
            return Err(Error::invalid(format!(
                "{name} {start:#x} + size {size:#x} does not fit into 64 bits"
            )));
        }
    }
    Ok(())
}

/// What a back-end needs of a file to map it shared and writable.
fn check_file(fd: &OwnedFd, size: u64, offset: u64) -> Result<FileId> {
    let os = |what| move |errno| Error::os(errno, format!("{what} of fd"));
    let stat = fstat(fd).map_err(os("fstat()"))?;
    if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
        return Err(Error::invalid(
            "fd is not a file that can be shared: a memfd, or one on tmpfs or hugetlbfs",
        ));
    }
    let mode = fcntl(fd, FcntlArg::F_GETFL).map_err(os("F_GETFL"))?;
    if OFlag::from_bits_truncate(mode) & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Err(Error::invalid(
            "fd is not open for reading and writing, and back-ends map it for both",
        ));
    }
    // Files without seals answer with an error.
    let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS).unwrap_or(0));
    if seals.intersects(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE) {
        return Err(Error::invalid(
            "fd is sealed against writing, and back-ends map it for that",
        ));
    }
    // A file may end anywhere; what lies behind its end is a SIGBUS of the back-end.
    let end = offset.saturating_add(size);
    let there = u64::try_from(stat.st_size).unwrap_or(0);
    if end > there {
        return Err(Error::invalid(format!(
            "mmap_offset {offset:#x} + size {size:#x} is {end:#x}, and the file has {there:#x} bytes"
        )));
    }
    if fstatfs(fd).map_err(os("fstatfs()"))?.filesystem_type() == HUGETLBFS_MAGIC {
        // Of these files it is the size of a page. The guest address is free.
        let page = u64::try_from(stat.st_blksize).unwrap_or(0);
        let fields = [("size", size), ("mmap_offset", offset)];
        check_alignment(&fields, page, "the size of the file's huge pages")?;
    }
    Ok(FileId {
        dev: stat.st_dev,
        ino: stat.st_ino,
    })
}

fn check_alignment(fields: &[(&str, u64)], alignment: u64, what: &str) -> Result<()> {
    match fields
        .iter()
        .find(|(_, value)| value.checked_rem(alignment) != Some(0))
    {
        None => Ok(()),
        Some((name, value)) => Err(Error::invalid(format!(
            "{name} is {value:#x}, not a multiple of {what}, {alignment:#x}"
        ))),
    }
}

fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

// ---- what is wanted ----

/// Regions in the order of their addresses, none of which overlap.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemoryList(Arc<[GuestRegion]>);

impl Default for MemoryList {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl Deref for MemoryList {
    type Target = [GuestRegion];

    fn deref(&self) -> &[GuestRegion] {
        &self.0
    }
}

impl MemoryList {
    /// A whole list, in any order. An error has the position in it.
    pub(crate) fn new(regions: Vec<GuestRegion>) -> Result<Self> {
        let mut sorted = Vec::with_capacity(regions.len());
        for (index, region) in regions.into_iter().enumerate() {
            let place = place(&sorted, &region).map_err(|error| error.region(index))?;
            sorted.insert(place, region);
        }
        Ok(Self(sorted.into()))
    }

    /// One more. After an error the list is as before, here and below.
    pub(crate) fn add(&mut self, region: GuestRegion) -> Result<()> {
        place(self, &region)?;
        self.insert(region);
        Ok(())
    }

    /// Takes the region away that has exactly these bounds.
    pub(crate) fn remove(&mut self, guest_addr: u64, size: u64) -> Result<()> {
        let same = |region: &&GuestRegion| region.guest_addr == guest_addr && region.size == size;
        let Some(region) = self.iter().find(same).cloned() else {
            let there = match covers(self, guest_addr, 1) {
                Some(region) => format!("{region} lies there"),
                None => "nothing lies there".to_owned(),
            };
            return Err(Error::invalid(format!(
                "there is no region at guest_addr {guest_addr:#x} of size {size:#x}: {there}"
            )));
        };
        self.take_out(&region);
        Ok(())
    }

    fn insert(&mut self, region: GuestRegion) {
        let mut regions = self.to_vec();
        regions.insert(below(self, &region), region);
        self.0 = regions.into();
    }

    fn take_out(&mut self, region: &GuestRegion) {
        self.0 = self
            .iter()
            .filter(|other| *other != region)
            .cloned()
            .collect();
    }

    fn holds(&self, region: &GuestRegion) -> bool {
        self.get(below(self, region)) == Some(region)
    }

    /// The first region that the other list does not hold.
    fn first_missing_in(&self, other: &Self) -> Option<&GuestRegion> {
        self.iter().find(|region| !other.holds(region))
    }

    /// As it goes into one SET_MEM_TABLE: neighbours become one region where there
    /// are too many, and no more of them than that takes.
    fn coalesced(&self) -> Self {
        let mut surplus = self.len().saturating_sub(MAX_MEM_REGIONS);
        if surplus == 0 {
            return self.clone();
        }
        let mut table: Vec<GuestRegion> = Vec::with_capacity(self.len());
        for region in self.iter() {
            match table.last_mut() {
                Some(last)
                    if surplus > 0
                        && last.end() == region.guest_addr
                        && last.agrees_with(region) =>
                {
                    last.size = last.size.saturating_add(region.size);
                    surplus = surplus.saturating_sub(1);
                }
                _ => table.push(region.clone()),
            }
        }
        Self(table.into())
    }
}

/// How many regions lie below.
fn below(sorted: &[GuestRegion], region: &GuestRegion) -> usize {
    sorted.partition_point(|other| other.guest_addr < region.guest_addr)
}

/// Where a region goes that overlaps none.
fn place(sorted: &[GuestRegion], region: &GuestRegion) -> Result<usize> {
    let place = below(sorted, region);
    let neighbours = sorted.iter().skip(place.saturating_sub(1)).take(2);
    for other in neighbours {
        if other.guest_addr < region.end() && region.guest_addr < other.end() {
            return Err(Error::invalid(format!("{region}, overlaps {other}")));
        }
    }
    Ok(place)
}

/// The region that has all of a range in it, as a ring must lie: back-ends do not
/// look further than one region.
pub(crate) fn covers(list: &MemoryList, addr: u64, len: u64) -> Option<&GuestRegion> {
    let end = addr.checked_add(len)?;
    let below = list.partition_point(|region| region.guest_addr <= addr);
    list.get(below.checked_sub(1)?)
        .filter(|region| addr < region.end() && end <= region.end())
}

// ---- what a back-end has ----

/// What a back-end was sent on this connection, and holds.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    slots: MemoryList,
    configure: bool,
}

/// One request about memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MemoryStep {
    /// SET_MEM_TABLE
    SetTable(Vec<GuestRegion>),
    /// ADD_MEM_REG
    Add(GuestRegion),
    /// REM_MEM_REG
    Remove(GuestRegion),
}

impl Sent {
    /// Nothing yet. `configure`: CONFIGURE_MEM_SLOTS is acknowledged.
    pub(crate) fn new(configure: bool) -> Self {
        Self {
            slots: MemoryList::default(),
            configure,
        }
    }

    /// The back-end has taken a step.
    pub(crate) fn apply(&mut self, step: &MemoryStep) {
        match step {
            MemoryStep::SetTable(table) => self.slots = MemoryList(table.as_slice().into()),
            MemoryStep::Add(region) => self.slots.insert(region.clone()),
            MemoryStep::Remove(region) => self.slots.take_out(region),
        }
    }

    /// Whether the back-end has any memory.
    pub(crate) fn any(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The slots of a back-end that has what is wanted.
    fn target(&self, wanted: &MemoryList) -> MemoryList {
        match self.configure {
            true => wanted.clone(),
            false => wanted.coalesced(),
        }
    }

    /// The back-end may still reach memory that is not wanted: a removal is under
    /// way or, where [`next`] has nothing more to send, cannot be sent.
    pub(crate) fn stale(&self, wanted: &MemoryList) -> bool {
        self.slots.iter().any(|slot| {
            // How far all of the slot is wanted, in however many regions.
            let mut reached = slot.guest_addr;
            for region in wanted.iter() {
                let next = region.guest_addr <= reached && reached < region.end();
                if next && region.agrees_with(slot) {
                    reached = region.end();
                }
            }
            reached < slot.end()
        })
    }
}

/// The next request on the way to what is wanted, which [`fits`]; none when the
/// back-end has it.
///
/// One region is one slot with CONFIGURE_MEM_SLOTS, and a slot never changes.
/// Removals come first, so that there is always room. Without, a table is sent
/// whole; an empty one is not, as the rust-vmm back-ends hang up on it.
pub(crate) fn next(sent: &Sent, wanted: &MemoryList) -> Option<MemoryStep> {
    let target = sent.target(wanted);
    if !sent.configure {
        let done = target.is_empty() || sent.slots == target;
        return (!done).then(|| MemoryStep::SetTable(target.to_vec()));
    }
    match sent.slots.first_missing_in(&target) {
        Some(slot) => Some(MemoryStep::Remove(slot.clone())),
        None => target
            .first_missing_in(&sent.slots)
            .map(|region| MemoryStep::Add(region.clone())),
    }
}

/// The first slot that does not stay as it is on the way to what is wanted; rings
/// must not run meanwhile. A table that is sent whole keeps the slots whose bounds
/// stay, but one region more may make it coalesce others. Those that did not stay
/// on the way to what was wanted `before` do not count: that was settled then.
pub(crate) fn changes_live<'sent>(
    sent: &'sent Sent,
    before: &MemoryList,
    wanted: &MemoryList,
) -> Option<&'sent GuestRegion> {
    let (before, after) = (sent.target(before), sent.target(wanted));
    let mut slots = sent.slots.iter();
    slots.find(|slot| before.holds(slot) && !after.holds(slot))
}

/// How much a back-end can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The answer to GET_MAX_MEM_SLOTS, if it was asked.
    pub(crate) slots: Option<u64>,
    /// CONFIGURE_MEM_SLOTS is acknowledged.
    pub(crate) configure: bool,
}

/// Whether a back-end with these limits can hold a list.
pub(crate) fn fits(wanted: &MemoryList, limits: Limits) -> Result<()> {
    let full = |needed: String, limit: &dyn fmt::Display| {
        Err(Error::new(
            Kind::Argument(Errno::ENOSPC),
            format!("memory has {needed}, and the back-end has {limit} slots"),
        ))
    };
    let regions = wanted.len();
    if limits.configure {
        let enough = |slots| u64::try_from(regions).is_ok_and(|regions| regions <= slots);
        return match limits.slots {
            Some(slots) if !enough(slots) => full(format!("{regions} regions"), &slots),
            _ => Ok(()),
        };
    }
    match wanted.coalesced().len() {
        ..=MAX_MEM_REGIONS => Ok(()),
        least => full(
            format!("{regions} regions, {least} with neighbours of one file coalesced"),
            &MAX_MEM_REGIONS,
        ),
    }
}
