//! QEMU's `libvhost-user.c`: what it dislikes makes it "panic", which marks the
//! device broken, and yet it acknowledges with 0. What it does not check it
//! believes, and may die of.

use super::How::{AckThenBreak, Close};
use super::{Verdict, exact_fds, refuse, require};
use crate::catalog::{FD_INDEX, INDEX, INFLIGHT_QUEUES, NO_FD, REGIONS, feature, has, id, virtio};
use crate::message::{Message, Region};
use crate::model::Model;

pub(super) fn check(model: &Model, message: &Message) -> Verdict {
    let code = message.header.code;
    let broken = |holds, why: &str| require(holds, AckThenBreak, || why.to_owned());
    let (device, state, value) = (&model.device, &model.state, message.value());
    let size = message.payload.len();
    let one_fd = || exact_fds(message, 1, AckThenBreak);
    match code {
        0 => refuse(Close, "request 0 ends the process"),
        id::SET_FEATURES => broken(
            has(value, virtio::VERSION_1),
            "virtio legacy devices aren't supported",
        ),
        id::SET_PROTOCOL_FEATURES => {
            let needs = has(value, feature::BACKEND_REQ) && has(value, feature::REPLY_ACK);
            let inband = has(value, feature::INBAND_NOTIFICATIONS);
            broken(
                !inband || needs,
                "in-band notifications need BACKEND_REQ and REPLY_ACK",
            )
        }
        id::SET_MEM_TABLE => {
            let count = usize::try_from(message.get(REGIONS)).unwrap_or(usize::MAX);
            require(count <= 8, Close, || {
                "writes past its 8 descriptors".to_owned()
            })?;
            broken(
                message.fds.len() >= count,
                "region mmap error: a descriptor is missing",
            )?;
            broken(mappable(message), "region mmap error: nothing to map")
        }
        id::ADD_MEM_REG => {
            one_fd()?;
            broken(size >= 40, "a memory region takes 40 bytes")?;
            let room = u64::try_from(state.regions.len()).is_ok_and(|n| n < device.slots);
            broken(room, "no free ram slots")?;
            broken(mappable(message), "region mmap error: nothing to map")
        }
        id::REM_MEM_REG => {
            broken(message.fds.len() <= 1, "more than one descriptor")?;
            broken(size >= 40, "a memory region takes 40 bytes")?;
            let gone = Region::list(&message.payload);
            let known = |region: &Region| gone.iter().any(|gone| gone.same(*region));
            broken(
                state.regions.iter().any(known),
                "specified region not found",
            )
        }
        id::SET_LOG_BASE => {
            one_fd()?;
            broken(size == 16, "invalid log_base message")
        }
        id::SET_LOG_FD | id::SET_BACKEND_REQ_FD => one_fd(),
        id::SET_VRING_NUM | id::SET_VRING_BASE | id::GET_VRING_BASE => {
            let index = message.get32(INDEX);
            require(index < device.queues, Close, || {
                "writes past its rings".to_owned()
            })
        }
        id::SET_VRING_ADDR => {
            let index = message.get32(INDEX);
            require(index < device.queues, Close, || {
                "writes past its rings".to_owned()
            })?;
            let mapped = ["desc", "used", "avail"]
                .iter()
                .all(|name| state.maps(message.named(name)));
            broken(mapped, "the ring is not in any memory region")
        }
        id::SET_VRING_KICK | id::SET_VRING_CALL | id::SET_VRING_ERR => {
            let index = message.get32(FD_INDEX);
            broken(index < device.queues, "invalid queue index")?;
            let right = message.get(NO_FD) == 1 || message.fds.len() == 1;
            broken(right, "invalid number of descriptors")?;
            let tracked = !state.protocol(feature::INFLIGHT_SHMFD) || index < state.inflight_rings;
            broken(
                code != id::SET_VRING_KICK || tracked,
                "no inflight buffer for this ring",
            )
        }
        id::SET_VRING_ENABLE | id::VRING_KICK => {
            broken(message.get32(INDEX) < device.queues, "invalid queue index")
        }
        id::POSTCOPY_LISTEN => broken(state.regions.is_empty(), "regions already registered"),
        id::GET_INFLIGHT_FD => broken(size == 24, "invalid get_inflight_fd message"),
        id::SET_INFLIGHT_FD => {
            one_fd()?;
            broken(size == 24, "invalid set_inflight_fd message")?;
            let rings = message.get32(INFLIGHT_QUEUES);
            require(rings <= device.queues, Close, || {
                "writes past its rings".to_owned()
            })
        }
        id::GET_FEATURES
        | id::SET_OWNER
        | id::RESET_OWNER
        | id::GET_PROTOCOL_FEATURES
        | id::GET_QUEUE_NUM
        | id::GET_CONFIG
        | id::SET_CONFIG
        | id::POSTCOPY_ADVISE
        | id::POSTCOPY_END
        | id::GET_MAX_MEM_SLOTS
        | id::GET_SHARED_OBJECT => Ok(()),
        _ => refuse(AckThenBreak, "unhandled request"),
    }
}

/// It maps each region from the beginning of its file.
fn mappable(message: &Message) -> bool {
    let regions = Region::list(&message.payload);
    regions
        .iter()
        .all(|region| region.size != 0 || region.offset != 0)
}
