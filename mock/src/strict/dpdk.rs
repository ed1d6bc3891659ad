//! DPDK's `lib/vhost/vhost_user.c`: fields are taken as they come, but numbers
//! of descriptors and features are checked. A failure is answered if the message
//! asks for an answer, whatever was agreed; otherwise it ends the connection.

use super::How::{Close, NackOrClose};
use super::{Verdict, exact_fds, refuse, require};
use crate::catalog::{INFLIGHT_QUEUES, NO_FD, NUM, REGIONS, id, mask, virtio};
use crate::message::Message;
use crate::model::Model;

/// VHOST_MAX_VRING
const MAX_RINGS: u32 = 256;

pub(super) fn check(model: &Model, message: &Message) -> Verdict {
    rings(message)?;
    let Some(_) = message.kind().filter(|_| handled(message.header.code)) else {
        return refuse(NackOrClose, "no handler for this request");
    };
    descriptors(message)?;
    content(model, message)
}

/// Requests without a handler: the two that need a device of another kind are
/// taken by external handlers only.
fn handled(code: u32) -> bool {
    !matches!(
        code,
        id::SET_VRING_ENDIAN
            | id::GPU_SET_SOCKET
            | id::RESET_DEVICE
            | id::VRING_KICK
            | id::GET_SHARED_OBJECT
            | id::SET_DEVICE_STATE_FD
            | id::CHECK_DEVICE_STATE
            | id::GET_SHMEM_CONFIG
            | id::GET_VRING_BASE_SKIP_DRAIN
    )
}

/// A queue is allocated before the message is looked at; where that fails, so
/// does the connection.
fn rings(message: &Message) -> Verdict {
    let index = match message.header.code {
        id::SET_INFLIGHT_FD => Some(message.get32(INFLIGHT_QUEUES).wrapping_sub(1)),
        id::SET_VRING_ENDIAN | id::VRING_KICK | id::GET_VRING_BASE_SKIP_DRAIN => None,
        _ => message.ring(),
    };
    require(index.is_none_or(|index| index < MAX_RINGS), Close, || {
        "invalid vring index".to_owned()
    })
}

fn descriptors(message: &Message) -> Verdict {
    let fds = match message.header.code {
        id::SET_MEM_TABLE => usize::try_from(message.get32(REGIONS)).unwrap_or(usize::MAX),
        id::SET_VRING_KICK | id::SET_VRING_CALL | id::SET_VRING_ERR => {
            usize::from(message.get(NO_FD) == 0)
        }
        id::SET_LOG_BASE
        | id::SET_LOG_FD
        | id::SET_BACKEND_REQ_FD
        | id::SET_INFLIGHT_FD
        | id::ADD_MEM_REG => 1,
        _ => 0,
    };
    exact_fds(message, fds, NackOrClose)
}

fn content(model: &Model, message: &Message) -> Verdict {
    let no = |holds, why: &str| require(holds, NackOrClose, || why.to_owned());
    let (state, value, size) = (&model.state, message.value(), message.payload.len());
    match message.header.code {
        id::SET_FEATURES => {
            no(
                value & !model.device.features == 0,
                "features that were not offered",
            )?;
            let changed = state.features.unwrap_or(value) ^ value;
            let allowed = mask(&[virtio::LOG_ALL]);
            no(
                !state.running() || changed & !allowed == 0,
                "features changed while the device runs",
            )
        }
        id::SET_PROTOCOL_FEATURES => no(
            value & !model.device.protocol == 0,
            "protocol features that were not offered",
        ),
        id::SET_MEM_TABLE => no(message.get(REGIONS) <= 8, "too many memory regions"),
        id::ADD_MEM_REG => {
            let room = u64::try_from(state.regions.len()).is_ok_and(|n| n < model.device.slots);
            no(room, "too many memory regions")
        }
        id::SET_LOG_BASE => {
            no(size == 16, "the log is not described in 16 bytes")?;
            let (log, offset) = (message.named("mmap-size"), message.named("mmap-offset"));
            no(
                offset < 0_u64.wrapping_sub(log),
                "log offset and size overflow",
            )
        }
        id::SET_VRING_NUM => {
            let num = message.get32(NUM);
            no(num <= 32768, "invalid virtqueue size")?;
            let packed = state.virtio(virtio::RING_PACKED);
            no(
                packed || num == 0 || num.is_power_of_two(),
                "invalid virtqueue size",
            )
        }
        id::SET_VRING_ADDR => no(!state.regions.is_empty(), "no memory table yet"),
        id::NET_SET_MTU => no((68..=65535).contains(&value), "invalid MTU size"),
        id::IOTLB_MSG => no(
            (2..=3).contains(&message.named("type")),
            "invalid IOTLB message type",
        ),
        id::GET_CONFIG | id::SET_CONFIG => no(
            message.named("config-size") <= 256,
            "more than 256 bytes of configuration",
        ),
        id::GET_INFLIGHT_FD | id::SET_INFLIGHT_FD => no(size == 24, "not 24 bytes"),
        id::SET_STATUS => no(value <= 0xff, "the status has 8 bits"),
        id::POSTCOPY_LISTEN => no(state.regions.is_empty(), "regions already registered"),
        _ => Ok(()),
    }
}
