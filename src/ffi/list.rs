//! Many requests at once.

use super::args::{self, Args};
use super::handle::{self, About};
use super::types::*;
use super::{boundary, device, vring};
use crate::backend_client::{BackendClient, List, Op, Submitted};
use crate::error::{Error, Result};
use crate::ffi::requests::*;
use crate::message::{Request, VringState};
use nix::errno::Errno;
use std::os::raw::c_int;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most requests in one list of vuf_client_submit().
pub const VUF_MAX_OPS: usize = 65536;

/// A request in a list of vuf_client_submit(). Zero it first; fields that request
/// does not name below stay zero (fd may be -1 as well).
///
///   VUF_REQUEST_SET_VRING_NUM     index, value: the size in descriptors
///   VUF_REQUEST_SET_VRING_ADDR    index, addr
///   VUF_REQUEST_SET_VRING_BASE    index, value: where the ring goes on
///   VUF_REQUEST_SET_VRING_KICK    index, fd: -1 for none
///   VUF_REQUEST_SET_VRING_CALL    the same
///   VUF_REQUEST_SET_VRING_ERR     the same
///   VUF_REQUEST_SET_VRING_ENABLE  index, value: 1 or 0
///   VUF_REQUEST_SET_VRING_ENDIAN  index, value: VUF_VRING_*_ENDIAN
///   VUF_REQUEST_VRING_KICK        index
///   VUF_REQUEST_SET_INFLIGHT_FD   inflight, fd
///   VUF_REQUEST_SET_LOG_FD        fd
///   VUF_REQUEST_SET_STATUS        value: the device status, and not 0
///   VUF_REQUEST_NET_SET_MTU       value
///   VUF_REQUEST_SEND_RARP         value: the address, its first byte lowest
///
/// Each means what the function of its name documents, vuf_client_set_vring_num()
/// and so on, and needs the same features.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct vuf_op {
    /// VUF_REQUEST_*
    pub request: u32,
    /// Index of the ring.
    pub index: u32,
    /// Borrowed for the call: the back-end gets a duplicate. 0 is taken for a field
    /// that was not set.
    pub fd: c_int,
    /// Zero.
    pub reserved0: u32,
    /// See above.
    pub value: u64,
    /// Read during the call.
    pub addr: *const vuf_vring_addr,
    /// Read during the call.
    pub inflight: *const vuf_inflight,
    /// Zero.
    pub reserved: [u64; 2],
}

/// What became of a list of requests. Set size to
/// sizeof(struct vuf_submit_result) before the call.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct vuf_submit_result {
    /// sizeof(struct vuf_submit_result)
    pub size: usize,
    /// How many went out, always the first of the list.
    pub sent: u32,
    /// How many of them are known to have been processed; those between applied and
    /// sent may have been.
    pub applied: u32,
    /// How many of them the back-end refused.
    pub refused: u32,
    /// Which was the first to fail, from 0; -1 if none did, or where that cannot be
    /// told: without VUF_PROTOCOL_F_REPLY_ACK.
    pub failed: i32,
    /// What the function returned. This and the next ones are as in
    /// struct vuf_error_info.
    pub code: c_int,
    /// Errno behind the code.
    pub errno_value: c_int,
    /// VUF_CLASS_*
    pub error_class: u32,
    /// VUF_PHASE_*
    pub phase: u32,
    /// Number of the request that failed.
    pub request: u32,
    /// Index of its ring; -1 if none.
    pub ring: i32,
    /// 1 if value is what the back-end sent.
    pub has_value: u32,
    /// Zero.
    pub reserved: u32,
    /// The back-end's raw value.
    pub value: u64,
}

args::extensible! { vuf_submit_result }

// Which fields a request has, as bits.
const INDEX: u32 = 1;
const VALUE: u32 = 2;
const FD: u32 = 4;
const ADDR: u32 = 8;
const INFLIGHT: u32 = 16;

/// The request that C means.
fn op<'c>(c: &'c Args, given: &vuf_op) -> Result<Op<'c>> {
    args::zero(&given.reserved, "the op")?;
    args::zero(&[u64::from(given.reserved0)], "the op")?;
    let index = given.index;
    let number = || {
        let text = "value of the op has more than 32 bits";
        u32::try_from(given.value).map_err(|_| Error::invalid(text))
    };
    let state = || number().map(|num| VringState { index, num });
    let fd = || c.field_fd(given.fd, "fd of the op");
    let optional_fd = || c.optional_field_fd(given.fd, "fd of the op");
    let (op, has) = match given.request {
        VUF_REQUEST_SET_VRING_NUM => (Op::SetVringNum(state()?), INDEX | VALUE),
        VUF_REQUEST_SET_VRING_BASE => (Op::SetVringBase(state()?), INDEX | VALUE),
        VUF_REQUEST_SET_VRING_ENDIAN => (Op::SetVringEndian(state()?), INDEX | VALUE),
        VUF_REQUEST_SET_VRING_ADDR => (
            Op::SetVringAddr(vring::address(c, index, given.addr)?),
            INDEX | ADDR,
        ),
        VUF_REQUEST_SET_VRING_KICK => (Op::SetVringKick(index, optional_fd()?), INDEX | FD),
        VUF_REQUEST_SET_VRING_CALL => (Op::SetVringCall(index, optional_fd()?), INDEX | FD),
        VUF_REQUEST_SET_VRING_ERR => (Op::SetVringErr(index, optional_fd()?), INDEX | FD),
        VUF_REQUEST_SET_VRING_ENABLE => match given.value {
            enable @ (0 | 1) => (Op::SetVringEnable(index, enable == 1), INDEX | VALUE),
            _ => return Err(Error::invalid("value of the op is neither 0 nor 1")),
        },
        VUF_REQUEST_VRING_KICK => (Op::VringKick(index), INDEX),
        VUF_REQUEST_SET_INFLIGHT_FD => {
            let op = Op::SetInflightFd(device::inflight(c, given.inflight)?, fd()?);
            (op, INFLIGHT | FD)
        }
        VUF_REQUEST_SET_LOG_FD => (Op::SetLogFd(fd()?), FD),
        VUF_REQUEST_SET_STATUS => (Op::SetStatus(number()?), VALUE),
        VUF_REQUEST_NET_SET_MTU => (Op::NetSetMtu(number()?), VALUE),
        VUF_REQUEST_SEND_RARP => match given.value.to_le_bytes() {
            [mac @ .., 0, 0] => (Op::SendRarp(mac), VALUE),
            _ => return Err(Error::invalid("value of the op has more than 48 bits")),
        },
        _ => return Err(Error::invalid("request of the op cannot be in a list")),
    };
    let fields = [
        (INDEX, index == 0, "index"),
        (VALUE, given.value == 0, "value"),
        (FD, matches!(given.fd, 0 | -1), "fd"),
        (ADDR, given.addr.is_null(), "addr"),
        (INFLIGHT, given.inflight.is_null(), "inflight"),
    ];
    for (field, empty, name) in fields {
        if has & field == 0 && !empty {
            return Err(Error::invalid(format!(
                "{name} of the op is set, which its request does not have"
            )));
        }
    }
    Ok(op)
}

fn public(submitted: &Submitted) -> vuf_submit_result {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let failure = submitted.failure.as_ref();
    let fields = failure.map_or(boundary::NOTHING, |failure| {
        boundary::fields(&failure.error)
    });
    let failed = failure.and_then(|failure| failure.index);
    vuf_submit_result {
        size: size_of::<vuf_submit_result>(),
        sent: number(submitted.sent),
        applied: number(submitted.applied),
        refused: number(submitted.refused),
        failed: failed
            .and_then(|index| i32::try_from(index).ok())
            .unwrap_or(-1),
        code: fields.code,
        errno_value: fields.errno_value,
        error_class: fields.error_class,
        phase: fields.phase,
        request: fields.request,
        ring: fields.ring,
        has_value: fields.has_value,
        reserved: 0,
        value: fields.value,
    }
}

/// Sends many requests without waiting for the answer to one before the next, and
/// then has seen that each was processed.
///
/// Up to 64 requests are on their way at once, up to 16 of those with descriptors,
/// and one system call sends as many. With VUF_PROTOCOL_F_REPLY_ACK every one is
/// acknowledged. Without it a GET_FEATURES behind the last shows that the back-end
/// has processed them all; what it refused cannot be told then.
///
/// All of them are checked, with what was agreed before the call, before the first
/// is sent. One that is refused ends the sending: the client stays of use, and those
/// that were on their way have been processed or refused when this returns. After
/// any other failure none is sent any more, and what became of those that were on
/// their way is not known.
///
/// ops         n requests; read during the call
/// n           up to VUF_MAX_OPS; 0 is fine
/// flags       0
/// timeout_ms  how long all of it may take. VUF_TIMEOUT_DEFAULT: each answer, from
///             the one before it, as long as that of the function would; also
///             VUF_TIMEOUT_FOREVER
/// result      gets what became of them, also on failure, unless nothing was looked
///             at; NULL if that is not wanted
///
/// Returns 0 if all were processed, otherwise what the function of the first that
/// failed would have returned, or
///   -EINVAL   ops or result is not valid, flags is not 0, a request cannot be in a
///             list, or a field is set that it does not have: nothing was sent
///   -E2BIG    n is above VUF_MAX_OPS, or result->size above 65536: likewise
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `ops` is null or points to
/// `n` structs, whose pointers are null or point to structs; `result` is null or
/// points to `result->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_submit(
    client: *mut vuf_client,
    ops: *const vuf_op,
    n: usize,
    flags: u32,
    timeout_ms: u32,
    result: *mut vuf_submit_result,
) -> c_int {
    let submit = |client: &BackendClient, c: &Args| {
        let size = match result.is_null() {
            true => None,
            false => Some(c.result_size(result, "result")?),
        };
        args::zero(&[u64::from(flags)], "the call: flags")?;
        if n > VUF_MAX_OPS {
            let text = format!("n is {n}, above {VUF_MAX_OPS}");
            return Err(Error::new(crate::error::Kind::Argument(Errno::E2BIG), text));
        }
        // SAFETY: any numbers will do, and pointers are the caller's promise.
        let ops = unsafe { c.array_pointers(ops, n, "ops") }?;
        let make = |index: usize| match ops.get(index) {
            Some(given) => {
                op(c, given).map_err(|error| error.about(Request::from_id(given.request)))
            }
            None => Err(Error::invalid("ops has become shorter")),
        };
        let list = List {
            number: ops.len(),
            op: &make,
        };
        let submitted = client.submit_list(list, args::timeout(timeout_ms));
        if let Some(size) = size {
            c.fill(result, size, &public(&submitted))?;
        }
        submitted
            .failure
            .map_or(Ok(()), |failure| Err(failure.error))
    };
    // SAFETY: the caller's promise.
    unsafe { handle::with_client(client, About::default(), submit) }
}
