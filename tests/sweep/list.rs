//! A list of requests, with every message of it answered wrongly: what is told of the
//! list is true, and the connection lives on or not, as with single requests.

use crate::case::{Checked, Trouble, checked};
use crate::common::{AT_ONCE, PATIENCE};
use crate::faults::{BRIEF, Effect, Fault, LATE, Then, When, expected};
use crate::scenarios::{Front, MTU, Message, NEGOTIATE, PROBE};
use std::fmt;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::Request;
use vhost_user_frontend::{Class, Error, Kind, OnTimeout, Submitted, Timeout};
use vuf_mock_backend::{Mock, Script};

/// It has an MTU.
const DEVICE: &str = "device features +3\n";

struct Case<'a> {
    reply_ack: bool,
    on_timeout: OnTimeout,
    /// Those of the list, and the barrier behind it.
    messages: &'a [Message],
    at: usize,
    fault: Fault,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = if self.reply_ack { "with" } else { "without" };
        let name = &self.messages[self.at].name;
        let Self {
            on_timeout,
            at,
            fault,
            ..
        } = self;
        write!(
            f,
            "list, {with} REPLY_ACK, {on_timeout:?}, message {at} ({name}): {fault}"
        )
    }
}

/// Every fault at every message of a list.
pub fn faults(done: &mut dyn FnMut(Result<(), String>)) {
    for reply_ack in [true, false] {
        let messages = messages(reply_ack);
        for (at, message) in messages.iter().enumerate() {
            for fault in Fault::all(message, false) {
                for on_timeout in [OnTimeout::Poison, OnTimeout::Keep] {
                    let case = Case {
                        reply_ack,
                        on_timeout,
                        messages: &messages,
                        at,
                        fault,
                    };
                    done(checked(&case, reply_ack, |slower| case.run(slower)));
                }
            }
        }
    }
}

fn negotiate(front: &Front) -> Checked {
    for step in NEGOTIATE {
        (step.call)(front).map_err(|error| Trouble::Wrong(error.to_string()))?;
    }
    Ok(())
}

/// The messages of the list as a back-end has them.
fn messages(reply_ack: bool) -> Vec<Message> {
    let run = |with_list: bool| {
        let (socket, mock) = Mock::spawn(Script::parse(DEVICE).unwrap()).unwrap();
        let front = Front::new(socket, reply_ack, None, OnTimeout::Poison).more(MTU);
        negotiate(&front).unwrap();
        if with_list {
            let submitted = front.client.submit(&front.list(), Timeout::Default);
            assert!(submitted.failure.is_none(), "{submitted:?}");
        }
        drop(front);
        let outcome = mock.finish().unwrap();
        assert!(outcome.is_met(), "{outcome}");
        let sent = outcome.log.into_iter();
        let sent = sent.filter_map(|line| Some(line.strip_prefix("> ")?.to_owned()));
        sent.collect::<Vec<_>>()
    };
    let before = run(false).len();
    let sent = run(true);
    let last = sent.len();
    let list = sent.iter().zip(1..).skip(before);
    list.map(|(text, nth)| {
        let is_barrier = !reply_ack && nth == last;
        Message {
            nth,
            step: 0,
            has_barrier: !reply_ack,
            is_barrier,
            answered: reply_ack || is_barrier,
            need_reply: reply_ack,
            fds: 0,
            name: text.split(' ').next().unwrap().to_owned(),
        }
    })
    .collect()
}

fn wrong<T>(text: String) -> Checked<T> {
    Err(Trouble::Wrong(text))
}

impl Case<'_> {
    /// What becomes of the list, and at which message: the answers to those behind it
    /// are on their way as well.
    fn expected(&self) -> (Effect, usize) {
        let message = &self.messages[self.at];
        let (effect, when) = expected(self.fault, message);
        let last = self.at + 1 == self.messages.len();
        let at = match when {
            When::Now => self.at,
            // A later one, of which there may be none.
            When::Next => self.at + 1,
            When::NextAnswer if self.reply_ack || last => self.at + 1,
            When::NextAnswer => self.messages.len() - 1,
        };
        match effect {
            // What is missing is seen in the next answer.
            Effect::Late(Then::Displacement | Then::Gap) if !last => (Effect::Broken, self.at),
            effect => (effect, at),
        }
    }

    fn run(&self, slower: u64) -> Checked {
        let (effect, at) = self.expected();
        let late = matches!(effect, Effect::Late(_));
        let nth = self.messages[self.at].nth;
        let text = match self.fault {
            Fault::DelayLate => format!("{DEVICE}on any nth={nth}: delay {}ms", LATE * slower),
            fault => format!("{DEVICE}on any nth={nth}: {fault}"),
        };
        let script = Script::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let (socket, mock) = Mock::spawn(script).unwrap();
        let deadline = late.then_some(BRIEF * slower);
        let front = Front::new(socket, self.reply_ack, deadline, self.on_timeout).more(MTU);
        match negotiate(&front) {
            Err(_) if late => return Err(Trouble::Noise),
            other => other?,
        }
        let start = Instant::now();
        let submitted = front.client.submit(&front.list(), Timeout::Default);
        let took = start.elapsed();
        let deadline = deadline.map_or(Duration::ZERO, Duration::from_millis);
        // From one answer to the next.
        let most = deadline * u32::try_from(self.messages.len()).unwrap() + AT_ONCE;
        if took >= most {
            return wrong(format!("it took {took:?}"));
        }
        let within = at < self.messages.len();
        let ends = matches!(effect, Effect::Broken | Effect::HungUp);
        let effect = if within { effect } else { Effect::Nothing };
        self.judge(&submitted, effect, at, slower)?;
        let mut back = Some(mock);
        if ends && !within {
            // After it has finished, all that it sends is there.
            back.take().unwrap().finish().unwrap();
        }
        self.afterwards(&front, deadline)?;
        front.client.abort();
        drop(front);
        if let Some(mock) = back {
            mock.finish().unwrap();
        }
        Ok(())
    }

    /// What is told of the list.
    fn judge(&self, submitted: &Submitted, effect: Effect, at: usize, slower: u64) -> Checked {
        let number = self.messages.len() - usize::from(!self.reply_ack);
        let told = || format!("at {at}, should be {effect:?}: {submitted:?}");
        let Some(failure) = &submitted.failure else {
            // What is late by accident is not what was to be seen.
            let came = self.fault == Fault::DelayLate && slower > 1;
            return match effect {
                Effect::Nothing | Effect::Astray
                    if (submitted.sent, submitted.applied) == (number, number) =>
                {
                    Ok(())
                }
                _ if came => Err(Trouble::Noise),
                _ => wrong(told()),
            };
        };
        let error = &failure.error;
        let index = failure.index.unwrap_or(number);
        let late = matches!(effect, Effect::Late(_));
        if late && error.kind == Kind::TimedOut && index < at {
            return Err(Trouble::Noise);
        }
        let kind = match effect {
            Effect::Nothing | Effect::Astray => return wrong(told()),
            Effect::Refused(_) => Kind::Nack,
            Effect::Broken => Kind::Protocol,
            Effect::HungUp => Kind::Disconnected,
            Effect::Late(_) => Kind::TimedOut,
        };
        // Without acknowledgements a back-end may be seen to hang up while the rest is
        // being sent, or behind it.
        let index_right = match self.reply_ack {
            true => index == at,
            false => index == number || effect == Effect::HungUp,
        };
        let (applied, refused) = match (effect, self.reply_ack) {
            (Effect::Refused(_), _) => (number - 1, 1),
            (_, true) => (at, 0),
            (_, false) => (0, 0),
        };
        let value_right = match effect {
            Effect::Refused(value) => error.value == value,
            _ => true,
        };
        let mut counts_right = (submitted.applied, submitted.refused) == (applied, refused);
        // An answer that was cut short is made whole by the next one, and may look like
        // a refusal; what comes then does not look like anything.
        let kind = match self.fault {
            Fault::Short(_) if self.reply_ack && error.kind == Kind::Nack => {
                counts_right = (submitted.applied, submitted.refused) == (at, 1);
                Kind::Nack
            }
            _ => kind,
        };
        let name = &self.messages[index.min(self.messages.len() - 1)].name;
        let named = named(error, name);
        match error.kind == kind && index_right && counts_right && value_right && named {
            true => Ok(()),
            false => wrong(told()),
        }
    }

    /// What the connection is worth then.
    fn afterwards(&self, front: &Front, deadline: Duration) -> Checked {
        let (effect, at) = self.expected();
        let probe = || {
            let start = Instant::now();
            let result = (PROBE.call)(front);
            (result, start.elapsed())
        };
        let (result, took) = probe();
        if took >= deadline + AT_ONCE {
            return wrong(format!("the request after it took {took:?}"));
        }
        let kinds: &[Kind] = match (effect, self.on_timeout) {
            (Effect::Nothing | Effect::Astray | Effect::Refused(_), _) => {
                return match result {
                    Ok(_) => Ok(()),
                    Err(error) => wrong(format!("the request after it failed: {error}")),
                };
            }
            (Effect::Late(Then::Recovery), OnTimeout::Keep) => {
                let mut result = result;
                let end = Instant::now() + PATIENCE;
                while result.is_err() {
                    if Instant::now() > end {
                        return wrong("it waits for ever".to_owned());
                    }
                    result = probe().0;
                }
                return Ok(());
            }
            // Nothing is outstanding after the last: the next request notices.
            (Effect::Broken, _) if at == self.messages.len() => {
                &[Kind::Protocol, Kind::Poisoned(Class::Protocol)]
            }
            (Effect::Broken, _) => &[Kind::Poisoned(Class::Protocol)],
            (Effect::HungUp, _) => &[Kind::Disconnected],
            (Effect::Late(_), _) if at == self.messages.len() => &[Kind::TimedOut],
            (Effect::Late(_), OnTimeout::Poison) => &[Kind::Poisoned(Class::Transport)],
            // The answer to the one may be taken for that to the other.
            (Effect::Late(Then::Silence), OnTimeout::Keep) => &[Kind::TimedOut],
            (Effect::Late(_), OnTimeout::Keep) => &[
                Kind::TimedOut,
                Kind::Protocol,
                Kind::Poisoned(Class::Protocol),
            ],
        };
        match result {
            Err(error) if kinds.contains(&error.kind) => Ok(()),
            other => wrong(format!(
                "the request after it: {other:?}, should be {kinds:?}"
            )),
        }
    }
}

/// The error says which request it is about.
fn named(error: &Error, name: &str) -> bool {
    let named = error
        .request
        .map(|request: Request| request.info().name.as_str());
    named == Some(name) && error.to_string().starts_with(name)
}
