//! Memory during a migration with postcopy.

use super::negotiated::Postcopy;
use super::{BackendClient, Call, NOTHING, SharedRegion};
use crate::error::{Error, Kind, Phase, Result};
use crate::message::{MemRegion, MemTableHeader, Request};
use std::os::fd::OwnedFd;
use zerocopy::IntoBytes;

impl BackendClient {
    /// POSTCOPY_ADVISE: a migration with postcopy is to come. The descriptor is
    /// the back-end's userfaultfd.
    pub fn postcopy_advise(&self) -> Result<OwnedFd> {
        let request = Request::PostcopyAdvise;
        self.in_order(request, self.negotiated.check_advise())?;
        let fd = self.ask(&Call::new(request, NOTHING), |mut reply| {
            let fd = reply.fd.take().ok_or_else(Error::refused)?;
            Ok(fd.into_fd())
        })?;
        self.negotiated.set_postcopy(Postcopy::Advised);
        Ok(fd)
    }

    /// POSTCOPY_LISTEN: memory is shared from now on so that its page faults are
    /// reported. Before any memory is shared.
    pub fn postcopy_listen(&self) -> Result<()> {
        let request = Request::PostcopyListen;
        self.in_order(request, self.negotiated.check_listen())?;
        self.tell(&Call::new(request, NOTHING))?;
        self.negotiated.set_postcopy(Postcopy::Listening);
        Ok(())
    }

    /// SET_MEM_TABLE while the back-end listens. It answers where each region
    /// lies in its own address space, which is where it reports page faults:
    /// `bases` is as long as `regions`. Nothing else may be sent until
    /// [`postcopy_ack_mem_table`](Self::postcopy_ack_mem_table).
    pub fn postcopy_set_mem_table(
        &self,
        regions: &[SharedRegion<'_>],
        bases: &mut [u64],
    ) -> Result<()> {
        let request = Request::SetMemTable;
        if bases.len() != regions.len() {
            return Err(Error::invalid("bases is not as long as regions").of(request));
        }
        let (before, during) = (Postcopy::Listening, Postcopy::Unconfirmed);
        if !self.negotiated.step_postcopy(before, during) {
            let text = "it is sent once, after POSTCOPY_LISTEN";
            let error = Error::new(Kind::State, text);
            return Err(self.or_ended(error).of(request));
        }
        let result = self.with_table(regions, &mut |call, size| {
            let call = &Call {
                info: call.info.postcopy_table(),
                ..*call
            };
            self.ask(call, |reply| {
                let text = "the reply is not the table that was sent";
                let rows = reply.payload.get(size_of::<MemTableHeader>()..);
                let rows = rows.unwrap_or_default();
                if reply.payload.len() != call.body.len().saturating_add(call.payload.len())
                    || !reply.payload.starts_with(call.body)
                {
                    return Err(Error::protocol(text));
                }
                let sent = regions.iter().map(|shared| &shared.region);
                for (index, (row, region)) in rows.chunks_exact(size).zip(sent).enumerate() {
                    let answer = MemRegion::from_prefix(row);
                    let expected = MemRegion {
                        user_addr: answer.user_addr,
                        ..*region
                    };
                    if answer != expected {
                        return Err(Error::protocol(text).region(index));
                    }
                }
                for (base, row) in bases.iter_mut().zip(rows.chunks_exact(size)) {
                    *base = MemRegion::from_prefix(row).user_addr;
                }
                Ok(())
            })
        });
        match &result {
            Ok(()) => self.negotiated.set_memory(),
            // Late or not, the back-end has it.
            Err(error) if error.phase == Phase::Reply => {}
            Err(_) => self.negotiated.set_postcopy(before),
        }
        result
    }

    /// SET_MEM_TABLE once more: the addresses of the back-end are known, and page
    /// faults there will be served.
    pub fn postcopy_ack_mem_table(&self) -> Result<()> {
        let request = Request::SetMemTable;
        let (before, after) = (Postcopy::Unconfirmed, Postcopy::Confirmed);
        if !self.negotiated.step_postcopy(before, after) {
            let text = "it follows the memory table, once, while the back-end listens";
            let error = Error::new(Kind::State, text);
            return Err(self.or_ended(error).of(request));
        }
        let zero = 0_u64;
        let call = Call {
            info: request.info().postcopy_ack(),
            ..Call::new(request, zero.as_bytes())
        };
        self.tell(&call)
            .inspect_err(|_| self.negotiated.set_postcopy(before))
    }

    /// POSTCOPY_END: all memory is there. Afterwards the userfaultfd may be closed.
    pub fn postcopy_end(&self) -> Result<()> {
        let request = Request::PostcopyEnd;
        self.in_order(request, self.negotiated.check_end())?;
        self.tell(&Call::new(request, NOTHING))?;
        self.negotiated.set_postcopy(Postcopy::Off);
        Ok(())
    }
}
