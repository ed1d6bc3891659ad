//! What is known of each type of device, to open one with.

use super::super::args::Args;
use super::super::boundary;
use super::types::vuf_device_options;
use crate::device::{DeviceOptions, config_size_for, hidden_features_for, ring_name};
use std::os::raw::{c_char, c_int};
use zerocopy::FromZeros;

/// Fills in options for a device of this type: device_id, num_rings as the simplest device
/// of the type has, config_size, and protocol_features where the type makes use of more
/// than the default set. All else is zero, the default: change what you need, such as
/// num_rings for a device with more rings.
///
/// config_size is VUF_CONFIG_SIZE_LATER where the size depends on the features:
/// vuf_device_config_size_for(). out_of_order is VUF_OUT_OF_ORDER_DEFAULT, whose meaning
/// depends on device_id.
///
/// device_id  the virtio device ID: 1 (network), 2 (block), 3 (console), 4 (entropy),
///            8 (SCSI host), 16 (GPU), 18 (input), 19 (socket), 25 (sound), 26 (file
///            system), 34 (I2C adapter) or 41 (GPIO)
/// options    set options->size before the call; the rest is filled in
///
/// Returns 0, otherwise
///   -EINVAL  options is NULL, options->size is not set, or the type has no preset
///   -E2BIG   options->size is above 65536
///
/// # Safety
/// `options` is null or points to `options->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_options_for(
    device_id: u32,
    options: *mut vuf_device_options,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let size = c.result_size(options, "options")?;
        let preset = DeviceOptions::for_device(device_id)?;
        let filled = vuf_device_options {
            device_id: preset.device_id,
            num_rings: preset.num_rings,
            config_size: preset.config_size,
            protocol_features: match preset.protocol_features {
                DeviceOptions::DEFAULT_PROTOCOL_FEATURES => 0,
                other => other,
            },
            ..vuf_device_options::new_zeroed()
        };
        // SAFETY: the struct has no padding, which an assertion in types.rs makes sure of.
        unsafe { c.fill_pointers(options, size, &filled) }
    })
}

/// Returns how many bytes the configuration space of a device has whose guest is shown
/// these features: for vuf_device_set_config_size(), where
/// vuf_device_options_for() has VUF_CONFIG_SIZE_LATER. It is the size that the fields for
/// these features need. Some back-ends return no more, and refuse a larger size.
///
/// device_id  as for vuf_device_options_for()
/// features   virtio features (a mask)
/// size       gets the number of bytes; 0 for a type without a configuration space, or
///            whose space the back-end does not have (network)
///
/// Returns 0, or -EINVAL if size is NULL or the type has no preset.
///
/// # Safety
/// `size` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_config_size_for(
    device_id: u32,
    features: u64,
    size: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let size = c.output(size, "size")?;
        size.write(config_size_for(device_id, features)?);
        Ok(())
    })
}

/// Returns the virtio features that a guest of a device of this type must not be shown only
/// because the back-end offers them: VUF_TRANSPORT_FEATURES, and those of the type that the
/// monitor has to implement. Of a network device these are the ones that need a control
/// ring, which back-ends do not serve, or a field of the configuration space; of a file
/// system VIRTIO_FS_F_NOTIFICATION, which gives the rings another order.
///
/// device_id  as for vuf_device_options_for()
/// features   gets the mask
///
/// Returns 0, or -EINVAL if features is NULL or the type has no preset.
///
/// # Safety
/// `features` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_device_hidden_features_for(
    device_id: u32,
    features: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    let c = unsafe { Args::new() };
    boundary::guard(|| {
        let features = c.output(features, "features")?;
        features.write(hidden_features_for(device_id)?);
        Ok(())
    })
}

/// Names a ring of a device by its place, as the virtio specification does.
///
/// device_id  as for vuf_device_options_for()
/// index      the ring
/// num_rings  how many the device has: a network device with an odd number has a control
///            ring behind its pairs
///
/// Returns the name, such as "requestq" or "receiveq" (without the number that the
/// specification gives rings of one kind), or NULL if the type has no preset or no such
/// ring.
#[unsafe(no_mangle)]
pub extern "C" fn vuf_device_ring_name(
    device_id: u32,
    index: u32,
    num_rings: u32,
) -> *const c_char {
    let name = ring_name(device_id, index, num_rings);
    name.map_or(std::ptr::null(), |name| name.as_c_str().as_ptr())
}
