//! Requests on the back-end's own channel, and the front-end's answers.

use super::{End, Flow, Session, Target};
use crate::catalog::Number;
use crate::fault::{BackendRequest, Fault, plan};
use crate::message::{Header, Message, Outgoing, flags};
use crate::model::scratch_file;
use crate::wire::{self, HEADER_SIZE, Read, Watched};
use nix::poll::PollFlags;
use std::os::fd::AsFd;
use std::time::Instant;

/// A file that goes along with a request is this large.
const FILE_SIZE: u64 = 0x10_0000;

impl Session<'_> {
    /// A request on the back-end's own channel, and its answer.
    pub(super) fn ask(&mut self, request: &BackendRequest) -> Flow<()> {
        let name = request.kind.name;
        if self.model.state.channel.is_none() {
            let text = format!("send {name}: the front-end has given no channel");
            self.backend.log.line(format!("! {text}"));
            self.backend.program.fail(text);
            return Ok(());
        }
        let asked = if request.need_reply {
            flags::NEED_REPLY
        } else {
            0
        };
        let fds: Result<Vec<_>, _> = (0..request.fds).map(|_| scratch_file(FILE_SIZE)).collect();
        let message = Outgoing::new(
            request.kind.id,
            flags::VERSION | asked,
            request.payload.clone(),
        );
        let message = message.with(fds?);
        let mut line = format!("channel < {}", message.channel_text());
        if !request.faults.is_empty() {
            let names: Vec<_> = request.faults.iter().map(Fault::to_string).collect();
            line = format!("{line} [{}]", names.join(", "));
        }
        self.backend.log.line(line);
        let plan = plan(request.kind.id, Some(message), &request.faults, false)?;
        self.perform(plan.before, Target::Channel)?;
        self.perform(plan.acts, Target::Channel)?;
        let answered = request.need_reply || request.is_lookup();
        let Some(within) = request.within else {
            if answered {
                self.unread_answers = self.unread_answers.saturating_add(1);
            }
            return Ok(());
        };
        let until = Instant::now().checked_add(within);
        let found = match self.last_answer(until)? {
            Err(problem) => Err(problem),
            Ok(answer) => judge(request, &answer),
        };
        if let Err(problem) = found {
            self.backend.log.line(format!("! {name}: {problem}"));
            self.backend.program.fail(format!("send {name}: {problem}"));
        }
        Ok(())
    }

    /// The answer to the request that was sent last.
    fn last_answer(&mut self, until: Option<Instant>) -> Flow<Result<Message, String>> {
        for _ in 0..std::mem::take(&mut self.unread_answers) {
            if let Err(problem) = self.answer(until)? {
                return Ok(Err(problem));
            }
        }
        self.answer(until)
    }

    /// The next answer on the channel.
    fn answer(&mut self, until: Option<Instant>) -> Flow<Result<Message, String>> {
        let head = match self.read_channel(HEADER_SIZE, until)? {
            Ok(head) => head,
            Err(problem) => return Ok(Err(problem)),
        };
        let header = Header::parse(&head.bytes);
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > 0x1000 {
            return Ok(Err(format!(
                "an answer of {} bytes",
                Number(header.size.into())
            )));
        }
        let body = match self.read_channel(size, until)? {
            Ok(body) => body,
            Err(problem) => return Ok(Err(problem)),
        };
        let message = Message {
            header,
            payload: body.bytes,
            fds: head.fds,
        };
        let line = format!("channel > {}", message.channel_text());
        self.backend.log.line(line);
        Ok(Ok(message))
    }

    fn read_channel(&mut self, size: usize, until: Option<Instant>) -> Flow<Result<Read, String>> {
        let mut all = Read::default();
        while let Some(room) = size.checked_sub(all.bytes.len()).filter(|room| *room > 0) {
            let Some(channel) = &self.model.state.channel else {
                return Ok(Err("the channel is closed".to_owned()));
            };
            let mut watched = [
                Watched::new(channel, PollFlags::POLLIN),
                Watched::new(&self.stop, PollFlags::POLLIN),
                Watched::new(&self.socket, PollFlags::empty()),
            ];
            wire::wait(&mut watched, until)?;
            let [readable, stop, gone] = watched.map(|one| one.any());
            match (readable, stop, gone) {
                (true, _, _) => {}
                (_, true, _) => return Err(End::Stopped.into()),
                (_, _, true) => return Err(End::FrontEnd.into()),
                _ => return Ok(Err("no answer in time".to_owned())),
            }
            match wire::read(channel.as_fd(), room) {
                Ok(Some(read)) if read.bytes.is_empty() => {
                    return Ok(Err("the front-end closed the channel".to_owned()));
                }
                Ok(Some(mut read)) => {
                    all.bytes.append(&mut read.bytes);
                    all.fds.append(&mut read.fds);
                }
                Ok(None) => {}
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Ok(Ok(all))
    }
}

/// Whether this is a well-made answer, and the one that the script wants.
fn judge(request: &BackendRequest, answer: &Message) -> Result<(), String> {
    let Header {
        code,
        flags: bits,
        size,
    } = answer.header;
    if code != request.code() {
        return Err(format!("an answer to request {code}"));
    }
    if bits != flags::VERSION | flags::REPLY {
        return Err(format!("an answer with flags {bits:#x}"));
    }
    if size != 8 {
        return Err(format!("an answer of {size} bytes"));
    }
    // Only who finds a shared object has something to give.
    let gives = request.is_lookup() && answer.value() == 0;
    let fds = answer.fds.len();
    if fds != usize::from(gives) {
        return Err(format!("an answer with {fds} descriptors"));
    }
    match request.answer {
        Some(wanted) if wanted != answer.value() => Err(format!(
            "the answer is {}, not {wanted}",
            Number(answer.value().into())
        )),
        _ => Ok(()),
    }
}
