//! The peer that keeps the in-flight region (`tests/peers/inflight_backend.rs`), as
//! a process of its own, with its files.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use crate::blk_ring::{SECTOR, pattern};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes here, also on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Of the disk; each holds the pattern of its number at first.
pub const SECTORS: u64 = 64;

pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A directory with the peer's files.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vuf-inflight.{}.{count}", std::process::id());
        let place = Self(std::env::temp_dir().join(name));
        fs::create_dir(&place.0).unwrap();
        let disk: Vec<u8> = (0..SECTORS).flat_map(pattern).collect();
        fs::write(place.file("disk"), disk).unwrap();
        fs::write(place.file("journal"), "").unwrap();
        place
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What was executed since the last time.
    pub fn take_journal(&self) -> Vec<String> {
        let path = self.file("journal");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    pub fn sector(&self, sector: u64) -> [u8; SECTOR] {
        let mut data = [0; SECTOR];
        let disk = File::open(self.file("disk")).unwrap();
        disk.read_exact_at(&mut data, sector * 512).unwrap();
        data
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub struct Peer(pub Child);

impl Peer {
    /// Starts it, and returns when it listens.
    pub fn start(place: &Place, args: &[&str]) -> Self {
        let program = program();
        let child = Command::new(&program)
            .arg("--socket")
            .arg(place.file("sock"))
            .arg("--file")
            .arg(place.file("disk"))
            .arg("--journal")
            .arg(place.file("journal"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn();
        let child = child.unwrap_or_else(|e| {
            panic!("{} (cargo build --examples): {e}", program.display());
        });
        let mut peer = Self(child);
        let stdout = peer.0.stdout.take().unwrap();
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, patience), Ok(1), "it does not start");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        peer
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.wait_for_death();
    }

    pub fn wait_for_death(&mut self) {
        let deadline = deadline();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
                return;
            }
            assert!(Instant::now() < deadline, "it does not die");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is started.
pub fn program() -> PathBuf {
    std::env::var_os("VUF_INFLIGHT_BACKEND").map_or_else(built, PathBuf::from)
}

/// Beside this program, where cargo puts examples.
fn built() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let debug = tests.ancestors().nth(2).unwrap();
    debug.join("examples/inflight_backend")
}
