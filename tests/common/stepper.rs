//! A back-end that takes one message when it is told to, on the thread of the test,
//! and keeps what it was told. It believes the front-end, and notes what no
//! back-end should be told.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use crate::blk_peer::{PATIENCE, deadline};
use crate::vmm::Vmm;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, send, sendmsg,
};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{ProtocolFeatures, Request, flags};
use vhost_user_frontend::{DeviceOptions, Event, EventKind, OutOfOrder};

/// VERSION_1, PROTOCOL_FEATURES, RING_PACKED and FLUSH.
pub const OFFERED: u64 = 1 << 30 | 1 << 32 | 1 << 34 | 1 << 9;

/// What it offers, and how it behaves.
#[derive(Debug, Clone)]
pub struct Manners {
    pub features: u64,
    pub protocol: ProtocolFeatures,
    pub slots: u64,
    pub config: Vec<u8>,
    /// Refuses GET_CONFIG for more bytes than this.
    pub largest_config: usize,
    /// The byte at 0 of the configuration space selects the content of the bytes
    /// behind it, as virtio-input does: their number at 2, then the bytes from 8 on.
    pub selects: bool,
    /// The reply to GET_QUEUE_NUM.
    pub queues: u64,
    /// Bytes of its shared memory region.
    pub window: u64,
    /// Closes the connection when a ring with this index or above is named.
    pub rings: u32,
    /// Says no to this one, where it can.
    pub refuses: Option<Request>,
    /// Says no to a request with this payload, where it can.
    pub refuses_when: fn(Request, &[u8]) -> bool,
    /// Reads on after this one, and answers nothing any more.
    pub silent_from: Option<Request>,
    /// Closes when it has read, or written, so many bytes of a connection.
    pub reads: usize,
    pub writes: usize,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            features: OFFERED,
            protocol: everything(),
            slots: 32,
            config: (0..60).collect(),
            largest_config: usize::MAX,
            selects: false,
            queues: 8,
            window: 1 << 20,
            rings: u32::MAX,
            refuses: None,
            refuses_when: |_, _| false,
            silent_from: None,
            reads: usize::MAX,
            writes: usize::MAX,
        }
    }
}

pub fn everything() -> ProtocolFeatures {
    ProtocolFeatures::MQ
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::BACKEND_REQ
        | ProtocolFeatures::CONFIG
        | ProtocolFeatures::INFLIGHT_SHMFD
        | ProtocolFeatures::RESET_DEVICE
        | ProtocolFeatures::CONFIGURE_MEM_SLOTS
        | ProtocolFeatures::STATUS
}

#[derive(Debug, Default)]
pub struct ToldRing {
    pub num: u32,
    pub base: u32,
    /// Descriptors, used ring, available ring.
    pub addr: (u64, u64, u64),
    pub kick: Option<OwnedFd>,
    pub call: Option<OwnedFd>,
    pub err: Option<OwnedFd>,
    pub enabled: bool,
}

/// What was told on one connection, and not taken back.
#[derive(Debug, Default)]
pub struct Told {
    pub protocol: u64,
    pub features: Option<u64>,
    pub status: u64,
    /// By guest address: size, user address, offset, inode.
    pub memory: BTreeMap<u64, (u64, u64, u64, u64)>,
    pub rings: BTreeMap<u32, ToldRing>,
    /// Queues and their size.
    pub inflight: Option<(u16, u16)>,
    pub owner: bool,
    pub channel: Option<OwnedFd>,
}

impl Told {
    /// Rings that have been started.
    pub fn running(&self) -> Vec<u32> {
        let runs = self.rings.iter().filter(|(_, ring)| ring.kick.is_some());
        runs.map(|(index, _)| *index).collect()
    }
}

/// Whether both are the same eventfd. It is empty afterwards.
pub fn same_eventfd(told: Option<&OwnedFd>, wanted: &EventFd) -> bool {
    let _ = wanted.read();
    told.is_some_and(|told| {
        nix::unistd::write(told, &1_u64.to_ne_bytes()).unwrap();
        wanted.read() == Ok(1)
    })
}

#[derive(Debug)]
pub struct Stepper {
    listener: Option<UnixListener>,
    socket: Option<UnixStream>,
    pub manners: Manners,
    pub told: Told,
    /// Given in place of in-flight buffers. Nothing of it is closed before the peer ends.
    pub buffer: Option<OwnedFd>,
    kept: Vec<OwnedFd>,
    /// Of this connection.
    pub taken: usize,
    read: usize,
    written: usize,
    silent: bool,
    inbox: Vec<u8>,
    fds: Vec<OwnedFd>,
    pub connections: u32,
    /// Everything that came, ever.
    pub log: Vec<(Request, Vec<u8>)>,
    /// What should not have come.
    pub wrong: Vec<String>,
}

fn number(payload: &[u8], at: usize) -> u64 {
    let bytes = payload.get(at..at + 8).unwrap_or(&[0; 8]);
    u64::from_ne_bytes(bytes.try_into().unwrap())
}

fn half(payload: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(payload[at..at + 4].try_into().unwrap())
}

impl Stepper {
    fn idle(listener: Option<UnixListener>, manners: Manners) -> Self {
        Self {
            listener,
            socket: None,
            manners,
            told: Told::default(),
            buffer: None,
            kept: Vec::new(),
            taken: 0,
            read: 0,
            written: 0,
            silent: false,
            inbox: Vec::new(),
            fds: Vec::new(),
            connections: 0,
            log: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// Listens here.
    pub fn at(path: &Path, manners: Manners) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self::with(listener, manners)
    }

    /// Listens where the device connects.
    pub fn beside(vmm: &Vmm, manners: Manners) -> Self {
        Self::at(&vmm.place.file("sock"), manners)
    }

    /// Has this listener.
    pub fn with(listener: UnixListener, manners: Manners) -> Self {
        listener.set_nonblocking(true).unwrap();
        Self::idle(Some(listener), manners)
    }

    /// Bytes of this connection: read and written.
    pub fn bytes(&self) -> (usize, usize) {
        (self.read, self.written)
    }

    /// How often this was asked, ever.
    pub fn count(&self, request: Request) -> usize {
        self.log.iter().filter(|it| it.0 == request).count()
    }

    /// Has this connection, and gets no other.
    pub fn on(socket: UnixStream, manners: Manners) -> Self {
        let mut it = Self::idle(None, manners);
        it.begin(socket);
        it
    }

    /// Another connection in place of the one before.
    pub fn begin(&mut self, socket: UnixStream) {
        self.hang_up();
        socket.set_nonblocking(true).unwrap();
        self.socket = Some(socket);
        self.told = Told::default();
        self.connections += 1;
    }

    pub fn hang_up(&mut self) {
        self.socket = None;
        self.inbox.clear();
        self.fds.clear();
        (self.taken, self.read, self.written) = (0, 0, 0);
        self.silent = false;
    }

    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// What to poll for reading.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let listener = self.listener.as_ref().filter(|_| self.socket.is_none());
        let socket = self.socket.as_ref().map(AsFd::as_fd);
        listener
            .map(AsFd::as_fd)
            .into_iter()
            .chain(socket)
            .collect()
    }

    /// Takes one message, if one is there, or a connection, or its end. Whether
    /// there was something.
    pub fn step(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            let Some(listener) = &self.listener else {
                return false;
            };
            let Ok((socket, _)) = listener.accept() else {
                return false;
            };
            self.begin(socket);
            return true;
        };
        if self.manners.reads == 0 || self.manners.writes == 0 {
            self.hang_up();
            return true;
        }
        let size = match self.inbox.len() {
            ..12 => 12,
            _ => 12 + usize::try_from(half(&self.inbox, 8)).unwrap(),
        };
        let room = (size - self.inbox.len()).min(self.manners.reads - self.read);
        if room > 0 {
            match receive(socket, room) {
                Ok((bytes, fds)) if !bytes.is_empty() => {
                    self.read += bytes.len();
                    self.inbox.extend(bytes);
                    self.fds.extend(fds);
                }
                Err(Errno::EAGAIN) => return false,
                _ => {
                    self.hang_up();
                    return true;
                }
            }
        }
        if self.read >= self.manners.reads {
            self.hang_up();
            return true;
        }
        let whole = |inbox: &[u8]| {
            inbox.len() >= 12 && inbox.len() == 12 + usize::try_from(half(inbox, 8)).unwrap()
        };
        if !whole(&self.inbox) {
            return self.step();
        }
        let message = std::mem::take(&mut self.inbox);
        let fds = std::mem::take(&mut self.fds);
        let code = half(&message, 0);
        let request = Request::ALL.iter().find(|it| it.id() == code).unwrap();
        self.take(*request, half(&message, 4), &message[12..], fds);
        true
    }

    /// Takes all that is there, but no more than so many messages of a connection
    /// altogether. Whether there was something.
    pub fn serve(&mut self, most: usize) -> bool {
        let mut any = false;
        while (self.taken < most || !self.is_connected()) && self.step() {
            any = true;
        }
        any
    }

    fn take(&mut self, request: Request, flags: u32, payload: &[u8], fds: Vec<OwnedFd>) {
        self.taken += 1;
        self.log.push((request, payload.to_vec()));
        let too_large = request == Request::GetConfig
            && usize::try_from(half(payload, 4)).unwrap() > self.manners.largest_config;
        let refused = self.manners.refuses == Some(request)
            || (self.manners.refuses_when)(request, payload)
            || too_large;
        let of_ring = matches!(
            request,
            Request::SetVringCall
                | Request::SetVringNum
                | Request::SetVringBase
                | Request::SetVringAddr
                | Request::SetVringKick
                | Request::SetVringErr
                | Request::SetVringEnable
                | Request::SetVringEndian
        );
        if of_ring && half(payload, 0) & 0xff >= self.manners.rings {
            self.hang_up();
            return;
        }
        let reply = match refused {
            true => self.refusal(request),
            false => self.carry_out(request, payload, fds),
        };
        self.silent |= self.manners.silent_from == Some(request);
        let agreed = self.told.protocol & ProtocolFeatures::REPLY_ACK.bits() != 0;
        let asked = flags & flags::NEED_REPLY != 0 && agreed;
        let ack = asked.then(|| (u64::from(refused).to_ne_bytes().to_vec(), None));
        if let Some((payload, fd)) = reply.or(ack) {
            self.answer(request, &payload, fd);
        }
    }

    /// See [`buffer`](Self::buffer).
    fn keep(&mut self, fds: impl IntoIterator<Item = OwnedFd>) {
        if self.buffer.is_some() {
            self.kept.extend(fds);
        }
    }

    fn refusal(&self, request: Request) -> Option<(Vec<u8>, Option<OwnedFd>)> {
        match request {
            Request::GetConfig => Some((Vec::new(), None)),
            Request::GetInflightFd => Some((vec![0; 24], None)),
            Request::GetSharedObject => Some((Vec::new(), None)),
            _ => None,
        }
    }

    fn answer(&mut self, request: Request, payload: &[u8], fd: Option<OwnedFd>) {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.silent) else {
            return;
        };
        let size = u32::try_from(payload.len()).unwrap();
        let header = [request.id(), 0x5, size].map(u32::to_ne_bytes).concat();
        let mut bytes = [header, payload.to_vec()].concat();
        bytes.truncate(self.manners.writes - self.written);
        self.written += bytes.len();
        let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let parts = [IoSlice::new(&bytes)];
        let quiet = MsgFlags::MSG_NOSIGNAL;
        // The front-end may be gone.
        let _ = sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, control, quiet, None);
        self.keep(fd);
        if self.written >= self.manners.writes {
            self.hang_up();
        }
    }

    /// Sends what it was not asked for.
    pub fn babble(&self) {
        let header = [Request::GetFeatures.id(), 0x5, 0].map(u32::to_ne_bytes);
        let socket = self.socket.as_ref().unwrap();
        send(socket.as_raw_fd(), &header.concat(), MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Says on the back-end's channel that the configuration space has changed.
    pub fn config_changed(&self) {
        let channel = self.told.channel.as_ref().unwrap();
        let message = [2_u32, 0x1, 0].map(u32::to_ne_bytes).concat();
        send(channel.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Sends a message on the back-end's channel.
    pub fn send_on_channel(&self, id: u32, flags: u32, payload: &[u8], fd: Option<BorrowedFd<'_>>) {
        let channel = self.told.channel.as_ref().unwrap();
        let size = u32::try_from(payload.len()).unwrap();
        let header = [id, flags, size].map(u32::to_ne_bytes).concat();
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let quiet = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<UnixAddr>(channel.as_raw_fd(), &parts, control, quiet, None).unwrap();
    }

    /// The answers that came on the back-end's channel: request and value.
    pub fn answers_on_channel(&self) -> Vec<(u32, i64)> {
        let channel = self.told.channel.as_ref().unwrap();
        let mut answers = Vec::new();
        let mut bytes = [0; 20];
        let raw = channel.as_raw_fd();
        while let Ok(20) = nix::sys::socket::recv(raw, &mut bytes, MsgFlags::MSG_DONTWAIT) {
            let value = i64::from_ne_bytes(bytes[12..].try_into().unwrap());
            answers.push((half(&bytes, 0), value));
        }
        answers
    }

    /// Asks on the back-end's channel for a page of the first shared memory region to
    /// be mapped.
    pub fn map_page(&self, page: u64) {
        let channel = self.told.channel.as_ref().unwrap();
        let file = memfd_create(c"page", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        let area = [0, 0, page * 4096, 4096, 1].map(u64::to_ne_bytes).concat();
        let size = u32::try_from(area.len()).unwrap();
        let header = [9_u32, 0x1, size].map(u32::to_ne_bytes).concat();
        let (parts, raw) = (
            [IoSlice::new(&header), IoSlice::new(&area)],
            [file.as_raw_fd()],
        );
        let rights = [ControlMessage::ScmRights(&raw)];
        let quiet = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<UnixAddr>(channel.as_raw_fd(), &parts, &rights, quiet, None).unwrap();
    }

    fn mind(&mut self, fine: bool, what: &str) {
        if !fine {
            let last = self.log.last().unwrap();
            self.wrong.push(format!("{:?}: {what}", last.0));
        }
    }

    fn carry_out(
        &mut self,
        request: Request,
        payload: &[u8],
        mut fds: Vec<OwnedFd>,
    ) -> Option<(Vec<u8>, Option<OwnedFd>)> {
        let told = |value: u64| Some((value.to_ne_bytes().to_vec(), None));
        let index = || half(payload, 0) & 0xff;
        match request {
            Request::GetFeatures => return told(self.manners.features),
            Request::GetProtocolFeatures => return told(self.manners.protocol.bits()),
            Request::GetQueueNum => return told(self.manners.queues),
            Request::GetMaxMemSlots => return told(self.manners.slots),
            Request::GetShmemConfig => {
                // One region, with shmid 0.
                let mut config = [1_u64, self.manners.window].map(u64::to_ne_bytes).concat();
                config.resize(8 + 256 * 8, 0);
                return Some((config, None));
            }
            Request::GetStatus => return told(self.told.status),
            Request::GetSharedObject => {
                let file = memfd_create(c"object", MFdFlags::MFD_CLOEXEC).unwrap();
                return Some((Vec::new(), Some(file)));
            }
            Request::GetConfig => {
                let size = usize::try_from(half(payload, 4)).unwrap();
                let data = self.manners.config.get(..size).unwrap_or_default();
                return Some(([&payload[..12], data].concat(), None));
            }
            Request::SetConfig => {
                let at = usize::try_from(half(payload, 0)).unwrap();
                let data = &payload[12..];
                self.manners.config[at..at + data.len()].copy_from_slice(data);
                if self.manners.selects {
                    self.select();
                }
            }
            Request::GetInflightFd => {
                let file = match &self.buffer {
                    Some(file) => file.try_clone().unwrap(),
                    None => {
                        let file = memfd_create(c"inflight", MFdFlags::MFD_CLOEXEC).unwrap();
                        ftruncate(&file, 4096).unwrap();
                        file
                    }
                };
                let mut body = payload.to_vec();
                body[..8].copy_from_slice(&4096_u64.to_ne_bytes());
                return Some((body, Some(file)));
            }
            Request::SetInflightFd => {
                self.mind(self.told.running().is_empty(), "a ring runs already");
                self.keep(fds);
                let pair = half(payload, 16);
                let high = u16::try_from(pair >> 16).unwrap();
                self.told.inflight = Some((u16::try_from(pair & 0xffff).unwrap(), high));
            }
            Request::SetProtocolFeatures => self.told.protocol = number(payload, 0),
            Request::SetOwner => {
                self.mind(!self.told.owner, "a second time");
                self.told.owner = true;
            }
            Request::SetFeatures => {
                let features = number(payload, 0);
                let rest = features & !self.manners.features;
                self.mind(rest == 0, "was not offered");
                self.mind(self.told.running().is_empty(), "a ring runs");
                self.told.features = Some(features);
            }
            Request::SetStatus => {
                self.told.status = number(payload, 0);
                if self.told.status == 0 {
                    self.reset();
                }
            }
            Request::ResetDevice => self.reset(),
            Request::SetBackendReqFd => self.told.channel = fds.pop(),
            Request::IotlbMsg | Request::NetSetMtu | Request::SendRarp | Request::GpuSetSocket => {}
            Request::SetMemTable => {
                let count = usize::try_from(half(payload, 0)).unwrap();
                self.mind(count == fds.len() && count <= 8, "descriptors and regions");
                self.told.memory.clear();
                for (at, fd) in (0..count).zip(&fds) {
                    self.add(&payload[8 + at * 32..], fd);
                }
            }
            Request::AddMemReg => {
                let known = self.told.memory.contains_key(&number(payload, 8));
                self.mind(!known, "it is there already");
                self.add(&payload[8..], &fds[0]);
                let full = u64::try_from(self.told.memory.len()).unwrap() > self.manners.slots;
                self.mind(!full, "there is no slot");
            }
            Request::RemMemReg => {
                let known = self.told.memory.remove(&number(payload, 8)).is_some();
                self.mind(known, "it is not there");
            }
            Request::GetVringBase => {
                let ring = self.told.rings.remove(&index()).unwrap_or_default();
                self.mind(ring.kick.is_some(), "the ring does not run");
                let state = [index(), ring.base].map(u32::to_ne_bytes).concat();
                return Some((state, None));
            }
            _ => self.ring(request, index(), payload, fds),
        }
        None
    }

    /// Shows what the byte at 0 selects: as many letters as three times its value.
    fn select(&mut self) {
        let config = &mut self.manners.config;
        let (select, letter) = (config[0] % 8, b'a' - 1 + config[0] % 8);
        config[2] = select * 3;
        config[8..].fill(0);
        config[8..8 + usize::from(select) * 3].fill(letter);
    }

    fn ring(&mut self, request: Request, index: u32, payload: &[u8], mut fds: Vec<OwnedFd>) {
        let ring = self.told.rings.entry(index).or_default();
        let runs = ring.kick.is_some();
        let whole = ring.num > 0 && ring.addr.0 > 0;
        let mut fine = (true, "");
        match request {
            Request::SetVringNum => {
                fine = (!runs, "the ring runs");
                ring.num = half(payload, 4);
            }
            Request::SetVringBase => {
                fine = (!runs, "the ring runs");
                ring.base = half(payload, 4);
            }
            Request::SetVringEndian => {
                fine = (!runs && !whole, "the ring has an address, or runs");
            }
            Request::SetVringAddr => {
                fine = (!runs, "the ring runs");
                ring.addr = (number(payload, 8), number(payload, 16), number(payload, 24));
            }
            Request::SetVringKick => {
                fine = (whole && !runs, "the ring is not set up, or runs");
                ring.kick = fds.pop();
            }
            Request::SetVringCall => ring.call = fds.pop(),
            Request::SetVringErr => ring.err = fds.pop(),
            Request::SetVringEnable => {
                fine = (runs, "the ring does not run");
                ring.enabled = half(payload, 4) == 1;
            }
            other => panic!("{other:?} is not known here"),
        }
        let covered = |addr: u64| {
            let mut regions = self.told.memory.iter();
            regions.any(|(at, region)| (*at..*at + region.0).contains(&addr))
        };
        let addr = number(payload, 8);
        if request == Request::SetVringAddr && !covered(addr) {
            fine = (false, "the ring lies in no memory");
        }
        self.mind(fine.0, fine.1);
    }

    fn add(&mut self, region: &[u8], fd: &OwnedFd) {
        let at = |index: usize| number(region, index * 8);
        let inode = fstat(fd).unwrap().st_ino;
        self.told.memory.insert(at(0), (at(1), at(2), at(3), inode));
    }

    fn reset(&mut self) {
        self.mind(self.told.running().is_empty(), "a ring runs");
        self.told.features = None;
        self.told.inflight = None;
        self.told.rings.clear();
    }
}

fn receive(socket: &UnixStream, room: usize) -> nix::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; room];
    let mut control = cmsg_space!([RawFd; 16]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let got = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: the kernel just made these descriptors for us.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = got.bytes;
    bytes.truncate(length);
    Ok((bytes, fds))
}

/// Options of a device that is used before its back-end is there, and retries soon.
pub fn early(options: &mut DeviceOptions) {
    options.assume_features = Some(OFFERED);
    options.out_of_order = OutOfOrder::ReplayFromUsed;
    options.reconnect.first_delay = Duration::from_micros(10);
}

/// An event loop that has both in it.
impl Vmm {
    /// One round of an event loop that has the back-end in it: it takes no more than
    /// so many messages of a connection. Whether anything happened.
    pub fn turn_beside(&mut self, peer: &mut Stepper, most: usize, longest: Duration) -> bool {
        let served = peer.serve(most);
        let mut fds = vec![PollFd::new(self.device.notifier(), PollFlags::POLLIN)];
        if !peer.is_connected() || peer.taken < most {
            let theirs = peer.descriptors().into_iter();
            fds.extend(theirs.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        let longest = if served { Duration::ZERO } else { longest };
        let ready = poll(&mut fds, PollTimeout::try_from(longest).unwrap()).unwrap();
        let device = fds[0].any() == Some(true);
        drop(fds);
        if device {
            self.process();
        }
        served || ready > 0
    }

    /// Until nothing more happens.
    pub fn calm(&mut self, peer: &mut Stepper) {
        while self.turn_beside(peer, usize::MAX, Duration::ZERO) {}
    }

    /// Until this has happened; the event.
    pub fn until_beside(&mut self, kind: EventKind, peer: &mut Stepper) -> Event {
        let deadline = deadline();
        loop {
            while let Some(event) = self.events.pop_front() {
                if event.kind == kind {
                    return event;
                }
            }
            assert!(
                Instant::now() < deadline,
                "never {kind:?}: {:?}",
                self.device.info()
            );
            self.turn_beside(peer, usize::MAX, PATIENCE);
        }
    }

    /// The next event.
    pub fn next_beside(&mut self, peer: &mut Stepper) -> Event {
        let deadline = deadline();
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(Instant::now() < deadline, "no event");
            self.turn_beside(peer, usize::MAX, PATIENCE);
        }
    }

    /// Until the back-end has taken so many messages of a connection, or has been
    /// told all that is wanted. Nothing more happens before it takes another.
    pub fn until_taken(&mut self, peer: &mut Stepper, most: usize) {
        let deadline = deadline();
        while !self.is_applied() && (!peer.is_connected() || peer.taken < most) {
            assert!(Instant::now() < deadline, "never {most} messages");
            self.turn_beside(peer, most, PATIENCE);
        }
        while self.turn_beside(peer, most, Duration::ZERO) {}
    }

    pub fn until_applied_beside(&mut self, peer: &mut Stepper) {
        let deadline = deadline();
        while !self.is_applied() {
            assert!(
                Instant::now() < deadline,
                "never: {:?} {:?}",
                self.device.info(),
                peer.log.last()
            );
            self.turn_beside(peer, usize::MAX, PATIENCE);
        }
        self.calm(peer);
    }
}
