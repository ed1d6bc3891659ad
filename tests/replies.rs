//! Every way in which an answer can be wrong, for every request that has one:
//! the call says what is wrong, the connection takes no further request, and no
//! descriptor stays open.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{
    AT_ONCE, Answer, CASES, Case, Descriptor, FEATURES, PACKED, Peer, REPLY, adopted, both,
    connected, connected_on, file, handshake, hex, identity, memory, message, no_fd_leak,
    only_once, open_fds, patient, protocol, ready_for,
};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{Barrier, ProtocolFeatures, Request};
use vhost_user_frontend::{
    BackendClient, Class, Direction, Error, Kind, Options, Phase, Result, Timeout, code,
};

/// What answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// A reply of its own.
    Own,
    /// An acknowledgement.
    Ack,
    /// The reply to the GET_FEATURES behind it.
    Barrier,
}

/// A request and a well-made answer, to be spoilt.
struct Exchange {
    case: &'static Case,
    by: By,
    /// The code, the payload and the descriptors of the good answer.
    code: u32,
    payload: Vec<u8>,
    fds: usize,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} answered by {:?}", self.case.request, self.by)
    }
}

impl Exchange {
    /// That of this request.
    fn of(request: Request) -> Self {
        let mut all = Self::all().into_iter();
        all.find(|exchange| exchange.is(request)).unwrap()
    }

    /// All that have an answer.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for case in CASES {
            let of = |by, code, payload, fds| Self {
                case,
                by,
                code,
                payload,
                fds,
            };
            let id = case.request.id();
            match case.answer {
                Answer::Own(payload, descriptor) => {
                    let fds = usize::from(descriptor == Descriptor::With);
                    all.push(of(By::Own, id, hex(payload), fds));
                }
                Answer::Status => all.push(of(By::Ack, id, vec![0; 8], 0)),
                Answer::Ack(barrier) => {
                    all.push(of(By::Ack, id, vec![0; 8], 0));
                    if barrier != Barrier::Never {
                        all.push(of(By::Barrier, 1, FEATURES.to_ne_bytes().to_vec(), 0));
                    }
                }
                Answer::Nothing => {}
            }
        }
        all
    }

    fn is(&self, request: Request) -> bool {
        self.by == By::Own && self.case.request == request
    }

    /// Up to which size its answer may have any.
    fn any_size(&self) -> Option<usize> {
        match self.case.request {
            Request::SetLogBase => Some(4096),
            Request::GetSharedObject => Some(16),
            _ => None,
        }
    }

    fn connect(&self, options: Options) -> (BackendClient, Peer) {
        ready_for(self.case.request, self.by != By::Barrier, options)
    }

    /// Receives the request, and the barrier.
    fn receive(&self, peer: &Peer) {
        peer.expect(self.case.request);
        if self.by == By::Barrier {
            peer.expect(Request::GetFeatures);
        }
    }

    /// The good answer.
    fn reply(&self) -> Vec<u8> {
        message(self.code, REPLY, &self.payload)
    }

    fn with_payload(&self, payload: &[u8]) -> Vec<u8> {
        message(self.code, REPLY, payload)
    }

    fn with_flags(&self, flags: u32) -> Vec<u8> {
        message(self.code, flags, &self.payload)
    }

    /// Where a failure of its answer happens.
    fn phase(&self) -> Phase {
        match self.by {
            By::Barrier => Phase::Barrier,
            By::Own | By::Ack => Phase::Reply,
        }
    }

    /// Calls while the peer answers with these bytes and descriptors.
    fn run(&self, client: &BackendClient, peer: &Peer, bytes: &[u8], fds: usize) -> Result<()> {
        let fds = vec![memory(7); fds];
        let answer = || {
            self.receive(peer);
            if !bytes.is_empty() {
                peer.send(bytes, &fds);
            }
        };
        both(|| (self.case.call)(client), answer).0
    }

    /// After a failure each call answers this, at once, and sends nothing.
    fn assert_ended(&self, client: &BackendClient, peer: &Peer, kind: Kind, context: &str) {
        let start = Instant::now();
        let again = (self.case.call)(client).expect_err(context);
        let other = client.get_features().map(drop).expect_err(context);
        assert!(start.elapsed() < AT_ONCE, "{context}");
        for error in [&again, &other] {
            assert_eq!(error.kind, kind, "{context}: {error}");
        }
        assert_eq!(again.request, Some(self.case.request), "{context}");
        assert_eq!(other.request, Some(Request::GetFeatures), "{context}");
        if kind != Kind::Disconnected {
            peer.expect_silence();
        }
    }
}

const POISONED: Kind = Kind::Poisoned(Class::Protocol);

/// A broken answer, and the value that the error repeats.
struct Broken {
    bytes: Vec<u8>,
    fds: usize,
    value: Option<u64>,
}

/// Makes a good answer a broken one; `None` where it would still be a good one.
type Spoil = fn(&Exchange) -> Option<Broken>;

fn broken(bytes: Vec<u8>, value: impl Into<Option<u64>>) -> Option<Broken> {
    Some(Broken {
        bytes,
        fds: 0,
        value: value.into(),
    })
}

fn flags(exchange: &Exchange, flags: u32) -> Option<Broken> {
    Some(Broken {
        bytes: exchange.with_flags(flags),
        fds: exchange.fds,
        value: Some(u64::from(flags)),
    })
}

fn wrong_code(exchange: &Exchange, code: u32) -> Option<Broken> {
    broken(message(code, REPLY, &exchange.payload), u64::from(code))
}

/// A payload of another size. In GET_CONFIG the sizes that are possible for some
/// request are compared with the size that the answer names.
fn resized(exchange: &Exchange, size: usize) -> Option<Broken> {
    if exchange.any_size().is_some_and(|most| size <= most) {
        return None;
    }
    let named = exchange.is(Request::GetConfig) && size <= 268;
    let value = match (named, size) {
        (true, 0) => return None, // a refusal
        (true, ..12) => None,
        (true, _) => Some(8),
        (false, _) => Some(u64::try_from(size).unwrap()),
    };
    let mut payload = exchange.payload.clone();
    payload.resize(size, 0);
    broken(exchange.with_payload(&payload), value)
}

fn with_fds(exchange: &Exchange, fds: usize) -> Option<Broken> {
    let most = match exchange.case.request {
        Request::GetInflightFd
        | Request::SetDeviceStateFd
        | Request::PostcopyAdvise
        | Request::GetSharedObject => 1,
        _ => 0,
    };
    (fds > most).then(|| Broken {
        bytes: exchange.reply(),
        fds,
        // Beyond what one read can take the kernel does not tell how many.
        value: (fds <= 32).then(|| u64::try_from(fds).unwrap()),
    })
}

const SPOILERS: &[(&str, Spoil)] = &[
    ("version 0", |e| flags(e, 0x4)),
    ("version 2", |e| flags(e, 0x6)),
    ("version 3", |e| flags(e, 0x7)),
    ("no reply flag", |e| flags(e, 0x1)),
    ("need-reply instead of reply", |e| flags(e, 0x9)),
    ("a reserved flag", |e| flags(e, 0x15)),
    ("the last reserved flag", |e| flags(e, 0x8000_0005)),
    ("code 0", |e| wrong_code(e, 0)),
    ("the next code", |e| wrong_code(e, e.code + 1)),
    ("a code of the back-end's own", |e| wrong_code(e, u32::MAX)),
    ("no payload", |e| match e.payload.len() {
        0 => None,
        _ => resized(e, 0),
    }),
    ("one byte", |e| resized(e, 1)),
    ("a byte too few", |e| {
        resized(e, e.payload.len().checked_sub(1)?)
    }),
    ("a byte too many", |e| resized(e, e.payload.len() + 1)),
    ("more than fits any reply", |e| resized(e, 4097)),
    ("a size beyond all memory", |e| {
        let mut bytes = e.reply();
        bytes[8..12].copy_from_slice(&[0xff; 4]);
        broken(bytes, 0xffff_ffff)
    }),
    ("the sign bit in the size", |e| {
        let mut bytes = e.reply();
        bytes[8..12].copy_from_slice(&0x8000_0000_u32.to_ne_bytes());
        broken(bytes, 0x8000_0000)
    }),
    ("1 descriptor", |e| with_fds(e, 1)),
    ("2 descriptors", |e| with_fds(e, 2)),
    ("8 descriptors", |e| with_fds(e, 8)),
    ("32 descriptors", |e| with_fds(e, 32)),
    ("33 descriptors", |e| with_fds(e, 33)),
    ("40 descriptors", |e| with_fds(e, 40)),
    ("a missing descriptor", |e| match e.case.request {
        Request::GetInflightFd => broken(e.reply(), None),
        Request::SetDeviceStateFd => broken(e.reply(), 0),
        _ => None,
    }),
    ("a wrong code with descriptors", |e| {
        wrong_code(e, 99).map(|broken| Broken { fds: 3, ..broken })
    }),
    ("a huge size with descriptors", |e| {
        resized(e, 4097).map(|broken| Broken { fds: 3, ..broken })
    }),
];

#[test]
fn a_broken_answer_is_named_and_poisons_the_connection() {
    let _leak = no_fd_leak();
    let exchanges = Exchange::all();
    for (name, spoil) in SPOILERS {
        let mut tried = 0;
        for exchange in &exchanges {
            let Some(broken) = spoil(exchange) else {
                continue;
            };
            tried += 1;
            let context = format!("{exchange:?}, {name}");
            let (client, peer) = exchange.connect(patient());
            let result = exchange.run(&client, &peer, &broken.bytes, broken.fds);
            let error = result.expect_err(&context);
            assert_eq!(error.kind, Kind::Protocol, "{context}: {error}");
            assert_eq!(error.code(), code::PROTOCOL, "{context}");
            assert_eq!(error.class(), Class::Protocol, "{context}");
            assert_eq!(error.phase, exchange.phase(), "{context}");
            assert_eq!(error.request, Some(exchange.case.request), "{context}");
            assert_eq!(error.value, broken.value, "{context}: {error}");
            exchange.assert_ended(&client, &peer, POISONED, &context);
        }
        assert!(tried > 0, "{name} breaks no answer");
    }
}

#[test]
fn descriptors_of_a_broken_answer_are_closed_when_the_call_returns() {
    let _leak = no_fd_leak();
    let before = open_fds();
    for exchange in &Exchange::all() {
        for (name, spoil) in SPOILERS {
            let Some(broken) = spoil(exchange).filter(|broken| broken.fds > 0) else {
                continue;
            };
            let (client, peer) = exchange.connect(patient());
            let result = exchange.run(&client, &peer, &broken.bytes, broken.fds);
            assert!(result.is_err(), "{exchange:?}, {name}");
            // The two ends of the connection are open.
            assert_eq!(open_fds(), before + 2, "{exchange:?}, {name}");
        }
    }
}

#[test]
fn an_answer_cut_short_by_a_hang_up_is_a_disconnection() {
    let _leak = no_fd_leak();
    for exchange in &Exchange::all() {
        let reply = exchange.reply();
        let cuts = [0, 1, 11, 12, 13, reply.len() - 1];
        for cut in cuts.into_iter().filter(|cut| *cut < reply.len()) {
            let context = format!("{exchange:?}, {cut} bytes");
            let (client, peer) = exchange.connect(patient());
            let fds = vec![memory(7); if cut > 0 { exchange.fds } else { 0 }];
            let answer = || {
                exchange.receive(&peer);
                if cut > 0 {
                    peer.send(&reply[..cut], &fds);
                }
                peer.hang_up();
            };
            let (result, ()) = both(|| (exchange.case.call)(&client), answer);
            let error = result.expect_err(&context);
            assert_eq!(error.kind, Kind::Disconnected, "{context}: {error}");
            assert_eq!(error.code(), code::DISCONNECTED, "{context}");
            assert_eq!(error.class(), Class::Transport, "{context}");
            assert_eq!(error.phase, exchange.phase(), "{context}");
            assert_eq!(error.request, Some(exchange.case.request), "{context}");
            exchange.assert_ended(&client, &peer, Kind::Disconnected, &context);
        }
    }
}

#[test]
fn a_back_end_that_is_gone_is_a_disconnection_whatever_is_asked() {
    let _leak = no_fd_leak();
    for case in CASES {
        for unread in [false, true] {
            let context = format!("{:?}, unread {unread}", case.request);
            let (client, peer) = ready_for(case.request, true, patient());
            if unread {
                // The peer dies with a request in its buffer: ECONNRESET.
                client.set_protocol_features(1).unwrap();
            }
            drop(peer);
            let start = Instant::now();
            // The protocol features are changed now, and some calls refused.
            let call = if unread {
                Case::of(Request::SetProtocolFeatures)
            } else {
                case
            };
            let error = (call.call)(&client).expect_err(&context);
            assert!(start.elapsed() < AT_ONCE, "{context}");
            assert_eq!(error.kind, Kind::Disconnected, "{context}: {error}");
            assert_eq!(error.request, Some(call.request), "{context}");
        }
    }
}

#[test]
fn an_echoed_need_reply_bit_is_tolerated() {
    let _leak = no_fd_leak();
    for exchange in &Exchange::all() {
        let (client, peer) = exchange.connect(patient());
        let bytes = exchange.with_flags(0xd);
        let result = exchange.run(&client, &peer, &bytes, exchange.fds);
        result.unwrap_or_else(|error| panic!("{exchange:?}: {error}"));
    }
}

/// Sends the good answer, split before each of these bytes.
fn send_in_pieces(exchange: &Exchange, peer: &Peer, splits: &[usize], pause: Duration) {
    let reply = exchange.reply();
    let starts = [&[0], splits].concat();
    let ends = [splits, &[reply.len()]].concat();
    for (start, end) in starts.into_iter().zip(ends) {
        let fds = vec![memory(7); if start == 0 { exchange.fds } else { 0 }];
        peer.send(&reply[start..end], &fds);
        thread::sleep(pause);
    }
}

#[test]
fn an_answer_in_two_pieces_is_put_together() {
    let _leak = no_fd_leak();
    let pause = Duration::from_millis(2);
    for exchange in &Exchange::all() {
        let length = exchange.reply().len();
        let splits = [1, 11, 12, 13, length - 1].into_iter();
        for split in splits.filter(|split| *split < length) {
            let (client, peer) = exchange.connect(patient());
            let answer = || {
                exchange.receive(&peer);
                send_in_pieces(exchange, &peer, &[split], pause);
            };
            let (result, ()) = both(|| (exchange.case.call)(&client), answer);
            result.unwrap_or_else(|error| panic!("{exchange:?} at {split}: {error}"));
        }
    }
}

#[test]
fn an_answer_byte_by_byte_is_put_together() {
    let _leak = no_fd_leak();
    for exchange in &Exchange::all() {
        let (client, peer) = exchange.connect(patient());
        let splits: Vec<usize> = (1..exchange.reply().len()).collect();
        let answer = || {
            exchange.receive(&peer);
            send_in_pieces(exchange, &peer, &splits, Duration::ZERO);
        };
        let (result, ()) = both(|| (exchange.case.call)(&client), answer);
        result.unwrap_or_else(|error| panic!("{exchange:?}: {error}"));
    }
}

#[test]
fn a_surplus_answer_ends_the_connection_before_the_next_request() {
    // R4: it would be taken for the answer to the next request of its kind.
    let _leak = no_fd_leak();
    for exchange in &Exchange::all() {
        let (client, peer) = exchange.connect(patient());
        let twice = exchange.reply().repeat(2);
        let context = format!("{exchange:?}, both at once");
        // The descriptor would belong to the second one.
        if exchange.fds == 0 {
            let result = exchange.run(&client, &peer, &twice, 0);
            result.unwrap_or_else(|error| panic!("{context}: {error}"));
            let error = client.get_features().expect_err(&context);
            assert_eq!(error.kind, POISONED, "{context}: {error}");
            peer.expect_silence();
        }

        let context = format!("{exchange:?}, one later");
        let (client, peer) = exchange.connect(patient());
        let result = exchange.run(&client, &peer, &exchange.reply(), exchange.fds);
        result.unwrap_or_else(|error| panic!("{context}: {error}"));
        peer.send(&exchange.reply(), &vec![memory(7); exchange.fds]);
        let next = if only_once(exchange.case.request) {
            Case::of(Request::GetFeatures)
        } else {
            exchange.case
        };
        let error = (next.call)(&client).expect_err(&context);
        assert_eq!(error.kind, Kind::Protocol, "{context}: {error}");
        assert_eq!(error.request, Some(next.request), "{context}");
        let error = client.get_features().expect_err(&context);
        assert_eq!(error.kind, POISONED, "{context}: {error}");
        peer.expect_silence();
    }
}

#[test]
fn an_unsolicited_message_is_found_by_the_next_request() {
    let _leak = no_fd_leak();
    let messages = [
        ("a reply", message(1, REPLY, &FEATURES.to_ne_bytes())),
        ("a request", message(1, 0x1, &[])),
        ("part of a header", vec![0; 5]),
    ];
    for (name, bytes) in messages {
        for case in CASES {
            let context = format!("{name} before {:?}", case.request);
            let (client, peer) = ready_for(case.request, true, patient());
            peer.send(&bytes, &[memory(7)]);
            let error = (case.call)(&client).expect_err(&context);
            assert_eq!(error.kind, Kind::Protocol, "{context}: {error}");
            assert_eq!(error.request, Some(case.request), "{context}");
            peer.expect_silence();
            let error = client.get_features().expect_err(&context);
            assert_eq!(error.kind, POISONED, "{context}: {error}");
        }
    }
}

// ---- refusals ----

/// Asserts a refusal with this value, after which the connection goes on.
fn assert_refused(
    request: Request,
    result: Result<()>,
    value: Option<u64>,
    client: &BackendClient,
    peer: &Peer,
) {
    let context = format!("{request:?}, value {value:x?}");
    let error = result.expect_err(&context);
    assert_eq!(error.kind, Kind::Nack, "{context}: {error}");
    assert_eq!(error.code(), code::NACK, "{context}");
    assert_eq!(error.class(), Class::Refused, "{context}");
    assert_eq!(error.phase, Phase::Reply, "{context}");
    assert_eq!(error.request, Some(request), "{context}");
    assert_eq!(error.value, value, "{context}");
    let answer = || common::answer(peer, Case::of(Request::GetFeatures), true, false);
    let (next, ()) = both(|| client.get_features(), answer);
    assert_eq!(next.unwrap(), FEATURES, "{context}");
}

#[test]
fn an_acknowledgement_that_is_not_zero_is_a_refusal_with_its_value() {
    let _leak = no_fd_leak();
    let minus_einval = u64::MAX - 21;
    for exchange in Exchange::all().iter().filter(|e| e.by == By::Ack) {
        for value in [1, 22, 0x100, 1 << 32, minus_einval, u64::MAX] {
            let (client, peer) = exchange.connect(patient());
            let bytes = exchange.with_payload(&value.to_ne_bytes());
            let result = exchange.run(&client, &peer, &bytes, 0);
            assert_refused(exchange.case.request, result, Some(value), &client, &peer);
        }
    }
}

#[test]
fn a_refused_change_is_not_remembered() {
    let _leak = no_fd_leak();
    let (client, peer) = handshake(FEATURES, protocol(true), patient());
    let refuse = |request| {
        peer.expect(request);
        peer.ack(request, 1);
    };
    both(
        || client.set_features(1 << 30),
        || refuse(Request::SetFeatures),
    )
    .0
    .unwrap_err();
    assert_eq!(client.acked_features(), FEATURES);
    for _ in 0..2 {
        // It may be tried again: the session is not owned.
        let (result, ()) = both(|| client.set_owner(), || refuse(Request::SetOwner));
        assert_eq!(result.unwrap_err().kind, Kind::Nack);
    }
}

#[test]
fn a_refusal_names_its_ring() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let refuse = || {
        peer.expect(Request::SetVringEnable);
        peer.ack(Request::SetVringEnable, 1);
    };
    let error = both(|| client.set_vring_enable(200, true), refuse)
        .0
        .unwrap_err();
    assert_eq!(error.ring, Some(200));
    assert!(
        error
            .to_string()
            .starts_with("SET_VRING_ENABLE, ring 200: "),
        "{error}"
    );
}

#[test]
fn a_reply_that_means_no_is_a_refusal() {
    let _leak = no_fd_leak();
    let table = [
        (Request::GetConfig, "", 0),
        (Request::GetConfig, "10000000 00000000 01000000", 0),
        (Request::CheckDeviceState, "0100000000000000", 1),
        (
            Request::CheckDeviceState,
            "00000000000000ff",
            0xff00_0000_0000_0000,
        ),
        (Request::SetDeviceStateFd, "0101000000000000", 0x101),
        (Request::SetDeviceStateFd, "ff01000000000000", 0x1ff),
        (Request::SetDeviceStateFd, "0100000000000000", 1), // without the no-descriptor bit
        (Request::PostcopyAdvise, "", 0),
        (Request::GetSharedObject, "", 0),
        (
            Request::GetSharedObject,
            "101112131415161718191a1b1c1d1e1f",
            0,
        ),
    ];
    for (request, payload, value) in table {
        let exchanges = Exchange::all();
        let exchange = exchanges.iter().find(|e| e.is(request)).unwrap();
        let (client, peer) = exchange.connect(patient());
        let bytes = exchange.with_payload(&hex(payload));
        let result = exchange.run(&client, &peer, &bytes, 0);
        // An empty answer to GET_CONFIG says no without a value, as does a
        // descriptor that is missing.
        let has_value = matches!(
            request,
            Request::CheckDeviceState | Request::SetDeviceStateFd
        );
        let value = has_value.then_some(value);
        assert_refused(request, result, value, &client, &peer);
    }
}

#[test]
fn a_negative_session_is_a_refusal_with_its_value() {
    let _leak = no_fd_leak();
    let exchanges = Exchange::all();
    let request = Request::CreateCryptoSession;
    let exchange = exchanges.iter().find(|e| e.is(request)).unwrap();
    for id in [-1, -22, i64::MIN] {
        let mut payload = exchange.payload.clone();
        payload[1064..].copy_from_slice(&id.to_ne_bytes());
        let (client, peer) = exchange.connect(patient());
        let result = exchange.run(&client, &peer, &exchange.with_payload(&payload), 0);
        let value = u64::from_ne_bytes(id.to_ne_bytes());
        assert_refused(request, result, Some(value), &client, &peer);
    }
}

/// The request, the payload that answers it and the descriptors with it, and the
/// value in the error.
type Contradiction = (Request, &'static str, usize, Option<u64>);

#[test]
fn a_reply_that_contradicts_itself_poisons_the_connection() {
    let _leak = no_fd_leak();
    const TABLE: &[Contradiction] = &[
        // Another ring than was asked for.
        (Request::GetVringBase, "04000000 34120000", 0, Some(4)),
        // More than 16 bits for a split ring.
        (
            Request::GetVringBase,
            "03000000 34120100",
            0,
            Some(0x1_1234),
        ),
        (
            Request::GetVringBaseSkipDrain,
            "04000000 34120000",
            0,
            Some(4),
        ),
        (
            Request::GetVringBaseSkipDrain,
            "03000000 34120100",
            0,
            Some(0x1_1234),
        ),
        // More than 8 bits.
        (Request::GetStatus, "0001000000000000", 0, Some(0x100)),
        (Request::GetStatus, "00000000000000ff", 0, Some(0xff << 56)),
        // Fewer bytes than the size in the answer, and more; another size.
        (
            Request::GetConfig,
            "10000000 08000000 01000000 01020304",
            0,
            Some(8),
        ),
        (
            Request::GetConfig,
            "10000000 00000000 01000000 0102030405060708",
            0,
            Some(0),
        ),
        (
            Request::GetConfig,
            "10000000 04000000 01000000 01020304",
            0,
            Some(4),
        ),
        // A buffer without a descriptor.
        (
            Request::GetInflightFd,
            "0030000000000000 0000000000000000 0200 0001 00000000",
            0,
            None,
        ),
        // No descriptor announced, and one that comes; the reverse.
        (
            Request::SetDeviceStateFd,
            "0001000000000000",
            1,
            Some(0x100),
        ),
        (Request::SetDeviceStateFd, "0000000000000000", 0, Some(0)),
        // A failure never comes with a descriptor.
        (
            Request::SetDeviceStateFd,
            "0101000000000000",
            1,
            Some(0x101),
        ),
        (Request::SetDeviceStateFd, "0100000000000000", 1, Some(1)),
        // Bits without a meaning.
        (
            Request::SetDeviceStateFd,
            "0002000000000000",
            1,
            Some(0x200),
        ),
    ];
    for &(request, payload, fds, value) in TABLE {
        let context = format!("{request:?}, {payload}, {fds} descriptors");
        let exchanges = Exchange::all();
        let exchange = exchanges.iter().find(|e| e.is(request)).unwrap();
        let (client, peer) = exchange.connect(patient());
        let bytes = exchange.with_payload(&hex(payload));
        let error = exchange
            .run(&client, &peer, &bytes, fds)
            .expect_err(&context);
        assert_eq!(error.kind, Kind::Protocol, "{context}: {error}");
        assert_eq!(error.request, Some(request), "{context}");
        assert_eq!(error.value, value, "{context}: {error}");
        exchange.assert_ended(&client, &peer, POISONED, &context);
    }
}

#[test]
fn shared_memory_with_more_regions_than_there_can_be_poisons_the_connection() {
    let _leak = no_fd_leak();
    let exchange = Exchange::of(Request::GetShmemConfig);
    for count in [257, u32::MAX] {
        let context = format!("{count} regions");
        let mut payload = exchange.payload.clone();
        payload[..4].copy_from_slice(&count.to_ne_bytes());
        let (client, peer) = exchange.connect(patient());
        let bytes = exchange.with_payload(&payload);
        let error = exchange.run(&client, &peer, &bytes, 0).expect_err(&context);
        assert_eq!(error.kind, Kind::Protocol, "{context}: {error}");
        assert_eq!(error.value, Some(u64::from(count)), "{context}");
        exchange.assert_ended(&client, &peer, POISONED, &context);
    }
}

#[test]
fn shared_memory_is_counted_by_its_sizes() {
    let _leak = no_fd_leak();
    let exchange = Exchange::of(Request::GetShmemConfig);
    let sizes = exchange.payload[8..].chunks_exact(8);
    let count = sizes.filter(|size| size.iter().any(|b| *b != 0)).count();
    assert!(count > 0);
    for told in [0_u32, 1, 256] {
        let mut payload = exchange.payload.clone();
        payload[..4].copy_from_slice(&told.to_ne_bytes());
        let (client, peer) = exchange.connect(patient());
        let answer = || {
            exchange.receive(&peer);
            peer.send(&exchange.with_payload(&payload), &[]);
        };
        let config = both(|| client.get_shmem_config(), answer).0.unwrap();
        assert_eq!(usize::try_from(config.nregions), Ok(count), "{told} told");
    }
}

#[test]
fn the_reply_to_set_log_base_is_consumed_whatever_it_holds() {
    let _leak = no_fd_leak();
    let exchange = Exchange::of(Request::SetLogBase);
    for size in [0, 8, 16, 4096] {
        let (client, peer) = exchange.connect(patient());
        let bytes = exchange.with_payload(&vec![0xee; size]);
        let result = exchange.run(&client, &peer, &bytes, 0);
        result.unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        // R6: nothing of it is left for the next request.
        let answer = || common::answer(&peer, Case::of(Request::GetQueueNum), true, false);
        let (next, ()) = both(|| (Case::of(Request::GetQueueNum).call)(&client), answer);
        next.unwrap_or_else(|error| panic!("after {size} bytes: {error}"));
    }
}

// ---- hanging up ----

/// The error of a request after the peer has answered `case` well and hung up.
fn after_hang_up(exchange: &Exchange) -> Error {
    let (client, peer) = exchange.connect(patient());
    let result = exchange.run(&client, &peer, &exchange.reply(), exchange.fds);
    result.unwrap_or_else(|error| panic!("{exchange:?}: {error}"));
    peer.hang_up();
    client.get_features().unwrap_err()
}

#[test]
fn a_hang_up_right_after_an_acknowledgement_names_the_acknowledged_request() {
    let _leak = no_fd_leak();
    for exchange in &Exchange::all() {
        let error = after_hang_up(exchange);
        assert_eq!(error.kind, Kind::Disconnected, "{exchange:?}: {error}");
        assert_eq!(error.request, Some(Request::GetFeatures), "{exchange:?}");
        let name = format!("acknowledged {}", exchange.case.request.info().name);
        let named = error.message.contains(&name);
        assert_eq!(named, exchange.by == By::Ack, "{exchange:?}: {error}");
    }
}

#[test]
fn an_acknowledgement_counts_although_a_hang_up_comes_with_it() {
    let _leak = no_fd_leak();
    for exchange in &Exchange::all() {
        let (client, peer) = exchange.connect(patient());
        let answer = || {
            exchange.receive(&peer);
            peer.send(&exchange.reply(), &vec![memory(7); exchange.fds]);
            peer.hang_up();
        };
        let (result, ()) = both(|| (exchange.case.call)(&client), answer);
        result.unwrap_or_else(|error| panic!("{exchange:?}: {error}"));
        let error = client.get_features().unwrap_err();
        assert_eq!(error.kind, Kind::Disconnected, "{exchange:?}: {error}");
    }
}

// ---- negotiation ----

#[test]
fn a_back_end_without_protocol_features_is_asked_for_none() {
    let _leak = no_fd_leak();
    let (client, peer) = connected(patient());
    let features = 1_u64 << 32;
    let early = client.get_protocol_features().unwrap_err();
    assert_eq!(early.kind, Kind::NotNegotiated, "{early}");
    let answer = || {
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, features);
    };
    assert_eq!(both(|| client.get_features(), answer).0.unwrap(), features);

    let refused = [
        (
            "GET_PROTOCOL_FEATURES",
            client.get_protocol_features().map(drop),
        ),
        ("SET_VRING_ENABLE", client.set_vring_enable(0, true)),
        ("GET_QUEUE_NUM", client.get_queue_num().map(drop)),
    ];
    for (name, result) in refused {
        let error = result.expect_err(name);
        assert_eq!(error.kind, Kind::NotNegotiated, "{error}");
        assert_eq!(error.request.unwrap().info().name.as_str(), name);
    }
    let error = client.set_features(features | 1 << 30).unwrap_err();
    assert_eq!(
        error.kind,
        Kind::Argument(nix::errno::Errno::EINVAL),
        "{error}"
    );
    peer.expect_silence();

    // What needs no protocol feature works, and asks for no acknowledgement.
    client.set_features(features).unwrap();
    client.set_owner().unwrap();
    client.set_vring_num(0, 8).unwrap();
    for request in [
        Request::SetFeatures,
        Request::SetOwner,
        Request::SetVringNum,
    ] {
        assert_eq!(peer.expect(request).flags, 0x1, "{request:?}");
    }
    peer.expect_silence();
}

#[test]
fn resetting_the_owner_forgets_the_features() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES | PACKED, ProtocolFeatures::empty(), patient());
    client.reset_owner().unwrap();
    peer.expect(Request::ResetOwner);
    assert_eq!(client.acked_features(), 0);
    let error = client.set_vring_enable(0, true).unwrap_err();
    assert_eq!(error.kind, Kind::NotNegotiated, "{error}");
    client.set_owner().unwrap();
    peer.expect(Request::SetOwner);
    peer.expect_silence();
}

// ---- descriptors ----

fn closes_on_exec(fd: BorrowedFd<'_>) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFD).unwrap();
    FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)
}

/// A call that returns a descriptor.
type Fetch = fn(&BackendClient) -> Result<Option<OwnedFd>>;

#[test]
fn received_descriptors_close_on_exec() {
    // R7
    let _leak = no_fd_leak();
    let exchanges = Exchange::all();
    let inflight: Fetch = |client| client.get_inflight_fd(2, 256).map(|(_, fd)| fd);
    let state: Fetch = |client| client.set_device_state_fd(Direction::Save, file(0));
    let faults: Fetch = |client| client.postcopy_advise().map(Some);
    let object: Fetch = |client| client.get_shared_object(&[1; 16]).map(Some);
    let table = [
        (Request::PostcopyAdvise, faults),
        (Request::GetSharedObject, object),
        (Request::GetInflightFd, inflight),
        (Request::SetDeviceStateFd, state),
    ];
    for (request, call) in table {
        let exchange = exchanges.iter().find(|e| e.is(request)).unwrap();
        let (client, peer) = exchange.connect(patient());
        let answer = || {
            exchange.receive(&peer);
            peer.send(&exchange.reply(), &[memory(7)]);
        };
        let fd = both(|| call(&client), answer).0.unwrap().unwrap();
        assert!(closes_on_exec(fd.as_fd()), "{request:?}");
        assert_eq!(identity(fd.as_fd()), identity(memory(7)), "{request:?}");
    }
}

#[test]
fn the_connection_closes_on_exec() {
    let _leak = no_fd_leak();
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl(ours.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let (client, _peer) = connected_on(ours, theirs, patient());
    assert!(closes_on_exec(client.read_notifier()));
}

#[test]
fn a_descriptor_may_come_with_a_later_piece_of_its_reply() {
    let _leak = no_fd_leak();
    let exchange = Exchange::of(Request::GetInflightFd);
    let (client, peer) = exchange.connect(patient());
    let reply = exchange.reply();
    let answer = || {
        exchange.receive(&peer);
        peer.send(&reply[..12], &[]);
        peer.send(&reply[12..], &[memory(7)]);
    };
    both(|| (exchange.case.call)(&client), answer).0.unwrap();
}

/// The next back-end gets the buffer with these numbers, and trusts them.
#[test]
fn an_in_flight_buffer_is_for_the_rings_that_were_asked_for() {
    let _leak = no_fd_leak();
    let exchange = Exchange::of(Request::GetInflightFd);
    for at in [16, 18] {
        for wrong in [0_u16, 1, u16::MAX] {
            let mut payload = exchange.payload.clone();
            payload[at..at + 2].copy_from_slice(&wrong.to_ne_bytes());
            let (client, peer) = exchange.connect(patient());
            let answer = || {
                exchange.receive(&peer);
                peer.send(&exchange.with_payload(&payload), &[memory(7)]);
            };
            let error = both(|| (exchange.case.call)(&client), answer)
                .0
                .unwrap_err();
            assert_eq!(error.kind, Kind::Protocol, "{error}");
            assert!(error.message.contains(&format!("{wrong}")), "{error}");
        }
    }
}

/// The next back-end maps the file.
#[test]
fn unmappable_in_flight_buffer_is_a_protocol_error() {
    let _leak = no_fd_leak();
    let exchange = Exchange::of(Request::GetInflightFd);
    let file = |size: u64| {
        let file = File::from(memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        file
    };
    let reopened = |file: &File, flags: OFlag| {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::from(nix::fcntl::open(path.as_str(), flags, Mode::empty()).unwrap())
    };
    // The answer says 0x1040 bytes from 0x1000 on.
    let whole = file(0x2040);
    let sealed = memfd_create(c"sealed", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let sealed = File::from(sealed);
    sealed.set_len(0x2040).unwrap();
    fcntl(
        &sealed,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE),
    )
    .unwrap();
    let table = [
        (reopened(&whole, OFlag::O_RDWR), None),
        (reopened(&whole, OFlag::O_RDONLY), Some("not open")),
        (reopened(&whole, OFlag::O_PATH), Some("not open")),
        (sealed, Some("sealed")),
        (file(0x203f), Some("too short")),
        (file(0), Some("too short")),
        (File::open("/").unwrap(), Some("not open")),
        (
            OwnedFd::from(UnixStream::pair().unwrap().0).into(),
            Some("cannot be mapped"),
        ),
    ];
    for (file, why) in table {
        let (client, peer) = exchange.connect(patient());
        let call = || client.get_inflight_fd(2, 256);
        let answer = || {
            exchange.receive(&peer);
            peer.send(&exchange.reply(), &[file.as_fd()]);
        };
        match (both(call, answer).0, why) {
            (result, None) => assert!(result.unwrap().1.is_some()),
            (result, Some(why)) => {
                let error = result.unwrap_err();
                assert_eq!(error.kind, Kind::Protocol, "{error}");
                assert!(error.message.contains(why), "{error}");
            }
        }
    }
    let mut payload = exchange.payload.clone();
    payload[8..16].copy_from_slice(&0x800_u64.to_ne_bytes());
    let (client, peer) = exchange.connect(patient());
    let answer = || {
        exchange.receive(&peer);
        peer.send(&exchange.with_payload(&payload), &[whole.as_fd()]);
    };
    let error = both(|| client.get_inflight_fd(2, 256), answer)
        .0
        .unwrap_err();
    assert!(error.message.contains("page"), "{error}");
}

#[test]
fn a_failed_call_leaves_the_callers_buffer_alone() {
    let _leak = no_fd_leak();
    for payload in ["", "00000000 04000000 00000000 01020304"] {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        let mut buffer = [0x5a; 8];
        let answer = || {
            peer.expect(Request::GetConfig);
            peer.reply(Request::GetConfig, &hex(payload));
        };
        both(|| client.get_config(0, 0, &mut buffer), answer)
            .0
            .unwrap_err();
        assert_eq!(buffer, [0x5a; 8]);
    }
}

#[test]
fn a_stopped_ring_counts_as_stopped_although_its_base_is_cut_short() {
    // DPDK and vhost-user-backend send 16 bits of a packed base.
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES | PACKED, protocol(false), patient());
    let answer = || {
        peer.expect(Request::GetVringBase);
        peer.reply(Request::GetVringBase, &hex("03000000 34920000"));
    };
    both(|| client.get_vring_base(3, Timeout::Default), answer)
        .0
        .unwrap();
    client.set_vring_call(3, Some(file(0))).unwrap(); // no barrier any more
    peer.expect(Request::SetVringCall);
    peer.expect_silence();
}
