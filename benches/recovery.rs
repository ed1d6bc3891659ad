//! After the back-end was killed: from the moment that another one listens until the
//! request that waited meanwhile is completed.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails by panicking"
)]

#[path = "../tests/common/blk_peer.rs"]
mod blk_peer;
#[path = "../tests/common/blk_ring.rs"]
mod blk_ring;
mod common;
#[path = "../tests/common/vmm.rs"]
mod vmm;

use blk_peer::{Peer, Place, deadline};
use blk_ring::{BlkRing, GuestMemory, Layout, Op};
use common::{Contender, Table, race, results, rounds};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{Inflight, ProtocolFeatures};
use vhost_user_frontend::{BackendClient, EventKind, Options};
use vmm::Vmm;

/// A device as a monitor has it.
struct Recovering {
    vmm: Vmm,
    peer: Peer,
}

impl Recovering {
    fn new() -> Self {
        let mut vmm = Vmm::new(Layout::Split, 1, |options| options.config_size = 0);
        let peer = Peer::start(&vmm.place, &[]);
        vmm.bring_up();
        Self { vmm, peer }
    }

    /// `listens` is called when the new one does.
    fn turn(&mut self, listens: impl FnOnce(&Vmm)) -> Duration {
        self.peer.kill();
        self.vmm.until(EventKind::Lost);
        self.vmm.write(0, 1);
        self.peer = Peer::start(&self.vmm.place, &[]);
        let begin = Instant::now();
        listens(&self.vmm);
        self.vmm.until_done();
        let took = begin.elapsed();
        self.vmm.until(EventKind::Recovered);
        self.vmm.until_applied();
        took
    }
}

/// The same by hand: what has to be said to the new one, with nothing in between.
struct ByHand {
    place: Place,
    memory: Rc<GuestMemory>,
    ring: BlkRing,
    peer: Peer,
    _client: BackendClient,
    inflight: (Inflight, OwnedFd),
}

impl ByHand {
    fn connect(place: &Place, memory: &GuestMemory) -> BackendClient {
        let client = BackendClient::connect(&place.file("sock"), &Options::default()).unwrap();
        let protocol = ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::INFLIGHT_SHMFD;
        client.get_features().unwrap();
        client.get_protocol_features().unwrap();
        client.set_protocol_features(protocol.bits()).unwrap();
        client.set_owner().unwrap();
        client.set_features(vmm::FEATURES | 1 << 30).unwrap();
        client.set_mem_table(&[memory.region()]).unwrap();
        client
    }

    fn new() -> Self {
        let place = Place::new();
        let memory = GuestMemory::new(1 << 20);
        let ring = BlkRing::new(&memory, Layout::Split, 0, vmm::RING_SIZE);
        let peer = Peer::start(&place, &[]);
        let client = Self::connect(&place, &memory);
        let (inflight, fd) = client.get_inflight_fd(1, vmm::RING_SIZE).unwrap();
        let inflight = (inflight, fd.unwrap());
        client
            .set_inflight_fd(&inflight.0, inflight.1.as_fd())
            .unwrap();
        ring.start(&client, 0).unwrap();
        Self {
            place,
            memory,
            ring,
            peer,
            _client: client,
            inflight,
        }
    }

    fn turn(&mut self) -> Duration {
        self.peer.kill();
        self.ring.submit(Op::Write { tag: 7 }, 1);
        self.peer = Peer::start(&self.place, &[]);
        let begin = Instant::now();
        let client = Self::connect(&self.place, &self.memory);
        let (inflight, fd) = &self.inflight;
        client.set_inflight_fd(inflight, fd.as_fd()).unwrap();
        self.ring.start(&client, self.ring.used_base()).unwrap();
        self.ring.kick();
        assert_eq!(self.ring.wait(deadline()).status, 0);
        let took = begin.elapsed();
        self._client = client;
        took
    }
}

fn main() {
    let (mut told, mut alone) = (Recovering::new(), Recovering::new());
    let mut by_hand = ByHand::new();
    let mut contenders = [
        Contender::new("client, every request by hand", || by_hand.turn()),
        Contender::new("device, told to connect at once", || {
            told.turn(|vmm| vmm.device.reconnect())
        }),
        Contender::new("device, trying every 2 to 50 ms", || alone.turn(|_| {})),
    ];
    race(rounds(20), &mut contenders);
    let mut table = Table::new(&["front-end", "ms", "× by hand"]);
    for result in results(&contenders) {
        let time = format!("{:.2}", result.time.as_secs_f64() * 1e3);
        table.row(&[result.name, time, format!("{:.2}", result.ratio)]);
    }
    table.print("From the new listener to the first completed request");
}
