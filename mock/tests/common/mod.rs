//! A front-end as a virtual machine monitor would have it, on the real library.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use vhost_user_frontend::message::{Log, MemRegion, ProtocolFeatures, VringAddr};
use vhost_user_frontend::{BackendClient, Options, Result, SharedRegion, Timeout};
use vuf_mock_backend::{Mock, Outcome, Script};

/// Where the front-end has the guest's memory.
pub const USER: u64 = 0x7f00_0000_0000;
/// How much there is.
pub const SIZE: u64 = 0x10_0000;
/// VERSION_1, the bit of protocol features, and LOG_ALL.
pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 26;

/// A client on a mock with this script.
pub fn client(script: &str) -> (BackendClient, Mock) {
    client_with(script, Timeout::After(Duration::from_secs(10)))
}

/// The same, with this patience.
pub fn client_with(script: &str, timeout: Timeout) -> (BackendClient, Mock) {
    let script = Script::parse(script).unwrap_or_else(|error| panic!("{error}"));
    let (socket, mock) = Mock::spawn(script).unwrap();
    (on(socket, timeout), mock)
}

/// A client on this connection.
pub fn on(socket: UnixStream, timeout: Timeout) -> BackendClient {
    let options = Options {
        quick: timeout,
        slow: timeout,
        drain: timeout,
        ..Options::default()
    };
    BackendClient::from_fd(socket.into(), &options).unwrap()
}

/// What the guest and the monitor have.
pub struct Guest {
    pub memory: File,
    pub log: File,
    pub kick: Vec<EventFd>,
    pub call: Vec<EventFd>,
}

impl Guest {
    /// With so many rings.
    pub fn new(rings: usize) -> Self {
        let file = |size| {
            let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(size).unwrap();
            file
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let eventfd = |_| EventFd::from_value_and_flags(0, flags).unwrap();
        Self {
            memory: file(SIZE),
            log: file(0x1000),
            kick: (0..rings).map(eventfd).collect(),
            call: (0..rings).map(eventfd).collect(),
        }
    }

    /// All of its memory.
    pub fn region(&self) -> SharedRegion<'_> {
        let region = MemRegion {
            guest_addr: 0,
            size: SIZE,
            user_addr: USER,
            mmap_offset: 0,
            ..MemRegion::default()
        };
        SharedRegion {
            region,
            fd: self.memory.as_fd(),
        }
    }

    /// Agrees on features as far as both know them, with REPLY_ACK or without.
    pub fn negotiate(&self, client: &BackendClient, reply_ack: bool) -> Result<()> {
        let offered = client.get_features()?;
        let mut protocol = ProtocolFeatures::from_bits_truncate(client.get_protocol_features()?);
        protocol.set(ProtocolFeatures::REPLY_ACK, reply_ack);
        if !protocol.contains(ProtocolFeatures::REPLY_ACK) {
            protocol.remove(ProtocolFeatures::INBAND_NOTIFICATIONS); // which needs it
        }
        client.set_protocol_features(protocol.bits())?;
        client.set_owner()?;
        client.set_features(offered & FEATURES)
    }

    /// Shares the memory and starts every ring.
    pub fn start(&self, client: &BackendClient) -> Result<()> {
        client.set_mem_table(&[self.region()])?;
        for (index, (kick, call)) in (0..).zip(self.kick.iter().zip(&self.call)) {
            client.set_vring_num(index, 256)?;
            client.set_vring_base(index, 7)?;
            let at = USER + 0x1_0000 * u64::from(index);
            client.set_vring_addr(&VringAddr {
                index,
                flags: 0,
                descriptor: at,
                used: at + 0x2000,
                available: at + 0x1000,
                log: 0,
            })?;
            client.set_vring_kick(index, Some(kick.as_fd()))?;
            client.set_vring_call(index, Some(call.as_fd()))?;
            client.set_vring_err(index, None)?;
        }
        for index in (0..).take(self.kick.len()) {
            client.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Logs dirty pages.
    pub fn log(&self, client: &BackendClient) -> Result<()> {
        client.set_log_base(
            &Log {
                mmap_size: 0x1000,
                mmap_offset: 0,
            },
            self.log.as_fd(),
        )?;
        client.set_features(FEATURES)
    }

    /// Stops every ring; all must be where they began.
    pub fn stop(&self, client: &BackendClient) -> Result<()> {
        for index in (0..).take(self.kick.len()) {
            client.set_vring_enable(index, false)?;
            assert_eq!(client.get_vring_base(index, Timeout::Default)?, 7);
        }
        Ok(())
    }
}

/// Ends the mock; all must be well.
pub fn met(mock: Mock) -> Outcome {
    let outcome = mock.finish().unwrap();
    assert!(outcome.is_met(), "{outcome}");
    outcome
}

static SERIAL: Mutex<()> = Mutex::new(());

/// Runs one test of this process at a time, and fails it at its end if it leaves
/// another number of descriptors or threads behind than it found.
pub struct NoLeak {
    before: (usize, usize),
    _serial: MutexGuard<'static, ()>,
}

fn count(of: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{of}"))
        .unwrap()
        .count()
}

/// See [`NoLeak`].
pub fn no_leak() -> NoLeak {
    let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    NoLeak {
        before: (count("fd"), 0),
        _serial: serial,
    }
}

impl Drop for NoLeak {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_eq!(
                (count("fd"), mock_threads()),
                self.before,
                "left after the test"
            );
        }
    }
}

/// Threads of mocks that still run.
fn mock_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.filter_map(|task| name(task.unwrap()));
    names
        .filter(|name| name.starts_with("vuf-mock-backen"))
        .count()
}
