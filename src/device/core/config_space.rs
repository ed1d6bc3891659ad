//! When the configuration space is read, and what follows from the reply.

use super::{Core, Mode, What};
use crate::device::config::Write;
use crate::device::event::EventKind;
use crate::device::plan::Asked;
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request};

impl Core {
    /// The guest's writes that the back-end has not answered: those that were sent, and
    /// those that were not.
    fn pending_writes(&self) -> impl Iterator<Item = &Write> {
        let under_way = self.live().into_iter().flat_map(|live| &live.under_way);
        let sent = under_way.filter_map(|it| match &it.what {
            What::ConfigWrite(write, _) => Some(write),
            What::Step(..) | What::Question(_) => None,
        });
        sent.chain(&self.writes)
    }

    /// Whether writes to the configuration space are still to be sent or answered.
    pub(in crate::device) fn config_writes_pending(&self) -> bool {
        self.pending_writes().next().is_some()
    }

    /// The back-end has returned its configuration space.
    pub(super) fn config_returned(&mut self, bytes: &[u8]) {
        // A new connection may be one to another device.
        let loud = self.live().is_none_or(|live| !live.connected);
        if self.config.update(bytes, self.pending_writes(), loud) {
            self.tell(EventKind::ConfigChanged);
        }
    }

    /// The back-end has refused to return its configuration space. That is an event, and
    /// the end of the connection only where the device cannot do without the space.
    pub(super) fn config_not_returned(&mut self, error: Error) -> Result<()> {
        let first = !self.config.is_known() || self.live().is_none_or(|live| !live.connected);
        let required = self.options.required_protocol_features & ProtocolFeatures::CONFIG.bits();
        let mut text = format!(
            "the back-end refuses to return its configuration space of {} bytes (config_size)",
            self.wanted.config_size
        );
        if first && required != 0 {
            text.push_str(", and the protocol feature CONFIG is required");
        }
        let error = error.of(Request::GetConfig).saying(text);
        if self.config.give_up(error.clone(), self.pending_writes()) {
            self.tell(EventKind::ConfigChanged);
        }
        self.config_refused(error.clone());
        match first && required != 0 {
            true => Err(error),
            false => Ok(()),
        }
    }

    /// The space is read again after writes: its content may depend on them. Returns
    /// whether there is more to do.
    pub(super) fn reads_config_after_writes(&mut self) -> bool {
        let Mode::Up(live) = &mut self.mode else {
            return false;
        };
        if !live.connected || !self.config.is_behind() {
            return false;
        }
        if !live.actual.agreed(ProtocolFeatures::CONFIG) {
            // The writes are refused, and nothing can be read.
            let text = "the back-end has no configuration space";
            let error = Error::new(Kind::NotNegotiated, text).of(Request::SetConfig);
            if self.config.give_up(error, self.pending_writes()) {
                self.tell(EventKind::ConfigChanged);
            }
            return false;
        }
        // A change that the back-end has announced is reported by the read that follows.
        self.config.read_quietly();
        live.actual.config = Asked::Not;
        true
    }
}
