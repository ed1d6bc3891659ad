//! Features and ownership.

use super::{BackendClient, Call, NOTHING, Op, Timeout};
use crate::error::Result;
use crate::message::Request;

impl BackendClient {
    /// GET_FEATURES: the virtio features that the back-end offers, with bit 30
    /// where it speaks protocol features.
    pub fn get_features(&self) -> Result<u64> {
        self.ask_number(&Op::GetFeatures, Timeout::Default)
    }

    /// SET_FEATURES: acknowledges virtio features. They must have been offered,
    /// so GET_FEATURES comes first on each connection.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.tell_op(&Op::SetFeatures(features))
    }

    /// SET_OWNER: claims the session, once per connection.
    pub fn set_owner(&self) -> Result<()> {
        self.tell_op(&Op::SetOwner)
    }

    /// RESET_OWNER: deprecated; back-ends differ in how much they forget. The
    /// virtio features have to be acknowledged again after it.
    pub fn reset_owner(&self) -> Result<()> {
        self.negotiated.propose(0);
        self.tell(&Call::new(Request::ResetOwner, NOTHING))?;
        self.negotiated.reset();
        Ok(())
    }

    /// GET_PROTOCOL_FEATURES: needs bit 30 offered.
    pub fn get_protocol_features(&self) -> Result<u64> {
        self.ask_number(&Op::GetProtocolFeatures, Timeout::Default)
    }

    /// SET_PROTOCOL_FEATURES: acknowledges protocol features that were offered
    /// and that this library serves ([`ProtocolFeatures::all`]).
    ///
    /// [`ProtocolFeatures::all`]: crate::message::ProtocolFeatures::all
    pub fn set_protocol_features(&self, features: u64) -> Result<()> {
        self.tell_op(&Op::SetProtocolFeatures(features))
    }

    /// GET_QUEUE_NUM: how many queues the back-end supports. Some back-ends
    /// count pairs.
    pub fn get_queue_num(&self) -> Result<u64> {
        self.ask_number(&Op::GetQueueNum, Timeout::Default)
    }
}
