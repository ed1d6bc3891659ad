//! The device as a whole: configuration space, in-flight I/O, state, shared memory
//! and objects.

use super::{BackendClient, Call, Direction, NOTHING, checks, decode};
use crate::error::{Error, Result};
use crate::message::{
    ConfigHeader, DeviceState, Inflight, MAX_CONFIG_SIZE, NO_FD, Request, SHMEM_REGIONS,
    ShmemConfig, UUID_SIZE,
};
use std::os::fd::{BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

impl BackendClient {
    // ---- configuration space ----

    /// GET_CONFIG: fills `buffer` from the device's configuration space. Read
    /// from offset 0 for portability: libvhost-user and DPDK ignore the offset.
    pub fn get_config(&self, offset: u32, flags: u32, buffer: &mut [u8]) -> Result<()> {
        let request = Request::GetConfig;
        let header =
            checks::config(offset, flags, buffer.len()).map_err(|error| error.of(request))?;
        // The rust-vmm back-ends want the room for the answer in the request.
        let zeros = [0_u8; MAX_CONFIG_SIZE];
        let call = Call {
            payload: zeros.get(..buffer.len()).unwrap_or_default(),
            ..Call::new(request, header.as_bytes())
        };
        self.ask(&call, |reply| {
            if reply.payload.is_empty() {
                return Err(Error::refused()); // as libvhost-user and DPDK do
            }
            let (answer, bytes) = ConfigHeader::read_from_prefix(reply.payload)
                .map_err(|_| Error::protocol("the reply is shorter than its own header"))?;
            if answer.size == 0 && bytes.is_empty() {
                return Err(Error::refused()); // as the rust-vmm back-ends do
            }
            if answer.size != header.size || bytes.len() != buffer.len() {
                let text = "the reply has another number of bytes than was asked for";
                return Err(Error::protocol(text).value(u64::from(answer.size)));
            }
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// SET_CONFIG: writes to the device's configuration space.
    pub fn set_config(&self, offset: u32, flags: u32, data: &[u8]) -> Result<()> {
        let request = Request::SetConfig;
        let header =
            checks::config(offset, flags, data.len()).map_err(|error| error.of(request))?;
        self.tell(&Call {
            payload: data,
            ..Call::new(request, header.as_bytes())
        })
    }

    // ---- in-flight I/O ----

    /// GET_INFLIGHT_FD: has the back-end make the buffer in which it tracks
    /// requests in flight. No descriptor comes back where it wants no buffer,
    /// with `mmap_size` 0. Its layout depends on the virtio features, so
    /// SET_FEATURES comes first.
    pub fn get_inflight_fd(
        &self,
        num_queues: u16,
        queue_size: u16,
    ) -> Result<(Inflight, Option<OwnedFd>)> {
        let request = Request::GetInflightFd;
        let body = Inflight {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues,
            queue_size,
            padding: 0,
        };
        checks::inflight(&body).map_err(|error| error.of(request))?;
        self.ask(&Call::new(request, body.as_bytes()), |mut reply| {
            let answer: Inflight = decode(&reply)?;
            match (answer.mmap_size, reply.fd.take()) {
                // The rust-vmm back-ends send a descriptor even then.
                (0, _) => Ok((answer, None)),
                (_, None) => Err(Error::protocol("no file descriptor came with the buffer")),
                (_, fd) => Ok((answer, fd)),
            }
        })
    }

    /// SET_INFLIGHT_FD: hands the buffer to the back-end, before any ring is
    /// started.
    pub fn set_inflight_fd(&self, inflight: &Inflight, fd: BorrowedFd<'_>) -> Result<()> {
        let request = Request::SetInflightFd;
        checks::inflight(inflight)
            .and_then(|()| checks::inflight_buffer(inflight))
            .map_err(|error| error.of(request))?;
        self.tell(&Call::new(request, inflight.as_bytes()).fds(&[fd]))
    }

    // ---- device state ----

    /// SET_DEVICE_STATE_FD: begins to save or load the state of a device whose
    /// rings are all stopped. A descriptor that comes back replaces `fd`.
    pub fn set_device_state_fd(
        &self,
        direction: Direction,
        fd: BorrowedFd<'_>,
    ) -> Result<Option<OwnedFd>> {
        const FAILED: u64 = 0xff;
        let body = DeviceState {
            direction: match direction {
                Direction::Save => 0,
                Direction::Load => 1,
            },
            phase: 0,
        };
        let call = Call::new(Request::SetDeviceStateFd, body.as_bytes());
        self.ask(&call.fds(&[fd]), |mut reply| {
            let value: u64 = decode(&reply)?;
            match (value & FAILED, value & NO_FD, reply.fd.take()) {
                // Not all say then that there is no descriptor.
                (1.., _, None) => Err(Error::nack(value)),
                (0, 0, Some(fd)) if value == 0 => Ok(Some(fd)),
                (0, NO_FD, None) if value == NO_FD => Ok(None),
                _ => {
                    let text = "the reply and the file descriptors with it do not match";
                    Err(Error::protocol(text).value(value))
                }
            }
        })
    }

    /// CHECK_DEVICE_STATE: whether the state went over whole, after the end of
    /// its channel has been seen (save) or made (load).
    pub fn check_device_state(&self) -> Result<()> {
        match self.ask_u64(Request::CheckDeviceState)? {
            0 => Ok(()),
            value => Err(Error::nack(value).of(Request::CheckDeviceState)),
        }
    }

    /// RESET_DEVICE: the device is as new, and its rings are disabled. The virtio
    /// features have to be acknowledged again; protocol features, owner and
    /// memory stay. Stop the rings first.
    pub fn reset_device(&self) -> Result<()> {
        self.tell(&Call::new(Request::ResetDevice, NOTHING))?;
        self.negotiated.reset_device();
        if let Some(desk) = self.desk.get() {
            self.connection.while_unserved(|| desk.reset());
        }
        Ok(())
    }

    /// SET_STATUS: the device status, 8 bits.
    pub fn set_status(&self, status: u32) -> Result<()> {
        let request = Request::SetStatus;
        checks::status(status).map_err(|error| error.of(request))?;
        self.tell_u64(request, u64::from(status))
    }

    /// GET_STATUS: the device status.
    pub fn get_status(&self) -> Result<u32> {
        self.ask(&Call::new(Request::GetStatus, NOTHING), |reply| {
            let value: u64 = decode(&reply)?;
            u8::try_from(value)
                .map(u32::from)
                .map_err(|_| Error::protocol("the device status has more than 8 bits").value(value))
        })
    }

    // ---- shared memory and objects ----

    /// GET_SHARED_OBJECT: the file of an object that the back-end exports.
    pub fn get_shared_object(&self, uuid: &[u8; UUID_SIZE]) -> Result<OwnedFd> {
        self.ask(&Call::new(Request::GetSharedObject, uuid), |mut reply| {
            reply.fd.take().ok_or_else(Error::refused)
        })
    }

    /// GET_SHMEM_CONFIG: the sizes of the device's shared memory regions, by
    /// `shmid`. They do not change while the connection lives.
    pub fn get_shmem_config(&self) -> Result<ShmemConfig> {
        self.ask(&Call::new(Request::GetShmemConfig, NOTHING), |reply| {
            let mut config: ShmemConfig = decode(&reply)?;
            if !usize::try_from(config.nregions).is_ok_and(|n| n <= SHMEM_REGIONS) {
                let text = "there are more regions than there can be";
                return Err(Error::protocol(text).value(u64::from(config.nregions)));
            }
            // The sizes are what counts, and not all back-ends count them.
            let sizes = config.memory_sizes.iter().filter(|size| **size != 0);
            config.nregions = u32::try_from(sizes.count()).unwrap_or_default();
            self.negotiated.set_shmem(&config.memory_sizes);
            Ok(config)
        })
    }
}
