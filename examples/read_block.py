#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Reads one sector from a vhost-user block back-end, with ctypes and nothing else.

    read_block.py [--library FILE] SOCKET SECTOR > sector

SOCKET is where the back-end listens, SECTOR a number from 0. The 512 bytes go to the
standard output. The library is looked for where the dynamic loader looks
(LD_LIBRARY_PATH, ldconfig), or is FILE. Python 3.10 or later, Linux.

What is here is what every other language needs, too: the functions and structs of
vhost_user_frontend.h, and a driver that puts a request into a ring. A virtual machine
monitor needs only the first: its guest has the driver.
"""

import argparse
import ctypes
import errno
import mmap
import os
import select
import struct
import sys
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

SONAME = "libvhost_user_frontend.so.0"  # VUF_SONAME

SECTOR_SIZE = 512
TIMEOUT_MS = 10000

# Feature bits: VUF_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1, VUF_PROTOCOL_F_*.
PROTOCOL_FEATURES = 1 << 30
VERSION_1 = 1 << 32
REPLY_ACK = 1 << 3
CONFIG = 1 << 9


# ---- vhost_user_frontend.h ----


class MemRegion(ctypes.Structure):
    """struct vuf_mem_region"""

    _fields_ = [
        ("guest_addr", c_uint64),
        ("size", c_uint64),
        ("user_addr", c_uint64),
        ("mmap_offset", c_uint64),
        ("fd", c_int),
        ("xen_mmap_flags", c_uint32),
        ("xen_domid", c_uint32),
        ("reserved0", c_uint32),
        ("reserved", c_uint64 * 2),
    ]


class VringAddr(ctypes.Structure):
    """struct vuf_vring_addr"""

    _fields_ = [
        ("flags", c_uint32),
        ("reserved", c_uint32),
        ("descriptor", c_uint64),
        ("available", c_uint64),
        ("used", c_uint64),
        ("log", c_uint64),
    ]


class Error(Exception):
    """What a function of the library has returned, and vuf_last_error()."""

    def __init__(self, function, code, text):
        super().__init__(f"{function}: {text}")
        self.code = code


# The arguments of what is used here. A struct vuf_client * is a c_void_p.
FUNCTIONS = {
    "vuf_client_connect": (c_char_p, c_void_p, POINTER(c_void_p)),
    "vuf_client_get_features": (c_void_p, POINTER(c_uint64)),
    "vuf_client_set_features": (c_void_p, c_uint64),
    "vuf_client_get_protocol_features": (c_void_p, POINTER(c_uint64)),
    "vuf_client_set_protocol_features": (c_void_p, c_uint64),
    "vuf_client_set_owner": (c_void_p,),
    "vuf_client_set_mem_table": (c_void_p, POINTER(MemRegion), c_size_t),
    "vuf_client_set_vring_num": (c_void_p, c_uint32, c_uint32),
    "vuf_client_set_vring_base": (c_void_p, c_uint32, c_uint32),
    "vuf_client_set_vring_addr": (c_void_p, c_uint32, POINTER(VringAddr)),
    "vuf_client_set_vring_call": (c_void_p, c_uint32, c_int),
    "vuf_client_set_vring_kick": (c_void_p, c_uint32, c_int),
    "vuf_client_set_vring_enable": (c_void_p, c_uint32, c_bool),
    "vuf_client_get_vring_base": (c_void_p, c_uint32, c_uint32, POINTER(c_uint32)),
    "vuf_memfd_create": (c_char_p, c_uint64, c_uint64, c_uint32, POINTER(c_int)),
}


def load(path):
    """The library, with the types of its functions, which then raise Error."""
    try:
        library = ctypes.CDLL(path or SONAME)
    except OSError as error:
        raise SystemExit(
            f"read_block.py: the library is not found: {error}\n"
            "Install it (make && sudo make install && sudo ldconfig), or name the file with "
            "--library."
        ) from None

    def check(code, function, _arguments):
        if code != 0:
            # Of this thread, which is the one that has made the call.
            text = library.vuf_last_error().decode(errors="replace")
            raise Error(function.__name__, code, text)
        return code

    try:
        library.vuf_last_error.restype = c_char_p
        library.vuf_client_free.argtypes = (c_void_p,)
        library.vuf_client_free.restype = None
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = c_int
            function.errcheck = check
    except AttributeError as error:
        raise SystemExit(f"read_block.py: it is another library, or an old one: {error}") from None
    return library


# ---- guest memory, with a ring and one request ----

# Each part in a page of its own. Guest addresses are a number space of our choosing.
PAGE = 4096
GUEST_ADDR = 0x40000000
DESCRIPTORS, AVAILABLE, USED, HEADER, DATA, STATUS = (PAGE * n for n in range(6))
MEMORY_SIZE = 6 * PAGE
RING_SIZE = 4
NEXT, DEVICE_WRITES = 1, 2  # flags of a descriptor
BLK_T_IN = 0  # VIRTIO_BLK_T_IN: the device reads
STATUS_UNTOUCHED = 0xFF


def make_request(memory, sector):
    """Header, data and status of a read in a chain of three, made available.

    All is written before the back-end is told of the ring, so that nothing has to be
    ordered between two programs. A driver that adds requests to a ring that runs needs
    memory barriers, which Python does not have.
    """
    struct.pack_into("<IIQ", memory, HEADER, BLK_T_IN, 0, sector)
    memory[STATUS] = STATUS_UNTOUCHED
    chain = (
        (HEADER, 16, NEXT, 1),
        (DATA, SECTOR_SIZE, NEXT | DEVICE_WRITES, 2),
        (STATUS, 1, DEVICE_WRITES, 0),
    )
    for n, (at, length, flags, following) in enumerate(chain):
        struct.pack_into(
            "<QIHH", memory, DESCRIPTORS + 16 * n, GUEST_ADDR + at, length, flags, following
        )
    # flags, the index of the next free entry, the first entry: the chain begins at 0.
    struct.pack_into("<HHH", memory, AVAILABLE, 0, 1, 0)
    struct.pack_into("<HH", memory, USED, 0, 0)


def wait_until_used(memory, call_fd):
    """A call may come without a cause: the used index is what counts."""
    poller = select.poll()
    poller.register(call_fd, select.POLLIN)
    while struct.unpack_from("<H", memory, USED + 2)[0] != 1:
        if not poller.poll(TIMEOUT_MS):
            raise SystemExit("read_block.py: the back-end did not complete the request in time")
        os.eventfd_read(call_fd)


# ---- all of it ----


def negotiate(library, client):
    """Agrees on what a simple driver needs. Returns whether rings have to be enabled."""
    offered, protocol = c_uint64(), c_uint64()
    library.vuf_client_get_features(client, byref(offered))
    if not offered.value & VERSION_1:
        raise SystemExit("read_block.py: the back-end does not offer VIRTIO_F_VERSION_1")
    if offered.value & PROTOCOL_FEATURES:
        library.vuf_client_get_protocol_features(client, byref(protocol))
        library.vuf_client_set_protocol_features(client, protocol.value & (REPLY_ACK | CONFIG))
    library.vuf_client_set_owner(client)
    library.vuf_client_set_features(client, offered.value & (VERSION_1 | PROTOCOL_FEATURES))
    return bool(offered.value & PROTOCOL_FEATURES)


def read_sector(library, client, sector):
    """Shares memory, starts ring 0 on a request that is there, and stops it again."""
    must_enable = negotiate(library, client)
    memory_fd = c_int()
    library.vuf_memfd_create(b"guest", MEMORY_SIZE, 0, 0, byref(memory_fd))
    call_fd, kick_fd = os.eventfd(0), os.eventfd(0)
    try:
        with mmap.mmap(memory_fd.value, MEMORY_SIZE) as memory:
            make_request(memory, sector)
            # user_addr is the number space of ring addresses: guest addresses will do.
            region = MemRegion(GUEST_ADDR, MEMORY_SIZE, GUEST_ADDR, 0, memory_fd.value)
            library.vuf_client_set_mem_table(client, byref(region), 1)
            addr = VringAddr(
                0, 0, GUEST_ADDR + DESCRIPTORS, GUEST_ADDR + AVAILABLE, GUEST_ADDR + USED, 0
            )
            library.vuf_client_set_vring_num(client, 0, RING_SIZE)
            library.vuf_client_set_vring_base(client, 0, 0)
            library.vuf_client_set_vring_addr(client, 0, byref(addr))
            library.vuf_client_set_vring_call(client, 0, call_fd)
            library.vuf_client_set_vring_kick(client, 0, kick_fd)
            if must_enable:
                library.vuf_client_set_vring_enable(client, 0, True)
            os.eventfd_write(kick_fd, 1)
            wait_until_used(memory, call_fd)
            # The back-end lets go of the ring before the memory goes.
            if must_enable:
                library.vuf_client_set_vring_enable(client, 0, False)
            base = c_uint32()
            library.vuf_client_get_vring_base(client, 0, 0, byref(base))
            if memory[STATUS] != 0:
                raise SystemExit(f"read_block.py: the device's status is {memory[STATUS]}")
            return memory[DATA : DATA + SECTOR_SIZE]
    finally:
        for fd in (memory_fd.value, call_fd, kick_fd):
            os.close(fd)


def main():
    parser = argparse.ArgumentParser(description="Reads one sector from a vhost-user disk.")
    parser.add_argument("--library", metavar="FILE", help=f"in place of {SONAME}")
    parser.add_argument("socket")
    parser.add_argument("sector", type=int)
    arguments = parser.parse_args()
    if arguments.sector < 0:
        parser.error("sectors are numbered from 0")
    library = load(arguments.library)
    client = c_void_p()
    try:
        library.vuf_client_connect(os.fsencode(arguments.socket), None, byref(client))
        data = read_sector(library, client, arguments.sector)
    except Error as error:
        hint = " (is the back-end running?)" if error.code == -errno.ECONNREFUSED else ""
        raise SystemExit(f"read_block.py: {error}{hint}") from None
    finally:
        library.vuf_client_free(client)
    sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()
