//! The script language: one statement a line. `docs/mock-backend.md` is its
//! reference.

use crate::catalog::{self, Field, feature_named, mask};
use crate::device::{Device, StateChannel, WhenBroken};
use crate::fault::Fault;
use crate::message::Message;
use crate::mode::Mode;
use crate::words::{ParseError, Result, Word, Words};
use std::str::FromStr;

/// What the back-end is and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub(crate) mode: Mode,
    pub(crate) device: Device,
    pub(crate) rules: Vec<Rule>,
    pub(crate) steps: Vec<Step>,
}

impl Default for Script {
    fn default() -> Self {
        let mode = Mode::default();
        Self {
            mode,
            device: Device::of(mode),
            rules: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// Something that holds all along: `on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) pattern: Pattern,
    pub(crate) nth: Option<Nth>,
    pub(crate) faults: Vec<Fault>,
}

/// Which of the messages that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nth {
    Only(u64),
    From(u64),
}

impl Nth {
    pub(crate) fn is(self, count: u64) -> bool {
        match self {
            Self::Only(nth) => count == nth,
            Self::From(nth) => count >= nth,
        }
    }
}

/// Something that happens in its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) line: usize,
    /// The statement as it was written.
    pub(crate) source: String,
    pub(crate) what: What,
}

/// What a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Expect {
        pattern: Pattern,
        /// The very next message must be it.
        next: bool,
        faults: Vec<Fault>,
    },
    /// At once; the faults of the second are for a `send`.
    Do(Fault),
}

/// Which messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// `None` for any.
    request: Option<u32>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Field(Field, u128),
    Fds(usize),
    Size(usize),
    NeedReply(bool),
    Refused(bool),
}

impl Pattern {
    /// Whether the message is of that kind.
    pub(crate) fn names(&self, message: &Message) -> bool {
        self.request
            .is_none_or(|request| request == message.header.code)
    }

    /// Whether it is all that is asked. `refused` says whether the mode refuses it.
    pub(crate) fn fits(&self, message: &Message, refused: bool) -> bool {
        let holds = |condition: &Condition| match *condition {
            Condition::Field(field, value) => field.read(&message.payload) == Some(value),
            Condition::Fds(fds) => message.fds.len() == fds,
            Condition::Size(size) => message.payload.len() == size,
            Condition::NeedReply(wanted) => message.need_reply() == wanted,
            Condition::Refused(wanted) => refused == wanted,
        };
        self.names(message) && self.conditions.iter().all(holds)
    }

    /// Whether a refusal is what it waits for.
    pub(crate) fn wants_refusal(&self) -> bool {
        self.conditions.contains(&Condition::Refused(true))
    }

    fn parse(words: &mut Words<'_>) -> Result<(Self, Option<Nth>)> {
        let word = words.need("a request, or any")?;
        let kind = catalog::request_named(word.text);
        let request = match (word.text, kind) {
            ("any", _) => None,
            (_, Some(kind)) => Some(kind.id),
            _ => Some(word.number().map_err(|_| {
                word.error("no request of the front-end; write its name, its number, or any")
            })?),
        };
        let kind = request.and_then(catalog::request);
        let mut conditions = Vec::new();
        let mut nth = None;
        while let Some(word) = words.more() {
            let condition = match word.pair() {
                None if word.text == "need-reply" => Condition::NeedReply(true),
                None if word.text == "no-need-reply" => Condition::NeedReply(false),
                None if word.text == "refused" => Condition::Refused(true),
                Some(("nth", value)) => {
                    nth = Some(parse_nth(value)?);
                    continue;
                }
                Some(("fds", value)) => Condition::Fds(value.number()?),
                Some(("size", value)) => Condition::Size(value.number()?),
                pair => {
                    let fields = kind.map_or(&[][..], |kind| kind.fields);
                    let find = |key| fields.iter().find(|field| field.name == key);
                    match pair.and_then(|(key, value)| Some((*find(key)?, value))) {
                        Some((field, value)) => Condition::Field(field, value.value_of(field)?),
                        None => return Err(word.error(no_condition(fields))),
                    }
                }
            };
            conditions.push(condition);
        }
        Ok((
            Self {
                request,
                conditions,
            },
            nth,
        ))
    }
}

fn parse_nth(word: Word<'_>) -> Result<Nth> {
    let nth = match word.text.strip_suffix('+') {
        Some(_) => Nth::From(word.head().number()?),
        None => Nth::Only(word.number()?),
    };
    match nth {
        Nth::Only(0) | Nth::From(0) => Err(word.error("the first is nth=1")),
        nth => Ok(nth),
    }
}

fn no_condition(fields: &[Field]) -> String {
    let own: String = fields
        .iter()
        .map(|field| format!("{}=, ", field.name))
        .collect();
    format!(
        "no such condition; there are {own}fds=, size=, nth=, need-reply, no-need-reply, refused"
    )
}

impl FromStr for Script {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Script {
    /// Reads a script.
    pub fn parse(text: &str) -> Result<Self> {
        let mut script = Self::default();
        let mut mode = None;
        // The mode first, wherever it stands: the device begins with its habits.
        for (line, number) in text.lines().zip(1..) {
            let mut words = Words::of(line, number);
            if words.take("mode") {
                let word = words.need("a mode")?;
                let value = word
                    .text
                    .parse()
                    .map_err(|reason: String| word.error(reason))?;
                if mode.replace(value).is_some() {
                    return Err(word.error("the mode was given before"));
                }
                words.done()?;
            }
        }
        script.mode = mode.unwrap_or_default();
        script.device = Device::of(script.mode);
        for (line, number) in text.lines().zip(1..) {
            script.statement(line, number)?;
        }
        Ok(script)
    }

    fn statement(&mut self, source: &str, line: usize) -> Result<()> {
        let mut words = Words::of(source, line);
        let Some(verb) = words.next() else {
            return Ok(());
        };
        let what = match verb.text {
            "mode" => return Ok(()),
            "device" => return device(&mut self.device, &mut words),
            "on" => {
                let (pattern, nth) = Pattern::parse(&mut words)?;
                if pattern.wants_refusal() {
                    return Err(verb.error("what is refused is not answered: use expect"));
                }
                if !words.take(":") {
                    words.need("a colon and what to do")?;
                }
                let faults = faults(&mut words)?;
                self.rules.push(Rule {
                    pattern,
                    nth,
                    faults,
                });
                return Ok(());
            }
            "expect" => {
                let next = words.take("next");
                let (pattern, nth) = Pattern::parse(&mut words)?;
                if nth.is_some() {
                    return Err(verb.error("nth= is for on; write expect several times"));
                }
                let faults = if words.take(":") {
                    faults(&mut words)?
                } else {
                    Vec::new()
                };
                if pattern.wants_refusal() && !faults.is_empty() {
                    return Err(verb.error("what is refused is not answered: no faults here"));
                }
                words.done()?;
                What::Expect {
                    pattern,
                    next,
                    faults,
                }
            }
            "close-after" => return Err(verb.error("on a line of its own it is: close")),
            _ => {
                let mut action = Fault::action(verb, &mut words).map_err(|error| {
                    if error.word == verb.text {
                        verb.error(no_statement(verb.text))
                    } else {
                        error
                    }
                })?;
                if let Fault::Send(request) = &mut action
                    && words.take(":")
                {
                    request.faults.extend(faults(&mut words)?);
                }
                words.done()?;
                What::Do(action)
            }
        };
        let source = source
            .split('#')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        self.steps.push(Step { line, source, what });
        Ok(())
    }
}

fn no_statement(verb: &str) -> String {
    let mut alone = Words::of(verb, 1);
    let needs_reply = match Fault::parse(&mut alone) {
        Ok(_) => true,
        Err(error) => error.word.is_empty(), // its argument is missing
    };
    if needs_reply {
        return format!("spoils a reply: write `on REQUEST: {verb} ...`");
    }
    "no such statement; there are mode, device, expect, on, send, delay, raw, fill-eventfds, \
     stop-reading, never, close"
        .to_owned()
}

fn faults(words: &mut Words<'_>) -> Result<Vec<Fault>> {
    let faults = Fault::list(words)?;
    words.done()?;
    Ok(faults)
}

const DEVICE: &str = "features, protocol-features, queues, slots, config, config-size, shmem, state, \
     state-size, state-channel, object, base, when-broken";

fn device(device: &mut Device, words: &mut Words<'_>) -> Result<()> {
    let key = words.need("what to change")?;
    match key.text {
        "features" => {
            let bit = |word: Word<'_>| Ok(mask(&[number_below(word, 64)?]));
            device.features = set_of_bits(device.features, words, bit)?;
        }
        "protocol-features" => {
            let bit = |word: Word<'_>| match feature_named(word.text) {
                Some(bit) => Ok(mask(&[bit])),
                None if word.text.starts_with(|c: char| c.is_ascii_digit()) => {
                    Ok(mask(&[number_below(word, 64)?]))
                }
                None => Err(word.error(format!(
                    "no protocol feature; there are {}",
                    catalog::FEATURE_NAMES.join(", ")
                ))),
            };
            device.protocol = set_of_bits(device.protocol, words, bit)?;
        }
        "queues" => {
            let word = words.need("a number")?;
            device.queues = number_below(word, 257)?;
        }
        "slots" => device.slots = words.need("a number")?.number()?,
        "config" => device.config = words.need("the bytes")?.hex()?,
        "config-size" => {
            let size: u16 = words.need("a number of bytes")?.number()?;
            device.config = (0..=u8::MAX).cycle().take(size.into()).collect();
        }
        "shmem" => {
            device.shmem.clear();
            while let Some(word) = words.more() {
                let pair = word.text.split_once('=').zip(word.pair());
                let ((id, _), (_, size)) =
                    pair.ok_or_else(|| word.error("write ID=SIZE, for example 0=0x1000"))?;
                let id = id
                    .parse()
                    .map_err(|_| word.error("an id is a number from 0 to 255"))?;
                device.shmem.insert(id, size.number()?);
            }
        }
        "state" => device.state = words.need("the bytes")?.hex()?,
        "state-size" => {
            let size: u32 = words.need("a number of bytes")?.number()?;
            let size = usize::try_from(size).unwrap_or(0);
            device.state = (0..=u8::MAX).cycle().take(size).collect();
        }
        "state-channel" => {
            let word = words.need("given or own")?;
            device.state_channel = match word.text {
                "given" => StateChannel::Given,
                "own" => StateChannel::Own,
                _ => return Err(word.error("it is given or own")),
            };
        }
        "object" => device.objects.push(words.need("a UUID")?.uuid()?),
        "base" => {
            let word = words.need("RING=BASE")?;
            let (ring, base) = word.pair().ok_or_else(|| word.error("write RING=BASE"))?;
            let ring = ring
                .parse()
                .map_err(|_| word.error("the ring is a number"))?;
            device.bases.insert(ring, base.number()?);
        }
        "when-broken" => {
            let word = words.need("close or silent")?;
            device.when_broken = match word.text {
                "close" => WhenBroken::Close,
                "silent" => WhenBroken::Silent,
                _ => return Err(word.error("it is close or silent")),
            };
        }
        _ => return Err(key.error(format!("the device has no such thing; it has {DEVICE}"))),
    }
    words.done()
}

fn number_below(word: Word<'_>, end: u32) -> Result<u32> {
    let number = word.number()?;
    if number < end {
        Ok(number)
    } else {
        Err(word.error(format!("must be below {end}")))
    }
}

/// A mask such as `0x140000000`, a list of bits that replaces it, or `+bit -bit`.
fn set_of_bits(
    before: u64,
    words: &mut Words<'_>,
    bit: impl Fn(Word<'_>) -> Result<u64>,
) -> Result<u64> {
    let mut set = None;
    while let Some(word) = words.more() {
        let (old, new) = (set.unwrap_or(before), set.unwrap_or(0));
        set = Some(match word.text.chars().next() {
            Some('+') => old | bit(word.tail())?,
            Some('-') => old & !bit(word.tail())?,
            _ if word.text.starts_with("0x") => new | word.number::<u64>()?,
            _ if word.text == "none" => 0,
            _ => new | bit(word)?,
        });
    }
    match set {
        Some(set) => Ok(set),
        None => words.need("bits").map(|_| before),
    }
}

#[cfg(test)]
mod tests;
