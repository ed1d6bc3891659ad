//! Addresses that a network device announces once, after a migration (SEND_RARP).

use super::Device;
use super::core::Core;
use super::plan::Announcement;
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request};
use nix::errno::Errno;

/// How many announcements wait at most.
const MAX_ANNOUNCEMENTS: usize = 16;

impl Device {
    /// Has a network device announce this address once to its network, as soon as its rings
    /// run. An announcement that a back-end has not confirmed when it is lost is sent to the
    /// next.
    ///
    /// Fails with [`Kind::NotNegotiated`] if RARP is not agreed.
    pub fn send_rarp(&self, mac: [u8; 6]) -> Result<()> {
        let mut core = self.lock();
        if core.wanted.protocol & ProtocolFeatures::RARP.bits() == 0 {
            let text = "protocol_features of the options does not have RARP";
            return Err(Error::new(Kind::NotNegotiated, text).of(Request::SendRarp));
        }
        if core.live().is_some_and(|live| live.connected) && !core.announces() {
            return Err(not_offered());
        }
        if core.wanted.announce.len() >= MAX_ANNOUNCEMENTS {
            let text = "too many announcements wait for the back-end";
            return Err(Error::new(Kind::Os(Errno::EAGAIN), text).of(Request::SendRarp));
        }
        core.announcements = core.announcements.saturating_add(1);
        let number = core.announcements;
        core.wanted.announce.push_back(Announcement { number, mac });
        self.moved(core);
        Ok(())
    }
}

fn not_offered() -> Error {
    let text = "the back-end does not offer RARP";
    Error::new(Kind::NotNegotiated, text).of(Request::SendRarp)
}

impl Core {
    /// The back-end takes announcements.
    fn announces(&self) -> bool {
        let live = self.live();
        live.is_some_and(|live| live.actual.agreed(ProtocolFeatures::RARP))
    }

    /// The handshake went through: what this back-end cannot announce is given up.
    pub(super) fn check_announcements(&mut self) {
        if !self.announces() && !std::mem::take(&mut self.wanted.announce).is_empty() {
            self.report_refusal(not_offered());
        }
    }

    /// What the back-end has confirmed is done.
    pub(super) fn forget_confirmed(&mut self) {
        let Some(live) = self.live() else {
            return;
        };
        let (announced, gpu) = (live.actual.confirmed.announced, live.actual.confirmed.gpu);
        self.wanted.announce.retain(|it| it.number > announced);
        // The back-end has a duplicate.
        if gpu.is_some() && gpu == self.wanted.gpu {
            self.gpu = None;
        }
    }

    /// The back-end has refused to announce this address.
    pub(super) fn announcement_refused(&mut self, refused: Announcement, error: Error) {
        self.wanted.announce.retain(|it| *it != refused);
        let octets = refused.mac.map(|octet| format!("{octet:02x}")).join(":");
        let text = format!("the announcement of {octets}: {}", error.message);
        self.report_refusal(error.saying(text));
    }
}
