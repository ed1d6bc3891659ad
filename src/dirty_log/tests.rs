//! Through the exported function, with memory of exactly the sizes that are named:
//! an interpreter (`c-tests/check_miri.sh`) sees each byte that is touched beyond.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use crate::ffi::dirty_log::vuf_dirty_log_sync;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

const CASES: u32 = if cfg!(miri) { 6 } else { 2000 };
/// Bytes that are looked at together.
const BLOCK: usize = 4096;
/// Of a log, in bytes.
const LARGEST: usize = if cfg!(miri) {
    BLOCK + 200
} else {
    3 * BLOCK + 200
};

fn sync<T>(log: &[T], first_page: u64, pages: u64, bitmap: &mut [u8]) -> u64 {
    assert_eq!(bitmap.len() as u64, pages.div_ceil(8));
    let mut fresh = u64::MAX;
    // SAFETY: a log of atomics of one size, and a bitmap and a number of ours.
    let rc = unsafe {
        vuf_dirty_log_sync(
            log.as_ptr().cast_mut().cast(),
            size_of_val(log),
            first_page,
            pages,
            bitmap.as_mut_ptr().cast(),
            &raw mut fresh,
        )
    };
    assert_eq!(rc, 0);
    fresh
}

/// Numbers that nobody chose.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Bytes with marks here and there: each block has its own share.
    fn marks(&mut self, bytes: usize) -> Vec<u8> {
        let mut marks = vec![0; bytes];
        for block in marks.chunks_mut(BLOCK) {
            let share = [0, 1, 20, 200, 1000][self.next() as usize % 5];
            for byte in block {
                if self.next() % 1000 < share {
                    *byte = if share == 1000 {
                        0xff
                    } else {
                        self.next() as u8
                    };
                }
            }
        }
        marks
    }
}

fn bit(bytes: &[u8], n: u64) -> bool {
    bytes[usize::try_from(n / 8).unwrap()] >> (n % 8) & 1 != 0
}

fn flip(bytes: &mut [u8], n: u64) {
    bytes[usize::try_from(n / 8).unwrap()] ^= 1 << (n % 8);
}

#[derive(Debug, Clone)]
struct Case {
    size: usize,
    /// Where the log begins, in bytes behind an address as allocations have it.
    offset: usize,
    first_page: u64,
    pages: u64,
    seed: u64,
}

/// What ranges begin and end at multiples of.
fn grid() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), Just(8), Just(64), Just(512), Just(8 * 4096)]
}

fn case() -> impl Strategy<Value = Case> {
    let size = prop_oneof![
        0..=20_usize,
        0..=LARGEST,
        Just(BLOCK),
        Just(2 * BLOCK / 8 * 7)
    ];
    let offset = prop_oneof![Just(0_usize), 0..=16_usize];
    (
        size,
        offset,
        any::<[u64; 2]>(),
        grid(),
        grid(),
        1..=u64::MAX,
    )
        .prop_map(|(size, offset, ends, from, to, seed)| {
            let all = size as u64 * 8;
            let first_page = ends[0] % (all + 1) / from * from;
            let rest = all - first_page;
            // Half of them to the very end.
            let pages = match ends[1] % 2 {
                0 => rest,
                _ => ends[1] % (rest + 1) / to * to,
            };
            Case {
                size,
                offset,
                first_page,
                pages,
                seed,
            }
        })
}

/// The log and the bitmap are what the plain rule makes of them, bit by bit.
fn follows_the_rule(case: &Case) {
    let mut dice = Dice(case.seed);
    let marks = dice.marks(case.size);
    // Nothing lies behind the log, nor behind the bitmap.
    let room: Vec<AtomicU8> = (0..case.offset + case.size)
        .map(|_| AtomicU8::new(0))
        .collect();
    let log = &room[case.offset..];
    for (place, mark) in log.iter().zip(&marks) {
        place.store(*mark, Relaxed);
    }
    let mut bitmap = dice.marks(usize::try_from(case.pages.div_ceil(8)).unwrap());

    let (mut log_then, mut bitmap_then, mut fresh_then) = (marks.clone(), bitmap.clone(), 0);
    for n in (0..case.pages).filter(|n| bit(&marks, case.first_page + n)) {
        flip(&mut log_then, case.first_page + n);
        if !bit(&bitmap, n) {
            flip(&mut bitmap_then, n);
            fresh_then += 1;
        }
    }
    let fresh = sync(log, case.first_page, case.pages, &mut bitmap);
    assert_eq!(fresh, fresh_then);
    assert!(bitmap == bitmap_then, "the bitmap");
    let log: Vec<u8> = log.iter().map(|byte| byte.load(Relaxed)).collect();
    assert!(log == log_then, "the log");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn marks_move_from_the_log_to_the_bitmap(case in case()) {
        follows_the_rule(&case);
    }
}

/// Every way to begin and to end, in and around the first words of a log.
#[test]
fn ends_are_exact() {
    let (most, step, offsets) = match cfg!(miri) {
        true => (24 * 8, 13, 5..6),
        false => (24 * 8, 1, 0..8),
    };
    for offset in offsets {
        for first_page in (0..most).step_by(step) {
            for pages in (0..=most - first_page).step_by(step) {
                let size = usize::try_from(most).unwrap() / 8;
                let seed = first_page * 1000 + pages + 1;
                follows_the_rule(&Case {
                    size,
                    offset,
                    first_page,
                    pages,
                    seed,
                });
            }
        }
    }
}

/// Threads that mark one line of `every`, and one or two that take, up to a page and
/// from it: each mark that was not there before is taken once.
fn no_mark_is_lost(words: usize, from: Option<u64>, every: u64) {
    let rounds = if cfg!(miri) { 300 } else { 3_000_000 };
    let log: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
    let all = words as u64 * 64;
    let done = AtomicBool::new(false);
    let take = |pages: Range<u64>| {
        let (first_page, pages) = (pages.start, pages.end - pages.start);
        let mut taken = 0;
        loop {
            let last = done.load(SeqCst);
            let mut bitmap = vec![0; usize::try_from(pages.div_ceil(8)).unwrap()];
            let fresh = sync(&log, first_page, pages, &mut bitmap);
            let set: u64 = bitmap.iter().map(|b| u64::from(b.count_ones())).sum();
            assert_eq!(set, fresh);
            taken += fresh;
            if last {
                return taken;
            }
        }
    };
    let mark = |seed: u64| {
        let mut dice = Dice(seed);
        let mut made = 0_u64;
        for _ in 0..rounds {
            let line = dice.next() % all.div_ceil(512 * every);
            let page = (line * 512 * every + dice.next() % 512) % all;
            let word = &log[usize::try_from(page / 64).unwrap()];
            let mark = (1_u64 << (page % 64)).to_le();
            made += u64::from(word.fetch_or(mark, SeqCst) & mark == 0);
        }
        made
    };
    let (made, taken) = std::thread::scope(|scope| {
        let take = &take;
        let ranges = match from {
            Some(page) => vec![0..page, page..all],
            None => vec![Range { start: 0, end: all }],
        };
        let takers: Vec<_> = ranges
            .into_iter()
            .map(|pages| scope.spawn(move || take(pages)))
            .collect();
        let mark = &mark;
        let markers = [1, 2].map(|seed| scope.spawn(move || mark(seed)));
        let made: u64 = markers.into_iter().map(|m| m.join().unwrap()).sum();
        done.store(true, SeqCst);
        let taken: u64 = takers.into_iter().map(|t| t.join().unwrap()).sum();
        (made, taken)
    });
    assert_eq!(made, taken);
    assert!(log.iter().all(|word| word.load(SeqCst) == 0));
}

const WORDS: usize = 2 * BLOCK / 8;

#[test]
fn no_mark_is_lost_where_there_are_many() {
    no_mark_is_lost(WORDS, None, 1);
}

#[test]
fn no_mark_is_lost_where_there_are_few() {
    no_mark_is_lost(WORDS, None, 2);
}

#[test]
fn no_mark_is_lost_between_two_takers() {
    no_mark_is_lost(WORDS, Some(WORDS as u64 * 32 + 3), 1);
}

#[test]
fn no_mark_is_lost_between_two_takers_of_a_word() {
    no_mark_is_lost(1, Some(35), 1);
}
