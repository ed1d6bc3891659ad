//! The byte order of the rings of a legacy driver (SET_VRING_ENDIAN).

use super::core::Core;
use super::{Device, busy};
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request, virtio};

impl Device {
    /// Sets the byte order of all rings of a driver that does not acknowledge VERSION_1:
    /// big-endian, or little-endian. Rings must be stopped. Each back-end is informed of it
    /// for each ring, before the ring starts.
    ///
    /// Fails with [`Kind::NotNegotiated`] if such a driver is there, its order is not that
    /// of this machine, and CROSS_ENDIAN is not agreed.
    pub fn set_vring_endian(&self, big: bool) -> Result<()> {
        let mut core = self.lock();
        if core.wanted.rings.iter().any(|ring| ring.run.is_some()) {
            return Err(busy("the byte order cannot change while rings run"));
        }
        core.check_endian(core.wanted.features, Some(big))?;
        core.wanted.big_endian = Some(big);
        self.moved(core);
        Ok(())
    }
}

impl Core {
    /// Refuses a byte order that the back-end would not know of.
    pub(super) fn check_endian(&self, features: Option<u64>, big: Option<bool>) -> Result<()> {
        let version_1 = 1_u64.wrapping_shl(virtio::F_VERSION_1);
        let legacy = features.is_some_and(|features| features & version_1 == 0);
        // A back-end reads little-endian rings if it is not informed of another order: so is
        // each machine that this library is built for.
        if !legacy || big != Some(true) {
            return Ok(());
        }
        let needed = ProtocolFeatures::CROSS_ENDIAN;
        let live = self
            .live()
            .filter(|live| live.actual.connected(&self.wanted));
        let reason = if self.wanted.protocol & needed.bits() == 0 {
            "protocol_features of the options does not have it"
        } else if live.is_some_and(|live| !live.actual.agreed(needed)) {
            "the back-end does not offer it"
        } else {
            return Ok(());
        };
        let text = format!(
            "a driver without VIRTIO_F_VERSION_1 whose byte order is not that of this machine \
             needs the protocol feature CROSS_ENDIAN: {reason}"
        );
        Err(Error::new(Kind::NotNegotiated, text).of(Request::SetVringEndian))
    }
}
