//! What a caller chooses when it connects.

use crate::connection::{OnTimeout, Timeouts};
use crate::error::{Error, Result};
use crate::message::{MAX_RING_INDEX, ProtocolFeatures};
use std::time::Duration;

/// How long something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timeout {
    /// As long as the documentation says.
    #[default]
    Default,
    /// This long.
    After(Duration),
    /// For ever.
    Never,
}

impl Timeout {
    pub(crate) fn or(self, default: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Default => default,
            Self::After(duration) => Some(duration),
            Self::Never => None,
        }
    }
}

/// The longest [`Options::spin`]: longer than that a wake-up does not take.
pub const MAX_SPIN: Duration = Duration::from_millis(10);

/// Features that were agreed on a connection before this process inherited it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// What SET_FEATURES acknowledged.
    pub features: u64,
    /// What SET_PROTOCOL_FEATURES acknowledged.
    pub protocol_features: u64,
}

/// What a caller chooses when it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// For [`connect`](super::BackendClient::connect) and
    /// [`accept`](super::BackendClient::accept); 5 s by default.
    pub connect: Timeout,
    /// Whether [`connect`](super::BackendClient::connect) waits, within that time,
    /// for a socket that is not there yet or on which nobody listens.
    pub wait_for_socket: bool,
    /// For requests that the back-end answers from memory; 5 s by default.
    pub quick: Timeout,
    /// For memory, enabling rings, device state; 60 s by default.
    pub slow: Timeout,
    /// For stopping a ring; 60 s by default.
    pub drain: Timeout,
    /// What a passed deadline does to the connection.
    pub on_timeout: OnTimeout,
    /// How long a call looks for its answer again and again before it sleeps; up to
    /// [`MAX_SPIN`], and not at all by default. A list
    /// ([`submit`](super::BackendClient::submit)) does so for each of its answers.
    pub spin: Duration,
    /// How many rings the device has; 0 for as many as the protocol allows.
    pub max_rings: u32,
    /// Features already agreed on an inherited connection.
    pub adopt: Option<Adopted>,
}

impl Options {
    pub(super) fn timeouts(&self) -> Timeouts {
        let default = Timeouts::default();
        Timeouts {
            quick: self.quick.or(default.quick),
            slow: self.slow.or(default.slow),
            drain: self.drain.or(default.drain),
        }
    }

    pub(super) fn connect_timeout(&self) -> Option<Duration> {
        self.connect.or(Timeouts::default().quick)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.max_rings > MAX_RING_INDEX.saturating_add(1) {
            return Err(Error::invalid("max_rings is above 256"));
        }
        if self.spin > MAX_SPIN {
            return Err(Error::invalid("spin is above 10000 microseconds"));
        }
        match self.adopt {
            Some(Adopted {
                protocol_features: bits,
                ..
            }) if ProtocolFeatures::from_bits(bits).is_none() => Err(Error::invalid(
                "protocol_features to adopt has bits that this library does not serve",
            )),
            _ => Ok(()),
        }
    }
}
