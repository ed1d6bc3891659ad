//! Histories: lists of actions that can be generated from a seed, decoded from bytes,
//! printed, and parsed again.
//!
//! Each action is valid or has no effect in every state. A history with some of its
//! actions removed is therefore a history, too, which is what shrinking needs.

use std::fmt;
use std::str::FromStr;

/// A sequence of numbers that looks random (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.below(u32::try_from(all.len()).unwrap());
        all[usize::try_from(at).unwrap()]
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $op:ident $name:literal $weight:literal;)*) => {
        /// Kinds of actions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Op { $($(#[$doc])* $op,)* }

        impl Op {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$op,)*];

            fn name(self) -> &'static str {
                match self { $(Self::$op => $name,)* }
            }

            fn weight(self) -> u32 {
                match self { $(Self::$op => $weight,)* }
            }
        }
    };
}

ops! {
    /// The options of the device; only as the first action. Bits of `a`: see `Setup`.
    Open "open" 0;

    // ---- turns ----
    /// The device does `a` steps.
    Process "process" 10;
    /// The back-end handles `a` messages.
    Serve "serve" 10;
    /// The device and the back-end take turns, `a` times.
    Run "run" 30;
    /// As `run`, and the rings are served and polled as well.
    Work "work" 20;
    /// `a` milliseconds pass.
    Time "time" 6;
    /// A back-end with the capabilities `a` connects, if the device asks for one.
    Connect "connect" 12;

    // ---- the caller ----
    /// The driver acknowledges VERSION_1 (and, `a` & 1, IN_ORDER; `a` & 2, RING_PACKED).
    Features "features" 4;
    /// The regions with bits in `a` are all memory, in the version that `b` has bits for;
    /// `c` & 1 allows a gap.
    Memory "memory" 4;
    /// Region `a` is added, in version `b`.
    Add "add" 5;
    /// Region `a` is removed.
    Remove "remove" 7;
    /// The rings in `a` start, with the bases that `b` names in two bits each (0: new,
    /// 1: where it stopped, 2: at the base that was returned). `c` & 3: size; `c` >> 2 & 3:
    /// which indices the caller can read.
    Start "start" 14;
    /// The rings in `a` stop (0: all), with mode `b` (0: drain, 1: skip the drain,
    /// 2: abandon).
    Stop "stop" 14;
    /// The driver resets the device.
    Reset "reset" 5;
    /// Ring `a` gets call descriptor `b`.
    SetCall "set-call" 3;
    /// The driver writes its configuration space at `a`.
    Config "config" 2;
    /// The caller asks for a connection attempt.
    Reconnect "reconnect" 1;
    /// The next `a` steps of the device and calls have only `b` free descriptors.
    Starve "starve" 2;

    // ---- the guest ----
    /// The driver makes `b` requests available in ring `a`.
    Submit "submit" 14;
    /// The driver takes what was completed.
    Poll "poll" 6;

    // ---- the back-end ----
    /// The back-end takes `b` requests from ring `a`.
    Take "take" 12;
    /// The back-end completes `b` requests of ring `a`: the oldest, the newest, or one in
    /// between, as `c` says.
    Complete "complete" 8;
    /// The back-end refuses the next request of kind `a`.
    Refuse "refuse" 4;
    /// The back-end answers the next request of kind `a` with a malformed reply; `b` & 3
    /// says how, `b` & 4 whether the request takes effect. GET_INFLIGHT_FD has no effect:
    /// `b` & 4 means an unmappable buffer.
    Malform "malform" 3;
    /// The reply to the next request of kind `a` is cut off. `b` & 1: the process ends;
    /// otherwise it keeps its end of the connection. `b` & 4: the request takes effect.
    Cut "cut" 3;
    /// The next request of kind `a` is never answered. `b` & 4: it takes effect.
    Mute "mute" 2;
    /// The back-end sends bytes that nothing asked for.
    Garbage "garbage" 1;
    /// The back-end's process ends.
    Close "close" 4;

    // ---- back-ends whose connection was given up ----
    /// They handle `a` messages that were sent before the end.
    OldServe "old-serve" 3;
    /// They complete what they have taken.
    OldComplete "old-complete" 3;
    /// The process of one of them ends.
    OldClose "old-close" 6;

    // ---- added later, at the end: recorded histories have the numbers of the others ----
    /// The back-end clears O_NONBLOCK of its kick and call descriptors and fills them
    /// (`a` & 1: except for one write).
    Hinder "hinder" 0;
}

/// Requests that a fault can be about. 0 stands for any.
pub const KINDS: &[(u32, &str)] = &[
    (0, "ANY"),
    (38, "REM_MEM_REG"),
    (37, "ADD_MEM_REG"),
    (5, "SET_MEM_TABLE"),
    (11, "GET_VRING_BASE"),
    (45, "GET_VRING_BASE_SKIP_DRAIN"),
    (18, "SET_VRING_ENABLE"),
    (12, "SET_VRING_KICK"),
    (13, "SET_VRING_CALL"),
    (9, "SET_VRING_ADDR"),
    (10, "SET_VRING_BASE"),
    (8, "SET_VRING_NUM"),
    (31, "GET_INFLIGHT_FD"),
    (32, "SET_INFLIGHT_FD"),
    (34, "RESET_DEVICE"),
    (39, "SET_STATUS"),
    (2, "SET_FEATURES"),
    (1, "GET_FEATURES"),
    (24, "GET_CONFIG"),
    (25, "SET_CONFIG"),
];

/// The number of a request that a fault is about.
pub fn kind(a: u32) -> u32 {
    let at = usize::try_from(a).unwrap() % KINDS.len();
    KINDS[at].0
}

/// Capabilities of a back-end, in the argument of `connect`.
pub mod caps {
    pub const REPLY_ACK: u32 = 1;
    pub const INFLIGHT: u32 = 1 << 1;
    pub const SLOTS: u32 = 1 << 2;
    pub const RESET_DEVICE: u32 = 1 << 3;
    pub const STATUS: u32 = 1 << 4;
    /// GET_VRING_BASE_INFLIGHT.
    pub const BASE_INFLIGHT: u32 = 1 << 5;
    /// GET_VRING_BASE_SKIP_DRAIN.
    pub const SKIP_DRAIN: u32 = 1 << 6;
    pub const CONFIG: u32 = 1 << 7;
    pub const BACKEND_REQ: u32 = 1 << 8;
    /// The virtio feature.
    pub const IN_ORDER: u32 = 1 << 9;
    /// GET_VRING_BASE waits for requests that are completed one by one.
    pub const SLOW: u32 = 1 << 10;
    /// GET_VRING_BASE is answered while requests are in flight, which complete later.
    pub const EAGER: u32 = 1 << 11;
    /// GET_VRING_BASE is answered, and only a reset ends the access to memory.
    pub const DEAF: u32 = 1 << 12;
    /// GET_VRING_BASE leaves requests in the buffer where the protocol allows that.
    pub const SUSPENDS: u32 = 1 << 13;

    /// VIRTIO_F_RING_PACKED.
    pub const PACKED: u32 = 1 << 14;

    /// A back-end that offers everything and behaves.
    pub const HEALTHY: u32 = (IN_ORDER - 1) | IN_ORDER | PACKED;
    pub const NAMES: &[&str] = &[
        "REPLY_ACK",
        "INFLIGHT",
        "SLOTS",
        "RESET_DEVICE",
        "STATUS",
        "BASE_INFLIGHT",
        "SKIP_DRAIN",
        "CONFIG",
        "BACKEND_REQ",
        "IN_ORDER",
        "slow",
        "eager",
        "deaf",
        "suspends",
        "PACKED",
    ];
}

/// One action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    pub op: Op,
    pub a: u32,
    pub b: u32,
    pub c: u32,
}

impl Action {
    /// What the arguments mean, where that is not obvious.
    fn comment(&self) -> Option<String> {
        let kind = || {
            let at = usize::try_from(self.a).unwrap() % KINDS.len();
            KINDS[at].1.to_owned()
        };
        match self.op {
            Op::Connect => {
                let has = |(bit, _): &(usize, &&str)| self.a >> bit & 1 != 0;
                let names = caps::NAMES.iter().enumerate().filter(has);
                Some(names.map(|(_, name)| *name).collect::<Vec<_>>().join(" "))
            }
            Op::Refuse => Some(kind()),
            Op::Malform | Op::Mute => Some(match self.b & 4 {
                0 => kind(),
                _ => format!("{}, which takes effect", kind()),
            }),
            Op::Cut => Some(match self.b & 1 {
                0 => format!("{}, and the end stays open", kind()),
                _ => kind(),
            }),
            Op::Stop => {
                let modes = ["drain", "skip the drain", "abandon"];
                Some(modes[usize::try_from(self.b % 3).unwrap()].to_owned())
            }
            Op::Start => {
                let bases = ["new", "resume", "at the base", "new"];
                let rings = (0..3).filter(|ring| self.a >> ring & 1 != 0);
                let text = rings.map(|ring| {
                    let base = usize::try_from(self.b >> (2 * ring) & 3).unwrap();
                    format!("{ring} {}", bases[base])
                });
                Some(text.collect::<Vec<_>>().join(", "))
            }
            _ => None,
        }
    }

    /// From six bytes, for the fuzz target.
    pub fn decode(bytes: [u8; 6]) -> Self {
        let [op, a, high, b, c, _] = bytes.map(u32::from);
        let ops = u32::try_from(Op::ALL.len()).unwrap();
        Self {
            op: Op::ALL[usize::try_from(op % ops).unwrap()],
            a: a | high << 8,
            b,
            c,
        }
    }

    /// As [`decode`](Self::decode) reads it.
    pub fn encode(self) -> [u8; 6] {
        let op = Op::ALL.iter().position(|op| *op == self.op).unwrap();
        let [low, high, ..] = self.a.to_le_bytes();
        let [b, ..] = self.b.to_le_bytes();
        let [c, ..] = self.c.to_le_bytes();
        [u8::try_from(op).unwrap(), low, high, b, c, 0]
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op.name())?;
        let arguments = [self.a, self.b, self.c];
        let count = arguments.iter().rposition(|it| *it != 0);
        for argument in &arguments[..count.map_or(0, |last| last + 1)] {
            write!(f, " {argument}")?;
        }
        match self.comment() {
            Some(comment) if !comment.is_empty() => write!(f, "  # {comment}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let text = line.split('#').next().unwrap_or_default();
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let op = Op::ALL.iter().find(|op| op.name() == name);
        let op = *op.ok_or_else(|| format!("no such action: {line}"))?;
        let mut arguments = [0; 3];
        for (place, word) in arguments.iter_mut().zip(words) {
            *place = word.parse().map_err(|_| format!("no number: {line}"))?;
        }
        let [a, b, c] = arguments;
        Ok(Self { op, a, b, c })
    }
}

/// Parses a history: one action a line, `#` begins a comment.
pub fn parse(text: &str) -> Vec<Action> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.parse().unwrap())
        .collect()
}

/// Prints a history so that [`parse`] reads it.
pub fn print(history: &[Action]) -> String {
    history.iter().map(|action| format!("{action}\n")).collect()
}

fn capabilities(random: &mut Random) -> u32 {
    let stops = [
        0,
        0,
        0,
        caps::SLOW,
        caps::EAGER,
        caps::DEAF,
        caps::SUSPENDS,
        caps::SUSPENDS,
    ];
    let offers = match random.below(4) {
        // Most, and each of the others sometimes.
        0 => caps::HEALTHY,
        1 => caps::HEALTHY & !(1 << random.below(10)),
        2 => caps::HEALTHY & !(1 << random.below(10) | 1 << random.below(10)),
        _ => random.below(1 << 10),
    };
    offers | random.one_of(&stops)
}

fn arguments(op: Op, random: &mut Random) -> Action {
    let few = |random: &mut Random| 1 + random.below(4);
    let (a, b, c) = match op {
        Op::Open => (random.below(1 << 10), 0, 0),
        Op::Process | Op::Serve | Op::OldServe => (few(random), 0, 0),
        Op::Run => (random.one_of(&[1, 2, 4, 8, 16, 40]), 0, 0),
        Op::Work => (random.one_of(&[1, 2, 4, 8, 16, 40]), 0, 0),
        Op::Time => (random.one_of(&[1, 60, 500, 1000, 2000, 5000]), 0, 0),
        Op::Connect => (capabilities(random), 0, 0),
        Op::Features => (random.one_of(&[0, 0, 0, 1]), 0, 0),
        Op::Memory => (
            random.one_of(&[0, 1, 3, 3, 7, 15, 15]),
            random.below(4) << 2,
            random.below(2),
        ),
        Op::Add => (random.below(4), random.below(2), 0),
        Op::Remove => (random.below(4), 0, 0),
        Op::Start => (
            random.one_of(&[1, 1, 2, 3, 3, 4, 7]),
            random.one_of(&[0, 0, 0x15, 0x15, 0x2a, 1, 4, 5]),
            random.below(4) | random.one_of(&[0, 1, 1, 2, 2, 2]) << 2,
        ),
        Op::Stop => (
            random.one_of(&[0, 0, 1, 1, 2, 4]),
            random.one_of(&[0, 0, 0, 1, 1, 1, 2]),
            0,
        ),
        Op::SetCall => (random.below(3), random.below(2), 0),
        Op::Config => (random.below(8), 0, 0),
        Op::Starve => (few(random), random.below(3), 0),
        Op::Submit | Op::Take => (random.one_of(&[0, 0, 1, 2]), few(random), 0),
        Op::Complete => (
            random.one_of(&[0, 0, 1, 2]),
            random.one_of(&[1, 1, 2, 16]),
            random.below(3),
        ),
        Op::Refuse | Op::Malform | Op::Cut | Op::Mute if random.below(4) == 0 => {
            (1, random.below(8), 0)
        }
        Op::Refuse | Op::Malform | Op::Cut | Op::Mute => {
            let kinds = u32::try_from(KINDS.len()).unwrap();
            (random.below(kinds), random.below(8), 0)
        }
        Op::OldClose => (random.below(4), 0, 0),
        Op::Hinder => (random.below(2), 0, 0),
        Op::Reset | Op::Reconnect | Op::Poll | Op::Garbage | Op::Close | Op::OldComplete => {
            (0, 0, 0)
        }
    };
    Action { op, a, b, c }
}

/// The choices of one seed, which are the same through its history.
struct Habits {
    random: Random,
    /// Rings that most actions are about.
    rings: u32,
    /// What back-ends offer, and how they stop rings, mostly.
    offers: u32,
    /// Which indices the caller can read.
    knows: u32,
    weights: Vec<(Op, u32)>,
    groups: Vec<(Group, u32)>,
}

/// Actions that belong together: one without the others rarely has an effect.
#[derive(Debug, Clone, Copy)]
enum Group {
    /// Requests are made available, taken, and some of them completed.
    Traffic,
    /// The back-end is lost in some way.
    Loss,
    /// A back-end connects.
    Arrival,
    /// Rings are stopped, and started again.
    Restart,
    /// The driver resets the device, and sets it up again.
    Reboot,
    /// A region comes or goes.
    Plug,
    /// A request of some kind meets a fault.
    Fault,
    /// Anything else.
    One,
}

const GROUPS: &[(Group, u32)] = &[
    (Group::Traffic, 8),
    (Group::Loss, 4),
    (Group::Arrival, 3),
    (Group::Restart, 6),
    (Group::Reboot, 2),
    (Group::Plug, 3),
    (Group::Fault, 3),
    (Group::One, 8),
];

fn weighted<T: Copy>(all: &[(T, u32)], random: &mut Random) -> T {
    let total = all.iter().map(|(_, weight)| weight).sum();
    let mut at = random.below(total);
    let mut chosen = all[0].0;
    for (it, weight) in all {
        if at < *weight {
            chosen = *it;
            break;
        }
        at -= weight;
    }
    chosen
}

fn action(op: Op, a: u32, b: u32, c: u32) -> Action {
    Action { op, a, b, c }
}

impl Habits {
    fn ring(&mut self) -> u32 {
        let rings: Vec<u32> = (0..3).filter(|ring| self.rings >> ring & 1 != 0).collect();
        self.random.one_of(&rings)
    }

    /// Some of the rings.
    fn mask(&mut self) -> u32 {
        match self.random.below(3) {
            0 => 1 << self.ring(),
            _ => self.rings,
        }
    }

    fn connect(&mut self) -> Action {
        match self.random.below(4) {
            0 => arguments(Op::Connect, &mut self.random),
            1 => action(Op::Connect, self.offers ^ 1 << self.random.below(10), 0, 0),
            _ => action(Op::Connect, self.offers, 0, 0),
        }
    }

    fn start(&mut self) -> Action {
        let mut start = arguments(Op::Start, &mut self.random);
        start.a = self.mask();
        start.c = start.c & 3 | self.knows << 2;
        start
    }

    /// Turns of the device and the back-end: mostly enough, sometimes too few.
    fn turns(&mut self) -> Option<Action> {
        let count = self.random.one_of(&[0, 1, 2, 4, 30, 30, 30]);
        (count > 0).then(|| action(Op::Run, count, 0, 0))
    }

    fn group(&mut self, group: Group) -> Vec<Action> {
        let random = &mut self.random;
        let mut all: Vec<Option<Action>> = Vec::new();
        match group {
            Group::Traffic => {
                let (count, taken) = (1 + random.below(4), random.below(5));
                let done = random.one_of(&[0, 1, 1, 2, 3]);
                let which = random.one_of(&[0, 1, 1, 2]);
                let ring = self.ring();
                all.push(Some(action(Op::Submit, ring, count, 0)));
                all.push(Some(action(Op::Take, ring, taken, 0)));
                all.push(Some(action(Op::Complete, ring, done, which)));
                if self.random.below(3) == 0 {
                    all.push(Some(action(Op::Poll, 0, 0, 0)));
                }
            }
            Group::Loss => {
                match random.below(5) {
                    0 => all.push(Some(action(Op::Garbage, 0, 0, 0))),
                    1 => all.push(Some(action(Op::Time, 5000, 0, 0))),
                    2 => {
                        let fault = random.one_of(&[Op::Malform, Op::Cut, Op::Mute]);
                        all.push(Some(arguments(fault, &mut self.random)));
                    }
                    _ => all.push(Some(action(Op::Close, 0, 0, 0))),
                }
                all.push(self.turns());
                if self.random.below(2) == 0 {
                    all.push(Some(action(Op::OldClose, 0, 0, 0)));
                }
                if self.random.below(3) != 0 {
                    all.extend(self.group(Group::Arrival).into_iter().map(Some));
                }
            }
            Group::Arrival => {
                all.push(Some(action(Op::Process, 4, 0, 0)));
                all.push(Some(self.connect()));
                all.push(self.turns());
            }
            Group::Restart => {
                let mut stop = arguments(Op::Stop, random);
                stop.a = self.mask();
                all.push(Some(stop));
                all.push(self.turns());
                let start = self.start();
                all.push(Some(start));
                all.push(self.turns());
            }
            Group::Reboot => {
                all.push(Some(action(Op::Reset, 0, 0, 0)));
                all.push(self.turns());
                all.push(Some(arguments(Op::Features, &mut self.random)));
                if self.random.below(3) == 0 {
                    all.push(Some(arguments(Op::Memory, &mut self.random)));
                }
                let mut start = self.start();
                start.b = 0;
                all.push(Some(start));
                all.push(self.turns());
            }
            Group::Plug => {
                if random.below(3) == 0 {
                    // Nothing is in the way of removing all memory.
                    let quiet = random.one_of(&[Op::Stop, Op::Stop, Op::Reset]);
                    all.push(Some(action(quiet, 0, 0, 0)));
                    all.push(self.turns());
                }
                let random = &mut self.random;
                if random.below(3) == 0 {
                    let op = random.one_of(&[Op::Refuse, Op::Malform, Op::Cut, Op::Mute]);
                    let kind = random.one_of(&[1, 1, 1, 2, 3]);
                    all.push(Some(action(op, kind, random.below(8), 0)));
                }
                for _ in 0..random.one_of(&[1, 1, 2, 4]) {
                    let op = random.one_of(&[Op::Add, Op::Remove, Op::Remove, Op::Memory]);
                    all.push(Some(arguments(op, random)));
                }
                all.push(self.turns());
            }
            Group::Fault => {
                let op = random.one_of(&[Op::Refuse, Op::Refuse, Op::Malform, Op::Cut, Op::Mute]);
                all.push(Some(arguments(op, random)));
            }
            Group::One => {
                let op = weighted(&self.weights, random);
                all.push(Some(arguments(op, random)));
            }
        }
        all.into_iter().flatten().collect()
    }
}

/// The history of a seed. One of four has packed rings, and one of four back-ends that
/// hinder who signals.
pub fn generate(seed: u64) -> Vec<Action> {
    let mut history = split_history(seed);
    let mut random = Random::new(!seed);
    if random.below(4) == 0 {
        for action in &mut history {
            match action.op {
                Op::Features => action.a |= 2,
                Op::Connect if random.below(16) != 0 => action.a |= caps::PACKED,
                _ => {}
            }
        }
    }
    if random.below(4) == 0 {
        for _ in 0..1 + random.below(3) {
            let at = 1 + random.below(u32::try_from(history.len()).unwrap());
            let hinder = arguments(Op::Hinder, &mut random);
            history.insert(usize::try_from(at).unwrap(), hinder);
        }
    }
    history
}

/// The history of a seed with split rings.
///
/// Each seed has weights of its own for the kinds of actions, some of them 0: a history
/// that does few things often goes deeper than one that does everything sometimes.
fn split_history(seed: u64) -> Vec<Action> {
    let mut random = Random::new(seed);
    let mut history = vec![arguments(Op::Open, &mut random)];
    let rings = random.one_of(&[1, 1, 1, 3, 3, 7]);
    let mut offers = capabilities(&mut random);
    if random.below(3) == 0 {
        offers &= !caps::INFLIGHT;
    }
    let knows = random.one_of(&[0, 1, 2, 2, 2]);
    let weights: Vec<(Op, u32)> = Op::ALL
        .iter()
        .filter(|op| **op != Op::Hinder)
        .map(|op| {
            let factor = match op {
                Op::Process | Op::Run | Op::Connect => 2,
                _ => random.one_of(&[0, 0, 1, 2, 4, 8]),
            };
            (*op, op.weight() * factor)
        })
        .collect();
    let groups = GROUPS
        .iter()
        .map(|(group, weight)| {
            let factor = match group {
                Group::One => 1,
                _ => random.one_of(&[0, 1, 1, 2, 4]),
            };
            (*group, weight * factor)
        })
        .collect();
    let mut habits = Habits {
        random,
        rings,
        offers,
        knows,
        weights,
        groups,
    };
    if habits.random.below(12) != 0 {
        // Something must run before much can go wrong.
        let connect = habits.connect();
        let features = arguments(Op::Features, &mut habits.random);
        let memory = habits.random.one_of(&[1, 3, 3, 7, 15]);
        let start = habits.start();
        history.extend([
            action(Op::Process, 2, 0, 0),
            connect,
            action(Op::Run, 24, 0, 0),
            features,
            action(Op::Memory, memory, 0, 0),
            action(Op::Start, rings, 0, start.c),
            action(Op::Run, 40, 0, 0),
        ]);
    }
    let length = habits.random.one_of(&[16, 32, 48, 64, 96]);
    while history.len() < length {
        let group = weighted(&habits.groups, &mut habits.random);
        let group = habits.group(group);
        history.extend(group);
    }
    history
}
