//! A guest with block rings, split or packed: its memory, and the driver's side.
//!
//! Every request is one sector, so that its tag says what must be where.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vhost_user_frontend::message::{MemRegion, VringAddr};
use vhost_user_frontend::{BackendClient, Result, SharedRegion};
use vm_memory::{AtomicAccess, ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

pub const SECTOR: usize = 512;

/// What a sector with this tag holds; the tag is its first word.
pub fn pattern(tag: u64) -> [u8; SECTOR] {
    let mut data = [0; SECTOR];
    for (i, word) in data.chunks_exact_mut(8).enumerate() {
        let value = tag.wrapping_add(u64::try_from(i).unwrap() << 32);
        word.copy_from_slice(&value.to_le_bytes());
    }
    data
}

// ---- memory ----

/// One region in a memfd. The user address of a byte is not its guest address.
pub struct GuestMemory {
    file: File,
    map: GuestMemoryMmap,
    size: u64,
    free: Cell<u64>,
}

const GUEST_ADDR: u64 = 0x10_0000;
const USER_ADDR: u64 = 0x7f00_0000_0000;

impl GuestMemory {
    pub fn new(size: u64) -> Rc<Self> {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (
            GuestAddress(GUEST_ADDR),
            size.try_into().unwrap(),
            Some(offset),
        );
        Rc::new(Self {
            file,
            map: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
            size,
            free: Cell::new(0),
        })
    }

    pub fn region(&self) -> SharedRegion<'_> {
        SharedRegion {
            region: MemRegion {
                guest_addr: GUEST_ADDR,
                size: self.size,
                user_addr: USER_ADDR,
                mmap_offset: 0,
                xen_mmap_flags: 0,
                xen_domid: 0,
            },
            fd: self.file.as_fd(),
        }
    }

    /// The guest address of zeroed memory that nothing else uses.
    pub fn alloc(&self, size: u64, alignment: u64) -> u64 {
        let start = self.free.get().next_multiple_of(alignment);
        self.free.set(start + size);
        assert!(self.free.get() <= self.size, "guest memory is used up");
        GUEST_ADDR + start
    }

    pub fn user_addr(guest_addr: u64) -> u64 {
        guest_addr - GUEST_ADDR + USER_ADDR
    }

    fn put<T: ByteValued>(&self, addr: u64, value: T) {
        self.map.write_obj(value, GuestAddress(addr)).unwrap();
    }

    fn get<T: ByteValued>(&self, addr: u64) -> T {
        self.map.read_obj(GuestAddress(addr)).unwrap()
    }

    fn load<T: AtomicAccess>(&self, addr: u64) -> T {
        self.map.load(GuestAddress(addr), Ordering::SeqCst).unwrap()
    }

    fn store<T: AtomicAccess>(&self, addr: u64, value: T) {
        let order = Ordering::SeqCst;
        self.map.store(value, GuestAddress(addr), order).unwrap();
    }
}

// ---- rings ----

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Split,
    Packed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The data is [`pattern`] of this tag.
    Write {
        tag: u64,
    },
    Read,
    Flush,
}

/// A request, and when it is done its answer.
#[derive(Debug, Clone)]
pub struct BlkRequest {
    pub op: Op,
    pub sector: u64,
    pub status: u8,
    /// What was read, or written.
    pub data: [u8; SECTOR],
    /// Counts the requests of a ring.
    pub number: u64,
    parts: u16,
}

/// A place in a packed ring and the wrap counter there.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    fn beyond(self, count: u16, size: u16) -> Self {
        let at = self.at + count;
        let turned = at >= size;
        Self {
            at: if turned { at - size } else { at },
            wrap: self.wrap != turned,
        }
    }

    fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

const HEADER: u64 = 16;
/// Header, data in two parts, status.
const MAX_PARTS: u16 = 4;
/// Header, data, status, each aligned.
const BUFFER: u64 = 1024;
const STATUS_AT: u64 = HEADER + 512;
const NO_STATUS: u8 = 0xff;

/// The driver's side of one ring. It outlives connections, as a guest does.
pub struct BlkRing {
    pub layout: Layout,
    pub index: u32,
    pub size: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    memory: Rc<GuestMemory>,
    desc: u64,
    driver: u64,
    device: u64,
    buffers: u64,
    /// Split: where the next buffer goes in the available ring.
    avail_idx: u16,
    /// Split: the next element in the used ring.
    used_idx: u16,
    /// Packed: the same two.
    avail: Place,
    used: Place,
    /// Each owns `MAX_PARTS` descriptors of a split ring, and a buffer.
    slots: Vec<Option<BlkRequest>>,
    submitted: u64,
}

impl BlkRing {
    /// `size` descriptors are enough for `size / 4` requests at once.
    pub fn new(memory: &Rc<GuestMemory>, layout: Layout, index: u32, size: u16) -> Self {
        let eventfd = || {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            EventFd::from_value_and_flags(0, flags).unwrap()
        };
        let slots = size / MAX_PARTS;
        let area = |bytes: u64| memory.alloc(bytes, 4096);
        let start = Place { at: 0, wrap: true };
        Self {
            layout,
            index,
            size,
            kick: eventfd(),
            call: eventfd(),
            err: eventfd(),
            desc: area(u64::from(size) * 16),
            driver: area(u64::from(size) * 2 + 6),
            device: area(u64::from(size) * 8 + 6),
            buffers: area(u64::from(slots) * BUFFER),
            memory: Rc::clone(memory),
            avail_idx: 0,
            used_idx: 0,
            avail: start,
            used: start,
            slots: vec![None; slots.into()],
            submitted: 0,
        }
    }

    pub fn addr(&self) -> VringAddr {
        VringAddr {
            index: self.index,
            flags: 0,
            descriptor: GuestMemory::user_addr(self.desc),
            available: GuestMemory::user_addr(self.driver),
            used: GuestMemory::user_addr(self.device),
            log: 0,
        }
    }

    /// The same in guest addresses.
    pub fn guest_addr(&self) -> VringAddr {
        VringAddr {
            descriptor: self.desc,
            available: self.driver,
            used: self.device,
            ..self.addr()
        }
    }

    /// Reads the index of a split used ring, on any thread.
    pub fn used_reader(&self) -> Box<dyn Fn() -> u16 + Send + Sync> {
        let (map, device) = (self.memory.map.clone(), self.device);
        Box::new(move || {
            let at = GuestAddress(device + 2);
            u16::from_le(map.load(at, Ordering::SeqCst).unwrap())
        })
    }

    /// Has the used ring of a split ring say so, as if a device had come so far.
    pub fn pretend_used(&self, index: u16) {
        self.memory.store(self.device + 2, index.to_le());
    }

    /// Where the next used buffer goes in a packed ring, as far as the driver has
    /// taken them, and its wrap counter.
    pub fn used_place(&self) -> u16 {
        self.used.bits()
    }

    /// What a split ring's device has used since the ring was new, by the heads of
    /// the requests: also what no driver could make sense of.
    pub fn used_heads(&self) -> Vec<u32> {
        let used = u16::try_from(self.used_base()).unwrap();
        assert!(used <= self.size, "the oldest were written over");
        let head = |at| u32::from_le(self.memory.get(self.device + 4 + u64::from(at) * 8));
        (0..used).map(head).collect()
    }

    /// The head of the request that was submitted last, in a split ring.
    pub fn last_head(&self) -> u32 {
        let at = u64::from(self.avail_idx.wrapping_sub(1) % self.size);
        u16::from_le(self.memory.get(self.driver + 4 + at * 2)).into()
    }

    /// What was made available in a split ring.
    pub fn avail_index(&self) -> u16 {
        self.avail_idx
    }

    /// The base that says that nothing is in flight but what the in-flight region
    /// knows: where the next used buffer goes. In a packed ring only the driver
    /// can tell, so everything used must have been taken from it.
    pub fn used_base(&self) -> u32 {
        match self.layout {
            Layout::Split => u16::from_le(self.memory.load(self.device + 2)).into(),
            Layout::Packed => {
                assert!(!self.is_used(self.used), "a used buffer was not taken");
                u32::from(self.used.bits()) | u32::from(self.used.bits()) << 16
            }
        }
    }

    /// The base at which the back-end has taken everything that was submitted.
    pub fn avail_base(&self) -> u32 {
        match self.layout {
            Layout::Split => self.avail_idx.into(),
            Layout::Packed => u32::from(self.avail.bits()) | u32::from(self.used.bits()) << 16,
        }
    }

    /// Has the back-end process the ring. The kick is not written.
    pub fn start(&self, client: &BackendClient, base: u32) -> Result<()> {
        client.set_vring_num(self.index, self.size.into())?;
        client.set_vring_base(self.index, base)?;
        client.set_vring_addr(&self.addr())?;
        client.set_vring_call(self.index, Some(self.call.as_fd()))?;
        client.set_vring_err(self.index, Some(self.err.as_fd()))?;
        client.set_vring_kick(self.index, Some(self.kick.as_fd()))?;
        client.set_vring_enable(self.index, true)
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    pub fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether another request fits.
    pub fn has_room(&self) -> bool {
        self.slots.iter().any(Option::is_none)
    }

    /// Makes a request available, and returns its number. The data of an odd sector
    /// is in two parts, so that requests differ in length.
    pub fn submit(&mut self, op: Op, sector: u64) -> u64 {
        // From the end: the order of descriptors is not that of requests.
        let slot = self.slots.iter().rposition(Option::is_none).expect("room");
        let slot = u16::try_from(slot).unwrap();
        let number = self.submitted;
        self.submitted += 1;

        let buffer = self.buffers + u64::from(slot) * BUFFER;
        let (kind, flags, data) = match op {
            Op::Write { tag } => (1_u32, 0, pattern(tag)),
            Op::Read => (0, WRITE, [0; SECTOR]),
            Op::Flush => (4, 0, [0; SECTOR]),
        };
        self.memory.put(buffer, kind.to_le());
        self.memory.put(buffer + 4, 0_u32);
        self.memory.put(buffer + 8, sector.to_le());
        let addr = GuestAddress(buffer + HEADER);
        self.memory.map.write_slice(&data, addr).unwrap();
        self.memory.put(buffer + STATUS_AT, NO_STATUS);

        let data = buffer + HEADER;
        let header = (buffer, 16_u32, 0);
        let status = (buffer + STATUS_AT, 1, WRITE);
        let parts = match op {
            Op::Flush => vec![header, status],
            _ if sector % 2 == 0 => vec![header, (data, 512, flags), status],
            _ => {
                let parts = [(data, 100, flags), (data + 100, 412, flags)];
                vec![header, parts[0], parts[1], status]
            }
        };
        self.slots[usize::from(slot)] = Some(BlkRequest {
            op,
            sector,
            status: NO_STATUS,
            data: pattern(0),
            number,
            parts: u16::try_from(parts.len()).unwrap(),
        });
        match self.layout {
            Layout::Split => self.submit_split(slot, &parts),
            Layout::Packed => self.submit_packed(slot, &parts),
        }
        number
    }

    /// The third and fourth field are flags and next, or id and flags.
    fn put_desc(&self, at: u16, (addr, len, _): (u64, u32, u16), third: u16) -> u64 {
        let desc = self.desc + u64::from(at) * 16;
        self.memory.put(desc, addr.to_le());
        self.memory.put(desc + 8, len.to_le());
        self.memory.put(desc + 12, third.to_le());
        desc + 14
    }

    fn submit_split(&mut self, slot: u16, parts: &[(u64, u32, u16)]) {
        let head = slot * MAX_PARTS;
        for (at, part) in (head..).zip(parts) {
            let last = usize::from(at - head) + 1 == parts.len();
            let flags = part.2 | if last { 0 } else { NEXT };
            let next = self.put_desc(at, *part, flags);
            self.memory.put(next, (at + 1).to_le());
        }
        let element = self.driver + 4 + u64::from(self.avail_idx % self.size) * 2;
        self.memory.put(element, head.to_le());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.memory.store(self.driver + 2, self.avail_idx.to_le());
    }

    fn submit_packed(&mut self, slot: u16, parts: &[(u64, u32, u16)]) {
        // The first one comes last, and makes all of them available.
        let count = u16::try_from(parts.len()).unwrap();
        for (i, part) in (0..count).zip(parts).rev() {
            let place = self.avail.beyond(i, self.size);
            let last = i + 1 == count;
            let turn = if place.wrap { AVAIL } else { USED };
            let flags = part.2 | turn | if last { 0 } else { NEXT };
            let at = self.put_desc(place.at, *part, slot);
            self.memory.store(at, flags.to_le());
        }
        self.avail = self.avail.beyond(count, self.size);
    }

    fn is_used(&self, place: Place) -> bool {
        let flags = self.desc + u64::from(place.at) * 16 + 14;
        let flags = u16::from_le(self.memory.load(flags));
        (flags & AVAIL != 0) == place.wrap && (flags & USED != 0) == place.wrap
    }

    /// The next request that the back-end has completed, if there is one. It must
    /// have been in flight.
    pub fn poll(&mut self) -> Option<BlkRequest> {
        let slot = match self.layout {
            Layout::Split => {
                if u16::from_le(self.memory.load(self.device + 2)) == self.used_idx {
                    return None;
                }
                let element = self.device + 4 + u64::from(self.used_idx % self.size) * 8;
                self.used_idx = self.used_idx.wrapping_add(1);
                let head = u32::from_le(self.memory.get(element));
                let parts = u32::from(MAX_PARTS);
                assert_eq!(head % parts, 0, "no request begins at descriptor {head}");
                head / parts
            }
            Layout::Packed => {
                if !self.is_used(self.used) {
                    return None;
                }
                let id = self.desc + u64::from(self.used.at) * 16 + 12;
                u16::from_le(self.memory.get(id)).into()
            }
        };
        let slot = usize::try_from(slot).unwrap();
        let request = self.slots.get_mut(slot).and_then(Option::take);
        let mut request = request.expect("completed what was not in flight");
        self.used = self.used.beyond(request.parts, self.size);

        let buffer = self.buffers + u64::try_from(slot).unwrap() * BUFFER;
        request.status = self.memory.get(buffer + STATUS_AT);
        let addr = GuestAddress(buffer + HEADER);
        let data = &mut request.data;
        self.memory.map.read_slice(data, addr).unwrap();
        Some(request)
    }

    /// Everything that is completed by now.
    pub fn poll_all(&mut self) -> Vec<BlkRequest> {
        std::iter::from_fn(|| self.poll()).collect()
    }

    /// The next request that the back-end completes; sleeps until it calls.
    pub fn wait(&mut self, deadline: Instant) -> BlkRequest {
        loop {
            if let Some(request) = self.poll() {
                return request;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} in flight for too long",
                self.in_flight()
            );
            let readable = PollFlags::POLLIN;
            let mut fds = [
                PollFd::new(self.call.as_fd(), readable),
                PollFd::new(self.err.as_fd(), readable),
            ];
            poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            assert_eq!(fds[1].any(), Some(false), "the ring is broken");
            // Nothing to read if the time was up.
            let _ = self.call.read();
        }
    }

    /// Everything that is in flight.
    pub fn wait_all(&mut self, deadline: Instant) -> Vec<BlkRequest> {
        (0..self.in_flight()).map(|_| self.wait(deadline)).collect()
    }
}
