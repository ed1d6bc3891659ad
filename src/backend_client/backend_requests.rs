//! What the back-end asks for on its channel: checked, done by the caller's
//! [`BackendHandler`] or kept for the caller's event loop, and answered.

use super::negotiated::Negotiated;
use super::shmem::{self, Mappings};
use crate::connection::{Answer, Incoming, Serve, Served};
use crate::error::{Error, Result};
use crate::message::{
    Answered, BackendGate, BackendRequest, Iotlb, MAX_RING_INDEX, NO_FD, ShmemArea, UUID_SIZE,
    VringArea, VringState, iotlb,
};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
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
    /// (BACKEND_VRING_HOST_NOTIFIER_MSG).
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

    /// It does so no longer (BACKEND_SHARED_OBJECT_REMOVE).
    fn shared_object_removed(&self, uuid: &Uuid) {
        let _ = uuid;
    }
}

const UNHANDLED: i32 = -libc::EOPNOTSUPP;

/// Most changes of shared objects that wait for the event loop.
const MAX_OBJECTS: usize = 64;

/// One bit for each ring.
#[derive(Debug, Default)]
struct Rings([u64; 4]);

impl Rings {
    fn insert(&mut self, ring: u8) {
        if let Some(word) = self.0.get_mut(usize::from(ring >> 6)) {
            *word |= 1_u64.wrapping_shl(u32::from(ring & 63));
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
    objects: VecDeque<Event>,
    config: bool,
    calls: Rings,
    errors: Rings,
    ended: Option<Error>,
    /// Whether the caller has been told of the end.
    told: bool,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Gone(ShmemArea),
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
        if let Some(event) = self.objects.pop_front() {
            return Some(event);
        }
        if std::mem::take(&mut self.config) {
            return Some(Event::Config);
        }
        let call = self.calls.take_first().map(Event::Call);
        call.or_else(|| self.errors.take_first().map(Event::Err))
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

/// Refused, for this reason.
type Refusal = Errno;

fn decode<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    incoming: &Incoming,
) -> std::result::Result<T, Refusal> {
    T::read_from_bytes(incoming.payload()).map_err(|_| Errno::EINVAL)
}

fn ok_if(fine: bool) -> std::result::Result<(), Refusal> {
    if fine { Ok(()) } else { Err(Errno::EINVAL) }
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

    /// The device has been reset: its mappings are gone. Not while something is
    /// served, which may map anew.
    pub(super) fn reset(&self) {
        let mappings = self.waiting().mappings.take();
        for area in mappings {
            self.handler.shmem_unmap(&area);
        }
    }

    /// The same for who may call no handler now: they hear of it in the next
    /// [`deliver`](Self::deliver).
    pub(super) fn reset_later(&self) {
        let mut waiting = self.waiting();
        let mappings = waiting.mappings.take();
        waiting.gone.extend(mappings);
    }

    fn agreed(&self, gate: BackendGate) -> bool {
        match gate {
            BackendGate::Acked(bit) => self.negotiated.acked() & 1_u64.wrapping_shl(bit) != 0,
            BackendGate::Protocol(mask) => self.negotiated.protocol().bits() & mask == mask,
        }
    }

    fn ring(&self, index: u64) -> std::result::Result<u8, Refusal> {
        let rings = match self.max_rings {
            0 => u64::from(MAX_RING_INDEX).saturating_add(1),
            rings => u64::from(rings),
        };
        ok_if(index < rings)?;
        u8::try_from(index).map_err(|_| Errno::EINVAL)
    }

    /// Does what is asked: the answer, and the descriptor with it.
    fn act(
        &self,
        request: BackendRequest,
        mut incoming: Incoming,
    ) -> std::result::Result<(i32, Option<OwnedFd>), Refusal> {
        let info = request.info();
        ok_if(info.payload.contain(incoming.size) && info.fds.contain(incoming.fds))?;
        if !self.agreed(info.gate) {
            return Err(Errno::EPERM);
        }
        if !self.handler.handles(request) {
            return Err(Errno::EOPNOTSUPP);
        }
        let fd = incoming.fd.take();
        let incoming = &incoming;
        let result = match request {
            BackendRequest::Iotlb => {
                let message: Iotlb = decode(incoming)?;
                match message.kind {
                    iotlb::MISS => self.handler.iotlb_miss(message.iova, message.perm),
                    iotlb::ACCESS_FAIL => self.handler.iotlb_access_fail(&message),
                    _ => return Err(Errno::EINVAL),
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
                let notifier = fd.map(|fd| HostNotifier { fd, offset, size });
                ok_if(notifier.is_none() || (size > 0 && offset.checked_add(size).is_some()))?;
                self.handler.host_notifier(ring, notifier)
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
                    return Err(Errno::ENOSPC);
                }
                waiting.objects.push_back(match request {
                    BackendRequest::SharedObjectAdd => Event::Added(uuid),
                    _ => Event::Removed(uuid),
                });
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
                let fd = fd.ok_or(Errno::EINVAL)?;
                let size = self.negotiated.shmem_size(area.shmid);
                let before = {
                    let mut waiting = self.waiting();
                    let gone = waiting.gone.len();
                    waiting.mappings.check(&area, size, gone)?;
                    waiting.gone_below(&area)
                };
                // What was there before a reset, and is only to be told.
                for gone in before {
                    self.handler.shmem_unmap(&gone);
                }
                let result = self.handler.shmem_map(&area, fd);
                if result == 0 {
                    self.waiting().mappings.insert(area);
                }
                result
            }
            BackendRequest::ShmemUnmap => {
                let area: ShmemArea = decode(incoming)?;
                let known = self.waiting().mappings.find(&area)?;
                let result = self.handler.shmem_unmap(&known);
                if result == 0 {
                    self.waiting().mappings.remove(&known);
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
        let (result, fd) = match request {
            Some(request) => self
                .act(request, incoming)
                .unwrap_or_else(|errno| (raw(errno), None)),
            // It has been read whole, so the next one is in step.
            None => (UNHANDLED, None),
        };
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

    fn ended(&self, cause: &Error) {
        let mut waiting = self.waiting();
        let mappings = waiting.mappings.take();
        waiting.gone.extend(mappings);
        waiting.ended.get_or_insert_with(|| cause.clone());
    }

    fn pending(&self) -> bool {
        let waiting = self.waiting();
        !waiting.is_empty() || (waiting.ended.is_some() && !waiting.told)
    }
}
