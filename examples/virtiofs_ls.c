/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * virtiofs-ls [-A] [-l] SOCKET [PATH]: lists a directory of the share of a virtio-fs
 * back-end, as ls does.
 *
 *   -A    also names that begin with a dot
 *   -l    in each line mode, links, user, group, size, time of change (seconds since
 *         1970) and name
 *   PATH  from the root of the share; without it the root
 *
 * virtio-fs is FUSE whose requests travel on a virtqueue in place of /dev/fuse: a
 * buffer has a request, which the back-end reads, and room for the reply, which it
 * writes. Queue 0 is for what must not wait behind others (FORGET, INTERRUPT), and not
 * used here. vmm.c has the monitor's part; examples/virtiofs_ls.sh starts the back-end,
 * runs this and compares.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/fuse.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm.h"

enum { HIGH_PRIORITY, REQUESTS, QUEUES };
enum { REQUEST_ROOM = 4096, REPLY_ROOM = 32768 };

#define REQUEST_ADDR VMM_BUFFERS
#define REPLY_ADDR (VMM_BUFFERS + REQUEST_ROOM)

struct entry {
    char *name;
    struct fuse_attr attr; /* with -l */
};

static struct vmm vmm = {.program = "virtiofs-ls"};
static bool all, detailed;
static struct entry *entries;
static size_t num_entries;

/* ---- requests ---- */

struct reply {
    int error; /* positive */
    uint32_t size;
    const uint8_t *data;
};

/* Sends a request, and waits for its reply, which lasts until the next one. */
static struct reply ask(uint32_t opcode, uint64_t node, const void *args, size_t args_size)
{
    static uint8_t reply[REPLY_ROOM];
    static uint64_t unique;
    const struct fuse_in_header in = {
        .len = (uint32_t)(sizeof in + args_size),
        .opcode = opcode,
        .unique = ++unique,
        .nodeid = node,
        .uid = getuid(),
        .gid = getgid(),
        .pid = (uint32_t)getpid(),
    };
    if (in.len > REQUEST_ROOM) {
        vmm_die(&vmm, "request", strerror(ENAMETOOLONG));
    }
    uint8_t *request = vmm_at(&vmm, REQUEST_ADDR);
    memcpy(request, &in, sizeof in);
    memcpy(request + sizeof in, args, args_size);
    const struct virtq_part parts[] = {{REQUEST_ADDR, in.len}, {REPLY_ADDR, REPLY_ROOM}};
    const int slot = vmm_post(&vmm, REQUESTS, parts, 1, 1);
    uint32_t written;
    int used;
    while ((used = vmm_used(&vmm, REQUESTS, &written)) < 0) {
        vmm_turn(&vmm);
    }

    /* Nothing that a back-end writes is trusted, nor that it stays as it is. */
    struct fuse_out_header out;
    memcpy(reply, vmm_at(&vmm, REPLY_ADDR), REPLY_ROOM);
    memcpy(&out, reply, sizeof out);
    if (used != slot || written < sizeof out || written > REPLY_ROOM || out.len != written ||
        out.unique != unique || out.error > 0) {
        vmm_die(&vmm, "reply", "it makes no sense");
    }
    return (struct reply){-out.error, written - (uint32_t)sizeof out, reply + sizeof out};
}

/* A reply of exactly this size, or the end of the program. */
static void ask_for(uint32_t opcode, uint64_t node, const void *args, size_t args_size,
                    void *result, size_t size, const char *what)
{
    const struct reply reply = ask(opcode, node, args, args_size);
    if (reply.error != 0 || reply.size != size) {
        vmm_die(&vmm, what, reply.error != 0 ? strerror(reply.error) : "a reply of another size");
    }
    if (size > 0) {
        memcpy(result, reply.data, size);
    }
}

static void begin_session(void)
{
    const struct fuse_init_in in = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = 0x20000,
        .flags = FUSE_DO_READDIRPLUS,
    };
    struct fuse_init_out out;
    ask_for(FUSE_INIT, 0, &in, sizeof in, &out, sizeof out, "beginning the session");
    if (out.major != FUSE_KERNEL_VERSION) {
        vmm_die(&vmm, "beginning the session", "another version of FUSE");
    }
    if (detailed && (out.flags & FUSE_DO_READDIRPLUS) == 0) {
        vmm_die(&vmm, "-l", "the back-end has no READDIRPLUS");
    }
}

/* Name by name, as a kernel does. */
static uint64_t look_up(const char *path)
{
    uint64_t node = FUSE_ROOT_ID;
    char *rest = strdup(path);
    if (rest == NULL) {
        vmm_die(&vmm, path, strerror(ENOMEM));
    }
    for (char *name = strtok(rest, "/"); name != NULL; name = strtok(NULL, "/")) {
        struct fuse_entry_out out;
        ask_for(FUSE_LOOKUP, node, name, strlen(name) + 1, &out, sizeof out, path);
        node = out.nodeid;
    }
    free(rest);
    return node;
}

/* ---- the directory ---- */

static void add_entry(const struct fuse_dirent *head, const char *name,
                      const struct fuse_entry_out *found)
{
    const bool dots = (head->namelen == 1 && name[0] == '.') ||
                      (head->namelen == 2 && name[0] == '.' && name[1] == '.');
    if (dots || (name[0] == '.' && !all)) {
        return;
    }
    if (detailed && found->nodeid == 0) {
        return; /* somebody has removed it meanwhile */
    }
    struct entry *more = realloc(entries, (num_entries + 1) * sizeof *entries);
    char *copy = strndup(name, head->namelen);
    if (more == NULL || copy == NULL) {
        vmm_die(&vmm, "list", strerror(ENOMEM));
    }
    entries = more;
    entries[num_entries++] = (struct entry){copy, found->attr};
}

/* Takes the records of a reply. Returns where the next one goes on. */
static uint64_t take_entries(struct reply reply)
{
    const uint32_t before = detailed ? sizeof(struct fuse_entry_out) : 0;
    uint64_t next = 0;
    for (uint32_t at = 0; at < reply.size;) {
        struct fuse_entry_out found = {0};
        struct fuse_dirent head;
        const uint32_t left = reply.size - at;
        if (left < before + FUSE_NAME_OFFSET) {
            vmm_die(&vmm, "list", "a record is cut short");
        }
        memcpy(&found, reply.data + at, before);
        memcpy(&head, reply.data + at + before, FUSE_NAME_OFFSET);
        if (head.namelen == 0 || head.namelen > left - before - FUSE_NAME_OFFSET) {
            vmm_die(&vmm, "list", "a name is cut short");
        }
        add_entry(&head, (const char *)reply.data + at + before + FUSE_NAME_OFFSET, &found);
        next = head.off;
        at += (uint32_t)FUSE_DIRENT_ALIGN(before + FUSE_NAME_OFFSET + head.namelen);
    }
    return next;
}

static void read_directory(uint64_t node, const char *path)
{
    const struct fuse_open_in how = {0};
    struct fuse_open_out opened;
    ask_for(FUSE_OPENDIR, node, &how, sizeof how, &opened, sizeof opened, path);
    struct fuse_read_in in = {.fh = opened.fh, .size = REPLY_ROOM - sizeof(struct fuse_out_header)};
    for (;;) {
        const struct reply reply =
            ask(detailed ? FUSE_READDIRPLUS : FUSE_READDIR, node, &in, sizeof in);
        if (reply.error != 0) {
            vmm_die(&vmm, path, strerror(reply.error));
        }
        if (reply.size == 0) {
            break;
        }
        in.offset = take_entries(reply);
    }
    const struct fuse_release_in release = {.fh = opened.fh};
    ask_for(FUSE_RELEASEDIR, node, &release, sizeof release, NULL, 0, path);
}

/* ---- output ---- */

static int by_name(const void *left, const void *right)
{
    return strcmp(((const struct entry *)left)->name, ((const struct entry *)right)->name);
}

static char type_letter(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return 'd';
    case S_IFLNK:
        return 'l';
    case S_IFCHR:
        return 'c';
    case S_IFBLK:
        return 'b';
    case S_IFIFO:
        return 'p';
    case S_IFSOCK:
        return 's';
    default:
        return '-';
    }
}

/* A bit that changes how something is run stands where x does. */
static char run_letter(uint32_t mode, uint32_t run, uint32_t special, const char *letters)
{
    if ((mode & special) != 0) {
        return (mode & run) != 0 ? letters[0] : letters[1];
    }
    return (mode & run) != 0 ? 'x' : '-';
}

static void print_entry(const struct entry *entry)
{
    if (detailed) {
        const struct fuse_attr *attr = &entry->attr;
        const uint32_t mode = attr->mode;
        printf("%c%c%c%c%c%c%c%c%c%c %u %u %u %" PRIu64 " %" PRIu64 " ", type_letter(mode),
               mode & S_IRUSR ? 'r' : '-', mode & S_IWUSR ? 'w' : '-',
               run_letter(mode, S_IXUSR, S_ISUID, "sS"), mode & S_IRGRP ? 'r' : '-',
               mode & S_IWGRP ? 'w' : '-', run_letter(mode, S_IXGRP, S_ISGID, "sS"),
               mode & S_IROTH ? 'r' : '-', mode & S_IWOTH ? 'w' : '-',
               run_letter(mode, S_IXOTH, S_ISVTX, "tT"), attr->nlink, attr->uid, attr->gid,
               (uint64_t)attr->size, (uint64_t)attr->mtime);
    }
    puts(entry->name);
}

int main(int argc, char **argv)
{
    for (int option; (option = getopt(argc, argv, "Al")) != -1;) {
        all |= option == 'A';
        detailed |= option == 'l';
        if (option == '?') {
            return 2;
        }
    }
    if (optind == argc || optind + 2 < argc) {
        fputs("usage: virtiofs-ls [-A] [-l] SOCKET [PATH]\n", stderr);
        return 2;
    }
    const char *path = optind + 1 < argc ? argv[optind + 1] : "/";
    const struct vuf_device_options options = {
        .size = sizeof options,
        .num_rings = QUEUES,
        .required_features = BIT(VIRTIO_F_VERSION_1),
        .first_delay_ms = 10,
        .max_delay_ms = 100,
    };
    vmm_start(&vmm, argv[optind], &options, 0);
    begin_session();
    uint64_t node = look_up(path);
    read_directory(node, path);
    vmm_stop(&vmm);
    vmm_free(&vmm); /* the session ends with the connection, and what was looked up */

    qsort(entries, num_entries, sizeof *entries, by_name);
    for (size_t n = 0; n < num_entries; n++) {
        print_entry(&entries[n]);
        free(entries[n].name);
    }
    free(entries);
    if (fflush(stdout) != 0) {
        perror("virtiofs-ls: standard output");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
