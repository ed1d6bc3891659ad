//! Memory that the front-end shares: the guest's, and the dirty log.

use super::{Done, Model, Postcopy};
use crate::catalog::{REGIONS, feature, id};
use crate::message::{Message, Outgoing, Region};
use crate::mode::LogReply;

/// Where the memory of the back-end seems to be, for postcopy.
const MAPPED_AT: u64 = 0x7e00_0000_0000;

impl Model {
    /// SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG, with and without postcopy.
    pub(super) fn memory(&mut self, request: &mut Message) -> Done {
        let code = request.header.code;
        let state = &mut self.state;
        let listening = state.postcopy == Postcopy::Listening;
        if listening && request.payload.len() == 8 {
            return Done::Silence; // the front-end has registered its ranges
        }
        let mut regions = Region::list(&request.payload);
        match code {
            id::SET_MEM_TABLE => {
                let count = usize::try_from(request.get32(REGIONS)).unwrap_or(usize::MAX);
                regions.truncate(count);
                state.regions.clone_from(&regions);
                state.files = std::mem::take(&mut request.fds);
            }
            id::ADD_MEM_REG => {
                state.regions.extend(&regions);
                state.files.append(&mut request.fds);
            }
            _ => {
                let (before, files) = (state.regions.len(), &mut state.files);
                let gone = |known: &Region| regions.iter().any(|region| region.same(*known));
                let mut place = 0_usize;
                state.regions.retain(|known| {
                    let gone = gone(known);
                    if gone && place < files.len() {
                        files.remove(place);
                    } else {
                        place = place.saturating_add(1);
                    }
                    !gone
                });
                return if state.regions.len() < before {
                    Done::Ok
                } else {
                    Done::No(1)
                };
            }
        }
        if !listening {
            return Done::Ok;
        }
        let head = request.payload.get(..8).unwrap_or_default().to_vec();
        let first = state.regions.len().saturating_sub(regions.len());
        let places = (first..).map(|place| u64::try_from(place).unwrap_or(0));
        let mapped = regions.iter().zip(places).flat_map(|(region, place)| {
            let user = MAPPED_AT.wrapping_add(place.wrapping_shl(36));
            Region { user, ..*region }.bytes()
        });
        Done::Reply(Outgoing::reply(
            code,
            head.into_iter().chain(mapped).collect(),
        ))
    }

    /// SET_LOG_BASE, with and without LOG_SHMFD.
    pub(super) fn set_log_base(&mut self, request: &mut Message) -> Done {
        self.state.log = std::mem::take(&mut request.fds);
        if !self.state.protocol(feature::LOG_SHMFD) {
            return Done::Ok;
        }
        let payload = match self.habits.log_reply {
            LogReply::Empty => Vec::new(),
            LogReply::Zero => vec![0; 8],
            LogReply::Stale => request.payload.get(..8).unwrap_or_default().to_vec(),
            LogReply::Echo => request.payload.clone(),
        };
        Done::Reply(Outgoing::reply(request.header.code, payload))
    }
}
