//! What needs no socket: messages as bytes, the tables, and arguments that are
//! refused before anything is done with them. An interpreter that sees every
//! undefined operation runs these too (`c-tests/check_miri.sh`), which is why
//! what C passes lies in memory of exactly the size that is promised.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char};
use std::fmt::Debug;
use std::ptr::{null, null_mut};
use vhost_user_frontend::ffi::client::*;
use vhost_user_frontend::ffi::device::*;
use vhost_user_frontend::ffi::error::*;
use vhost_user_frontend::ffi::memory::*;
use vhost_user_frontend::ffi::types::*;
use vhost_user_frontend::ffi::virtual_device::names::*;
use vhost_user_frontend::ffi::virtual_device::types::*;
use vhost_user_frontend::ffi::vring::*;
use vhost_user_frontend::message::{
    ConfigHeader, DeviceState, Header, Inflight, Log, MemRegion, MemTableHeader,
    PROTOCOL_FEATURE_NAMES, Request, SHMEM_REGIONS, ShmemConfig, VringAddr, VringState,
};
use vhost_user_frontend::{class_of, code};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A constant text, or one that is valid until the next failure.
fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: every text of the library ends with NUL.
    let text = (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) });
    text.map(|text| text.to_str().unwrap().to_owned())
}

fn last_error() -> String {
    text(vuf_last_error()).unwrap()
}

// ---- messages as bytes ----

/// From bytes, at an address that suits no integer, and back.
fn survives<T: FromBytes + IntoBytes + Immutable + PartialEq + Debug>() {
    let bytes: Vec<u8> = (0..=size_of::<T>()).map(|n| n.to_le_bytes()[0]).collect();
    let wire = &bytes[1..];
    let message = T::read_from_bytes(wire).unwrap();
    assert_eq!(message.as_bytes(), wire);
    assert_eq!(T::read_from_prefix(wire).unwrap().0, message);
    assert!(T::read_from_bytes(&wire[1..]).is_err());
}

#[test]
fn every_message_is_its_bytes() {
    survives::<Header>();
    survives::<VringState>();
    survives::<VringAddr>();
    survives::<MemRegion>();
    survives::<MemTableHeader>();
    survives::<Log>();
    survives::<ConfigHeader>();
    survives::<Inflight>();
    survives::<DeviceState>();
    survives::<ShmemConfig>();
    assert_eq!(SHMEM_REGIONS, VUF_SHMEM_REGIONS);
}

// ---- tables ----

#[test]
fn c_finds_every_name_and_no_other() {
    let requests: BTreeMap<_, _> = Request::ALL.iter().map(|r| (r.id(), r.info())).collect();
    assert_eq!(requests.len(), Request::ALL.len());
    let features = BTreeMap::from(PROTOCOL_FEATURE_NAMES);
    for number in (0..80).chain([u32::MAX]) {
        let request = requests.get(&number).map(|info| info.name.to_string());
        assert_eq!(text(vuf_request_name(number)), request);
        let feature = features.get(&number).map(|name| name.to_string());
        assert_eq!(text(vuf_protocol_feature_name(number)), feature);
    }
}

#[test]
fn every_kind_of_event_has_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for kind in 0..=VUF_DEVICE_EVENT_IOTLB_REFUSED {
        let name = text(vuf_device_event_name(kind)).unwrap();
        assert_ne!(name, "unknown", "{kind}");
        assert!(names.insert(name), "{kind}");
    }
    let beyond = VUF_DEVICE_EVENT_IOTLB_REFUSED + 1;
    for kind in (beyond..beyond + 64).chain([u32::MAX]) {
        assert_eq!(text(vuf_device_event_name(kind)).unwrap(), "unknown");
    }
}

#[test]
fn every_code_has_a_text_and_a_class() {
    let codes = (-150..=1).chain(-4110..=-4090).chain([i32::MIN, i32::MAX]);
    for number in codes {
        let words = text(vuf_strerror(number)).unwrap();
        let known =
            (-4095..=0).contains(&number) || (code::PANIC..=code::DISCONNECTED).contains(&number);
        assert_eq!(words != "unknown code", known, "{number}: {words}");
        let class = vuf_error_class(number);
        assert_eq!(
            class != VUF_CLASS_NONE,
            class_of(number).is_some(),
            "{number}"
        );
        assert_eq!(class != VUF_CLASS_NONE, known && number != 0, "{number}");
    }
}

// ---- structs that begin with their size ----

const OPTIONS: usize = size_of::<vuf_client_options>();

/// What the constructor says to options of this size, whose byte at `set` is 1.
fn with_options(size: usize, set: Option<usize>) -> i32 {
    // Whole words, for the alignment; the last may reach beyond the size by less.
    let mut words = vec![0_usize; size.div_ceil(size_of::<usize>()).max(1)];
    words[0] = size;
    if let Some(at) = set {
        words.as_mut_bytes()[at] = 1;
    }
    let mut client = null_mut();
    // SAFETY: the words are there, and -1 is no descriptor.
    let rc = unsafe { vuf_client_from_fd(-1, words.as_ptr().cast(), &raw mut client) };
    assert!(client.is_null());
    rc
}

#[test]
fn options_of_every_size_are_read_within_it() {
    for size in OPTIONS..OPTIONS + 40 {
        assert_eq!(with_options(size, None), -libc::EBADF, "{size} bytes");
    }
    for size in 0..OPTIONS {
        assert_eq!(with_options(size, None), -libc::EINVAL, "{size} bytes");
    }
    assert_eq!(with_options(OPTIONS + 1, Some(OPTIONS)), -libc::E2BIG);
    assert_eq!(with_options(OPTIONS + 40, Some(OPTIONS + 39)), -libc::E2BIG);
    let flags = std::mem::offset_of!(vuf_client_options, flags);
    assert_eq!(with_options(OPTIONS, Some(flags + 1)), -libc::EINVAL);
}

#[test]
fn options_that_cannot_be_are_refused_unread() {
    let words = [0_usize; 16];
    let odd = words.as_ptr().wrapping_byte_add(1).cast();
    let mut client = null_mut();
    // SAFETY: the address is refused because it is not aligned.
    let rc = unsafe { vuf_client_from_fd(-1, odd, &raw mut client) };
    assert_eq!(
        (rc, last_error()),
        (-libc::EINVAL, "options is not aligned".into())
    );
    // SAFETY: a null pointer is refused.
    let rc = unsafe { vuf_client_from_fd(-1, null(), null_mut()) };
    assert_eq!(rc, -libc::EINVAL);
    // SAFETY: as above, and the size is beyond what is looked at.
    let rc = unsafe { vuf_client_from_fd(-1, [usize::MAX].as_ptr().cast(), &raw mut client) };
    assert_eq!(rc, -libc::E2BIG);
}

#[test]
fn the_last_failure_is_written_within_the_size() {
    const INFO: usize = size_of::<vuf_error_info>();
    // SAFETY: a null pointer is refused.
    unsafe { vuf_client_set_owner(null_mut()) };
    for size in INFO..INFO + 20 {
        let mut words = vec![usize::MAX; size.div_ceil(size_of::<usize>())];
        words[0] = size;
        // SAFETY: the words are there.
        assert_eq!(unsafe { vuf_last_error_info(words.as_mut_ptr().cast()) }, 0);
        assert_eq!(words[0], size);
        let bytes = words.as_bytes();
        assert!(
            bytes[size..].iter().all(|byte| *byte == u8::MAX),
            "{size} bytes"
        );
        assert!(
            bytes
                .get(INFO..size)
                .unwrap_or_default()
                .iter()
                .all(|byte| *byte == 0)
        );
        if let Ok((info, _)) = vuf_error_info::read_from_prefix(&bytes[..size]) {
            assert_eq!((info.code, info.errno_value), (-libc::EINVAL, libc::EINVAL));
            assert_eq!((info.request, info.ring), (0, -1));
            assert_eq!((info.region, info.has_value), (-1, 0));
        }
    }
}

// ---- failures, and what is remembered of them ----

#[test]
fn a_long_text_is_cut_between_characters() {
    for begin in ["", "x", "xx"] {
        let path = CString::new(format!("{begin}{}", "\u{20ac}".repeat(300))).unwrap();
        let mut client = null_mut();
        // SAFETY: the path ends with NUL. It is too long for an address.
        let rc = unsafe { vuf_client_connect(path.as_ptr(), null(), &raw mut client) };
        assert_eq!(rc, -libc::ENAMETOOLONG);
        let words = last_error();
        assert!((509..=511).contains(&words.len()), "{} bytes", words.len());
        assert!(words.ends_with('\u{20ac}'), "{words}");
    }
}

#[test]
fn every_thread_has_its_own_last_failure() {
    // SAFETY: a null pointer is refused.
    let fail = || unsafe { vuf_client_set_owner(null_mut()) };
    assert_eq!(fail(), -libc::EINVAL);
    let before = vuf_last_error();
    let other = std::thread::spawn(move || {
        let nothing = last_error();
        let mut client = null_mut();
        // SAFETY: a null pointer is refused.
        unsafe { vuf_client_from_fd(-7, null(), &raw mut client) };
        (nothing, last_error())
    });
    let expected = (String::new(), "fd is -7".to_owned());
    assert_eq!(other.join().unwrap(), expected);
    assert_eq!(text(before).unwrap(), "client is NULL");
    assert_eq!(fail(), -libc::EINVAL);
    assert_eq!(before, vuf_last_error());
}

macro_rules! refuses {
    ($call:expr) => {
        // SAFETY: null pointers are refused, and other outputs have their places.
        assert_eq!(unsafe { $call }, -libc::EINVAL, stringify!($call))
    };
}

#[test]
fn without_a_client_nothing_is_read_or_written() {
    let none = null_mut();
    let mut fds = [7, 7];
    refuses!(vuf_client_abort(none));
    refuses!(vuf_client_get_features(none, null_mut()));
    refuses!(vuf_client_set_features(none, 0));
    refuses!(vuf_client_set_mem_table(none, null(), 3));
    refuses!(vuf_client_add_mem_region(none, null()));
    refuses!(vuf_client_set_vring_addr(none, 0, null()));
    refuses!(vuf_client_get_vring_base(none, 0, 0, null_mut()));
    refuses!(vuf_client_set_vring_kick(none, 0, -1));
    refuses!(vuf_client_set_config(none, 0, 0, null(), 1));
    refuses!(vuf_client_get_inflight_fd(
        none,
        1,
        1,
        null_mut(),
        &raw mut fds[0]
    ));
    refuses!(vuf_client_set_inflight_fd(none, null(), -1));
    refuses!(vuf_client_set_device_state_fd(
        none,
        0,
        0,
        -1,
        &raw mut fds[1]
    ));
    refuses!(vuf_client_get_shmem_config(none, null_mut()));
    assert_eq!(fds, [-1, -1]);
    // SAFETY: freeing nothing does nothing.
    unsafe { vuf_client_free(none) };
}
