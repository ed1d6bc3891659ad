//! Back-ends as programs (docs/interop/vhost-user of QEMU, "Backend program
//! conventions"): found by the files that describe them, asked what they can do,
//! started with a socket, and ended.

#![forbid(unsafe_code)]

mod capabilities;
mod files;
mod json;
mod process;
#[cfg(test)]
mod tests;

pub use capabilities::Capabilities;
pub use files::{BackendProgram, Search, find};
pub use process::{BackendProcess, Output, Passed, ProcessOptions};
