/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * net-loop SOCKET [FRAMES]: sends frames through a network back-end that sends each
 * back, as DPDK's testpmd does with --forward-mode=io, and compares and counts what
 * comes.
 *
 * A network device has two queues: the driver fills the first with empty buffers for
 * what comes in, and puts on the second what goes out. Here the frames have all sizes
 * that Ethernet allows, and each has content of its own, so that one that is lost,
 * doubled, changed or out of order is noticed. vmm.c has the monitor's part;
 * examples/net_loop.sh starts the back-end and runs this.
 */
#include <endian.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm.h"

enum { RECEIVE, TRANSMIT, QUEUES };
enum { HEADER = sizeof(struct virtio_net_hdr_v1), LEAST = 60, MOST = 1514, ROOM = 2048 };

/* Frames on their way, each with a buffer to come back to: so none is dropped. */
enum { WINDOW = VMM_QUEUE_NUM / VIRTQ_MAX_PARTS };

#define RECEIVE_ADDR VMM_BUFFERS
#define TRANSMIT_ADDR (VMM_BUFFERS + (uint64_t)WINDOW * ROOM)

_Static_assert(HEADER + MOST <= ROOM, "");
_Static_assert(TRANSMIT_ADDR + WINDOW * ROOM <= VMM_ADDR + VMM_SIZE, "");

static struct vmm vmm = {.program = "net-loop"};
static uint64_t sent, transmitted, received; /* frames: given away, read, back */
static uint64_t bytes;                       /* in those that are back */
static int transmit_slots[WINDOW], receive_slots[WINDOW]; /* of each buffer */

/* What the nth frame holds, without the header. Returns its size. */
static uint32_t make_frame(uint64_t n, uint8_t frame[MOST])
{
    const uint32_t size = LEAST + (uint32_t)(n * 37 % (MOST - LEAST + 1));
    uint64_t state = n * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (uint32_t at = 0; at < size; at++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        frame[at] = (uint8_t)(state >> 56);
    }
    return size;
}

/* The buffer is used for the nth frame, and then for the nth + WINDOW. */
static void offer_buffer(unsigned n)
{
    const struct virtq_part part = {RECEIVE_ADDR + (uint64_t)n * ROOM, ROOM};
    memset(vmm_at(&vmm, part.addr), 0, ROOM);
    receive_slots[n] = vmm_post(&vmm, RECEIVE, &part, 0, 1);
}

static void send_frame(void)
{
    const uint64_t at = TRANSMIT_ADDR + sent % WINDOW * ROOM;
    uint8_t *buffer = vmm_at(&vmm, at);
    memset(buffer, 0, HEADER); /* no checksum or segmentation is left to the device */
    const uint32_t size = make_frame(sent, buffer + HEADER);
    const struct virtq_part parts[] = {{at, HEADER}, {at + HEADER, size}};
    transmit_slots[sent % WINDOW] = vmm_post(&vmm, TRANSMIT, parts, 2, 0);
    sent++;
}

/* From here on the buffer may hold another frame. */
static void take_transmitted(int slot)
{
    if (transmitted == sent || slot != transmit_slots[transmitted % WINDOW]) {
        vmm_die(&vmm, "transmit", "buffers are not used in their order");
    }
    transmitted++;
}

/* With VIRTIO_NET_F_MRG_RXBUF a frame may take several buffers; each of these has
   room for a whole one. */
static void take_frame(int slot, uint32_t written)
{
    uint8_t expected[MOST], got[ROOM];
    const unsigned n = received % WINDOW;
    const uint32_t size = make_frame(received, expected);
    if (slot != receive_slots[n]) {
        vmm_die(&vmm, "receive", "buffers are not used in their order");
    }
    /* What lies in guest memory may change at any time: a copy does not. */
    memcpy(got, vmm_at(&vmm, RECEIVE_ADDR + (uint64_t)n * ROOM), ROOM);
    const struct virtio_net_hdr_v1 *header = (const void *)got;
    if (written != HEADER + size || le16toh(header->num_buffers) != 1 ||
        memcmp(got + HEADER, expected, size) != 0) {
        fprintf(stderr, "net-loop: frame %" PRIu64 " of %u bytes: %u came\n", received, size,
                written - HEADER);
        vmm_die(&vmm, "receive", "a frame is not the one that was sent");
    }
    received++;
    bytes += size;
    offer_buffer(n);
}

int main(int argc, char **argv)
{
    char *end = NULL;
    const uint64_t frames = argc > 2 ? strtoull(argv[2], &end, 10) : 1000;
    if (argc < 2 || argc > 3 || frames == 0 || (end != NULL && *end != '\0')) {
        fputs("usage: net-loop SOCKET [FRAMES]\n", stderr);
        return 2;
    }
    const struct vuf_device_options options = {
        .size = sizeof options,
        .num_rings = QUEUES,
        /* With it the header always says in how many buffers a frame is. */
        .required_features = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_NET_F_MRG_RXBUF),
        .first_delay_ms = 10,
        .max_delay_ms = 100,
    };
    vmm_start(&vmm, argv[1], &options, 0);
    for (unsigned n = 0; n < WINDOW; n++) {
        offer_buffer(n);
    }
    while (received < frames || transmitted < frames) {
        uint32_t written;
        int slot;
        while (sent < frames && sent - received < WINDOW && sent - transmitted < WINDOW) {
            send_frame();
        }
        vmm_turn(&vmm);
        while ((slot = vmm_used(&vmm, TRANSMIT, NULL)) >= 0) {
            take_transmitted(slot);
        }
        while ((slot = vmm_used(&vmm, RECEIVE, &written)) >= 0) {
            take_frame(slot, written);
        }
    }
    vmm_stop(&vmm);
    if (vmm_used(&vmm, RECEIVE, NULL) >= 0) {
        vmm_die(&vmm, "receive", "more came back than was sent");
    }
    vmm_free(&vmm);
    printf("%" PRIu64 " frames sent, %" PRIu64 " came back, %" PRIu64 " bytes as they were sent\n",
           sent, received, bytes);
    return EXIT_SUCCESS;
}
