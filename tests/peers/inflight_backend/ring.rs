//! What the two forms of a ring have in common.

use std::collections::VecDeque;
use std::io;

use vm_memory::GuestAddress;

use crate::memory::{Memory, Region};

/// Bits of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Both forms of the region have it here. 0 is a region that was never used.
pub const VERSION: usize = 8;
pub const DESC_NUM: usize = 10;

/// What a ring starts with.
pub struct Setup {
    pub size: u16,
    pub base: u32,
    pub desc: GuestAddress,
    pub avail: GuestAddress,
    pub used: GuestAddress,
    /// None where in-flight tracking was not agreed.
    pub region: Option<Region>,
}

/// A piece of a buffer.
#[derive(Clone, Copy)]
pub struct Part {
    pub addr: GuestAddress,
    pub len: u32,
    pub writable: bool,
}

/// A buffer that the driver has made available.
pub struct Chain {
    pub parts: Vec<Part>,
    /// What the driver knows it by: the head in a split ring, an id in a packed one.
    pub id: u16,
    /// Its entry in the in-flight region.
    pub entry: u16,
}

/// A ring that runs.
pub trait Ring: Send {
    /// The next buffer, recorded as in flight.
    fn take(&mut self, memory: &Memory) -> io::Result<Option<Chain>>;

    /// Gives a buffer back to the driver.
    fn put_used(&mut self, memory: &Memory, chain: &Chain, written: u32) -> io::Result<()>;

    /// Records that the buffer that was put last is not in flight any more.
    fn clear(&mut self, chain: &Chain) -> io::Result<()>;

    /// Where it stands, as GET_VRING_BASE tells it.
    fn base(&self) -> u32;
}

/// A ring, and what was in flight in it, in the order in which it was taken.
pub type Started = (Box<dyn Ring>, VecDeque<Chain>);
