//! The configuration space as the guest sees it: what the back-end told last, and
//! the caller's own fields on top. Reading takes no other lock and never waits, as
//! vCPU threads do it.

use crate::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What the guest has written, as the back-end is to be told.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) offset: u32,
    pub(super) data: Vec<u8>,
    /// A back-end was lost over it.
    pub(super) fatal: bool,
}

#[derive(Debug, Default)]
struct Space {
    bytes: Vec<u8>,
    /// The back-end has told what `bytes` are.
    known: bool,
    generation: u32,
    /// One for each byte: it is the caller's.
    own: Vec<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Config(RwLock<Space>);

impl Config {
    pub(super) fn new(size: u32) -> Self {
        let size = usize::try_from(size).unwrap_or_default();
        Self(RwLock::new(Space {
            bytes: vec![0; size],
            own: vec![false; size],
            ..Space::default()
        }))
    }

    // Nothing below panics while it holds the lock.
    fn read_lock(&self) -> RwLockReadGuard<'_, Space> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Space> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A back-end has told it.
    pub(super) fn is_known(&self) -> bool {
        self.read_lock().known
    }

    /// Copies from `offset` on. The generation, by which a reader that reads in
    /// pieces can tell whether they belong together.
    pub(super) fn read(&self, offset: u32, buffer: &mut [u8]) -> Result<u32> {
        let space = self.read_lock();
        let range = range(offset, buffer.len())?;
        let known = space.known
            || space
                .own
                .get(range.clone())
                .is_some_and(|own| own.iter().all(|own| *own));
        let bytes = space.bytes.get(range).ok_or_else(beyond)?;
        if !known {
            let text = "the configuration space has not been read from the back-end yet";
            return Err(Error::new(Kind::State, text));
        }
        buffer.copy_from_slice(bytes);
        Ok(space.generation)
    }

    /// Makes bytes the caller's own: they win over those of the back-end.
    pub(super) fn overlay(&self, offset: u32, data: &[u8]) -> Result<()> {
        let mut space = self.write_lock();
        let range = range(offset, data.len())?;
        let place = space.bytes.get_mut(range.clone()).ok_or_else(beyond)?;
        place.copy_from_slice(data);
        if let Some(own) = space.own.get_mut(range) {
            own.fill(true);
        }
        space.generation = space.generation.wrapping_add(1);
        Ok(())
    }

    /// The guest writes. The parts that are for the back-end, if any: what is the
    /// caller's own stays here. Where there are some and `full`, nothing is written.
    pub(super) fn write(&self, offset: u32, data: &[u8], full: bool) -> Result<Vec<Write>> {
        let mut space = self.write_lock();
        let range = range(offset, data.len())?;
        let own = space.own.get(range.clone()).ok_or_else(beyond)?;
        let mut parts: Vec<Write> = Vec::new();
        let mut joins = false;
        for (at, (byte, own)) in (offset..).zip(data.iter().zip(own)) {
            match parts.last_mut().filter(|_| joins) {
                _ if *own => {}
                Some(last) => last.data.push(*byte),
                None => parts.push(Write {
                    offset: at,
                    data: vec![*byte],
                    fatal: false,
                }),
            }
            joins = !own;
        }
        if full && !parts.is_empty() {
            let text = "too many writes wait for the back-end";
            return Err(Error::new(Kind::Os(Errno::EAGAIN), text));
        }
        let place = space.bytes.get_mut(range).ok_or_else(beyond)?;
        if place != data {
            place.copy_from_slice(data);
            space.generation = space.generation.wrapping_add(1);
        }
        Ok(parts)
    }

    /// The back-end has told, and has not seen these writes. Whether that changed
    /// anything that the guest may have seen.
    pub(super) fn update<'a>(
        &self,
        bytes: &mut [u8],
        writes: impl Iterator<Item = &'a Write>,
    ) -> bool {
        for write in writes {
            // They fit: the size is the caller's.
            let place = range(write.offset, write.data.len());
            if let Some(place) = place.ok().and_then(|place| bytes.get_mut(place)) {
                place.copy_from_slice(&write.data);
            }
        }
        let mut space = self.write_lock();
        let Space {
            bytes: old, own, ..
        } = &mut *space;
        let mut changed = false;
        for ((old, new), own) in old.iter_mut().zip(&*bytes).zip(own) {
            if !*own {
                changed |= *old != *new;
                *old = *new;
            }
        }
        let known = std::mem::replace(&mut space.known, true);
        if changed || !known {
            space.generation = space.generation.wrapping_add(1);
        }
        changed && known
    }
}

fn range(offset: u32, len: usize) -> Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| beyond())?;
    let end = start.checked_add(len).ok_or_else(beyond)?;
    Ok(start..end)
}

fn beyond() -> Error {
    Error::invalid("offset + len is beyond the configuration space, whose size the caller gave")
}
