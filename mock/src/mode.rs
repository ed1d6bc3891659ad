//! Which back-end to behave like: the habits that differ, as data. What each
//! one refuses is in `strict`.

use crate::catalog::{feature as p, mask, virtio};
use std::fmt;
use std::str::FromStr;

/// The back-ends that the mock can behave like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// None in particular: by the specification, and patient.
    #[default]
    Polite,
    /// DPDK's vhost library.
    Dpdk,
    /// QEMU's libvhost-user.
    LibvhostUser,
    /// The rust-vmm crates before `vhost` 0.14.
    RustVmmOld,
    /// The rust-vmm crates since then (`vhost` 0.18).
    RustVmmNew,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Polite,
        Self::Dpdk,
        Self::LibvhostUser,
        Self::RustVmmOld,
        Self::RustVmmNew,
    ];

    /// As it is written in a script.
    pub fn name(self) -> &'static str {
        match self {
            Self::Polite => "polite",
            Self::Dpdk => "dpdk",
            Self::LibvhostUser => "libvhost-user",
            Self::RustVmmOld => "rust-vmm-old",
            Self::RustVmmNew => "rust-vmm-new",
        }
    }

    pub(crate) fn habits(self) -> &'static Habits {
        match self {
            Self::Polite => &POLITE,
            Self::Dpdk => &DPDK,
            Self::LibvhostUser => &LIBVHOST_USER,
            Self::RustVmmOld => &RUST_VMM_OLD,
            Self::RustVmmNew => &RUST_VMM_NEW,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| {
            format!(
                "no such mode; there are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

/// When NEED_REPLY is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckRule {
    /// Whenever it is set.
    Asked,
    /// If REPLY_ACK is acknowledged.
    Agreed,
    /// If also GET_FEATURES told of protocol features on this connection.
    FeaturesServed,
    /// If also GET_PROTOCOL_FEATURES told of REPLY_ACK on this connection.
    ProtocolServed,
}

/// What happens where a message has not arrived whole when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// The rest is waited for.
    Wait,
    /// The connection is closed.
    Close,
    /// In the header the missing bytes count as zero; in the body: aborts.
    Misread,
}

/// How a failed GET_CONFIG is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfigError {
    /// Without payload.
    Empty,
    /// With a payload whose size field is zero.
    ZeroSize,
}

/// What SET_LOG_BASE is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogReply {
    Empty,
    Zero,
    /// The first eight bytes of the request, as a number.
    Stale,
    Echo,
}

/// What happens where the script refuses, or the mode, and nobody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterRefusal {
    /// It goes on.
    Stay,
    /// It closes where it could not say no.
    CloseUntold,
    /// It says no if it can and closes.
    Close,
}

/// All of that.
#[derive(Debug)]
pub(crate) struct Habits {
    pub(crate) ack: AckRule,
    pub(crate) pieces: Pieces,
    /// Some replies keep the flags of the request.
    pub(crate) echoes_flags: bool,
    /// Header and payload of a reply are written one after the other.
    pub(crate) two_writes: bool,
    pub(crate) config_error: ConfigError,
    /// GET_CONFIG writes into the request: from offset 0, and as long as it was.
    pub(crate) config_in_place: bool,
    pub(crate) log_reply: LogReply,
    /// GET_QUEUE_NUM counts pairs.
    pub(crate) queue_pairs: bool,
    /// GET_VRING_BASE tells the low 16 bits only.
    pub(crate) short_base: bool,
    /// POSTCOPY_LISTEN is always answered.
    pub(crate) answers_listen: bool,
    /// POSTCOPY_END is answered like any acknowledgement.
    pub(crate) end_is_ack: bool,
    /// IOTLB_MSG is answered like any acknowledgement.
    pub(crate) iotlb_is_ack: bool,
    /// GET_SHARED_OBJECT is answered with the UUID again.
    pub(crate) echoes_uuid: bool,
    /// Writes the call descriptor as soon as it gets it.
    pub(crate) spurious_call: bool,
    /// Where NEED_REPLY is set, a failure is an acknowledgement even of a request
    /// that has a reply of its own.
    pub(crate) nacks_replies: bool,
    pub(crate) after_refusal: AfterRefusal,
    /// Most descriptors in a message; more are lost.
    pub(crate) max_fds: usize,
    // What it offers unless the script says otherwise.
    pub(crate) features: u64,
    pub(crate) protocol: u64,
    pub(crate) queues: u32,
    pub(crate) slots: u64,
}

const BASIC: u64 = mask(&[
    virtio::LOG_ALL,
    virtio::PROTOCOL_FEATURES,
    virtio::VERSION_1,
]);

const POLITE: Habits = Habits {
    ack: AckRule::Agreed,
    pieces: Pieces::Wait,
    echoes_flags: false,
    two_writes: false,
    config_error: ConfigError::Empty,
    config_in_place: false,
    log_reply: LogReply::Zero,
    queue_pairs: false,
    short_base: false,
    answers_listen: false,
    end_is_ack: false,
    iotlb_is_ack: false,
    echoes_uuid: false,
    spurious_call: false,
    nacks_replies: false,
    after_refusal: AfterRefusal::Stay,
    max_fds: 253,
    features: BASIC | mask(&[virtio::RING_PACKED]),
    // Everything but what changes the meaning of other messages: XEN_MMAP,
    // GET_VRING_BASE_INFLIGHT, GPA_ADDRESSES, GET_VRING_BASE_SKIP_DRAIN.
    protocol: mask(&[
        p::MQ,
        p::LOG_SHMFD,
        p::RARP,
        p::REPLY_ACK,
        p::MTU,
        p::BACKEND_REQ,
        p::CROSS_ENDIAN,
        p::CRYPTO_SESSION,
        p::PAGEFAULT,
        p::CONFIG,
        p::BACKEND_SEND_FD,
        p::HOST_NOTIFIER,
        p::INFLIGHT_SHMFD,
        p::RESET_DEVICE,
        p::INBAND_NOTIFICATIONS,
        p::CONFIGURE_MEM_SLOTS,
        p::STATUS,
        p::SHARED_OBJECT,
        p::DEVICE_STATE,
        p::SHMEM,
    ]),
    queues: 4,
    slots: 32,
};

const DPDK: Habits = Habits {
    ack: AckRule::Asked,
    pieces: Pieces::Close,
    config_in_place: true,
    log_reply: LogReply::Empty,
    queue_pairs: true,
    short_base: true,
    iotlb_is_ack: true,
    nacks_replies: true,
    after_refusal: AfterRefusal::CloseUntold,
    max_fds: 8,
    features: BASIC | mask(&[virtio::RING_PACKED, 35]),
    protocol: mask(&[
        p::MQ,
        p::LOG_SHMFD,
        p::RARP,
        p::REPLY_ACK,
        p::MTU,
        p::BACKEND_REQ,
        p::CRYPTO_SESSION,
        p::BACKEND_SEND_FD,
        p::HOST_NOTIFIER,
        p::INFLIGHT_SHMFD,
        p::STATUS,
    ]),
    queues: 256,
    slots: 8,
    ..POLITE
};

const LIBVHOST_USER: Habits = Habits {
    ack: AckRule::Asked,
    pieces: Pieces::Misread,
    echoes_flags: true,
    two_writes: true,
    config_in_place: true,
    log_reply: LogReply::Stale,
    answers_listen: true,
    echoes_uuid: true,
    spurious_call: true,
    max_fds: 8,
    features: BASIC,
    protocol: mask(&[
        p::MQ,
        p::LOG_SHMFD,
        p::REPLY_ACK,
        p::BACKEND_REQ,
        p::PAGEFAULT,
        p::CONFIG,
        p::BACKEND_SEND_FD,
        p::HOST_NOTIFIER,
        p::CONFIGURE_MEM_SLOTS,
    ]),
    slots: 509,
    ..POLITE
};

const RUST_VMM_NEW: Habits = Habits {
    ack: AckRule::FeaturesServed,
    pieces: Pieces::Close,
    config_error: ConfigError::ZeroSize,
    log_reply: LogReply::Echo,
    short_base: true,
    end_is_ack: true,
    after_refusal: AfterRefusal::Close,
    max_fds: 32,
    features: BASIC,
    protocol: mask(&[
        p::MQ,
        p::LOG_SHMFD,
        p::REPLY_ACK,
        p::BACKEND_REQ,
        p::CONFIG,
        p::BACKEND_SEND_FD,
        p::RESET_DEVICE,
        p::CONFIGURE_MEM_SLOTS,
        p::DEVICE_STATE,
    ]),
    slots: 509,
    ..POLITE
};

const RUST_VMM_OLD: Habits = Habits {
    ack: AckRule::ProtocolServed,
    protocol: mask(&[
        p::MQ,
        p::REPLY_ACK,
        p::BACKEND_REQ,
        p::CONFIG,
        p::CONFIGURE_MEM_SLOTS,
    ]),
    slots: 32,
    ..RUST_VMM_NEW
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert!(
            "qemu"
                .parse::<Mode>()
                .is_err_and(|error| error.contains("libvhost-user"))
        );
    }
}
