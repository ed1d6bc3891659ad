//! The shared library that `make` builds: its size without symbols, what it needs, and
//! how long it takes to load, beside a library with nothing in it that needs the same.

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

use common::back_ends::Place;
use common::{Contender, Table, micros, race, results, rounds, run, shared_library, skipped};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ARGUMENT: &str = "--load";

/// In a process of its own, as a library that was loaded once stays there. Prints
/// how many nanoseconds it took. Whether that was asked for.
fn load_if_asked() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|it| it != ARGUMENT) {
        return false;
    }
    let path = CString::new(arguments.next().unwrap().as_bytes()).unwrap();
    let begin = Instant::now();
    // SAFETY: the path is a string; what it runs is our own library.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    let took = begin.elapsed();
    assert!(!handle.is_null());
    println!("{}", took.as_nanos());
    true
}

fn load(path: &Path) -> Duration {
    let this = std::env::current_exe().unwrap();
    let output = run(Command::new(this).arg(ARGUMENT).arg(path));
    Duration::from_nanos(output.trim().parse().unwrap())
}

/// The names after NEEDED.
fn needed(library: &Path) -> Vec<String> {
    let text = run(Command::new("readelf").arg("-d").arg(library));
    let lines = text.lines().filter(|line| line.contains("(NEEDED)"));
    let name = |line: &str| Some(line.split_once('[')?.1.strip_suffix(']')?.to_owned());
    lines.filter_map(name).collect()
}

/// A library with nothing in it, that needs as much.
fn empty(place: &Place) -> PathBuf {
    let source = place.file("empty.c");
    std::fs::write(&source, "int nothing_at_all;\n").unwrap();
    shared_library(place, &source, &["-Wl,--no-as-needed", "-lgcc_s", "-lc"])
}

fn main() {
    if load_if_asked() {
        return;
    }
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/libvhost_user_frontend.so");
    if !library.exists() {
        return skipped("the shared library", "it is not built; run: make");
    }
    let place = Place::new();
    let stripped = place.file("stripped.so");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&library));
    let empty = empty(&place);
    let mut contenders = [
        Contender::new("empty library", || load(&empty)),
        Contender::new("this library", || load(&stripped)),
    ];
    race(rounds(100), &mut contenders);
    let mut table = Table::new(&["dlopen", "µs", "× empty", "bytes without symbols", "NEEDED"]);
    for (result, path) in results(&contenders).iter().zip([&empty, &stripped]) {
        let size = std::fs::metadata(path).unwrap().len().to_string();
        let ratio = format!("{:.2}", result.ratio);
        let needed = needed(path).join(" ");
        table.row(&[&result.name, &micros(result.time), &ratio, &size, &needed]);
    }
    table.print("The shared library");
}
