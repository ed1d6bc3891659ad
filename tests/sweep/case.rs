//! One scenario with one fault, and everything that has to be true of it.

use crate::common::{AT_ONCE, PATIENCE, open_fds};
use crate::faults::{BRIEF, Effect, Fault, Form, LATE, Then, When, expected};
use crate::live_bytes;
use crate::scenarios::{CONFIRM, Front, Message, NEGOTIATE, PROBE, Scenario, Step};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::Request;
use vhost_user_frontend::{Class, Error, Kind, OnTimeout, Result, code};
use vuf_mock_backend::{Mock, Outcome, Script};

/// See the module.
pub struct Case<'a> {
    pub scenario: &'a Scenario,
    pub reply_ack: bool,
    pub on_timeout: OnTimeout,
    pub messages: &'a [Message],
    /// What each step brings if all is well.
    pub brought: &'a [u64],
    pub message: &'a Message,
    pub fault: Fault,
}

impl std::fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} REPLY_ACK, {:?}, message {} ({}): {}",
            self.scenario.name,
            if self.reply_ack { "with" } else { "without" },
            self.on_timeout,
            self.message.nth,
            self.message.name,
            self.fault,
        )
    }
}

/// Why a case cannot be judged, or is wrong.
#[derive(Debug)]
pub enum Trouble {
    /// This machine was so busy that a deadline passed, or did not, by accident.
    Noise,
    Wrong(String),
}

pub type Checked<T = ()> = std::result::Result<T, Trouble>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Trouble::Wrong(format!($($text)*)));
        }
    };
}

/// What this process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    heap: usize,
}

impl Holdings {
    fn now() -> Self {
        Self {
            descriptors: open_fds(),
            threads: std::fs::read_dir("/proc/self/task").unwrap().count(),
            heap: live_bytes(),
        }
    }

    /// Something was added, whatever else went away.
    fn grew_since(&self, before: Self) -> bool {
        self.descriptors > before.descriptors
            || self.threads > before.threads
            || self.heap > before.heap
    }
}

/// A call, how it went, and how long it took.
pub struct Called {
    request: Request,
    pub result: Result<u64>,
    took: Duration,
}

impl Called {
    pub fn now(step: &Step, front: &Front) -> Self {
        let start = Instant::now();
        let result = (step.call)(front);
        Self {
            request: step.request,
            result,
            took: start.elapsed(),
        }
    }

    pub fn timed_out(&self) -> bool {
        matches!(&self.result, Err(error) if error.kind == Kind::TimedOut)
    }

    pub fn well(&self) -> Checked<u64> {
        let Self { request, took, .. } = self;
        match &self.result {
            Ok(brought) => {
                ensure!(*took < AT_ONCE, "{request:?} took {took:?}");
                Ok(*brought)
            }
            Err(error) => Err(Trouble::Wrong(format!("{request:?} failed: {error}"))),
        }
    }

    /// It failed in one of these ways, at once unless a deadline had to pass.
    pub fn failed(&self, kinds: &[Kind], deadline: Duration) -> Checked<&Error> {
        let Self { request, took, .. } = self;
        let Err(error) = &self.result else {
            return Err(Trouble::Wrong(format!(
                "{request:?} succeeded, should be {kinds:?}"
            )));
        };
        let told = error.kind;
        ensure!(
            kinds.contains(&told),
            "{request:?} failed with {told:?}, should be {kinds:?}: {error}"
        );
        let (code, class) = match told {
            Kind::TimedOut => (-libc::ETIMEDOUT, Class::Transport),
            Kind::Disconnected => (code::DISCONNECTED, Class::Transport),
            Kind::Protocol => (code::PROTOCOL, Class::Protocol),
            Kind::Nack => (code::NACK, Class::Refused),
            Kind::Poisoned(class) => (code::POISONED, class),
            Kind::State => (code::STATE, Class::Local),
            _ => return Err(Trouble::Wrong(format!("{request:?}: {error}"))),
        };
        let right = error.code() == code && error.class() == class;
        ensure!(right, "{:?} with code {}", error.class(), error.code());
        let name = request.info().name.as_str();
        let named = error.request == Some(*request) && error.to_string().starts_with(name);
        ensure!(named, "the error of {request:?} does not say so: {error}");
        let waited = told == Kind::TimedOut;
        let (least, most) = if waited {
            (deadline, deadline + AT_ONCE)
        } else {
            (Duration::ZERO, AT_ONCE)
        };
        ensure!(
            (least..most).contains(took),
            "{request:?} took {took:?} of {deadline:?}: {error}"
        );
        Ok(error)
    }
}

/// The other end.
enum Back {
    Serving(Mock),
    Finished(Outcome),
}

impl Back {
    fn finish(self) -> Outcome {
        match self {
            Self::Serving(mock) => mock.finish().unwrap(),
            Self::Finished(outcome) => outcome,
        }
    }
}

/// How long a thread may take to end: one that was joined is seen a little longer, and
/// one that closes a descriptor takes seconds if that lingers.
const EXIT: Duration = Duration::from_secs(8);

/// How many deadlines may pass until a connection goes on after a late answer.
const RECOVERY: usize = 60;

/// Runs a case, slower and slower while this machine is too busy for it, and says
/// what is wrong, also with what is left of it. Otherwise what it brought.
pub fn checked<T>(
    name: &impl std::fmt::Display,
    reply_ack: bool,
    run: impl Fn(u64) -> Checked<T>,
) -> std::result::Result<T, String> {
    for slower in [1, 2, 4, 8, 16, 32] {
        let before = Holdings::now();
        let result = run(slower).and_then(|brought| {
            fresh_connection(reply_ack)?;
            Ok(brought)
        });
        match result {
            Ok(brought) => {
                let end = Instant::now() + EXIT;
                while Holdings::now().threads > before.threads && Instant::now() < end {
                    std::thread::sleep(Duration::from_micros(100));
                }
                let after = Holdings::now();
                if after == before {
                    return Ok(brought);
                }
                if after.grew_since(before) {
                    return Err(format!("{name}: before {before:?}, and then {after:?}"));
                }
                // Something of the test's own was still there when the case began, and
                // could hide a leak: the case runs again.
            }
            Err(Trouble::Noise) => {}
            Err(Trouble::Wrong(text)) => return Err(format!("{name}: {text}")),
        }
    }
    Err(format!("{name}: deadlines pass by themselves"))
}

impl Case<'_> {
    /// Runs it, and says what is wrong. Whether the fault was there to be seen.
    pub fn check(&self) -> std::result::Result<bool, String> {
        checked(self, self.reply_ack, |slower| self.run(slower))
    }

    /// The step that something becomes of; none after the last one.
    fn step(&self, when: When) -> usize {
        match when {
            When::Now => self.message.step,
            When::Next => self.message.step + 1,
            When::NextAnswer => {
                let later = self.messages.iter().skip(self.message.nth);
                let mut answered = later.filter(|message| message.answered);
                answered
                    .next()
                    .map_or(self.brought.len(), |message| message.step)
            }
        }
    }

    /// With deadlines so many times as long as they need be.
    fn run(&self, slower: u64) -> Checked<bool> {
        let (effect, when) = expected(self.fault, self.message);
        let late = matches!(effect, Effect::Late(_));
        let steps = self.scenario.steps();
        let step = |at: usize| steps.get(at).copied().unwrap_or(&PROBE);
        let mut text = format!("{}on any nth={}: ", self.scenario.device, self.message.nth);
        text += &match self.fault {
            Fault::DelayLate => format!("delay {}ms", LATE * slower),
            fault => fault.to_string(),
        };
        let script = Script::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let (socket, mock) = Mock::spawn(script).unwrap();
        let deadline = late.then_some(BRIEF * slower);
        let front =
            Front::new(socket, self.reply_ack, deadline, self.on_timeout).more(self.scenario.more);
        let deadline = deadline.map_or(PATIENCE, Duration::from_millis);

        let at = match effect {
            Effect::Nothing => steps.len(),
            Effect::Astray => self.message.step + 1,
            _ => self.step(when),
        };
        for (index, brought) in self.brought.iter().enumerate().take(at) {
            let called = Called::now(step(index), &front);
            // The fault may cost time also where no deadline is to pass yet.
            if late && called.timed_out() {
                return Err(Trouble::Noise);
            }
            let brings = called.well()?;
            ensure!(
                brings == *brought || effect == Effect::Astray,
                "{:?} brought {brings:#x}, not {brought:#x}",
                called.request
            );
        }
        // After it has finished, all that it sends is there.
        let mut back = Back::Serving(mock);
        if when == When::Next {
            back = Back::Finished(back.finish());
        }

        let called = match effect {
            Effect::Nothing | Effect::Astray => Called::now(&PROBE, &front),
            _ => Called::now(step(at), &front),
        };
        match effect {
            Effect::Nothing | Effect::Astray => {
                called.well()?;
            }
            Effect::Refused(value) => {
                let error = called.failed(&[Kind::Nack], deadline)?;
                ensure!(error.value == value, "the value is {:?}", error.value);
                Called::now(&PROBE, &front).well()?;
            }
            Effect::Broken => {
                // A surplus answer may have been noticed when it came.
                let kinds = [Kind::Protocol, Kind::Poisoned(Class::Protocol)];
                let now = usize::from(when == When::Now);
                called.failed(&kinds[..kinds.len() - now], deadline)?;
                self.ended(&front, at, kinds[1])?;
            }
            Effect::HungUp => {
                called.failed(&[Kind::Disconnected], deadline)?;
                self.ended(&front, at, Kind::Disconnected)?;
            }
            Effect::Late(then) => {
                // What has come when the deadline is seen to have passed counts.
                let came = called.result.is_ok() && called.took >= deadline;
                if came && self.fault == Fault::DelayLate {
                    return Err(Trouble::Noise);
                }
                called.failed(&[Kind::TimedOut], deadline)?;
                match self.on_timeout {
                    OnTimeout::Poison => {
                        self.ended(&front, at, Kind::Poisoned(Class::Transport))?;
                    }
                    OnTimeout::Keep => {
                        // The back-end may have this table, and waits for its word.
                        let of_it = |message: &&Message| message.step == at;
                        let mut sent = self.messages.iter().filter(of_it).map(Form::of);
                        if sent.any(|form| form == Form::Table) {
                            Called::now(&PROBE, &front).failed(&[Kind::State], deadline)?;
                            Called::now(&CONFIRM, &front).well()?;
                        }
                        self.kept(&front, then, deadline)?;
                    }
                }
            }
        }
        // The ends of other channels stay open meanwhile.
        front.client.abort();
        self.played(&back.finish(), effect, at)
    }

    /// No call does anything any more, whatever it is.
    fn ended(&self, front: &Front, from: usize, kind: Kind) -> Checked {
        let steps = self.scenario.steps();
        for step in steps.into_iter().skip(from).chain([&PROBE]) {
            Called::now(step, front).failed(&[kind], PATIENCE)?;
        }
        Ok(())
    }

    /// What comes after a deadline that does not end the connection.
    fn kept(&self, front: &Front, then: Then, deadline: Duration) -> Checked {
        let again = || Called::now(&PROBE, front);
        let displaces = PROBE.request.info().name.as_str() == self.message.name;
        match then {
            Then::Silence => {
                again().failed(&[Kind::TimedOut], deadline)?;
            }
            // The answer to the one is taken for the answer to the other.
            Then::Displacement if displaces => {
                again().failed(&[Kind::TimedOut], deadline)?;
            }
            Then::Displacement | Then::Gap | Then::Recovery => {
                // The deadline is as short as before.
                let mut calls = std::iter::repeat_with(again).take(RECOVERY);
                let Some(called) = calls.find(|called| !called.timed_out()) else {
                    return Err(Trouble::Wrong("it waits for ever".to_owned()));
                };
                if then == Then::Recovery {
                    called.well()?;
                } else {
                    let kinds = [Kind::Protocol, Kind::Poisoned(Class::Protocol)];
                    called.failed(&kinds, deadline)?;
                    again().failed(&kinds[1..], deadline)?;
                }
            }
        }
        Ok(())
    }

    /// The back-end did what it was told, and got nothing after the end.
    fn played(&self, outcome: &Outcome, effect: Effect, at: usize) -> Checked<bool> {
        let seen = |text: &str| outcome.log.iter().any(|line| line.contains(text));
        let asked = seen("channel < CONFIG_CHANGE_MSG");
        let mut answers = outcome.log.iter().filter(|line| line.starts_with("< "));
        let spoilt = answers.any(|line| line.ends_with(']'));
        ensure!(asked || spoilt, "no fault was played:\n{outcome}");
        let asks = matches!(self.fault, Fault::Send | Fault::SendAndWait);
        ensure!(outcome.is_met() || asks, "{outcome}");
        let poisons = self.on_timeout == OnTimeout::Poison || !matches!(effect, Effect::Late(_));
        if poisons && matches!(effect, Effect::Broken | Effect::HungUp | Effect::Late(_)) {
            let sent = outcome.log.iter().filter(|line| line.starts_with("> "));
            let meant = self.messages.iter().filter(|message| message.step <= at);
            let probe = usize::from(at == self.brought.len());
            ensure!(
                sent.count() <= meant.count() + probe,
                "more was sent on a connection that had ended:\n{outcome}"
            );
        }
        Ok(match self.fault {
            Fault::FillEventfds => seen("* ") && !seen("* 0 eventfds"),
            Fault::Send | Fault::SendAndWait => asked,
            fault => fault.needs_no_answer() || self.message.answered,
        })
    }
}

/// A connection to a back-end that behaves.
fn fresh_connection(reply_ack: bool) -> Checked {
    let (socket, mock) = Mock::spawn(Script::default()).unwrap();
    let front = Front::new(socket, reply_ack, None, OnTimeout::Poison);
    for step in NEGOTIATE {
        Called::now(step, &front).well()?;
    }
    drop(front);
    let outcome = mock.finish().unwrap();
    ensure!(outcome.is_met(), "{outcome}");
    Ok(())
}
