//! Unexpected kinds of files, for descriptors of replies.

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{SetSockOpt, sockopt};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// How long closing a [`Lingering`](FileKind::Lingering) socket takes.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    /// Opened with `O_PATH`, so it can be neither read nor written.
    Path,
    /// `/dev/zero`, open for reading and writing.
    Zero,
    /// An empty memfd.
    Empty,
    /// A full pipe, open for reading and writing.
    FullPipe,
    /// A lingering socket whose peer does not read: close() takes [`LINGER`].
    Lingering,
}

impl FileKind {
    pub(crate) const ALL: [(&'static str, Self); 6] = [
        ("directory", Self::Directory),
        ("path", Self::Path),
        ("zero", Self::Zero),
        ("empty", Self::Empty),
        ("full-pipe", Self::FullPipe),
        ("lingering", Self::Lingering),
    ];

    pub(crate) fn name(self) -> &'static str {
        let known = Self::ALL.iter().find(|(_, kind)| *kind == self);
        known.map_or("", |(name, _)| name)
    }

    /// Whether close() may block.
    pub(crate) fn is_slow(self) -> bool {
        self == Self::Lingering
    }

    pub(crate) fn open(self) -> std::io::Result<OwnedFd> {
        let named = |path: &str, flags: OFlag| open(path, flags | OFlag::O_CLOEXEC, Mode::empty());
        Ok(match self {
            Self::Directory => named("/", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?,
            Self::Path => named("/dev/null", OFlag::O_PATH)?,
            Self::Zero => named("/dev/zero", OFlag::O_RDWR)?,
            Self::Empty => crate::model::scratch_file(0)?,
            Self::FullPipe => full_pipe()?,
            Self::Lingering => lingering()?,
        })
    }
}

/// Without a descriptor for reading, a write would fail with EPIPE.
fn full_pipe() -> nix::Result<OwnedFd> {
    let (reader, _writer) = pipe2(OFlag::O_CLOEXEC)?;
    let both = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let both = open(both.as_str(), flags, Mode::empty())?;
    while nix::unistd::write(&both, &[0; 4096]).is_ok() {}
    Ok(both)
}

fn lingering() -> std::io::Result<OwnedFd> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: i32::try_from(LINGER.as_secs()).unwrap_or(i32::MAX),
    };
    sockopt::Linger.set(&socket, &linger)?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 1 << 16]).is_ok() {}
    // Or else the wait for the peer would not block.
    socket.set_nonblocking(false)?;
    keep(peer.into());
    Ok(socket.into())
}

/// Keeps a descriptor open for [`LINGER`].
fn keep(fd: OwnedFd) {
    thread::spawn(move || {
        thread::sleep(LINGER);
        drop(fd);
    });
}

/// Closes descriptors in a thread.
pub(crate) fn close_aside(fds: Vec<OwnedFd>) {
    thread::spawn(move || drop(fds));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::stat::{SFlag, fstat};
    use std::time::Instant;

    #[test]
    fn files_are_what_their_names_say() {
        for (name, kind) in FileKind::ALL {
            assert_eq!(kind.name(), name);
            let fd = kind.open().unwrap();
            let status = fstat(&fd).unwrap();
            let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
            let has = |format: SFlag| status.st_mode & SFlag::S_IFMT.bits() == format.bits();
            let right = match kind {
                FileKind::Directory => has(SFlag::S_IFDIR),
                FileKind::Path => flags.contains(OFlag::O_PATH),
                FileKind::Zero => has(SFlag::S_IFCHR) && flags.contains(OFlag::O_RDWR),
                FileKind::Empty => has(SFlag::S_IFREG) && status.st_size == 0,
                FileKind::FullPipe => nix::unistd::write(&fd, &[0]) == Err(Errno::EAGAIN),
                FileKind::Lingering => has(SFlag::S_IFSOCK),
            };
            assert!(right, "{name}");
            let start = Instant::now();
            drop(fd);
            let slow = start.elapsed() > LINGER / 3;
            assert_eq!(slow, kind.is_slow(), "{name}: {:?}", start.elapsed());
        }
    }
}
