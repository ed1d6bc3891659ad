//! The front-end half of vhost-user.
//!
//! [`BackendClient`] has one method per request of the protocol. The same
//! functions are exported to C as `vuf_client_*`; the C API is the stable one,
//! this Rust API may still change.

mod backend_client;
mod connection;
mod device;
mod error;
pub mod ffi;
pub mod message;
mod socket;
mod wiped;

pub use backend_client::{
    Adopted, BackendClient, BackendHandler, CryptoKind, Direction, HostNotifier, Options,
    SharedRegion, Timeout, Uuid,
};
pub use connection::{Counters, OnTimeout, TraceRecord, TraceSink};
pub use error::{Class, Error, Kind, Phase, Result, class_of, code};
