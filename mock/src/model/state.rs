//! What was agreed on a connection and what the front-end has passed.

use crate::catalog::has;
use crate::message::Region;
use crate::transfer::Transfer;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// What is known of a ring.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) base: u32,
    pub(crate) enabled: bool,
    pub(crate) started: bool,
    pub(crate) has_addr: bool,
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
}

/// How far postcopy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Postcopy {
    #[default]
    Off,
    Advised,
    Listening,
}

/// What the front-end has said on this connection.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) owned: bool,
    /// GET_FEATURES was answered.
    pub(crate) features_served: bool,
    /// GET_PROTOCOL_FEATURES was answered.
    pub(crate) protocol_served: bool,
    pub(crate) features: Option<u64>,
    pub(crate) protocol: u64,
    pub(crate) regions: Vec<Region>,
    pub(crate) rings: BTreeMap<u32, Ring>,
    /// Rings that the inflight buffer covers.
    pub(crate) inflight_rings: u32,
    pub(crate) postcopy: Postcopy,
    pub(crate) channel: Option<UnixStream>,
    pub(crate) transfer: Option<Transfer>,
    pub(super) log_eventfd: Option<OwnedFd>,
    pub(super) status: u64,
    pub(super) sessions: u64,
    /// Memory that was passed, and other files; kept open as a back-end would.
    pub(super) files: Vec<OwnedFd>,
    pub(super) log: Vec<OwnedFd>,
    pub(super) inflight: Vec<OwnedFd>,
}

impl State {
    /// Whether this virtio feature is acknowledged.
    pub(crate) fn virtio(&self, bit: u32) -> bool {
        self.features.is_some_and(|features| has(features, bit))
    }

    /// Whether this protocol feature is acknowledged.
    pub(crate) fn protocol(&self, bit: u32) -> bool {
        has(self.protocol, bit)
    }

    /// Whether a user address is in memory that was passed.
    pub(crate) fn maps(&self, user: u64) -> bool {
        self.regions.iter().any(|region| region.contains(user))
    }

    /// Whether a ring has all that it needs to run.
    pub(crate) fn running(&self) -> bool {
        self.rings
            .values()
            .any(|ring| ring.started && ring.enabled && ring.has_addr)
    }

    /// The eventfds that the front-end has passed and that are still in use.
    pub(crate) fn eventfds(&self) -> impl Iterator<Item = &OwnedFd> {
        let rings = self
            .rings
            .values()
            .flat_map(|ring| [&ring.kick, &ring.call, &ring.err]);
        rings.flatten().chain(&self.log_eventfd)
    }

    pub(super) fn ring(&mut self, index: u32) -> &mut Ring {
        self.rings.entry(index).or_default()
    }
}
