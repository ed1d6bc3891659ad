//! The calls about the configuration space that go beyond reading and writing it.

use super::config::Progress;
use super::core::{Core, Mode};
use super::options::check_config_size;
use super::plan::Asked;
use super::{Device, busy};
use crate::backend_client::Timeout;
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request};

impl Device {
    /// Chooses how many bytes the configuration space has, for a device that was opened
    /// with [`CONFIG_SIZE_LATER`](super::CONFIG_SIZE_LATER), or whose back-end refused the size before. Possible
    /// until a back-end has returned its configuration space.
    pub fn set_config_size(&self, size: u32) -> Result<()> {
        check_config_size(size)?;
        if size == 0 {
            return Err(Error::invalid("config_size is 0"));
        }
        let mut core = self.lock();
        match core.wanted.config_size {
            same if same == size => return Ok(()),
            0 => {
                let text = "the device was opened without a configuration space; open it \
                            with VUF_CONFIG_SIZE_LATER";
                return Err(Error::new(Kind::State, text));
            }
            before if self.config.is_known() => {
                let text = format!("the configuration space was read with {before} bytes");
                return Err(Error::new(Kind::State, text));
            }
            _ => {}
        }
        if core.config_writes_pending() {
            return Err(busy(
                "writes to the configuration space wait for the back-end",
            ));
        }
        let Core { mode, link, .. } = &mut *core;
        match mode {
            Mode::Up(live) if live.actual.config == Asked::Asking => {
                return Err(busy("GET_CONFIG with another size is not answered yet"));
            }
            Mode::Up(live) => live.actual.config = Asked::Not,
            // A back-end that was refused because of the size is tried again.
            Mode::Down if self.config.is_refused() => link.begin(self.now()),
            _ => {}
        }
        core.wanted.config_size = size;
        self.config.resize(size);
        self.moved(core);
        Ok(())
    }

    /// Supplies bytes of the configuration space that count until a back-end returns
    /// its own. Does nothing once one has.
    pub fn assume_config(&self, offset: u32, data: &[u8]) -> Result<()> {
        self.config.assume(offset, data)
    }

    /// As [`read_config`](Self::read_config), but fails with EAGAIN while the
    /// configuration space has not been read since the last write. Never waits.
    pub fn read_current_config(&self, offset: u32, buffer: &mut [u8]) -> Result<u32> {
        self.config.read_current(offset, buffer)
    }

    /// Waits until a back-end has returned its configuration space, and has done so
    /// after all writes that were made before this call.
    pub fn wait_config(&self, timeout: Timeout) -> Result<()> {
        let writes = self.config.written();
        self.wait_until(timeout, |core| core.config_progress(writes))
    }
}

impl Core {
    fn config_progress(&self, writes: u64) -> Option<Result<()>> {
        let lacks = self
            .live()
            .is_some_and(|live| live.connected && !live.actual.agreed(ProtocolFeatures::CONFIG));
        let none = |kind, text: &'static str| Some(Err(Error::new(kind, text)));
        match self.config.progress(writes) {
            Progress::Current => Some(Ok(())),
            Progress::Refused(error) => Some(Err(error)),
            Progress::Unsized => none(
                Kind::State,
                "the size of the configuration space has not been set",
            ),
            Progress::Behind if self.wanted.config_size == 0 => none(
                Kind::State,
                "the device was opened without a configuration space",
            ),
            Progress::Behind if lacks => {
                let text = "the back-end has no configuration space: it does not offer CONFIG";
                let error = Error::new(Kind::NotNegotiated, text).of(Request::GetConfig);
                Some(Err(error))
            }
            Progress::Behind => None,
        }
    }
}
