//! Making a device as it is wanted: from an event loop, or waiting for it.

use super::core::{Core, Placed, Unplaced, readable};
use super::event::Event;
use super::{Device, held, made};
use crate::backend_client::Timeout;
use crate::connection::ThreadMark;
use crate::error::{Error, Kind, Result};
use crate::socket::{self, Bell, Deadline};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) const DEFAULT_WAIT: Option<Duration> = Some(Duration::from_secs(60));

fn called_back() -> Error {
    let text = "this call may not be made by a function that the library calls";
    Error::new(Kind::State, text)
}

/// The thread that drives does no longer, whatever happens to it.
struct Driving<'a>(&'a AtomicUsize);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// Functions of the caller's read on this thread where rings stand; no longer,
/// whatever happens to them.
struct Reading<'a>(&'a Device, ThreadMark);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut core = self.0.lock();
        // What a thread began last it ends first.
        if let Some(at) = core.reading.iter().rposition(|(mark, _)| *mark == self.1) {
            core.reading.remove(at);
        }
        drop(core);
        self.0.read.notify_all();
    }
}

/// A thread waits.
struct Waiting<'a>(&'a Device, Arc<Bell>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.wakes_no_longer(&self.1);
    }
}

impl Device {
    /// The one descriptor to poll: readable when [`process`](Self::process) has
    /// something to do or an event to give. It stays the same.
    pub fn notifier(&self) -> BorrowedFd<'_> {
        self.notifier.fd()
    }

    /// Does a bounded part of what there is to do, without waiting, and gives the
    /// next event.
    pub fn process(&self) -> Result<Option<Event>> {
        self.turn()?;
        let mut core = self.lock();
        core.history.processed = true;
        let event = core.events.pop();
        self.arm(&core);
        Ok(event)
    }

    /// Waits until the back-end has acknowledged all that is wanted, and has answered
    /// all that was [posted](Self::post_iotlb).
    ///
    /// Events are left for [`process`](Self::process). Fails with
    /// [`Kind::TimedOut`], with the last cause in its text and fields; with
    /// [`Kind::State`] where rings wait for a reset of the device; and with
    /// [`Kind::Nack`] if the back-end has refused a part of what is wanted, or has
    /// refused what was posted since a wait has last reported that. All waits that are
    /// under way report the latter, once all that was posted is answered.
    pub fn wait(&self, timeout: Timeout) -> Result<()> {
        let reported = self.lock().refusals_reported();
        let refused = Cell::new(reported);
        let result = self.wait_until(timeout, |core| {
            if let Some((total, error)) = core.refusal_after(reported) {
                refused.set(total);
                return Some(Err(error));
            }
            if core.wanted.waits_for_reset() {
                return Some(Err(held()));
            }
            if core.settled() {
                return Some(Ok(()));
            }
            core.refused_for_good().map(Err)
        });
        if refused.get() != reported {
            self.lock().report_refusals(refused.get());
        }
        result
    }

    /// Drives until there is a result.
    pub(super) fn wait_until(
        &self,
        timeout: Timeout,
        result: impl Fn(&Core) -> Option<Result<()>>,
    ) -> Result<()> {
        let deadline = Deadline::after(timeout.or(DEFAULT_WAIT));
        let bell = Arc::new(Bell::new().map_err(made)?);
        self.waiters().push(Arc::clone(&bell));
        let waiting = Waiting(self, bell);
        loop {
            // First: what rings while we are at it must not be missed.
            waiting.1.silence();
            let drove = self.turn()?;
            let core = self.lock();
            // Who closes rings first, and that may just have been silenced.
            self.check_open()?;
            if let Some(result) = result(&core) {
                return result;
            }
            if deadline.passed() {
                return Err(core.explain(self.now()));
            }
            let now = self.now();
            let until = match core.due(now) {
                Some(due) if drove => deadline.no_later_than(due.saturating_duration_since(now)),
                _ => deadline,
            };
            drop(core);
            // What another thread is at stays readable as long as it is.
            let bell = readable(waiting.1.fd());
            let traffic = if drove {
                readable(self.traffic.fd())
            } else {
                bell
            };
            socket::wait([traffic, bell], until)
                .map_err(|errno| Error::os(errno, "cannot wait for the back-end"))?;
        }
    }

    fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::new(Kind::Canceled, "the device is being closed")),
            false => Ok(()),
        }
    }

    /// One step of everything, unless another thread is at it: whether it is not.
    /// That wakes who waits here, when it is done.
    pub(super) fn turn(&self) -> Result<bool> {
        self.check_open()?;
        self.check_not_inside()?;
        let here = ThreadMark::here().number();
        // Once more after the flag is set: who drives looks at it last.
        for _ in 0..2 {
            let (free, order) = (0, Ordering::SeqCst);
            match self.driving.compare_exchange(free, here, order, order) {
                Ok(_) => {
                    self.drive();
                    if self.missed.swap(false, Ordering::SeqCst) {
                        self.wake();
                    }
                    return Ok(true);
                }
                Err(_) => self.missed.store(true, Ordering::SeqCst),
            }
        }
        Ok(false)
    }

    fn drives_here(&self) -> bool {
        self.driving.load(Ordering::SeqCst) == ThreadMark::here().number()
    }

    /// Fails inside a function of the caller's that this device has called: mostly
    /// while it is driven, but the trace also tells what is posted, and where a ring
    /// stands is asked when it is to be started.
    pub(super) fn check_not_inside(&self) -> Result<()> {
        let here = ThreadMark::here();
        let client = self.lock().live().map(|live| Arc::clone(&live.client));
        let inside = self.drives_here()
            || self.askers().contains(&here)
            || self.lock().reading.iter().any(|(mark, _)| *mark == here)
            || client.is_some_and(|client| client.called_back_here());
        match inside {
            true => Err(called_back()),
            false => Ok(()),
        }
    }

    pub(super) fn drive(&self) {
        let driving = Driving(&self.driving);
        let mut core = self.lock();
        let before = core.news;
        core.transport(&self.traffic, self.now());
        let unread = core.unread_bases();
        if !unread.is_empty() {
            let places = self.read_places(core, unread);
            core = self.lock();
            core.place_unread(&places);
        }
        if core.live().is_some_and(|live| !live.placed) {
            let unplaced = core.unplaced();
            let places = self.read_places(core, unplaced);
            core = self.lock();
            core.place(&places);
        }
        let client = core.live().map(|live| Arc::clone(&live.client));
        if let Some(client) = client {
            // What was asked for meanwhile, in one go with what is there.
            core.advance(false, &self.traffic, self.now());
            // The caller's functions run only without the lock.
            drop(core);
            client.step();
            core = self.lock();
            core.advance(true, &self.traffic, self.now());
            core = self.check_drains(core);
            drop(core);
            client.step_channel();
            core = self.lock();
            core.advance(false, &self.traffic, self.now());
        }
        core.note_health(self.now());
        let retired = std::mem::take(&mut core.retired);
        let notices = std::mem::take(&mut core.notices);
        core.unseen = false;
        self.arm(&core);
        let moved = before != core.news;
        let client = core.live().map(|live| Arc::clone(&live.client));
        drop(core);
        for fd in notices {
            // One that cannot be written is nobody's but the caller's.
            let _ = socket::notify(fd.as_fd());
        }
        if let Some(client) = client {
            client.tell_begun();
        }
        for client in retired {
            // What it had set, and is gone, is reported here.
            client.tell_begun();
            client.finish_handlers();
        }
        drop(driving);
        if moved {
            self.wake();
        }
    }

    /// Looks at the used index of rings whose stop was answered.
    fn check_drains<'a>(&'a self, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        let unread = core.unread_drains(self.now());
        if unread.is_empty() {
            return core;
        }
        let places = self.read_places(core, unread);
        let mut core = self.lock();
        core.drained(&places, &self.traffic, self.now());
        core.advance(false, &self.traffic, self.now());
        core
    }

    /// Has the caller's functions read the places of rings, without the lock.
    pub(super) fn read_places(
        &self,
        mut core: MutexGuard<'_, Core>,
        unplaced: Vec<Unplaced>,
    ) -> Vec<Placed> {
        let here = ThreadMark::here();
        let rings = unplaced.iter().map(|ring| ring.index).collect();
        core.reading.push((here, rings));
        drop(core);
        let _reading = Reading(self, here);
        let read = |ring: Unplaced| Placed {
            index: ring.index,
            origin: ring.unread.origin,
            used: ring.unread.indices.used(),
            available: ring.unread.indices.available(),
        };
        unplaced.into_iter().map(read).collect()
    }

    /// Waits until no function of the caller's reads where a ring stands: then
    /// memory of rings that are stopped may go. Inside such a function it does not.
    pub(super) fn unread<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        let here = ThreadMark::here();
        // It may be such a function that stops a ring. Then another thread may wait for
        // this one.
        if core.reading.iter().any(|(mark, _)| *mark == here) {
            return core;
        }
        while !core.reading.is_empty() {
            core = self.read.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
        core
    }

    /// A thread waits no longer.
    pub(super) fn wakes_no_longer(&self, bell: &Arc<Bell>) {
        self.waiters().retain(|other| !Arc::ptr_eq(other, bell));
    }

    /// Threads that wait look again.
    pub(super) fn wake(&self) {
        self.waiters().iter().for_each(|bell| bell.ring());
    }

    /// Makes the descriptor for polling say what there is to do.
    pub(super) fn arm(&self, core: &Core) {
        for watch in core.watches() {
            // What cannot be watched for is looked at when something else is.
            let _ = self.traffic.watch(watch);
        }
        let now = self.now();
        let due = core.due(now).map(|due| due.saturating_duration_since(now));
        self.alarm.set(match core.events.is_empty() {
            true => due,
            false => Some(Duration::ZERO),
        });
    }

    /// Something else is wanted: the event loop is woken for it.
    pub(super) fn moved(&self, mut core: MutexGuard<'_, Core>) {
        core.moved();
        drop(core);
        self.rouse();
    }

    /// Whoever drives the device looks at it again.
    pub(super) fn rouse(&self) {
        self.alarm.set(Some(Duration::ZERO));
        self.wake();
    }
}
