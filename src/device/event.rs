//! What a device has to tell the caller's event loop.

use crate::error::Error;
use crate::socket::Credentials;
use std::collections::VecDeque;
use std::time::Duration;

/// How the rings go on that ran when the back-end was lost, and which base those have
/// that were being stopped. Reported with the loss, before anything is done.
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
    /// The back-end refused a write to its configuration space, or to return the space;
    /// [`Event::error`] names the request.
    ConfigRefused,
    /// The back-end refused to take or release a memory region, to start a ring, to take
    /// another call descriptor, an MTU or a GPU's socket, or to announce an address, or does
    /// not have a ring; [`Event::error`] names it.
    /// All else goes on.
    Refused,
    /// The back-end's channel has ended; [`Event::error`] says why. Where the device
    /// depends on it, [`Lost`](Self::Lost) follows.
    ChannelClosed,
    /// The library refused requests that the back-end sent on its channel;
    /// [`Event::error`] names the request and the reason, [`Event::count`] says how
    /// many there were. Requests that the caller's own functions refused are not
    /// reported.
    ChannelRefused,
    /// The back-end refused translations of [`Device::post_iotlb`];
    /// [`Event::error`] is that of the first, [`Event::count`] says how many there
    /// were.
    ///
    /// [`Device::post_iotlb`]: super::Device::post_iotlb
    IotlbRefused,
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
    /// How many attempts have failed in a row, or how many peers, requests of the
    /// back-end or translations were refused.
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
            // Each names something else.
            EventKind::Refused => false,
            kind => kind == other.kind,
        }
    }
}

/// Events that wait to be taken.
#[derive(Debug, Default)]
pub(super) struct Events {
    queue: VecDeque<Event>,
    missed: u32,
    /// Refused requests of the back-end, one entry for each request and reason. They
    /// come after all others, so that a back-end cannot crowd those out.
    refused: Vec<Event>,
}

/// How many wait at most.
const MAX_EVENTS: usize = 64;

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        // The same event again is one entry here. Those that come again and again while
        // a back-end is away, or in use, are one entry even if others lie between: they
        // must not push out what happened before.
        let ticks = matches!(event.kind, EventKind::Retrying | EventKind::PeersRefused);
        let same = match ticks {
            true => self.queue.iter().position(|it| it.kind == event.kind),
            false => self.queue.len().checked_sub(1),
        };
        let says = |at: &usize| self.queue.get(*at).is_some_and(|it| it.says(&event));
        let before = same.filter(says).and_then(|at| self.queue.remove(at));
        let event = match before {
            None => event,
            Some(before) => Event {
                // But not how rings go on that ran before the first of several losses.
                recovery: match event.recovery {
                    Recovery::Idle => before.recovery,
                    later => later,
                },
                count: match event.kind {
                    EventKind::PeersRefused | EventKind::IotlbRefused => {
                        before.count.saturating_add(event.count)
                    }
                    _ => event.count,
                },
                ..event
            },
        };
        if self.queue.len() >= MAX_EVENTS {
            self.queue.pop_front();
            self.missed = self.missed.saturating_add(1);
        }
        self.queue.push_back(event);
    }

    /// Takes an event about refused requests of the back-end, whose texts are few.
    pub(super) fn push_refused(&mut self, event: Event) {
        let text = |event: &Event| event.error.as_ref().map(|error| error.message.clone());
        let mut known = self.refused.iter_mut();
        match known.find(|known| text(known) == text(&event)) {
            Some(known) => {
                known.count = known.count.saturating_add(event.count);
                known.generation = event.generation;
            }
            None => self.refused.push(event),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = match self.queue.pop_front() {
            Some(event) => event,
            None if self.refused.is_empty() => return None,
            None => self.refused.remove(0),
        };
        Some(Event {
            missed: std::mem::take(&mut self.missed),
            ..event
        })
    }

    /// The device was reset: how its rings went on before concerns no caller any longer.
    pub(super) fn forget_recovery(&mut self) {
        let stale =
            |event: &Event| matches!(event.kind, EventKind::NeedsReset | EventKind::Recovered);
        self.queue.retain(|event| !stale(event));
        for event in &mut self.queue {
            event.recovery = Recovery::Idle;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.refused.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a test fails by panicking"
    )]

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
    fn attempts_are_one_event_whatever_lies_between_them() {
        let mut events = Events::default();
        events.push(event(EventKind::Lost, 0));
        for count in 1..1000 {
            events.push(event(EventKind::Retrying, count));
            if count % 2 == 0 {
                events.push(event(EventKind::PeersRefused, 1));
            }
        }
        let all: Vec<_> = std::iter::from_fn(|| events.pop()).collect();
        let kinds: Vec<_> = all.iter().map(|event| event.kind).collect();
        let order = [
            EventKind::Lost,
            EventKind::PeersRefused,
            EventKind::Retrying,
        ];
        assert_eq!(kinds, order);
        assert_eq!(
            all.last().map(|event| (event.count, event.missed)),
            Some((999, 0))
        );
        let counted = all.get(1).map(|event| event.count);
        assert_eq!(counted, Some(499));
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

    #[test]
    fn refused_requests_of_the_back_end_displace_no_event() {
        let mut events = Events::default();
        let refused = |text: &'static str, value: u64| Event {
            error: Some(Error::protocol(text).value(value)),
            ..event(EventKind::ChannelRefused, 2)
        };
        for count in 0..64 {
            let kinds = [EventKind::Applied, EventKind::Connected];
            events.push(event(kinds[usize::from(count % 2 == 1)], count));
            events.push_refused(refused("one reason", count.into()));
            events.push_refused(refused("another", 7));
        }
        for count in 0..64 {
            let taken = events.pop().map(|event| (event.count, event.missed));
            assert_eq!(taken, Some((count, 0)));
        }
        for value in [0, 7] {
            assert!(!events.is_empty());
            let taken = events.pop().map(|event| (event.count, event.error));
            let Some((128, Some(error))) = taken else {
                panic!("{taken:?}");
            };
            assert_eq!(error.value, Some(value));
        }
        assert!(events.is_empty() && events.pop().is_none());
    }
}
