//! The back-end: it answers as a script says, within the thread that calls the
//! library.
//!
//! The library refuses bytes that were there before its request, so an answer
//! must be written while the call is under way. Another thread could do that, and
//! would make each run slow and different from the last. Here the kernel raises
//! SIGIO in the calling thread as soon as something has arrived at the peer's
//! socket (`O_ASYNC`), which is on the way out of the library's own `sendmsg`;
//! the signal handler is the back-end. What is to happen later, or when the
//! library waits in vain, is raised by a timer. So each call is also interrupted
//! by signals now and then, as it must bear.
//!
//! The handler allocates nothing and takes no lock.

use super::op;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long a peer that was told to pause does so.
const PAUSE: Duration = Duration::from_micros(20);
/// Most pauses in one call.
const RESTS: usize = 32;
/// How long a peer that hangs up rather than being silent waits for more.
const LINGER: Duration = Duration::from_micros(60);

const HEADER: usize = 12;
/// Room for the largest request, several times.
const INBOX: usize = 4096;
/// Room for the largest answer, and for longer ones than are allowed.
const OUTBOX: usize = 8192;
/// Most bytes that are sent in one run.
const LOG: usize = 1 << 16;
/// Most descriptors sent with one piece, and most pieces with descriptors.
const GIFTS: usize = 63;
/// Most bytes that are sent at once on the peer's own channel.
pub const ASIDE: usize = 256;
/// Most messages that wait for their answer.
const QUEUE: usize = 16;

/// What the peer is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// Where an answer is missing it hangs up, so that no call waits in vain.
    pub closing: bool,
    /// Where it stays silent a signal comes, which ends a blocking receive: that
    /// would last for some ticks of the kernel's clock, however short its timeout.
    pub stirring: bool,
    /// Once its script has ended, it answers well.
    pub helpful: bool,
    /// It reads nothing at first, and there is no room in the socket.
    pub congested: bool,
}

/// A message as the peer got it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub code: u32,
    pub flags: u32,
    /// How its payload begins.
    pub head: [u8; 24],
}

impl Seen {
    /// Whether it has an answer.
    pub fn wants_answer(&self) -> bool {
        self.flags & 8 != 0 || own_reply(self.code).is_some()
    }
}

/// The sizes that the reply to this request may have, if it has one of its own.
/// Written down again, apart from the library's table.
pub fn own_reply(code: u32) -> Option<Range<usize>> {
    match code {
        1 | 11 | 15 | 17 | 36 | 40 | 42 | 43 | 45 => Some(8..9),
        6 => Some(0..4097),
        24 => Some(0..269),
        26 => Some(1072..1073),
        28 => Some(0..1),
        41 => Some(0..17),
        31 => Some(24..25),
        44 => Some(2056..2057),
        _ => None,
    }
}

/// A piece that was sent with descriptors.
#[derive(Debug, Clone)]
pub struct Gift {
    /// Its bytes in [`Peer::log`].
    pub bytes: Range<usize>,
    pub fds: usize,
}

/// Bytes on the peer's own channel.
#[derive(Debug, Clone, Copy)]
pub struct Aside {
    pub bytes: [u8; ASIDE],
    pub length: usize,
    pub fds: usize,
}

impl Aside {
    pub const NOTHING: Self = Self {
        bytes: [0; ASIDE],
        length: 0,
        fds: 0,
    };
}

/// The back-end of the run.
pub struct Peer {
    socket: RawFd,
    gift: RawFd,
    manners: Manners,
    /// Filler that lies in the socket before the first message.
    filler: usize,
    script: *const [u8],
    at: usize,
    inbox: [u8; INBOX],
    have: usize,
    queue: VecDeque<Seen>,
    current: Seen,
    answering: bool,
    /// The message being answered wants an answer, and has none.
    owed: bool,
    /// What it had sent when that message came.
    asked: usize,
    due: Option<Instant>,
    outbox: [u8; OUTBOX],
    /// What is left of a good answer in pieces, and their size.
    pieces: Range<usize>,
    piece: usize,
    last_gifts: usize,
    rests: usize,
    /// Its own channel, which SET_BACKEND_REQ_FD brought.
    channel: RawFd,
    /// It uses that: the first descriptor of the connection.
    pub keeps_channel: bool,
    /// What it sends there when the next message comes.
    aside: Aside,
    timer: Option<libc::timer_t>,

    // What it remembers of a run.
    /// Codes of messages that it has not answered, and may still.
    pub debts: VecDeque<u32>,
    /// All bytes that it sent.
    pub log: Vec<u8>,
    pub gifts: Vec<Gift>,
    /// The messages of the last call.
    pub seen: Vec<Seen>,
    /// Descriptors that came with them.
    pub fds_seen: usize,
    /// It has done something else than answering well.
    pub strayed: bool,
    /// It has taken its time.
    pub paused: bool,
    pub hung_up: bool,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("manners", &self.manners)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

// SAFETY: the pointers in it are null unless `during` runs.
unsafe impl Send for Peer {}

/// The peer whose thread calls the library just now.
static CURRENT: AtomicPtr<Peer> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn on_signal(_signal: libc::c_int) {
    let peer = CURRENT.load(SeqCst);
    // SAFETY: `during` published it on this thread, which the signal interrupts,
    // and leaves it alone until it has taken it back; the signal itself is masked.
    if let Some(peer) = unsafe { peer.as_mut() } {
        let before = Errno::last_raw();
        peer.serve();
        Errno::set_raw(before);
    }
}

/// Takes the peer back from the signal handler, also when the call panics.
struct Published;

impl Drop for Published {
    fn drop(&mut self) {
        CURRENT.store(std::ptr::null_mut(), SeqCst);
    }
}

impl Peer {
    /// `gift` is what it sends along, and must stay open.
    pub fn new(gift: BorrowedFd<'_>) -> Box<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        Box::new(Self {
            socket: -1,
            gift: gift.as_raw_fd(),
            manners: Manners::default(),
            filler: 0,
            script: &[],
            at: 0,
            inbox: [0; INBOX],
            have: 0,
            queue: VecDeque::with_capacity(QUEUE),
            current: Seen::default(),
            answering: false,
            owed: false,
            asked: 0,
            due: None,
            outbox: [0; OUTBOX],
            pieces: 0..0,
            piece: 0,
            last_gifts: 0,
            rests: 0,
            channel: -1,
            keeps_channel: false,
            aside: Aside::NOTHING,
            timer: None,
            debts: VecDeque::with_capacity(QUEUE),
            log: Vec::with_capacity(LOG),
            gifts: Vec::with_capacity(GIFTS),
            seen: Vec::with_capacity(QUEUE),
            fds_seen: 0,
            strayed: false,
            paused: false,
            hung_up: false,
        })
    }

    /// Begins a connection. `filler` bytes lie in the socket already.
    pub fn connect(&mut self, socket: OwnedFd, filler: usize, manners: Manners) {
        self.disconnect();
        self.manners = manners;
        self.filler = filler;
        self.have = 0;
        self.queue.clear();
        self.answering = false;
        self.pieces = 0..0;
        self.debts.clear();
        self.log.clear();
        self.asked = 0;
        self.gifts.clear();
        self.strayed = false;
        self.paused = false;
        self.hung_up = false;
        self.timer = Some(new_timer());
        self.socket = socket.into_raw_fd();
        signal_this_thread(self.socket);
    }

    /// Ends it.
    pub fn disconnect(&mut self) {
        if let Some(timer) = self.timer.take() {
            // SAFETY: made by `new_timer`, and not used any more.
            unsafe { libc::timer_delete(timer) };
        }
        self.leave_channel();
        self.keeps_channel = false;
        self.aside = Aside::NOTHING;
        self.close();
    }

    /// Sends that on its own channel, now. Whether there was room.
    pub fn ask(&mut self, aside: Aside) -> bool {
        let numbers = [self.gift; GIFTS];
        let bytes = &aside.bytes[..aside.length];
        // So little goes whole or not at all.
        aside.length > 0 && send_now(self.channel, bytes, &numbers[..aside.fds]).is_ok()
    }

    /// Does so when the next message comes.
    pub fn ask_later(&mut self, aside: Aside) {
        self.aside = aside;
    }

    /// What has not been sent yet.
    pub fn unasked(&mut self) -> bool {
        std::mem::replace(&mut self.aside, Aside::NOTHING).length > 0
    }

    /// Reads answers from its own channel: bytes, and how many descriptors came.
    pub fn answers(&self, room: &mut [u8]) -> Option<(usize, usize)> {
        let mut first = -1;
        let read = receive_now(self.channel, room, &mut first);
        if first != -1 {
            // SAFETY: it is ours, and nobody else has it.
            unsafe { libc::close(first) };
        }
        read
    }

    /// Closes its own channel.
    pub fn leave_channel(&mut self) {
        if self.channel != -1 {
            // SAFETY: it is ours, and not used any more.
            unsafe { libc::close(self.channel) };
            self.channel = -1;
        }
    }

    /// What it does from now on, however much of the last script is left.
    pub fn begin(&mut self) {
        self.at = 0;
        self.strayed |= self.answering || !self.queue.is_empty();
        self.answering = false;
        self.queue.clear();
        self.pieces = 0..0;
    }

    /// Serves while `call` runs. `unasked`: first it answers what was not asked.
    pub fn during<T>(&mut self, script: &[u8], unasked: bool, call: impl FnOnce() -> T) -> T {
        self.script = script;
        self.seen.clear();
        self.fds_seen = 0;
        self.due = None;
        self.rests = 0;
        if unasked {
            self.current = Seen::default();
            self.answering = true;
            self.owed = false;
        }
        if self.manners.congested && (self.manners.closing || self.manners.helpful) {
            self.wake_after(LINGER);
        }
        self.serve();
        let (timer, due) = (self.timer, self.due);
        CURRENT.store(self, SeqCst);
        let published = Published;
        // The signal may have come before there was anybody to serve it.
        if let (Some(timer), Some(at)) = (timer, due) {
            raise_after(timer, at.saturating_duration_since(Instant::now()));
        }
        let result = call();
        drop(published);
        self.script = &[];
        result
    }

    // ---- what follows runs in the signal handler ----

    fn serve(&mut self) {
        loop {
            let mut due = match self.due {
                None => false,
                Some(at) if Instant::now() < at => false,
                Some(_) => true,
            };
            if due {
                self.due = None;
            }
            if self.manners.congested {
                if !due {
                    return;
                }
                self.manners.congested = false;
                due = false;
            }
            self.read();
            if !self.answering {
                if let Some(message) = self.queue.pop_front() {
                    let aside = std::mem::replace(&mut self.aside, Aside::NOTHING);
                    if aside.length > 0 && !self.ask(aside) {
                        self.aside = aside;
                    }
                    self.due = None;
                    self.current = message;
                    self.answering = true;
                    self.owed = message.wants_answer();
                    self.asked = self.log.len();
                    continue;
                }
                match (due, self.due) {
                    (true, _) => self.shut(libc::SHUT_RDWR),
                    (false, None) if self.manners.closing && !self.seen.is_empty() => {
                        self.wake_after(LINGER)
                    }
                    _ => {}
                }
                return;
            }
            if self.due.is_some() {
                return; // it pauses
            }
            if !self.pieces.is_empty() {
                self.next_piece();
                continue;
            }
            self.act();
        }
    }

    fn wake_after(&mut self, time: Duration) {
        self.due = Some(Instant::now() + time);
        self.raise_after(time);
    }

    fn raise_after(&self, time: Duration) {
        if let Some(timer) = self.timer {
            raise_after(timer, time);
        }
    }

    fn script(&self) -> &[u8] {
        // SAFETY: `during` set it to a slice that it borrows until it returns.
        unsafe { &*self.script }
    }

    fn byte(&mut self) -> u8 {
        let byte = self.script().get(self.at).copied().unwrap_or(0);
        self.at = self.at.saturating_add(1);
        byte
    }

    fn u16(&mut self) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// Bytes of the script into the outbox.
    fn copy(&mut self, to: usize, n: usize) {
        for place in to..to + n {
            self.outbox[place] = self.byte();
        }
    }

    fn act(&mut self) {
        if self.manners.helpful && self.at >= self.script().len() {
            if self.owed {
                self.good(self.current.code);
            }
            self.answering = false;
            return;
        }
        let byte = self.byte();
        let n = usize::from(byte >> 4);
        let kind = byte & 15;
        self.strayed |= !matches!(
            kind,
            op::END | op::GOOD | op::PIECES | op::PAUSE | op::OTHER
        );
        match kind {
            op::END => {
                self.answering = false;
                if self.owed {
                    self.put_off();
                }
                // Now rather than after a while: who waits will wait in vain.
                if self.owed && self.cut_short() {
                    if self.manners.closing {
                        self.shut(libc::SHUT_RDWR);
                    } else if self.manners.stirring {
                        self.raise_after(PAUSE);
                    }
                }
            }
            op::GOOD if self.owed => self.good(self.current.code),
            op::PAYLOAD => {
                let (size, fds) = self.make(self.current.code);
                self.copy(HEADER, size);
                self.send(0..HEADER + size, fds);
            }
            op::VALUE => {
                let value = u64::from(self.byte());
                self.header(self.current.code, 8);
                self.outbox[HEADER..HEADER + 8].copy_from_slice(&value.to_ne_bytes());
                self.send(0..HEADER + 8, 0);
            }
            op::FEW => {
                self.copy(0, n);
                self.send(0..n, 0);
            }
            op::BYTES => {
                let n = usize::from(self.byte());
                self.copy(0, n);
                self.send(0..n, 0);
            }
            op::GIFTS => {
                let fds = usize::from(self.byte()).min(GIFTS);
                self.copy(0, n);
                self.send(0..n, fds);
            }
            op::HEADER => {
                let code = self.current.code.wrapping_add(u32::from(self.byte()));
                let flags = u32::from(self.byte());
                let size = self.u16();
                self.header(code, size);
                self.outbox[4..8].copy_from_slice(&flags.to_ne_bytes());
                self.send(0..HEADER, 0);
            }
            op::SHORT => {
                self.header(self.current.code, n);
                self.copy(HEADER, n);
                self.send(0..HEADER + n, 0);
            }
            op::LONG => {
                let size = self.u16();
                let fill = self.byte();
                self.header(self.current.code, size);
                let size = size.min(OUTBOX - HEADER);
                self.outbox[HEADER..HEADER + size].fill(fill);
                self.send(0..HEADER + size, 0);
            }
            op::SPOILT => {
                let (size, fds) = self.make(self.current.code);
                let at = self.u16() % (HEADER + size);
                self.outbox[at] ^= self.byte();
                self.send(0..HEADER + size, fds);
            }
            op::PIECES if self.owed => {
                self.strayed |= !self.debts.is_empty();
                let (size, fds) = self.make(self.current.code);
                self.pieces = 0..HEADER + size;
                // Not more of them than a deadline has room for.
                self.piece = (n + 1).max(size / 8);
                self.last_gifts = fds;
                if n % 2 == 0 {
                    self.last_gifts = 0;
                    let first = 0..self.piece.min(self.pieces.end);
                    self.pieces.start = first.end;
                    self.send(first, fds);
                    self.rest();
                }
                self.owed = false;
            }
            op::WITH => {
                let (size, _) = self.make(self.current.code);
                self.send(0..HEADER + size, n);
            }
            op::PAUSE => self.rest(),
            op::HANG_UP => match n % 3 {
                0 => self.shut(libc::SHUT_RDWR),
                1 => self.shut(libc::SHUT_WR),
                _ => self.close(),
            },
            op::OTHER => {
                let code = u32::from(self.byte());
                let late = self.debts.front() == Some(&code);
                if late {
                    self.debts.pop_front();
                }
                self.strayed |= !late;
                let (size, fds) = self.make(code);
                self.send(0..HEADER + size, fds);
            }
            _ => {}
        }
    }

    /// Leaves the message without an answer, or what follows to be the rest of it.
    fn put_off(&mut self) {
        let nothing_yet = self.log.len() == self.asked;
        if nothing_yet && !self.manners.closing && self.debts.len() < QUEUE {
            self.debts.push_back(self.current.code);
        } else {
            self.strayed = true;
        }
    }

    /// Whether what it has sent since it was asked is no whole message.
    fn cut_short(&self) -> bool {
        let sent = &self.log[self.asked..];
        let size = sent
            .get(8..HEADER)
            .map(|size| u32::from_ne_bytes(size.try_into().unwrap()));
        let size = size.and_then(|size| usize::try_from(size).ok());
        size.is_none_or(|size| sent.len() - HEADER < size)
    }

    fn rest(&mut self) {
        self.paused = true;
        self.rests += 1;
        if self.rests <= RESTS {
            self.wake_after(PAUSE);
        }
    }

    fn next_piece(&mut self) {
        let end = self.pieces.end.min(self.pieces.start + self.piece);
        let piece = self.pieces.start..end;
        self.pieces.start = end;
        let fds = if self.pieces.is_empty() {
            self.last_gifts
        } else {
            0
        };
        self.send(piece, fds);
        self.rest();
    }

    fn good(&mut self, code: u32) {
        // Those before come first.
        self.strayed |= !self.debts.is_empty();
        let (size, fds) = self.make(code);
        self.send(0..HEADER + size, fds);
        self.owed = false;
    }

    fn header(&mut self, code: u32, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let header = [code, 5, size];
        for (place, word) in self.outbox.chunks_exact_mut(4).zip(header) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// A good answer into the outbox: the size of its payload, and how many
    /// descriptors come with it.
    fn make(&mut self, code: u32) -> (usize, usize) {
        let head = self.current.head;
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| head[at + byte]));
        let size = match code {
            6 => 16,
            26 => 1072,
            28 | 41 => 0,
            31 => 24,
            44 => 2056,
            24 => HEADER + usize::try_from(word(4)).unwrap_or(0).min(256),
            _ => 8,
        };
        self.header(code, size);
        let payload = &mut self.outbox[HEADER..HEADER + size];
        payload.fill(0);
        let mut put = |at: usize, number: u64| {
            payload[at..at + 8].copy_from_slice(&number.to_ne_bytes());
        };
        match code {
            1 => put(0, FEATURES),
            11 | 45 => put(0, u64::from(word(0)) | 0x1234 << 32),
            15 => put(0, u64::MAX),
            17 => put(0, 2),
            36 => put(0, 509),
            24 => {
                payload.fill(0x5a);
                payload[..HEADER].copy_from_slice(&head[..HEADER]);
            }
            31 => {
                payload.copy_from_slice(&head);
                payload[..8].copy_from_slice(&0x3000_u64.to_ne_bytes());
                return (size, 1);
            }
            26 => put(1064, 7),
            28 | 41 => return (size, 1),
            40 => put(0, 0xf),
            42 => put(0, 0x100),
            44 => {
                put(0, 1);
                put(16, 0x1000);
            }
            _ => {}
        }
        (size, 0)
    }

    /// One `sendmsg` of bytes of the outbox.
    fn send(&mut self, bytes: Range<usize>, fds: usize) {
        let full = self.log.len() + bytes.len() > LOG || self.gifts.len() == GIFTS;
        if self.socket == -1 || bytes.is_empty() || full {
            self.strayed = true;
            return;
        }
        let numbers = [self.gift; GIFTS];
        match send_now(self.socket, &self.outbox[bytes.clone()], &numbers[..fds]) {
            Ok(sent) => {
                self.strayed |= sent < bytes.len();
                let from = self.log.len();
                let sent = bytes.start..bytes.start + sent;
                self.log.extend_from_slice(&self.outbox[sent]);
                if fds > 0 {
                    let bytes = from..self.log.len();
                    self.gifts.push(Gift { bytes, fds });
                }
            }
            Err(_) => self.strayed = true,
        }
    }

    fn read(&mut self) {
        while self.socket != -1 {
            let mut given = -1;
            let room = &mut self.inbox[self.have..];
            let Some((bytes, fds)) = receive_now(self.socket, room, &mut given) else {
                return;
            };
            if given != -1 && self.channel == -1 && self.keeps_channel {
                self.channel = given;
            } else if given != -1 {
                // SAFETY: it is ours, and nobody else has it.
                unsafe { libc::close(given) };
            }
            self.fds_seen += fds;
            self.have += bytes;
            let filler = self.filler.min(self.have);
            self.filler -= filler;
            self.forget(filler);
            while let Some(message) = self.message() {
                if self.seen.len() < QUEUE {
                    self.seen.push(message);
                }
                if self.queue.len() < QUEUE {
                    self.queue.push_back(message);
                }
            }
        }
    }

    /// A whole message from the inbox.
    fn message(&mut self) -> Option<Seen> {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| self.inbox[at + byte]));
        if self.have < HEADER {
            return None;
        }
        let size = usize::try_from(word(8)).ok()?;
        let whole = size.checked_add(HEADER).filter(|n| *n <= self.have)?;
        let mut message = Seen {
            code: word(0),
            flags: word(4),
            head: [0; 24],
        };
        let n = size.min(message.head.len());
        message.head[..n].copy_from_slice(&self.inbox[HEADER..HEADER + n]);
        self.forget(whole);
        Some(message)
    }

    fn forget(&mut self, n: usize) {
        self.inbox.copy_within(n..self.have, 0);
        self.have -= n;
    }

    fn shut(&mut self, how: libc::c_int) {
        self.hung_up = true;
        self.strayed = true;
        // SAFETY: it takes no pointer.
        unsafe { libc::shutdown(self.socket, how) };
    }

    fn close(&mut self) {
        if self.socket != -1 {
            self.hung_up = true;
            // SAFETY: it is ours, and not used any more.
            unsafe { libc::close(self.socket) };
            self.socket = -1;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// What a good peer offers: PACKED, ACCESS_PLATFORM, VERSION_1, protocol features,
/// LOG_ALL, a network device's MTU.
pub const FEATURES: u64 = 1 << 34 | 1 << 33 | 1 << 32 | 1 << 30 | 1 << 26 | 1 << 3;

// ---- system calls, without the heap ----

#[repr(C, align(8))]
struct Control([u8; 16 + GIFTS * 4 + 4]);

/// A message header for these.
fn message_header(part: &mut libc::iovec, control: &mut Control, length: usize) -> libc::msghdr {
    // SAFETY: all zeros are a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    if length > 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = length;
    }
    header
}

fn send_now(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let mut control = Control([0; 16 + GIFTS * 4 + 4]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let length = size_of_val(fds);
    // CMSG_SPACE: the header is 16 bytes, and all is rounded up to 8.
    let space = (16 + length).next_multiple_of(8) * usize::from(length > 0);
    let header = message_header(&mut part, &mut control, space);
    if length > 0 {
        // SAFETY: the control buffer has room for a header.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: it is not null, as there is room.
        let cmsg = unsafe { &mut *first };
        cmsg.cmsg_level = libc::SOL_SOCKET;
        cmsg.cmsg_type = libc::SCM_RIGHTS;
        cmsg.cmsg_len = 16 + length;
        // SAFETY: the header lies in the control buffer.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: the buffer has room for as many as GIFTS.
        unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, length) };
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header points to what lives until after the call.
    let sent = unsafe { libc::sendmsg(socket, &raw const header, flags) };
    Errno::result(sent).map(|sent| usize::try_from(sent).unwrap_or(0))
}

/// Bytes, and how many descriptors came with them, which are closed but for the
/// first one; nothing if there is nothing.
fn receive_now(socket: RawFd, room: &mut [u8], first_fd: &mut RawFd) -> Option<(usize, usize)> {
    let mut control = Control([0; 16 + GIFTS * 4 + 4]);
    let mut part = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    let length = control.0.len();
    let mut header = message_header(&mut part, &mut control, length);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header points to what lives until after the call.
    let received = unsafe { libc::recvmsg(socket, &raw mut header, flags) };
    let bytes = usize::try_from(received).ok().filter(|n| *n > 0)?;
    let mut fds = 0;
    // SAFETY: the kernel filled the header in.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: null, or a header within the control buffer; there is only one.
    if let Some(cmsg) = unsafe { first.as_ref() } {
        fds = (cmsg.cmsg_len - 16) / size_of::<RawFd>();
        // SAFETY: the header lies in the control buffer.
        let data = unsafe { libc::CMSG_DATA(first) }.cast::<RawFd>();
        for at in 0..fds {
            // SAFETY: the kernel wrote that many there.
            let at = unsafe { data.add(at) };
            // SAFETY: in bounds, as above.
            let fd = unsafe { at.read_unaligned() };
            if *first_fd == -1 {
                *first_fd = fd;
                continue;
            }
            // SAFETY: it was just made for us.
            unsafe { libc::close(fd) };
        }
    }
    Some((bytes, fds))
}

// ---- signals ----

fn install_handler() {
    // SAFETY: all zeros are a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    #[allow(clippy::as_conversions, reason = "there is no other way to the number")]
    let handler = on_signal as *const () as libc::sighandler_t;
    action.sa_sigaction = handler;
    // SAFETY: the struct outlives the call, and the handler is safe in a signal.
    let result = unsafe { libc::sigaction(libc::SIGIO, &raw const action, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

fn this_thread() -> libc::pid_t {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Has SIGIO raised in this thread when something arrives.
fn signal_this_thread(socket: RawFd) {
    /// `struct f_owner_ex`, which the libc crate lacks.
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        id: libc::pid_t,
    }
    const F_SETOWN_EX: libc::c_int = 15;
    let owner = Owner {
        kind: 0, // F_OWNER_TID
        id: this_thread(),
    };
    // SAFETY: the struct is what the kernel expects and outlives the call.
    let result = unsafe { libc::fcntl(socket, F_SETOWN_EX, &raw const owner) };
    assert_eq!(result, 0);
    let flags = libc::O_ASYNC | libc::O_NONBLOCK;
    // SAFETY: it takes a number.
    let result = unsafe { libc::fcntl(socket, libc::F_SETFL, flags) };
    assert_eq!(result, 0);
}

/// Sets the timer, to a little later than that, so that what waits is due then.
fn raise_after(timer: libc::timer_t, time: Duration) {
    let time = time + Duration::from_micros(5);
    let at = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: 0,
            tv_nsec: libc::c_long::from(time.subsec_nanos()),
        },
    };
    // SAFETY: the timer has not been deleted; the struct outlives the call.
    unsafe { libc::timer_settime(timer, 0, &raw const at, std::ptr::null_mut()) };
}

/// A timer that raises SIGIO in this thread.
fn new_timer() -> libc::timer_t {
    // SAFETY: all zeros are a valid sigevent.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = libc::SIGIO;
    event.sigev_notify_thread_id = this_thread();
    let mut timer = MaybeUninit::uninit();
    // SAFETY: both outlive the call, which fills in the timer.
    let result =
        unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()) };
    assert_eq!(result, 0);
    // SAFETY: filled in.
    unsafe { timer.assume_init() }
}
