//! Errors, names and versions.

use super::args::Args;
use super::boundary;
use super::types::*;
use crate::error::{class_of, code};
use crate::message::{PROTOCOL_FEATURE_NAMES, ProtocolFeatures, Request};
use std::ffi::CStr;
use std::os::raw::{c_char, c_int};

/// Text with its NUL, for C to keep for ever.
const fn text(text: &'static CStr) -> *const c_char {
    text.as_ptr()
}

/// Tells the version of the library.
///
/// Compare it with VUF_VERSION_MAJOR, VUF_VERSION_MINOR and VUF_VERSION_PATCH
/// of the header that the program was compiled with.
///
/// Returns major * 65536 + minor * 256 + patch. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_version() -> u32 {
    (VUF_VERSION_MAJOR << 16) | (VUF_VERSION_MINOR << 8) | VUF_VERSION_PATCH
}

/// Explains a return code in a few words.
///
/// rc  what a function of this library returned
///
/// Returns a constant text, never NULL, for any number.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_strerror(rc: c_int) -> *const c_char {
    match rc {
        0 => text(c"success"),
        code::DISCONNECTED => text(c"the back-end closed the connection"),
        code::PROTOCOL => text(c"the back-end broke the vhost-user protocol"),
        code::NACK => text(c"the back-end refused the request"),
        code::NOT_NEGOTIATED => text(c"a feature that the request needs was not agreed"),
        code::POISONED => text(c"the connection is unusable after an earlier failure"),
        code::STATE => text(c"the call does not fit what was done before"),
        code::PANIC => text(c"a bug in libvhost_user_frontend"),
        -4095..=-1 => match nix::errno::Errno::from_raw(rc.saturating_neg()) {
            nix::errno::Errno::EINVAL => text(c"an argument is not valid"),
            nix::errno::Errno::EBADF => text(c"a file descriptor is not valid"),
            nix::errno::Errno::ENAMETOOLONG => text(c"the path of the socket is too long"),
            nix::errno::Errno::E2BIG => text(c"a struct has fields that the library does not know"),
            nix::errno::Errno::ETIMEDOUT => text(c"the deadline passed"),
            nix::errno::Errno::ECANCELED => text(c"the connection was aborted"),
            nix::errno::Errno::ECONNREFUSED => text(c"nobody listens on the socket"),
            nix::errno::Errno::ENOENT => text(c"there is no such socket or program"),
            nix::errno::Errno::EACCES => text(c"access to the socket or program is denied"),
            nix::errno::Errno::ENOTSOCK => text(c"the file descriptor is not a socket"),
            nix::errno::Errno::ENOTCONN => text(c"the socket is not connected"),
            nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE => {
                text(c"too many open file descriptors")
            }
            _ => text(c"a system call failed; see vuf_last_error()"),
        },
        _ => text(c"unknown code"),
    }
}

/// Tells what a caller may do about a return code.
///
/// The errno values among the codes are classed so:
///   TRANSPORT  -ECONNREFUSED, -ENOENT, -EAGAIN, -ENOTCONN, -ETIMEDOUT
///   LOCAL      all others, -EINVAL, -EBADF and -ECANCELED among them
/// VUF_E_POISONED counts as TRANSPORT here; struct vuf_error_info has the class
/// of its first cause.
///
/// rc  what a function of this library returned
///
/// Returns VUF_CLASS_*; VUF_CLASS_NONE for what is not a failure of ours.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_error_class(rc: c_int) -> u32 {
    class_of(rc).map_or(VUF_CLASS_NONE, class_number)
}

/// Tells this thread's last failure in words that a person can act on.
///
/// It names the request, the ring and the argument where there is one. The text
/// may change between versions; for decisions there are the code and
/// vuf_last_error_info(). A success does not clear it.
///
/// Returns a text, never NULL (empty if nothing has failed in this thread),
/// valid until the next failure in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_last_error() -> *const c_char {
    boundary::last_text().cast()
}

/// Tells this thread's last failure in fields.
///
/// info  set info->size before the call; the rest is filled in
///
/// Returns 0, otherwise (which is then itself the last failure)
///   -EINVAL  info is NULL, or its size is too small
///   -E2BIG   its size is above 65536
///
/// # Safety
/// `info` is null or points to `info->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_last_error_info(info: *mut vuf_error_info) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| c.fill(info, c.result_size(info, "info")?, &boundary::last_info()))
}

/// Names a request of the front-end.
///
/// request  its number, as in struct vuf_error_info
///
/// Returns the specification's name without VHOST_USER_, as "SET_MEM_TABLE", or
/// NULL if this library never sends such a request.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_request_name(request: u32) -> *const c_char {
    Request::from_id(request).map_or(std::ptr::null(), |known| {
        known.info().name.as_c_str().as_ptr()
    })
}

/// Names a protocol feature.
///
/// bit  its number, as VUF_PROTOCOL_F_*
///
/// Returns the specification's name without VHOST_USER_PROTOCOL_F_, as
/// "REPLY_ACK", or NULL if the specification has none for this bit.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_protocol_feature_name(bit: u32) -> *const c_char {
    PROTOCOL_FEATURE_NAMES
        .iter()
        .find(|(known, _)| *known == bit)
        .map_or(std::ptr::null(), |(_, name)| name.as_c_str().as_ptr())
}

/// Names a virtio feature.
///
/// device_id  the virtio device ID, such as 2 for a block device; 0 for the bits that
///            are common to all types
/// bit        its number
///
/// Returns the name, such as "VIRTIO_F_VERSION_1" or "VIRTIO_BLK_F_FLUSH", or NULL if this
/// library knows none for this bit of this type.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_virtio_feature_name(device_id: u32, bit: u32) -> *const c_char {
    let name = crate::message::virtio_feature_name(device_id, bit);
    name.map_or(std::ptr::null(), |name| name.as_c_str().as_ptr())
}

/// Tells which protocol features this library serves.
///
/// Acknowledge with vuf_client_set_protocol_features() only bits that the
/// back-end offers, that you want, and that are set here. Some bind you to more
/// than a new request: with VUF_PROTOCOL_F_STATUS DPDK waits for
/// vuf_client_set_status(), with VUF_PROTOCOL_F_INFLIGHT_SHMFD libvhost-user for
/// vuf_client_set_inflight_fd(), VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS rules postcopy
/// out, and VUF_PROTOCOL_F_XEN_MMAP and VUF_PROTOCOL_F_GPA_ADDRESSES change what
/// a memory region is.
///
/// Returns a mask: bit n is set for VUF_PROTOCOL_F_* n. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_supported_protocol_features() -> u64 {
    ProtocolFeatures::all().bits()
}
