//! A simulated back-end process. It has real descriptors of guest memory and real rings in
//! it, and the truth about what it can still access.

use super::action::caps;
use super::ledger::{Buffer, Class, Ledger, RINGS};
use super::packed::{Counting, PACKED};
use super::wire::{self, Message, Wire};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::pipe;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

const F_PROTOCOL: u64 = 1 << 30;
/// VERSION_1 and FLUSH.
pub const BASIC: u64 = 1 << 32 | 1 << 9;
pub const IN_ORDER: u64 = 1 << 35;
pub const MAX_SLOTS: u64 = 16;

// Protocol feature bits.
const MQ: u64 = 1;
const REPLY_ACK: u64 = 1 << 3;
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;
const INFLIGHT: u64 = 1 << 12;
const RESET_DEVICE: u64 = 1 << 13;
const SLOTS: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const BASE_INFLIGHT: u64 = 1 << 20;
const SKIP_DRAIN: u64 = 1 << 23;

/// Where each capability is among the protocol features.
const PROTOCOL: &[(u32, u64)] = &[
    (caps::REPLY_ACK, REPLY_ACK),
    (caps::INFLIGHT, INFLIGHT),
    (caps::SLOTS, SLOTS),
    (caps::RESET_DEVICE, RESET_DEVICE),
    (caps::STATUS, STATUS),
    (caps::BASE_INFLIGHT, BASE_INFLIGHT),
    (caps::SKIP_DRAIN, SKIP_DRAIN),
    (caps::CONFIG, CONFIG),
    (caps::BACKEND_REQ, BACKEND_REQ),
];

/// Whether a back-end takes the place of a packed ring from the in-flight buffer if the ring
/// has run with that buffer, whatever the base is. While this is `false`, two kinds of rings
/// are spared, which the device gives a buffer with an old place: those that begin anew, and
/// those that have run without the buffer since. No back-end is known that does this.
const OLD_PLACES_OF_PACKED_RINGS_COUNT: bool = false;

/// A region that the back-end can write.
#[derive(Debug)]
pub struct Slot {
    pub guest_addr: u64,
    pub size: u64,
    pub offset: u64,
    pub inode: u64,
    file: File,
}

impl Slot {
    fn overlaps(&self, other: &Self) -> bool {
        let (end, other_end) = (self.guest_addr + self.size, other.guest_addr + other.size);
        self.guest_addr < other_end && other.guest_addr < end
    }
}

/// A request that the back-end has taken.
#[derive(Debug, Clone, Copy)]
struct Taken {
    head: u16,
    id: u64,
}

/// A ring as the back-end has it.
#[derive(Debug, Default)]
pub struct BackRing {
    pub size: u32,
    base: u32,
    packed: bool,
    pub descriptor: u64,
    used_addr: u64,
    available_addr: u64,
    pub kick: Option<OwnedFd>,
    pub call: Option<OwnedFd>,
    pub err: Option<OwnedFd>,
    pub enabled: bool,
    /// It has been kicked and not been stopped.
    pub started: bool,
    /// Whose requests it serves.
    pub run: Option<usize>,
    next: u16,
    used: u16,
    taken: Vec<Taken>,
    /// How it was asked to stop, where it still drains.
    stopping: Option<u32>,
    /// What was set since it was last stopped: size, base and addresses.
    set: [bool; 3],
}

impl BackRing {
    fn counting(&self) -> Counting {
        Counting {
            packed: self.packed,
            size: u16::try_from(self.size).unwrap_or(u16::MAX),
        }
    }

    /// It still writes this ring: it serves it, or completes requests although it has
    /// answered GET_VRING_BASE.
    pub fn accesses(&self) -> bool {
        self.started || !self.taken.is_empty()
    }

    /// Requests that it executes after the ring was stopped.
    pub fn late(&self) -> Vec<u64> {
        match self.started {
            true => Vec::new(),
            false => self.taken.iter().map(|it| it.id).collect(),
        }
    }
}

/// What the next request of a kind meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Refuse,
    Malform(u32),
    Cut(u32),
    Mute(u32),
}

/// A back-end process. Dropped, all of its descriptors are closed: it is gone.
#[derive(Debug)]
pub struct BackEnd {
    pub name: String,
    pub caps: u32,
    wire: Wire,
    protocol: u64,
    pub features: Option<u64>,
    pub slots: Vec<Slot>,
    pub rings: [BackRing; RINGS],
    buffer: Option<Buffer>,
    channel: Option<OwnedFd>,
    config: [u8; 8],
    status: u64,
    /// Faults to come, by request; 0 is any.
    pub faults: Vec<(u32, Fault)>,
    /// The driver has reset the device, and a reset was agreed that it has not received.
    pub must_reset: bool,
    /// Its process has ended, which closes everything.
    pub gone: bool,
    /// It answers nothing any more.
    dead: bool,
    /// A request met a fault, so what follows it may lack something.
    has_failed: bool,
}

impl BackEnd {
    /// At this end of a connection.
    pub fn new(name: String, socket: UnixStream, caps: u32) -> Self {
        Self {
            name,
            caps,
            wire: Wire::new(socket),
            protocol: 0,
            features: None,
            slots: Vec::new(),
            rings: Default::default(),
            buffer: None,
            channel: None,
            config: [0; 8],
            status: 0,
            faults: Vec::new(),
            must_reset: false,
            gone: false,
            dead: false,
            has_failed: false,
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.caps & capability != 0
    }

    fn agreed(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    /// What is missing besides memory and rings, where the features are known and rings
    /// run or not.
    pub fn lacks(&self, runs: bool) -> Option<&'static str> {
        let status = if runs { 15 } else { 11 };
        match () {
            () if self.agreed(STATUS) && self.status & status != status => {
                Some("the status is not that of the driver")
            }
            () if self.agreed(INFLIGHT) && runs && self.buffer.is_none() => {
                Some("rings run without an in-flight buffer")
            }
            () => None,
        }
    }

    /// The front-end has ended the connection.
    pub fn was_given_up(&self) -> bool {
        self.wire.ended
    }

    /// A reset has an answer that the front-end can wait for.
    pub fn can_reset(&self) -> bool {
        self.features.is_some() && (self.agreed(RESET_DEVICE) || self.agreed(STATUS))
    }

    fn offered(&self) -> u64 {
        let in_order = if self.has(caps::IN_ORDER) {
            IN_ORDER
        } else {
            0
        };
        let packed = if self.has(caps::PACKED) { PACKED } else { 0 };
        F_PROTOCOL | BASIC | in_order | packed
    }

    fn offered_protocol(&self) -> u64 {
        let offered = PROTOCOL
            .iter()
            .filter(|(capability, _)| self.has(*capability));
        offered.fold(MQ, |all, (_, bit)| all | bit)
    }

    // ---- guest memory ----

    fn find(&self, addr: u64, len: u64) -> Option<(&File, u64)> {
        let slot = self
            .slots
            .iter()
            .find(|slot| slot.guest_addr <= addr && addr + len <= slot.guest_addr + slot.size)?;
        Some((&slot.file, addr - slot.guest_addr + slot.offset))
    }

    fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        let (file, at) = self.find(addr, u64::try_from(N).unwrap())?;
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    fn half(&self, addr: u64) -> Option<u16> {
        Some(u16::from_le_bytes(self.read(addr)?))
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        if let Some((file, at)) = self.find(addr, u64::try_from(bytes.len()).unwrap()) {
            file.write_all_at(bytes, at).unwrap();
        }
    }

    // ---- rings ----

    /// Takes requests that the driver has made available.
    pub fn take(&mut self, index: usize, count: u32, ledger: &mut Ledger) {
        for _ in 0..count {
            let ring = &self.rings[index];
            if !ring.started || !ring.enabled || ring.stopping.is_some() || ring.size == 0 {
                return;
            }
            let counting = ring.counting();
            let slot = u64::from(counting.slot(ring.next));
            let found = match ring.packed {
                true => self.next_packed(ring, slot),
                false => self.next_split(ring, slot),
            };
            let Some((head, descriptor)) = found else {
                return;
            };
            self.start_request(index, head, descriptor, ledger);
            let ring = &mut self.rings[index];
            ring.next = counting.add(ring.next, 1);
        }
    }

    /// The head of the next request, and where its descriptor is.
    fn next_split(&self, ring: &BackRing, slot: u64) -> Option<(u16, u64)> {
        let available = self.half(ring.available_addr + 2)?;
        let ahead = available.wrapping_sub(ring.next);
        if ahead == 0 || u32::from(ahead) > ring.size {
            return None;
        }
        let head = self.half(ring.available_addr + 4 + 2 * slot).unwrap_or(0);
        Some((head, ring.descriptor + 16 * u64::from(head)))
    }

    fn next_packed(&self, ring: &BackRing, slot: u64) -> Option<(u16, u64)> {
        let descriptor = ring.descriptor + 16 * slot;
        let flags = self.half(descriptor + 14)?;
        let is_available = flags == ring.counting().available_flags(ring.next);
        let full = ring.taken.len() >= usize::try_from(ring.size).unwrap();
        (is_available && !full).then_some((self.half(descriptor + 12)?, descriptor))
    }

    fn start_request(&mut self, index: usize, head: u16, at: u64, ledger: &mut Ledger) {
        let data = self.read(at).map(u64::from_le_bytes).unwrap_or(0);
        let id = self.read(data).map(u64::from_le_bytes).unwrap_or(0);
        if let Some(buffer) = &self.buffer {
            buffer.put(index, head, id);
        }
        ledger.say(|| format!("{} takes request {id} of ring {index}", self.name));
        self.rings[index].taken.push(Taken { head, id });
    }

    /// Executes and completes one that was taken; whether there was one.
    pub fn complete(&mut self, index: usize, which: u32, ledger: &mut Ledger) -> bool {
        let in_order = self.features.unwrap_or_default() & IN_ORDER != 0;
        let ring = &mut self.rings[index];
        let count = ring.taken.len();
        if count == 0 {
            return false;
        }
        let at = match which {
            _ if in_order => 0,
            0 => 0,
            1 => count - 1,
            _ => count / 2,
        };
        let Taken { head, id } = ring.taken.remove(at);
        let (run, counting) = (ring.run, ring.counting());
        let (used, used_addr, descriptor) = (ring.used, ring.used_addr, ring.descriptor);
        let next = counting.add(used, 1);
        ring.used = next;
        ledger.say(|| format!("{} completes request {id} of ring {index}", self.name));
        ledger.executed(id, run, &self.name);
        let slot = u64::from(counting.slot(used));
        if counting.packed {
            let flags = counting.used_flags(used);
            let element = [
                &8_u32.to_le_bytes()[..],
                &head.to_le_bytes(),
                &flags.to_le_bytes(),
            ];
            self.write(descriptor + 16 * slot + 8, &element.concat());
        } else {
            let element = [u32::from(head).to_le_bytes(), 8_u32.to_le_bytes()].concat();
            self.write(used_addr + 4 + 8 * slot, &element);
            self.write(used_addr + 2, &next.to_le_bytes());
        }
        if let Some(buffer) = &self.buffer {
            buffer.put(index, head, 0);
            if let (true, Some(run)) = (counting.packed, run) {
                buffer.put_used(index, next, run);
            }
        }
        true
    }

    /// The ring begins to run.
    fn start_ring(&mut self, index: usize, ledger: &mut Ledger) {
        let ring = &self.rings[index];
        if ring.set != [true; 3] {
            if !self.has_failed {
                let text = format!("{}: ring {index} starts with {:?}", self.name, ring.set);
                ledger.violate(Class::Order, text);
            }
            return;
        }
        let Some(index_of_split) = self.half(ring.used_addr + 2) else {
            ledger.violate(
                Class::Order,
                format!("{}: ring {index} starts without its memory", self.name),
            );
            return;
        };
        let addr = ring.descriptor;
        let run = ledger.runs.iter().enumerate().rev().find_map(|(run, it)| {
            let here = super::world::area_addr(it.ring, it.area) == addr;
            (here && it.ring == index).then_some(run)
        });
        let Some(run) = run else {
            ledger.violate(
                Class::Order,
                format!(
                    "{}: ring {index} starts at {addr:#x}, where none is",
                    self.name
                ),
            );
            return;
        };
        // A restart ends what it was doing for another run.
        let late = if ring.run == Some(run) {
            ring.late()
        } else {
            Vec::new()
        };
        let mut buffered = match &self.buffer {
            Some(buffer) => buffer.entries(index),
            None => Vec::new(),
        };
        let hidden = |id: &u64| {
            let of = ledger.requests.get(id).map(|it| it.run);
            of.is_some_and(|of| of != run && ledger.runs[of].hidden)
        };
        buffered.retain(|(_, id)| !late.contains(id) && !hidden(id));
        if ring.packed != ledger.runs[run].packed {
            let text = format!("{}: ring {index} is packed: {}", self.name, ring.packed);
            return ledger.violate(Class::Order, text);
        }
        let counting = ring.counting();
        let (base, base_used) = counting.of_base(ring.base);
        // Where the used ring, or the used descriptors, end.
        let used = match ring.packed {
            false => index_of_split,
            true => {
                let seen = ledger.runs[run].used;
                let flags = |slot| self.half(addr + 16 * u64::from(slot) + 14).unwrap_or(0);
                counting.add(counting.used(seen, flags), 0)
            }
        };
        let buffer = self.buffer.as_ref().filter(|_| ring.packed);
        let of_buffer = buffer.and_then(|buffer| buffer.used(index));
        let is_current = |last: usize| last == run && !ledger.runs[run].ran_unbuffered;
        let counts = |last: usize| is_current(last) || OLD_PLACES_OF_PACKED_RINGS_COUNT;
        let of_buffer = of_buffer.filter(|(_, last)| counts(*last));
        let of_buffer = of_buffer.map(|(used, _)| used);
        let device_used = match ring.packed {
            false => used,
            true => of_buffer.unwrap_or(base_used),
        };
        if let Some(buffer) = buffer {
            buffer.put_used(index, device_used, run);
        }
        ledger.runs[run].ran_unbuffered = self.buffer.is_none();
        ledger.say(|| {
            format!(
                "{} starts ring {index} (run {run}) at base {base}, used {used}, \
                 buffer {buffered:?}, {of_buffer:?}",
                self.name
            )
        });
        if device_used != used && late.is_empty() {
            let text = format!(
                "{}: ring {index} (run {run}) goes on at used position {device_used} \
                 (from the buffer: {}), and it is {used}",
                self.name,
                of_buffer.is_some()
            );
            match of_buffer {
                Some(_) => ledger.violate(Class::Buffer, text),
                None => ledger.suspect(run, Class::Lost, text),
            }
        }
        let stale = buffered
            .iter()
            .find(|(_, id)| ledger.requests.get(id).is_none_or(|it| it.run != run));
        if let Some((_, id)) = stale {
            let id = *id;
            ledger.violate(
                Class::Buffer,
                format!(
                    "{}: ring {index} starts for run {run} with request {id} of an earlier run \
                     in the in-flight buffer",
                    self.name
                ),
            );
            buffered.clear();
        } else if let Some((class, text)) =
            ledger.resumes_wrongly(run, base, used, &buffered, &late)
        {
            let text = format!("{}: ring {index} starts at {text}", self.name);
            ledger.suspect(run, class, text);
        }
        let count = u16::try_from(buffered.len()).unwrap();
        let ring = &mut self.rings[index];
        ring.started = true;
        if ring.run != Some(run) {
            ring.taken.clear();
        }
        ring.run = Some(run);
        ring.used = device_used;
        ring.next = match count {
            0 if of_buffer.is_some() => device_used,
            0 => base,
            _ => counting.add(device_used, count),
        };
        for (head, id) in buffered {
            self.rings[index].taken.push(Taken { head, id });
        }
    }

    /// The ring was asked to stop by this request.
    fn stop_ring(&mut self, index: usize, code: u32, ledger: &mut Ledger) {
        self.check_mode(index, code, ledger);
        let in_flight = !self.rings[index].taken.is_empty();
        let suspends = self.has(caps::SUSPENDS)
            && self.agreed(BASE_INFLIGHT)
            && !self.agreed(SKIP_DRAIN)
            && self.buffer.is_some();
        let skips = code == 45 && self.buffer.is_some();
        if skips || suspends {
            if in_flight && code == 11 {
                let run = self.rings[index].run;
                let drain = run.and_then(|run| ledger.runs[run].modes.front().copied());
                if drain == Some(0) {
                    ledger.violate(
                        Class::Modes,
                        format!("{}: ring {index} is to be drained, and is not", self.name),
                    );
                }
            }
            // What is left is in the buffer.
            self.rings[index].taken.clear();
        } else if self.has(caps::SLOW) && in_flight {
            self.rings[index].stopping = Some(code);
            return;
        } else if !self.has(caps::EAGER) {
            while self.complete(index, 0, ledger) {}
        }
        self.stopped(index, code, ledger);
    }

    /// How many bytes it was sent.
    pub fn sent(&self) -> usize {
        self.wire.sent()
    }

    fn check_mode(&self, index: usize, code: u32, ledger: &mut Ledger) {
        let ring = &self.rings[index];
        let Some(run) = ring.run.filter(|_| ring.started) else {
            return;
        };
        let before = self.wire.received <= ledger.runs[run].sent_before_stop;
        if ledger.wanted[index] || before {
            // The device stops it for a purpose of its own, or has to stop it first.
            return;
        }
        let modes = &ledger.runs[run].modes;
        let can_skip = self.agreed(SKIP_DRAIN);
        let right = modes.iter().any(|mode| match mode {
            0 => code == 11,
            1 => code == if can_skip { 45 } else { 11 },
            _ => true,
        });
        if !modes.is_empty() && !right && !ledger.runs[run].withdrawn {
            let text = format!(
                "{}: ring {index} is stopped by {code}, its modes are {modes:?}",
                self.name
            );
            ledger.violate(Class::Modes, text);
        }
    }

    /// The ring is stopped, or pretends to be: the base is sent.
    fn stopped(&mut self, index: usize, code: u32, ledger: &mut Ledger) {
        let ring = &mut self.rings[index];
        if let Some(run) = ring.run {
            // Without the used index nobody can see that requests are in flight.
            let hidden = !ring.taken.is_empty() && !ledger.runs[run].knows_used;
            ledger.runs[run].lenient |= hidden;
            ledger.runs[run].hidden |= hidden;
            let modes = &mut ledger.runs[run].modes;
            if modes.len() > 1 {
                modes.pop_front();
            }
        }
        ring.started = false;
        ring.set = [false; 3];
        ring.stopping = None;
        ring.kick = None;
        ring.call = None;
        let base = ring.counting().base(ring.next, ring.used);
        ledger.say(|| format!("{} stops ring {index} at {base:#x}", self.name));
        let number = u32::try_from(index).unwrap();
        let payload = [number.to_ne_bytes(), base.to_ne_bytes()].concat();
        self.wire.send(&wire::reply(code, &payload), &[]);
    }

    fn reset(&mut self) {
        for ring in &mut self.rings {
            *ring = BackRing::default();
        }
        self.buffer = None;
        self.features = None;
        self.status = 0;
        self.must_reset = false;
    }

    // ---- messages ----

    /// Handles one message; whether there was one.
    pub fn serve(&mut self, ledger: &mut Ledger) -> bool {
        if self.gone || self.dead {
            return false;
        }
        // It still drains a ring, and reads nothing before that is done.
        for index in 0..RINGS {
            if let Some(code) = self.rings[index].stopping {
                if !self.rings[index].taken.is_empty() {
                    return false;
                }
                self.stopped(index, code, ledger);
                return true;
            }
        }
        let Some(mut message) = self.wire.receive() else {
            return false;
        };
        ledger.say(|| {
            let head: Vec<_> = message.payload.iter().take(16).collect();
            let (code, ack) = (message.code, message.need_reply);
            format!("{} receives {code} (ack {ack}) {head:?}", self.name)
        });
        let place = self
            .faults
            .iter()
            .position(|(code, _)| *code == message.code || *code == 0);
        match place.map(|place| self.faults.remove(place).1) {
            None => self.handle(&mut message, ledger),
            Some(fault) => self.fail(fault, &mut message, ledger),
        }
        true
    }

    fn always_replies(code: u32) -> bool {
        matches!(code, 1 | 11 | 15 | 17 | 24 | 31 | 36 | 44 | 45)
    }

    /// A request meets a fault.
    fn fail(&mut self, fault: Fault, message: &mut Message, ledger: &mut Ledger) {
        ledger.say(|| format!("{}: {fault:?}", self.name));
        self.has_failed = true;
        let replies = message.need_reply || Self::always_replies(message.code);
        let code = message.code;
        if !replies && matches!(fault, Fault::Malform(_) | Fault::Mute(_)) {
            // There is no reply that could be wrong.
            return self.handle(message, ledger);
        }
        let takes_effect = match fault {
            Fault::Refuse => false,
            Fault::Malform(how) | Fault::Cut(how) | Fault::Mute(how) => how & 4 != 0,
        };
        if takes_effect && message.need_reply {
            // Its own reply is not sent.
            message.need_reply = false;
            self.handle(message, ledger);
        }
        match fault {
            Fault::Refuse if code == 24 => self.wire.send(&wire::reply(code, &[]), &[]),
            Fault::Refuse if message.need_reply => {
                self.wire
                    .send(&wire::reply(code, &1_u64.to_ne_bytes()), &[]);
            }
            // There is no way to say no.
            Fault::Refuse => self.gone = true,
            Fault::Malform(how) if code == 31 && how & 4 != 0 => {
                let payload = [&0x1000_u64.to_ne_bytes()[..], &message.payload[8..]].concat();
                let file = useless_file(how & 3);
                self.wire
                    .send(&wire::reply(code, &payload), &[file.as_raw_fd()]);
                self.dead = true;
            }
            Fault::Malform(how) if replies => {
                let good = wire::reply(code, &0_u64.to_ne_bytes());
                let bad = match how & 3 {
                    0 => wire::reply(code + 1, &0_u64.to_ne_bytes()),
                    1 => wire::reply(code, &[0; 3]),
                    2 => [&[0xff; 8], &good[8..]].concat(),
                    _ => vec![0; 12],
                };
                self.wire.send(&bad, &[]);
                self.dead = true;
            }
            Fault::Cut(how) => {
                let good = wire::reply(code, &0_u64.to_ne_bytes());
                self.wire.send(&good[..7], &[]);
                // If both sides have ended writing, the kernel reports the same as for a
                // closed connection.
                self.gone = how & 1 != 0 || self.wire.other_side_ended();
                self.wire.end_writing();
                self.dead = true;
            }
            // An answer to a later request of this kind would be taken for this one's.
            Fault::Mute(_) => self.dead = true,
            Fault::Malform(_) => {}
        }
    }

    /// Makes writes of kick and call descriptors block, except for one write if `room` is
    /// odd.
    pub fn hinder(&mut self, room: u32, ledger: &mut Ledger) {
        let value = u64::MAX - 1 - u64::from(room & 1);
        let fds = self.rings.iter().flat_map(|ring| [&ring.kick, &ring.call]);
        for fd in fds.flatten() {
            set_nonblocking(fd, true);
            let _ = nix::unistd::read(fd, &mut [0; 8]);
            nix::unistd::write(fd, &value.to_ne_bytes()).unwrap();
            set_nonblocking(fd, false);
            ledger.say(|| format!("{} fills {fd:?}", self.name));
        }
    }

    /// Sends bytes that nothing asked for.
    pub fn garbage(&mut self) {
        self.wire.send(&[0x5a; 20], &[]);
        self.dead = true;
    }

    fn handle(&mut self, message: &mut Message, ledger: &mut Ledger) {
        let code = message.code;
        let number = |n: u64| Some(n.to_ne_bytes().to_vec());
        let ring = usize::try_from(message.half(0) & 0xff).unwrap();
        let named = matches!(code, 8..=14 | 18 | 45);
        if named && ring >= RINGS {
            ledger.violate(Class::Order, format!("request {code} of ring {ring}"));
            return;
        }
        let mut accepted = true;
        let own = match code {
            1 => number(self.offered()),
            15 => number(self.offered_protocol()),
            17 => number(u64::try_from(RINGS).unwrap()),
            36 => number(MAX_SLOTS),
            2 => {
                self.features = Some(message.word(0));
                None
            }
            16 => {
                self.protocol = message.word(0);
                let surplus = self.protocol & !self.offered_protocol();
                if surplus != 0 {
                    let text = format!("protocol features {surplus:#x} were not offered");
                    ledger.violate(Class::Order, text);
                }
                None
            }
            5 => {
                let count = usize::try_from(message.half(0)).unwrap();
                let fds = std::mem::take(&mut message.fds);
                let slots = fds.into_iter().enumerate();
                self.slots = slots.map(|(n, fd)| slot(message, 8 + 32 * n, fd)).collect();
                accepted = self.slots.len() == count;
                None
            }
            37 => {
                let new = message.fds.pop().map(|fd| slot(message, 8, fd));
                let overlaps = |it: &Slot| self.slots.iter().any(|slot| slot.overlaps(it));
                match new.filter(|it| !overlaps(it)) {
                    Some(new) => self.slots.push(new),
                    None => accepted = false,
                }
                None
            }
            38 => {
                let (at, size) = (message.word(8), message.word(16));
                let before = self.slots.len();
                self.slots
                    .retain(|it| (it.guest_addr, it.size) != (at, size));
                accepted = self.slots.len() < before;
                None
            }
            8 => {
                self.rings[ring].size = message.half(4);
                self.rings[ring].set[0] = true;
                None
            }
            9 => {
                let it = &mut self.rings[ring];
                if it.descriptor != message.word(8) {
                    // It no longer writes the memory of before.
                    it.taken.clear();
                }
                it.descriptor = message.word(8);
                it.used_addr = message.word(16);
                it.available_addr = message.word(24);
                accepted = self.find(message.word(8), 16).is_some();
                self.rings[ring].set[2] = accepted;
                None
            }
            10 => {
                let packed = self.features.unwrap_or_default() & PACKED != 0;
                let it = &mut self.rings[ring];
                it.base = message.half(4);
                it.set[1] = true;
                if !it.started {
                    it.packed = packed;
                    (it.next, it.used) = it.counting().of_base(it.base);
                }
                None
            }
            11 | 45 => {
                self.stop_ring(ring, code, ledger);
                return;
            }
            12 => {
                self.rings[ring].kick = message.fds.pop();
                if !self.rings[ring].started {
                    self.start_ring(ring, ledger);
                }
                None
            }
            13 => {
                self.rings[ring].call = message.fds.pop();
                None
            }
            14 => {
                self.rings[ring].err = message.fds.pop();
                None
            }
            18 => {
                self.rings[ring].enabled = message.half(4) != 0;
                None
            }
            21 => {
                self.channel = message.fds.pop();
                None
            }
            24 => {
                let size = usize::try_from(message.half(4))
                    .unwrap()
                    .min(self.config.len());
                let mut payload = message.payload[..12].to_vec();
                payload.extend(&self.config[..size]);
                Some(payload)
            }
            25 => {
                let at = usize::try_from(message.half(0)).unwrap();
                let data = &message.payload[12..];
                match self.config.get_mut(at..at + data.len()) {
                    Some(place) => place.copy_from_slice(data),
                    None => accepted = false,
                }
                None
            }
            31 => {
                self.make_buffer(message);
                return;
            }
            32 => {
                self.take_buffer(message, ledger);
                None
            }
            34 => {
                self.reset();
                None
            }
            39 => {
                self.status = message.word(0);
                if self.status == 0 {
                    self.reset();
                }
                None
            }
            3 => None,
            _ => {
                ledger.violate(Class::Order, format!("unexpected request {code}"));
                None
            }
        };
        self.has_failed |= !accepted;
        match own {
            Some(payload) => self.wire.send(&wire::reply(code, &payload), &[]),
            None if message.need_reply => {
                let status = u64::from(!accepted);
                self.wire
                    .send(&wire::reply(code, &status.to_ne_bytes()), &[]);
            }
            // There is no other way to say no.
            None if !accepted => self.gone = true,
            None => {}
        }
    }

    fn make_buffer(&mut self, message: &Message) {
        let counts = message.half(16);
        let rings = u16::try_from(counts & 0xffff).unwrap();
        let size = u16::try_from(counts >> 16).unwrap();
        let file = File::from(memfd_create(c"inflight", MFdFlags::MFD_CLOEXEC).unwrap());
        let bytes = Buffer::bytes(rings, size);
        file.set_len(bytes).unwrap();
        let mut payload = [bytes.to_ne_bytes(), [0; 8]].concat();
        payload.extend(&message.payload[16..]);
        self.wire
            .send(&wire::reply(31, &payload), &[file.as_raw_fd()]);
    }

    fn take_buffer(&mut self, message: &mut Message, ledger: &mut Ledger) {
        let counts = message.half(16);
        let Some(fd) = message.fds.pop() else {
            ledger.violate(
                Class::Order,
                "SET_INFLIGHT_FD without descriptor".to_owned(),
            );
            return;
        };
        let buffer = Buffer {
            file: Rc::new(File::from(fd)),
            rings: u16::try_from(counts & 0xffff).unwrap(),
            size: u16::try_from(counts >> 16).unwrap(),
        };
        // From now on it is the one that counts: completions go there.
        for (index, ring) in self.rings.iter().enumerate() {
            let same = |it: &Taken| buffer.entries(index).contains(&(it.head, it.id));
            if ring.started && !ring.taken.iter().all(same) {
                let text = format!("ring {index} has requests in flight in another buffer");
                ledger.violate(Class::Buffer, text);
            }
        }
        ledger.buffer = Some(buffer.clone());
        self.buffer = Some(buffer);
    }
}

fn slot(message: &Message, at: usize, fd: OwnedFd) -> Slot {
    let file = File::from(fd);
    Slot {
        guest_addr: message.word(at),
        size: message.word(at + 8),
        offset: message.word(at + 24),
        inode: file.metadata().unwrap().ino(),
        file,
    }
}

/// A file that cannot be mapped as a buffer of one page.
fn useless_file(kind: u32) -> OwnedFd {
    let named = |path: &str, flags| open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    match kind {
        0 => named("/", OFlag::O_RDONLY),
        1 => named("/dev/null", OFlag::O_PATH),
        2 => pipe().unwrap().1,
        _ => memfd_create(c"empty", MFdFlags::MFD_CLOEXEC).unwrap(),
    }
}

/// Sets or clears O_NONBLOCK, which is shared by all duplicates of a descriptor.
fn set_nonblocking(fd: impl AsFd, nonblocking: bool) {
    let flag = match nonblocking {
        true => OFlag::O_NONBLOCK,
        false => OFlag::empty(),
    };
    fcntl(fd, FcntlArg::F_SETFL(flag)).unwrap();
}

/// Whether both are one eventfd. It is empty afterwards.
pub fn same_eventfd(theirs: Option<&OwnedFd>, ours: &EventFd) -> bool {
    set_nonblocking(ours, true);
    let _ = ours.read();
    theirs.is_some_and(|theirs| {
        nix::unistd::write(theirs, &1_u64.to_ne_bytes()).is_ok() && ours.read() == Ok(1)
    })
}
