//! Dirty logs: memory in which back-ends mark the pages that they write.
//!
//! The other side is another process, which may change the log at any time and in
//! any way; so it is read and cleared with atomic operations only. A plain or a
//! volatile read that races with a writer is undefined in Rust, even where the
//! writer is a foreign program. LLVM makes no vectors of atomic loads, and need
//! not: eight of them and their OR are as fast as memory (benches/dirty_log.rs).

use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicU64};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

#[cfg(test)]
mod tests;

/// Words that are looked at together: those of a cache line.
const LINE: usize = 8;
/// Lines of a block, in which all is found before the first of it is taken.
const LINES: usize = 64;
const BLOCK: usize = LINE * LINES;
/// With more lines than this, the words of a block are taken as they come: there
/// is little to skip, and the processor foresees by itself what is needed next.
const DENSE: usize = 48;

/// A log: bit p % 8 of byte p / 8 stands for page p.
///
/// Every byte is read and cleared through atomics of one size, whatever pages are
/// asked for: those of words that are aligned and lie in the log, and single
/// bytes before the first and behind the last.
#[derive(Debug)]
pub(crate) struct DirtyLog<'a> {
    head: &'a [AtomicU8],
    words: &'a [AtomicU64],
    tail: &'a [AtomicU8],
}

impl<'a> DirtyLog<'a> {
    /// # Safety
    /// While this lives, nobody in this program uses the memory through atomics of
    /// another size, except through another `DirtyLog` of exactly this memory.
    pub(crate) unsafe fn new(log: &'a [AtomicU8]) -> Self {
        // SAFETY: any eight bytes are a word; both kinds may change while they are
        // shared, and the caller promises that the sizes do not mix.
        let (head, words, tail) = unsafe { log.align_to::<AtomicU64>() };
        Self { head, words, tail }
    }

    /// Takes the marks of these pages out of the log, and sets their bits in the
    /// bitmap: bit 0 of its first byte is the first of the pages. Returns how many
    /// bits were not set there before.
    ///
    /// A mark that is made meanwhile is taken, too, or stays.
    pub(crate) fn sync(&self, pages: Range<u64>, bitmap: &mut [u8]) -> u64 {
        let words = end_of(0, self.head);
        let tail = end_of(words, self.words);
        let mut taker = Taker {
            pages,
            bitmap,
            fresh: 0,
            scratch: Scratch {
                lines: [0; LINES],
                found: [0; BLOCK],
                taken: [0; BLOCK],
            },
        };
        taker.bytes(self.head, 0);
        taker.words(self.words, words);
        taker.bytes(self.tail, tail);
        taker.fresh
    }
}

/// The pages from a page on, if a log of so many bytes has them.
pub(crate) fn range(log_size: usize, first_page: u64, pages: u64) -> Result<Range<u64>> {
    let all = wide(log_size).saturating_mul(8);
    match first_page.checked_add(pages) {
        Some(end) if end <= all => Ok(first_page..end),
        _ => Err(Error::invalid(format!(
            "first_page {first_page:#x} and pages {pages:#x} are beyond the log, which has {all:#x}"
        ))),
    }
}

/// The page behind the last one of units that begin with this page.
fn end_of<T>(first: u64, units: &[T]) -> u64 {
    first.saturating_add(wide(size_of_val(units)).saturating_mul(8))
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The `n` lowest bits, at most all.
fn lowest(n: u64) -> u64 {
    let rest = u32::try_from(64_u64.saturating_sub(n)).unwrap_or_default();
    u64::MAX.checked_shr(rest).unwrap_or_default()
}

/// All bits that are set in any word of a line, in no order. Written out: a loop of
/// eight stays a loop where code is compiled to be small.
#[inline(always)]
fn any(line: &[AtomicU64]) -> u64 {
    let Ok([a, b, c, d, e, f, g, h]) = <&[AtomicU64; LINE]>::try_from(line) else {
        return u64::MAX;
    };
    let two = |one: &AtomicU64, other: &AtomicU64| one.load(Relaxed) | other.load(Relaxed);
    two(a, b) | two(c, d) | two(e, f) | two(g, h)
}

/// Has memory brought near that will be changed soon.
#[inline(always)]
fn fetch_early<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, harmless with any address; each x86_64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Takes marks. What it takes is acquired: who then reads the page sees what the
/// back-end wrote before it made the mark.
struct Taker<'a> {
    pages: Range<u64>,
    bitmap: &'a mut [u8],
    fresh: u64,
    /// Not made anew for each block, which takes longer than a block that is clean.
    scratch: Scratch,
}

/// Of a block: the lines and the words in which there is something, and what was
/// taken from there.
struct Scratch {
    lines: [usize; LINES],
    found: [usize; BLOCK],
    taken: [u64; BLOCK],
}

impl Taker<'_> {
    /// The bits of a unit that begins with page `at` that stand for wanted pages,
    /// and how many below them do not.
    fn wanted(&self, at: u64) -> (u64, u32) {
        let below = self.pages.start.saturating_sub(at).min(64);
        let end = self.pages.end.saturating_sub(at);
        let bits = lowest(end) & !lowest(below);
        (bits, u32::try_from(below).unwrap_or_default())
    }

    fn bytes(&mut self, bytes: &[AtomicU8], mut at: u64) {
        for byte in bytes {
            let (wanted, below) = self.wanted(at);
            let [wanted, ..] = wanted.to_le_bytes();
            if byte.load(Relaxed) & wanted != 0 {
                let taken = byte.fetch_and(!wanted, Acquire) & wanted;
                self.merge(at, u64::from(taken).checked_shr(below).unwrap_or_default());
            }
            at = at.saturating_add(8);
        }
    }

    /// Words, not all of them wanted. `at` is the page of the first.
    fn words(&mut self, words: &[AtomicU64], at: u64) {
        let index = |pages: u64| usize::try_from(pages).unwrap_or(usize::MAX);
        let from = index(self.pages.start.saturating_sub(at) / 64);
        let to = index(self.pages.end.saturating_sub(at).div_ceil(64)).min(words.len());
        let before = words.get(..from).unwrap_or_default();
        let mut at = end_of(at, before);
        let mut words = words.get(from..to).unwrap_or_default();
        if let (Some((first, rest)), true) = (words.split_first(), at < self.pages.start) {
            self.part(first, at);
            words = rest;
            at = at.saturating_add(64);
        }
        let end = end_of(at, words);
        if let (Some((last, rest)), true) = (words.split_last(), end > self.pages.end) {
            self.part(last, end.saturating_sub(64));
            words = rest;
        }
        let mut blocks = words.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.block(block, at);
            at = end_of(at, block);
        }
        self.each(blocks.remainder(), at);
    }

    /// A word of which only some pages are wanted; the others' marks stay.
    fn part(&mut self, word: &AtomicU64, at: u64) {
        let (wanted, below) = self.wanted(at);
        if u64::from_le(word.load(Relaxed)) & wanted != 0 {
            let taken = word.fetch_and(!wanted.to_le(), Acquire);
            let taken = u64::from_le(taken) & wanted;
            self.merge(at, taken.checked_shr(below).unwrap_or_default());
        }
    }

    /// Words of which every page is wanted, one by one.
    fn each(&mut self, words: &[AtomicU64], mut at: u64) {
        for word in words {
            if word.load(Relaxed) != 0 {
                let taken = u64::from_le(word.swap(0, Acquire));
                self.merge(at, taken);
            }
            at = at.saturating_add(64);
        }
    }

    /// A block of words of which every page is wanted.
    ///
    /// An exchange waits until all stores before it are done. After each store to
    /// a bitmap that is not in the cache, that would be as long as memory takes.
    /// So first all is found, and the bitmap asked for; then all is taken out of
    /// the log, and then the bitmap changed. Where marks lie, no branch foresees:
    /// the lists are written without.
    fn block(&mut self, block: &[AtomicU64], at: u64) {
        let lines = self.scratch.look(block);
        if lines == 0 {
            return;
        }
        let offset = at.saturating_sub(self.pages.start);
        let bitmap = usize::try_from(offset / 8)
            .ok()
            .and_then(|at| self.bitmap.get_mut(at..)?.get_mut(..size_of_val(block)))
            .and_then(|bytes| <[U64; BLOCK]>::mut_from_bytes(bytes).ok());
        let fresh = match (offset % 8, bitmap) {
            (0, Some(bitmap)) if lines <= DENSE => self.scratch.sparse(block, lines, bitmap),
            (0, Some(bitmap)) => dense(block, bitmap),
            _ => return self.each(block, at),
        };
        self.fresh = self.fresh.saturating_add(fresh);
    }

    /// Sets bits in the bitmap. Bit 0 is page `at`, or if that is not wanted the
    /// first that is.
    fn merge(&mut self, at: u64, bits: u64) {
        let offset = at.saturating_sub(self.pages.start);
        let Some(bytes) = usize::try_from(offset / 8)
            .ok()
            .and_then(|at| self.bitmap.get_mut(at..))
        else {
            return;
        };
        let fresh = match (offset % 8, bytes.first_chunk_mut()) {
            (0, Some(word)) => {
                let old = u64::from_le_bytes(*word);
                *word = (old | bits).to_le_bytes();
                (bits & !old).count_ones()
            }
            (shift, _) => {
                let bits = u128::from(bits) << shift;
                let mut fresh = bits.to_le_bytes();
                for (byte, new) in bytes.iter_mut().zip(&mut fresh) {
                    let old = *byte;
                    *byte |= *new;
                    *new &= !old;
                }
                u128::from_le_bytes(fresh).count_ones()
            }
        };
        self.fresh = self.fresh.saturating_add(u64::from(fresh));
    }
}

/// Takes a block, all of it. Returns how many bits were not set in the bitmap before.
fn dense(block: &[AtomicU64], bitmap: &mut [U64; BLOCK]) -> u64 {
    let mut fresh = 0_u64;
    for (word, bits) in block.iter().zip(bitmap) {
        if word.load(Relaxed) != 0 {
            let taken = u64::from_le(word.swap(0, Acquire));
            let old = bits.get();
            bits.set(old | taken);
            fresh = fresh.wrapping_add(u64::from((taken & !old).count_ones()));
        }
    }
    fresh
}

impl Scratch {
    /// Finds the lines in which there is something, and tells how many these are.
    fn look(&mut self, block: &[AtomicU64]) -> usize {
        let mut n = 0_usize;
        for (index, line) in block.chunks_exact(LINE).enumerate() {
            if let Some(place) = self.lines.get_mut(n) {
                *place = index;
            }
            n = n.wrapping_add(usize::from(any(line) != 0));
        }
        n
    }

    /// Takes those words in which there is something, of so many lines that were
    /// found. Returns how many bits were not set in the bitmap before.
    fn sparse(&mut self, block: &[AtomicU64], lines: usize, bitmap: &mut [U64; BLOCK]) -> u64 {
        let mut n = 0_usize;
        for line in self.lines.iter().take(lines) {
            let first = line.wrapping_mul(LINE);
            if let Some(place) = bitmap.get(first) {
                fetch_early(place);
            }
            let words = block.get(first..).unwrap_or_default();
            for (index, word) in words.iter().take(LINE).enumerate() {
                if let Some(place) = self.found.get_mut(n) {
                    *place = first.wrapping_add(index);
                }
                n = n.wrapping_add(usize::from(word.load(Relaxed) != 0));
            }
        }
        let found = self.found.get(..n).unwrap_or_default();
        let taken = self.taken.get_mut(..n).unwrap_or_default();
        for (index, taken) in found.iter().zip(&mut *taken) {
            if let Some(word) = block.get(*index) {
                *taken = u64::from_le(word.swap(0, Acquire));
            }
        }
        for (index, taken) in found.iter().zip(&mut *taken) {
            if let Some(word) = bitmap.get_mut(*index) {
                let old = word.get();
                word.set(old | *taken);
                *taken &= !old;
            }
        }
        let fresh = |word: &u64| u64::from(word.count_ones());
        taken.iter().map(fresh).sum()
    }
}
