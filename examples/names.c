/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "names.h"

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

/* ---- configuration spaces ---- */

enum { BLK_F_BLK_SIZE = 6, BLK_F_MQ = 12 };
enum { FS_TAG_SIZE = 36, FS_CONFIG_SIZE = 40, FS_MOST_QUEUES = 1024 };
enum { SCSI_CONFIG_SIZE = 36, SCSI_CDB_SIZE = 32, SCSI_SENSE_SIZE = 96, SCSI_EVENT_SIZE = 16 };

#define F(bit) (UINT64_C(1) << (bit))
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static const struct config_field net_fields[] = {
    {"mac", 0, 6, CONFIG_MAC, F(5)},
    {"status", 6, 2, CONFIG_NUMBER, F(16)},
    {"max_virtqueue_pairs", 8, 2, CONFIG_NUMBER, F(22) | F(60)},
    {"mtu", 10, 2, CONFIG_NUMBER, F(3)},
    {"speed (Mbit/s)", 12, 4, CONFIG_NUMBER, F(63)},
    {"duplex", 16, 1, CONFIG_NUMBER, F(63)},
    {"rss_max_key_size", 17, 1, CONFIG_NUMBER, F(57) | F(60)},
    {"rss_max_indirection_table_length", 18, 2, CONFIG_NUMBER, F(60)},
    {"supported_hash_types", 20, 4, CONFIG_NUMBER, F(57) | F(60)},
};

static const struct config_field blk_fields[] = {
    {"capacity (sectors of 512 bytes)", 0, 8, CONFIG_NUMBER, 0},
    {"size_max", 8, 4, CONFIG_NUMBER, F(1)},
    {"seg_max", 12, 4, CONFIG_NUMBER, F(2)},
    {"geometry.cylinders", 16, 2, CONFIG_NUMBER, F(4)},
    {"geometry.heads", 18, 1, CONFIG_NUMBER, F(4)},
    {"geometry.sectors", 19, 1, CONFIG_NUMBER, F(4)},
    {"blk_size", 20, 4, CONFIG_NUMBER, F(BLK_F_BLK_SIZE)},
    {"topology.physical_block_exp", 24, 1, CONFIG_NUMBER, F(10)},
    {"topology.alignment_offset", 25, 1, CONFIG_NUMBER, F(10)},
    {"topology.min_io_size", 26, 2, CONFIG_NUMBER, F(10)},
    {"topology.opt_io_size", 28, 4, CONFIG_NUMBER, F(10)},
    {"writeback", BLK_CONFIG_WRITEBACK, 1, CONFIG_NUMBER, F(11)},
    {"num_queues", 34, 2, CONFIG_NUMBER, F(BLK_F_MQ)},
    {"max_discard_sectors", 36, 4, CONFIG_NUMBER, F(13)},
    {"max_discard_seg", 40, 4, CONFIG_NUMBER, F(13)},
    {"discard_sector_alignment", 44, 4, CONFIG_NUMBER, F(13)},
    {"max_write_zeroes_sectors", 48, 4, CONFIG_NUMBER, F(14)},
    {"max_write_zeroes_seg", 52, 4, CONFIG_NUMBER, F(14)},
    {"write_zeroes_may_unmap", 56, 1, CONFIG_NUMBER, F(14)},
};

static const struct config_field scsi_fields[] = {
    {"num_queues", 0, 4, CONFIG_NUMBER, 0},      {"seg_max", 4, 4, CONFIG_NUMBER, 0},
    {"max_sectors", 8, 4, CONFIG_NUMBER, 0},     {"cmd_per_lun", 12, 4, CONFIG_NUMBER, 0},
    {"event_info_size", 16, 4, CONFIG_NUMBER, 0}, {"sense_size", 20, 4, CONFIG_NUMBER, 0},
    {"cdb_size", 24, 4, CONFIG_NUMBER, 0},       {"max_channel", 28, 2, CONFIG_NUMBER, 0},
    {"max_target", 30, 2, CONFIG_NUMBER, 0},     {"max_lun", 32, 4, CONFIG_NUMBER, 0},
};

static const struct config_field vsock_fields[] = {
    {"guest_cid", 0, 8, CONFIG_NUMBER, 0},
};

static const struct config_field fs_fields[] = {
    {"tag", 0, FS_TAG_SIZE, CONFIG_TEXT, 0},
    {"num_request_queues", FS_TAG_SIZE, 4, CONFIG_NUMBER, 0},
    {"notify_buf_size", FS_CONFIG_SIZE, 4, CONFIG_NUMBER, F(0)},
};

#define TABLE(id, fields) {id, fields, LENGTH(fields)}

/* By the virtio device id. */
static const struct config_table {
    uint32_t id;
    const struct config_field *fields;
    size_t count;
} config_tables[] = {
    TABLE(1, net_fields),    TABLE(2, blk_fields), TABLE(8, scsi_fields),
    TABLE(19, vsock_fields), TABLE(26, fs_fields),
};

static const struct config_table *config_table_of(const struct device_type *type)
{
    for (size_t n = 0; type != NULL && n < LENGTH(config_tables); n++) {
        if (config_tables[n].id == type->id) {
            return &config_tables[n];
        }
    }
    return NULL;
}

const struct config_field *config_field_next(const struct device_type *type, size_t size,
                                             uint64_t features, size_t *next)
{
    const struct config_table *table = config_table_of(type);
    while (table != NULL && *next < table->count) {
        const struct config_field *field = &table->fields[(*next)++];
        bool valid = field->features == 0 || (features & field->features) != 0;
        if (valid && (size_t)field->offset + field->size <= size) {
            return field;
        }
    }
    return NULL;
}

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

uint64_t config_number(const struct config_field *field, const uint8_t *config)
{
    return little_endian(config + field->offset, field->size);
}

/* A size of blocks that can be, and some queues. */
static bool blk_config_plausible(const uint8_t *config, size_t size, uint64_t features)
{
    if (size < BLK_CONFIG_SIZE || (features >> BLK_F_BLK_SIZE & 1) == 0) {
        return false;
    }
    uint64_t blk_size = little_endian(config + 20, 4);
    bool power_of_two = blk_size >= 512 && (blk_size & (blk_size - 1)) == 0;
    bool no_queues = (features >> BLK_F_MQ & 1) != 0 && little_endian(config + 34, 2) == 0;
    return power_of_two && !no_queues;
}

/* A tag of text with zeros behind it, and a number of queues that can be. Some
   back-ends pad what they have not with zeros. */
static bool fs_config_plausible(const uint8_t *config, size_t size)
{
    size_t tag = 0;
    if (size < FS_CONFIG_SIZE) {
        return false;
    }
    while (tag < FS_TAG_SIZE && config[tag] >= ' ' && config[tag] <= '~') {
        tag++;
    }
    for (size_t n = tag; n < FS_TAG_SIZE; n++) {
        if (config[n] != 0) {
            return false;
        }
    }
    uint64_t queues = little_endian(config + FS_TAG_SIZE, 4);
    return tag > 0 && queues > 0 && queues <= FS_MOST_QUEUES;
}

/* The sizes that the specification has as defaults. */
static bool scsi_config_plausible(const uint8_t *config, size_t size)
{
    return size >= SCSI_CONFIG_SIZE && little_endian(config + 16, 4) == SCSI_EVENT_SIZE &&
           little_endian(config + 20, 4) == SCSI_SENSE_SIZE &&
           little_endian(config + 24, 4) == SCSI_CDB_SIZE;
}

const struct device_type *config_guess(const uint8_t *config, size_t size, uint64_t features)
{
    const char *guess = NULL;
    unsigned fit = 0;
    if (blk_config_plausible(config, size, features)) {
        guess = "blk";
        fit++;
    }
    if (fs_config_plausible(config, size)) {
        guess = "fs";
        fit++;
    }
    if (scsi_config_plausible(config, size)) {
        guess = "scsi";
        fit++;
    }
    return fit == 1 ? device_type_by_name(guess) : NULL;
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
