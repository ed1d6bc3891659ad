//! The scan of a dirty log: `cargo bench --bench dirty_log`.
//!
//! A log of 32 MiB, of a guest with 1 TiB, into a bitmap of that size, against the
//! plain loop (one atomic exchange for each word that is not zero, as in QEMU),
//! against reading the log, and against changing the same memory with nothing
//! atomic. The ways take turns, each with the caches emptied before, and the
//! medians are compared: a machine that is busy slows all of them down.
//!
//! No scan is much faster than "memory alone". Where pages are dirty here and there,
//! one in a thousand, that is four lines of ten in the log and in the bitmap; where
//! the log is clean, or its marks lie together, the plain loop is nearly as fast as
//! memory, too.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark ends by panicking, and says what it measured"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Instant;
use vhost_user_frontend::ffi::dirty_log::vuf_dirty_log_sync;

const SIZE: usize = 32 << 20;
const WORDS: usize = SIZE / 8;
const PAGES: usize = SIZE * 8;
const MARKS: usize = PAGES / 1000;
/// Pages that are dirty one behind the other: 2 MiB.
const RUN: usize = 512;
const ROUNDS: usize = 25;

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

fn ours(log: &[AtomicU64], bitmap: &mut [u64], _: &[Mark]) -> u64 {
    let mut fresh = 0;
    // SAFETY: both are there, and of this size.
    let rc = unsafe {
        vuf_dirty_log_sync(
            log.as_ptr().cast_mut().cast(),
            SIZE,
            0,
            PAGES as u64,
            bitmap.as_mut_ptr().cast(),
            &raw mut fresh,
        )
    };
    assert_eq!(rc, 0);
    fresh
}

#[inline(never)]
fn plain_loop(log: &[AtomicU64], bitmap: &mut [u64], _: &[Mark]) -> u64 {
    let mut fresh = 0;
    for (word, bits) in log.iter().zip(bitmap) {
        if word.load(Relaxed) != 0 {
            let taken = word.swap(0, Acquire);
            fresh += u64::from((taken & !*bits).count_ones());
            *bits |= taken;
        }
    }
    fresh
}

fn plain(log: &[AtomicU64]) -> &[u64] {
    // SAFETY: this program has one thread, and nobody else has the memory.
    unsafe { std::slice::from_raw_parts(log.as_ptr().cast(), log.len()) }
}

/// As wide and as many at once as the compiler makes it.
#[inline(never)]
fn read(words: &[u64]) -> u64 {
    let mut all = [0; 16];
    for words in words.chunks_exact(16) {
        for (all, word) in all.iter_mut().zip(words) {
            *all |= word;
        }
    }
    all.iter().fold(0, |all, word| all | word)
}

fn reading(log: &[AtomicU64], _: &mut [u64], _: &[Mark]) -> u64 {
    black_box(read(plain(log)));
    0
}

/// What no scan can do without: the log is read, and the words that must change in
/// log and bitmap are changed. Which ones that are it knows beforehand, and the
/// stores are plain ones.
#[inline(never)]
fn memory_alone(log: &[AtomicU64], bitmap: &mut [u64], marks: &[Mark]) -> u64 {
    const BLOCK: usize = 512;
    let mut rest = marks;
    for block in 0..WORDS / BLOCK {
        let end = (block + 1) * BLOCK;
        black_box(read(plain(&log[end - BLOCK..end])));
        let n = rest.iter().take_while(|mark| mark.word < end).count();
        let (here, behind) = rest.split_at(n);
        rest = behind;
        #[cfg(target_arch = "x86_64")]
        for mark in here {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, harmless with any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const bitmap[mark.word]).cast()) };
        }
        for mark in here {
            log[mark.word].store(0, Relaxed);
        }
        for mark in here {
            bitmap[mark.word] |= mark.bits;
        }
    }
    count(marks)
}

/// The bits of a word, and where it lies.
struct Mark {
    word: usize,
    bits: u64,
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

type Way = fn(&[AtomicU64], &mut [u64], &[Mark]) -> u64;

const WAYS: [(&str, Way); 4] = [
    ("ours", ours),
    ("plain loop", plain_loop),
    ("reading", reading),
    ("memory alone", memory_alone),
];

fn milliseconds(log: &[AtomicU64], bitmap: &mut [u64], marks: &[Mark], other: &[u64]) -> [f64; 4] {
    let all = count(marks);
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for ((name, way), times) in WAYS.iter().zip(&mut times) {
            bitmap.fill(0);
            for mark in marks {
                log[mark.word].fetch_or(mark.bits.to_le(), Relaxed);
            }
            // Out of the caches, as after the second in which they were set.
            black_box(read(other));
            let begin = Instant::now();
            let fresh = way(log, bitmap, marks);
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            if *name != "reading" {
                assert_eq!(fresh, all, "{name}");
                assert_eq!(read(plain(log)), 0, "{name}");
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

fn main() {
    // SAFETY: zeros are words, and there are so many.
    let log = unsafe { std::slice::from_raw_parts(shared_memory().cast::<AtomicU64>(), WORDS) };
    // SAFETY: the same, and nobody else has them.
    let bitmap = unsafe { std::slice::from_raw_parts_mut(shared_memory(), WORDS) };
    let other = vec![1; 4 * WORDS];
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
        ("clean", Vec::new()),
        ("0.1 % of the pages, anywhere", marks(anywhere.into_iter())),
        (
            "0.1 %, in runs of 512 pages",
            marks(runs.into_iter().flat_map(|page| page..page + RUN)),
        ),
        ("full", full.collect()),
    ];
    println!("32 MiB of log, medians of {ROUNDS} rounds, in ms; and how many times the");
    println!("plain loop's speed, and the speed of reading, ours is");
    print!("{:30}", "");
    for (name, _) in WAYS {
        print!("{name:>13}");
    }
    println!("{:>9}{:>9}", "/plain", "/reading");
    for (name, marks) in logs {
        let times = milliseconds(log, bitmap, &marks, &other);
        print!("{name:30}");
        for time in times {
            print!("{time:13.2}");
        }
        println!("{:9.2}{:9.2}", times[1] / times[0], times[2] / times[0]);
    }
}
