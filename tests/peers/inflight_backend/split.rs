//! A split ring, and its part of the in-flight region: "Inflight I/O tracking" in
//! the vhost-user specification.

use std::io::{self, Error};

use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;

use crate::memory::{Memory, Region};
use crate::ring::{Chain, DESC_NUM, Part, Ring, Setup, Started, VERSION};

// The region: a header, then an entry for each descriptor.
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADER: usize = 16;
const ENTRY: usize = 16;
/// This program clears a request before it puts the next one.
const BATCH: u16 = 1;
// An entry; only that of a chain's head is used.
const INFLIGHT: usize = 0;
const NEXT_IN_BATCH: usize = 6;
const COUNTER: usize = 8;

// Both rings: 16 bits of flags, the index, then the elements.
const IDX: u64 = 2;
const RING: u64 = 4;

pub struct Split {
    size: u16,
    desc: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
    avail_idx: u16,
    used_idx: u16,
    region: Option<Region>,
    /// Numbers the requests in the order in which they are taken.
    counter: u64,
}

pub fn region_size(entries: u16) -> usize {
    HEADER + ENTRY * usize::from(entries)
}

fn entry(index: u16, field: usize) -> usize {
    HEADER + ENTRY * usize::from(index) + field
}

/// Starts a ring from scratch, or where another process was killed.
pub fn start(setup: Setup, memory: &Memory) -> io::Result<Started> {
    if !setup.size.is_power_of_two() {
        return Err(Error::other("the size of a split ring is a power of two"));
    }
    let mut ring = Split {
        size: setup.size,
        desc: setup.desc,
        avail: setup.avail,
        used: setup.used,
        avail_idx: u16::try_from(setup.base).map_err(Error::other)?,
        used_idx: u16::from_le(memory.load(setup.used, IDX)?),
        region: setup.region,
        counter: 0,
    };
    let mut heads = Vec::new();
    if let Some(region) = &ring.region {
        // What is in flight is counted from the used index. A front-end that
        // counts it too, into the base, would have buffers left out.
        if ring.avail_idx != ring.used_idx {
            return Err(Error::other(format!(
                "the base is {}, and the used index {}",
                ring.avail_idx, ring.used_idx
            )));
        }
        heads = recover(region, ring.used_idx)?;
    }
    for (counter, _) in &heads {
        ring.counter = counter + 1;
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
    }
    let chains = heads.iter().map(|(_, head)| ring.chain(memory, *head));
    let chains = chains.collect::<io::Result<_>>()?;
    Ok((Box::new(ring), chains))
}

/// The heads that are in flight and their counters, oldest first.
fn recover(region: &Region, used_idx: u16) -> io::Result<Vec<(u64, u16)>> {
    if region.get::<u16>(VERSION)? == 0 {
        region.set(DESC_NUM, region.entries)?;
        region.set(USED_IDX, used_idx)?;
        // Last, so that a region is as good as new until all of it is valid.
        region.set(VERSION, 1_u16)?;
        return Ok(Vec::new());
    }
    // The last batch was given to the driver, and perhaps not cleared.
    let batch = used_idx.wrapping_sub(region.get(USED_IDX)?);
    if batch > BATCH {
        // The driver has begun the ring anew, as a device may start a ring that was
        // drained without a new region. With nothing in flight the region is as good as
        // new, and libvhost-user and DPDK only take over the used index, too. What is in
        // flight would be a request of before, and is not to be executed.
        for head in 0..region.entries {
            if region.get::<u8>(entry(head, INFLIGHT))? != 0 {
                return Err(Error::other("the in-flight region is that of another ring"));
            }
        }
        region.set(USED_IDX, used_idx)?;
        return Ok(Vec::new());
    }
    let mut head = region.get(LAST_BATCH_HEAD)?;
    for _ in 0..batch {
        region.set(entry(region.check(head)?, INFLIGHT), 0_u8)?;
        head = region.get(entry(head, NEXT_IN_BATCH))?;
    }
    region.set(USED_IDX, used_idx)?;

    let mut heads = Vec::new();
    for head in 0..region.entries {
        if region.get::<u8>(entry(head, INFLIGHT))? != 0 {
            heads.push((region.get(entry(head, COUNTER))?, head));
        }
    }
    heads.sort_unstable();
    Ok(heads)
}

impl Split {
    fn slot(&self, idx: u16) -> u64 {
        u64::from(idx % self.size)
    }

    fn chain(&self, memory: &Memory, head: u16) -> io::Result<Chain> {
        let mut parts = Vec::new();
        let mut next = Some(head);
        while let Some(index) = next {
            if index >= self.size || parts.len() >= self.size.into() {
                return Err(Error::other("a chain of descriptors has no end"));
            }
            let desc: Descriptor = memory.get(self.desc, u64::from(index) * 16)?;
            parts.push(Part {
                addr: desc.addr(),
                len: desc.len(),
                writable: desc.is_write_only(),
            });
            next = desc.has_next().then(|| desc.next());
        }
        Ok(Chain {
            parts,
            id: head,
            entry: head,
        })
    }
}

impl Ring for Split {
    fn take(&mut self, memory: &Memory) -> io::Result<Option<Chain>> {
        if u16::from_le(memory.load(self.avail, IDX)?) == self.avail_idx {
            return Ok(None);
        }
        let slot = RING + 2 * self.slot(self.avail_idx);
        let head = u16::from_le(memory.get(self.avail, slot)?);
        if let Some(region) = &self.region {
            let head = region.check(head)?;
            region.set(entry(head, COUNTER), self.counter)?;
            self.counter += 1;
            region.set(entry(head, INFLIGHT), 1_u8)?;
        }
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.chain(memory, head).map(Some)
    }

    fn put_used(&mut self, memory: &Memory, chain: &Chain, written: u32) -> io::Result<()> {
        if let Some(region) = &self.region {
            let last: u16 = region.get(LAST_BATCH_HEAD)?;
            region.set(entry(chain.entry, NEXT_IN_BATCH), last)?;
            region.set(LAST_BATCH_HEAD, chain.entry)?;
        }
        let slot = RING + 8 * self.slot(self.used_idx);
        memory.put(self.used, slot, u32::from(chain.id).to_le())?;
        memory.put(self.used, slot + 4, written.to_le())?;
        self.used_idx = self.used_idx.wrapping_add(1);
        memory.store(self.used, IDX, self.used_idx.to_le())
    }

    fn clear(&mut self, chain: &Chain) -> io::Result<()> {
        if let Some(region) = &self.region {
            region.set(entry(chain.entry, INFLIGHT), 0_u8)?;
            region.set(USED_IDX, self.used_idx)?;
        }
        Ok(())
    }

    fn base(&self) -> u32 {
        self.avail_idx.into()
    }
}
