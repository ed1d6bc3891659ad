//! The device: what a caller wants of a back-end, made so and kept so over every
//! loss of it. Nothing here waits.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    allow(dead_code, reason = "what drives these parts is not there yet")
)]

mod fence;
mod link;
#[cfg(test)]
mod testing;
