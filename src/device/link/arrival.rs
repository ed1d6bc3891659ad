//! When to look for a back-end that is absent, apart from the attempts that the policy
//! has: as soon as its socket appears. These looks are silent and do not count.
//!
//! A socket is named a moment before anybody listens at it, and may get its permissions
//! after that. So one event is followed by several looks. Where nothing can be watched
//! for, as with an abstract name, there is a look now and then.

use crate::socket::{Appearance, Watch};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The shortest time between two looks, and the first delay after an event; each further
/// one is twice the one before.
const SOON: Duration = Duration::from_millis(10);
/// How many looks follow the first one after an event: within about 0.6 s.
const LOOKS: u32 = 6;
/// How long there is no look where nothing can be watched for.
const UNWATCHED: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Arrival {
    appearance: Option<Appearance>,
    /// The directory is watched.
    armed: bool,
    last: Instant,
    next: Option<Instant>,
    /// Looks since the last event.
    looks: u32,
}

impl Arrival {
    /// Nobody listens at this path.
    pub(super) fn at(path: &Path, now: Instant) -> Self {
        let appearance = Appearance::new(path).ok();
        let armed = appearance.is_some();
        let mut this = Self {
            appearance,
            armed,
            last: now,
            next: None,
            looks: LOOKS,
        };
        this.plan(now);
        this
    }

    pub(super) fn is_watched(&self) -> bool {
        self.armed
    }

    /// When there is a look because of the time.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next
    }

    pub(super) fn watch(&self) -> Option<Watch<'_>> {
        let appearance = self.appearance.as_ref()?;
        Some(Watch {
            fd: appearance.as_fd(),
            read: true,
            write: false,
            end: false,
        })
    }

    /// What was watched, to be dropped.
    pub(super) fn into_fd(self) -> Option<Appearance> {
        self.appearance
    }

    /// Whether to look now. What appears later than this is noticed.
    pub(super) fn looks(&mut self, path: &Path, now: Instant) -> bool {
        if self.appearance.as_ref().is_some_and(Appearance::happened) {
            self.looks = 0;
            let spaced = self.last.checked_add(SOON);
            self.next = Some(spaced.unwrap_or(now).max(now));
        }
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        self.armed = match &self.appearance {
            Some(appearance) => appearance.arm(path).is_ok(),
            None => {
                self.appearance = Appearance::new(path).ok();
                self.appearance.is_some()
            }
        };
        self.last = now;
        self.plan(now);
        true
    }

    /// Sets when the next look is, if nothing happens before.
    fn plan(&mut self, now: Instant) {
        let delay = match (self.armed, self.looks) {
            (true, looks) if looks < LOOKS => SOON.saturating_mul(2_u32.saturating_pow(looks)),
            (true, _) => {
                self.next = None;
                return;
            }
            (false, _) => UNWATCHED,
        };
        self.looks = self.looks.saturating_add(1);
        self.next = now.checked_add(delay);
    }
}
