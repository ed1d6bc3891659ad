//! Each rule of each mode, next to a message that just passes.

#![allow(
    clippy::as_conversions,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::*;
use crate::catalog::{self, feature as p, id, mask, virtio};
use crate::device::Device;
use crate::message::Region;
use crate::message::tests::{region, request};
use crate::model::{Postcopy, scratch_file};

/// Everything agreed, one region mapped, ring 0 known.
fn agreed(mode: Mode) -> Model {
    let mut device = Device::of(mode);
    device.queues = device.queues.min(4);
    device.protocol = (1 << 24) - 1;
    device.features |= mask(&[virtio::IOMMU_PLATFORM]);
    let mut model = Model::new(mode, device);
    model.state.features = Some(model.device.features);
    model.state.protocol = model.device.protocol;
    model.state.regions = vec![Region {
        guest: 0,
        size: 0x10000,
        user: 0x10000,
        offset: 0,
    }];
    model.state.inflight_rings = 4;
    model
}

/// A payload of u32s.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_ne_bytes).collect()
}

/// A payload of u64s.
fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().copied().flat_map(u64::to_ne_bytes).collect()
}

fn table(count: u32, regions: &[Region]) -> Vec<u8> {
    let regions = regions.iter().flat_map(|region| region.bytes());
    words(&[count, 0]).into_iter().chain(regions).collect()
}

fn addr(index: u32, flags: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    [words(&[index, flags]), longs(&[desc, used, avail, 0])].concat()
}

fn inflight(queues: u16, size: u16) -> Vec<u8> {
    [
        longs(&[0, 0]),
        [queues, size, 0, 0].map(u16::to_ne_bytes).concat(),
    ]
    .concat()
}

fn config(offset: u32, size: u32, flags: u32, bytes: usize) -> Vec<u8> {
    [words(&[offset, size, flags]), vec![0; bytes]].concat()
}

struct Try {
    mode: Mode,
    model: Model,
}

impl Try {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            model: agreed(mode),
        }
    }

    fn check(&self, code: u32, payload: &[u8], fds: usize) -> Verdict {
        let mut message = request(code, 9, payload);
        message.fds = (0..fds).map(|_| scratch_file(0).unwrap()).collect();
        check(self.mode, &self.model, &message)
    }

    fn passes(&self, code: u32, payload: &[u8], fds: usize) {
        let verdict = self.check(code, payload, fds);
        assert_eq!(
            verdict,
            Ok(()),
            "{} {}",
            self.mode,
            crate::message::name(code)
        );
    }

    fn fails(&self, how: How, why: &str, code: u32, payload: &[u8], fds: usize) {
        let name = crate::message::name(code);
        match self.check(code, payload, fds) {
            Err(refusal) if refusal.how == how && refusal.why.contains(why) => {}
            other => panic!("{} {name}: {other:?}, not {how:?} {why}", self.mode),
        }
    }
}

#[test]
fn polite_takes_everything() {
    let polite = Try::new(Mode::Polite);
    for kind in catalog::REQUESTS {
        polite.passes(kind.id, &[], 3);
    }
}

#[test]
fn a_good_bring_up_passes_everywhere() {
    for mode in Mode::ALL {
        let good = Try::new(mode);
        good.passes(id::GET_FEATURES, &[], 0);
        good.passes(id::SET_OWNER, &[], 0);
        good.passes(id::SET_FEATURES, &longs(&[mask(&[30, 32])]), 0);
        good.passes(id::SET_MEM_TABLE, &table(1, &[region()]), 1);
        good.passes(id::SET_VRING_NUM, &words(&[0, 256]), 0);
        good.passes(id::SET_VRING_BASE, &words(&[0, 0]), 0);
        good.passes(
            id::SET_VRING_ADDR,
            &addr(0, 0, 0x10000, 0x12000, 0x11000),
            0,
        );
        good.passes(id::SET_VRING_KICK, &longs(&[0]), 1);
        good.passes(id::SET_VRING_CALL, &longs(&[0x100]), 0);
        good.passes(id::SET_VRING_ENABLE, &words(&[0, 1]), 0);
        good.passes(id::GET_VRING_BASE, &words(&[0, 0]), 0);
        good.passes(id::SET_BACKEND_REQ_FD, &[], 1);
        good.passes(id::GET_CONFIG, &config(0, 8, 0, 8), 0);
        good.passes(id::SET_CONFIG, &config(0, 8, 0, 8), 0);
        good.passes(id::SET_LOG_BASE, &longs(&[0x1000, 0]), 1);
        good.passes(id::GET_INFLIGHT_FD, &inflight(1, 256), 0);
        good.passes(id::SET_INFLIGHT_FD, &inflight(1, 256), 1);
        good.passes(
            id::ADD_MEM_REG,
            &[longs(&[0]), region().bytes()].concat(),
            1,
        );
        let known = [
            longs(&[0]),
            good.model
                .state
                .regions
                .iter()
                .flat_map(|r| r.bytes())
                .collect(),
        ];
        good.passes(id::REM_MEM_REG, &known.concat(), 0);
    }
}

#[test]
fn dpdk() {
    use How::{Close, NackOrClose as No};
    let mut dpdk = Try::new(Mode::Dpdk);
    dpdk.passes(id::SET_OWNER, &[], 0);
    dpdk.fails(No, "0", id::SET_OWNER, &[], 1);
    dpdk.fails(No, "not 0", id::REM_MEM_REG, &[0; 40], 1);
    dpdk.fails(No, "not 1", id::SET_LOG_BASE, &longs(&[0x1000, 0]), 0);
    dpdk.fails(No, "not 1", id::SET_VRING_KICK, &longs(&[0]), 0);
    dpdk.fails(No, "not 0", id::SET_VRING_KICK, &longs(&[0x100]), 1);
    dpdk.fails(No, "not 2", id::SET_MEM_TABLE, &table(2, &[region()]), 1);
    dpdk.fails(No, "too many", id::SET_MEM_TABLE, &table(9, &[]), 9);
    dpdk.fails(No, "no handler", 46, &[], 0);
    dpdk.fails(No, "no handler", id::RESET_DEVICE, &[], 0);
    dpdk.fails(No, "no handler", id::SET_DEVICE_STATE_FD, &[0; 8], 1);
    dpdk.fails(
        Close,
        "vring index",
        id::SET_VRING_NUM,
        &words(&[256, 256]),
        0,
    );
    dpdk.passes(id::SET_VRING_NUM, &words(&[255, 256]), 0);
    dpdk.fails(
        Close,
        "vring index",
        id::SET_INFLIGHT_FD,
        &inflight(0, 256),
        1,
    );
    dpdk.fails(No, "not offered", id::SET_FEATURES, &longs(&[1 << 50]), 0);
    dpdk.fails(
        No,
        "not offered",
        id::SET_PROTOCOL_FEATURES,
        &longs(&[1 << 50]),
        0,
    );
    dpdk.passes(id::SET_FEATURES, &longs(&[mask(&[30])]), 0);
    dpdk.fails(No, "queue size", id::SET_VRING_NUM, &words(&[0, 40_000]), 0);
    dpdk.fails(
        No,
        "overflow",
        id::SET_LOG_BASE,
        &longs(&[0x1000, u64::MAX - 5]),
        1,
    );
    dpdk.fails(No, "16 bytes", id::SET_LOG_BASE, &longs(&[0x1000]), 1);
    dpdk.fails(No, "MTU", id::NET_SET_MTU, &longs(&[67]), 0);
    dpdk.fails(No, "8 bits", id::SET_STATUS, &longs(&[0x100]), 0);
    dpdk.fails(No, "256 bytes", id::GET_CONFIG, &config(0, 257, 0, 257), 0);
    dpdk.fails(No, "24 bytes", id::GET_INFLIGHT_FD, &[0; 20], 0);
    dpdk.fails(No, "IOTLB", id::IOTLB_MSG, &[0; 32], 0);
    dpdk.fails(No, "already registered", id::POSTCOPY_LISTEN, &[], 0);
    // Packed rings may have any size.
    dpdk.passes(id::SET_VRING_NUM, &words(&[0, 100]), 0);
    dpdk.model.state.features = Some(mask(&[30, 32]));
    dpdk.fails(No, "queue size", id::SET_VRING_NUM, &words(&[0, 100]), 0);
    // Running: only the log may change.
    let ring = dpdk.model.state.rings.entry(0).or_default();
    (ring.started, ring.enabled, ring.has_addr) = (true, true, true);
    dpdk.passes(id::SET_FEATURES, &longs(&[mask(&[30, 32, 26])]), 0);
    dpdk.fails(
        No,
        "runs",
        id::SET_FEATURES,
        &longs(&[mask(&[30, 32, 34])]),
        0,
    );
    dpdk.model.state.regions.clear();
    dpdk.fails(No, "no memory", id::SET_VRING_ADDR, &addr(0, 0, 0, 0, 0), 0);
    dpdk.passes(id::POSTCOPY_LISTEN, &[], 0);
}

#[test]
fn libvhost_user() {
    use How::{AckThenBreak as Broken, Close};
    let mut l = Try::new(Mode::LibvhostUser);
    l.passes(id::SET_OWNER, &[], 2);
    l.fails(Close, "ends the process", 0, &[], 0);
    l.fails(
        Broken,
        "legacy",
        id::SET_FEATURES,
        &longs(&[mask(&[30])]),
        0,
    );
    l.passes(id::SET_FEATURES, &longs(&[mask(&[30, 32, 50])]), 0);
    let inband = mask(&[p::INBAND_NOTIFICATIONS, p::BACKEND_REQ]);
    l.fails(
        Broken,
        "in-band",
        id::SET_PROTOCOL_FEATURES,
        &longs(&[inband]),
        0,
    );
    l.passes(
        id::SET_PROTOCOL_FEATURES,
        &longs(&[inband | mask(&[p::REPLY_ACK])]),
        0,
    );
    l.fails(
        Broken,
        "descriptor is missing",
        id::SET_MEM_TABLE,
        &table(2, &[region(); 2]),
        1,
    );
    l.fails(Close, "8 descriptors", id::SET_MEM_TABLE, &table(9, &[]), 8);
    l.fails(Broken, "not 1", id::ADD_MEM_REG, &[0; 40], 0);
    l.fails(Broken, "40 bytes", id::ADD_MEM_REG, &[0; 32], 1);
    l.fails(Broken, "nothing to map", id::ADD_MEM_REG, &[0; 40], 1);
    l.fails(Broken, "not found", id::REM_MEM_REG, &[0; 40], 0);
    l.fails(Broken, "more than one", id::REM_MEM_REG, &[0; 40], 2);
    l.fails(Broken, "log_base", id::SET_LOG_BASE, &longs(&[0x1000]), 1);
    l.fails(Broken, "not 1", id::SET_LOG_FD, &[], 0);
    l.fails(Broken, "not 1", id::SET_BACKEND_REQ_FD, &[], 2);
    l.fails(
        Close,
        "past its rings",
        id::SET_VRING_NUM,
        &words(&[4, 256]),
        0,
    );
    l.fails(
        Close,
        "past its rings",
        id::GET_VRING_BASE,
        &words(&[4, 0]),
        0,
    );
    l.fails(
        Broken,
        "memory region",
        id::SET_VRING_ADDR,
        &addr(0, 0, 0x10000, 0x20000, 0x11000),
        0,
    );
    l.fails(Broken, "queue index", id::SET_VRING_KICK, &longs(&[4]), 1);
    l.fails(Broken, "descriptors", id::SET_VRING_CALL, &longs(&[0]), 0);
    l.passes(id::SET_VRING_CALL, &longs(&[0x100]), 1);
    l.fails(
        Broken,
        "queue index",
        id::SET_VRING_ENABLE,
        &words(&[4, 1]),
        0,
    );
    l.fails(Broken, "already registered", id::POSTCOPY_LISTEN, &[], 0);
    l.fails(Broken, "inflight", id::GET_INFLIGHT_FD, &[0; 20], 0);
    l.fails(
        Close,
        "past its rings",
        id::SET_INFLIGHT_FD,
        &inflight(5, 256),
        1,
    );
    for code in [
        id::SEND_RARP,
        id::RESET_DEVICE,
        id::SET_STATUS,
        id::SET_DEVICE_STATE_FD,
        99,
    ] {
        l.fails(Broken, "unhandled", code, &[0; 8], 0);
    }
    l.model.state.inflight_rings = 1;
    l.passes(id::SET_VRING_KICK, &longs(&[0]), 1);
    l.passes(id::SET_VRING_CALL, &longs(&[1]), 1);
    l.fails(
        Broken,
        "no inflight buffer",
        id::SET_VRING_KICK,
        &longs(&[1]),
        1,
    );
}

#[test]
fn rust_vmm_headers_and_gates() {
    use How::Close;
    let r = Try::new(Mode::RustVmmNew);
    let header = |flags, why: &str| {
        let refusal = check(r.mode, &r.model, &request(1, flags, &[])).unwrap_err();
        assert!(
            refusal.how == Close && refusal.why.contains(why),
            "{refusal:?}"
        );
    };
    header(0, "version");
    header(2, "version");
    header(0x11, "reserved");
    header(5, "reply");
    let unsupported = [
        id::SET_LOG_FD,
        id::SEND_RARP,
        id::NET_SET_MTU,
        id::IOTLB_MSG,
        id::SET_VRING_ENDIAN,
        id::CREATE_CRYPTO_SESSION,
        id::CLOSE_CRYPTO_SESSION,
        id::VRING_KICK,
        id::SET_STATUS,
        id::GET_STATUS,
        id::GET_VRING_BASE_SKIP_DRAIN,
        46,
    ];
    for code in unsupported {
        r.fails(Close, "no handler", code, &[], 0);
    }
    let mut closed = Try::new(Mode::RustVmmNew);
    (closed.model.state.protocol, closed.model.state.features) = (0, Some(0));
    let gated = [
        id::SET_LOG_BASE,
        id::GET_QUEUE_NUM,
        id::SET_VRING_ENABLE,
        id::SET_BACKEND_REQ_FD,
        id::GET_CONFIG,
        id::SET_CONFIG,
        id::POSTCOPY_ADVISE,
        id::GET_INFLIGHT_FD,
        id::SET_INFLIGHT_FD,
        id::RESET_DEVICE,
        id::GET_MAX_MEM_SLOTS,
        id::ADD_MEM_REG,
        id::REM_MEM_REG,
        id::GET_SHARED_OBJECT,
        id::GET_SHMEM_CONFIG,
    ];
    for code in gated {
        closed.fails(Close, "not agreed", code, &[], 0);
    }
    closed.passes(id::CHECK_DEVICE_STATE, &[], 0);
    closed.passes(id::SET_DEVICE_STATE_FD, &words(&[0, 0]), 1);
}

#[test]
fn rust_vmm_messages() {
    use How::{Close, NackThenClose as No};
    let mut r = Try::new(Mode::RustVmmNew);
    for code in [
        id::GET_FEATURES,
        id::SET_OWNER,
        id::SET_VRING_NUM,
        id::GET_CONFIG,
    ] {
        r.fails(Close, "takes no descriptors", code, &[], 1);
    }
    for code in [
        id::GET_FEATURES,
        id::SET_OWNER,
        id::SET_FEATURES,
        id::GET_VRING_BASE,
    ] {
        r.fails(Close, "bytes, not", code, &[0; 4], 0);
    }
    // The memory table is nacked first.
    r.fails(No, "no regions", id::SET_MEM_TABLE, &table(0, &[]), 0);
    r.fails(No, "no regions", id::SET_MEM_TABLE, &table(33, &[]), 0);
    r.fails(No, "size", id::SET_MEM_TABLE, &table(2, &[region()]), 2);
    r.fails(No, "not 1", id::SET_MEM_TABLE, &table(1, &[region()]), 2);
    r.fails(
        No,
        "invalid region",
        id::SET_MEM_TABLE,
        &table(
            1,
            &[Region {
                size: 0,
                ..region()
            }],
        ),
        1,
    );
    let beyond = Region {
        offset: u64::MAX,
        ..region()
    };
    r.fails(
        No,
        "invalid region",
        id::SET_MEM_TABLE,
        &table(1, &[beyond]),
        1,
    );
    r.fails(Close, "not 1", id::ADD_MEM_REG, &[0; 40], 0);
    r.fails(No, "cannot be mapped", id::ADD_MEM_REG, &[0; 40], 1);
    r.passes(id::SET_MEM_TABLE, &table(32, &[region(); 32]), 32);
    // Rings.
    r.fails(
        Close,
        "aligned",
        id::SET_VRING_ADDR,
        &addr(0, 0, 0x10008, 0x12000, 0x11000),
        0,
    );
    r.fails(
        Close,
        "aligned",
        id::SET_VRING_ADDR,
        &addr(0, 0, 0x10000, 0x12002, 0x11000),
        0,
    );
    r.fails(
        Close,
        "aligned",
        id::SET_VRING_ADDR,
        &addr(0, 0, 0x10000, 0x12000, 0x11001),
        0,
    );
    r.fails(
        Close,
        "unknown flags",
        id::SET_VRING_ADDR,
        &addr(0, 2, 0x10000, 0x12000, 0x11000),
        0,
    );
    r.fails(
        No,
        "memory region",
        id::SET_VRING_ADDR,
        &addr(0, 1, 0x90000, 0x12000, 0x11000),
        0,
    );
    r.fails(No, "no such ring", id::SET_VRING_NUM, &words(&[4, 256]), 0);
    r.fails(
        Close,
        "no such ring",
        id::GET_VRING_BASE,
        &words(&[4, 0]),
        0,
    );
    r.fails(No, "ring size", id::SET_VRING_NUM, &words(&[0, 0]), 0);
    r.fails(Close, "neither", id::SET_VRING_ENABLE, &words(&[0, 2]), 0);
    r.fails(Close, "not 1", id::SET_VRING_KICK, &longs(&[0]), 0);
    r.fails(Close, "not 0", id::SET_VRING_KICK, &longs(&[0x100]), 1);
    r.fails(No, "no such ring", id::SET_VRING_KICK, &longs(&[4]), 1);
    // The rest.
    r.fails(
        Close,
        "configuration",
        id::GET_CONFIG,
        &config(0, 8, 0, 0),
        0,
    );
    r.fails(
        Close,
        "configuration",
        id::GET_CONFIG,
        &config(0xffc, 8, 0, 8),
        0,
    );
    r.fails(
        Close,
        "configuration",
        id::GET_CONFIG,
        &config(0, 8, 4, 8),
        0,
    );
    r.fails(No, "configuration", id::SET_CONFIG, &config(0, 8, 0, 7), 0);
    r.fails(No, "not 1", id::SET_BACKEND_REQ_FD, &[], 0);
    r.fails(Close, "not 1", id::SET_LOG_BASE, &longs(&[0x1000, 0]), 0);
    r.fails(Close, "log", id::SET_LOG_BASE, &longs(&[0, 0]), 1);
    r.fails(
        Close,
        "no queues",
        id::GET_INFLIGHT_FD,
        &inflight(0, 256),
        0,
    );
    r.fails(Close, "not 1", id::SET_DEVICE_STATE_FD, &words(&[0, 0]), 0);
    r.fails(
        Close,
        "direction",
        id::SET_DEVICE_STATE_FD,
        &words(&[2, 0]),
        1,
    );
    r.fails(No, "not offered", id::SET_FEATURES, &longs(&[1 << 50]), 0);
    r.fails(
        No,
        "no such region",
        id::REM_MEM_REG,
        &[longs(&[0]), region().bytes()].concat(),
        0,
    );
    r.model.state.owned = true;
    r.fails(No, "already claimed", id::SET_OWNER, &[], 0);
}

#[test]
fn rust_vmm_postcopy() {
    use How::Close;
    let mut r = Try::new(Mode::RustVmmNew);
    r.fails(Close, "not advised", id::POSTCOPY_LISTEN, &[], 0);
    r.fails(Close, "not listening", id::POSTCOPY_END, &[], 0);
    r.model.state.postcopy = Postcopy::Advised;
    r.fails(Close, "already advised", id::POSTCOPY_ADVISE, &[], 0);
    r.passes(id::POSTCOPY_LISTEN, &[], 0);
    r.model.state.postcopy = Postcopy::Listening;
    r.passes(id::SET_MEM_TABLE, &longs(&[0]), 0);
    r.fails(How::NackThenClose, "", id::SET_MEM_TABLE, &longs(&[1]), 0);
    r.passes(id::POSTCOPY_END, &[], 0);
}

#[test]
fn rust_vmm_old_and_new_differ() {
    use How::Close;
    let (old, new) = (Try::new(Mode::RustVmmOld), Try::new(Mode::RustVmmNew));
    let known: Vec<u8> = old
        .model
        .state
        .regions
        .iter()
        .flat_map(|region| region.bytes())
        .collect();
    let known = [longs(&[0]), known].concat();
    new.passes(id::REM_MEM_REG, &known, 1);
    old.fails(Close, "takes no descriptors", id::REM_MEM_REG, &known, 1);
    new.passes(id::GET_SHMEM_CONFIG, &[], 0);
    old.fails(Close, "no handler", id::GET_SHMEM_CONFIG, &[], 0);
}

#[test]
fn payloads_have_an_end() {
    let most = Mode::ALL.map(|mode| (mode.name(), max_payload(mode)));
    let right = [
        ("polite", 0x10_0000),
        ("dpdk", 1072),
        ("libvhost-user", 272),
        ("rust-vmm-old", 4096),
        ("rust-vmm-new", 4096),
    ];
    assert_eq!(most, right);
}
