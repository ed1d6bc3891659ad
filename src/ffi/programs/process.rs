//! Back-end programs: started, watched, ended.

use super::super::args::{self, Args};
use super::super::device::{give, no_fd_yet};
use super::super::{boundary, handle};
use super::types::*;
use crate::error::{Error, Result};
use crate::programs::{BackendProcess, Output, Passed, ProcessOptions};
use crate::socket::Exit;
use std::os::fd::AsRawFd;
use std::os::raw::{c_char, c_int};
use std::sync::Arc;

const FLAGS: u32 = VUF_BACKEND_PROCESS_LISTENING
    | VUF_BACKEND_PROCESS_OWN_ARGUMENTS
    | VUF_BACKEND_PROCESS_NEW_GROUP
    | VUF_BACKEND_PROCESS_KILL_WITH_PARENT;

/// # Safety
/// What the caller put into the struct is as it says.
unsafe fn options<'a>(
    c: &'a Args,
    given: *const vuf_backend_process_options,
) -> Result<ProcessOptions<'a>> {
    if given.is_null() {
        return Ok(ProcessOptions::default());
    }
    // SAFETY: pointers are the caller's promise.
    let given: vuf_backend_process_options = unsafe { c.extensible_pointers(given, "options") }?;
    args::zero(&[u64::from(given.reserved)], "options")?;
    if given.flags & !FLAGS != 0 {
        return Err(Error::invalid("options->flags has unknown bits"));
    }
    let has = |flag| given.flags & flag != 0;
    let output = |fd, name| match fd {
        0 => Ok(Output::Inherited),
        -1 => Ok(Output::Null),
        fd => c.fd(fd, name).map(Output::Fd),
    };
    Ok(ProcessOptions {
        arguments: c.texts(given.arguments).unwrap_or_default(),
        environment: c.texts(given.environment),
        stdout: output(given.stdout_fd, "options->stdout_fd")?,
        stderr: output(given.stderr_fd, "options->stderr_fd")?,
        passed: match has(VUF_BACKEND_PROCESS_LISTENING) {
            true => Passed::Listening,
            false => Passed::Connected,
        },
        own_arguments: has(VUF_BACKEND_PROCESS_OWN_ARGUMENTS),
        new_group: has(VUF_BACKEND_PROCESS_NEW_GROUP),
        kill_with_parent: has(VUF_BACKEND_PROCESS_KILL_WITH_PARENT),
    })
}

/// Starts a back-end with a socket (--fd=3), whose other end is
/// vuf_backend_process_take_socket()'s or vuf_device_set_process()'s.
///
/// It gets that, /dev/null as standard input, its two outputs, and no other
/// descriptor (with glibc before 2.34, or another C library: none that is
/// close-on-exec). No signal is blocked, and SIGPIPE, SIGTERM and SIGCHLD are not
/// ignored. Neither this process's memory nor its handlers are there for a moment: it
/// is not forked. Needs Linux 5.4.
///
/// Do not wait for it with waitpid(-1), or how it ended is not known.
///
/// program  its path; the directories of $PATH are not searched
/// options  NULL for the defaults; read during the call
/// out      gets the process; NULL on failure
///
/// Returns 0, otherwise
///   -EINVAL  program or out is NULL, program is empty, or an option is not valid
///   -EBADF   one of the outputs is below -1 or not open
///   -E2BIG   options has fields that this library does not know; or the
///            arguments are too long
///   -ENOENT  the program is not there
///   -EACCES  it may not be run
///   -ENOSYS  Linux is older than 5.4
/// or another negative errno from the system, as -EMFILE or -ENOEXEC.
///
/// # Safety
/// `program` is null or a NUL-terminated string; `options` is null or points to
/// `options->size` bytes, with lists that end with NULL; `out` is null or points to
/// room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_start(
    program: *const c_char,
    options: *const vuf_backend_process_options,
    out: *mut *mut vuf_backend_process,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let out = c.output(out, "out")?.write(std::ptr::null_mut());
        let program = c.path(program, "program")?;
        // SAFETY: the caller's promise.
        let options = unsafe { self::options(&c, options) }?;
        *out = handle::new(Arc::new(BackendProcess::start(program, &options)?));
        Ok(())
    })
}

/// Frees a process; one that still runs is killed (SIGKILL) and waited for, and so is
/// no zombie left: see vuf_backend_process_terminate() for a gentler end. A socket that
/// was not taken is closed.
///
/// Waits for 5 s at most, for a process that hangs in the kernel. Calls that other
/// threads have under way return. In a forked child it only closes the child's copy.
///
/// process  may be NULL, which does nothing
///
/// # Safety
/// `process` is null or a process that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_free(process: *mut vuf_backend_process) {
    boundary::guard(|| {
        // SAFETY: the caller's promise.
        unsafe { handle::free(process) };
        Ok(())
    });
}

/// Tells the number of a process. It is this one's until one of the functions below
/// has told how it ended; then it may be another's.
///
/// Returns the number, or -EINVAL if process is NULL.
///
/// # Safety
/// `process` is null or a process that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_get_pid(process: *const vuf_backend_process) -> c_int {
    let mut pid = 0;
    // SAFETY: the caller's promise.
    let rc = unsafe {
        handle::with_process(process, |process, _| {
            pid = process.pid();
            Ok(())
        })
    };
    if rc == 0 { pid } else { rc }
}

/// Tells the descriptor of a process (a pidfd) to poll: readable once it has ended.
///
/// Returns the descriptor (borrowed, valid until the process is freed), or -EINVAL if
/// process is NULL.
///
/// # Safety
/// `process` is null or a process that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_get_fd(process: *const vuf_backend_process) -> c_int {
    let mut fd = -1;
    // SAFETY: the caller's promise.
    let rc = unsafe {
        handle::with_process(process, |process, _| {
            fd = process.pidfd().as_raw_fd();
            Ok(())
        })
    };
    if rc == 0 { fd } else { rc }
}

/// Takes the connection to a back-end, for vuf_client_from_fd(), vuf_device_open_fd() or
/// vuf_device_set_fd().
///
/// fd  gets the socket: given (yours to close, close-on-exec); -1 on failure
///
/// Returns 0, otherwise
///   -EINVAL      an argument is NULL
///   VUF_E_STATE  it was taken before
///
/// # Safety
/// `process` is null or a process that has not been freed; `fd` is null or points to
/// room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_take_socket(
    process: *mut vuf_backend_process,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { no_fd_yet(fd) };
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_process(process, |process, c| {
            let fd = c.fd_output(fd, "fd")?;
            give(fd, Some(process.take_socket()?));
            Ok(())
        })
    }
}

/// Sends a process a signal. Never reaches another one, also where the process has
/// ended: then nothing happens, and this returns 0.
///
/// signal  its number, as SIGTERM; 0 only asks whether one could be sent
///
/// Returns 0, otherwise
///   -EINVAL  process is NULL, or there is no such signal
///   -EPERM   the process has become somebody's whom this one may not send any
///
/// # Safety
/// `process` is null or a process that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_signal(
    process: *mut vuf_backend_process,
    signal: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle::with_process(process, |process, _| process.signal(signal)) }
}

fn public(exit: Option<Exit>) -> vuf_backend_exit {
    let (kind, value) = match exit {
        None => (VUF_BACKEND_EXIT_RUNNING, 0),
        Some(Exit::Code(code)) => (VUF_BACKEND_EXIT_CODE, code),
        Some(Exit::Signal(signal)) => (VUF_BACKEND_EXIT_SIGNAL, signal),
        Some(Exit::Unknown) => (VUF_BACKEND_EXIT_UNKNOWN, 0),
    };
    vuf_backend_exit {
        size: size_of::<vuf_backend_exit>(),
        kind,
        value,
    }
}

/// Runs what ends with knowing how a process has, or that it has not.
///
/// # Safety
/// `process` is null or a process that has not been freed; `exit` is null or points to
/// `exit->size` bytes.
unsafe fn told(
    process: *const vuf_backend_process,
    exit: *mut vuf_backend_exit,
    body: impl FnOnce(&BackendProcess) -> Result<Option<Exit>>,
) -> c_int {
    // SAFETY: passed on from the caller.
    unsafe {
        handle::with_process(process, |process, c| {
            let size = match exit.is_null() {
                true => None,
                false => Some(c.result_size(exit, "exit")?),
            };
            let ended = body(process)?;
            size.map_or(Ok(()), |size| c.fill(exit, size, &public(ended)))
        })
    }
}

/// Tells whether and how a process has ended. Does not wait.
///
/// exit  set exit->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL  an argument is NULL, or exit->size is too small
///   -E2BIG   exit->size is above 65536
///
/// # Safety
/// `process` is null or a process that has not been freed; `exit` is null or points to
/// `exit->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_get_exit(
    process: *const vuf_backend_process,
    exit: *mut vuf_backend_exit,
) -> c_int {
    let body = |process: &BackendProcess| match exit.is_null() {
        true => Err(Error::invalid("exit is NULL")),
        false => process.exit(),
    };
    // SAFETY: the caller's promise.
    unsafe { told(process, exit, body) }
}

/// Waits until a process has ended by itself.
///
/// timeout_ms  how long; VUF_TIMEOUT_DEFAULT is 5000
/// exit        how it has ended: set exit->size before the call; NULL if that is of no
///             interest
///
/// Returns 0, otherwise
///   -EINVAL     process is NULL, or exit->size is too small
///   -E2BIG      exit->size is above 65536
///   -ETIMEDOUT  it still runs
///   -ECANCELED  it is being freed, and does not end
///
/// # Safety
/// As for vuf_backend_process_get_exit().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_wait(
    process: *mut vuf_backend_process,
    timeout_ms: u32,
    exit: *mut vuf_backend_exit,
) -> c_int {
    let body = |process: &BackendProcess| process.wait(args::timeout(timeout_ms)).map(Some);
    // SAFETY: the caller's promise.
    unsafe { told(process, exit, body) }
}

/// Ends a process: SIGTERM, and SIGKILL if it has not ended within the time. Returns
/// when it has ended; also good for one that has already.
///
/// An event loop rather sends the signals itself, with vuf_backend_process_signal(), and
/// polls vuf_backend_process_get_fd().
///
/// timeout_ms  how long it has after SIGTERM; VUF_TIMEOUT_DEFAULT is 5000
/// exit        as for vuf_backend_process_wait()
///
/// Returns 0, otherwise
///   -EINVAL     process is NULL, or exit->size is too small
///   -E2BIG      exit->size is above 65536
///   -EPERM      this process may not end it
///   -ETIMEDOUT  it hangs in the kernel: it was killed, and 5 s later it has not ended
///   -ECANCELED  it hangs so, and is being freed
///
/// # Safety
/// As for vuf_backend_process_get_exit().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_backend_process_terminate(
    process: *mut vuf_backend_process,
    timeout_ms: u32,
    exit: *mut vuf_backend_exit,
) -> c_int {
    let body = |process: &BackendProcess| process.terminate(args::timeout(timeout_ms)).map(Some);
    // SAFETY: the caller's promise.
    unsafe { told(process, exit, body) }
}
