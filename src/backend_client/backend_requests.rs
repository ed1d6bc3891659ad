//! What the back-end asks for on its channel: checked, done by the caller's
//! [`BackendHandler`] or kept for the caller's event loop, and answered.

use super::negotiated::Negotiated;
use super::refusals::{Refusal, Refusals, Refused};
use super::shmem::{self, Mappings};
use crate::connection::{Answer, Incoming, Serve, Served};
use crate::error::{Error, Result};
use crate::message::{
    Answered, BackendRequest, Iotlb, MAX_RING_INDEX, NO_FD, ShmemArea, UUID_SIZE, VringArea,
    VringState, iotlb,
};
use nix::errno::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::FromBytes;

/// Identifies a shared object.
pub type Uuid = [u8; UUID_SIZE];

/// Doorbell page of a ring, which the guest may write in place of its kick.
#[derive(Debug)]
pub struct HostNotifier {
    /// What to map, shared and writable.
    pub fd: OwnedFd,
    /// Where to begin in it.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// What the caller does for its back-end.
///
/// The first group must be answered before the back-end goes on. These run inside
/// any call that waits for the back-end, or inside
/// [`process_backend_requests`](super::BackendClient::process_backend_requests),
/// one at a time. They may not wait for a lock that any thread holds while it
/// calls this client, and of this client they may call only
/// [`post_iotlb`](super::BackendClient::post_iotlb),
/// [`abort`](super::BackendClient::abort) and what does not send; the rest
/// answers [`Kind::State`](crate::Kind::State). What they return is the answer:
/// 0 for success, otherwise a negative errno.
///
/// The second group is acknowledged at once and runs only inside
/// `process_backend_requests`, where any call is allowed.
pub trait BackendHandler: Send + Sync {
    /// Whether there is anything here for this request; otherwise it is refused.
    fn handles(&self, request: BackendRequest) -> bool;

    /// The back-end needs the translation of `iova` (BACKEND_IOTLB_MSG, miss):
    /// [`post_iotlb`](super::BackendClient::post_iotlb) sends it.
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        let _ = (iova, perm);
        UNHANDLED
    }

    /// The back-end was denied an access (BACKEND_IOTLB_MSG, access fail).
    fn iotlb_access_fail(&self, message: &Iotlb) -> i32 {
        let _ = message;
        UNHANDLED
    }

    /// A ring's doorbell page is there, or with `None` gone
    /// (BACKEND_VRING_HOST_NOTIFIER_MSG, a reset, or the end of the connection: then the
    /// result means nothing).
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        let _ = (ring, notifier);
        UNHANDLED
    }

    /// Finds an object that another device exported
    /// (BACKEND_SHARED_OBJECT_LOOKUP).
    fn shared_object_lookup(&self, uuid: &Uuid) -> std::result::Result<OwnedFd, i32> {
        let _ = uuid;
        Err(UNHANDLED)
    }

    /// Maps a file into a shared memory region of the device
    /// (BACKEND_SHMEM_MAP). Bounds and overlap have been checked.
    fn shmem_map(&self, area: &ShmemArea, fd: OwnedFd) -> i32 {
        let _ = (area, fd);
        UNHANDLED
    }

    /// Takes away what [`shmem_map`](Self::shmem_map) mapped (BACKEND_SHMEM_UNMAP,
    /// a reset, or the end of the connection: then the result means nothing).
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        let _ = area;
        UNHANDLED
    }

    /// The configuration space has changed (BACKEND_CONFIG_CHANGE_MSG).
    fn config_changed(&self) {}

    /// The device has used buffers of this ring (BACKEND_VRING_CALL).
    fn vring_call(&self, ring: u8) {
        let _ = ring;
    }

    /// This ring is broken (BACKEND_VRING_ERR).
    fn vring_err(&self, ring: u8) {
        let _ = ring;
    }

    /// The device exports an object (BACKEND_SHARED_OBJECT_ADD).
    fn shared_object_added(&self, uuid: &Uuid) {
        let _ = uuid;
    }

    /// It does so no longer (BACKEND_SHARED_OBJECT_REMOVE, a reset, or the end of the
    /// connection).
    fn shared_object_removed(&self, uuid: &Uuid) {
        let _ = uuid;
    }
}

const UNHANDLED: i32 = -libc::EOPNOTSUPP;

/// Most changes of shared objects that wait for the event loop.
const MAX_OBJECTS: usize = 64;
/// Most shared objects of a back-end at once.
const MAX_EXPORTED: usize = 1 << 16;

/// One bit for each ring.
#[derive(Debug, Default)]
struct Rings([u64; 4]);

impl Rings {
    fn insert(&mut self, ring: u8) {
        if let Some(word) = self.0.get_mut(usize::from(ring >> 6)) {
            *word |= 1_u64.wrapping_shl(u32::from(ring & 63));
        }
    }

    /// Whether it was there.
    fn remove(&mut self, ring: u8) -> bool {
        let bit = 1_u64.wrapping_shl(u32::from(ring & 63));
        match self.0.get_mut(usize::from(ring >> 6)) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                true
            }
            _ => false,
        }
    }

    /// Moves all of them to `other`.
    fn move_to(&mut self, other: &mut Self) {
        for (from, to) in std::mem::take(self).0.into_iter().zip(&mut other.0) {
            *to |= from;
        }
    }

    fn take_first(&mut self) -> Option<u8> {
        (0..=u8::MAX)
            .step_by(64)
            .zip(&mut self.0)
            .find_map(|(first, word)| {
                let bit = u8::try_from(word.trailing_zeros())
                    .ok()
                    .filter(|bit| *bit < 64)?;
                *word &= !1_u64.wrapping_shl(u32::from(bit));
                Some(first | bit)
            })
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// What waits for the caller's event loop.
#[derive(Debug, Default)]
struct Waiting {
    mappings: Mappings,
    /// Mappings that went away by themselves.
    gone: Vec<ShmemArea>,
    /// Rings with a doorbell page.
    notifiers: Rings,
    /// Rings whose doorbell page went away by itself.
    notifiers_gone: Rings,
    /// Shared objects that the back-end has added and not removed.
    exported: BTreeSet<Uuid>,
    /// What happened to shared objects before they went away by themselves, and that they
    /// did.
    withdrawn: VecDeque<Event>,
    objects: VecDeque<Event>,
    config: bool,
    calls: Rings,
    errors: Rings,
    /// How often the device has been reset, and how often anything was withdrawn.
    resets: u64,
    withdrawals: u64,
    ended: Option<Error>,
    /// Whether the caller has been told of the end.
    told: bool,
    /// What the library refused.
    refused: Refusals,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Gone(ShmemArea),
    NotifierGone(u8),
    Added(Uuid),
    Removed(Uuid),
    Config,
    Call(u8),
    Err(u8),
}

impl Waiting {
    fn next(&mut self) -> Option<Event> {
        if let Some(area) = self.gone.pop() {
            return Some(Event::Gone(area));
        }
        if let Some(ring) = self.notifiers_gone.take_first() {
            return Some(Event::NotifierGone(ring));
        }
        let withdrawn = self.withdrawn.pop_front();
        if let Some(event) = withdrawn.or_else(|| self.objects.pop_front()) {
            return Some(event);
        }
        if std::mem::take(&mut self.config) {
            return Some(Event::Config);
        }
        let call = self.calls.take_first().map(Event::Call);
        call.or_else(|| self.errors.take_first().map(Event::Err))
    }

    /// All that the back-end has set goes away by itself.
    fn withdraw(&mut self) {
        self.withdrawals = self.withdrawals.saturating_add(1);
        self.gone.extend(self.mappings.take());
        self.notifiers.move_to(&mut self.notifiers_gone);
        self.withdrawn.append(&mut self.objects);
        let exported = std::mem::take(&mut self.exported);
        self.withdrawn
            .extend(exported.into_iter().map(Event::Removed));
    }

    /// The caller has mapped this. If everything was withdrawn while that took place, it is
    /// one of what is gone.
    fn mapped(&mut self, area: ShmemArea, withdrawals: u64) {
        match self.withdrawals == withdrawals {
            true => self.mappings.insert(area),
            false => self.gone.push(area),
        }
    }

    /// The same for the doorbell page of a ring.
    fn notifies(&mut self, ring: u8, withdrawals: u64) {
        match self.withdrawals == withdrawals {
            true => self.notifiers.insert(ring),
            false => self.notifiers_gone.insert(ring),
        }
    }

    /// The caller has unmapped this, and need not be told that it is gone.
    fn unmapped(&mut self, area: &ShmemArea, withdrawals: u64) {
        match self.withdrawals == withdrawals {
            true => self.mappings.remove(area),
            false => self.gone.retain(|gone| gone != area),
        }
    }

    /// Of the mappings that went away by themselves, those where this one is to lie.
    fn gone_below(&mut self, area: &ShmemArea) -> Vec<ShmemArea> {
        let gone = std::mem::take(&mut self.gone).into_iter();
        let (below, rest) = gone.partition(|gone| shmem::overlap(gone, area));
        self.gone = rest;
        below
    }

    fn is_empty(&self) -> bool {
        self.gone.is_empty()
            && self.notifiers_gone.is_empty()
            && self.withdrawn.is_empty()
            && self.objects.is_empty()
            && !self.config
            && self.calls.is_empty()
            && self.errors.is_empty()
    }
}

/// Between the channel and the caller's handler.
pub(super) struct Desk {
    negotiated: Arc<Negotiated>,
    handler: Arc<dyn BackendHandler>,
    max_rings: u32,
    /// Never locked while the handler runs.
    waiting: Mutex<Waiting>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk")
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

/// Why the content of a request is refused.
const MALFORMED: Refusal = Refusal::invalid("its content is not what the protocol allows");

fn decode<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    incoming: &Incoming,
) -> std::result::Result<T, Refusal> {
    T::read_from_bytes(incoming.payload()).map_err(|_| MALFORMED)
}

fn ok_if(fine: bool) -> std::result::Result<(), Refusal> {
    if fine { Ok(()) } else { Err(MALFORMED) }
}

/// The value on the wire: 0, or a negative errno in 64 bits.
fn value(result: i32) -> u64 {
    u64::from_ne_bytes(i64::from(result).to_ne_bytes())
}

fn raw(errno: Errno) -> i32 {
    let raw = std::io::Error::from(errno).raw_os_error();
    raw.unwrap_or(libc::EIO).saturating_neg()
}

impl Desk {
    pub(super) fn new(
        negotiated: Arc<Negotiated>,
        handler: Arc<dyn BackendHandler>,
        max_rings: u32,
    ) -> Self {
        Self {
            negotiated,
            handler,
            max_rings,
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the handlers of what waits, but no more than `most`. The failure is
    /// that of a channel that has ended, and of which nothing waits any more.
    pub(super) fn deliver(&self, most: usize) -> Result<()> {
        for _ in 0..most {
            // Not while the handler runs.
            let event = self.waiting().next();
            match event {
                None => break,
                Some(Event::Gone(area)) => {
                    self.handler.shmem_unmap(&area);
                }
                Some(Event::NotifierGone(ring)) => {
                    self.handler.host_notifier(ring, None);
                }
                Some(Event::Added(uuid)) => self.handler.shared_object_added(&uuid),
                Some(Event::Removed(uuid)) => self.handler.shared_object_removed(&uuid),
                Some(Event::Config) => self.handler.config_changed(),
                Some(Event::Call(ring)) => self.handler.vring_call(ring),
                Some(Event::Err(ring)) => self.handler.vring_err(ring),
            }
        }
        let mut waiting = self.waiting();
        match waiting.ended.clone() {
            Some(cause) if waiting.is_empty() => {
                waiting.told = true;
                Err(cause)
            }
            _ => Ok(()),
        }
    }

    /// Why the channel has ended, if it has.
    pub(super) fn ended_with(&self) -> Option<Error> {
        self.waiting().ended.clone()
    }

    /// Whether there is something to [take](Self::take_refused).
    pub(super) fn has_refused(&self) -> bool {
        !self.waiting().refused.is_empty()
    }

    /// What the library refused since the last call.
    pub(super) fn take_refused(&self) -> Vec<Refused> {
        self.waiting().refused.take()
    }

    /// Tells the caller at once which mappings and doorbell pages are gone. Not while
    /// something is served, which may map anew. Handlers hear of shared objects in the
    /// next [`deliver`](Self::deliver).
    pub(super) fn tell_what_is_gone(&self) {
        let (mappings, mut notifiers) = {
            let mut waiting = self.waiting();
            let notifiers = std::mem::take(&mut waiting.notifiers_gone);
            (std::mem::take(&mut waiting.gone), notifiers)
        };
        for area in mappings {
            self.handler.shmem_unmap(&area);
        }
        while let Some(ring) = notifiers.take_first() {
            self.handler.host_notifier(ring, None);
        }
    }

    /// What the back-end has set is gone. Handlers hear of it in the next
    /// [`deliver`](Self::deliver).
    pub(super) fn withdraw(&self) {
        self.waiting().withdraw();
    }

    fn ring(&self, index: u64) -> std::result::Result<u8, Refusal> {
        let rings = match self.max_rings {
            0 => u64::from(MAX_RING_INDEX).saturating_add(1),
            rings => u64::from(rings),
        };
        let beyond = Refusal::invalid("the device has no ring with this index");
        let index = u8::try_from(index).map_err(|_| beyond)?;
        match u64::from(index) < rings {
            true => Ok(index),
            false => Err(beyond),
        }
    }

    /// Does what is asked: the answer, and the descriptor with it.
    fn act(
        &self,
        request: BackendRequest,
        mut incoming: Incoming,
    ) -> std::result::Result<(i32, Option<OwnedFd>), Refusal> {
        let info = request.info();
        if !info.payload.contain(incoming.size) {
            return Err(Refusal::invalid("its payload has the wrong size"));
        }
        if !info.fds.contain(incoming.fds) {
            let why = "it has the wrong number of file descriptors";
            return Err(Refusal::invalid(why));
        }
        if !self.negotiated.may_ask(info.gate) {
            let why = "the feature that it belongs to was not acknowledged";
            return Err(Refusal::new(Errno::EPERM, why));
        }
        if !self.handler.handles(request) {
            let why = "the caller supplied no function for it";
            return Err(Refusal::new(Errno::EOPNOTSUPP, why));
        }
        let fd = incoming.fd.take();
        let incoming = &incoming;
        let result = match request {
            BackendRequest::Iotlb => {
                let message: Iotlb = decode(incoming)?;
                match message.kind {
                    iotlb::MISS => self.handler.iotlb_miss(message.iova, message.perm),
                    iotlb::ACCESS_FAIL => self.handler.iotlb_access_fail(&message),
                    _ => return Err(MALFORMED),
                }
            }
            BackendRequest::ConfigChange => {
                self.waiting().config = true;
                0
            }
            BackendRequest::HostNotifier => {
                let VringArea {
                    value,
                    size,
                    offset,
                } = decode(incoming)?;
                let ring = self.ring(value & 0xff)?;
                ok_if(value & !(0xff | NO_FD) == 0 && fd.is_some() == (value & NO_FD == 0))?;
                ok_if(fd.is_none() || (size > 0 && offset.checked_add(size).is_some()))?;
                let notifier = fd.map(|fd| HostNotifier {
                    fd: fd.into_fd(),
                    offset,
                    size,
                });
                let sets = notifier.is_some();
                // That of before a reset, of which the caller is only to be informed.
                let (gone, withdrawals) = {
                    let mut waiting = self.waiting();
                    (waiting.notifiers_gone.remove(ring), waiting.withdrawals)
                };
                if gone && sets {
                    self.handler.host_notifier(ring, None);
                }
                let result = self.handler.host_notifier(ring, notifier);
                match (result, sets) {
                    (0, true) => self.waiting().notifies(ring, withdrawals),
                    (0, false) => {
                        let mut waiting = self.waiting();
                        waiting.notifiers.remove(ring);
                        waiting.notifiers_gone.remove(ring);
                    }
                    _ => {}
                }
                result
            }
            BackendRequest::VringCall | BackendRequest::VringErr => {
                let state: VringState = decode(incoming)?;
                let ring = self.ring(u64::from(state.index))?;
                let mut waiting = self.waiting();
                match request {
                    BackendRequest::VringCall => waiting.calls.insert(ring),
                    _ => waiting.errors.insert(ring),
                }
                0
            }
            BackendRequest::SharedObjectAdd | BackendRequest::SharedObjectRemove => {
                let uuid: Uuid = decode(incoming)?;
                let mut waiting = self.waiting();
                if waiting.objects.len() >= MAX_OBJECTS {
                    let why = "too many changes of shared objects wait for the caller";
                    return Err(Refusal::new(Errno::ENOSPC, why));
                }
                let event = if request == BackendRequest::SharedObjectAdd {
                    let known = waiting.exported.len();
                    if known.saturating_add(waiting.withdrawn.len()) >= MAX_EXPORTED {
                        let why = "there are too many shared objects";
                        return Err(Refusal::new(Errno::ENOSPC, why));
                    }
                    waiting.exported.insert(uuid);
                    Event::Added(uuid)
                } else {
                    waiting.exported.remove(&uuid);
                    Event::Removed(uuid)
                };
                waiting.objects.push_back(event);
                0
            }
            BackendRequest::SharedObjectLookup => {
                return Ok(
                    match self.handler.shared_object_lookup(&decode(incoming)?) {
                        Ok(found) => (0, Some(found)),
                        Err(0) => (UNHANDLED, None),
                        Err(code) => (code, None),
                    },
                );
            }
            BackendRequest::ShmemMap => {
                let area: ShmemArea = decode(incoming)?;
                let fd = fd.ok_or(MALFORMED)?;
                let size = self.negotiated.shmem_size(area.shmid);
                shmem::check_file(&area, fd.as_fd())?;
                let (before, withdrawals) = {
                    let mut waiting = self.waiting();
                    let gone = waiting.gone.len();
                    waiting.mappings.check(&area, size, gone)?;
                    (waiting.gone_below(&area), waiting.withdrawals)
                };
                // What was there before a reset, and is only to be told.
                for gone in before {
                    self.handler.shmem_unmap(&gone);
                }
                let result = self.handler.shmem_map(&area, fd.into_fd());
                if result == 0 {
                    self.waiting().mapped(area, withdrawals);
                }
                result
            }
            BackendRequest::ShmemUnmap => {
                let area: ShmemArea = decode(incoming)?;
                let (known, withdrawals) = {
                    let waiting = self.waiting();
                    (waiting.mappings.find(&area)?, waiting.withdrawals)
                };
                let result = self.handler.shmem_unmap(&known);
                if result == 0 {
                    self.waiting().unmapped(&known, withdrawals);
                }
                result
            }
        };
        Ok((result, None))
    }
}

impl Serve for Desk {
    fn serve(&self, incoming: Incoming) -> Served {
        let wanted = incoming.need_reply;
        let request = BackendRequest::from_id(incoming.request);
        let id = incoming.request;
        let done = match request {
            Some(request) => self.act(request, incoming),
            // It has been read whole, so the next one is in step.
            None => {
                let why = "this library knows no request with this number";
                Err(Refusal::new(Errno::EOPNOTSUPP, why))
            }
        };
        let (result, fd) = done.unwrap_or_else(|refusal| {
            self.waiting().refused.add(id, refusal);
            (raw(refusal.errno), None)
        });
        let always = request.is_some_and(|known| known.info().answered == Answered::Always);
        let answer = Answer {
            value: value(result),
            fd,
        };
        Served {
            answer: (wanted || always).then_some(answer),
            refused: result != 0,
        }
    }

    fn resets(&self, times: u64) {
        let mut waiting = self.waiting();
        if waiting.resets < times {
            waiting.resets = times;
            waiting.withdraw();
        }
    }

    fn ended(&self, cause: &Error) {
        let mut waiting = self.waiting();
        waiting.withdraw();
        waiting.ended.get_or_insert_with(|| cause.clone());
    }

    fn pending(&self) -> bool {
        let waiting = self.waiting();
        !waiting.is_empty() || (waiting.ended.is_some() && !waiting.told)
    }
}
