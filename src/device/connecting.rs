//! Waiting for the first back-end, for programs that want an error at once.

use super::Device;
use super::core::{Core, Mode};
use crate::backend_client::Timeout;
use crate::error::{Error, Result};

impl Device {
    /// Waits until there is a connection whose handshake has gone through and whose
    /// back-end offers what is required, and then returns at once.
    ///
    /// Tries to connect now, however long the next attempt was put off, and waits for a
    /// back-end that does not listen yet. Fails at once with the reason if a back-end
    /// does not take part in the handshake, lacks what is required, refuses a request or
    /// breaks the protocol. The device keeps trying, even so. Events are left for
    /// [`process`](Self::process).
    ///
    /// [`Kind::TimedOut`](crate::Kind::TimedOut) has the last cause in its text and
    /// fields.
    pub fn wait_connected(&self, timeout: Timeout) -> Result<()> {
        let mut core = self.lock();
        let before = core.history.unusable().0;
        if matches!(core.mode, Mode::Down) {
            core.link.begin(self.now());
        }
        drop(core);
        self.wait_until(timeout, |core: &Core| {
            if core.live().is_some_and(|live| live.connected) {
                return Some(Ok(()));
            }
            match core.history.unusable() {
                (now, Some(error)) if now != before => Some(Err(error.clone())),
                _ => None,
            }
        })
    }

    /// Why the device does not have what is wanted: the error with which
    /// [`wait`](Self::wait) would fail if its time had passed.
    pub(crate) fn explain(&self) -> Error {
        self.lock().explain(self.now())
    }
}
