//! Packed rings: places in them, and flags of descriptors.

/// VIRTIO_F_RING_PACKED
pub const PACKED: u64 = 1 << 34;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// How positions in a ring are counted: split from 0 to 65535, packed from 0 to twice the
/// size, as the wrap counter changes after the first half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counting {
    pub packed: bool,
    pub size: u16,
}

impl Counting {
    fn end(self) -> u32 {
        match self.packed {
            true => 2 * u32::from(self.size.max(1)),
            false => 1 << 16,
        }
    }

    /// The position this far behind another.
    pub fn add(self, position: u16, count: u16) -> u16 {
        let sum = u32::from(position) + u32::from(count);
        u16::try_from(sum % self.end()).unwrap()
    }

    /// How far `position` is ahead of `other`.
    pub fn ahead(self, position: u16, other: u16) -> u16 {
        let end = self.end();
        let (position, other) = (u32::from(position) % end, u32::from(other) % end);
        u16::try_from((position + end - other) % end).unwrap()
    }

    /// Half of a base, as a position.
    pub fn position(self, place: u16) -> u16 {
        let wrapped = place & 1 << 15 == 0;
        match self.packed {
            false => place,
            true => self.add(place & 0x7fff, if wrapped { self.size } else { 0 }),
        }
    }

    /// A position, as half of a base.
    pub fn place(self, position: u16) -> u16 {
        match self.packed {
            false => position,
            true => self.slot(position) | u16::from(self.wrap(position)) << 15,
        }
    }

    /// The index in the ring.
    pub fn slot(self, position: u16) -> u16 {
        position % self.size.max(1)
    }

    fn wrap(self, position: u16) -> bool {
        (position / self.size.max(1)) & 1 == 0
    }

    /// The positions in a base: of the next available descriptor, and of the next used one.
    /// The latter is 0 in a split ring.
    pub fn of_base(self, base: u32) -> (u16, u16) {
        let half = |at: u32| u16::try_from(base >> at & 0xffff).unwrap();
        let used = if self.packed {
            self.position(half(16))
        } else {
            0
        };
        (self.position(half(0)), used)
    }

    /// The base for these positions.
    pub fn base(self, available: u16, used: u16) -> u32 {
        let high = if self.packed { self.place(used) } else { 0 };
        u32::from(self.place(available)) | u32::from(high) << 16
    }

    /// Flags of a descriptor that the driver makes available here.
    pub fn available_flags(self, position: u16) -> u16 {
        if self.wrap(position) { AVAIL } else { USED }
    }

    /// Flags of a descriptor that the device has used here.
    pub fn used_flags(self, position: u16) -> u16 {
        if self.wrap(position) { AVAIL | USED } else { 0 }
    }

    /// The position behind all that is used, from one up to which the driver has looked.
    pub fn used(self, from: u16, flags: impl Fn(u16) -> u16) -> u16 {
        let is_used = |at: &u16| flags(self.slot(*at)) & (AVAIL | USED) == self.used_flags(*at);
        let count = (0..self.size)
            .map(|n| from.wrapping_add(n))
            .take_while(is_used)
            .count();
        from.wrapping_add(u16::try_from(count).unwrap())
    }
}
