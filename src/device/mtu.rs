//! The largest frame of a network device (NET_SET_MTU).

use super::Device;
use super::core::Core;
use crate::backend_client::check_mtu;
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request};

impl Device {
    /// Sets the largest frame of a network device, for this back-end and all that
    /// follow. A back-end is informed of it that offers MTU, once the driver has
    /// acknowledged VIRTIO_NET_F_MTU and again after each reset, before any ring starts.
    ///
    /// Fails with [`Kind::NotNegotiated`] if the options do not allow MTU.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        check_mtu(mtu)?;
        let mut core = self.lock();
        if core.wanted.protocol & ProtocolFeatures::MTU.bits() == 0 {
            let text = "protocol_features of the options does not have MTU";
            return Err(Error::new(Kind::NotNegotiated, text).of(Request::NetSetMtu));
        }
        core.wanted.mtu = Some(mtu);
        core.mtu_refused = None;
        self.moved(core);
        Ok(())
    }
}

impl Core {
    /// The back-end has refused this MTU: it is not sent again before the caller sets one.
    pub(super) fn mtu_refused(&mut self, mtu: u32, error: Error) {
        // Another one is on its way.
        if self.wanted.mtu != Some(mtu) {
            return;
        }
        self.wanted.mtu = None;
        let text = format!("an MTU of {mtu} bytes: {}", error.message);
        let error = error.saying(text);
        self.mtu_refused = Some(error.clone());
        self.report_refusal(error);
    }
}
