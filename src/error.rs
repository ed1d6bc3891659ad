//! What went wrong, in fields: [`Error`] is made where a failure is noticed and
//! only read further up. [`Error::code`] is the single place that turns a
//! failure into the number that C sees.

#![forbid(unsafe_code)]

use crate::message::Request;
use nix::errno::Errno;
use std::borrow::Cow;
use std::ops::{Deref, DerefMut};

/// The result of everything fallible in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The connection or the back-end's process: reconnecting may help.
    Transport,
    /// The back-end answered, and said no. Asking again will not help.
    Refused,
    /// The back-end broke the protocol: it has a bug.
    Protocol,
    /// The caller's arguments, the order of calls, or this machine.
    Local,
}

/// How far a request had got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Nothing had been sent: arguments and state were being checked.
    #[default]
    Check,
    /// The connection was being made.
    Connect,
    /// The request was being sent.
    Send,
    /// The reply was awaited, received or checked.
    Reply,
    /// The request was sent; the barrier behind it was awaited.
    Barrier,
}

/// What kind of failure it is. Each kind has one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller passed something that cannot be right.
    Argument(Errno),
    /// A system call failed.
    Os(Errno),
    /// The deadline passed.
    TimedOut,
    /// [`abort`](crate::BackendClient::abort) ended the connection.
    Canceled,
    /// The back-end closed the connection.
    Disconnected,
    /// The back-end broke the protocol.
    Protocol,
    /// The back-end answered with an error value.
    Nack,
    /// A feature that the request needs was not agreed.
    NotNegotiated,
    /// An earlier failure of this class left the stream uncertain.
    Poisoned(Class),
    /// The call does not fit what was done before.
    State,
    /// A bug in this library.
    Panic,
}

/// Codes that are not an errno. They lie below -4095, and never change.
pub mod code {
    /// [`Kind::Disconnected`](super::Kind::Disconnected)
    pub const DISCONNECTED: i32 = -4097;
    /// [`Kind::Protocol`](super::Kind::Protocol)
    pub const PROTOCOL: i32 = -4098;
    /// [`Kind::Nack`](super::Kind::Nack)
    pub const NACK: i32 = -4099;
    /// [`Kind::NotNegotiated`](super::Kind::NotNegotiated)
    pub const NOT_NEGOTIATED: i32 = -4100;
    /// [`Kind::Poisoned`](super::Kind::Poisoned)
    pub const POISONED: i32 = -4101;
    /// [`Kind::State`](super::Kind::State)
    pub const STATE: i32 = -4102;
    /// [`Kind::Panic`](super::Kind::Panic)
    pub const PANIC: i32 = -4103;
}

/// A failure: what happened, to which request, and what the back-end said. As big as
/// a pointer, because every result has room for one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}{}", Prefix(.0), .0.message)]
pub struct Error(Box<Details>);

/// What an [`Error`] says: it derefs to this.
#[derive(Debug, Clone)]
pub struct Details {
    /// What kind of failure.
    pub kind: Kind,
    /// How far the request had got.
    pub phase: Phase,
    /// The request it happened to, if any.
    pub request: Option<Request>,
    /// The ring that the request names, if any.
    pub ring: Option<u32>,
    /// The position of the region in the caller's array, if one is at fault.
    pub region: Option<u32>,
    /// The back-end's own words: an error value, a wrong code, a wrong size.
    pub value: Option<u64>,
    /// The [code](Error::code) of the failure that a timeout hides: why the awaited
    /// did not happen. 0 where there is none.
    pub cause: i32,
    /// What a person can act on.
    pub message: Cow<'static, str>,
}

impl Deref for Error {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for Error {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

/// "SET_VRING_ADDR, ring 3: " as far as that is known.
struct Prefix<'a>(&'a Details);

impl std::fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(request) = self.0.request else {
            return Ok(());
        };
        write!(f, "{}", request.info().name)?;
        if let Some(ring) = self.0.ring {
            write!(f, ", ring {ring}")?;
        }
        f.write_str(": ")
    }
}

impl Error {
    /// A failure without context; the layers add what they know.
    #[cold]
    #[inline(never)]
    pub(crate) fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Details {
            kind,
            phase: Phase::default(),
            request: None,
            ring: None,
            region: None,
            value: None,
            cause: 0,
            message: message.into(),
        }))
    }

    /// The caller passed something wrong; the message names the argument.
    #[cold]
    #[inline(never)]
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Argument(Errno::EINVAL), message)
    }

    /// A file descriptor that cannot be one.
    #[cold]
    #[inline(never)]
    pub(crate) fn bad_fd(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Argument(Errno::EBADF), message)
    }

    /// The back-end broke the protocol.
    #[cold]
    #[inline(never)]
    pub(crate) fn protocol(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Protocol, message).during(Phase::Reply)
    }

    /// The back-end said no, and nothing else.
    #[cold]
    pub(crate) fn refused() -> Self {
        Self::new(Kind::Nack, "the back-end refused the request").during(Phase::Reply)
    }

    /// The back-end said no with a value.
    #[cold]
    pub(crate) fn nack(value: u64) -> Self {
        let text = format!("the back-end refused the request (value {value:#x})");
        Self::refused().saying(text).value(value)
    }

    /// A system call failed. Errors that mean "the peer is gone" become
    /// [`Kind::Disconnected`].
    pub(crate) fn os(errno: Errno, what: impl std::fmt::Display) -> Self {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => Self::new(
                Kind::Disconnected,
                format!(
                    "{what}: the back-end closed the connection ({})",
                    errno.desc()
                ),
            ),
            _ => Self::new(Kind::Os(errno), format!("{what}: {}", errno.desc())),
        }
    }

    pub(crate) fn during(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Names the request, unless a deeper layer already has.
    pub(crate) fn of(mut self, request: Request) -> Self {
        self.request.get_or_insert(request);
        self
    }

    pub(crate) fn ring(mut self, ring: u32) -> Self {
        self.ring.get_or_insert(ring);
        self
    }

    pub(crate) fn region(mut self, index: usize) -> Self {
        self.region = u32::try_from(index).ok();
        self
    }

    /// The same about this request, whatever a deeper layer has named.
    pub(crate) fn about(mut self, request: Option<Request>) -> Self {
        self.request = request;
        self
    }

    /// The same in other words.
    pub(crate) fn saying(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.message = message.into();
        self
    }

    pub(crate) fn value(self, value: u64) -> Self {
        self.with_value(Some(value))
    }

    pub(crate) fn with_value(mut self, value: Option<u64>) -> Self {
        self.value = value;
        self
    }

    /// The number that C sees: `-errno`, or one of [`code`].
    pub fn code(&self) -> i32 {
        let negative = |errno: Errno| {
            let number = std::io::Error::from(errno).raw_os_error();
            // An errno that has no number must not be taken for success.
            number
                .filter(|n| *n > 0)
                .unwrap_or(libc::EIO)
                .saturating_neg()
        };
        match self.kind {
            Kind::Argument(errno) | Kind::Os(errno) => negative(errno),
            Kind::TimedOut => negative(Errno::ETIMEDOUT),
            Kind::Canceled => negative(Errno::ECANCELED),
            Kind::Disconnected => code::DISCONNECTED,
            Kind::Protocol => code::PROTOCOL,
            Kind::Nack => code::NACK,
            Kind::NotNegotiated => code::NOT_NEGOTIATED,
            Kind::Poisoned(_) => code::POISONED,
            Kind::State => code::STATE,
            Kind::Panic => code::PANIC,
        }
    }

    /// The errno behind the code; 0 where there is none.
    pub fn errno(&self) -> i32 {
        match self.code() {
            code @ -4095..=-1 => code.saturating_neg(),
            _ => 0,
        }
    }

    /// What the caller may do about it. A poisoned connection keeps the class of
    /// its first cause.
    pub fn class(&self) -> Class {
        match self.kind {
            Kind::Poisoned(class) => class,
            _ => class_of(self.code()).unwrap_or(Class::Local),
        }
    }
}

/// The class of a code: [`None`] for success and for what is not a code of ours.
///
/// [`Kind::Poisoned`] counts as [`Class::Transport`] here, because a new
/// connection is what cures it; [`Error::class`] knows the first cause.
pub fn class_of(code: i32) -> Option<Class> {
    match code {
        code::DISCONNECTED | code::POISONED => Some(Class::Transport),
        code::PROTOCOL => Some(Class::Protocol),
        code::NACK => Some(Class::Refused),
        code::NOT_NEGOTIATED | code::STATE | code::PANIC => Some(Class::Local),
        -4095..=-1 => Some(match Errno::from_raw(code.saturating_neg()) {
            Errno::ECONNREFUSED
            | Errno::ENOENT
            | Errno::EAGAIN
            | Errno::ETIMEDOUT
            | Errno::ENOTCONN => Class::Transport,
            _ => Class::Local,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_code_and_class() {
        let table = [
            (Kind::Argument(Errno::EINVAL), -22, Class::Local),
            (Kind::Argument(Errno::EBADF), -9, Class::Local),
            (Kind::Os(Errno::ECONNREFUSED), -111, Class::Transport),
            (Kind::Os(Errno::ENOENT), -2, Class::Transport),
            (Kind::Os(Errno::EMFILE), -24, Class::Local),
            (Kind::TimedOut, -110, Class::Transport),
            (Kind::Canceled, -125, Class::Local),
            (Kind::Disconnected, -4097, Class::Transport),
            (Kind::Protocol, -4098, Class::Protocol),
            (Kind::Nack, -4099, Class::Refused),
            (Kind::NotNegotiated, -4100, Class::Local),
            (Kind::Poisoned(Class::Protocol), -4101, Class::Protocol),
            (Kind::Poisoned(Class::Transport), -4101, Class::Transport),
            (Kind::State, -4102, Class::Local),
            (Kind::Panic, -4103, Class::Local),
        ];
        for (kind, code, class) in table {
            let error = Error::new(kind, "text");
            assert_eq!(error.code(), code, "{kind:?}");
            assert_eq!(error.class(), class, "{kind:?}");
        }
        assert_eq!(class_of(0), None);
        assert_eq!(class_of(-4096), None);
        assert_eq!(class_of(i32::MIN), None);
    }

    #[test]
    fn the_text_names_request_and_ring() {
        let error = Error::nack(1).of(Request::SetVringAddr).ring(3);
        assert_eq!(
            error.to_string(),
            "SET_VRING_ADDR, ring 3: the back-end refused the request (value 0x1)"
        );
        assert_eq!(
            error
                .of(Request::GetFeatures)
                .request
                .map(|r| r.info().name.as_str()),
            Some("SET_VRING_ADDR")
        );
    }
}
