//! Calls on devices and on a group of them. The back-end of a device lives between
//! two calls, as in the target `device`; what it says badly is said there.

use super::super::device::{Back, EVENT, RAM, SIZE};
use super::{About, Block, CLOSED, Calls, Place, close_on_exec, text};
use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::raw::{c_int, c_void};
use std::os::unix::net::UnixStream;
use vhost_user_frontend::ffi::types::*;
use vhost_user_frontend::ffi::virtual_device::config::*;
use vhost_user_frontend::ffi::virtual_device::group::*;
use vhost_user_frontend::ffi::virtual_device::names::*;
use vhost_user_frontend::ffi::virtual_device::presets::*;
use vhost_user_frontend::ffi::virtual_device::rings::*;
use vhost_user_frontend::ffi::virtual_device::settings::*;
use vhost_user_frontend::ffi::virtual_device::sharing::*;
use vhost_user_frontend::ffi::virtual_device::state::*;
use vhost_user_frontend::ffi::virtual_device::types::*;
use vhost_user_frontend::ffi::virtual_device::*;
use vhost_user_frontend::message::Request;

const DEVICES: usize = 2;
/// As many steps bring a device up whose back-end behaves.
const ENOUGH: usize = 24;
/// Where a ring may say that it stands.
static STAND: [u16; 4] = [7; 4];

/// What the caller's functions know. Its place does not change.
#[derive(Debug)]
struct Held {
    device: Cell<*mut vuf_device>,
    called: Cell<u32>,
}

/// A device, or the place for one.
struct Slot {
    device: *mut vuf_device,
    back: Option<Back>,
    held: Box<Held>,
}

/// See the module.
pub(super) struct Devices {
    slots: [Slot; DEVICES],
    group: *mut vuf_memory_group,
}

impl Devices {
    pub(super) fn new() -> Self {
        let slot = || Slot {
            device: std::ptr::null_mut(),
            back: None,
            held: Box::new(Held {
                device: Cell::new(std::ptr::null_mut()),
                called: Cell::new(0),
            }),
        };
        Self {
            slots: [slot(), slot()],
            group: std::ptr::null_mut(),
        }
    }
}

// ---- the caller's functions ----

/// Some of what a function may do, and what it may not.
fn inside(user: *mut c_void) {
    // SAFETY: what is passed as user outlives the devices.
    let Some(held) = (unsafe { user.cast::<Held>().as_ref() }) else {
        return; // the options ended before it
    };
    let device = held.device.get();
    held.called.set(held.called.get().wrapping_add(1));
    if device.is_null() {
        return;
    }
    // SAFETY: an event of any bytes is one.
    let mut event: vuf_device_event = unsafe { std::mem::zeroed() };
    event.size = size_of::<vuf_device_event>();
    let event = &raw mut event;
    // SAFETY: the device is freed only outside of its calls.
    assert_eq!(unsafe { vuf_device_process(device, event) }, VUF_E_STATE);
    // SAFETY: as above.
    assert_eq!(unsafe { vuf_device_wait(device, 1) }, VUF_E_STATE);
    // SAFETY: as above.
    assert_eq!(unsafe { vuf_device_reconnect(device) }, 0);
}

unsafe extern "C" fn miss(user: *mut c_void, _: u64, _: u32) -> c_int {
    inside(user);
    0
}

unsafe extern "C" fn denied(user: *mut c_void, _: u64, _: u64, _: u32) -> c_int {
    inside(user);
    -1
}

unsafe extern "C" fn notifier(user: *mut c_void, _: u32, fd: c_int, _: u64, _: u64) -> c_int {
    inside(user);
    if fd >= 0 {
        // SAFETY: given to us.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    0
}

unsafe extern "C" fn lookup(user: *mut c_void, _: *const u8, fd: *mut c_int) -> c_int {
    inside(user);
    let file = RAM.as_fd().try_clone_to_owned().unwrap().into_raw_fd();
    // SAFETY: the library has made room for it.
    unsafe { fd.write(file) };
    0
}

unsafe extern "C" fn map(user: *mut c_void, _: *const vuf_shmem_area, fd: c_int) -> c_int {
    inside(user);
    // SAFETY: given to us.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    0
}

unsafe extern "C" fn unmap(user: *mut c_void, _: *const vuf_shmem_area) -> c_int {
    inside(user);
    0
}

unsafe extern "C" fn about_ring(user: *mut c_void, _: u32) {
    inside(user);
}

unsafe extern "C" fn about_object(user: *mut c_void, _: *const u8) {
    inside(user);
}

unsafe extern "C" fn tell(user: *mut c_void, record: *const vuf_trace_record) {
    assert!(!record.is_null());
    inside(user);
}

unsafe extern "C" fn index(user: *mut c_void, ring: u32, _: u32, index: *mut u16) -> c_int {
    inside(user);
    // SAFETY: the library has made room for it.
    unsafe { index.write(7) };
    c_int::try_from(ring & 1).unwrap()
}

impl Calls<'_> {
    // ---- arguments ----

    /// Something that begins with its size, as long as that says. It does not end
    /// within a pointer, which would be another one then.
    fn sized<T>(&mut self, value: &T, size: usize) -> Block {
        let size = size & !7;
        let place = self.place();
        let block = Block::new(size.max(size_of::<usize>()), place);
        let to = block.memory.wrapping_add(block.offset());
        let known = size_of::<T>().min(block.bytes().len());
        // SAFETY: so many bytes lie behind the offset.
        unsafe { to.write_bytes(0, block.bytes().len()) };
        let from = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: both are at least that long.
        unsafe { std::ptr::copy_nonoverlapping(from, to, known) };
        // SAFETY: there is room for a size.
        unsafe { to.cast::<usize>().write_unaligned(size) };
        block
    }

    /// A wait that nobody ends has to be a short one.
    fn moment(&mut self) -> u32 {
        u32::from(self.input.byte() % 3) + 1
    }

    fn event_fd(&mut self) -> RawFd {
        match self.input.byte() & 31 {
            27 => -1,
            28 => CLOSED,
            29 => 0,
            30 => self.input.i32() | c_int::MIN,
            31 => RAM.as_raw_fd(),
            _ => EVENT.as_raw_fd(),
        }
    }

    fn memory(&mut self) -> vuf_mem_region {
        let at = u64::from(self.input.byte());
        let mut region = vuf_mem_region {
            guest_addr: (at % 4 + 1) * SIZE,
            size: SIZE,
            user_addr: 0,
            mmap_offset: at % 4 * SIZE,
            fd: RAM.as_raw_fd(),
            xen_mmap_flags: 0,
            xen_domid: 0,
            reserved0: 0,
            reserved: [0; 2],
        };
        match at >> 2 {
            40 => region.guest_addr = self.long(),
            41 => region.size = self.long(),
            42 => region.user_addr = self.long(),
            43 => region.mmap_offset = self.long(),
            44 => region.fd = self.event_fd(),
            45 => region.reserved0 = self.number(),
            46 => region.xen_domid = self.number(),
            47 => region.reserved[1] = self.long(),
            _ => {}
        }
        region
    }

    /// Some regions, and how many the library is told.
    fn memories(&mut self) -> (Block, usize) {
        let n = usize::from(self.input.byte() & 7);
        let regions: Vec<_> = (0..n).map(|_| self.memory()).collect();
        let block = Block::of(&regions, self.place());
        let n = match block.place {
            Place::Null => usize::try_from(self.long()).unwrap(),
            _ => n,
        };
        (block, n)
    }

    fn one_ring(&mut self, held: *mut c_void) -> vuf_ring {
        let (which, how) = (self.input.byte(), self.input.byte());
        let at = SIZE + u64::from(which & 3) * 0x4000;
        let stand = match how >> 5 {
            0..=3 => STAND.as_ptr(),
            4 => STAND.as_ptr().wrapping_byte_add(1),
            _ => std::ptr::null(),
        };
        let mut ring = vuf_ring {
            index: u32::from(which & 3),
            size: 1 << (which >> 2 & 7),
            descriptor: at,
            available: at + 0x1000,
            used: at + 0x2000,
            base_mode: u32::from(how & 3),
            base: 0,
            kick_fd: self.event_fd(),
            call_fd: self.event_fd(),
            err_fd: -1,
            reserved0: 0,
            used_index: stand,
            avail_index: stand,
            get_index: None,
            user: held,
            reserved: [0; 4],
        };
        if how & 4 != 0 {
            ring.get_index = Some(index);
            if how & 8 != 0 {
                ring.used_index = std::ptr::null();
                ring.avail_index = std::ptr::null();
            }
        }
        match which >> 5 {
            4 => ring.index = self.number(),
            5 => ring.size = self.number(),
            6 => ring.descriptor = self.long(),
            7 => match how & 7 {
                0 => ring.available = self.long(),
                1 => ring.used = self.long(),
                2 => ring.base = self.number(),
                3 => ring.err_fd = self.event_fd(),
                4 => ring.reserved0 = self.number(),
                5 => ring.reserved[3] = self.long(),
                _ => ring.base_mode = self.number(),
            },
            _ => {}
        }
        ring
    }

    fn ops(&mut self) -> Block {
        let which = self.input.byte();
        let ops = vuf_backend_ops {
            size: 0,
            iotlb_miss: (which & 1 == 0).then_some(miss),
            iotlb_access_fail: Some(denied),
            host_notifier: (which & 2 == 0).then_some(notifier),
            shared_object_lookup: Some(lookup),
            shmem_map: (which & 4 == 0).then_some(map),
            shmem_unmap: (which & 8 == 0).then_some(unmap),
            config_changed: None,
            vring_call: Some(about_ring),
            vring_err: Some(about_ring),
            shared_object_added: Some(about_object),
            shared_object_removed: Some(about_object),
        };
        let size = self.struct_size(size_of::<vuf_backend_ops>());
        self.sized(&ops, size)
    }

    fn device_options(&mut self, ops: &Block, held: *mut c_void) -> Block {
        let (flags, odd) = (self.input.byte(), self.input.byte());
        let mut options = vuf_device_options {
            size: 0,
            num_rings: 4,
            config_size: u32::from(flags & 1) * 16,
            required_features: 0,
            protocol_features: 0,
            required_protocol_features: 0,
            assume_features: u64::from(flags >> 1 & 1) << 32,
            backend_ops: match flags & 4 {
                0 => std::ptr::null(),
                _ => ops.at(),
            },
            user: held,
            first_delay_ms: 1,
            max_delay_ms: 2,
            slow_delay_ms: 2,
            jitter_percent: 1,
            fence_ms: 1,
            on_unfenced: u32::from(flags >> 3 & 1),
            out_of_order: u32::from(flags >> 4 & 3),
            stall_ms: 1,
            timeout_ms: self.time(),
            slow_timeout_ms: self.time(),
            drain_timeout_ms: self.time(),
            max_ring_size: 0,
            device_id: 0,
            reserved: 0,
        };
        match odd {
            100 => options.num_rings = self.number(),
            101 => options.config_size = self.number(),
            102 => options.required_features = self.long(),
            103 => options.protocol_features = self.long(),
            104 => options.required_protocol_features = self.long(),
            105 => options.assume_features = self.long(),
            106 => options.first_delay_ms = self.number(),
            107 => options.max_delay_ms = self.number(),
            108 => options.jitter_percent = self.number(),
            109 => options.on_unfenced = self.number(),
            110 => options.out_of_order = self.number(),
            111 => options.device_id = self.number(),
            112 => options.fence_ms = self.number(),
            113 => options.slow_delay_ms = self.number(),
            114 => options.stall_ms = self.number(),
            115 => options.max_ring_size = self.number(),
            116 => options.reserved = self.number(),
            _ => {}
        }
        let size = self.struct_size(size_of::<vuf_device_options>());
        self.sized(&options, size)
    }

    // ---- calls ----

    /// Calls, on one of the devices or on null, and checks what is true of every
    /// call.
    fn on(
        &mut self,
        about: impl Into<About>,
        call: impl FnOnce(*mut vuf_device, *mut c_void) -> c_int,
    ) -> c_int {
        let which = self.input.byte();
        self.on_this(which, about, call)
    }

    /// The same, where it was decided before on which.
    fn on_this(
        &mut self,
        which: u8,
        about: impl Into<About>,
        call: impl FnOnce(*mut vuf_device, *mut c_void) -> c_int,
    ) -> c_int {
        let slot = &self.devices.slots[usize::from(which & 1)];
        let held = std::ptr::from_ref(&*slot.held).cast_mut().cast();
        let device = match which & 31 {
            31 => std::ptr::null_mut(),
            _ => slot.device,
        };
        let rc = self.timed(|| call(device, held));
        self.check(rc, about.into());
        self.null = device.is_null();
        assert!(!self.null || rc == -libc::EINVAL);
        // Those that end with the device or its bug.
        assert!(rc != -libc::ECANCELED && rc != VUF_E_POISONED, "{rc}");
        rc
    }

    /// The same on the group, with one of the devices.
    fn on_group(
        &mut self,
        call: impl FnOnce(*mut vuf_memory_group, *mut vuf_device) -> c_int,
    ) -> c_int {
        let which = self.input.byte();
        let device = self.devices.slots[usize::from(which & 1)].device;
        let group = self.devices.group;
        let rc = self.timed(|| call(group, device));
        self.check(rc, About::default());
        assert!(!group.is_null() || rc == -libc::EINVAL);
        rc
    }

    fn open_device(&mut self) {
        let which = usize::from(self.input.byte() & 1);
        self.free_device(which);
        let held = std::ptr::from_ref(&*self.devices.slots[which].held);
        let held = held.cast_mut().cast();
        let ops = self.ops();
        let options = self.device_options(&ops, held);
        let out = Block::new(size_of::<*mut vuf_device>(), self.place());
        let kind = self.input.byte();
        let protocol = match kind & 16 {
            0 => u64::MAX,
            _ => self.long(),
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = ours.into_raw_fd();
        let fd = match kind & 15 {
            8 => -1,
            9 => CLOSED,
            10 => RAM.as_raw_fd(),
            11 => self.input.i32() | c_int::MIN,
            _ => ours,
        };
        let path = match kind & 3 {
            0 => "",
            1 => "/dev/null/socket",
            2 => "/nonexistent/socket",
            _ => {
                "nonexistent/of-a-name-that-is-much-longer-than-any-socket-address-may-ever-be-\
                  on-this-system-which-is-108-bytes"
            }
        };
        let path = CString::new(path).unwrap();
        let path = match self.place() {
            Place::Null => std::ptr::null(),
            _ => path.as_ptr(),
        };
        let mode = self.number();
        let (options, to) = (options.at(), out.at());
        let rc = self.timed(|| match kind & 15 {
            // SAFETY: all are valid or null.
            12 | 13 => unsafe { vuf_device_open(path, options, to) },
            // SAFETY: all are valid or null.
            14 => unsafe { vuf_device_listen(path, mode, options, to) },
            // SAFETY: all are valid or null, and the descriptor is ours to give.
            _ => unsafe { vuf_device_open_fd(fd, options, to) },
        });
        self.check(rc, About::default());
        if rc != 0 || fd != ours || kind & 15 >= 12 && kind & 15 != 15 {
            // SAFETY: it was not taken.
            drop(unsafe { OwnedFd::from_raw_fd(ours) });
        }
        if out.place != Place::Good {
            assert!(rc == -libc::EINVAL && out.untouched());
            return;
        }
        let device: *mut vuf_device = out.read();
        assert_eq!(rc == 0, !device.is_null());
        if rc == 0 {
            let slot = &mut self.devices.slots[which];
            slot.device = device;
            slot.held.device.set(device);
            slot.back = Some(Back::new(theirs, protocol));
        }
    }

    fn free_device(&mut self, which: usize) {
        let slot = &mut self.devices.slots[which];
        let device = std::mem::replace(&mut slot.device, std::ptr::null_mut());
        // SAFETY: null or a device, which nobody uses any more.
        self.timed(|| unsafe { vuf_device_free(device) });
        let slot = &mut self.devices.slots[which];
        slot.held.device.set(std::ptr::null_mut());
        slot.back = None;
    }

    fn free_group(&mut self) {
        let group = std::mem::replace(&mut self.devices.group, std::ptr::null_mut());
        // SAFETY: null or a group, which nobody uses any more.
        self.timed(|| unsafe { vuf_memory_group_free(group) });
    }

    pub(super) fn free_all(&mut self, group_first: bool) {
        if group_first {
            self.free_group();
        }
        for which in 0..DEVICES {
            self.free_device(which);
        }
        self.free_group();
    }

    fn process(&mut self) {
        self.sized_output(|this, out: *mut vuf_device_event| {
            // SAFETY: as in `step`.
            this.on(About::default(), |device, _| unsafe {
                vuf_device_process(device, out)
            })
        });
    }

    /// A device whose back-end behaves: as far as that goes.
    fn bring_up(&mut self) {
        let which = usize::from(self.input.byte() & 1);
        if self.devices.slots[which].device.is_null() {
            self.open_device();
        }
        self.go_on(which);
        let device = self.devices.slots[which].device;
        // SAFETY: information of any bytes is some.
        let mut info: vuf_device_info = unsafe { std::mem::zeroed() };
        info.size = size_of::<vuf_device_info>();
        let to = &raw mut info;
        // SAFETY: as in `step`.
        self.timed(|| unsafe { vuf_device_get_info(device, to) });
        let features = info.offered_features;
        // SAFETY: as in `step`.
        self.timed(|| unsafe { vuf_device_set_features(device, features) });
        let regions = Block::of(&[self.memory()], Place::Good);
        let from = regions.at();
        // SAFETY: as in `step`.
        self.timed(|| unsafe { vuf_device_set_memory(device, from, 1, 0) });
        let held = std::ptr::from_ref(&*self.devices.slots[which].held);
        let rings = Block::of(&[self.one_ring(held.cast_mut().cast())], Place::Good);
        let from = rings.at();
        // SAFETY: as in `step`.
        self.timed(|| unsafe { vuf_device_start(device, from, 1) });
        self.go_on(which);
    }

    /// The device and its back-end take turns.
    fn go_on(&mut self, which: usize) {
        // SAFETY: an event of any bytes is one.
        let mut event: vuf_device_event = unsafe { std::mem::zeroed() };
        event.size = size_of::<vuf_device_event>();
        for _ in 0..ENOUGH {
            let (device, to) = (self.devices.slots[which].device, &raw mut event);
            // SAFETY: as in `step`.
            let rc = self.timed(|| unsafe { vuf_device_process(device, to) });
            assert!(rc == 0 || device.is_null());
            if let Some(back) = &mut self.devices.slots[which].back {
                back.read();
                back.answer_well(32);
            }
        }
        assert!(event.kind <= VUF_DEVICE_EVENT_IOTLB_REFUSED);
        assert_ne!(text(vuf_device_event_name(event.kind)), "unknown");
    }

    /// What a back-end does between two calls.
    fn back_end(&mut self) {
        let how = self.input.byte();
        let slot = &mut self.devices.slots[usize::from(how & 1)];
        let Some(back) = &mut slot.back else {
            return;
        };
        back.read();
        match how >> 1 & 7 {
            0..=3 => back.answer_well(usize::from(how >> 4) + 1),
            4 => back.answer_as(self.input.byte(), &mut self.input),
            5 => back.ask(&mut self.input),
            6 => slot.back = None,
            _ => {
                let bytes = self.input.block();
                back.answer(bytes, usize::from(how >> 6));
            }
        }
    }

    fn group_step(&mut self) {
        // SAFETY, for all calls here: as in `device_step`.
        match self.input.byte() % 10 {
            0 => {
                let out = Block::new(size_of::<*mut vuf_memory_group>(), self.place());
                self.free_group();
                let to = out.at();
                // SAFETY: as above.
                let rc = self.timed(|| unsafe { vuf_memory_group_new(to) });
                self.check(rc, About::default());
                self.check_output(rc, &out);
                if rc == 0 {
                    self.devices.group = out.read();
                }
            }
            1 => self.free_group(),
            2 | 3 => {
                // SAFETY: as above.
                self.on_group(|group, device| unsafe { vuf_memory_group_join(group, device) });
            }
            4 => {
                // SAFETY: as above.
                self.on_group(|group, device| unsafe { vuf_memory_group_leave(group, device) });
            }
            5 => {
                let (regions, n) = self.memories();
                let flags = self.number();
                // SAFETY: as above.
                self.on_group(|group, _| unsafe {
                    vuf_memory_group_set_memory(group, regions.at(), n, flags)
                });
            }
            6 => {
                let region = Block::of(&[self.memory()], self.place());
                // SAFETY: as above.
                self.on_group(|group, _| unsafe {
                    vuf_memory_group_add_memory(group, region.at())
                });
            }
            7 => {
                let region = self.memory();
                // SAFETY: as above.
                self.on_group(|group, _| unsafe {
                    vuf_memory_group_remove_memory(group, region.guest_addr, region.size)
                });
            }
            8 => {
                let (regions, n) = self.memories();
                // SAFETY: as above.
                self.on_group(|group, _| unsafe {
                    vuf_memory_group_memory_fits(group, regions.at(), n)
                });
            }
            _ => {
                let time = self.moment();
                // SAFETY: as above.
                self.on_group(|group, _| unsafe { vuf_memory_group_wait(group, time) });
            }
        }
    }

    pub(super) fn device_step(&mut self) {
        let none = About::default();
        // SAFETY, for all calls here: handles are null or have not been freed;
        // pointers are null or to blocks as large as what they stand for, and the
        // size that these begin with; descriptors stay open.
        match self.input.byte() & 31 {
            0 | 1 => self.open_device(),
            2 => {
                let which = usize::from(self.input.byte() & 1);
                self.free_device(which);
            }
            3 | 4 => self.process(),
            5 => {
                let connected = self.input.byte() & 1 != 0;
                let time = self.moment();
                self.on(none, |device, _| match connected {
                    // SAFETY: as above.
                    true => unsafe { vuf_device_wait_connected(device, time) },
                    // SAFETY: as above.
                    false => unsafe { vuf_device_wait(device, time) },
                });
            }
            6 => {
                let slot = &self.devices.slots[usize::from(self.input.byte() & 1)];
                // SAFETY: as above.
                let fd = unsafe { vuf_device_get_fd(slot.device) };
                assert_eq!(fd >= 0, !slot.device.is_null());
                // SAFETY: the device keeps it open.
                assert!(fd < 0 || close_on_exec(unsafe { BorrowedFd::borrow_raw(fd) }));
                let is_null = slot.device.is_null();
                let type_of_device = slot.held.called.get() & 63;
                let name = vuf_device_ring_name(type_of_device, 0, 1);
                let mut hidden = 0;
                // SAFETY: as above.
                let rc = unsafe { vuf_device_hidden_features_for(type_of_device, &raw mut hidden) };
                assert_eq!(rc == 0, !name.is_null());
                assert!(rc != 0 || hidden & VUF_TRANSPORT_FEATURES == VUF_TRANSPORT_FEATURES);
                let (mut features, mut generation, mut applied) = (0, 0, 0);
                // SAFETY: as above.
                let connected = unsafe { vuf_device_is_connected(slot.device) };
                // SAFETY: as above.
                let settled = unsafe { vuf_device_is_settled(slot.device) };
                assert!(
                    [connected, settled]
                        .iter()
                        .all(|it| is_null || matches!(it, 0 | 1))
                );
                // SAFETY: as above.
                let rc = unsafe { vuf_device_get_offered_features(slot.device, &raw mut features) };
                assert!(is_null || rc == 0 || (rc == VUF_E_STATE && features == 0));
                let (to, done) = (&raw mut generation, &raw mut applied);
                // SAFETY: as above.
                let rc = unsafe { vuf_device_get_generation(slot.device, to, done) };
                assert!(is_null || (rc == 0 && applied <= generation));
            }
            7 => self.sized_output(|this, out: *mut vuf_device_info| {
                // SAFETY: as above.
                this.on(none, |device, _| unsafe {
                    vuf_device_get_info(device, out)
                })
            }),
            8 => self.sized_output(|this, out: *mut vuf_counters| {
                // SAFETY: as above.
                this.on(none, |device, _| unsafe {
                    vuf_device_get_counters(device, out)
                })
            }),
            9 => self.sized_output(|this, out: *mut vuf_quiet| {
                // SAFETY: as above.
                this.on(none, |device, _| unsafe {
                    vuf_device_get_quiet(device, out)
                })
            }),
            10 => {
                let callback: Option<unsafe extern "C" fn(_, _)> = match self.input.byte() & 1 {
                    0 => None,
                    _ => Some(tell),
                };
                // SAFETY: as above.
                self.on(none, |device, held| unsafe {
                    vuf_device_set_trace(device, callback, held)
                });
            }
            11 => {
                // SAFETY: as above.
                self.on(none, |device, _| unsafe { vuf_device_reconnect(device) });
            }
            12 => self.supply(),
            13 => {
                let features = self.long();
                let number = u32::try_from(features & 0xffff).unwrap();
                let (mut status, mut object, uuid) = (0, -1, [7_u8; 16]);
                self.on(none, |device, _| match features >> 61 {
                    // SAFETY: as above.
                    2 => unsafe { vuf_device_get_backend_status(device, 1, &mut status) },
                    // SAFETY: as above.
                    3 => unsafe {
                        vuf_device_get_shared_object(device, uuid.as_ptr(), 1, &mut object)
                    },
                    // SAFETY: as above.
                    4 => unsafe { vuf_device_send_rarp(device, features & 0x1_ffff_ffff_ffff) },
                    // SAFETY: as above.
                    5 => unsafe { vuf_device_set_gpu_socket(device, c_int::MIN) },
                    // SAFETY: as above.
                    6 => unsafe { vuf_device_set_mtu(device, number) },
                    // SAFETY: as above.
                    7 => unsafe { vuf_device_set_vring_endian(device, number) },
                    // SAFETY: as above.
                    _ => unsafe { vuf_device_set_features(device, features) },
                });
            }
            14 => {
                let (offset, _, len, place) = self.config();
                let bytes = Block::new(if place == Place::Null { 0 } else { len }, place);
                let generation = Block::new(size_of::<u32>(), self.place());
                // SAFETY: as above.
                let rc = self.on(none, |device, _| unsafe {
                    vuf_device_read_config(device, offset, bytes.at(), len, generation.at())
                });
                assert!(rc == 0 || bytes.untouched() && generation.untouched());
            }
            15 | 16 => {
                let call = self.input.byte() % 6;
                let (offset, _, len, place) = self.config();
                let bytes = Block::new(if place == Place::Null { 0 } else { len }, place);
                let at = bytes.at();
                let none_wanted = std::ptr::null_mut();
                let rc = self.on(none, |device, _| match call {
                    // SAFETY: as above.
                    0 => unsafe { vuf_device_overlay_config(device, offset, at, len) },
                    // SAFETY: as above.
                    1 => unsafe { vuf_device_write_config(device, offset, at, len) },
                    // SAFETY: as above.
                    2 => unsafe { vuf_device_assume_config(device, offset, at, len) },
                    // SAFETY: as above.
                    3 => unsafe { vuf_device_set_config_size(device, offset) },
                    // SAFETY: as above.
                    4 => unsafe { vuf_device_wait_config(device, 1) },
                    // SAFETY: as above.
                    _ => unsafe {
                        vuf_device_read_current_config(device, offset, at, len, none_wanted)
                    },
                });
                assert!(rc == 0 && call == 5 || bytes.untouched());
            }
            17 => {
                let (regions, n) = self.memories();
                let flags = self.number();
                // SAFETY: as above.
                self.on(none, |device, _| unsafe {
                    vuf_device_set_memory(device, regions.at(), n, flags)
                });
            }
            18 => {
                let region = Block::of(&[self.memory()], self.place());
                // SAFETY: as above.
                self.on(none, |device, _| unsafe {
                    vuf_device_add_memory(device, region.at())
                });
            }
            19 => {
                let region = self.memory();
                self.sized_output(|this, out: *mut vuf_quiet| {
                    // SAFETY: as above.
                    this.on(none, |device, _| unsafe {
                        vuf_device_remove_memory(device, region.guest_addr, region.size, out)
                    })
                });
            }
            20 => {
                let (regions, n) = self.memories();
                // SAFETY: as above.
                self.on(none, |device, _| unsafe {
                    vuf_device_memory_fits(device, regions.at(), n)
                });
            }
            21 => {
                let state = Block::new(size_of::<u32>(), self.place());
                // SAFETY: as above.
                let rc = self.on(none, |device, _| unsafe {
                    vuf_device_get_memory_state(device, state.at())
                });
                self.check_output(rc, &state);
            }
            22 => {
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
                self.on(Request::IotlbMsg, |device, _| unsafe {
                    vuf_device_post_iotlb(device, iotlb.at())
                });
            }
            23 => self.start_rings(),
            24 => {
                let (ring, fd) = (self.number(), self.event_fd());
                // SAFETY: as above.
                self.on(none, |device, _| unsafe {
                    vuf_device_set_call(device, ring, fd)
                });
            }
            25 => {
                let n = usize::from(self.input.byte() & 3);
                let rings: Vec<_> = (0..n).map(|_| self.number()).collect();
                let rings = Block::of(&rings, self.place());
                let (mode, time) = (self.number() & 3, self.moment() - 1);
                self.sized_output(|this, out: *mut vuf_quiet| {
                    // SAFETY: as above.
                    this.on(none, |device, _| unsafe {
                        vuf_device_stop(device, rings.at(), n, mode, time, out)
                    })
                });
            }
            26 => {
                let time = self.moment() - 1;
                self.sized_output(|this, out: *mut vuf_quiet| {
                    // SAFETY: as above.
                    this.on(none, |device, _| unsafe {
                        vuf_device_reset(device, time, out)
                    })
                });
            }
            27 => {
                let ring = self.number();
                let base = Block::new(size_of::<u32>(), self.place());
                // SAFETY: as above.
                let rc = self.on(none, |device, _| unsafe {
                    vuf_device_get_vring_base(device, ring, base.at())
                });
                self.check_output(rc, &base);
            }
            28 => self.group_step(),
            29 => self.back_end(),
            30 => {
                let which = usize::from(self.input.byte() & 1);
                self.go_on(which);
            }
            _ => self.bring_up(),
        }
    }

    fn start_rings(&mut self) {
        let n = usize::from(self.input.byte() & 3);
        let which = self.input.byte();
        let held = std::ptr::from_ref(&*self.devices.slots[usize::from(which & 1)].held);
        let rings: Vec<_> = (0..n)
            .map(|_| self.one_ring(held.cast_mut().cast()))
            .collect();
        let rings = Block::of(&rings, self.place());
        let n = match rings.place {
            Place::Null => usize::try_from(self.long()).unwrap(),
            _ => n,
        };
        // SAFETY: as in `device_step`.
        self.on_this(which, About::default(), |device, _| unsafe {
            vuf_device_start(device, rings.at(), n)
        });
    }

    fn supply(&mut self) {
        let kind = self.input.byte();
        let which = usize::from(kind & 1);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = ours.into_raw_fd();
        let fd = match kind & 15 {
            12 | 13 => CLOSED,
            14 => -1,
            15 => RAM.as_raw_fd(),
            _ => ours,
        };
        let device = self.devices.slots[which].device;
        // SAFETY: as in `device_step`; the descriptor is ours to give.
        let rc = self.timed(|| unsafe { vuf_device_set_fd(device, fd) });
        self.check(rc, About::default());
        if rc == 0 {
            assert_eq!(fd, ours);
            self.devices.slots[which].back = Some(Back::new(theirs, u64::MAX));
        } else {
            // SAFETY: it was not taken.
            drop(unsafe { OwnedFd::from_raw_fd(ours) });
        }
    }
}
