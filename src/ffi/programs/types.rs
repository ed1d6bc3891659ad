//! What C sees of back-end programs besides functions: constants and structures.

use super::super::args::extensible;
use std::os::raw::{c_char, c_int};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// In struct vuf_backend_search: also files that others hide, or that are of no use.
pub const VUF_BACKEND_SEARCH_ALL: u32 = 1;

/// The number under which a back-end that was started finds its socket.
pub const VUF_BACKEND_PROCESS_FD: u32 = 3;
/// In struct vuf_backend_process_options: the back-end is given a socket that
/// listens, at which the connection waits already, and not one end of it. virtiofsd
/// and qemu-storage-daemon want that.
pub const VUF_BACKEND_PROCESS_LISTENING: u32 = 1;
/// The arguments say where the socket is (VUF_BACKEND_PROCESS_FD), and "--fd=3" is not
/// added. For programs that do not follow the convention.
pub const VUF_BACKEND_PROCESS_OWN_ARGUMENTS: u32 = 2;
/// The back-end leads a process group of its own: no signal that a terminal sends
/// to this process's reaches it.
pub const VUF_BACKEND_PROCESS_NEW_GROUP: u32 = 4;
/// The back-end is killed (SIGKILL) when the thread that starts it ends, and so at the
/// latest with this process, even if that is killed. Start it from a thread that lives as
/// long as it is needed, such as the main thread. The kernel forgets it for a program that
/// changes its rights (set-user-ID, file capabilities).
pub const VUF_BACKEND_PROCESS_KILL_WITH_PARENT: u32 = 8;

/// In struct vuf_backend_exit: the process runs.
pub const VUF_BACKEND_EXIT_RUNNING: u32 = 0;
/// It has ended by itself; value is its exit status.
pub const VUF_BACKEND_EXIT_CODE: u32 = 1;
/// A signal has ended it; value is its number.
pub const VUF_BACKEND_EXIT_SIGNAL: u32 = 2;
/// It has ended, and how is not known: somebody else has waited for it, or SIGCHLD is
/// ignored in this process.
pub const VUF_BACKEND_EXIT_UNKNOWN: u32 = 3;

/// Back-ends that were found. Only ever used through a pointer.
// Where cbindgen does not look: it would print a zero-size struct, which is not
// standard C, instead of declaring one.
#[cfg_attr(all(), repr(C))]
#[derive(Debug)]
pub struct vuf_backend_programs {
    private: [u8; 0],
}

/// A back-end that was started. Only ever used through a pointer.
// As above.
#[cfg_attr(all(), repr(C))]
#[derive(Debug)]
pub struct vuf_backend_process {
    private: [u8; 0],
}

/// Which back-ends are looked for, and where. Set size to
/// sizeof(struct vuf_backend_search) and the rest to zero; zero is always the default.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct vuf_backend_search {
    /// sizeof(struct vuf_backend_search)
    pub size: usize,
    /// Only those for this type of device, as "fs"; NULL for all.
    pub device_type: *const c_char,
    /// Directories, the most specific last; NULL for those of the convention, which
    /// vuf_backend_programs_find() names.
    pub directories: *const *const c_char,
    /// How many.
    pub n_directories: usize,
    /// 0 or VUF_BACKEND_SEARCH_ALL
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// A back-end that is described by a file. Set size to
/// sizeof(struct vuf_backend_program) before the call. Texts are valid until the list
/// is freed (borrowed), and empty where nothing is known.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct vuf_backend_program {
    /// sizeof(struct vuf_backend_program)
    pub size: usize,
    /// The path of the file.
    pub file: *const c_char,
    /// The type of device, as "fs".
    pub device_type: *const c_char,
    /// What it is, for people.
    pub description: *const c_char,
    /// The absolute path of the program.
    pub binary: *const c_char,
    /// With VUF_BACKEND_SEARCH_ALL, the file that counts in place of this one;
    /// otherwise NULL.
    pub hidden_by: *const c_char,
    /// With VUF_BACKEND_SEARCH_ALL, why the file is of no use; otherwise NULL.
    pub problem: *const c_char,
    /// What the program can do, as "read-only"; NULL before vuf_backend_programs_ask(),
    /// and where there is nothing.
    pub features: *const *const c_char,
    /// How many features.
    pub n_features: usize,
    /// 1: vuf_backend_programs_ask() has been answered.
    pub asked: u32,
    /// Zero.
    pub reserved: u32,
}

/// How a back-end is started. Set size to sizeof(struct vuf_backend_process_options)
/// and the rest to zero; zero is always the default.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct vuf_backend_process_options {
    /// sizeof(struct vuf_backend_process_options)
    pub size: usize,
    /// Its arguments, without the program's name and without the socket; the last is
    /// NULL. NULL for none.
    pub arguments: *const *const c_char,
    /// Its environment, "NAME=value" each; the last is NULL. NULL for this
    /// process's.
    pub environment: *const *const c_char,
    /// Its standard output, borrowed; 0 for this process's, -1 for none (/dev/null).
    pub stdout_fd: c_int,
    /// Its standard error, likewise.
    pub stderr_fd: c_int,
    /// VUF_BACKEND_PROCESS_*
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// How a back-end has ended. Set size to sizeof(struct vuf_backend_exit) before the
/// call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_backend_exit {
    /// sizeof(struct vuf_backend_exit)
    pub size: usize,
    /// VUF_BACKEND_EXIT_*
    pub kind: u32,
    /// The exit status, or the number of the signal.
    pub value: i32,
}

extensible! {
    vuf_backend_search vuf_backend_program vuf_backend_process_options vuf_backend_exit
}
