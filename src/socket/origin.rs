//! Which process made something: a forked child has copies of all, and may use none.

use std::ffi::c_void;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicPtr, AtomicU64};

/// A process, as far as it and its ancestors have to be distinguished. Their numbers alone do
/// not: in another PID namespace a child may have the number of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin(u64);

/// What the kernel clears in a forked child, however it was made.
#[derive(Debug)]
pub(super) struct Page {
    /// The number of this process, or 0 where that has none yet.
    number: AtomicU64,
    /// For [`notify`](super::notify): its place for asynchronous requests, which a child
    /// does not have either; or 0.
    pub(super) requests: AtomicU64,
}

/// Never unmapped.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());
/// The next number. A child goes on where its parent was, so it gets one that none of its
/// ancestors has.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// In place of the page, where there can be none (before Linux 4.14).
static NO_PAGE: Page = Page {
    number: AtomicU64::new(0),
    requests: AtomicU64::new(0),
};

const SIZE: usize = size_of::<Page>();

impl Origin {
    pub(crate) fn here() -> Self {
        let Some(Page { number, .. }) = page() else {
            return Self(u64::from(std::process::id()));
        };
        let fresh = match number.load(Acquire) {
            0 => NEXT.fetch_add(1, Relaxed),
            number => return Self(number),
        };
        match number.compare_exchange(0, fresh, AcqRel, Acquire) {
            Ok(_) => Self(fresh),
            Err(other) => Self(other),
        }
    }

    /// Whether this process made it.
    pub(crate) fn is_here(self) -> bool {
        self == Self::here()
    }
}

/// The page of this process, if there can be one. Without a lock: a child must not wait for
/// a thread of its parent.
pub(super) fn page() -> Option<&'static Page> {
    let there = PAGE.load(Acquire);
    let page = match there.is_null() {
        false => there,
        true => {
            let fresh = map().unwrap_or((&raw const NO_PAGE).cast_mut());
            match PAGE.compare_exchange(there, fresh, AcqRel, Acquire) {
                Ok(_) => fresh,
                Err(other) => {
                    unmap(fresh);
                    other
                }
            }
        }
    };
    // SAFETY: a static, or a page that is never unmapped and is used through atomics only.
    let page = unsafe { &*page };
    (!std::ptr::eq(page, &raw const NO_PAGE)).then_some(page)
}

fn map() -> Option<*mut Page> {
    if cfg!(miri) {
        return None;
    }
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, at a place that the kernel chooses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, kind, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    let page = page.cast::<Page>();
    // SAFETY: the whole of the mapping that was just made.
    match unsafe { libc::madvise(page.cast::<c_void>(), SIZE, libc::MADV_WIPEONFORK) } {
        0 => Some(page),
        _ => {
            unmap(page);
            None
        }
    }
}

fn unmap(page: *mut Page) {
    if !std::ptr::eq(page, &raw const NO_PAGE) {
        // SAFETY: a mapping that this thread has made and no other has seen.
        unsafe { libc::munmap(page.cast::<c_void>(), SIZE) };
    }
}
