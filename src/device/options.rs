//! What a caller chooses when it opens a device.

use super::link::Policy;
use super::{acknowledged, presets};
use crate::backend_client::{BackendHandler, Options, Timeout};
use crate::connection::OnTimeout;
use crate::error::{Error, Result};
use crate::message::{MAX_CONFIG_SIZE, MAX_RING_INDEX};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// How split rings go on after a loss if neither an in-flight buffer nor IN_ORDER says
/// what was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutOfOrder {
    /// By the type of the device: `NeedsReset` for a file system, whose session is lost
    /// with its back-end; `ReplayFromUsed` for all others. No Linux driver acts on a
    /// device that needs a reset, so only the latter keeps a guest alive.
    #[default]
    Default,
    /// Not before the guest has reset the device.
    NeedsReset,
    /// From the used index: right for back-ends that finish in order and only do not
    /// say so. Of others, what was finished out of order is done again, and what it
    /// overtook is lost.
    ReplayFromUsed,
    /// From the available index: what was not finished is lost.
    ResumeFromAvailable,
}

/// For [`DeviceOptions::config_size`]: CONFIG is acknowledged where it is offered, and
/// the configuration space is read once [`Device::set_config_size`] was called.
///
/// [`Device::set_config_size`]: super::Device::set_config_size
pub const CONFIG_SIZE_LATER: u32 = u32::MAX;

/// Checks a size of the configuration space.
pub(super) fn check_config_size(size: u32) -> Result<()> {
    match usize::try_from(size) {
        Ok(size) if size <= MAX_CONFIG_SIZE => Ok(()),
        _ => Err(Error::invalid(format!(
            "config_size is above {MAX_CONFIG_SIZE}"
        ))),
    }
}

impl OutOfOrder {
    /// What this means for a device of this type.
    pub(super) fn of(self, device_id: u32) -> Self {
        match self {
            Self::Default => {
                presets::find(device_id).map_or(Self::ReplayFromUsed, |known| known.out_of_order)
            }
            chosen => chosen,
        }
    }
}

/// The most descriptors of a ring (virtio specification, "Virtqueues").
const MAX_RING_SIZE: u32 = 1 << 15;

/// What a caller chooses when it opens a device.
#[derive(Clone)]
pub struct DeviceOptions {
    /// The virtio device ID, such as 2 for a block device; 0: unknown. Texts name the
    /// feature bits of this type, and it decides what [`OutOfOrder::Default`] means.
    pub device_id: u32,
    /// How many rings the device has; 0 for as many as the protocol allows.
    pub num_rings: u32,
    /// The largest size that a ring will have, in descriptors; 0: that of the largest
    /// ring that runs. In-flight buffers are made for it, so that a ring can be started
    /// again with a larger size while others run.
    pub max_ring_size: u32,
    /// Bytes of its configuration space; 0 for none, [`CONFIG_SIZE_LATER`] to choose
    /// the size when the features of the back-end are known.
    pub config_size: u32,
    /// Virtio features without which the back-end is refused.
    pub required_features: u64,
    /// Protocol features that may be acknowledged where they are offered, of those
    /// that the device makes use of. SHMEM, HOST_NOTIFIER, SHARED_OBJECT and
    /// BACKEND_SEND_FD also need a [`handler`](Self::handler) that serves their
    /// requests.
    pub protocol_features: u64,
    /// Protocol features without which the back-end is refused.
    pub required_protocol_features: u64,
    /// Virtio features that count as offered before there is a back-end. One that
    /// does not offer them is refused. The first configuration space that is read is
    /// reported as a change, because a guest may have been shown another.
    pub assume_features: Option<u64>,
    /// Does what the back-end asks. [`BackendHandler::handles`] is called when the
    /// device is opened, too: it decides which protocol features are acknowledged.
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
    /// Supplies the current time. Tests replace it to simulate the passing of time;
    /// [`Device::wait`](super::Device::wait) sleeps in real time all the same.
    pub clock: Clock,
}

/// A source of the current time.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            device_id: 0,
            num_rings: 0,
            max_ring_size: 0,
            config_size: 0,
            required_features: 0,
            protocol_features: Self::DEFAULT_PROTOCOL_FEATURES,
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
            clock: Arc::new(Instant::now),
        }
    }
}

impl std::fmt::Debug for DeviceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceOptions").finish_non_exhaustive()
    }
}

impl DeviceOptions {
    /// The default of [`protocol_features`](Self::protocol_features). It is the same
    /// in every version of the library.
    pub const DEFAULT_PROTOCOL_FEATURES: u64 = acknowledged::DEFAULT;

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
        if self.max_ring_size > MAX_RING_SIZE {
            return Err(Error::invalid("max_ring_size is above 32768"));
        }
        self.check_required()?;
        match self.config_size {
            CONFIG_SIZE_LATER => Ok(()),
            size => check_config_size(size),
        }
    }
}
