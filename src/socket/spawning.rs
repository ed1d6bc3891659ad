//! Other programs: started, watched, ended.
//!
//! They are started with posix_spawn(), not with std's `Command` and a function that
//! runs between fork and exec. The C library then shares the memory with the child
//! for that moment: nothing of a large process is copied, no handler of a signal
//! and no atfork function of the caller's runs in the child, and no lock that another
//! thread holds is in its way. `Command` uses it, too, but cannot pass on a
//! descriptor without making it inheritable for each child of every other thread.
//!
//! A child is known by its pidfd and never by its number, which may be somebody
//! else's once the child was waited for. No handler for SIGCHLD is needed, and only
//! children of our own are waited for.

use super::wait::pause;
use super::{Deadline, above_standard, duplicate, is_open, new_eventfd, tied};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::raw::{c_char, c_int, c_void};
use std::time::Duration;

/// The number under which a program finds the descriptor that is passed on to it.
pub(crate) const PASSED_FD: RawFd = 3;

/// What a program gets that is started.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    pub(crate) program: &'a CStr,
    /// The first is the program's name.
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Under the number [`PASSED_FD`].
    pub(crate) passed: Option<BorrowedFd<'a>>,
    /// It leads a process group of its own.
    pub(crate) new_group: bool,
    /// It is killed when the thread that starts it ends.
    pub(crate) kill_with_parent: bool,
}

/// How a program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// That is not known: somebody else has waited for it, or SIGCHLD is ignored.
    Unknown,
}

/// A program that runs, or has ended and was not waited for.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    /// It had ended before there could be a pidfd, and nobody can tell how: where SIGCHLD
    /// is ignored. In place of that is a descriptor that is readable.
    gone: bool,
}

pub(super) fn check(rc: c_int) -> nix::Result<()> {
    match rc {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// A program that is started does not ignore these.
const DEFAULT_SIGNALS: [c_int; 3] = [libc::SIGPIPE, libc::SIGTERM, libc::SIGCHLD];

/// Attributes of a spawn.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(new_group: bool) -> nix::Result<Self> {
        // SAFETY: all zero is a value of this struct of numbers; init follows.
        let mut this = Self(unsafe { std::mem::zeroed() });
        let attributes = &raw mut this.0;
        // SAFETY: a live struct, as for all of the following.
        check(unsafe { libc::posix_spawnattr_init(attributes) })?;
        let mut flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        if new_group {
            flags |= libc::POSIX_SPAWN_SETPGROUP;
            // SAFETY: as above.
            check(unsafe { libc::posix_spawnattr_setpgroup(attributes, 0) })?;
        }
        let flags = flags.try_into().map_err(|_| Errno::EINVAL)?;
        // SAFETY: as above.
        check(unsafe { libc::posix_spawnattr_setflags(attributes, flags) })?;
        let nothing = signals(&[])?;
        // SAFETY: as above, and the set lives.
        check(unsafe { libc::posix_spawnattr_setsigmask(attributes, &raw const nothing) })?;
        // What is ignored here would be ignored there. SIGTERM is to end it; others
        // are left as they are, as the SIGHUP of nohup.
        let default = signals(&DEFAULT_SIGNALS)?;
        // SAFETY: as above.
        check(unsafe { libc::posix_spawnattr_setsigdefault(attributes, &raw const default) })?;
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: init has succeeded, or has left the zeros, which own nothing.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

fn signals(numbers: &[c_int]) -> nix::Result<libc::sigset_t> {
    // SAFETY: all zero is a value of this struct of numbers.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live struct.
    Errno::result(unsafe { libc::sigemptyset(&raw mut set) })?;
    for number in numbers {
        // SAFETY: a live struct.
        Errno::result(unsafe { libc::sigaddset(&raw mut set, *number) })?;
    }
    Ok(set)
}

/// What the child does with its descriptors.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> nix::Result<Self> {
        // SAFETY: all zero is a value of this struct of numbers and pointers.
        let mut this = Self(unsafe { std::mem::zeroed() });
        // SAFETY: a live struct.
        check(unsafe { libc::posix_spawn_file_actions_init(&raw mut this.0) })?;
        Ok(this)
    }

    fn duplicate(&mut self, fd: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
        let actions = &raw mut self.0;
        // SAFETY: init has succeeded.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(actions, fd.as_raw_fd(), number) })
    }

    /// Others have descriptors that are not close-on-exec; those are not meant for
    /// this program. A C library without this (glibc before 2.34, musl) passes them
    /// on.
    fn close_from(&mut self, number: RawFd) -> nix::Result<()> {
        type AddCloseFrom =
            unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, c_int) -> c_int;
        let name = c"posix_spawn_file_actions_addclosefrom_np";
        // SAFETY: a name that ends with NUL.
        let found: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if found.is_null() {
            return Ok(());
        }
        // SAFETY: the C library declares it so.
        let add = unsafe { std::mem::transmute::<*mut c_void, AddCloseFrom>(found) };
        // SAFETY: init has succeeded.
        check(unsafe { add(&raw mut self.0, number) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: init has succeeded, or has left the zeros, which own nothing.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// Pointers to texts, with the NULL behind the last.
fn pointers(texts: &[CString]) -> Vec<*mut c_char> {
    let pointers = texts.iter().map(|text| text.as_ptr().cast_mut());
    pointers.chain([std::ptr::null_mut()]).collect()
}

/// Starts a program, with these descriptors and no others, no signal blocked and
/// SIGPIPE, SIGTERM and SIGCHLD as they are by default.
pub(crate) fn spawn(what: &Spawn<'_>) -> nix::Result<Child> {
    // Duplicates above the numbers that the child's get: none is overwritten before
    // it was used, and none is there already, and close-on-exec.
    let mut kept = Vec::with_capacity(4);
    let mut numbers = Vec::with_capacity(4);
    let mut actions = Actions::new()?;
    let given = [Some(what.stdin), Some(what.stdout), Some(what.stderr)];
    for (fd, number) in given.into_iter().chain([what.passed]).zip(0..) {
        if let Some(fd) = fd {
            let fd = duplicate_above(fd)?;
            actions.duplicate(fd.as_fd(), number)?;
            numbers.push((fd.as_raw_fd(), number));
            kept.push(fd);
        }
    }
    let first_closed = match what.passed {
        Some(_) => PASSED_FD.saturating_add(1),
        None => PASSED_FD,
    };
    actions.close_from(first_closed)?;
    let attributes = Attributes::new(what.new_group)?;
    let arguments = pointers(what.arguments);
    let environment = pointers(what.environment);
    let mut pid = 0;
    if what.kill_with_parent {
        pid = tied::start(&tied::Plan {
            program: what.program,
            arguments: &arguments,
            environment: &environment,
            fds: &numbers,
            first_closed,
            new_group: what.new_group,
            default_signals: &DEFAULT_SIGNALS,
            no_signals: signals(&[])?,
        })?;
    } else {
        // SAFETY: structs that were made above, and lists of texts that end with NULL;
        // all live until it returns, and it changes none of the texts.
        check(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                what.program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        })?;
    }
    let opened = open_pidfd(pid).and_then(|pidfd| {
        let child = Child {
            pid,
            pidfd,
            gone: false,
        };
        // Nobody waits for what is no child of this process.
        match child.wait(libc::WNOWAIT) {
            Ok(_) => Ok(child),
            // Linux 5.3 has pidfds, and cannot wait for them.
            Err(Errno::EINVAL) => Err(Errno::ENOSYS),
            Err(errno) => Err(errno),
        }
    });
    match opened {
        Ok(child) => Ok(child),
        // It has ended, and somebody else has waited for it. The number may be another's
        // by now, or was when it was asked for.
        Err(Errno::ESRCH | Errno::ECHILD) => Ok(Child {
            pid,
            pidfd: new_eventfd(1)?.into(),
            gone: true,
        }),
        Err(errno) => {
            end_by_number(pid);
            Err(errno)
        }
    }
}

fn duplicate_above(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let least = PASSED_FD.saturating_add(1);
    duplicate(fd, least)
}

/// Linux 5.3. The number is that of a child which nobody has waited for.
fn open_pidfd(pid: libc::pid_t) -> nix::Result<OwnedFd> {
    // SAFETY: it takes two numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us, close-on-exec.
    above_standard(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends a child that no descriptor could be had for.
fn end_by_number(pid: libc::pid_t) {
    // SAFETY: it takes two numbers, and this is the child's as long as it was not
    // waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let deadline = Deadline::after(Some(Duration::from_secs(1)));
    let mut status = 0;
    // SAFETY: it writes a number that lives.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 && !deadline.passed() {
        // It fails only for want of memory, and then the loop still ends.
        let _ = pause(deadline.no_later_than(Duration::from_millis(1)));
    }
}

impl Child {
    /// Its number, which is its own until [`reap`](Self::reap) has said how it ended.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends it a signal. ESRCH: it has ended and was waited for.
    pub(crate) fn signal(&self, number: c_int) -> nix::Result<()> {
        if self.gone {
            return Err(Errno::ESRCH);
        }
        let no_info = std::ptr::null::<libc::siginfo_t>();
        let fd = self.pidfd.as_raw_fd();
        // SAFETY: it takes three numbers, and a pointer that may be null.
        let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, no_info, 0) };
        Errno::result(rc).map(drop)
    }

    /// How it has ended, if it has. The kernel tells once. Linux 5.4.
    pub(crate) fn reap(&self) -> nix::Result<Option<Exit>> {
        if self.gone {
            return Ok(Some(Exit::Unknown));
        }
        match self.wait(0) {
            // It ends some time, and then nothing is told.
            Err(Errno::ECHILD) => {
                let gone = self.signal(0) == Err(Errno::ESRCH);
                Ok(gone.then_some(Exit::Unknown))
            }
            exit => exit,
        }
    }

    /// How it has ended, if it has; ECHILD where it is no child (any more).
    fn wait(&self, more: libc::c_int) -> nix::Result<Option<Exit>> {
        // SAFETY: all zero is a value of this struct of numbers and pointers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let fd = libc::id_t::try_from(self.pidfd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
        let options = libc::WEXITED | libc::WNOHANG | more;
        // SAFETY: it writes a struct that lives.
        let rc = unsafe { libc::waitid(libc::P_PIDFD, fd, &raw mut info, options) };
        Errno::result(rc)?;
        // SAFETY: what waitid() has filled in, or zeros.
        let pid = unsafe { info.si_pid() };
        // SAFETY: likewise.
        let status = unsafe { info.si_status() };
        Ok(match (pid, info.si_code) {
            (0, _) => None,
            (_, libc::CLD_EXITED) => Some(Exit::Code(status)),
            (_, _) => Some(Exit::Signal(status)),
        })
    }
}

/// Where this process writes, if it has that. Not by way of std, which would make a
/// buffer for it.
pub(crate) fn standard_output() -> Option<BorrowedFd<'static>> {
    standard(libc::STDOUT_FILENO)
}

/// Where it complains.
pub(crate) fn standard_error() -> Option<BorrowedFd<'static>> {
    standard(libc::STDERR_FILENO)
}

fn standard(number: RawFd) -> Option<BorrowedFd<'static>> {
    // SAFETY: not -1, and nobody's in particular: used for a moment, and the kernel
    // refuses a number that is not open.
    Some(unsafe { BorrowedFd::borrow_raw(number) }).filter(|fd| is_open(*fd))
}

/// Whether what the environment says may be believed: this process has no rights that
/// who started it does not have.
pub(crate) fn environment_is_trusted() -> bool {
    // SAFETY: it takes a number, and reads what the kernel has left.
    unsafe { libc::getauxval(libc::AT_SECURE) == 0 }
}
