//! What can be wrong with an answer, and what has to come of it, from the
//! protocol and from what this library promises. A name in capitals is one that
//! both the specification and the scripts of the mock use.

use crate::scenarios::Message;
use std::fmt;

/// Bytes of every header.
const HEADER: usize = 12;
/// No answer may have more bytes than this after its header.
const MOST: usize = 4096;

/// A deadline that is meant to pass, in milliseconds.
pub const BRIEF: u64 = 10;
/// An answer that comes so late comes after it.
pub const LATE: u64 = 30;

/// Files that nobody expects, and one that takes a second to close.
pub const FILES: [&str; 5] = ["directory", "path", "zero", "empty", "full-pipe"];
pub const LINGERING: &str = "lingering";

/// As in `docs/mock-backend.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Refuse(u64),
    Reply(u64),
    Payload(&'static str),
    Code(u32),
    Flags(u32),
    /// Size 4, whatever follows.
    Size4,
    /// A size that is greater than what follows by 8.
    Size8More,
    Huge,
    Pad(usize),
    Trim(usize),
    Fds(&'static str),
    /// For the descriptors that belong there.
    Files(&'static str),
    /// With one more.
    SurplusFiles(&'static str),
    Drop,
    Short(usize),
    ShortAndClose(usize),
    Split(usize),
    Pieces(usize),
    Duplicate,
    /// Shorter than the deadline.
    DelayShort,
    /// A little longer.
    DelayLate,
    /// As good as for ever.
    DelayLong,
    /// The back-end asks something and goes on.
    Send,
    /// The back-end asks something and waits for an answer.
    SendAndWait,
    FillEventfds,
    Close,
    CloseAfter,
    Raw(&'static str),
    StopReadingShort,
    StopReading,
    Never,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse(value) => write!(f, "refuse {value}"),
            Self::Reply(value) => write!(f, "reply {value}"),
            Self::Payload(bytes) => write!(f, "payload {bytes}"),
            Self::Code(code) => write!(f, "code {code}"),
            Self::Flags(flags) => write!(f, "flags {flags:#x}"),
            Self::Size4 => f.write_str("size 4"),
            Self::Size8More => f.write_str("size +8"),
            Self::Huge => f.write_str("huge"),
            Self::Pad(bytes) => write!(f, "pad {bytes}"),
            Self::Trim(bytes) => write!(f, "trim {bytes}"),
            Self::Fds(fds) => write!(f, "fds {fds}"),
            Self::Files(kind) => write!(f, "files {kind}"),
            Self::SurplusFiles(kind) => write!(f, "fds +1, files {kind}"),
            Self::Drop => f.write_str("drop"),
            Self::Short(bytes) => write!(f, "short {bytes}"),
            Self::ShortAndClose(bytes) => write!(f, "short {bytes}, close-after"),
            Self::Split(bytes) => write!(f, "split {bytes} 1ms"),
            Self::Pieces(bytes) => write!(f, "pieces {bytes} 1us"),
            Self::Duplicate => f.write_str("duplicate"),
            Self::DelayShort => f.write_str("delay 2ms"),
            Self::DelayLate => write!(f, "delay {LATE}ms"),
            Self::DelayLong => f.write_str("delay 100s"),
            Self::Send => f.write_str("send CONFIG_CHANGE_MSG no-wait"),
            Self::SendAndWait => f.write_str("send CONFIG_CHANGE_MSG need-reply within=100s"),
            Self::FillEventfds => f.write_str("fill-eventfds"),
            Self::Close => f.write_str("close"),
            Self::CloseAfter => f.write_str("close-after"),
            Self::Raw(bytes) => write!(f, "raw {bytes}"),
            Self::StopReadingShort => f.write_str("stop-reading 2ms"),
            Self::StopReading => f.write_str("stop-reading"),
            Self::Never => f.write_str("never"),
        }
    }
}

impl Fault {
    /// Those for the answer to this message. `channel`: the back-end may ask.
    pub fn all(message: &Message, channel: bool) -> Vec<Self> {
        let payload = Form::of(message).payload();
        let whole = HEADER + payload;
        let mut faults = vec![
            Self::Refuse(1),
            Self::Refuse(22),
            Self::Reply(0),
            Self::Reply(5),
            Self::Payload("00"),
            Self::Code(0),
            Self::Code(99),
            Self::Flags(0x1),
            Self::Flags(0x4),
            Self::Flags(0x6),
            Self::Flags(0x15),
            Self::Flags(0xd),
            Self::Size4,
            Self::Size8More,
            Self::Huge,
            Self::Pad(1),
            Self::Pad(MOST),
            Self::Trim(1),
            Self::Fds("0"),
            Self::Fds("+1"),
            Self::Fds("+7"),
            Self::Fds("40"),
            Self::Drop,
            Self::Short(1),
            Self::Short(whole - 1),
            Self::ShortAndClose(1),
            Self::ShortAndClose(whole - 1),
            Self::Split(1),
            Self::Split(HEADER - 1),
            Self::Split(HEADER),
            Self::Split(whole - 1),
            Self::Pieces(7),
            Self::Duplicate,
            Self::DelayShort,
            Self::DelayLate,
            Self::DelayLong,
            Self::FillEventfds,
            Self::Close,
            Self::CloseAfter,
            Self::Raw("0300000005000000"), // a header cut short
            Self::Raw("ffffffffffffffffffffffff"),
            Self::StopReadingShort,
            Self::StopReading,
            Self::Never,
        ];
        faults.extend(FILES.map(Self::SurplusFiles));
        if message.fds > 0 {
            faults.extend(FILES.map(Self::Files));
            faults.push(Self::SurplusFiles(LINGERING));
        }
        if payload > 1 {
            faults.push(Self::Trim(payload));
        }
        if channel {
            faults.extend([Self::Send, Self::SendAndWait]);
        }
        faults
    }

    /// Whether a descriptor takes a second to close.
    pub fn lingers(self) -> bool {
        self == Self::SurplusFiles(LINGERING)
    }

    /// The first word of each statement that a script could have here.
    pub fn verbs(self) -> Vec<String> {
        let text = self.to_string();
        let verbs = text.split(", ").map(|one| one.split(' ').next());
        verbs.map(|verb| verb.unwrap().to_owned()).collect()
    }

    /// Whether it does something where no answer is due.
    pub fn needs_no_answer(self) -> bool {
        matches!(
            self,
            Self::Reply(_)
                | Self::DelayShort
                | Self::DelayLate
                | Self::DelayLong
                | Self::Send
                | Self::SendAndWait
                | Self::Close
                | Self::CloseAfter
                | Self::Raw(_)
                | Self::StopReadingShort
                | Self::StopReading
                | Self::Never
        )
    }
}

/// What the answer to a message is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// There is none.
    Nothing,
    /// 0 is yes.
    Ack,
    /// A number, and no way to say no.
    Number,
    /// A number that does not matter: the message only shows that those before
    /// it have been processed.
    Barrier,
    /// Ring and number.
    VringBase,
    /// Header and bytes. Without bytes it says no.
    Config,
    /// A description, and a descriptor unless the size in it is 0.
    Inflight,
    /// A number, and bytes that stand for many more.
    Shmem,
    /// Means nothing, of any size.
    Log,
    /// Low byte: 0 is yes. Then a descriptor, or a bit that says there is none.
    StateFd,
    /// Nothing, and a descriptor, without which it says no.
    Userfault,
    /// The same after bytes that do not matter, up to 16.
    Object,
    /// The session once more, with its number. A negative one says no.
    Crypto,
    /// The memory table once more, with other addresses.
    Table,
}

impl Form {
    pub fn of(message: &Message) -> Self {
        match message.name.as_str() {
            _ if !message.answered => Self::Nothing,
            _ if message.need_reply => Self::Ack,
            _ if message.is_barrier => Self::Barrier,
            "GET_FEATURES"
            | "GET_PROTOCOL_FEATURES"
            | "GET_QUEUE_NUM"
            | "GET_MAX_MEM_SLOTS"
            | "GET_STATUS" => Self::Number,
            "GET_VRING_BASE" | "GET_VRING_BASE_SKIP_DRAIN" => Self::VringBase,
            "GET_CONFIG" => Self::Config,
            "GET_INFLIGHT_FD" => Self::Inflight,
            "GET_SHMEM_CONFIG" => Self::Shmem,
            "SET_LOG_BASE" => Self::Log,
            "SET_DEVICE_STATE_FD" => Self::StateFd,
            "CHECK_DEVICE_STATE" => Self::Ack,
            "POSTCOPY_ADVISE" => Self::Userfault,
            "GET_SHARED_OBJECT" => Self::Object,
            "CREATE_CRYPTO_SESSION" => Self::Crypto,
            "SET_MEM_TABLE" => Self::Table,
            name => panic!("what is the answer to {name} made of?"),
        }
    }

    /// Bytes after the header.
    fn payload(self) -> usize {
        match self {
            Self::Config => 20,
            Self::Inflight => 24,
            Self::Shmem => 2056,
            Self::Userfault | Self::Object => 0,
            Self::Crypto => 1072,
            Self::Table => 72,
            _ => 8,
        }
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it brings what it always brings, and so do all later ones.
    Nothing,
    /// It is well for this call, but what the two ends know differs now.
    Astray,
    /// The back-end says no, with a value if it has one. The connection goes on.
    Refused(Option<u64>),
    /// The back-end breaks the protocol, which ends the connection.
    Broken,
    /// The back-end hangs up.
    HungUp,
    /// The deadline passes.
    Late(Then),
}

/// What comes after a deadline that does not end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The answer, late, which is dropped; and the connection goes on.
    Recovery,
    /// Nothing.
    Silence,
    /// The answer to the next request in place of the one that is missing.
    Displacement,
    /// Bytes that are missed in the middle of a message.
    Gap,
}

/// Which call it becomes of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The one that sends the message.
    Now,
    /// The one after that, since nothing waits for what is wrong.
    Next,
    /// The first one that waits for an answer to a later message.
    NextAnswer,
}

/// What has to come of a fault: the one place that says so.
pub fn expected(fault: Fault, message: &Message) -> (Effect, When) {
    use Effect::{Astray, Broken, HungUp, Late, Nothing, Refused};
    use Then::{Displacement, Gap, Recovery, Silence};
    use When::{Next, NextAnswer, Now};
    let form = Form::of(message);
    if form == Form::Nothing {
        // Whether a call notices depends on whether it waits for something.
        let noticed = if message.has_barrier { Now } else { Next };
        return match fault {
            Fault::Refuse(_) => (Astray, Now),
            Fault::Reply(_) | Fault::Raw(_) => (Broken, noticed),
            Fault::Close | Fault::CloseAfter | Fault::ShortAndClose(_) => (HungUp, noticed),
            Fault::DelayLate => (Late(Recovery), NextAnswer),
            Fault::DelayLong | Fault::SendAndWait | Fault::StopReading | Fault::Never => {
                (Late(Silence), NextAnswer)
            }
            _ => (Nothing, Now),
        };
    }
    match fault {
        Fault::DelayShort
        | Fault::StopReadingShort
        | Fault::Send
        | Fault::FillEventfds
        | Fault::Split(_)
        | Fault::Pieces(_)
        // Real back-ends echo the flags of the request.
        | Fault::Flags(0xd) => (Nothing, Now),
        Fault::Code(_) | Fault::Flags(_) | Fault::Huge => (Broken, Now),
        Fault::Drop => (Late(Displacement), Now),
        Fault::Short(_) => (Late(Gap), Now),
        Fault::DelayLate => (Late(Recovery), Now),
        Fault::DelayLong | Fault::SendAndWait | Fault::Never => (Late(Silence), Now),
        Fault::StopReading => (Late(Silence), NextAnswer),
        Fault::Close | Fault::ShortAndClose(_) => (HungUp, Now),
        Fault::CloseAfter => (HungUp, Next),
        Fault::Duplicate | Fault::Raw(_) => (Broken, Next),
        Fault::Fds("0") if message.fds == 0 => (Nothing, Now),
        Fault::Fds("0") if matches!(form, Form::Userfault | Form::Object) => (Refused(None), Now),
        // No state goes through such a file, as the check says.
        Fault::Files(_) if form == Form::StateFd => (Astray, Now),
        // The buffer is handed to the next back-end. /dev/zero can be mapped.
        Fault::Files(kind) if form == Form::Inflight && kind != "zero" => (Broken, Now),
        // Only the caller knows what other files are for.
        Fault::Files(_) => (Nothing, Now),
        Fault::Fds(_) | Fault::SurplusFiles(_) => (Broken, Now),
        Fault::Pad(bytes) => match form {
            Form::Object if bytes <= 16 => (Nothing, Now),
            Form::Log if form.payload() + bytes <= MOST => (Nothing, Now),
            _ => (Broken, Now),
        },
        Fault::Trim(bytes) => match form {
            Form::Log => (Nothing, Now),
            // There was nothing to take away.
            Form::Userfault | Form::Object => (Nothing, Now),
            Form::Config if bytes == form.payload() => (Refused(None), Now),
            _ => (Broken, Now),
        },
        Fault::Payload(_) => match form {
            Form::Log | Form::Object => (Nothing, Now),
            _ => (Broken, Now),
        },
        Fault::Size4 => match form {
            Form::Log => (Broken, Next), // four bytes are left over
            Form::Object => (Late(Gap), Now),
            _ => (Broken, Now),
        },
        Fault::Size8More => match form {
            // So much could have come.
            Form::Log | Form::Config | Form::Object | Form::Table => (Late(Gap), Now),
            _ => (Broken, Now),
        },
        Fault::Refuse(value) => match form {
            Form::Ack => (Refused(Some(value)), Now),
            Form::StateFd => (Refused(Some(value | 0x100)), Now),
            Form::Crypto => (Refused(Some(value.wrapping_neg())), Now),
            Form::Config | Form::Userfault | Form::Object => (Refused(None), Now),
            Form::Barrier => (Nothing, Now),
            // Another number, and no buffer, are good answers.
            Form::Number | Form::Inflight => (Astray, Now),
            // Not so many numbers.
            Form::Shmem => (Broken, Now),
            // There is no way to say no, and nothing comes.
            _ => (Late(Displacement), Now),
        },
        Fault::Reply(value) => match (form, value) {
            (Form::Ack | Form::Log | Form::Barrier, 0) | (Form::Log | Form::Barrier, _) => {
                (Nothing, Now)
            }
            (Form::Ack | Form::StateFd, 1..) => (Refused(Some(value)), Now),
            // No descriptor, and nothing that says so; another ring; another size.
            (Form::StateFd, 0) | (Form::VringBase, 1..) => (Broken, Now),
            (Form::Number, _) | (Form::VringBase, 0) => (Astray, Now),
            // Eight bytes, and no descriptor.
            (Form::Object, _) => (Refused(None), Now),
            _ => (Broken, Now),
        },
    }
}
