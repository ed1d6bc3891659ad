//! The disk: virtio-blk requests on a file, and a journal of those executed.

use std::fs::{File, OpenOptions};
use std::io::{self, Error, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use crate::memory::Memory;
use crate::ring::Part;

pub const SECTOR: u64 = 512;

/// More than any test asks for at once.
const MAX_REQUEST: usize = 1 << 20;

/// Type, priority, sector.
const HEADER: usize = 16;

const DISK_ID: &[u8] = b"inflight-backend";

pub struct Disk {
    file: File,
    pub sectors: u64,
    journal: Option<File>,
}

impl Disk {
    pub fn open(file: &Path, journal: Option<&Path>) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(file)?;
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        Ok(Self {
            sectors: file.seek(SeekFrom::End(0))? / SECTOR,
            file,
            journal: journal.map(open).transpose()?,
        })
    }

    /// Executes one request and returns how many bytes it wrote to guest memory.
    pub fn execute(&self, memory: &Memory, parts: &[Part]) -> io::Result<u32> {
        let room = |writable| {
            let parts = parts.iter().filter(|part| part.writable == writable);
            let len = parts.map(|part| part.len as usize).sum::<usize>();
            let ok = len <= MAX_REQUEST;
            ok.then_some(len).ok_or(Error::other("a request too large"))
        };
        let mut request = vec![0; room(false)?];
        let mut answer = vec![0; room(true)?];
        copy(parts, false, &mut request, |data, part| {
            memory.read(data, part.addr)
        })?;
        let (Some((header, data)), Some((status, into))) =
            (request.split_at_checked(HEADER), answer.split_last_mut())
        else {
            return Err(Error::other("a request without header or status"));
        };
        let word = |at| header.get(at..at + 8).and_then(|b| b.try_into().ok());
        let word = |at| u64::from_le_bytes(word(at).unwrap_or_default());
        let (kind, sector) = (word(0) as u32, word(8));

        let (code, written) = match self.transfer(kind, sector, data, into) {
            Ok(Some(written)) => (VIRTIO_BLK_S_OK, written),
            Ok(None) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(_) => (VIRTIO_BLK_S_IOERR, 0),
        };
        *status = code as u8;
        copy(parts, true, &mut answer, |data, part| {
            memory.write(data, part.addr)
        })?;
        Ok(written as u32 + 1)
    }

    /// How many bytes were read from the disk; None for a request that it does
    /// not know.
    fn transfer(
        &self,
        kind: u32,
        sector: u64,
        data: &[u8],
        into: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let at = |len: usize| {
            let offset = sector.checked_mul(SECTOR);
            let end = offset.and_then(|offset| offset.checked_add(len as u64));
            let fits = end.is_some_and(|end| end <= self.sectors * SECTOR);
            offset.filter(|_| fits).ok_or(io::ErrorKind::InvalidInput)
        };
        match kind {
            VIRTIO_BLK_T_IN => {
                self.file.read_exact_at(into, at(into.len())?)?;
                self.note("in", sector, into)?;
                return Ok(Some(into.len()));
            }
            VIRTIO_BLK_T_OUT => {
                self.file.write_all_at(data, at(data.len())?)?;
                self.note("out", sector, data)?;
            }
            VIRTIO_BLK_T_FLUSH => {
                self.file.sync_data()?;
                self.note("flush", sector, &[])?;
            }
            VIRTIO_BLK_T_GET_ID => {
                let (id, _) = into
                    .split_at_mut_checked(VIRTIO_BLK_ID_BYTES as usize)
                    .ok_or(io::ErrorKind::InvalidInput)?;
                id.iter_mut()
                    .zip(DISK_ID)
                    .for_each(|(to, from)| *to = *from);
                let written = id.len();
                self.note("get-id", sector, id)?;
                return Ok(Some(written));
            }
            _ => return Ok(None),
        }
        Ok(Some(0))
    }

    /// One line for what was executed: operation, sector, bytes, and the first
    /// eight bytes as a number, by which a test knows its data.
    fn note(&self, op: &str, sector: u64, data: &[u8]) -> io::Result<()> {
        let Some(mut journal) = self.journal.as_ref() else {
            return Ok(());
        };
        let tag = data.first_chunk().copied().unwrap_or_default();
        let (len, tag) = (data.len(), u64::from_le_bytes(tag));
        // One write for each line, so that a reader never sees half of one.
        journal.write_all(format!("{op} {sector} {len} {tag:#x}\n").as_bytes())
    }
}

/// Calls `each` with the parts of one direction and the bytes that belong to them.
fn copy(
    parts: &[Part],
    writable: bool,
    mut bytes: &mut [u8],
    each: impl Fn(&mut [u8], &Part) -> io::Result<()>,
) -> io::Result<()> {
    for part in parts.iter().filter(|part| part.writable == writable) {
        let (now, rest) = bytes.split_at_mut(part.len as usize);
        each(now, part)?;
        bytes = rest;
    }
    Ok(())
}
