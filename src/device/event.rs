//! What a device has to tell the caller's event loop.

use crate::error::Error;
use crate::socket::Credentials;
use std::collections::VecDeque;
use std::time::Duration;

/// How the rings go on that ran when the back-end was lost. Told with the loss,
/// before anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// None ran.
    #[default]
    Idle,
    /// From the used index; the in-flight buffer has the rest. Each request
    /// completes once.
    Inflight,
    /// From the used index, as the device works in order. Each request completes
    /// once.
    InOrder,
    /// From the used index, because the caller chose so: what was completed out of
    /// order is done again, and what it overtook is lost.
    ReplayFromUsed,
    /// From the available index, because the caller chose so: what was not completed
    /// is lost.
    ResumeFromAvailable,
    /// Not before the guest has reset the device.
    NeedsReset,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The handshake went through: what is offered is known.
    Connected,
    /// The connection is lost; [`Event::error`] says why, [`Event::recovery`] how
    /// the rings will go on.
    Lost,
    /// An attempt to connect has failed; the next comes after [`Event::delay`].
    Retrying,
    /// The back-end has not answered for a while; it is waited for.
    Stalled,
    /// Rings that ran before a loss run again.
    Recovered,
    /// The back-end has been told all that was wanted up to [`Event::generation`].
    Applied,
    /// The configuration space has changed, and has been read.
    ConfigChanged,
    /// The rings cannot go on without a reset of the device.
    NeedsReset,
    /// The back-end that was given up may still write guest memory.
    Unfenced,
    /// The back-end that was given up is gone after all.
    Fenced,
    /// The device waits for a socket of the caller's.
    NeedsFd,
    /// Others wanted to connect while a back-end is in use.
    PeersRefused,
    /// The back-end refused a write to its configuration space, or to tell it again;
    /// [`Event::error`] names the request.
    ConfigRefused,
}

/// One event; the fields that its kind does not name have no meaning.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// What is wanted when it happened; see [`EventKind::Applied`].
    pub generation: u64,
    /// Why.
    pub error: Option<Error>,
    /// How rings go on.
    pub recovery: Recovery,
    /// How many attempts have failed in a row, or how many peers were refused.
    pub count: u32,
    /// When the next attempt comes.
    pub delay: Option<Duration>,
    /// So many events before this one were left out, because nobody took them.
    pub missed: u32,
    /// Who was at the other end, where a back-end was lost or is not gone.
    pub peer: Option<Credentials>,
}

impl Event {
    /// Whether this and that are the same.
    fn says(&self, other: &Self) -> bool {
        let request = |event: &Self| event.error.as_ref().and_then(|error| error.request);
        match self.kind {
            // A write that is refused is one thing, and to read it again another.
            EventKind::ConfigRefused if request(self) != request(other) => false,
            kind => kind == other.kind,
        }
    }
}

/// Events that wait to be taken.
#[derive(Debug, Default)]
pub(super) struct Events {
    queue: VecDeque<Event>,
    missed: u32,
}

/// How many wait at most.
const MAX_EVENTS: usize = 64;

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        // The same once more says no more: a back-end that is down for a week is
        // one entry here.
        if let Some(last) = self.queue.back_mut() {
            if last.says(&event) {
                // But not how rings go on that ran before the first of several losses.
                let recovery = match event.recovery {
                    Recovery::Idle => last.recovery,
                    later => later,
                };
                let count = match event.kind {
                    EventKind::PeersRefused => last.count.saturating_add(event.count),
                    _ => event.count,
                };
                *last = Event {
                    recovery,
                    count,
                    ..event
                };
                return;
            }
        }
        if self.queue.len() >= MAX_EVENTS {
            self.queue.pop_front();
            self.missed = self.missed.saturating_add(1);
        }
        self.queue.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.queue.pop_front()?;
        Some(Event {
            missed: std::mem::take(&mut self.missed),
            ..event
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Request;

    fn event(kind: EventKind, count: u32) -> Event {
        Event {
            kind,
            generation: 0,
            error: None,
            recovery: Recovery::Idle,
            count,
            delay: None,
            missed: 0,
            peer: None,
        }
    }

    /// The second does not say what became of the write.
    #[test]
    fn a_refused_write_and_a_refused_read_are_two() {
        let mut events = Events::default();
        for request in [
            Request::SetConfig,
            Request::GetConfig,
            Request::GetConfig,
            Request::SetConfig,
        ] {
            events.push(Event {
                error: Some(Error::refused().of(request)),
                ..event(EventKind::ConfigRefused, 0)
            });
        }
        let requests: Vec<_> = std::iter::from_fn(|| events.pop())
            .filter_map(|event| event.error?.request)
            .collect();
        let each = [Request::SetConfig, Request::GetConfig, Request::SetConfig];
        assert_eq!(requests, each);
    }

    #[test]
    fn peers_that_were_refused_are_all_counted() {
        let mut events = Events::default();
        for count in [3, 8, u32::MAX] {
            events.push(event(EventKind::PeersRefused, count));
            let all = events.queue.back().map(|event| event.count);
            assert_eq!(
                all,
                Some(count.saturating_add(if count == 8 { 3 } else { 0 }))
            );
        }
        // These are counted already.
        events.push(event(EventKind::Retrying, 1));
        events.push(event(EventKind::Retrying, 2));
        assert_eq!(events.pop().map(|event| event.count), Some(u32::MAX));
        assert_eq!(events.pop().map(|event| event.count), Some(2));
        assert!(events.is_empty());
    }
}
