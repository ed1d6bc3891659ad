//! What only devices of one kind have.

use super::{BackendClient, Call, CryptoKind, Op, checks};
use crate::error::{Error, Result};
use crate::message::{CryptoSession, Request};
use crate::wiped::Wiped;
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, IntoBytes};

impl BackendClient {
    /// SEND_RARP: has a network device announce this address after a migration.
    pub fn send_rarp(&self, mac: [u8; 6]) -> Result<()> {
        self.tell_op(&Op::SendRarp(mac))
    }

    /// NET_SET_MTU: the largest frame of a network device, 68 to 65535 bytes.
    pub fn net_set_mtu(&self, mtu: u32) -> Result<()> {
        self.tell_op(&Op::NetSetMtu(mtu))
    }

    /// GPU_SET_SOCKET: a socket on which a GPU back-end speaks to the front-end's
    /// display, in a protocol of its own.
    pub fn gpu_set_socket(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell_op(&Op::GpuSetSocket(fd))
    }

    /// CREATE_CRYPTO_SESSION: returns the number of the session. The answer
    /// repeats the keys, and stays in a buffer of the connection until another
    /// answer takes its place.
    pub fn create_crypto_session(&self, op_code: u64, kind: CryptoKind<'_>) -> Result<u64> {
        let request = Request::CreateCryptoSession;
        let (checked, session) = match kind {
            CryptoKind::Sym(session) => (checks::symmetric(op_code, session), session.as_bytes()),
            CryptoKind::Asym(session) => (checks::asymmetric(op_code, session), session.as_bytes()),
        };
        checked.map_err(|error| error.of(request))?;
        let mut body = Wiped::<CryptoSession>::zeroed();
        body.op_code = op_code;
        if let Some(place) = body.body.get_mut(..session.len()) {
            place.copy_from_slice(session);
        }
        self.ask(&Call::new(request, body.as_bytes()), |reply| {
            // Not the whole struct, which would be one more copy of the keys.
            let id = i64::read_from_suffix(reply.payload)
                .map_err(|_| Error::protocol("the reply has the wrong size"))?
                .1;
            u64::try_from(id).map_err(|_| Error::nack(u64::from_ne_bytes(id.to_ne_bytes())))
        })
    }

    /// CLOSE_CRYPTO_SESSION: ends a session.
    pub fn close_crypto_session(&self, session_id: u64) -> Result<()> {
        self.tell_u64(Request::CloseCryptoSession, session_id)
    }
}
