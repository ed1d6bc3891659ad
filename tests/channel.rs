//! What the back-end asks on its own channel.

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
    AT_ONCE, CASES, FEATURES, Message, PATIENCE, Peer, adopted, both, cpu_time, drain, fill,
    give_up_privileges, hex, identity, limit_fds, many_in_flight, memory, message, no_fd_leak,
    only_for_root, only_once, patient, protocol, ready_for, start, wait_until,
};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::Mode;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{
    BackendRequest, Iotlb, ProtocolFeatures, Request, ShmemArea, iotlb as iotlb_kind,
};
use vhost_user_frontend::{
    BackendClient, BackendHandler, HostNotifier, Kind, Options, SharedRegion, Timeout, Uuid,
};

/// The flags of a request that asks to be answered.
const ASKS: u32 = 0x9;
const QUIET: u32 = 0x1;
/// -EINVAL
const REFUSED: i64 = -22;

/// Something to post.
const INVALIDATE: Iotlb = Iotlb {
    iova: 0x1000,
    size: 0x1000,
    user_addr: 0,
    perm: 0,
    kind: iotlb_kind::INVALIDATE,
    padding: [0; 6],
};

type Hook = Box<dyn Fn(&str) -> i32 + Send + Sync>;

/// Writes down what it is called for.
struct Recorder {
    log: Mutex<Vec<String>>,
    result: Mutex<i32>,
    missing: Mutex<Vec<BackendRequest>>,
    /// Runs inside each function that the back-end waits for.
    hook: Mutex<Option<Arc<Hook>>>,
}

impl Recorder {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            log: Mutex::default(),
            result: Mutex::default(),
            missing: Mutex::default(),
            hook: Mutex::default(),
        })
    }

    fn hook(&self, hook: impl Fn(&str) -> i32 + Send + Sync + 'static) {
        *self.hook.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    fn say(&self, what: String) -> i32 {
        let hook = self.hook.lock().unwrap().clone();
        let result = match hook {
            Some(hook) => hook(&what),
            None => *self.result.lock().unwrap(),
        };
        self.log.lock().unwrap().push(what);
        result
    }

    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl BackendHandler for Recorder {
    fn handles(&self, request: BackendRequest) -> bool {
        !self.missing.lock().unwrap().contains(&request)
    }
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        self.say(format!("miss {iova:#x} {perm}"))
    }
    fn iotlb_access_fail(&self, message: &Iotlb) -> i32 {
        self.say(format!("denied {:#x} {:#x}", message.iova, message.size))
    }
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        self.say(match notifier {
            Some(HostNotifier { fd, offset, size }) => {
                let own = identity(fd.as_fd()) == identity(memory(1));
                format!("notifier {ring} {offset:#x} {size:#x} {own}")
            }
            None => format!("notifier {ring} gone"),
        })
    }
    fn shared_object_lookup(&self, uuid: &Uuid) -> Result<OwnedFd, i32> {
        match self.say(format!("lookup {}", uuid[0])) {
            0 => Ok(memory(2).try_clone_to_owned().unwrap()),
            code => Err(code),
        }
    }
    fn shmem_map(&self, area: &ShmemArea, fd: OwnedFd) -> i32 {
        let own = identity(fd.as_fd()) == identity(memory(1));
        let ShmemArea {
            shmid,
            shm_offset,
            len,
            fd_offset,
            flags,
            ..
        } = area;
        self.say(format!(
            "map {shmid} {shm_offset:#x} {len:#x} from {fd_offset:#x} flags {flags} {own}"
        ))
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        self.say(format!(
            "unmap {} {:#x} {:#x}",
            area.shmid, area.shm_offset, area.len
        ))
    }
    fn config_changed(&self) {
        self.note("config".into());
    }
    fn vring_call(&self, ring: u8) {
        self.note(format!("call {ring}"));
    }
    fn vring_err(&self, ring: u8) {
        self.note(format!("err {ring}"));
    }
    fn shared_object_added(&self, uuid: &Uuid) {
        self.note(format!("added {}", uuid[0]));
    }
    fn shared_object_removed(&self, uuid: &Uuid) {
        self.note(format!("removed {}", uuid[0]));
    }
}

/// The back-end's end of the channel.
struct Channel(Peer);

impl Channel {
    fn ask(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.0.send(&message(request, flags, payload), fds);
    }

    fn answer(&self, request: u32) -> (i64, Vec<OwnedFd>) {
        let Message {
            code,
            flags,
            payload,
            fds,
        } = self.0.receive();
        assert_eq!((code, flags, payload.len()), (request, 0x5, 8));
        (i64::from_ne_bytes(payload[..].try_into().unwrap()), fds)
    }

    /// Asks and waits for the answer.
    fn demand(&self, request: BackendRequest, payload: &[u8], fds: &[BorrowedFd<'_>]) -> i64 {
        self.ask(request.id(), ASKS, payload, fds);
        let (value, fds) = self.answer(request.id());
        assert!(fds.is_empty());
        value
    }
}

/// A client with a channel; the sizes of the shared memory regions are known.
fn with_channel(handler: Arc<Recorder>) -> (BackendClient, Peer, Channel) {
    channel_for(Request::GetFeatures, handler)
}

/// The same for a client that may send this request.
fn channel_for(request: Request, handler: Arc<Recorder>) -> (BackendClient, Peer, Channel) {
    channel_with(request, handler, patient())
}

fn channel_with(
    request: Request,
    handler: Arc<Recorder>,
    options: Options,
) -> (BackendClient, Peer, Channel) {
    let (client, peer) = ready_for(request, true, options);
    let back = || {
        peer.expect(Request::GetShmemConfig);
        let mut config = vec![0; 2056];
        config[0] = 1;
        config[8 + 8 * 3..][..8].copy_from_slice(&0x10000_u64.to_ne_bytes());
        peer.reply(Request::GetShmemConfig, &config);
        let mut given = peer.expect(Request::SetBackendReqFd);
        peer.ack(Request::SetBackendReqFd, 0);
        Channel(Peer::on(given.fds.remove(0)))
    };
    let front = || {
        client.get_shmem_config().unwrap();
        client.open_backend_channel(handler).unwrap();
    };
    let ((), channel) = both(front, back);
    (client, peer, channel)
}

#[test]
fn call_serves_the_channel_until_its_deadline() {
    // More than the library once served in one call.
    const MANY: usize = (1 << 16) + 1000;
    const AT_A_TIME: usize = 50;
    let _leak = no_fd_leak();
    let (client, peer, channel) = with_channel(Recorder::new());
    let change = BackendRequest::ConfigChange.id();
    let back = || {
        peer.expect(Request::GetFeatures);
        for _ in 0..MANY.div_ceil(AT_A_TIME) {
            (0..AT_A_TIME).for_each(|_| channel.ask(change, ASKS, &[], &[]));
            assert!((0..AT_A_TIME).all(|_| channel.answer(change).0 == 0));
        }
        peer.ack(Request::GetFeatures, FEATURES);
    };
    let (result, ()) = both(|| client.get_features(), back);
    assert_eq!(result.unwrap(), FEATURES);
}

fn ready(client: &BackendClient) -> bool {
    let mut fds = [PollFd::new(
        client.backend_notifier().unwrap(),
        PollFlags::POLLIN,
    )];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

fn iotlb(kind: u8) -> Vec<u8> {
    let words = [0x1000_u64, 0x2000, 0].map(u64::to_ne_bytes).concat();
    [&words[..], &[3, kind, 0, 0, 0, 0, 0, 0]].concat()
}

fn area(shmid: u8, fd_offset: u64, shm_offset: u64, len: u64, flags: u64) -> Vec<u8> {
    let words = [u64::from(shmid), fd_offset, shm_offset, len, flags];
    // shmid is the first byte of its word.
    let mut bytes = words.map(u64::to_ne_bytes).concat();
    bytes[..8].copy_from_slice(&[shmid, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Something for each request of the back-end: payload, whether a descriptor goes
/// with it, what the handler is told.
fn asked(request: BackendRequest) -> (Vec<u8>, bool, &'static str) {
    let ring = || [5_u32, 0].map(u32::to_ne_bytes).concat();
    match request {
        BackendRequest::Iotlb => (iotlb(1), false, "miss 0x1000 3"),
        BackendRequest::ConfigChange => (vec![], false, "config"),
        BackendRequest::HostNotifier => (
            words(&[5, 0x1000, 0x2000]),
            true,
            "notifier 5 0x2000 0x1000 true",
        ),
        BackendRequest::VringCall => (ring(), false, "call 5"),
        BackendRequest::VringErr => (ring(), false, "err 5"),
        BackendRequest::SharedObjectAdd => (vec![7; 16], false, "added 7"),
        BackendRequest::SharedObjectRemove => (vec![7; 16], false, "removed 7"),
        BackendRequest::SharedObjectLookup => (vec![7; 16], false, "lookup 7"),
        BackendRequest::ShmemMap => (
            area(3, 0x3000, 0x1000, 0x2000, 1),
            true,
            "map 3 0x1000 0x2000 from 0x3000 flags 1 true",
        ),
        BackendRequest::ShmemUnmap => (
            area(3, 0, 0x1000, 0x2000, 0),
            false,
            "unmap 3 0x1000 0x2000",
        ),
    }
}

#[test]
fn every_request_reaches_its_handler_and_is_answered() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    for flags in [ASKS, QUIET] {
        for request in BackendRequest::ALL {
            let (payload, fd, told) = asked(*request);
            let fds = [memory(1)];
            channel.ask(request.id(), flags, &payload, if fd { &fds } else { &[] });
            assert!(ready(&client), "{request:?}");
            client.process_backend_requests().unwrap();
            let lookup = *request == BackendRequest::SharedObjectLookup;
            if flags == ASKS || lookup {
                let (value, fds) = channel.answer(request.id());
                assert_eq!((value, fds.len()), (0, usize::from(lookup)), "{request:?}");
                for fd in fds {
                    assert_eq!(identity(fd.as_fd()), identity(memory(2)));
                }
            }
            assert_eq!(handler.take(), [told]);
            assert!(!ready(&client), "{request:?}");
            channel.0.expect_silence();
        }
    }
    // Nothing to do.
    client.process_backend_requests().unwrap();
    assert!(handler.take().is_empty());
}

#[test]
fn a_result_is_the_answer() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    *handler.result.lock().unwrap() = -libc::ENOMEM;
    for request in [
        BackendRequest::Iotlb,
        BackendRequest::HostNotifier,
        BackendRequest::SharedObjectLookup,
        BackendRequest::ShmemMap,
    ] {
        let (payload, fd, told) = asked(request);
        let fds = [memory(1)];
        channel.ask(request.id(), ASKS, &payload, if fd { &fds } else { &[] });
        client.process_backend_requests().unwrap();
        let (value, fds) = channel.answer(request.id());
        assert_eq!(value, i64::from(-libc::ENOMEM), "{request:?}");
        assert!(fds.is_empty());
        assert_eq!(handler.take(), [told]);
    }
}

#[test]
fn bad_requests_are_refused_and_the_channel_stays_in_step() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let fd: &[BorrowedFd<'_>] = &[memory(1)];
    let none: &[BorrowedFd<'_>] = &[];
    let two: &[BorrowedFd<'_>] = &[memory(1), memory(2)];
    let mut cases: Vec<(u32, Vec<u8>, &[BorrowedFd<'_>])> = vec![
        (11, vec![], none),
        (0, vec![1; 100], none),
        (1006, vec![1; 64], fd),
        (u32::MAX, vec![1; 4096], none),
        (1, iotlb(2), none),
        (1, iotlb(3), none),
        (1, iotlb(0), none),
        (3, words(&[5 | 1 << 8, 0x1000, 0]), fd),
        (3, words(&[5, 0x1000, 0]), none),
        (3, words(&[5, 0, 0]), fd),
        (3, words(&[5, 0x1000, u64::MAX - 0xfff + 1]), fd),
        (3, words(&[5 | 1 << 9, 0x1000, 0]), fd),
        (4, [256_u32, 0].map(u32::to_ne_bytes).concat(), none),
        (5, [u32::MAX, 0].map(u32::to_ne_bytes).concat(), none),
        (9, area(3, 0, 0, 0, 0), fd),
        (9, area(3, 0, 0, 0x10001, 0), fd),
        (9, area(3, 0, 0x8000, 0x8001, 0), fd),
        (9, area(3, 0, u64::MAX, 2, 0), fd),
        (9, area(3, u64::MAX, 0, 2, 0), fd),
        (9, area(3, 0, 0, 0x1000, 2), fd),
        (9, area(4, 0, 0, 0x1000, 0), fd),
        (10, area(3, 0, 0, 0x1000, 0), none),
    ];
    for request in BackendRequest::ALL {
        let (payload, with, _) = asked(*request);
        let right: &[BorrowedFd<'_>] = if with { fd } else { none };
        // One byte too many, one too few, descriptors too many or missing.
        cases.push((request.id(), [&payload[..], &[0]].concat(), right));
        if let [short @ .., _] = &payload[..] {
            cases.push((request.id(), short.to_vec(), right));
        }
        cases.push((request.id(), payload.clone(), two));
    }
    cases.push((9, asked(BackendRequest::ShmemMap).0, none));
    for (request, payload, fds) in cases {
        let context = format!("{request} with {} bytes, {} fds", payload.len(), fds.len());
        for flags in [ASKS, QUIET] {
            channel.ask(request, flags, &payload, fds);
            client.process_backend_requests().expect(&context);
            if flags == ASKS || request == 8 {
                let (value, fds) = channel.answer(request);
                assert!((-4095..0).contains(&value), "{context}: {value}");
                assert!(fds.is_empty());
            }
            assert!(handler.take().is_empty(), "{context}");
        }
        // The next one is understood.
        channel.ask(2, ASKS, &[], &[]);
        client.process_backend_requests().unwrap();
        assert_eq!(channel.answer(2).0, 0, "{context}");
        assert_eq!(handler.take(), ["config"], "{context}");
    }
    peer.expect_silence();
}

#[test]
fn what_was_not_agreed_or_has_no_handler_is_refused() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    *handler.missing.lock().unwrap() = BackendRequest::ALL.to_vec();
    let refused = |channel: &Channel, client: &BackendClient, code: i32| {
        for request in BackendRequest::ALL {
            let (payload, fd, _) = asked(*request);
            let fds = [memory(1)];
            channel.ask(request.id(), ASKS, &payload, if fd { &fds } else { &[] });
            client.process_backend_requests().unwrap();
            assert_eq!(
                channel.answer(request.id()).0,
                i64::from(-code),
                "{request:?}"
            );
        }
    };
    refused(&channel, &client, libc::EOPNOTSUPP);

    let bare = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK;
    let (client, peer) = adopted(FEATURES & !(1 << 33), bare, patient());
    let take = || {
        let mut given = peer.expect(Request::SetBackendReqFd);
        peer.ack(Request::SetBackendReqFd, 0);
        Channel(Peer::on(given.fds.remove(0)))
    };
    let open = Recorder::new();
    let (opened, channel) = both(|| client.open_backend_channel(open.clone()), take);
    opened.unwrap();
    refused(&channel, &client, libc::EPERM);
    assert!(open.take().is_empty() && handler.take().is_empty());
}

/// The back-end may use a feature before the front-end reads the acknowledgement.
#[test]
fn requests_are_served_before_their_feature_is_confirmed() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer) = adopted(FEATURES & !(1 << 33), protocol(true), patient());
    let take = || {
        let mut given = peer.expect(Request::SetBackendReqFd);
        peer.ack(Request::SetBackendReqFd, 0);
        Channel(Peer::on(given.fds.remove(0)))
    };
    let (opened, channel) = both(|| client.open_backend_channel(handler.clone()), take);
    opened.unwrap();
    let (payload, ..) = asked(BackendRequest::Iotlb);
    let miss = || {
        channel.ask(BackendRequest::Iotlb.id(), ASKS, &payload, &[]);
        channel.answer(BackendRequest::Iotlb.id()).0
    };
    let client = Arc::new(client);
    let answers = Arc::downgrade(&client);
    handler.hook(move |_| {
        let client = answers.upgrade().unwrap();
        client.post_iotlb(&INVALIDATE).unwrap();
        0
    });
    let agree = || {
        peer.expect(Request::SetFeatures);
        assert_eq!(miss(), 0);
        peer.ack(Request::SetFeatures, 0);
        peer.expect(Request::IotlbMsg);
        peer.ack(Request::IotlbMsg, 0);
    };
    both(|| client.set_features(FEATURES), agree).0.unwrap();
    // Until the reset is confirmed, the features may still be in effect.
    let reset = || {
        peer.expect(Request::ResetDevice);
        assert_eq!(miss(), 0);
        peer.ack(Request::ResetDevice, 0);
        peer.expect(Request::IotlbMsg);
        peer.ack(Request::IotlbMsg, 0);
    };
    both(|| client.reset_device(), reset).0.unwrap();
    channel.ask(BackendRequest::Iotlb.id(), ASKS, &payload, &[]);
    client.process_backend_requests().unwrap();
    let refused = i64::from(-libc::EPERM);
    assert_eq!(channel.answer(BackendRequest::Iotlb.id()).0, refused);

    // Nor are features in effect that the back-end has refused.
    let refuse = || {
        peer.expect(Request::SetFeatures);
        peer.ack(Request::SetFeatures, 1);
    };
    let error = both(|| client.set_features(FEATURES), refuse)
        .0
        .unwrap_err();
    assert_eq!(error.kind, Kind::Nack, "{error}");
    channel.ask(BackendRequest::Iotlb.id(), ASKS, &payload, &[]);
    client.process_backend_requests().unwrap();
    assert_eq!(channel.answer(BackendRequest::Iotlb.id()).0, refused);

    // Features that were sent behind a reset outlast its confirmation.
    thread::scope(|scope| {
        let reset = scope.spawn(|| client.reset_device());
        peer.expect(Request::ResetDevice);
        let agree = scope.spawn(|| client.set_features(FEATURES));
        peer.expect(Request::SetFeatures);
        peer.ack(Request::ResetDevice, 0);
        reset.join().unwrap().unwrap();
        assert_eq!(miss(), 0);
        peer.ack(Request::SetFeatures, 0);
        peer.expect(Request::IotlbMsg);
        peer.ack(Request::IotlbMsg, 0);
        agree.join().unwrap().unwrap();
    });
}

#[test]
fn a_broken_channel_is_closed_and_reported_and_the_connection_lives() {
    let _leak = no_fd_leak();
    for (bytes, kind) in [
        (message(2, 0x5, &[]), Kind::Protocol),
        (message(2, 0x0, &[]), Kind::Protocol),
        (message(2, 0x2, &[]), Kind::Protocol),
        (message(2, 0x11, &[]), Kind::Protocol),
        (hex("02000000 09000000 01100000"), Kind::Protocol),
        (hex("02000000 09000000 ffffffff"), Kind::Protocol),
        (vec![], Kind::Disconnected),
    ] {
        let handler = Recorder::new();
        let (client, peer, channel) = with_channel(Arc::clone(&handler));
        assert_eq!(channel.demand_on(&client, BackendRequest::ShmemMap), 0);
        handler.take();
        match &bytes[..] {
            [] => channel.0.hang_up(),
            bytes => channel.0.send(bytes, &[]),
        }
        assert!(ready(&client));
        let first = client.process_backend_requests().unwrap_err();
        assert_eq!(first.kind, kind, "{bytes:?}");
        assert_eq!(handler.take(), ["unmap 3 0x1000 0x2000"]);
        assert!(!ready(&client), "it is told once");
        assert_eq!(client.process_backend_requests().unwrap_err().kind, kind);
        // The back-end sees that nobody listens, and the connection lives on.
        let end = channel.0.read(1, MsgFlags::empty());
        assert_eq!(end.map(|(bytes, _)| bytes), Ok(vec![]));
        let answer = || {
            peer.expect(Request::GetFeatures);
            peer.ack(Request::GetFeatures, FEATURES);
        };
        assert_eq!(both(|| client.get_features(), answer).0.unwrap(), FEATURES);
    }
}

impl Channel {
    /// Asks, has the client process it, and takes the answer.
    fn demand_on(&self, client: &BackendClient, request: BackendRequest) -> i64 {
        let (payload, fd, _) = asked(request);
        let fds = [memory(1)];
        self.ask(request.id(), ASKS, &payload, if fd { &fds } else { &[] });
        client.process_backend_requests().unwrap();
        self.answer(request.id()).0
    }
}

#[test]
fn mappings_never_overlap_and_go_away_whole() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    let map = |offset: u64, len: u64| {
        channel.ask(9, ASKS, &area(3, 0, offset, len, 1), &[memory(1)]);
        client.process_backend_requests().unwrap();
        channel.answer(9).0
    };
    let unmap = |offset: u64, len: u64| {
        channel.ask(10, ASKS, &area(3, 0, offset, len, 0), &[]);
        client.process_backend_requests().unwrap();
        channel.answer(10).0
    };
    assert_eq!(map(0x2000, 0x2000), 0);
    for (offset, len) in [
        (0x2000, 0x2000),
        (0x1000, 0x1001),
        (0, 0x10000),
        (0x3000, 0x10),
    ] {
        assert_eq!(
            map(offset, len),
            i64::from(-libc::EEXIST),
            "{offset:#x} {len:#x}"
        );
    }
    // Neighbours do not overlap.
    assert_eq!(map(0x1000, 0x1000), 0);
    assert_eq!(map(0x4000, 0xc000), 0);
    for (offset, len) in [
        (0x2000, 0x1000),
        (0x2000, 0x3000),
        (0x2001, 0x1fff),
        (0, 0x1000),
    ] {
        assert_eq!(unmap(offset, len), REFUSED, "{offset:#x} {len:#x}");
    }
    // What could not be taken away is still there.
    *handler.result.lock().unwrap() = -libc::EBUSY;
    assert_eq!(unmap(0x2000, 0x2000), i64::from(-libc::EBUSY));
    *handler.result.lock().unwrap() = 0;
    assert_eq!(map(0x2000, 0x2000), i64::from(-libc::EEXIST));
    assert_eq!(unmap(0x2000, 0x2000), 0);
    assert_eq!(unmap(0x2000, 0x2000), REFUSED);
    assert_eq!(map(0x2000, 0x1000), 0);
}

/// They are mapped by whole pages, however long they are.
#[test]
fn mappings_have_no_page_in_common() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    let map = |fd_offset: u64, offset: u64, len: u64| {
        let area = area(3, fd_offset, offset, len, 1);
        channel.ask(9, ASKS, &area, &[memory(1)]);
        client.process_backend_requests().unwrap();
        channel.answer(9).0
    };
    assert_eq!(map(0, 0x1000, 100), 0);
    let taken = i64::from(-libc::EEXIST);
    for (fd_offset, offset, len, answer) in [
        (0, 0x1000 + 100, 100, REFUSED),
        (8, 0x4000, 0x1000, REFUSED),
        (0, 0, 0x1001, taken),
        (0, 0x1000, 1, taken),
        (0, 0x2000, 1, 0),
        (0, 0, 0x1000, 0),
    ] {
        assert_eq!(map(fd_offset, offset, len), answer, "{offset:#x} {len:#x}");
    }
}

#[test]
fn a_mapping_lies_within_a_file_that_can_be_mapped() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    let short = File::from(memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap());
    short.set_len(0x1fff).unwrap();
    let open = |flags: OFlag| {
        let path = format!("/proc/self/fd/{}", short.as_raw_fd());
        nix::fcntl::open(path.as_str(), flags, Mode::empty()).unwrap()
    };
    let read_only = open(OFlag::O_RDONLY);
    let path_only = open(OFlag::O_PATH);
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    let directory = File::open("/").unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let mut next = 0;
    for (what, fd, fd_offset, flags, answer) in [
        ("all of it", short.as_fd(), 0, 1, 0),
        (
            "the last byte is missing",
            short.as_fd(),
            0x1000,
            1,
            REFUSED,
        ),
        ("behind its end", short.as_fd(), 0x2000, 1, REFUSED),
        ("read", read_only.as_fd(), 0, 0, 0),
        ("written", read_only.as_fd(), 0, 1, i64::from(-libc::EACCES)),
        ("a path", path_only.as_fd(), 0, 0, i64::from(-libc::EACCES)),
        ("no length", zero.as_fd(), 0, 1, 0),
        ("a directory", directory.as_fd(), 0, 0, REFUSED),
        ("a socket", socket.as_fd(), 0, 1, REFUSED),
        ("a pipe", pipe.as_fd(), 0, 0, REFUSED),
    ] {
        let area = area(3, fd_offset, next, 0x1000, flags);
        channel.ask(9, ASKS, &area, &[fd]);
        client.process_backend_requests().unwrap();
        assert_eq!(channel.answer(9).0, answer, "{what}");
        assert_eq!(handler.take().len(), usize::from(answer == 0), "{what}");
        next += 0x1000;
    }
}

#[test]
fn a_back_end_that_asks_before_it_answers_is_served_inside_every_request() {
    let _leak = no_fd_leak();
    for threads in [1, 3] {
        for case in CASES {
            let silent = matches!(case.answer, common::Answer::Nothing);
            let own_channel = case.request == Request::SetBackendReqFd;
            // After these the features that others need have to be agreed again.
            let reset = matches!(case.request, Request::ResetOwner | Request::ResetDevice);
            let alone = reset || only_once(case.request);
            if silent || own_channel || (threads > 1 && alone) {
                continue;
            }
            let handler = Recorder::new();
            let (client, peer, channel) = channel_for(case.request, Arc::clone(&handler));
            thread::scope(|scope| {
                let calls: Vec<_> = (0..threads)
                    .map(|_| scope.spawn(|| (case.call)(&client)))
                    .collect();
                for _ in 0..threads {
                    let received = peer.expect(case.request);
                    drop(received);
                }
                for _ in 0..threads {
                    for request in BackendRequest::ALL {
                        let (payload, fd, _) = asked(*request);
                        let fds = [memory(1)];
                        channel.ask(request.id(), ASKS, &payload, if fd { &fds } else { &[] });
                        assert_eq!(channel.answer(request.id()).0, 0, "{request:?}");
                    }
                    case.answer(&peer);
                }
                for call in calls {
                    call.join().unwrap().unwrap();
                }
            });
            // What is not urgent waits for the event loop, which is woken for it.
            let told = handler.take();
            // The doorbell page is gone.
            let withdrawn = usize::from(case.request == Request::ResetDevice);
            let urgent = 5 * threads + withdrawn;
            assert_eq!(told.len(), urgent, "{:?}: {told:?}", case.request);
            assert!(ready(&client));
            client.process_backend_requests().unwrap();
            assert!(handler.take().contains(&"config".to_owned()));
            assert!(!ready(&client));
        }
    }
}

#[test]
fn the_one_who_takes_over_reading_serves_the_channel() {
    // One thread is inside a handler while another one reads; when the first is
    // done, the second one has to look at the channel again.
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let (inside, entered) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    handler.hook(move |_| {
        inside.send(()).unwrap();
        go.lock().unwrap().recv().unwrap();
        0
    });
    thread::scope(|scope| {
        let first = scope.spawn(|| client.get_queue_num());
        peer.expect(Request::GetQueueNum);
        channel.ask(1, ASKS, &iotlb(1), &[]);
        entered.recv().unwrap();
        let second = scope.spawn(|| client.get_max_mem_slots());
        peer.expect(Request::GetMaxMemSlots);
        // The first one's reply is read by the second one meanwhile.
        thread::sleep(Duration::from_millis(30));
        peer.ack(Request::GetQueueNum, 7);
        thread::sleep(Duration::from_millis(30));
        assert!(!first.is_finished());
        let_go.send(()).unwrap();
        assert_eq!(first.join().unwrap().unwrap(), 7);
        assert_eq!(channel.answer(1).0, 0);
        // Now only the second one is there to serve.
        channel.ask(1, ASKS, &iotlb(1), &[]);
        entered.recv_timeout(PATIENCE).unwrap();
        let_go.send(()).unwrap();
        assert_eq!(channel.answer(1).0, 0);
        peer.ack(Request::GetMaxMemSlots, 9);
        assert_eq!(second.join().unwrap().unwrap(), 9);
    });
}

#[test]
fn a_handler_may_not_wait() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let client = Arc::new(client);
    let weak: Weak<BackendClient> = Arc::downgrade(&client);
    handler.hook(move |_| {
        let client = weak.upgrade().unwrap();
        for case in CASES {
            let error = (case.call)(&client).unwrap_err();
            assert_eq!(error.kind, Kind::State, "{:?}: {error}", case.request);
        }
        assert_eq!(
            client.process_backend_requests().unwrap_err().kind,
            Kind::State
        );
        assert_eq!(client.acked_features(), FEATURES);
        client.read_notifier();
        -libc::EAGAIN
    });
    // In the event loop, and inside a call.
    channel.ask(1, ASKS, &iotlb(1), &[]);
    client.process_backend_requests().unwrap();
    assert_eq!(channel.answer(1).0, i64::from(-libc::EAGAIN));
    let back = || {
        peer.expect(Request::GetQueueNum);
        channel.ask(1, ASKS, &iotlb(1), &[]);
        assert_eq!(channel.answer(1).0, i64::from(-libc::EAGAIN));
        peer.ack(Request::GetQueueNum, 7);
    };
    assert_eq!(both(|| client.get_queue_num(), back).0.unwrap(), 7);
    peer.expect_silence();
}

#[test]
fn a_miss_is_answered_from_inside_its_handler() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let client = Arc::new(client);
    let weak: Weak<BackendClient> = Arc::downgrade(&client);
    handler.hook(move |_| {
        let entry = Iotlb {
            iova: 0x1000,
            size: 0x1000,
            user_addr: 0x5000,
            perm: 3,
            kind: iotlb_kind::UPDATE,
            padding: [0; 6],
        };
        weak.upgrade().unwrap().post_iotlb(&entry).unwrap();
        0
    });
    let miss = || {
        channel.ask(1, ASKS, &iotlb(1), &[]);
        let update = peer.expect(Request::IotlbMsg);
        assert_eq!((update.flags, update.payload[25]), (0x9, 2));
        assert_eq!(channel.answer(1).0, 0);
    };
    // Inside a call; what was posted is answered after the call's own request.
    for posted in 0..3 {
        let answer = || {
            peer.expect(Request::GetQueueNum);
            (0..posted).for_each(|_| miss());
            peer.ack(Request::GetQueueNum, 7);
            (0..posted).for_each(|_| peer.ack(Request::IotlbMsg, 0));
        };
        assert_eq!(both(|| client.get_queue_num(), answer).0.unwrap(), 7);
    }
    // In an event loop that makes no calls, and however many there are.
    for _ in 0..600 {
        channel.ask(1, ASKS, &iotlb(1), &[]);
        client.process_backend_requests().unwrap();
        peer.expect(Request::IotlbMsg);
        assert_eq!(channel.answer(1).0, 0);
        peer.ack(Request::IotlbMsg, 1); // it does not like it
    }
    let answer = || {
        peer.expect(Request::GetQueueNum);
        peer.ack(Request::GetQueueNum, 7);
    };
    assert_eq!(both(|| client.get_queue_num(), answer).0.unwrap(), 7);
    peer.expect_silence();
}

#[test]
fn what_may_be_posted_without_an_answer_is_bounded() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let entry = Iotlb {
        iova: 0x1000,
        size: 0x1000,
        user_addr: 0,
        perm: 0,
        kind: iotlb_kind::INVALIDATE,
        padding: [0; 6],
    };
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..256 {
                peer.expect(Request::IotlbMsg);
            }
        });
        for _ in 0..256 {
            client.post_iotlb(&entry).unwrap();
        }
        let error = client.post_iotlb(&entry).unwrap_err();
        assert_eq!(error.code(), -libc::EAGAIN);
        // Whoever waits sends what did not fit, and its turn comes.
        let call = scope.spawn(|| client.get_queue_num());
        reader.join().unwrap();
        peer.expect(Request::GetQueueNum);
        for _ in 0..256 {
            peer.ack(Request::IotlbMsg, 0);
        }
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(call.join().unwrap().unwrap(), 7);
        client.post_iotlb(&entry).unwrap();
        peer.expect(Request::IotlbMsg);
    });
    // Values that cannot be right, and a gate that is closed.
    let wrong = Iotlb {
        kind: iotlb_kind::MISS,
        ..entry
    };
    assert_eq!(client.post_iotlb(&wrong).unwrap_err().code(), -libc::EINVAL);
    let (closed, closed_peer) = adopted(FEATURES & !(1 << 33), protocol(true), patient());
    assert_eq!(
        closed.post_iotlb(&entry).unwrap_err().kind,
        Kind::NotNegotiated
    );
    closed_peer.expect_silence();
    peer.expect_silence();
}

#[test]
fn a_burst_before_an_answer_is_served_to_its_end() {
    // More than is served at once has been read already, and nothing more comes
    // that would wake anybody.
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let answer = || {
        peer.expect(Request::GetQueueNum);
        let one = message(1, QUIET, &iotlb(1));
        channel.0.send(&one.repeat(90), &[]);
        assert_eq!(channel.demand(BackendRequest::Iotlb, &iotlb(1), &[]), 0);
        peer.ack(Request::GetQueueNum, 7);
    };
    assert_eq!(both(|| client.get_queue_num(), answer).0.unwrap(), 7);
    assert_eq!(handler.take().len(), 91);
}

#[test]
fn a_flood_is_worked_off_in_bounded_parts() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, _peer, channel) = with_channel(Arc::clone(&handler));
    for _ in 0..200 {
        channel.ask(1, QUIET, &iotlb(1), &[]);
    }
    for part in [64, 64, 64, 8] {
        assert!(ready(&client));
        client.process_backend_requests().unwrap();
        assert_eq!(handler.take().len(), part);
    }
    assert!(!ready(&client));
    // What waits for the event loop is bounded, too.
    for number in 0..70 {
        channel.ask(6, QUIET, &[number; 16], &[]);
        channel.ask(
            4,
            QUIET,
            &[u32::from(number), 0].map(u32::to_ne_bytes).concat(),
            &[],
        );
        channel.ask(2, QUIET, &[], &[]);
    }
    let mut told = Vec::new();
    while ready(&client) {
        client.process_backend_requests().unwrap();
        let part = handler.take();
        assert!(part.len() <= 64);
        told.extend(part);
    }
    let count = |word: &str| told.iter().filter(|told| told.starts_with(word)).count();
    assert_eq!((count("added"), count("call")), (70, 70));
    // Not more than that are kept.
    for number in 0..66 {
        channel.ask(7, ASKS, &[number; 16], &[]);
    }
    // Inside a wait, nothing is delivered.
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let back = || {
        peer.expect(Request::GetQueueNum);
        for number in 0..66 {
            let wanted = if number < 64 { 0 } else { -libc::ENOSPC };
            let value = channel.demand(BackendRequest::SharedObjectAdd, &[number; 16], &[]);
            assert_eq!(value, i64::from(wanted));
        }
        peer.ack(Request::GetQueueNum, 7);
    };
    both(|| client.get_queue_num(), back).0.unwrap();
}

#[test]
fn a_back_end_that_does_not_read_its_answers_blocks_nobody() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let asked = 2000;
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..asked {
                channel.ask(2, ASKS, &[], &[]);
            }
        });
        // The front-end cannot answer any more after some hundred.
        thread::sleep(Duration::from_millis(50));
        for _ in 0..100 {
            client.process_backend_requests().unwrap();
        }
        let answer = || {
            peer.expect(Request::GetQueueNum);
            peer.ack(Request::GetQueueNum, 7);
        };
        assert_eq!(both(|| client.get_queue_num(), answer).0.unwrap(), 7);
        assert!(start.elapsed() < AT_ONCE);
        // Once it reads, everything is answered.
        let reader = scope.spawn(|| {
            for _ in 0..asked {
                assert_eq!(channel.answer(2).0, 0);
            }
        });
        while !reader.is_finished() {
            client.process_backend_requests().unwrap();
            thread::yield_now();
        }
        reader.join().unwrap();
    });
    client.process_backend_requests().unwrap();
    assert!(!ready(&client));
}

#[test]
fn the_descriptor_is_not_ready_while_an_answer_waits_for_room() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    // More than there is room for answers. Who waits for room to ask goes on only
    // when three quarters of what was asked have been read.
    let asked = 330;
    let answer = || {
        for _ in 0..asked {
            channel.ask(2, ASKS, &[], &[]);
        }
        peer.expect(Request::GetQueueNum);
        peer.ack(Request::GetQueueNum, 7);
    };
    assert_eq!(both(|| client.get_queue_num(), answer).0.unwrap(), 7);
    assert!(handler.take().is_empty());
    // Its handler waits, whatever becomes of the answers. The call may have had its
    // reply before it had served all, and the loop does the rest.
    assert!(ready(&client));
    let turns = (0..20).take_while(|_| ready(&client));
    turns.for_each(|_| client.process_backend_requests().unwrap());
    let told = handler.take();
    assert!(!told.is_empty() && told.iter().all(|told| told == "config"));
    for _ in 0..3 {
        assert!(!ready(&client), "the caller's loop would spin");
        client.process_backend_requests().unwrap();
    }
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..asked {
                assert_eq!(channel.answer(2).0, 0);
            }
        });
        while !reader.is_finished() {
            ready(&client);
            client.process_backend_requests().unwrap();
            thread::yield_now();
        }
    });
    client.process_backend_requests().unwrap();
    assert!(!ready(&client));
}

#[test]
fn a_lock_held_around_calls_and_taken_by_the_event_loop_does_no_harm() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let lock = Mutex::new(());
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            let _held = lock.lock().unwrap();
            client.get_queue_num()
        });
        peer.expect(Request::GetQueueNum);
        let event_loop = scope.spawn(|| {
            while handler.take().is_empty() {
                if ready(&client) {
                    let _held = lock.lock().unwrap();
                    client.process_backend_requests().unwrap();
                }
                thread::yield_now();
            }
        });
        for _ in 0..20 {
            assert_eq!(channel.demand(BackendRequest::Iotlb, &iotlb(1), &[]), 0);
        }
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(call.join().unwrap().unwrap(), 7);
        event_loop.join().unwrap();
    });
}

#[test]
fn the_end_of_the_connection_ends_the_channel() {
    let _leak = no_fd_leak();
    type End = fn(&BackendClient, &Peer);
    let endings: [(End, Kind); 2] = [
        (|client, _| client.abort(), Kind::Canceled),
        (
            |client, peer| {
                peer.hang_up();
                client.get_queue_num().unwrap_err();
            },
            Kind::Disconnected,
        ),
    ];
    for (end, kind) in endings {
        let handler = Recorder::new();
        let (client, peer, channel) = with_channel(Arc::clone(&handler));
        assert_eq!(channel.demand_on(&client, BackendRequest::ShmemMap), 0);
        handler.take();
        end(&client, &peer);
        assert_eq!(client.process_backend_requests().unwrap_err().kind, kind);
        assert_eq!(handler.take(), ["unmap 3 0x1000 0x2000"]);
        assert!(!ready(&client));
    }
}

/// Doorbell pages and shared objects of a lost back-end are as gone as its mappings.
#[test]
fn end_of_the_channel_withdraws_what_was_set() {
    let _leak = no_fd_leak();
    for removed in [false, true] {
        let handler = Recorder::new();
        let (client, peer, channel) = with_channel(Arc::clone(&handler));
        let notifier = BackendRequest::HostNotifier;
        assert_eq!(channel.demand_on(&client, notifier), 0);
        for object in [7, 8, 7] {
            channel.ask(
                BackendRequest::SharedObjectAdd.id(),
                QUIET,
                &[object; 16],
                &[],
            );
        }
        client.process_backend_requests().unwrap();
        if removed {
            channel.ask(notifier.id(), QUIET, &words(&[5 | 1 << 8, 0, 0]), &[]);
            channel.ask(
                BackendRequest::SharedObjectRemove.id(),
                QUIET,
                &[7; 16],
                &[],
            );
            client.process_backend_requests().unwrap();
        }
        handler.take();
        // One of which the handler was not informed yet.
        channel.ask(BackendRequest::SharedObjectAdd.id(), QUIET, &[9; 16], &[]);
        thread::scope(|scope| {
            let waits = scope.spawn(|| client.get_queue_num());
            peer.expect(Request::GetQueueNum);
            while !ready(&client) {
                thread::yield_now();
            }
            peer.ack(Request::GetQueueNum, 7);
            waits.join().unwrap().unwrap();
        });
        peer.hang_up();
        client.get_queue_num().unwrap_err();
        while client.process_backend_requests().is_ok() {}
        let left: &[&str] = match removed {
            false => &[
                "notifier 5 gone",
                "added 9",
                "removed 7",
                "removed 8",
                "removed 9",
            ],
            true => &["added 9", "removed 8", "removed 9"],
        };
        assert_eq!(handler.take(), left);
        assert!(!ready(&client));
    }
}

/// A reset takes them away, too, and a page that comes after it is a new one.
#[test]
fn reset_withdraws_what_was_set() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = channel_for(Request::SetStatus, Arc::clone(&handler));
    let notifier = BackendRequest::HostNotifier;
    for _ in 0..2 {
        assert_eq!(channel.demand_on(&client, notifier), 0);
        channel.ask(BackendRequest::SharedObjectAdd.id(), QUIET, &[7; 16], &[]);
        client.process_backend_requests().unwrap();
        handler.take();
        let answer = || {
            peer.expect(Request::SetStatus);
            peer.ack(Request::SetStatus, 0);
        };
        both(|| client.set_status(0), answer).0.unwrap();
        assert_eq!(handler.take(), ["notifier 5 gone"]);
        // What may take its time waits for who serves the channel.
        assert!(ready(&client));
        client.process_backend_requests().unwrap();
        assert_eq!(handler.take(), ["removed 7"]);
        assert!(!ready(&client));
    }
}

/// A page that the caller has refused is not there.
#[test]
fn refused_notifier_is_not_withdrawn() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    *handler.result.lock().unwrap() = -libc::ENOMEM;
    let refused = channel.demand_on(&client, BackendRequest::HostNotifier);
    assert_eq!(refused, i64::from(-libc::ENOMEM));
    handler.take();
    peer.hang_up();
    client.get_queue_num().unwrap_err();
    while client.process_backend_requests().is_ok() {}
    assert_eq!(handler.take(), Vec::<String>::new());
}

#[test]
fn there_is_one_channel_for_each_connection() {
    let _leak = no_fd_leak();
    let (client, _peer) = adopted(FEATURES, protocol(true), patient());
    assert!(client.backend_notifier().is_none());
    let error = client.process_backend_requests().unwrap_err();
    assert_eq!(error.kind, Kind::State);
    let (client, peer, _channel) = with_channel(Recorder::new());
    let error = client.open_backend_channel(Recorder::new()).unwrap_err();
    assert_eq!(
        (error.kind, error.request),
        (Kind::State, Some(Request::SetBackendReqFd))
    );
    peer.expect_silence();
    // Refused.
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let refuse = || {
        let given = peer.expect(Request::SetBackendReqFd);
        peer.ack(Request::SetBackendReqFd, 1);
        given.fds
    };
    let (opened, fds) = both(|| client.open_backend_channel(Recorder::new()), refuse);
    assert_eq!(opened.unwrap_err().kind, Kind::Nack);
    drop(fds);
    assert_eq!(
        client.process_backend_requests().unwrap_err().kind,
        Kind::Nack
    );
}

#[test]
fn a_half_closed_channel_ends() {
    let _leak = no_fd_leak();
    let (client, _peer, channel) = with_channel(Recorder::new());
    channel.0.shutdown(Shutdown::Write);
    assert!(ready(&client));
    client.process_backend_requests().unwrap_err();
    assert!(!ready(&client));
}

#[test]
fn answers_leave_in_the_order_of_the_requests() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    *handler.missing.lock().unwrap() = vec![BackendRequest::Iotlb];
    let (client, _peer, channel) = with_channel(handler);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    client.process_backend_requests().unwrap();
                }
            });
        }
        // The answer to one that is not known takes no time.
        let round = [1, 2, 999, 4]
            .map(|request| message(request, ASKS, &[]))
            .concat();
        let mut order = true;
        for _ in 0..1000 {
            channel.0.send(&round.repeat(10), &[]);
            let answers = (0..40).map(|_| channel.0.receive().code);
            order &= answers.collect::<Vec<_>>() == [1, 2, 999, 4].repeat(10);
            if !order {
                break;
            }
        }
        stop.store(true, SeqCst);
        assert!(order);
    });
}

/// Asks, and reads no answer, until one does not fit. How often it was.
fn clog(client: &BackendClient, channel: &Channel) -> usize {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let full = (1..100_000).find(|asked| {
        channel.ask(4, ASKS, &[5_u32, 0].map(u32::to_ne_bytes).concat(), &[]);
        client.process_backend_requests().unwrap();
        channel.0.read(1 << 20, flags).unwrap().0.len() < 20 * asked
    });
    full.expect("it has no end")
}

#[test]
fn an_answer_that_does_not_fit_is_waited_for_in_peace() {
    let _leak = no_fd_leak();
    let (client, peer, channel) = with_channel(Recorder::new());
    let asked = clog(&client, &channel);
    // It still listens, but will ask no more.
    channel.0.shutdown(Shutdown::Write);
    let (used, ()) = both(
        || {
            let before = cpu_time();
            assert_eq!(client.get_queue_num().unwrap(), 7);
            cpu_time() - before
        },
        || {
            peer.expect(Request::GetQueueNum);
            thread::sleep(Duration::from_millis(500));
            peer.ack(Request::GetQueueNum, 7);
        },
    );
    assert!(used < Duration::from_millis(100), "{used:?} of 500 ms");
    (1..asked).for_each(|_| assert_eq!(channel.answer(4).0, 0));
    let end = client.process_backend_requests().unwrap_err();
    assert_eq!(end.kind, Kind::Disconnected);
    assert_eq!(channel.answer(4).0, 0);
}

#[test]
fn the_descriptor_is_ready_for_what_can_be_done_and_for_nothing_else() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let asked = clog(&client, &channel);
    // There is more, but not before there is room for an answer.
    channel.ask(2, QUIET, &[], &[]);
    client.process_backend_requests().unwrap();
    assert!(!ready(&client));
    assert_eq!(channel.answer(4).0, 0);
    for _ in 1..asked {
        while ready(&client) {
            client.process_backend_requests().unwrap();
        }
        assert_eq!(channel.answer(4).0, 0);
    }
    client.process_backend_requests().unwrap();
    assert!(!ready(&client));

    // What waits for the event loop is told though no answer would fit.
    let asked = clog(&client, &channel) - 1;
    assert_eq!(channel.answer(4).0, 0);
    client.process_backend_requests().unwrap();
    handler.take();
    let back = || {
        peer.expect(Request::GetQueueNum);
        channel.ask(2, QUIET, &[], &[]);
        wait_until("it is read", PATIENCE, || ready(&client));
        thread::sleep(Duration::from_millis(50));
        peer.ack(Request::GetQueueNum, 7);
    };
    both(|| client.get_queue_num(), back).0.unwrap();
    assert!(ready(&client));
    client.process_backend_requests().unwrap();
    assert_eq!(handler.take(), ["config"]);
    assert!(!ready(&client));
    for _ in 0..asked {
        assert_eq!(channel.answer(4).0, 0);
    }
}

#[test]
fn the_descriptor_is_not_ready_while_another_thread_is_in_a_handler() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let (inside, entered) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    handler.hook(move |_| {
        inside.send(()).unwrap();
        let _ = go.lock().unwrap().recv_timeout(PATIENCE);
        0
    });
    thread::scope(|scope| {
        let call = scope.spawn(|| client.get_queue_num());
        peer.expect(Request::GetQueueNum);
        channel.ask(1, ASKS, &iotlb(1), &[]);
        entered.recv().unwrap();
        channel.ask(2, ASKS, &[], &[]);
        client.process_backend_requests().unwrap();
        assert!(!ready(&client));
        let_go.send(()).unwrap();
        assert_eq!(channel.answer(1).0, 0);
        assert_eq!(channel.answer(2).0, 0);
        wait_until("the event loop is told", AT_ONCE, || ready(&client));
        client.process_backend_requests().unwrap();
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(call.join().unwrap().unwrap(), 7);
        assert!(!ready(&client));
    });
}

#[test]
fn what_was_posted_and_did_not_fit_waits_for_the_event_loop() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let client = Arc::new(client);
    let weak: Weak<BackendClient> = Arc::downgrade(&client);
    handler.hook(move |_| {
        weak.upgrade().unwrap().post_iotlb(&INVALIDATE).unwrap();
        0
    });
    for from_handler in [true, false] {
        let filler = fill(&client);
        match from_handler {
            true => assert_eq!(channel.demand_on(&client, BackendRequest::Iotlb), 0),
            false => client.post_iotlb(&INVALIDATE).unwrap(),
        }
        assert!(!ready(&client));
        drain(&peer, filler);
        assert!(ready(&client));
        client.process_backend_requests().unwrap();
        peer.expect(Request::IotlbMsg);
        assert!(!ready(&client));
        peer.ack(Request::IotlbMsg, 0);
    }
}

#[test]
fn what_is_mapped_while_the_channel_ends_is_unmapped_once() {
    let _leak = no_fd_leak();
    for unmapping in [false, true] {
        let handler = Recorder::new();
        let (client, peer, channel) = with_channel(Arc::clone(&handler));
        if unmapping {
            assert_eq!(channel.demand_on(&client, BackendRequest::ShmemMap), 0);
        }
        let (inside, entered) = mpsc::channel();
        let (let_go, go) = mpsc::channel::<()>();
        let go = Mutex::new(go);
        handler.hook(move |_| {
            // Only the first time.
            if inside.send(()).is_ok() {
                let _ = go.lock().unwrap().recv_timeout(PATIENCE);
            }
            0
        });
        thread::scope(|scope| {
            let serving = scope.spawn(|| client.process_backend_requests());
            match unmapping {
                true => channel.ask(10, QUIET, &asked(BackendRequest::ShmemUnmap).0, &[]),
                false => channel.ask(9, QUIET, &asked(BackendRequest::ShmemMap).0, &[memory(1)]),
            }
            // It may have looked before there was anything.
            let again = scope.spawn(|| client.process_backend_requests());
            entered.recv_timeout(PATIENCE).unwrap();
            drop(entered);
            peer.hang_up();
            client.get_queue_num().unwrap_err();
            // Not all is done yet, so the end is not told, and nothing to do.
            client.process_backend_requests().unwrap();
            assert!(!ready(&client));
            drop(let_go);
            let _ = (serving.join().unwrap(), again.join().unwrap());
        });
        while client.process_backend_requests().is_ok() {}
        let told = handler.take();
        let count = |word: &str| told.iter().filter(|told| told.starts_with(word)).count();
        assert_eq!((count("map"), count("unmap")), (1, 1), "{told:?}");
    }
}

#[test]
fn an_answer_is_forgotten_with_the_channel() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    clog(&client, &channel);
    // Room for one more, whose descriptor goes out; then one that stays.
    let before = common::open_fds();
    drop(channel.answer(4));
    client.process_backend_requests().unwrap();
    channel.ask(8, ASKS, &[7; 16], &[]);
    client.process_backend_requests().unwrap();
    channel.ask(8, ASKS, &[7; 16], &[]);
    client.process_backend_requests().unwrap();
    assert!(common::open_fds() > before);
    peer.hang_up();
    client.get_queue_num().unwrap_err();
    client.process_backend_requests().unwrap_err();
    drop(channel);
    assert!(common::open_fds() < before);
}

#[test]
fn a_reset_takes_mappings_away_before_there_are_others() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    assert_eq!(channel.demand_on(&client, BackendRequest::ShmemMap), 0);
    handler.take();
    let client = Arc::new(client);
    let weak: Weak<BackendClient> = Arc::downgrade(&client);
    let (inside, entered) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    handler.hook(move |what| {
        if what.starts_with("unmap") {
            inside.send(()).unwrap();
            let _ = go.lock().unwrap().recv_timeout(PATIENCE);
            let error = weak.upgrade().unwrap().get_queue_num().unwrap_err();
            assert_eq!(error.kind, Kind::State);
        }
        0
    });
    thread::scope(|scope| {
        let reset = scope.spawn(|| client.reset_device());
        peer.expect(Request::ResetDevice);
        peer.ack(Request::ResetDevice, 0);
        entered.recv().unwrap();
        // The same place once more, while what was there is being taken away.
        channel.ask(9, ASKS, &asked(BackendRequest::ShmemMap).0, &[memory(1)]);
        client.process_backend_requests().unwrap();
        assert!(handler.take().is_empty());
        let_go.send(()).unwrap();
        reset.join().unwrap().unwrap();
        assert!(ready(&client));
        client.process_backend_requests().unwrap();
        assert_eq!(channel.answer(9).0, 0);
        let told = handler.take();
        assert!(told[0].starts_with("unmap") && told[1].starts_with("map"));
    });
}

/// Whoever serves the channel looks whether the reset has been acknowledged before it
/// carries out what was asked after that.
#[test]
fn a_mapping_that_is_made_after_a_reset_stays() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let map = BackendRequest::ShmemMap.id();
    let place = &asked(BackendRequest::ShmemMap).0;
    let (inside, entered) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    handler.hook(move |_| {
        inside.send(()).unwrap();
        let _ = go.lock().unwrap().recv_timeout(PATIENCE);
        0
    });
    thread::scope(|scope| {
        let reset = scope.spawn(|| client.reset_device());
        peer.expect(Request::ResetDevice);
        channel.ask(map, ASKS, place, &[memory(1)]);
        entered.recv().unwrap();
        // Now the client has both to read at once.
        peer.ack(Request::ResetDevice, 0);
        channel.ask(map, ASKS, place, &[memory(1)]);
        drop(let_go);
        reset.join().unwrap().unwrap();
    });
    client.process_backend_requests().unwrap();
    assert_eq!([channel.answer(map).0, channel.answer(map).0], [0, 0]);
    let told = handler.take();
    let told: Vec<_> = told.iter().map(|what| &what[..3]).collect();
    assert_eq!(told, ["map", "unm", "map"]);
}

/// The caller's function still maps when the device has been reset, and its mapping is
/// one of before.
#[test]
fn a_mapping_that_outlasts_a_reset_is_taken_away() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let options = Options {
        slow: Timeout::After(Duration::from_millis(300)),
        ..patient()
    };
    let (client, peer, channel) = channel_with(Request::ResetDevice, Arc::clone(&handler), options);
    let map = BackendRequest::ShmemMap.id();
    let (inside, entered) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    handler.hook(move |what| {
        if what.starts_with("map") {
            inside.send(()).unwrap();
            let _ = go.lock().unwrap().recv_timeout(PATIENCE);
        }
        0
    });
    thread::scope(|scope| {
        channel.ask(map, ASKS, &asked(BackendRequest::ShmemMap).0, &[memory(1)]);
        let maps = scope.spawn(|| client.process_backend_requests());
        entered.recv().unwrap();
        both(
            || client.reset_device().unwrap(),
            || {
                peer.expect(Request::ResetDevice);
                peer.ack(Request::ResetDevice, 0);
            },
        );
        drop(let_go);
        maps.join().unwrap().unwrap();
    });
    client.process_backend_requests().unwrap();
    assert_eq!(channel.answer(map).0, 0);
    let told = handler.take();
    assert!(
        told.len() == 2 && told[0].starts_with("map") && told[1].starts_with("unmap"),
        "{told:?}"
    );
}

/// A status of 0 is a reset, as a driver makes it; no other status is.
#[test]
fn a_status_of_0_takes_mappings_away() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = channel_for(Request::SetStatus, Arc::clone(&handler));
    let set = |status: u32, refused: u64| {
        let answer = || {
            peer.expect(Request::SetStatus);
            peer.ack(Request::SetStatus, refused);
        };
        both(|| client.set_status(status), answer).0
    };
    for _ in 0..2 {
        // The same place: nothing may be left of the one before.
        assert_eq!(channel.demand_on(&client, BackendRequest::ShmemMap), 0);
        handler.take();
        set(15, 0).unwrap();
        set(0, 1).unwrap_err();
        assert_eq!(handler.take(), Vec::<String>::new());
        set(0, 0).unwrap();
        let told = handler.take();
        assert!(told.len() == 1 && told[0].starts_with("unmap"), "{told:?}");
        set(0, 0).unwrap();
        assert_eq!(handler.take(), Vec::<String>::new());
    }
}

#[test]
fn a_bell_for_two_is_heard_once() {
    // One waits to read and one to write when something is posted.
    let _leak = no_fd_leak();
    let (client, peer, _channel) = with_channel(Recorder::new());
    let used = |call: &dyn Fn()| {
        let before = cpu_time();
        call();
        cpu_time() - before
    };
    thread::scope(|scope| {
        let reader = start(scope, || {
            used(&|| assert_eq!(client.get_queue_num().unwrap(), 7))
        });
        peer.expect(Request::GetQueueNum);
        reader.settle();
        let filler = fill(&client);
        let writer = start(scope, || {
            used(&|| assert_eq!(client.get_max_mem_slots().unwrap(), 9))
        });
        writer.settle();
        client.post_iotlb(&INVALIDATE).unwrap();
        thread::sleep(Duration::from_millis(500));
        drain(&peer, filler);
        peer.expect(Request::GetMaxMemSlots);
        peer.expect(Request::IotlbMsg);
        peer.ack(Request::GetQueueNum, 7);
        peer.ack(Request::GetMaxMemSlots, 9);
        for call in [reader, writer] {
            let used = call.at_once();
            assert!(used < Duration::from_millis(100), "{used:?} of 500 ms");
        }
    });
}

#[test]
fn what_was_posted_is_sent_by_who_still_waits() {
    // One waits to read. Another one, who waits to write, gives up; what was
    // posted meanwhile is left.
    let _leak = no_fd_leak();
    let (client, peer, _channel) = with_channel(Recorder::new());
    thread::scope(|scope| {
        let reader = start(scope, || client.get_queue_num());
        peer.expect(Request::GetQueueNum);
        reader.settle();
        let filler = fill(&client);
        let writer = start(scope, || client.get_vring_base(0, common::after(300)));
        writer.settle();
        client.post_iotlb(&INVALIDATE).unwrap();
        let error = writer.handle.join().unwrap().unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut);
        drain(&peer, filler);
        let begin = Instant::now();
        peer.expect(Request::IotlbMsg);
        assert!(begin.elapsed() < AT_ONCE);
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(reader.at_once().unwrap(), 7);
    });
}

#[test]
fn a_request_behind_one_that_was_given_up_is_sent() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    thread::scope(|scope| {
        let reader = start(scope, || client.get_queue_num());
        peer.expect(Request::GetQueueNum);
        reader.settle();
        let filler = fill(&client);
        let writer = start(scope, || client.get_vring_base(0, common::after(300)));
        writer.settle();
        let behind = start(scope, || client.get_max_mem_slots());
        behind.settle();
        // The third one takes over reading from the first one.
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(reader.at_once().unwrap(), 7);
        behind.settle();
        assert_eq!(
            writer.handle.join().unwrap().unwrap_err().kind,
            Kind::TimedOut
        );
        drain(&peer, filler);
        let begin = Instant::now();
        peer.expect(Request::GetMaxMemSlots);
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        peer.ack(Request::GetMaxMemSlots, 9);
        assert_eq!(behind.at_once().unwrap(), 9);
    });
}

#[test]
fn a_flood_does_not_keep_a_reply_from_who_waits_for_it() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    let (served, first) = mpsc::channel();
    handler.hook(move |_| {
        let _ = served.send(());
        thread::sleep(Duration::from_micros(100));
        0
    });
    let flood = message(1, QUIET, &iotlb(1)).repeat(5_000);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.get_queue_num());
        peer.expect(Request::GetQueueNum);
        let flooding = scope.spawn(|| channel.0.send(&flood, &[]));
        first.recv().unwrap();
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(call.join().unwrap().unwrap(), 7);
        let served = handler.take().len();
        handler.hook(|_| 0);
        while !flooding.is_finished() {
            client.process_backend_requests().unwrap();
        }
        assert!(served < 1000, "{served}");
    });
}

#[test]
fn slow_handlers_do_not_add_up_beyond_the_deadline() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    handler.hook(|_| {
        thread::sleep(Duration::from_millis(50));
        0
    });
    channel
        .0
        .send(&message(1, QUIET, &iotlb(1)).repeat(60), &[]);
    let begin = Instant::now();
    let error = client.get_vring_base(0, common::after(200)).unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    peer.expect(Request::GetVringBase);
}

#[test]
fn a_channel_that_could_not_be_opened_for_the_order_of_things_can_be_later() {
    let _leak = no_fd_leak();
    let (client, peer) = ready_for(Request::PostcopyEnd, true, patient());
    let base = &mut [0];
    let shared = SharedRegion {
        region: common::REGIONS[0],
        fd: memory(0),
    };
    let table = || {
        let request = peer.expect(Request::SetMemTable);
        peer.reply(Request::SetMemTable, &request.payload);
    };
    both(|| client.postcopy_set_mem_table(&[shared], base), table)
        .0
        .unwrap();
    let error = client.open_backend_channel(Recorder::new()).unwrap_err();
    assert_eq!(
        (error.kind, error.request),
        (Kind::State, Some(Request::SetBackendReqFd))
    );
    client.postcopy_ack_mem_table().unwrap();
    peer.expect(Request::SetMemTable);
    let take = || {
        let given = peer.expect(Request::SetBackendReqFd);
        peer.ack(Request::SetBackendReqFd, 0);
        given
    };
    let (opened, _given) = both(|| client.open_backend_channel(Recorder::new()), take);
    opened.unwrap();
}

#[test]
fn what_was_posted_does_not_count_as_given_up() {
    let _leak = no_fd_leak();
    let options = vhost_user_frontend::Options {
        on_timeout: vhost_user_frontend::OnTimeout::Keep,
        ..patient()
    };
    let (client, peer) = adopted(FEATURES, protocol(true), options);
    for _ in 0..100 {
        client.post_iotlb(&INVALIDATE).unwrap();
        peer.expect(Request::IotlbMsg);
    }
    let error = client.get_vring_base(0, common::after(50)).unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut);
    peer.expect(Request::GetVringBase);
    let answer = || {
        peer.expect(Request::GetQueueNum);
        (0..100).for_each(|_| peer.ack(Request::IotlbMsg, 0));
        peer.reply(Request::GetVringBase, &[0; 8]);
        peer.ack(Request::GetQueueNum, 7);
    };
    assert_eq!(both(|| client.get_queue_num(), answer).0.unwrap(), 7);
}

#[test]
fn a_call_that_goes_on_after_another_one_gave_up_is_still_served() {
    let _leak = no_fd_leak();
    let handler = Recorder::new();
    let (client, peer, channel) = with_channel(Arc::clone(&handler));
    thread::scope(|scope| {
        let call = start(scope, || client.get_queue_num());
        peer.expect(Request::GetQueueNum);
        call.settle();
        let error = client.get_vring_base(0, common::after(50)).unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut);
        // No further request is taken, but this one goes on, also while there is
        // an event loop.
        client.process_backend_requests().unwrap();
        assert_eq!(channel.demand(BackendRequest::Iotlb, &iotlb(1), &[]), 0);
        peer.ack(Request::GetQueueNum, 7);
        assert_eq!(call.at_once().unwrap(), 7);
    });
    let error = client.process_backend_requests().unwrap_err();
    assert_eq!(error.code(), -4101);
}

#[test]
fn who_opens_the_channel_serves_it_though_another_one_reads() {
    let _leak = no_fd_leak();
    for later in [false, true] {
        let handler = Recorder::new();
        let brief = common::after(100);
        let options = vhost_user_frontend::Options {
            // Half of it is how long one receive blocks.
            quick: if later { brief } else { patient().quick },
            ..patient()
        };
        let (client, peer) = adopted(FEATURES, protocol(true), options);
        thread::scope(|scope| {
            let reader = start(scope, || client.get_vring_base(0, common::after(10_000)));
            peer.expect(Request::GetVringBase);
            thread::sleep(Duration::from_millis(200));
            reader.settle();
            let opener = start(scope, || client.open_backend_channel(handler));
            let mut given = peer.expect(Request::SetBackendReqFd);
            let channel = Channel(Peer::on(given.fds.remove(0)));
            let begin = Instant::now();
            assert_eq!(channel.demand(BackendRequest::Iotlb, &iotlb(1), &[]), 0);
            assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
            peer.reply(Request::GetVringBase, &[0; 8]);
            peer.ack(Request::SetBackendReqFd, 0);
            reader.at_once().unwrap();
            opener.at_once().unwrap();
        });
    }
}

#[test]
fn an_object_that_cannot_be_sent_now_is_not_found() {
    if only_for_root("can put more in flight than an ordinary user may") {
        return;
    }
    let _leak = no_fd_leak();
    let (client, peer, channel) = with_channel(Recorder::new());
    let _full = many_in_flight();
    let limit = limit_fds(1000);
    let front = || {
        give_up_privileges();
        let before = cpu_time();
        assert_eq!(client.get_queue_num().unwrap(), 7);
        cpu_time() - before
    };
    let back = || {
        peer.expect(Request::GetQueueNum);
        channel.ask(8, ASKS, &[7; 16], &[]);
        thread::sleep(Duration::from_millis(500));
        limit_fds(limit);
        let (value, fds) = channel.answer(8);
        peer.ack(Request::GetQueueNum, 7);
        (value, fds.len())
    };
    let (used, answer) = both(front, back);
    assert!(used < Duration::from_millis(100), "{used:?} of 500 ms");
    assert_eq!(answer, (i64::from(-libc::ETOOMANYREFS), 0));
}
