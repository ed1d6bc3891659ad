//! Key material, which shall not lie about in memory that is used for other
//! things afterwards.

#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};
use zerocopy::{FromZeros, IntoBytes};

/// Something that is zeroed when it goes.
///
/// It keeps the place that it was made in; moving it would leave a copy behind.
pub(crate) struct Wiped<T: FromZeros + IntoBytes>(T);

impl<T: FromZeros + IntoBytes> Wiped<T> {
    /// All zeros, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self(T::new_zeroed())
    }
}

impl<T: FromZeros + IntoBytes> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: FromZeros + IntoBytes> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: FromZeros + IntoBytes> Drop for Wiped<T> {
    fn drop(&mut self) {
        self.0.zero();
        // Or the compiler leaves it out, as nobody looks at it any more.
        std::hint::black_box(&mut self.0);
    }
}
