#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::*;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

const PAGE: u64 = 4096;
/// Of regions, of acts, and how many such: an interpreter is slow.
const LONGEST_ROW: u64 = if cfg!(miri) { 12 } else { 300 };
const MOST_ACTS: usize = if cfg!(miri) { 12 } else { 40 };
const CASES: u32 = if cfg!(miri) { 1 } else { 64 };

/// Any descriptor: nothing here looks at it.
fn some_fd() -> Arc<OwnedFd> {
    Arc::new(UnixStream::pair().unwrap().0.into())
}

/// In pages. The file's own name for itself is made up.
fn region(fd: &Arc<OwnedFd>, at: u64, pages: u64, offset: u64, ino: u64) -> GuestRegion {
    GuestRegion {
        guest_addr: at * PAGE,
        size: pages * PAGE,
        offset: offset * PAGE,
        fd: fd.clone(),
        file: FileId {
            dev: 1,
            ino,
            is_regular: true,
        },
    }
}

/// `n` regions of a page, of one file, each at the end of the one before.
fn row(fd: &Arc<OwnedFd>, n: u64) -> Vec<GuestRegion> {
    (0..n).map(|at| region(fd, at, 1, at, 1)).collect()
}

fn list(regions: &[GuestRegion]) -> MemoryList {
    MemoryList::new(regions.to_vec()).unwrap()
}

fn following(sent: &Slots, wanted: &MemoryList) -> Option<MemoryStep> {
    next(sent, wanted, &RefusedMemory::default())
}

/// The back-end may reach memory that is not wanted.
fn stale(sent: &Slots, wanted: &MemoryList) -> bool {
    sent.regions().any(|region| !wanted.includes(region))
}

/// Goes all the way, and returns the steps.
fn go(sent: &mut Slots, wanted: &MemoryList) -> Vec<MemoryStep> {
    let mut steps = Vec::new();
    while let Some(step) = following(sent, wanted) {
        sent.apply(&step);
        steps.push(step);
        assert!(steps.len() < 2000, "it does not end");
    }
    steps
}

fn words<T: fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

// ---- what is a region ----

fn memfd(size: i64, flags: MFdFlags) -> OwnedFd {
    let fd = memfd_create("memory", MFdFlags::MFD_CLOEXEC | flags).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

#[test]
#[cfg_attr(miri, ignore = "needs files in memory")]
fn a_region_keeps_its_file() {
    let fd = memfd(0x5000, MFdFlags::empty());
    let region = GuestRegion::new(1 << 32, 0x3000, 0x2000, fd.as_fd()).unwrap();
    let other = GuestRegion::new(0, 0x1000, 0, fd.as_fd()).unwrap();
    assert_eq!(region.file, other.file);
    let stranger = memfd(0x5000, MFdFlags::empty());
    let stranger = GuestRegion::new(0, 0x1000, 0, stranger.as_fd()).unwrap();
    assert_ne!(stranger, other);
    drop(fd);
    assert_eq!(
        GuestRegion::new(0, 0x1000, 0, other.fd.as_fd()).unwrap(),
        other
    );

    let flags = fcntl(&*region.fd, FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, nix::libc::FD_CLOEXEC);
    let shared = region.shared();
    assert_eq!(
        shared.region,
        MemRegion {
            guest_addr: 1 << 32,
            size: 0x3000,
            user_addr: 1 << 32,
            mmap_offset: 0x2000,
            ..MemRegion::default()
        }
    );
}

/// However it came to be, a list keeps one descriptor for each file.
#[test]
#[cfg_attr(miri, ignore = "needs files in memory")]
fn regions_of_one_file_share_a_descriptor() {
    let files = [0, 1].map(|_| memfd(0x5000, MFdFlags::empty()));
    let page = socket::page_size();
    let region = |n: u64| {
        let fd = &files[usize::from(n % 2 == 1)];
        GuestRegion::new(n * page, page, 0, fd.as_fd()).unwrap()
    };
    let descriptors = |list: &MemoryList| {
        let mut fds: Vec<_> = list.iter().map(|region| region.fd.as_raw_fd()).collect();
        fds.sort_unstable();
        fds.dedup();
        fds.len()
    };
    let mut list = MemoryList::new((0..8).map(region).collect()).unwrap();
    assert_eq!(descriptors(&list), 2);
    for n in 8..16 {
        list.add(region(n)).unwrap();
    }
    assert_eq!(descriptors(&list), 2);
    list.remove(0, page).unwrap();
    assert_eq!((list.len(), descriptors(&list)), (15, 2));
    assert!(list.iter().all(|region| region.file.ino != 0));
}

#[test]
#[cfg_attr(miri, ignore = "needs files in memory")]
fn every_missing_property_is_named() {
    let fd = memfd(0x5000, MFdFlags::empty());
    let page = socket::page_size();
    let high = u64::MAX - page + 1;
    let bounds = [
        (0, 0, 0, "size is 0".to_owned()),
        (
            1,
            page,
            0,
            format!("guest_addr is 0x1, not a multiple of the page size, {page:#x}"),
        ),
        (0, page + 1, 0, format!("size is {:#x}, not", page + 1)),
        (0, page, 512, "mmap_offset is 0x200, not".to_owned()),
        (
            high,
            page,
            0,
            format!("guest_addr {high:#x} + size {page:#x} does not fit into 64 bits"),
        ),
        (0, page, high, "mmap_offset 0xf".to_owned()),
        (0, high, page, "does not fit".to_owned()),
        (
            0,
            0x5000,
            0x1000,
            "0x6000, and the file has 0x5000 bytes".to_owned(),
        ),
        (
            0,
            0x6000,
            0,
            "0x6000, and the file has 0x5000 bytes".to_owned(),
        ),
        (
            0,
            page,
            high - page,
            "and the file has 0x5000 bytes".to_owned(),
        ),
    ];
    for (guest_addr, size, offset, expected) in bounds {
        let error = GuestRegion::new(guest_addr, size, offset, fd.as_fd()).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(Errno::EINVAL));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("region at guest_addr {guest_addr:#x}: ")),
            "{text}"
        );
        assert!(text.contains(&expected), "{text}");
    }
    assert!(GuestRegion::new(high - page, page, 0, fd.as_fd()).is_ok());
    assert!(GuestRegion::new(0, 0x5000, 0, fd.as_fd()).is_ok());
}

#[test]
#[cfg_attr(miri, ignore = "needs files in memory")]
fn a_file_that_cannot_be_shared_is_refused() {
    let new = |fd: BorrowedFd<'_>| GuestRegion::new(0, 0x1000, 0, fd);
    let socket: OwnedFd = UnixStream::pair().unwrap().0.into();
    assert!(words(new(socket.as_fd())).contains("not a file that can be shared"));
    let directory = File::open("/").unwrap();
    assert!(words(new(directory.as_fd())).contains("not a file that can be shared"));
    let pipe = nix::unistd::pipe().unwrap().0;
    assert!(words(new(pipe.as_fd())).contains("not a file that can be shared"));
    let device = File::open("/dev/zero").unwrap();
    assert!(words(new(device.as_fd())).contains("not open for reading and writing"));

    let itself = std::env::current_exe().unwrap();
    let text = words(new(File::open(itself).unwrap().as_fd()));
    assert!(text.contains("not open for reading and writing"), "{text}");

    for seal in [SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_FUTURE_WRITE] {
        let sealed = memfd(0x1000, MFdFlags::MFD_ALLOW_SEALING);
        fcntl(&sealed, FcntlArg::F_ADD_SEALS(seal)).unwrap();
        assert!(words(new(sealed.as_fd())).contains("sealed against writing"));
    }
    let sealed = memfd(0x1000, MFdFlags::MFD_ALLOW_SEALING);
    let harmless = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(harmless)).unwrap();
    assert!(new(sealed.as_fd()).is_ok());
}

#[test]
#[cfg_attr(miri, ignore = "needs files")]
fn any_file_that_is_open_for_both_will_do() {
    let name = format!("vuf-memory-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&[0; 0x1000]).unwrap();
    assert!(GuestRegion::new(0, 0x1000, 0, file.as_fd()).is_ok());
}

/// As device DAX has them: their size is not known, and its pages are not.
#[test]
#[cfg_attr(miri, ignore = "needs files")]
fn a_device_is_memory_of_any_size() {
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    let new = |size, offset| GuestRegion::new(0, size, offset, zero.as_fd());
    assert!(new(1 << 40, 1 << 40).is_ok());
    assert!(words(new(0x1000, 1)).contains("mmap_offset is 0x1, not a multiple"));
}

/// Where the kernel has huge pages at all; none need be free, as none is touched.
#[test]
#[cfg_attr(miri, ignore = "needs files in memory")]
fn huge_pages_are_not_cut() {
    let Ok(fd) = memfd_create("huge", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB) else {
        return;
    };
    let page = u64::try_from(fstat(&fd).unwrap().st_blksize).unwrap();
    ftruncate(&fd, i64::try_from(2 * page).unwrap()).unwrap();
    let new = |at, size, offset| GuestRegion::new(at, size, offset, fd.as_fd());
    assert!(new(0, page, page).is_ok());
    assert!(new(0x1000, 2 * page, 0).is_ok());
    let text = words(new(0, page, 0x1000));
    assert!(
        text.contains(&format!(
            "mmap_offset is 0x1000, not a multiple of the size of the file's huge pages, {page:#x}"
        )),
        "{text}"
    );
    assert!(words(new(0, 0x1000, 0)).contains("size is 0x1000, not a multiple of the size"));
}

// ---- the list ----

#[test]
fn a_list_is_sorted_and_does_not_overlap() {
    let fd = some_fd();
    let at = |at, pages| region(&fd, at, pages, 0, 1);
    let sorted = list(&[at(7, 1), at(0, 2), at(2, 5)]);
    assert_eq!(*sorted, [at(0, 2), at(2, 5), at(7, 1)]);
    assert_eq!(sorted, list(&[at(2, 5), at(7, 1), at(0, 2)]));
    assert_ne!(sorted, list(&[at(2, 5), at(7, 1), region(&fd, 0, 2, 0, 2)]));

    let error = MemoryList::new(vec![at(9, 1), at(4, 1), at(0, 1), at(3, 2)]).unwrap_err();
    assert_eq!(error.region, Some(3));
    assert_eq!(
        error.to_string(),
        "the region at guest_addr 0x3000, size 0x2000, \
         overlaps the region at guest_addr 0x4000, size 0x1000"
    );
}

#[test]
fn regions_are_added_and_removed_by_their_bounds() {
    let fd = some_fd();
    let at = |at, pages| region(&fd, at, pages, 0, 1);
    let mut memory = MemoryList::default();
    memory.add(at(4, 2)).unwrap();
    memory.add(at(0, 2)).unwrap();
    let before = memory.clone();
    for bad in [
        at(3, 2),
        at(5, 1),
        at(5, 9),
        at(0, 1),
        at(1, 1),
        at(0, 9),
        at(4, 2),
    ] {
        let text = words(memory.add(bad));
        assert!(text.contains("overlaps the region at"), "{text}");
    }
    let text = words(memory.remove(4 * PAGE, PAGE));
    assert_eq!(
        text,
        "there is no region at guest_addr 0x4000 of size 0x1000: \
         the region at guest_addr 0x4000, size 0x2000 lies there"
    );
    assert!(words(memory.remove(3 * PAGE, PAGE)).ends_with("nothing lies there"));
    assert_eq!(memory, before);
    memory.add(at(2, 2)).unwrap();
    memory.remove(0, 2 * PAGE).unwrap();
    assert_eq!(*memory, [at(2, 2), at(4, 2)]);
    assert_eq!(before.len(), 2);
}

#[test]
fn a_ring_lies_in_one_region() {
    let fd = some_fd();
    let memory = list(&[region(&fd, 1, 2, 0, 1), region(&fd, 3, 1, 2, 1)]);
    let first = |addr, len| covers(&memory, addr, len).map(|region| region.guest_addr);
    assert_eq!(first(PAGE, 2 * PAGE), Some(PAGE));
    assert_eq!(first(PAGE + 8, 2 * PAGE - 8), Some(PAGE));
    assert_eq!(first(3 * PAGE, PAGE), Some(3 * PAGE));
    assert_eq!(first(PAGE, 0), Some(PAGE));
    for (addr, len) in [
        (PAGE - 1, 2),
        (0, PAGE),
        (PAGE, 2 * PAGE + 1),
        (3 * PAGE - 1, 2),
        (4 * PAGE - 1, 2),
        (4 * PAGE, 0),
        (u64::MAX, 2),
        (PAGE, u64::MAX),
    ] {
        assert_eq!(first(addr, len), None, "{addr:#x} {len:#x}");
    }
    assert_eq!(covers(&MemoryList::default(), 0, 0), None);
}

// ---- with slots ----

#[test]
fn with_slots_each_region_is_one_request_and_removals_come_first() {
    let fd = some_fd();
    let (a, b, c) = (
        region(&fd, 0, 1, 0, 1),
        region(&fd, 1, 1, 1, 1),
        region(&fd, 2, 1, 2, 1),
    );
    let mut sent = Slots::new(true);
    let both = list(&[a.clone(), b.clone()]);
    let steps = go(&mut sent, &both);
    assert_eq!(
        steps,
        [MemoryStep::Add(a.clone()), MemoryStep::Add(b.clone())]
    );
    assert_eq!(following(&sent, &both), None);

    let wanted = list(&[b.clone(), c.clone()]);
    assert!(stale(&sent, &wanted));
    assert_eq!(changes_live(&sent, &sent.slots, &wanted), Some(&a));
    assert_eq!(
        changes_live(
            &sent,
            &sent.slots,
            &list(&[a.clone(), b.clone(), c.clone()])
        ),
        None
    );
    let steps = go(&mut sent, &wanted);
    assert_eq!(steps, [MemoryStep::Remove(a), MemoryStep::Add(c.clone())]);
    assert!(!stale(&sent, &wanted));

    // Another size, or another place in the file, is another region.
    let longer = region(&fd, 2, 2, 2, 1);
    let steps = go(&mut sent, &list(&[b.clone(), longer.clone()]));
    assert_eq!(
        steps,
        [MemoryStep::Remove(c), MemoryStep::Add(longer.clone())]
    );
    let moved = region(&fd, 2, 2, 7, 1);
    let steps = go(&mut sent, &list(&[b.clone(), moved.clone()]));
    assert_eq!(
        steps,
        [MemoryStep::Remove(longer), MemoryStep::Add(moved.clone())]
    );

    let steps = go(&mut sent, &MemoryList::default());
    assert_eq!(steps, [MemoryStep::Remove(b), MemoryStep::Remove(moved)]);
    assert!(!stale(&sent, &MemoryList::default()));
}

// ---- with a table ----

#[test]
fn a_table_is_coalesced_only_as_far_as_it_must() {
    let fd = some_fd();
    let mut sent = Slots::new(false);
    let eight = list(&row(&fd, 8));
    assert_eq!(go(&mut sent, &eight), [MemoryStep::SetTable(row(&fd, 8))]);
    assert_eq!(following(&sent, &eight), None);

    let nine = list(&row(&fd, 9));
    let mut expected = row(&fd, 9);
    expected.remove(1);
    expected[0].size = 2 * PAGE;
    assert_eq!(
        changes_live(&sent, &sent.slots, &nine).unwrap().guest_addr,
        0
    );
    assert!(!stale(&sent, &nine), "it is the same memory");
    assert_eq!(
        go(&mut sent, &nine),
        [MemoryStep::SetTable(expected.clone())]
    );
    assert_eq!(following(&sent, &nine), None);
    assert!(!stale(&sent, &nine));

    // A page less of what is one slot now.
    let hole = list(&row(&fd, 9)[1..]);
    assert!(stale(&sent, &hole));
    assert_eq!(changes_live(&sent, &sent.slots, &hole), Some(&expected[0]));
    assert_eq!(go(&mut sent, &hole), [MemoryStep::SetTable(hole.to_vec())]);
    assert!(!stale(&sent, &hole));
}

#[test]
fn only_neighbours_in_memory_and_in_the_file_are_coalesced() {
    let fd = some_fd();
    let table = Limits {
        slots: None,
        configure: false,
    };
    for (at, offset, ino) in [(9, 8, 1), (8, 9, 1), (8, 8, 2), (8, 0, 1)] {
        let mut regions: Vec<_> = (0..8).map(|n| region(&fd, 20 + 2 * n, 1, 0, 1)).collect();
        regions.extend([region(&fd, 7, 1, 7, 1), region(&fd, at, 1, offset, ino)]);
        let memory = list(&regions);
        assert_eq!(memory.coalesced().len(), 10, "{at} {offset} {ino}");
        let error = fits(&memory, table).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(Errno::ENOSPC));
        assert_eq!(
            error.to_string(),
            "memory has 10 regions, 10 with neighbours of one file coalesced, \
             and the back-end has 8 slots"
        );
    }
}

#[test]
fn an_empty_table_is_not_sent() {
    let nothing = MemoryList::default();
    let mut sent = Slots::new(false);
    assert_eq!(following(&sent, &nothing), None);
    assert!(!stale(&sent, &nothing));
    let one = list(&row(&some_fd(), 1));
    go(&mut sent, &one);
    assert_eq!(following(&sent, &nothing), None);
    assert!(stale(&sent, &nothing));
    assert!(changes_live(&sent, &sent.slots, &nothing).is_some());
    assert_eq!(following(&sent, &one), None);
    assert!(!stale(&Slots::new(false), &nothing));
}

#[test]
fn whether_it_fits_is_known_before() {
    let fd = some_fd();
    for n in 0..=if cfg!(miri) { 40 } else { 600 } {
        let memory = list(&row(&fd, n));
        let apart: Vec<_> = (0..n).map(|at| region(&fd, 2 * at, 1, at, 1)).collect();
        let apart = list(&apart);
        let table = |slots| Limits {
            slots,
            configure: false,
        };
        assert!(fits(&memory, table(None)).is_ok());
        assert_eq!(fits(&apart, table(None)).is_ok(), n <= 8);
        for slots in [0, 1, 8, 32, 509] {
            let limits = Limits {
                slots: Some(slots),
                configure: true,
            };
            assert_eq!(fits(&memory, limits).is_ok(), n <= slots, "{n} in {slots}");
        }
        let unknown = Limits {
            slots: None,
            configure: true,
        };
        assert!(fits(&apart, unknown).is_ok());
    }
    let limits = Limits {
        slots: Some(8),
        configure: true,
    };
    assert_eq!(
        words(fits(&list(&row(&fd, 9)), limits)),
        "memory has 9 regions, and the back-end has 8 slots"
    );
}

// ---- any changes, against a model ----

/// What a caller, or the world, does next. Numbers are taken modulo what is there.
#[derive(Debug, Clone)]
enum Act {
    Add {
        at: u64,
        pages: u64,
        offset: u64,
        ino: u64,
    },
    /// Regions of one page side by side in one file: many, to get to the limits.
    AddRow {
        at: u64,
        n: u64,
    },
    Remove(usize),
    RemoveMost(usize),
    /// A region with the same bounds, elsewhere in its file.
    Replace(usize),
    Clear,
    Reconnect,
}

/// Each with how many steps there is time for before the next, if that matters.
fn acts() -> impl Strategy<Value = Vec<(Act, Option<usize>)>> {
    let act = prop_oneof![
        6 => (0..80_u64, 1..4_u64, 0..3_u64, 1..3_u64).prop_map(|(at, pages, shift, ino)| Act::Add {
            at,
            pages,
            // Mostly so that neighbours are neighbours in the file, too.
            offset: at + shift / 2,
            ino,
        }),
        2 => (0..400_u64, 1..LONGEST_ROW).prop_map(|(at, n)| Act::AddRow { at, n }),
        4 => any::<usize>().prop_map(Act::Remove),
        1 => any::<usize>().prop_map(Act::RemoveMost),
        2 => any::<usize>().prop_map(Act::Replace),
        1 => Just(Act::Clear),
        1 => Just(Act::Reconnect),
    ];
    let hurry = prop::option::weighted(0.3, 0..5_usize);
    prop::collection::vec((act, hurry), 1..MOST_ACTS)
}

impl Act {
    /// On the list; what is not possible is left.
    fn on(&self, wanted: &mut MemoryList, fd: &Arc<OwnedFd>) {
        let nth = |wanted: &MemoryList, n: usize| wanted.get(n % wanted.len().max(1)).cloned();
        match *self {
            Self::Add {
                at,
                pages,
                offset,
                ino,
            } => {
                let _ = wanted.add(region(fd, at, pages, offset, ino));
            }
            Self::AddRow { at, n } => {
                for at in at..at + n {
                    let _ = wanted.add(region(fd, at, 1, at, 1));
                }
            }
            Self::Remove(n) => {
                if let Some(region) = nth(wanted, n) {
                    wanted.remove(region.guest_addr, region.size).unwrap();
                }
            }
            Self::RemoveMost(n) => {
                let kept = nth(wanted, n);
                *wanted = MemoryList::new(kept.into_iter().collect()).unwrap();
            }
            Self::Replace(n) => {
                if let Some(mut region) = nth(wanted, n) {
                    wanted.remove(region.guest_addr, region.size).unwrap();
                    region.offset += PAGE;
                    wanted.add(region).unwrap();
                }
            }
            Self::Clear => *wanted = MemoryList::default(),
            Self::Reconnect => {}
        }
    }
}

/// What lies at each page of guest memory: which file, and where in it.
type Pages = BTreeMap<u64, (u64, u64)>;

fn pages<'a>(regions: impl IntoIterator<Item = &'a GuestRegion>) -> Pages {
    let mut pages = Pages::new();
    for region in regions {
        for page in 0..region.size / PAGE {
            let byte = (region.file.ino, region.offset + page * PAGE);
            let before = pages.insert(region.guest_addr / PAGE + page, byte);
            assert_eq!(before, None, "regions overlap");
        }
    }
    pages
}

/// A back-end that is as strict as any.
#[derive(Default)]
struct Backend {
    slots: Vec<GuestRegion>,
}

impl Backend {
    fn serve(&mut self, step: &MemoryStep, limit: Option<u64>) {
        match (step, limit) {
            (MemoryStep::SetTable(table), None) => {
                assert!((1..=8).contains(&table.len()), "{}", table.len());
                pages(table);
                self.slots = table.clone();
            }
            (MemoryStep::Add(region), Some(limit)) => {
                self.slots.push(region.clone());
                assert!(u64::try_from(self.slots.len()).unwrap() <= limit);
            }
            (MemoryStep::Remove(region), Some(_)) => {
                let slot = self.slots.iter().position(|slot| slot == region);
                self.slots.remove(slot.expect("no such slot"));
            }
            _ => panic!("{step:?} to a back-end with {limit:?} slots"),
        }
    }
}

fn any_changes(acts: &[(Act, Option<usize>)], limit: Option<u64>) {
    let fd = some_fd();
    let configure = limit.is_some();
    let limits = Limits {
        slots: limit,
        configure,
    };
    let mut wanted = MemoryList::default();
    let mut sent = Slots::new(configure);
    let mut backend = Backend::default();
    for (act, hurry) in acts {
        let mut changed = wanted.clone();
        act.on(&mut changed, &fd);
        if fits(&changed, limits).is_err() {
            continue;
        }
        wanted = changed;
        if matches!(act, Act::Reconnect) {
            (sent, backend) = (Slots::new(configure), Backend::default());
        }
        let most = sent.slots.len() + wanted.len();
        // A removal or a change is known before, and nothing else is taken for one.
        let live = changes_live(&sent, &sent.slots, &wanted).cloned();
        let resident = sent.slots.clone();
        let mut disturbed = Vec::new();
        let mut steps = 0;
        let mut added = false;
        let mut idle = false;
        while hurry.is_none_or(|hurry| steps < hurry) {
            let Some(step) = following(&sent, &wanted) else {
                idle = true;
                break;
            };
            match &step {
                MemoryStep::Remove(region) => {
                    assert!(!added, "a removal after an addition");
                    assert!(!wanted.contains(region), "a region that stays was removed");
                    disturbed.push(region.clone());
                }
                MemoryStep::Add(region) => {
                    assert!(
                        wanted.contains(region),
                        "not one of the regions that are wanted"
                    );
                    added = true;
                }
                MemoryStep::SetTable(table) => {
                    let more = wanted.len().saturating_sub(8);
                    assert_eq!(table.len(), wanted.len() - more, "coalesced too far");
                    let gone = resident.iter().filter(|slot| !table.contains(slot));
                    disturbed.extend(gone.cloned());
                }
            }
            backend.serve(&step, limit);
            sent.apply(&step);
            steps += 1;
            assert!(steps <= if configure { most } else { 1 }, "it does not end");
        }
        assert_eq!(pages(sent.slots.iter()), pages(&backend.slots));
        if idle {
            let unsent = !configure && wanted.is_empty() && !backend.slots.is_empty();
            assert_eq!(stale(&sent, &wanted), unsent);
            assert_eq!(
                live.as_ref(),
                disturbed.first().or(match unsent {
                    true => resident.first(),
                    false => None,
                })
            );
            if !unsent {
                assert_eq!(pages(wanted.iter()), pages(&backend.slots));
            }
            if configure {
                assert_eq!(sent.slots, wanted, "with slots nothing is coalesced");
            }
        }
        // Stale is who can reach a page that is not wanted, or not so.
        let wanted = pages(wanted.iter());
        let reached = pages(&backend.slots);
        let beyond = reached
            .iter()
            .any(|(page, byte)| wanted.get(page) != Some(byte));
        assert_eq!(stale(&sent, &list_of(&wanted, &fd)), beyond);
    }
}

/// Page by page, which is the same memory.
fn list_of(pages: &Pages, fd: &Arc<OwnedFd>) -> MemoryList {
    let region = |(at, (ino, offset)): (&u64, &(u64, u64))| region(fd, *at, 1, offset / PAGE, *ino);
    MemoryList::new(pages.iter().map(region).collect()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_changes_with_a_table(acts in acts()) {
        any_changes(&acts, None);
    }

    #[test]
    fn any_changes_with_8_slots(acts in acts()) {
        any_changes(&acts, Some(8));
    }

    #[test]
    fn any_changes_with_32_slots(acts in acts()) {
        any_changes(&acts, Some(32));
    }

    #[test]
    fn any_changes_with_509_slots(acts in acts()) {
        any_changes(&acts, Some(509));
    }
}
