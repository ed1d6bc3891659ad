//! Names of virtio feature bits, for texts that people read.

use super::{Name, virtio};

/// The name of a virtio feature bit, such as "VIRTIO_F_VERSION_1". The bits 0 to 23 and
/// 50 to 63 mean something else for each type of device: they have a name where
/// `device_id`, the virtio device ID, is that of a type whose bits are known here. 0
/// stands for an unknown type.
pub fn virtio_feature_name(device_id: u32, bit: u32) -> Option<Name> {
    let name = match bit {
        24 => c"VIRTIO_F_NOTIFY_ON_EMPTY",
        virtio::F_LOG_ALL => c"VHOST_F_LOG_ALL",
        27 => c"VIRTIO_F_ANY_LAYOUT",
        28 => c"VIRTIO_RING_F_INDIRECT_DESC",
        29 => c"VIRTIO_RING_F_EVENT_IDX",
        virtio::F_PROTOCOL_FEATURES => c"VHOST_USER_F_PROTOCOL_FEATURES",
        32 => c"VIRTIO_F_VERSION_1",
        virtio::F_ACCESS_PLATFORM => c"VIRTIO_F_ACCESS_PLATFORM",
        virtio::F_RING_PACKED => c"VIRTIO_F_RING_PACKED",
        virtio::F_IN_ORDER => c"VIRTIO_F_IN_ORDER",
        36 => c"VIRTIO_F_ORDER_PLATFORM",
        37 => c"VIRTIO_F_SR_IOV",
        38 => c"VIRTIO_F_NOTIFICATION_DATA",
        39 => c"VIRTIO_F_NOTIF_CONFIG_DATA",
        40 => c"VIRTIO_F_RING_RESET",
        41 => c"VIRTIO_F_ADMIN_VQ",
        _ => return device_feature_name(device_id, bit),
    };
    Some(Name(name))
}

/// Names of the bits that depend on the type of the device.
fn device_feature_name(device_id: u32, bit: u32) -> Option<Name> {
    let name = match (device_id, bit) {
        // net
        (1, 0) => c"VIRTIO_NET_F_CSUM",
        (1, 1) => c"VIRTIO_NET_F_GUEST_CSUM",
        (1, 2) => c"VIRTIO_NET_F_CTRL_GUEST_OFFLOADS",
        (1, 3) => c"VIRTIO_NET_F_MTU",
        (1, 5) => c"VIRTIO_NET_F_MAC",
        (1, 6) => c"VIRTIO_NET_F_GSO",
        (1, 7) => c"VIRTIO_NET_F_GUEST_TSO4",
        (1, 8) => c"VIRTIO_NET_F_GUEST_TSO6",
        (1, 9) => c"VIRTIO_NET_F_GUEST_ECN",
        (1, 10) => c"VIRTIO_NET_F_GUEST_UFO",
        (1, 11) => c"VIRTIO_NET_F_HOST_TSO4",
        (1, 12) => c"VIRTIO_NET_F_HOST_TSO6",
        (1, 13) => c"VIRTIO_NET_F_HOST_ECN",
        (1, 14) => c"VIRTIO_NET_F_HOST_UFO",
        (1, 15) => c"VIRTIO_NET_F_MRG_RXBUF",
        (1, 16) => c"VIRTIO_NET_F_STATUS",
        (1, 17) => c"VIRTIO_NET_F_CTRL_VQ",
        (1, 18) => c"VIRTIO_NET_F_CTRL_RX",
        (1, 19) => c"VIRTIO_NET_F_CTRL_VLAN",
        (1, 20) => c"VIRTIO_NET_F_CTRL_RX_EXTRA",
        (1, 21) => c"VIRTIO_NET_F_GUEST_ANNOUNCE",
        (1, 22) => c"VIRTIO_NET_F_MQ",
        (1, 23) => c"VIRTIO_NET_F_CTRL_MAC_ADDR",
        (1, 50) => c"VIRTIO_NET_F_DEVICE_STATS",
        (1, 51) => c"VIRTIO_NET_F_HASH_TUNNEL",
        (1, 52) => c"VIRTIO_NET_F_VQ_NOTF_COAL",
        (1, 53) => c"VIRTIO_NET_F_NOTF_COAL",
        (1, 54) => c"VIRTIO_NET_F_GUEST_USO4",
        (1, 55) => c"VIRTIO_NET_F_GUEST_USO6",
        (1, 56) => c"VIRTIO_NET_F_HOST_USO",
        (1, 57) => c"VIRTIO_NET_F_HASH_REPORT",
        (1, 59) => c"VIRTIO_NET_F_GUEST_HDRLEN",
        (1, 60) => c"VIRTIO_NET_F_RSS",
        (1, 61) => c"VIRTIO_NET_F_RSC_EXT",
        (1, 62) => c"VIRTIO_NET_F_STANDBY",
        (1, 63) => c"VIRTIO_NET_F_SPEED_DUPLEX",
        // blk
        (2, 0) => c"VIRTIO_BLK_F_BARRIER",
        (2, 1) => c"VIRTIO_BLK_F_SIZE_MAX",
        (2, 2) => c"VIRTIO_BLK_F_SEG_MAX",
        (2, 4) => c"VIRTIO_BLK_F_GEOMETRY",
        (2, 5) => c"VIRTIO_BLK_F_RO",
        (2, 6) => c"VIRTIO_BLK_F_BLK_SIZE",
        (2, 7) => c"VIRTIO_BLK_F_SCSI",
        (2, 9) => c"VIRTIO_BLK_F_FLUSH",
        (2, 10) => c"VIRTIO_BLK_F_TOPOLOGY",
        (2, 11) => c"VIRTIO_BLK_F_CONFIG_WCE",
        (2, 12) => c"VIRTIO_BLK_F_MQ",
        (2, 13) => c"VIRTIO_BLK_F_DISCARD",
        (2, 14) => c"VIRTIO_BLK_F_WRITE_ZEROES",
        (2, 15) => c"VIRTIO_BLK_F_LIFETIME",
        (2, 16) => c"VIRTIO_BLK_F_SECURE_ERASE",
        (2, 17) => c"VIRTIO_BLK_F_ZONED",
        // console
        (3, 0) => c"VIRTIO_CONSOLE_F_SIZE",
        (3, 1) => c"VIRTIO_CONSOLE_F_MULTIPORT",
        (3, 2) => c"VIRTIO_CONSOLE_F_EMERG_WRITE",
        // balloon
        (5, 0) => c"VIRTIO_BALLOON_F_MUST_TELL_HOST",
        (5, 1) => c"VIRTIO_BALLOON_F_STATS_VQ",
        (5, 2) => c"VIRTIO_BALLOON_F_DEFLATE_ON_OOM",
        (5, 3) => c"VIRTIO_BALLOON_F_FREE_PAGE_HINT",
        (5, 4) => c"VIRTIO_BALLOON_F_PAGE_POISON",
        (5, 5) => c"VIRTIO_BALLOON_F_REPORTING",
        // scsi
        (8, 0) => c"VIRTIO_SCSI_F_INOUT",
        (8, 1) => c"VIRTIO_SCSI_F_HOTPLUG",
        (8, 2) => c"VIRTIO_SCSI_F_CHANGE",
        (8, 3) => c"VIRTIO_SCSI_F_T10_PI",
        // gpu
        (16, 0) => c"VIRTIO_GPU_F_VIRGL",
        (16, 1) => c"VIRTIO_GPU_F_EDID",
        (16, 2) => c"VIRTIO_GPU_F_RESOURCE_UUID",
        (16, 3) => c"VIRTIO_GPU_F_RESOURCE_BLOB",
        (16, 4) => c"VIRTIO_GPU_F_CONTEXT_INIT",
        // rtc
        (17, 0) => c"VIRTIO_RTC_F_ALARM",
        // vsock
        (19, 0) => c"VIRTIO_VSOCK_F_STREAM",
        (19, 1) => c"VIRTIO_VSOCK_F_SEQPACKET",
        (19, 2) => c"VIRTIO_VSOCK_F_NO_IMPLIED_STREAM",
        // crypto
        (20, 0) => c"VIRTIO_CRYPTO_F_REVISION_1",
        (20, 1) => c"VIRTIO_CRYPTO_F_CIPHER_STATELESS_MODE",
        (20, 2) => c"VIRTIO_CRYPTO_F_HASH_STATELESS_MODE",
        (20, 3) => c"VIRTIO_CRYPTO_F_MAC_STATELESS_MODE",
        (20, 4) => c"VIRTIO_CRYPTO_F_AEAD_STATELESS_MODE",
        (20, 5) => c"VIRTIO_CRYPTO_F_AKCIPHER_STATELESS_MODE",
        // iommu
        (23, 0) => c"VIRTIO_IOMMU_F_INPUT_RANGE",
        (23, 1) => c"VIRTIO_IOMMU_F_DOMAIN_RANGE",
        (23, 2) => c"VIRTIO_IOMMU_F_MAP_UNMAP",
        (23, 3) => c"VIRTIO_IOMMU_F_BYPASS",
        (23, 4) => c"VIRTIO_IOMMU_F_PROBE",
        (23, 5) => c"VIRTIO_IOMMU_F_MMIO",
        (23, 6) => c"VIRTIO_IOMMU_F_BYPASS_CONFIG",
        // mem
        (24, 0) => c"VIRTIO_MEM_F_ACPI_PXM",
        (24, 1) => c"VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE",
        // snd
        (25, 0) => c"VIRTIO_SND_F_CTLS",
        // fs
        (26, 0) => c"VIRTIO_FS_F_NOTIFICATION",
        // pmem
        (27, 0) => c"VIRTIO_PMEM_F_SHMEM_REGION",
        // scmi
        (32, 0) => c"VIRTIO_SCMI_F_P2A_CHANNELS",
        (32, 1) => c"VIRTIO_SCMI_F_SHARED_MEMORY",
        // i2c
        (34, 0) => c"VIRTIO_I2C_F_ZERO_LENGTH_REQUEST",
        // gpio
        (41, 0) => c"VIRTIO_GPIO_F_IRQ",
        _ => return None,
    };
    Some(Name(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn common_bits_have_one_name_for_every_type() {
        for (bit, name) in [
            (28, "VIRTIO_RING_F_INDIRECT_DESC"),
            (32, "VIRTIO_F_VERSION_1"),
            (34, "VIRTIO_F_RING_PACKED"),
            (40, "VIRTIO_F_RING_RESET"),
        ] {
            for device in [0, 1, 2, 26, u32::MAX] {
                assert_eq!(virtio_feature_name(device, bit).unwrap().as_str(), name);
            }
        }
    }

    #[test]
    fn bits_of_a_type_need_the_type() {
        let name = |device, bit| virtio_feature_name(device, bit).map(|name| name.as_str());
        assert_eq!(name(2, 9), Some("VIRTIO_BLK_F_FLUSH"));
        assert_eq!(name(1, 9), Some("VIRTIO_NET_F_GUEST_ECN"));
        assert_eq!(name(0, 9), None);
        assert_eq!(name(2, 64), None);
        assert_eq!(name(u32::MAX, u32::MAX), None);
    }

    #[test]
    fn no_two_bits_of_a_device_have_the_same_name() {
        for device in 0..50 {
            let names = (0..64).filter_map(|bit| virtio_feature_name(device, bit));
            let names: Vec<_> = names.map(|name| name.as_str()).collect();
            let distinct: BTreeSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), names.len(), "device {device}");
            assert!(names.iter().all(|name| name.starts_with("V")), "{names:?}");
        }
    }
}
