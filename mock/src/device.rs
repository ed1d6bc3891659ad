//! The device that the mock pretends to be: a short description that the mode
//! fills in and the script may change.

use crate::mode::Mode;
use std::collections::BTreeMap;

/// Where SET_DEVICE_STATE_FD sends the state through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateChannel {
    /// The descriptor that the front-end sent.
    Given,
    /// One of the back-end's own, which it sends back.
    Own,
}

/// What libvhost-user does when it finds itself broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenBroken {
    /// The process ends.
    Close,
    /// The connection stays open and nothing is answered any more.
    Silent,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) features: u64,
    pub(crate) protocol: u64,
    pub(crate) queues: u32,
    pub(crate) slots: u64,
    pub(crate) config: Vec<u8>,
    pub(crate) state: Vec<u8>,
    pub(crate) state_channel: StateChannel,
    pub(crate) shmem: BTreeMap<u8, u64>,
    /// UUIDs of the shared objects that it exports.
    pub(crate) objects: Vec<u128>,
    /// What GET_VRING_BASE tells, where it is not what SET_VRING_BASE said.
    pub(crate) bases: BTreeMap<u32, u32>,
    pub(crate) when_broken: WhenBroken,
}

impl Device {
    /// The device that a back-end of this kind is likely to have.
    pub(crate) fn of(mode: Mode) -> Self {
        let habits = mode.habits();
        Self {
            features: habits.features,
            protocol: habits.protocol,
            queues: habits.queues,
            slots: habits.slots,
            // 64 bytes that can be told apart.
            config: (0..64).collect(),
            state: b"state of the mock device".to_vec(),
            state_channel: StateChannel::Given,
            shmem: BTreeMap::from([(0, 0x10_0000)]),
            objects: Vec::new(),
            bases: BTreeMap::new(),
            when_broken: WhenBroken::Close,
        }
    }
}
