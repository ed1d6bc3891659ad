/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Words for what a back-end offers: virtio's feature bits, and what the
   configuration spaces of devices hold. (Protocol features:
   vuf_protocol_feature_name().) */

#ifndef EXAMPLE_NAMES_H
#define EXAMPLE_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A type of device, as far as names go. */
struct device_type {
    const char *name;
    uint32_t id; /* the virtio device id */
    size_t config_size; /* bytes of configuration space; 0 for none */
    const char *features[64]; /* the names of its own feature bits, or NULL */
};

/* NULL if there is none. */
const struct device_type *device_type_by_id(uint32_t id);
const struct device_type *device_type_by_name(const char *name);

/* The name of the nth type, from 0; NULL behind the last. */
const char *device_type_name(size_t n);

/*
 * Names a virtio feature bit: the device's own, or one of those that all
 * devices have.
 *
 * type  NULL where it is not known
 *
 * Returns NULL for a bit that has no name.
 */
const char *virtio_feature_name(const struct device_type *type, unsigned bit);

/* Bytes of struct virtio_blk_config up to and with the write-zeroes fields;
   what lies behind came later, and few back-ends have it. */
#define BLK_CONFIG_SIZE 60u

/* Where the cache mode is: the one field that a driver may write. */
#define BLK_CONFIG_WRITEBACK 32u

/* The number of sectors, from the first 8 bytes of a configuration. */
uint64_t blk_config_capacity(const uint8_t *config);

/* What a field of a configuration space is. */
enum config_kind { CONFIG_NUMBER, CONFIG_MAC, CONFIG_TEXT };

struct config_field {
    const char *name;
    uint16_t offset;
    uint16_t size;
    enum config_kind kind;
    uint64_t features; /* without any of these the field means nothing; 0: always */
};

/*
 * The fields of a type's configuration space that fit into size and that the
 * features say are valid, one after the other.
 *
 * next  0 for the first; is moved on, and stays 0 for a type without a table
 *
 * Returns NULL behind the last.
 */
const struct config_field *config_field_next(const struct device_type *type, size_t size,
                                             uint64_t features, size_t *next);

/* The value of a number. */
uint64_t config_number(const struct config_field *field, const uint8_t *config);

/*
 * Guesses the type from features and configuration. Types whose configuration
 * could as well be another's are never guessed.
 *
 * Returns NULL unless exactly one type fits.
 */
const struct device_type *config_guess(const uint8_t *config, size_t size, uint64_t features);

/* "OK", "IOERR", "UNSUPP": how a block request ended. */
const char *blk_status_name(int status);

#endif
