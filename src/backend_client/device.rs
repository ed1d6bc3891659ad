//! The device as a whole: configuration space, in-flight I/O, state, shared memory
//! and objects.

use super::{BackendClient, Call, Direction, Op, Timeout, decode, op};
use crate::error::{Error, Result};
use crate::message::{ConfigHeader, DeviceState, Inflight, NO_FD, Request, ShmemConfig, UUID_SIZE};
use crate::socket::ForeignFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use zerocopy::IntoBytes;

impl BackendClient {
    // ---- configuration space ----

    /// GET_CONFIG: fills `buffer` from the device's configuration space. Read
    /// from offset 0 for portability: libvhost-user and DPDK ignore the offset.
    pub fn get_config(&self, offset: u32, flags: u32, buffer: &mut [u8]) -> Result<()> {
        let header = Self::config_header(offset, flags, buffer.len());
        self.encode(&Op::GetConfig(header), |call| {
            self.ask(call, |reply| {
                buffer.copy_from_slice(op::config(&reply, header.size)?);
                Ok(())
            })
        })
    }

    fn config_header(offset: u32, flags: u32, size: usize) -> ConfigHeader {
        ConfigHeader {
            offset,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            flags,
        }
    }

    /// SET_CONFIG: writes to the device's configuration space.
    pub fn set_config(&self, offset: u32, flags: u32, data: &[u8]) -> Result<()> {
        let header = Self::config_header(offset, flags, data.len());
        self.tell_op(&Op::SetConfig(header, data))
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
        let wanted = Inflight {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues,
            queue_size,
            padding: 0,
        };
        self.encode(&Op::GetInflightFd(wanted), |call| {
            self.ask(call, |reply| op::inflight(reply, (num_queues, queue_size)))
        })
        .map(|(body, fd)| (body, fd.map(ForeignFd::into_fd)))
    }

    /// SET_INFLIGHT_FD: hands the buffer to the back-end, before any ring is
    /// started.
    pub fn set_inflight_fd(&self, inflight: &Inflight, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell_op(&Op::SetInflightFd(*inflight, fd))
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
                (0, 0, Some(fd)) if value == 0 => Ok(Some(fd.into_fd())),
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
        self.tell_op(&Op::ResetDevice)
    }

    /// SET_STATUS: the device status, 8 bits. 0 is a reset: what the device had mapped
    /// of its shared memory is unmapped. The virtio features count as acknowledged
    /// still, as back-ends differ in whether they forget them.
    pub fn set_status(&self, status: u32) -> Result<()> {
        self.tell_op(&Op::SetStatus(status))
    }

    /// GET_STATUS: the device status.
    pub fn get_status(&self) -> Result<u32> {
        let status = self.ask_number(&Op::GetStatus, Timeout::Default)?;
        Ok(u32::try_from(status).unwrap_or_default())
    }

    // ---- shared memory and objects ----

    /// GET_SHARED_OBJECT: the file of an object that the back-end exports.
    pub fn get_shared_object(&self, uuid: &[u8; UUID_SIZE]) -> Result<OwnedFd> {
        self.encode(&Op::GetSharedObject(uuid), |call| {
            self.ask(call, |reply| op::object(reply).map(ForeignFd::into_fd))
        })
    }

    /// GET_SHMEM_CONFIG: the sizes of the device's shared memory regions, by
    /// `shmid`. They do not change while the connection lives.
    pub fn get_shmem_config(&self) -> Result<ShmemConfig> {
        self.encode(&Op::GetShmemConfig, |call| {
            self.ask(call, |reply| self.shmem(&reply))
        })
    }
}
