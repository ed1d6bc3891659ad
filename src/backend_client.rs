//! One method per request of the protocol. Each checks what the caller passed
//! and what has been agreed, encodes, and decodes the answer; the request table
//! in [`message`](crate::message) decides the rest.

#![forbid(unsafe_code)]

mod checks;
mod negotiated;
mod options;

use crate::connection::{Connection, Expect, Outgoing, Reply, Timeouts};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{
    self, Barrier, Bounds, ConfigHeader, DeviceState, Inflight, Log, MAX_CONFIG_SIZE,
    MAX_MEM_REGIONS, MemRegion, MemTableHeader, NO_FD, ProtocolFeatures, Request, SHMEM_REGIONS,
    ShmemConfig, SingleMemRegion, VringAddr, VringState,
};
use crate::socket::{self, Deadline, Role};
use negotiated::Negotiated;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

pub use options::{Adopted, Options, Timeout};

/// A region of guest memory and the file that holds it.
#[derive(Debug, Clone, Copy)]
pub struct SharedRegion<'fd> {
    /// Where it is.
    pub region: MemRegion,
    /// What the back-end maps. Borrowed: it gets a duplicate.
    pub fd: BorrowedFd<'fd>,
}

/// Which way device state moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the back-end to the front-end.
    Save,
    /// From the front-end to the back-end.
    Load,
}

/// A connection to a vhost-user back-end.
///
/// Any thread may call any method; several may have a request outstanding at
/// once. Dropping it closes the connection without further traffic.
#[derive(Debug)]
pub struct BackendClient {
    connection: Connection,
    timeouts: Timeouts,
    max_rings: u32,
    negotiated: Negotiated,
}

/// A request about to be sent.
struct Call<'a> {
    request: Request,
    body: &'a [u8],
    payload: &'a [u8],
    fds: &'a [BorrowedFd<'a>],
    ring: Option<u8>,
    timeout: Timeout,
}

impl<'a> Call<'a> {
    fn new(request: Request, body: &'a [u8]) -> Self {
        Self {
            request,
            body,
            payload: &[],
            fds: &[],
            ring: None,
            timeout: Timeout::Default,
        }
    }

    fn fds(self, fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { fds, ..self }
    }
}

const NOTHING: &[u8] = &[];
const ACK: Expect = Expect {
    size: Bounds { min: 8, max: 8 },
    fds: Bounds { min: 0, max: 0 },
    ack: true,
};

fn decode<T: FromBytes + KnownLayout + Immutable>(reply: &Reply<'_>) -> Result<T> {
    T::read_from_bytes(reply.payload).map_err(|_| Error::protocol("the reply has the wrong size"))
}

impl BackendClient {
    // ---- connecting ----

    /// Uses a connected Unix stream socket.
    pub fn from_fd(socket: OwnedFd, options: &Options) -> Result<Self> {
        Self::prepare(socket.as_fd(), options)?;
        Ok(Self::assume(socket, options))
    }

    /// Connects to the socket at `path`, within [`Options::connect`].
    pub fn connect(path: &Path, options: &Options) -> Result<Self> {
        options.check()?;
        let deadline = Deadline::after(options.connect_timeout());
        let socket = socket::connect_to(path, options.wait_for_socket, deadline)
            .map_err(|e| e.during(Phase::Connect))?;
        Self::from_fd(socket, options)
    }

    /// Waits, within [`Options::connect`], for a back-end to connect to a
    /// listening socket, and accepts it.
    pub fn accept(listener: BorrowedFd<'_>, options: &Options) -> Result<Self> {
        options.check()?;
        socket::check(listener, Role::Listening)?;
        let deadline = Deadline::after(options.connect_timeout());
        let socket =
            socket::accept_from(listener, deadline).map_err(|e| e.during(Phase::Connect))?;
        Self::from_fd(socket, options)
    }

    /// Everything about [`from_fd`](Self::from_fd) that can fail, without taking
    /// the socket.
    pub(crate) fn prepare(socket: BorrowedFd<'_>, options: &Options) -> Result<()> {
        options.check()?;
        socket::check(socket, Role::Connected)?;
        Connection::prepare(socket, &options.timeouts())
    }

    /// Takes a socket that has been prepared.
    pub(crate) fn assume(socket: OwnedFd, options: &Options) -> Self {
        Self {
            connection: Connection::new(socket, &options.timeouts(), options.on_timeout),
            timeouts: options.timeouts(),
            max_rings: options.max_rings,
            negotiated: Negotiated::new(options.adopt),
        }
    }

    // ---- the connection itself ----

    /// The socket, for polling only: readable while no call is under way means
    /// that the back-end has hung up (or misbehaves).
    pub fn read_notifier(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// Ends the connection; calls under way return [`Kind::Canceled`]. May be
    /// called from any thread and from a signal handler.
    pub fn abort(&self) {
        self.connection.abort();
    }

    /// Takes no further request, after a bug in this library.
    pub(crate) fn poison(&self, cause: &Error) {
        self.connection.poison(cause);
    }

    /// Drops a forked child's copy, and leaves the parent's connection alone.
    pub(crate) fn close_in_child(self) {
        self.connection.close_in_child();
    }

    /// The virtio features acknowledged last; 0 before.
    pub fn acked_features(&self) -> u64 {
        self.negotiated.acked()
    }

    /// The protocol features acknowledged last; empty before.
    pub fn acked_protocol_features(&self) -> ProtocolFeatures {
        self.negotiated.protocol()
    }

    // ---- the one way to send ----

    /// Sends what is answered by an acknowledgement, a barrier, or not at all.
    fn tell(&self, call: &Call<'_>) -> Result<()> {
        let info = call.request.info();
        let barrier = match info.reply {
            message::Reply::Ack(barrier) => barrier,
            message::Reply::Silent | message::Reply::Always(_) => Barrier::Never,
        };
        let acked = matches!(info.reply, message::Reply::Ack(_))
            && self
                .negotiated
                .protocol()
                .contains(ProtocolFeatures::REPLY_ACK);
        let wait = match barrier {
            Barrier::Never => false,
            Barrier::Always => true,
            Barrier::WhileRunning => self.negotiated.running(call.ring),
        };
        self.checked(call, |deadline| {
            let out = Self::outgoing(call, acked);
            if acked {
                self.connection
                    .call(&out, ACK, deadline, |reply| match decode::<u64>(&reply)? {
                        0 => Ok(()),
                        value => Err(Error::nack(value)),
                    })
            } else if wait {
                let features = Call::new(Request::GetFeatures, NOTHING);
                let expect = Self::expect(Request::GetFeatures)?;
                let barrier = Self::outgoing(&features, false);
                self.connection
                    .send_with_barrier(&out, &barrier, expect, deadline)
            } else {
                self.connection.send(&out, deadline)
            }
        })
    }

    /// Sends what is always answered with a reply of its own.
    fn ask<T>(&self, call: &Call<'_>, decode: impl FnOnce(Reply<'_>) -> Result<T>) -> Result<T> {
        self.checked(call, |deadline| {
            let expect = Self::expect(call.request)?;
            self.connection
                .call(&Self::outgoing(call, false), expect, deadline, decode)
        })
    }

    fn checked<T>(&self, call: &Call<'_>, send: impl FnOnce(Deadline) -> Result<T>) -> Result<T> {
        let info = call.request.info();
        let timeout = call.timeout.or(self.timeouts.of(info.wait));
        self.negotiated
            .check(info)
            .and_then(|()| checks::fits_the_table(info, call.body, call.payload, call.fds))
            .and_then(|()| send(Deadline::after(timeout)))
            .map_err(|error| {
                let error = error.of(call.request);
                match call.ring {
                    Some(ring) => error.ring(u32::from(ring)),
                    None => error,
                }
            })
    }

    fn outgoing<'a>(call: &Call<'a>, need_reply: bool) -> Outgoing<'a> {
        Outgoing {
            request: call.request,
            need_reply,
            body: call.body,
            payload: call.payload,
            fds: call.fds,
        }
    }

    fn expect(request: Request) -> Result<Expect> {
        let info = request.info();
        match info.reply {
            message::Reply::Always(size) => Ok(Expect {
                size,
                fds: info.fds_in,
                ack: false,
            }),
            _ => Err(Error::new(
                Kind::Panic,
                "this request has no reply of its own",
            )),
        }
    }

    fn ask_u64(&self, request: Request) -> Result<u64> {
        self.ask(&Call::new(request, NOTHING), |reply| decode(&reply))
    }

    /// Checks a ring index that goes into `request`.
    fn ring(&self, request: Request, index: u32) -> Result<u8> {
        checks::ring(index, self.max_rings).map_err(|error| error.of(request).ring(index))
    }

    fn vring_state(&self, request: Request, index: u32, num: u32) -> Result<()> {
        let ring = self.ring(request, index)?;
        let body = VringState { index, num };
        self.tell(&Call {
            ring: Some(ring),
            ..Call::new(request, body.as_bytes())
        })
    }

    fn vring_fd(&self, request: Request, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let ring = self.ring(request, index)?;
        let body = message::vring_fd(ring, fd.is_some());
        self.tell(&Call {
            ring: Some(ring),
            ..Call::new(request, body.as_bytes()).fds(fd.as_slice())
        })
    }

    // ---- features and ownership ----

    /// GET_FEATURES: the virtio features that the back-end offers, with bit 30
    /// where it speaks protocol features.
    pub fn get_features(&self) -> Result<u64> {
        let features = self.ask_u64(Request::GetFeatures)?;
        self.negotiated.set_offered(features);
        Ok(features)
    }

    /// SET_FEATURES: acknowledges virtio features. They must have been offered,
    /// so GET_FEATURES comes first on each connection.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.negotiated
            .check_features(features)
            .map_err(|error| error.of(Request::SetFeatures))?;
        self.tell(&Call::new(Request::SetFeatures, features.as_bytes()))?;
        self.negotiated.set_acked(features);
        Ok(())
    }

    /// SET_OWNER: claims the session, once per connection.
    pub fn set_owner(&self) -> Result<()> {
        self.negotiated
            .check_owner()
            .map_err(|error| error.of(Request::SetOwner))?;
        self.tell(&Call::new(Request::SetOwner, NOTHING))?;
        self.negotiated.set_owner(true);
        Ok(())
    }

    /// RESET_OWNER: deprecated; back-ends differ in how much they forget. The
    /// virtio features have to be acknowledged again after it.
    pub fn reset_owner(&self) -> Result<()> {
        self.tell(&Call::new(Request::ResetOwner, NOTHING))?;
        self.negotiated.reset();
        Ok(())
    }

    /// GET_PROTOCOL_FEATURES: needs bit 30 offered.
    pub fn get_protocol_features(&self) -> Result<u64> {
        let features = self.ask_u64(Request::GetProtocolFeatures)?;
        self.negotiated.set_offered_protocol(features);
        Ok(features)
    }

    /// SET_PROTOCOL_FEATURES: acknowledges protocol features that were offered
    /// and that this library serves ([`ProtocolFeatures::all`]).
    pub fn set_protocol_features(&self, features: u64) -> Result<()> {
        let request = Request::SetProtocolFeatures;
        let features = self
            .negotiated
            .check(request.info())
            .and_then(|()| self.negotiated.check_protocol(features))
            .map_err(|error| error.of(request))?;
        self.tell(&Call::new(request, features.bits().as_bytes()))?;
        self.negotiated.set_protocol(features);
        Ok(())
    }

    /// GET_QUEUE_NUM: how many queues the back-end supports. Some back-ends
    /// count pairs.
    pub fn get_queue_num(&self) -> Result<u64> {
        self.ask_u64(Request::GetQueueNum)
    }

    // ---- memory ----

    /// SET_MEM_TABLE: replaces all guest memory that the back-end may reach.
    pub fn set_mem_table(&self, regions: &[SharedRegion<'_>]) -> Result<()> {
        let request = Request::SetMemTable;
        let gpa = self.gpa_addresses();
        checks::regions(regions, gpa).map_err(|error| error.of(request))?;
        let mut table = [MemRegion::new_zeroed(); MAX_MEM_REGIONS];
        let mut fds = [self.connection.fd(); MAX_MEM_REGIONS];
        for ((slot, fd), region) in table.iter_mut().zip(&mut fds).zip(regions) {
            *slot = region.region;
            *fd = region.fd;
        }
        let header = MemTableHeader {
            nregions: u32::try_from(regions.len()).unwrap_or(u32::MAX),
            padding: 0,
        };
        let table = table.get(..regions.len()).unwrap_or_default();
        let fds = fds.get(..regions.len()).unwrap_or_default();
        self.tell(&Call {
            payload: table.as_bytes(),
            ..Call::new(request, header.as_bytes()).fds(fds)
        })
        .map_err(|error| match error.kind {
            Kind::Argument(_) => match fds.iter().position(|fd| !socket::is_open(*fd)) {
                Some(index) => error.region(index),
                None => error,
            },
            _ => error,
        })
    }

    /// GET_MAX_MEM_SLOTS: how many regions the back-end can hold.
    pub fn get_max_mem_slots(&self) -> Result<u64> {
        self.ask_u64(Request::GetMaxMemSlots)
    }

    /// ADD_MEM_REG: shares one more region.
    pub fn add_mem_region(&self, region: &SharedRegion<'_>) -> Result<()> {
        let request = Request::AddMemReg;
        checks::region(&region.region, self.gpa_addresses()).map_err(|e| e.of(request))?;
        let body = SingleMemRegion {
            padding: 0,
            region: region.region,
        };
        self.tell(&Call::new(request, body.as_bytes()).fds(&[region.fd]))
    }

    /// REM_MEM_REG: takes a region away. The back-end finds it by guest address,
    /// size and user address. Unmap only after this has returned.
    pub fn remove_mem_region(&self, region: &MemRegion) -> Result<()> {
        let request = Request::RemMemReg;
        checks::region(region, self.gpa_addresses()).map_err(|e| e.of(request))?;
        let body = SingleMemRegion {
            padding: 0,
            region: *region,
        };
        self.tell(&Call::new(request, body.as_bytes()))
    }

    fn gpa_addresses(&self) -> bool {
        self.negotiated
            .protocol()
            .contains(ProtocolFeatures::GPA_ADDRESSES)
    }

    // ---- the dirty log ----

    /// SET_LOG_BASE: where the back-end marks the pages that it writes. The one
    /// reply is consumed; its content means nothing.
    pub fn set_log_base(&self, log: &Log, fd: BorrowedFd<'_>) -> Result<()> {
        let request = Request::SetLogBase;
        checks::log(log).map_err(|error| error.of(request))?;
        self.ask(&Call::new(request, log.as_bytes()).fds(&[fd]), |_| Ok(()))
    }

    /// SET_LOG_FD: an eventfd that the back-end writes when it has logged. The
    /// rust-vmm back-ends do not know the request and hang up.
    pub fn set_log_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell(&Call::new(Request::SetLogFd, NOTHING).fds(&[fd]))
    }

    // ---- rings ----

    /// SET_VRING_NUM: the size of a ring in descriptors.
    pub fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        let request = Request::SetVringNum;
        checks::ring_size(num, self.negotiated.packed())
            .map_err(|error| error.of(request).ring(index))?;
        self.vring_state(request, index, num)
    }

    /// SET_VRING_ADDR: where a ring lies.
    pub fn set_vring_addr(&self, addr: &VringAddr) -> Result<()> {
        let request = Request::SetVringAddr;
        let ring = self.ring(request, addr.index)?;
        checks::ring_address(addr, self.negotiated.packed())
            .map_err(|error| error.of(request).ring(addr.index))?;
        self.tell(&Call {
            ring: Some(ring),
            ..Call::new(request, addr.as_bytes())
        })
    }

    /// SET_VRING_BASE: where a ring goes on. Split: the next available index, in
    /// 16 bits. Packed: bits 0-14 available index, 15 its wrap counter, 16-30
    /// used index, 31 its wrap counter.
    pub fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let request = Request::SetVringBase;
        if !self.negotiated.packed() && base > u32::from(u16::MAX) {
            return Err(
                Error::invalid("base has more than 16 bits, and the ring is split")
                    .of(request)
                    .ring(index),
            );
        }
        self.vring_state(request, index, base)
    }

    /// GET_VRING_BASE: stops a ring and tells where it stood, in the form of
    /// [`set_vring_base`](Self::set_vring_base). The back-end finishes the
    /// requests that it has taken, so this may take as long as they do.
    ///
    /// Back-ends drop the kick and call descriptors of a stopped ring; send them
    /// again before it is restarted.
    pub fn get_vring_base(&self, index: u32, timeout: Timeout) -> Result<u32> {
        let request = Request::GetVringBase;
        let ring = self.ring(request, index)?;
        let body = VringState { index, num: 0 };
        let call = Call {
            ring: Some(ring),
            timeout,
            ..Call::new(request, body.as_bytes())
        };
        let base = self.ask(&call, |reply| {
            let state: VringState = decode(&reply)?;
            if state.index != index {
                let text = "the reply is for another ring";
                return Err(Error::protocol(text).value(u64::from(state.index)));
            }
            self.negotiated.base(state.num)
        })?;
        self.negotiated.set_running(ring, false);
        Ok(base)
    }

    /// SET_VRING_ENABLE: whether the back-end processes a ring. Needs bit 30
    /// acknowledged; without it rings are enabled from the start.
    pub fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.vring_state(Request::SetVringEnable, index, u32::from(enable))
    }

    /// SET_VRING_KICK: what the driver writes to notify the device; this starts
    /// the ring. `None`: the back-end shall poll the ring, which few can: the
    /// rust-vmm ones acknowledge it and never start the ring.
    pub fn set_vring_kick(&self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let request = Request::SetVringKick;
        // Before it is known: a barrier too many does no harm.
        self.negotiated
            .set_running(self.ring(request, index)?, true);
        self.vring_fd(request, index, fd)
    }

    /// SET_VRING_CALL: what the device writes to notify the driver. `None`: the
    /// driver polls.
    pub fn set_vring_call(&self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.vring_fd(Request::SetVringCall, index, fd)
    }

    /// SET_VRING_ERR: what the device writes when a ring is broken. `None`:
    /// nothing.
    pub fn set_vring_err(&self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.vring_fd(Request::SetVringErr, index, fd)
    }

    // ---- configuration space ----

    /// GET_CONFIG: fills `buffer` from the device's configuration space. Read
    /// from offset 0 for portability: libvhost-user and DPDK ignore the offset.
    pub fn get_config(&self, offset: u32, flags: u32, buffer: &mut [u8]) -> Result<()> {
        let request = Request::GetConfig;
        let header =
            checks::config(offset, flags, buffer.len()).map_err(|error| error.of(request))?;
        // The rust-vmm back-ends want the room for the answer in the request.
        let zeros = [0_u8; MAX_CONFIG_SIZE];
        let call = Call {
            payload: zeros.get(..buffer.len()).unwrap_or_default(),
            ..Call::new(request, header.as_bytes())
        };
        self.ask(&call, |reply| {
            if reply.payload.is_empty() {
                return Err(Error::refused()); // as libvhost-user and DPDK do
            }
            let (answer, bytes) = ConfigHeader::read_from_prefix(reply.payload)
                .map_err(|_| Error::protocol("the reply is shorter than its own header"))?;
            if answer.size == 0 && bytes.is_empty() {
                return Err(Error::refused()); // as the rust-vmm back-ends do
            }
            if answer.size != header.size || bytes.len() != buffer.len() {
                let text = "the reply has another number of bytes than was asked for";
                return Err(Error::protocol(text).value(u64::from(answer.size)));
            }
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// SET_CONFIG: writes to the device's configuration space.
    pub fn set_config(&self, offset: u32, flags: u32, data: &[u8]) -> Result<()> {
        let request = Request::SetConfig;
        let header =
            checks::config(offset, flags, data.len()).map_err(|error| error.of(request))?;
        self.tell(&Call {
            payload: data,
            ..Call::new(request, header.as_bytes())
        })
    }

    // ---- the back-end's own channel ----

    /// SET_BACKEND_REQ_FD: the back-end's end of a socket pair, on which it
    /// sends requests of its own. Close your copy of it afterwards, and serve
    /// the other end also while calls are under way.
    pub fn set_backend_req_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell(&Call::new(Request::SetBackendReqFd, NOTHING).fds(&[fd]))
    }

    // ---- in-flight I/O ----

    /// GET_INFLIGHT_FD: has the back-end make the buffer in which it tracks
    /// requests in flight. No descriptor comes back where it wants no buffer,
    /// with `mmap_size` 0. Its layout depends on the virtio features, so
    /// SET_FEATURES comes first.
    pub fn get_inflight_fd(
        &self,
        num_queues: u16,
        queue_size: u16,
    ) -> Result<(Inflight, Option<OwnedFd>)> {
        let request = Request::GetInflightFd;
        let body = Inflight {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues,
            queue_size,
            padding: 0,
        };
        checks::inflight(&body).map_err(|error| error.of(request))?;
        self.ask(&Call::new(request, body.as_bytes()), |mut reply| {
            let answer: Inflight = decode(&reply)?;
            match (answer.mmap_size, reply.fd.take()) {
                // The rust-vmm back-ends send a descriptor even then.
                (0, _) => Ok((answer, None)),
                (_, None) => Err(Error::protocol("no file descriptor came with the buffer")),
                (_, fd) => Ok((answer, fd)),
            }
        })
    }

    /// SET_INFLIGHT_FD: hands the buffer to the back-end, before any ring is
    /// started.
    pub fn set_inflight_fd(&self, inflight: &Inflight, fd: BorrowedFd<'_>) -> Result<()> {
        let request = Request::SetInflightFd;
        checks::inflight(inflight)
            .and_then(|()| checks::inflight_buffer(inflight))
            .map_err(|error| error.of(request))?;
        self.tell(&Call::new(request, inflight.as_bytes()).fds(&[fd]))
    }

    // ---- device state ----

    /// SET_DEVICE_STATE_FD: begins to save or load the state of a device whose
    /// rings are all stopped. A descriptor that comes back replaces `fd`.
    pub fn set_device_state_fd(
        &self,
        direction: Direction,
        fd: BorrowedFd<'_>,
    ) -> Result<Option<OwnedFd>> {
        const FAILED: u64 = 0xff;
        let body = DeviceState {
            direction: match direction {
                Direction::Save => 0,
                Direction::Load => 1,
            },
            phase: 0,
        };
        let call = Call::new(Request::SetDeviceStateFd, body.as_bytes());
        self.ask(&call.fds(&[fd]), |mut reply| {
            let value: u64 = decode(&reply)?;
            match (value & FAILED, value & NO_FD, reply.fd.take()) {
                // Not all say then that there is no descriptor.
                (1.., _, None) => Err(Error::nack(value)),
                (0, 0, Some(fd)) if value == 0 => Ok(Some(fd)),
                (0, NO_FD, None) if value == NO_FD => Ok(None),
                _ => {
                    let text = "the reply and the file descriptors with it do not match";
                    Err(Error::protocol(text).value(value))
                }
            }
        })
    }

    /// CHECK_DEVICE_STATE: whether the state went over whole, after the end of
    /// its channel has been seen (save) or made (load).
    pub fn check_device_state(&self) -> Result<()> {
        match self.ask_u64(Request::CheckDeviceState)? {
            0 => Ok(()),
            value => Err(Error::nack(value).of(Request::CheckDeviceState)),
        }
    }

    // ---- shared memory ----

    /// GET_SHMEM_CONFIG: the sizes of the device's shared memory regions, by
    /// `shmid`. They do not change while the connection lives.
    pub fn get_shmem_config(&self) -> Result<ShmemConfig> {
        self.ask(&Call::new(Request::GetShmemConfig, NOTHING), |reply| {
            let mut config: ShmemConfig = decode(&reply)?;
            if !usize::try_from(config.nregions).is_ok_and(|n| n <= SHMEM_REGIONS) {
                let text = "there are more regions than there can be";
                return Err(Error::protocol(text).value(u64::from(config.nregions)));
            }
            // The sizes are what counts, and not all back-ends count them.
            let sizes = config.memory_sizes.iter().filter(|size| **size != 0);
            config.nregions = u32::try_from(sizes.count()).unwrap_or_default();
            Ok(config)
        })
    }
}
