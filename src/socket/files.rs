//! What the kernel knows of a file, without asking its owner. A descriptor that came
//! from another process may be of a file system that this process or a further one
//! serves, and then the usual calls take as long as that one likes.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::SFlag;
use nix::unistd::{SysconfVar, sysconf};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct statx` (the libraries of some targets do not declare it), as far as it is
/// read here.
#[repr(C)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare: u16,
    ino: u64,
    size: u64,
    rest: [u64; 26],
}

const _: () = assert!(size_of::<Statx>() == 256);

/// Answer from what is cached.
const AT_STATX_DONT_SYNC: libc::c_int = 0x4000;
const STATX_TYPE: libc::c_uint = 0x1;
const STATX_SIZE: libc::c_uint = 0x200;

/// The type and size of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStatus {
    /// Nothing for files without a name, such as a dma-buf.
    kind: SFlag,
    size: u64,
}

/// The status as it is cached. Fails where the system call is not available.
fn cached_status(fd: BorrowedFd<'_>) -> nix::Result<FileStatus> {
    let mut status = MaybeUninit::<Statx>::zeroed();
    // SAFETY: the descriptor is open while it is borrowed, the path is a C string, and the
    // buffer has the size that the kernel fills.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_statx,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
            STATX_TYPE | STATX_SIZE,
            status.as_mut_ptr(),
        )
    };
    Errno::result(rc)?;
    // SAFETY: all zeros is a value of it, and the kernel has written numbers.
    let status = unsafe { status.assume_init() };
    let known = STATX_TYPE | STATX_SIZE;
    if status.mask & known != known {
        return Err(Errno::ENODATA);
    }
    Ok(FileStatus {
        kind: SFlag::from_bits_truncate(libc::mode_t::from(status.mode)) & SFlag::S_IFMT,
        size: status.size,
    })
}

/// How a file is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFor {
    pub(crate) reading: bool,
    pub(crate) writing: bool,
}

/// How a file is open. A descriptor that was opened with O_PATH is for neither.
pub(crate) fn open_for(fd: BorrowedFd<'_>) -> nix::Result<OpenFor> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let access = flags & OFlag::O_ACCMODE;
    let usable = !flags.contains(OFlag::O_PATH);
    Ok(OpenFor {
        reading: usable && access != OFlag::O_WRONLY,
        writing: usable && access != OFlag::O_RDONLY,
    })
}

/// Why a part of a file cannot be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmappable {
    NotOpen,
    Sealed,
    EndsBefore,
    OfNoMemory,
}

impl Unmappable {
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::NotOpen => "its file is not open for the required access",
            Self::Sealed => "its file is sealed against writing",
            Self::EndsBefore => "its file is too short",
            Self::OfNoMemory => "its file cannot be mapped",
        }
    }
}

/// Whether a seal forbids to map a file for writing.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    // Fails for files that cannot be sealed.
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).unwrap_or(0);
    let forbids = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
    SealFlag::from_bits_truncate(seals).intersects(forbids)
}

/// Checks that a part of a file can be mapped, for writing if `writes`. A regular file must
/// extend to the end of the part: an access beyond it raises SIGBUS. The length of other
/// files is unknown. Only the kernel's cache is read: the owner of the file could delay an
/// answer forever.
pub(crate) fn check_mappable(
    fd: BorrowedFd<'_>,
    offset: u64,
    len: u64,
    writes: bool,
) -> Result<(), Unmappable> {
    let open = open_for(fd);
    if !open.is_ok_and(|open| open.reading && (open.writing || !writes)) {
        return Err(Unmappable::NotOpen);
    }
    if writes && is_sealed(fd) {
        return Err(Unmappable::Sealed);
    }
    // Not where a filter of system calls forbids to look.
    let Ok(file) = cached_status(fd) else {
        return Ok(());
    };
    let end = offset.checked_add(len);
    match file.kind {
        SFlag::S_IFREG if end.is_none_or(|end| end > file.size) => Err(Unmappable::EndsBefore),
        SFlag::S_IFSOCK | SFlag::S_IFIFO | SFlag::S_IFDIR | SFlag::S_IFLNK => {
            Err(Unmappable::OfNoMemory)
        }
        _ => Ok(()),
    }
}

/// Bytes of a page of memory.
pub(crate) fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_has_its_type_and_size() {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(5000).unwrap();
        let status = cached_status(file.as_fd()).unwrap();
        assert_eq!((status.kind, status.size), (SFlag::S_IFREG, 5000));
        let open = open_for(file.as_fd()).unwrap();
        assert!(open.reading && open.writing);
        let zero = File::open("/dev/zero").unwrap();
        assert_eq!(cached_status(zero.as_fd()).unwrap().kind, SFlag::S_IFCHR);
        assert!(!open_for(zero.as_fd()).unwrap().writing);
    }
}
