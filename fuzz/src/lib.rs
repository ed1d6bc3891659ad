//! The bodies of the fuzz targets: functions of bytes that panic when a promise
//! of the library is broken.
//!
//! cargo-fuzz calls them from `fuzz_targets/`, on nightly; `tests/fuzz_corpus.rs`
//! of the library includes this file as a module and replays the corpora, on
//! stable. They depend on nothing but time: the back-end lives in a signal
//! handler of the thread that calls the library (see [`peer`]), or between the
//! steps of a [`device`], so that no other thread has to be waited for, and an
//! input does the same each time.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a target reports by panicking"
)]

mod c_api;
mod channel;
mod device;
mod input;
mod op;
mod peer;
mod programs;
mod replies;
mod rig;
mod simulator;

use rig::{Late, Rig};
use std::sync::{LazyLock, Mutex, PoisonError};

#[global_allocator]
static HEAP: rig::Counting = rig::Counting;

static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::new()));

/// How often a run must have been late before it counts: this machine may have
/// been busy.
const ATTEMPTS: usize = 4;

/// One request after the other on one connection, to a back-end that answers as
/// the input says.
pub fn replies(data: &[u8]) {
    run(data, replies::run);
}

/// Whatever a back-end may send on its own channel, while requests are under way
/// and while the caller's event loop runs.
pub fn channel(data: &[u8]) {
    run(data, channel::run);
}

/// A device's caller and its back-end as the input says, and in the end a
/// back-end that behaves.
pub fn device(data: &[u8]) {
    device::prepare();
    run(data, device::run);
}

/// Calls of the C API as the input says, with a back-end at the other end.
pub fn c_api(data: &[u8]) {
    device::prepare();
    run(data, c_api::run);
}

/// A file that describes a back-end.
pub fn programs(data: &[u8]) {
    programs::run(data);
}

fn run(data: &[u8], body: fn(&mut Rig, &[u8]) -> Result<(), Late>) {
    // One at a time in a process: they count descriptors.
    let mut rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        outcome = rig.checked(|rig| body(rig, data));
        if outcome.is_ok() {
            return;
        }
    }
    if let Err(late) = outcome {
        panic!("each time too late: {late:?}");
    }
}
