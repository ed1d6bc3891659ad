//! One list of memory for several devices: checked with all of them, then told to
//! all, and confirmed by each for itself.

use super::Device;
use super::memory::{GuestRegion, MemoryList};
use crate::backend_client::Timeout;
use crate::error::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// How far a device has got with the memory that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryState {
    /// Its back-end has exactly this memory.
    Applied,
    /// Not told yet, or not confirmed: a back-end may still use what was taken
    /// away.
    Pending,
    /// There is no back-end. None uses the memory; the next one is told.
    Absent,
    /// A back-end refused it, and was given up; the next one is told.
    Failed,
    /// A back-end that was given up before it confirmed may still write what was
    /// taken away: it must not be unmapped.
    Unconfirmed,
}

#[derive(Debug, Default)]
struct Members {
    memory: MemoryList,
    devices: Vec<Weak<Device>>,
}

impl Members {
    fn devices(&mut self) -> Vec<Arc<Device>> {
        self.devices.retain(|device| device.strong_count() > 0);
        self.devices.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Devices that share all guest memory.
///
/// A change is refused as a whole where one of them could not take it (it would
/// not fit, or a running ring lies there). What then goes wrong with one, as its
/// back-end refuses or is gone, does not hold up the others.
#[derive(Debug, Default)]
pub struct MemoryGroup(Mutex<Members>);

impl MemoryGroup {
    /// Without memory and devices.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the device has the memory of the group. It leaves when it is
    /// dropped.
    pub fn join(&self, device: &Arc<Device>) -> Result<()> {
        let mut members = self.lock();
        let there = members.devices();
        if there.iter().any(|other| Arc::ptr_eq(other, device)) {
            let text = "the device belongs to the group already";
            return Err(Error::new(Kind::State, text));
        }
        device.check_memory(&members.memory, false)?;
        device.apply_memory(&members.memory);
        members.devices.push(Arc::downgrade(device));
        Ok(())
    }

    /// The device keeps its memory, and no longer follows the group.
    pub fn leave(&self, device: &Arc<Device>) {
        let device = Arc::downgrade(device);
        let mut members = self.lock();
        members.devices.retain(|other| !other.ptr_eq(&device));
    }

    /// All guest memory; see [`Device::set_memory`].
    pub fn set_memory(&self, regions: Vec<GuestRegion>, allow_gap: bool) -> Result<()> {
        let list = MemoryList::new(regions)?;
        self.change(allow_gap, |memory| {
            *memory = list;
            Ok(())
        })
    }

    /// One region more.
    pub fn add_memory(&self, region: GuestRegion) -> Result<()> {
        self.change(false, |memory| memory.add(region))
    }

    /// Takes a region away. [`wait`](Self::wait) tells when nobody uses it any more.
    pub fn remove_memory(&self, guest_addr: u64, size: u64) -> Result<()> {
        self.change(true, |memory| memory.remove(guest_addr, size))
    }

    fn change(
        &self,
        allow_gap: bool,
        change: impl FnOnce(&mut MemoryList) -> Result<()>,
    ) -> Result<()> {
        let mut members = self.lock();
        let mut memory = members.memory.clone();
        change(&mut memory)?;
        let devices = members.devices();
        for device in &devices {
            device.check_memory(&memory, allow_gap)?;
        }
        for device in &devices {
            device.apply_memory(&memory);
        }
        members.memory = memory;
        Ok(())
    }

    /// Whether all of the devices could hold these regions.
    pub fn memory_fits(&self, regions: Vec<GuestRegion>) -> Result<()> {
        let list = MemoryList::new(regions)?;
        let devices = self.lock().devices();
        devices.iter().try_for_each(|device| device.fits(&list))
    }

    /// Waits until no device is [`Pending`](MemoryState::Pending) any more, each
    /// within what is left of the time. Whether that is so.
    pub fn wait(&self, timeout: Timeout) -> Result<bool> {
        let devices = self.lock().devices();
        let begin = Instant::now();
        let mut settled = true;
        for device in devices {
            let left = match timeout {
                Timeout::After(time) => Timeout::After(time.saturating_sub(begin.elapsed())),
                other => other,
            };
            settled &= device.wait_for_memory(left)?;
        }
        Ok(settled)
    }
}
