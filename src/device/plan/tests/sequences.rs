//! Any sequence of wants and messages ends in what is wanted.

use super::model::Model;
use super::*;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::VecDeque;

/// An interpreter is slow.
const CASES: u32 = if cfg!(miri) { 4 } else { 2000 };

/// What a caller does, as far as a device lets it, and what becomes of messages.
#[derive(Debug, Clone)]
enum Act {
    Start {
        ring: Index,
        large: bool,
        err: bool,
    },
    Stop {
        ring: Index,
        skip: bool,
    },
    SwapCall(Index),
    Features(u64),
    Mtu(u32),
    Announce,
    GpuSocket,
    Endian(bool),
    Add(u64),
    Remove(u64),
    Reset,
    ConfigChanged,
    Lose {
        held: bool,
    },
    /// So many requests are sent, if there are so many.
    Send(usize),
    /// And answered.
    Answer(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let ring = any::<Index>;
    let place = 0..4_u64;
    prop_oneof![
        4 => (ring(), any::<bool>(), any::<bool>())
            .prop_map(|(ring, large, err)| Act::Start { ring, large, err }),
        2 => (ring(), any::<bool>()).prop_map(|(ring, skip)| Act::Stop { ring, skip }),
        1 => ring().prop_map(Act::SwapCall),
        1 => select(vec![VERSION_1, VERSION_1 | PACKED, VERSION_1 | NET_MTU, NET_MTU])
            .prop_map(Act::Features),
        1 => (68..70_u32).prop_map(Act::Mtu),
        1 => Just(Act::Announce),
        1 => Just(Act::GpuSocket),
        1 => any::<bool>().prop_map(Act::Endian),
        1 => place.clone().prop_map(Act::Add),
        1 => place.prop_map(Act::Remove),
        1 => Just(Act::Reset),
        1 => Just(Act::ConfigChanged),
        1 => prop::bool::weighted(0.2).prop_map(|held| Act::Lose { held }),
        4 => (1..20_usize).prop_map(Act::Send),
        4 => (1..20_usize).prop_map(Act::Answer),
    ]
}

/// A caller, a device, its connection and the back-end.
#[derive(Debug)]
struct Play {
    wanted: Wanted,
    actual: Actual,
    model: Model,
    /// Sent and not answered.
    under_way: VecDeque<(u64, Step)>,
    /// The caller's device keeps it over a loss.
    buffer: Option<Held>,
    numbers: u64,
    steps: usize,
}

impl Play {
    fn new(offer: Offer, wanted: Wanted) -> Self {
        Self {
            actual: Actual::new(&wanted, None),
            model: Model::new(offer, wanted.rings.len()),
            wanted,
            under_way: VecDeque::new(),
            buffer: None,
            numbers: 0,
            steps: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn act(&mut self, act: &Act) {
        let rings = self.wanted.rings.len();
        match act {
            Act::Start { ring, large, err } => {
                let index = ring.index(rings);
                let size = if *large { 256 } else { 64 };
                let ready = self.wanted.features.is_some() && !self.wanted.memory.is_empty();
                let free = self.wanted.run(index).is_none();
                if ready && free && !self.wanted.held {
                    let start = self.number();
                    self.wanted.rings[index].run = Some(Run {
                        start,
                        call: start,
                        err: *err,
                        size,
                    });
                }
            }
            Act::Stop { ring, skip } => {
                let stop = if *skip { Drain::Skip } else { Drain::Finish };
                self.wanted.rings[ring.index(rings)] = RingWanted { run: None, stop };
            }
            Act::SwapCall(ring) => {
                let call = self.number();
                if let Some(ring) = &mut self.wanted.rings[ring.index(rings)].run {
                    ring.call = call;
                }
            }
            Act::Features(features) => {
                if self.wanted.rings.iter().all(|ring| ring.run.is_none()) {
                    self.wanted.features = Some(*features);
                }
            }
            Act::Mtu(mtu) => self.wanted.mtu = Some(*mtu),
            Act::Announce => {
                let number = self.number();
                let mac = [0; 6];
                self.wanted.announce.push_back(Announcement { number, mac });
            }
            Act::GpuSocket => self.wanted.gpu = Some(self.number()),
            Act::Endian(big) => {
                if self.wanted.rings.iter().all(|ring| ring.run.is_none()) {
                    self.wanted.big_endian = Some(*big);
                }
            }
            Act::Add(at) => {
                // Refused where it is there already.
                let _ = self.wanted.memory.add(region(*at));
            }
            Act::Remove(at) => {
                let needed = self.wanted.rings.iter().any(|ring| ring.run.is_some());
                if !needed || self.wanted.memory.len() > 1 {
                    let gone = region(*at);
                    let _ = self.wanted.memory.remove(gone.guest_addr, gone.size);
                }
            }
            Act::Reset => {
                self.wanted.resets += 1;
                self.wanted.features = None;
                self.wanted.held = false;
                self.wanted.rings.fill(RingWanted {
                    run: None,
                    stop: Drain::Skip,
                });
                self.buffer = None;
            }
            Act::ConfigChanged => {
                if self.actual.config == Asked::Told(()) {
                    self.actual.config = Asked::Not;
                }
            }
            Act::Lose { held } => {
                self.wanted.held |= *held
                    && self
                        .actual
                        .sent
                        .rings
                        .iter()
                        .any(|ring| ring.start.is_some());
                self.under_way.clear();
                self.actual = Actual::new(&self.wanted, self.buffer);
                self.model = Model::new(self.model.offer, rings);
            }
            Act::Send(times) => {
                for _ in 0..*times {
                    self.send();
                }
            }
            Act::Answer(times) => {
                for _ in 0..*times {
                    self.answer();
                }
            }
        }
    }

    /// As the device does it. Whether there was anything to send.
    fn send(&mut self) -> bool {
        if self.under_way.back().is_some_and(|(_, step)| step.alone()) {
            return false;
        }
        let Next::Do(step) = self.actual.next(&self.wanted) else {
            return false;
        };
        self.steps += 1;
        self.model
            .take(&step, &self.wanted, self.buffer.map(|it| it.key));
        if matches!(step, Step::Reset(..)) {
            self.buffer = None;
        }
        let number = self.actual.send(&step);
        if !step.is_silent() {
            self.under_way.push_back((number, step));
        }
        true
    }

    fn answer(&mut self) -> bool {
        let Some((number, step)) = self.under_way.pop_front() else {
            return false;
        };
        let told = match &step {
            Step::GetInflight(_) => self.number(),
            _ => self.model.answer(&step),
        };
        self.actual.done(number, &step, told);
        if let Asked::Told(held) = self.actual.buffer {
            self.buffer = held;
        }
        true
    }

    /// The device ends the connection, as the plan asks for it.
    fn closes(&mut self) -> bool {
        let closes = self.actual.next(&self.wanted) == Next::Close;
        if closes {
            self.act(&Act::Lose { held: false });
        }
        closes
    }

    /// Until there is nothing to do.
    fn finish(&mut self) {
        self.steps = 0;
        while self.send() || self.answer() || self.closes() {
            // Handshake, memory, and all of each ring twice.
            let most = 23 + 8 + 18 * self.wanted.rings.len() + self.wanted.announce.len();
            assert!(self.steps < most, "it does not end");
        }
        assert_eq!(self.actual.next(&self.wanted), Next::Nothing);
        self.model.check(&self.wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_wants_end_in_what_is_wanted(
        bit_30 in prop::bool::weighted(0.9),
        protocol in any::<u64>(),
        more in any::<u64>(),
        channel: bool,
        config in 0..2_u32,
        rings in 1..4_usize,
        fixed: bool,
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let offer = Offer {
            features: VERSION_1 | PACKED | NET_MTU | if bit_30 { BIT_30 } else { 0 },
            // Mostly offered.
            protocol: ProtocolFeatures::from_bits_truncate(protocol | more),
        };
        let wanted = Wanted {
            protocol: u64::MAX,
            channel,
            config_size: config * 60,
            num_rings: if fixed { u32::try_from(rings).unwrap() } else { 0 },
            features: Some(VERSION_1),
            memory: list(&[0]),
            rings: vec![RingWanted::default(); rings],
            ..Wanted::default()
        };
        let mut play = Play::new(offer, wanted);
        for act in &acts {
            play.act(act);
        }
        play.finish();
        // Once more says nothing more.
        play.finish();
        prop_assert_eq!(play.steps, 0);
    }
}
