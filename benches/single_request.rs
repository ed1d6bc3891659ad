//! One request and its answer, GET_FEATURES: what the library adds to the system
//! calls it makes, and what others add.

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

use common::back_ends::{BackEnd, Kind};
use common::bare::{Bare, Message};
use common::{Contender, Table, acker, micros, race, results, rounds, skipped};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_user_frontend::message::{BackendRequest, ProtocolFeatures, Request};
use vhost_user_frontend::{BackendClient, BackendHandler, Options};

/// In each turn of a contender.
const REQUESTS: u32 = 200;

/// As long as an answer takes on a machine that is not busy, and more.
const SPIN: Duration = Duration::from_micros(100);

const FEATURES: u64 = 1 << 32 | 1 << 30;

fn protocol() -> ProtocolFeatures {
    use ProtocolFeatures as P;
    P::MQ | P::REPLY_ACK | P::BACKEND_REQ
}

/// How long one of many took.
fn timed(mut request: impl FnMut()) -> Duration {
    let begin = Instant::now();
    for _ in 0..REQUESTS {
        request();
    }
    begin.elapsed() / REQUESTS
}

fn bare(path: &Path) -> Bare {
    let bare = Bare::connect(path);
    bare.negotiate(FEATURES, protocol());
    bare
}

fn ours(path: &Path, options: &Options) -> BackendClient {
    let client = BackendClient::connect(path, options).unwrap();
    assert_eq!(client.get_features().unwrap() & FEATURES, FEATURES);
    let offered = client.get_protocol_features().unwrap();
    assert_eq!(offered & protocol().bits(), protocol().bits());
    client.set_protocol_features(protocol().bits()).unwrap();
    client.set_owner().unwrap();
    client.set_features(FEATURES).unwrap();
    client
}

/// Does nothing that a back-end may ask.
struct Nobody;

impl BackendHandler for Nobody {
    fn handles(&self, _: BackendRequest) -> bool {
        false
    }
}

fn with_channel(client: BackendClient) -> BackendClient {
    client.open_backend_channel(Arc::new(Nobody)).unwrap();
    client
}

fn rust_vmm(path: &Path) -> Frontend {
    let mut frontend = Frontend::connect(path, 1).unwrap();
    assert_eq!(frontend.get_features().unwrap() & FEATURES, FEATURES);
    let offered = frontend.get_protocol_features().unwrap();
    let wanted = offered.bits() & protocol().bits();
    let wanted = vhost::vhost_user::message::VhostUserProtocolFeatures::from_bits_truncate(wanted);
    frontend.set_protocol_features(wanted).unwrap();
    frontend.set_owner().unwrap();
    frontend.set_features(FEATURES).unwrap();
    frontend
}

/// A back-end of its own for each contender, in their order: most serve one front-end
/// at a time, and none costs anything while it is not asked.
fn compare(kind: Kind, table: &mut Table) {
    let back_ends: Vec<_> = (0..7).map(|_| BackEnd::start(kind, 1)).collect();
    let mut sockets = back_ends.iter().map(|it| it.socket.as_path());
    let mut socket = || sockets.next().unwrap();
    let get = Message::new(Request::GetFeatures, &[], None);

    let floor = bare(socket());
    let closed = ours(socket(), &Options::default());
    let open = with_channel(ours(socket(), &Options::default()));
    let spin = Options {
        spin: SPIN,
        ..Options::default()
    };
    let closed_spin = ours(socket(), &spin);
    let open_spin = with_channel(ours(socket(), &spin));
    let theirs = rust_vmm(socket());
    let spinning = bare(socket());
    let mut contenders = [
        Contender::new("bare sendmsg and recvmsg", || {
            timed(|| assert_ne!(floor.call(&get), 0))
        }),
        Contender::new("this library", || {
            timed(|| assert_ne!(closed.get_features().unwrap(), 0))
        }),
        Contender::new("this library, channel open", || {
            timed(|| assert_ne!(open.get_features().unwrap(), 0))
        }),
        Contender::new("this library, spinning", || {
            timed(|| assert_ne!(closed_spin.get_features().unwrap(), 0))
        }),
        Contender::new("this library, channel open, spinning", || {
            timed(|| assert_ne!(open_spin.get_features().unwrap(), 0))
        }),
        Contender::new("rust-vmm `vhost` 0.18", || {
            timed(|| assert_ne!(theirs.get_features().unwrap(), 0))
        }),
        Contender::new("bare, spinning", || {
            timed(|| assert_ne!(spinning.call_spinning(&get), 0))
        }),
    ];
    let sleeps = || back_ends.iter().map(BackEnd::sleeps).collect::<Vec<_>>();
    let before = sleeps();
    race(rounds(60), &mut contenders);
    let after = sleeps();
    // The first round only warms up, but makes them all the same.
    let requests = f64::from(REQUESTS) * f64::from(u32::try_from(rounds(60) + 1).unwrap());
    for (at, result) in results(&contenders).into_iter().enumerate() {
        let ratio = format!("{:.2}", result.ratio);
        let slept = u32::try_from(after[at].saturating_sub(before[at])).unwrap();
        let sleeps = format!("{:.2}", f64::from(slept) / requests);
        table.row(&[
            &result.name,
            kind.name(),
            &micros(result.time),
            &ratio,
            &sleeps,
        ]);
    }
}

fn main() {
    acker::be_it_if_asked();
    let mut table = Table::new(&["front-end", "back-end", "µs", "× bare", "its sleeps"]);
    for kind in [Kind::Acker, Kind::Embedded, Kind::Qemu] {
        match kind.missing() {
            Some(why) => skipped(kind.name(), why),
            None => compare(kind, &mut table),
        }
    }
    table.print("One request, GET_FEATURES");
}
