//! Descriptors that a back-end sends, and those that the kernel adds.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{
    FEATURES, PATIENCE, REPLY, adopted, both, connected_on, file, message, no_fd_leak, open_fds,
    patient, protocol, ready_for, wait_until,
};
use nix::errno::Errno;
use nix::sys::socket::{SetSockOpt, sockopt};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_user_frontend::message::{BackendRequest, Request};
use vhost_user_frontend::{BackendHandler, Kind};

/// Not in the libc crate.
const SO_PASSPIDFD: libc::c_int = 76;

/// Sets an option of a socket to 1. Whether the kernel knows it.
fn enable(socket: RawFd, option: libc::c_int) -> bool {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    // SAFETY: the call reads one int, which outlives it.
    let result = unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(socket, libc::SOL_SOCKET, option, value, size)
    };
    result == 0 || {
        assert_eq!(Errno::last(), Errno::ENOPROTOOPT);
        false
    }
}

#[test]
fn descriptors_of_the_sending_process_are_closed() {
    let _leak = no_fd_leak();
    let (ours, theirs) = UnixStream::pair().unwrap();
    if !enable(ours.as_raw_fd(), SO_PASSPIDFD) {
        return; // Linux before 6.5
    }
    let (client, peer) = connected_on(ours, theirs, patient());
    let before = open_fds();
    for _ in 0..300 {
        let (result, ()) = both(
            || client.get_features(),
            || {
                peer.expect(Request::GetFeatures);
                peer.ack(Request::GetFeatures, FEATURES);
            },
        );
        assert_eq!(result.unwrap(), FEATURES);
    }
    assert_eq!(open_fds(), before);
}

#[test]
fn other_control_data_takes_no_room_from_descriptors() {
    let _leak = no_fd_leak();
    for sent in [8, 32, 33, 253] {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        for option in [libc::SO_PASSCRED, libc::SO_PASSSEC, SO_PASSPIDFD] {
            enable(client.as_fd().as_raw_fd(), option);
        }
        let (result, ()) = both(
            || client.get_features(),
            || {
                peer.expect(Request::GetFeatures);
                let reply = message(Request::GetFeatures.id(), REPLY, &[0; 8]);
                peer.send(&reply, &vec![file(0); sent]);
            },
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind, Kind::Protocol, "{sent} descriptors: {error}");
        let value = (sent <= 32).then_some(u64::try_from(sent).unwrap());
        assert_eq!(error.value, value, "{error}");
    }
}

/// How long closing a [`lingering`] socket takes.
const LINGER: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_millis(1000);

/// A socket that takes [`LINGER`] to close: its peer does not read what was sent.
fn lingering() -> (OwnedFd, TcpListener) {
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
    (socket.into(), listener)
}

/// Runs it, and says how long it took.
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (run(), start.elapsed())
}

fn assert_all_are_closed(before: usize) {
    wait_until("descriptors are closed", PATIENCE, || open_fds() == before);
}

#[test]
fn closing_a_surplus_descriptor_delays_no_call() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let before = open_fds();
    let (socket, listener) = lingering();
    let ((result, took), ()) = both(
        || timed(|| client.get_features()),
        || {
            peer.expect(Request::GetFeatures);
            let reply = message(Request::GetFeatures.id(), REPLY, &[0; 8]);
            let (header, payload) = reply.split_at(12);
            peer.send(header, &[socket.as_fd()]);
            // Now the message has the last one.
            drop(socket);
            peer.send(payload, &[]);
        },
    );
    assert_eq!(result.unwrap_err().kind, Kind::Protocol);
    assert!(took < SOON, "{took:?}");
    drop(listener);
    assert_all_are_closed(before);
}

#[test]
fn closing_a_descriptor_that_was_not_read_delays_no_drop() {
    let _leak = no_fd_leak();
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let before = open_fds();
    let (socket, listener) = lingering();
    peer.send(&[0; 4], &[socket.as_fd()]);
    drop(socket);
    let ((), took) = timed(|| drop(client));
    assert!(took < SOON, "{took:?}");
    drop(listener);
    drop(peer);
    assert_all_are_closed(before - 2);
}

/// Has no function for any request.
struct Nothing;

impl BackendHandler for Nothing {
    fn handles(&self, _request: BackendRequest) -> bool {
        false
    }
}

#[test]
fn closing_a_descriptor_of_a_refused_request_delays_no_call() {
    let _leak = no_fd_leak();
    let (client, peer) = ready_for(Request::SetBackendReqFd, true, patient());
    let (_, channel) = both(
        || client.open_backend_channel(Arc::new(Nothing)).unwrap(),
        || {
            let mut given = peer.expect(Request::SetBackendReqFd);
            peer.ack(Request::SetBackendReqFd, 0);
            common::Peer::on(given.fds.remove(0))
        },
    );
    let before = open_fds();
    let (socket, listener) = lingering();
    for request in BackendRequest::ALL {
        let asked = message(request.id(), 1, &[0; 40]);
        channel.send(&asked, &[socket.as_fd()]);
    }
    drop(socket);
    let (result, took) = timed(|| client.process_backend_requests());
    result.unwrap();
    assert!(took < SOON, "{took:?}");
    drop(listener);
    assert_all_are_closed(before);
}
