//! A back-end that asks on its channel, well and badly: the handler is told, the
//! answers are right, the channel stays in step or ends as the header says, and
//! the connection lives on.

use crate::case::{Called, Checked, Trouble, checked};
use crate::common::{AT_ONCE, PATIENCE};
use crate::faults::{BRIEF, Form};
use crate::scenarios::{
    ACCESS_PLATFORM, CONFIRM, Front, Message, PROBE, SCENARIOS, Scenario, Step, messages,
};
use nix::poll::{PollFd, PollFlags, poll};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::Request;
use vhost_user_frontend::{BackendClient, Kind, OnTimeout};
use vuf_mock_backend::{Mock, Outcome, Script};

/// Something that the back-end asks.
#[derive(Debug)]
pub struct Asked {
    /// As in a script.
    text: &'static str,
    /// What the handler is told.
    told: &'static str,
    /// It waits for what the handler says.
    waits: bool,
    payload: usize,
    /// A descriptor goes along.
    fd: bool,
}

macro_rules! asked {
    ($($text:literal => $told:literal, $waits:literal, $payload:literal, $fd:literal;)*) => {
        &[$(Asked {
            text: $text,
            told: $told,
            waits: $waits,
            payload: $payload,
            fd: $fd,
        },)*]
    };
}

const MAPPED: &str = "map 0 0x1000 0x2000 from 0x3000 flags 1";
const UNMAPPED: &str = "unmap 0 0x1000 0x2000";

const ASKED: &[Asked] = asked! {
    "IOTLB_MSG iova=0x1000 iotlb-size=0x2000 perm=3 type=1" => "miss 0x1000 3", true, 32, false;
    "CONFIG_CHANGE_MSG" => "config", false, 0, false;
    "VRING_HOST_NOTIFIER_MSG index=1 area-size=0x1000 area-offset=0x2000" => "notifier 1 0x2000 0x1000", true, 24, true;
    "VRING_CALL index=1" => "call 1", false, 8, false;
    "VRING_ERR index=1" => "err 1", false, 8, false;
    "SHARED_OBJECT_ADD uuid=07070707070707070707070707070707" => "added 7", false, 16, false;
    "SHARED_OBJECT_REMOVE uuid=07070707070707070707070707070707" => "removed 7", false, 16, false;
    "SHARED_OBJECT_LOOKUP uuid=07070707070707070707070707070707" => "lookup 7", true, 16, false;
    "SHMEM_MAP shmid=0 fd-offset=0x3000 shm-offset=0x1000 len=0x2000 flags=1" => "map 0 0x1000 0x2000 from 0x3000 flags 1", true, 40, true;
    "SHMEM_UNMAP shmid=0 shm-offset=0x1000 len=0x2000" => "unmap 0 0x1000 0x2000", true, 40, false;
};

impl Asked {
    fn name(&self) -> &'static str {
        self.text.split(' ').next().unwrap()
    }

    fn is(&self, name: &str) -> bool {
        self.name() == name
    }

    /// What the handler receives when it goes away by itself.
    fn gone(&self) -> Option<&'static str> {
        match self.name() {
            "VRING_HOST_NOTIFIER_MSG" => Some("notifier 1 gone"),
            "SHARED_OBJECT_ADD" => Some("removed 7"),
            "SHMEM_MAP" => Some(UNMAPPED),
            _ => None,
        }
    }

    /// It is answered even where nobody asks for that.
    fn always_answered(&self) -> bool {
        self.is("SHARED_OBJECT_LOOKUP")
    }

    /// What has to be there before.
    fn before(&self) -> &'static str {
        match self.is("SHMEM_UNMAP") {
            true => {
                "send SHMEM_MAP shmid=0 fd-offset=0x3000 shm-offset=0x1000 len=0x2000 flags=1 need-reply answer=0, "
            }
            false => "",
        }
    }

    /// The statement that sends it, with this answer where one is waited for.
    fn send(&self, need_reply: bool, answer: Option<i64>, faults: &str) -> String {
        let mut text = format!("{}send {}", self.before(), self.text);
        if need_reply {
            text += " need-reply";
        }
        match answer {
            Some(answer) if need_reply || self.always_answered() => {
                text += &format!(
                    " answer={:#x} within=10s",
                    u64::from_ne_bytes(answer.to_ne_bytes())
                );
            }
            _ => text += " no-wait",
        }
        if !faults.is_empty() {
            text += &format!(" ({faults})");
        }
        text
    }
}

/// What a well-made request is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Quiet,
    NeedReply,
    /// The handler says no.
    Fails,
}

const EIO: i32 = libc::EIO;

fn mock(script: &str) -> (std::os::unix::net::UnixStream, Mock) {
    let script = Script::parse(script).unwrap_or_else(|error| panic!("{script}: {error}"));
    Mock::spawn(script).unwrap()
}

/// Everything that a front-end does, with everything that the back-end may ask
/// before it answers.
pub fn asks_before_it_answers(mut done: impl FnMut(Result<(), String>)) {
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.setup() > 0) {
        let mut scenario = *scenario;
        scenario.serves = true;
        scenario.more |= ACCESS_PLATFORM;
        let device = format!("{}device features +33\n", scenario.device);
        for reply_ack in scenario.reply_ack.iter().copied() {
            let (messages, brought) = messages(&scenario, &device, reply_ack);
            let opened = |message: &&Message| message.name == "SET_BACKEND_REQ_FD";
            let from = messages
                .iter()
                .find(opened)
                .unwrap()
                .step
                .max(scenario.setup());
            for message in messages.iter().filter(|message| message.step >= from) {
                for asked in ASKED {
                    for how in [How::Quiet, How::NeedReply, How::Fails] {
                        if how == How::Fails && !asked.waits {
                            continue;
                        }
                        let case = Before {
                            scenario: &scenario,
                            device: &device,
                            reply_ack,
                            message,
                            brought: &brought,
                            asked,
                            how,
                        };
                        done(checked(&case, reply_ack, |_| case.run()));
                    }
                }
            }
        }
    }
}

struct Before<'a> {
    scenario: &'a Scenario,
    device: &'a str,
    reply_ack: bool,
    message: &'a Message,
    brought: &'a [u64],
    asked: &'a Asked,
    how: How,
}

impl fmt::Display for Before<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = if self.reply_ack { "with" } else { "without" };
        let Message { nth, name, .. } = self.message;
        let asked = self.asked.name();
        write!(
            f,
            "{}, {with} REPLY_ACK, before the answer to message {nth} ({name}): {asked}, {:?}",
            self.scenario.name, self.how
        )
    }
}

impl Before<'_> {
    /// Whether that may be asked, when it is served.
    fn agreed(&self, steps: &[&Step]) -> bool {
        match self.asked.name() {
            // They need INBAND_NOTIFICATIONS, which needs REPLY_ACK.
            "VRING_CALL" | "VRING_ERR" => self.reply_ack,
            "IOTLB_MSG" => {
                // Features may be used at once; a reset is done when it is confirmed.
                let waits = self.message.answered || self.message.has_barrier;
                let under_way = |at: usize| waits && at == self.message.step;
                let sent = steps.iter().enumerate().take(self.message.step + 1).rev();
                let mut acked = sent.filter_map(|(at, step)| match step.request {
                    Request::SetFeatures => Some(true),
                    Request::ResetOwner | Request::ResetDevice if !under_way(at) => Some(false),
                    _ => None,
                });
                acked.next().unwrap()
            }
            _ => true,
        }
    }

    fn run(&self) -> Checked {
        let steps = self.scenario.steps();
        let (asked, at) = (self.asked, self.message.step);
        let agreed = self.agreed(&steps);
        let answer = match self.how {
            _ if !agreed => -libc::EPERM,
            How::Fails => -EIO,
            _ => 0,
        };
        let send = asked.send(self.how != How::Quiet, Some(answer.into()), "");
        let script = format!("{}on any nth={}: {send}", self.device, self.message.nth);
        let (socket, mock) = mock(&script);
        let front =
            Front::new(socket, self.reply_ack, None, OnTimeout::Poison).more(self.scenario.more);
        if self.how == How::Fails {
            front.handler.fail(asked.told, -EIO);
        }
        // Nothing but the word about the table may be sent then.
        if self.scenario.name != "postcopy" {
            front.handler.post();
        }
        for (step, brought) in steps.iter().zip(self.brought).take(at + 1) {
            let brings = Called::now(step, &front).well()?;
            ensure!(brings == *brought, "{:?} brought {brings:#x}", step.request);
        }
        if Form::of(self.message) == Form::Table {
            Called::now(&CONFIRM, &front).well()?;
        }
        Called::now(&PROBE, &front).well()?;
        let inside = front.handler.take();
        drain(&front.client)?.map_err(|error| Trouble::Wrong(format!("it ended: {error}")))?;
        let later = front.handler.take();

        let mut told = Vec::new();
        if asked.is("SHMEM_UNMAP") {
            told.push(MAPPED);
        }
        if agreed {
            told.push(asked.told);
        }
        // A reset takes away what was set.
        let lives = match asked.gone() {
            Some(gone) if self.how != How::Fails && agreed => Some(gone),
            None if asked.is("SHMEM_UNMAP") && self.how == How::Fails => Some(UNMAPPED),
            _ => None,
        };
        let gone = lives.filter(|_| steps[at].request == Request::ResetDevice);
        let (now, other) = match asked.waits {
            true => (&inside, &later),
            false => (&later, &inside),
        };
        // Who waits for no answer may be read after the answer to the reset. Then nobody
        // can tell which of the two was sent first.
        let stays = gone.is_some() && self.how == How::Quiet && *now == told;
        told.extend(gone);
        ensure!(
            (*now == told || stays) && other.is_empty(),
            "the handler was told {inside:?}, later {later:?}"
        );
        drop(front);
        let outcome = mock.finish().unwrap();
        ensure!(outcome.is_met(), "{outcome}");
        let seen = format!("channel < {}", asked.name());
        ensure!(
            outcome.log.iter().any(|line| line.starts_with(&seen)),
            "it was not asked:\n{outcome}"
        );
        Ok(())
    }
}

// ---- faults ----

/// What becomes of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It goes on.
    InStep,
    /// The rest of a message does not come.
    Waits,
    /// It ends at the latest with the requests that follow.
    Ended(Kind),
}

/// What comes of a fault.
#[derive(Debug, Clone, Copy)]
struct Becomes {
    /// The handler is told: at least and at most so many times.
    told: (usize, usize),
    /// The answer, where there is one.
    answer: i64,
    end: End,
}

const FINE: Becomes = Becomes {
    told: (1, 1),
    answer: 0,
    end: End::InStep,
};
const BROKEN: Becomes = ended(Kind::Protocol);
const GONE: Becomes = ended(Kind::Disconnected);

const fn refused(errno: i32) -> Becomes {
    // A const context has no From.
    #[allow(clippy::as_conversions, reason = "it is wider")]
    let answer = -(errno as i64);
    Becomes {
        told: (0, 0),
        answer,
        end: End::InStep,
    }
}

const fn ended(kind: Kind) -> Becomes {
    Becomes {
        told: (0, 0),
        answer: 0,
        end: End::Ended(kind),
    }
}

const REFUSED: Becomes = refused(libc::EINVAL);
const UNKNOWN: Becomes = refused(libc::EOPNOTSUPP);

const FLOOD: &str = "duplicate 3000";
/// Each holds a descriptor until it is sent.
const FLOOD_OF_FDS: &str = "duplicate 200";
/// More answers than a socket holds (277). Fewer requests than that and a quarter
/// of it: with more, a back-end that reads no answer while it sends may wait until
/// the front-end has room, which waits for the same.
const UNREAD: &str = "duplicate 310";

/// More than any request has.
const LINGERING: &str = "fds 2, files lingering";

const FAULTS: &[&str] = &[
    "split 1 1us",
    "split 12 1us",
    "pieces 1 1us",
    "delay 1ms",
    "trim 1",
    "pad 1",
    "pad 4096",
    "fds 0",
    "fds 1",
    "fds 2",
    "fds 8",
    "fds 40",
    "files directory",
    "files path",
    "files zero",
    "files empty",
    "files full-pipe",
    LINGERING,
    "code 0",
    "code 11",
    "code 99",
    "code 1006",
    "flags 0x0",
    "flags 0x2",
    "flags 0x5",
    "flags 0xd",
    "flags 0x11",
    "flags 0x80000001",
    "size 4",
    "size +8",
    "size 0x1001",
    "huge",
    "short 1",
    "short 4, close-after",
    "drop, raw ffffffffffffffffffffffff",
    "raw 00",
    "close",
    "close-after",
    FLOOD,
];

/// The one place that says so.
fn becomes(fault: &str, asked: &Asked) -> Becomes {
    let empty = asked.payload == 0;
    match fault {
        "split 1 1us" | "split 12 1us" | "pieces 1 1us" | "delay 1ms" => FINE,
        "trim 1" if empty => FINE,
        "trim 1" | "pad 1" => REFUSED,
        // No message is larger.
        "pad 4096" if empty => REFUSED,
        "pad 4096" => BROKEN,
        "fds 0" if asked.fd => REFUSED,
        "fds 0" => FINE,
        // Real back-ends send one with a look-up.
        "fds 1" if asked.fd || asked.always_answered() => FINE,
        "fds 1" | "fds 2" | "fds 8" | LINGERING => REFUSED,
        // What is mapped is looked at; a doorbell page is for the caller to judge.
        "files directory" | "files path" if asked.is("SHMEM_MAP") => refused(libc::EACCES),
        "files empty" | "files full-pipe" if asked.is("SHMEM_MAP") => REFUSED,
        _ if fault.starts_with("files ") => FINE,
        "code 0" | "code 11" | "code 99" | "code 1006" => UNKNOWN,
        "short 1" => Becomes {
            end: End::Waits,
            ..REFUSED
        },
        "short 4, close-after" | "close" => GONE,
        "close-after" => Becomes {
            told: (1, 1),
            ..GONE
        },
        "raw 00" => Becomes {
            told: (1, 1),
            ..BROKEN
        },
        FLOOD | FLOOD_OF_FDS | UNREAD => {
            let most = match asked.is("SHMEM_MAP") || asked.is("SHMEM_UNMAP") {
                true => 1,
                false => usize::MAX,
            };
            Becomes {
                told: (1, most),
                ..FINE
            }
        }
        _ => BROKEN,
    }
}

/// Who serves the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The calls on the connection.
    Calls,
    /// An event loop.
    Loop,
    /// Both at once.
    Both,
}

struct Spoilt {
    asked: &'static Asked,
    need_reply: bool,
    fault: &'static str,
    who: Who,
}

impl fmt::Display for Spoilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            asked,
            need_reply,
            fault,
            who,
        } = self;
        let need_reply = if *need_reply { " need-reply" } else { "" };
        write!(
            f,
            "{}{need_reply} on the channel, served by {who:?}: {fault}",
            asked.name()
        )
    }
}

/// Every request of the back-end with every fault.
pub fn faults(mut done: impl FnMut(Result<(), String>)) {
    for asked in ASKED {
        for need_reply in [false, true] {
            for fault in FAULTS.iter().copied() {
                let fault = match fault {
                    FLOOD if need_reply || asked.always_answered() => UNREAD,
                    FLOOD if asked.fd => FLOOD_OF_FDS,
                    fault => fault,
                };
                for who in [Who::Calls, Who::Loop, Who::Both] {
                    if fault == LINGERING && (need_reply || who == Who::Both) {
                        continue; // it takes its time
                    }
                    let case = Spoilt {
                        asked,
                        need_reply,
                        fault,
                        who,
                    };
                    done(checked(&case, true, |_| case.run()));
                }
            }
        }
        done(checked(
            &format!("{} without an end", asked.name()),
            true,
            |slower| endless(asked, slower),
        ));
    }
}

const CONFIG: Step = Step {
    request: Request::GetConfig,
    call: |front| front.client.get_config(0, 0, &mut [0; 4]).map(|()| 0),
};

fn opened(socket: std::os::unix::net::UnixStream, deadline: Option<u64>) -> Checked<Front> {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.serves).unwrap();
    let front = Front::new(socket, true, deadline, OnTimeout::Poison).more(ACCESS_PLATFORM);
    let steps = scenario.steps();
    let (last, _) = steps
        .iter()
        .enumerate()
        .find(|(_, step)| step.request == Request::SetBackendReqFd)
        .unwrap();
    for step in steps.into_iter().take(last + 1) {
        let called = Called::now(step, &front);
        if deadline.is_some() && called.timed_out() {
            return Err(Trouble::Noise);
        }
        called.well()?;
    }
    Ok(front)
}

impl Spoilt {
    fn unread(&self) -> bool {
        self.fault == UNREAD
    }

    /// What follows, and shows whether the channel is in step.
    fn follow(&self) -> &'static Asked {
        &ASKED[if self.asked.is("CONFIG_CHANGE_MSG") {
            5
        } else {
            1
        }]
    }

    fn script(&self, becomes: &Becomes) -> String {
        let judged = becomes.end == End::InStep && !self.fault.starts_with("duplicate");
        // One that is not known is not known to be answered always.
        let asks = self.need_reply || !self.fault.starts_with("code");
        let answer = (judged && asks).then_some(becomes.answer);
        let first = self.asked.send(self.need_reply, answer, self.fault);
        let follow = self.follow();
        let after = match becomes.end {
            End::Waits => vec![],
            End::InStep if self.unread() => vec![],
            End::InStep => vec![follow.send(true, Some(0), "")],
            End::Ended(Kind::Disconnected) => vec![],
            // What is left of one message is taken for the beginning of the next.
            End::Ended(_) => vec![follow.send(false, None, ""); 2],
        };
        let mut text = "device features +33\n".to_owned();
        if self.who == Who::Loop {
            text += "expect GET_CONFIG\n";
            let all: Vec<_> = first.split(", send").collect();
            assert!(all.len() <= 2, "{first}");
            let mut lines = vec![all[0].to_owned()];
            lines.extend(all.get(1).map(|rest| format!("send{rest}")));
            lines.extend(after);
            text += &lines.join("\n");
        } else {
            for (nth, send) in (1..).zip([first].into_iter().chain(after)) {
                text += &format!("on GET_CONFIG nth={nth}: {send}\n");
            }
        }
        text
    }

    fn run(&self) -> Checked {
        let becomes = becomes(self.fault, self.asked);
        let (socket, mock) = mock(&self.script(&becomes));
        let front = opened(socket, None)?;
        match self.who {
            Who::Calls => self.calls(&front)?,
            Who::Loop => {
                Called::now(&CONFIG, &front).well()?;
                self.event_loop(&front, &becomes)?;
            }
            Who::Both => {
                let stop = AtomicBool::new(false);
                thread::scope(|scope| {
                    let serving = scope.spawn(|| {
                        while !stop.load(SeqCst) && front.client.process_backend_requests().is_ok()
                        {
                            ready(&front.client, 1);
                        }
                    });
                    let result = self.calls(&front);
                    stop.store(true, SeqCst);
                    serving.join().unwrap();
                    result
                })?;
            }
        }
        Called::now(&PROBE, &front).well()?;
        let end = drain(&front.client)?;
        let told = front.handler.take();
        self.judge(&becomes, &told, end.map_err(|error| error.kind))?;
        if !self.unread() {
            ensure!(
                !ready(&front.client, 0),
                "there is something to do for ever"
            );
        }
        // A main call as any other.
        Called::now(&CONFIG, &front).well()?;
        drop(front);
        self.played(&mock.finish().unwrap(), &becomes)
    }

    fn calls(&self, front: &Front) -> Checked {
        for _ in 0..3 {
            Called::now(&CONFIG, front).well()?;
        }
        Ok(())
    }

    /// Until all is done that there is to do.
    fn event_loop(&self, front: &Front, becomes: &Becomes) -> Checked {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            // There is no telling when nothing more will come.
            let quiet = becomes.end == End::Waits || self.unread();
            let wait = if quiet { 5 } else { 2000 };
            if !ready(&front.client, wait) {
                ensure!(quiet, "nothing came");
                return Ok(());
            }
            let called = Instant::now();
            let result = front.client.process_backend_requests();
            let took = called.elapsed();
            ensure!(took < AT_ONCE, "process_backend_requests took {took:?}");
            if result.is_err() || front.handler.has(self.follow().told) {
                return Ok(());
            }
        }
        Err(Trouble::Wrong(
            "there is something to do for ever".to_owned(),
        ))
    }

    fn judge(&self, becomes: &Becomes, told: &[String], end: Result<(), Kind>) -> Checked {
        let right = match becomes.end {
            End::InStep | End::Waits => Ok(()),
            End::Ended(kind) => Err(kind),
        };
        ensure!(
            end == right,
            "the channel is {end:?}, should be {right:?}; {told:?}"
        );
        let count = |what: &str| told.iter().filter(|line| *line == what).count();
        let (mapped, mut times) = (count(MAPPED), count(self.asked.told));
        // What is mapped when the channel ends goes away.
        if mapped > 0 && end.is_err() {
            ensure!(count(UNMAPPED) == 1, "it stays mapped: {told:?}");
            if self.asked.is("SHMEM_UNMAP") && becomes.told == (0, 0) {
                times -= 1;
            }
        }
        // So do a doorbell page and a shared object.
        let gone = self.asked.gone().filter(|gone| *gone != UNMAPPED);
        if let Some(gone) = gone {
            let expected = usize::from(times > 0 && end.is_err());
            ensure!(
                count(gone) == expected,
                "it is not withdrawn once: {told:?}"
            );
        }
        let (least, most) = becomes.told;
        ensure!(
            (least..=most).contains(&times),
            "the handler was told {times} times, should be {least} to {most}"
        );
        let others = |line: &&String| {
            ![self.asked.told, MAPPED, UNMAPPED, self.follow().told].contains(&line.as_str())
                && gone != Some(line.as_str())
        };
        let other: Vec<_> = told.iter().filter(others).collect();
        ensure!(other.is_empty(), "the handler was told {other:?}");
        let followed = becomes.end == End::InStep && !self.unread();
        let follow = count(self.follow().told);
        ensure!(
            follow == usize::from(followed),
            "what followed was told {follow} times"
        );
        Ok(())
    }

    fn played(&self, outcome: &Outcome, becomes: &Becomes) -> Checked {
        let seen = outcome
            .log
            .iter()
            .filter(|line| line.starts_with("channel < ") && line.ends_with(']'));
        ensure!(seen.count() == 1, "no fault was played:\n{outcome}");
        let closed = |line: &String| {
            line.contains("the front-end has closed the channel")
                || line.contains("the front-end has given no channel")
        };
        let expected = matches!(becomes.end, End::Ended(_)) && outcome.unmet.iter().all(closed);
        ensure!(outcome.is_met() || expected, "{outcome}");
        Ok(())
    }
}

/// A back-end that asks for ever and never answers: the deadline holds.
fn endless(asked: &Asked, slower: u64) -> Checked {
    let flood = if asked.fd {
        FLOOD_OF_FDS
    } else {
        "duplicate 60000"
    };
    let send = asked.send(false, None, flood);
    let (socket, mock) = mock(&format!(
        "device features +33\non GET_CONFIG: {send}, never"
    ));
    let front = opened(socket, Some(BRIEF * slower))?;
    Called::now(&CONFIG, &front)
        .failed(&[Kind::TimedOut], Duration::from_millis(BRIEF * slower))?;
    drop(front);
    mock.finish().unwrap();
    Ok(())
}

fn ready(client: &BackendClient, milliseconds: u16) -> bool {
    let notifier = client.backend_notifier().unwrap();
    let mut fds = [PollFd::new(notifier, PollFlags::POLLIN)];
    poll(&mut fds, milliseconds).unwrap() == 1
}

/// Does all that there is to do now. The failure is that of a channel that has
/// ended, which is told each time.
fn drain(client: &BackendClient) -> Checked<vhost_user_frontend::Result<()>> {
    for _ in 0..1000 {
        let result = client.process_backend_requests();
        if let Err(error) = result {
            let again = client
                .process_backend_requests()
                .map_err(|again| again.kind);
            ensure!(
                again == Err(error.kind),
                "it ended with {error}, and then it is {again:?}"
            );
            return Ok(Err(error));
        }
        if !ready(client, 0) {
            return Ok(Ok(()));
        }
    }
    Err(Trouble::Wrong(
        "there is something to do for ever".to_owned(),
    ))
}
