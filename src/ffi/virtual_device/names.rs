//! Words for what happens to a device.

use super::types::*;
use std::os::raw::c_char;

/// Names an event of a device.
///
/// kind  its number, as VUF_DEVICE_EVENT_*
///
/// Returns the name of the constant without VUF_DEVICE_EVENT_, as "CONNECTED", or
/// "unknown" for a number that this library never tells; never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_device_event_name(kind: u32) -> *const c_char {
    let name = match kind {
        VUF_DEVICE_EVENT_NONE => c"NONE",
        VUF_DEVICE_EVENT_CONNECTED => c"CONNECTED",
        VUF_DEVICE_EVENT_LOST => c"LOST",
        VUF_DEVICE_EVENT_RETRYING => c"RETRYING",
        VUF_DEVICE_EVENT_STALLED => c"STALLED",
        VUF_DEVICE_EVENT_RECOVERED => c"RECOVERED",
        VUF_DEVICE_EVENT_APPLIED => c"APPLIED",
        VUF_DEVICE_EVENT_CONFIG_CHANGED => c"CONFIG_CHANGED",
        VUF_DEVICE_EVENT_NEEDS_RESET => c"NEEDS_RESET",
        VUF_DEVICE_EVENT_UNFENCED => c"UNFENCED",
        VUF_DEVICE_EVENT_FENCED => c"FENCED",
        VUF_DEVICE_EVENT_NEEDS_FD => c"NEEDS_FD",
        VUF_DEVICE_EVENT_PEERS_REFUSED => c"PEERS_REFUSED",
        VUF_DEVICE_EVENT_CONFIG_REFUSED => c"CONFIG_REFUSED",
        VUF_DEVICE_EVENT_REFUSED => c"REFUSED",
        VUF_DEVICE_EVENT_CHANNEL_CLOSED => c"CHANNEL_CLOSED",
        VUF_DEVICE_EVENT_CHANNEL_REFUSED => c"CHANNEL_REFUSED",
        VUF_DEVICE_EVENT_IOTLB_REFUSED => c"IOTLB_REFUSED",
        _ => c"unknown",
    };
    name.as_ptr()
}
