//! What a caller passed, held against what back-ends are known to insist on.
//! Nothing has been sent when one of these fails.

use super::SharedRegion;
use crate::error::{Error, Result};
use crate::message::{
    ConfigHeader, CryptoAsym, CryptoSym, Inflight, Iotlb, Log, MAX_CONFIG_END, MAX_CONFIG_SIZE,
    MAX_MEM_REGIONS, MAX_RING_INDEX, MAX_RING_SIZE, MemRegion, ProtocolFeatures, RequestInfo,
    VringAddr, crypto, iotlb, xen,
};
use std::os::fd::BorrowedFd;

/// Back-ends map at the offset, and pages are never smaller than this.
const PAGE_SIZE: u64 = 4096;

/// An encoded request is what the table says it is.
pub(super) fn fits_the_table(
    info: &RequestInfo,
    body: &[u8],
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<()> {
    let size = body.len().saturating_add(payload.len());
    if info.payload.contain(size) && info.fds_out.contain(fds.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the request has {size} bytes and {} file descriptors",
        fds.len()
    )))
}

/// A ring index. libvhost-user does not check it and writes out of bounds.
pub(super) fn ring(index: u32, max_rings: u32) -> Result<u8> {
    if max_rings != 0 && index >= max_rings {
        return Err(Error::invalid(format!(
            "index is {index}, and the client was made for {max_rings} rings"
        )));
    }
    u8::try_from(index)
        .map_err(|_| Error::invalid(format!("index is {index}, above {MAX_RING_INDEX}")))
}

pub(super) fn ring_size(num: u32, packed: bool) -> Result<()> {
    if num == 0 || num > MAX_RING_SIZE {
        return Err(Error::invalid(format!(
            "num is {num}, not 1 to {MAX_RING_SIZE}"
        )));
    }
    if !packed && !num.is_power_of_two() {
        return Err(Error::invalid(format!(
            "num is {num}, and the size of a split ring is a power of two"
        )));
    }
    Ok(())
}

/// Flag bits and alignment, which the rust-vmm back-ends enforce by hanging up.
pub(super) fn ring_address(addr: &VringAddr, packed: bool) -> Result<()> {
    if addr.flags > 1 {
        return Err(Error::invalid(format!(
            "flags is {:#x}, and only bit 0 is defined",
            addr.flags
        )));
    }
    let table = [
        ("descriptor", addr.descriptor, 16),
        ("used", addr.used, 4),
        ("available", addr.available, if packed { 4 } else { 2 }),
    ];
    for (name, address, alignment) in table {
        if !aligned(address, alignment) {
            return Err(Error::invalid(format!(
                "{name} is {address:#x}, not a multiple of {alignment}"
            )));
        }
    }
    Ok(())
}

fn aligned(value: u64, alignment: u64) -> bool {
    value.checked_rem(alignment) == Some(0)
}

/// One region, with these features. GPA_ADDRESSES: user addresses must be guest
/// addresses. XEN_MMAP: it may say how Xen maps it.
pub(super) fn region(region: &MemRegion, features: ProtocolFeatures) -> Result<()> {
    if region.size == 0 {
        return Err(Error::invalid("size of the region is 0"));
    }
    if !aligned(region.mmap_offset, PAGE_SIZE) {
        return Err(Error::invalid(format!(
            "mmap_offset is {:#x}, not a multiple of the page size",
            region.mmap_offset
        )));
    }
    let starts = [
        ("guest_addr", region.guest_addr),
        ("user_addr", region.user_addr),
        ("mmap_offset", region.mmap_offset),
    ];
    for (name, start) in starts {
        if start.checked_add(region.size).is_none() {
            return Err(Error::invalid(format!(
                "{name} + size does not fit into 64 bits"
            )));
        }
    }
    if features.contains(ProtocolFeatures::XEN_MMAP) {
        let unknown = region.xen_mmap_flags & !(xen::FOREIGN | xen::GRANT | xen::NO_ADVANCE_MAP);
        if unknown != 0 {
            return Err(Error::invalid(format!(
                "xen_mmap_flags has unknown bits: {unknown:#x}"
            )));
        }
    } else if region.xen_mmap_flags != 0 || region.xen_domid != 0 {
        return Err(Error::invalid(
            "xen_mmap_flags or xen_domid is not 0, and XEN_MMAP has not been acknowledged",
        ));
    }
    if features.contains(ProtocolFeatures::GPA_ADDRESSES) && region.user_addr != region.guest_addr {
        return Err(Error::invalid(
            "user_addr is not guest_addr, and GPA_ADDRESSES has been acknowledged",
        ));
    }
    Ok(())
}

/// A whole table.
pub(super) fn regions(regions: &[SharedRegion<'_>], features: ProtocolFeatures) -> Result<()> {
    if regions.is_empty() || regions.len() > MAX_MEM_REGIONS {
        return Err(Error::invalid(format!(
            "there are {} regions, not 1 to {MAX_MEM_REGIONS}",
            regions.len()
        )));
    }
    let overlap = |a: u64, b: u64, a_size: u64, b_size: u64| {
        a < b.saturating_add(b_size) && b < a.saturating_add(a_size)
    };
    for (index, this) in regions.iter().map(|shared| &shared.region).enumerate() {
        region(this, features).map_err(|error| error.region(index))?;
        for other in regions.iter().take(index).map(|shared| &shared.region) {
            if overlap(this.guest_addr, other.guest_addr, this.size, other.size)
                || overlap(this.user_addr, other.user_addr, this.size, other.size)
            {
                return Err(Error::invalid("the region overlaps an earlier one").region(index));
            }
        }
    }
    Ok(())
}

/// DPDK adds the offset twice, and reads the log as 64-bit words.
pub(super) fn log(log: &Log) -> Result<()> {
    if log.mmap_offset != 0 {
        return Err(Error::invalid(
            "mmap_offset is not 0, and back-ends would write beyond the log",
        ));
    }
    if log.mmap_size == 0 || !aligned(log.mmap_size, 8) {
        return Err(Error::invalid("mmap_size is not a positive multiple of 8"));
    }
    Ok(())
}

pub(super) fn config(header: &ConfigHeader, len: usize) -> Result<()> {
    if !(1..=MAX_CONFIG_SIZE).contains(&len) {
        let text = format!("len is {len}, not 1 to {MAX_CONFIG_SIZE}");
        return Err(Error::invalid(text));
    }
    let flags = header.flags;
    if header
        .offset
        .checked_add(header.size)
        .is_none_or(|end| end > MAX_CONFIG_END)
    {
        return Err(Error::invalid(format!(
            "offset + len is beyond the configuration space of {MAX_CONFIG_END} bytes"
        )));
    }
    if flags > 3 {
        return Err(Error::invalid(format!(
            "flags is {flags:#x}, and only bits 0 and 1 have a meaning"
        )));
    }
    Ok(())
}

/// A translation, or the end of one.
pub(super) fn iotlb(entry: &Iotlb) -> Result<()> {
    let update = entry.kind == iotlb::UPDATE;
    if !update && entry.kind != iotlb::INVALIDATE {
        return Err(Error::invalid(format!(
            "type is {}, neither an update nor an invalidation",
            entry.kind
        )));
    }
    if entry.perm > 3 || (update && entry.perm == 0) {
        return Err(Error::invalid(format!("perm is {}", entry.perm)));
    }
    let Some(last) = entry.size.checked_sub(1) else {
        return Err(Error::invalid("size is 0"));
    };
    if entry.padding != [0; 6] {
        return Err(Error::invalid("a reserved field is not zero"));
    }
    let starts = [("iova", entry.iova), ("user_addr", entry.user_addr)];
    let counts = if update { 2 } else { 1 };
    for (name, start) in starts.into_iter().take(counts) {
        if start.checked_add(last).is_none() {
            return Err(Error::invalid(format!(
                "{name} + size - 1 does not fit into 64 bits"
            )));
        }
    }
    Ok(())
}

/// What fits into a frame: the least is that of IPv4, the most that of the field.
pub(crate) fn mtu(mtu: u32) -> Result<()> {
    if !(68..=65535).contains(&mtu) {
        return Err(Error::invalid(format!("mtu is {mtu}, not 68 to 65535")));
    }
    Ok(())
}

pub(super) fn endian(endian: u32) -> Result<()> {
    if endian > 1 {
        return Err(Error::invalid(format!(
            "endian is {endian}, neither little (0) nor big (1)"
        )));
    }
    Ok(())
}

pub(super) fn status(status: u32) -> Result<()> {
    if status > 0xff {
        return Err(Error::invalid(format!(
            "status is {status:#x}, and it has 8 bits"
        )));
    }
    Ok(())
}

/// Bytes of a key that are there.
fn key(name: &str, length: u32, key: &[u8]) -> Result<()> {
    let rest = usize::try_from(length)
        .ok()
        .and_then(|length| key.get(length..))
        .ok_or_else(|| {
            Error::invalid(format!(
                "{name}_len is {length}, and {name} has {} bytes",
                key.len()
            ))
        })?;
    match rest.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{name} goes on after the {length} bytes of {name}_len"
        ))),
    }
}

fn creates(op_code: u64, known: &[u64]) -> Result<()> {
    match known.contains(&op_code) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "op_code is {op_code:#x}, which does not create such a session"
        ))),
    }
}

pub(super) fn symmetric(op_code: u64, session: &CryptoSym) -> Result<()> {
    creates(op_code, &crypto::CREATE_SYM)?;
    if session.padding != 0 || session.pointers != [0; 2] {
        return Err(Error::invalid("a reserved field is not zero"));
    }
    key("key", session.key_len, &session.key)?;
    key("auth_key", session.auth_key_len, &session.auth_key)
}

pub(super) fn asymmetric(op_code: u64, session: &CryptoAsym) -> Result<()> {
    creates(op_code, &crypto::CREATE_ASYM)?;
    if session.padding != 0 || session.pointer != 0 {
        return Err(Error::invalid("a reserved field is not zero"));
    }
    key("key", session.key_len, &session.key)
}

pub(super) fn inflight(inflight: &Inflight) -> Result<()> {
    if inflight.num_queues == 0 || inflight.queue_size == 0 {
        return Err(Error::invalid("num_queues or queue_size is 0"));
    }
    Ok(())
}

pub(super) fn inflight_buffer(inflight: &Inflight) -> Result<()> {
    if inflight.mmap_size == 0 {
        return Err(Error::invalid("mmap_size is 0"));
    }
    if inflight
        .mmap_offset
        .checked_add(inflight.mmap_size)
        .is_none()
    {
        return Err(Error::invalid(
            "mmap_offset + mmap_size does not fit into 64 bits",
        ));
    }
    Ok(())
}
