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
#[path = "common/device.rs"]
mod device;
#[path = "common/slow_file.rs"]
mod slow_file;

use blk_ring::Layout;
use common::{
    FEATURES, PATIENCE, REPLY, adopted, both, connected_on, file, get_all_control_data, message,
    no_fd_leak, open_fds, patient, protocol, ready_for, wait_until,
};
use device::{blk_peer, blk_ring, stepper, vmm};
use nix::sys::socket::MsgFlags;
use slow_file::SlowFile;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stepper::{Manners, Stepper};
use vhost_user_frontend::message::{BackendRequest, Request, ShmemArea};
use vhost_user_frontend::{BackendClient, BackendHandler, Base, EventKind, Kind, StopMode};
use vmm::Vmm;

#[test]
fn descriptors_of_the_sending_process_are_closed() {
    let _leak = no_fd_leak();
    let (ours, theirs) = UnixStream::pair().unwrap();
    if !get_all_control_data(ours.as_fd()) {
        common::skipped("Linux sends no pidfds before 6.5");
        return;
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
        get_all_control_data(client.as_fd());
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

/// Less than [`slow_file::LINGER`].
const SOON: Duration = Duration::from_millis(1000);

/// Runs a call and checks that it does not wait for the owner of a descriptor.
fn soon<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let took = start.elapsed();
    assert!(took < SOON, "{what}: {took:?}");
    result
}

/// Runs a test with each kind of slow file, and checks that it closes all descriptors.
fn with_slow_files(test: impl Fn(SlowFile)) {
    let _leak = no_fd_leak();
    let before = open_fds();
    for kind in slow_file::Kind::ALL {
        if let Some(file) = kind.open() {
            test(file);
            let closed = || open_fds() == before;
            wait_until(&format!("all is closed: {kind:?}"), PATIENCE, closed);
        }
    }
}

/// Checks the peer that the following tests depend on.
#[test]
fn slow_files_are_slow() {
    with_slow_files(|mut file| {
        let (one, other) = UnixStream::pair().unwrap();
        let (one, other) = (common::Peer::on(one.into()), common::Peer::on(other.into()));
        one.send(&[0], &[file.as_fd()]);
        file.sent();
        let (_, fds) = other.read(1, MsgFlags::empty()).unwrap();
        let start = Instant::now();
        drop(fds);
        assert!(start.elapsed() > SOON, "{:?}", start.elapsed());
    });
}

#[test]
fn closing_a_surplus_descriptor_delays_no_call() {
    with_slow_files(|mut file| {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        let (result, ()) = both(
            || soon("a request", || client.get_features()),
            || {
                peer.expect(Request::GetFeatures);
                let reply = message(Request::GetFeatures.id(), REPLY, &[0; 8]);
                let (header, payload) = reply.split_at(12);
                peer.send(header, &[file.as_fd()]);
                file.sent();
                peer.send(payload, &[]);
            },
        );
        assert_eq!(result.unwrap_err().kind, Kind::Protocol);
    });
}

#[test]
fn closing_a_descriptor_that_was_not_read_delays_no_drop() {
    with_slow_files(|mut file| {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        peer.send(&[0; 4], &[file.as_fd()]);
        file.sent();
        soon("a drop", || drop(client));
    });
}

/// Rejects every request, or accepts every mapping.
struct Handler {
    maps: bool,
}

impl BackendHandler for Handler {
    fn handles(&self, _request: BackendRequest) -> bool {
        self.maps
    }
    fn shmem_map(&self, _area: &ShmemArea, fd: OwnedFd) -> i32 {
        // Closing the file takes as long here as in the library.
        std::thread::spawn(move || drop(fd));
        0
    }
}

/// A client with pending requests from its back-end, each of which carries the file.
fn asked(
    mut file: SlowFile,
    handler: Handler,
    requests: &[(BackendRequest, [u8; 40])],
) -> (SlowFile, BackendClient, common::Peer, common::Peer) {
    let (client, peer) = ready_for(Request::SetBackendReqFd, true, patient());
    let (_, channel) = both(
        || client.open_backend_channel(Arc::new(handler)).unwrap(),
        || {
            let mut given = peer.expect(Request::SetBackendReqFd);
            peer.ack(Request::SetBackendReqFd, 0);
            common::Peer::on(given.fds.remove(0))
        },
    );
    for (request, payload) in requests {
        channel.send(&message(request.id(), 0x9, payload), &[file.as_fd()]);
    }
    file.sent();
    (file, client, peer, channel)
}

#[test]
fn closing_a_descriptor_of_a_refused_request_delays_no_call() {
    with_slow_files(|file| {
        let requests: Vec<_> = BackendRequest::ALL
            .iter()
            .map(|it| (*it, [0; 40]))
            .collect();
        let handler = Handler { maps: false };
        let (_file, client, _peer, _channel) = asked(file, handler, &requests);
        soon("requests", || client.process_backend_requests().unwrap());
    });
}

/// The length of the file is checked, but its owner is not asked.
#[test]
fn checking_a_mapping_does_not_wait_for_the_file() {
    with_slow_files(|file| {
        let mut area = [0; 40];
        area[24] = 0x10; // bytes
        let handler = Handler { maps: true };
        let (_file, client, _peer, channel) =
            asked(file, handler, &[(BackendRequest::ShmemMap, area)]);
        soon("a request", || client.process_backend_requests().unwrap());
        // The kernel does not know the length of a FUSE file that nobody has looked at.
        let answer = channel.receive();
        assert_eq!(answer.code, BackendRequest::ShmemMap.id());
        let refused = i64::from(-libc::EINVAL);
        assert_eq!(answer.payload, refused.to_ne_bytes());
    });
}

/// A device keeps the in-flight buffer for the next back-end.
#[test]
fn slow_in_flight_buffer_does_not_delay_a_device() {
    let _leak = no_fd_leak();
    let before = open_fds();
    let Some(mut file) = slow_file::Kind::FileSystem.open() else {
        return;
    };
    let mut vmm = Vmm::new(Layout::Split, 1, stepper::early);
    let mut peer = Stepper::beside(&vmm, Manners::default());
    peer.buffer = Some(file.as_fd().try_clone_to_owned().unwrap());
    // The kernel knows its size.
    nix::sys::stat::fstat(file.as_fd()).unwrap();
    file.sent();
    vmm.want_all();
    soon("a start", || vmm.until_applied_beside(&mut peer));
    assert!(peer.told.inflight.is_some());
    peer.hang_up();
    soon("a loss", || vmm.until_beside(EventKind::Lost, &mut peer));
    soon("a recovery", || vmm.until_applied_beside(&mut peer));
    assert_eq!(peer.count(Request::GetInflightFd), 1);
    // Rings that begin anew have another buffer.
    vmm.device.stop(None, StopMode::Abandon);
    vmm.start(Base::New);
    soon("a start anew", || vmm.until_applied_beside(&mut peer));
    assert_eq!(peer.count(Request::GetInflightFd), 2);
    soon("the facts", || vmm.device.info());
    soon("a drop", || drop(vmm));
    drop(file);
    drop(peer);
    wait_until("all is closed", PATIENCE, || open_fds() == before);
}
