//! Why a device does not have what its caller waits for.

use super::{Core, Live, Mode, UnderWay, What};
use crate::device::plan::Step;
use crate::error::{Class, Error, Kind, Phase};
use crate::message::{bit_names, virtio_feature_name};
use std::fmt::Write;
use std::time::Instant;

/// What went wrong most recently.
#[derive(Debug, Default)]
pub(in crate::device) struct History {
    /// Why the last attempt to get a connection failed, since there was one.
    unreachable: Option<Error>,
    /// Why the last connection was lost, since the back-end did all that is wanted.
    lost: Option<Error>,
    /// How many back-ends were lost before or during the handshake, refused a request,
    /// were refused, or broke the protocol.
    unusable: u64,
    /// [`Device::process`](crate::device::Device::process) was called.
    pub(in crate::device) processed: bool,
}

impl History {
    pub(super) fn unreachable(&mut self, error: &Error) {
        self.unreachable = Some(error.clone());
    }

    pub(super) fn is_reached(&mut self) {
        self.unreachable = None;
    }

    /// `unusable`: the back-end was not connected yet, or was refused.
    pub(super) fn lost(&mut self, error: &Error, unusable: bool) {
        self.lost = Some(error.clone());
        if unusable || error.class() == Class::Protocol {
            self.unusable = self.unusable.saturating_add(1);
        }
    }

    pub(super) fn is_applied(&mut self) {
        self.lost = None;
    }

    /// How many back-ends could not be used so far, and why the last one.
    pub(in crate::device) fn unusable(&self) -> (u64, Option<&Error>) {
        (self.unusable, self.lost.as_ref())
    }
}

impl UnderWay {
    /// The request that is not answered, and for how long.
    fn unanswered(&self, now: Instant) -> Error {
        let waited = now.saturating_duration_since(self.since).as_millis();
        let text = format!("the back-end has not answered for {waited} ms");
        let error = Error::new(Kind::TimedOut, text).of(self.begun.request());
        let error = match &self.what {
            What::Step(Step::Ring { index, .. }, _) => error.ring(super::requests::number(*index)),
            _ => error,
        };
        error.during(Phase::Reply)
    }
}

impl Live {
    fn unanswered(&self, now: Instant) -> Option<Error> {
        Some(self.under_way.front()?.unanswered(now))
    }
}

/// A timeout whose cause is this failure.
fn timed_out_over(cause: &Error, text: String) -> Error {
    let mut error = cause.clone();
    error.cause = match cause.cause {
        0 => cause.code(),
        deeper => deeper,
    };
    error.kind = Kind::TimedOut;
    error.message = text.into();
    error
}

impl Core {
    /// Names of virtio feature bits, for a text.
    pub(in crate::device) fn virtio_names(&self, bits: u64) -> String {
        bit_names(bits, |bit| virtio_feature_name(self.options.device_id, bit))
    }

    /// The error of a call that needs to know what the back-end offers.
    pub(in crate::device) fn offer_unknown(&self, now: Instant) -> Error {
        let why = self.why(now);
        let text = format!(
            "the features that the back-end offers are not known yet, and none are assumed: {}",
            why.message
        );
        let mut error = timed_out_over(&why, text);
        error.kind = Kind::State;
        error
    }

    /// The error of a wait whose time has passed.
    pub(in crate::device) fn explain(&self, now: Instant) -> Error {
        self.why(now)
    }

    fn why(&self, now: Instant) -> Error {
        let History {
            unreachable, lost, ..
        } = &self.history;
        let lost = lost.as_ref();
        let mut error = match &self.mode {
            Mode::Up(live) => live.unanswered(now).unwrap_or_else(|| {
                let text = match self.unfenced {
                    true => "a back-end that was lost has not closed its connection",
                    false => "the back-end has not done all of what is wanted",
                };
                Error::new(Kind::TimedOut, text)
            }),
            Mode::Fencing(fence, _) => {
                let mut text = String::from("a back-end that was lost ");
                if let Some(peer) = fence.fence.peer() {
                    let _ = write!(text, "(process {}) ", peer.pid);
                }
                text.push_str("has not closed its connection");
                match lost {
                    Some(lost) => timed_out_over(lost, text),
                    None => Error::new(Kind::TimedOut, text),
                }
            }
            Mode::Down => match (unreachable, lost) {
                (Some(error), _) => {
                    let attempts = self.link.misses();
                    let plural = if attempts == 1 { "" } else { "s" };
                    let text = format!("{} ({attempts} attempt{plural})", error.message);
                    timed_out_over(error, text)
                }
                (None, Some(lost)) => {
                    let mut text = lost.message.to_string();
                    if let Some(due) = self.link.due() {
                        let left = due.saturating_duration_since(now).as_millis();
                        let _ = write!(text, " (the next attempt comes in {left} ms)");
                    }
                    timed_out_over(lost, text)
                }
                (None, None) => Error::new(Kind::TimedOut, self.link.awaited()),
            },
        };
        let before = lost.filter(|_| match &self.mode {
            Mode::Up(_) | Mode::Fencing(..) => true,
            Mode::Down => unreachable.is_some(),
        });
        let mut more = String::new();
        if let Some(lost) = before {
            let _ = write!(more, "; the connection before was lost: {lost}");
        }
        if !self.history.processed {
            more.push_str(
                "; process() was never called, and nothing is done outside of it \
                 and of calls that wait",
            );
        }
        if !more.is_empty() {
            error.message = format!("{}{more}", error.message).into();
        }
        error
    }
}
