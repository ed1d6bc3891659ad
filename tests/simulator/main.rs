//! A deterministic simulator of the device: the guest, the VMM, the device and its
//! back-ends take turns in one thread, by a clock that the simulator sets, as a history
//! says that comes from a seed. An oracle knows what each back-end can still access and
//! what became of each request, and compares that with what the device reports.
//!
//! - `VUF_SIM_SECONDS`: how long seeds are tried (5).
//! - `VUF_SIM_SEED`: only this seed, with everything that happens printed.
//! - `VUF_SIM_FROM`: the first seed (1).
//! - `VUF_SIM_ONLY`: classes of promises to check, such as `fence,bases`.
//! - `VUF_SIM_NOSHRINK`: a history that fails is printed as it is.
//! - `VUF_SIM_HISTORY`: a file with one history, which is played and printed.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and prints its figures"
)]

mod action;
mod backend;
mod ledger;
mod packed;
mod runner;
mod wire;
mod world;

use action::{Action, parse, print};
use runner::{classes, play_safely, simulate};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The simulator counts descriptors and changes their limit.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Plays one history and prints everything that happens.
fn explain(history: &[Action]) {
    println!("{}", print(history));
    let outcome = play_safely(history, &classes(), true);
    println!("{}", outcome.trace.join("\n"));
    if let Some(violation) = outcome.violation {
        panic!("{}: {}", violation.class.name(), violation.text);
    }
}

#[test]
fn seeds_keep_every_promise() {
    let _guard = one_at_a_time();
    if let Ok(file) = std::env::var("VUF_SIM_HISTORY") {
        return explain(&parse(&std::fs::read_to_string(file).unwrap()));
    }
    if let Some(seed) = number("VUF_SIM_SEED") {
        return explain(&action::generate(seed));
    }
    let budget = Duration::from_secs(number("VUF_SIM_SECONDS").unwrap_or(5));
    let first = number("VUF_SIM_FROM").unwrap_or(1);
    let (figures, failure) = simulate(first, budget, &classes());
    // Not to be captured: `make check` prints it.
    let (seeds, steps) = (figures.seeds, figures.steps);
    writeln!(
        std::io::stdout(),
        "\nsimulated {seeds} seeds, {steps} steps"
    )
    .unwrap();
    if let Some(failure) = failure {
        panic!("{}", failure.report());
    }
}

/// Each history that was committed, because it once broke a promise.
#[test]
fn committed_histories_keep_every_promise() {
    let _guard = one_at_a_time();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulator/histories");
    let mut broken = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let history = parse(&std::fs::read_to_string(&path).unwrap());
        count += 1;
        if let Some(violation) = play_safely(&history, &classes(), false).violation {
            broken.push(format!(
                "{}: {}: {}",
                path.display(),
                violation.class.name(),
                violation.text
            ));
        }
    }
    assert!(count > 0, "the histories are not there");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn histories_are_printed_and_parsed() {
    for seed in 0..200 {
        let history = action::generate(seed);
        assert_eq!(parse(&print(&history)), history, "seed {seed}");
        let bytes = history.iter().map(|action| action.encode());
        let decoded: Vec<_> = bytes.map(Action::decode).collect();
        assert_eq!(decoded, history, "seed {seed}");
    }
}
