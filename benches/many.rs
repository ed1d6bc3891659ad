//! A thousand clients, then a thousand devices, in one process: what each holds, and
//! how long it takes until all are connected and have negotiated.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails by panicking"
)]

mod common;
#[path = "../tests/common/front.rs"]
mod front;

use common::back_ends::{BackEnd, Kind};
use common::bare::Bare;
use common::{Contender, Table, acker, micros, most_fds, race, results, rounds, skipped};
use front::Front;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::ProtocolFeatures;
use vhost_user_frontend::{BackendClient, Device, DeviceOptions, Options, Peer, Timeout};

static HEAP: AtomicUsize = AtomicUsize::new(0);

/// Counts what the allocator really hands out.
struct Counting;

fn usable(block: *mut u8) -> usize {
    // SAFETY: null, or a block of the system's allocator that is in use.
    unsafe { libc::malloc_usable_size(block.cast()) }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let block = unsafe { System.alloc(layout) };
        HEAP.fetch_add(usable(block), Ordering::Relaxed);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HEAP.fetch_sub(usable(block), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What this process holds.
#[derive(Clone, Copy)]
struct Holdings {
    heap: usize,
    fds: usize,
}

impl Holdings {
    fn now() -> Self {
        let heap = HEAP.load(Ordering::Relaxed);
        Self {
            fds: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            heap,
        }
    }
}

/// What each of so many holds, made by `make`.
fn each<T>(count: usize, make: impl FnMut(usize) -> T, table: &mut Table, what: &str) {
    let mut all = Vec::with_capacity(count);
    let before = Holdings::now();
    let begin = Instant::now();
    all.extend((0..count).map(make));
    let took = begin.elapsed();
    let after = Holdings::now();
    let share = |after: usize, before: usize| {
        let number = f64::from(u32::try_from(after - before).unwrap());
        number / f64::from(u32::try_from(count).unwrap())
    };
    table.row(&[
        what.to_owned(),
        count.to_string(),
        format!("{:.0}", share(after.heap, before.heap)),
        format!("{:.2}", share(after.fds, before.fds)),
        micros(took / u32::try_from(count).unwrap()),
    ]);
}

fn protocol() -> ProtocolFeatures {
    ProtocolFeatures::MQ | ProtocolFeatures::REPLY_ACK
}

fn bare(path: &Path) -> Bare {
    let bare = Bare::connect(path);
    bare.negotiate(acker::FEATURES, protocol());
    bare
}

fn client(path: &Path) -> BackendClient {
    let client = BackendClient::connect(path, &Options::default()).unwrap();
    client.get_features().unwrap();
    client.get_protocol_features().unwrap();
    client.set_protocol_features(protocol().bits()).unwrap();
    client.set_owner().unwrap();
    client.set_features(acker::FEATURES).unwrap();
    client
}

fn options(config_size: u32) -> DeviceOptions {
    DeviceOptions {
        num_rings: 1,
        config_size,
        ..DeviceOptions::default()
    }
}

/// Connected; with a configuration space, it has a channel on which to hear of its
/// changes.
fn device(path: &Path, config_size: u32) -> Device {
    let device = Device::open(Peer::Path(path.into()), options(config_size)).unwrap();
    device.wait(Timeout::Default).unwrap();
    assert!(device.info().connected);
    device
}

/// With memory and a ring that runs.
fn running(path: &Path) -> Device {
    let mut front = Front::new(Peer::Path(path.into()), options(60));
    front.bring_up(1 << 32, &[0]);
    assert!(front.device.info().connected);
    front.device
}

/// How many of what takes so many descriptors there can be, up to `wanted`.
fn room_for(wanted: usize, fds: usize) -> usize {
    let most = most_fds();
    let room = most.saturating_sub(100) / fds;
    if room < wanted {
        skipped(
            &format!("{} of {wanted}", wanted - room),
            &format!("this process may have only {most} descriptors"),
        );
    }
    room.min(wanted)
}

fn connecting(path: &Path) {
    fn timed<T>(make: impl FnOnce() -> T) -> Duration {
        let begin = Instant::now();
        let _made = make();
        begin.elapsed()
    }
    let mut contenders = [
        Contender::new("bare system calls", || timed(|| bare(path))),
        Contender::new("client", || timed(|| client(path))),
        Contender::new("device", || timed(|| device(path, 0))),
        Contender::new("device with a channel", || timed(|| device(path, 60))),
    ];
    race(rounds(200), &mut contenders);
    let mut table = Table::new(&["connect and negotiate", "µs", "× bare"]);
    for result in results(&contenders) {
        let ratio = format!("{:.2}", result.ratio);
        table.row(&[result.name, micros(result.time), ratio]);
    }
    table.print("Until one is connected and has negotiated");
}

fn main() {
    acker::be_it_if_asked();
    // A device's, and what its ring is made of.
    let count = room_for(1000, 10);
    let back_end = BackEnd::start(Kind::Acker, 1);
    let path = back_end.socket.as_path();
    connecting(path);

    let mut table = Table::new(&["", "number", "bytes of heap each", "fds each", "µs each"]);
    // What is made once for all is not a part of each.
    drop((bare(path), client(path), device(path, 60), running(path)));
    each(count, |_| bare(path), &mut table, "bare system calls");
    each(count, |_| client(path), &mut table, "client, idle");
    each(count, |_| device(path, 0), &mut table, "device, connected");
    let what = "device, connected, with a channel";
    each(count, |_| device(path, 60), &mut table, what);
    let what = "device with a channel, memory and a running ring";
    each(count, |_| running(path), &mut table, what);
    table.print("Many at once in one process");
}
