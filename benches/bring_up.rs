//! Setting rings up, from nothing to enabled: seven requests for each, every one
//! acknowledged, by the same messages.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails by panicking"
)]

#[path = "../tests/common/blk_ring.rs"]
mod blk_ring;
mod common;

use blk_ring::{GuestMemory, Layout};
use common::back_ends::{BackEnd, Kind};
use common::bare::{Bare, Message};
use common::{Contender, Table, acker, micros, most_fds, race, results, rounds, skipped};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_frontend::message::{ProtocolFeatures, Request, VringAddr, VringState};
use vhost_user_frontend::{BackendClient, Op, Options, SharedRegion, Timeout};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

const FEATURES: u64 = 1 << 32 | 1 << 30;
const RING_SIZE: u16 = 64;
/// Longer than most answers take.
const SPIN: Duration = Duration::from_micros(100);

fn protocol() -> ProtocolFeatures {
    ProtocolFeatures::MQ | ProtocolFeatures::REPLY_ACK
}

/// A ring's three descriptors.
struct Wires {
    kick: EventFd,
    call: EventFd,
    err: EventFd,
}

/// What rings are made of. No request is ever put into one, so that all can lie in
/// the same place.
struct Guest {
    memory: Rc<GuestMemory>,
    addr: VringAddr,
    rings: Vec<Wires>,
}

impl Guest {
    fn new(rings: u16) -> Self {
        let memory = GuestMemory::new(1 << 20);
        let ring = blk_ring::BlkRing::new(&memory, Layout::Split, 0, RING_SIZE);
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let wires = |_| Wires {
            kick: eventfd(),
            call: eventfd(),
            err: eventfd(),
        };
        Self {
            addr: ring.addr(),
            memory,
            rings: (0..rings).map(wires).collect(),
        }
    }

    fn region(&self) -> SharedRegion<'_> {
        self.memory.region()
    }

    fn addr(&self, index: u32) -> VringAddr {
        VringAddr { index, ..self.addr }
    }

    fn each(&self) -> impl Iterator<Item = (u32, &Wires)> {
        (0..).zip(&self.rings)
    }

    /// All that the timed part sends.
    fn messages(&self) -> Vec<Message> {
        let mut all = Vec::new();
        for (index, wires) in self.each() {
            let mut state = |request, number: u32| {
                let payload = [index, number].map(u32::to_ne_bytes).concat();
                all.push(Message::new(request, &payload, None));
            };
            state(Request::SetVringNum, RING_SIZE.into());
            state(Request::SetVringBase, 0);
            let addr = self.addr(index);
            all.push(Message::new(Request::SetVringAddr, addr.as_bytes(), None));
            let mut wire = |request, fd: RawFd| {
                let payload = u64::from(index).to_ne_bytes();
                all.push(Message::new(request, &payload, Some(fd)));
            };
            wire(Request::SetVringCall, wires.call.as_raw_fd());
            wire(Request::SetVringErr, wires.err.as_raw_fd());
            wire(Request::SetVringKick, wires.kick.as_raw_fd());
            let payload = [index, 1].map(u32::to_ne_bytes).concat();
            all.push(Message::new(Request::SetVringEnable, &payload, None));
        }
        all
    }
}

fn fd(of: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is borrowed, and open as long as it is.
    unsafe { BorrowedFd::borrow_raw(of.as_raw_fd()) }
}

// ---- each on a new connection, of which the rings alone are timed ----

fn timed(rings: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    rings();
    begin.elapsed()
}

fn bare(path: &Path, guest: &Guest, spin: bool) -> Duration {
    let bare = Bare::connect(path);
    bare.negotiate(FEATURES, protocol());
    let shared = guest.region();
    let count = [1_u32, 0].map(u32::to_ne_bytes).concat();
    let region = shared.region;
    let numbers = [region.guest_addr, region.size, region.user_addr, 0];
    let payload = [&count[..], numbers.as_bytes()].concat();
    let memory = Message::new(Request::SetMemTable, &payload, Some(shared.fd.as_raw_fd()));
    assert_eq!(bare.call(&memory), 0);
    let messages = guest.messages();
    timed(|| bare.pipeline(&messages, spin))
}

fn connected(path: &Path, guest: &Guest, spin: Duration) -> BackendClient {
    let options = Options {
        spin,
        ..Options::default()
    };
    let client = BackendClient::connect(path, &options).unwrap();
    assert_eq!(client.get_features().unwrap() & FEATURES, FEATURES);
    client.get_protocol_features().unwrap();
    client.set_protocol_features(protocol().bits()).unwrap();
    client.set_owner().unwrap();
    client.set_features(FEATURES).unwrap();
    client.set_mem_table(&[guest.region()]).unwrap();
    client
}

fn one_by_one(path: &Path, guest: &Guest) -> Duration {
    let client = connected(path, guest, Duration::ZERO);
    timed(|| {
        for (index, wires) in guest.each() {
            client.set_vring_num(index, RING_SIZE.into()).unwrap();
            client.set_vring_base(index, 0).unwrap();
            client.set_vring_addr(&guest.addr(index)).unwrap();
            client.set_vring_call(index, Some(fd(&wires.call))).unwrap();
            client.set_vring_err(index, Some(fd(&wires.err))).unwrap();
            client.set_vring_kick(index, Some(fd(&wires.kick))).unwrap();
            client.set_vring_enable(index, true).unwrap();
        }
    })
}

fn submitted(path: &Path, guest: &Guest, spin: Duration) -> Duration {
    let client = connected(path, guest, spin);
    let state = |index, num| VringState { index, num };
    let mut list = Vec::new();
    for (index, Wires { kick, call, err }) in guest.each() {
        list.extend([
            Op::SetVringNum(state(index, RING_SIZE.into())),
            Op::SetVringBase(state(index, 0)),
            Op::SetVringAddr(guest.addr(index)),
            Op::SetVringCall(index, Some(fd(call))),
            Op::SetVringErr(index, Some(fd(err))),
            Op::SetVringKick(index, Some(fd(kick))),
            Op::SetVringEnable(index, true),
        ]);
    }
    timed(|| {
        let done = client.submit(&list, Timeout::Default);
        assert_eq!(done.applied, list.len(), "{:?}", done.failure);
    })
}

fn rust_vmm(path: &Path, guest: &Guest) -> Duration {
    let rings = u64::try_from(guest.rings.len()).unwrap();
    let mut frontend = Frontend::connect(path, rings).unwrap();
    assert_eq!(frontend.get_features().unwrap() & FEATURES, FEATURES);
    frontend.get_protocol_features().unwrap();
    let agreed = VhostUserProtocolFeatures::from_bits_truncate(protocol().bits());
    frontend.set_protocol_features(agreed).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_owner().unwrap();
    frontend.set_features(FEATURES).unwrap();
    let shared = guest.region();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: shared.region.guest_addr,
        memory_size: shared.region.size,
        userspace_addr: shared.region.user_addr,
        mmap_offset: 0,
        mmap_handle: shared.fd.as_fd().as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    let config = VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr: guest.addr.descriptor,
        used_ring_addr: guest.addr.used,
        avail_ring_addr: guest.addr.available,
        log_addr: None,
    };
    timed(|| {
        for (index, wires) in guest.rings.iter().enumerate() {
            frontend.set_vring_num(index, RING_SIZE).unwrap();
            frontend.set_vring_base(index, 0).unwrap();
            frontend.set_vring_addr(index, &config).unwrap();
            frontend.set_vring_call(index, &wires.call).unwrap();
            frontend.set_vring_err(index, &wires.err).unwrap();
            frontend.set_vring_kick(index, &wires.kick).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
    })
}

fn compare(kind: Kind, rings: u16, table: &mut Table) {
    let back_end = BackEnd::start(kind, rings);
    let path = back_end.socket.as_path();
    let guest = Guest::new(rings);
    let mut contenders = [
        Contender::new("bare, pipelined by sendmmsg", || bare(path, &guest, false)),
        Contender::new("bare, pipelined, spinning", || bare(path, &guest, true)),
        Contender::new("this library, a list", || {
            submitted(path, &guest, Duration::ZERO)
        }),
        Contender::new("this library, a list, spinning", || {
            submitted(path, &guest, SPIN)
        }),
        Contender::new("this library, one by one", || one_by_one(path, &guest)),
        Contender::new("rust-vmm `vhost` 0.18", || rust_vmm(path, &guest)),
    ];
    race(rounds(if rings > 64 { 15 } else { 30 }), &mut contenders);
    let results = results(&contenders);
    let theirs = results.last().unwrap().time.as_secs_f64();
    for result in results {
        let faster = theirs / result.time.as_secs_f64();
        table.row(&[
            kind.name().to_owned(),
            rings.to_string(),
            result.name,
            micros(result.time),
            format!("{:.2}", result.ratio),
            format!("{faster:.1}"),
        ]);
    }
}

fn main() {
    acker::be_it_if_asked();
    most_fds();
    let mut table = Table::new(&[
        "back-end",
        "rings",
        "front-end",
        "µs",
        "× bare",
        "times faster than rust-vmm",
    ]);
    for kind in [Kind::Acker, Kind::Embedded, Kind::Qemu] {
        if let Some(why) = kind.missing() {
            skipped(kind.name(), why);
            continue;
        }
        for rings in [1, 4, 16, 64, 255] {
            if rings <= kind.most_queues() {
                compare(kind, rings, &mut table);
            }
        }
    }
    table.print("Rings set up, seven requests each, all acknowledged");
}
