/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "names.h"

#include <inttypes.h>
#include <string.h>

/* Those of the transport and the rings; 30 is vhost-user's, and 26 vhost's. */
static const char *const common_features[64] = {
    [24] = "NOTIFY_ON_EMPTY",
    [26] = "LOG_ALL",
    [27] = "ANY_LAYOUT",
    [28] = "RING_INDIRECT_DESC",
    [29] = "RING_EVENT_IDX",
    [30] = "PROTOCOL_FEATURES",
    [32] = "VERSION_1",
    [33] = "ACCESS_PLATFORM",
    [34] = "RING_PACKED",
    [35] = "IN_ORDER",
    [36] = "ORDER_PLATFORM",
    [37] = "SR_IOV",
    [38] = "NOTIFICATION_DATA",
    [39] = "NOTIF_CONFIG_DATA",
    [40] = "RING_RESET",
    [41] = "ADMIN_VQ",
};

static const struct device_type types[] = {
    {"net", 1, 24,
     {
         [0] = "CSUM", [1] = "GUEST_CSUM", [2] = "CTRL_GUEST_OFFLOADS", [3] = "MTU",
         [5] = "MAC", [6] = "GSO", [7] = "GUEST_TSO4", [8] = "GUEST_TSO6", [9] = "GUEST_ECN",
         [10] = "GUEST_UFO", [11] = "HOST_TSO4", [12] = "HOST_TSO6", [13] = "HOST_ECN",
         [14] = "HOST_UFO", [15] = "MRG_RXBUF", [16] = "STATUS", [17] = "CTRL_VQ",
         [18] = "CTRL_RX", [19] = "CTRL_VLAN", [20] = "CTRL_RX_EXTRA",
         [21] = "GUEST_ANNOUNCE", [22] = "MQ", [23] = "CTRL_MAC_ADDR", [50] = "DEVICE_STATS",
         [51] = "HASH_TUNNEL", [52] = "VQ_NOTF_COAL", [53] = "NOTF_COAL", [54] = "GUEST_USO4",
         [55] = "GUEST_USO6", [56] = "HOST_USO", [57] = "HASH_REPORT", [59] = "GUEST_HDRLEN",
         [60] = "RSS", [61] = "RSC_EXT", [62] = "STANDBY", [63] = "SPEED_DUPLEX",
     }},
    {"blk", 2, BLK_CONFIG_SIZE,
     {
         [0] = "BARRIER", [1] = "SIZE_MAX", [2] = "SEG_MAX", [4] = "GEOMETRY", [5] = "RO",
         [6] = "BLK_SIZE", [7] = "SCSI", [9] = "FLUSH", [10] = "TOPOLOGY", [11] = "CONFIG_WCE",
         [12] = "MQ", [13] = "DISCARD", [14] = "WRITE_ZEROES", [15] = "LIFETIME",
         [16] = "SECURE_ERASE", [17] = "ZONED",
     }},
    {"console", 3, 12, {[0] = "SIZE", [1] = "MULTIPORT", [2] = "EMERG_WRITE"}},
    {"rng", 4, 0, {NULL}},
    {"scsi", 8, 36, {[0] = "INOUT", [1] = "HOTPLUG", [2] = "CHANGE", [3] = "T10_PI"}},
    {"gpu", 16, 16,
     {[0] = "VIRGL", [1] = "EDID", [2] = "RESOURCE_UUID", [3] = "RESOURCE_BLOB",
      [4] = "CONTEXT_INIT"}},
    {"vsock", 19, 8, {[0] = "STREAM", [1] = "SEQPACKET", [2] = "NO_IMPLIED_STREAM"}},
    {"fs", 26, 40, {[0] = "NOTIFICATION"}},
};

const char *device_type_name(size_t n)
{
    return n < sizeof types / sizeof *types ? types[n].name : NULL;
}

const struct device_type *device_type_by_id(uint32_t id)
{
    for (size_t n = 0; n < sizeof types / sizeof *types; n++) {
        if (types[n].id == id) {
            return &types[n];
        }
    }
    return NULL;
}

const struct device_type *device_type_by_name(const char *name)
{
    for (size_t n = 0; n < sizeof types / sizeof *types; n++) {
        if (strcmp(types[n].name, name) == 0) {
            return &types[n];
        }
    }
    return NULL;
}

const char *virtio_feature_name(const struct device_type *type, unsigned bit)
{
    if (bit >= 64) {
        return NULL;
    }
    if (common_features[bit] != NULL) {
        return common_features[bit];
    }
    return type != NULL ? type->features[bit] : NULL;
}

/* ---- struct virtio_blk_config ---- */

enum { BLK_F_BLK_SIZE = 6, BLK_F_MQ = 12, ALWAYS = -1 };

static const struct blk_field {
    uint8_t offset;
    uint8_t size;
    int8_t feature; /* the bit without which the field means nothing */
    const char *name;
} blk_fields[] = {
    {0, 8, ALWAYS, "capacity (sectors of 512 bytes)"},
    {8, 4, 1, "size_max"},
    {12, 4, 2, "seg_max"},
    {16, 2, 4, "geometry.cylinders"},
    {18, 1, 4, "geometry.heads"},
    {19, 1, 4, "geometry.sectors"},
    {20, 4, BLK_F_BLK_SIZE, "blk_size"},
    {24, 1, 10, "topology.physical_block_exp"},
    {25, 1, 10, "topology.alignment_offset"},
    {26, 2, 10, "topology.min_io_size"},
    {28, 4, 10, "topology.opt_io_size"},
    {BLK_CONFIG_WRITEBACK, 1, 11, "writeback"},
    {34, 2, BLK_F_MQ, "num_queues"},
    {36, 4, 13, "max_discard_sectors"},
    {40, 4, 13, "max_discard_seg"},
    {44, 4, 13, "discard_sector_alignment"},
    {48, 4, 14, "max_write_zeroes_sectors"},
    {52, 4, 14, "max_write_zeroes_seg"},
    {56, 1, 14, "write_zeroes_may_unmap"},
};

static uint64_t little_endian(const uint8_t *bytes, size_t size)
{
    uint64_t value = 0;
    while (size-- > 0) {
        value = value << 8 | bytes[size];
    }
    return value;
}

uint64_t blk_config_capacity(const uint8_t *config)
{
    return little_endian(config, 8);
}

void blk_config_print(FILE *out, const char *indent, const uint8_t *config, size_t size,
                      uint64_t features)
{
    for (size_t n = 0; n < sizeof blk_fields / sizeof *blk_fields; n++) {
        const struct blk_field *field = &blk_fields[n];
        bool valid = field->feature == ALWAYS || (features >> field->feature & 1) != 0;
        if (valid && (size_t)field->offset + field->size <= size) {
            fprintf(out, "%s%s: %" PRIu64 "\n", indent, field->name,
                    little_endian(config + field->offset, field->size));
        }
    }
}

bool blk_config_plausible(const uint8_t *config, size_t size, uint64_t features)
{
    if (size < BLK_CONFIG_SIZE || (features >> BLK_F_BLK_SIZE & 1) == 0) {
        return false;
    }
    uint64_t blk_size = little_endian(config + 20, 4);
    bool power_of_two = blk_size >= 512 && (blk_size & (blk_size - 1)) == 0;
    bool no_queues = (features >> BLK_F_MQ & 1) != 0 && little_endian(config + 34, 2) == 0;
    return power_of_two && !no_queues;
}

const char *blk_status_name(int status)
{
    switch (status) {
    case 0:
        return "OK";
    case 1:
        return "IOERR";
    case 2:
        return "UNSUPP";
    default:
        return "not a status of virtio-blk";
    }
}
