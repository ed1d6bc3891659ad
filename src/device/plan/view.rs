//! What requests make of a back-end. The plan has two views of each: what was sent, and
//! what is confirmed.

use super::step::{RingStep, Step};
use crate::device::memory::Slots;
use crate::message::ProtocolFeatures;

/// What requests make of a back-end, if it obeys: those that were sent, or those that
/// are confirmed.
#[derive(Debug, Clone, Default)]
pub(in crate::device) struct View {
    pub(in crate::device) protocol: Option<ProtocolFeatures>,
    pub(super) owner: bool,
    pub(super) channel: bool,
    pub(in crate::device) features: Option<u64>,
    pub(super) mtu: Option<u32>,
    /// The last address that was announced.
    pub(in crate::device) announced: u64,
    pub(in crate::device) gpu: Option<u64>,
    pub(in crate::device) memory: Option<Slots>,
    /// The in-flight buffer that was handed over on this connection.
    pub(in crate::device) inflight: Option<u64>,
    pub(in crate::device) rings: Vec<RingView>,
    pub(super) status: u32,
    pub(in crate::device) resets: u64,
}

/// What requests make of a ring, since it was last stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::device) struct RingView {
    /// For which start. `None`: nothing.
    pub(in crate::device) start: Option<u64>,
    pub(in crate::device) call: Option<u64>,
    pub(super) num: bool,
    pub(super) base: bool,
    pub(super) endian: bool,
    pub(super) addr: bool,
    pub(super) err: bool,
    /// From here on the back-end may use the ring.
    pub(in crate::device) kick: bool,
    pub(super) enabled: bool,
}

impl View {
    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::SetProtocolFeatures(agreed) => {
                self.protocol = Some(*agreed);
                let configure = agreed.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
                self.memory = Some(Slots::new(configure));
            }
            Step::SetOwner => self.owner = true,
            Step::OpenChannel => self.channel = true,
            Step::SetFeatures(features) => {
                self.features = Some(*features);
                // The layout of the buffer depends on them.
                self.inflight = None;
            }
            Step::SetStatus(status) => self.status = *status,
            Step::SetMtu(mtu) => self.mtu = Some(*mtu),
            Step::SendRarp(announcement) => self.announced = announcement.number,
            Step::GpuSocket(number) => self.gpu = Some(*number),
            // Memory and the channel stay.
            Step::Reset(_, resets) => {
                self.resets = *resets;
                self.features = None;
                self.mtu = None;
                self.status = 0;
                self.inflight = None;
                self.rings.fill(RingView::default());
            }
            Step::Memory(step) => {
                if let Some(memory) = &mut self.memory {
                    memory.apply(step);
                }
            }
            Step::SetInflight(generation) => self.inflight = Some(*generation),
            Step::Ring { index, start, part } => {
                if let Some(ring) = self.rings.get_mut(*index) {
                    ring.apply(*start, *part);
                }
            }
            // Questions.
            Step::GetFeatures
            | Step::GetProtocolFeatures
            | Step::GetQueueNum
            | Step::GetMaxMemSlots
            | Step::GetShmemConfig
            | Step::GetConfig
            | Step::GetInflight(_)
            | Step::Barrier => {}
        }
    }
}

impl RingView {
    /// Its first request was sent, and no other.
    pub(in crate::device) fn is_only_named(&self) -> bool {
        self.call.is_some() && !self.num && !self.kick
    }

    fn apply(&mut self, start: u64, part: RingStep) {
        match part {
            RingStep::Call(call) => self.call = Some(call),
            RingStep::Num => self.num = true,
            RingStep::Base => self.base = true,
            RingStep::Endian(_) => self.endian = true,
            RingStep::Addr => self.addr = true,
            RingStep::Err => self.err = true,
            RingStep::Kick => self.kick = true,
            RingStep::Enable => self.enabled = true,
            RingStep::Disable => self.enabled = false,
            RingStep::Stop(_) | RingStep::Forget => {
                *self = Self::default();
                return;
            }
        }
        self.start = Some(start);
    }
}
