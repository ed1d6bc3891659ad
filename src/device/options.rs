//! What a caller chooses when it opens a device.

use super::link::Policy;
use crate::backend_client::{BackendHandler, Options, Timeout};
use crate::connection::OnTimeout;
use crate::error::{Error, Result};
use crate::message::{MAX_CONFIG_SIZE, MAX_RING_INDEX};
use std::sync::Arc;
use std::time::Duration;

/// What happens when a back-end that was given up does not close its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnfenced {
    /// It is waited for, as long as it takes: nothing is written twice.
    #[default]
    Wait,
    /// Another is used beside it, and beside eight of them at most: with a ninth it
    /// waits until one of the nine is gone.
    Proceed,
    /// Its process is killed, if it is one of [`Device::set_process`]; otherwise as
    /// `Wait`.
    ///
    /// [`Device::set_process`]: super::Device::set_process
    Kill,
}

/// How split rings go on after a loss where neither an in-flight buffer nor
/// IN_ORDER tells what was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutOfOrder {
    /// Not before the guest has reset the device.
    #[default]
    NeedsReset,
    /// From the used index: right for back-ends that finish in order and only do not
    /// say so. Of others, what was finished out of order is done again, and what it
    /// overtook is lost.
    ReplayFromUsed,
    /// From the available index: what was not finished is lost.
    ResumeFromAvailable,
}

/// What a caller chooses when it opens a device.
#[derive(Clone)]
pub struct DeviceOptions {
    /// How many rings the device has; 0 for as many as the protocol allows.
    pub num_rings: u32,
    /// Bytes of its configuration space; 0 for none.
    pub config_size: u32,
    /// Virtio features without which the back-end is refused.
    pub required_features: u64,
    /// Protocol features that may be acknowledged where they are offered.
    pub protocol_features: u64,
    /// Protocol features without which the back-end is refused.
    pub required_protocol_features: u64,
    /// Virtio features that count as offered before there is a back-end. One that
    /// does not offer them is refused.
    pub assume_features: Option<u64>,
    /// Does what the back-end asks.
    pub handler: Option<Arc<dyn BackendHandler>>,
    /// When to connect again.
    pub reconnect: Policy,
    /// How long a back-end that was given up has to close its connection; 5 s.
    pub fence: Timeout,
    /// And if it does not.
    pub on_unfenced: OnUnfenced,
    /// How rings go on that might not.
    pub out_of_order: OutOfOrder,
    /// See [`Options::quick`].
    pub quick: Timeout,
    /// See [`Options::slow`].
    pub slow: Timeout,
    /// See [`Options::drain`].
    pub drain: Timeout,
    /// After how long without an answer [`Stalled`](super::EventKind::Stalled) is
    /// told; 1 s.
    pub stall: Duration,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            num_rings: 0,
            config_size: 0,
            required_features: 0,
            protocol_features: u64::MAX,
            required_protocol_features: 0,
            assume_features: None,
            handler: None,
            reconnect: Policy::default(),
            fence: Timeout::Default,
            on_unfenced: OnUnfenced::default(),
            out_of_order: OutOfOrder::default(),
            quick: Timeout::Default,
            slow: Timeout::Default,
            drain: Timeout::Default,
            stall: Duration::from_secs(1),
        }
    }
}

impl std::fmt::Debug for DeviceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceOptions").finish_non_exhaustive()
    }
}

impl DeviceOptions {
    pub(super) fn rings(&self) -> u32 {
        match self.num_rings {
            0 => MAX_RING_INDEX.saturating_add(1),
            rings => rings,
        }
    }

    pub(super) fn fence_limit(&self) -> Option<Duration> {
        self.fence.or(Some(Duration::from_secs(5)))
    }

    pub(super) fn client(&self) -> Options {
        Options {
            quick: self.quick,
            slow: self.slow,
            drain: self.drain,
            on_timeout: OnTimeout::Poison,
            max_rings: self.num_rings,
            ..Options::default()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.num_rings > MAX_RING_INDEX.saturating_add(1) {
            return Err(Error::invalid("num_rings is above 256"));
        }
        match usize::try_from(self.config_size) {
            Ok(size) if size <= MAX_CONFIG_SIZE => Ok(()),
            _ => Err(Error::invalid(format!(
                "config_size is above {MAX_CONFIG_SIZE}"
            ))),
        }
    }
}
