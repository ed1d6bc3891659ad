/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * vhost-user-probe [OPTION...] SOCKET: tells what a back-end offers.
 * vhost-user-probe --list [TYPE]: tells which are installed.
 * vhost-user-probe --start PROGRAM [ARGUMENT...]: starts one and tells what it offers.
 *
 * It only asks. Neither SET_OWNER nor SET_FEATURES is sent; protocol features
 * have to be acknowledged, or the questions that need them would be refused.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "names.h"
#include "vhost_user_frontend.h"

enum { EXIT_ANSWERED = 0, EXIT_BACK_END = 1, EXIT_LOCAL = 2 };
enum { RETRY_MS = 20, DEFAULT_MS = 5000 };

#define BIT(n) (UINT64_C(1) << (n))

/* What the questions below need, and no more. */
#define NEEDED                                                                                    \
    (BIT(VUF_PROTOCOL_F_MQ) | BIT(VUF_PROTOCOL_F_CONFIG) |                                        \
     BIT(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | BIT(VUF_PROTOCOL_F_SHMEM))

/* The back-end does not tell how large its configuration space is, and refuses
   to read beyond it: so ask for less and less. Sizes of common devices. */
static const size_t config_sizes[] = {BLK_CONFIG_SIZE, 44, 40, 36, 24, 16, 12, 8, 4};

enum { CONFIG_SIZES = sizeof config_sizes / sizeof *config_sizes };

struct probe {
    /* What the user wants. */
    const char *socket;
    struct vuf_client_options options;
    const struct device_type *type; /* NULL: not told */
    long config_size;               /* -1: not told */
    bool trace, json, verbose;
    bool list, start;
    const char *const *arguments; /* for the program to start */
    uint32_t start_flags;         /* VUF_BACKEND_PROCESS_* */

    struct vuf_backend_programs *programs; /* of which socket is one's path */
    struct vuf_backend_process *process;
    struct vuf_client *client;
    const char *asking; /* what failed, if something does */

    /* What is known so far. */
    bool has_features, has_protocol, has_queues, has_slots, has_shmem, asked_config;
    uint64_t features, protocol, acked, queues, slots;
    struct vuf_shmem_config shmem;
    uint8_t config[VUF_MAX_CONFIG_SIZE];
    size_t config_read; /* 0: refused */
};

static void print_message(void *user, const struct vuf_trace_record *record)
{
    (void)user;
    fprintf(stderr, "%s\n", record->text);
}

/* ---- questions: 0, or the library's code ---- */

/* Starts the program anew: a back-end may end with its connection. */
static int start_program(struct probe *probe)
{
    const struct vuf_backend_process_options options = {
        .size = sizeof options,
        .arguments = probe->arguments,
        .stdout_fd = STDERR_FILENO, /* the report is alone on the other */
        .flags = probe->start_flags,
    };
    vuf_backend_process_free(probe->process);
    probe->process = NULL;
    int fd = -1;
    int rc = vuf_backend_process_start(probe->socket, &options, &probe->process);
    if (rc == 0) {
        rc = vuf_backend_process_take_socket(probe->process, &fd);
    }
    if (rc == 0) {
        rc = vuf_client_from_fd(fd, &probe->options, &probe->client);
        if (rc != 0) {
            close(fd);
        }
    }
    return rc;
}

static int ask_features(struct probe *probe)
{
    probe->asking = probe->start ? "starting" : "connecting";
    int rc = probe->start ? start_program(probe)
                          : vuf_client_connect(probe->socket, &probe->options, &probe->client);
    if (rc == 0 && probe->trace) {
        rc = vuf_client_set_trace(probe->client, print_message, NULL);
    }
    if (rc != 0) {
        return rc;
    }
    probe->asking = "asking for virtio features";
    rc = vuf_client_get_features(probe->client, &probe->features);
    if (rc != 0) {
        return rc;
    }
    probe->has_features = true;
    if ((probe->features & BIT(VUF_F_PROTOCOL_FEATURES)) == 0) {
        return 0;
    }
    probe->asking = "asking for protocol features";
    rc = vuf_client_get_protocol_features(probe->client, &probe->protocol);
    if (rc != 0) {
        return rc;
    }
    probe->has_protocol = true;
    probe->acked = probe->protocol & NEEDED & vuf_supported_protocol_features();
    probe->asking = "acknowledging protocol features";
    return vuf_client_set_protocol_features(probe->client, probe->acked);
}

static bool acked(const struct probe *probe, unsigned bit)
{
    return (probe->acked & BIT(bit)) != 0;
}

static int ask_numbers(struct probe *probe)
{
    int rc = 0;
    if (acked(probe, VUF_PROTOCOL_F_MQ)) {
        probe->asking = "asking for the number of queues";
        rc = vuf_client_get_queue_num(probe->client, &probe->queues);
        probe->has_queues = rc == 0;
    }
    if (rc == 0 && acked(probe, VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
        probe->asking = "asking for the number of memory slots";
        rc = vuf_client_get_max_mem_slots(probe->client, &probe->slots);
        probe->has_slots = rc == 0;
    }
    if (rc == 0 && acked(probe, VUF_PROTOCOL_F_SHMEM)) {
        probe->asking = "asking for shared memory regions";
        probe->shmem.size = sizeof probe->shmem;
        rc = vuf_client_get_shmem_config(probe->client, &probe->shmem);
        probe->has_shmem = rc == 0;
    }
    return rc;
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Connects anew to a back-end that has just closed the connection; some take a
   moment until they listen again. */
static int reconnect(struct probe *probe)
{
    uint64_t deadline = now_ms() + probe->options.connect_timeout_ms;
    for (;;) {
        vuf_client_free(probe->client);
        probe->client = NULL;
        int rc = ask_features(probe);
        if ((rc != -ENOENT && rc != -ECONNREFUSED) || now_ms() >= deadline) {
            return rc;
        }
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000}, NULL);
    }
}

/* Asks once for the configuration. A back-end may refuse by an answer, by
   closing the connection, or by both one after the other. */
static int ask_config_size(struct probe *probe, size_t size)
{
    for (bool fresh = false;; fresh = true) {
        probe->asking = "asking for the configuration space";
        int rc = vuf_client_get_config(probe->client, 0, 0, probe->config, size);
        if (rc == 0) {
            probe->config_read = size;
        }
        if (rc != VUF_E_DISCONNECTED) {
            return rc == VUF_E_NACK ? 0 : rc;
        }
        /* On a connection that has seen an earlier question the close may be
           the answer to that one: ask again on one of our own. */
        rc = reconnect(probe);
        if (rc != 0) {
            probe->asking = "connecting again, after it hung up on a question for its "
                            "configuration space (see --config-size)";
        }
        if (rc != 0 || fresh) {
            return rc;
        }
    }
}

static int ask_config(struct probe *probe)
{
    size_t most = probe->type != NULL ? probe->type->config_size : BLK_CONFIG_SIZE;
    if (probe->config_size >= 0) {
        most = (size_t)probe->config_size;
    }
    if (!acked(probe, VUF_PROTOCOL_F_CONFIG) || most == 0) {
        return 0;
    }
    int rc = ask_config_size(probe, most);
    for (size_t n = 0; n < CONFIG_SIZES && probe->config_size < 0; n++) {
        if (rc == 0 && probe->config_read == 0 && config_sizes[n] < most) {
            rc = ask_config_size(probe, config_sizes[n]);
        }
    }
    probe->asked_config = rc == 0;
    return rc;
}

/* ---- the report ---- */

static void print_bits(const char *title, uint64_t mask)
{
    printf("%s: 0x%016" PRIx64 "\n", title, mask);
}

static void print_features(const struct probe *probe, const struct device_type *type)
{
    print_bits("virtio features", probe->features);
    for (unsigned bit = 0; bit < 64; bit++) {
        if ((probe->features & BIT(bit)) != 0) {
            const char *name = virtio_feature_name(type, bit);
            const char *unnamed = type == NULL && (bit < 24 || bit >= 50)
                                      ? "(the device's own; see --device)"
                                      : "(no name known)";
            printf("  %2u  %s\n", bit, name != NULL ? name : unnamed);
        }
    }
}

static void print_protocol_features(const struct probe *probe)
{
    uint64_t served = vuf_supported_protocol_features();
    print_bits("protocol features", probe->protocol);
    for (unsigned bit = 0; bit < 64; bit++) {
        if ((probe->protocol & BIT(bit)) != 0) {
            const char *name = vuf_protocol_feature_name(bit);
            printf("  %2u  %-26s %s\n", bit, name != NULL ? name : "(no name known)",
                   (served & BIT(bit)) != 0 ? "served by this library"
                                            : "not served by this library");
        }
    }
}

static void print_number(const char *title, bool known, uint64_t number)
{
    if (known) {
        printf("%s: %" PRIu64 "\n", title, number);
    }
}

static void print_shmem(const struct probe *probe)
{
    printf("shared memory regions: %" PRIu32 "\n", probe->shmem.nregions);
    for (unsigned id = 0; id < VUF_SHMEM_REGIONS; id++) {
        if (probe->shmem.memory_sizes[id] != 0) {
            printf("  %2u  %" PRIu64 " bytes\n", id, probe->shmem.memory_sizes[id]);
        }
    }
}

static void print_hex(const uint8_t *bytes, size_t size)
{
    for (size_t n = 0; n < size; n++) {
        if (n % 16 == 0) {
            printf("  %02zx ", n);
        }
        printf(" %02x%s", bytes[n], n % 16 == 15 || n + 1 == size ? "\n" : "");
    }
}

/* Bytes up to the first zero; what is not printable as C writes it. */
static void print_text(const uint8_t *bytes, size_t size)
{
    for (size_t n = 0; n < size && bytes[n] != 0; n++) {
        bool plain = bytes[n] >= ' ' && bytes[n] <= '~' && bytes[n] != '\\';
        printf(plain ? "%c" : "\\x%02x", bytes[n]);
    }
}

static void print_mac(const uint8_t *mac)
{
    printf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static void print_config(const struct probe *probe, const struct device_type *type)
{
    if (probe->config_read == 0) {
        puts("configuration space: refused; try --config-size");
        return;
    }
    /* It may have more than was asked for; and some pad what they have not. */
    printf("configuration space: %zu bytes read", probe->config_read);
    if (type != NULL && type != probe->type) {
        printf("; it looks like that of a device of type %s", type->name);
    }
    putchar('\n');
    const struct config_field *field;
    size_t n = 0;
    while ((field = config_field_next(type, probe->config_read, probe->features, &n)) != NULL) {
        const uint8_t *bytes = probe->config + field->offset;
        printf("  %s: ", field->name);
        switch (field->kind) {
        case CONFIG_NUMBER:
            printf("%" PRIu64, config_number(field, probe->config));
            break;
        case CONFIG_MAC:
            print_mac(bytes);
            break;
        case CONFIG_TEXT:
            print_text(bytes, field->size);
            break;
        }
        putchar('\n');
    }
    if (n == 0) { /* a type whose fields are not known here */
        print_hex(probe->config, probe->config_read);
    }
}

/* The type as told, or as it looks. */
static const struct device_type *type_of(const struct probe *probe)
{
    if (probe->type != NULL) {
        return probe->type;
    }
    return config_guess(probe->config, probe->config_read, probe->features);
}

/* Prints what is known, even if the back-end has failed on the way. */
static void print_report(const struct probe *probe)
{
    const struct device_type *type = type_of(probe);
    if (probe->has_features) {
        print_features(probe, type);
    }
    if (probe->has_protocol) {
        print_protocol_features(probe);
    }
    print_number("queues", probe->has_queues, probe->queues);
    print_number("memory slots", probe->has_slots, probe->slots);
    if (probe->has_shmem) {
        print_shmem(probe);
    }
    if (probe->asked_config) {
        print_config(probe, type);
    }
}

/* ---- the same for programs ---- */

/* Bytes of the character that begins a text which ends with a NUL; 0 where that is
   no UTF-8 (RFC 3629, section 4), as in the name of a file. */
static size_t utf8_length(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    size_t length = at[0] < 0x80   ? 1
                    : at[0] < 0xc2 ? 0
                    : at[0] < 0xe0 ? 2
                    : at[0] < 0xf0 ? 3
                    : at[0] < 0xf5 ? 4
                                   : 0;
    for (size_t n = 1; n < length; n++) {
        if ((at[n] & 0xc0) != 0x80) {
            return 0;
        }
    }
    /* Longer than needed, half of a pair of UTF-16, or beyond what there is. */
    bool wrong = (at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
                 (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f);
    return wrong ? 0 : length;
}

static void json_char(unsigned char c)
{
    if (c < ' ' || c >= 0x7f) {
        printf("\\u%04x", c);
    } else {
        printf(c == '"' || c == '\\' ? "\\%c" : "%c", c);
    }
}

/* A JSON string of a field, whose bytes that are no ASCII are taken for Latin-1. */
static void json_field(const uint8_t *text, size_t size)
{
    putchar('"');
    for (size_t n = 0; n < size && text[n] != '\0'; n++) {
        json_char(text[n]);
    }
    putchar('"');
}

static void json_string(const char *text)
{
    if (text == NULL) {
        fputs("null", stdout);
        return;
    }
    putchar('"');
    while (*text != '\0') {
        size_t length = utf8_length(text);
        if (length > 1) {
            fwrite(text, 1, length, stdout);
        } else if (length == 1) {
            json_char((unsigned char)*text);
        } else {
            fputs("\\ufffd", stdout);
        }
        text += length > 0 ? length : 1;
    }
    putchar('"');
}

/* Masks are strings: many programs hold numbers of up to 53 bits. */
static void json_mask(const char *key, bool known, uint64_t mask, const struct device_type *type,
                      bool protocol)
{
    printf(",\n  \"%s\": ", key);
    if (!known) {
        fputs("null", stdout);
        return;
    }
    printf("{\"mask\": \"0x%016" PRIx64 "\", \"bits\": [", mask);
    const char *separator = "";
    for (unsigned bit = 0; bit < 64; bit++) {
        if ((mask & BIT(bit)) == 0) {
            continue;
        }
        printf("%s\n    {\"bit\": %u, \"name\": ", separator, bit);
        json_string(protocol ? vuf_protocol_feature_name(bit) : virtio_feature_name(type, bit));
        if (protocol) {
            bool served = (vuf_supported_protocol_features() & BIT(bit)) != 0;
            printf(", \"served\": %s", served ? "true" : "false");
        }
        putchar('}');
        separator = ",";
    }
    fputs("]}", stdout);
}

static void json_number(const char *key, bool known, uint64_t number)
{
    printf(",\n  \"%s\": ", key);
    if (known) {
        printf("%" PRIu64, number);
    } else {
        fputs("null", stdout);
    }
}

static void json_shmem(const struct probe *probe)
{
    fputs(",\n  \"shared_memory_regions\": ", stdout);
    if (!probe->has_shmem) {
        fputs("null", stdout);
        return;
    }
    const char *separator = "";
    putchar('[');
    for (unsigned id = 0; id < VUF_SHMEM_REGIONS; id++) {
        if (probe->shmem.memory_sizes[id] != 0) {
            printf("%s{\"shmid\": %u, \"bytes\": %" PRIu64 "}", separator, id,
                   probe->shmem.memory_sizes[id]);
            separator = ", ";
        }
    }
    putchar(']');
}

static void json_config(const struct probe *probe, const struct device_type *type)
{
    fputs(",\n  \"config\": ", stdout);
    if (!probe->asked_config) {
        fputs("null", stdout);
        return;
    }
    printf("{\"size\": %zu, \"bytes\": \"", probe->config_read);
    for (size_t n = 0; n < probe->config_read; n++) {
        printf("%02x", probe->config[n]);
    }
    fputs("\", \"fields\": {", stdout);
    const char *separator = "";
    const struct config_field *field;
    size_t next = 0;
    while ((field = config_field_next(type, probe->config_read, probe->features, &next)) != NULL) {
        const uint8_t *bytes = probe->config + field->offset;
        /* Without the unit. */
        printf("%s\"%.*s\": ", separator, (int)strcspn(field->name, " "), field->name);
        switch (field->kind) {
        case CONFIG_NUMBER:
            printf("%" PRIu64, config_number(field, probe->config));
            break;
        case CONFIG_MAC:
            putchar('"');
            print_mac(bytes);
            putchar('"');
            break;
        case CONFIG_TEXT:
            json_field(bytes, field->size);
            break;
        }
        separator = ", ";
    }
    fputs("}}", stdout);
}

/* One object with always the same keys; null is what is not known. */
static void print_json(const struct probe *probe, int rc)
{
    const struct device_type *type = type_of(probe);
    fputs("{\n  \"error\": ", stdout);
    if (rc == 0) {
        fputs("null", stdout);
    } else {
        printf("{\"code\": %d, \"while\": ", rc);
        json_string(probe->asking);
        fputs(", \"text\": ", stdout);
        json_string(vuf_last_error());
        putchar('}');
    }
    fputs(",\n  \"device\": ", stdout);
    json_string(type != NULL ? type->name : NULL);
    printf(",\n  \"device_guessed\": %s", type != NULL && type != probe->type ? "true" : "false");
    json_mask("virtio_features", probe->has_features, probe->features, type, false);
    json_mask("protocol_features", probe->has_protocol, probe->protocol, type, true);
    json_number("queues", probe->has_queues, probe->queues);
    json_number("memory_slots", probe->has_slots, probe->slots);
    json_shmem(probe);
    json_config(probe, type);
    fputs("\n}\n", stdout);
}

/* ---- what is installed ---- */

static bool is_usable(const struct vuf_backend_program *program)
{
    return program->hidden_by == NULL && program->problem == NULL;
}

static void print_program(const struct vuf_backend_program *program, int rc)
{
    if (program->problem != NULL) {
        printf("%s: of no use: %s\n", program->file, program->problem);
        return;
    }
    printf("%s: %s\n", program->device_type, program->binary);
    if (program->description[0] != '\0') {
        printf("  description: %s\n", program->description);
    }
    printf("  file: %s\n", program->file);
    if (program->hidden_by != NULL) {
        printf("  hidden by: %s\n", program->hidden_by);
    } else if (rc != 0) {
        printf("  features: not known: %s\n", vuf_last_error());
    } else {
        fputs("  features:", stdout);
        for (size_t n = 0; n < program->n_features; n++) {
            printf(" %s", program->features[n]);
        }
        puts(program->n_features == 0 ? " none" : "");
    }
}

static void json_key(const char *separator, const char *key, const char *text)
{
    printf("%s\"%s\": ", separator, key);
    json_string(text == NULL || text[0] == '\0' ? NULL : text);
}

static void json_program(const struct vuf_backend_program *program, int rc)
{
    json_key("\n  {", "file", program->file);
    json_key(", ", "type", program->device_type);
    json_key(", ", "description", program->description);
    json_key(", ", "binary", program->binary);
    json_key(", ", "hidden_by", program->hidden_by);
    json_key(", ", "problem", rc == 0 ? program->problem : vuf_last_error());
    fputs(", \"features\": ", stdout);
    if (program->asked == 0) {
        fputs("null}", stdout);
        return;
    }
    for (size_t n = 0; n < program->n_features; n++) {
        fputs(n == 0 ? "[" : ", ", stdout);
        json_string(program->features[n]);
    }
    fputs(program->n_features == 0 ? "[]}" : "]}", stdout);
}

/* Looks for programs; all of them, or those of a type. */
static int find_programs(struct probe *probe, const char *type, size_t *n)
{
    const struct vuf_backend_search search = {
        .size = sizeof search,
        .device_type = type,
        .flags = probe->list && probe->verbose ? VUF_BACKEND_SEARCH_ALL : 0,
    };
    return vuf_backend_programs_find(&search, &probe->programs, n);
}

static int local_error(const char *what)
{
    fprintf(stderr, "vhost-user-probe: %s: %s\n", what, vuf_last_error());
    return EXIT_LOCAL;
}

static int list_programs(struct probe *probe)
{
    size_t n, usable = 0;
    const char *separator = "";
    if (find_programs(probe, probe->socket, &n) != 0) {
        return local_error("looking for programs");
    }
    if (probe->json) {
        putchar('[');
    }
    for (size_t i = 0; i < n; i++) {
        struct vuf_backend_program program = {.size = sizeof program};
        int rc = vuf_backend_programs_get(probe->programs, i, &program);
        if (rc == 0 && is_usable(&program)) {
            usable++;
            rc = vuf_backend_programs_ask(probe->programs, i, probe->options.timeout_ms);
            if (rc == 0) {
                rc = vuf_backend_programs_get(probe->programs, i, &program);
            }
        }
        if (probe->json) {
            fputs(separator, stdout);
            json_program(&program, rc);
            separator = ",";
        } else {
            print_program(&program, rc);
        }
    }
    if (probe->json) {
        puts(n == 0 ? "]" : "\n]");
    }
    if (usable == 0) {
        fprintf(stderr, "vhost-user-probe: no back-end is installed%s%s\n",
                probe->socket != NULL ? " for " : "", probe->socket != NULL ? probe->socket : "");
    }
    return usable > 0 ? EXIT_ANSWERED : EXIT_BACK_END;
}

/* Where a program is that is named by its type. Returns -1 to go on, otherwise the exit
   status. */
static int choose_program(struct probe *probe)
{
    struct vuf_backend_program program = {.size = sizeof program};
    size_t n;
    if (strchr(probe->socket, '/') != NULL) {
        return -1;
    }
    if (find_programs(probe, probe->socket, &n) != 0 ||
        (n > 0 && vuf_backend_programs_get(probe->programs, 0, &program) != 0)) {
        return local_error("looking for programs");
    }
    if (n == 0) {
        fprintf(stderr, "vhost-user-probe: no back-end is installed for %s\n", probe->socket);
        return EXIT_BACK_END;
    }
    probe->socket = program.binary;
    return -1;
}

/* ---- arguments ---- */

static void print_usage(FILE *out)
{
    fprintf(out,
            "usage: vhost-user-probe [OPTION...] SOCKET\n"
            "       vhost-user-probe [OPTION...] --start PROGRAM [-- ARGUMENT...]\n"
            "       vhost-user-probe [OPTION...] --list [TYPE]\n"
            "Tells what the vhost-user back-end that listens on SOCKET offers, or one that is\n"
            "started, or which are installed.\n"
            "\n"
            "  --list                  which back-ends are installed (for devices of TYPE), and\n"
            "                          what they say of themselves; each is run for that\n"
            "  --verbose, -v           also those that are hidden by others, and files that are\n"
            "                          of no use\n"
            "  --start                 start PROGRAM, a path or the type of one that is\n"
            "                          installed, with these arguments and --fd=3\n"
            "  --listening             --fd is to be a socket that listens, as for virtiofsd\n"
            "  --timeout MILLISECONDS  how long to wait for each answer (default %d)\n"
            "  --device TYPE           what the device is, to name and decode what is its own:\n"
            "                         ",
            DEFAULT_MS);
    for (size_t n = 0; device_type_name(n) != NULL; n++) {
        fprintf(out, " %s", device_type_name(n));
    }
    fputs("\n"
          "  --config-size BYTES     how much configuration space to ask for, and nothing less;\n"
          "                          0 to leave it alone (default: 60 and less until it answers)\n"
          "  --trace                 also print each message, in words, to the standard error:\n"
          "                          > to the back-end, < from it\n"
          "  --json                  print one JSON object, with everything that is known and\n"
          "                          always the same keys; null for the rest\n"
          "  --help                  this text\n"
          "\n"
          "The device is only asked, never claimed or configured. Some back-ends end when a\n"
          "front-end disconnects, and so after this as well.\n"
          "\n"
          "Exit status: 0 the back-end answered, 1 it failed (unreachable, silent, or it broke\n"
          "the protocol), 2 wrong usage, or the report could not be written. With --list: 0\n"
          "there are some, 1 there is none.\n",
          out);
}

static int usage_error(const char *what, const char *argument)
{
    fprintf(stderr, "vhost-user-probe: %s%s; see --help\n", what, argument);
    return EXIT_LOCAL;
}

static bool parse_number(const char *text, long least, long most, long *number)
{
    char *end;
    errno = 0;
    *number = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *number >= least && *number <= most;
}

/* Returns -1 to go on, otherwise the exit status. */
static int parse_arguments(int argc, char **argv, struct probe *probe)
{
    static const struct option options[] = {
        {"timeout", required_argument, NULL, 't'},
        {"device", required_argument, NULL, 'd'},
        {"config-size", required_argument, NULL, 'c'},
        {"trace", no_argument, NULL, 'm'},
        {"json", no_argument, NULL, 'j'},
        {"list", no_argument, NULL, 'l'},
        {"verbose", no_argument, NULL, 'v'},
        {"start", no_argument, NULL, 's'},
        {"listening", no_argument, NULL, 'L'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    long timeout = DEFAULT_MS;
    for (int option; (option = getopt_long(argc, argv, "v", options, NULL)) != -1;) {
        switch (option) {
        case 't':
            if (!parse_number(optarg, 1, INT32_MAX, &timeout)) {
                return usage_error("not a number of milliseconds: ", optarg);
            }
            break;
        case 'd':
            probe->type = device_type_by_name(optarg);
            if (probe->type == NULL) {
                return usage_error("not a type of device: ", optarg);
            }
            break;
        case 'c':
            if (!parse_number(optarg, 0, VUF_MAX_CONFIG_SIZE, &probe->config_size)) {
                return usage_error("not a size of configuration space: ", optarg);
            }
            break;
        case 'm':
            probe->trace = true;
            break;
        case 'j':
            probe->json = true;
            break;
        case 'l':
            probe->list = true;
            break;
        case 'v':
            probe->verbose = true;
            break;
        case 's':
            probe->start = true;
            break;
        case 'L':
            probe->start_flags = VUF_BACKEND_PROCESS_LISTENING;
            break;
        case 'h':
            print_usage(stdout);
            return EXIT_ANSWERED;
        default: /* getopt has complained */
            return usage_error("wrong usage", "");
        }
    }
    int n = argc - optind;
    if (probe->list && probe->start) {
        return usage_error("--list and --start exclude each other", "");
    }
    if (probe->start_flags != 0 && !probe->start) {
        return usage_error("--listening goes with --start", "");
    }
    if (probe->list ? n > 1 : probe->start ? n < 1 : n != 1) {
        return usage_error(probe->list    ? "one type at most"
                           : probe->start ? "a program is needed"
                                          : "one socket is needed",
                           "");
    }
    probe->socket = argv[optind]; /* NULL behind the last */
    probe->arguments = (const char *const *)argv + optind + (n > 0);
    probe->options.connect_timeout_ms = (uint32_t)timeout;
    probe->options.timeout_ms = (uint32_t)timeout;
    return -1;
}

/* Lets go of all. Returns the exit status. */
static int end(struct probe *probe, int status)
{
    vuf_client_free(probe->client);
    if (probe->process != NULL) {
        /* One that hangs is killed; that it does has been told. */
        (void)vuf_backend_process_terminate(probe->process, probe->options.timeout_ms, NULL);
    }
    vuf_backend_process_free(probe->process);
    vuf_backend_programs_free(probe->programs);
    if (fflush(stdout) != 0 && status == EXIT_ANSWERED) {
        perror("vhost-user-probe: standard output");
        return EXIT_LOCAL;
    }
    return status;
}

int main(int argc, char **argv)
{
    struct probe probe = {.options.size = sizeof probe.options, .config_size = -1};
    int status = parse_arguments(argc, argv, &probe);
    if (status >= 0) {
        return status;
    }
    if (probe.list || probe.start) {
        status = probe.list ? list_programs(&probe) : choose_program(&probe);
    }
    if (status >= 0) {
        return end(&probe, status);
    }
    int rc = ask_features(&probe);
    if (rc == 0) {
        rc = ask_numbers(&probe);
    }
    /* Last, because a refusal may cost the connection. */
    if (rc == 0) {
        rc = ask_config(&probe);
    }
    if (probe.json) {
        print_json(&probe, rc);
    } else {
        print_report(&probe);
    }
    if (rc != 0) {
        fflush(stdout);
        fprintf(stderr, "vhost-user-probe: %s: %s: %s\n", probe.socket, probe.asking,
                vuf_last_error());
    }
    return end(&probe, rc == 0 ? EXIT_ANSWERED : EXIT_BACK_END);
}
