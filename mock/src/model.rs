//! A back-end that knows what was agreed and answers every request. It believes
//! the front-end; `strict` does not.

use crate::catalog::{Answer, INFLIGHT_QUEUES, NUM, feature, has, id, virtio};
use crate::device::{Device, StateChannel};
use crate::message::{Message, Outgoing, flags};
use crate::mode::{AckRule, ConfigError, Habits, Mode};
use crate::transfer::Transfer;
use nix::poll::PollFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

mod memory;
mod state;

pub(crate) use state::{Postcopy, Ring, State};

/// See the module.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) device: Device,
    pub(crate) habits: &'static Habits,
    pub(crate) state: State,
}

/// What a request comes to.
enum Done {
    /// It is carried out: 0 to who asks.
    Ok,
    /// It cannot be: this number to who asks.
    No(u64),
    /// It is answered in any case.
    Reply(Outgoing),
    /// It is answered with nothing, even where an acknowledgement is asked for.
    Silence,
}

impl Model {
    pub(crate) fn new(mode: Mode, device: Device) -> Self {
        Self {
            device,
            habits: mode.habits(),
            state: State::default(),
        }
    }

    /// Whether the request gets an acknowledgement if it has no reply of its own.
    pub(crate) fn acknowledges(&self, request: &Message) -> bool {
        let state = &self.state;
        let agreed = state.protocol(feature::REPLY_ACK);
        let served = state.features_served && has(self.device.features, virtio::PROTOCOL_FEATURES);
        let queried = state.protocol_served && has(self.device.protocol, feature::REPLY_ACK);
        request.need_reply()
            && match self.habits.ack {
                AckRule::Asked => true,
                // Front-ends wait for this one whatever was agreed.
                AckRule::Agreed => agreed || request.header.code == id::POSTCOPY_LISTEN,
                AckRule::FeaturesServed => agreed && served,
                AckRule::ProtocolServed => agreed && served && queried,
            }
    }

    /// Carries the request out and answers it.
    pub(crate) fn answer(&mut self, mut request: Message) -> std::io::Result<Option<Outgoing>> {
        let code = request.header.code;
        let done = self.carry_out(&mut request)?;
        // Asked afterwards, as real back-ends do: the request that switches
        // acknowledgements on is acknowledged itself.
        let acknowledges = self.acknowledges(&request);
        let mut reply = match done {
            Done::Reply(reply) => reply,
            Done::Ok if acknowledges => return Ok(Some(Outgoing::number(code, 0))),
            Done::No(value) if acknowledges => return Ok(Some(Outgoing::number(code, value))),
            Done::Ok | Done::No(_) | Done::Silence => return Ok(None),
        };
        const ECHOED: [u32; 5] = [
            id::GET_FEATURES,
            id::GET_VRING_BASE,
            id::GET_CONFIG,
            id::GET_INFLIGHT_FD,
            id::SET_LOG_BASE,
        ];
        if self.habits.echoes_flags && ECHOED.contains(&code) {
            reply.header.flags |= request.header.flags & !flags::VERSION_MASK;
        }
        Ok(Some(reply))
    }

    /// The answer that says no, in the way that the request knows; `None` where
    /// there is no such way. Nothing is carried out.
    pub(crate) fn refuse(&self, request: &Message, value: u64) -> Option<Outgoing> {
        let code = request.header.code;
        if self.habits.nacks_replies && request.need_reply() {
            return Some(Outgoing::number(code, value));
        }
        match code {
            id::GET_CONFIG => Some(self.no_config(request)),
            id::GET_INFLIGHT_FD => {
                let mut payload = request.payload.clone();
                payload.iter_mut().take(8).for_each(|byte| *byte = 0);
                Some(Outgoing::reply(code, payload))
            }
            id::SET_DEVICE_STATE_FD => Some(Outgoing::number(code, value | 0x100)),
            id::POSTCOPY_ADVISE | id::GET_SHARED_OBJECT => Some(Outgoing::reply(code, Vec::new())),
            id::CREATE_CRYPTO_SESSION => {
                let session = 0_u64.wrapping_sub(value.max(1));
                Some(crypto_session(request, session))
            }
            _ => match request.kind().map(|kind| kind.answer) {
                Some(Answer::Always([_])) => Some(Outgoing::number(code, value)),
                Some(Answer::Always(_)) => None,
                _ => self
                    .acknowledges(request)
                    .then(|| Outgoing::number(code, value)),
            },
        }
    }

    /// What libvhost-user says before it is broken: yes, unless the request has
    /// a reply of its own and the handler had got as far as that.
    pub(crate) fn broken(&self, request: &Message) -> Option<Outgoing> {
        let code = request.header.code;
        let payload = request.payload.clone();
        match code {
            id::SET_LOG_BASE => Some(Outgoing::reply(code, payload)),
            id::GET_INFLIGHT_FD => self.refuse(request, 1),
            id::POSTCOPY_LISTEN => Some(Outgoing::number(code, u64::MAX)),
            _ => self
                .acknowledges(request)
                .then(|| Outgoing::number(code, 0)),
        }
    }

    fn carry_out(&mut self, request: &mut Message) -> std::io::Result<Done> {
        let code = request.header.code;
        let number = |value| Ok(Done::Reply(Outgoing::number(code, value)));
        let habits = self.habits;
        let state = &mut self.state;
        match code {
            id::GET_FEATURES => {
                state.features_served = true;
                number(self.device.features)
            }
            id::SET_FEATURES => {
                state.features = Some(request.value());
                if !has(request.value(), virtio::PROTOCOL_FEATURES) {
                    (0..self.device.queues).for_each(|index| state.ring(index).enabled = true);
                }
                Ok(Done::Ok)
            }
            id::SET_OWNER => {
                state.owned = true;
                Ok(Done::Ok)
            }
            id::RESET_OWNER | id::RESET_DEVICE => {
                state
                    .rings
                    .values_mut()
                    .for_each(|ring| ring.enabled = false);
                state.features = None;
                if code == id::RESET_OWNER {
                    state.owned = false;
                }
                Ok(Done::Ok)
            }
            id::SET_MEM_TABLE | id::ADD_MEM_REG | id::REM_MEM_REG => Ok(self.memory(request)),
            id::SET_LOG_BASE => Ok(self.set_log_base(request)),
            id::SET_LOG_FD => {
                state.log_eventfd = request.fds.pop();
                Ok(Done::Ok)
            }
            id::GET_PROTOCOL_FEATURES => {
                state.protocol_served = true;
                number(self.device.protocol)
            }
            id::SET_PROTOCOL_FEATURES => {
                state.protocol = request.value();
                Ok(Done::Ok)
            }
            id::GET_QUEUE_NUM => {
                let queues = u64::from(self.device.queues);
                number(if habits.queue_pairs {
                    queues.wrapping_shr(1)
                } else {
                    queues
                })
            }
            id::SET_BACKEND_REQ_FD => {
                state.channel = request.fds.pop().map(UnixStream::from);
                Ok(if state.channel.is_some() {
                    Done::Ok
                } else {
                    Done::No(1)
                })
            }
            id::IOTLB_MSG if habits.iotlb_is_ack => Ok(Done::Ok),
            id::GET_CONFIG => Ok(Done::Reply(self.get_config(request))),
            id::SET_CONFIG => Ok(self.set_config(request)),
            id::CREATE_CRYPTO_SESSION => {
                state.sessions = state.sessions.wrapping_add(1);
                Ok(Done::Reply(crypto_session(request, state.sessions)))
            }
            id::POSTCOPY_ADVISE => {
                state.postcopy = Postcopy::Advised;
                // Stands in for a userfaultfd: no fault will be reported on it.
                let fds = vec![scratch_file(0)?];
                Ok(Done::Reply(Outgoing::reply(code, Vec::new()).with(fds)))
            }
            id::POSTCOPY_LISTEN => {
                state.postcopy = Postcopy::Listening;
                if habits.answers_listen {
                    number(0)
                } else {
                    Ok(Done::Ok)
                }
            }
            id::POSTCOPY_END => {
                state.postcopy = Postcopy::Off;
                if habits.end_is_ack {
                    Ok(Done::Ok)
                } else {
                    number(0)
                }
            }
            id::GET_INFLIGHT_FD => self.get_inflight(request),
            id::SET_INFLIGHT_FD => {
                state.inflight_rings = request.get32(INFLIGHT_QUEUES);
                state.inflight = std::mem::take(&mut request.fds);
                Ok(Done::Ok)
            }
            id::GPU_SET_SOCKET => {
                state.files.append(&mut request.fds);
                Ok(Done::Ok)
            }
            id::GET_MAX_MEM_SLOTS => number(self.device.slots),
            id::SET_STATUS => {
                state.status = request.value();
                Ok(Done::Ok)
            }
            id::GET_STATUS => number(state.status),
            id::GET_SHARED_OBJECT => {
                let known = self.device.objects.contains(&uuid(request));
                let fds = if known {
                    vec![scratch_file(0x1000)?]
                } else {
                    Vec::new()
                };
                let body = if habits.echoes_uuid {
                    request.payload.clone()
                } else {
                    Vec::new()
                };
                Ok(Done::Reply(Outgoing::reply(code, body).with(fds)))
            }
            id::SET_DEVICE_STATE_FD => self.set_device_state(request),
            id::CHECK_DEVICE_STATE => {
                let good = self.take_state();
                number(u64::from(!good))
            }
            id::GET_SHMEM_CONFIG => {
                let count = u32::try_from(self.device.shmem.len()).unwrap_or(u32::MAX);
                let sizes =
                    (0..=u8::MAX).map(|id| self.device.shmem.get(&id).copied().unwrap_or(0));
                let head = [count, 0].into_iter().flat_map(u32::to_ne_bytes);
                let payload = head.chain(sizes.flat_map(u64::to_ne_bytes)).collect();
                Ok(Done::Reply(Outgoing::reply(code, payload)))
            }
            id::IOTLB_MSG => number(0),
            _ => Ok(self.ring_request(request)),
        }
    }

    /// The requests about one ring.
    fn ring_request(&mut self, request: &mut Message) -> Done {
        let code = request.header.code;
        let (Some(index), Some(kind)) = (request.ring(), request.kind()) else {
            return match code {
                id::SEND_RARP | id::NET_SET_MTU | id::CLOSE_CRYPTO_SESSION => Done::Ok,
                _ => Done::No(1), // no request that anybody knows
            };
        };
        if index >= self.device.queues {
            return match kind.answer {
                Answer::Always(_) => Done::Reply(state_reply(code, index, 0)),
                _ => Done::No(1),
            };
        }
        let told = self.device.bases.get(&index).copied();
        let ring = self.state.ring(index);
        let num = request.get32(NUM);
        match code {
            id::SET_VRING_ADDR => ring.has_addr = true,
            id::SET_VRING_BASE => ring.base = num,
            id::SET_VRING_ENABLE => ring.enabled = num != 0,
            id::VRING_KICK => ring.started = true,
            id::SET_VRING_KICK => {
                ring.kick = request.fds.pop();
                ring.started = true;
            }
            id::SET_VRING_CALL => {
                ring.call = request.fds.pop();
                if let Some(call) = ring.call.as_ref().filter(|_| self.habits.spurious_call) {
                    signal(call);
                }
            }
            id::SET_VRING_ERR => ring.err = request.fds.pop(),
            id::GET_VRING_BASE | id::GET_VRING_BASE_SKIP_DRAIN => {
                let base = told.unwrap_or(ring.base);
                *ring = Ring {
                    base,
                    enabled: ring.enabled,
                    err: ring.err.take(),
                    ..Ring::default()
                };
                let base = if self.habits.short_base {
                    base & 0xffff
                } else {
                    base
                };
                return Done::Reply(state_reply(code, index, base));
            }
            _ => {} // SET_VRING_NUM, SET_VRING_ENDIAN
        }
        Done::Ok
    }

    fn get_config(&self, request: &Message) -> Outgoing {
        let (offset, size) = (request.named("offset"), request.named("config-size"));
        let from = if self.habits.config_in_place {
            0
        } else {
            offset
        };
        let (Ok(from), Ok(size)) = (usize::try_from(from), usize::try_from(size)) else {
            return self.no_config(request);
        };
        let data = from
            .checked_add(size)
            .and_then(|end| self.device.config.get(from..end));
        match (data, request.payload.get(..12)) {
            (Some(data), Some(head)) if size > 0 => {
                let mut payload = [head, data].concat();
                if self.habits.config_in_place {
                    payload.resize(request.payload.len(), 0);
                }
                Outgoing::reply(request.header.code, payload)
            }
            _ => self.no_config(request),
        }
    }

    fn no_config(&self, request: &Message) -> Outgoing {
        let mut payload = Vec::new();
        if self.habits.config_error == ConfigError::ZeroSize {
            payload = request.payload.get(..12).unwrap_or_default().to_vec();
            payload
                .iter_mut()
                .skip(4)
                .take(4)
                .for_each(|byte| *byte = 0);
        }
        Outgoing::reply(request.header.code, payload)
    }

    fn set_config(&mut self, request: &Message) -> Done {
        let data = request.payload.get(12..).unwrap_or_default();
        let place = usize::try_from(request.named("offset"))
            .ok()
            .and_then(|from| {
                self.device
                    .config
                    .get_mut(from..from.checked_add(data.len())?)
            });
        match place {
            Some(place) => {
                place.copy_from_slice(data);
                Done::Ok
            }
            None => Done::No(1),
        }
    }

    fn get_inflight(&mut self, request: &Message) -> std::io::Result<Done> {
        let entries = request.named("queue-size");
        let (head, entry): (u64, u64) = if self.state.virtio(virtio::RING_PACKED) {
            (32, 32)
        } else {
            (16, 16)
        };
        let stride = entry
            .saturating_mul(entries)
            .saturating_add(head)
            .next_multiple_of(64);
        let size = stride.saturating_mul(request.named("queues"));
        let fd = scratch_file(size)?;
        let mut payload = size.to_ne_bytes().to_vec();
        payload.extend([0; 8]); // the offset
        payload.extend(request.payload.get(16..).unwrap_or_default());
        payload.resize(24, 0);
        Ok(Done::Reply(
            Outgoing::reply(request.header.code, payload).with(vec![fd]),
        ))
    }

    fn set_device_state(&mut self, request: &mut Message) -> std::io::Result<Done> {
        let code = request.header.code;
        let given = request.fds.pop();
        let (ours, theirs) = match (self.device.state_channel, given) {
            (StateChannel::Given, Some(fd)) => (File::from(fd), None),
            (StateChannel::Own, _) => {
                let (ours, theirs) = UnixStream::pair()?;
                (File::from(OwnedFd::from(ours)), Some(OwnedFd::from(theirs)))
            }
            (StateChannel::Given, None) => {
                return Ok(Done::Reply(Outgoing::number(code, 0x101)));
            }
        };
        self.state.transfer = Some(match request.named("direction") {
            0 => Transfer::save(ours, self.device.state.clone()),
            _ => Transfer::load(ours),
        });
        let value = if theirs.is_some() { 0 } else { 0x100 };
        Ok(Done::Reply(
            Outgoing::number(code, value).with(theirs.into_iter().collect()),
        ))
    }

    /// Ends the transfer; whether it went well. Loaded state becomes the device's.
    fn take_state(&mut self) -> bool {
        let Some(transfer) = self.state.transfer.take() else {
            return true;
        };
        let good = transfer.good();
        if let Some(state) = transfer.loaded().filter(|_| good) {
            self.device.state = state;
        }
        good
    }
}

fn state_reply(code: u32, index: u32, num: u32) -> Outgoing {
    Outgoing::reply(code, [index, num].map(u32::to_ne_bytes).concat())
}

fn crypto_session(request: &Message, session: u64) -> Outgoing {
    let mut payload = request.payload.get(..1064).unwrap_or_default().to_vec();
    payload.resize(1064, 0);
    payload.extend(session.to_ne_bytes());
    Outgoing::reply(request.header.code, payload)
}

fn uuid(request: &Message) -> u128 {
    let fields = request.kind().map_or(&[][..], |kind| kind.fields);
    fields.first().map_or(0, |uuid| request.get(*uuid))
}

/// A file in memory, of this size.
pub(crate) fn scratch_file(size: u64) -> std::io::Result<OwnedFd> {
    let file = File::from(memfd_create(c"vuf-mock-backend", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(size)?;
    Ok(file.into())
}

/// Adds one to an eventfd, unless it is full.
pub(crate) fn signal(fd: &impl AsFd) {
    if crate::wire::ready(fd, PollFlags::POLLOUT) {
        _ = nix::unistd::write(fd, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests;
