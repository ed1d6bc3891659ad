//! Calls of the C API, in any order and with any arguments that C may pass:
//! null, misaligned, of any size, descriptors that are none. No pointer dangles,
//! which is what the caller promises.

mod devices;
mod dirty_log;
mod list;

use super::input::Input;
use super::peer::Manners;
use super::rig::{Late, Rig, SLACK, close_on_exec, within_memory};
use devices::Devices;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen,
    socket, socketpair,
};
use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::raw::{c_int, c_void};
use std::time::{Duration, Instant};
use vhost_user_frontend::ffi::client::*;
use vhost_user_frontend::ffi::device::*;
use vhost_user_frontend::ffi::device_kinds::*;
use vhost_user_frontend::ffi::error::*;
use vhost_user_frontend::ffi::memfd::*;
use vhost_user_frontend::ffi::memory::*;
use vhost_user_frontend::ffi::postcopy::*;
use vhost_user_frontend::ffi::types::*;
use vhost_user_frontend::ffi::vring::*;
use vhost_user_frontend::message::Request;

/// Most calls of a run.
const CALLS: usize = 32;
/// Longer than any wait: a peer that is silent meets short deadlines, the others
/// hang up soon.
const LONGEST: Duration = Duration::from_millis(20);
/// What lies in memory that is not written.
const FILL: u8 = 0xa5;
/// A descriptor that is not open.
const CLOSED: RawFd = 1_000_000;
/// Longest struct; the library refuses what is longer than 65536.
const STRUCT: usize = 0x1_1000;

/// Memory of the caller: of exactly this size, so that AddressSanitizer sees
/// what goes beyond.
struct Block {
    memory: *mut u8,
    layout: Layout,
    place: Place,
}

/// Where an argument points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Null,
    Misaligned,
    Good,
}

impl Block {
    fn new(size: usize, place: Place) -> Self {
        let spare = usize::from(place == Place::Misaligned);
        let layout = Layout::from_size_align((size + spare).max(1), 8).unwrap();
        // SAFETY: the layout is not of size 0.
        let memory = unsafe { alloc(layout) };
        assert!(!memory.is_null());
        // SAFETY: so many bytes were just allocated.
        unsafe { memory.write_bytes(FILL, layout.size()) };
        Self {
            memory,
            layout,
            place,
        }
    }

    fn of<T>(value: &[T], place: Place) -> Self {
        let block = Self::new(size_of_val(value), place);
        let from = value.as_ptr().cast::<u8>();
        let to = block.memory.wrapping_add(block.offset());
        // SAFETY: the block was made with room for as many bytes behind its offset.
        unsafe { std::ptr::copy_nonoverlapping(from, to, size_of_val(value)) };
        block
    }

    fn offset(&self) -> usize {
        usize::from(self.place == Place::Misaligned)
    }

    fn at<T>(&self) -> *mut T {
        match self.place {
            Place::Null => std::ptr::null_mut(),
            _ => self.memory.wrapping_add(self.offset()).cast(),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: all of it was initialised in `new`, and nobody writes now.
        let all = unsafe { std::slice::from_raw_parts(self.memory, self.layout.size()) };
        &all[self.offset()..]
    }

    fn read<T: Copy>(&self) -> T {
        assert!(self.bytes().len() >= size_of::<T>());
        // SAFETY: there are so many bytes, and any are a valid number.
        unsafe { self.bytes().as_ptr().cast::<T>().read_unaligned() }
    }

    fn untouched(&self) -> bool {
        self.bytes().iter().all(|byte| *byte == FILL)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

/// What a return code is held against.
#[derive(Debug, Clone, Copy, Default)]
struct About {
    request: Option<Request>,
    ring: Option<u32>,
    /// Which request of a list failed is known after the call; who made it looks.
    any: bool,
}

impl From<Request> for About {
    fn from(request: Request) -> Self {
        Self {
            request: Some(request),
            ..Self::default()
        }
    }
}

/// The run of an input.
struct Calls<'a> {
    rig: &'a mut Rig,
    input: Input<'a>,
    script: &'a [u8],
    silent: bool,
    helpful: bool,
    client: *mut vuf_client,
    devices: Devices,
    /// The last call was made on a null client.
    null: bool,
    /// What ended the connection: an abort, or a failure.
    ended: Option<c_int>,
    /// No wait of this client is longer than a few milliseconds.
    short: bool,
    slowest: Duration,
}

/// Options as they lie in memory.
struct Options {
    block: Block,
    connect_is_short: bool,
    short: bool,
}

/// The codes that say that a call did not get as far as the connection.
fn local(rc: c_int) -> bool {
    rc == -libc::EINVAL
        || rc == -libc::EBADF
        || rc == -libc::E2BIG
        || rc == VUF_E_NOT_NEGOTIATED
        || rc == VUF_E_STATE
}

fn text<'a>(pointer: *const std::os::raw::c_char) -> &'a str {
    assert!(!pointer.is_null());
    // SAFETY: the library promises a text; it is used before the next failure.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().unwrap()
}

fn last_error() -> vuf_error_info {
    let info = Block::new(size_of::<vuf_error_info>(), Place::Good);
    // SAFETY: there is room for the size.
    unsafe { info.at::<usize>().write(size_of::<vuf_error_info>()) };
    // SAFETY: there is room for as many bytes as it says.
    assert_eq!(unsafe { vuf_last_error_info(info.at()) }, 0);
    info.read()
}

impl Calls<'_> {
    // ---- arguments ----

    fn place(&mut self) -> Place {
        match self.input.byte() & 15 {
            15 => Place::Null,
            14 => Place::Misaligned,
            _ => Place::Good,
        }
    }

    fn number(&mut self) -> u32 {
        let byte = self.input.byte();
        let low = u32::from(byte & 31);
        match byte >> 5 {
            0 | 1 => u32::from(byte & 63),
            2 => 1 << low,
            3 => u32::MAX - low,
            4 => 240 + low,
            5 => low * 128,
            6 => 0x8000 + low,
            _ => self.input.u32(),
        }
    }

    fn long(&mut self) -> u64 {
        let byte = self.input.byte();
        let low = u64::from(byte & 31);
        match byte >> 5 {
            0 => low,
            1 => low << 12,
            2 => low << 32,
            3 => 1 << low << low,
            4 => u64::MAX - low,
            5 => (u64::MAX << 12) - (low << 12),
            6 => u64::from(self.input.u32()),
            _ => self.input.u64(),
        }
    }

    /// A descriptor to pass along.
    fn fd(&mut self) -> RawFd {
        match self.input.byte() & 15 {
            9 => -1,
            10 => CLOSED,
            11 => 0,
            12 => self.input.i32() | c_int::MIN,
            13 if !self.client.is_null() => {
                // SAFETY: the client is there.
                unsafe { vuf_client_get_fd(self.client) }
            }
            _ => self.rig.file.as_raw_fd(),
        }
    }

    fn time(&mut self) -> u32 {
        match self.input.byte() {
            byte @ 0..=127 => u32::from(byte % 5),
            128..=191 => VUF_TIMEOUT_FOREVER,
            _ => self.input.u32(),
        }
    }

    fn struct_size(&mut self, usual: usize) -> usize {
        match self.input.byte() {
            0..=191 => usual,
            192..=223 => usize::from(self.input.byte()),
            _ => usize::from(self.input.u16()) * 8 % STRUCT,
        }
    }

    fn options(&mut self) -> Options {
        let place = self.place();
        let size = self.struct_size(size_of::<vuf_client_options>());
        let mut options = vuf_client_options {
            size,
            connect_timeout_ms: self.time(),
            timeout_ms: self.time(),
            slow_timeout_ms: self.time(),
            drain_timeout_ms: self.time(),
            on_timeout: u32::from(self.input.byte() & 1),
            max_rings: 0,
            flags: 0,
            spin_us: 0,
            adopt_features: 0,
            adopt_protocol_features: 0,
        };
        let flags = self.input.byte();
        if flags & 1 != 0 {
            options.flags = VUF_CLIENT_ADOPT;
            options.adopt_features =
                1 << 33 | 1 << 32 | 1 << 30 | 1 << 3 | u64::from(flags & 2) << 33;
            options.adopt_protocol_features =
                u64::from(self.input.u32()) & vuf_supported_protocol_features();
        }
        match flags >> 4 {
            8 => options.on_timeout = self.number(),
            9 => options.max_rings = self.number(),
            10 => options.flags = self.number(),
            11 => options.spin_us = self.number(),
            12 => options.adopt_features = self.long(),
            13 => options.adopt_protocol_features = self.long(),
            _ => {}
        }
        let times = [
            options.connect_timeout_ms,
            options.timeout_ms,
            options.slow_timeout_ms,
            options.drain_timeout_ms,
        ];
        // As far as they lie in the struct.
        let short = |index: usize| {
            place == Place::Good && size >= 12 + 4 * index && (1..5).contains(&times[index])
        };
        let known = Block::of(&[options], Place::Good);
        let block = Block::new(size.max(size_of::<usize>()), place);
        let both = size_of::<vuf_client_options>().min(block.bytes().len());
        let to = block.memory.wrapping_add(block.offset());
        // SAFETY: so many bytes lie behind the offset.
        unsafe { to.write_bytes(0, block.bytes().len()) };
        // SAFETY: both are at least that long.
        unsafe { std::ptr::copy_nonoverlapping(known.memory, to, both) };
        if flags & 8 != 0 {
            // The last byte: one that nobody knows, if there are so many.
            let last = to.wrapping_add(block.bytes().len() - 1);
            // SAFETY: it lies in the block.
            unsafe { *last ^= 1 };
        }
        Options {
            block,
            connect_is_short: short(0),
            short: short(1) && short(2) && short(3),
        }
    }

    fn region(&mut self) -> vuf_mem_region {
        let index = u64::from(self.input.byte());
        let mut region = vuf_mem_region {
            guest_addr: index << 32,
            size: 0x1000 << (index & 15),
            user_addr: index << 32,
            mmap_offset: 0,
            fd: self.fd(),
            xen_mmap_flags: 0,
            xen_domid: 0,
            reserved0: 0,
            reserved: [0; 2],
        };
        match self.input.byte() {
            128 => region.guest_addr = self.long(),
            129 => region.size = self.long(),
            130 => region.user_addr = self.long(),
            131 => region.mmap_offset = self.long(),
            132 => region.xen_mmap_flags = self.number(),
            133 => region.xen_domid = self.number(),
            134 => region.reserved0 = self.number(),
            135 => region.reserved[usize::from(self.input.byte() & 1)] = self.long(),
            _ => {}
        }
        region
    }

    // ---- calls ----

    /// Calls, and checks what is true of every call. The client is null now and
    /// then.
    fn call(
        &mut self,
        about: impl Into<About>,
        call: impl FnOnce(*mut vuf_client) -> c_int,
    ) -> c_int {
        let null = self.input.byte() & 31 == 31;
        let client = match null {
            true => std::ptr::null_mut(),
            false => self.client,
        };
        let rc = self.timed(|| call(client));
        let about = about.into();
        self.check(rc, about);
        self.null = client.is_null();
        if self.null {
            assert_eq!(rc, -libc::EINVAL);
            return rc;
        }
        let expected: &[c_int] = match self.ended {
            None => &[],
            Some(VUF_E_PROTOCOL | VUF_E_POISONED) => &[VUF_E_POISONED],
            // A send that failed leaves what had arrived before.
            Some(VUF_E_DISCONNECTED) => &[VUF_E_DISCONNECTED, VUF_E_PROTOCOL, VUF_E_POISONED],
            Some(_) => &[-libc::ECANCELED],
        };
        let allowed = expected.is_empty() || expected.contains(&rc) || local(rc);
        assert!(allowed, "{rc} after {:?}", self.ended);
        if matches!(rc, VUF_E_PROTOCOL | VUF_E_POISONED | VUF_E_DISCONNECTED) {
            self.ended = Some(rc);
        }
        rc
    }

    fn timed<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let (result, elapsed) = self.rig.peer.during(self.script, false, || {
            let begin = Instant::now();
            let result = within_memory(call);
            (result, begin.elapsed())
        });
        self.slowest = self.slowest.max(elapsed);
        result
    }

    /// A return code, and what the library says of it.
    fn check(&self, rc: c_int, about: About) {
        if rc == 0 {
            return;
        }
        assert!(
            (-4095..0).contains(&rc) || (VUF_E_STATE..=VUF_E_DISCONNECTED).contains(&rc),
            "{rc} is no code"
        );
        let said = text(vuf_last_error());
        assert!(!said.is_empty() && said.len() < 512);
        let short = text(vuf_strerror(rc));
        assert!(!short.is_empty() && short != "unknown code", "{rc}");

        let info = last_error();
        assert_eq!(info.size, size_of::<vuf_error_info>());
        assert_eq!(info.code, rc, "{said}");
        assert_eq!(info.errno_value, if rc > -4096 { -rc } else { 0 });
        assert!((VUF_CLASS_TRANSPORT..=VUF_CLASS_LOCAL).contains(&info.error_class));
        assert!(rc == VUF_E_POISONED || info.error_class == vuf_error_class(rc));
        assert!(info.phase <= VUF_PHASE_BARRIER);
        assert!(info.has_value <= 1 && (info.has_value == 1 || info.value == 0));
        let request = about.request.map_or(0, Request::id);
        if info.request != 0 && !about.any {
            assert_eq!(info.request, request, "{said}");
            let ring = about.ring.map_or(-1, |ring| ring.try_into().unwrap_or(-1));
            assert_eq!(info.ring, ring, "{said}");
        }
    }

    /// A call about a ring: its index goes to `call`.
    fn ring(
        &mut self,
        request: Request,
        call: impl FnOnce(*mut vuf_client, u32) -> c_int,
    ) -> c_int {
        let index = self.number();
        let about = About {
            request: Some(request),
            ring: Some(index),
            any: false,
        };
        self.call(about, |client| call(client, index))
    }

    /// A call with an output of this type, which only success may write.
    fn output<T>(
        &mut self,
        about: impl Into<About>,
        call: impl FnOnce(*mut vuf_client, *mut T) -> c_int,
    ) {
        let out = Block::new(size_of::<T>(), self.place());
        let rc = self.call(about, |client| call(client, out.at()));
        self.check_output(rc, &out);
    }

    fn check_output(&self, rc: c_int, out: &Block) {
        if rc != 0 {
            assert!(out.untouched(), "{rc}, and an output was written");
        } else {
            assert_eq!(out.place, Place::Good);
        }
    }

    /// A descriptor that was given, or not.
    fn check_fd_output(&self, rc: c_int, out: &Block) {
        if out.place != Place::Good {
            assert!(rc == -libc::EINVAL && out.untouched());
            return;
        }
        let fd: c_int = out.read();
        if rc != 0 {
            assert_eq!(fd, -1, "{rc}, and a descriptor");
        } else if fd != -1 {
            assert!(fd > 2);
            // SAFETY: given to us.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let borrowed = std::os::fd::AsFd::as_fd(&fd);
            self.rig.check_gift(borrowed);
        }
    }

    /// A call that fills a struct which begins with its size.
    fn sized_output<T>(&mut self, call: impl FnOnce(&mut Self, *mut T) -> c_int) {
        let place = self.place();
        let size = self.struct_size(size_of::<T>());
        let out = Block::new(size.max(size_of::<usize>()), place);
        let to: *mut usize = out.memory.wrapping_add(out.offset()).cast();
        // SAFETY: there is room for a size.
        unsafe { to.write_unaligned(size) };
        let rc = call(self, out.at());
        assert_eq!(out.read::<usize>(), size, "the size was written");
        let rest = &out.bytes()[size_of::<usize>()..];
        if rc != 0 {
            let untouched = rest.iter().all(|byte| *byte == FILL);
            assert!(untouched, "{rc}, and the result was written");
        } else {
            let surplus = rest.iter().skip(size_of::<T>() - size_of::<usize>());
            assert!(surplus.copied().all(|byte| byte == 0), "not zeroed");
        }
    }

    // ---- clients ----

    fn free(&mut self) {
        let client = std::mem::replace(&mut self.client, std::ptr::null_mut());
        // SAFETY: null or a client, which nobody uses any more.
        self.timed(|| unsafe { vuf_client_free(client) });
        self.rig.peer.disconnect();
        self.ended = None;
    }

    /// Makes a client: `make` gets the options and where the handle goes.
    fn create(
        &mut self,
        options: &Options,
        peer: Option<OwnedFd>,
        make: impl FnOnce(*const vuf_client_options, *mut *mut vuf_client) -> c_int,
    ) -> c_int {
        let out = Block::new(size_of::<*mut vuf_client>(), self.place());
        let rc = self.timed(|| make(options.block.at(), out.at()));
        self.check(rc, About::default());
        if out.place != Place::Good {
            assert!(rc == -libc::EINVAL && out.untouched());
            return rc;
        }
        let client: *mut vuf_client = out.read();
        assert_eq!(rc == 0, !client.is_null());
        if rc == 0 {
            self.client = client;
            self.short = options.short;
            let manners = Manners {
                closing: !self.silent || !options.short,
                stirring: true,
                helpful: self.helpful,
                congested: false,
            };
            let peer = peer.expect("there is nobody to be connected to");
            self.rig.peer.connect(peer, 0, manners);
        }
        rc
    }

    fn make_from_fd(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let stream = || socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let pair = |kind| socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        let options = self.options();
        let kind = self.input.byte() & 15;
        let (ours, peer) = match kind {
            8 => {
                let (ours, theirs) = pair(SockType::Datagram);
                (ours, Some(theirs))
            }
            9 => (stream(), None),
            10 => (listener(), None),
            11 => (self.rig.file.try_clone().unwrap().into(), None),
            _ => {
                let (ours, theirs) = pair(SockType::Stream);
                (ours, Some(theirs))
            }
        };
        let ours = ours.into_raw_fd();
        let fd = match kind {
            12 => -1,
            13 => CLOSED,
            14 => self.input.i32() | c_int::MIN,
            _ => ours,
        };
        let rc = self.create(&options, peer, |options, out| {
            // SAFETY: all are valid or null, and the descriptor is ours to give.
            unsafe { vuf_client_from_fd(fd, options, out) }
        });
        if rc == 0 {
            assert!(
                kind < 8 || kind == 15,
                "a client was made of something else"
            );
            // SAFETY: it was just made.
            assert_eq!(unsafe { vuf_client_get_fd(self.client) }, fd);
            // SAFETY: the client keeps it open.
            assert!(close_on_exec(unsafe { BorrowedFd::borrow_raw(fd) }));
        } else {
            // SAFETY: it was not taken.
            let ours = unsafe { OwnedFd::from_raw_fd(ours) };
            assert!(close_on_exec(std::os::fd::AsFd::as_fd(&ours)));
        }
    }

    fn connect(&mut self) {
        let options = self.options();
        let place = self.place();
        // Nothing is there; where the wait for it would be long, nothing can be.
        let mut path = match self.input.byte() & 7 {
            0 => Vec::new(),
            _ if !options.connect_is_short => b"/dev/null/".to_vec(),
            _ => b"/nonexistent/vhost-user/".to_vec(),
        };
        if !path.is_empty() {
            let more = usize::from(self.input.byte());
            path.extend(self.input.take(more).iter().filter(|byte| **byte != 0));
        }
        let path = CString::new(path).unwrap();
        let given = match place {
            Place::Null => std::ptr::null(),
            _ => path.as_ptr(),
        };
        let rc = self.create(&options, None, |options, out| {
            // SAFETY: all are valid or null.
            unsafe { vuf_client_connect(given, options, out) }
        });
        assert_ne!(rc, 0, "nobody listens there");
    }

    fn accept(&mut self) {
        let options = self.options();
        let kind = self.input.byte();
        let listener = listener();
        // Where the wait would be long, somebody must be there.
        let peer = (kind & 16 == 0 || !options.connect_is_short).then(|| {
            let address: UnixAddr = getsockname(listener.as_raw_fd()).unwrap();
            let flags = SockFlag::SOCK_CLOEXEC;
            let peer = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            connect(peer.as_raw_fd(), &address).unwrap();
            peer
        });
        let fd = match kind & 15 {
            10 => self.rig.file.as_raw_fd(),
            11 => peer.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            12 => -1,
            13 => CLOSED,
            14 => self.input.i32() | c_int::MIN,
            _ => listener.as_raw_fd(),
        };
        let rc = self.create(&options, peer, |options, out| {
            // SAFETY: all are valid or null, and the listener stays open.
            unsafe { vuf_client_accept(fd, options, out) }
        });
        assert!(rc != 0 || fd == listener.as_raw_fd());
    }

    // ---- one call ----

    fn step(&mut self) {
        use Request as R;
        // SAFETY, for all calls here: the client is null or one that has not been
        // freed; pointers are null or to blocks as large as what they stand for;
        // descriptors stay open.
        match self.input.byte() % 64 {
            0 => {
                self.free();
                self.make_from_fd();
            }
            1 => {
                self.free();
                self.connect();
            }
            2 => {
                self.free();
                self.accept();
            }
            3 => self.free(),
            4 => {
                let client = self.client;
                // SAFETY: as above.
                let rc = self.timed(|| unsafe { vuf_client_abort(client) });
                self.check(rc, About::default());
                assert_eq!(rc == 0, !client.is_null());
                self.ended = (rc == 0).then_some(-libc::ECANCELED);
            }
            5 => {
                // SAFETY: as above.
                let fd = unsafe { vuf_client_get_fd(self.client) };
                assert_eq!(fd >= 0, !self.client.is_null());
                assert!(fd >= 0 || fd == -libc::EINVAL);
            }
            // SAFETY: as above.
            6 => self.output(R::GetFeatures, |c, out| unsafe {
                vuf_client_get_features(c, out)
            }),
            7 => {
                let features = self.long();
                // SAFETY: as above.
                self.call(R::SetFeatures, |c| unsafe {
                    vuf_client_set_features(c, features)
                });
            }
            // SAFETY: as above.
            8 => self.output(R::GetProtocolFeatures, |c, out| unsafe {
                vuf_client_get_protocol_features(c, out)
            }),
            9 => {
                let features = match self.input.byte() & 1 {
                    0 => vuf_supported_protocol_features(),
                    _ => self.long(),
                };
                // SAFETY: as above.
                self.call(R::SetProtocolFeatures, |c| unsafe {
                    vuf_client_set_protocol_features(c, features)
                });
            }
            10 => {
                // SAFETY: as above.
                self.call(R::SetOwner, |c| unsafe { vuf_client_set_owner(c) });
            }
            11 => {
                // SAFETY: as above.
                self.call(R::ResetOwner, |c| unsafe { vuf_client_reset_owner(c) });
            }
            // SAFETY: as above.
            12 => self.output(R::GetQueueNum, |c, out| unsafe {
                vuf_client_get_queue_num(c, out)
            }),
            // SAFETY: as above.
            13 => self.output(R::GetMaxMemSlots, |c, out| unsafe {
                vuf_client_get_max_mem_slots(c, out)
            }),
            14 => self.set_mem_table(),
            15 => {
                let region = Block::of(&[self.region()], self.place());
                // SAFETY: as above.
                self.call(R::AddMemReg, |c| unsafe {
                    vuf_client_add_mem_region(c, region.at())
                });
            }
            16 => {
                let region = Block::of(&[self.region()], self.place());
                // SAFETY: as above.
                self.call(R::RemMemReg, |c| unsafe {
                    vuf_client_remove_mem_region(c, region.at())
                });
            }
            17 => {
                let (size, offset, fd) = (self.long(), self.long(), self.fd());
                let offset = if offset & 1 == 0 { 0 } else { offset };
                // SAFETY: as above.
                self.call(R::SetLogBase, |c| unsafe {
                    vuf_client_set_log_base(c, size, offset, fd)
                });
            }
            18 => {
                let fd = self.fd();
                // SAFETY: as above.
                self.call(R::SetLogFd, |c| unsafe { vuf_client_set_log_fd(c, fd) });
            }
            19 => {
                let num = self.number();
                // SAFETY: as above.
                self.ring(R::SetVringNum, |c, ring| unsafe {
                    vuf_client_set_vring_num(c, ring, num)
                });
            }
            20 => {
                let odd = self.input.byte();
                let addr = vuf_vring_addr {
                    flags: u32::from(odd & 1),
                    reserved: if odd == 0xff { self.number() } else { 0 },
                    descriptor: self.long(),
                    available: self.long(),
                    used: self.long(),
                    log: self.long(),
                };
                let addr = Block::of(&[addr], self.place());
                // SAFETY: as above.
                self.ring(R::SetVringAddr, |c, ring| unsafe {
                    vuf_client_set_vring_addr(c, ring, addr.at())
                });
            }
            21 => {
                let base = self.number();
                // SAFETY: as above.
                self.ring(R::SetVringBase, |c, ring| unsafe {
                    vuf_client_set_vring_base(c, ring, base)
                });
            }
            22 => {
                let time = self.time();
                // A silent peer leaves it to the deadline.
                let time = match self.silent && self.short {
                    true => time % 5,
                    false => time,
                };
                let base = Block::new(size_of::<u32>(), self.place());
                // SAFETY: as above.
                let rc = self.ring(R::GetVringBase, |c, ring| unsafe {
                    vuf_client_get_vring_base(c, ring, time, base.at())
                });
                self.check_output(rc, &base);
            }
            23 => {
                let fd = self.fd();
                // SAFETY: as above.
                self.ring(R::SetVringKick, |c, ring| unsafe {
                    vuf_client_set_vring_kick(c, ring, fd)
                });
            }
            24 => {
                let fd = self.fd();
                // SAFETY: as above.
                self.ring(R::SetVringCall, |c, ring| unsafe {
                    vuf_client_set_vring_call(c, ring, fd)
                });
            }
            25 => {
                let fd = self.fd();
                // SAFETY: as above.
                self.ring(R::SetVringErr, |c, ring| unsafe {
                    vuf_client_set_vring_err(c, ring, fd)
                });
            }
            26 => {
                let enable = self.input.byte() & 1 == 0;
                // SAFETY: as above.
                self.ring(R::SetVringEnable, |c, ring| unsafe {
                    vuf_client_set_vring_enable(c, ring, enable)
                });
            }
            27 => {
                let (offset, flags, len, place) = self.config();
                let buf = Block::new(if place == Place::Null { 0 } else { len }, place);
                // SAFETY: as above.
                let rc = self.call(R::GetConfig, |c| unsafe {
                    vuf_client_get_config(c, offset, flags, buf.at::<c_void>(), len)
                });
                assert!(
                    rc == 0 || buf.untouched(),
                    "{rc}, and the buffer was written"
                );
            }
            28 => {
                let (offset, flags, len, place) = self.config();
                let buf = Block::new(if place == Place::Null { 0 } else { len }, place);
                // SAFETY: as above.
                self.call(R::SetConfig, |c| unsafe {
                    vuf_client_set_config(c, offset, flags, buf.at::<c_void>(), len)
                });
            }
            29 => {
                let fd = self.fd();
                // SAFETY: as above.
                self.call(R::SetBackendReqFd, |c| unsafe {
                    vuf_client_set_backend_req_fd(c, fd)
                });
            }
            30 => {
                let (queues, size) = (self.input.u16(), self.input.u16());
                let inflight = Block::new(size_of::<vuf_inflight>(), self.place());
                let fd = Block::new(size_of::<c_int>(), self.place());
                // SAFETY: as above.
                let rc = self.call(R::GetInflightFd, |c| unsafe {
                    vuf_client_get_inflight_fd(c, queues, size, inflight.at(), fd.at())
                });
                self.check_fd_output(rc, &fd);
                self.check_output(rc, &inflight);
            }
            31 => {
                let inflight = vuf_inflight {
                    mmap_size: self.long(),
                    mmap_offset: self.long(),
                    num_queues: self.input.u16(),
                    queue_size: self.input.u16(),
                    reserved: u32::from(self.input.byte() == 0xff),
                };
                let inflight = Block::of(&[inflight], self.place());
                let fd = self.fd();
                // SAFETY: as above.
                self.call(R::SetInflightFd, |c| unsafe {
                    vuf_client_set_inflight_fd(c, inflight.at(), fd)
                });
            }
            32 => {
                let odd = self.input.byte();
                let phase = if odd == 0xff { self.number() } else { 0 };
                let direction = match odd {
                    0xfe => self.number(),
                    _ => u32::from(odd & 1),
                };
                let fd = self.fd();
                let reply = Block::new(size_of::<c_int>(), self.place());
                // SAFETY: as above.
                let rc = self.call(R::SetDeviceStateFd, |c| unsafe {
                    vuf_client_set_device_state_fd(c, direction, phase, fd, reply.at())
                });
                self.check_fd_output(rc, &reply);
            }
            33 => {
                // SAFETY: as above.
                self.call(R::CheckDeviceState, |c| unsafe {
                    vuf_client_check_device_state(c)
                });
            }
            34 => self.sized_output(|this, out: *mut vuf_shmem_config| {
                // SAFETY: as above.
                this.call(R::GetShmemConfig, |c| unsafe {
                    vuf_client_get_shmem_config(c, out)
                })
            }),
            35 => self.sized_output(|this, out: *mut vuf_error_info| {
                // SAFETY: as above.
                let rc = this.timed(|| unsafe { vuf_last_error_info(out) });
                this.check(rc, About::default());
                rc
            }),
            36 => {
                let number = self.number();
                let name = vuf_request_name(number);
                let known = Request::ALL.iter().any(|request| request.id() == number);
                assert_eq!(!name.is_null(), known);
                assert!(name.is_null() || !text(name).is_empty());
            }
            37 => {
                let bit = self.number();
                let name = vuf_protocol_feature_name(bit);
                assert_eq!(!name.is_null(), bit < 24);
                assert!(name.is_null() || !text(name).is_empty());
            }
            38 => {
                let rc = self.input.i32();
                assert!(!text(vuf_strerror(rc)).is_empty());
                assert!(vuf_error_class(rc) <= VUF_CLASS_LOCAL);
            }
            39 => assert_eq!(vuf_version(), 0x100),
            40 | 41 => self.device_step(),
            42 => self.submit(),
            43 => self.sync_dirty_log(),
            44 => {
                let mac = self.long();
                // SAFETY: as above.
                self.call(R::SendRarp, |c| unsafe { vuf_client_send_rarp(c, mac) });
            }
            45 => {
                let mtu = self.number();
                // SAFETY: as above.
                self.call(R::NetSetMtu, |c| unsafe { vuf_client_net_set_mtu(c, mtu) });
            }
            46 => {
                let iotlb = vuf_iotlb {
                    iova: self.long(),
                    size: self.long(),
                    user_addr: self.long(),
                    perm: self.input.byte() & 7,
                    r#type: self.input.byte() & 7,
                    reserved: [u8::from(self.input.byte() == 0xff), 0, 0, 0, 0, 0],
                };
                let iotlb = Block::of(&[iotlb], self.place());
                // SAFETY: as above.
                self.call(R::IotlbMsg, |c| unsafe {
                    vuf_client_send_iotlb(c, iotlb.at())
                });
            }
            47 => {
                let endian = self.number();
                // SAFETY: as above.
                self.ring(R::SetVringEndian, |c, ring| unsafe {
                    vuf_client_set_vring_endian(c, ring, endian)
                });
            }
            48 => self.create_crypto_session(),
            49 => {
                let session = self.long();
                // SAFETY: as above.
                self.call(R::CloseCryptoSession, |c| unsafe {
                    vuf_client_close_crypto_session(c, session)
                });
            }
            50 => {
                let fd = Block::new(size_of::<c_int>(), self.place());
                // SAFETY: as above.
                let rc = self.call(R::PostcopyAdvise, |c| unsafe {
                    vuf_client_postcopy_advise(c, fd.at())
                });
                self.check_fd_output(rc, &fd);
            }
            51 => {
                // SAFETY: as above.
                self.call(R::PostcopyListen, |c| unsafe {
                    vuf_client_postcopy_listen(c)
                });
            }
            52 => self.postcopy_set_mem_table(),
            53 => {
                // SAFETY: as above.
                self.call(R::SetMemTable, |c| unsafe {
                    vuf_client_postcopy_ack_mem_table(c)
                });
            }
            54 => {
                // SAFETY: as above.
                self.call(R::PostcopyEnd, |c| unsafe { vuf_client_postcopy_end(c) });
            }
            55 => {
                let fd = self.fd();
                // SAFETY: as above.
                self.call(R::GpuSetSocket, |c| unsafe {
                    vuf_client_gpu_set_socket(c, fd)
                });
            }
            56 => {
                // SAFETY: as above.
                self.call(R::ResetDevice, |c| unsafe { vuf_client_reset_device(c) });
            }
            57 => {
                // SAFETY: as above.
                self.ring(R::VringKick, |c, ring| unsafe {
                    vuf_client_vring_kick(c, ring)
                });
            }
            58 => {
                let status = self.number();
                // SAFETY: as above.
                self.call(R::SetStatus, |c| unsafe {
                    vuf_client_set_status(c, status)
                });
            }
            // SAFETY: as above.
            59 => self.output(R::GetStatus, |c, out| unsafe {
                vuf_client_get_status(c, out)
            }),
            60 => {
                let uuid = Block::of(&[self.input.byte(); 16], self.place());
                let fd = Block::new(size_of::<c_int>(), self.place());
                // SAFETY: as above.
                let rc = self.call(R::GetSharedObject, |c| unsafe {
                    vuf_client_get_shared_object(c, uuid.at(), fd.at())
                });
                self.check_fd_output(rc, &fd);
            }
            61 => {
                let base = Block::new(size_of::<u32>(), self.place());
                // SAFETY: as above.
                let rc = self.ring(R::GetVringBaseSkipDrain, |c, ring| unsafe {
                    vuf_client_get_vring_base_skip_drain(c, ring, base.at())
                });
                self.check_output(rc, &base);
            }
            62 => self.make_memory(),
            _ => {
                // The usual beginning, so that what follows gets somewhere.
                let mut mask = 0;
                let out = &raw mut mask;
                let (client, all) = (self.client, vuf_supported_protocol_features());
                // SAFETY: as above.
                self.timed(|| unsafe { vuf_client_get_features(client, out) });
                // SAFETY: as above.
                self.timed(|| unsafe { vuf_client_get_protocol_features(client, out) });
                // SAFETY: as above.
                self.timed(|| unsafe { vuf_client_set_protocol_features(client, all) });
                // SAFETY: as above.
                self.timed(|| unsafe {
                    vuf_client_set_features(client, 1 << 33 | 1 << 32 | 1 << 30 | 1 << 3)
                });
            }
        }
    }

    fn make_memory(&mut self) {
        let name = vec![b'm'; usize::from(self.input.byte()) * 2];
        let name = CString::new(name).unwrap();
        let given = match self.place() {
            Place::Null => std::ptr::null(),
            _ => name.as_ptr(),
        };
        let (size, huge_page_size) = (self.long(), self.long());
        let flags = match self.input.byte() {
            0xff => self.number(),
            byte => u32::from(byte & 1),
        };
        let out = Block::new(size_of::<c_int>(), self.place());
        // SAFETY: all are valid or null.
        let rc = self
            .timed(|| unsafe { vuf_memfd_create(given, size, huge_page_size, flags, out.at()) });
        self.check(rc, About::default());
        if out.place != Place::Good {
            assert!(rc == -libc::EINVAL && out.untouched());
            return;
        }
        let fd: c_int = out.read();
        assert_eq!(rc == 0, fd != -1, "{rc}, and {fd}");
        if rc == 0 {
            // SAFETY: given to us.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            assert!(close_on_exec(std::os::fd::AsFd::as_fd(&fd)));
            let file = std::fs::File::from(fd);
            assert_eq!(file.metadata().unwrap().len(), size);
        }
    }

    fn config(&mut self) -> (u32, u32, usize, Place) {
        let (offset, flags) = (self.number(), self.number() & 7);
        let place = self.place();
        let len = match place {
            // Of any length, as it is nowhere.
            Place::Null => usize::try_from(self.long()).unwrap(),
            _ => usize::from(self.input.u16() % 600),
        };
        (offset, flags, len, place)
    }

    fn create_crypto_session(&mut self) {
        let place = self.place();
        let size = self.struct_size(size_of::<vuf_crypto_session>());
        let block = Block::new(size.max(size_of::<usize>()), place);
        let to = block.memory.wrapping_add(block.offset());
        // SAFETY: so many bytes lie behind the offset.
        unsafe { to.write_bytes(0, block.bytes().len()) };
        let op_code = [2, 0x404, 0x102, 0x202, 0x302, 3][usize::from(self.input.byte() % 6)];
        for (at, value) in [(0, size), (8, op_code)] {
            if block.bytes().len() >= at + 8 {
                // SAFETY: there is room for it.
                unsafe { to.wrapping_add(at).cast::<usize>().write_unaligned(value) };
            }
        }
        // Some bytes here and there: lengths, keys, reserved fields.
        for _ in 0..self.input.byte() & 3 {
            let at = 16 + usize::from(self.input.u16()) % 1700;
            let value = self.input.byte();
            if at < block.bytes().len() {
                // SAFETY: it lies in the block.
                unsafe { to.wrapping_add(at).write(value) };
            }
        }
        let id = Block::new(size_of::<u64>(), self.place());
        // SAFETY: the block is of the size that it tells; pointers are null or good.
        let rc = self.call(Request::CreateCryptoSession, |c| unsafe {
            vuf_client_create_crypto_session(c, block.at(), id.at())
        });
        self.check_output(rc, &id);
    }

    fn postcopy_set_mem_table(&mut self) {
        let n = usize::from(self.input.byte() & 15);
        let regions: Vec<_> = (0..n).map(|_| self.region()).collect();
        let regions = Block::of(&regions, self.place());
        let bases = Block::new(8 * n, self.place());
        let n = match (regions.place, bases.place) {
            (Place::Null, _) => usize::try_from(self.long()).unwrap(),
            _ => n,
        };
        // SAFETY: the blocks have so many items, or the pointer is null.
        let rc = self.call(Request::SetMemTable, |c| unsafe {
            vuf_client_postcopy_set_mem_table(c, regions.at(), n, bases.at())
        });
        assert!(rc == 0 || bases.untouched(), "{rc}, and bases were written");
    }

    fn set_mem_table(&mut self) {
        let n = usize::from(self.input.byte() & 15);
        let mut regions = Vec::new();
        for _ in 0..n {
            regions.push(self.region());
        }
        let block = Block::of(&regions, self.place());
        let n = match block.place {
            Place::Null => usize::try_from(self.long()).unwrap(),
            _ => n,
        };
        // SAFETY: the block has so many regions, or the pointer is null.
        self.call(Request::SetMemTable, |c| unsafe {
            vuf_client_set_mem_table(c, block.at(), n)
        });
    }
}

/// A socket that listens where nobody else finds it.
fn listener() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    // The kernel chooses an abstract address.
    bind(listener.as_raw_fd(), &UnixAddr::new_unnamed()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    listener
}

/// One input.
pub fn run(rig: &mut Rig, data: &[u8]) -> Result<(), Late> {
    let mut input = Input::new(data);
    let flags = input.byte();
    let script = input.block();
    rig.peer.begin();
    let mut calls = Calls {
        rig,
        input,
        script,
        silent: flags & 1 != 0,
        helpful: flags & 2 != 0,
        client: std::ptr::null_mut(),
        devices: Devices::new(),
        null: true,
        ended: None,
        short: false,
        slowest: Duration::ZERO,
    };
    // Most runs have a client from the beginning.
    if flags & 4 == 0 {
        calls.make_from_fd();
    }
    for _ in 0..CALLS {
        if calls.input.is_empty() {
            break;
        }
        calls.step();
    }
    calls.free();
    calls.free_all(flags & 8 != 0);
    match calls.slowest > LONGEST + SLACK {
        true => Err(Late {
            deadline: LONGEST,
            elapsed: calls.slowest,
        }),
        false => Ok(()),
    }
}
