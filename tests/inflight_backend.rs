//! The peer for tests of recovery (`tests/peers/inflight_backend.rs`) keeps the
//! in-flight region well enough that each request is completed exactly once,
//! whenever it dies: what other tests rest on.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/blk_peer.rs"]
mod blk_peer;
#[path = "common/blk_ring.rs"]
mod blk_ring;

use blk_peer::{PATIENCE, Peer, Place, SECTORS, deadline};
use blk_ring::{BlkRequest, BlkRing, GuestMemory, Layout, Op, pattern};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{Inflight, ProtocolFeatures};
use vhost_user_frontend::{BackendClient, Kind, Options, Result, Timeout};

const LAYOUTS: [Layout; 2] = [Layout::Split, Layout::Packed];
/// Requests of one round; together they turn a packed ring once, nearly.
const ROUND: u64 = 16;
const RING_SIZE: u16 = 64;
/// Those from here on are only read.
const READ_ONLY: u64 = 48;

const PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 9;

// ---- the guest ----

/// A guest with its rings, which outlives its back-ends.
struct Guest {
    place: Place,
    memory: Rc<GuestMemory>,
    rings: Vec<BlkRing>,
    inflight: Option<(Inflight, OwnedFd)>,
    /// Tag of each sector.
    disk: Vec<u64>,
    tags: u64,
}

impl Guest {
    fn new(layout: Layout, rings: u32) -> Self {
        let memory = GuestMemory::new(1 << 20);
        let ring = |index| BlkRing::new(&memory, layout, index, RING_SIZE);
        Self {
            place: Place::new(),
            rings: (0..rings).map(ring).collect(),
            memory,
            inflight: None,
            disk: (0..SECTORS).collect(),
            tags: 0x1_0000,
        }
    }

    fn layout(&self) -> Layout {
        self.rings[0].layout
    }

    /// Negotiates on a new connection and shares memory.
    fn connect(&self, protocol: ProtocolFeatures) -> BackendClient {
        let options = Options {
            quick: Timeout::After(PATIENCE),
            slow: Timeout::After(PATIENCE),
            ..Options::default()
        };
        let client = BackendClient::connect(&self.place.file("sock"), &options).unwrap();
        let features = match self.layout() {
            Layout::Split => FEATURES,
            Layout::Packed => FEATURES | PACKED,
        };
        assert_eq!(client.get_features().unwrap() & features, features);
        let offered = client.get_protocol_features().unwrap();
        assert_eq!(offered & protocol.bits(), protocol.bits());
        client.set_protocol_features(protocol.bits()).unwrap();
        client.set_owner().unwrap();
        client.set_features(features).unwrap();
        client.set_mem_table(&[self.memory.region()]).unwrap();
        client
    }

    /// The same with the in-flight region, a new one if there is none.
    fn connect_tracked(&mut self) -> BackendClient {
        let protocol = ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::INFLIGHT_SHMFD;
        let client = self.connect(protocol);
        if self.inflight.is_none() {
            let rings = u16::try_from(self.rings.len()).unwrap();
            let (inflight, fd) = client.get_inflight_fd(rings, RING_SIZE).unwrap();
            self.inflight = Some((inflight, fd.unwrap()));
        }
        let (inflight, fd) = self.inflight.as_ref().unwrap();
        client.set_inflight_fd(inflight, fd.as_fd()).unwrap();
        client
    }

    /// Connects, and starts all rings where the used index is.
    fn start(&mut self) -> BackendClient {
        let client = self.connect_tracked();
        for ring in &self.rings {
            ring.start(&client, ring.used_base()).unwrap();
            ring.kick();
        }
        client
    }

    fn tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// Makes a round of requests available: writes, of which each is to a sector
    /// of its own, reads, and a flush. Returns the line of each in the journal.
    fn submit_round(&mut self, ring: usize) -> Vec<String> {
        let mut unwritten = u64::try_from(ring).unwrap() * 12..READ_ONLY;
        (0..ROUND)
            .map(|i| match i {
                5 | 10 | 15 => {
                    let sector = READ_ONLY + i;
                    self.rings[ring].submit(Op::Read, sector);
                    format!("in {sector} 512 {sector:#x}")
                }
                7 => {
                    self.rings[ring].submit(Op::Flush, 0);
                    "flush 0 0 0x0".to_owned()
                }
                _ => {
                    let (sector, tag) = (unwritten.next().unwrap(), self.tag());
                    self.disk[usize::try_from(sector).unwrap()] = tag;
                    self.rings[ring].submit(Op::Write { tag }, sector);
                    format!("out {sector} 512 {tag:#x}")
                }
            })
            .collect()
    }

    /// A field of the in-flight region.
    fn recorded<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        let at = u64::try_from(at).unwrap();
        self.region_file().read_exact_at(&mut field, at).unwrap();
        field
    }

    fn recorded_u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.recorded(at))
    }

    fn record(&self, at: usize, field: &[u8]) {
        let at = u64::try_from(at).unwrap();
        self.region_file().write_all_at(field, at).unwrap();
    }

    fn region_file(&self) -> File {
        let (_, fd) = self.inflight.as_ref().unwrap();
        File::from(fd.try_clone().unwrap())
    }

    /// How many requests of a ring the region says are in flight.
    fn recorded_in_flight(&self, ring: usize) -> usize {
        let (header, entry) = match self.layout() {
            Layout::Split => (16, 16),
            Layout::Packed => (32, 32),
        };
        let stride = (header + entry * usize::from(RING_SIZE)).next_multiple_of(64);
        let entries = (0..usize::from(RING_SIZE)).map(|i| ring * stride + header + i * entry);
        entries
            .map(|at| usize::from(self.recorded::<1>(at)[0]))
            .sum()
    }

    /// Writes that need every descriptor of the ring.
    fn submit_full(&mut self) {
        for i in 0..ROUND {
            let (sector, tag) = (2 * i + 1, self.tag());
            self.disk[usize::try_from(sector).unwrap()] = tag;
            self.rings[0].submit(Op::Write { tag }, sector);
        }
        assert!(!self.rings[0].has_room());
        self.rings[0].kick();
    }

    /// Waits until the region has so many requests of a ring in flight: the driver
    /// sees what is done a little earlier than that.
    fn wait_for_recorded(&self, ring: usize, count: usize) {
        let deadline = deadline();
        while self.recorded_in_flight(ring) != count {
            assert!(
                Instant::now() < deadline,
                "ring {ring}: never {count} in flight"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Nothing is in flight, and every write is on the disk.
    fn check_rest(&self) {
        for (index, ring) in self.rings.iter().enumerate() {
            assert_eq!(ring.in_flight(), 0);
            if self.inflight.is_some() {
                self.wait_for_recorded(index, 0);
            }
        }
        for (sector, tag) in (0..).zip(&self.disk) {
            assert_eq!(self.place.sector(sector), pattern(*tag), "sector {sector}");
        }
    }
}

/// Each is done well, and reads have what was on the disk.
fn check(requests: &[BlkRequest]) {
    for request in requests {
        assert_eq!(request.status, 0, "{request:?}");
        if request.op == Op::Read {
            assert_eq!(request.data, pattern(request.sector));
        }
    }
}

/// Places in the round, of the requests with these numbers.
fn places(requests: &[BlkRequest], first: u64) -> Vec<usize> {
    let places = requests.iter().map(|request| request.number - first);
    places.map(|i| usize::try_from(i).unwrap()).collect()
}

// ---- crashes ----

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    Taken,
    Done,
    Used,
    Cleared,
}

const POINTS: [(Point, &str); 4] = [
    (Point::Taken, "taken"),
    (Point::Done, "done"),
    (Point::Used, "used"),
    (Point::Cleared, "cleared"),
];

/// What the peer has done with a round when it dies at its `k`-th request.
#[derive(Default)]
struct Life {
    taken: Vec<usize>,
    executed: Vec<usize>,
    completed: Vec<usize>,
    calls: u64,
}

fn life(k: usize, point: Point, batch: usize) -> Life {
    let mut life = Life::default();
    let round = usize::try_from(ROUND).unwrap();
    for start in (0..round).step_by(batch) {
        for i in start..start + batch {
            life.taken.push(i);
            if i + 1 == k && point == Point::Taken {
                return life;
            }
        }
        for i in (start..start + batch).rev() {
            let last = i + 1 == k;
            life.executed.push(i);
            if last && point == Point::Done {
                return life;
            }
            life.completed.push(i);
            if last && point == Point::Used {
                return life;
            }
            life.calls += 1;
            if last {
                return life;
            }
        }
    }
    panic!("it does not die");
}

fn dies_everywhere(layout: Layout, out_of_order: bool) {
    let mut guest = Guest::new(layout, 1);
    let batch = if out_of_order { 4 } else { 1 };
    let mut first = 0;
    for (point, name) in POINTS {
        for k in [1, 6, 7, 12, 16] {
            let what = format!("{layout:?}, {name}, request {k}");
            // The last one may have called once more after all was done.
            let _ = guest.rings[0].call.read();
            let count = k.to_string();
            let mut args = vec!["--crash-after", &count, "--crash-at", name];
            if out_of_order {
                args.push("--out-of-order");
            }
            let mut peer = Peer::start(&guest.place, &args);
            // Submitted before the start, so that no batch is cut short.
            let lines = guest.submit_round(0);
            let client = guest.start();
            peer.wait_for_death();
            drop(client);

            let life = life(k, point, batch);
            let lines = |places: &[usize]| -> Vec<&str> {
                places.iter().map(|i| lines[*i].as_str()).collect()
            };
            assert_eq!(guest.place.take_journal(), lines(&life.executed), "{what}");
            assert_eq!(
                guest.rings[0].call.read().unwrap_or(0),
                life.calls,
                "{what}"
            );
            let done = guest.rings[0].poll_all();
            assert_eq!(places(&done, first), life.completed, "{what}");
            check(&done);

            // The next one first takes up what is in flight, in the old order.
            let _peer = Peer::start(&guest.place, &[]);
            let _client = guest.start();
            let rest = guest.rings[0].wait_all(deadline());
            check(&rest);
            let mut again = life.taken.clone();
            again.retain(|i| !life.completed.contains(i));
            again.extend(life.taken.len()..usize::try_from(ROUND).unwrap());
            assert_eq!(places(&rest, first), again, "{what}");
            assert_eq!(guest.place.take_journal(), lines(&again), "{what}");
            assert!(guest.rings[0].poll().is_none());
            guest.check_rest();
            first += ROUND;
        }
    }
}

#[test]
fn split_in_order() {
    dies_everywhere(Layout::Split, false);
}

#[test]
fn split_out_of_order() {
    dies_everywhere(Layout::Split, true);
}

#[test]
fn packed_in_order() {
    dies_everywhere(Layout::Packed, false);
}

#[test]
fn packed_out_of_order() {
    dies_everywhere(Layout::Packed, true);
}

/// Also while it takes up again what another has left.
#[test]
fn it_dies_again_and_again() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 1);
        for (i, (_, name)) in POINTS.into_iter().enumerate() {
            let order = [&[][..], &["--out-of-order"]][i % 2];
            let lines = guest.submit_round(0);
            let mut numbers = BTreeSet::new();
            let mut lives = 0;
            while guest.rings[0].in_flight() > 0 {
                lives += 1;
                assert!(lives <= ROUND, "{layout:?}, {name}: no progress");
                let args = [&["--crash-after", "5", "--crash-at", name], order].concat();
                let mut peer = Peer::start(&guest.place, &args);
                let client = guest.start();
                if guest.rings[0].in_flight() >= 5 {
                    peer.wait_for_death();
                    drop(client);
                } else {
                    check(&collect(guest.rings[0].wait_all(deadline()), &mut numbers));
                }
                check(&collect(guest.rings[0].poll_all(), &mut numbers));
            }
            assert!(lives > 1, "{layout:?}, {name}: it did not die");
            assert_eq!(numbers.len(), lines.len());
            let executed: BTreeSet<_> = guest.place.take_journal().into_iter().collect();
            assert_eq!(executed, lines.into_iter().collect());
            guest.check_rest();
        }
    }
}

fn collect(requests: Vec<BlkRequest>, numbers: &mut BTreeSet<u64>) -> Vec<BlkRequest> {
    for request in &requests {
        assert!(
            numbers.insert(request.number),
            "completed twice: {request:?}"
        );
    }
    requests
}

/// Anywhere, not only where it knows of it, and with several rings.
#[test]
fn it_is_killed_at_any_moment() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 4);
        for round in 0..30_u64 {
            let order = [&[][..], &["--out-of-order"]][usize::from(round % 2 == 0)];
            let args = [&["--queues", "4"], order].concat();
            let mut peer = Peer::start(&guest.place, &args);
            let client = guest.start();
            for ring in 0..guest.rings.len() {
                guest.submit_round(ring);
                guest.rings[ring].kick();
            }
            thread::sleep(Duration::from_micros(round * 7919 % 1500));
            peer.kill();
            drop(client);
            for ring in &mut guest.rings {
                check(&ring.poll_all());
            }

            let _peer = Peer::start(&guest.place, &args);
            let _client = guest.start();
            for ring in &mut guest.rings {
                check(&ring.wait_all(deadline()));
                assert!(ring.poll().is_none());
            }
            guest.check_rest();
        }
    }
}

/// Moments that no crash point is at: the test goes on in the region as the peer
/// would have, until just before the driver could see it.
#[test]
fn half_an_update_of_a_packed_ring_is_undone() {
    const FREE_HEAD: usize = 12;
    const USED_IDX: usize = 16;
    let entry = |index: u16| 32 + 32 * usize::from(index);
    let mut guest = Guest::new(Layout::Packed, 1);
    for point in ["done", "cleared"] {
        let args = ["--crash-after", "3", "--crash-at", point];
        let mut peer = Peer::start(&guest.place, &args);
        guest.submit_round(0);
        let client = guest.start();
        peer.wait_for_death();
        drop(client);
        check(&guest.rings[0].poll_all());

        let free = guest.recorded_u16(FREE_HEAD);
        if point == "done" {
            // The third request is being given back: it is free, and used.
            let mut heads = 0..RING_SIZE;
            let head = heads.find(|i| guest.recorded(entry(*i)) == [1]).unwrap();
            let last = guest.recorded_u16(entry(head) + 4);
            let num = guest.recorded_u16(entry(head) + 6);
            guest.record(entry(last) + 2, &free.to_ne_bytes());
            guest.record(FREE_HEAD, &head.to_ne_bytes());
            let used_idx = guest.recorded_u16(USED_IDX) + num;
            guest.record(USED_IDX, &used_idx.to_ne_bytes());
        } else {
            // The fourth is being taken, and only its first descriptor is there.
            let next = guest.recorded::<2>(entry(free) + 2);
            guest.record(entry(free), &[1]);
            guest.record(entry(free) + 6, &[1, 0]);
            guest.record(FREE_HEAD, &next);
        }

        let mut peer = Peer::start(&guest.place, &[]);
        let client = guest.start();
        let rest = guest.rings[0].wait_all(deadline());
        assert_eq!(rest.len(), if point == "done" { 14 } else { 13 });
        check(&rest);
        peer.kill();
        drop(client);

        // Each entry is free, and none is twice.
        let mut peer = Peer::start(&guest.place, &["--hold"]);
        let client = guest.start();
        guest.submit_full();
        guest.wait_for_recorded(0, 16);
        peer.kill();
        drop(client);
        let _peer = Peer::start(&guest.place, &[]);
        let _client = guest.start();
        check(&guest.rings[0].wait_all(deadline()));
        guest.check_rest();
    }
}

// ---- the rest of it ----

#[test]
fn the_region_is_what_the_specification_says() {
    for (layout, stride) in [(Layout::Split, 1088), (Layout::Packed, 2112)] {
        let mut guest = Guest::new(layout, 2);
        let _peer = Peer::start(&guest.place, &["--queues", "2"]);
        let _client = guest.start();
        let (inflight, _) = guest.inflight.as_ref().unwrap();
        assert_eq!(inflight.mmap_size, 2 * stride);
        assert_eq!((inflight.num_queues, inflight.queue_size), (2, RING_SIZE));
        let stride = usize::try_from(stride).unwrap();
        for start in [0, stride] {
            assert_eq!(guest.recorded_u16(start + 8), 1, "version");
            assert_eq!(guest.recorded_u16(start + 10), RING_SIZE);
        }
    }
}

/// A full ring, so that no entry of the region is left.
#[test]
fn what_it_holds_is_recorded_and_taken_up_again() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 1);
        let mut peer = Peer::start(&guest.place, &["--hold"]);
        let client = guest.start();
        guest.submit_full();
        guest.wait_for_recorded(0, 16);

        // It stops no ring, but notices that the front-end has gone.
        let brief = Timeout::After(Duration::from_millis(100));
        let error = client.get_vring_base(0, brief).unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut, "{error}");
        drop(client);
        drop(guest.start());
        assert_eq!(guest.recorded_in_flight(0), 16);
        peer.kill();
        assert!(guest.rings[0].poll().is_none());
        assert_eq!(guest.place.take_journal(), [""; 0]);

        let _peer = Peer::start(&guest.place, &[]);
        let _client = guest.start();
        let done = guest.rings[0].wait_all(deadline());
        assert_eq!(places(&done, 0), (0..16).collect::<Vec<_>>());
        check(&done);
        guest.check_rest();
    }
}

#[test]
fn a_ring_is_stopped_and_started() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 1);
        let _peer = Peer::start(&guest.place, &["--out-of-order"]);
        let client = guest.start();
        for _ in 0..5 {
            guest.submit_round(0);
            guest.rings[0].kick();
            check(&guest.rings[0].wait_all(deadline()));
            client.set_vring_enable(0, false).unwrap();
            let base = client.get_vring_base(0, Timeout::Default).unwrap();
            assert_eq!(base, guest.rings[0].avail_base());
            assert_eq!(base, guest.rings[0].used_base());
            guest.rings[0].start(&client, base).unwrap();
        }
        guest.check_rest();
    }
}

/// What is in flight at the start is done before a ring is stopped, also if it was
/// never enabled.
#[test]
fn a_ring_is_drained_of_what_was_in_flight() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 1);
        let args = ["--out-of-order", "--crash-after", "8"];
        let mut peer = Peer::start(&guest.place, &args);
        guest.submit_round(0);
        let client = guest.start();
        peer.wait_for_death();
        drop(client);
        check(&guest.rings[0].poll_all());
        assert_eq!(guest.recorded_in_flight(0), 4);

        let _peer = Peer::start(&guest.place, &["--out-of-order"]);
        let client = guest.connect_tracked();
        let ring = &guest.rings[0];
        start_disabled(ring, &client, ring.used_base()).unwrap();
        let base = client.get_vring_base(0, Timeout::Default).unwrap();
        let done = guest.rings[0].poll_all();
        assert_eq!(done.len(), 4);
        check(&done);
        assert_eq!(base, guest.rings[0].used_base());
        guest.rings[0].start(&client, base).unwrap();
        check(&guest.rings[0].wait_all(deadline()));
        guest.check_rest();
    }
}

fn start_disabled(ring: &BlkRing, client: &BackendClient, base: u32) -> Result<()> {
    client.set_vring_num(ring.index, ring.size.into())?;
    client.set_vring_base(ring.index, base)?;
    client.set_vring_addr(&ring.addr())?;
    client.set_vring_kick(ring.index, Some(ring.kick.as_fd()))
}

/// It would leave out buffers, which DPDK does without a word.
#[test]
fn a_base_that_counts_what_is_in_flight_is_refused() {
    let mut guest = Guest::new(Layout::Split, 1);
    let mut peer = Peer::start(&guest.place, &["--crash-after", "3"]);
    guest.submit_round(0);
    let client = guest.start();
    peer.wait_for_death();
    drop(client);
    let _peer = Peer::start(&guest.place, &[]);
    let client = guest.connect_tracked();
    let ring = &guest.rings[0];
    let error = ring.start(&client, ring.used_base() + 1).unwrap_err();
    assert_eq!(error.kind, Kind::Nack, "{error}");
}

/// The region knows better than a base of long ago.
#[test]
fn a_packed_ring_needs_no_base() {
    let mut guest = Guest::new(Layout::Packed, 1);
    for _ in 0..3 {
        let mut peer = Peer::start(&guest.place, &["--crash-after", "9", "--crash-at", "done"]);
        guest.submit_round(0);
        let client = guest.start();
        peer.wait_for_death();
        drop(client);
        check(&guest.rings[0].poll_all());

        let _peer = Peer::start(&guest.place, &[]);
        let client = guest.connect_tracked();
        guest.rings[0].start(&client, 0x8000_8000).unwrap();
        check(&guest.rings[0].wait_all(deadline()));
        guest.check_rest();
    }
}

/// A device that was reset starts anew, with new rings and a new region; memory
/// comes in slots here.
#[test]
fn it_is_reset() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 1);
        let _peer = Peer::start(&guest.place, &[]);
        let protocol = ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::INFLIGHT_SHMFD
            | ProtocolFeatures::RESET_DEVICE
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let client = guest.connect(protocol);
        let region = guest.memory.region();
        client.remove_mem_region(&region.region).unwrap();
        client.add_mem_region(&region).unwrap();
        let features = client.acked_features();
        for _ in 0..2 {
            let (inflight, fd) = client.get_inflight_fd(1, RING_SIZE).unwrap();
            let fd = fd.unwrap();
            client.set_inflight_fd(&inflight, fd.as_fd()).unwrap();
            guest.rings = vec![BlkRing::new(&guest.memory, layout, 0, RING_SIZE)];
            let base = guest.rings[0].used_base();
            guest.rings[0].start(&client, base).unwrap();
            guest.submit_round(0);
            guest.rings[0].kick();
            check(&guest.rings[0].wait_all(deadline()));
            guest.check_rest();

            client.set_vring_enable(0, false).unwrap();
            client.get_vring_base(0, Timeout::Default).unwrap();
            client.reset_device().unwrap();
            client.set_features(features).unwrap();
        }
    }
}

#[test]
fn without_inflight_it_is_a_disk() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout, 1);
        let _peer = Peer::start(&guest.place, &["--no-inflight", "--in-order"]);
        let client = guest.connect(ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIG);
        let offered = client.get_protocol_features().unwrap();
        assert_eq!(offered & ProtocolFeatures::INFLIGHT_SHMFD.bits(), 0);
        assert_ne!(client.get_features().unwrap() & IN_ORDER, 0);
        let mut capacity = [0; 8];
        client.get_config(0, 0, &mut capacity).unwrap();
        assert_eq!(u64::from_le_bytes(capacity), SECTORS);

        guest.rings[0]
            .start(&client, guest.rings[0].used_base())
            .unwrap();
        let lines = guest.submit_round(0);
        guest.rings[0].kick();
        check(&guest.rings[0].wait_all(deadline()));
        assert_eq!(guest.place.take_journal(), lines);
        guest.check_rest();
    }
}
