//! Guest memory: what the caller wants to be shared, what a back-end was sent,
//! and the next step from the one to the other. Nothing is sent from here.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::backend_client::SharedRegion;
use crate::error::{Error, Kind, Result};
use crate::message::{MAX_MEM_REGIONS, MemRegion};
use crate::room::room_for;
use crate::socket;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
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
    pub(crate) is_regular: bool,
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

    /// Uses the descriptor of another region of the same file and closes its own: a list
    /// of 256 regions of one file needs one descriptor. Two descriptors of a regular file
    /// that are open for reading and writing are the same to a back-end; those of a device
    /// need not be.
    pub(crate) fn share_descriptor(&mut self, others: &[Self]) {
        let same = |other: &&Self| other.file == self.file && self.file.is_regular;
        if let Some(other) = others.iter().find(same) {
            self.fd = Arc::clone(&other.fd);
        }
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
    check_alignment(&fields, socket::page_size(), "the page size")?;
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
    // A device has no size to be compared with, and nothing says before it is mapped whether
    // it can be, and in what pages.
    let sized = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => true,
        SFlag::S_IFCHR | SFlag::S_IFBLK => false,
        _ => {
            return Err(Error::invalid(
                "fd is not a file that can be shared: a memfd, one on tmpfs or hugetlbfs, or a \
                 device that can be mapped",
            ));
        }
    };
    let open = socket::open_for(fd.as_fd()).map_err(os("F_GETFL"))?;
    if !(open.reading && open.writing) {
        return Err(Error::invalid(
            "fd is not open for reading and writing, and back-ends map it for both",
        ));
    }
    let id = FileId {
        dev: stat.st_dev,
        ino: stat.st_ino,
        is_regular: sized,
    };
    if !sized {
        return Ok(id);
    }
    if socket::is_sealed(fd.as_fd()) {
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
    Ok(id)
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
        room_for::<[GuestRegion; 4]>(regions.len())?;
        let mut sorted = Vec::with_capacity(regions.len());
        for (index, mut region) in regions.into_iter().enumerate() {
            let place = place(&sorted, &region).map_err(|error| error.region(index))?;
            region.share_descriptor(&sorted);
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

    fn insert(&mut self, mut region: GuestRegion) {
        let mut regions = self.to_vec();
        region.share_descriptor(&regions);
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

/// The memory of a back-end that has obeyed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots {
    slots: MemoryList,
    /// The slots after the last request that the back-end has accepted.
    accepted: MemoryList,
    configure: bool,
    /// What the back-end may have besides: it was in a table, or there when a table
    /// came, that the back-end refused.
    doubtful: Vec<GuestRegion>,
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

/// What a back-end has refused, so that it is not asked again on the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct RefusedMemory {
    /// Regions that it does not let go of.
    pub(crate) stuck: Vec<GuestRegion>,
    /// The table that was refused last.
    table: Option<Vec<GuestRegion>>,
}

impl RefusedMemory {
    /// A table was accepted.
    pub(crate) fn table_is_known(&mut self) {
        self.table = None;
    }

    /// The caller has changed its memory.
    pub(crate) fn ask_again(&mut self) {
        *self = Self::default();
    }
}

impl Slots {
    /// Nothing yet. `configure`: CONFIGURE_MEM_SLOTS is acknowledged.
    pub(crate) fn new(configure: bool) -> Self {
        Self {
            configure,
            ..Self::default()
        }
    }

    /// The back-end has obeyed a request.
    pub(crate) fn apply(&mut self, step: &MemoryStep) {
        match step {
            MemoryStep::SetTable(table) => {
                self.slots = MemoryList(table.as_slice().into());
                self.doubtful.clear();
            }
            MemoryStep::Add(region) => self.slots.insert(region.clone()),
            MemoryStep::Remove(region) => self.slots.take_out(region),
        }
        self.accepted = self.slots.clone();
    }

    /// The back-end has refused a request. A table may have taken effect in part.
    pub(crate) fn refused(&mut self, step: &MemoryStep, refused: &mut RefusedMemory) {
        match step {
            MemoryStep::SetTable(table) => {
                for region in self.slots.iter().chain(table) {
                    if !self.doubtful.contains(region) {
                        self.doubtful.push(region.clone());
                    }
                }
                self.slots = MemoryList::default();
                refused.table = Some(table.clone());
            }
            MemoryStep::Remove(region) if self.slots.holds(region) => {
                refused.stuck.push(region.clone());
            }
            MemoryStep::Remove(_) | MemoryStep::Add(_) => {}
        }
    }

    /// What the back-end has accepted.
    pub(crate) fn accepted(&self) -> &MemoryList {
        &self.accepted
    }

    /// The regions that the back-end may have.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &GuestRegion> {
        self.slots.iter().chain(&self.doubtful)
    }

    /// Whether the back-end may have any memory.
    pub(crate) fn any(&self) -> bool {
        self.regions().next().is_some()
    }

    /// The slots of a back-end that has what is wanted.
    fn target(&self, wanted: &MemoryList) -> MemoryList {
        match self.configure {
            true => wanted.clone(),
            false => wanted.coalesced(),
        }
    }

    /// The back-end has memory, none is wanted, and no request can take it away.
    pub(crate) fn keeps_the_last(&self, wanted: &MemoryList) -> bool {
        !self.configure && wanted.is_empty() && self.any()
    }
}

impl MemoryList {
    /// Whether all of a region is in the list, in however many regions of it.
    pub(crate) fn includes(&self, region: &GuestRegion) -> bool {
        let mut reached = region.guest_addr;
        for next in self.iter() {
            let continues = next.guest_addr <= reached && reached < next.end();
            if continues && next.agrees_with(region) {
                reached = next.end();
            }
        }
        reached >= region.end()
    }

    /// The regions that are not in `refused`.
    pub(crate) fn without(&self, refused: &[GuestRegion]) -> Self {
        if refused.is_empty() {
            return self.clone();
        }
        Self(
            self.iter()
                .filter(|region| !refused.contains(region))
                .cloned()
                .collect(),
        )
    }
}

/// The next request on the way to what is wanted, which [`fits`]; none when all was
/// sent that the back-end has not `refused`.
///
/// One region is one slot with CONFIGURE_MEM_SLOTS, and a slot never changes.
/// Removals come first, so that there is always room. Without, a table is sent
/// whole; an empty one is not, as the rust-vmm back-ends hang up on it.
pub(crate) fn next(
    sent: &Slots,
    wanted: &MemoryList,
    refused: &RefusedMemory,
) -> Option<MemoryStep> {
    let target = sent.target(wanted);
    if !sent.configure {
        let again = refused.table.as_deref() == Some(&*target);
        let done = target.is_empty() || sent.slots == target || again;
        return (!done).then(|| MemoryStep::SetTable(target.to_vec()));
    }
    let mut surplus = sent.slots.iter();
    let surplus = surplus.find(|slot| !target.holds(slot) && !refused.stuck.contains(slot));
    match surplus {
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
    sent: &'sent Slots,
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
