//! What the real back-ends refuse, and how they go about it. One room for each;
//! this one has what they share.

use crate::message::Message;
use crate::mode::Mode;
use crate::model::Model;

mod dpdk;
mod libvhost_user;
mod rust_vmm;

/// What a back-end does about a message that it does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Says no where it was asked, and goes on; closes where it was not.
    NackOrClose,
    /// Says no where it was asked, and closes.
    NackThenClose,
    /// Closes without a word.
    Close,
    /// Says yes where it was asked, and is broken from then on.
    AckThenBreak,
}

/// A message that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) how: How,
    pub(crate) why: String,
}

type Verdict = Result<(), Refusal>;

/// Whether a back-end of this kind accepts the message.
pub(crate) fn check(mode: Mode, model: &Model, message: &Message) -> Verdict {
    match mode {
        Mode::Polite => Ok(()),
        Mode::Dpdk => dpdk::check(model, message),
        Mode::LibvhostUser => libvhost_user::check(model, message),
        Mode::RustVmmOld => rust_vmm::check(model, message, rust_vmm::Age::Old),
        Mode::RustVmmNew => rust_vmm::check(model, message, rust_vmm::Age::New),
    }
}

/// The largest payload of a message, checked before the payload is read.
pub(crate) fn max_payload(mode: Mode) -> usize {
    match mode {
        // Nobody sends more; a polite back-end does not allocate gigabytes either.
        Mode::Polite => 0x10_0000,
        Mode::Dpdk => 1072,
        Mode::LibvhostUser => 272,
        Mode::RustVmmOld | Mode::RustVmmNew => 4096,
    }
}

fn refuse<T>(how: How, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        how,
        why: why.into(),
    })
}

/// Refuses unless this holds.
fn require(holds: bool, how: How, why: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { refuse(how, why()) }
}

/// Refuses unless it has that many descriptors.
fn exact_fds(message: &Message, fds: usize, how: How) -> Verdict {
    let have = message.fds.len();
    require(have == fds, how, || {
        format!("{have} descriptors, not {fds}")
    })
}

#[cfg(test)]
mod tests;
