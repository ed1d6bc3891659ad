//! What both targets need: the peer, files to pass along, and the counting of
//! descriptors and memory.

use super::peer::Peer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// A call may return this much after its deadline, on a busy machine.
pub const SLACK: Duration = Duration::from_millis(200);

/// Most memory that the library may take during one call: a connection's buffers
/// and the text of an error, and nothing whose size the peer chooses.
pub const MEMORY: isize = 64 << 10;

/// A call came back too late.
#[derive(Debug, Clone, Copy)]
pub struct Late {
    #[expect(dead_code, reason = "printed")]
    pub deadline: Duration,
    #[expect(dead_code, reason = "printed")]
    pub elapsed: Duration,
}

/// What outlives the runs.
#[derive(Debug)]
pub struct Rig {
    pub peer: Box<Peer>,
    /// What the peer sends along.
    pub gift: File,
    /// What is passed to the peer: an eventfd, which is right for every request.
    pub file: File,
    ready: bool,
}

impl Rig {
    pub fn new() -> Self {
        let gift = File::from(memfd_create(c"gift", MFdFlags::MFD_CLOEXEC).unwrap());
        gift.set_len(0x4000).unwrap(); // enough for an in-flight buffer
        let file = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        Self {
            peer: Peer::new(gift.as_fd()),
            gift,
            file: File::from(OwnedFd::from(file)),
            ready: false,
        }
    }

    /// Runs, and panics if a descriptor or memory is left behind.
    pub fn checked(&mut self, body: impl Fn(&mut Self) -> Result<(), Late>) -> Result<(), Late> {
        self.peer.disconnect(); // a run that failed may have left it
        if !self.ready {
            // Whatever the library and std allocate once.
            self.ready = true;
            let _ = body(self);
            self.peer.disconnect();
        }
        let (fds, memory) = (open_fds(), live());
        let result = body(self);
        self.peer.disconnect();
        assert_eq!(open_fds(), fds, "descriptors open after the run");
        assert_eq!(live(), memory, "bytes of memory live after the run");
        result
    }

    /// Panics unless the descriptor is what the peer sends along, close-on-exec.
    pub fn check_gift(&self, fd: BorrowedFd<'_>) {
        let identity = |file: &File| {
            let data = file.metadata().unwrap();
            (data.dev(), data.ino())
        };
        let got = File::from(fd.try_clone_to_owned().unwrap());
        assert_eq!(identity(&got), identity(&self.gift), "another file came");
        assert!(close_on_exec(fd), "a descriptor survives an exec");
    }
}

/// Whether a descriptor is closed by an exec.
pub fn close_on_exec(fd: BorrowedFd<'_>) -> bool {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    flags & libc::FD_CLOEXEC != 0
}

/// Descriptors up to this number are counted; what is open once is below.
const COUNTED: usize = 256;

/// Which descriptors of this process are open: one system call.
pub fn open_fds() -> [u64; COUNTED / 64] {
    // Descriptors of the peer's are closed by threads.
    while vhost_user_frontend::descriptors_being_closed() > 0 {
        std::thread::yield_now();
    }
    let mut polled = [(); COUNTED].map(|()| None);
    for (place, number) in polled.iter_mut().zip(0..) {
        let number: RawFd = number;
        // SAFETY: not -1, and polling what is not open says just that.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        *place = Some(PollFd::new(fd, PollFlags::empty()));
    }
    let mut polled = polled.map(Option::unwrap);
    // No more may be polled than may be open.
    // SAFETY: it takes a number.
    let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    let limit = usize::try_from(limit).map_or(COUNTED, |limit| limit.min(COUNTED));
    let polled = &mut polled[..limit];
    while let Err(errno) = poll(polled, PollTimeout::ZERO) {
        assert_eq!(errno, Errno::EINTR);
    }
    let mut open = [0; COUNTED / 64];
    for (number, fd) in polled.iter().enumerate() {
        let closed = fd
            .revents()
            .is_some_and(|flags| flags.contains(PollFlags::POLLNVAL));
        open[number / 64] |= u64::from(!closed) << (number % 64);
    }
    open
}

// ---- memory ----

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Bytes that this thread has allocated and not freed.
pub fn live() -> isize {
    LIVE.get()
}

/// Runs, and panics if that took more memory in between than allowed.
pub fn within_memory<T>(call: impl FnOnce() -> T) -> T {
    let before = live();
    PEAK.set(before);
    let result = call();
    let taken = PEAK.get() - before;
    assert!(taken <= MEMORY, "a call took {taken} bytes of memory");
    result
}

fn count(bytes: usize, sign: isize) {
    let live = LIVE.get() + sign * isize::try_from(bytes).unwrap_or(isize::MAX);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

/// The allocator of the system, counting.
#[derive(Debug)]
pub struct Counting;

// SAFETY: all is passed on to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, 1);
        count(layout.size(), -1);
        // SAFETY: passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}
