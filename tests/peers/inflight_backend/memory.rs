//! Guest memory, and the region in which requests in flight are recorded.

use std::fs::File;
use std::io::{self, Error};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    Address, AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion, VolatileMemory,
};

#[derive(Default)]
pub struct Memory {
    map: GuestMemoryMmap,
    regions: Vec<VhostUserMemoryRegion>,
}

impl Memory {
    pub fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> io::Result<()> {
        let start = GuestAddress(region.guest_phys_addr);
        let mapping = region.mmap_region(file).map_err(Error::other)?;
        let mapping = GuestRegionMmap::new(mapping, start)
            .ok_or_else(|| Error::other("a region ends beyond the address space"))?;
        let map = self.map.insert_region(Arc::new(mapping));
        self.map = map.map_err(Error::other)?;
        self.regions.push(*region);
        Ok(())
    }

    pub fn remove(&mut self, region: &VhostUserMemoryRegion) -> io::Result<()> {
        let start = GuestAddress(region.guest_phys_addr);
        let removed = self.map.remove_region(start, region.memory_size);
        (self.map, _) = removed.map_err(Error::other)?;
        self.regions
            .retain(|r| r.guest_phys_addr != region.guest_phys_addr);
        Ok(())
    }

    /// Where in guest memory something is that the front-end names by its own
    /// address, as it does with rings.
    pub fn translate(&self, user_addr: u64) -> io::Result<GuestAddress> {
        let found = self.regions.iter().find_map(|r| {
            let offset = user_addr.checked_sub(r.user_addr)?;
            (offset < r.memory_size).then(|| GuestAddress(r.guest_phys_addr + offset))
        });
        found.ok_or_else(|| Error::other(format!("no region has the address {user_addr:#x}")))
    }

    /// Sees whatever was written before the driver stored this.
    pub fn load<T: AtomicAccess>(&self, base: GuestAddress, offset: u64) -> io::Result<T> {
        let addr = base.unchecked_add(offset);
        self.map.load(addr, Ordering::SeqCst).map_err(Error::other)
    }

    /// Whoever sees this sees whatever was written before.
    pub fn store<T: AtomicAccess>(
        &self,
        base: GuestAddress,
        offset: u64,
        value: T,
    ) -> io::Result<()> {
        let addr = base.unchecked_add(offset);
        self.map
            .store(value, addr, Ordering::SeqCst)
            .map_err(Error::other)
    }

    pub fn get<T: ByteValued>(&self, base: GuestAddress, offset: u64) -> io::Result<T> {
        self.map
            .read_obj(base.unchecked_add(offset))
            .map_err(Error::other)
    }

    pub fn put<T: ByteValued>(&self, base: GuestAddress, offset: u64, value: T) -> io::Result<()> {
        self.map
            .write_obj(value, base.unchecked_add(offset))
            .map_err(Error::other)
    }

    pub fn read(&self, data: &mut [u8], addr: GuestAddress) -> io::Result<()> {
        self.map.read_slice(data, addr).map_err(Error::other)
    }

    pub fn write(&self, data: &[u8], addr: GuestAddress) -> io::Result<()> {
        self.map.write_slice(data, addr).map_err(Error::other)
    }
}

/// One ring's part of the in-flight region. Each store is whole or has not
/// happened, and they happen in the order in which they are written here,
/// whenever the program is killed.
pub struct Region {
    pub map: Arc<MmapRegion>,
    pub start: usize,
    /// How many descriptors it has room for.
    pub entries: u16,
}

impl Region {
    pub fn get<T: AtomicAccess>(&self, offset: usize) -> io::Result<T> {
        let slice = self.map.as_volatile_slice();
        let value = slice.load(self.start + offset, Ordering::SeqCst);
        value.map_err(Error::other)
    }

    pub fn set<T: AtomicAccess>(&self, offset: usize, value: T) -> io::Result<()> {
        let slice = self.map.as_volatile_slice();
        let stored = slice.store(value, self.start + offset, Ordering::SeqCst);
        stored.map_err(Error::other)
    }

    /// Refuses an index that came from where others can write.
    pub fn check(&self, index: u16) -> io::Result<u16> {
        if index < self.entries {
            return Ok(index);
        }
        Err(Error::other(format!(
            "the in-flight region has no entry {index}"
        )))
    }
}
