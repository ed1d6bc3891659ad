//! A device whose caller does what the input says, with a back-end that answers
//! as the input says, one connection after the other.
//!
//! A device never waits, so its back-end lives in the same thread, between two of
//! its steps. In the end it behaves: then all that is wanted has to come about,
//! in so many steps and no more.

use super::input::Input;
use super::peer::own_reply;
use super::rig::{Late, Rig, SLACK};
use super::simulator;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{BackendRequest, Iotlb, Request, ShmemArea, iotlb};
use vhost_user_frontend::{
    BackendHandler, Base, Device, DeviceOptions, Error, Event, EventKind, Kind, OnUnfenced,
    OutOfOrder, Peer, Policy, Region, Ring, RingIndices, StopMode, Timeout,
};

/// Most things that happen in a run.
const STEPS: usize = 80;
/// As many steps bring a device up that has a back-end that behaves: each sends and
/// takes several messages.
const ENOUGH: usize = 400;
const HEADER: usize = 12;
const RINGS: u32 = 3;
const REGIONS: u64 = 4;
pub(super) const SIZE: u64 = 0x1_0000;
const FEATURES: u64 = 1 << 34 | 1 << 33 | 1 << 32 | 1 << 30 | 0xff;
const CONFIG_SIZE: u32 = 16;

/// Guest memory.
pub(super) static RAM: LazyLock<File> = LazyLock::new(|| {
    let file = File::from(memfd_create(c"memory", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(REGIONS * SIZE).unwrap();
    file
});

/// What a ring is kicked and called with.
pub(super) static EVENT: LazyLock<EventFd> = LazyLock::new(eventfd);

/// Opens what stays open.
pub fn prepare() {
    LazyLock::force(&RAM);
    LazyLock::force(&EVENT);
}

fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

fn region(n: u64) -> Region {
    let at = n % REGIONS;
    Region::new((at + 1) * SIZE, SIZE, at * SIZE, RAM.as_fd()).unwrap()
}

/// Knows where a ring stands, or does not.
struct Stand(Option<u16>);

impl RingIndices for Stand {
    fn used(&self) -> Option<u16> {
        self.0
    }
    fn available(&self) -> Option<u16> {
        self.0
    }
}

fn stand(at: Option<u16>) -> Arc<dyn RingIndices> {
    Arc::new(Stand(at))
}

/// Agrees to some of what it is asked.
struct Handler(u8);

impl BackendHandler for Handler {
    fn handles(&self, request: BackendRequest) -> bool {
        u32::from(self.0) & 1 << (request.id() & 7) != 0
    }
    fn iotlb_miss(&self, _: u64, _: u8) -> i32 {
        0
    }
    fn shmem_map(&self, area: &ShmemArea, _: OwnedFd) -> i32 {
        assert!(area.len > 0, "{area:?}");
        0
    }
    fn shmem_unmap(&self, _: &ShmemArea) -> i32 {
        0
    }
}

fn handler(handles: u8) -> Arc<dyn BackendHandler> {
    Arc::new(Handler(handles))
}

// ---- the back-end ----

/// A message that was not answered yet.
struct Asked {
    code: u32,
    need_reply: bool,
    payload: Vec<u8>,
}

/// The back-end of one connection.
pub(super) struct Back {
    socket: UnixStream,
    bytes: Vec<u8>,
    asked: VecDeque<Asked>,
    channel: Option<OwnedFd>,
    protocol: u64,
    /// What it sends along.
    gift: OwnedFd,
}

fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let mut bytes: Vec<u8> = [code, flags, size]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    bytes.extend(payload);
    bytes
}

fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights };
    if !bytes.is_empty() {
        // A front-end that is gone hears nothing, and one that does not read no more.
        let _ = sendmsg::<UnixAddr>(socket, &[IoSlice::new(bytes)], control, flags, None);
    }
}

impl Back {
    pub(super) fn new(socket: UnixStream, protocol: u64) -> Self {
        Self {
            socket,
            bytes: Vec::new(),
            asked: VecDeque::new(),
            channel: None,
            protocol,
            gift: RAM.as_fd().try_clone_to_owned().unwrap(),
        }
    }

    /// Takes what the front-end has sent.
    pub(super) fn read(&mut self) {
        let mut room = [0; 4096];
        loop {
            let mut control = nix::cmsg_space!([RawFd; 32]);
            let mut parts = [IoSliceMut::new(&mut room)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let socket = self.socket.as_raw_fd();
            let Ok(got) = recvmsg::<UnixAddr>(socket, &mut parts, Some(&mut control), flags) else {
                break;
            };
            let mut fds = Vec::new();
            for message in got.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(received) = message {
                    // SAFETY: the kernel just made them, and nobody else knows them.
                    fds.extend(
                        received
                            .iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
                    );
                }
            }
            let length = got.bytes;
            if length == 0 {
                break;
            }
            self.bytes.extend(&room[..length]);
            self.split(fds.pop());
        }
    }

    /// Whole messages; a descriptor is that of the last.
    fn split(&mut self, mut fd: Option<OwnedFd>) {
        while self.bytes.len() >= HEADER {
            let word = |at: usize| u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap());
            let (code, flags) = (word(0), word(4));
            let whole = HEADER + usize::try_from(word(8)).unwrap();
            if self.bytes.len() < whole {
                return;
            }
            let payload = self.bytes[HEADER..whole].to_vec();
            self.bytes.drain(..whole);
            if code == Request::SetBackendReqFd.id() {
                self.channel = fd.take();
            }
            let need_reply = flags & 8 != 0;
            if need_reply || own_reply(code).is_some() {
                self.asked.push_back(Asked {
                    code,
                    need_reply,
                    payload,
                });
            }
        }
    }

    /// How a message is answered that is taken.
    fn good(&self, asked: &Asked) -> (Vec<u8>, bool) {
        let number = |n: u64| n.to_le_bytes().to_vec();
        let (payload, fd) = match asked.code {
            _ if asked.need_reply => (number(0), false),
            1 => (number(FEATURES), false),
            15 => (number(self.protocol), false),
            // The ring, and where it stands.
            11 | 45 => ([&asked.payload[..4], &[0; 4]].concat(), false),
            24 => (asked.payload.clone(), false),
            31 => {
                let size = number(SIZE);
                ([&size, &asked.payload[8..24]].concat(), true)
            }
            44 => {
                let mut sizes = vec![0; 2056];
                (sizes[0], sizes[9]) = (1, 0x10);
                (sizes, false)
            }
            _ => (number(8), false),
        };
        (message(asked.code, 5, &payload), fd)
    }

    pub(super) fn answer(&mut self, bytes: &[u8], fds: usize) {
        let gifts = vec![self.gift.as_raw_fd(); fds];
        send(self.socket.as_raw_fd(), bytes, &gifts);
    }

    /// Answers so many messages well.
    pub(super) fn answer_well(&mut self, most: usize) {
        for _ in 0..most {
            let Some(asked) = self.asked.pop_front() else {
                return;
            };
            let (bytes, fd) = self.good(&asked);
            self.answer(&bytes, usize::from(fd));
        }
    }

    /// Answers one as the input says.
    pub(super) fn answer_as(&mut self, how: u8, input: &mut Input<'_>) {
        let n = usize::from(how >> 4);
        let Some(asked) = self.asked.front() else {
            return;
        };
        let (mut bytes, fd) = self.good(asked);
        let code = asked.code;
        match how & 7 {
            0 => {}
            // Some number.
            1 => bytes = message(code, 5, &u64::from(input.byte()).to_le_bytes()),
            2 => bytes = message(code, 5, &input.u64().to_le_bytes()),
            3 => bytes = message(code, 5, input.block()),
            // One byte is another.
            4 => {
                let at = usize::from(input.u16()) % bytes.len();
                bytes[at] ^= input.byte();
            }
            // Not all of it.
            5 => bytes.truncate(usize::from(input.byte()) % bytes.len()),
            // Another request is answered.
            6 => {
                let other = u32::from(input.byte()).to_le_bytes();
                bytes[..4].copy_from_slice(&other);
            }
            // Bytes of any kind.
            _ => bytes = input.block().to_vec(),
        }
        let fds = if how & 8 != 0 { n } else { usize::from(fd) };
        self.asked.pop_front();
        self.answer(&bytes, fds);
    }

    /// Asks something on its own channel.
    pub(super) fn ask(&mut self, input: &mut Input<'_>) {
        let id = u32::from(input.byte());
        let payload = input.block();
        let bytes = message(id & 15, 1 | (id & 16) >> 1, payload);
        if let Some(channel) = &self.channel {
            let gift = [self.gift.as_raw_fd()];
            let fds = usize::from(id & 32 != 0);
            send(channel.as_raw_fd(), &bytes, &gift[..fds]);
        }
    }
}

// ---- the caller ----

struct Run {
    device: Device,
    back: Option<Back>,
    protocol: u64,
}

/// What the library never says: it has lost track of itself.
fn sound(error: &Error) {
    assert!(error.kind != Kind::Panic, "{error}");
}

fn checked<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(sound).ok()
}

impl Run {
    /// One step of the event loop.
    fn process(&mut self) -> Result<(), Late> {
        let begin = Instant::now();
        let event = self.device.process().unwrap();
        let elapsed = begin.elapsed();
        if elapsed > SLACK {
            let deadline = Duration::ZERO;
            return Err(Late { deadline, elapsed });
        }
        if let Some(event) = &event {
            self.check(event);
        }
        Ok(())
    }

    fn check(&self, event: &Event) {
        let info = self.device.info();
        assert!(event.generation <= info.generation);
        assert!(
            info.applied
                .is_none_or(|applied| applied <= info.generation)
        );
        assert!(event.kind != EventKind::Lost || event.error.is_some());
        if let Some(error) = &event.error {
            sound(error);
        }
    }

    /// Another connection; the one before ends, if it has not.
    fn connect(&mut self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.back = Some(Back::new(theirs, self.protocol));
        checked(self.device.set_fd(ours.into()));
    }

    fn start(&self, input: &mut Input<'_>) {
        let (which, more) = (input.byte(), input.byte());
        let index = u32::from(which & 3);
        let at = SIZE + u64::from(index) * 0x4000;
        let knows = more & 4 != 0;
        let ring = Ring {
            index,
            size: 1 << (which >> 2 & 7),
            descriptor: at,
            available: at + 0x1000,
            used: at + 0x2000,
            base: match more & 3 {
                0 | 1 => Base::New,
                2 => Base::Resume,
                _ => Base::At(u32::from(more)),
            },
            kick: EVENT.as_fd(),
            call: (more & 8 == 0).then(|| EVENT.as_fd()),
            err: (more & 16 != 0).then(|| EVENT.as_fd()),
            indices: knows.then(|| stand((more & 32 == 0).then_some(7))),
        };
        checked(self.device.start(&[ring]));
    }

    /// One thing that the caller does.
    fn call(&mut self, call: u8, input: &mut Input<'_>) {
        let n = u64::from(call >> 4);
        let device = &self.device;
        match call & 15 {
            0 => {
                let bits = u64::from(input.byte()) | (n & 7) << 32;
                checked(device.set_features(bits));
            }
            1 => {
                let regions = (0..REGIONS).filter(|at| n & 1 << at != 0).map(region);
                checked(device.set_memory(regions.collect(), input.byte() & 1 != 0));
            }
            2 => drop(checked(device.add_memory(region(n)))),
            3 => drop(checked(
                device.remove_memory((n % REGIONS + 1) * SIZE, SIZE),
            )),
            4 => self.start(input),
            5 => {
                let mode = [StopMode::Drain, StopMode::SkipDrain, StopMode::Abandon];
                let mode = mode[usize::from(call >> 4) % 3];
                let one = [u32::from(input.byte() & 3)];
                device.stop((n < 8).then_some(&one[..]), mode);
            }
            6 => {
                let call = (n & 8 == 0).then(|| EVENT.as_fd());
                checked(device.set_call(u32::try_from(n & 3).unwrap(), call));
            }
            7 => drop(device.reset()),
            8 => drop(checked(
                device.write_config(u32::from(input.byte()), input.block()),
            )),
            9 => drop(checked(
                device.overlay_config(u32::from(input.byte()), input.block()),
            )),
            10 => {
                let mut bytes = [0; 8];
                checked(device.read_config(u32::from(input.byte()), &mut bytes));
            }
            11 => {
                checked(device.wait(Timeout::After(Duration::ZERO)));
            }
            12 => device.reconnect(),
            13 => {
                let entry = Iotlb {
                    iova: n << 12,
                    size: 0x1000,
                    user_addr: SIZE,
                    perm: 3,
                    kind: iotlb::UPDATE,
                    padding: [0; 6],
                };
                checked(device.post_iotlb(&entry));
            }
            14 => {
                checked(device.memory_fits((0..=n % REGIONS).map(region).collect()));
            }
            _ => {
                let (quiet, info) = (device.quiet(), device.info());
                assert!(!info.connected || info.connections > 0);
                assert!(quiet.quiesced || info.connections > 0);
                let _ = (device.counters(), device.vring_base(0));
            }
        }
    }

    fn one(&mut self, input: &mut Input<'_>) -> Result<(), Late> {
        let op = input.byte();
        let back = self.back.as_mut();
        match op & 7 {
            0 | 1 => {
                for _ in 0..=op >> 4 {
                    self.process()?;
                }
            }
            2 => {
                if let Some(back) = back {
                    back.read();
                    back.answer_well(usize::from(op >> 3) + 1);
                }
            }
            3 => {
                if let Some(back) = back {
                    back.read();
                    back.answer_as(input.byte(), input);
                }
            }
            4 => match op >> 3 {
                // It says something unasked, or its own channel ends, or it goes.
                0..=7 => {
                    if let Some(back) = back {
                        let bytes = input.block();
                        back.answer(bytes, usize::from(op >> 6));
                    }
                }
                8..=19 => {
                    if let Some(back) = back {
                        back.read();
                        back.ask(input);
                    }
                }
                20..=23 => {
                    if let Some(back) = back {
                        back.channel = None;
                    }
                }
                _ => self.back = None,
            },
            5 if op & 8 != 0 => self.connect(),
            // It and the device, hand in hand.
            5 => self.work(usize::from(op >> 4) + 1)?,
            _ => {
                let call = input.byte();
                self.call(call, input);
            }
        }
        Ok(())
    }

    /// So many steps with a back-end that behaves.
    fn work(&mut self, steps: usize) -> Result<(), Late> {
        for _ in 0..steps {
            if let Some(back) = &mut self.back {
                back.read();
                back.answer_well(usize::MAX);
            }
            self.process()?;
        }
        Ok(())
    }

    /// Whoever has done what: with a back-end that behaves the rings run.
    fn finish(&mut self) -> Result<(), Late> {
        self.back = None;
        for _ in 0..ENOUGH {
            if !self.device.info().connected {
                break;
            }
            self.process()?;
        }
        self.connect();
        let settled = |run: &Self| {
            let info = run.device.info();
            info.connected && info.applied == Some(info.generation)
        };
        // What the guest had from another back-end, this one need not offer.
        self.device.reset();
        self.until("the back-end is there", settled)?;
        self.device.set_features(1 << 32).unwrap();
        self.device.set_memory(vec![region(0)], true).unwrap();
        self.start(&mut Input::new(&[0x18, 4]));
        self.until("the ring runs", settled)?;
        assert!(!self.device.info().needs_reset);
        self.device.stop(None, StopMode::Drain);
        self.until("the ring is stopped", settled)?;
        let quiet = self.device.quiet();
        let unfenced = self.device.info().unfenced;
        assert!(quiet.quiesced || unfenced, "{quiet:?}");
        assert_eq!(self.device.vring_base(0).unwrap(), 0);
        Ok(())
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), Late> {
        for _ in 0..ENOUGH {
            if holds(self) {
                return Ok(());
            }
            let connections = self.device.info().connections;
            self.work(1)?;
            // It was lost, over what had come before.
            let info = self.device.info();
            if info.peer.is_none() && info.connections == connections {
                let lost = self.back.as_ref().is_none_or(|back| back.asked.is_empty());
                if lost {
                    self.connect();
                }
            }
        }
        panic!("never: {what}: {:?}", self.device.info());
    }
}

/// One input.
pub fn run(_: &mut Rig, data: &[u8]) -> Result<(), Late> {
    if let Some(history) = data.strip_prefix(simulator::HISTORY) {
        simulator::run(history);
        return Ok(());
    }
    let mut input = Input::new(data);
    let (flags, protocol) = (input.byte(), u64::from(input.u32()));
    let short = |bit: u8| match flags & bit {
        0 => Timeout::After(Duration::from_secs(60)),
        _ => Timeout::After(Duration::ZERO),
    };
    let policy = Policy {
        first_delay: Duration::from_nanos(1),
        max_delay: Duration::from_nanos(1),
        jitter_percent: 0,
        slow_delay: Duration::from_nanos(1),
    };
    let options = DeviceOptions {
        num_rings: RINGS,
        config_size: if flags & 1 == 0 { 0 } else { CONFIG_SIZE },
        handler: (flags & 2 != 0).then(|| handler(flags)),
        reconnect: policy,
        fence: short(4),
        on_unfenced: OnUnfenced::Proceed,
        out_of_order: match flags >> 5 & 3 {
            0 => OutOfOrder::ReplayFromUsed,
            1 => OutOfOrder::ResumeFromAvailable,
            _ => OutOfOrder::NeedsReset,
        },
        assume_features: (flags & 8 != 0).then_some(1 << 32),
        quick: Timeout::After(Duration::from_secs(60)),
        slow: Timeout::After(Duration::from_secs(60)),
        drain: Timeout::After(Duration::from_secs(60)),
        ..DeviceOptions::default()
    };
    let mut run = Run {
        device: Device::open(Peer::Fd, options).unwrap(),
        back: None,
        protocol,
    };
    run.connect();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        run.one(&mut input)?;
    }
    run.finish()
}
