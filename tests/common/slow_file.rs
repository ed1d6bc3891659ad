//! Files whose owners delay close().

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{SetSockOpt, sockopt};
use nix::sys::stat::Mode;
use std::ffi::CStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// The longest delay.
pub const LINGER: Duration = Duration::from_secs(2);

/// The owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The peer of a lingering socket: it does not read what was sent.
    Socket,
    /// A FUSE file system. It delays fstat(), too.
    FileSystem,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Socket, Self::FileSystem];

    /// Opens a slow file. Only root can mount a FUSE file system.
    pub fn open(self) -> Option<SlowFile> {
        match self {
            Self::Socket => Some(lingering()),
            Self::FileSystem => file_system(),
        }
    }
}

/// The part of the owner that must stay alive.
#[derive(Debug)]
enum Owner {
    Socket {
        _listener: TcpListener,
    },
    FileSystem {
        owner: Arc<FileSystem>,
        _mount: OwnedFd,
    },
}

/// A file that takes up to [`LINGER`] to close, until this is dropped.
#[derive(Debug)]
pub struct SlowFile {
    fd: Option<OwnedFd>,
    owner: Owner,
}

impl SlowFile {
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().unwrap().as_fd()
    }

    /// Closes this descriptor without delay. From now on the duplicates are slow.
    pub fn sent(&mut self) {
        self.fd = None;
        if let Owner::FileSystem { owner, .. } = &self.owner {
            owner.set_slow(true);
        }
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        if let Owner::FileSystem { owner, .. } = &self.owner {
            owner.set_slow(false);
        }
    }
}

fn lingering() -> SlowFile {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: i32::try_from(LINGER.as_secs()).unwrap(),
    };
    sockopt::Linger.set(&socket, &linger).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    // Or else the wait for the peer would not block.
    socket.set_nonblocking(false).unwrap();
    SlowFile {
        fd: Some(socket.into()),
        owner: Owner::Socket {
            _listener: listener,
        },
    }
}

// ---- a file system of one file ----

/// Numbers of `linux/mount.h` and `linux/fuse.h`.
const FSOPEN_CLOEXEC: libc::c_int = 1;
const FSCONFIG_SET_STRING: libc::c_int = 1;
const FSCONFIG_CMD_CREATE: libc::c_int = 6;
const FSMOUNT_CLOEXEC: libc::c_int = 1;
const FUSE_GETATTR: u32 = 3;
const FUSE_OPEN: u32 = 14;
const FUSE_RELEASE: u32 = 18;
const FUSE_FLUSH: u32 = 25;
const FUSE_INIT: u32 = 26;

/// A file system whose root is its only file.
#[derive(Debug, Default)]
struct FileSystem {
    slow: Mutex<bool>,
    changed: Condvar,
}

impl FileSystem {
    fn set_slow(&self, slow: bool) {
        *self.slow.lock().unwrap() = slow;
        self.changed.notify_all();
    }

    fn linger(&self) {
        let slow = self.slow.lock().unwrap();
        let _waited = self.changed.wait_timeout_while(slow, LINGER, |slow| *slow);
    }

    /// Answers the kernel's requests until the file system is unmounted.
    fn serve(&self, mut device: File) {
        let mut request = vec![0; 1 << 17];
        loop {
            match device.read(&mut request) {
                Ok(_) => {}
                // The request was withdrawn.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return, // the file system is unmounted
            }
            let number = u32::from_le_bytes(request[4..8].try_into().unwrap());
            if matches!(number, FUSE_GETATTR | FUSE_FLUSH) {
                self.linger();
            }
            let (error, payload) = match number {
                FUSE_INIT => (0, init()),
                FUSE_GETATTR => (0, attributes()),
                FUSE_OPEN => (0, vec![0; 16]),
                FUSE_RELEASE | FUSE_FLUSH => (0, Vec::new()),
                _ => (-libc::ENOSYS, Vec::new()),
            };
            let size = u32::try_from(16 + payload.len()).unwrap();
            let mut reply = size.to_le_bytes().to_vec();
            reply.extend(error.to_le_bytes());
            reply.extend(&request[8..16]); // of which request it is
            reply.extend(payload);
            let _withdrawn = device.write(&reply);
        }
    }
}

/// `struct fuse_init_out` of version 7.31.
fn init() -> Vec<u8> {
    let mut out = [7_u32, 31, 0, 0].map(u32::to_le_bytes).concat();
    out.resize(20, 0);
    out.extend(4096_u32.to_le_bytes()); // the largest write
    out.resize(64, 0);
    out
}

/// `struct fuse_attr_out` of a file of 4096 bytes, which are good for no time.
fn attributes() -> Vec<u8> {
    let mut out = [0_u64, 0, 1, 4096, 8].map(u64::to_le_bytes).concat();
    out.resize(76, 0);
    out.extend([0o10_0600_u32, 1].map(u32::to_le_bytes).concat());
    out.resize(104, 0);
    out
}

fn made(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(result)?).unwrap();
    // SAFETY: the system call has made it for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn configure(fs: &OwnedFd, command: libc::c_int, setting: Option<(&CStr, &CStr)>) {
    let (key, value) = match setting {
        Some((key, value)) => (key.as_ptr(), value.as_ptr()),
        None => (std::ptr::null(), std::ptr::null()),
    };
    // SAFETY: the strings outlive the call.
    let result = unsafe {
        let number = libc::SYS_fsconfig;
        libc::syscall(number, fs.as_raw_fd(), command, key, value, 0)
    };
    Errno::result(result).unwrap();
}

fn file_system() -> Option<SlowFile> {
    if super::common::only_for_root("can have a file system of its own") {
        return None;
    }
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    // SAFETY: the name is a C string.
    let fs = made(unsafe { libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), FSOPEN_CLOEXEC) });
    let (Ok(device), Ok(fs)) = (open("/dev/fuse", flags, Mode::empty()), fs) else {
        super::common::skipped("there are no file systems that are programs (FUSE) here");
        return None;
    };
    let number = std::ffi::CString::new(device.as_raw_fd().to_string()).unwrap();
    for setting in [
        (c"fd", number.as_c_str()),
        (c"rootmode", c"100600"),
        (c"user_id", c"0"),
        (c"group_id", c"0"),
    ] {
        configure(&fs, FSCONFIG_SET_STRING, Some(setting));
    }
    configure(&fs, FSCONFIG_CMD_CREATE, None);
    let owner = Arc::new(FileSystem::default());
    let serving = Arc::clone(&owner);
    thread::spawn(move || serving.serve(File::from(device)));
    // SAFETY: it takes three numbers.
    let mount =
        made(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0) });
    let mount = mount.unwrap();
    let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Some(SlowFile {
        fd: Some(open(root.as_str(), flags, Mode::empty()).unwrap()),
        owner: Owner::FileSystem {
            owner,
            _mount: mount,
        },
    })
}
