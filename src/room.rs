//! Out of memory as an error, as far as that is possible.

#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use nix::errno::Errno;

/// What the smaller parts of a call take together.
pub(crate) const SMALL_PARTS: usize = 16 << 10;

/// Fails with ENOMEM where this many bytes, and [`SMALL_PARTS`], are not to be had.
///
/// Rust ends the process at the first allocation that fails. So a call that allocates much,
/// or lives on with what it allocates, asks for all of it at once before it changes
/// anything. Another thread may take the memory in between.
pub(crate) fn room(bytes: usize) -> Result<()> {
    let mut probe: Vec<u8> = Vec::new();
    let result = probe.try_reserve_exact(bytes.saturating_add(SMALL_PARTS));
    // Otherwise the compiler would leave out memory that is not read.
    std::hint::black_box(&mut probe);
    result.map_err(|_| Error::new(Kind::Os(Errno::ENOMEM), "there is not enough memory"))
}

/// The same for `n` things of this type.
pub(crate) fn room_for<T>(n: usize) -> Result<()> {
    room(n.saturating_mul(size_of::<T>()))
}
