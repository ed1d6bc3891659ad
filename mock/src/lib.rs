//! A vhost-user back-end for tests of front-ends. It follows a script: polite by
//! default, strict like one of the real back-ends, or broken in a way that is
//! told. `docs/mock-backend.md` describes the language; the program
//! `vuf-mock-backend` runs a script on a socket, [`Mock`] runs one on a thread:
//!
//! ```
//! use vuf_mock_backend::{Mock, Script};
//!
//! let script = Script::parse("expect GET_FEATURES: close")?;
//! let (socket, mock) = Mock::spawn(script)?;
//! drop(socket); // here a front-end would use it
//! let outcome = mock.finish()?;
//! assert_eq!(outcome.unmet, ["line 1: expect GET_FEATURES: close: did not come"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod catalog;
mod device;
mod eventfd;
mod fault;
mod files;
mod log;
mod message;
mod mock;
mod mode;
mod model;
mod program;
mod script;
mod session;
mod strict;
mod transfer;
mod wire;
mod words;

pub use mock::{Mock, Outcome};
pub use mode::Mode;
pub use script::Script;
pub use session::{Backend, End};
pub use words::ParseError;
