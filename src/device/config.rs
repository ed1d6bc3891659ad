//! The configuration space as the guest reads it: the bytes that the back-end returned
//! last, the guest's writes that the back-end has not answered, and the caller's own
//! bytes on top. Reading takes no other lock and never waits, because vCPU threads do
//! it.

use super::options::CONFIG_SIZE_LATER;
use crate::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A write of the guest, as it is sent to the back-end.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) offset: u32,
    pub(super) data: Vec<u8>,
    /// A back-end was lost over it.
    pub(super) fatal: bool,
}

#[derive(Debug, Default)]
struct Space {
    /// The bytes that the guest reads.
    bytes: Vec<u8>,
    /// The bytes that the back-end has, as far as that is known: those of its last
    /// reply, and the writes that it has accepted since.
    theirs: Vec<u8>,
    /// `false` until a size was chosen.
    sized: bool,
    /// A back-end has returned its configuration space.
    known: bool,
    generation: u32,
    /// One for each byte: the caller's own, which wins over the back-end's.
    own: Vec<bool>,
    /// One for each byte: the caller's assumption, which yields to the back-end's.
    assumed: Vec<bool>,
    /// Counts the writes that are for the back-end.
    written: u64,
    /// How many of these the last attempt to read the space came after.
    covered: u64,
    /// Why the last attempt failed.
    refused: Option<Error>,
    /// The read that is under way was caused by the guest's own writes alone: the
    /// guest knows that the space changes.
    quiet: bool,
    /// Such a read has found changes that were not reported.
    adopted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Config {
    space: RwLock<Space>,
    /// A guest may have been shown something before the first back-end returned its
    /// configuration space.
    exposed: AtomicBool,
}

/// What somebody who waits for the configuration space finds.
#[derive(Debug)]
pub(super) enum Progress {
    /// It has been read since.
    Current,
    /// It has not been read yet.
    Behind,
    /// The back-end does not return it.
    Refused(Error),
    /// Nothing is read before a size was chosen.
    Unsized,
}

impl Config {
    /// `exposed`: a guest may run before a back-end is known.
    pub(super) fn new(size: u32, exposed: bool) -> Self {
        let this = Self {
            exposed: AtomicBool::new(exposed),
            ..Self::default()
        };
        if size != CONFIG_SIZE_LATER {
            this.resize(size);
        }
        this
    }

    /// Chooses the size. The caller has made sure that nothing is known.
    pub(super) fn resize(&self, size: u32) {
        let size = usize::try_from(size).unwrap_or_default();
        let mut space = self.write_lock();
        space.sized = true;
        space.bytes.resize(size, 0);
        space.theirs.resize(size, 0);
        space.own.resize(size, false);
        space.assumed.resize(size, false);
        // The refusal was one of another size.
        space.refused = None;
    }

    // Nothing below panics while it holds the lock.
    fn read_lock(&self) -> RwLockReadGuard<'_, Space> {
        self.space.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Space> {
        self.space.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A back-end has returned it.
    pub(super) fn is_known(&self) -> bool {
        self.read_lock().known
    }

    /// The last attempt to read it was refused.
    pub(super) fn is_refused(&self) -> bool {
        self.read_lock().refused.is_some()
    }

    /// Copies from `offset` on. Returns the generation, by which a reader that reads in
    /// pieces can decide whether they belong together.
    pub(super) fn read(&self, offset: u32, buffer: &mut [u8]) -> Result<u32> {
        let space = self.read_lock();
        if !space.sized {
            self.exposed.store(true, Ordering::Relaxed);
        }
        self.copy(&space, offset, buffer)
    }

    /// Likewise, but fails with EAGAIN while the effect of a write is not known.
    pub(super) fn read_current(&self, offset: u32, buffer: &mut [u8]) -> Result<u32> {
        let space = self.read_lock();
        if space.written != space.covered {
            range_of(&space, offset, buffer.len())?;
            let text = "the configuration space has not been read since the last write";
            return Err(Error::new(Kind::Os(Errno::EAGAIN), text));
        }
        match space.refused.as_ref().filter(|_| space.known) {
            Some(refused) => Err(refused.clone()),
            None => self.copy(&space, offset, buffer),
        }
    }

    fn copy(&self, space: &Space, offset: u32, buffer: &mut [u8]) -> Result<u32> {
        let range = range_of(space, offset, buffer.len())?;
        let mut ours = space.own.iter().zip(&space.assumed);
        let known = space.known
            || ours
                .by_ref()
                .skip(range.start)
                .take(range.len())
                .all(|(own, assumed)| *own || *assumed);
        if !known {
            self.exposed.store(true, Ordering::Relaxed);
            return Err(space.refused.clone().unwrap_or_else(|| {
                let text = "the configuration space has not been read from the back-end yet";
                Error::new(Kind::State, text)
            }));
        }
        let bytes = space.bytes.get(range).ok_or_else(beyond)?;
        buffer.copy_from_slice(bytes);
        Ok(space.generation)
    }

    /// Makes bytes the caller's own: they win over those of the back-end.
    pub(super) fn overlay(&self, offset: u32, data: &[u8]) -> Result<()> {
        let mut space = self.write_lock();
        let range = range_of(&space, offset, data.len())?;
        let place = space.bytes.get_mut(range.clone()).ok_or_else(beyond)?;
        place.copy_from_slice(data);
        if let Some(own) = space.own.get_mut(range) {
            own.fill(true);
        }
        space.generation = space.generation.wrapping_add(1);
        Ok(())
    }

    /// Supplies bytes that count until a back-end returns its own.
    pub(super) fn assume(&self, offset: u32, data: &[u8]) -> Result<()> {
        let mut space = self.write_lock();
        let range = range_of(&space, offset, data.len())?;
        if space.known {
            return Ok(());
        }
        let Space {
            bytes,
            theirs,
            own,
            assumed,
            generation,
            ..
        } = &mut *space;
        let mine = bytes.iter_mut().zip(theirs).zip(own.iter().zip(assumed));
        let places = mine.skip(range.start).zip(data);
        for (((byte, theirs), (own, assumed)), new) in places {
            *theirs = *new;
            *assumed = true;
            if !own {
                *byte = *new;
            }
        }
        *generation = generation.wrapping_add(1);
        Ok(())
    }

    /// The guest writes. Returns the parts that are for the back-end, if any: bytes that
    /// are the caller's own stay here. If there are such parts and `full`, nothing is
    /// written.
    pub(super) fn write(&self, offset: u32, data: &[u8], full: bool) -> Result<Vec<Write>> {
        let mut space = self.write_lock();
        let range = range_of(&space, offset, data.len())?;
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
        let count = u64::try_from(parts.len()).unwrap_or(u64::MAX);
        space.written = space.written.saturating_add(count);
        Ok(parts)
    }

    /// The back-end has accepted a write.
    pub(super) fn accepted(&self, write: &Write) {
        lay(&mut self.write_lock().theirs, write);
    }

    /// Counts the writes so far that are for the back-end.
    pub(super) fn written(&self) -> u64 {
        self.read_lock().written
    }

    /// Whether writes were made that no attempt to read the space came after.
    pub(super) fn is_behind(&self) -> bool {
        let space = self.read_lock();
        space.written != space.covered
    }

    /// The next read is caused by the guest's own writes alone.
    pub(super) fn read_quietly(&self) {
        self.write_lock().quiet = true;
    }

    /// Whether the space has been read since this many writes were made.
    pub(super) fn progress(&self, writes: u64) -> Progress {
        let space = self.read_lock();
        match &space.refused {
            _ if !space.sized => Progress::Unsized,
            _ if space.covered < writes => Progress::Behind,
            Some(error) => Progress::Refused(error.clone()),
            None if space.known => Progress::Current,
            None => Progress::Behind,
        }
    }

    /// The back-end has returned its space, and has not seen these writes. `loud`: a
    /// change has to be reported even if the guest's writes have caused it. Returns
    /// whether to report a change of what the guest may have seen.
    pub(super) fn update<'a>(
        &self,
        bytes: &[u8],
        pending: impl Iterator<Item = &'a Write>,
        loud: bool,
    ) -> bool {
        let mut space = self.write_lock();
        let size = space.bytes.len();
        space.theirs = bytes.to_vec();
        space.theirs.resize(size, 0);
        space.refused = None;
        let exposed = self.exposed.load(Ordering::Relaxed);
        self.show(&mut space, pending, exposed, loud)
    }

    /// The back-end has not returned its space, and has not seen these writes: the guest
    /// reads the bytes that the back-end is known to have. The result is that of
    /// [`update`](Self::update).
    pub(super) fn give_up<'a>(
        &self,
        error: Error,
        pending: impl Iterator<Item = &'a Write>,
    ) -> bool {
        let mut space = self.write_lock();
        space.refused = Some(error);
        let known = space.known;
        let changed = self.show(&mut space, pending, false, true);
        space.known = known;
        changed && known
    }

    /// Shows the back-end's bytes to the guest.
    fn show<'a>(
        &self,
        space: &mut Space,
        pending: impl Iterator<Item = &'a Write>,
        exposed: bool,
        loud: bool,
    ) -> bool {
        let mut bytes = space.theirs.clone();
        let mut unseen: u64 = 0;
        for write in pending {
            lay(&mut bytes, write);
            unseen = unseen.saturating_add(1);
        }
        space.covered = space.written.saturating_sub(unseen);
        let known = std::mem::replace(&mut space.known, true);
        let quiet = std::mem::take(&mut space.quiet) && !loud;
        let Space {
            bytes: old,
            own,
            assumed,
            ..
        } = &mut *space;
        let (mut changed, mut differs) = (false, false);
        for ((old, new), (own, assumed)) in old.iter_mut().zip(&bytes).zip(own.iter().zip(assumed))
        {
            if *own {
                continue;
            }
            differs |= *old != *new;
            changed |= match known || *assumed {
                true => *old != *new,
                // Nobody could read this byte, and somebody may have shown another.
                false => exposed,
            };
            *old = *new;
        }
        if differs || !known {
            space.generation = space.generation.wrapping_add(1);
        }
        match quiet {
            true => {
                space.adopted |= changed;
                false
            }
            false => changed | std::mem::take(&mut space.adopted),
        }
    }
}

/// Lays a write over these bytes.
fn lay(bytes: &mut [u8], write: &Write) {
    // It fits: the size is the caller's.
    let place = range(write.offset, write.data.len());
    if let Some(place) = place.ok().and_then(|place| bytes.get_mut(place)) {
        place.copy_from_slice(&write.data);
    }
}

fn range(offset: u32, len: usize) -> Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| beyond())?;
    let end = start.checked_add(len).ok_or_else(beyond)?;
    Ok(start..end)
}

/// Where that is in the space.
fn range_of(space: &Space, offset: u32, len: usize) -> Result<std::ops::Range<usize>> {
    if !space.sized {
        let text = "the size of the configuration space has not been set: \
                    vuf_device_set_config_size()";
        return Err(Error::new(Kind::State, text));
    }
    let range = range(offset, len)?;
    match range.end <= space.bytes.len() {
        true => Ok(range),
        false => Err(beyond()),
    }
}

fn beyond() -> Error {
    Error::invalid("offset + len is beyond the configuration space, whose size the caller gave")
}
