//! Requests that only devices of one kind know: network, GPU, crypto.

use super::args::{self, Args};
use super::handle;
use super::types::*;
use crate::backend_client::{BackendClient, CryptoKind};
use crate::error::{Error, Result};
use crate::message::{CryptoAsym, CryptoSym, Request, crypto};
use crate::wiped::Wiped;
use std::os::raw::c_int;
use zerocopy::IntoBytes;

/// Has a network device announce an address to its network (SEND_RARP).
///
/// Needs VUF_PROTOCOL_F_RARP. After a migration, where the driver does not do so
/// itself (VIRTIO_NET_F_GUEST_ANNOUNCE).
///
/// mac  the address: its first octet in bits 0-7, its last one in bits 40-47
///
/// Returns 0, otherwise
///   -EINVAL               mac has more than 48 bits
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_send_rarp(client: *mut vuf_client, mac: u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::SendRarp, |client, _| {
            client.send_rarp(octets(mac)?)
        })
    }
}

/// The octets of an address, the first in bits 0-7.
pub(super) fn octets(mac: u64) -> Result<[u8; 6]> {
    match mac.to_le_bytes() {
        [a, b, c, d, e, f, 0, 0] => Ok([a, b, c, d, e, f]),
        _ => Err(Error::invalid("mac has more than 48 bits")),
    }
}

/// Tells a network device its largest frame (NET_SET_MTU).
///
/// Needs VUF_PROTOCOL_F_MTU, and VIRTIO_NET_F_MTU (bit 3) acknowledged with
/// vuf_client_set_features().
///
/// mtu  the maximum transmission unit in bytes: 68 to 65535
///
/// Returns 0, otherwise
///   -EINVAL               mtu is out of range
///   VUF_E_NOT_NEGOTIATED  one of the features was not acknowledged
///   VUF_E_NACK            the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_net_set_mtu(client: *mut vuf_client, mtu: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::NetSetMtu, |client, _| {
            client.net_set_mtu(mtu)
        })
    }
}

/// Gives a GPU back-end the socket to the display (GPU_SET_SOCKET).
///
/// Needs no feature; only GPU back-ends know it. What is spoken there is the
/// vhost-user-gpu protocol, which this library does not serve.
///
/// fd  one end of a Unix stream socket pair; borrowed: the back-end gets a
///     duplicate. Close your copy of it afterwards.
///
/// Returns 0, otherwise
///   -EBADF      fd is negative or not open
///   VUF_E_NACK  the back-end refused
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `fd` stays open during
/// the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_gpu_set_socket(client: *mut vuf_client, fd: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::GpuSetSocket, |client, c| {
            client.gpu_set_socket(c.fd(fd, "fd")?)
        })
    }
}

/// Creates a session of a crypto device (CREATE_CRYPTO_SESSION).
///
/// Needs VUF_PROTOCOL_F_CRYPTO_SESSION. The library wipes its own copies of the
/// keys, with two exceptions: the back-end's answer may repeat them, and stays in
/// buffers of the client until another answer takes its place or the client's
/// memory is used again; and while the socket is full, what is to be sent waits
/// in memory that is not wiped.
///
/// session     what to create; read during the call
/// session_id  gets the number of the session
///
/// Returns 0, otherwise
///   -EINVAL               an argument is NULL, op_code creates no session, a
///                         key is longer than its room, the part that op_code
///                         does not choose or a reserved field is not zero, or
///                         session->size is too small
///   -E2BIG                session has fields that the library does not know
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused; the value in struct
///                         vuf_error_info is its negative answer
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed; `session` is null or
/// points to `session->size` bytes; `session_id` is null or points to room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_create_crypto_session(
    client: *mut vuf_client,
    session: *const vuf_crypto_session,
    session_id: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::CreateCryptoSession, |client, c| {
            let session_id = c.output(session_id, "session_id")?;
            session_id.write(create(client, c, session)?);
            Ok(())
        })
    }
}

fn create(client: &BackendClient, c: &Args, session: *const vuf_crypto_session) -> Result<u64> {
    let mut given = Wiped::<vuf_crypto_session>::zeroed();
    c.extensible_into(session, "session", &mut *given)?;
    let unused = |part: &[u8]| match part.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(Error::invalid(
            "the part of session that op_code does not choose is not zero",
        )),
    };
    if crypto::CREATE_ASYM.contains(&given.op_code) {
        unused(given.sym.as_bytes())?;
        let asym = &given.asym;
        args::zero(&[u64::from(asym.reserved)], "session")?;
        let mut wire = Wiped::<CryptoAsym>::zeroed();
        wire.algo = asym.algo;
        wire.key_type = asym.key_type;
        wire.key_len = asym.key_len;
        wire.padding_algo = asym.padding_algo;
        wire.hash_algo = asym.hash_algo;
        wire.key = asym.key;
        return client.create_crypto_session(given.op_code, CryptoKind::Asym(&wire));
    }
    unused(given.asym.as_bytes())?;
    let sym = &given.sym;
    args::zero(&[u64::from(sym.reserved)], "session")?;
    let mut wire = Wiped::<CryptoSym>::zeroed();
    wire.cipher_alg = sym.cipher_alg;
    wire.key_len = sym.key_len;
    wire.hash_alg = sym.hash_alg;
    wire.hash_result_len = sym.hash_result_len;
    wire.auth_key_len = sym.auth_key_len;
    wire.add_len = sym.add_len;
    wire.op_type = sym.op_type;
    wire.direction = sym.direction;
    wire.hash_mode = sym.hash_mode;
    wire.alg_chain_order = sym.alg_chain_order;
    wire.key = sym.key;
    wire.auth_key = sym.auth_key;
    client.create_crypto_session(given.op_code, CryptoKind::Sym(&wire))
}

/// Ends a session of a crypto device (CLOSE_CRYPTO_SESSION).
///
/// Needs VUF_PROTOCOL_F_CRYPTO_SESSION.
///
/// session_id  as vuf_client_create_crypto_session() told it
///
/// Returns 0, otherwise
///   VUF_E_NOT_NEGOTIATED  the protocol feature was not acknowledged
///   VUF_E_NACK            the back-end refused, as when there is no such session
/// or a common code.
///
/// # Safety
/// `client` is null or a client that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vuf_client_close_crypto_session(
    client: *mut vuf_client,
    session_id: u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        handle::with_client(client, Request::CloseCryptoSession, |client, _| {
            client.close_crypto_session(session_id)
        })
    }
}
