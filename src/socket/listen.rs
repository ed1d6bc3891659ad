//! Sockets by name, for who never waits: one attempt to connect, and a listening
//! socket with its file.

use super::above_standard;
use super::origin::Origin;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

// ---- names ----

/// The name of an abstract socket: what follows a leading NUL byte.
pub(super) fn abstract_name(path: &Path) -> Option<&[u8]> {
    match path.as_os_str().as_bytes().split_first() {
        Some((0, name)) => Some(name),
        _ => None,
    }
}

/// A path for people: the NUL of an abstract name is shown as is usual.
pub(crate) fn shown(path: &Path) -> String {
    match abstract_name(path) {
        Some(name) => format!("@{}", String::from_utf8_lossy(name)),
        None => path.display().to_string(),
    }
}

/// Checks what can be known of a path before it is used.
pub(crate) fn check_path(path: &Path) -> nix::Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Errno::EINVAL);
    }
    if abstract_name(path).is_some() {
        return address(path, None).map(drop);
    }
    match UnixAddr::new(path) {
        Err(Errno::ENAMETOOLONG) => address_within(RawFd::MAX, place(path)?.1).map(drop),
        other => other.map(drop),
    }
}

/// A path that means the same after the process has changed its directory. Where the directory
/// of now has no name any more, it stays as it is.
pub(crate) fn absolute(path: PathBuf) -> PathBuf {
    match abstract_name(&path) {
        Some(_) => path,
        None => std::path::absolute(&path).unwrap_or(path),
    }
}

/// The directory of a path, and the name in it.
pub(super) fn place(path: &Path) -> nix::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    Ok((parent.unwrap_or(Path::new(".")), name))
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).and_then(above_standard)
}

/// An address holds 107 bytes. What is longer is named by way of its directory,
/// which must stay open until the address has been used.
fn address_within(directory: RawFd, name: &OsStr) -> nix::Result<UnixAddr> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{directory}"));
    path.push(name);
    UnixAddr::new(&path)
}

/// The address of a path. `directory` is its own, if it is a file.
fn address(path: &Path, directory: Option<BorrowedFd<'_>>) -> nix::Result<UnixAddr> {
    if let Some(name) = abstract_name(path) {
        return UnixAddr::new_abstract(name);
    }
    match (UnixAddr::new(path), directory) {
        (Err(Errno::ENAMETOOLONG), Some(directory)) => {
            address_within(directory.as_raw_fd(), place(path)?.1)
        }
        (result, _) => result,
    }
}

fn new_socket(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, kind, flags, None).and_then(above_standard)
}

// ---- connecting ----

/// Tries once to connect, without waiting. With EAGAIN the listener's backlog is
/// full, and it cannot be polled for.
pub(crate) fn try_connect(path: &Path) -> nix::Result<OwnedFd> {
    let fd = new_socket(SockType::Stream)?;
    match address(path, None) {
        Err(Errno::ENAMETOOLONG) => {
            let directory = open_directory(place(path)?.0)?;
            connect(fd.as_raw_fd(), &address(path, Some(directory.as_fd()))?)?;
        }
        address => connect(fd.as_raw_fd(), &address?)?,
    }
    // It is for those who wait, from now on.
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(fd)
}

// ---- listening ----

/// How many peers may wait to be accepted. More find the backlog full.
const WAITING_PEERS: u8 = 8;

/// A listening socket for another process, and a connection that waits at it. Who else
/// wanted one would need the name, which is gone already.
pub(crate) fn listener_with_connection() -> Result<(OwnedFd, OwnedFd)> {
    // A number that nobody can foresee, and it need not be more than that: a name
    // that is in use is refused.
    let number = RandomState::new().build_hasher().finish();
    let name = format!("vhost-user-{number:016x}");
    // The name is there for a moment, and where that is does not matter.
    let first = std::env::temp_dir();
    let others = ["/tmp", "/var/tmp", "/dev/shm", "/run"].map(Path::new);
    let mut result = Err(Errno::ENOENT);
    for directory in std::iter::once(first.as_path()).chain(others) {
        result = listener_in(&directory.join(&name));
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|errno| {
        let first = first.display();
        Error::os(
            errno,
            format_args!(
                "cannot make a socket that listens in {first}, /tmp, /var/tmp, /dev/shm or /run"
            ),
        )
    })
}

fn listener_in(path: &Path) -> nix::Result<(OwnedFd, OwnedFd)> {
    let Listener { socket, _file, .. } = Listener::bind(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let connection = try_connect(path)?;
    // That of the other process may block.
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((socket, connection))
}

/// A listening socket that never blocks. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// An abstract socket has none.
    _file: Option<SocketFile>,
}

impl Listener {
    /// Listens at `path`, in place of a socket there whose owner is gone. One that
    /// is in use is EADDRINUSE, and what is no socket EEXIST.
    ///
    /// The file has exactly these permissions, whatever the umask, and never more.
    /// An abstract socket has none, and takes anybody.
    pub(crate) fn new(path: &Path, mode: u32) -> Result<Self> {
        let permissions = Mode::from_bits(mode).filter(|_| mode <= 0o777);
        let permissions = permissions
            .ok_or_else(|| Error::invalid(format!("{mode:#o} is not the mode of a socket")))?;
        let failed = |errno| {
            let why = match errno {
                Errno::EADDRINUSE => " (somebody uses it)",
                Errno::EEXIST => " (it is there, and not a socket)",
                _ => "",
            };
            Error::os(errno, format_args!("cannot listen on {}{why}", shown(path)))
        };
        Self::bind(path, permissions).map_err(failed)
    }

    fn bind(path: &Path, permissions: Mode) -> nix::Result<Self> {
        check_path(path)?;
        let socket = new_socket(SockType::Stream)?;
        let file = if abstract_name(path).is_some() {
            bind(socket.as_raw_fd(), &address(path, None)?)?;
            None
        } else {
            Some(SocketFile::bind(socket.as_fd(), path, permissions)?)
        };
        listen(&socket, Backlog::new(WAITING_PEERS)?)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            _file: file,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The connection that has waited longest, if one does.
    pub(crate) fn accept(&self) -> nix::Result<Option<OwnedFd>> {
        match accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: accept4 just made this descriptor for us.
            Ok(fd) => above_standard(unsafe { OwnedFd::from_raw_fd(fd) }).map(Some),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// The file of a socket: removed with it, if it is still the same.
#[derive(Debug)]
struct SocketFile {
    directory: OwnedFd,
    name: OsString,
    identity: Identity,
    /// A forked child may not remove it.
    origin: Origin,
}

/// Tells files apart, also one from its successor in the same place on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: libc::dev_t,
    inode: libc::ino_t,
}

impl Identity {
    fn of(file: &FileStat) -> Self {
        Self {
            device: file.st_dev,
            inode: file.st_ino,
        }
    }
}

impl SocketFile {
    /// Gives the socket its name, and the name its permissions.
    fn bind(socket: BorrowedFd<'_>, path: &Path, permissions: Mode) -> nix::Result<Self> {
        let (parent, name) = place(path)?;
        let directory = open_directory(parent)?;
        let address = address(path, Some(directory.as_fd()))?;
        bind_as(socket, &address, permissions).or_else(|errno| {
            if errno != Errno::EADDRINUSE {
                return Err(errno);
            }
            remove_stale(directory.as_fd(), name, &address)?;
            bind_as(socket, &address, permissions)
        })?;
        let found = look(directory.as_fd(), name)?;
        // From here on it is removed if anything fails.
        let file = Self {
            identity: Identity::of(&found),
            name: name.to_owned(),
            directory,
            origin: Origin::here(),
        };
        // The umask has taken some away.
        if found.st_mode & 0o777 != permissions.bits() {
            let follow = FchmodatFlags::NoFollowSymlink;
            fchmodat(&file.directory, name, permissions, follow)?;
        }
        Ok(file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let directory = self.directory.as_fd();
        let ours = |found| Identity::of(&found) == self.identity;
        if self.origin.is_here() && look(directory, &self.name).is_ok_and(ours) {
            // It may have gone by itself.
            let _ = unlinkat(directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// The permissions are the socket's before it has a name: in between, somebody
/// could connect who may not. The file gets those that the umask leaves.
fn bind_as(socket: BorrowedFd<'_>, address: &UnixAddr, permissions: Mode) -> nix::Result<()> {
    fchmod(socket, permissions)?;
    bind(socket.as_raw_fd(), address)
}

fn look(directory: BorrowedFd<'_>, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Removes the file of a socket whose owner is gone.
fn remove_stale(directory: BorrowedFd<'_>, name: &OsStr, address: &UnixAddr) -> nix::Result<()> {
    let gone = |errno| match errno {
        Errno::ENOENT => Ok(()),
        errno => Err(errno),
    };
    let found = match look(directory, name) {
        Ok(found) => found,
        Err(errno) => return gone(errno),
    };
    if found.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(Errno::EEXIST);
    }
    // A connection would disturb a live owner, who may serve one and then exit. A
    // datagram socket gets no further than being of the wrong type, and tells
    // also an owner that does not listen yet.
    let probe = new_socket(SockType::Datagram)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => {}
        Ok(()) | Err(Errno::EPROTOTYPE | Errno::EPERM) => return Err(Errno::EADDRINUSE),
        Err(errno) => return gone(errno),
    }
    // Another process may have replaced it meanwhile; the time tells, where the
    // number of the file is used again.
    let age = |file: &FileStat| (Identity::of(file), file.st_ctime, file.st_ctime_nsec);
    match look(directory, name) {
        Ok(still) if age(&still) == age(&found) => {
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir).or_else(gone)
        }
        Ok(_) => Err(Errno::EADDRINUSE),
        Err(errno) => gone(errno),
    }
}
