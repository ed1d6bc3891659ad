/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The front-end's part of a postcopy migration, in which this process is its own
   source: the pages that the back-end misses come from a pattern. */

#ifndef PAGEFAULTS_H
#define PAGEFAULTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device.h"

enum { FAULT_PAGE = 4096, FAULT_PAGES = DEVICE_SIZE / FAULT_PAGE };

struct pagefaults {
    int fd; /* the back-end's userfaultfd */
    uint64_t base; /* of the guest memory, in the back-end's address space */
    atomic_uint served[FAULT_PAGES]; /* faults by page of guest memory */
    atomic_uint wrong; /* what was no fault of a page, or could not be served */
    atomic_bool done;
    pthread_t thread;
    bool running;
};

/* Whether this process, and so probably the back-end, may have a userfaultfd. */
bool pagefaults_allowed(void);

/* In place of device_share(), from POSTCOPY_ADVISE to the point where rings may be
   started; a thread serves faults from then on. No page that is to fault may have
   been touched. */
void pagefaults_begin(struct pagefaults *faults, struct device *device);

/* POSTCOPY_END. */
void pagefaults_end(struct pagefaults *faults, struct device *device);

/* Ends the thread and closes the descriptor, if they are there. */
void pagefaults_drop(struct pagefaults *faults);

/* How often the page with this guest address was served. */
unsigned pagefaults_served(const struct pagefaults *faults, uint64_t addr);

/* What is put there. */
void pagefaults_pattern(uint64_t addr, uint8_t bytes[FAULT_PAGE]);

#endif
