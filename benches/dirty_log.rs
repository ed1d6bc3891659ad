//! The scan of a dirty log: `cargo bench --bench dirty_log`.
//!
//! A log of 32 MiB, of a guest with 1 TiB, into a bitmap of that size, against the
//! plain loop (one atomic exchange for each word that is not zero, as in QEMU),
//! against reading the log, and against changing the same memory with nothing
//! atomic. Those three are C (plain_loop.c), as the programs are that have such a
//! loop, and optimised for speed. The caches are emptied before each turn.
//!
//! docs/benchmarks.md says what came of it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a benchmark ends by panicking, and says what it measured"
)]

mod common;

use common::back_ends::Place;
use common::{Contender, Table, race, results, rounds, shared_library};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};
use vhost_user_frontend::ffi::dirty_log::vuf_dirty_log_sync;

const SIZE: usize = 32 << 20;
const WORDS: usize = SIZE / 8;
const PAGES: usize = SIZE * 8;
const MARKS: usize = PAGES / 1000;
/// Pages that are dirty one behind the other: 2 MiB.
const RUN: usize = 512;

/// The bits of a word, and where it lies.
#[repr(C)]
struct Mark {
    word: usize,
    bits: u64,
}

/// The functions of plain_loop.c.
struct Plain {
    plain_loop: unsafe extern "C" fn(*mut u64, *mut u64, usize) -> u64,
    reading: unsafe extern "C" fn(*const u64, usize) -> u64,
    memory_alone: unsafe extern "C" fn(*mut u64, *mut u64, usize, *const Mark, usize) -> u64,
}

impl Plain {
    fn compile(place: &Place) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plain_loop.c");
        let library = shared_library(place, &source, &["-std=gnu99", "-O3"]);
        let library = CString::new(library.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a string; the library runs nothing when it is loaded.
        let library = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null());
        Self {
            plain_loop: find(library, c"plain_loop"),
            reading: find(library, c"reading"),
            memory_alone: find(library, c"memory_alone"),
        }
    }
}

/// A function of this type.
fn find<F>(library: *mut c_void, name: &CStr) -> F {
    // SAFETY: a library that stays, and a name that ends.
    let at = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!at.is_null(), "{name:?}");
    // SAFETY: it has this type there, and so the size of a pointer.
    unsafe { std::mem::transmute_copy(&at) }
}

/// A log and a bitmap.
#[derive(Clone, Copy)]
struct Memory {
    log: *mut u64,
    bitmap: *mut u64,
}

impl Memory {
    fn new() -> Self {
        let (log, bitmap) = (shared_memory(), shared_memory());
        Self { log, bitmap }
    }

    /// Just these marks in the log, and an empty bitmap.
    fn fill(self, marks: &[Mark]) {
        for at in [self.log, self.bitmap] {
            // SAFETY: so long it is, and nobody has a reference to it.
            unsafe { at.write_bytes(0, WORDS) };
        }
        for mark in marks {
            let word = self.log.wrapping_add(mark.word);
            // SAFETY: a word of the log, to which nobody has a reference.
            unsafe { word.write(mark.bits.to_le()) };
        }
    }
}

/// Memory as back-ends get it, every page of it there.
fn shared_memory() -> *mut u64 {
    // SAFETY: a name that ends.
    let fd = unsafe { libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: a descriptor of ours, or -1.
    assert_eq!(unsafe { libc::ftruncate(fd, SIZE as libc::off_t) }, 0);
    let (both, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, which nobody ever unmaps.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, both, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: mapped for writing, and nobody has a reference to it.
    unsafe { at.write_bytes(0, SIZE) };
    at.cast()
}

fn ours(memory: Memory) -> u64 {
    let (log, bitmap) = (memory.log.cast(), memory.bitmap.cast());
    let mut fresh = 0;
    // SAFETY: both are there, and of this size.
    let rc = unsafe { vuf_dirty_log_sync(log, SIZE, 0, PAGES as u64, bitmap, &raw mut fresh) };
    assert_eq!(rc, 0);
    fresh
}

fn count(marks: &[Mark]) -> u64 {
    marks.iter().map(|m| u64::from(m.bits.count_ones())).sum()
}

/// In the order of the words, each once.
fn marks(pages: impl Iterator<Item = usize>) -> Vec<Mark> {
    let mut words = BTreeMap::<usize, u64>::new();
    for page in pages {
        *words.entry(page / 64).or_default() |= 1 << (page % 64);
    }
    let words = words.into_iter();
    words.map(|(word, bits)| Mark { word, bits }).collect()
}

/// The ways to go about it; each takes its turn on the same memory.
fn contenders<'a>(
    plain: &'a Plain,
    memory: Memory,
    other: Memory,
    marks: &'a [Mark],
) -> [Contender<'a>; 4] {
    // SAFETY: so many words are there.
    let read = |log| unsafe { (plain.reading)(log, WORDS) };
    let turn = move |way: &dyn Fn() -> u64| -> (u64, Duration) {
        memory.fill(marks);
        // Out of the caches, as after the second in which they were set.
        black_box(read(other.log) | read(other.bitmap));
        let begin = Instant::now();
        let result = way();
        (result, begin.elapsed())
    };
    let scan = move |way: &dyn Fn() -> u64| {
        let (fresh, time) = turn(way);
        assert_eq!(read(memory.log), 0);
        (fresh, time)
    };
    let counting = move |way: &dyn Fn() -> u64| {
        let (fresh, time) = scan(way);
        assert_eq!(fresh, count(marks));
        time
    };
    let (log, bitmap) = (memory.log, memory.bitmap);
    let (first, n) = (marks.as_ptr(), marks.len());
    // SAFETY: both have so many words.
    let plain_loop = move || unsafe { (plain.plain_loop)(log, bitmap, WORDS) };
    // SAFETY: the same, and the marks are in these words.
    let alone = move || unsafe { (plain.memory_alone)(log, bitmap, WORDS, first, n) };
    [
        Contender::new("this library", move || counting(&|| ours(memory))),
        Contender::new("plain loop", move || counting(&plain_loop)),
        Contender::new("reading", move || turn(&|| read(log)).1),
        Contender::new("memory alone", move || scan(&alone).1),
    ]
}

fn main() {
    let place = Place::new();
    let plain = Plain::compile(&place);
    let (memory, other) = (Memory::new(), Memory::new());
    let mut seed = 1_u64;
    let mut dice = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as usize % below
    };
    let anywhere: Vec<usize> = (0..MARKS).map(|_| dice(PAGES)).collect();
    let runs: Vec<usize> = (0..MARKS / RUN).map(|_| dice(PAGES / RUN) * RUN).collect();
    let full = (0..WORDS).map(|word| Mark {
        word,
        bits: u64::MAX,
    });
    let logs = [
        ("none", Vec::new()),
        ("one in 1000, anywhere", marks(anywhere.into_iter())),
        (
            "one in 1000, in runs of 512",
            marks(runs.into_iter().flat_map(|page| page..page + RUN)),
        ),
        ("all", full.collect()),
    ];
    let mut table = Table::new(&["dirty pages", "scan", "ms", "× this library"]);
    for (dirty, marks) in logs {
        let mut contenders = contenders(&plain, memory, other, &marks);
        race(rounds(25), &mut contenders);
        for it in results(&contenders) {
            let time = format!("{:.2}", it.time.as_secs_f64() * 1e3);
            table.row(&[dirty, &it.name, &time, &format!("{:.2}", it.ratio)]);
        }
    }
    table.print("The scan of a dirty log");
}
