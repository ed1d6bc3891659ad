//! Questions to the back-end that is connected, for callers that wait for the answer. They
//! are no part of the desired state: the end of the connection is an answer, too.

use super::Device;
use super::core::Core;
use crate::backend_client::{Answer, Timeout, Uuid};
use crate::error::{Error, Kind, Result};
use crate::message::{ProtocolFeatures, Request, bit_names, protocol_feature_name};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    Status,
    SharedObject(Uuid),
}

impl Question {
    fn needs(self) -> (ProtocolFeatures, Request) {
        match self {
            Self::Status => (ProtocolFeatures::STATUS, Request::GetStatus),
            Self::SharedObject(_) => (ProtocolFeatures::SHARED_OBJECT, Request::GetSharedObject),
        }
    }
}

/// Questions whose answers threads wait for, by number.
#[derive(Debug, Default)]
pub(super) struct Questions {
    count: u64,
    unsent: VecDeque<(u64, Question)>,
    awaited: BTreeMap<u64, Option<Result<Answer>>>,
}

impl Questions {
    fn add(&mut self, question: Question) -> u64 {
        self.count = self.count.saturating_add(1);
        self.unsent.push_back((self.count, question));
        self.awaited.insert(self.count, None);
        self.count
    }

    /// No thread waits for it any longer.
    fn remove(&mut self, number: u64) -> Option<Result<Answer>> {
        self.unsent.retain(|(unsent, _)| *unsent != number);
        self.awaited.remove(&number).flatten()
    }

    fn is_answered(&self, number: u64) -> bool {
        matches!(self.awaited.get(&number), Some(Some(_)))
    }

    /// The next one to send.
    pub(super) fn next(&mut self) -> Option<(u64, Question)> {
        self.unsent.pop_front()
    }

    pub(super) fn answer(&mut self, number: u64, answer: Result<Answer>) {
        if let Some(place) = self.awaited.get_mut(&number) {
            place.get_or_insert(answer);
        }
    }

    /// The back-end is lost: it answers no question.
    pub(super) fn fail(&mut self, error: &Error) {
        self.unsent.clear();
        for place in self.awaited.values_mut() {
            place.get_or_insert_with(|| Err(error.clone()));
        }
    }
}

/// A thread waits for the answer to this question.
struct Awaited<'a>(&'a Device, u64);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let answer = self.0.lock().questions.remove(self.1);
        drop(answer); // without the lock
    }
}

impl Device {
    /// Asks the back-end that is connected for its device status (GET_STATUS), and waits
    /// for the answer.
    ///
    /// Fails with [`Kind::Disconnected`] without a back-end, and with the reason if that is
    /// lost meanwhile.
    pub fn backend_status(&self, timeout: Timeout) -> Result<u32> {
        match self.ask(Question::Status, timeout)? {
            Answer::Number(status) => Ok(u32::try_from(status).unwrap_or_default()),
            _ => Err(no_answer()),
        }
    }

    /// Asks the back-end that is connected for the file of an object that it exports
    /// (GET_SHARED_OBJECT), and waits for the answer. Fails like
    /// [`backend_status`](Self::backend_status), and with [`Kind::Nack`] if there is no such
    /// object.
    pub fn shared_object(&self, uuid: &Uuid, timeout: Timeout) -> Result<OwnedFd> {
        match self.ask(Question::SharedObject(*uuid), timeout)? {
            Answer::Object(file) => Ok(file.into_fd()),
            _ => Err(no_answer()),
        }
    }

    fn ask(&self, question: Question, timeout: Timeout) -> Result<Answer> {
        self.check_not_inside()?;
        let mut core = self.lock();
        core.check_question(question)?;
        let number = core.questions.add(question);
        drop(core);
        let awaited = Awaited(self, number);
        self.rouse();
        let answered = |core: &Core| core.questions.is_answered(number).then_some(Ok(()));
        self.wait_until(timeout, answered)?;
        let answer = self.lock().questions.remove(number);
        drop(awaited);
        answer.unwrap_or_else(|| Err(no_answer()))
    }
}

fn no_answer() -> Error {
    Error::new(Kind::Panic, "a question was answered with something else")
}

impl Core {
    fn check_question(&self, question: Question) -> Result<()> {
        let (feature, request) = question.needs();
        let Some(live) = self.live().filter(|live| live.connected) else {
            return Err(Error::new(Kind::Disconnected, "there is no back-end").of(request));
        };
        if live.actual.agreed(feature) {
            return Ok(());
        }
        let name = bit_names(feature.bits(), protocol_feature_name);
        let text = format!("protocol feature {name} has not been agreed with the back-end");
        Err(Error::new(Kind::NotNegotiated, text).of(request))
    }

    /// A question was answered, or refused. Fails where the connection is unusable.
    pub(super) fn question_answered(&mut self, number: u64, outcome: Result<Answer>) -> Result<()> {
        let failed = match &outcome {
            Err(error) if !matches!(error.kind, Kind::Nack) => Err(error.clone()),
            _ => Ok(()),
        };
        self.questions.answer(number, outcome);
        failed
    }
}
