//! Bytes and descriptors on the back-end's own channel, sent before and during
//! requests of the front-end and between them.
//!
//! The requests go well, whatever comes. What the handler is told and what the
//! peer is answered is held against a reading of the bytes that were sent.

use super::input::Input;
use super::peer::{ASIDE, Aside, Manners, Peer};
use super::rig::{Late, Rig, SLACK, within_memory};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{
    BackendRequest, Iotlb, ProtocolFeatures, Request, ShmemArea, iotlb,
};
use vhost_user_frontend::{
    Adopted, BackendClient, BackendHandler, HostNotifier, Kind, OnTimeout, Options, Timeout, Uuid,
};

/// Most things that happen in a run.
const STEPS: usize = 40;
/// Most bytes and descriptors of the peer.
const BYTES: usize = 8192;
/// More than any call takes.
const AMPLE: Duration = Duration::from_secs(2);
const HEADER: usize = 12;

/// What the handler was told, in room that is there before.
#[derive(Debug)]
struct Handler {
    told: Mutex<Vec<BackendRequest>>,
    client: OnceLock<Weak<BackendClient>>,
    /// Every so many calls fail.
    fails: usize,
    posts: bool,
    file: OwnedFd,
}

impl Handler {
    fn tell(&self, request: BackendRequest) -> i32 {
        let mut told = self.told.lock().unwrap();
        assert!(told.len() < told.capacity(), "told more than was asked");
        told.push(request);
        match self.fails {
            0 => 0,
            every if told.len().checked_rem(every) == Some(0) => -libc::EIO,
            _ => 0,
        }
    }
}

impl BackendHandler for Handler {
    fn handles(&self, _: BackendRequest) -> bool {
        true
    }
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        let client = self.client.get().and_then(Weak::upgrade);
        if let Some(client) = client.filter(|_| self.posts) {
            let entry = Iotlb {
                iova: iova & !0xfff,
                size: 0x1000,
                user_addr: 0,
                perm: perm & 3 | 1,
                kind: iotlb::UPDATE,
                padding: [0; 6],
            };
            client.post_iotlb(&entry).unwrap();
            let error = client.get_features().unwrap_err();
            assert_eq!(error.kind, Kind::State);
        }
        self.tell(BackendRequest::Iotlb)
    }
    fn iotlb_access_fail(&self, _: &Iotlb) -> i32 {
        self.tell(BackendRequest::Iotlb)
    }
    fn host_notifier(&self, _: u8, notifier: Option<HostNotifier>) -> i32 {
        // The end of one need not have been asked for.
        notifier.map_or(0, |_| self.tell(BackendRequest::HostNotifier))
    }
    fn shared_object_lookup(&self, _: &Uuid) -> Result<OwnedFd, i32> {
        match self.tell(BackendRequest::SharedObjectLookup) {
            0 => Ok(self.file.try_clone().unwrap()),
            code => Err(code),
        }
    }
    fn shmem_map(&self, area: &ShmemArea, _: OwnedFd) -> i32 {
        // The one region there is.
        assert!(area.shmid == 1 && area.len > 0, "{area:?}");
        assert!(area.shm_offset + area.len <= 0x1000, "{area:?}");
        self.tell(BackendRequest::ShmemMap)
    }
    fn shmem_unmap(&self, _: &ShmemArea) -> i32 {
        self.tell(BackendRequest::ShmemUnmap)
    }
}

/// A message of the peer, as the specification has it.
#[derive(Debug)]
struct Asked {
    id: u32,
    size: usize,
    answered: bool,
}

/// The messages in these bytes, and whether what follows them breaks the protocol.
fn read(bytes: &[u8]) -> (Vec<Asked>, bool) {
    let mut asked = Vec::new();
    let mut rest = bytes;
    loop {
        let Some((header, more)) = rest.split_at_checked(HEADER) else {
            return (asked, false);
        };
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let (id, flags, size) = (word(0), word(4), word(8));
        if flags & !8 != 1 || size > 4096 {
            return (asked, true);
        }
        let size = usize::try_from(size).unwrap();
        let Some(next) = more.get(size..) else {
            return (asked, false);
        };
        rest = next;
        asked.push(Asked {
            id,
            size,
            answered: flags & 8 != 0 || id == 8,
        });
    }
}

/// What the peer sends next.
fn aside(input: &mut Input<'_>, kind: u8) -> Aside {
    let mut aside = Aside::NOTHING;
    let mut bytes: Vec<u8> = Vec::with_capacity(ASIDE);
    if kind == 0 {
        bytes.extend(input.block().iter().take(ASIDE));
        aside.fds = usize::from(input.byte() & 15);
    } else {
        let first = input.byte();
        // Mostly one that there is.
        let id = u32::from(first & 15) % 12;
        let size = match id {
            1 => 32,
            3 => 24,
            4 | 5 => 8,
            6..=8 => 16,
            9 | 10 => 40,
            _ => 0,
        };
        let flags = 1 | u32::from(first >> 4 & 1) << 3;
        let mut words = [id, flags, size];
        if kind == 2 {
            let at = usize::from(input.byte()) % 3;
            words[at] = words[at].wrapping_add_signed(input.i32());
        }
        let mut payload = [0; 40];
        match id {
            1 => payload[25] = 1,
            3 => payload[8] = 1,
            9 | 10 => (payload[0], payload[25]) = (1, 1),
            _ => {}
        }
        let changed = input.block();
        for (place, byte) in payload.iter_mut().zip(changed) {
            *place ^= byte;
        }
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(&payload[..usize::try_from(size).unwrap()]);
        aside.fds = usize::from(matches!(id, 3 | 9)) ^ usize::from(first >> 5 & 1);
        let cut = usize::from(first >> 6) * 5;
        bytes.truncate(bytes.len().saturating_sub(cut));
    }
    aside.length = bytes.len();
    aside.bytes[..bytes.len()].copy_from_slice(&bytes);
    aside
}

/// A run.
struct Run {
    client: Arc<BackendClient>,
    handler: Arc<Handler>,
    /// What the peer has sent, and how many descriptors.
    sent: Vec<u8>,
    gifts: usize,
    left: bool,
    /// What it was answered.
    got: Vec<u8>,
    got_fds: usize,
    ended: Option<Kind>,
}

impl Run {
    /// A request of the front-end, with something on the channel meanwhile.
    fn call(&mut self, peer: &mut Peer, aside: Aside) -> Result<(), Late> {
        peer.begin();
        peer.ask_later(aside);
        let begin = Instant::now();
        let result = peer.during(&[], false, || within_memory(|| self.client.get_queue_num()));
        assert_eq!(result.unwrap(), 2);
        if !peer.unasked() && aside.length > 0 {
            self.sent.extend(&aside.bytes[..aside.length]);
            self.gifts += aside.fds;
        }
        in_time(begin)
    }

    /// The caller's event loop.
    fn process(&mut self, peer: &mut Peer) -> Result<(), Late> {
        peer.begin();
        let begin = Instant::now();
        let process = || within_memory(|| self.client.process_backend_requests());
        let result = peer.during(&[], false, process).map_err(|error| error.kind);
        match (self.ended, result) {
            (Some(kind), result) => assert_eq!(result, Err(kind), "it had ended"),
            (None, result) => self.ended = result.err(),
        }
        in_time(begin)
    }

    fn answers(&mut self, peer: &Peer) {
        let mut room = [0; 512];
        while let Some((bytes, fds)) = peer.answers(&mut room) {
            self.got.extend(&room[..bytes]);
            self.got_fds += fds;
        }
    }

    fn ready(&self) -> bool {
        let notifier = self.client.backend_notifier().unwrap();
        let mut fds = [PollFd::new(notifier, PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(ready) => return ready == 1,
                Err(errno) => assert_eq!(errno, nix::errno::Errno::EINTR),
            }
        }
    }

    fn check(&mut self) {
        let (asked, broken) = read(&self.sent);
        // More descriptors than one message may carry end the channel, too.
        let crowded = self.gifts >= 32;
        match self.ended {
            None => assert!(!broken && !self.left, "it goes on"),
            Some(Kind::Protocol) => assert!(broken || crowded, "the peer did well"),
            Some(Kind::Disconnected) => assert!(self.left, "the peer is there"),
            Some(kind) => panic!("ended with {kind:?}"),
        }
        let mut told = self.handler.told.lock().unwrap();
        // What is mapped at the end goes away.
        if self.ended.is_some() {
            told.retain(|request| *request != BackendRequest::ShmemUnmap);
        }
        let mut known = asked.iter().filter(|one| {
            let request = BackendRequest::from_id(one.id);
            request.is_some_and(|request| request.info().payload.contain(one.size))
        });
        for request in told.iter() {
            let found = known.any(|one| one.id == request.id());
            assert!(found, "{request:?} was told and not asked");
        }
        let mut wanted = asked.iter().filter(|one| one.answered);
        let mut chunks = self.got.chunks_exact(20);
        let mut lookups = 0;
        for answer in &mut chunks {
            let word = |at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().unwrap());
            let one = wanted.next().expect("an answer that nobody asked for");
            assert_eq!((word(0), word(4), word(8)), (one.id, 5, 8));
            let value = i64::from_ne_bytes(answer[12..].try_into().unwrap());
            assert!((-4095..=0).contains(&value), "{value}");
            let known = BackendRequest::from_id(one.id);
            let right = known.is_some_and(|request| request.info().payload.contain(one.size));
            assert!(right || value < 0, "{one:?} was well");
            lookups += usize::from(one.id == 8 && value == 0);
        }
        assert!(chunks.remainder().is_empty(), "part of an answer");
        if !self.left {
            assert!(wanted.next().is_none() || crowded, "an answer is missing");
            assert_eq!(self.got_fds, lookups, "descriptors with answers");
        }
    }
}

fn in_time(begin: Instant) -> Result<(), Late> {
    let elapsed = begin.elapsed();
    match elapsed > SLACK {
        true => Err(Late {
            deadline: Duration::ZERO,
            elapsed,
        }),
        false => Ok(()),
    }
}

/// One input.
pub fn run(rig: &mut Rig, data: &[u8]) -> Result<(), Late> {
    let mut input = Input::new(data);
    let first = input.byte();
    let options = Options {
        quick: Timeout::After(AMPLE),
        on_timeout: OnTimeout::Poison,
        adopt: Some(Adopted {
            features: 1 << 33 | 1 << 32 | 1 << 30,
            protocol_features: ProtocolFeatures::all().bits(),
        }),
        ..Options::default()
    };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = Arc::new(BackendClient::from_fd(ours.into(), &options).unwrap());
    let manners = Manners {
        helpful: true,
        ..Manners::default()
    };
    let peer = &mut rig.peer;
    peer.connect(theirs.into(), 0, manners);
    let handler = Arc::new(Handler {
        told: Mutex::new(Vec::with_capacity(BYTES / HEADER)),
        client: OnceLock::new(),
        fails: usize::from(first & 7),
        posts: first & 8 != 0,
        file: rig.file.as_fd().try_clone_to_owned().unwrap(),
    });
    handler.client.get_or_init(|| Arc::downgrade(&client));
    peer.begin();
    peer.during(&[], false, || client.get_shmem_config())
        .unwrap();
    peer.begin();
    peer.keeps_channel = true;
    let open = Arc::<Handler>::clone(&handler);
    peer.during(&[], false, || client.open_backend_channel(open))
        .unwrap();
    assert_eq!(peer.seen[0].code, Request::SetBackendReqFd.id());
    let mut run = Run {
        client,
        handler,
        sent: Vec::with_capacity(BYTES),
        gifts: 0,
        left: false,
        got: Vec::with_capacity(BYTES * 2),
        got_fds: 0,
        ended: None,
    };
    for _ in 0..STEPS {
        if input.is_empty() || run.sent.len() + ASIDE > BYTES {
            break;
        }
        match input.byte() {
            step @ 0..=0x7f => {
                let aside = aside(&mut input, step & 3);
                if step & 4 != 0 {
                    run.call(peer, aside)?;
                } else if peer.ask(aside) {
                    run.sent.extend(&aside.bytes[..aside.length]);
                    run.gifts += aside.fds;
                }
            }
            0x80..=0xbf => run.process(peer)?,
            0xc0..=0xef => run.answers(peer),
            0xf0..=0xfe => run.call(peer, Aside::NOTHING)?,
            0xff => {
                run.answers(peer);
                peer.leave_channel();
                run.left = true;
                break;
            }
        }
    }
    // To the end, after which there is nothing to do.
    for _ in 0..BYTES {
        run.process(peer)?;
        run.answers(peer);
        if !run.ready() {
            break;
        }
    }
    assert!(!run.ready(), "there is something to do for ever");
    run.call(peer, Aside::NOTHING)?;
    run.process(peer)?;
    run.check();
    Ok(())
}
