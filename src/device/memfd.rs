//! Files in memory, for programs that have no way of their own to make one.

#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use crate::socket;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::ftruncate;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;

/// Longest name that the kernel takes.
const MAX_NAME: usize = 249;
/// Where the size of a huge page lies in the flags, as a power of two.
const HUGE_SHIFT: u32 = 26;

/// A file of this size, full of zeros. With `huge_page_size` it consists of such
/// pages; with `seals` its size stays.
pub(crate) fn create(
    name: &OsStr,
    size: u64,
    huge_page_size: Option<u64>,
    seals: bool,
) -> Result<OwnedFd> {
    if name.len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "name has {} bytes, and {MAX_NAME} is the most",
            name.len()
        )));
    }
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if let Some(page) = huge_page_size {
        flags |= huge_pages(size, page)?;
    }
    if seals {
        flags |= MFdFlags::MFD_ALLOW_SEALING;
    }
    let length = file_length(size)?;

    let made = make(name, flags).map_err(|errno| match huge_page_size {
        Some(page) => Error::os(
            errno,
            format!("memfd_create() with huge pages of {page:#x} bytes"),
        ),
        None => Error::os(errno, "memfd_create()"),
    });
    let (fd, sealable) = made?;
    let fd = socket::above_standard(fd)
        .map_err(|errno| Error::os(errno, "cannot give the file a number above 2"))?;
    ftruncate(&fd, length)
        .map_err(|errno| Error::os(errno, format!("ftruncate() to {size:#x} bytes")))?;
    let mut wanted = SealFlag::F_SEAL_SEAL;
    if seals {
        wanted |= SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    }
    if seals || sealable {
        fcntl(&fd, FcntlArg::F_ADD_SEALS(wanted))
            .map_err(|errno| Error::os(errno, "F_ADD_SEALS"))?;
    }
    Ok(fd)
}

/// Guest memory is no program, and where vm.memfd_noexec is 2 there are no other files.
/// Such a file can be sealed, whether that was asked for or not.
fn make(name: &OsStr, flags: MFdFlags) -> nix::Result<(OwnedFd, bool)> {
    let no_program = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    match memfd_create(name, flags | no_program) {
        // Linux before 6.3 does not know it; or something else is wrong.
        Err(Errno::EINVAL) => memfd_create(name, flags).map(|fd| (fd, false)),
        result => result.map(|fd| (fd, true)),
    }
}

fn huge_pages(size: u64, page: u64) -> Result<MFdFlags> {
    // Of 1 byte the encoding is 0, which stands for the machine's usual size.
    if page == 1 || !page.is_power_of_two() {
        return Err(Error::invalid(format!(
            "huge_page_size is {page:#x}, not a power of two"
        )));
    }
    if size.checked_rem(page) != Some(0) {
        return Err(Error::invalid(format!(
            "size is {size:#x}, not a multiple of huge_page_size, {page:#x}"
        )));
    }
    let encoded = page.trailing_zeros().checked_shl(HUGE_SHIFT).unwrap_or(0);
    Ok(MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(encoded))
}

/// A file in memory counts as any other for RLIMIT_FSIZE, and one that is too large
/// would end the process: the kernel sends it SIGXFSZ.
fn file_length(size: u64) -> Result<i64> {
    if size == 0 {
        return Err(Error::invalid("size is 0"));
    }
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)
        .map_err(|errno| Error::os(errno, "getrlimit(RLIMIT_FSIZE)"))?;
    match i64::try_from(size) {
        Ok(length) if size <= limit => Ok(length),
        _ => Err(Error::new(
            Kind::Argument(Errno::EFBIG),
            format!(
                "size is {size:#x}, and a file of this process has at most {:#x} bytes (RLIMIT_FSIZE)",
                limit.min(i64::MAX.unsigned_abs())
            ),
        )),
    }
}
