//! vuf_dirty_log_sync(), held against the same done bit by bit.

use super::{About, Block, Calls, Place};
use std::ops::Range;
use vhost_user_frontend::ffi::dirty_log::vuf_dirty_log_sync;

/// Longest log: some blocks of those that the library looks at together.
const LOG: usize = 6000;
/// Most pages for which there is a bitmap.
const PAGES: u64 = 1 << 17;

fn bit(bytes: &[u8], n: u64) -> bool {
    let byte = usize::try_from(n / 8).unwrap();
    bytes[byte] >> (n % 8) & 1 != 0
}

fn set(bytes: &mut [u8], n: u64, value: bool) {
    let byte = usize::try_from(n / 8).unwrap();
    bytes[byte] = bytes[byte] & !(1 << (n % 8)) | u8::from(value) << (n % 8);
}

/// Moves the marks of these pages; how many were not in the bitmap.
fn moved(log: &mut [u8], bitmap: &mut [u8], pages: Range<u64>) -> u64 {
    let mut new = 0;
    for (n, page) in pages.enumerate() {
        let n = u64::try_from(n).unwrap();
        if bit(log, page) {
            new += u64::from(!bit(bitmap, n));
            set(log, page, false);
            set(bitmap, n, true);
        }
    }
    new
}

impl Calls<'_> {
    /// Pages, mostly up to where the log ends and a few beyond.
    fn pages(&mut self, bits: u64) -> u64 {
        match self.input.byte() & 15 {
            15 => self.long(),
            14 => bits,
            _ => u64::from(self.input.u16()) % (bits + 3),
        }
    }

    /// A log that begins anywhere in a cache line: what lies before it, and it.
    fn dirty_log(&mut self) -> (usize, Vec<u8>) {
        let before = usize::from(self.input.byte() & 63);
        let size = usize::from(self.input.u16()) % LOG;
        let mut log = match self.input.byte() & 3 {
            0 => vec![0xff; before + size],
            _ => vec![0; before + size],
        };
        // Some bytes here and there.
        for _ in 0..self.input.byte() & 15 {
            let at = usize::from(self.input.u16()) % (size + 1) + before;
            let value = self.input.byte();
            if let Some(byte) = log.get_mut(at) {
                *byte = value;
            }
        }
        (before, log)
    }

    pub(super) fn sync_dirty_log(&mut self) {
        let (before, mut log) = self.dirty_log();
        let log_block = Block::of(&log, self.place());
        let log_size = log.len() - before;
        let bits = u64::try_from(log_size).unwrap() * 8;
        let (first, pages) = (self.pages(bits), self.pages(bits));
        // What says that there are more has no room for them.
        let (place, size) = match pages > PAGES {
            true => (Place::Null, 0),
            false => (self.place(), usize::try_from(pages.div_ceil(8)).unwrap()),
        };
        let bitmap = Block::new(size, place);
        let out = Block::new(size_of::<u64>(), self.place());

        let start = match log_block.place {
            Place::Null => std::ptr::null_mut(),
            _ => log_block.at::<u8>().wrapping_add(before),
        };
        // SAFETY: pointers are null or to blocks of these sizes, which are used by
        // nobody else.
        let rc = self.timed(|| unsafe {
            vuf_dirty_log_sync(start.cast(), log_size, first, pages, bitmap.at(), out.at())
        });
        self.check(rc, About::default());

        let there = |block: &Block| pages == 0 || block.place != Place::Null;
        let reaches = first.checked_add(pages).is_some_and(|end| end <= bits);
        let valid = out.place == Place::Good && there(&log_block) && there(&bitmap) && reaches;
        assert_eq!(rc, if valid { 0 } else { -libc::EINVAL });
        if !valid {
            assert!(bitmap.untouched() && out.untouched());
        } else {
            let mut expected = vec![super::FILL; size.max(1)];
            let new = moved(&mut log[before..], &mut expected, first..first + pages);
            assert_eq!(out.read::<u64>(), new);
            assert_eq!(bitmap.bytes()[..size], expected[..size]);
        }
        assert_eq!(log_block.bytes()[..log.len()], log);
    }
}
