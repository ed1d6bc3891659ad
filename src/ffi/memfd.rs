//! Files in memory.

use super::args::Args;
use super::boundary;
use super::device::give;
use super::types::*;
use crate::device::memfd;
use crate::error::{Error, Result};
use std::os::raw::{c_char, c_int};

/// Makes a file in memory, to be shared as guest memory.
///
/// For programs that have no way of their own to make one. It is full of zeros,
/// takes up memory only where it is written, and lives as long as it is mapped or
/// open anywhere. It can never be executed, where the kernel knows such files (Linux
/// 6.3), and takes no seals later. Nothing is sent.
///
/// name            1 to 249 bytes; shows behind "memfd:" in /proc/PID/fd, and
///                 need not be unique
/// size            of the file, in bytes; not 0
/// huge_page_size  in bytes, as 2097152; size is a multiple of it. 0 for pages
///                 of the usual size. Huge pages are reserved by mmap(), which
///                 fails with ENOMEM where there are too few.
/// flags           0 or VUF_MEMFD_SEAL
/// fd              gets the file: given (yours to close, close-on-exec); -1 on
///                 failure
///
/// Returns 0, otherwise
///   -EINVAL  name or fd is NULL, name is empty or too long, size is 0 or not a
///            multiple of huge_page_size, huge_page_size is not a power of two,
///            or flags has unknown bits
///   -EFBIG   size is above the process's limit for files (RLIMIT_FSIZE)
///   -ENODEV  the machine has no huge pages of this size
/// or another negative errno from memfd_create(), ftruncate() or fcntl(), as
/// -EMFILE or -ENOMEM.
///
/// # Safety
/// `name` is null or a NUL-terminated string; `fd` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_memfd_create(
    name: *const c_char,
    size: u64,
    huge_page_size: u64,
    flags: u32,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let fd = c.fd_output(fd, "fd")?;
        let name = c.path(name, "name")?.as_os_str();
        let seals = seals(flags)?;
        let huge_page_size = Some(huge_page_size).filter(|size| *size != 0);
        give(fd, Some(memfd::create(name, size, huge_page_size, seals)?));
        Ok(())
    })
}

fn seals(flags: u32) -> Result<bool> {
    match flags & !VUF_MEMFD_SEAL {
        0 => Ok(flags & VUF_MEMFD_SEAL != 0),
        unknown => Err(Error::invalid(format!(
            "flags has unknown bits: {unknown:#x}"
        ))),
    }
}
