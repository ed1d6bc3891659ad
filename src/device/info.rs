//! What is known of a device.

use super::core::{Core, Live};
use super::{Device, plan};
use crate::connection::{Counters, TraceSink};
use crate::error::Result;
use crate::message::SHMEM_REGIONS;
use crate::socket::Credentials;
use std::sync::{PoisonError, Weak};

/// What is known of a device.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// There is a connection, and its handshake went through.
    pub connected: bool,
    /// Virtio features that the back-end offers, or offered last, or is assumed to;
    /// without those that belong to the library.
    pub offered_features: u64,
    /// Those acknowledged on this connection.
    pub acked_features: u64,
    /// Protocol features that the back-end offers.
    pub offered_protocol_features: u64,
    /// Those acknowledged.
    pub protocol_features: u64,
    /// GET_QUEUE_NUM, if it was asked. Some back-ends count pairs.
    pub queue_num: Option<u64>,
    /// How many rings can be started at most: an index at or above it is refused.
    /// `None` where GET_QUEUE_NUM was not asked. The back-end may have fewer, but not
    /// fewer than [`queue_num`](Self::queue_num).
    pub max_rings: Option<u32>,
    /// GET_MAX_MEM_SLOTS, if it was asked.
    pub max_mem_slots: Option<u64>,
    /// Sizes of the shared memory regions by `shmid`.
    pub shmem_sizes: [u64; SHMEM_REGIONS],
    /// Who is at the other end.
    pub peer: Option<Credentials>,
    /// Counts what was asked for.
    pub generation: u64,
    /// Up to where it was done; `None` while there is no connection.
    pub applied: Option<u64>,
    /// All that was asked for was done, and all that was posted was answered.
    pub settled: bool,
    /// How many connections there have been.
    pub connections: u64,
    /// The rings wait for a reset of the device.
    pub needs_reset: bool,
    /// A back-end that was given up may still write guest memory.
    pub unfenced: bool,
}

impl Device {
    /// What is known of the device and its back-end.
    pub fn info(&self) -> DeviceInfo {
        let core = self.lock();
        let live = core.live();
        let actual = live.map(|live| &live.actual);
        let protocol = actual.and_then(|actual| actual.sent.protocol);
        DeviceInfo {
            connected: live.is_some_and(|live| live.connected),
            offered_features: core.offered.unwrap_or_default() & !plan::OURS,
            acked_features: actual
                .and_then(|it| it.confirmed.features)
                .unwrap_or_default()
                & !plan::OURS,
            offered_protocol_features: actual
                .and_then(|it| it.offered_protocol.told())
                .unwrap_or_default(),
            protocol_features: protocol.map(|it| it.bits()).unwrap_or_default(),
            queue_num: actual.and_then(|it| it.queue_num.told()),
            max_rings: core.max_rings(),
            max_mem_slots: actual.and_then(|it| it.slots.told()),
            shmem_sizes: core.shmem.as_deref().copied().unwrap_or([0; SHMEM_REGIONS]),
            peer: live.and_then(Live::peer),
            generation: core.generation,
            applied: core.applied,
            settled: core.settled(),
            connections: core.lives,
            needs_reset: core.wanted.held || core.broken,
            unfenced: core.unfenced,
        }
    }

    /// There is a connection, and its handshake went through.
    pub fn is_connected(&self) -> bool {
        self.lock().live().is_some_and(|live| live.connected)
    }

    /// All that was asked for was done, and all that was posted was answered.
    pub fn is_settled(&self) -> bool {
        self.lock().settled()
    }

    /// The virtio features that the back-end offers, or offered last, or is assumed to,
    /// without those that belong to the library.
    ///
    /// Fails with [`Kind::State`](crate::Kind::State) where none are known.
    pub fn offered_features(&self) -> Result<u64> {
        let core = self.lock();
        match core.offered {
            Some(offered) => Ok(offered & !plan::OURS),
            None => Err(core.offer_unknown(self.now())),
        }
    }

    /// Counts what was asked for, and up to where it was done; `None` while there is no
    /// connection.
    pub fn generation(&self) -> (u64, Option<u64>) {
        let core = self.lock();
        (core.generation, core.applied)
    }

    /// What the connection has done so far; `None` while there is none.
    pub fn counters(&self) -> Option<Counters> {
        self.lock().live().map(|live| live.client.counters())
    }

    /// Has `sink` told of every message, on this connection and all that follow. The
    /// one before is not told any more once this returns, not of connections that are
    /// over either; that may have to be waited for.
    ///
    /// Fails inside a function that the library calls, and then changes nothing.
    pub fn set_trace(&self, sink: Option<TraceSink>) -> Result<()> {
        self.check_not_inside()?;
        let all = |core: &Core| -> Vec<_> {
            let clients = core.clients.iter();
            clients.filter_map(Weak::upgrade).collect()
        };
        let clients = all(&self.lock());
        clients.iter().try_for_each(|client| client.may_wait())?;
        // Not before: who holds it may wait for this thread.
        let alone = self.tracing.lock();
        let alone = alone.unwrap_or_else(PoisonError::into_inner);
        let mut core = self.lock();
        let clients = all(&core);
        let before = std::mem::replace(&mut core.trace, sink.clone());
        drop(core);
        let mut each = clients.iter();
        let done = each.try_for_each(|client| client.set_trace(sink.clone()));
        drop(alone);
        drop(before); // it may be the last owner of something of the caller's
        done
    }
}
