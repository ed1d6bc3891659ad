//! What can be done to a reply: faults as data, and what goes over the wire when
//! they are applied.

use crate::catalog::{Kind, Number};
use crate::files::FileKind;
use crate::message::{Outgoing, name};
use crate::model::scratch_file;
use crate::wire::MAX_FDS;
use crate::words::{Result, Word, Words};
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Where a pause is not given.
const PAUSE: Duration = Duration::from_millis(20);

/// A number to be set or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    To(u32),
    Plus(u32),
    Minus(u32),
}

impl Change {
    fn parse(word: Word<'_>) -> Result<Self> {
        Ok(match word.text.chars().next() {
            Some('+') => Self::Plus(word.tail().number()?),
            Some('-') => Self::Minus(word.tail().number()?),
            _ => Self::To(word.number()?),
        })
    }

    fn apply(self, number: u32) -> u32 {
        match self {
            Self::To(number) => number,
            Self::Plus(more) => number.wrapping_add(more),
            Self::Minus(less) => number.wrapping_sub(less),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(number) => write!(f, "{}", Number((*number).into())),
            Self::Plus(more) => write!(f, "+{more}"),
            Self::Minus(less) => write!(f, "-{less}"),
        }
    }
}

/// A request on the back-end's own channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendRequest {
    pub(crate) kind: &'static Kind,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: usize,
    pub(crate) need_reply: bool,
    /// How long to wait for the answer, if at all.
    pub(crate) within: Option<Duration>,
    /// What the answer must be.
    pub(crate) answer: Option<u64>,
    /// What is wrong with it.
    pub(crate) faults: Vec<Fault>,
}

/// One thing to do about a reply. Some need no reply and may stand on their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    // Another answer.
    Refuse(u64),
    Reply(u64),
    Payload(Vec<u8>),
    // Another message.
    Code(u32),
    Flags(u32),
    Size(Change),
    Pad(usize),
    Trim(usize),
    Fds(Change),
    Files(FileKind),
    // Another way to send it.
    Drop,
    Short(usize),
    Split(usize, Duration),
    Pieces(usize, Duration),
    Duplicate(usize),
    // Something before it.
    Delay(Duration),
    Send(BackendRequest),
    FillEventfds,
    // Instead of it, or after it.
    Close,
    CloseAfter,
    Raw(Vec<u8>),
    StopReading(Option<Duration>),
    Never,
}

/// The names, for who mistypes one.
const NAMES: &str = "refuse, reply, payload, code, flags, size, huge, pad, trim, fds, files, drop, short, \
     split, pieces, duplicate, delay, send, fill-eventfds, close, close-after, raw, stop-reading, never";

impl Fault {
    /// Reads all of them, and the commas between.
    pub(crate) fn list(words: &mut Words<'_>) -> Result<Vec<Self>> {
        let mut faults = vec![Self::parse(words)?];
        while words.take(",") {
            faults.push(Self::parse(words)?);
        }
        Ok(faults)
    }

    /// Reads one, up to a comma or the end.
    pub(crate) fn parse(words: &mut Words<'_>) -> Result<Self> {
        let verb = words.need("what to do about the reply")?;
        let fault = match verb.text {
            "refuse" => Self::Refuse(words.more().map_or(Ok(1), Word::number)?),
            "reply" => Self::Reply(words.need("the value to reply")?.number()?),
            "payload" => Self::Payload(words.need("the bytes")?.hex()?),
            "code" => Self::Code(request(words.need("a request or a number")?)?),
            "flags" => Self::Flags(words.need("the flags")?.number()?),
            "size" => Self::Size(Change::parse(words.need("the size")?)?),
            "huge" => Self::Size(Change::To(u32::MAX)),
            "pad" => Self::Pad(bytes(words)?),
            "trim" => Self::Trim(bytes(words)?),
            "fds" => Self::Fds(fds(words.need("a number of descriptors")?)?),
            "files" => Self::Files(file_kind(words.need("a kind of files")?)?),
            "drop" => Self::Drop,
            "short" => Self::Short(bytes(words)?),
            "split" => Self::Split(bytes(words)?, pause(words)?),
            "pieces" => Self::Pieces(bytes(words)?, pause(words)?),
            "duplicate" => Self::Duplicate(words.more().map_or(Ok(1), Word::number::<u16>)?.into()),
            _ => return Self::action(verb, words),
        };
        Ok(fault)
    }

    /// Reads one of those that need no reply; its first word is read already.
    pub(crate) fn action(verb: Word<'_>, words: &mut Words<'_>) -> Result<Self> {
        Ok(match verb.text {
            "delay" => Self::Delay(words.need("a time")?.duration()?),
            "send" => Self::Send(BackendRequest::parse(words)?),
            "fill-eventfds" => Self::FillEventfds,
            "close" => Self::Close,
            "close-after" => Self::CloseAfter,
            "raw" => Self::Raw(words.need("the bytes")?.hex()?),
            "stop-reading" => Self::StopReading(words.more().map(Word::duration).transpose()?),
            "never" => Self::Never,
            _ => return Err(verb.error(format!("no such fault; there are {NAMES}"))),
        })
    }
}

fn bytes(words: &mut Words<'_>) -> Result<usize> {
    let word = words.need("a number of bytes")?;
    match word.number::<u16>()? {
        0 => Err(word.error("must be at least 1")),
        bytes => Ok(bytes.into()),
    }
}

fn pause(words: &mut Words<'_>) -> Result<Duration> {
    words.more().map_or(Ok(PAUSE), Word::duration)
}

fn request(word: Word<'_>) -> Result<u32> {
    match crate::catalog::request_named(word.text) {
        Some(kind) => Ok(kind.id),
        None => word
            .number()
            .map_err(|_| word.error("no request of the front-end, and no number")),
    }
}

fn fds(word: Word<'_>) -> Result<Change> {
    let change = Change::parse(word)?;
    let (Change::To(count) | Change::Plus(count) | Change::Minus(count)) = change;
    match usize::try_from(count) {
        Ok(count) if count <= MAX_FDS => Ok(change),
        _ => Err(word.error(format!(
            "a message takes no more than {MAX_FDS} descriptors"
        ))),
    }
}

fn file_kind(word: Word<'_>) -> Result<FileKind> {
    let known = FileKind::ALL.iter().find(|(name, _)| *name == word.text);
    known.map(|(_, kind)| *kind).ok_or_else(|| {
        let names = FileKind::ALL.map(|(name, _)| name).join(", ");
        word.error(format!("no such files; there are {names}"))
    })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse(value) => write!(f, "refuse {}", Number((*value).into())),
            Self::Reply(value) => write!(f, "reply {}", Number((*value).into())),
            Self::Payload(bytes) => write!(f, "payload {}", Hex(bytes)),
            Self::Code(code) => match crate::catalog::request(*code) {
                Some(_) => write!(f, "code {}", name(*code)),
                None => write!(f, "code {code}"),
            },
            Self::Flags(flags) => write!(f, "flags {flags:#x}"),
            Self::Size(change) => write!(f, "size {change}"),
            Self::Pad(bytes) => write!(f, "pad {bytes}"),
            Self::Trim(bytes) => write!(f, "trim {bytes}"),
            Self::Fds(change) => write!(f, "fds {change}"),
            Self::Files(kind) => write!(f, "files {}", kind.name()),
            Self::Drop => f.write_str("drop"),
            Self::Short(bytes) => write!(f, "short {bytes}"),
            Self::Split(bytes, pause) => write!(f, "split {bytes} {}", Time(*pause)),
            Self::Pieces(bytes, pause) => write!(f, "pieces {bytes} {}", Time(*pause)),
            Self::Duplicate(times) => write!(f, "duplicate {times}"),
            Self::Delay(time) => write!(f, "delay {}", Time(*time)),
            Self::Send(request) => write!(f, "send {request}"),
            Self::FillEventfds => f.write_str("fill-eventfds"),
            Self::Close => f.write_str("close"),
            Self::CloseAfter => f.write_str("close-after"),
            Self::Raw(bytes) => write!(f, "raw {}", Hex(bytes)),
            Self::StopReading(None) => f.write_str("stop-reading"),
            Self::StopReading(Some(time)) => write!(f, "stop-reading {}", Time(*time)),
            Self::Never => f.write_str("never"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_micros().checked_rem(1000) {
            Some(0) => write!(f, "{}ms", self.0.as_millis()),
            _ => write!(f, "{}us", self.0.as_micros()),
        }
    }
}

impl BackendRequest {
    /// How long the front-end may take to answer, unless the script says.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// The number that it is sent with.
    pub(crate) fn code(&self) -> u32 {
        let spoilt = self.faults.iter().rev().find_map(|fault| match fault {
            Fault::Code(code) => Some(*code),
            _ => None,
        });
        spoilt.unwrap_or(self.kind.id)
    }

    /// Whether it is answered unasked, with a descriptor for yes.
    pub(crate) fn is_lookup(&self) -> bool {
        let always = matches!(self.kind.answer, crate::catalog::Answer::Always(_));
        always && self.code() == self.kind.id
    }

    /// Reads what follows `send`.
    fn parse(words: &mut Words<'_>) -> Result<Self> {
        let word = words.need("a request of the back-end")?;
        let Some(kind) = crate::catalog::backend_request_named(word.text) else {
            let names: Vec<_> = crate::catalog::BACKEND_REQUESTS
                .iter()
                .map(|kind| kind.name)
                .collect();
            return Err(word.error(format!(
                "no request of the back-end; there are {}",
                names.join(", ")
            )));
        };
        let always = matches!(kind.answer, crate::catalog::Answer::Always(_));
        let mut request = Self {
            kind,
            payload: vec![0; kind.size.least()],
            fds: kind.fds,
            need_reply: false,
            within: always.then_some(Self::PATIENCE),
            answer: None,
            faults: Vec::new(),
        };
        let mut wait = true;
        while let Some(word) = words.more() {
            match word.pair() {
                None if word.text == "need-reply" => {
                    request.need_reply = true;
                    request.within = request.within.or(Some(Self::PATIENCE));
                }
                None if word.text == "no-wait" => wait = false,
                Some(("answer", value)) => request.answer = Some(value.number()?),
                Some(("within", value)) => request.within = Some(value.duration()?),
                Some(("fds", value)) => match value.number()? {
                    fds if fds <= MAX_FDS => request.fds = fds,
                    _ => return Err(value.error(format!("a message takes no more than {MAX_FDS}"))),
                },
                Some((key, value)) => {
                    let field = kind.fields.iter().find(|field| field.name == key);
                    let field = field.ok_or_else(|| word.error(no_field(kind)))?;
                    let set = field.write(&mut request.payload, value.value_of(*field)?);
                    set.ok_or_else(|| value.error("too large for this field"))?;
                    if key == "no-fd" && field.read(&request.payload) == Some(1) {
                        request.fds = 0;
                    }
                }
                None => return Err(word.error(no_field(kind))),
            }
        }
        if words.take("(") {
            request.faults = Fault::list(words)?;
            words.demand(")")?;
        }
        if !wait {
            request.within = None;
        }
        if request.answer.is_some() && request.within.is_none() {
            return Err(word.error("an answer was asked for, but none will be waited for"));
        }
        Ok(request)
    }
}

fn no_field(kind: &Kind) -> String {
    let names: Vec<_> = kind
        .fields
        .iter()
        .map(|field| format!("{}=", field.name))
        .collect();
    let own = if names.is_empty() {
        String::new()
    } else {
        format!("{}, ", names.join(", "))
    };
    format!(
        "{} takes {own}need-reply, no-wait, answer=, within=, fds=",
        kind.name
    )
}

impl fmt::Display for BackendRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}",
            self.kind.name,
            crate::message::Fields(self.kind.fields, &self.payload)
        )?;
        if self.need_reply {
            f.write_str(" need-reply")?;
        }
        if self.fds > 0 {
            write!(f, " fds={}", self.fds)?;
        }
        match (self.within, self.answer) {
            (None, _) => Ok(()),
            (Some(within), None) => write!(f, " within={}", Time(within)),
            (Some(within), Some(answer)) => write!(f, " within={} answer={answer}", Time(within)),
        }?;
        let faults: Vec<_> = self.faults.iter().map(Fault::to_string).collect();
        match faults.as_slice() {
            [] => Ok(()),
            faults => write!(f, " ({})", faults.join(", ")),
        }
    }
}

/// What is really done, in order.
#[derive(Debug)]
pub(crate) enum Act {
    /// One `sendmsg`, as far as the socket takes it.
    Bytes(Vec<u8>, Vec<OwnedFd>),
    /// Closes descriptors, however long that takes.
    CloseAside(Vec<OwnedFd>),
    Pause(Duration),
    Send(BackendRequest),
    FillEventfds,
    StopReading(Option<Duration>),
    Close,
    /// Nothing is sent on this connection any more.
    Never,
}

/// A reply with its faults, ready to be carried out.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What comes first.
    pub(crate) before: Vec<Act>,
    /// The reply in words, if one will be sent.
    pub(crate) text: Option<String>,
    /// The reply itself, and what comes after it or in its place.
    pub(crate) acts: Vec<Act>,
}

/// Applies the faults to a reply. `code` is what was asked.
pub(crate) fn plan(
    code: u32,
    mut reply: Option<Outgoing>,
    faults: &[Fault],
    two_writes: bool,
) -> std::io::Result<Plan> {
    for fault in faults {
        if let Fault::Reply(value) = fault {
            reply = Some(Outgoing::number(code, *value));
        }
        if let Some(reply) = &mut reply {
            spoil(reply, fault)?;
        }
    }
    let silent = |fault: &Fault| matches!(fault, Fault::Drop | Fault::Close | Fault::Never);
    let reply = reply.filter(|_| !faults.iter().any(silent));
    let before = faults.iter().filter_map(before).collect();
    let text = reply.as_ref().map(|reply| reply.text(code));
    let mut acts = Vec::new();
    if let Some(reply) = reply {
        let copies = faults.iter().find_map(|fault| match fault {
            Fault::Duplicate(times) => Some(*times),
            _ => None,
        });
        for _ in 0..copies.unwrap_or(0) {
            let fds = duplicates(&reply.fds)?;
            acts.extend(transmit(reply.bytes(), fds, faults, two_writes));
        }
        // Closing the one that is sent is not the last time then.
        let slow = |fault: &Fault| matches!(fault, Fault::Files(kind) if kind.is_slow());
        let aside = match faults.iter().any(slow) {
            true => Some(Act::CloseAside(duplicates(&reply.fds)?)),
            false => None,
        };
        acts.extend(transmit(reply.bytes(), reply.fds, faults, two_writes));
        acts.extend(aside);
    }
    acts.extend(faults.iter().filter_map(after));
    Ok(Plan { before, text, acts })
}

fn duplicates(fds: &[OwnedFd]) -> std::io::Result<Vec<OwnedFd>> {
    fds.iter().map(OwnedFd::try_clone).collect()
}

/// Changes the message itself.
fn spoil(reply: &mut Outgoing, fault: &Fault) -> std::io::Result<()> {
    match fault {
        Fault::Payload(payload) => reply.set_payload(payload.clone()),
        Fault::Code(code) => reply.header.code = *code,
        Fault::Flags(flags) => reply.header.flags = *flags,
        Fault::Size(change) => reply.header.size = change.apply(reply.header.size),
        Fault::Pad(bytes) => {
            let payload = [&reply.payload[..], &vec![0; *bytes]].concat();
            reply.set_payload(payload);
        }
        Fault::Trim(bytes) => {
            let left = reply.payload.len().saturating_sub(*bytes);
            let payload = reply.payload.get(..left).unwrap_or_default().to_vec();
            reply.set_payload(payload);
        }
        Fault::Fds(change) => {
            let have = u32::try_from(reply.fds.len()).unwrap_or(u32::MAX);
            let want = match change {
                Change::Minus(less) => have.saturating_sub(*less),
                _ => change.apply(have),
            };
            let want = usize::try_from(want).unwrap_or(MAX_FDS).min(MAX_FDS);
            reply.fds.truncate(want);
            while reply.fds.len() < want {
                reply.fds.push(scratch_file(0x1000)?);
            }
        }
        Fault::Files(kind) => {
            for fd in &mut reply.fds {
                *fd = kind.open()?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn before(fault: &Fault) -> Option<Act> {
    match fault {
        Fault::Delay(time) => Some(Act::Pause(*time)),
        Fault::Send(request) => Some(Act::Send(request.clone())),
        Fault::FillEventfds => Some(Act::FillEventfds),
        _ => None,
    }
}

fn after(fault: &Fault) -> Option<Act> {
    match fault {
        Fault::Raw(bytes) => Some(Act::Bytes(bytes.clone(), Vec::new())),
        Fault::StopReading(time) => Some(Act::StopReading(*time)),
        Fault::Close | Fault::CloseAfter => Some(Act::Close),
        Fault::Never => Some(Act::Never),
        _ => None,
    }
}

/// One copy of the reply on its way.
fn transmit(bytes: Vec<u8>, fds: Vec<OwnedFd>, faults: &[Fault], two_writes: bool) -> Vec<Act> {
    let mut bytes = bytes;
    let mut way = two_writes.then_some((crate::wire::HEADER_SIZE, None, false));
    for fault in faults {
        match fault {
            Fault::Short(less) => bytes.truncate(bytes.len().saturating_sub(*less)),
            Fault::Split(at, pause) => way = Some((*at, Some(*pause), false)),
            Fault::Pieces(size, pause) => way = Some((*size, Some(*pause), true)),
            _ => {}
        }
    }
    let Some((at, pause, again)) = way else {
        return vec![Act::Bytes(bytes, fds)];
    };
    let mut acts = Vec::new();
    let mut fds = Some(fds);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let cut = if again || fds.is_some() {
            at.min(rest.len())
        } else {
            rest.len()
        };
        let (piece, more) = rest.split_at(cut);
        if let Some(pause) = pause.filter(|_| fds.is_none()) {
            acts.push(Act::Pause(pause));
        }
        acts.push(Act::Bytes(piece.to_vec(), fds.take().unwrap_or_default()));
        rest = more;
    }
    acts
}

#[cfg(test)]
mod tests;
