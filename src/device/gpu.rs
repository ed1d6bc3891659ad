//! The socket on which a GPU back-end speaks to the display (GPU_SET_SOCKET).

use super::Device;
use super::core::Core;
use super::plan::Actual;
use crate::error::{Error, Result};
use std::os::fd::OwnedFd;

impl Device {
    /// Gives a GPU back-end the socket to the display: the one that is connected, or else
    /// the next. Each socket is for one back-end: what is spoken there cannot be continued
    /// by another process. After a loss supply another one.
    pub fn set_gpu_socket(&self, socket: OwnedFd) -> Result<()> {
        let mut core = self.lock();
        core.gpu_sockets = core.gpu_sockets.saturating_add(1);
        core.wanted.gpu = Some(core.gpu_sockets);
        core.gpu = Some(socket);
        self.moved(core);
        Ok(())
    }
}

impl Core {
    /// A back-end is lost: the next cannot use its socket.
    pub(super) fn lose_gpu_socket(&mut self, actual: &Actual) {
        let sent = actual.sent.gpu.or(actual.confirmed.gpu);
        if sent.is_some() && sent == self.wanted.gpu {
            self.wanted.gpu = None;
            self.gpu = None;
        }
    }

    /// The back-end has refused the socket with this number.
    pub(super) fn gpu_socket_refused(&mut self, number: u64, error: Error) {
        if self.wanted.gpu != Some(number) {
            return;
        }
        self.wanted.gpu = None;
        self.gpu = None;
        let text = format!("the socket to the display: {}", error.message);
        self.report_refusal(error.saying(text));
    }
}
