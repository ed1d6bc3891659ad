//! What the device sees of the back-end's channel, and of translations that were
//! posted (IOTLB_MSG).

use super::{Core, Live, Mode};
use crate::device::event::{Event, EventKind};
use crate::device::plan::Wanted;
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{ProtocolFeatures, Request, bit_names, protocol_feature_name, virtio};
use std::time::{Duration, Instant};

/// A back-end whose process ends closes the channel and the connection one after the
/// other. After the end of the channel the end of the connection is waited for this
/// long.
const GRACE: Duration = Duration::from_millis(50);

/// How long after refused requests were reported the next are counted, and not
/// reported: a back-end that floods its channel must not keep an event loop busy that
/// takes events until there are none.
const INTERVAL: Duration = Duration::from_millis(100);

const ACCESS_PLATFORM: u64 = 1_u64.wrapping_shl(virtio::F_ACCESS_PLATFORM);

/// What translations need: the back-end asks for them on its channel, and says when
/// it has ended the use of one.
const TRANSLATES: ProtocolFeatures =
    ProtocolFeatures::BACKEND_REQ.union(ProtocolFeatures::REPLY_ACK);

/// The channel of one connection, and the messages that were posted on it.
#[derive(Debug, Default)]
pub(in crate::device) struct Watched {
    /// When the channel was seen to have ended, and whether that was reported.
    ended: Option<Instant>,
    reported: bool,
    /// When refused requests may be reported again.
    quiet_until: Option<Instant>,
    /// How many posted messages are unanswered.
    posted: usize,
    /// The number of the posted message that the back-end works at, its request, and
    /// since when.
    oldest: Option<(u64, Request, Instant)>,
    /// STALLED was reported for it.
    stalled: bool,
}

/// Posted messages that back-ends refused.
#[derive(Debug, Default)]
pub(in crate::device) struct PostedRefusals {
    /// How many there were, and how many of them a wait has reported.
    total: u64,
    reported: u64,
    /// The first that no wait has reported.
    first: Option<Error>,
}

impl Live {
    /// A posted message is what the back-end works at. The device's own requests
    /// wait behind it.
    pub(super) fn works_at_posted(&self) -> bool {
        self.watched.oldest.is_some()
    }

    /// Without the channel this device does not do what it has agreed on.
    fn depends_on_channel(&self, wanted: &Wanted) -> bool {
        let agreed = self.actual.sent.features.unwrap_or_default();
        let features = agreed | wanted.features.unwrap_or_default();
        let needs = ProtocolFeatures::CONFIG.union(ProtocolFeatures::SHMEM);
        let agreed = self
            .actual
            .sent
            .protocol
            .unwrap_or(ProtocolFeatures::empty());
        features & ACCESS_PLATFORM != 0 || agreed.intersects(needs)
    }

    fn grace_ends(&self) -> Option<Instant> {
        let ended = self.watched.ended.filter(|_| !self.watched.reported)?;
        ended.checked_add(GRACE)
    }

    /// When something is due for the channel or what was posted.
    pub(super) fn watched_due(&self, stall: Duration) -> Option<Instant> {
        let posted = self.watched.oldest.and_then(|(.., since)| {
            let limit = self.client.posted_timeout();
            let deadline = limit.and_then(|limit| since.checked_add(limit));
            let stall = since.checked_add(stall).filter(|_| !self.watched.stalled);
            [deadline, stall].into_iter().flatten().min()
        });
        let quiet_until = self.watched.quiet_until;
        let refused = quiet_until.filter(|_| self.client.has_refused_requests());
        let all = [posted, self.grace_ends(), refused];
        all.into_iter().flatten().min()
    }
}

impl Core {
    /// Whether every posted message has been answered. From what was noted, and not
    /// from the client, whose answers another thread may just have read: with the last
    /// answer a refusal is noted as well.
    pub(super) fn posted_settled(&self) -> bool {
        self.live().is_none_or(|live| live.watched.posted == 0)
    }

    /// How many refusals of posted messages have been reported by a wait.
    pub(in crate::device) fn refusals_reported(&self) -> u64 {
        self.refusals.reported
    }

    /// The first refusal of a posted message for a wait that began when this many had
    /// been reported, and how many there are by now. `None` while other posted
    /// messages are unanswered: one wait reports all refusals.
    pub(in crate::device) fn refusal_after(&self, reported: u64) -> Option<(u64, Error)> {
        let first = self.refusals.first.clone();
        let first = first.filter(|_| self.refusals.total > reported && self.posted_settled())?;
        Some((self.refusals.total, first))
    }

    /// A wait has reported this many refusals.
    pub(in crate::device) fn report_refusals(&mut self, total: u64) {
        self.refusals.reported = self.refusals.reported.max(total);
    }

    /// Another back-end has no translations: what the one before refused has no
    /// effect any longer.
    pub(super) fn forget_refusals(&mut self) {
        self.report_refusals(self.refusals.total);
        self.refusals.first = None;
    }

    /// Notes what was posted and answered, so that deadlines count from now.
    pub(in crate::device) fn note_posted(&mut self, now: Instant) {
        let Mode::Up(live) = &mut self.mode else {
            return;
        };
        // First: of what counts as answered here, refusals are there below.
        let posted = live.client.posted();
        let watched = &mut live.watched;
        let changed = watched.posted != posted.unanswered;
        let before = watched.oldest.map(|(number, ..)| number);
        if before != posted.oldest.map(|(number, _)| number) {
            watched.oldest = posted
                .oldest
                .map(|(number, request)| (number, request, now));
            watched.stalled = false;
            // The back-end begins with the request behind it now.
            if let Some(first) = live.under_way.front_mut().filter(|_| before.is_some()) {
                first.since = now;
            }
        }
        watched.posted = posted.unanswered;
        let refused = live.client.take_posted_refusals();
        if let Some((count, error)) = refused {
            let reported = self.refusals.total == self.refusals.reported;
            self.refusals.total = self.refusals.total.saturating_add(count.into());
            if reported || self.refusals.first.is_none() {
                self.refusals.first = Some(error.clone());
            }
            let event = Event {
                error: Some(error),
                count,
                ..self.event(EventKind::IotlbRefused)
            };
            self.events.push(event);
            self.news();
        }
        if changed {
            self.news();
        }
    }

    /// Looks at the channel and at what was posted: reports what happened there.
    /// Fails where the connection is unusable because of it. `looked`: as for
    /// [`advance`](Self::advance).
    pub(super) fn watch_channel(&mut self, looked: bool, now: Instant) -> Result<()> {
        self.note_posted(now);
        let Some(live) = self.live() else {
            return Ok(());
        };
        if live.client.lost().is_some() {
            return Ok(());
        }
        if live.watched.quiet_until.is_none_or(|until| until <= now) {
            self.report_refused(now);
        }
        self.watch_posted(looked, now)?;
        self.watch_end(now)
    }

    /// Reports the requests of the back-end that the library has refused.
    pub(super) fn report_refused(&mut self, now: Instant) {
        let Mode::Up(live) = &mut self.mode else {
            return;
        };
        let all = live.client.take_refused_requests();
        if !all.is_empty() {
            live.watched.quiet_until = now.checked_add(INTERVAL);
        }
        for refused in all {
            let event = Event {
                error: Some(refused.error()),
                count: refused.count,
                ..self.event(EventKind::ChannelRefused)
            };
            self.events.push_refused(event);
            self.news();
        }
    }

    /// Holds the posted message that the back-end works at to its deadline.
    fn watch_posted(&mut self, looked: bool, now: Instant) -> Result<()> {
        let stall = self.options.stall;
        let Mode::Up(live) = &mut self.mode else {
            return Ok(());
        };
        let Some((_, request, since)) = live.watched.oldest.filter(|_| looked) else {
            return Ok(());
        };
        let waited = now.saturating_duration_since(since);
        if live
            .client
            .posted_timeout()
            .is_some_and(|limit| limit <= waited)
        {
            let text = "the back-end did not answer before the deadline";
            let error = Error::new(Kind::TimedOut, text).of(request);
            return Err(error.during(Phase::Reply));
        }
        if waited >= stall && !std::mem::replace(&mut live.watched.stalled, true) {
            let text = "the back-end has not answered yet; it is waited for";
            let error = Error::new(Kind::TimedOut, text).of(request);
            let event = Event {
                error: Some(error.during(Phase::Reply)),
                ..self.event(EventKind::Stalled)
            };
            self.events.push(event);
        }
        Ok(())
    }

    /// Reports the end of the channel. Where the device depends on the channel, the
    /// connection is unusable without it.
    fn watch_end(&mut self, now: Instant) -> Result<()> {
        let Mode::Up(live) = &mut self.mode else {
            return Ok(());
        };
        let Some(cause) = live.client.channel_ended() else {
            return Ok(());
        };
        live.watched.ended.get_or_insert(now);
        let waits = matches!(cause.kind, Kind::Disconnected)
            && live.grace_ends().is_some_and(|end| now < end);
        if waits || std::mem::replace(&mut live.watched.reported, true) {
            // A device that begins to depend on the channel later is refused by
            // check_platform().
            return Ok(());
        }
        let depends = live.depends_on_channel(&self.wanted);
        let text = format!("the back-end's channel has ended: {}", cause.message);
        let error = cause.saying(text);
        let event = Event {
            error: Some(error.clone()),
            ..self.event(EventKind::ChannelClosed)
        };
        self.events.push(event);
        self.news();
        match depends {
            true => Err(error),
            false => Ok(()),
        }
    }

    /// Refuses VIRTIO_F_ACCESS_PLATFORM on a connection on which translations do not
    /// work.
    pub(in crate::device) fn check_platform(&self, features: u64) -> Result<()> {
        let Some(live) = self.live().filter(|_| features & ACCESS_PLATFORM != 0) else {
            return Ok(());
        };
        let agreed = live
            .actual
            .sent
            .protocol
            .unwrap_or(ProtocolFeatures::empty());
        let missing = TRANSLATES.difference(agreed);
        let offered = live.actual.offered_protocol.told().unwrap_or_default();
        let names = |bits: u64| bit_names(bits, protocol_feature_name);
        let reason = match (missing.bits() & !offered, missing.bits() & offered) {
            (0, 0) if !live.watched.reported => return Ok(()),
            (0, 0) => "the back-end's channel has ended".to_owned(),
            (0, left_out) => format!(
                "the options of the device do not allow {}; BACKEND_REQ needs backend_ops",
                names(left_out)
            ),
            (not_offered, _) => format!("the back-end does not offer {}", names(not_offered)),
        };
        let text = format!(
            "VIRTIO_F_ACCESS_PLATFORM needs the protocol features {}: {reason}",
            names(TRANSLATES.bits())
        );
        Err(Error::new(Kind::NotNegotiated, text))
    }
}
