//! What the oracle knows: every request, every run of a ring, every in-flight buffer, and
//! which promises were broken.

use super::packed::Counting;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

/// The number of rings.
pub const RINGS: usize = 3;

/// Classes of broken promises, which can be checked one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A back-end still has access to what is reported as safe.
    Fence,
    /// The state of memory says that it is safe, and a back-end still has access to it.
    Memory,
    /// A ring is reported as quiet whose returned base contradicts its used index.
    Used,
    /// A reset is reported as done before the back-end has acknowledged it.
    Confirm,
    /// A back-end is given requests that the guest has withdrawn.
    Buffer,
    /// A request is lost without an announcement.
    Lost,
    /// A request is executed or completed twice without an announcement.
    Twice,
    /// A base is returned from which resuming is wrong.
    Bases,
    /// A ring is stopped with another mode than its own.
    Modes,
    /// An event contradicts the state.
    Events,
    /// The device claims to be applied, and is not.
    Applied,
    /// The order of requests is wrong: a ring without memory, an unknown request.
    Order,
    /// The device does not settle with a healthy back-end.
    Settle,
    /// Descriptors are left open.
    Leak,
    /// The library panics or fails where it must not.
    Panic,
}

impl Class {
    /// All of them, by name.
    pub const ALL: &'static [(&'static str, Self)] = &[
        ("fence", Self::Fence),
        ("memory", Self::Memory),
        ("used", Self::Used),
        ("confirm", Self::Confirm),
        ("buffer", Self::Buffer),
        ("lost", Self::Lost),
        ("twice", Self::Twice),
        ("bases", Self::Bases),
        ("modes", Self::Modes),
        ("events", Self::Events),
        ("applied", Self::Applied),
        ("order", Self::Order),
        ("settle", Self::Settle),
        ("leak", Self::Leak),
        ("panic", Self::Panic),
    ];

    /// The name of it.
    pub fn name(self) -> &'static str {
        let all = Self::ALL.iter();
        all.clone()
            .find(|(_, class)| *class == self)
            .map_or("", |(name, _)| name)
    }
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Violation {
    pub class: Class,
    pub text: String,
    /// How many steps had been made.
    pub step: u64,
}

/// A request of the guest.
#[derive(Debug, Clone)]
pub struct Request {
    pub run: usize,
    /// How often a back-end has executed it.
    pub executed: u32,
    /// The driver has seen its completion.
    pub completed: bool,
}

/// A ring from VUF_RING_BASE_NEW until it is started anew or the device is reset.
#[derive(Debug)]
pub struct Run {
    pub ring: usize,
    pub area: usize,
    pub size: u16,
    pub packed: bool,
    /// The guest has started the ring anew or reset the device since.
    pub withdrawn: bool,
    /// A loss was announced with a policy that loses or repeats requests.
    pub lenient: bool,
    /// Requests were in flight after a stop, which nobody could see.
    pub hidden: bool,
    /// It last started without an in-flight buffer.
    pub ran_unbuffered: bool,
    /// The caller can read the used index.
    pub knows_used: bool,
    /// Modes of the stop calls that no back-end has carried out yet.
    pub modes: VecDeque<u32>,
    /// How many bytes had been sent to the back-end when the caller stopped it: what is
    /// among them the device has sent for a purpose of its own.
    pub sent_before_stop: usize,
    // The driver's side.
    pub free: VecDeque<u16>,
    pub available: u16,
    pub used: u16,
    /// `used`, for the caller to look from in a packed ring.
    pub seen: Arc<AtomicU16>,
    /// The request in each descriptor.
    pub heads: BTreeMap<u16, u64>,
    /// Every request that was made available, by its place modulo 65536.
    pub places: BTreeMap<u16, u64>,
}

impl Run {
    pub fn counting(&self) -> Counting {
        Counting {
            packed: self.packed,
            size: self.size,
        }
    }
}

/// The memory of an in-flight buffer: a request number, or 0, for each descriptor of each
/// ring; behind these, for each packed ring, where it has got to.
#[derive(Debug, Clone)]
pub struct Buffer {
    pub file: Rc<File>,
    pub rings: u16,
    pub size: u16,
}

impl Buffer {
    /// Bytes of a buffer for this many rings of this size.
    pub fn bytes(rings: u16, size: u16) -> u64 {
        u64::from(rings) * (u64::from(size) + 1) * 8
    }

    fn word(&self, place: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, place).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn used_at(&self, ring: usize) -> Option<u64> {
        let ring = u16::try_from(ring).unwrap();
        let before = u64::from(self.rings) * u64::from(self.size) + u64::from(ring);
        (ring < self.rings).then_some(before * 8)
    }

    /// The used position of a packed ring, and its last run with this buffer.
    pub fn used(&self, ring: usize) -> Option<(u16, usize)> {
        let word = self.word(self.used_at(ring)?);
        let run = usize::try_from((word >> 16).checked_sub(1)?).unwrap();
        Some((u16::try_from(word & 0xffff).unwrap(), run))
    }

    /// Notes the used position of a packed ring.
    pub fn put_used(&self, ring: usize, used: u16, run: usize) {
        if let Some(place) = self.used_at(ring) {
            let word = u64::from(used) | (u64::try_from(run).unwrap() + 1) << 16;
            self.file.write_all_at(&word.to_ne_bytes(), place).unwrap();
        }
    }

    fn place(&self, ring: usize, head: u16) -> Option<u64> {
        let ring = u16::try_from(ring).unwrap();
        let fits = ring < self.rings && head < self.size;
        fits.then(|| (u64::from(ring) * u64::from(self.size) + u64::from(head)) * 8)
    }

    /// Notes that a request is in flight (or, 0, that none is).
    pub fn put(&self, ring: usize, head: u16, request: u64) {
        if let Some(place) = self.place(ring, head) {
            self.file
                .write_all_at(&request.to_ne_bytes(), place)
                .unwrap();
        }
    }

    /// Requests of a ring that are in flight.
    pub fn entries(&self, ring: usize) -> Vec<(u16, u64)> {
        let Some(start) = self.place(ring, 0) else {
            return Vec::new();
        };
        let mut bytes = vec![0; usize::from(self.size) * 8];
        self.file.read_exact_at(&mut bytes, start).unwrap();
        let words = bytes.chunks_exact(8).zip(0..);
        words
            .map(|(word, head)| (head, u64::from_ne_bytes(word.try_into().unwrap())))
            .filter(|(_, request)| *request != 0)
            .collect()
    }
}

/// A broken promise that a policy may have announced, in an event that was not taken yet.
#[derive(Debug)]
struct Suspect {
    run: usize,
    violation: Violation,
}

/// What the oracle knows.
#[derive(Debug, Default)]
pub struct Ledger {
    pub requests: BTreeMap<u64, Request>,
    pub runs: Vec<Run>,
    /// The run of each ring that is not withdrawn.
    pub current: [Option<usize>; RINGS],
    /// Which of them the caller wants to run.
    pub wanted: [bool; RINGS],
    /// The buffer that a back-end was given last.
    pub buffer: Option<Buffer>,
    /// Classes that are checked.
    pub only: BTreeSet<Class>,
    pub steps: u64,
    pub violation: Option<Violation>,
    suspects: Vec<Suspect>,
    pub trace: Option<Vec<String>>,
}

impl Ledger {
    /// Checks these classes; with `trace`, notes what happens.
    pub fn new(only: BTreeSet<Class>, trace: bool) -> Self {
        Self {
            only,
            trace: trace.then(Vec::new),
            ..Self::default()
        }
    }

    /// Notes what happens, if somebody wants to read it.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:5}: {}", self.steps, text()));
        }
    }

    fn broken(&self, class: Class, text: String) -> Violation {
        Violation {
            class,
            text,
            step: self.steps,
        }
    }

    /// A promise is broken.
    pub fn violate(&mut self, class: Class, text: String) {
        self.say(|| format!("BROKEN {}: {text}", class.name()));
        if self.violation.is_none() && self.only.contains(&class) {
            self.violation = Some(self.broken(class, text));
        }
    }

    /// A promise is broken, unless a policy was announced that allows it.
    pub fn suspect(&mut self, run: usize, class: Class, text: String) {
        if self.runs[run].lenient {
            return;
        }
        let known = |it: &Suspect| it.run == run && it.violation.class == class;
        if !self.suspects.iter().any(known) {
            self.say(|| format!("suspect {}: {text}", class.name()));
            let violation = self.broken(class, text);
            self.suspects.push(Suspect { run, violation });
        }
    }

    /// All events were taken: nothing more was announced.
    pub fn all_announced(&mut self) {
        for suspect in std::mem::take(&mut self.suspects) {
            let run = &mut self.runs[suspect.run];
            if std::mem::replace(&mut run.lenient, true) {
                continue;
            }
            if self.violation.is_none() && self.only.contains(&suspect.violation.class) {
                self.violation = Some(suspect.violation);
            }
        }
    }

    /// A policy is announced that loses or repeats requests of the rings that ran.
    pub fn announce_leniency(&mut self) {
        for run in &mut self.runs {
            run.lenient |= !run.withdrawn;
        }
    }

    /// Requests of a run that the driver waits for.
    pub fn outstanding(&self, run: usize) -> BTreeSet<u64> {
        let requests = self.runs[run].heads.values();
        requests
            .filter(|id| self.requests.get(id).is_some_and(|it| it.executed == 0))
            .copied()
            .collect()
    }

    /// The guest forgets a run.
    pub fn withdraw(&mut self, ring: usize) {
        if let Some(run) = self.current[ring].take() {
            self.runs[run].withdrawn = true;
        }
        self.wanted[ring] = false;
    }

    /// A back-end executes a request.
    pub fn executed(&mut self, id: u64, run: Option<usize>, by: &str) {
        let Some(request) = self.requests.get_mut(&id) else {
            self.violate(
                Class::Buffer,
                format!("{by} executes something that is no request: {id}"),
            );
            return;
        };
        request.executed += 1;
        let (of, times) = (request.run, request.executed);
        if self.runs[of].hidden {
            // Its completion shows up in whatever has this memory by now.
            let (ring, area) = (self.runs[of].ring, self.runs[of].area);
            for later in self.runs.iter_mut().skip(of + 1) {
                later.lenient |= later.ring == ring && later.area == area;
            }
        }
        if run != Some(of) {
            self.violate(
                Class::Buffer,
                format!("{by} executes request {id} of run {of} for run {run:?}"),
            );
        } else if times > 1 {
            self.suspect(
                of,
                Class::Twice,
                format!("{by} executes request {id} again ({times} times)"),
            );
        }
    }

    /// Whether resuming a run at a base is right, when these requests are in the buffer
    /// and `late` are still being executed. `None` if it is.
    pub fn resumes_wrongly(
        &self,
        run: usize,
        base: u16,
        used: u16,
        buffered: &[(u16, u64)],
        late: &[u64],
    ) -> Option<(Class, String)> {
        let it = &self.runs[run];
        let counting = it.counting();
        let count = u16::try_from(buffered.len()).unwrap();
        let first = match buffered.is_empty() {
            true => base,
            false => {
                let taken = counting.add(used, count);
                if base != used && base != taken {
                    let text = format!(
                        "base {base}, with {count} requests in the buffer and used index {used}"
                    );
                    return Some((Class::Lost, text));
                }
                taken
            }
        };
        let window = counting.ahead(it.available, first);
        if window > it.size {
            let text = format!(
                "base {first} is not near the available index {}",
                it.available
            );
            return Some((Class::Lost, text));
        }
        let places = (1..=window).rev().map(|n| it.available.wrapping_sub(n));
        let taken = places.filter_map(|place| it.places.get(&place));
        let covered: Vec<u64> = taken
            .chain(buffered.iter().map(|(_, id)| id))
            .chain(late)
            .copied()
            .collect();
        let outstanding = self.outstanding(run);
        let lost: Vec<_> = outstanding
            .iter()
            .filter(|id| !covered.contains(id))
            .collect();
        if !lost.is_empty() {
            let text = format!("base {first}: requests {lost:?} are lost");
            return Some((Class::Lost, text));
        }
        let again: Vec<_> = covered
            .iter()
            .filter(|id| !outstanding.contains(id))
            .collect();
        if !again.is_empty() {
            let text = format!("base {first}: requests {again:?} are executed again");
            return Some((Class::Twice, text));
        }
        let distinct: BTreeSet<_> = covered.iter().collect();
        if distinct.len() < covered.len() {
            let text = format!("base {first}: of {covered:?} some are executed twice");
            return Some((Class::Twice, text));
        }
        None
    }
}
