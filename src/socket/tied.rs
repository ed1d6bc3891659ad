//! Starting a program that is killed when the thread that started it ends, which
//! posix_spawn() cannot do. As there, the child shares the memory with this process until it
//! executes the program, and the thread waits for that.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::RawFd;
use std::os::raw::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

/// Parts of 16 bytes of the stack that the child has: 64 KiB.
const STACK: usize = 4096;
/// The largest number of a signal.
const LAST_SIGNAL: c_int = 64;

/// How the program is started.
pub(super) struct Plan<'a> {
    pub(super) program: &'a CStr,
    /// Texts, and NULL behind the last; as the next.
    pub(super) arguments: &'a [*mut c_char],
    pub(super) environment: &'a [*mut c_char],
    /// Descriptors, and the numbers that the program finds them under.
    pub(super) fds: &'a [(RawFd, RawFd)],
    /// This and all above are closed.
    pub(super) first_closed: RawFd,
    /// It leads a process group of its own.
    pub(super) new_group: bool,
    /// These are not ignored.
    pub(super) default_signals: &'a [c_int],
    pub(super) no_signals: libc::sigset_t,
}

/// What the child and this process have in common.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    parent: libc::pid_t,
    /// Why the program was not executed.
    failure: AtomicI32,
}

/// Starts it: the number of the process, which is a child of this one.
pub(super) fn start(plan: &Plan<'_>) -> nix::Result<libc::pid_t> {
    let mut stack = vec![0_u128; STACK];
    let mut shared = Shared {
        plan,
        // SAFETY: it takes nothing.
        parent: unsafe { libc::getpid() },
        failure: AtomicI32::new(0),
    };
    // SAFETY: all zero is a value of this struct of numbers.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live struct.
    Errno::result(unsafe { libc::sigfillset(&raw mut all) })?;
    // No handler of this process runs in the child.
    // SAFETY: live structs, as below.
    super::spawning::check(unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before)
    })?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: a stack and a struct that live until the child no longer uses them: this thread
    // goes on when the child has executed the program or has ended.
    let pid = Errno::result(unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            (&raw mut shared).cast(),
        )
    });
    // SAFETY: as above. It fails for no set that it has returned itself.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    let pid = pid?;
    match shared.failure.load(SeqCst) {
        0 => Ok(pid),
        errno => {
            let mut status = 0;
            // SAFETY: it writes a number that lives. The child has ended or is about to.
            while unsafe { libc::waitpid(pid, &raw mut status, 0) } == -1
                && Errno::last() == Errno::EINTR
            {}
            Err(Errno::from_raw(errno))
        }
    }
}

/// Only system calls: other threads may hold any lock.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: what start() passes, which waits meanwhile.
    let shared = unsafe { &*shared.cast::<Shared<'_>>() };
    if let Err(errno) = execute(shared) {
        shared.failure.store(errno, SeqCst);
    }
    // SAFETY: it takes a number, and does not return.
    unsafe { libc::_exit(127) }
}

/// What a system call returned, as the number of its error.
fn done(returned: c_int) -> Result<(), c_int> {
    match returned {
        -1 => Err(Errno::last_raw()),
        _ => Ok(()),
    }
}

fn execute(shared: &Shared<'_>) -> Result<(), c_int> {
    let plan = shared.plan;
    for number in 1..=LAST_SIGNAL {
        // SAFETY: all zero is a value of this struct: the default action, and no flags.
        let default: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut is: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: live structs. The child has actions of its own. It fails for signals that
        // have none.
        unsafe { libc::sigaction(number, std::ptr::null(), &raw mut is) };
        if is.sa_sigaction != libc::SIG_IGN || plan.default_signals.contains(&number) {
            // SAFETY: as above.
            unsafe { libc::sigaction(number, &raw const default, std::ptr::null_mut()) };
        }
    }
    // SAFETY: it takes numbers.
    done(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // The parent may have ended before. One in another namespace has no number here.
    // SAFETY: it takes nothing.
    let parent = unsafe { libc::getppid() };
    if parent != 0 && parent != shared.parent {
        return Err(libc::ESRCH);
    }
    if plan.new_group {
        // SAFETY: it takes numbers.
        done(unsafe { libc::setpgid(0, 0) })?;
    }
    for (fd, number) in plan.fds {
        // SAFETY: it takes numbers. The child has descriptors of its own.
        done(unsafe { libc::dup2(*fd, *number) })?;
    }
    // Linux 5.9. Before, the others that are not close-on-exec are passed on.
    // SAFETY: it takes numbers.
    unsafe { libc::syscall(libc::SYS_close_range, plan.first_closed, u32::MAX, 0) };
    // SAFETY: a set that lives.
    let rc = unsafe {
        libc::pthread_sigmask(
            libc::SIG_SETMASK,
            &raw const plan.no_signals,
            std::ptr::null_mut(),
        )
    };
    if rc != 0 {
        return Err(rc);
    }
    // SAFETY: a text, and lists of texts that end with NULL.
    unsafe {
        libc::execve(
            plan.program.as_ptr(),
            plan.arguments.as_ptr().cast(),
            plan.environment.as_ptr().cast(),
        )
    };
    Err(Errno::last_raw())
}
