//! Getting a connection, losing it, and shutting out who was at the other end.

use super::{Core, Live, Mode, Refused, forget};
use crate::backend_client::BackendClient;
use crate::device::event::{Event, EventKind, Recovery};
use crate::device::fence::{Fence, Fenced};
use crate::device::link::Happened;
use crate::device::plan::{Actual, RingActual};
use crate::device::ring::{Kept, Origin};
use crate::device::{OnUnfenced, OutOfOrder};
use crate::error::{Class, Error, Kind};
use crate::message::{SHMEM_REGIONS, virtio};
use crate::socket::{self, Pollable};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// How many back-ends that may still write are gone on beside. Each costs a descriptor,
/// and its process has the memory mapped.
const MAX_GHOSTS: usize = 8;

impl Core {
    /// Gets or loses a connection, as far as that needs no waiting.
    pub(in crate::device) fn transport(&mut self, poll: &Pollable, now: Instant) {
        self.ghosts.retain_mut(|ghost| {
            let gone = ghost.step(now) == Some(Fenced::Gone);
            if gone {
                forget(poll, ghost.watch().fd);
            }
            !gone
        });
        self.all_gone();
        match &mut self.mode {
            Mode::Fencing(fence, refused) => {
                let refused = *refused;
                match fence.step(now) {
                    Some(Fenced::Gone) => {
                        forget(poll, fence.watch().fd);
                        self.mode = Mode::Down;
                        self.news();
                        self.link.failed(now, refused);
                        self.all_gone();
                    }
                    Some(Fenced::Unfenced) => {
                        let peer = fence.peer();
                        self.unfenced = true;
                        let event = Event {
                            peer,
                            ..self.event(EventKind::Unfenced)
                        };
                        self.events.push(event);
                        self.news();
                        self.proceed(now);
                    }
                    // It may have been held up by those before.
                    None => self.proceed(now),
                }
            }
            Mode::Down => {
                let happened = self.link.step(now, None);
                self.linked(happened, now);
            }
            Mode::Up(live) => {
                let current = live.client.read_notifier();
                let happened = self.link.step(now, Some(current));
                self.linked(happened, now);
            }
        }
    }

    /// Says so if nobody may still write who was not waited for.
    fn all_gone(&mut self) {
        let overdue = matches!(&self.mode, Mode::Fencing(fence, _) if fence.is_overdue());
        if self.ghosts.is_empty() && !overdue && std::mem::take(&mut self.unfenced) {
            self.tell(EventKind::Fenced);
        }
    }

    /// Goes on beside a back-end that cannot be shut out, if the caller chose so, and
    /// unless there are as many of these as may be.
    fn proceed(&mut self, now: Instant) {
        if self.options.on_unfenced != OnUnfenced::Proceed || self.ghosts.len() >= MAX_GHOSTS {
            return;
        }
        match std::mem::replace(&mut self.mode, Mode::Down) {
            Mode::Fencing(fence, refused) if fence.is_overdue() => {
                self.ghosts.push(fence);
                self.link.failed(now, refused);
            }
            mode => self.mode = mode,
        }
    }

    fn linked(&mut self, happened: Option<Happened>, now: Instant) {
        match happened {
            Some(Happened::Connected(fd)) => self.up(fd, now),
            Some(Happened::Retrying {
                attempt,
                error,
                delay,
            }) => {
                let event = Event {
                    count: attempt,
                    error: Some(error),
                    delay: Some(delay),
                    ..self.event(EventKind::Retrying)
                };
                self.events.push(event);
            }
            Some(Happened::NeedsFd) => self.tell(EventKind::NeedsFd),
            Some(Happened::Refused { peers }) => {
                let event = Event {
                    count: peers,
                    ..self.event(EventKind::PeersRefused)
                };
                self.events.push(event);
            }
            None => {}
        }
    }

    fn up(&mut self, fd: OwnedFd, now: Instant) {
        match BackendClient::from_fd(fd, &self.options.client()) {
            Ok(client) => {
                client.drive_by_steps();
                // It fails only inside a callback.
                let _ = client.set_trace(self.trace.clone());
                let client = Arc::new(client);
                self.clients.retain(|client| client.strong_count() > 0);
                self.clients.push(Arc::downgrade(&client));
                let key = self.buffer.as_ref().map(|buffer| buffer.key);
                self.mode = Mode::Up(Box::new(Live {
                    client,
                    process: self.link.take_process(),
                    actual: Actual::new(&self.wanted, key),
                    under_way: VecDeque::new(),
                    connected: false,
                    started: Vec::new(),
                    stalled: false,
                    placed: !self.kept.iter().flatten().any(Kept::unplaced),
                    shmem: [0; SHMEM_REGIONS],
                }));
                self.lives = self.lives.saturating_add(1);
                self.news();
                self.changed.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                let delay = self.link.failed(now, false);
                let event = Event {
                    error: Some(error),
                    count: self.link.attempt(),
                    delay,
                    ..self.event(EventKind::Retrying)
                };
                self.events.push(event);
            }
        }
    }

    /// The connection is of no further use.
    pub(in crate::device) fn lose(
        &mut self,
        error: Error,
        refused: Refused,
        poll: &Pollable,
        now: Instant,
    ) {
        let live = match std::mem::replace(&mut self.mode, Mode::Down) {
            Mode::Up(live) => live,
            mode => {
                self.mode = mode;
                return;
            }
        };
        let recovery = self.recovery(&live.actual);
        for (index, actual) in live.actual.rings.iter().enumerate() {
            // What begins elsewhere still does. What was being stopped stays unknown.
            if !self.goes_on(index, actual) {
                continue;
            }
            if let Some(Some(kept)) = self.kept.get_mut(index) {
                kept.origin = match recovery {
                    Recovery::ResumeFromAvailable => Origin::Available,
                    _ => Origin::Used,
                };
                kept.buffered = recovery == Recovery::Inflight;
            }
        }
        if recovery != Recovery::Idle {
            self.recovering = true;
        }
        let mut error = error;
        if error.kind == Kind::TimedOut && live.actual.offered.told().is_none() {
            error.message = "the back-end took the connection and does not answer; \
                             is it in use by another front-end?"
                .into();
        }
        let refused = refused || matches!(error.class(), Class::Refused);
        let socket = live.client.read_notifier();
        let peer = live.peer();
        forget(poll, socket);
        if let Some((channel, _)) = live.client.channel_interest() {
            forget(poll, channel.fd);
        }
        // Somebody who never saw memory cannot write it; nor who has confirmed that it
        // is gone.
        let none = live.actual.memory.as_ref().is_none_or(|sent| !sent.any());
        let harmless = none && !live.memory_under_way();
        let mut delay = None;
        if harmless || socket::peer_is_gone(socket) {
            delay = self.link.failed(now, refused);
        } else {
            let client = Arc::clone(&live.client);
            let fence = Fence::new(client, self.options.fence_limit(), now).known_as(peer);
            let killed = self.options.on_unfenced == OnUnfenced::Kill;
            let fence = fence.killing(live.process.filter(|_| killed));
            self.link.stop();
            self.mode = Mode::Fencing(fence, refused);
        }
        self.retired.push(live.client);
        let event = Event {
            error: Some(error.clone()),
            recovery,
            delay,
            count: self.link.attempt(),
            peer,
            ..self.event(EventKind::Lost)
        };
        self.events.push(event);
        if recovery == Recovery::NeedsReset {
            self.wanted.held = true;
            self.tell(EventKind::NeedsReset);
        }
        self.write_again(live.under_way, error);
        self.applied = None;
        self.news();
    }

    /// Whether a ring that ran is to go on where it stood.
    fn goes_on(&self, index: usize, actual: &RingActual) -> bool {
        let want = self.wanted.rings.get(index).copied().flatten();
        let kept = self.kept.get(index).and_then(Option::as_ref);
        let same = want.is_some_and(|want| Some(want.start) == actual.start);
        actual.kick && kept.is_some_and(|kept| same || kept.origin == Origin::Stopped)
    }

    /// How the rings that ran go on.
    fn recovery(&self, actual: &Actual) -> Recovery {
        let ran = || {
            let rings = actual.rings.iter().zip(&self.kept).enumerate();
            rings.filter_map(|(index, (ring, kept))| {
                kept.as_ref().filter(|_| self.goes_on(index, ring))
            })
        };
        if ran().next().is_none() {
            return Recovery::Idle;
        }
        let features = actual.features.unwrap_or_default();
        let has = |bit: u32| features & 1_u64.wrapping_shl(bit) != 0;
        let know = |origin| ran().all(|kept| kept.knows(origin));
        let packed = has(virtio::F_RING_PACKED);
        let from_used = |recovery| match know(Origin::Used) {
            true => recovery,
            false => Recovery::NeedsReset,
        };
        if actual.inflight {
            return from_used(Recovery::Inflight);
        }
        match self.options.out_of_order {
            _ if packed => Recovery::NeedsReset,
            _ if has(virtio::F_IN_ORDER) => from_used(Recovery::InOrder),
            OutOfOrder::NeedsReset => Recovery::NeedsReset,
            OutOfOrder::ReplayFromUsed => from_used(Recovery::ReplayFromUsed),
            OutOfOrder::ResumeFromAvailable => match know(Origin::Available) {
                true => Recovery::ResumeFromAvailable,
                false => Recovery::NeedsReset,
            },
        }
    }
}
