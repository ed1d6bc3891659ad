//! One list of memory for several devices: checked with all of them, then told to
//! all, and confirmed by each for itself.

#[cfg(test)]
mod tests;

use super::core::{Core, forget, readable};
use super::driving::DEFAULT_WAIT;
use super::memory::{GuestRegion, MemoryList};
use super::visitors::{Visit, Visitors};
use super::{Device, made};
use crate::backend_client::Timeout;
use crate::error::{Error, Kind, Result};
use crate::room::room_for;
use crate::socket::{self, Bell, Deadline, Pollable, Watch};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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

#[derive(Debug)]
struct Member {
    device: Weak<Device>,
    visitors: Arc<Visitors>,
    grouped: Arc<AtomicBool>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.grouped.store(false, SeqCst);
    }
}

#[derive(Debug, Default)]
struct Members {
    memory: MemoryList,
    devices: Vec<Member>,
}

impl Members {
    /// Those that are not being freed.
    fn devices(&mut self) -> Vec<Visit> {
        self.devices.retain(|it| it.device.strong_count() > 0);
        let members = self.devices.iter();
        members
            .filter_map(|it| Visit::new(&it.visitors, &it.device))
            .collect()
    }
}

/// The locks of all of them. Nobody else has more than one, and who has them took them
/// in the same order.
fn locked(devices: &[Visit]) -> Vec<MutexGuard<'_, Core>> {
    let mut devices: Vec<(usize, &Device)> = devices.iter().map(|it| &**it).enumerate().collect();
    devices.sort_unstable_by_key(|(_, device)| ptr::from_ref(*device));
    let locks = devices.into_iter().map(|(place, it)| (place, it.lock()));
    let mut cores: Vec<_> = locks.collect();
    cores.sort_unstable_by_key(|(place, _)| *place);
    cores.into_iter().map(|(_, core)| core).collect()
}

/// A thread waits for a device, among others.
#[derive(Debug)]
struct Waiter {
    device: Visit,
    bell: Arc<Bell>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.device.wakes_no_longer(&self.bell);
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

    /// From now on the device has the memory of the group, and no call on the device changes
    /// it. It leaves when it is dropped. A device belongs to one group at most.
    pub fn join(&self, device: &Arc<Device>) -> Result<()> {
        let mut members = self.lock();
        let there = members.devices();
        if there.iter().any(|other| other.is(device)) {
            let text = "the device belongs to the group already";
            return Err(Error::new(Kind::State, text));
        }
        if device.grouped.swap(true, SeqCst) {
            let text = "the device belongs to another group: let it leave that first";
            return Err(Error::new(Kind::State, text));
        }
        // Dropped if the device does not join.
        let member = Member {
            device: Arc::downgrade(device),
            visitors: Arc::clone(&device.visitors),
            grouped: Arc::clone(&device.grouped),
        };
        device.change_memory(false, |memory| {
            memory.clone_from(&members.memory);
            Ok(())
        })?;
        members.devices.push(member);
        Ok(())
    }

    /// The device keeps its memory, and no longer follows the group.
    pub fn leave(&self, device: &Arc<Device>) {
        let device = Arc::downgrade(device);
        let mut members = self.lock();
        members.devices.retain(|it| !it.device.ptr_eq(&device));
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
        // As in Device::change_memory().
        room_for::<[GuestRegion; 4]>(memory.len().saturating_add(1))?;
        change(&mut memory)?;
        let devices = members.devices();
        // All at once: what was checked of one still holds when it is told.
        let mut cores = locked(&devices);
        for core in &cores {
            Device::check_change(core, &memory, allow_gap)?;
        }
        for core in &mut cores {
            core.share(memory.clone());
        }
        drop(cores);
        devices.iter().for_each(|device| device.rouse());
        members.memory = memory;
        Ok(())
    }

    /// Whether all of the devices could hold these regions.
    pub fn memory_fits(&self, regions: Vec<GuestRegion>) -> Result<()> {
        let list = MemoryList::new(regions)?;
        let devices = self.lock().devices();
        devices.iter().try_for_each(|device| device.fits(&list))
    }

    /// Waits until no device is [`Pending`](MemoryState::Pending) any more, and does
    /// for all of them what there is to do meanwhile. Whether that is so.
    pub fn wait(&self, timeout: Timeout) -> Result<bool> {
        let deadline = Deadline::after(timeout.or(DEFAULT_WAIT));
        let bell = Arc::new(Bell::new().map_err(made)?);
        let poll = Pollable::new().map_err(made)?;
        poll.watch(readable(bell.fd())).map_err(made)?;
        let devices = self.lock().devices();
        let waiter = |device: Visit| {
            device.waiters().push(Arc::clone(&bell));
            Waiter {
                device,
                bell: Arc::clone(&bell),
            }
        };
        let mut waiters: Vec<_> = devices.into_iter().map(waiter).collect();
        loop {
            // First: what rings while we are at it must not be missed.
            bell.silence();
            // Who frees one waits for us.
            waiters.retain(|it| {
                let leaves = it.device.visitors.are_leaving();
                if leaves {
                    forget(&poll, it.device.traffic.fd());
                }
                !leaves
            });
            let (mut pending, mut left) = (false, false);
            let mut until = deadline;
            for device in waiters.iter().map(|it| &*it.device) {
                let drove = match device.turn() {
                    Ok(drove) => drove,
                    Err(_) if device.visitors.are_leaving() => {
                        left = true;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let core = device.lock();
                pending |= core.memory_state() == MemoryState::Pending;
                let now = device.now();
                match core.due(now) {
                    Some(due) if drove => {
                        until = until.no_later_than(due.saturating_duration_since(now));
                    }
                    _ => {}
                }
                // What another thread is at stays readable as long as it is.
                let traffic = Watch {
                    read: drove,
                    ..readable(device.traffic.fd())
                };
                // What cannot be watched for is looked at when something else is.
                let _ = poll.watch(traffic);
            }
            match (pending, left) {
                (_, true) => continue,
                (false, false) => return Ok(true),
                (true, false) if deadline.passed() => return Ok(false),
                (true, false) => {}
            }
            socket::wait([readable(poll.fd())], until)
                .map_err(|errno| Error::os(errno, "cannot wait for the back-ends"))?;
        }
    }
}
