//! What is known of each type of device: its rings, its configuration space, the features
//! that only a monitor can keep, and how it goes on after a loss. From the virtio
//! specification, and from what back-ends in daily use accept (docs/back-ends.md).

use super::options::{CONFIG_SIZE_LATER, OutOfOrder};
use super::{DeviceOptions, acknowledged};
use crate::error::{Error, Result};
use crate::message::{Name, ProtocolFeatures, virtio};

/// The facts about one type of device.
#[derive(Debug)]
pub(super) struct Preset {
    /// The virtio device ID.
    device_id: u32,
    /// Names of the first rings, in their order.
    first: &'static [Name],
    /// Names of the rings behind them, again and again.
    more: &'static [Name],
    /// The name of the last ring, if the device has one ring more than pairs.
    odd: Option<Name>,
    /// How many rings the simplest device has.
    rings: u32,
    /// Bytes of the configuration space, for drivers that acknowledged any of the features:
    /// the first entry is without any. Sizes grow.
    config: &'static [(u64, u32)],
    /// Features that the monitor has to implement, besides the transport's.
    hidden: u64,
    /// Protocol features besides the default ones.
    protocol: ProtocolFeatures,
    pub(super) out_of_order: OutOfOrder,
}

const fn bit(n: u32) -> u64 {
    1_u64.wrapping_shl(n)
}

const NOTHING: Preset = Preset {
    device_id: 0,
    first: &[],
    more: &[],
    odd: None,
    rings: 1,
    config: &[(0, 0)],
    hidden: 0,
    protocol: ProtocolFeatures::empty(),
    out_of_order: OutOfOrder::ReplayFromUsed,
};

const PRESETS: &[Preset] = &[
    // Network. Back-ends have no configuration space and no control ring: DPDK takes ring
    // 2 for the one of a second pair. The monitor implements the control ring, and
    // the features that need it or a field of the space.
    Preset {
        device_id: 1,
        more: &[Name::of(c"receiveq"), Name::of(c"transmitq")],
        odd: Some(Name::of(c"controlq")),
        rings: 2,
        hidden: bit(2)
            | bit(3)
            | bit(5)
            | bit(16)
            | bit(17)
            | bit(18)
            | bit(19)
            | bit(20)
            | bit(21)
            | bit(22)
            | bit(23)
            | bit(50)
            | bit(52)
            | bit(53)
            | bit(57)
            | bit(60)
            | bit(62)
            | bit(63),
        protocol: ProtocolFeatures::MTU.union(ProtocolFeatures::RARP),
        ..NOTHING
    },
    // Block. All back-ends return 36 bytes, with which the features up to MQ do; the sizes
    // of the others end with the fields of DISCARD, WRITE_ZEROES, SECURE_ERASE and ZONED.
    // The embedded back-end returns up to 60 bytes, qemu-storage-daemon up to 96.
    Preset {
        device_id: 2,
        more: &[Name::of(c"requestq")],
        config: &[
            (0, 36),
            (bit(13), 48),
            (bit(14), 60),
            (bit(16), 72),
            (bit(17), 96),
        ],
        ..NOTHING
    },
    // Console. vhost-device-console needs the control rings: it offers MULTIPORT.
    Preset {
        device_id: 3,
        first: &[
            Name::of(c"receiveq"),
            Name::of(c"transmitq"),
            Name::of(c"control_receiveq"),
            Name::of(c"control_transmitq"),
        ],
        more: &[Name::of(c"receiveq"), Name::of(c"transmitq")],
        rings: 4,
        config: &[(0, 12)],
        ..NOTHING
    },
    // Entropy.
    Preset {
        device_id: 4,
        first: &[Name::of(c"requestq")],
        ..NOTHING
    },
    // SCSI host.
    Preset {
        device_id: 8,
        first: &[Name::of(c"controlq"), Name::of(c"eventq")],
        more: &[Name::of(c"requestq")],
        rings: 3,
        config: &[(0, 36)],
        ..NOTHING
    },
    // GPU.
    Preset {
        device_id: 16,
        first: &[Name::of(c"controlq"), Name::of(c"cursorq")],
        rings: 2,
        config: &[(0, 16)],
        ..NOTHING
    },
    // Input: each read depends on what the driver has written before.
    Preset {
        device_id: 18,
        first: &[Name::of(c"eventq"), Name::of(c"statusq")],
        rings: 2,
        config: &[(0, 136)],
        ..NOTHING
    },
    // Socket.
    Preset {
        device_id: 19,
        first: &[Name::of(c"rx"), Name::of(c"tx"), Name::of(c"event")],
        rings: 3,
        config: &[(0, 8)],
        ..NOTHING
    },
    // Sound; its controls come with CTLS.
    Preset {
        device_id: 25,
        first: &[
            Name::of(c"controlq"),
            Name::of(c"eventq"),
            Name::of(c"txq"),
            Name::of(c"rxq"),
        ],
        rings: 4,
        config: &[(0, 12), (bit(0), 16)],
        ..NOTHING
    },
    // File system, whose session is lost with its back-end. With NOTIFICATION ring 1 would
    // be another one.
    Preset {
        device_id: 26,
        first: &[Name::of(c"hiprio")],
        more: &[Name::of(c"requestq")],
        rings: 2,
        config: &[(0, 40)],
        hidden: bit(0),
        out_of_order: OutOfOrder::NeedsReset,
        ..NOTHING
    },
    // I2C adapter.
    Preset {
        device_id: 34,
        first: &[Name::of(c"requestq")],
        ..NOTHING
    },
    // GPIO; without IRQ it has no second ring.
    Preset {
        device_id: 41,
        first: &[Name::of(c"requestq"), Name::of(c"eventq")],
        rings: 2,
        config: &[(0, 8)],
        ..NOTHING
    },
];

/// The facts about this type of device, where it is in the table.
pub(super) fn find(device_id: u32) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.device_id == device_id)
}

fn known(device_id: u32) -> Result<&'static Preset> {
    find(device_id).ok_or_else(|| {
        let text = format!("device_id is {device_id}, a type without a preset");
        Error::invalid(text)
    })
}

impl DeviceOptions {
    /// Options for a device of this type: its ID, as many rings as the simplest one has,
    /// the size of its configuration space, and the protocol features that it makes use
    /// of. All else has its default.
    ///
    /// Where the size depends on the features it is [`CONFIG_SIZE_LATER`]:
    /// `vuf_device_config_size_for()` has it.
    pub fn for_device(device_id: u32) -> Result<Self> {
        let preset = known(device_id)?;
        let config_size = match preset.config {
            [(_, size)] => *size,
            _ => CONFIG_SIZE_LATER,
        };
        Ok(Self {
            device_id,
            num_rings: preset.rings,
            config_size,
            protocol_features: acknowledged::DEFAULT | preset.protocol.bits(),
            ..Self::default()
        })
    }
}

/// How many bytes the configuration space of a device of this type has whose guest is
/// shown these features.
pub fn config_size_for(device_id: u32, features: u64) -> Result<u32> {
    let preset = known(device_id)?;
    let sizes = preset.config.iter().enumerate();
    let shown = sizes.filter(|(at, (needs, _))| *at == 0 || features & needs != 0);
    let largest = shown.map(|(_, (_, size))| *size).max();
    Ok(largest.unwrap_or_default())
}

/// The virtio features that a guest of a device of this type must not be shown only
/// because the back-end offers them.
pub fn hidden_features_for(device_id: u32) -> Result<u64> {
    Ok(known(device_id)?.hidden | virtio::TRANSPORT)
}

/// The name of a ring in a device of this type that has `num_rings` of them.
pub fn ring_name(device_id: u32, index: u32, num_rings: u32) -> Option<Name> {
    let preset = find(device_id).filter(|_| index < num_rings)?;
    let at = usize::try_from(index).ok()?;
    let is_last = index.saturating_add(1) == num_rings;
    if let Some(odd) = preset.odd.filter(|_| is_last && num_rings % 2 == 1) {
        return Some(odd);
    }
    let behind = at.checked_sub(preset.first.len());
    match behind {
        None => preset.first.get(at).copied(),
        Some(behind) => {
            let at = behind.checked_rem(preset.more.len())?;
            preset.more.get(at).copied()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn names(device_id: u32, rings: u32) -> Vec<&'static str> {
        let name = |index| ring_name(device_id, index, rings);
        (0..rings).map_while(name).map(Name::as_str).collect()
    }

    #[test]
    fn rings_have_the_names_of_the_specification() {
        assert_eq!(names(1, 2), ["receiveq", "transmitq"]);
        let control = ["receiveq", "transmitq", "receiveq", "transmitq", "controlq"];
        assert_eq!(names(1, 5), control);
        assert_eq!(names(2, 2), ["requestq", "requestq"]);
        assert_eq!(names(26, 3), ["hiprio", "requestq", "requestq"]);
        assert_eq!(names(19, 4), ["rx", "tx", "event"]);
        assert_eq!(names(3, 5).last(), Some(&"receiveq"));
        assert_eq!(ring_name(2, 1, 1), None);
        assert_eq!(ring_name(7, 0, 1), None);
        for preset in PRESETS {
            assert_eq!(
                names(preset.device_id, preset.rings).len(),
                usize::try_from(preset.rings).unwrap()
            );
        }
    }

    #[test]
    fn sizes_follow_the_features() {
        for (features, size) in [(0, 36), (1 << 12, 36), (1 << 13, 48), (3 << 13, 60)] {
            assert_eq!(config_size_for(2, features).unwrap(), size);
        }
        assert_eq!(config_size_for(2, u64::MAX).unwrap(), 96);
        assert_eq!(config_size_for(1, u64::MAX).unwrap(), 0);
        assert!(config_size_for(0, 0).is_err());
    }

    #[test]
    fn options_are_valid_for_each_type() {
        for preset in PRESETS {
            let options = DeviceOptions::for_device(preset.device_id).unwrap();
            assert!(options.check().is_ok());
            assert_eq!(options.device_id, preset.device_id);
            let hidden = hidden_features_for(preset.device_id).unwrap();
            assert_eq!(hidden & virtio::TRANSPORT, virtio::TRANSPORT);
            assert!(preset.config.is_sorted_by_key(|(_, size)| *size));
        }
        assert!(DeviceOptions::for_device(0).is_err());
    }
}
