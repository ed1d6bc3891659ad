//! Arguments from C, checked before they are used. Each failure names the
//! argument.

use crate::backend_client::Timeout;
use crate::error::{Error, Result};
use crate::ffi::types::{VUF_TIMEOUT_DEFAULT, VUF_TIMEOUT_FOREVER};
use crate::socket;
use nix::errno::Errno;
use std::ffi::{CStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::raw::{c_char, c_int};
use std::path::Path;
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Largest struct with a size that makes sense to look at.
const MAX_STRUCT_SIZE: usize = 1 << 16;

#[cold]
#[inline(never)]
fn null(name: &str) -> Error {
    Error::invalid(format!("{name} is NULL"))
}

/// Apart from the generic function, which is compiled for each type.
#[cold]
#[inline(never)]
fn not_aligned(name: &str) -> Error {
    Error::invalid(format!("{name} is not aligned"))
}

#[cold]
#[inline(never)]
fn too_long(name: &str) -> Error {
    Error::invalid(format!("{name} is longer than memory"))
}

fn aligned<T>(pointer: *const T, name: &str) -> Result<()> {
    match pointer.is_aligned() {
        true => Ok(()),
        false => Err(not_aligned(name)),
    }
}

fn length<T>(pointer: *const T, n: usize, name: &str) -> Result<usize> {
    if n == 0 {
        return Ok(0);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    aligned(pointer, name)?;
    match n.checked_mul(size_of::<T>()) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(n),
        _ => Err(too_long(name)),
    }
}

/// A struct of C that begins with its size, and may get more fields at its end.
pub(super) trait Extensible {
    /// Its name in C.
    const NAME: &'static str;
    /// Its size in version 0.1: no program was compiled with a smaller one.
    const LEAST: usize;
}

/// Structs without a field that version 0.1 did not have.
macro_rules! extensible {
    ($($name:ident)*) => {$(
        impl $crate::ffi::args::Extensible for $name {
            const NAME: &'static str = stringify!($name);
            const LEAST: usize = size_of::<Self>();
        }
    )*};
}
pub(super) use extensible;

/// A smaller size than any that a program can have is a mistake, such as the size of a
/// pointer to the struct: most of the struct would be ignored without a word.
fn check_size<T: Extensible>(size: usize, name: &str) -> Result<()> {
    sized(size, name, T::NAME, T::LEAST)
}

/// Apart from the generic function, which is compiled for each type.
fn sized(size: usize, name: &str, of: &str, least: usize) -> Result<()> {
    if size < least {
        return Err(Error::invalid(match size {
            0 => format!("{name}->size is not set: set it to sizeof(struct {of})"),
            _ => format!(
                "{name}->size is {size}, and struct {of} has {least} bytes: set it to \
                 sizeof(struct {of}), not to the size of a pointer"
            ),
        }));
    }
    if size > MAX_STRUCT_SIZE {
        return Err(Error::new(
            crate::error::Kind::Argument(Errno::E2BIG),
            format!("{name}->size is {size}"),
        ));
    }
    Ok(())
}

/// The arguments of one exported function.
///
/// Whoever makes it passes on the promise of the C caller; reading an argument
/// is then safe, and every mistake that can be noticed is reported.
#[derive(Debug)]
pub(super) struct Args(());

impl Args {
    /// # Safety
    /// While this lives, each pointer that is read through it is null or points
    /// to what its type and the length given with it say (an output: to room for
    /// it), and each file descriptor, if it is open, stays open.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }

    /// Something that must be there to be read.
    pub(super) fn input<T: FromBytes>(&self, pointer: *const T, name: &str) -> Result<&T> {
        aligned(pointer, name)?;
        // SAFETY: promised when this was made; aligned, and any bytes are a valid T.
        unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
    }

    /// Somewhere to write a result.
    #[allow(clippy::mut_from_ref, reason = "the memory is the caller's, not ours")]
    pub(super) fn output<T>(&self, pointer: *mut T, name: &str) -> Result<&mut MaybeUninit<T>> {
        aligned(pointer, name)?;
        // SAFETY: promised when this was made; it need not be initialised.
        unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| null(name))
    }

    /// Somewhere to write a file descriptor: -1 until there is one.
    #[allow(clippy::mut_from_ref, reason = "the memory is the caller's, not ours")]
    pub(super) fn fd_output(&self, pointer: *mut c_int, name: &str) -> Result<&mut c_int> {
        Ok(self.output(pointer, name)?.write(-1))
    }

    /// An array to read. With `n` 0 the pointer is ignored.
    pub(super) fn array<T: FromBytes>(
        &self,
        pointer: *const T,
        n: usize,
        name: &str,
    ) -> Result<&[T]> {
        match length(pointer, n, name)? {
            0 => Ok(&[]),
            // SAFETY: promised when this was made; not null, aligned, and of a possible length.
            n => Ok(unsafe { std::slice::from_raw_parts(pointer, n) }),
        }
    }

    /// The same for structs that hold pointers, which nothing can check.
    ///
    /// # Safety
    /// What the caller put into the structs is a valid T each.
    pub(super) unsafe fn array_pointers<T>(
        &self,
        pointer: *const T,
        n: usize,
        name: &str,
    ) -> Result<&[T]> {
        match length(pointer, n, name)? {
            0 => Ok(&[]),
            // SAFETY: promised when this was made, and by the caller.
            n => Ok(unsafe { std::slice::from_raw_parts(pointer, n) }),
        }
    }

    /// A buffer to fill, which C need not have initialised.
    #[allow(clippy::mut_from_ref, reason = "the memory is the caller's, not ours")]
    pub(super) fn buffer<T>(
        &self,
        pointer: *mut T,
        n: usize,
        name: &str,
    ) -> Result<&mut [MaybeUninit<T>]> {
        match length(pointer, n, name)? {
            0 => Ok(&mut []),
            // SAFETY: promised when this was made; not null, and of a possible length.
            n => Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), n) }),
        }
    }

    /// A buffer to change in place.
    #[allow(clippy::mut_from_ref, reason = "the memory is the caller's, not ours")]
    pub(super) fn in_out<T: FromBytes>(
        &self,
        pointer: *mut T,
        n: usize,
        name: &str,
    ) -> Result<&mut [T]> {
        match length(pointer, n, name)? {
            0 => Ok(&mut []),
            // SAFETY: promised when this was made; not null, aligned, and of a possible length.
            n => Ok(unsafe { std::slice::from_raw_parts_mut(pointer, n) }),
        }
    }

    /// A struct that begins with its size and may be shorter (the rest is zero) or
    /// longer (the rest must be zero) than the one known here.
    pub(super) fn extensible<T: Extensible + FromBytes + IntoBytes>(
        &self,
        pointer: *const T,
        name: &str,
    ) -> Result<T> {
        let mut known = T::new_zeroed();
        self.extensible_into(pointer, name, &mut known)?;
        Ok(known)
    }

    /// The same into what is all zeros, for what must not be copied about.
    pub(super) fn extensible_into<T: Extensible + FromBytes + IntoBytes>(
        &self,
        pointer: *const T,
        name: &str,
        known: &mut T,
    ) -> Result<()> {
        let head = self.known_part(pointer, name)?;
        if let Some(place) = known.as_mut_bytes().get_mut(..head.len()) {
            place.copy_from_slice(head);
        }
        Ok(())
    }

    /// The same for a struct that holds pointers, which nothing can check.
    ///
    /// # Safety
    /// What the caller put into the struct is a valid T.
    pub(super) unsafe fn extensible_pointers<T: Extensible + FromZeros>(
        &self,
        pointer: *const T,
        name: &str,
    ) -> Result<T> {
        let head = self.known_part(pointer, name)?;
        let mut known = T::new_zeroed();
        let place = (&raw mut known).cast::<u8>();
        // SAFETY: `head` is at most as long as T, and does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), place, head.len()) };
        Ok(known)
    }

    /// Of a struct that begins with its size, the bytes that are known here.
    fn known_part<T: Extensible>(&self, pointer: *const T, name: &str) -> Result<&[u8]> {
        let size = *self.input(pointer.cast::<usize>(), name)?;
        check_size::<T>(size, name)?;
        let bytes = self.array(pointer.cast::<u8>(), size, name)?;
        let (head, tail) = bytes.split_at(bytes.len().min(size_of::<T>()));
        if tail.iter().any(|byte| *byte != 0) {
            return Err(Error::new(
                crate::error::Kind::Argument(Errno::E2BIG),
                format!("{name} has fields that this version of the library does not know"),
            ));
        }
        Ok(head)
    }

    /// The size of a result struct that begins with it, checked before the call
    /// that fills it.
    pub(super) fn result_size<T: Extensible>(&self, pointer: *mut T, name: &str) -> Result<usize> {
        let size = *self.input(pointer.cast::<usize>().cast_const(), name)?;
        check_size::<T>(size, name)?;
        Ok(size)
    }

    /// Fills a result struct of the caller's size: what it has no room for is left
    /// out, and room beyond what is known here is zeroed. Its size stays.
    pub(super) fn fill<T: IntoBytes + zerocopy::Immutable>(
        &self,
        pointer: *mut T,
        size: usize,
        value: &T,
    ) -> Result<()> {
        self.fill_bytes(pointer.cast(), size, value.as_bytes())
    }

    /// The same for a struct that holds pointers.
    ///
    /// # Safety
    /// It has no padding.
    pub(super) unsafe fn fill_pointers<T>(
        &self,
        pointer: *mut T,
        size: usize,
        value: &T,
    ) -> Result<()> {
        let bytes = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: the bytes of a value that lives, all of which are initialised.
        let known = unsafe { std::slice::from_raw_parts(bytes, size_of::<T>()) };
        self.fill_bytes(pointer.cast(), size, known)
    }

    fn fill_bytes(&self, pointer: *mut u8, size: usize, known: &[u8]) -> Result<()> {
        let bytes = self.buffer(pointer, size, "result")?;
        let from = size_of::<usize>();
        for (at, place) in bytes.iter_mut().enumerate().skip(from) {
            place.write(known.get(at).copied().unwrap_or_default());
        }
        Ok(())
    }

    /// A path: bytes, not necessarily UTF-8.
    pub(super) fn path(&self, pointer: *const c_char, name: &str) -> Result<&Path> {
        use std::os::unix::ffi::OsStrExt;
        if pointer.is_null() {
            return Err(null(name));
        }
        // SAFETY: promised when this was made.
        let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
        if bytes.is_empty() {
            return Err(Error::invalid(format!("{name} is empty")));
        }
        Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)))
    }

    /// Texts up to a NULL: no list if there is none.
    pub(super) fn texts(&self, list: *const *const c_char) -> Option<Vec<OsString>> {
        use std::os::unix::ffi::OsStringExt;
        let mut next = Some(list).filter(|list| !list.is_null())?;
        let mut texts = Vec::new();
        loop {
            // SAFETY: promised when this was made; not behind the NULL.
            let text = unsafe { next.read_unaligned() };
            if text.is_null() {
                return Some(texts);
            }
            // SAFETY: promised when this was made.
            let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
            texts.push(OsString::from_vec(bytes.to_vec()));
            next = next.wrapping_add(1);
        }
    }

    /// A file descriptor that is borrowed for the call.
    pub(super) fn fd(&self, fd: c_int, name: &str) -> Result<BorrowedFd<'_>> {
        if fd < 0 {
            return Err(Error::bad_fd(format!("{name} is {fd}")));
        }
        // SAFETY: not -1. A number that is not open is refused by the kernel.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Like [`fd`], with -1 for none.
    pub(super) fn optional_fd(&self, number: c_int, name: &str) -> Result<Option<BorrowedFd<'_>>> {
        match number {
            -1 => Ok(None),
            _ => self.fd(number, name).map(Some),
        }
    }

    /// Like [`fd`], for a field of a struct: 0 is what a field that was forgotten
    /// holds.
    pub(super) fn field_fd(&self, number: c_int, name: &str) -> Result<BorrowedFd<'_>> {
        match number {
            0 => Err(Error::invalid(format!(
                "{name} is 0, which is taken for a field that was not set"
            ))),
            _ => self.fd(number, name),
        }
    }

    /// The same with -1 for none.
    pub(super) fn optional_field_fd(
        &self,
        number: c_int,
        name: &str,
    ) -> Result<Option<BorrowedFd<'_>>> {
        match number {
            -1 => Ok(None),
            _ => self.field_fd(number, name).map(Some),
        }
    }
}

/// A descriptor that the caller gives away with success: the library's from here on, unless
/// this fails.
///
/// # Safety
/// It is open, and the caller's to give.
pub(super) unsafe fn take_fd(fd: c_int) -> Result<OwnedFd> {
    // SAFETY: open until the end of this function at least.
    let moved = socket::moved(unsafe { BorrowedFd::borrow_raw(fd) })
        .map_err(|errno| Error::os(errno, format_args!("cannot give fd {fd} another number")))?;
    // SAFETY: promised.
    let given = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(moved.unwrap_or(given))
}

/// A time in milliseconds.
pub(super) fn timeout(milliseconds: u32) -> Timeout {
    match milliseconds {
        VUF_TIMEOUT_DEFAULT => Timeout::Default,
        VUF_TIMEOUT_FOREVER => Timeout::Never,
        time => Timeout::After(Duration::from_millis(u64::from(time))),
    }
}

/// A time in milliseconds that is not a deadline.
pub(super) fn duration(milliseconds: u32, default: Duration) -> Duration {
    match milliseconds {
        VUF_TIMEOUT_DEFAULT => default,
        VUF_TIMEOUT_FOREVER => Duration::MAX,
        time => Duration::from_millis(u64::from(time)),
    }
}

/// Fields that must be zero.
pub(super) fn zero(fields: &[u64], name: &str) -> Result<()> {
    match fields.iter().all(|field| *field == 0) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "a reserved field of {name} is not zero"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::Extensible;
    use crate::ffi::list::*;
    use crate::ffi::programs::types::*;
    use crate::ffi::types::*;
    use crate::ffi::virtual_device::types::*;

    /// A struct that gets a field later: its `LEAST` stays, as the offset of the first new
    /// field, or programs that were compiled before are refused.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn smallest_sizes_are_those_of_version_0_1() {
        fn least<T: Extensible>() -> (&'static str, usize) {
            (T::NAME, T::LEAST)
        }
        let is = [
            least::<vuf_client_options>(),
            least::<vuf_crypto_session>(),
            least::<vuf_shmem_config>(),
            least::<vuf_backend_ops>(),
            least::<vuf_counters>(),
            least::<vuf_error_info>(),
            least::<vuf_submit_result>(),
            least::<vuf_device_options>(),
            least::<vuf_quiet>(),
            least::<vuf_device_event>(),
            least::<vuf_device_info>(),
            least::<vuf_backend_search>(),
            least::<vuf_backend_program>(),
            least::<vuf_backend_process_options>(),
            least::<vuf_backend_exit>(),
        ];
        let was = [
            ("vuf_client_options", 56),
            ("vuf_crypto_session", 1672),
            ("vuf_shmem_config", 2064),
            ("vuf_backend_ops", 96),
            ("vuf_counters", 120),
            ("vuf_error_info", 56),
            ("vuf_submit_result", 64),
            ("vuf_device_options", 120),
            ("vuf_quiet", 16),
            ("vuf_device_event", 336),
            ("vuf_device_info", 2160),
            ("vuf_backend_search", 40),
            ("vuf_backend_program", 80),
            ("vuf_backend_process_options", 40),
            ("vuf_backend_exit", 16),
        ];
        assert_eq!(is, was);
    }
}
