//! Guest memory, its translations, and the log of what is written to it.

use super::{ACK, BackendClient, Call, Op, SharedRegion, Timeout, checks};
use crate::error::{Kind, Result};
use crate::message::{
    Iotlb, Log, MAX_MEM_REGIONS, MemRegion, MemTableHeader, ProtocolFeatures, REGION_SIZE, Request,
    RequestInfo,
};
use crate::socket;
use std::os::fd::BorrowedFd;
use zerocopy::IntoBytes;

impl BackendClient {
    /// SET_MEM_TABLE: replaces all guest memory that the back-end may reach.
    /// While it listens for page faults:
    /// [`postcopy_set_mem_table`](Self::postcopy_set_mem_table).
    pub fn set_mem_table(&self, regions: &[SharedRegion<'_>]) -> Result<()> {
        self.tell_op(&Op::SetMemTable(regions))
    }

    /// Checks and encodes a memory table; `send` also gets the size of a region.
    pub(super) fn with_table(
        &self,
        regions: &[SharedRegion<'_>],
        send: &mut dyn FnMut(&Call<'_>, usize) -> Result<()>,
    ) -> Result<()> {
        let request = Request::SetMemTable;
        let features = self.negotiated.protocol();
        checks::regions(regions, features).map_err(|error| error.of(request))?;
        let (info, size) = Self::region_form(request, features);
        let mut table = [0_u8; MAX_MEM_REGIONS * size_of::<MemRegion>()];
        let mut fds = [self.connection.fd(); MAX_MEM_REGIONS];
        let slots = table.chunks_exact_mut(size).zip(&mut fds);
        for ((slot, fd), region) in slots.zip(regions) {
            let bytes = region.region.as_bytes();
            slot.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            *fd = region.fd;
        }
        let header = MemTableHeader {
            nregions: u32::try_from(regions.len()).unwrap_or(u32::MAX),
            padding: 0,
        };
        let table = table.get(..regions.len().saturating_mul(size));
        let fds = fds.get(..regions.len()).unwrap_or_default();
        let call = Call {
            payload: table.unwrap_or_default(),
            info,
            ..Call::new(request, header.as_bytes()).fds(fds)
        };
        send(&call, size).map_err(|error| match error.kind {
            Kind::Argument(_) => match fds.iter().position(|fd| !socket::is_open(*fd)) {
                Some(index) => error.region(index),
                None => error,
            },
            _ => error,
        })
    }

    /// A request about regions in the form that was agreed, and the bytes that a
    /// region has in it.
    fn region_form(request: Request, features: ProtocolFeatures) -> (RequestInfo, usize) {
        match features.contains(ProtocolFeatures::XEN_MMAP) {
            true => (request.xen_info(), size_of::<MemRegion>()),
            false => (*request.info(), REGION_SIZE),
        }
    }

    /// Checks and encodes a request about one region.
    pub(super) fn with_region(
        &self,
        request: Request,
        region: &MemRegion,
        fds: &[BorrowedFd<'_>],
        send: &mut dyn FnMut(&Call<'_>) -> Result<()>,
    ) -> Result<()> {
        self.in_order(request, self.negotiated.check_memory())?;
        let features = self.negotiated.protocol();
        checks::region(region, features).map_err(|e| e.of(request))?;
        let (info, size) = Self::region_form(request, features);
        let padding = 0_u64;
        send(&Call {
            payload: region.as_bytes().get(..size).unwrap_or_default(),
            info,
            ..Call::new(request, padding.as_bytes()).fds(fds)
        })
    }

    /// GET_MAX_MEM_SLOTS: how many regions the back-end can hold.
    pub fn get_max_mem_slots(&self) -> Result<u64> {
        self.ask_number(&Op::GetMaxMemSlots, Timeout::Default)
    }

    /// ADD_MEM_REG: shares one more region.
    pub fn add_mem_region(&self, region: &SharedRegion<'_>) -> Result<()> {
        self.tell_op(&Op::AddMemRegion(region))
    }

    /// REM_MEM_REG: takes a region away. The back-end finds it by guest address,
    /// size and user address. Unmap only after this has returned.
    pub fn remove_mem_region(&self, region: &MemRegion) -> Result<()> {
        self.tell_op(&Op::RemoveMemRegion(region))
    }

    /// IOTLB_MSG: lets the back-end use a translation, or no longer. With
    /// GPA_ADDRESSES the user address of an update is a guest address.
    pub fn send_iotlb(&self, entry: &Iotlb) -> Result<()> {
        let request = Request::IotlbMsg;
        checks::iotlb(entry).map_err(|error| error.of(request))?;
        self.tell(&Call::new(request, entry.as_bytes()))
    }

    /// The same without waiting: the answer is checked when it comes, and a
    /// refusal only counted. For a [`BackendHandler`](crate::BackendHandler) that is asked for a
    /// translation, which may call nothing else.
    pub fn post_iotlb(&self, entry: &Iotlb) -> Result<()> {
        let request = Request::IotlbMsg;
        checks::iotlb(entry).map_err(|error| error.of(request))?;
        let call = Call::new(request, entry.as_bytes());
        self.check(&call)
            .and_then(|()| self.connection.post(&Self::outgoing(&call, true), ACK))
            .map_err(|error| call.name(error))
    }

    // ---- the dirty log ----

    /// SET_LOG_BASE: where the back-end marks the pages that it writes. The one
    /// reply is consumed; its content means nothing.
    pub fn set_log_base(&self, log: &Log, fd: BorrowedFd<'_>) -> Result<()> {
        let request = Request::SetLogBase;
        checks::log(log).map_err(|error| error.of(request))?;
        self.ask(&Call::new(request, log.as_bytes()).fds(&[fd]), |_| Ok(()))
    }

    /// SET_LOG_FD: an eventfd that the back-end writes when it has logged. The
    /// rust-vmm back-ends do not know the request and hang up.
    pub fn set_log_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell_op(&Op::SetLogFd(fd))
    }
}
