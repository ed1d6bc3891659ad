//! A packed ring, and its part of the in-flight region: "Inflight I/O tracking" in
//! the vhost-user specification.
//!
//! The region keeps a copy of each descriptor in flight, because the driver's may
//! be overwritten by a used one before the request is done. Entries that are free
//! are in a list; those of one buffer are in a list too, from `entry` on.

use std::io::{self, Error};

use virtio_queue::desc::packed::Descriptor;
use vm_memory::{Address, GuestAddress};

use crate::memory::{Memory, Region};
use crate::ring::{Chain, DESC_NUM, NEXT, Part, Ring, Setup, Started, VERSION, WRITE};

// The region: a header, then an entry for each descriptor.
const FREE_HEAD: usize = 12;
const OLD_FREE_HEAD: usize = 14;
const PLACES: usize = 16;
const HEADER: usize = 32;
const ENTRY: usize = 32;
// An entry; those marked are used only where a buffer begins.
const INFLIGHT: usize = 0; // there
const NEXT_ENTRY: usize = 2;
const LAST: usize = 4; // there
const NUM: usize = 6; // there
const COUNTER: usize = 8; // there
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

// Of a descriptor in the ring: where they are, and bits of the last.
const DESC_LEN: u64 = 8;
const DESC_ID: u64 = 12;
const DESC_FLAGS: u64 = 14;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A place in the ring, and whether the wrap counter is 1 there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    const WRAP: u16 = 1 << 15;

    fn from_bits(bits: u16) -> Self {
        Self {
            at: bits & !Self::WRAP,
            wrap: bits & Self::WRAP != 0,
        }
    }

    fn bits(self) -> u16 {
        self.at | if self.wrap { Self::WRAP } else { 0 }
    }

    fn beyond(self, count: usize, size: u16) -> Self {
        let at = usize::from(self.at) + count;
        let turned = at >= usize::from(size);
        let at = if turned { at - usize::from(size) } else { at };
        Self {
            at: at as u16,
            wrap: self.wrap != turned,
        }
    }

    /// Whether these are the flags of a descriptor that the driver has made
    /// available here.
    fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == if self.wrap { AVAIL } else { USED }
    }
}

/// Where the next used descriptor goes, now and before the update under way.
#[derive(Clone, Copy)]
struct Places {
    used: Place,
    old: Place,
}

impl Places {
    /// All four fields in one load.
    fn load(region: &Region) -> io::Result<Self> {
        let [a, b, c, d, used_wrap, old_wrap, ..] = region.get::<u64>(PLACES)?.to_ne_bytes();
        Ok(Self {
            used: Place {
                at: u16::from_ne_bytes([a, b]),
                wrap: used_wrap != 0,
            },
            old: Place {
                at: u16::from_ne_bytes([c, d]),
                wrap: old_wrap != 0,
            },
        })
    }

    /// All four fields in one store: an index and a wrap counter that do not
    /// belong together could not be told from good ones.
    fn store(self, region: &Region) -> io::Result<()> {
        let [a, b] = self.used.at.to_ne_bytes();
        let [c, d] = self.old.at.to_ne_bytes();
        let (used_wrap, old_wrap) = (self.used.wrap.into(), self.old.wrap.into());
        let bytes = [a, b, c, d, used_wrap, old_wrap, 0, 0];
        region.set(PLACES, u64::from_ne_bytes(bytes))
    }
}

pub struct Packed {
    size: u16,
    desc: GuestAddress,
    avail: Place,
    used: Place,
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

/// Starts a ring from scratch, or where another process was killed. The base is
/// then only what the front-end last knew: the region knows better.
pub fn start(setup: Setup, memory: &Memory) -> io::Result<Started> {
    let half = |bits: u32| Place::from_bits(bits as u16);
    let mut ring = Packed {
        size: setup.size,
        desc: setup.desc,
        avail: half(setup.base),
        used: half(setup.base >> 16),
        region: setup.region,
        counter: 0,
    };
    let mut heads = Vec::new();
    if let Some(region) = &ring.region {
        if region.get::<u16>(VERSION)? == 0 {
            init(region, ring.used)?;
        }
        heads = recover(region, &ring, memory)?;
        ring.used = Places::load(region)?.used;
        ring.avail = ring.used;
    }
    if ring.used.at >= ring.size || ring.avail.at >= ring.size {
        return Err(Error::other("the base is beyond the ring"));
    }
    let mut chains = std::collections::VecDeque::new();
    for (counter, head) in heads {
        let chain = ring.recorded(head)?;
        ring.counter = counter + 1;
        ring.avail = ring.avail.beyond(chain.parts.len(), ring.size);
        chains.push_back(chain);
    }
    Ok((Box::new(ring), chains))
}

fn init(region: &Region, used: Place) -> io::Result<()> {
    region.set(DESC_NUM, region.entries)?;
    region.set(FREE_HEAD, 0_u16)?;
    region.set(OLD_FREE_HEAD, 0_u16)?;
    Places { used, old: used }.store(region)?;
    // The list ends with an index that no entry has.
    for index in 0..region.entries {
        region.set(entry(index, NEXT_ENTRY), index + 1)?;
    }
    // Last, so that a region is as good as new until all of it is valid.
    region.set(VERSION, 1_u16)
}

/// The entries where buffers in flight begin, and their counters, oldest first.
fn recover(region: &Region, ring: &Packed, memory: &Memory) -> io::Result<Vec<(u64, u16)>> {
    let places = Places::load(region)?;
    // A used descriptor was on its way to the driver. If it is there, the
    // update is finished, otherwise undone. Wrap counters are compared too: one
    // buffer may be as long as the ring.
    if places.used != places.old {
        let slot = u64::from(places.old.at) * 16;
        let flags = u16::from_le(memory.load(ring.desc, slot + DESC_FLAGS)?);
        if !places.old.is_available(flags) {
            commit(region, places.used)?;
        }
    }
    let free_head: u16 = region.get(OLD_FREE_HEAD)?;
    let old = Places::load(region)?.old;
    region.set(FREE_HEAD, free_head)?;
    Places { used: old, old }.store(region)?;

    let mut free = free_head;
    for _ in 0..region.entries {
        if free >= region.entries {
            break;
        }
        region.set(entry(free, INFLIGHT), 0_u8)?;
        free = region.get(entry(free, NEXT_ENTRY))?;
    }

    let mut heads = Vec::new();
    for head in 0..region.entries {
        if region.get::<u8>(entry(head, INFLIGHT))? != 0 {
            heads.push((region.get(entry(head, COUNTER))?, head));
        }
    }
    heads.sort_unstable();
    Ok(heads)
}

/// The update of `used` and the list of free entries is finished.
fn commit(region: &Region, used: Place) -> io::Result<()> {
    region.set(OLD_FREE_HEAD, region.get::<u16>(FREE_HEAD)?)?;
    Places { used, old: used }.store(region)
}

/// Copies a buffer's descriptors into free entries, and returns the first.
fn record(region: &Region, counter: u64, descs: &[Descriptor]) -> io::Result<u16> {
    let head = region.check(region.get(OLD_FREE_HEAD)?)?;
    region.set(entry(head, NUM), 0_u16)?;
    region.set(entry(head, COUNTER), counter)?;
    region.set(entry(head, INFLIGHT), 1_u8)?;
    for desc in descs {
        let free = region.check(region.get(FREE_HEAD)?)?;
        if !desc.has_next() {
            region.set(entry(head, LAST), free)?;
        }
        region.set(entry(head, NUM), region.get::<u16>(entry(head, NUM))? + 1)?;
        region.set(entry(free, ADDR), desc.addr().raw_value())?;
        region.set(entry(free, LEN), desc.len())?;
        region.set(entry(free, FLAGS), desc.flags())?;
        region.set(entry(free, ID), desc.id())?;
        region.set(FREE_HEAD, region.get::<u16>(entry(free, NEXT_ENTRY))?)?;
    }
    // Until here the entries are free for who recovers, and the ring has the
    // buffer.
    region.set(OLD_FREE_HEAD, region.get::<u16>(FREE_HEAD)?)?;
    Ok(head)
}

impl Packed {
    /// The descriptors of the buffer that is next in the ring; none if there is
    /// no buffer.
    fn available(&self, memory: &Memory) -> io::Result<Vec<Descriptor>> {
        let mut descs = Vec::new();
        let mut more = true;
        while more {
            let place = self.avail.beyond(descs.len(), self.size);
            let slot = u64::from(place.at) * 16;
            let flags = u16::from_le(memory.load(self.desc, slot + DESC_FLAGS)?);
            if !place.is_available(flags) {
                if descs.is_empty() {
                    return Ok(descs);
                }
                return Err(Error::other("a chain of descriptors is not all available"));
            }
            let desc: Descriptor = memory.get(self.desc, slot)?;
            more = desc.has_next();
            descs.push(desc);
            if more && descs.len() >= self.size.into() {
                return Err(Error::other("a chain of descriptors has no end"));
            }
        }
        Ok(descs)
    }

    /// A buffer from its entries in the region.
    fn recorded(&self, head: u16) -> io::Result<Chain> {
        let region = self.region.as_ref();
        let region = region.ok_or_else(|| Error::other("there is no region"))?;
        let num: u16 = region.get(entry(head, NUM))?;
        let last = region.check(region.get(entry(head, LAST))?)?;
        let mut parts = Vec::new();
        let mut index = head;
        for _ in 0..num {
            let at = region.check(index)?;
            let flags: u16 = region.get(entry(at, FLAGS))?;
            parts.push(Part {
                addr: GuestAddress(region.get(entry(at, ADDR))?),
                len: region.get(entry(at, LEN))?,
                writable: flags & WRITE != 0,
            });
            index = region.get(entry(at, NEXT_ENTRY))?;
            if (flags & NEXT == 0) != (at == last) {
                return Err(Error::other("the list of a buffer's entries is broken"));
            }
        }
        Ok(Chain {
            parts,
            id: region.get(entry(last, ID))?,
            entry: head,
        })
    }
}

impl Ring for Packed {
    fn take(&mut self, memory: &Memory) -> io::Result<Option<Chain>> {
        let descs = self.available(memory)?;
        let Some(last) = descs.last() else {
            return Ok(None);
        };
        let id = last.id();
        let entry = match &self.region {
            Some(region) => record(region, self.counter, &descs)?,
            None => 0,
        };
        self.counter += 1;
        self.avail = self.avail.beyond(descs.len(), self.size);
        let parts = descs.iter().map(|desc| Part {
            addr: desc.addr(),
            len: desc.len(),
            writable: desc.is_write_only(),
        });
        Ok(Some(Chain {
            parts: parts.collect(),
            id,
            entry,
        }))
    }

    fn put_used(&mut self, memory: &Memory, chain: &Chain, written: u32) -> io::Result<()> {
        let old = self.used;
        self.used = old.beyond(chain.parts.len(), self.size);
        if let Some(region) = &self.region {
            let free: u16 = region.get(FREE_HEAD)?;
            let last = region.check(region.get(entry(chain.entry, LAST))?)?;
            region.set(entry(last, NEXT_ENTRY), free)?;
            region.set(FREE_HEAD, chain.entry)?;
            let used = self.used;
            Places { used, old }.store(region)?;
        }
        let slot = u64::from(old.at) * 16;
        memory.put(self.desc, slot + DESC_LEN, written.to_le())?;
        memory.put(self.desc, slot + DESC_ID, chain.id.to_le())?;
        let turn = if old.wrap { AVAIL | USED } else { 0 };
        let flags = turn | if written > 0 { WRITE } else { 0 };
        memory.store(self.desc, slot + DESC_FLAGS, flags.to_le())
    }

    fn clear(&mut self, chain: &Chain) -> io::Result<()> {
        if let Some(region) = &self.region {
            region.set(entry(chain.entry, INFLIGHT), 0_u8)?;
            commit(region, self.used)?;
        }
        Ok(())
    }

    fn base(&self) -> u32 {
        u32::from(self.avail.bits()) | u32::from(self.used.bits()) << 16
    }
}
