//! The fuzz targets on what has been found so far: each file of their corpora,
//! and some inputs made at random (always the same). The fuzzing itself is
//! `make fuzz`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Inputs made at random for each target, as long as there is time.
const RANDOM: u64 = 5000;
const ENOUGH: Duration = Duration::from_secs(6);

/// The next number of a sequence that looks random (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Bytes that look random: of all values, or mostly small, which say more.
fn random(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let length = next(&mut state) % 200;
    let mask = if seed % 2 == 0 { 0xff } else { 0x1f };
    (0..length)
        .map(|_| next(&mut state).to_le_bytes()[0] & mask)
        .collect()
}

/// The targets count the descriptors of the process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn replay(target: fn(&[u8]), name: &str) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let run = |input: &[u8], what: &str| {
        let result = catch_unwind(|| target(input));
        assert!(result.is_ok(), "{name} on {what}: {input:02x?}");
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut files: Vec<_> = std::fs::read_dir(corpus.join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() > 20, "the corpus of {name} is not there");
    for file in files {
        run(&std::fs::read(&file).unwrap(), &file.to_string_lossy());
    }
    let begin = Instant::now();
    for seed in 0..RANDOM {
        run(&random(seed), &format!("seed {seed}"));
        if begin.elapsed() > ENOUGH {
            break;
        }
    }
}

#[test]
fn replies() {
    replay(fuzz::replies, "replies");
}

#[test]
fn channel() {
    replay(fuzz::channel, "channel");
}

#[test]
fn device() {
    replay(fuzz::device, "device");
}

#[test]
fn c_api() {
    replay(fuzz::c_api, "c_api");
}

#[test]
fn programs() {
    replay(fuzz::programs, "programs");
}
