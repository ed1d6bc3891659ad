//! Sends that the kernel refuses where nobody is to blame, as for want of memory: the
//! requests before and behind are answered as ever. The program has the functions of the
//! C library that send, which fail as the test says.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{FEATURES, Peer, adopted, both, no_fd_leak, patient, protocol};
use nix::errno::Errno;
use std::cell::RefCell;
use std::collections::VecDeque;
use vhost_user_frontend::message::{Request, VringState};
use vhost_user_frontend::{Class, Kind, Op, Phase, Timeout};

thread_local! {
    /// What the next sends of this thread do: fail, or what they ever do.
    static NEXT: RefCell<VecDeque<Option<Errno>>> = const { RefCell::new(VecDeque::new()) };
}

fn fails() -> bool {
    let next = NEXT.with_borrow_mut(VecDeque::pop_front).flatten();
    if let Some(errno) = next {
        errno.set();
    }
    next.is_some()
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(
    fd: libc::c_int,
    message: *const libc::msghdr,
    flags: libc::c_int,
) -> libc::ssize_t {
    if fails() {
        return -1;
    }
    // SAFETY: passed on.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as libc::ssize_t }
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(
    fd: libc::c_int,
    messages: *mut libc::mmsghdr,
    number: libc::c_uint,
    flags: libc::c_int,
) -> libc::c_int {
    if fails() {
        return -1;
    }
    // SAFETY: passed on.
    unsafe { libc::syscall(libc::SYS_sendmmsg, fd, messages, number, flags) as libc::c_int }
}

fn num(index: u32) -> Op<'static> {
    Op::SetVringNum(VringState { index, num: 8 })
}

/// Takes a request about this ring.
fn ring(peer: &Peer, index: u8) {
    let message = peer.expect(Request::SetVringNum);
    assert_eq!(message.payload[0], index);
}

#[test]
fn a_request_that_could_not_be_sent_takes_no_answer() {
    let _leak = no_fd_leak();
    // There is no room for the list; then there is, but not for the second.
    let plan = [Some(Errno::EAGAIN), None, Some(Errno::ENOBUFS), None];
    for refused in [0, 1] {
        let (client, peer) = adopted(FEATURES, protocol(true), patient());
        let front = || {
            NEXT.set(plan.into());
            let submitted = client.submit(&[num(0), num(1), num(2)], Timeout::Default);
            assert_eq!(NEXT.take(), []);
            (submitted, client.get_features())
        };
        let back = || {
            ring(&peer, 0);
            ring(&peer, 2);
            // Both in one read.
            let answer = |value: u64| {
                let header = [Request::SetVringNum.id(), 0x5, 8].map(u32::to_ne_bytes);
                [&header.concat()[..], &value.to_ne_bytes()].concat()
            };
            peer.send(&[answer(0), answer(refused)].concat(), &[]);
            peer.expect(Request::GetFeatures);
            peer.ack(Request::GetFeatures, FEATURES);
        };
        let ((submitted, features), ()) = both(front, back);
        assert_eq!(
            (submitted.sent, submitted.applied, submitted.refused),
            (1, 1, 0)
        );
        let failure = submitted.failure.unwrap();
        assert_eq!(failure.index, Some(1));
        assert_eq!(failure.error.kind, Kind::Os(Errno::ENOBUFS));
        assert_eq!(
            (failure.error.class(), failure.error.phase),
            (Class::Local, Phase::Send)
        );
        // The answer to the third was not taken for that to the second, nor for this.
        assert_eq!(features.unwrap(), FEATURES);
    }
}
