//! Giving the back-end a channel of its own, and serving it.

use super::backend_requests::Desk;
use super::refusals::Refused;
use super::shmem::MAX_MAPPINGS;
use super::{BackendClient, BackendHandler, Begun, MAX_DELIVERED, Op, Timeout, no_channel};
use crate::connection::Posted;
use crate::error::{Error, Kind, Result};
use crate::message::Request;
use crate::socket::Watch;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

impl BackendClient {
    /// SET_BACKEND_REQ_FD: the back-end's end of a socket pair, on which it
    /// sends requests of its own. Close your copy of it afterwards, and serve
    /// the other end also while calls are under way.
    pub fn set_backend_req_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell_op(&Op::SetBackendReqFd(fd))
    }

    /// Gives the back-end a channel of its own, once on a connection: makes a
    /// socket pair, sends one end with SET_BACKEND_REQ_FD, and has `handler` do
    /// what is asked on the other. From here on every call that waits serves the
    /// channel as well.
    ///
    /// Comes after SET_PROTOCOL_FEATURES, and where SHMEM was acknowledged after
    /// GET_SHMEM_CONFIG: a mapping is refused whose region is not known.
    pub fn open_backend_channel(&self, handler: Arc<dyn BackendHandler>) -> Result<()> {
        let theirs = self.make_channel(handler)?;
        // The back-end may ask before it acknowledges.
        self.set_backend_req_fd(theirs.as_fd())
            .inspect_err(|error| self.connection.close_channel(error))
    }

    /// The same, begun.
    pub(crate) fn begin_channel(&self, handler: Arc<dyn BackendHandler>) -> Result<Begun> {
        let theirs = self.make_channel(handler)?;
        self.begin(&Op::SetBackendReqFd(theirs.as_fd()), Timeout::Default)
            .inspect_err(|error| self.connection.close_channel(error))
    }

    /// Makes a channel: the back-end's end of it.
    fn make_channel(&self, handler: Arc<dyn BackendHandler>) -> Result<OwnedFd> {
        let request = Request::SetBackendReqFd;
        // All that can be wrong before something is made that is made once.
        self.in_order(request, self.negotiated.check_unconfirmed())?;
        let negotiated = Arc::clone(&self.negotiated);
        let desk = Arc::new(Desk::new(negotiated, handler, self.max_rings));
        let theirs = self
            .connection
            .open_channel(Arc::<Desk>::clone(&desk))
            .map_err(|error| self.or_ended(error).of(request))?;
        self.desk.get_or_init(|| desk);
        Ok(theirs)
    }

    /// Moves bytes, without waiting: for who drives the connection by steps.
    pub(crate) fn step(&self) {
        // It fails inside a handler, where nothing moves anyway.
        let _ = self.connection.step();
    }

    /// Serves the channel, after what a [`step`](Self::step) brought has been taken.
    pub(crate) fn step_channel(&self) {
        if self.connection.serve_channel().is_ok() {
            if let Some(desk) = self.desk.get() {
                // That the channel has ended is not the end of the connection.
                let _ = desk.deliver(MAX_DELIVERED);
                self.connection.arm_channel();
            }
        }
    }

    /// The device has been reset, though by no request that says so: its mappings, doorbell
    /// pages and shared objects are gone. Handlers hear of it in the next step.
    pub(crate) fn resources_are_gone(&self) {
        if let Some(desk) = self.desk.get() {
            desk.withdraw();
            self.connection.arm_channel();
        }
    }

    /// Nothing more comes on the channel: handlers hear the last of it.
    pub(crate) fn finish_handlers(&self) {
        let end = Error::new(Kind::Disconnected, "the connection was given up");
        self.connection.close_channel(&end);
        if let Some(desk) = self.desk.get() {
            // All there can be; and no more than that, whatever happens.
            for _ in 0..MAX_MAPPINGS {
                if desk.deliver(MAX_DELIVERED).is_err() {
                    break;
                }
            }
        }
    }

    /// Why the channel has ended, if it has.
    pub(crate) fn channel_ended(&self) -> Option<Error> {
        self.desk.get()?.ended_with()
    }

    /// Whether there are requests for
    /// [`take_refused_requests`](Self::take_refused_requests).
    pub(crate) fn has_refused_requests(&self) -> bool {
        self.desk.get().is_some_and(|desk| desk.has_refused())
    }

    /// The requests of the back-end that the library refused since the last call.
    pub(crate) fn take_refused_requests(&self) -> Vec<Refused> {
        self.desk
            .get()
            .map(|desk| desk.take_refused())
            .unwrap_or_default()
    }

    /// The posted requests that have no answer yet.
    pub(crate) fn posted(&self) -> Posted {
        self.connection.posted()
    }

    /// How many posted requests the back-end refused since the last call, and the
    /// error of the first.
    pub(crate) fn take_posted_refusals(&self) -> Option<(u32, Error)> {
        self.connection.take_posted_refusals()
    }

    /// How long a posted request may be unanswered.
    pub(crate) fn posted_timeout(&self) -> Option<Duration> {
        self.timeouts.of(Request::IotlbMsg.info().wait)
    }

    /// Whether this thread is in a handler or the trace of this client.
    pub(crate) fn called_back_here(&self) -> bool {
        self.connection.called_back_here()
    }

    /// What to wait for on the channel before the next
    /// [`step_channel`](Self::step_channel), and whether there is something to do
    /// already.
    pub(crate) fn channel_interest(&self) -> Option<(Watch<'_>, bool)> {
        self.connection.channel_interest()
    }

    /// Tells what the trace has to say of requests that were begun.
    pub(crate) fn tell_begun(&self) {
        self.connection.tell();
    }

    /// Ready to be read when
    /// [`process_backend_requests`](Self::process_backend_requests) has something
    /// to do; for polling only. `None` before
    /// [`open_backend_channel`](Self::open_backend_channel).
    pub fn backend_notifier(&self) -> Option<BorrowedFd<'_>> {
        self.connection.channel_fd()
    }

    /// Does what the back-end asked, without waiting, and runs the handlers of
    /// what was kept for this moment: a bounded part, and the descriptor stays
    /// ready while there is more.
    ///
    /// Fails once the channel has ended and nothing is left to do.
    pub fn process_backend_requests(&self) -> Result<()> {
        let Some(desk) = self.desk.get() else {
            return Err(no_channel());
        };
        self.connection.serve_channel()?;
        let delivered = desk.deliver(MAX_DELIVERED);
        self.connection.arm_channel();
        delivered
    }
}
