#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::super::testing::{PATIENCE, Place};
use super::*;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockname, listen,
};
use nix::sys::stat::{Mode, umask};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

const MS: Duration = Duration::from_millis(1);

/// No chance in it.
const PLAIN: Policy = Policy {
    first_delay: Duration::from_millis(100),
    max_delay: Duration::from_millis(1000),
    jitter_percent: 0,
    slow_delay: Duration::from_secs(30),
};

fn link(peer: Peer) -> Link {
    Link::with_seed(peer, PLAIN, 1).unwrap()
}

fn to_path(path: &Path, now: Instant) -> Link {
    let mut link = link(Peer::Path(path.to_owned()));
    link.begin(now);
    link
}

fn listening(path: &Path, mode: u32) -> Result<Link> {
    let path = path.to_owned();
    Link::with_seed(Peer::Listen { path, mode }, PLAIN, 1)
}

/// Errno, attempt and delay of one that failed.
fn retrying(happened: Option<Happened>) -> (Errno, u32, Duration) {
    match happened {
        Some(Happened::Retrying {
            attempt,
            error,
            delay,
        }) => {
            assert_eq!(error.phase, Phase::Connect);
            (Errno::from_raw(error.errno()), attempt, delay)
        }
        other => panic!("not retrying: {other:?}"),
    }
}

fn connected(happened: Option<Happened>) -> UnixStream {
    match happened {
        Some(Happened::Connected(fd)) => UnixStream::from(fd),
        other => panic!("not connected: {other:?}"),
    }
}

fn refused(happened: Option<Happened>) -> u32 {
    match happened {
        Some(Happened::Refused { peers }) => peers,
        other => panic!("nobody was refused: {other:?}"),
    }
}

/// That two are ends of one connection, and that it blocks.
fn assert_linked(mut one: &UnixStream, mut other: &UnixStream) {
    for (number, (from, to)) in [(&mut one, &mut other)].into_iter().enumerate() {
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = [u8::try_from(number).unwrap() + 7];
        from.write_all(&sent).unwrap();
        let mut got = [0];
        to.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
    }
    for end in [one, other] {
        let flags = nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        let flags = nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}

fn wants_peers(link: &Link) -> bool {
    link.watch().unwrap().read
}

/// Ends of stream read within the patience mean that it was turned away.
fn assert_turned_away(mut peer: UnixStream) {
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}

fn bound(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let kind = SockType::Stream;
    let fd = nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    fd
}

// ---- to a path ----

#[test]
fn a_socket_that_is_not_there_yet_is_waited_for() {
    let place = Place::new("not-yet");
    let mut now = Instant::now();
    let mut link = link(Peer::Path(place.socket()));
    assert!(link.step(now, None).is_none(), "nothing is wanted yet");
    assert_eq!(link.due(), None);
    assert!(link.watch().is_none());
    link.begin(now);
    assert_eq!(link.due(), Some(now));
    for (attempt, delay) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (6, 1000)] {
        let expected = (Errno::ENOENT, attempt, delay * MS);
        assert_eq!(retrying(link.step(now, None)), expected);
        assert_eq!(link.attempt(), attempt);
        let due = now + delay * MS;
        assert_eq!(link.due(), Some(due));
        assert!(link.step(due - MS, None).is_none(), "too early");
        now = due;
    }
    let listener = UnixListener::bind(place.socket()).unwrap();
    let ours = connected(link.step(now, None));
    assert_linked(&ours, &listener.accept().unwrap().0);
    assert_eq!(link.due(), None);
    assert!(link.step(now, Some(ours.as_fd())).is_none());
}

#[test]
fn a_listener_may_die_and_come_back() {
    let place = Place::new("comes-back");
    let now = Instant::now();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let mut link = to_path(&place.socket(), now);
    let first = connected(link.step(now, None));
    drop((first, listener));
    // Its file is still there.
    assert_eq!(link.failed(now, false), Some(100 * MS));
    assert!(link.step(now + 99 * MS, None).is_none());
    let now = now + 100 * MS;
    let expected = (Errno::ECONNREFUSED, 2, 200 * MS);
    assert_eq!(retrying(link.step(now, None)), expected);
    std::fs::remove_file(place.socket()).unwrap();
    let now = now + 200 * MS;
    let expected = (Errno::ENOENT, 3, 400 * MS);
    assert_eq!(retrying(link.step(now, None)), expected);
    let listener = UnixListener::bind(place.socket()).unwrap();
    let ours = connected(link.step(now + 400 * MS, None));
    assert_linked(&ours, &listener.accept().unwrap().0);
}

#[test]
fn a_full_backlog_is_tried_again_soon() {
    let place = Place::new("full");
    let now = Instant::now();
    let listener = bound(&place.socket());
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let waits = UnixStream::connect(place.socket()).unwrap();
    let mut link = to_path(&place.socket(), now);
    let begin = Instant::now();
    let expected = (Errno::EAGAIN, 1, 10 * MS);
    assert_eq!(retrying(link.step(now, None)), expected);
    let expected = (Errno::EAGAIN, 2, 20 * MS);
    assert_eq!(retrying(link.step(now + 10 * MS, None)), expected);
    assert!(begin.elapsed() < PATIENCE);
    let listener = UnixListener::from(listener);
    drop((listener.accept().unwrap(), waits));
    let ours = connected(link.step(now + 30 * MS, None));
    assert_linked(&ours, &listener.accept().unwrap().0);
}

#[test]
fn a_path_of_any_length_is_good_and_a_name_is_not() {
    let place = Place::new("long");
    let now = Instant::now();
    let mut directory = place.path().to_owned();
    while directory.as_os_str().len() < 200 {
        directory.push("d".repeat(60));
    }
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let mut client = to_path(&path, now);
    let mut server = listening(&path, 0o600).unwrap();
    server.begin(now);
    let theirs = connected(client.step(now, None));
    assert_linked(&connected(server.step(now, None)), &theirs);
    // A socket that was left there is found by the same way.
    drop(server);
    assert!(!path.exists());
    assert_eq!(client.failed(now, false), Some(100 * MS));
    let late = now + PATIENCE;
    assert_eq!(retrying(client.step(late, None)).0, Errno::ENOENT);
    std::fs::remove_dir_all(&directory).unwrap();
    let late = late + PATIENCE;
    assert_eq!(retrying(client.step(late, None)).0, Errno::ENOENT);

    for (path, errno) in [
        (directory.join("n".repeat(100)), Errno::ENAMETOOLONG),
        (
            PathBuf::from(format!("\0{}", "n".repeat(108))),
            Errno::ENAMETOOLONG,
        ),
        (PathBuf::from("in\0side"), Errno::EINVAL),
        (PathBuf::new(), Errno::EINVAL),
    ] {
        let connecting = Link::new(Peer::Path(path.clone()), PLAIN).unwrap_err();
        assert_eq!(Errno::from_raw(connecting.errno()), errno, "{path:?}");
        let listening = listening(&path, 0o600).unwrap_err();
        assert_eq!(Errno::from_raw(listening.errno()), errno, "{path:?}");
    }
}

#[test]
fn abstract_sockets_have_no_file() {
    let _place = Place::new("abstract");
    let now = Instant::now();
    let name = format!("vuf-device {}", std::process::id());
    let path = PathBuf::from(format!("\0{name}"));
    let mut client = to_path(&path, now);
    let refused = client.step(now, None);
    let Some(Happened::Retrying { error, .. }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(error.message.contains(&format!("@{name}")), "{error}");
    assert_eq!(retrying(refused).0, Errno::ECONNREFUSED);
    let mut server = listening(&path, 0o600).unwrap();
    let error = listening(&path, 0o600).unwrap_err();
    assert_eq!(Errno::from_raw(error.errno()), Errno::EADDRINUSE);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    drop(UnixStream::connect_addr(&address).unwrap());
    server.begin(now);
    drop(connected(server.step(now, None)));
    server.failed(now, false);
    let later = now + PATIENCE;
    let theirs = connected(client.step(later, None));
    assert_linked(&connected(server.step(later, None)), &theirs);
}

#[test]
fn who_the_peer_is_can_be_asked() {
    let place = Place::new("credentials");
    let now = Instant::now();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let mut link = to_path(&place.socket(), now);
    let ours = connected(link.step(now, None));
    let peer = socket::peer_credentials(ours.as_fd()).unwrap();
    assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
    let file = std::fs::metadata(place.socket()).unwrap();
    assert_eq!((peer.uid, peer.gid), (file.uid(), file.gid()));
    let no_socket = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(socket::peer_credentials(no_socket.as_fd()), None);
    drop(listener);
}

// ---- the socket appears ----

/// A link that has found nobody at this path, and the time of that.
fn waiting_for(path: &Path) -> (Link, Instant) {
    let now = Instant::now();
    let far = Policy {
        first_delay: Duration::from_secs(3600),
        max_delay: Duration::from_secs(3600),
        ..PLAIN
    };
    let mut link = Link::with_seed(Peer::Path(path.to_owned()), far, 1).unwrap();
    link.begin(now);
    assert_eq!(retrying(link.step(now, None)).1, 1);
    (link, now)
}

/// Whether the descriptor that the link has watched is readable.
fn is_roused(link: &Link) -> bool {
    let watch = link.watch().unwrap();
    let now = socket::Deadline::after(Some(Duration::ZERO));
    let [ready] = socket::wait([watch], now).unwrap();
    watch.read && ready.readable
}

#[test]
fn socket_that_appears_is_connected_to_at_once() {
    let place = Place::new("appears");
    let (mut link, now) = waiting_for(&place.socket());
    assert_eq!(link.due(), Some(now + Duration::from_secs(3600)));
    assert!(!is_roused(&link));
    assert!(link.step(now + PATIENCE, None).is_none());
    let listener = UnixListener::bind(place.socket()).unwrap();
    assert!(is_roused(&link));
    let ours = connected(link.step(now + 10 * MS, None));
    assert_linked(&ours, &listener.accept().unwrap().0);
    assert_eq!(link.attempt(), 0);
    // No descriptor is kept while there is a connection.
    assert!(link.take_arrival().is_some());
    assert!(link.watch().is_none());
    assert!(link.take_arrival().is_none());
    // A loss is no absence: its delay stands, whatever appears.
    drop((ours, listener));
    std::fs::remove_file(place.socket()).unwrap();
    link.failed(now, false);
    let _listener = UnixListener::bind(place.socket()).unwrap();
    assert!(link.step(now + PATIENCE, None).is_none());
    assert!(link.watch().is_none());
}

#[test]
fn socket_that_is_named_before_it_listens_is_looked_at_again() {
    let place = Place::new("bound-first");
    let (mut link, now) = waiting_for(&place.socket());
    let socket = bound(&place.socket());
    assert!(is_roused(&link));
    let (mut now, end) = (now + 10 * MS, now + 600 * MS);
    let mut looks = 0;
    while now < end {
        assert!(link.step(now, None).is_none());
        looks += 1;
        now = link.due().unwrap();
    }
    assert!((5..=8).contains(&looks), "{looks}");
    listen(&socket, Backlog::new(4).unwrap()).unwrap();
    drop(connected(link.step(now, None)));
    assert_eq!(link.attempt(), 0);
}

#[test]
fn looks_end_where_nobody_listens() {
    let place = Place::new("nobody");
    let (mut link, begin) = waiting_for(&place.socket());
    let _socket = bound(&place.socket());
    let mut now = begin;
    for _ in 0..20 {
        now += 100 * MS;
        assert!(link.step(now, None).is_none());
    }
    assert_eq!(link.due(), Some(begin + Duration::from_secs(3600)));
    assert_eq!(link.attempt(), 1, "looks do not count");
}

#[test]
fn directories_of_the_socket_may_come_and_go() {
    let place = Place::new("directories");
    let (one, two) = (place.path().join("one"), place.path().join("one/two"));
    let path = two.join("socket");
    let (mut link, mut now) = waiting_for(&path);
    let mut look = |link: &mut Link, what: &str| {
        assert!(is_roused(link), "{what}");
        now += 2000 * MS;
        let found = link.step(now, None);
        // What is left of the event before.
        if found.is_none() {
            now += 2000 * MS;
            assert!(link.step(now, None).is_none(), "{what}");
            assert!(!is_roused(link), "{what}");
        }
        found
    };
    for round in 0..3 {
        std::fs::create_dir(&one).unwrap();
        assert!(look(&mut link, "one").is_none());
        std::fs::create_dir(&two).unwrap();
        assert!(look(&mut link, "two").is_none());
        if round < 2 {
            std::fs::remove_dir_all(&one).unwrap();
            assert!(look(&mut link, "none").is_none());
        }
    }
    // A directory may go to another place, and another come in its place.
    std::fs::rename(&two, place.path().join("moved")).unwrap();
    assert!(look(&mut link, "moved").is_none());
    std::fs::create_dir_all(&two).unwrap();
    assert!(look(&mut link, "again").is_none());
    // The socket may also come by another name.
    let other = two.join("other");
    let elsewhere = place.path().join("elsewhere");
    let listener = UnixListener::bind(&elsewhere).unwrap();
    std::fs::rename(&elsewhere, &other).unwrap();
    assert!(look(&mut link, "other").is_none());
    std::fs::rename(&other, &path).unwrap();
    drop(connected(look(&mut link, "renamed")));
    drop(listener);
}

#[test]
fn busy_directory_does_not_keep_the_loop_awake() {
    let place = Place::new("busy");
    let (mut link, begin) = waiting_for(&place.socket());
    let mut now = begin;
    let (mut roused, mut steps) = (0, 0);
    for number in 0..2000 {
        let file = place.path().join(number.to_string());
        std::fs::write(file, "").unwrap();
        // A file each half millisecond.
        now += MS / 2;
        if is_roused(&link) || link.due().is_some_and(|due| due <= now) {
            roused += usize::from(is_roused(&link));
            steps += 1;
            assert!(link.step(now, None).is_none());
        }
    }
    assert!(roused <= 2 * 100 + 1, "{roused}");
    assert!(steps <= 3 * 100, "{steps}");
    let _listener = UnixListener::bind(place.socket()).unwrap();
    drop(connected(link.step(now + 20 * MS, None)));
}

#[test]
fn long_and_relative_paths_are_watched() {
    let place = Place::new("long-watch");
    let mut directory = place.path().to_owned();
    while directory.as_os_str().len() < 200 {
        directory.push("d".repeat(60));
    }
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let (mut link, now) = waiting_for(&path);
    let server = listening(&path, 0o600).unwrap();
    assert!(is_roused(&link));
    drop(connected(link.step(now + 10 * MS, None)));
    drop(server);
    // Of a relative one no part need exist, and it has no directory.
    let name = format!("vuf-nowhere.{}", std::process::id());
    for path in [Path::new(&name).to_owned(), Path::new(&name).join("socket")] {
        let (link, _) = waiting_for(&path);
        assert!(link.watch().is_some(), "{path:?}");
    }
}

#[test]
fn name_that_cannot_be_watched_is_looked_at_now_and_then() {
    let _place = Place::new("abstract-look");
    let path = PathBuf::from(format!("\0vuf-device look {}", std::process::id()));
    let (mut link, mut now) = waiting_for(&path);
    assert!(link.watch().is_none());
    for _ in 0..5 {
        assert_eq!(link.due(), Some(now + 500 * MS));
        now += 500 * MS;
        assert!(link.step(now, None).is_none());
    }
    assert_eq!(link.attempt(), 1, "looks do not count");
    let server = listening(&path, 0o600).unwrap();
    drop(connected(link.step(now + 500 * MS, None)));
    assert!(link.take_arrival().is_none());
    drop(server);
}

// ---- when ----

#[test]
fn delays_grow_within_their_bounds_and_differ() {
    let now = Instant::now();
    let policy = Policy {
        jitter_percent: 40,
        ..PLAIN
    };
    let delays = |seed| {
        let mut link = Link::with_seed(Peer::Path("/".into()), policy, seed).unwrap();
        let delays = (0..200).map(|_| link.failed(now, false).unwrap());
        delays.collect::<Vec<_>>()
    };
    let some = delays(1);
    for (number, delay) in some.iter().enumerate() {
        let doubled = 100_u64 << number.min(5);
        let whole = Duration::from_millis(doubled.min(1000));
        assert!(
            *delay <= whole && *delay >= whole * 6 / 10,
            "{number}: {delay:?}"
        );
    }
    // The whole width is used.
    let (least, most) = (some.iter().skip(4).min(), some.iter().skip(4).max());
    assert!(*least.unwrap() < 650 * MS && *most.unwrap() > 950 * MS);
    assert_eq!(some, delays(1), "the same seed");
    assert_ne!(some, delays(2), "another seed");

    let endless = Policy {
        max_delay: Duration::MAX,
        slow_delay: Duration::MAX,
        ..policy
    };
    let mut link = Link::new(Peer::Path("/".into()), endless).unwrap();
    for _ in 0..100 {
        link.failed(now, false);
        link.failed(now, true);
    }
    (link.losses, link.misses) = (u32::MAX, u32::MAX);
    link.failed(now, false);
    assert_eq!(link.attempt(), u32::MAX);
}

#[test]
fn a_policy_must_leave_the_processor_alone() {
    let none = Duration::ZERO;
    for wrong in [
        Policy {
            first_delay: none,
            ..PLAIN
        },
        Policy {
            slow_delay: none,
            ..PLAIN
        },
        Policy {
            max_delay: MS,
            ..PLAIN
        },
        Policy {
            jitter_percent: 101,
            ..PLAIN
        },
    ] {
        let error = Link::new(Peer::Fd, wrong).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(Errno::EINVAL), "{wrong:?}");
    }
    Link::new(Peer::Fd, Policy::default()).unwrap();
    let all = Policy {
        jitter_percent: 100,
        ..PLAIN
    };
    let mut link = Link::new(Peer::Path("/".into()), all).unwrap();
    assert!(link.failed(Instant::now(), false).unwrap() <= 100 * MS);
}

#[test]
fn only_a_back_end_that_works_for_a_while_resets_the_delay() {
    let place = Place::new("settled");
    let mut now = Instant::now();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let mut link = to_path(&place.socket(), now);
    // A dying back-end lets itself be connected to, and no more.
    for delay in [100, 200, 400] {
        drop(connected(link.step(now, None)));
        drop(listener.accept().unwrap());
        assert_eq!(link.failed(now, false), Some(delay * MS));
        now += delay * MS;
    }
    // One that refuses is left alone for long, and that is no worse than others.
    drop(connected(link.step(now, None)));
    assert_eq!(link.failed(now, true), Some(PLAIN.slow_delay));
    assert!(link.step(now + PLAIN.slow_delay - MS, None).is_none());
    now += PLAIN.slow_delay;
    drop(connected(link.step(now, None)));
    assert_eq!(link.failed(now, false), Some(1000 * MS));
    // It is wanted at once.
    link.begin(now);
    drop(connected(link.step(now, None)));
    assert_eq!(link.failed(now, false), Some(100 * MS));
    now += 100 * MS;
    let kept = connected(link.step(now, None));
    link.begin(now);
    assert!(link.step(now, None).is_none(), "it is in use");
    drop(kept);
    // It reaches the desired state each time, and crashes soon after.
    for delay in [200, 400, 800, 1000] {
        link.works(now);
        now += PLAIN.max_delay - MS;
        assert_eq!(link.failed(now, false), Some(delay * MS));
        now += delay * MS;
        drop(connected(link.step(now, None)));
    }
    // It works for a while, whatever is asked of it meanwhile.
    link.works(now);
    link.works(now + PLAIN.max_delay);
    now += PLAIN.max_delay;
    assert_eq!(link.failed(now, false), Some(100 * MS));
    now += 100 * MS;
    // The time that a lost back-end is fenced off does not count.
    drop(connected(link.step(now, None)));
    link.works(now);
    link.works_no_longer(now + MS);
    link.stop();
    now += 2 * PLAIN.max_delay;
    assert_eq!(link.failed(now, false), Some(200 * MS));
    // Nothing is wanted; and then it is.
    link.stop();
    assert_eq!(link.due(), None);
    assert!(link.step(now + PATIENCE, None).is_none());
    link.begin(now);
    drop(connected(link.step(now, None)));
    drop(listener);
}

/// A back-end that was absent for long, and then crashes, is retried at once: the
/// attempts before it was there say nothing about it.
#[test]
fn absence_does_not_count_as_crashes() {
    let place = Place::new("absence");
    let mut now = Instant::now();
    let mut link = to_path(&place.socket(), now);
    for attempt in 1..10 {
        let (_, number, delay) = retrying(link.step(now, None));
        assert_eq!(number, attempt);
        now += delay;
    }
    let _listener = UnixListener::bind(place.socket()).unwrap();
    drop(connected(link.step(now, None)));
    assert_eq!(link.failed(now, false), Some(100 * MS));
    assert_eq!(link.attempt(), 1);
}

// ---- listening ----

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let place = Place::new("stale");
    let now = Instant::now();
    drop(UnixListener::bind(place.socket()).unwrap());
    let stale = std::fs::metadata(place.socket()).unwrap();
    let mut link = listening(&place.socket(), 0o600).unwrap();
    let fresh = std::fs::metadata(place.socket()).unwrap();
    assert!(
        (stale.ino(), stale.ctime_nsec()) != (fresh.ino(), fresh.ctime_nsec()),
        "the file is the old one"
    );
    let theirs = UnixStream::connect(place.socket()).unwrap();
    link.begin(now);
    assert_linked(&connected(link.step(now, None)), &theirs);
    drop(link);
    assert!(!place.socket().exists());
}

#[test]
fn what_is_not_ours_is_never_touched() {
    let place = Place::new("not-ours");
    let path = place.socket();
    let identity = || {
        let file = std::fs::symlink_metadata(&path).unwrap();
        (file.ino(), file.ctime(), file.ctime_nsec(), file.mode())
    };
    let assert_left = |errno: Errno, context: &str| {
        let before = identity();
        let error = listening(&path, 0o600).unwrap_err();
        assert_eq!(Errno::from_raw(error.errno()), errno, "{context}: {error}");
        assert_eq!(identity(), before, "{context}");
    };

    // Not yet, and then, listening.
    let owner = bound(&path);
    assert_left(Errno::EADDRINUSE, "bound");
    listen(&owner, Backlog::new(4).unwrap()).unwrap();
    assert_left(Errno::EADDRINUSE, "listening");
    let owner = UnixListener::from(owner);
    owner.set_nonblocking(true).unwrap();
    let disturbed = owner.accept().unwrap_err().kind();
    assert_eq!(disturbed, std::io::ErrorKind::WouldBlock);
    drop(owner);
    std::fs::remove_file(&path).unwrap();

    let datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert_left(Errno::EADDRINUSE, "datagrams");
    drop(datagrams);
    std::fs::remove_file(&path).unwrap();

    std::fs::write(&path, "precious").unwrap();
    assert_left(Errno::EEXIST, "a file");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_left(Errno::EEXIST, "a directory");
    std::fs::remove_dir(&path).unwrap();
    symlink("elsewhere", &path).unwrap();
    assert_left(Errno::EEXIST, "a link");
    std::fs::remove_file(&path).unwrap();

    // What has taken the place of our file is not ours.
    let link = listening(&path, 0o600).unwrap();
    let aside = place.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(link);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(std::fs::metadata(&aside).unwrap().file_type().is_socket());
    std::fs::remove_file(&path).unwrap();
    // And if there is nothing, nothing is missed.
    let link = listening(&path, 0o600).unwrap();
    std::fs::remove_file(&path).unwrap();
    drop(link);

    for (path, errno) in [
        (place.path().join("nowhere/socket"), Errno::ENOENT),
        (PathBuf::from("/dev/null/socket"), Errno::ENOTDIR),
        (PathBuf::from("/"), Errno::EISDIR),
    ] {
        let error = listening(&path, 0o600).unwrap_err();
        assert_eq!(Errno::from_raw(error.errno()), errno, "{path:?}");
    }
}

/// That of the process, which comes back also if the test fails.
struct Umask(Mode);

impl Drop for Umask {
    fn drop(&mut self) {
        umask(self.0);
    }
}

#[test]
fn the_file_has_the_permissions_that_were_asked_for() {
    let place = Place::new("mode");
    let path = place.socket();
    let end = AtomicBool::new(false);
    let _restored = Umask(umask(Mode::empty()));
    for mask in [0, 0o22, 0o77, 0o777] {
        for mode in [0, 0o600, 0o660, 0o666, 0o777] {
            end.store(false, Ordering::SeqCst);
            umask(Mode::from_bits(mask).unwrap());
            std::thread::scope(|scope| {
                // Never more than that, also not for a moment.
                let watcher = scope.spawn(|| {
                    let mut seen = 0;
                    while !end.load(Ordering::SeqCst) {
                        if let Ok(file) = std::fs::metadata(&path) {
                            seen |= file.mode() & 0o777;
                        }
                    }
                    seen
                });
                let mut found = Vec::new();
                for _ in 0..20 {
                    let link = listening(&path, mode);
                    found.push(std::fs::metadata(&path).map(|file| file.mode() & 0o7777));
                    drop(link);
                }
                end.store(true, Ordering::SeqCst);
                for found in found {
                    assert_eq!(found.unwrap(), mode, "umask {mask:#o}");
                }
                let seen = watcher.join().unwrap();
                assert_eq!(seen & !mode, 0, "umask {mask:#o}, mode {mode:#o}");
            });
        }
    }
    for mode in [0o1000, 0o4777, 0o100_600, u32::MAX] {
        let error = listening(&path, mode).unwrap_err();
        assert_eq!(error.kind, Kind::Argument(Errno::EINVAL), "{mode:#o}");
    }
    assert!(!path.exists());
}

#[test]
fn a_second_peer_is_turned_away_while_the_first_lives() {
    let place = Place::new("second");
    let now = Instant::now();
    let mut link = listening(&place.socket(), 0o600).unwrap();
    assert!(!wants_peers(&link), "nothing is wanted yet");
    let first = UnixStream::connect(place.socket()).unwrap();
    assert!(link.step(now, None).is_none());
    link.begin(now);
    let ours = connected(link.step(now, None));
    assert_linked(&ours, &first);
    assert!(wants_peers(&link));
    assert!(link.step(now, Some(ours.as_fd())).is_none(), "nobody else");

    let second = UnixStream::connect(place.socket()).unwrap();
    assert_eq!(refused(link.step(now, Some(ours.as_fd()))), 1);
    assert_turned_away(second);
    // Many take many steps.
    let many: Vec<_> = (0..9)
        .map(|_| UnixStream::connect(place.socket()).unwrap())
        .collect();
    assert_eq!(refused(link.step(now, Some(ours.as_fd()))), 8);
    assert_eq!(refused(link.step(now, Some(ours.as_fd()))), 1);
    assert!(link.step(now, Some(ours.as_fd())).is_none());
    many.into_iter().for_each(assert_turned_away);
    assert_linked(&ours, &first);
}

#[test]
fn a_second_peer_takes_the_place_of_one_that_is_gone() {
    let place = Place::new("next");
    let now = Instant::now();
    let mut link = listening(&place.socket(), 0o600).unwrap();
    link.begin(now);
    assert!(link.step(now, None).is_none());
    assert!(wants_peers(&link));
    let first = UnixStream::connect(place.socket()).unwrap();
    let ours = connected(link.step(now, None));
    assert!(!socket::peer_is_gone(ours.as_fd()));
    drop(first);
    let second = UnixStream::connect(place.socket()).unwrap();
    assert!(socket::peer_is_gone(ours.as_fd()));
    assert!(
        link.step(now, Some(ours.as_fd())).is_none(),
        "nobody is refused"
    );
    drop(ours);
    // While the old one is fenced off, nobody is taken.
    link.stop();
    assert!(!wants_peers(&link));
    assert!(link.step(now, None).is_none());
    assert_eq!(link.failed(now, false), Some(100 * MS));
    assert!(!wants_peers(&link), "not before the delay");
    assert!(link.step(now, None).is_none());
    let ours = connected(link.step(now + 100 * MS, None));
    assert_linked(&ours, &second);
    // And the one after, though it comes later.
    drop((ours, second));
    link.failed(now, false);
    let now = now + 300 * MS;
    assert!(link.step(now, None).is_none());
    assert_eq!(link.due(), None);
    assert!(wants_peers(&link));
    let third = UnixStream::connect(place.socket()).unwrap();
    assert_linked(&connected(link.step(now, None)), &third);
}

#[test]
fn peers_that_cannot_be_turned_away_do_not_keep_the_loop_awake() {
    let place = Place::new("deaf");
    let now = Instant::now();
    let mut link = listening(&place.socket(), 0o600).unwrap();
    let _first = UnixStream::connect(place.socket()).unwrap();
    link.begin(now);
    let ours = connected(link.step(now, None));
    let second = UnixStream::connect(place.socket()).unwrap();
    // As after an accept() that failed for want of descriptors.
    let deaf_until = Some(now + DEAF);
    link.state = State::InUse { deaf_until };
    assert!(!wants_peers(&link));
    assert_eq!(link.due(), deaf_until);
    assert!(link.step(now, Some(ours.as_fd())).is_none());
    assert_eq!(refused(link.step(now + DEAF, Some(ours.as_fd()))), 1);
    assert_turned_away(second);
    assert!(wants_peers(&link));
    assert_eq!(link.due(), None);
}

#[test]
fn listening_is_for_stream_sockets_at_the_name_that_was_asked_for() {
    let place = Place::new("name");
    let link = listening(&place.socket(), 0o600).unwrap();
    let fd = link.watch().unwrap().fd;
    socket::check(fd, Role::Listening).unwrap();
    let name = getsockname::<UnixAddr>(fd.as_raw_fd()).unwrap();
    assert_eq!(name.path(), Some(place.socket().as_path()));
}

// ---- supplied ----

#[test]
fn a_socket_is_asked_for_once_and_supplied() {
    let _place = Place::new("supplied");
    let now = Instant::now();
    let mut link = link(Peer::Fd);
    assert!(link.step(now, None).is_none());
    link.begin(now);
    assert!(matches!(link.step(now, None), Some(Happened::NeedsFd)));
    assert_eq!(link.due(), None);
    for late in [now, now + PATIENCE] {
        link.begin(late);
        assert!(link.step(late, None).is_none(), "said once");
    }
    let (one, other) = UnixStream::pair().unwrap();
    link.supply(one.into(), None, now).unwrap();
    assert_eq!(link.due(), Some(now));
    let ours = connected(link.step(now, None));
    assert_linked(&ours, &other);

    // Nothing is tried by itself after a loss.
    drop((ours, other));
    assert_eq!(link.failed(now, true), None);
    assert!(matches!(link.step(now, None), Some(Happened::NeedsFd)));
    assert!(link.step(now + PATIENCE, None).is_none());
    // What comes before it is asked for is kept; of several the last counts.
    let (one, other) = UnixStream::pair().unwrap();
    link.supply(one.into(), None, now).unwrap();
    let ours = connected(link.step(now, None));
    let (early, closed) = UnixStream::pair().unwrap();
    link.supply(early.into(), None, now).unwrap();
    let (last, peer) = UnixStream::pair().unwrap();
    link.supply(last.into(), None, now).unwrap();
    assert_turned_away(closed);
    assert!(
        link.step(now, Some(ours.as_fd())).is_none(),
        "one is in use"
    );
    drop((ours, other));
    link.failed(now, false);
    assert_linked(&connected(link.step(now, None)), &peer);
}

#[test]
fn what_is_supplied_must_be_a_connected_socket() {
    let place = Place::new("wrong");
    let now = Instant::now();
    let mut by_fd = link(Peer::Fd);
    by_fd.begin(now);
    by_fd.step(now, None);
    let listener = UnixListener::bind(place.socket()).unwrap();
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    for (name, wrong) in [
        ("listener", OwnedFd::from(listener)),
        ("datagrams", datagrams.into()),
        ("file", std::fs::File::open("/dev/null").unwrap().into()),
    ] {
        assert!(by_fd.check_supplied(wrong.as_fd()).is_err(), "{name}");
        let error = by_fd.supply(wrong, None, now).unwrap_err();
        assert!(matches!(error.kind, Kind::Argument(_)), "{name}: {error}");
    }
    let (fd, _other) = UnixStream::pair().unwrap();
    let mut by_path = link(Peer::Path(place.socket()));
    let error = by_path.supply(fd.into(), None, now).unwrap_err();
    assert_eq!(error.kind, Kind::State);
    let (fd, other) = UnixStream::pair().unwrap();
    by_fd.supply(fd.into(), None, now).unwrap();
    assert_linked(&connected(by_fd.step(now, None)), &other);
}
