//! What all benchmarks share: rounds in which every contender has its turn, medians,
//! and tables as the README has them.
//!
//! A harness of our own, because none that is about compares in one run: criterion
//! measures one thing to its end and then the next, and on a machine that others use
//! as well the two are then not to be compared. Here contenders alternate, and each
//! is held against the first one of the same round.

#![allow(dead_code, reason = "each benchmark uses its own part of this")]

pub mod acker;
pub mod back_ends;
pub mod bare;

use back_ends::Place;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// One way to do what is measured.
pub struct Contender<'a> {
    name: String,
    turn: Box<dyn FnMut() -> Duration + 'a>,
    times: Vec<Duration>,
}

impl<'a> Contender<'a> {
    /// `turn` does it once, or a fixed number of times, and says how long one took:
    /// what it prepares is not counted.
    pub fn new(name: impl Into<String>, turn: impl FnMut() -> Duration + 'a) -> Self {
        Self {
            name: name.into(),
            turn: Box::new(turn),
            times: Vec::new(),
        }
    }
}

/// `VUF_BENCH_ROUNDS` in place of the usual number; a hundred is good on a machine
/// that does nothing else.
pub fn rounds(usual: usize) -> usize {
    std::env::var("VUF_BENCH_ROUNDS").map_or(usual, |text| text.parse().unwrap())
}

/// Lets all of them alternate; each round begins with another one. The first round
/// only warms up.
pub fn race(rounds: usize, contenders: &mut [Contender<'_>]) {
    let count = contenders.len();
    for round in 0..=rounds {
        for i in 0..count {
            let contender = &mut contenders[(round + i) % count];
            let time = (contender.turn)();
            if round > 0 {
                contender.times.push(time);
            }
        }
    }
}

pub fn median<T: Copy + PartialOrd>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
    sorted[sorted.len() / 2]
}

/// What came of a contender: the median of its times, and of what these are of the
/// first contender's in the same round.
pub struct Result {
    pub name: String,
    pub time: Duration,
    pub ratio: f64,
}

pub fn results(contenders: &[Contender<'_>]) -> Vec<Result> {
    let first = &contenders[0].times;
    let of = |contender: &Contender<'_>| {
        let pairs = contender.times.iter().zip(first);
        let ratios: Vec<_> = pairs
            .map(|(time, first)| time.as_secs_f64() / first.as_secs_f64())
            .collect();
        Result {
            name: contender.name.clone(),
            time: median(&contender.times),
            ratio: median(&ratios),
        }
    };
    contenders.iter().map(of).collect()
}

pub fn micros(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}

/// A table in Markdown: names to the left, numbers to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: ToString>(heads: &[S]) -> Self {
        Self {
            rows: vec![heads.iter().map(S::to_string).collect()],
        }
    }

    pub fn row<S: ToString>(&mut self, cells: &[S]) {
        self.rows.push(cells.iter().map(S::to_string).collect());
    }

    pub fn print(&self, title: &str) {
        println!("\n{title}\n");
        for (i, row) in self.rows.iter().enumerate() {
            println!("| {} |", row.join(" | "));
            if i == 0 {
                println!("|---|{}", "---:|".repeat(row.len() - 1));
            }
        }
    }
}

/// How many descriptors this process and its children may have: as many as the system
/// lets them.
pub fn most_fds() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    usize::try_from(hard).unwrap()
}

/// What a program prints that must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a shared library of one C file.
pub fn shared_library(place: &Place, source: &Path, flags: &[&str]) -> PathBuf {
    let library = place.file("library.so");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-o"]);
    run(command.arg(&library).arg(source).args(flags));
    library
}

/// What cannot be measured here, and why.
pub fn skipped(what: &str, why: &str) {
    println!("\nSKIPPED: {what}: {why}");
}
