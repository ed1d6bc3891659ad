//! Sharing guest memory.

use super::core::{Core, Live};
use super::memory::{self, GuestRegion, Limits, MemoryList};
use super::{Device, MemoryState, Quiet, ring};
use crate::error::{Error, Kind, Result};
use crate::message::ProtocolFeatures;
use crate::room::room_for;
use nix::errno::Errno;
use std::sync::atomic::Ordering;

impl Device {
    /// All guest memory, in any order. While rings run, what is there already has to stay,
    /// unless `allow_gap`. This and the next two fail for a device that belongs to a
    /// [group](super::MemoryGroup).
    pub fn set_memory(&self, regions: Vec<GuestRegion>, allow_gap: bool) -> Result<()> {
        let list = MemoryList::new(regions)?;
        self.change_own_memory(allow_gap, |memory| {
            *memory = list;
            Ok(())
        })
    }

    /// One region more.
    pub fn add_memory(&self, region: GuestRegion) -> Result<()> {
        self.change_own_memory(false, |memory| memory.add(region))
    }

    /// Takes away the region with these bounds. Whether no back-end uses it any
    /// more: before that it must not be unmapped, and [`quiet`](Self::quiet) tells.
    pub fn remove_memory(&self, guest_addr: u64, size: u64) -> Result<Quiet> {
        self.change_own_memory(true, |memory| memory.remove(guest_addr, size))?;
        Ok(self.quiet())
    }

    /// The next change of a group would undo one of the device's own.
    fn change_own_memory(
        &self,
        allow_gap: bool,
        change: impl FnOnce(&mut MemoryList) -> Result<()>,
    ) -> Result<()> {
        self.change_memory(allow_gap, |memory| {
            if self.grouped.load(Ordering::SeqCst) {
                let text = "the device belongs to a memory group: change the memory of the \
                            group, or let the device leave it first";
                return Err(Error::new(Kind::State, text));
            }
            change(memory)
        })
    }

    pub(super) fn change_memory(
        &self,
        allow_gap: bool,
        change: impl FnOnce(&mut MemoryList) -> Result<()>,
    ) -> Result<()> {
        let mut core = self.lock();
        let mut memory = core.memory.clone();
        // The list is copied, and the copies are compared.
        room_for::<[GuestRegion; 4]>(memory.len().saturating_add(1))?;
        change(&mut memory)?;
        Self::check_change(&core, &memory, allow_gap)?;
        core.share(memory);
        drop(core);
        self.rouse();
        Ok(())
    }

    /// Whether a list could be [shared](Core::share).
    pub(super) fn check_change(core: &Core, memory: &MemoryList, allow_gap: bool) -> Result<()> {
        if let Some(live) = core.live() {
            if live.connected {
                memory::fits(memory, Self::limits(live))?;
            }
            let sent = live.actual.sent.memory.as_ref();
            let before = &core.memory;
            let changes = sent.and_then(|sent| memory::changes_live(sent, before, memory));
            let runs = live.actual.runs_on(&core.wanted);
            if let (Some(region), true, false) = (changes, runs, allow_gap) {
                let text = format!("{region}, would change while rings run");
                return Err(Error::new(Kind::Argument(Errno::EBUSY), text));
            }
        }
        // Rings that are to run need their memory, whoever is there now.
        let features = core.wanted.features.unwrap_or_default();
        for kept in core.rings.iter().filter_map(|ring| ring.kept.as_ref()) {
            if !ring::lies_in(kept, features, memory) {
                let index = kept.addr.index;
                let text = format!("ring {index} lies in what would be taken away");
                return Err(Error::new(Kind::Argument(Errno::EBUSY), text).ring(index));
            }
        }
        Ok(())
    }

    /// How far the back-end has got with the memory that is wanted.
    pub fn memory_state(&self) -> MemoryState {
        self.lock().memory_state()
    }

    pub(super) fn limits(live: &Live) -> Limits {
        Limits {
            slots: live.actual.slots.told(),
            configure: live.actual.agreed(ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        }
    }

    /// Whether the back-end could hold these regions; without one, whether any
    /// could.
    pub fn memory_fits(&self, regions: Vec<GuestRegion>) -> Result<()> {
        self.fits(&MemoryList::new(regions)?)
    }

    pub(super) fn fits(&self, list: &MemoryList) -> Result<()> {
        let core = self.lock();
        let unknown = Limits {
            slots: None,
            configure: true,
        };
        memory::fits(list, core.live().map_or(unknown, Self::limits))
    }
}
