//! Requests on one connection, and whatever a back-end may answer.
//!
//! What the library makes of the answers is held against what the peer has
//! really sent: see [`Model`].

use super::input::Input;
use super::peer::{Manners, Peer, own_reply};
use super::rig::{Late, Rig, SLACK, open_fds, within_memory};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{
    self, CryptoAsym, CryptoSym, Inflight, Iotlb, Log, MemRegion, ProtocolFeatures, Request,
    ShmemConfig, VringAddr,
};
use vhost_user_frontend::{
    Adopted, BackendClient, Class, CryptoKind, Direction, Error, Kind, OnTimeout, Options, Phase,
    Result, SharedRegion, Timeout,
};

/// Most requests of a run.
const STEPS: usize = 6;
/// More than any wait of a peer that hangs up.
const AMPLE: Duration = Duration::from_millis(100);

/// What the first bytes of an input decide.
struct Setup {
    options: Options,
    manners: Manners,
    features: u64,
    protocol: ProtocolFeatures,
}

impl Setup {
    fn new(input: &mut Input<'_>) -> Self {
        let flags = input.byte();
        let flag = |bit: u8| flags & 1 << bit != 0;
        let (keep, packed, congested, fresh, helpful) =
            (flag(0), flag(2), flag(3), flag(4), flag(5));
        // Seldom, as it takes time.
        let silent = flag(1) && flag(6);
        let protocol = ProtocolFeatures::from_bits_truncate(u64::from(input.u32()));
        let times = input.byte();
        let time = |shift: u8| match (silent, times >> shift & 3) {
            (true, n) => Timeout::After(Duration::from_millis(1 + u64::from(n / 2))),
            // Such a peer ends every wait.
            (false, 0) => Timeout::Default,
            (false, 1) => Timeout::Never,
            (false, _) => Timeout::After(AMPLE),
        };
        let features = 1 << 33 | 1 << 32 | 1 << 30 | 1 << 26 | 1 << 3 | u64::from(packed) << 34;
        let options = Options {
            quick: time(0),
            slow: time(2),
            drain: time(4),
            on_timeout: match keep {
                true => OnTimeout::Keep,
                false => OnTimeout::Poison,
            },
            adopt: (!fresh).then_some(Adopted {
                features,
                protocol_features: protocol.bits(),
            }),
            ..Options::default()
        };
        let manners = Manners {
            closing: !silent,
            stirring: !flag(7),
            helpful,
            congested,
        };
        Self {
            options,
            manners,
            features,
            protocol,
        }
    }

    /// When a request of this kind must have come back.
    fn deadline(&self, request: Request) -> Option<Duration> {
        let of_kind = match request.info().wait {
            message::Wait::Quick => self.options.quick,
            message::Wait::Slow => self.options.slow,
            message::Wait::Drain => self.options.drain,
        };
        match of_kind {
            Timeout::After(time) => Some(time),
            Timeout::Default | Timeout::Never => None,
        }
    }
}

/// What a call returned.
#[derive(Debug)]
enum Answer {
    Nothing,
    Number(u64),
    Base(u32, u32),
    Config(Box<[u8; 256]>, usize),
    Inflight(Inflight, Option<OwnedFd>),
    Channel(Option<OwnedFd>),
    File(OwnedFd),
    Session(u64),
    Shmem(Box<ShmemConfig>),
}

/// Sends the request with arguments that fit it.
fn call(
    client: &BackendClient,
    setup: &Setup,
    request: Request,
    arguments: [u8; 4],
    fd: BorrowedFd<'_>,
) -> Result<Answer> {
    let [a, b, c, d] = arguments;
    let ring = u32::from(a);
    let packed = client.acked_features() & 1 << 34 != 0;
    let region = |index: u8| {
        let at = u64::from(index) << 32 | u64::from(b) << 12;
        SharedRegion {
            region: MemRegion {
                guest_addr: at,
                size: (1 + u64::from(c)) << 12,
                // The same with GPA_ADDRESSES.
                user_addr: at,
                mmap_offset: u64::from(d) << 12,
                ..MemRegion::default()
            },
            fd,
        }
    };
    let optional = (b & 1 == 0).then_some(fd);
    let offset = u32::from(b) * 15;
    let length = 1 + usize::from(c);
    let inflight = Inflight {
        mmap_size: (1 + u64::from(a)) << 12,
        mmap_offset: u64::from(d) << 12,
        num_queues: 1 + u16::from(b),
        queue_size: 1 + u16::from(c),
        padding: 0,
    };
    let done = |()| Answer::Nothing;
    match request {
        Request::GetFeatures => client.get_features().map(Answer::Number),
        Request::SetFeatures => client.set_features(setup.features).map(done),
        Request::SetOwner => client.set_owner().map(done),
        Request::ResetOwner => client.reset_owner().map(done),
        Request::SetMemTable => {
            let regions = [0, 1, 2, 3, 4, 5, 6, 7].map(region);
            client
                .set_mem_table(&regions[..=usize::from(a & 7)])
                .map(done)
        }
        Request::SetLogBase => {
            let log = Log {
                mmap_size: 8 * (1 + u64::from(b)),
                mmap_offset: 0,
            };
            client.set_log_base(&log, fd).map(done)
        }
        Request::SetLogFd => client.set_log_fd(fd).map(done),
        Request::SetVringNum => client.set_vring_num(ring, 1 << (b & 15)).map(done),
        Request::SetVringAddr => client
            .set_vring_addr(&VringAddr {
                index: ring,
                flags: u32::from(b & 1),
                descriptor: u64::from(b) << 4,
                used: u64::from(c) << 2,
                available: u64::from(d) << 2,
                log: 0,
            })
            .map(done),
        Request::SetVringBase => {
            let base = u32::from_le_bytes([b, c, d, a]);
            let mask = if packed { u32::MAX } else { 0xffff };
            client.set_vring_base(ring, base & mask).map(done)
        }
        Request::GetVringBase => client
            .get_vring_base(ring, Timeout::Default)
            .map(|base| Answer::Base(ring, base)),
        Request::SetVringKick => client.set_vring_kick(ring, optional).map(done),
        Request::SetVringCall => client.set_vring_call(ring, optional).map(done),
        Request::SetVringErr => client.set_vring_err(ring, optional).map(done),
        Request::GetProtocolFeatures => client.get_protocol_features().map(Answer::Number),
        Request::SetProtocolFeatures => client
            .set_protocol_features(setup.protocol.bits())
            .map(done),
        Request::GetQueueNum => client.get_queue_num().map(Answer::Number),
        Request::SetVringEnable => client.set_vring_enable(ring, b & 1 == 0).map(done),
        Request::SetBackendReqFd => client.set_backend_req_fd(fd).map(done),
        Request::GetConfig => {
            let mut buffer = [0xa5; 256];
            let result = client.get_config(offset, u32::from(d & 3), &mut buffer[..length]);
            assert!(
                result.is_ok() || buffer == [0xa5; 256],
                "the buffer has changed"
            );
            result.map(|()| Answer::Config(Box::new(buffer), length))
        }
        Request::SetConfig => client
            .set_config(offset, u32::from(d & 3), &[a; 256][..length])
            .map(done),
        Request::GetInflightFd => client
            .get_inflight_fd(inflight.num_queues, inflight.queue_size)
            .map(|(inflight, fd)| Answer::Inflight(inflight, fd)),
        Request::SetInflightFd => client.set_inflight_fd(&inflight, fd).map(done),
        Request::GetMaxMemSlots => client.get_max_mem_slots().map(Answer::Number),
        Request::AddMemReg => client.add_mem_region(&region(a & 7)).map(done),
        Request::RemMemReg => client.remove_mem_region(&region(a & 7).region).map(done),
        Request::SetDeviceStateFd => {
            let direction = match a & 1 {
                0 => Direction::Save,
                _ => Direction::Load,
            };
            client
                .set_device_state_fd(direction, fd)
                .map(Answer::Channel)
        }
        Request::CheckDeviceState => client.check_device_state().map(done),
        Request::SendRarp => client.send_rarp([a, b, c, d, a, b]).map(done),
        Request::NetSetMtu => client
            .net_set_mtu(68 + u32::from(u16::from_le_bytes([b, c])) / 2)
            .map(done),
        Request::IotlbMsg => client
            .send_iotlb(&Iotlb {
                iova: u64::from(b) << 12,
                size: 1 + u64::from(c),
                user_addr: u64::from(d) << 12,
                perm: 1 + a % 3,
                kind: 2 + (a >> 7),
                padding: [0; 6],
            })
            .map(done),
        Request::SetVringEndian => client.set_vring_endian(ring, u32::from(b & 1)).map(done),
        Request::CreateCryptoSession => create_session(client, arguments).map(Answer::Session),
        Request::CloseCryptoSession => client.close_crypto_session(u64::from(b)).map(done),
        Request::PostcopyAdvise => client.postcopy_advise().map(Answer::File),
        Request::PostcopyListen => client.postcopy_listen().map(done),
        Request::PostcopyEnd => client.postcopy_end().map(done),
        Request::GpuSetSocket => client.gpu_set_socket(fd).map(done),
        Request::ResetDevice => client.reset_device().map(done),
        Request::VringKick => client.vring_kick(ring).map(done),
        Request::SetStatus => client.set_status(u32::from(b)).map(done),
        Request::GetStatus => client.get_status().map(u64::from).map(Answer::Number),
        Request::GetSharedObject => client.get_shared_object(&[b; 16]).map(Answer::File),
        Request::GetVringBaseSkipDrain => client
            .get_vring_base_skip_drain(ring)
            .map(|base| Answer::Base(ring, base)),
        Request::GetShmemConfig => client.get_shmem_config().map(Box::new).map(Answer::Shmem),
    }
}

/// A session of one kind or the other.
fn create_session(client: &BackendClient, [a, b, c, d]: [u8; 4]) -> Result<u64> {
    let number = u32::from;
    if a & 1 == 0 {
        let session = CryptoAsym {
            algo: number(b),
            key_type: number(c),
            key_len: number(d),
            padding: 0,
            pointer: 0,
            padding_algo: number(b),
            hash_algo: number(c),
            key: [0; 1024],
        };
        return client.create_crypto_session(0x404, CryptoKind::Asym(&session));
    }
    let session = CryptoSym {
        cipher_alg: number(b),
        key_len: number(c & 63),
        hash_alg: number(d),
        hash_result_len: number(b),
        auth_key_len: number(c),
        add_len: number(d),
        op_type: b,
        direction: c,
        hash_mode: d,
        alg_chain_order: a,
        padding: 0,
        pointers: [0; 2],
        key: [0; 64],
        auth_key: [0; 512],
    };
    client.create_crypto_session(2 + (u64::from(a) & 3) * 0x100, CryptoKind::Sym(&session))
}

/// Why no request can succeed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Poisoned(Class),
    Disconnected,
    Aborted,
}

/// What must be true of a connection, from what the peer has sent.
struct Model {
    /// How much of [`Peer::log`] has been used up by replies.
    consumed: usize,
    /// Codes of requests that were given up, whose replies come first.
    orphans: Vec<u32>,
    end: Option<End>,
}

/// A reply, as the specification has it.
struct Reply<'a> {
    payload: &'a [u8],
    gifts: usize,
}

impl Model {
    /// The next reply that the peer has sent, which must be one to this request.
    fn reply<'a>(&mut self, peer: &'a Peer, code: u32) -> Reply<'a> {
        let start = self.consumed;
        let unread = &peer.log[start..];
        assert!(unread.len() >= 12, "there is no reply to {code}");
        let word = |at: usize| u32::from_ne_bytes(unread[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), code, "the reply is to another request");
        assert_eq!(word(4) & !8, 5, "it is not flagged as a reply");
        let size = usize::try_from(word(8)).unwrap();
        let allowed = own_reply(code).unwrap_or(8..9);
        assert!(allowed.contains(&size), "its size is not allowed");
        assert!(unread.len() >= 12 + size, "it is cut short");
        self.consumed += 12 + size;
        let within = |gift: &&super::peer::Gift| {
            start <= gift.bytes.start && gift.bytes.end <= self.consumed
        };
        let gifts = peer.gifts.iter().filter(within).map(|gift| gift.fds).sum();
        Reply {
            payload: &unread[12..12 + size],
            gifts,
        }
    }

    /// The reply to the request that was just answered, after those to requests
    /// given up.
    fn answered<'a>(&mut self, peer: &'a Peer, code: u32) -> Reply<'a> {
        for orphan in std::mem::take(&mut self.orphans) {
            self.reply(peer, orphan);
        }
        let reply = self.reply(peer, code);
        let most = usize::from(matches!(code, 28 | 31 | 41 | 42));
        assert!(reply.gifts <= most, "{} descriptors came", reply.gifts);
        reply
    }
}

/// A number at this byte.
fn u64_at(payload: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap())
}

fn u32_at(payload: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(payload[at..at + 4].try_into().unwrap())
}

/// One request of a run.
struct Step<'a> {
    request: Request,
    /// The peer sends something before it was asked.
    unasked: bool,
    abort: bool,
    arguments: [u8; 4],
    script: &'a [u8],
}

impl<'a> Step<'a> {
    fn new(input: &mut Input<'a>) -> Self {
        let first = input.byte();
        let arguments: [u8; 4] = input.array();
        Self {
            request: Request::ALL[usize::from(first & 63) % Request::ALL.len()],
            unasked: first & 0x80 != 0,
            abort: first & 0x40 != 0 && arguments[0] & 1 != 0,
            arguments,
            script: input.block(),
        }
    }
}

/// What a request must have looked like on the wire, and the code of the reply
/// that it waits for.
fn awaited(peer: &Peer, step: &Step<'_>, reply_ack: bool) -> Option<u32> {
    let info = step.request.info();
    let (first, rest) = peer.seen.split_first()?;
    assert_eq!(first.code, step.request.id(), "another request was sent");
    assert!(info.fds_out.contain(peer.fds_seen), "{}", peer.fds_seen);
    let acked = match info.reply {
        message::Reply::Ack(_) => reply_ack,
        message::Reply::Status => true,
        message::Reply::Silent | message::Reply::Always(_) => false,
    };
    assert_eq!(first.flags, if acked { 9 } else { 1 }, "need-reply");
    match (rest, first.wants_answer()) {
        ([], true) => Some(first.code),
        ([], false) => None,
        ([barrier], false) => {
            assert_eq!((barrier.code, barrier.flags), (1, 1), "not a barrier");
            Some(1)
        }
        _ => panic!("more was sent than a request: {:?}", peer.seen),
    }
}

fn check_success(rig: &Rig, model: &mut Model, code: Option<u32>, answer: &Answer) {
    assert_eq!(model.end, None, "success after the end");
    let Some(code) = code else {
        assert!(matches!(answer, Answer::Nothing), "{answer:?}");
        return;
    };
    let reply = model.answered(&rig.peer, code);
    let payload = reply.payload;
    match answer {
        // The answer to SET_LOG_BASE means nothing, and a barrier's no more.
        Answer::Nothing => assert!(
            matches!(code, 1 | 6) || u64_at(payload, 0) == 0,
            "a refusal was taken for success"
        ),
        Answer::Number(number) => assert_eq!(u64_at(payload, 0), *number),
        Answer::Base(ring, base) => {
            assert_eq!(u32_at(payload, 0), *ring, "another ring's base");
            let sent = u32_at(payload, 4);
            let completed = code == 11 && sent < 0x1_0000 && *base == sent | sent << 16;
            assert!(
                *base == sent || completed,
                "base {base:#x}, and the peer sent {sent:#x}"
            );
        }
        Answer::Config(buffer, length) => {
            assert_eq!(u32_at(payload, 4), u32::try_from(*length).unwrap());
            assert_eq!(payload[12..], buffer[..*length]);
            assert_eq!(buffer[*length..], [0xa5; 256][*length..]);
        }
        Answer::Inflight(inflight, fd) => {
            assert_eq!(u64_at(payload, 0), inflight.mmap_size);
            assert_eq!(u64_at(payload, 8), inflight.mmap_offset);
            assert_eq!(fd.is_some(), inflight.mmap_size != 0);
        }
        Answer::Channel(fd) => {
            let value = if fd.is_some() { 0 } else { 0x100 };
            assert_eq!(u64_at(payload, 0), value);
        }
        Answer::File(_) => assert_eq!(reply.gifts, 1),
        Answer::Session(id) => assert_eq!(u64_at(payload, 1064), *id),
        Answer::Shmem(config) => {
            let sizes = (0..256).map(|at| u64_at(payload, 8 + 8 * at));
            assert!(sizes.clone().eq(config.memory_sizes), "other sizes");
            let nonzero = sizes.filter(|size| *size != 0).count();
            assert_eq!(usize::try_from(config.nregions), Ok(nonzero));
            assert!(u32_at(payload, 0) <= 256);
        }
    }
    if let Answer::Inflight(_, Some(fd)) | Answer::Channel(Some(fd)) | Answer::File(fd) = answer {
        rig.check_gift(fd.as_fd());
    }
}

/// Whether this answer says no.
fn refuses(request: Request, reply: &Reply<'_>) -> bool {
    let payload = reply.payload;
    match request {
        Request::PostcopyAdvise | Request::GetSharedObject => reply.gifts == 0,
        Request::CreateCryptoSession => u64_at(payload, 1064) >> 63 != 0,
        Request::GetConfig => {
            payload.is_empty() || (payload.len() == 12 && u32_at(payload, 4) == 0)
        }
        Request::SetDeviceStateFd => u64_at(payload, 0) & 0xff != 0,
        _ => u64_at(payload, 0) != 0,
    }
}

fn check_failure(
    rig: &Rig,
    setup: &Setup,
    model: &mut Model,
    step: &Step<'_>,
    code: Option<u32>,
    error: &Error,
) {
    let peer = &rig.peer;
    assert_eq!(error.request, Some(step.request), "{error}");
    assert!(error.code() < 0, "{error}");
    let local = matches!(
        error.kind,
        Kind::Argument(_) | Kind::NotNegotiated | Kind::State
    );
    if local || model.end.is_some() {
        assert!(peer.seen.is_empty(), "sent all the same: {error}");
    }
    if local {
        assert_eq!(error.phase, Phase::Check, "{error}");
        // What may be acknowledged, the peer has told.
        let told = matches!(
            step.request,
            Request::SetFeatures | Request::SetProtocolFeatures
        );
        assert!(told || !matches!(error.kind, Kind::Argument(_)), "{error}");
        return;
    }
    match (model.end, error.kind) {
        (None, _) => {}
        // A send that failed leaves what had arrived before, which may be wrong.
        (Some(End::Disconnected), Kind::Protocol | Kind::Poisoned(Class::Protocol)) => {
            assert!(peer.strayed, "{error}");
            model.end = Some(End::Poisoned(Class::Protocol));
            return;
        }
        (Some(End::Disconnected), Kind::Disconnected) | (Some(End::Aborted), Kind::Canceled) => {
            return;
        }
        (Some(End::Poisoned(class)), Kind::Poisoned(same)) if class == same => return,
        (Some(end), _) => panic!("{error:?} after {end:?}"),
    }
    match error.kind {
        Kind::Nack => {
            let reply = model.answered(peer, code.expect("nothing was asked"));
            assert!(refuses(step.request, &reply), "it had agreed");
        }
        Kind::TimedOut => {
            assert!(!setup.manners.closing || setup.deadline(step.request).is_some());
            match (error.phase, setup.options.on_timeout) {
                (Phase::Send, _) => assert!(setup.manners.congested || peer.seen.is_empty()),
                (_, OnTimeout::Keep) => model.orphans.extend(code),
                (_, OnTimeout::Poison) => model.end = Some(End::Poisoned(Class::Transport)),
            }
        }
        Kind::Protocol => {
            assert!(peer.strayed, "the peer did well: {error}");
            model.end = Some(End::Poisoned(Class::Protocol));
        }
        Kind::Disconnected => {
            assert!(peer.hung_up, "the peer is there: {error}");
            model.end = Some(End::Disconnected);
        }
        // It came in one piece with the reply to the call before, which stands.
        Kind::Poisoned(Class::Protocol) => {
            assert!(peer.strayed && peer.seen.is_empty(), "{error}");
            model.end = Some(End::Poisoned(Class::Protocol));
        }
        _ => panic!("{error:?}"),
    }
}

/// Fills the socket, if the peer is to be congested: with so many bytes.
fn congest(socket: &UnixStream, manners: Manners) -> usize {
    let mut filler = 0;
    if manners.congested {
        setsockopt(socket, sockopt::SndBuf, &1).unwrap();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match send(socket.as_raw_fd(), b"~", flags) {
                Ok(sent) => filler += sent,
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    break;
                }
            }
        }
    }
    filler
}

/// One input.
pub fn run(rig: &mut Rig, data: &[u8]) -> std::result::Result<(), Late> {
    let mut input = Input::new(data);
    let setup = Setup::new(&mut input);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let filler = congest(&ours, setup.manners);
    let client = BackendClient::from_fd(ours.into(), &setup.options).unwrap();
    rig.peer.connect(theirs.into(), filler, setup.manners);
    let fds = open_fds();
    let mut model = Model {
        consumed: 0,
        orphans: Vec::new(),
        end: None,
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = Step::new(&mut input);
        if step.abort {
            client.abort();
            model.end = Some(End::Aborted);
        }
        let reply_ack = client
            .acked_protocol_features()
            .contains(ProtocolFeatures::REPLY_ACK);
        rig.peer.begin();
        let surplus = rig.peer.log.len() > model.consumed && model.orphans.is_empty();
        let file = rig.file.as_fd();
        let (result, elapsed) = rig.peer.during(step.script, step.unasked, || {
            let begin = Instant::now();
            let result =
                within_memory(|| call(&client, &setup, step.request, step.arguments, file));
            (result, begin.elapsed())
        });

        let code = awaited(&rig.peer, &step, reply_ack);
        match &result {
            Ok(answer) => {
                assert!(!surplus, "success although there was a surplus reply");
                check_success(rig, &mut model, code, answer);
            }
            Err(error) => {
                let well = !rig.peer.strayed && !rig.peer.paused && !setup.manners.congested;
                let unanswered = error.kind == Kind::TimedOut && !rig.peer.debts.is_empty();
                assert!(
                    !well || unanswered || error.phase == Phase::Check || model.end.is_some(),
                    "the peer did well: {error}"
                );
                check_failure(rig, &setup, &mut model, &step, code, error);
            }
        }
        let broken = matches!(&result, Err(error) if error.kind == Kind::Protocol);
        let timed_out = matches!(&result, Err(error) if error.kind == Kind::TimedOut);
        drop(result);
        if broken {
            let kept = open_fds()
                .iter()
                .zip(&fds)
                .any(|(now, then)| now & !then != 0);
            assert!(!kept, "descriptors kept of a broken reply");
        }
        if let Some(deadline) = setup.deadline(step.request) {
            assert!(
                !timed_out || elapsed >= deadline,
                "{elapsed:?} is too early"
            );
            if elapsed > deadline + SLACK {
                return Err(Late { deadline, elapsed });
            }
        }
    }
    Ok(())
}
