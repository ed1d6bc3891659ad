//! Every scenario of a front-end, with every message in it answered wrongly in
//! every way that the scripted back-end knows: each call returns in time, with
//! the error that the protocol asks for and a text that names the request;
//! nothing leaks, and the next connection works.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[macro_use]
mod case;
mod channel;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod faults;
#[path = "../common/front.rs"]
mod front;
mod list;
mod recorder;
mod scenarios;

use case::Case;
use common::files;
use faults::Fault;
use scenarios::{SCENARIOS, Scenario, messages};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;
use vhost_user_frontend::OnTimeout;
use vhost_user_frontend::message::Request;
use vuf_mock_backend::Script;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Bytes on the heap, of all threads.
fn live_bytes() -> usize {
    LIVE.load(SeqCst)
}

struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// So many cases that went wrong are enough.
const ENOUGH: usize = 20;

/// What was swept so far.
#[derive(Default)]
struct Sweep {
    cases: usize,
    /// Names of faults that were there to be seen.
    faults: BTreeSet<String>,
    requests: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Sweep {
    fn scenario(&mut self, scenario: &Scenario) {
        for reply_ack in scenario.reply_ack.iter().copied() {
            let (messages, brought) = messages(scenario, scenario.device, reply_ack);
            for (at, message) in messages.iter().enumerate() {
                if message.step < scenario.setup() {
                    continue;
                }
                self.requests.insert(message.name.clone());
                let mut earlier = messages.iter().take(at + 1);
                // Where the client answers, it is for another part of the sweep.
                let channel =
                    !scenario.serves && earlier.any(|message| message.name == "SET_BACKEND_REQ_FD");
                for fault in Fault::all(message, channel) {
                    for on_timeout in [OnTimeout::Poison, OnTimeout::Keep] {
                        if fault.lingers() && (on_timeout == OnTimeout::Keep || reply_ack) {
                            continue; // it takes its time, and depends on neither
                        }
                        self.case(&Case {
                            scenario,
                            reply_ack,
                            on_timeout,
                            messages: &messages,
                            brought: &brought,
                            message,
                            fault,
                        });
                    }
                }
            }
        }
    }

    fn case(&mut self, case: &Case<'_>) {
        self.cases += 1;
        match case.check() {
            Ok(true) => self.faults.extend(case.fault.verbs()),
            Ok(false) => {}
            Err(text) => self.wrong(text),
        }
    }

    /// When so much is wrong, what is left would take long and tell no more.
    fn wrong(&mut self, text: String) {
        self.wrong.push(text);
        let wrong = self.wrong.len();
        let text = || self.wrong.join("\n");
        assert!(wrong < ENOUGH, "{wrong} cases went wrong:\n{}", text());
    }
}

/// The names of all faults, as the mock tells who mistypes one.
fn all_faults() -> BTreeSet<String> {
    let error = Script::parse("on any: none-such").unwrap_err().to_string();
    let (_, names) = error.split_once("there are ").unwrap();
    let names: BTreeSet<_> = names.split(", ").map(str::to_owned).collect();
    assert!(names.len() > 20, "{names:?}");
    names
}

/// For whoever looks at the output, also of a test that passes.
fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}

/// One test, so that no other one of this process disturbs what is counted.
#[test]
fn every_message_of_every_scenario_with_every_fault() {
    files(); // open from now on
    let start = Instant::now();
    let mut sweep = Sweep::default();
    let mut told = String::new();
    for scenario in SCENARIOS {
        let (before, began) = (sweep.cases, Instant::now());
        sweep.scenario(scenario);
        let (cases, took) = (sweep.cases - before, began.elapsed());
        let least = scenario.least;
        assert!(
            cases >= least,
            "{}: {cases} cases, not {least}",
            scenario.name
        );
        told += &format!("\n  {cases:5} {} ({took:.1?})", scenario.name);
    }
    type Part = fn(&mut dyn FnMut(Result<(), String>));
    let parts: [(&str, usize, Part); 4] = [
        ("a list", 2610, |done| list::faults(done)),
        ("asks before it answers", 4325, |done| {
            channel::asks_before_it_answers(done)
        }),
        ("faults on its channel", 1990, |done| channel::faults(done)),
        ("a device", 4060, |done| device::faults(done)),
    ];
    for (name, least, part) in parts {
        let (before, began) = (sweep.cases, Instant::now());
        part(&mut |result| {
            sweep.cases += 1;
            if let Err(text) = result {
                sweep.wrong(text);
            }
        });
        let (cases, took) = (sweep.cases - before, began.elapsed());
        assert!(cases >= least, "{name}: {cases} cases, not {least}");
        told += &format!("\n  {cases:5} {name} ({took:.1?})");
    }
    say(&format!(
        "\nswept {} cases: {} went wrong, {:.1?}{told}\n",
        sweep.cases,
        sweep.wrong.len(),
        start.elapsed()
    ));
    assert!(
        sweep.wrong.is_empty(),
        "{} cases went wrong:\n{}",
        sweep.wrong.len(),
        sweep.wrong.join("\n")
    );
    let requests = Request::ALL
        .iter()
        .map(|request| request.info().name.as_str());
    let missing: Vec<_> = requests
        .filter(|name| !sweep.requests.contains(*name))
        .collect();
    assert_eq!(missing, [""; 0], "requests that no scenario makes");
    assert_eq!(sweep.faults, all_faults(), "faults that were seen");
}
