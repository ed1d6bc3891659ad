//! The front-end half of vhost-user.
//!
//! [`BackendClient`] has one method per request of the protocol. The same
//! functions are exported to C as `vuf_client_*`; the C API is the stable one,
//! this Rust API may still change.

mod backend_client;
mod connection;
mod error;
pub mod ffi;
pub mod message;
mod socket;

pub use backend_client::{Adopted, BackendClient, Direction, Options, SharedRegion, Timeout};
pub use connection::OnTimeout;
pub use error::{Class, Error, Kind, Phase, Result, class_of, code};
