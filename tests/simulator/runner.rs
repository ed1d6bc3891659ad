//! Playing histories safely, and making those that fail shorter.

use super::action::{Action, Op, generate, print};
use super::ledger::{Class, Violation};
use super::world::{Outcome, all_are_closed, play};
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// All classes that are checked: those named in `VUF_SIM_ONLY`, or all of them.
pub fn classes() -> BTreeSet<Class> {
    let all = || Class::ALL.iter().map(|(_, class)| *class).collect();
    let Ok(names) = std::env::var("VUF_SIM_ONLY") else {
        return all();
    };
    let find = |name: &str| {
        let found = Class::ALL.iter().find(|(other, _)| *other == name);
        found.map(|(_, class)| *class).unwrap()
    };
    names.split(',').map(find).collect()
}

fn open_descriptors() -> usize {
    all_are_closed();
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Plays a history; a panic and a leak count as broken promises.
pub fn play_safely(history: &[Action], only: &BTreeSet<Class>, trace: bool) -> Outcome {
    let before = open_descriptors();
    let outcome = catch_unwind(AssertUnwindSafe(|| play(history, only, trace)));
    let broken = |class, text| {
        Some(Violation {
            class,
            text,
            step: 0,
        })
    };
    let mut outcome = outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        Outcome {
            steps: 0,
            violation: broken(Class::Panic, text.unwrap_or_default()),
            trace: Vec::new(),
        }
    });
    let after = open_descriptors();
    if outcome.violation.is_none() && after != before && only.contains(&Class::Leak) {
        let text = format!("{after} descriptors are open, and {before} were before");
        outcome.violation = broken(Class::Leak, text);
    }
    outcome
}

/// How long a history is made shorter for.
const SHRINKING: Duration = Duration::from_secs(40);

/// A shorter history that breaks a promise of the same class.
pub fn shrink(history: &[Action], class: Class) -> Vec<Action> {
    let only = BTreeSet::from([class]);
    let begin = Instant::now();
    let fails = |history: &[Action]| {
        begin.elapsed() < SHRINKING && {
            let outcome = play_safely(history, &only, false);
            outcome.violation.is_some_and(|it| it.class == class)
        }
    };
    let mut best = history.to_vec();
    loop {
        let before = best.clone();
        let mut chunk = best.len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < best.len() {
                let mut shorter = best.clone();
                shorter.drain(at..(at + chunk).min(best.len()));
                match fails(&shorter) {
                    true => best = shorter,
                    false => at += chunk,
                }
            }
            chunk /= 2;
        }
        for at in 0..best.len() {
            for simpler in simpler(best[at]) {
                let mut candidate = best.clone();
                candidate[at] = simpler;
                if fails(&candidate) {
                    best = candidate;
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

/// Simpler actions in place of this one.
fn simpler(action: Action) -> Vec<Action> {
    let Action { op, a, b, c } = action;
    let mut all = Vec::new();
    if op == Op::Work {
        all.push(Action {
            op: Op::Run,
            ..action
        });
    }
    // Fewer bits where they are bits, and smaller numbers where they are numbers.
    let smaller = |n: u32| {
        let bits = (0..14).map(move |bit| n & !(1 << bit));
        let numbers = [0, 1, n / 2, n.saturating_sub(1)];
        numbers.into_iter().chain(bits).filter(move |m| *m < n)
    };
    all.extend(smaller(a).map(|a| Action { a, ..action }));
    all.extend(smaller(b).map(|b| Action { b, ..action }));
    all.extend(smaller(c).map(|c| Action { c, ..action }));
    all
}

/// What a run of the simulator has done.
#[derive(Debug, Default)]
pub struct Figures {
    pub seeds: u64,
    pub steps: u64,
}

/// A seed that breaks a promise.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    /// How many steps all seeds together had taken.
    pub after: u64,
    pub violation: Violation,
    pub history: Vec<Action>,
}

impl Failure {
    /// Everything that is needed to repeat it.
    pub fn report(&self) -> String {
        // To shrink takes a while.
        let shrunk = match std::env::var_os("VUF_SIM_NOSHRINK") {
            None => shrink(&self.history, self.violation.class),
            Some(_) => self.history.clone(),
        };
        let outcome = play_safely(&shrunk, &BTreeSet::from([self.violation.class]), false);
        let text = outcome.violation.map(|it| it.text).unwrap_or_default();
        format!(
            "seed {} breaks a promise ({}) at its step {}, after {} steps of all seeds:\n  {}\n\
             shrunk to {} actions, which break it so:\n  {text}\n{}",
            self.seed,
            self.violation.class.name(),
            self.violation.step,
            self.after,
            self.violation.text,
            shrunk.len(),
            print(&shrunk),
        )
    }
}

/// Longer than any history takes, even on a loaded machine.
const HANGS: Duration = Duration::from_secs(60);

/// Aborts the process if no seed is reported for [`HANGS`]: a call of the device hangs.
fn watch(progress: &Receiver<u64>) {
    let mut seed = 0;
    loop {
        match progress.recv_timeout(HANGS) {
            Ok(next) => seed = next,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("seed {seed} hangs (VUF_SIM_SEED={seed})\n");
                let _ = std::io::stderr().write_all(text.as_bytes());
                std::process::abort();
            }
        }
    }
}

/// Plays the histories of one seed after the other for so long, or until a promise is
/// broken.
pub fn simulate(
    first: u64,
    budget: Duration,
    only: &BTreeSet<Class>,
) -> (Figures, Option<Failure>) {
    let (report, progress) = mpsc::channel();
    thread::spawn(move || watch(&progress));
    let begin = Instant::now();
    let mut figures = Figures::default();
    let mut seed = first;
    while begin.elapsed() < budget {
        let history = generate(seed);
        let _ = report.send(seed);
        let outcome = play_safely(&history, only, false);
        figures.seeds += 1;
        figures.steps += outcome.steps;
        if let Some(violation) = outcome.violation {
            let failure = Failure {
                seed,
                after: figures.steps,
                violation,
                history,
            };
            return (figures, Some(failure));
        }
        seed = seed.wrapping_add(1);
    }
    (figures, None)
}
