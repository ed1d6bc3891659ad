//! The steps of the plan: one request each, but for two that need no message.

use super::InflightKey;
use super::wanted::{Announcement, Drain};
use crate::device::memory::MemoryStep;
use crate::message::ProtocolFeatures;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::device) enum Step {
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures(ProtocolFeatures),
    SetOwner,
    GetQueueNum,
    GetMaxMemSlots,
    GetShmemConfig,
    OpenChannel,
    GetConfig,
    SetFeatures(u64),
    SetStatus(u32),
    SetMtu(u32),
    SendRarp(Announcement),
    /// The socket with this number.
    GpuSocket(u64),
    /// And which of the resets of the device this is.
    Reset(ResetBy, u64),
    Memory(MemoryStep),
    GetInflight(InflightKey),
    /// The buffer of this generation.
    SetInflight(u64),
    Ring {
        index: usize,
        start: u64,
        part: RingStep,
    },
    /// GET_FEATURES as a barrier: its reply confirms all requests before it.
    Barrier,
}

/// How a device is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) enum ResetBy {
    ResetDevice,
    SetStatus,
    /// Its rings have been stopped; there is no message.
    Stopping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) enum RingStep {
    /// The descriptor with this number.
    Call(u64),
    Num,
    Base,
    /// Big-endian, or little-endian.
    Endian(bool),
    Addr,
    Err,
    Kick,
    Enable,
    /// Before it is stopped.
    Disable,
    Stop(Drain),
    /// The ring was never kicked: no message.
    Forget,
}

impl Step {
    /// The next request depends on the answer to this one.
    pub(in crate::device) fn alone(&self) -> bool {
        matches!(
            self,
            Self::SetProtocolFeatures(_)
                | Self::SetOwner
                | Self::OpenChannel
                | Self::SetFeatures(_)
                | Self::Reset(..)
                | Self::GetInflight(_)
                // A ring that ran without the buffer could not go on from it.
                | Self::SetInflight(_)
        )
    }

    /// There is nothing to send.
    pub(in crate::device) fn is_silent(&self) -> bool {
        matches!(
            self,
            Self::Reset(ResetBy::Stopping, _)
                | Self::Ring {
                    part: RingStep::Forget,
                    ..
                }
        )
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::device) enum Next {
    Do(Step),
    /// Nothing before an answer that is outstanding.
    Wait,
    /// Nothing: all that is wanted has been sent.
    Nothing,
    /// End the connection: no request takes the last region away from a back-end
    /// without CONFIGURE_MEM_SLOTS.
    Close,
}
