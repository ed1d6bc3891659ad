//! The C ABI: pointers, file descriptors, error codes and panics. It knows no
//! protocol. The C header is generated from this folder.
//!
//! Every exported function that can fail goes through `boundary::guard`,
//! `handle::with_client` or `handle::with_device`, and reads its arguments with
//! `args::Args`; those that cannot are tables and constants.

mod args;
mod boundary;
mod handle;

pub mod api;
pub mod backend;
pub mod client;
pub mod device;
pub mod device_kinds;
pub mod dirty_log;
pub mod error;
pub mod list;
pub mod memfd;
pub mod memory;
pub mod postcopy;
pub mod programs;
pub mod requests;
pub mod trace;
pub mod types;
pub mod virtual_device;
pub mod vring;
