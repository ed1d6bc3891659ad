//! Rings that a back-end cannot have, or does not have. GET_QUEUE_NUM counts rings on
//! some back-ends and pairs of rings on others, with a control ring on top. So N queues
//! are at least N rings and at most 2 * N + 1. Without MQ there is no count.

use super::core::{Core, Live};
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request};

/// How often in a row a connection has to be lost over the first request of a ring
/// before the ring counts as one that the back-end does not have.
const LOSSES: u32 = 2;

/// Which rings the back-end does not have.
#[derive(Debug, Default)]
pub(super) struct AbsentRings {
    /// The ring over whose first request the last connections were lost, and how many.
    suspect: Option<(usize, u32)>,
}

/// How many rings a back-end with this many queues has at most.
fn most(queues: u64) -> u64 {
    queues.saturating_mul(2).saturating_add(1)
}

/// Whether a back-end with this many queues cannot have the ring.
fn impossible(queues: u64, index: usize) -> bool {
    u64::try_from(index).unwrap_or(u64::MAX) >= most(queues)
}

fn cannot_have(queues: u64, index: usize) -> String {
    let rings = most(queues);
    let last = rings.saturating_sub(1);
    format!(
        "the back-end cannot have ring {index}: GET_QUEUE_NUM is {queues}, so there are at \
         most {rings} rings, 0 to {last}, even if it counts pairs"
    )
}

impl Core {
    fn queues(&self) -> Option<u64> {
        self.live().and_then(|live| live.actual.queue_num.told())
    }

    /// How many rings can be started at most, where that is known.
    pub(super) fn max_rings(&self) -> Option<u32> {
        let most = u32::try_from(most(self.queues()?)).unwrap_or(u32::MAX);
        Some(most.min(self.options.rings()))
    }

    /// Fails if the back-end that is connected cannot have the ring.
    pub(super) fn check_ring_exists(&self, index: usize) -> Result<()> {
        match self.queues() {
            Some(queues) if impossible(queues, index) => {
                Err(Error::invalid(cannot_have(queues, index)))
            }
            _ => Ok(()),
        }
    }

    /// The handshake went through: gives up rings that this back-end cannot have, and
    /// reports each. Fails if a guest uses one already: then it is the back-end that does
    /// not fit.
    pub(super) fn refuse_absent_rings(&mut self) -> Result<()> {
        let Some(queues) = self.queues() else {
            return Ok(());
        };
        let rings = self.rings.iter().enumerate();
        let absent =
            rings.filter(|(index, ring)| ring.kept.is_some() && impossible(queues, *index));
        let absent: Vec<_> = absent.map(|(index, _)| index).collect();
        for index in &absent {
            if self.has_run(*index) {
                let text = cannot_have(queues, *index) + "; it ran before the loss";
                return Err(refusal(text, *index));
            }
        }
        for index in absent {
            self.ring_refused(index, refusal(cannot_have(queues, index), index));
        }
        Ok(())
    }

    /// A connection was lost. If that happens again and again at the first request of a
    /// ring that the back-end may lack, this is the ring to give up, and why.
    pub(super) fn absent_after(&mut self, error: &Error, live: &Live) -> Option<(usize, Error)> {
        let before = std::mem::take(&mut self.absent.suspect);
        let index = self.suspect(error, live)?;
        let losses = match before {
            Some((ring, losses)) if ring == index => losses.saturating_add(1),
            _ => 1,
        };
        if losses < LOSSES {
            self.absent.suspect = Some((index, losses));
            return None;
        }
        let count = live.actual.queue_num.told().map_or_else(
            || "it does not report a number of queues".to_owned(),
            |queues| format!("GET_QUEUE_NUM is {queues}"),
        );
        let text = format!(
            "the back-end does not have ring {index}: it closed the connection {losses} times in \
             a row at the first request of that ring ({count})"
        );
        Some((index, refusal(text, index).of(Request::SetVringCall)))
    }

    /// The ring whose first request, SET_VRING_CALL, the back-end did not survive, unless it is known to have that ring.
    fn suspect(&self, error: &Error, live: &Live) -> Option<usize> {
        // Each back-end has as many rings as queues, and ring 0.
        let certain = live.actual.queue_num.told().unwrap_or(1).max(1);
        let doubtful = |index: usize| {
            let wanted = self
                .rings
                .get(index)
                .is_some_and(|ring| ring.kept.is_some());
            let certain = u64::try_from(index).is_ok_and(|index| index < certain);
            wanted && !certain && !self.has_run(index)
        };
        let rings = live.actual.sent.rings.iter().enumerate();
        let mut rings = rings.filter(|(index, _)| doubtful(*index));
        let named = || error.ring.and_then(|ring| usize::try_from(ring).ok());
        let acknowledges = live.actual.agreed(ProtocolFeatures::REPLY_ACK);
        let index = match (error.kind, error.request) {
            // Some back-ends say nothing of a request that they fail at. libvhost-user
            // acknowledges it, and then closes.
            (Kind::Disconnected, Some(Request::SetVringCall | Request::SetVringNum))
                if acknowledges && error.ring.is_some() =>
            {
                named()
            }
            (Kind::Disconnected, _) if acknowledges && live.is_all_answered() => rings
                .find(|(_, ring)| ring.is_only_named())
                .map(|(index, _)| index),
            // Nothing is acknowledged: it is the first ring that was named.
            (Kind::Disconnected, _) if !acknowledges => rings
                .find(|(index, ring)| ring.call.is_some() && live.is_being_set_up(*index))
                .map(|(index, _)| index),
            _ => None,
        };
        index.filter(|index| doubtful(*index))
    }

    /// A ring that the back-end may lack counts as one that did not run on it.
    pub(super) fn suspect_has_not_run(&mut self) {
        let suspect = self
            .absent
            .suspect
            .and_then(|(ring, _)| self.rings.get_mut(ring));
        if let Some(kept) = suspect.and_then(|ring| ring.kept.as_mut()) {
            kept.has_run = false;
        }
    }

    /// Whether a ring that is to run has run on a back-end that was lost.
    fn has_run(&self, index: usize) -> bool {
        let kept = self.rings.get(index).and_then(|ring| ring.kept.as_ref());
        kept.is_some_and(|kept| kept.has_run)
    }
}

fn refusal(text: String, index: usize) -> Error {
    let ring = u32::try_from(index).unwrap_or(u32::MAX);
    Error::new(Kind::Nack, text).ring(ring)
}
