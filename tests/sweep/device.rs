//! A device whose back-end answers wrongly: it says what it has lost, and over
//! which request, or goes on; it never hangs; and it gets its rings to run again
//! with the next back-end at the same path.

use crate::case::{Checked, Trouble, checked};
use crate::common::AT_ONCE;
use crate::faults::{BRIEF, Effect, Fault, LATE, Then, When, expected};
use crate::front::{Front, PATIENCE, PLUGGED, RAM, SIZE, VERSION_1, eventfd, options};
use crate::scenarios::Message;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::Request;
use vhost_user_frontend::{
    Base, DeviceOptions, Event, EventKind, Kind, OnUnfenced, Peer, Recovery, StopMode, Timeout,
};
use vuf_mock_backend::{Backend, Outcome, Script};

/// What back-ends offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kindred {
    name: &'static str,
    reply_ack: bool,
    /// In the language of the mock.
    device: &'static str,
}

const KINDRED: [Kindred; 2] = [
    Kindred {
        name: "with all",
        reply_ack: true,
        device: "device protocol-features MQ REPLY_ACK BACKEND_REQ CONFIG INFLIGHT_SHMFD \
                 RESET_DEVICE CONFIGURE_MEM_SLOTS STATUS\n\
                 on SET_CONFIG: send CONFIG_CHANGE_MSG no-wait\n",
    },
    Kindred {
        name: "with little",
        reply_ack: false,
        device: "device protocol-features MQ BACKEND_REQ CONFIG\n\
                 on SET_CONFIG: send CONFIG_CHANGE_MSG no-wait\n",
    },
];

/// An end of a path, for one case.
fn path() -> PathBuf {
    static CASES: AtomicUsize = AtomicUsize::new(0);
    let case = CASES.fetch_add(1, Relaxed);
    let name = format!("vuf-sweep.{}.{case}", std::process::id());
    std::env::temp_dir().join(name)
}

/// Back-ends at a path: the first follows a script, those after it behave.
struct Site {
    path: PathBuf,
    /// Closed to end them all.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Vec<Outcome>>>,
}

impl Site {
    fn new(first: Script, others: &Script) -> Self {
        let path = path();
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let others = others.clone();
        let thread = thread::spawn(move || {
            let stopped = Arc::new(stopped);
            let mut serving = Vec::new();
            let mut script = Some(first);
            while let Some(socket) = accept(&listener, &stopped) {
                let script = script.take().unwrap_or_else(|| others.clone());
                let stopped = Arc::clone(&stopped);
                serving.push(thread::spawn(move || {
                    let mut backend = Backend::new(script);
                    backend.serve(socket, stopped.as_fd()).unwrap();
                    backend.finish()
                }));
            }
            drop(listener);
            let serving = serving.into_iter();
            serving.map(|thread| thread.join().unwrap()).collect()
        });
        Self {
            path,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// What became of each of them.
    fn finish(mut self) -> Vec<Outcome> {
        self.end()
    }

    fn end(&mut self) -> Vec<Outcome> {
        self.stop = None;
        let thread = self.thread.take();
        let outcomes = thread.map(|thread| thread.join().unwrap());
        let _ = std::fs::remove_file(&self.path);
        outcomes.unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &UnixListener, stopped: &UnixStream) -> Option<UnixStream> {
    let watched = [listener.as_fd(), stopped.as_fd()];
    let mut fds = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    poll(&mut fds, PollTimeout::NONE).unwrap();
    let there = fds[0].any() == Some(true);
    there.then(|| listener.accept().unwrap().0)
}

/// A fault of a back-end, in the answer to one message of a device's life.
struct Case<'a> {
    kindred: Kindred,
    message: &'a Message,
    /// The request that is named: a barrier stands for the one before it.
    named: &'a str,
    /// A later message is answered.
    answers_follow: bool,
    fault: Fault,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Message { nth, name, .. } = self.message;
        let kindred = self.kindred.name;
        write!(
            f,
            "a device, {kindred}, message {nth} ({name}): {}",
            self.fault
        )
    }
}

/// What has to come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    GoesOn,
    /// Both are right.
    Either,
    Lost(Vec<Kind>),
    /// The removal of a region is refused three times, and the caller gives the
    /// connection up.
    GivenUp,
}

/// A device that lives through everything that there is.
struct Life {
    front: Front,
    /// Everything that it has told.
    events: Vec<Event>,
    has_memory: bool,
    plugged: bool,
    runs: bool,
    /// How many refusals the caller has answered by asking again.
    asked_again: usize,
    /// The back-end does not know of its channel, or of what would make it use it.
    mute: bool,
}

impl Life {
    fn new(site: &Site, deadline: Option<u64>, slower: u64) -> Self {
        let limit = |milliseconds| Timeout::After(Duration::from_millis(milliseconds));
        let plain = options(1);
        let options = match deadline.map(limit) {
            None => plain,
            Some(deadline) => DeviceOptions {
                quick: deadline,
                slow: deadline,
                drain: deadline,
                ..plain
            },
        };
        let options = DeviceOptions {
            config_size: 8,
            fence: limit(FENCE * slower),
            on_unfenced: OnUnfenced::Proceed,
            ..options
        };
        Self {
            front: Front::new(Peer::Path(site.path.clone()), options),
            events: Vec::new(),
            has_memory: false,
            plugged: false,
            runs: false,
            asked_again: 0,
            mute: false,
        }
    }

    fn lost(&self) -> bool {
        self.told(EventKind::Lost).next().is_some()
    }

    fn told(&self, kind: EventKind) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.kind == kind)
    }

    /// Until this holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Checked {
        let begin = Instant::now();
        while !holds(self) {
            ensure!(
                begin.elapsed() < AT_ONCE,
                "it hangs before {what}: {:?}",
                self.events
            );
            let waits = Instant::now();
            self.front.turn(AT_ONCE);
            let events = std::mem::take(&mut self.front.events);
            ensure!(
                events.is_empty() || waits.elapsed() < AT_ONCE,
                "it waits for {:?} in one step",
                waits.elapsed()
            );
            self.events.extend(events);
        }
        Ok(())
    }

    /// Until all that is wanted stands, or the first back-end is lost.
    fn settle(&mut self, what: &str) -> Checked {
        let begun_lost = self.lost();
        loop {
            self.ask_again();
            let asked = self.asked_again;
            self.until(what, |life| {
                let info = life.front.device.info();
                let refused = life.told(EventKind::Refused).count() > asked;
                refused || info.applied == Some(info.generation) || (life.lost() && !begun_lost)
            })?;
            if self.told(EventKind::Refused).count() == asked {
                return Ok(());
            }
            // A fault is played once.
            ensure!(
                asked < 8,
                "it is refused again and again: {:?}",
                self.events
            );
        }
    }

    /// What was refused once is asked for again.
    fn ask_again(&mut self) {
        let refused = self.told(EventKind::Refused).count();
        if refused == self.asked_again {
            return;
        }
        self.asked_again = refused;
        if refused > 2 {
            self.front.device.stop(None, StopMode::Abandon);
            self.runs = false;
            return;
        }
        let mut memory = vec![self.front.region(RAM, 0)];
        if self.plugged {
            memory.push(self.front.region(PLUGGED, 1));
        }
        self.front.device.set_memory(memory, true).unwrap();
        if !self.runs {
            return;
        }
        // A ring that was refused another call descriptor is started still. One whose
        // back-end was lost as it was being stopped has no base.
        let device = &self.front.device;
        let call = eventfd();
        let resumed = device.start(&[self.front.ring(0, 64, Base::Resume)]);
        let swapped = resumed.or_else(|_| device.set_call(0, Some(call.as_fd())));
        if swapped.is_err() {
            self.front.start(&[0], Base::New);
        }
    }

    /// Guest and back-end begin, or begin anew.
    fn bring_up(&mut self) -> Checked {
        let lost = self.lost();
        self.until("the handshake", |life| {
            life.front.device.info().connected || (life.lost() && !lost)
        })?;
        let info = self.front.device.info();
        if !info.connected {
            return Ok(());
        }
        let device = &self.front.device;
        device
            .set_features(VERSION_1 & info.offered_features)
            .unwrap();
        if !self.has_memory {
            match device.set_memory(vec![self.front.region(RAM, 0)], false) {
                Ok(()) => self.has_memory = true,
                // The back-end says that it has no room, and another may have.
                Err(_) => {
                    device.stop(None, StopMode::Abandon);
                    return self.until("the end", Self::lost);
                }
            }
        }
        self.front.start(&[0], Base::New);
        self.runs = true;
        self.settle("it is up")
    }

    /// As long as the first back-end is there.
    fn live(&mut self) -> Checked {
        type Stage = (&'static str, fn(&mut Life));
        let stages: [Stage; 8] = [
            ("it is stopped", |life| {
                life.front.device.stop(None, StopMode::Drain);
                life.runs = false;
            }),
            ("it is resumed", |life| {
                life.front.start(&[0], Base::Resume);
                life.runs = true;
            }),
            ("memory is plugged", |life| {
                let more = life.front.region(PLUGGED, 1);
                // One that says it has no room is left for the next.
                life.plugged = true;
                if life.front.device.add_memory(more).is_err() {
                    life.plugged = false;
                    life.front.device.stop(None, StopMode::Abandon);
                    life.runs = false;
                }
            }),
            ("memory is unplugged", |life| {
                life.front.device.remove_memory(PLUGGED, SIZE).unwrap();
                life.plugged = false;
            }),
            ("the call descriptor is another", |life| {
                life.front
                    .device
                    .set_call(0, Some(eventfd().as_fd()))
                    .unwrap();
            }),
            ("the configuration is written", |life| {
                life.front.device.write_config(3, &[7]).unwrap();
            }),
            ("the change is told", |_| {}),
            ("it is reset", |life| {
                life.front.device.reset();
                life.runs = false;
            }),
        ];
        self.bring_up()?;
        for (what, act) in stages {
            if self.lost() {
                return Ok(());
            }
            act(self);
            self.settle(what)?;
            if what == "the change is told" {
                let asks = BACKEND_REQ | CONFIG;
                self.until(what, |life| {
                    let device = &life.front.device;
                    let served = device.counters().map(|it| it.backend_requests_served);
                    let asks = device.info().protocol_features & asks == asks && !life.mute;
                    life.lost() || !asks || served.is_some_and(|served| served > 0)
                })?;
            }
        }
        if self.lost() {
            return Ok(());
        }
        self.bring_up()
    }

    fn one_more(&mut self) -> Checked {
        let call = eventfd();
        self.front.device.set_call(0, Some(call.as_fd())).unwrap();
        self.settle("one more request")
    }

    /// After a loss: the rings run with the next back-end.
    fn begin_again(&mut self) -> Checked {
        self.until("the next back-end", |life| {
            life.front.device.info().connected
        })?;
        if self.front.device.info().needs_reset {
            let waits = self.front.device.wait(Timeout::After(PATIENCE));
            let kind = waits.err().map(|error| error.kind);
            ensure!(kind == Some(Kind::State), "wait() ended with {kind:?}");
            self.front.device.reset();
            self.runs = false;
        }
        if self.runs {
            self.settle("it runs again")
        } else {
            self.bring_up()
        }
    }
}

/// Refused, it concerns one ring or one region, and the caller may ask again.
fn is_local(request: &str) -> bool {
    let ring = request.starts_with("SET_VRING_");
    ring || matches!(request, "SET_MEM_TABLE" | "ADD_MEM_REG" | "REM_MEM_REG")
}

/// How long a back-end has to close its connection, in milliseconds.
const FENCE: u64 = 5;
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;

impl Case<'_> {
    fn verdict(&self) -> (Verdict, When) {
        let (effect, when) = expected(self.fault, self.message);
        let name = self.message.name.as_str();
        let verdict = match effect {
            // The device answers while it waits.
            _ if self.fault == Fault::SendAndWait => Verdict::GoesOn,
            // Whoever has no configuration space is believed.
            Effect::Refused(_) if matches!(name, "GET_CONFIG" | "SET_CONFIG") => Verdict::GoesOn,
            // `refuse` leaves the region, and its removal is done when it is asked for
            // again. `reply` says no to a removal that was done: the region is unknown
            // from then on, and its removal refused again.
            Effect::Refused(_)
                if name == "REM_MEM_REG" && matches!(self.fault, Fault::Reply(_)) =>
            {
                Verdict::GivenUp
            }
            Effect::Refused(_) if is_local(name) => Verdict::GoesOn,
            Effect::Nothing => Verdict::GoesOn,
            Effect::Astray => Verdict::Either,
            Effect::Refused(_) => Verdict::Lost(vec![Kind::Nack]),
            Effect::Broken => Verdict::Lost(vec![Kind::Protocol]),
            Effect::HungUp => Verdict::Lost(vec![Kind::Disconnected]),
            // Nothing is waited for any more.
            Effect::Late(_) if when == When::NextAnswer && !self.answers_follow => Verdict::GoesOn,
            Effect::Late(Then::Recovery | Then::Silence) => Verdict::Lost(vec![Kind::TimedOut]),
            // Other answers are on their way, and come in its place, or end it.
            Effect::Late(Then::Displacement) => Verdict::Lost(vec![Kind::TimedOut, Kind::Protocol]),
            Effect::Late(Then::Gap) => {
                Verdict::Lost(vec![Kind::TimedOut, Kind::Protocol, Kind::Nack])
            }
        };
        (verdict, when)
    }

    fn run(&self, slower: u64) -> Checked {
        let (verdict, when) = self.verdict();
        let (effect, _) = expected(self.fault, self.message);
        let unknown = effect == Effect::Astray && self.message.name == "SET_PROTOCOL_FEATURES";
        let late = match effect {
            Effect::Late(_) => self.fault != Fault::SendAndWait,
            // It may wait for an acknowledgement that the back-end knows nothing of.
            _ => unknown,
        };
        let fault = match self.fault {
            Fault::DelayLate => format!("delay {}ms", LATE * slower),
            fault => fault.to_string(),
        };
        let healthy = Script::parse(self.kindred.device).unwrap();
        let text = format!(
            "{}on any nth={}: {fault}",
            self.kindred.device, self.message.nth
        );
        let site = Site::new(Script::parse(&text).unwrap(), &healthy);
        let mut life = Life::new(&site, late.then_some(BRIEF * slower), slower);
        let no_channel = effect == Effect::Astray && self.message.name == "SET_BACKEND_REQ_FD";
        life.mute = no_channel || self.fault == Fault::StopReading;
        let surplus = matches!(verdict, Verdict::Lost(_)) && when == When::Next;
        let lived = life.live().and_then(|()| match life.lost() {
            // It is noticed when something is asked again.
            false if surplus => life.one_more(),
            _ => Ok(()),
        });
        let ran = life.runs;
        let lived = lived.and_then(|()| match life.lost() {
            true => life.begin_again(),
            false => Ok(()),
        });
        while let Some(event) = life.front.device.process().unwrap() {
            life.events.push(event);
        }
        let info = life.front.device.info();
        let Life { front, events, .. } = life;
        drop(front);
        let outcomes = site.finish();
        let told = || {
            let logs: Vec<_> = outcomes.iter().map(ToString::to_string).collect();
            format!("{events:#?}\n{}", logs.join("---\n"))
        };
        let losses: Vec<_> = events
            .iter()
            .filter(|event| event.kind == EventKind::Lost)
            .collect();
        // Where deadlines are short, any may pass.
        if late && losses.len() > 1 {
            return Err(Trouble::Noise);
        }
        if let (Verdict::GoesOn, [lost]) = (&verdict, losses.as_slice()) {
            let kind = lost.error.as_ref().map(|error| error.kind);
            if late && kind == Some(Kind::TimedOut) {
                return Err(Trouble::Noise);
            }
        }
        lived.map_err(|trouble| match trouble {
            Trouble::Wrong(text) => Trouble::Wrong(format!("{text}\n{}", told())),
            Trouble::Noise => Trouble::Noise,
        })?;
        self.check_loss(&verdict, when, &losses)
            .and_then(|()| {
                self.check_end(&verdict, &outcomes, &events, info.connections, late, ran)
            })
            .map_err(|trouble| match trouble {
                Trouble::Wrong(text) => Trouble::Wrong(format!("{text}\n{}", told())),
                Trouble::Noise => Trouble::Noise,
            })
    }

    fn check_loss(&self, verdict: &Verdict, when: When, losses: &[&Event]) -> Checked {
        let lost = match (verdict, losses) {
            (Verdict::GoesOn, []) => return Ok(()),
            (Verdict::Either, [] | [_]) => return Ok(()),
            (Verdict::GivenUp, [lost]) => {
                let kind = lost.error.as_ref().map(|error| error.kind);
                ensure!(kind == Some(Kind::Canceled), "lost with {kind:?}");
                return Ok(());
            }
            (Verdict::Lost(_), [lost]) => lost,
            (Verdict::Lost(_), []) if self.fault == Fault::DelayLate => {
                return Err(Trouble::Noise);
            }
            _ => {
                let losses = losses.len();
                return Err(Trouble::Wrong(format!("{losses} losses, not {verdict:?}")));
            }
        };
        let Verdict::Lost(kinds) = verdict else {
            return Ok(());
        };
        let Some(error) = &lost.error else {
            return Err(Trouble::Wrong("lost without a reason".to_owned()));
        };
        let request = error.request.map(|request| request.info().name.as_str());
        let own = request == Some(self.named);
        // Descriptors belong to whichever answer they are read with; and where an
        // answer is missing, the wrong one may be the next.
        let (effect, _) = expected(self.fault, self.message);
        let shifted = matches!(effect, Effect::Late(Then::Displacement | Then::Gap));
        let some = shifted || matches!(self.fault, Fault::Fds(_));
        let answered = self.message.answered && when == When::Now && !some;
        if error.kind == Kind::TimedOut && !own && answered {
            return Err(Trouble::Noise);
        }
        ensure!(kinds.contains(&error.kind), "not {kinds:?}: {error}");
        // What comes when nothing is asked for belongs to none.
        let unasked = when == When::Next;
        ensure!(request.is_some() || unasked, "no request is named: {error}");
        ensure!(own || !answered, "another request is named: {error}");
        Ok(())
    }

    /// What was refused is reported, and nothing else.
    fn check_refusals(&self, verdict: &Verdict, outcome: &Outcome, events: &[Event]) -> Checked {
        let mut requests = outcome.log.iter().filter(|line| line.starts_with("> "));
        let request = requests.nth(self.message.nth - 1).unwrap();
        let refused = events.iter().filter(|it| it.kind == EventKind::Refused);
        let refused: Vec<_> = refused
            .map(|event| event.error.as_ref().unwrap())
            .map(|error| (error.request.unwrap().info().name.as_str(), error.ring))
            .collect();
        let own = |ring| (self.message.name.as_str(), ring);
        let wanted = match self.message.name.as_str() {
            "REM_MEM_REG" if *verdict == Verdict::GivenUp => vec![own(None); 3],
            // The ring lies in this region.
            "ADD_MEM_REG" if request.contains(&format!(" guest-addr={RAM:#x} ")) => {
                vec![own(None), own(Some(0))]
            }
            "ADD_MEM_REG" | "REM_MEM_REG" => vec![own(None)],
            // The ring is stopped next, enabled or not.
            "SET_VRING_ENABLE" if request.contains(" num=0") => Vec::new(),
            _ => vec![own(Some(0))],
        };
        ensure!(refused == wanted, "REFUSED: {refused:?}, not {wanted:?}");
        Ok(())
    }

    /// The ring runs with whoever is there at the end.
    fn check_end(
        &self,
        verdict: &Verdict,
        outcomes: &[Outcome],
        events: &[Event],
        connections: u64,
        late: bool,
        ran: bool,
    ) -> Checked {
        let told = |kind| events.iter().any(|event| event.kind == kind);
        let lost = |event: &&Event| event.kind == EventKind::Lost;
        let losses = events.iter().filter(lost).count();
        let back_ends = u64::try_from(outcomes.len()).unwrap();
        ensure!(
            connections == back_ends && outcomes.len() == losses + 1,
            "{connections} connections, {back_ends} back-ends, {losses} losses"
        );
        for (at, lost) in events.iter().enumerate() {
            if lost.kind != EventKind::Lost {
                continue;
            }
            let reset = lost.recovery == Recovery::NeedsReset;
            ensure!(told(EventKind::NeedsReset) == reset, "NEEDS_RESET");
            let again = !matches!(lost.recovery, Recovery::Idle | Recovery::NeedsReset);
            // Of rings that were being stopped, as the caller or a refusal had it, only
            // the policy is named. Nothing was asked again between a refusal and a loss.
            let of_ring = |event: &Event| {
                let error = event.error.as_ref();
                event.kind == EventKind::Refused && error.is_some_and(|it| it.ring.is_some())
            };
            let refused = events[..at].iter().any(of_ring);
            let recovered = told(EventKind::Recovered);
            ensure!(
                recovered == (again && ran && !refused),
                "RECOVERED {recovered}"
            );
        }
        let silent = matches!(
            self.fault,
            Fault::DelayLong | Fault::DelayLate | Fault::StopReading
        );
        if told(EventKind::Unfenced) && !silent {
            // It hangs up, and was not let run in time.
            return Err(Trouble::Noise);
        }
        // Half an answer and a part of the next may say no as well.
        let no = matches!(
            self.fault,
            Fault::Refuse(_) | Fault::Reply(1..) | Fault::Short(_)
        );
        let refusals = || {
            let all = events.iter();
            let all = all.filter(|event| event.kind == EventKind::ConfigRefused);
            all.map(|event| {
                let error = event.error.as_ref().unwrap();
                (error.kind, error.request == Some(Request::GetConfig))
            })
        };
        // Said of one that has none, which was not told either.
        let without = |kind: &Kind| *kind == Kind::NotNegotiated;
        let mut sent = outcomes[0].log.iter();
        let sent = sent.any(|line| line.starts_with("> SET_CONFIG"));
        ensure!(
            !sent || !refusals().any(|(kind, _)| without(&kind)),
            "SET_CONFIG"
        );
        let refused = |reading| refusals().any(|(kind, of)| !without(&kind) && of == reading);
        let (effect, _) = expected(self.fault, self.message);
        let reads = self.message.name == "GET_CONFIG";
        ensure!(
            refused(true) == (reads && matches!(effect, Effect::Refused(_))),
            "CONFIG_REFUSED for GET_CONFIG"
        );
        let refused = refused(false);
        let write = self.message.name == "SET_CONFIG" && self.message.need_reply;
        ensure!(!refused || (write && no), "CONFIG_REFUSED");
        ensure!(
            refused || !write || !matches!(self.fault, Fault::Refuse(_)),
            "no CONFIG_REFUSED"
        );
        let local = matches!(effect, Effect::Refused(_)) && is_local(&self.message.name);
        ensure!(local || no || !told(EventKind::Refused), "REFUSED");
        if local {
            self.check_refusals(verdict, &outcomes[0], events)?;
        }
        let mut answers = outcomes[0].log.iter().filter(|line| line.starts_with("< "));
        let own = |line: &str| self.message.name == "SET_CONFIG" || !line.contains("[send");
        let sends = matches!(self.fault, Fault::Send | Fault::SendAndWait);
        let played = answers.any(|line| line.ends_with(']') && (own(line) || sends));
        if !played && late && losses > 0 {
            // A deadline has passed before.
            return Err(Trouble::Noise);
        }
        ensure!(played, "no fault was played");
        let last = outcomes.last().unwrap();
        if losses > 0 {
            ensure!(last.is_met(), "the next back-end is not content");
        }
        // One that offers nothing any more has its rings enabled.
        let last_start = last
            .log
            .iter()
            .rposition(|line| line.starts_with("> SET_VRING_KICK"));
        let last_stop = last
            .log
            .iter()
            .rposition(|line| line.starts_with("> GET_VRING_BASE"));
        ensure!(
            last_start.is_some() && last_start > last_stop,
            "no ring runs"
        );
        Ok(())
    }
}

/// Everything that a device sends in its life, read off the log of a back-end.
fn messages(kindred: Kindred) -> Vec<Message> {
    let script = Script::parse(kindred.device).unwrap();
    let site = Site::new(script.clone(), &script);
    let mut life = Life::new(&site, None, 1);
    life.live().unwrap();
    assert!(!life.lost(), "{:?}", life.events);
    drop(life);
    let outcomes = site.finish();
    assert!(
        outcomes.len() == 1 && outcomes[0].is_met(),
        "{}",
        outcomes[0]
    );
    let log = outcomes[0].log.iter();
    let lines: Vec<_> = log.filter(|line| !line.starts_with("channel")).collect();
    let pairs = || lines.iter().zip(&lines[1..]);
    let asked = pairs().filter_map(|(line, next)| Some((line.strip_prefix("> ")?, next)));
    let mut messages: Vec<Message> = Vec::new();
    for (nth, (text, next)) in (1..).zip(asked) {
        let name = text.split(' ').next().unwrap().to_owned();
        let is_barrier = nth > 1 && name == "GET_FEATURES";
        if let Some(before) = messages.last_mut().filter(|_| is_barrier) {
            before.has_barrier = true;
        }
        let reply = next.strip_prefix("< ");
        let reply = reply.filter(|reply| !reply.starts_with("nothing"));
        let fds = reply.and_then(|reply| reply.split_once(" fds="));
        messages.push(Message {
            nth,
            step: 0,
            has_barrier: false,
            is_barrier,
            answered: reply.is_some(),
            need_reply: text.contains(" need-reply"),
            fds: fds.map_or(0, |(_, fds)| fds.parse().unwrap()),
            name,
        });
    }
    messages
}

/// The life of a device, with every message in it answered in every wrong way.
pub fn faults(mut done: impl FnMut(Result<(), String>)) {
    for kindred in KINDRED {
        let messages = messages(kindred);
        let mut channel = false;
        for (at, message) in messages.iter().enumerate() {
            channel |= message.name == "SET_BACKEND_REQ_FD";
            let answers_follow = messages[at + 1..].iter().any(|later| later.answered);
            let named = match message.is_barrier {
                true => &messages[at - 1].name,
                false => &message.name,
            };
            for fault in Fault::all(message, channel) {
                let case = Case {
                    kindred,
                    message,
                    named,
                    answers_follow,
                    fault,
                };
                done(checked(&case, kindred.reply_ack, |slower| case.run(slower)));
            }
        }
    }
}
