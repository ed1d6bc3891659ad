//! The dirty log, as the program that shares it reads it.

use super::args::Args;
use super::boundary;
use crate::dirty_log::{self, DirtyLog};
use crate::error::{Error, Result};
use std::os::raw::{c_int, c_void};
use std::sync::atomic::AtomicU8;

/// Moves marks from a dirty log to a bitmap of the caller's.
///
/// The log is memory that the caller has mapped (shared) and that back-ends got
/// with vuf_client_set_log_base(). Bits that are set there for the wanted pages are
/// cleared, atomically, and set in the bitmap, whose other bits stay. Back-ends go
/// on writing: a mark that is made meanwhile is taken, too, or stays for the next
/// time. What lies in the log is not trusted with anything. Nothing is sent.
///
/// A back-end can make a file that it was given shorter; reading what was mapped there
/// then ends the program with SIGBUS. So seal the file of the log (F_SEAL_SHRINK) before
/// it is sent: vuf_memfd_create() does with VUF_MEMFD_SEAL.
///
/// Both are arrays of bytes whose bit n is bit n % 8 of byte n / 8, on machines of
/// either byte order. In the log, bit n is the 4096 bytes at guest address n * 4096,
/// whatever pages the machine has. In the bitmap, bit n is page first_page + n, as in
/// the bitmap of a memory slot that KVM_GET_DIRTY_LOG fills.
///
/// Take the marks first, and read the memory that they stand for afterwards: a write
/// that comes later is marked again. The last call of a migration comes when nothing is
/// written any more, each ring having been stopped by vuf_client_get_vring_base(), and
/// before VUF_F_LOG_ALL is taken back.
///
/// Clean parts of the log cost what it takes to read them. It is fastest where log
/// is aligned to 64 bytes and first_page is a multiple of 512 (2 MiB), and slower
/// where there are marks and first_page is not a multiple of 8.
///
/// log         the log; of it, only bits of wanted pages are changed. With pages 0
///             it may be NULL.
/// log_size    its size in bytes
/// first_page  the first page that is wanted: its guest address / 4096
/// pages       how many pages are wanted; 0 is possible
/// bitmap      (pages + 7) / 8 bytes, apart from the log and not used by other
///             threads meanwhile; what is behind the last page stays. With pages 0
///             it may be NULL.
/// new_pages   gets how many bits of the bitmap were clear before, and are set now
///
/// Any thread may call this at any time, several at once for the same log and
/// size (with a bitmap each: each mark goes to one of them).
///
/// Returns 0, otherwise
///   -EINVAL  log, bitmap or new_pages is NULL, or the log does not reach to
///            first_page + pages; nothing has been changed
///
/// # Safety
/// `log` is null or points to `log_size` bytes that everybody changes atomically,
/// and this program, if not through this function, in words of its own size only;
/// `bitmap` is null or points to (`pages` + 7) / 8 bytes that nobody else uses;
/// `new_pages` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_dirty_log_sync(
    log: *mut c_void,
    log_size: usize,
    first_page: u64,
    pages: u64,
    bitmap: *mut c_void,
    new_pages: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let new_pages = c.output(new_pages, "new_pages")?;
        let range = dirty_log::range(log_size, first_page, pages)?;
        let log = match pages {
            0 => &[],
            _ => c.array(log.cast_const().cast::<AtomicU8>(), log_size, "log")?,
        };
        // SAFETY: the caller's promise.
        let log = unsafe { DirtyLog::new(log) };
        let bitmap = c.in_out(bitmap.cast::<u8>(), bytes(pages)?, "bitmap")?;
        new_pages.write(log.sync(range, bitmap));
        Ok(())
    })
}

/// Of a bitmap with so many bits.
fn bytes(bits: u64) -> Result<usize> {
    usize::try_from(bits.div_ceil(8)).map_err(|_| Error::invalid("pages are more than memory"))
}
