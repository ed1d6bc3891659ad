//! What every exported function passes on its way out: a panic becomes a code,
//! and a failure is remembered for vuf_last_error().

use super::types::{class_number, phase_number, vuf_error_info};
use crate::error::{Error, Kind, Result};
use std::cell::{Cell, RefCell};
use std::os::raw::c_int;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Once, OnceLock};

/// Longest text that [`last_text`] holds, with its NUL.
const TEXT_SIZE: usize = 512;

/// The last failure of a thread. Plain bytes without a destructor, so that the
/// library can be unloaded while the thread lives.
struct Last {
    text: [u8; TEXT_SIZE],
    info: vuf_error_info,
}

pub(super) const NOTHING: vuf_error_info = vuf_error_info {
    size: size_of::<vuf_error_info>(),
    code: 0,
    errno_value: 0,
    error_class: 0,
    phase: 0,
    request: 0,
    ring: -1,
    region: -1,
    has_value: 0,
    value: 0,
    cause: 0,
    reserved: 0,
};

thread_local! {
    static LAST: RefCell<Last> = const {
        RefCell::new(Last { text: [0; TEXT_SIZE], info: NOTHING })
    };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Writes into a fixed buffer, and cuts off what does not fit.
struct Text<'a> {
    rest: &'a mut [u8],
}

impl std::fmt::Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        // The last byte stays NUL.
        let room = self.rest.len().saturating_sub(1);
        let mut fits = s.len().min(room);
        while !s.is_char_boundary(fits) {
            fits = fits.saturating_sub(1);
        }
        let (here, rest) = std::mem::take(&mut self.rest).split_at_mut(fits);
        here.copy_from_slice(s.as_bytes().get(..fits).unwrap_or_default());
        self.rest = rest;
        Ok(())
    }
}

/// An error's words, NUL-terminated, and cut off rather than failing.
pub(super) fn words<const N: usize>(error: &Error) -> [u8; N] {
    let mut bytes = [0; N];
    let mut text = Text { rest: &mut bytes };
    let _ = std::fmt::write(&mut text, format_args!("{error}"));
    bytes
}

/// An error's fields.
pub(super) fn fields(error: &Error) -> vuf_error_info {
    let index = |n: Option<u32>| n.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1);
    vuf_error_info {
        code: error.code(),
        errno_value: error.errno(),
        error_class: class_number(error.class()),
        phase: phase_number(error.phase),
        request: error.request.map(|r| r.id()).unwrap_or_default(),
        ring: index(error.ring),
        region: index(error.region),
        has_value: u32::from(error.value.is_some()),
        value: error.value.unwrap_or_default(),
        cause: error.cause,
        ..NOTHING
    }
}

/// Makes this the last failure of the thread.
pub(super) fn remember(error: &Error) {
    LAST.with(|last| {
        let Ok(mut last) = last.try_borrow_mut() else {
            return;
        };
        last.text = words(error);
        last.info = fields(error);
    });
}

/// The text of this thread's last failure, NUL-terminated.
pub(super) fn last_text() -> *const u8 {
    LAST.with(|last| last.as_ptr().cast_const())
        .wrapping_byte_add(std::mem::offset_of!(Last, text))
        .cast()
}

/// The fields of this thread's last failure.
pub(super) fn last_info() -> vuf_error_info {
    LAST.with(|last| last.try_borrow().map_or(NOTHING, |last| last.info))
}

static HOOK: Once = Once::new();
type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;
static OUTER_HOOK: OnceLock<Hook> = OnceLock::new();

/// std prints before the panic can be caught. A program that linked this
/// library must see nothing of it; panics elsewhere are not our business.
fn silence_panics() {
    HOOK.call_once(|| {
        let _ = OUTER_HOOK.set(take_hook());
        set_hook(Box::new(|info| {
            if let (false, Some(outer)) = (INSIDE.get(), OUTER_HOOK.get()) {
                outer(info);
            }
        }));
    });
}

/// While this lives, the thread is not cancelled (pthread_cancel()): that would unwind it
/// in the middle of a call, which aborts the process. A request to cancel stays, and is
/// seen by the next cancellation point of the caller's.
pub(super) struct Uncancelled(c_int);

#[cfg(all(any(target_env = "gnu", target_env = "musl"), not(miri)))]
fn set_cancel_state(state: c_int) -> c_int {
    unsafe extern "C" {
        fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
    }
    let mut before = CANCEL_ENABLE;
    // SAFETY: it writes one number, which lives. With a state of these it does not fail.
    unsafe { pthread_setcancelstate(state, &raw mut before) };
    before
}

/// Elsewhere no thread can be cancelled.
#[cfg(not(all(any(target_env = "gnu", target_env = "musl"), not(miri))))]
fn set_cancel_state(state: c_int) -> c_int {
    state
}

const CANCEL_ENABLE: c_int = 0;
const CANCEL_DISABLE: c_int = 1;

impl Uncancelled {
    pub(super) fn new() -> Self {
        Self(set_cancel_state(CANCEL_DISABLE))
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        if self.0 != CANCEL_DISABLE {
            set_cancel_state(self.0);
        }
    }
}

/// Runs what is behind an exported function, and lets no panic out.
pub(super) fn catch<T>(body: impl FnOnce() -> T) -> std::result::Result<T, Error> {
    silence_panics();
    let outer = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(outer);
    result.map_err(|_| {
        Error::new(
            Kind::Panic,
            "a bug in libvhost_user_frontend; please report it",
        )
    })
}

/// Runs what is behind an exported function: 0, or the code of its failure.
pub(super) fn guard(body: impl FnOnce() -> Result<()>) -> i32 {
    let _uncancelled = Uncancelled::new();
    match catch(body).and_then(|result| result) {
        Ok(()) => 0,
        Err(error) => {
            remember(&error);
            error.code()
        }
    }
}
