//! The front-end half of vhost-user.
//!
//! [`BackendClient`] has one method per request of the protocol. [`Device`] is what
//! a virtual machine monitor builds on it: a state machine that makes a back-end
//! as the guest wants it, and makes it so again after each loss. The same
//! functions are exported to C as `vuf_client_*` and `vuf_device_*`; the C API is
//! the stable one, this Rust API may still change.

mod backend_client;
mod connection;
mod device;
mod dirty_log;
mod error;
pub mod ffi;
pub mod message;
mod programs;
mod room;
mod socket;
mod wiped;

pub use backend_client::{
    Adopted, BackendClient, BackendHandler, CryptoKind, Direction, HostNotifier, MAX_SPIN, Op,
    Options, Refusal, SharedRegion, Submitted, Timeout, Uuid,
};
pub use connection::{Counters, OnTimeout, TraceRecord, TraceSink};
pub use device::{
    Base, CONFIG_SIZE_LATER, Clock, Device, DeviceInfo, DeviceOptions, Event, EventKind,
    MemoryGroup, MemoryState, OnUnfenced, OutOfOrder, Peer, Policy, Quiet, Recovery, Region, Ring,
    RingIndices, StopMode,
};
pub use error::{Class, Details, Error, Kind, Phase, Result, class_of, code};
pub use programs::{
    BackendProcess, BackendProgram, Capabilities, Output, Passed, ProcessOptions, Search,
    find as find_backend_programs,
};
pub use socket::{Credentials, Exit};

/// The number of descriptors that short-lived threads of the library hold. For tests that
/// count descriptors.
#[doc(hidden)]
pub fn descriptors_being_closed() -> usize {
    socket::being_closed()
}
