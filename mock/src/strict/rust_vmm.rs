//! The `vhost` and `vhost-user-backend` crates: every message is checked against
//! its type, and after anything wrong the connection ends, with a nack before if
//! the handler was reached and the front-end may ask for one.

use super::How::{Close, NackThenClose};
use super::{Verdict, exact_fds, refuse, require};
use crate::catalog::{Gate, NO_FD, NUM, REGIONS, feature, id};
use crate::message::{Message, Region, flags};
use crate::model::{Model, Postcopy};

/// Before `vhost` 0.14, or since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Old,
    New,
}

pub(super) fn check(model: &Model, message: &Message, age: Age) -> Verdict {
    header(message)?;
    attached(message, age)?;
    let code = message.header.code;
    require(handled(code, age), Close, || {
        "no handler for this request".to_owned()
    })?;
    gate(model, message)?;
    if !postcopy_done(model, message) {
        body(message)?;
        handler(model, message)?;
    }
    Ok(())
}

fn header(message: &Message) -> Verdict {
    let bits = message.header.flags;
    let known = flags::VERSION_MASK | flags::REPLY | flags::NEED_REPLY;
    require(bits & flags::VERSION_MASK == flags::VERSION, Close, || {
        "wrong version".to_owned()
    })?;
    require(bits & !known == 0, Close, || {
        "reserved flags are set".to_owned()
    })?;
    require(bits & flags::REPLY == 0, Close, || {
        "a reply, not a request".to_owned()
    })
}

/// Descriptors with messages that take none.
fn attached(message: &Message, age: Age) -> Verdict {
    let takes = match message.header.code {
        id::SET_MEM_TABLE
        | id::SET_VRING_CALL
        | id::SET_VRING_KICK
        | id::SET_VRING_ERR
        | id::SET_LOG_BASE
        | id::SET_LOG_FD
        | id::SET_BACKEND_REQ_FD
        | id::SET_INFLIGHT_FD
        | id::ADD_MEM_REG
        | id::SET_DEVICE_STATE_FD
        | id::GPU_SET_SOCKET => true,
        id::REM_MEM_REG => age == Age::New,
        _ => false,
    };
    require(takes || message.fds.is_empty(), Close, || {
        "takes no descriptors".to_owned()
    })
}

fn handled(code: u32, age: Age) -> bool {
    match code {
        id::GET_SHARED_OBJECT | id::GET_SHMEM_CONFIG => age == Age::New,
        id::SET_LOG_FD
        | id::SEND_RARP
        | id::NET_SET_MTU
        | id::IOTLB_MSG
        | id::SET_VRING_ENDIAN
        | id::CREATE_CRYPTO_SESSION
        | id::CLOSE_CRYPTO_SESSION
        | id::VRING_KICK
        | id::SET_STATUS
        | id::GET_STATUS
        | id::GET_VRING_BASE_SKIP_DRAIN => false,
        _ => crate::catalog::request(code).is_some(),
    }
}

fn gate(model: &Model, message: &Message) -> Verdict {
    let open = match (message.header.code, message.kind().map(|kind| kind.gate)) {
        // The only one whose gate it forgets.
        (id::SET_DEVICE_STATE_FD | id::CHECK_DEVICE_STATE, _) => true,
        (id::SET_LOG_BASE, _) => model.state.protocol(feature::LOG_SHMFD),
        (_, Some(Gate::Protocol(bit))) => model.state.protocol(bit),
        (_, Some(Gate::Virtio(bit))) => model.state.virtio(bit),
        _ => true,
    };
    require(open, Close, || "a feature that was not agreed".to_owned())
}

/// The short message with which the front-end ends the memory part of postcopy.
fn postcopy_done(model: &Model, message: &Message) -> bool {
    let memory = matches!(
        message.header.code,
        id::SET_MEM_TABLE | id::ADD_MEM_REG | id::REM_MEM_REG
    );
    memory
        && model.state.postcopy == Postcopy::Listening
        && message.payload.len() == 8
        && message.value() == 0
}

/// The type of the payload and its own rules.
fn body(message: &Message) -> Verdict {
    let code = message.header.code;
    let size = message.payload.len();
    let close = |holds, why: &str| require(holds, Close, || why.to_owned());
    let one_fd = || exact_fds(message, 1, Close);
    let right = |bytes: usize| {
        require(size == bytes, Close, || {
            format!("{size} bytes, not {bytes}")
        })
    };
    match code {
        id::SET_MEM_TABLE => return table(message),
        id::SET_LOG_BASE => {
            one_fd()?;
            right(16)?;
            let (log, offset) = (message.named("mmap-size"), message.named("mmap-offset"));
            return close(
                log != 0 && offset.checked_add(log).is_some(),
                "an invalid log",
            );
        }
        id::GET_CONFIG => {
            let told = usize::try_from(message.named("config-size")).ok();
            let whole = told.and_then(|told| told.checked_add(12)) == Some(size);
            return close(whole && config(message), "an invalid configuration request");
        }
        id::SET_CONFIG => {
            let told = usize::try_from(message.named("config-size")).ok();
            let whole = told.and_then(|told| told.checked_add(12)) == Some(size);
            let why = || "an invalid configuration request".to_owned();
            return require(whole && config(message), NackThenClose, why);
        }
        // The payload of these is not looked at.
        id::SET_BACKEND_REQ_FD | id::GPU_SET_SOCKET => {
            return exact_fds(message, 1, NackThenClose);
        }
        id::CHECK_DEVICE_STATE | id::GET_SHMEM_CONFIG => return Ok(()),
        id::SET_INFLIGHT_FD | id::ADD_MEM_REG | id::SET_DEVICE_STATE_FD => one_fd()?,
        _ => {}
    }
    if let Some(kind) = message.kind() {
        right(kind.size.least())?;
    }
    match code {
        id::SET_VRING_ADDR => {
            let aligned = [("desc", 16), ("avail", 2), ("used", 4)]
                .iter()
                .all(|(name, to)| message.named(name).checked_rem(*to) == Some(0));
            close(aligned, "the ring is not aligned")?;
            close(message.named("flags") <= 1, "unknown flags")
        }
        id::SET_VRING_ENABLE => close(message.get32(NUM) <= 1, "neither 0 nor 1"),
        id::SET_VRING_KICK | id::SET_VRING_CALL | id::SET_VRING_ERR => {
            let fds = usize::from(message.get(NO_FD) == 0);
            exact_fds(message, fds, Close)
        }
        id::GET_INFLIGHT_FD | id::SET_INFLIGHT_FD => {
            let sound = message.named("queues") != 0 && message.named("queue-size") != 0;
            close(sound, "no queues")
        }
        id::SET_DEVICE_STATE_FD => {
            let sound = message.named("direction") <= 1 && message.named("phase") == 0;
            close(sound, "an invalid direction or phase")
        }
        _ => Ok(()),
    }
}

/// SET_MEM_TABLE: a bad one is a failure of the handler, and so it is nacked.
fn table(message: &Message) -> Verdict {
    let no = |holds, why: &str| require(holds, NackThenClose, || why.to_owned());
    let count = usize::try_from(message.get(REGIONS)).unwrap_or(usize::MAX);
    let padding = message
        .payload
        .get(4..8)
        .is_some_and(|bytes| bytes == [0; 4]);
    no(
        padding && (1..=32).contains(&count),
        "no regions, or too many",
    )?;
    let size = count
        .checked_mul(Region::SIZE)
        .and_then(|size| size.checked_add(8));
    no(
        size == Some(message.payload.len()),
        "the size does not fit the number of regions",
    )?;
    exact_fds(message, count, NackThenClose)?;
    no(
        Region::list(&message.payload).iter().all(sound),
        "an invalid region",
    )
}

fn sound(region: &Region) -> bool {
    let end = |start: u64| start.checked_add(region.size).is_some();
    region.size != 0 && end(region.guest) && end(region.user) && end(region.offset)
}

fn config(message: &Message) -> bool {
    let (offset, size) = (message.named("offset"), message.named("config-size"));
    size != 0 && offset.saturating_add(size) <= 0x1000 && message.named("flags") <= 3
}

/// What the device behind says, `vhost-user-backend`.
fn handler(model: &Model, message: &Message) -> Verdict {
    let no = |holds, why: &str| require(holds, NackThenClose, || why.to_owned());
    let (device, state) = (&model.device, &model.state);
    let code = message.header.code;
    if let Some(index) = message.ring() {
        let how = if code == id::GET_VRING_BASE {
            Close
        } else {
            NackThenClose
        };
        require(index < device.queues, how, || "no such ring".to_owned())?;
    }
    match code {
        id::SET_OWNER => no(!state.owned, "already claimed"),
        id::SET_FEATURES => no(
            message.value() & !device.features == 0,
            "features that were not offered",
        ),
        id::SET_VRING_NUM => no(
            (1..=32768).contains(&message.get32(NUM)),
            "invalid ring size",
        ),
        id::SET_VRING_ADDR => {
            let mapped = ["desc", "used", "avail"]
                .iter()
                .all(|name| state.maps(message.named(name)));
            no(mapped, "the ring is not in any memory region")
        }
        id::ADD_MEM_REG => {
            let room = u64::try_from(state.regions.len()).is_ok_and(|n| n < device.slots);
            let regions = Region::list(&message.payload);
            no(
                room && regions.iter().all(sound),
                "a region that cannot be mapped",
            )
        }
        id::REM_MEM_REG => {
            let gone = Region::list(&message.payload);
            let known = |region: &Region| gone.iter().any(|gone| gone.same(*region));
            no(state.regions.iter().any(known), "no such region")
        }
        id::POSTCOPY_ADVISE if state.postcopy != Postcopy::Off => refuse(Close, "already advised"),
        id::POSTCOPY_LISTEN if state.postcopy != Postcopy::Advised => refuse(Close, "not advised"),
        id::POSTCOPY_END if state.postcopy != Postcopy::Listening => refuse(Close, "not listening"),
        _ => Ok(()),
    }
}
