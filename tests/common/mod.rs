//! The other end of the socket, for tests: a back-end that does exactly what the
//! test tells it, and one table of what each request looks like on the wire.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, send, sendmsg,
};
use nix::unistd::pipe2;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{
    Barrier, CryptoSym, Inflight, Iotlb, Log, MemRegion, ProtocolFeatures, Request, VringAddr,
};
use vhost_user_frontend::{
    Adopted, BackendClient, CryptoKind, Direction, Options, Result, SharedRegion, Timeout,
};

/// ACCESS_PLATFORM, VERSION_1, the bit of protocol features, LOG_ALL, and a
/// network device's MTU.
pub const FEATURES: u64 = 1 << 33 | 1 << 32 | 1 << 30 | 1 << 26 | 1 << 3;
/// The packed ring layout.
pub const PACKED: u64 = 1 << 34;
/// Longer than any answer takes here, also on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// What must happen "at once" takes less, also on a machine that is busy.
pub const AT_ONCE: Duration = Duration::from_secs(2);
/// A deadline that is meant to pass.
pub const BRIEF: Duration = Duration::from_millis(50);

pub fn after(milliseconds: u64) -> Timeout {
    Timeout::After(Duration::from_millis(milliseconds))
}

/// Everything that most requests of [`CASES`] need. Not GPA_ADDRESSES, so that
/// the two addresses of a region can be told apart on the wire, and not XEN_MMAP,
/// with which regions are larger.
pub fn protocol(reply_ack: bool) -> ProtocolFeatures {
    use ProtocolFeatures as P;
    let features = P::all() - P::GPA_ADDRESSES - P::XEN_MMAP;
    match reply_ack {
        true => features,
        false => features - P::REPLY_ACK - P::INBAND_NOTIFICATIONS, // which needs it
    }
}

/// What this request needs. Only who inherits a connection can have agreed on
/// [`Request::VringKick`] without REPLY_ACK.
pub fn protocol_for(request: Request, reply_ack: bool) -> ProtocolFeatures {
    use ProtocolFeatures as P;
    use Request as R;
    match request {
        R::PostcopyAdvise | R::PostcopyListen | R::PostcopyEnd => {
            protocol(reply_ack) - P::CONFIGURE_MEM_SLOTS
        }
        R::VringKick => protocol(reply_ack) | P::INBAND_NOTIFICATIONS,
        _ => protocol(reply_ack),
    }
}

// ---- descriptors ----

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    (0..8)
        .map(|_| pipe2(OFlag::O_CLOEXEC).unwrap().1)
        .map(File::from)
        .collect()
});

/// Eight files that can be distinguished, as eventfds cannot, and may be written like them.
pub fn files() -> &'static [File] {
    &FILES
}

/// One of [`files`], to pass along.
pub fn file(index: usize) -> BorrowedFd<'static> {
    files()[index].as_fd()
}

static MEMORY: LazyLock<Vec<File>> = LazyLock::new(|| {
    (0..8)
        .map(|_| memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap())
        .map(File::from)
        .inspect(|file| file.set_len(1 << 20).unwrap())
        .collect()
});

/// One of eight files of a MiB that can be distinguished and mapped.
pub fn memory(index: usize) -> BorrowedFd<'static> {
    MEMORY[index].as_fd()
}

/// What makes two descriptors the same file.
pub fn identity(fd: BorrowedFd<'_>) -> (u64, u64) {
    let data = File::from(fd.try_clone_to_owned().unwrap())
        .metadata()
        .unwrap();
    (data.dev(), data.ino())
}

/// Descriptors that this process has open, once none is being closed that a back-end has
/// sent.
pub fn open_fds() -> usize {
    let end = Instant::now() + PATIENCE;
    while vhost_user_frontend::descriptors_being_closed() > 0 && Instant::now() < end {
        thread::yield_now();
    }
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

static SERIAL: Mutex<()> = Mutex::new(());

/// Runs one test of this process at a time, and fails it at its end if it leaves
/// more descriptors open than it found.
pub struct NoFdLeak {
    before: usize,
    _serial: MutexGuard<'static, ()>,
}

/// See [`NoFdLeak`].
pub fn no_fd_leak() -> NoFdLeak {
    let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&FILES);
    LazyLock::force(&MEMORY);
    NoFdLeak {
        before: settled_fds(),
        _serial: serial,
    }
}

/// Descriptors that are open once threads of the test before have closed theirs.
fn settled_fds() -> usize {
    let mut before = open_fds();
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(2));
        let now = open_fds();
        if now == before {
            break;
        }
        before = now;
    }
    before
}

impl Drop for NoFdLeak {
    fn drop(&mut self) {
        if !thread::panicking() {
            let (before, after) = (self.before, open_fds());
            assert!(
                after <= before,
                "{before} descriptors were open, and now {after}"
            );
        }
    }
}

/// Whether a test can only be made by root, who this is not; says so.
pub fn only_for_root(because: &str) -> bool {
    // SAFETY: it only asks.
    if unsafe { libc::geteuid() } == 0 {
        return false;
    }
    skipped(&format!("only root {because}"));
    true
}

/// Says that something is not tested here, and why.
pub fn skipped(because: &str) {
    // Not printed through libtest, which keeps what passes to itself.
    let text = format!("SKIPPED: {because}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

/// Not in the libc crate.
const SO_PASSPIDFD: libc::c_int = 76;

/// Whoever reads from this socket gets what the kernel knows of the sender, too: its
/// credentials, its security label and a descriptor of its process. Whether there can be
/// such a descriptor here.
pub fn get_all_control_data(socket: BorrowedFd<'_>) -> bool {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    let set = |option| {
        // SAFETY: the call reads one int, which outlives it.
        let result = unsafe {
            let value = (&raw const on).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, size)
        };
        Errno::result(result)
    };
    set(libc::SO_PASSCRED).unwrap();
    set(libc::SO_PASSSEC).unwrap();
    match set(SO_PASSPIDFD) {
        Ok(_) => true,
        Err(errno) => {
            assert_eq!(errno, Errno::ENOPROTOOPT);
            false
        }
    }
}

/// From now on the calling thread, and no other, is an ordinary user.
pub fn give_up_privileges() {
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: the version's header and its two sets, which it only reads.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
}

/// Lets this process have so many descriptors. How many it was before.
pub fn limit_fds(most: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(got, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, most);
    // SAFETY: as above.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
    before
}

/// 1600 descriptors in flight, as long as this lives: an ordinary user may have only
/// so many as one process may have open, and nobody can wait for their receivers.
pub fn many_in_flight() -> (Peer, UnixStream) {
    let (full, other) = UnixStream::pair().unwrap();
    let full = Peer::on(full.into());
    for _ in 0..200 {
        full.send(&[0], &[file(3); 8]);
    }
    (full, other)
}

/// CPU time that the calling thread has used.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists, and `time` outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

// ---- bytes ----

/// The bytes that a hexadecimal text shows; spaces are ignored.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    digits
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A whole message.
pub fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let header = [code, flags, size].map(u32::to_ne_bytes).concat();
    [&header[..], payload].concat()
}

/// The flags of a well-made reply.
pub const REPLY: u32 = 0x5;

// ---- the peer ----

/// The back-end's end of the connection.
#[derive(Debug)]
pub struct Peer(pub UnixStream);

/// A message as the back-end got it.
#[derive(Debug)]
pub struct Message {
    pub code: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The number at this byte of the payload.
    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

impl Peer {
    /// The back-end's end of another connection, which it was given.
    pub fn on(fd: OwnedFd) -> Self {
        let stream = UnixStream::from(fd);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// One `recvmsg`: at most `room` bytes, and the descriptors with them.
    pub fn read(&self, room: usize, flags: MsgFlags) -> nix::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; room];
        let mut control = nix::cmsg_space!([RawFd; 64]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let mut fds = Vec::new();
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = message {
                // SAFETY: the kernel just made these descriptors for us.
                fds.extend(
                    received
                        .into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let length = got.bytes;
        bytes.truncate(length);
        Ok((bytes, fds))
    }

    /// One whole message, as real back-ends read it: the header with the
    /// descriptors first, then the payload.
    pub fn receive(&self) -> Message {
        let (header, fds) = self.read(12, MsgFlags::MSG_WAITALL).unwrap();
        assert_eq!(header.len(), 12, "the front-end closed the connection");
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let size = usize::try_from(word(8)).unwrap();
        let (payload, more) = match size {
            0 => Default::default(),
            _ => self.read(size, MsgFlags::MSG_WAITALL).unwrap(),
        };
        assert_eq!(payload.len(), size, "a message was cut short");
        assert!(more.is_empty(), "descriptors go with the first byte");
        Message {
            code: word(0),
            flags: word(4),
            payload,
            fds,
        }
    }

    /// Receives one message, which must be this request.
    pub fn expect(&self, request: Request) -> Message {
        let message = self.receive();
        assert_eq!(message.code, request.id(), "not {request:?}");
        message
    }

    /// Asserts that the front-end has sent nothing that was not received yet.
    pub fn expect_silence(&self) {
        let read = self.read(1, MsgFlags::MSG_DONTWAIT);
        assert_eq!(read.map(|(bytes, _)| bytes), Err(Errno::EAGAIN));
    }

    /// One `sendmsg`.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<UnixAddr>(self.0.as_raw_fd(), &parts, control, flags, None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// One `sendmsg` to a front-end that may be gone.
    pub fn try_send(&self, bytes: &[u8]) -> nix::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL;
        nix::sys::socket::send(self.0.as_raw_fd(), bytes, flags)
    }

    /// A well-made reply.
    pub fn reply(&self, request: Request, payload: &[u8]) {
        self.send(&message(request.id(), REPLY, payload), &[]);
    }

    /// An acknowledgement: 0 is success.
    pub fn ack(&self, request: Request, value: u64) {
        self.reply(request, &value.to_ne_bytes());
    }

    /// Ends one direction of it.
    pub fn shutdown(&self, how: Shutdown) {
        self.0.shutdown(how).unwrap();
    }

    /// Ends the connection.
    pub fn hang_up(&self) {
        // It fails if the front-end has ended it already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

// ---- the client ----

/// Options with which no deadline passes by accident.
pub fn patient() -> Options {
    Options {
        quick: Timeout::After(PATIENCE),
        slow: Timeout::After(PATIENCE),
        drain: Timeout::After(PATIENCE),
        ..Options::default()
    }
}

/// A client on a connection where all of this had been agreed before; every ring
/// may be running. No message is exchanged.
pub fn adopted(
    features: u64,
    protocol: ProtocolFeatures,
    options: Options,
) -> (BackendClient, Peer) {
    let adopt = Adopted {
        features,
        protocol_features: protocol.bits(),
    };
    connected(Options {
        adopt: Some(adopt),
        ..options
    })
}

/// A client on a new connection on which nothing was agreed.
pub fn connected(options: Options) -> (BackendClient, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    connected_on(ours, theirs, options)
}

/// The same on a socket pair that the test has prepared.
pub fn connected_on(
    ours: UnixStream,
    theirs: UnixStream,
    options: Options,
) -> (BackendClient, Peer) {
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = BackendClient::from_fd(ours.into(), &options).unwrap();
    (client, Peer(theirs))
}

/// A client that has agreed all of this message by message. SET_OWNER is left to
/// the test, and no ring runs.
pub fn handshake(
    features: u64,
    protocol: ProtocolFeatures,
    options: Options,
) -> (BackendClient, Peer) {
    let (client, peer) = connected(options);
    let agree = || -> Result<()> {
        assert_eq!(client.get_features()?, features);
        assert_eq!(client.get_protocol_features()?, protocol.bits());
        client.set_protocol_features(protocol.bits())?;
        client.set_features(features)
    };
    let answer = || {
        peer.expect(Request::GetFeatures);
        peer.ack(Request::GetFeatures, features);
        peer.expect(Request::GetProtocolFeatures);
        peer.ack(Request::GetProtocolFeatures, protocol.bits());
        peer.expect(Request::SetProtocolFeatures);
        let asked = peer.expect(Request::SetFeatures).flags & 0x8 != 0;
        if asked {
            peer.ack(Request::SetFeatures, 0);
        }
    };
    both(agree, answer).0.unwrap();
    (client, peer)
}

/// A client that may send this request.
pub fn ready_for(request: Request, reply_ack: bool, options: Options) -> (BackendClient, Peer) {
    let protocol = protocol_for(request, reply_ack);
    let (client, peer) = match request {
        // An adopted connection has its owner.
        Request::SetOwner => handshake(FEATURES, protocol, options),
        _ => adopted(FEATURES, protocol, options),
    };
    lead_to(request, reply_ack, &client, &peer);
    (client, peer)
}

/// Sends the requests that must have been answered before this one.
pub fn lead_to(request: Request, reply_ack: bool, client: &BackendClient, peer: &Peer) {
    use Request as R;
    let before: &[Request] = match request {
        R::PostcopyListen => &[R::PostcopyAdvise],
        R::PostcopyEnd => &[R::PostcopyAdvise, R::PostcopyListen],
        _ => &[],
    };
    exchange(before, reply_ack, client, peer);
}

/// Sends the requests after which this one may be sent again.
pub fn lead_back_to(request: Request, reply_ack: bool, client: &BackendClient, peer: &Peer) {
    use Request as R;
    let between: &[Request] = match request {
        R::SetOwner => &[R::ResetOwner],
        R::PostcopyListen => &[R::PostcopyEnd, R::PostcopyAdvise],
        R::PostcopyEnd => &[R::PostcopyAdvise, R::PostcopyListen],
        _ => &[],
    };
    exchange(between, reply_ack, client, peer);
}

/// Whether a request cannot simply be sent a second time.
pub fn only_once(request: Request) -> bool {
    use Request as R;
    matches!(request, R::SetOwner | R::PostcopyListen | R::PostcopyEnd)
}

fn exchange(requests: &[Request], reply_ack: bool, client: &BackendClient, peer: &Peer) {
    for request in requests {
        let case = Case::of(*request);
        let answer = || answer(peer, case, reply_ack, true);
        both(|| (case.call)(client), answer).0.unwrap();
    }
}

/// Runs the front-end's part on a thread and the back-end's part on this one.
pub fn both<A: Send, B>(front: impl FnOnce() -> A + Send, back: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let front = scope.spawn(front);
        let back = back();
        (front.join().unwrap(), back)
    })
}

/// Fills the client's socket with SET_VRING_NUM until it takes no more, past the
/// client. Returns how many there are.
pub fn fill(client: &BackendClient) -> usize {
    let bytes = hex(Case::of(Request::SetVringNum).wire);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let mut count = 0;
    loop {
        match send(client.read_notifier().as_raw_fd(), &bytes, flags) {
            Ok(sent) => assert_eq!(sent, bytes.len()),
            Err(errno) => {
                assert_eq!(errno, Errno::EAGAIN);
                return count;
            }
        }
        count += 1;
    }
}

/// Receives what [`fill`] has sent.
pub fn drain(peer: &Peer, count: usize) {
    for _ in 0..count {
        peer.expect(Request::SetVringNum);
    }
}

// ---- threads that can be watched ----

/// What happens soon, or the test fails.
pub fn wait_until(what: &str, longest: Duration, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < longest, "{what}: not after {longest:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A call on a thread of its own.
#[derive(Debug)]
pub struct Call<'scope, T> {
    thread: libc::pid_t,
    pub handle: ScopedJoinHandle<'scope, T>,
}

/// Starts a call.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    call: impl FnOnce() -> T + Send + 'scope,
) -> Call<'scope, T> {
    let (sender, receiver) = mpsc::channel();
    let handle = scope.spawn(move || {
        // SAFETY: it takes no argument and cannot fail.
        sender.send(unsafe { libc::gettid() }).unwrap();
        call()
    });
    Call {
        thread: receiver.recv().unwrap(),
        handle,
    }
}

impl<T> Call<'_, T> {
    /// Returns when the call waits for something in the kernel.
    pub fn settle(&self) {
        let path = format!("/proc/self/task/{}/stat", self.thread);
        let mut looks = 0;
        wait_until("the call waits", PATIENCE, || {
            let text = std::fs::read_to_string(&path).expect("the call is under way");
            let (_, after_name) = text.rsplit_once(')').unwrap();
            // More than a moment's wait for a lock.
            looks = match after_name.trim_start().starts_with('S') {
                true => looks + 1,
                false => 0,
            };
            looks == 3
        });
    }

    /// What the call returns, which it does without further waiting.
    pub fn at_once(self) -> T {
        wait_until("the call returns", AT_ONCE, || self.handle.is_finished());
        self.handle.join().unwrap()
    }

    /// Sends the thread a signal; says whether there still was that thread.
    pub fn signal(&self, number: libc::c_int) -> bool {
        // SAFETY: it takes no argument and cannot fail.
        let process = unsafe { libc::getpid() };
        // SAFETY: tgkill takes numbers only.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, process, self.thread, number) };
        result == 0
    }
}

// ---- the requests ----

/// How the back-end answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Never.
    Nothing,
    /// With an acknowledgement, or else GET_FEATURES follows as the barrier says.
    Ack(Barrier),
    /// Always with an acknowledgement, for which it always asks.
    Status,
    /// Always, with this payload (hexadecimal) and the last [`memory`] if told.
    Own(&'static str, Descriptor),
}

/// Whether the answer brings a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptor {
    Without,
    With,
}

/// What one request looks like.
#[derive(Debug)]
pub struct Case {
    pub request: Request,
    /// Sends it, and checks what it returns after [`Answer::Own`].
    pub call: fn(&BackendClient) -> Result<()>,
    /// Header (without the need-reply bit) and payload, in hexadecimal.
    pub wire: &'static str,
    /// It carries so many of [`files`], beginning with the first.
    pub fds: usize,
    pub answer: Answer,
}

impl Case {
    /// Sends the answer that means success, where every request is answered.
    pub fn answer(&self, peer: &Peer) {
        match self.answer {
            Answer::Nothing => {}
            Answer::Ack(_) | Answer::Status => peer.ack(self.request, 0),
            Answer::Own(payload, descriptor) => {
                let reply = message(self.request.id(), REPLY, &hex(payload));
                let fds = [memory(7)];
                let with = descriptor == Descriptor::With;
                peer.send(&reply, if with { &fds } else { &[] });
            }
        }
    }

    /// The one of this request.
    pub fn of(request: Request) -> &'static Self {
        let found = CASES.iter().find(|case| case.request == request);
        found.unwrap_or_else(|| panic!("{request:?} has no case"))
    }
}

pub const REGIONS: [MemRegion; 2] = [
    MemRegion {
        guest_addr: 0,
        size: 0x10_0000,
        user_addr: 0x7f00_1234_5000,
        mmap_offset: 0,
        xen_mmap_flags: 0,
        xen_domid: 0,
    },
    MemRegion {
        guest_addr: 0x1_0000_0000,
        size: 0x20_0000,
        user_addr: 0x7f01_0000_0000,
        mmap_offset: 0x3000,
        xen_mmap_flags: 0,
        xen_domid: 0,
    },
];
const INFLIGHT: Inflight = Inflight {
    mmap_size: 0x1040,
    mmap_offset: 0x1000,
    num_queues: 2,
    queue_size: 256,
    padding: 0,
};

/// What the descriptor of an answer is.
fn is_theirs(fd: &impl AsFd) {
    assert_eq!(identity(fd.as_fd()), identity(memory(7)));
}

use Answer::{Ack, Nothing, Own, Status};
use Barrier::{Always, Never, WhileRunning};
use Descriptor::{With, Without};

/// One case for each request, with arguments in which no two bytes that matter
/// are alike by accident.
pub const CASES: &[Case] = &[
    Case {
        request: Request::GetFeatures,
        call: |client| {
            assert_eq!(client.get_features()?, FEATURES);
            Ok(())
        },
        wire: "01000000 01000000 00000000",
        fds: 0,
        answer: Own("0800004403000000", Without),
    },
    Case {
        request: Request::SetFeatures,
        call: |client| client.set_features(FEATURES),
        wire: "02000000 01000000 08000000  0800004403000000",
        fds: 0,
        answer: Ack(WhileRunning),
    },
    Case {
        request: Request::SetOwner,
        call: |client| client.set_owner(),
        wire: "03000000 01000000 00000000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::ResetOwner,
        call: |client| client.reset_owner(),
        wire: "04000000 01000000 00000000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::SetMemTable,
        call: |client| {
            let shared = |index: usize| SharedRegion {
                region: REGIONS[index],
                fd: file(index),
            };
            client.set_mem_table(&[shared(0), shared(1)])
        },
        wire: "05000000 01000000 48000000  02000000 00000000
               0000000000000000 0000100000000000 00503412007f0000 0000000000000000
               0000000001000000 0000200000000000 00000000017f0000 0030000000000000",
        fds: 2,
        answer: Ack(Always),
    },
    Case {
        request: Request::SetLogBase,
        call: |client| {
            let log = Log {
                mmap_size: 0x12340,
                mmap_offset: 0,
            };
            client.set_log_base(&log, file(0))
        },
        wire: "06000000 01000000 10000000  4023010000000000 0000000000000000",
        fds: 1,
        answer: Own("4023010000000000", Without),
    },
    Case {
        request: Request::SetLogFd,
        call: |client| client.set_log_fd(file(0)),
        wire: "07000000 01000000 00000000",
        fds: 1,
        answer: Ack(Never),
    },
    Case {
        request: Request::SetVringNum,
        call: |client| client.set_vring_num(3, 256),
        wire: "08000000 01000000 08000000  03000000 00010000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::SetVringAddr,
        call: |client| {
            client.set_vring_addr(&VringAddr {
                index: 3,
                flags: 1,
                descriptor: 0x1_0000_1000,
                used: 0x2_0000_2000,
                available: 0x3_0000_3000,
                log: 0x4_0000_4000,
            })
        },
        wire: "09000000 01000000 28000000  03000000 01000000
               0010000001000000 0020000002000000 0030000003000000 0040000004000000",
        fds: 0,
        answer: Ack(WhileRunning),
    },
    Case {
        request: Request::SetVringBase,
        call: |client| client.set_vring_base(3, 0x1234),
        wire: "0a000000 01000000 08000000  03000000 34120000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::GetVringBase,
        call: |client| {
            assert_eq!(client.get_vring_base(3, Timeout::Default)?, 0x1234);
            Ok(())
        },
        wire: "0b000000 01000000 08000000  03000000 00000000",
        fds: 0,
        answer: Own("03000000 34120000", Without),
    },
    Case {
        request: Request::SetVringKick,
        call: |client| client.set_vring_kick(3, Some(file(0))),
        wire: "0c000000 01000000 08000000  0300000000000000",
        fds: 1,
        answer: Ack(Never),
    },
    Case {
        request: Request::SetVringCall,
        call: |client| client.set_vring_call(3, Some(file(0))),
        wire: "0d000000 01000000 08000000  0300000000000000",
        fds: 1,
        answer: Ack(WhileRunning),
    },
    Case {
        request: Request::SetVringErr,
        call: |client| client.set_vring_err(3, Some(file(0))),
        wire: "0e000000 01000000 08000000  0300000000000000",
        fds: 1,
        answer: Ack(Never),
    },
    Case {
        request: Request::GetProtocolFeatures,
        call: |client| {
            // Bits that this library does not serve are told all the same.
            assert_eq!(client.get_protocol_features()?, 0x8000_0000_00ff_ffff);
            Ok(())
        },
        wire: "0f000000 01000000 00000000",
        fds: 0,
        answer: Own("ffffff0000000080", Without),
    },
    Case {
        request: Request::SetProtocolFeatures,
        call: |client| client.set_protocol_features(0x40_8201),
        wire: "10000000 01000000 08000000  0182400000000000",
        fds: 0,
        answer: Nothing,
    },
    Case {
        request: Request::GetQueueNum,
        call: |client| {
            assert_eq!(client.get_queue_num()?, 0x0102_0304_0506_0708);
            Ok(())
        },
        wire: "11000000 01000000 00000000",
        fds: 0,
        answer: Own("0807060504030201", Without),
    },
    Case {
        request: Request::SetVringEnable,
        call: |client| client.set_vring_enable(3, true),
        wire: "12000000 01000000 08000000  03000000 01000000",
        fds: 0,
        answer: Ack(Always),
    },
    Case {
        request: Request::SendRarp,
        call: |client| client.send_rarp([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]),
        wire: "13000000 01000000 08000000  525400123456 0000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::NetSetMtu,
        call: |client| client.net_set_mtu(9000),
        wire: "14000000 01000000 08000000  2823000000000000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::SetBackendReqFd,
        call: |client| client.set_backend_req_fd(file(0)),
        wire: "15000000 01000000 00000000",
        fds: 1,
        answer: Ack(Never),
    },
    Case {
        request: Request::IotlbMsg,
        call: |client| {
            client.send_iotlb(&Iotlb {
                iova: 0x1_0000_1000,
                size: 0x2000,
                user_addr: 0x7f00_1234_5000,
                perm: 3,
                kind: 2,
                padding: [0; 6],
            })
        },
        wire: "16000000 01000000 20000000  0010000001000000 0020000000000000 00503412007f0000
               03 02 000000000000",
        fds: 0,
        answer: Status,
    },
    Case {
        request: Request::SetVringEndian,
        call: |client| client.set_vring_endian(3, 1),
        wire: "17000000 01000000 08000000  03000000 01000000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::GetConfig,
        call: |client| {
            let mut buffer = [0xff; 8];
            client.get_config(16, 1, &mut buffer)?;
            assert_eq!(buffer, [1, 2, 3, 4, 5, 6, 7, 8]);
            Ok(())
        },
        wire: "18000000 01000000 14000000  10000000 08000000 01000000 0000000000000000",
        fds: 0,
        answer: Own("10000000 08000000 01000000 0102030405060708", Without),
    },
    Case {
        request: Request::SetConfig,
        call: |client| client.set_config(20, 1, &[0xa1, 0xa2, 0xa3]),
        wire: "19000000 01000000 0f000000  14000000 03000000 01000000 a1a2a3",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::CreateCryptoSession,
        call: |client| {
            let session = crypto_session();
            let id = client.create_crypto_session(2, CryptoKind::Sym(&session))?;
            assert_eq!(id, 0x0102_0304_0506_0708);
            Ok(())
        },
        wire: CRYPTO_SESSION,
        fds: 0,
        answer: Own(CRYPTO_ANSWER, Without),
    },
    Case {
        request: Request::CloseCryptoSession,
        call: |client| client.close_crypto_session(0x0102_0304_0506_0708),
        wire: "1b000000 01000000 08000000  0807060504030201",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::PostcopyAdvise,
        call: |client| {
            is_theirs(&client.postcopy_advise()?);
            Ok(())
        },
        wire: "1c000000 01000000 00000000",
        fds: 0,
        answer: Own("", With),
    },
    Case {
        request: Request::PostcopyListen,
        call: |client| client.postcopy_listen(),
        wire: "1d000000 01000000 00000000",
        fds: 0,
        answer: Status,
    },
    Case {
        request: Request::PostcopyEnd,
        call: |client| client.postcopy_end(),
        wire: "1e000000 01000000 00000000",
        fds: 0,
        answer: Status,
    },
    Case {
        request: Request::GetInflightFd,
        call: |client| {
            let (inflight, fd) = client.get_inflight_fd(2, 256)?;
            assert_eq!(inflight, INFLIGHT);
            assert_eq!(identity(fd.unwrap().as_fd()), identity(memory(7)));
            Ok(())
        },
        wire: "1f000000 01000000 18000000  0000000000000000 0000000000000000 0200 0001 00000000",
        fds: 0,
        answer: Own("4010000000000000 0010000000000000 0200 0001 00000000", With),
    },
    Case {
        request: Request::SetInflightFd,
        call: |client| client.set_inflight_fd(&INFLIGHT, file(0)),
        wire: "20000000 01000000 18000000  4010000000000000 0010000000000000 0200 0001 00000000",
        fds: 1,
        answer: Ack(Never),
    },
    Case {
        request: Request::GpuSetSocket,
        call: |client| client.gpu_set_socket(file(0)),
        wire: "21000000 01000000 00000000",
        fds: 1,
        answer: Ack(Never),
    },
    Case {
        request: Request::ResetDevice,
        call: |client| client.reset_device(),
        wire: "22000000 01000000 00000000",
        fds: 0,
        answer: Ack(Always),
    },
    Case {
        request: Request::VringKick,
        call: |client| client.vring_kick(3),
        wire: "23000000 01000000 08000000  03000000 00000000",
        fds: 0,
        answer: Ack(Never),
    },
    Case {
        request: Request::GetMaxMemSlots,
        call: |client| {
            assert_eq!(client.get_max_mem_slots()?, 509);
            Ok(())
        },
        wire: "24000000 01000000 00000000",
        fds: 0,
        answer: Own("fd01000000000000", Without),
    },
    Case {
        request: Request::AddMemReg,
        call: |client| {
            client.add_mem_region(&SharedRegion {
                region: REGIONS[1],
                fd: file(0),
            })
        },
        wire: "25000000 01000000 28000000  0000000000000000
               0000000001000000 0000200000000000 00000000017f0000 0030000000000000",
        fds: 1,
        answer: Ack(Always),
    },
    Case {
        request: Request::RemMemReg,
        call: |client| client.remove_mem_region(&REGIONS[1]),
        wire: "26000000 01000000 28000000  0000000000000000
               0000000001000000 0000200000000000 00000000017f0000 0030000000000000",
        fds: 0,
        answer: Ack(Always),
    },
    Case {
        request: Request::SetStatus,
        call: |client| client.set_status(0x4f),
        wire: "27000000 01000000 08000000  4f00000000000000",
        fds: 0,
        answer: Ack(Always),
    },
    Case {
        request: Request::GetStatus,
        call: |client| {
            assert_eq!(client.get_status()?, 0xcf);
            Ok(())
        },
        wire: "28000000 01000000 00000000",
        fds: 0,
        answer: Own("cf00000000000000", Without),
    },
    Case {
        request: Request::GetSharedObject,
        call: |client| {
            let uuid = [
                16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
            ];
            is_theirs(&client.get_shared_object(&uuid)?);
            Ok(())
        },
        wire: "29000000 01000000 10000000  101112131415161718191a1b1c1d1e1f",
        fds: 0,
        answer: Own("101112131415161718191a1b1c1d1e1f", With),
    },
    Case {
        request: Request::SetDeviceStateFd,
        call: |client| {
            let fd = client.set_device_state_fd(Direction::Load, file(0))?;
            assert_eq!(identity(fd.unwrap().as_fd()), identity(memory(7)));
            Ok(())
        },
        wire: "2a000000 01000000 08000000  01000000 00000000",
        fds: 1,
        answer: Own("0000000000000000", With),
    },
    Case {
        request: Request::CheckDeviceState,
        call: |client| client.check_device_state(),
        wire: "2b000000 01000000 00000000",
        fds: 0,
        answer: Own("0000000000000000", Without),
    },
    Case {
        request: Request::GetShmemConfig,
        call: |client| {
            let config = client.get_shmem_config()?;
            assert_eq!(config.nregions, 2);
            assert_eq!(config.memory_sizes[..3], [0x1000, 0, 0x2_0000_0000]);
            assert_eq!(config.memory_sizes[3..], [0; 253]);
            Ok(())
        },
        wire: "2c000000 01000000 00000000",
        fds: 0,
        answer: Own(SHMEM_CONFIG, Without),
    },
    Case {
        request: Request::GetVringBaseSkipDrain,
        call: |client| {
            assert_eq!(client.get_vring_base_skip_drain(3)?, 0x1234);
            Ok(())
        },
        wire: "2d000000 01000000 08000000  03000000 00000000",
        fds: 0,
        answer: Own("03000000 34120000", Without),
    },
];

/// Digits of so many bytes, zero but for these: (at which byte, digits).
const fn digits<const N: usize>(pieces: &[(usize, &str)]) -> [u8; N] {
    let mut text = [b'0'; N];
    let mut piece = 0;
    while piece < pieces.len() {
        let (from, digits) = (pieces[piece].0 * 2, pieces[piece].1.as_bytes());
        let mut at = 0;
        while at < digits.len() {
            text[from + at] = digits[at];
            at += 1;
        }
        piece += 1;
    }
    text
}

const fn text(digits: &[u8]) -> &str {
    match std::str::from_utf8(digits) {
        Ok(text) => text,
        Err(_) => panic!("hexadecimal digits are text"),
    }
}

/// Two sizes, and 254 that are zero.
const SHMEM_CONFIG: &str = text(&digits::<4112>(&[
    (0, "02000000"),
    (8, "0010000000000000"),
    (24, "0000000002000000"),
]));

/// A cipher and a MAC.
const CRYPTO_SESSION: &str = text(&digits::<2168>(&[
    (0, "1a0000000100000030040000"),
    (12, "0200000000000000"),
    // The algorithms and lengths, and what is to be done.
    (20, "03000000100000000400000020000000030000000c000000"),
    (44, "02010203"),
    // The keys.
    (68, "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"),
    (132, "b1b2b3"),
]));

/// What it sends to be created.
fn crypto_session() -> CryptoSym {
    let mut session = CryptoSym {
        cipher_alg: 3,
        key_len: 16,
        hash_alg: 4,
        hash_result_len: 32,
        auth_key_len: 3,
        add_len: 12,
        op_type: 2,
        direction: 1,
        hash_mode: 2,
        alg_chain_order: 3,
        padding: 0,
        pointers: [0; 2],
        key: [0; 64],
        auth_key: [0; 512],
    };
    let key = (0xa0_u8..).take(16); // and nothing that allocates
    session
        .key
        .iter_mut()
        .zip(key)
        .for_each(|(to, from)| *to = from);
    session.auth_key[..3].copy_from_slice(&[0xb1, 0xb2, 0xb3]);
    session
}

/// Its answer: the same once more, and the number of the session.
const CRYPTO_ANSWER: &str = text(&digits::<2144>(&[
    (0, "0200000000000000"),
    (1064, "0807060504030201"),
]));

/// A well-made answer to a request that got `message`: what the case says, an
/// acknowledgement where one was asked for, the features to the barrier.
pub fn answer(peer: &Peer, case: &Case, reply_ack: bool, running: bool) {
    peer.expect(case.request);
    match case.answer {
        Own(payload, descriptor) => {
            let fd = [memory(7)];
            let fds = if descriptor == With { &fd[..] } else { &[] };
            peer.send(&message(case.request.id(), REPLY, &hex(payload)), fds);
        }
        Status => peer.ack(case.request, 0),
        Ack(_) if reply_ack => peer.ack(case.request, 0),
        Ack(barrier) if barrier == Always || (barrier == WhileRunning && running) => {
            peer.expect(Request::GetFeatures);
            peer.ack(Request::GetFeatures, FEATURES);
        }
        Ack(_) | Nothing => {}
    }
}
