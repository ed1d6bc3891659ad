#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::super::testing::{PATIENCE, Place};
use super::*;
use crate::backend_client::Timeout;
use crate::programs::{BackendProcess, ProcessOptions};
use crate::socket::{Deadline, Exit};
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const LIMIT: Duration = Duration::from_secs(3600);

fn pair() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours.into(), theirs)
}

fn fence(socket: OwnedFd, now: Instant) -> Fence<OwnedFd> {
    Fence::new(socket, Some(LIMIT), now)
}

/// Drives it as an event loop does, until the peer is gone.
fn until_gone(fence: &mut Fence<OwnedFd>) {
    let deadline = Deadline::after(Some(PATIENCE));
    loop {
        match fence.step(Instant::now()) {
            Some(said) => return assert_eq!(said, Fenced::Gone),
            None => assert!(!deadline.passed(), "it did not go"),
        }
        assert!(fence.watch().read);
        socket::wait([fence.watch()], deadline).unwrap();
    }
}

/// It says so at the limit, not before and only once.
fn assert_unfenced(fence: &mut Fence<OwnedFd>, now: Instant) {
    assert_eq!(fence.step(now + LIMIT - Duration::from_nanos(1)), None);
    assert_eq!(fence.step(now + LIMIT), Some(Fenced::Unfenced));
    assert_eq!(fence.step(now + LIMIT * 2), None);
}

#[test]
fn a_peer_that_closes_is_gone() {
    let _place = Place::new("closes");
    let now = Instant::now();
    let (ours, mut theirs) = pair();
    let mut fence = fence(ours, now);
    assert_eq!(fence.step(now), None);
    assert_eq!(fence.due(), Some(now + LIMIT));
    // It is told.
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    assert_eq!(fence.step(now), None);
    theirs.write_all(b"the last word").unwrap();
    drop(theirs);
    assert_eq!(fence.step(now + LIMIT), Some(Fenced::Gone));
    assert_eq!(fence.step(now + LIMIT), Some(Fenced::Gone));

    // It may also be gone from the beginning.
    let (ours, theirs) = pair();
    drop(theirs);
    let mut fence = Fence::new(ours, Some(Duration::ZERO), now);
    assert_eq!(fence.step(now), Some(Fenced::Gone));
}

#[test]
fn a_peer_that_never_closes_is_not_fenced() {
    let _place = Place::new("never-closes");
    let now = Instant::now();
    let (ours, theirs) = pair();
    let mut fence = fence(ours, now);
    assert_unfenced(&mut fence, now);
    assert_eq!(fence.due(), None);
    // But it may close later.
    drop(theirs);
    until_gone(&mut fence);

    // Without a limit nothing is said, ever.
    for limit in [None, Some(Duration::MAX)] {
        let (ours, _theirs) = pair();
        let mut fence = Fence::new(ours, limit, now);
        assert_eq!(fence.due(), None);
        assert_eq!(fence.step(now + LIMIT * 1000), None);
    }
}

#[test]
fn a_peer_that_closed_only_half_is_not_gone() {
    let _place = Place::new("half");
    let now = Instant::now();
    let (ours, theirs) = pair();
    theirs.shutdown(Shutdown::Write).unwrap();
    let mut waiting = fence(ours, now);
    // An end of reading would keep an event loop awake.
    assert!(!waiting.watch().read);
    assert_eq!(waiting.due(), Some(now));
    assert_eq!(waiting.step(now), None);
    assert_eq!(waiting.due(), Some(now + LOOK));
    assert_unfenced(&mut waiting, now);
    drop(theirs);
    assert_eq!(waiting.step(now), Some(Fenced::Gone));

    // The same where we have stopped reading.
    let (ours, theirs) = pair();
    socket::stop_reading(ours.as_fd());
    let mut waiting = fence(ours, now);
    assert_unfenced(&mut waiting, now);
    drop(theirs);
    assert_eq!(waiting.step(now), Some(Fenced::Gone));

    // One that closes its reading side only is alive.
    let (ours, theirs) = pair();
    let mut waiting = fence(ours, now);
    theirs.shutdown(Shutdown::Read).unwrap();
    assert_unfenced(&mut waiting, now);
    drop(theirs);
    until_gone(&mut waiting);
}

/// What the kernel does not tell apart. Should this fail one day, the fence can be
/// made better.
#[test]
fn a_peer_that_closes_half_when_it_is_told_looks_gone() {
    let _place = Place::new("half-later");
    let now = Instant::now();
    let (ours, theirs) = pair();
    let mut fence = fence(ours, now);
    assert_eq!(fence.step(now), None);
    theirs.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fence.step(now), Some(Fenced::Gone));
}

#[test]
fn a_peer_that_is_stuck_in_writing_gets_on() {
    let place = Place::new("stuck");
    let now = Instant::now();
    let (ours, mut theirs) = pair();
    // More than a step takes, and descriptors with it.
    let file = std::fs::File::create(place.path().join("file")).unwrap();
    let parts = [IoSlice::new(b"with a descriptor")];
    for _ in 0..20 {
        let fds = [file.as_fd(), file.as_fd()];
        socket::send(theirs.as_fd(), &parts, &fds).unwrap();
    }
    drop(file);
    let writer = std::thread::spawn(move || {
        theirs.write_all(&vec![0; 4 << 20]).unwrap();
        // It reads only now.
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    });
    let mut fence = fence(ours, now);
    until_gone(&mut fence);
    writer.join().unwrap();
}

#[test]
fn a_peer_that_never_stops_writing_does_not_keep_a_step() {
    let _place = Place::new("flood");
    let now = Instant::now();
    let (ours, mut theirs) = pair();
    let mut fence = fence(ours, now);
    let writer = std::thread::spawn(move || while theirs.write_all(&[0; 65536]).is_ok() {});
    for _ in 0..50 {
        assert_eq!(fence.step(now), None);
    }
    assert_unfenced(&mut fence, now);
    drop(fence);
    writer.join().unwrap();
}

/// Ends it also if a test fails.
struct Process(Child);

impl Process {
    fn signal(&self, signal: &str) {
        let command = format!("kill -{signal} {}", self.0.id());
        let status = Command::new("sh").args(["-c", &command]).status();
        assert!(status.unwrap().success());
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.contains(") T ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_was_stopped_is_gone_once_it_goes_on() {
    let _place = Place::new("stopped");
    let now = Instant::now();
    let (ours, theirs) = pair();
    // It reads until the end.
    let process = Command::new("cat")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn();
    let mut process = Process(process.unwrap());
    process.signal("STOP");
    let deadline = Deadline::after(Some(PATIENCE));
    while !process.is_stopped() {
        assert!(!deadline.passed());
        std::thread::yield_now();
    }
    let mut fence = fence(ours, now);
    assert_unfenced(&mut fence, now);
    process.signal("CONT");
    until_gone(&mut fence);
    assert!(process.0.wait().unwrap().success());
}

#[test]
fn a_process_that_is_killed_is_gone() {
    let _place = Place::new("killed");
    let (ours, theirs) = pair();
    let process = Command::new("sleep")
        .arg("3600")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn();
    let process = Process(process.unwrap());
    let now = Instant::now();
    let mut fence = fence(ours, now);
    assert_unfenced(&mut fence, now);
    drop(process);
    until_gone(&mut fence);
}

#[test]
fn a_process_is_killed_at_the_limit_and_its_socket_still_tells() {
    let _place = Place::new("kills");
    let now = Instant::now();
    let options = ProcessOptions {
        arguments: ["-c", "exec sleep 1000"].map(Into::into).to_vec(),
        ..ProcessOptions::default()
    };
    let process = BackendProcess::start("/bin/sh".as_ref(), &options).unwrap();
    let process = Arc::new(process);
    // Somebody else has that end, too, and the memory perhaps.
    let (ours, theirs) = pair();
    let mut fence = fence(ours, now).killing(Some(super::super::link::Process::of(&process)));
    assert_eq!(fence.step(now + LIMIT - Duration::from_nanos(1)), None);
    assert_eq!(process.exit().unwrap(), None);
    assert_eq!(fence.step(now + LIMIT), None);
    let exit = process.wait(Timeout::After(PATIENCE)).unwrap();
    assert_eq!(exit, Exit::Signal(libc::SIGKILL));
    assert_eq!(fence.due(), Some(now + LIMIT + KILLED));
    let last = now + LIMIT + KILLED;
    assert_eq!(fence.step(last - Duration::from_nanos(1)), None);
    assert_eq!(fence.step(last), Some(Fenced::Unfenced));
    assert_eq!(fence.step(last), None);
    drop(theirs);
    until_gone(&mut fence);
}
