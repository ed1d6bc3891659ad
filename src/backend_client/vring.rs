//! Rings.

use super::{BackendClient, Op, Timeout};
use crate::error::Result;
use crate::message::{VringAddr, VringState};
use std::os::fd::BorrowedFd;

impl BackendClient {
    /// SET_VRING_NUM: the size of a ring in descriptors.
    pub fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.tell_op(&Op::SetVringNum(VringState { index, num }))
    }

    /// SET_VRING_ADDR: where a ring lies.
    pub fn set_vring_addr(&self, addr: &VringAddr) -> Result<()> {
        self.tell_op(&Op::SetVringAddr(*addr))
    }

    /// SET_VRING_BASE: where a ring goes on. Split: the next available index, in
    /// 16 bits. Packed: bits 0-14 available index, 15 its wrap counter, 16-30
    /// used index, 31 its wrap counter.
    pub fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.tell_op(&Op::SetVringBase(VringState { index, num: base }))
    }

    /// GET_VRING_BASE: stops a ring and tells where it stood, in the form of
    /// [`set_vring_base`](Self::set_vring_base). The back-end finishes the
    /// requests that it has taken, so this may take as long as they do.
    ///
    /// Back-ends drop the kick and call descriptors of a stopped ring; send them
    /// again before it is restarted.
    pub fn get_vring_base(&self, index: u32, timeout: Timeout) -> Result<u32> {
        self.stop_vring(&Op::GetVringBase(index), timeout)
    }

    /// GET_VRING_BASE_SKIP_DRAIN: the same without finishing anything. What is
    /// left stands in the in-flight buffer.
    pub fn get_vring_base_skip_drain(&self, index: u32) -> Result<u32> {
        self.stop_vring(&Op::GetVringBaseSkipDrain(index), Timeout::Default)
    }

    fn stop_vring(&self, op: &Op<'_>, timeout: Timeout) -> Result<u32> {
        let base = self.ask_number(op, timeout)?;
        Ok(u32::try_from(base).unwrap_or_default())
    }

    /// SET_VRING_ENABLE: whether the back-end processes a ring. Needs bit 30
    /// acknowledged; without it rings are enabled from the start.
    pub fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.tell_op(&Op::SetVringEnable(index, enable))
    }

    /// SET_VRING_KICK: what the driver writes to notify the device; this starts
    /// the ring. `None`: the back-end shall poll the ring, which few can: the
    /// rust-vmm ones acknowledge it and never start the ring.
    pub fn set_vring_kick(&self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.tell_op(&Op::SetVringKick(index, fd))
    }

    /// VRING_KICK: the driver notifies the device, by a message in place of an
    /// eventfd; this starts the ring.
    pub fn vring_kick(&self, index: u32) -> Result<()> {
        self.tell_op(&Op::VringKick(index))
    }

    /// SET_VRING_ENDIAN: the byte order of a legacy driver's ring, 0 little or 1
    /// big.
    pub fn set_vring_endian(&self, index: u32, endian: u32) -> Result<()> {
        let num = endian;
        self.tell_op(&Op::SetVringEndian(VringState { index, num }))
    }

    /// SET_VRING_CALL: what the device writes to notify the driver. `None`: the
    /// driver polls.
    pub fn set_vring_call(&self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.tell_op(&Op::SetVringCall(index, fd))
    }

    /// SET_VRING_ERR: what the device writes when a ring is broken. `None`:
    /// nothing.
    pub fn set_vring_err(&self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.tell_op(&Op::SetVringErr(index, fd))
    }
}
