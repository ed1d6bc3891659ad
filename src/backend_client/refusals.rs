//! Requests of the back-end that the library itself refused: why, and how often.

use crate::error::{Error, Kind};
use crate::message::BackendRequest;
use nix::errno::Errno;

/// Why the library refuses a request of the back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What the back-end gets for an answer, negated.
    pub(super) errno: Errno,
    pub(super) why: &'static str,
}

impl Refusal {
    pub(super) const fn new(errno: Errno, why: &'static str) -> Self {
        Self { errno, why }
    }

    /// The content of the request is wrong.
    pub(super) const fn invalid(why: &'static str) -> Self {
        Self::new(Errno::EINVAL, why)
    }
}

/// Requests of one kind that were refused for one reason.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused {
    /// `None` for numbers that name no request.
    request: Option<BackendRequest>,
    /// The number of the first.
    id: u32,
    refusal: Refusal,
    /// How many there were.
    pub(crate) count: u32,
}

impl Refused {
    /// The refusal as an error, with the number of the request as its value.
    pub(crate) fn error(&self) -> Error {
        let name = self.request.map(|request| request.info().name);
        let name = name.map_or("a request", |name| name.as_str());
        let Refusal { errno, why } = self.refusal;
        let text = format!("{name} on the back-end's channel was refused with {errno:?}: {why}");
        let kind = match errno {
            Errno::EINVAL => Kind::Protocol,
            Errno::EPERM => Kind::NotNegotiated,
            other => Kind::Argument(other),
        };
        Error::new(kind, text).value(u64::from(self.id))
    }
}

/// Refused requests that were not taken yet. A back-end cannot make it grow: there is
/// one entry for each request and reason.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<Refused>);

impl Refusals {
    pub(super) fn add(&mut self, id: u32, refusal: Refusal) {
        let request = BackendRequest::from_id(id);
        let mut known = self.0.iter_mut();
        match known.find(|it| it.request == request && it.refusal == refusal) {
            Some(known) => known.count = known.count.saturating_add(1),
            None => self.0.push(Refused {
                request,
                id,
                refusal,
                count: 1,
            }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

    use super::*;

    const NOTHING: Refusal = Refusal::invalid("nothing is mapped there");

    #[test]
    fn refusals_are_counted_by_request_and_reason() {
        let mut refusals = Refusals::default();
        let full = Refusal::new(Errno::ENOSPC, "there is no room");
        for (id, refusal) in [(9, full), (10, NOTHING), (9, full), (9, NOTHING)] {
            refusals.add(id, refusal);
        }
        // Numbers that name no request are counted together.
        for id in 1000..2000 {
            refusals.add(id, NOTHING);
        }
        let taken = refusals.take();
        let counts: Vec<_> = taken.iter().map(|it| (it.id, it.count)).collect();
        assert_eq!(counts, [(9, 2), (10, 1), (9, 1), (1000, 1000)]);
        let text = taken[1].error().to_string();
        assert!(
            text.starts_with("BACKEND_SHMEM_UNMAP on the back-end's channel"),
            "{text}"
        );
        assert!(refusals.take().is_empty());
    }
}
