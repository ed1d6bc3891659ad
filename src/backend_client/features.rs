//! Features and ownership.

use super::{BackendClient, Call, NOTHING};
use crate::error::Result;
use crate::message::Request;
use zerocopy::IntoBytes;

impl BackendClient {
    /// GET_FEATURES: the virtio features that the back-end offers, with bit 30
    /// where it speaks protocol features.
    pub fn get_features(&self) -> Result<u64> {
        let features = self.ask_u64(Request::GetFeatures)?;
        self.negotiated.set_offered(features);
        Ok(features)
    }

    /// SET_FEATURES: acknowledges virtio features. They must have been offered,
    /// so GET_FEATURES comes first on each connection.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.negotiated
            .check_features(features)
            .map_err(|error| self.or_ended(error).of(Request::SetFeatures))?;
        self.tell(&Call::new(Request::SetFeatures, features.as_bytes()))?;
        self.negotiated.set_acked(features);
        Ok(())
    }

    /// SET_OWNER: claims the session, once per connection.
    pub fn set_owner(&self) -> Result<()> {
        self.negotiated
            .check_owner()
            .map_err(|error| self.or_ended(error).of(Request::SetOwner))?;
        self.tell(&Call::new(Request::SetOwner, NOTHING))?;
        self.negotiated.set_owner(true);
        Ok(())
    }

    /// RESET_OWNER: deprecated; back-ends differ in how much they forget. The
    /// virtio features have to be acknowledged again after it.
    pub fn reset_owner(&self) -> Result<()> {
        self.tell(&Call::new(Request::ResetOwner, NOTHING))?;
        self.negotiated.reset();
        Ok(())
    }

    /// GET_PROTOCOL_FEATURES: needs bit 30 offered.
    pub fn get_protocol_features(&self) -> Result<u64> {
        let features = self.ask_u64(Request::GetProtocolFeatures)?;
        self.negotiated.set_offered_protocol(features);
        Ok(features)
    }

    /// SET_PROTOCOL_FEATURES: acknowledges protocol features that were offered
    /// and that this library serves ([`ProtocolFeatures::all`]).
    pub fn set_protocol_features(&self, features: u64) -> Result<()> {
        let request = Request::SetProtocolFeatures;
        let features = self
            .negotiated
            .check(request.info())
            .and_then(|()| self.negotiated.check_protocol(features))
            .map_err(|error| self.or_ended(error).of(request))?;
        self.tell(&Call::new(request, features.bits().as_bytes()))?;
        self.negotiated.set_protocol(features);
        Ok(())
    }

    /// GET_QUEUE_NUM: how many queues the back-end supports. Some back-ends
    /// count pairs.
    pub fn get_queue_num(&self) -> Result<u64> {
        self.ask_u64(Request::GetQueueNum)
    }
}
