//! Getting a connection, losing it, and shutting out who was at the other end.

use super::{Core, Live, Mode, Old, Refused, RingSlot, Watched, forget};
use crate::backend_client::BackendClient;
use crate::device::access::Access;
use crate::device::event::{Event, EventKind, Recovery};
use crate::device::fence::{Fence, Fenced};
use crate::device::link::Happened;
use crate::device::plan::Actual;
use crate::device::ring::{Kept, Origin};
use crate::device::{OnUnfenced, OutOfOrder};
use crate::error::{Class, Error, Kind};
use crate::message::virtio;
use crate::socket::{self, Pollable};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
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
            let gone = ghost.fence.step(now) == Some(Fenced::Gone);
            if gone {
                forget(poll, ghost.fence.watch().fd);
            }
            !gone
        });
        self.all_gone();
        match &mut self.mode {
            Mode::Fencing(Old { fence, .. }, refused) => {
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
                if let Some(arrival) = self.link.take_arrival() {
                    forget(poll, arrival.as_fd());
                }
                self.linked(happened, now);
            }
            Mode::Up(live) => {
                let current = live.client.read_notifier();
                let happened = self.link.step(now, Some(current));
                self.linked(happened, now);
            }
        }
    }

    /// Reports to the link whether the back-end works: a loss after a while of that
    /// is a first one.
    pub(in crate::device) fn note_health(&mut self, now: Instant) {
        match &self.mode {
            Mode::Up(_) if self.settled() || self.refused_for_good().is_some() => {
                self.link.works(now);
            }
            Mode::Up(_) => {}
            Mode::Down | Mode::Fencing(..) => self.link.works_no_longer(now),
        }
    }

    /// Says so if nobody may still write who was not waited for.
    fn all_gone(&mut self) {
        let overdue = matches!(&self.mode, Mode::Fencing(old, _) if old.fence.is_overdue());
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
            Mode::Fencing(old, refused) if old.fence.is_overdue() => {
                self.ghosts.push(old);
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
                self.history.unreachable(&error);
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
                // A removal that was refused concerns the connection of then alone.
                let was_removal = self.memory_refused.is_some() && self.refused_regions.is_empty();
                if std::mem::take(&mut self.refusal_is_past) || was_removal {
                    self.ask_another_for_memory();
                }
                client.drive_by_steps();
                // It fails only inside a callback.
                let _ = client.set_trace(self.trace.clone());
                let client = Arc::new(client);
                self.clients.retain(|client| client.strong_count() > 0);
                self.clients.push(Arc::downgrade(&client));
                let held = self.buffer.as_ref().map(|buffer| buffer.held);
                self.mode = Mode::Up(Box::new(Live {
                    client,
                    process: self.link.take_process(),
                    actual: Actual::new(&self.wanted, held),
                    under_way: VecDeque::new(),
                    draining: Vec::new(),
                    connected: false,
                    started: Vec::new(),
                    stalled: false,
                    ending: None,
                    placed: self.unplaced().is_empty(),
                    watched: Watched::default(),
                }));
                self.forget_refusals();
                self.keep_buffer();
                self.lives = self.lives.saturating_add(1);
                self.history.is_reached();
                self.news();
                self.changed.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                let delay = self.link.failed(now, false);
                self.history.unreachable(&error);
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
        let absent = self.absent_after(&error, &live);
        let access = live.actual.access();
        let recovery = self.recovery(&live.actual, &access);
        let from = origin_of(recovery);
        let unread = |ring: &RingSlot| ring.state.unread().is_some();
        let before: Vec<bool> = self.rings.iter().map(unread).collect();
        self.lose_rings(&live, &access, from);
        self.suspect_has_not_run();
        if recovery != Recovery::Idle {
            self.recovering = Some(recovery);
        }
        let mut error = error;
        if error.kind == Kind::TimedOut && live.actual.offered.told().is_none() {
            error.message = "the back-end took the connection and does not answer; \
                             is it in use by another front-end?"
                .into();
        }
        let refused = refused || matches!(error.class(), Class::Refused);
        self.history.lost(&error, refused || !live.connected);
        let socket = live.client.read_notifier();
        let peer = live.peer();
        forget(poll, socket);
        if let Some((channel, _)) = live.client.channel_interest() {
            forget(poll, channel.fd);
        }
        let mut delay = None;
        if access.is_nothing() || socket::peer_is_gone(socket) {
            delay = self.link.failed(now, refused);
        } else {
            let client = Arc::clone(&live.client);
            let fence = Fence::new(client, self.options.fence_limit(), now).against(peer);
            let killed = self.options.on_unfenced == OnUnfenced::Kill;
            let fence = fence.killing(live.process.filter(|_| killed));
            self.link.stop();
            self.mode = Mode::Fencing(Old { fence, access }, refused);
        }
        self.lose_gpu_socket(&live.actual);
        self.questions.fail(&error);
        self.retired.push(live.client);
        // The bases of rings that were being stopped here follow the same policy.
        let mut rings = self.rings.iter().zip(before);
        let unread = rings.any(|(ring, before)| unread(ring) && !before);
        let announced = match recovery {
            Recovery::Idle if unread => self.policy(&live.actual),
            recovery => recovery,
        };
        let event = Event {
            error: Some(error.clone()),
            recovery: announced,
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
        if let Some((ring, error)) = absent {
            self.ring_refused(ring, error);
        }
        self.write_again(live.under_way, error);
        self.applied = None;
        self.news();
    }

    /// How the rings that ran go on.
    fn recovery(&self, actual: &Actual, access: &Access) -> Recovery {
        let rings = self.rings.iter().enumerate();
        let ran = rings.filter_map(|(index, ring)| {
            let kept = ring.kept.as_ref();
            kept.filter(|_| self.goes_on(index, access))
        });
        let ran: Vec<&Kept> = ran.collect();
        let policy = self.policy(actual);
        let from = origin_of(policy);
        let known = from.is_none_or(|from| ran.iter().all(|kept| kept.can_tell.knows(from)));
        match (ran.is_empty(), known) {
            (true, _) => Recovery::Idle,
            (_, true) => policy,
            (_, false) => Recovery::NeedsReset,
        }
    }

    /// How rings of this connection go on whose indices are known.
    fn policy(&self, actual: &Actual) -> Recovery {
        let features = actual.sent.features.unwrap_or_default();
        let has = |bit: u32| features & 1_u64.wrapping_shl(bit) != 0;
        if actual.sent.inflight.is_some() {
            return Recovery::Inflight;
        }
        match self.options.out_of_order.of(self.options.device_id) {
            _ if has(virtio::F_RING_PACKED) => Recovery::NeedsReset,
            _ if has(virtio::F_IN_ORDER) => Recovery::InOrder,
            OutOfOrder::NeedsReset => Recovery::NeedsReset,
            OutOfOrder::Default | OutOfOrder::ReplayFromUsed => Recovery::ReplayFromUsed,
            OutOfOrder::ResumeFromAvailable => Recovery::ResumeFromAvailable,
        }
    }

    /// From where rings of this connection go on.
    pub(super) fn origin_after_loss(&self, actual: &Actual) -> Option<Origin> {
        origin_of(self.policy(actual))
    }
}

fn origin_of(recovery: Recovery) -> Option<Origin> {
    match recovery {
        Recovery::NeedsReset => None,
        Recovery::ResumeFromAvailable => Some(Origin::Available),
        _ => Some(Origin::Used(None)),
    }
}
