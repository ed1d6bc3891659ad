//! Requests as values: one encoding for calls that wait and for whoever drives
//! the connection by steps, and the form that does not wait.

use super::{ACK, BackendClient, Call, NOTHING, SharedRegion, Timeout, Uuid, checks, decode};
use crate::connection::{Outcome, Pending, Reply};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{
    self, ConfigHeader, Inflight, MAX_CONFIG_SIZE, MemRegion, ProtocolFeatures, Request,
    SHMEM_REGIONS, ShmemConfig, VringAddr, VringState,
};
use crate::socket::{self, Deadline, ForeignFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// A request as a value: the method of the same name has what it means. What it
/// refers to is borrowed for the call that sends it.
#[derive(Debug, Clone, Copy)]
pub enum Op<'a> {
    /// GET_FEATURES.
    GetFeatures,
    /// SET_FEATURES: the virtio features acknowledged.
    SetFeatures(u64),
    /// SET_OWNER.
    SetOwner,
    /// GET_PROTOCOL_FEATURES.
    GetProtocolFeatures,
    /// SET_PROTOCOL_FEATURES: the features acknowledged.
    SetProtocolFeatures(u64),
    /// GET_QUEUE_NUM.
    GetQueueNum,
    /// GET_MAX_MEM_SLOTS.
    GetMaxMemSlots,
    /// GET_SHMEM_CONFIG.
    GetShmemConfig,
    /// GET_CONFIG.
    GetConfig(ConfigHeader),
    /// SET_CONFIG: where, and the bytes.
    SetConfig(ConfigHeader, &'a [u8]),
    /// SET_BACKEND_REQ_FD.
    SetBackendReqFd(BorrowedFd<'a>),
    /// SET_MEM_TABLE.
    SetMemTable(&'a [SharedRegion<'a>]),
    /// ADD_MEM_REG.
    AddMemRegion(&'a SharedRegion<'a>),
    /// REM_MEM_REG.
    RemoveMemRegion(&'a MemRegion),
    /// GET_INFLIGHT_FD.
    GetInflightFd(Inflight),
    /// SET_INFLIGHT_FD.
    SetInflightFd(Inflight, BorrowedFd<'a>),
    /// SET_VRING_NUM: the ring and its size.
    SetVringNum(VringState),
    /// SET_VRING_ADDR.
    SetVringAddr(VringAddr),
    /// SET_VRING_BASE: the ring and where it goes on.
    SetVringBase(VringState),
    /// SET_VRING_KICK of a ring.
    SetVringKick(u32, Option<BorrowedFd<'a>>),
    /// SET_VRING_CALL of a ring.
    SetVringCall(u32, Option<BorrowedFd<'a>>),
    /// SET_VRING_ERR of a ring.
    SetVringErr(u32, Option<BorrowedFd<'a>>),
    /// SET_VRING_ENABLE of a ring.
    SetVringEnable(u32, bool),
    /// GET_VRING_BASE of a ring.
    GetVringBase(u32),
    /// GET_VRING_BASE_SKIP_DRAIN of a ring.
    GetVringBaseSkipDrain(u32),
    /// GET_STATUS.
    GetStatus,
    /// SET_STATUS.
    SetStatus(u32),
    /// RESET_DEVICE.
    ResetDevice,
    /// SET_VRING_ENDIAN: the ring and its byte order.
    SetVringEndian(VringState),
    /// VRING_KICK of a ring.
    VringKick(u32),
    /// NET_SET_MTU.
    NetSetMtu(u32),
    /// SEND_RARP for an address.
    SendRarp([u8; 6]),
    /// SET_LOG_FD.
    SetLogFd(BorrowedFd<'a>),
    /// GPU_SET_SOCKET.
    GpuSetSocket(BorrowedFd<'a>),
    /// GET_SHARED_OBJECT.
    GetSharedObject(&'a Uuid),
}

impl Op<'_> {
    pub(crate) fn request(&self) -> Request {
        match self {
            Self::GetFeatures => Request::GetFeatures,
            Self::SetFeatures(_) => Request::SetFeatures,
            Self::SetOwner => Request::SetOwner,
            Self::GetProtocolFeatures => Request::GetProtocolFeatures,
            Self::SetProtocolFeatures(_) => Request::SetProtocolFeatures,
            Self::GetQueueNum => Request::GetQueueNum,
            Self::GetMaxMemSlots => Request::GetMaxMemSlots,
            Self::GetShmemConfig => Request::GetShmemConfig,
            Self::GetConfig(_) => Request::GetConfig,
            Self::SetConfig(..) => Request::SetConfig,
            Self::SetBackendReqFd(_) => Request::SetBackendReqFd,
            Self::SetMemTable(_) => Request::SetMemTable,
            Self::AddMemRegion(_) => Request::AddMemReg,
            Self::RemoveMemRegion(_) => Request::RemMemReg,
            Self::GetInflightFd(_) => Request::GetInflightFd,
            Self::SetInflightFd(..) => Request::SetInflightFd,
            Self::SetVringNum(_) => Request::SetVringNum,
            Self::SetVringAddr(_) => Request::SetVringAddr,
            Self::SetVringBase(_) => Request::SetVringBase,
            Self::SetVringKick(..) => Request::SetVringKick,
            Self::SetVringCall(..) => Request::SetVringCall,
            Self::SetVringErr(..) => Request::SetVringErr,
            Self::SetVringEnable(..) => Request::SetVringEnable,
            Self::GetVringBase(_) => Request::GetVringBase,
            Self::GetVringBaseSkipDrain(_) => Request::GetVringBaseSkipDrain,
            Self::GetStatus => Request::GetStatus,
            Self::SetStatus(_) => Request::SetStatus,
            Self::ResetDevice => Request::ResetDevice,
            Self::SetVringEndian(_) => Request::SetVringEndian,
            Self::VringKick(_) => Request::VringKick,
            Self::NetSetMtu(_) => Request::NetSetMtu,
            Self::SendRarp(_) => Request::SendRarp,
            Self::SetLogFd(_) => Request::SetLogFd,
            Self::GpuSetSocket(_) => Request::GpuSetSocket,
            Self::GetSharedObject(_) => Request::GetSharedObject,
        }
    }

    /// The ring that it is about.
    fn ring(&self) -> Option<u32> {
        match self {
            Self::SetVringNum(state) | Self::SetVringBase(state) | Self::SetVringEndian(state) => {
                Some(state.index)
            }
            Self::SetVringAddr(addr) => Some(addr.index),
            Self::SetVringKick(index, _)
            | Self::SetVringCall(index, _)
            | Self::SetVringErr(index, _)
            | Self::SetVringEnable(index, _)
            | Self::GetVringBase(index)
            | Self::GetVringBaseSkipDrain(index)
            | Self::VringKick(index) => Some(*index),
            _ => None,
        }
    }

    /// An error that is about this request.
    pub(super) fn name(&self, error: Error) -> Error {
        name(error, self.request(), self.ring())
    }

    /// Checks the descriptor that the device, or the driver, is notified by.
    pub(super) fn check_notifier(&self) -> Result<()> {
        match self {
            Self::SetVringKick(_, Some(fd))
            | Self::SetVringCall(_, Some(fd))
            | Self::SetVringErr(_, Some(fd))
            | Self::SetLogFd(fd) => socket::check_notifier(*fd, "fd"),
            _ => Ok(()),
        }
    }

    /// What has to be remembered until the answer is there.
    fn effect(&self) -> Effect {
        match self {
            Self::GetFeatures => Effect::Offered,
            Self::SetFeatures(features) => Effect::Acked(*features),
            Self::SetOwner => Effect::Owner,
            Self::GetProtocolFeatures => Effect::OfferedProtocol,
            Self::SetProtocolFeatures(features) => Effect::Protocol(*features),
            Self::GetQueueNum | Self::GetMaxMemSlots => Effect::Number,
            Self::GetShmemConfig => Effect::Shmem,
            Self::GetConfig(header) => Effect::Config(header.size),
            Self::SetMemTable(_) | Self::AddMemRegion(_) => Effect::Memory,
            Self::GetInflightFd(asked) => Effect::Inflight(asked.num_queues, asked.queue_size),
            Self::GetVringBase(index) => Effect::Base(*index, true),
            Self::GetVringBaseSkipDrain(index) => Effect::Base(*index, false),
            Self::GetStatus => Effect::Status,
            Self::GetSharedObject(_) => Effect::Object,
            Self::ResetDevice => Effect::Reset,
            Self::SetStatus(0) => Effect::StatusCleared,
            _ => Effect::Nothing,
        }
    }
}

/// What a request that succeeds changes or tells.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Nothing,
    Offered,
    Acked(u64),
    Owner,
    OfferedProtocol,
    Protocol(u64),
    Number,
    Shmem,
    Config(u32),
    Memory,
    /// For so many rings of so many descriptors.
    Inflight(u16, u16),
    Base(u32, bool),
    Status,
    Object,
    Reset,
    StatusCleared,
}

/// What an answer told.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Number(u64),
    Config(Box<[u8]>),
    Inflight(Inflight, Option<ForeignFd>),
    Shmem(Box<ShmemConfig>),
    Base(u32),
    Object(ForeignFd),
}

/// A request that was begun.
#[derive(Debug)]
pub(crate) struct Begun {
    pending: Pending,
    effect: Effect,
    request: Request,
    ring: Option<u32>,
    timeout: Option<Duration>,
    carries_fds: bool,
}

impl Begun {
    pub(crate) fn request(&self) -> Request {
        self.request
    }

    /// Whether its outcome shows that the back-end has processed it, and all before it.
    pub(crate) fn confirms(&self) -> bool {
        self.pending.is_answered()
    }

    /// Whether it took descriptors along.
    pub(crate) fn carries_fds(&self) -> bool {
        self.carries_fds
    }

    fn name(&self, error: Error) -> Error {
        name(error, self.request, self.ring)
    }

    /// How long it may take, from when the one before it was answered; `None`: for
    /// ever.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl BackendClient {
    /// Checks a ring index that goes into `request`.
    pub(super) fn ring(&self, request: Request, index: u32) -> Result<u8> {
        checks::ring(index, self.max_rings).map_err(|error| error.of(request).ring(index))
    }

    /// Checks what the caller passed and what has been agreed, as far as it is
    /// not the same for all, and encodes the request for `send`.
    pub(super) fn encode<R>(
        &self,
        op: &Op<'_>,
        send: impl FnOnce(&Call<'_>) -> Result<R>,
    ) -> Result<R> {
        let (mut send, mut sent) = (Some(send), None);
        self.encode_once(op, &mut |call| {
            sent = send.take().map(|send| send(call)).transpose()?;
            Ok(())
        })?;
        sent.ok_or_else(|| Error::new(Kind::Panic, "a request was encoded in vain"))
    }

    /// The same for a `send` that runs once. A function of its own, and not once more
    /// for each that sends.
    fn encode_once(
        &self,
        op: &Op<'_>,
        send: &mut dyn FnMut(&Call<'_>) -> Result<()>,
    ) -> Result<()> {
        let request = op.request();
        let ring = match op.ring() {
            Some(index) => Some(self.ring(request, index)?),
            None => None,
        };
        let checked = |result: Result<()>| result.map_err(|error| op.name(error));
        let call = |body| Call {
            ring,
            ..Call::new(request, body)
        };
        let vring_fd = |fd: &Option<_>| message::vring_fd(ring.unwrap_or_default(), fd.is_some());
        match op {
            Op::SetFeatures(features) => {
                let checks = self.negotiated.check_features(*features);
                checks.map_err(|error| self.or_ended(error).of(request))?;
                self.negotiated.propose(*features);
                send(&call(features.as_bytes()))
            }
            Op::SetOwner => {
                let checks = self.negotiated.check_owner();
                checks.map_err(|error| self.or_ended(error).of(request))?;
                send(&call(NOTHING))
            }
            Op::SetProtocolFeatures(features) => {
                let features = self
                    .negotiated
                    .check(request.info())
                    .and_then(|()| self.negotiated.check_protocol(*features))
                    .map_err(|error| self.or_ended(error).of(request))?;
                self.negotiated.propose_protocol(features);
                send(&call(features.bits().as_bytes()))
            }
            Op::GetConfig(header) => {
                let size = usize::try_from(header.size).unwrap_or(usize::MAX);
                checked(checks::config(header, size))?;
                // The rust-vmm back-ends want the room for the answer in the request.
                let zeros = [0_u8; MAX_CONFIG_SIZE];
                send(&Call {
                    payload: zeros.get(..size).unwrap_or_default(),
                    ..call(header.as_bytes())
                })
            }
            Op::SetConfig(header, data) => {
                checked(checks::config(header, data.len()))?;
                send(&Call {
                    payload: data,
                    ..call(header.as_bytes())
                })
            }
            Op::SetBackendReqFd(fd) | Op::SetLogFd(fd) | Op::GpuSetSocket(fd) => {
                send(&call(NOTHING).fds(&[*fd]))
            }
            Op::SetMemTable(regions) => {
                self.in_order(request, self.negotiated.check_memory())?;
                self.with_table(regions, &mut |call, _| send(call))
            }
            Op::AddMemRegion(region) => {
                self.with_region(request, &region.region, &[region.fd], send)
            }
            Op::RemoveMemRegion(region) => self.with_region(request, region, &[], send),
            Op::GetInflightFd(inflight) => {
                checked(checks::inflight(inflight))?;
                send(&call(inflight.as_bytes()))
            }
            Op::SetInflightFd(inflight, fd) => {
                checked(
                    checks::inflight(inflight).and_then(|()| checks::inflight_buffer(inflight)),
                )?;
                send(&call(inflight.as_bytes()).fds(&[*fd]))
            }
            Op::SetVringNum(state) => {
                checked(checks::ring_size(state.num, self.negotiated.packed()))?;
                send(&call(state.as_bytes()))
            }
            Op::SetVringAddr(addr) => {
                checked(checks::ring_address(addr, self.negotiated.packed()))?;
                send(&call(addr.as_bytes()))
            }
            Op::SetVringBase(state) => {
                let wide = !self.negotiated.packed() && state.num > u32::from(u16::MAX);
                let text = "base has more than 16 bits, and the ring is split";
                checked(if wide {
                    Err(Error::invalid(text))
                } else {
                    Ok(())
                })?;
                send(&call(state.as_bytes()))
            }
            Op::SetVringKick(_, fd) => {
                if let Some(ring) = ring {
                    // Before it is known: a barrier too many does no harm.
                    self.negotiated.set_running(ring, true);
                }
                send(&call(vring_fd(fd).as_bytes()).fds(fd.as_slice()))
            }
            Op::SetVringCall(_, fd) | Op::SetVringErr(_, fd) => {
                send(&call(vring_fd(fd).as_bytes()).fds(fd.as_slice()))
            }
            Op::SetVringEnable(index, enable) => {
                let body = VringState {
                    index: *index,
                    num: u32::from(*enable),
                };
                send(&call(body.as_bytes()))
            }
            Op::SetVringEndian(state) => {
                checked(checks::endian(state.num))?;
                send(&call(state.as_bytes()))
            }
            Op::VringKick(index) => {
                self.in_order(request, Ok(())).map_err(|e| e.ring(*index))?;
                if let Some(ring) = ring {
                    // As above.
                    self.negotiated.set_running(ring, true);
                }
                let body = VringState {
                    index: *index,
                    num: 0,
                };
                send(&call(body.as_bytes()))
            }
            Op::NetSetMtu(mtu) => {
                checked(checks::mtu(*mtu))?;
                send(&call(u64::from(*mtu).as_bytes()))
            }
            Op::SendRarp(mac) => {
                let mut body = [0; size_of::<u64>()];
                body.iter_mut().zip(mac).for_each(|(to, from)| *to = *from);
                send(&call(&body))
            }
            Op::GetVringBase(index) | Op::GetVringBaseSkipDrain(index) => {
                let body = VringState {
                    index: *index,
                    num: 0,
                };
                send(&call(body.as_bytes()))
            }
            Op::SetStatus(status) => {
                checked(checks::status(*status))?;
                send(&call(u64::from(*status).as_bytes()))
            }
            Op::GetSharedObject(uuid) => send(&call(uuid.as_slice())),
            Op::GetFeatures
            | Op::GetProtocolFeatures
            | Op::GetQueueNum
            | Op::GetMaxMemSlots
            | Op::GetShmemConfig
            | Op::GetStatus => send(&call(NOTHING)),
            Op::ResetDevice => {
                self.negotiated.propose(0);
                send(&call(NOTHING))
            }
        }
    }

    // ---- calls that wait ----

    /// A request that is acknowledged or not answered.
    pub(super) fn tell_op(&self, op: &Op<'_>) -> Result<()> {
        let effect = op.effect();
        self.encode(op, |call| {
            op.check_notifier().map_err(|error| call.name(error))?;
            self.tell(call)
        })
        .inspect_err(|error| self.forget(effect, error))?;
        self.remember(effect);
        let reset = matches!(effect, Effect::Reset | Effect::StatusCleared);
        if let (true, Some(desk)) = (reset, self.desk.get()) {
            // Otherwise they hear of it from who serves the channel.
            let deadline = Deadline::after(self.timeouts.of(op.request().info().wait));
            self.connection
                .while_unserved(deadline, || desk.tell_what_is_gone());
            // Shared objects wait for who serves the channel.
            self.connection.arm_channel();
        }
        Ok(())
    }

    /// A request whose answer is a number.
    pub(super) fn ask_number(&self, op: &Op<'_>, timeout: Timeout) -> Result<u64> {
        let effect = op.effect();
        self.encode(op, |call| {
            let call = Call {
                timeout,
                ..call.clone()
            };
            self.ask(&call, |reply| self.number(effect, &reply))
        })
    }

    // ---- the form that does not wait ----

    /// Begins a request; [`outcome`](Self::outcome) has what became of it.
    pub(crate) fn begin(&self, op: &Op<'_>, timeout: Timeout) -> Result<Begun> {
        self.encode(op, |call| {
            let pending = self
                .check(call)
                .and_then(|()| self.begin_call(call))
                .map_err(|error| call.name(error))?;
            Ok(Begun {
                pending,
                effect: op.effect(),
                request: op.request(),
                ring: op.ring(),
                timeout: timeout.or(self.timeouts.of(call.info.wait)),
                carries_fds: !call.fds.is_empty(),
            })
        })
        .inspect_err(|error| self.forget(op.effect(), error))
    }

    fn begin_call(&self, call: &Call<'_>) -> Result<Pending> {
        let out = Self::outgoing(call, self.acked(call));
        match call.info.reply {
            message::Reply::Always(_) => {
                let expect = Self::expect(call)?;
                self.connection.begin(&out, Some(expect))
            }
            _ if out.need_reply => self.connection.begin(&out, Some(ACK)),
            _ if self.needs_barrier(call) => {
                let features = Call::new(Request::GetFeatures, NOTHING);
                let expect = Self::expect(&features)?;
                let barrier = Self::outgoing(&features, false);
                self.connection.begin_with_barrier(&out, &barrier, expect)
            }
            _ => self.connection.begin(&out, None),
        }
    }

    /// What became of a request, as soon as that is known. Not to be asked again.
    pub(crate) fn outcome(&self, begun: &Begun) -> Option<Result<Answer>> {
        let outcome = self
            .connection
            .outcome(&begun.pending, |reply| match reply {
                Outcome::Sent => Ok(Answer::Done),
                Outcome::Ack(reply) => {
                    acknowledged(&reply)?;
                    Ok(Answer::Done)
                }
                Outcome::Reply(reply) => self.answer(begun.effect, reply),
            })?;
        Some(match outcome {
            Ok(answer) => {
                self.remember(begun.effect);
                Ok(answer)
            }
            Err(error) => {
                self.forget(begun.effect, &error);
                Err(begun.name(error))
            }
        })
    }

    /// Its deadline has passed: nobody asks for its outcome any more.
    pub(crate) fn overdue(&self, begun: &Begun) -> Error {
        begun.name(self.connection.overdue(&begun.pending))
    }

    /// What a request that was answered with success has changed.
    fn remember(&self, effect: Effect) {
        match effect {
            Effect::Acked(features) => self.negotiated.set_acked(features),
            Effect::Owner => self.negotiated.set_owner(true),
            Effect::Protocol(features) => {
                let features = ProtocolFeatures::from_bits_truncate(features);
                self.negotiated.set_protocol(features);
            }
            Effect::Memory => self.negotiated.set_memory(),
            Effect::Reset => self.negotiated.reset_device(),
            _ => {}
        }
    }

    /// What a request that failed has not changed.
    fn forget(&self, effect: Effect, error: &Error) {
        let may_apply = matches!(error.phase, Phase::Reply | Phase::Barrier);
        if may_apply && error.kind != Kind::Nack {
            return;
        }
        match effect {
            Effect::Acked(features) => self.negotiated.withdraw(features),
            Effect::Protocol(features) => self.negotiated.withdraw_protocol(features),
            _ => {}
        }
    }

    fn answer(&self, effect: Effect, reply: Reply<'_>) -> Result<Answer> {
        match effect {
            Effect::Config(size) => Ok(Answer::Config(config(&reply, size)?.into())),
            Effect::Inflight(queues, size) => {
                inflight(reply, (queues, size)).map(|(body, fd)| Answer::Inflight(body, fd))
            }
            Effect::Object => object(reply).map(Answer::Object),
            Effect::Shmem => Ok(Answer::Shmem(Box::new(self.shmem(&reply)?))),
            Effect::Base(..) => {
                let base = self.number(effect, &reply)?;
                Ok(Answer::Base(u32::try_from(base).unwrap_or_default()))
            }
            _ => self.number(effect, &reply).map(Answer::Number),
        }
    }

    /// An answer that is a number.
    fn number(&self, effect: Effect, reply: &Reply<'_>) -> Result<u64> {
        match effect {
            Effect::Base(index, drained) => {
                let state: VringState = decode(reply)?;
                if state.index != index {
                    let text = "the reply is for another ring";
                    return Err(Error::protocol(text).value(u64::from(state.index)));
                }
                let base = self.negotiated.base(state.num, drained)?;
                if let Ok(ring) = u8::try_from(index) {
                    self.negotiated.set_running(ring, false);
                }
                Ok(u64::from(base))
            }
            _ => {
                let value = decode(reply)?;
                match effect {
                    Effect::Offered => self.negotiated.set_offered(value),
                    Effect::OfferedProtocol => self.negotiated.set_offered_protocol(value),
                    Effect::Status if value > u64::from(u8::MAX) => {
                        let text = "the device status has more than 8 bits";
                        return Err(Error::protocol(text).value(value));
                    }
                    _ => {}
                }
                Ok(value)
            }
        }
    }

    /// The sizes of the device's shared memory regions.
    pub(super) fn shmem(&self, reply: &Reply<'_>) -> Result<ShmemConfig> {
        let mut config: ShmemConfig = decode(reply)?;
        if !usize::try_from(config.nregions).is_ok_and(|n| n <= SHMEM_REGIONS) {
            let text = "there are more regions than there can be";
            return Err(Error::protocol(text).value(u64::from(config.nregions)));
        }
        // The sizes are what counts, and not all back-ends count them.
        let sizes = config.memory_sizes.iter().filter(|size| **size != 0);
        config.nregions = u32::try_from(sizes.count()).unwrap_or_default();
        self.negotiated.set_shmem(&config.memory_sizes);
        Ok(config)
    }
}

/// An error that is about this request, and this ring.
pub(super) fn name(error: Error, request: Request, ring: Option<u32>) -> Error {
    let error = error.of(request);
    match ring {
        Some(ring) => error.ring(ring),
        None => error,
    }
}

/// An acknowledgement, if it is one of success.
pub(super) fn acknowledged(reply: &Reply<'_>) -> Result<()> {
    match decode::<u64>(reply)? {
        0 => Ok(()),
        value => Err(Error::nack(value)),
    }
}

/// The bytes of the configuration space, `size` of them.
pub(super) fn config<'a>(reply: &Reply<'a>, size: u32) -> Result<&'a [u8]> {
    if reply.payload.is_empty() {
        return Err(Error::refused()); // as libvhost-user and DPDK do
    }
    let (answer, bytes) = ConfigHeader::read_from_prefix(reply.payload)
        .map_err(|_| Error::protocol("the reply is shorter than its own header"))?;
    if answer.size == 0 && bytes.is_empty() {
        return Err(Error::refused()); // as the rust-vmm back-ends do
    }
    if answer.size != size || !usize::try_from(size).is_ok_and(|size| bytes.len() == size) {
        let text = "the reply has another number of bytes than was asked for";
        return Err(Error::protocol(text).value(u64::from(answer.size)));
    }
    Ok(bytes)
}

/// The file of a shared object.
pub(super) fn object(mut reply: Reply<'_>) -> Result<ForeignFd> {
    reply.fd.take().ok_or_else(Error::refused)
}

/// The buffer for requests in flight, if the back-end wants one. It has to be for the rings
/// that were asked for, and its file must be mappable: the next back-end receives both and
/// trusts them.
pub(super) fn inflight(
    mut reply: Reply<'_>,
    asked: (u16, u16),
) -> Result<(Inflight, Option<ForeignFd>)> {
    let answer: Inflight = decode(&reply)?;
    let of = (answer.num_queues, answer.queue_size);
    match (answer.mmap_size, reply.fd.take()) {
        // The rust-vmm back-ends send a descriptor even then.
        (0, _) => Ok((answer, None)),
        _ if of != asked => Err(Error::protocol(format!(
            "the in-flight buffer is for {} rings of {} descriptors, and was asked for with {} \
             of {}",
            of.0, of.1, asked.0, asked.1
        ))),
        (_, None) => Err(Error::protocol("no file descriptor came with the buffer")),
        (_, Some(fd)) => {
            let Inflight {
                mmap_offset,
                mmap_size,
                ..
            } = answer;
            let unusable =
                |why| Error::protocol(format!("the in-flight buffer is unusable: {why}"));
            if mmap_offset.checked_rem(socket::page_size()) != Some(0) {
                return Err(unusable("it does not begin with a page"));
            }
            match socket::check_mappable(fd.as_fd(), mmap_offset, mmap_size, true) {
                Ok(()) => Ok((answer, Some(fd))),
                Err(reason) => Err(unusable(reason.why())),
            }
        }
    }
}
