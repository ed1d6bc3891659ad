//! How a device gets a connection, and gets one again after each loss: a state
//! machine that never waits. Time comes in as an argument.
//!
//! It hands out a connection and does not look at it any more. The caller reports
//! what becomes of it: [`works`](Link::works) says that the back-end has reached the
//! desired state, and [`failed`](Link::failed) that the connection is lost. The
//! delays after losses grow until a back-end has worked for a while: one that
//! crashes right after the handshake, or at the first request behind it, must not be
//! retried as if it were healthy. Nothing is ever given up.

#![forbid(unsafe_code)]

mod arrival;
#[cfg(test)]
mod tests;

use self::arrival::Arrival;
use crate::error::{Error, Kind, Phase, Result};
use crate::programs::BackendProcess;
use crate::socket::{self, Exit, Listener, Role, Watch};
use nix::errno::Errno;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

/// How a back-end is reached. A path that begins with a NUL byte is the name of
/// an abstract socket; one of any length is good, as long as its last part is not
/// much longer than 80 bytes.
#[derive(Debug)]
pub enum Peer {
    /// It listens at this path, now or later.
    Path(PathBuf),
    /// It connects to this path, where we listen. The file gets these permissions.
    Listen {
        /// Where.
        path: PathBuf,
        /// As chmod() takes them.
        mode: u32,
    },
    /// Somebody else connects, and supplies the socket.
    Fd,
}

/// How long to wait between two attempts. There is no last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// After the first that fails, or the first loss.
    pub first_delay: Duration,
    /// Each is twice the one before, but not more than this.
    pub max_delay: Duration,
    /// How much of a delay chance may take away, so that devices that lost one
    /// back-end do not all come back to it at once.
    pub jitter_percent: u8,
    /// After a refusal: it will hardly think better of it soon.
    pub slow_delay: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            jitter_percent: 25,
            slow_delay: Duration::from_secs(30),
        }
    }
}

impl Policy {
    fn check(&self) -> Result<()> {
        let wrong = if self.first_delay.is_zero() || self.slow_delay.is_zero() {
            "a delay between two attempts is zero"
        } else if self.max_delay < self.first_delay {
            "the maximum delay is shorter than the first"
        } else if self.jitter_percent > 100 {
            "the jitter is more than 100 percent"
        } else {
            return Ok(());
        };
        Err(Error::invalid(wrong))
    }
}

/// What a step brought.
#[derive(Debug)]
pub(crate) enum Happened {
    /// Here is a connection: blocking, close-on-exec, and nothing sent yet.
    Connected(OwnedFd),
    /// So many attempts have failed in a row; the next comes after the delay.
    Retrying {
        attempt: u32,
        error: Error,
        delay: Duration,
    },
    /// Nothing goes on until a socket is supplied. Said once.
    NeedsFd,
    /// So many further peers wanted to connect while one is in use, and were
    /// turned away.
    Refused { peers: u32 },
}

/// A process at the other end that was started here. Whoever did so has it: when they
/// let go of it, it ends.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Its number, also when it is gone.
    pub(crate) pid: i32,
    started: Weak<BackendProcess>,
}

impl Process {
    pub(crate) fn of(process: &Arc<BackendProcess>) -> Self {
        Self {
            pid: process.pid(),
            started: Arc::downgrade(process),
        }
    }

    /// Whether the caller still has it, so that its exit status can be known.
    pub(crate) fn is_held(&self) -> bool {
        self.started.strong_count() > 0
    }

    /// How it has ended, if it has and that can be known.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.started.upgrade()?.exit().ok()?
    }

    /// Kills it without waiting, if it is still there. Whether that could be done.
    pub(crate) fn kill(&self) -> bool {
        let killed = |process: Arc<BackendProcess>| process.signal(libc::SIGKILL).is_ok();
        self.started.upgrade().is_some_and(killed)
    }
}

/// Where connections come from.
#[derive(Debug)]
enum Source {
    Path(PathBuf),
    Listener(Listener),
    Supplied(Option<(OwnedFd, Option<Process>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None is wanted.
    Idle,
    /// One is wanted, but not before this.
    Later(Instant),
    /// A peer, or whoever supplies sockets, has to act.
    Waiting,
    /// The one that was handed out is in use. Others are turned away, until that
    /// fails: then again from this time on.
    InUse { deaf_until: Option<Instant> },
}

#[derive(Debug)]
pub(crate) struct Link {
    source: Source,
    policy: Policy,
    state: State,
    /// How many connections were lost, or could not be used, since one worked for a
    /// while.
    losses: u32,
    /// How many attempts to reach a back-end have failed since there was a
    /// connection.
    misses: u32,
    /// When the back-end reached the desired state on this connection.
    works_since: Option<Instant>,
    /// The last attempt found nobody at the path: its socket is looked for.
    arrival: Option<Arrival>,
    /// Of the connection that was handed out last.
    process: Option<Process>,
    chance: Chance,
}

/// A back-end that has been in the desired state for the longest delay between two
/// attempts, but for no more than this, is healthy: its next loss is a first one.
const STEADY: Duration = Duration::from_secs(10);
/// The first delay where a listener has no room: it may have at any moment.
const NO_ROOM: Duration = Duration::from_millis(10);
/// How many peers one step turns away.
const TURNED_AWAY: u32 = 8;
/// How long peers that cannot even be turned away are left alone.
const DEAF: Duration = Duration::from_secs(1);

impl Link {
    /// Idle at first; but whoever listens does from now on.
    pub(crate) fn new(peer: Peer, policy: Policy) -> Result<Self> {
        // Different for each device, also for those of virtual machines that
        // were started together. No randomness of the system is worth a call.
        let mut seed = DefaultHasher::new();
        SystemTime::now().hash(&mut seed);
        std::process::id().hash(&mut seed);
        Self::with_seed(peer, policy, seed.finish())
    }

    fn with_seed(peer: Peer, policy: Policy, seed: u64) -> Result<Self> {
        policy.check()?;
        let source = match peer {
            Peer::Path(path) => {
                socket::check_path(&path).map_err(|errno| unreachable_path(&path, errno))?;
                Source::Path(socket::absolute(path))
            }
            Peer::Listen { path, mode } => Source::Listener(Listener::new(&path, mode)?),
            Peer::Fd => Source::Supplied(None),
        };
        Ok(Self {
            source,
            policy,
            state: State::Idle,
            losses: 0,
            misses: 0,
            works_since: None,
            arrival: None,
            process: None,
            chance: Chance(seed),
        })
    }

    // ---- what is wanted ----

    /// A connection is wanted now, however long the next attempt was put off. One
    /// that is in use is kept.
    pub(crate) fn begin(&mut self, now: Instant) {
        if matches!(self.state, State::Idle | State::Later(_)) {
            (self.losses, self.misses) = (0, 0);
            self.state = State::Later(now);
        }
    }

    /// None is wanted any more. Peers that connect meanwhile wait in the queue.
    pub(crate) fn stop(&mut self) {
        self.state = State::Idle;
    }

    /// Whether sockets are supplied at all.
    pub(crate) fn check_source(&self) -> Result<()> {
        match &self.source {
            Source::Supplied(_) => Ok(()),
            _ => {
                let text = "the device connects by itself; no socket can be supplied";
                Err(Error::new(Kind::State, text))
            }
        }
    }

    /// Whether a socket could be [supplied](Self::supply).
    pub(crate) fn check_supplied(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.check_source()?;
        socket::check(fd, Role::Connected)
    }

    /// Here is a connected socket, also before it is asked for: it is used after
    /// the next loss. Of several the last counts. Refused, it is closed, so use
    /// [`check_supplied`](Self::check_supplied) first if it should not be.
    pub(crate) fn supply(
        &mut self,
        fd: OwnedFd,
        process: Option<Process>,
        now: Instant,
    ) -> Result<()> {
        self.check_supplied(fd.as_fd())?;
        let fd = socket::above_standard(fd)
            .and_then(|fd| socket::set_close_on_exec(fd.as_fd()).map(|()| fd))
            .map_err(|errno| Error::os(errno, "cannot prepare the socket"))?;
        self.source = Source::Supplied(Some((fd, process)));
        if self.state == State::Waiting {
            self.state = State::Later(now);
        }
        Ok(())
    }

    /// Who is at the other end of the connection that was handed out last; told once.
    pub(crate) fn take_process(&mut self) -> Option<Process> {
        self.process.take()
    }

    // ---- what became of a connection ----

    /// The back-end is in the desired state. Once that was so for a [while](STEADY),
    /// the next loss is a first one again.
    pub(crate) fn works(&mut self, now: Instant) {
        self.works_since.get_or_insert(now);
    }

    /// The connection is over.
    pub(crate) fn works_no_longer(&mut self, now: Instant) {
        let steady = self.policy.max_delay.min(STEADY);
        let lasted = |since| now.saturating_duration_since(since);
        if self.works_since.take().map(lasted) >= Some(steady) {
            self.losses = 0;
        }
    }

    /// The connection was lost, or the back-end refused what the device needs.
    /// Another is wanted, and tried for after this delay; `None` where sockets are
    /// supplied.
    ///
    /// While the old back-end is fenced off, [`stop`](Self::stop) keeps new ones
    /// waiting; this ends that.
    pub(crate) fn failed(&mut self, now: Instant, refused: bool) -> Option<Duration> {
        self.works_no_longer(now);
        if matches!(self.source, Source::Supplied(_)) {
            self.state = State::Later(now);
            return None;
        }
        let doublings = self.losses;
        self.losses = self.losses.saturating_add(1);
        Some(match refused {
            true => self.put_off(now, self.policy.slow_delay),
            false => self.put_off(now, self.delay(self.policy.first_delay, doublings)),
        })
    }

    /// How many attempts have failed in a row.
    pub(crate) fn attempt(&self) -> u32 {
        self.losses.saturating_add(self.misses)
    }

    /// How many attempts to reach a back-end have failed since there was a connection.
    pub(crate) fn misses(&self) -> u32 {
        self.misses
    }

    /// What has to happen before there is a connection, where nothing has failed.
    pub(crate) fn awaited(&self) -> String {
        match &self.source {
            Source::Path(path) => {
                let path = socket::shown(path);
                format!("no attempt to connect to {path} was made yet")
            }
            Source::Listener(listener) => {
                let path = socket::shown(listener.path());
                format!("no back-end has connected to {path}")
            }
            Source::Supplied(_) => "no connected socket was supplied".into(),
        }
    }

    // ---- being driven ----

    /// Does what can be done now, without waiting. `current` is the connection
    /// that was handed out, if it is still held: when its peer is gone nobody is
    /// turned away for its sake, and the next in the queue gets its turn after
    /// [`failed`](Self::failed).
    pub(crate) fn step(
        &mut self,
        now: Instant,
        current: Option<BorrowedFd<'_>>,
    ) -> Option<Happened> {
        match self.state {
            State::Idle => None,
            State::Later(at) if at > now => self.look(now),
            State::Later(_) | State::Waiting => self.look_for_one(now),
            State::InUse { deaf_until } if deaf_until.is_some_and(|until| until > now) => None,
            State::InUse { .. } => self.turn_away(now, current),
        }
    }

    /// When [`step`](Self::step) has something to do because of the time.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Later(at) => {
                let look = self.arrival.as_ref().and_then(Arrival::due);
                Some(look.map_or(at, |look| look.min(at)))
            }
            State::InUse { deaf_until } => deaf_until,
            State::Idle | State::Waiting => None,
        }
    }

    /// The listening socket, or what shows that one appears. Nothing is wanted of the
    /// first at times: then peers that wait must not keep the event loop awake.
    pub(crate) fn watch(&self) -> Option<Watch<'_>> {
        let Source::Listener(listener) = &self.source else {
            return self.arrival.as_ref()?.watch();
        };
        let read = matches!(
            self.state,
            State::Waiting | State::InUse { deaf_until: None }
        );
        Some(Watch {
            fd: listener.fd(),
            read,
            write: false,
            end: false,
        })
    }

    /// What showed that a socket appears, once there is a connection. The caller has to
    /// stop watching it.
    pub(crate) fn take_arrival(&mut self) -> Option<impl AsFd> {
        match self.state {
            State::InUse { .. } => self.arrival.take()?.into_fd(),
            _ => None,
        }
    }

    /// Looks for a socket before it is time for the next attempt, if it may have
    /// appeared.
    fn look(&mut self, now: Instant) -> Option<Happened> {
        let (Some(arrival), Source::Path(path)) = (&mut self.arrival, &self.source) else {
            return None;
        };
        if !arrival.looks(path, now) {
            return None;
        }
        let fd = socket::try_connect(path).ok()?;
        Some(self.use_it(fd))
    }

    fn use_it(&mut self, fd: OwnedFd) -> Happened {
        self.state = State::InUse { deaf_until: None };
        self.misses = 0;
        Happened::Connected(fd)
    }

    fn look_for_one(&mut self, now: Instant) -> Option<Happened> {
        let mut first_delay = self.policy.first_delay;
        let found = match &mut self.source {
            Source::Path(path) => reach(path, &mut self.arrival, now)
                .map(Some)
                .map_err(|errno| {
                    if matches!(errno, Errno::EAGAIN | Errno::EINTR) {
                        first_delay = first_delay.min(NO_ROOM);
                    }
                    unreachable_path(path, errno)
                }),
            Source::Listener(listener) => listener
                .accept()
                .map_err(|errno| Error::os(errno, "cannot accept a connection")),
            Source::Supplied(supplied) => Ok(supplied.take().map(|(fd, process)| {
                self.process = process;
                fd
            })),
        };
        match found {
            Ok(Some(fd)) => Some(self.use_it(fd)),
            Ok(None) => {
                let before = std::mem::replace(&mut self.state, State::Waiting);
                let unsaid = matches!(self.source, Source::Supplied(_)) && before != State::Waiting;
                unsaid.then_some(Happened::NeedsFd)
            }
            Err(error) => {
                let delay = self.delay(first_delay, self.attempt());
                self.misses = self.misses.saturating_add(1);
                Some(Happened::Retrying {
                    delay: self.put_off(now, delay),
                    attempt: self.attempt(),
                    error: error.during(Phase::Connect),
                })
            }
        }
    }

    /// Closes the connections of further peers: left in the queue they would wait
    /// for a first answer without knowing why.
    fn turn_away(&mut self, now: Instant, current: Option<BorrowedFd<'_>>) -> Option<Happened> {
        let Source::Listener(listener) = &self.source else {
            return None;
        };
        if current.is_some_and(socket::peer_is_gone) {
            return None;
        }
        let mut peers: u32 = 0;
        let mut deaf_until = None;
        while peers < TURNED_AWAY {
            match listener.accept() {
                Ok(Some(_closed)) => peers = peers.saturating_add(1),
                Ok(None) => break,
                // No descriptor is free, most likely. The peer stays in the queue
                // and the socket readable.
                Err(_) => {
                    deaf_until = now.checked_add(DEAF);
                    break;
                }
            }
        }
        self.state = State::InUse { deaf_until };
        (peers > 0).then_some(Happened::Refused { peers })
    }

    /// The delay after this number of failures in a row.
    fn delay(&self, first: Duration, doublings: u32) -> Duration {
        let longer = first.saturating_mul(2_u32.saturating_pow(doublings));
        longer.min(self.policy.max_delay)
    }

    /// Puts the next attempt off for this time, shortened by chance.
    fn put_off(&mut self, now: Instant, delay: Duration) -> Duration {
        let delay = self.chance.shorten(delay, self.policy.jitter_percent);
        // A time beyond what the clock can hold never comes.
        self.state = now.checked_add(delay).map_or(State::Idle, State::Later);
        delay
    }
}

/// Tries to connect. From the first failure on it is noticed when a socket appears.
fn reach(path: &Path, arrival: &mut Option<Arrival>, now: Instant) -> nix::Result<OwnedFd> {
    socket::try_connect(path).or_else(|errno| {
        // Somebody listens, and is busy.
        if arrival.is_some() || matches!(errno, Errno::EAGAIN | Errno::EINTR) {
            return Err(errno);
        }
        let watched = arrival.insert(Arrival::at(path, now)).is_watched();
        // It may have appeared before it was watched for.
        match watched {
            true => socket::try_connect(path),
            false => Err(errno),
        }
    })
}

fn unreachable_path(path: &Path, errno: Errno) -> Error {
    let why = match errno {
        Errno::EAGAIN => " (its backlog is full, is it in use?)",
        _ => "",
    };
    let what = format!("cannot connect to {}{why}", socket::shown(path));
    Error::os(errno, what).during(Phase::Connect)
}

/// Numbers that differ from device to device, which is all that is asked of them
/// (SplitMix64).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Takes away between nothing and so many percent.
    fn shorten(&mut self, delay: Duration, percent: u8) -> Duration {
        let whole = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let most = whole.saturating_mul(u64::from(percent)) / 100;
        let taken = self.next().checked_rem(most.saturating_add(1));
        delay.saturating_sub(Duration::from_micros(taken.unwrap_or_default()))
    }
}
