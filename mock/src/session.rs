//! One connection from its beginning to its end: receives, asks `strict`, the
//! script and the model, and does what comes out of it.

use crate::Outcome;
use crate::catalog::id;
use crate::device::WhenBroken;
use crate::eventfd;
use crate::fault::{Act, Fault, plan};
use crate::files;
use crate::log::Log;
use crate::message::{Message, Outgoing};
use crate::mode::AfterRefusal;
use crate::model::Model;
use crate::program::Program;
use crate::script::Script;
use crate::strict::{self, How};
use crate::wire::{self, Watched};
use nix::errno::Errno;
use nix::poll::PollFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

mod channel;
mod receive;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The front-end closed it.
    FrontEnd,
    /// The mock closed it: the script or the mode wanted so.
    Mock,
    /// The mock was told to stop.
    Stopped,
}

enum Interrupt {
    End(End),
    Failed(std::io::Error),
}

impl From<End> for Interrupt {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl From<std::io::Error> for Interrupt {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Errno> for Interrupt {
    fn from(error: Errno) -> Self {
        match error {
            Errno::EPIPE | Errno::ECONNRESET => Self::End(End::FrontEnd),
            error => Self::Failed(error.into()),
        }
    }
}

type Flow<T> = Result<T, Interrupt>;

/// A script that is being carried out, over one connection after the other.
#[derive(Debug)]
pub struct Backend {
    script: Script,
    program: Program,
    log: Log,
}

impl Backend {
    /// At the beginning of the script.
    pub fn new(script: Script) -> Self {
        let program = Program::new(&script);
        Self {
            script,
            program,
            log: Log::default(),
        }
    }

    /// Also writes each line of the log here, when it is made.
    pub fn log_to(&mut self, file: Box<dyn std::io::Write + Send>) {
        self.log.echo_to(file);
    }

    /// Serves one connection until it ends. As soon as `stop` is readable it
    /// handles what the front-end has already sent, and ends too.
    pub fn serve(&mut self, socket: UnixStream, stop: BorrowedFd<'_>) -> std::io::Result<End> {
        self.log.line("= connected");
        let model = Model::new(self.script.mode, self.script.device.clone());
        let mut session = Session {
            backend: self,
            socket,
            stop,
            model,
            silent: false,
            unread_answers: 0,
        };
        let end = loop {
            match session.turn() {
                Ok(()) => {}
                Err(Interrupt::End(end)) => break end,
                Err(Interrupt::Failed(error)) => return Err(error),
            }
        };
        // A device keeps its state and configuration when a front-end goes.
        let Model { device, .. } = session.model;
        (self.script.device.state, self.script.device.config) = (device.state, device.config);
        self.log.line(match end {
            End::FrontEnd => "= the front-end closed",
            End::Mock => "= closed",
            End::Stopped => "= stopped",
        });
        Ok(end)
    }

    /// What happened, and what did not.
    pub fn finish(self) -> Outcome {
        Outcome {
            log: self.log.into_lines(),
            unmet: self.program.unmet(),
        }
    }
}

struct Session<'a> {
    backend: &'a mut Backend,
    socket: UnixStream,
    stop: BorrowedFd<'a>,
    model: Model,
    /// Nothing is answered any more.
    silent: bool,
    /// Answers on the channel that nobody has waited for.
    unread_answers: usize,
}

/// Which socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Main,
    Channel,
}

impl Session<'_> {
    /// What is to be done at once, then one message.
    fn turn(&mut self) -> Flow<()> {
        while let Some((action, source)) = self.backend.program.action() {
            self.backend.log.line(format!("* {source}"));
            match action {
                Fault::Send(request) => self.ask(&request)?,
                action => {
                    let plan = plan(0, None, &[action], false)?;
                    self.perform(plan.before, Target::Main)?;
                    self.perform(plan.acts, Target::Main)?;
                }
            }
        }
        match self.receive()? {
            Ok(message) => self.handle(message),
            Err((text, refusal)) => {
                self.backend.log.line(format!("> {text}"));
                self.complain(&text, &refusal.why, false);
                Err(End::Mock.into())
            }
        }
    }

    fn handle(&mut self, message: Message) -> Flow<()> {
        let text = message.text();
        self.backend.log.line(format!("> {text}"));
        let verdict = strict::check(self.backend.script.mode, &self.model, &message);
        let found = self.backend.program.message(&message, verdict.is_err());
        if let Err(refusal) = verdict {
            self.complain(&text, &refusal.why, found.refusal_expected);
            return self.refuse(&message, refusal.how);
        }
        let code = message.header.code;
        let refusal = found.faults.iter().find_map(|fault| match fault {
            Fault::Refuse(value) => Some(*value),
            _ => None,
        });
        let Some(value) = refusal else {
            if code == id::CHECK_DEVICE_STATE {
                self.finish_transfer()?;
            }
            let reply = self.model.answer(message)?;
            return self.reply(code, reply, &found.faults);
        };
        let reply = self.model.refuse(&message, value);
        let closes = match self.model.habits.after_refusal {
            AfterRefusal::Stay => false,
            AfterRefusal::CloseUntold => reply.is_none(),
            AfterRefusal::Close => true,
        };
        self.reply(code, reply, &found.faults)?;
        if closes {
            Err(End::Mock.into())
        } else {
            Ok(())
        }
    }

    fn complain(&mut self, text: &str, why: &str, expected: bool) {
        let mode = self.backend.script.mode;
        self.backend.log.line(format!("! {mode} refuses it: {why}"));
        if !expected {
            self.backend
                .program
                .fail(format!("{mode} refuses {text}: {why}"));
        }
    }

    /// Does what the mode does about a message that it refuses.
    fn refuse(&mut self, message: &Message, how: How) -> Flow<()> {
        let code = message.header.code;
        let asked = self.model.acknowledges(message);
        let number = |value| Some(Outgoing::number(code, value));
        match how {
            How::Close => Err(End::Mock.into()),
            How::NackOrClose if asked => self.reply(code, number(1), &[]),
            How::NackOrClose => Err(End::Mock.into()),
            How::NackThenClose => {
                self.reply(code, number(1).filter(|_| asked), &[])?;
                Err(End::Mock.into())
            }
            How::AckThenBreak => {
                let reply = self.model.broken(message);
                self.reply(code, reply, &[])?;
                match self.model.device.when_broken {
                    WhenBroken::Close => Err(End::Mock.into()),
                    WhenBroken::Silent => {
                        self.silent = true;
                        Ok(())
                    }
                }
            }
        }
    }

    fn finish_transfer(&mut self) -> Flow<()> {
        while let Some(transfer) = &mut self.model.state.transfer {
            let Some((file, events)) = transfer.waits_for() else {
                break;
            };
            let mut watched = [
                Watched::new(file, events),
                Watched::new(&self.stop, PollFlags::POLLIN),
                Watched::new(&self.socket, PollFlags::empty()),
            ];
            wire::wait(&mut watched, None)?;
            let [file, stop, socket] = watched.map(|one| one.any());
            if file {
                transfer.step();
            } else if stop || socket {
                return Err(if stop { End::Stopped } else { End::FrontEnd }.into());
            }
        }
        Ok(())
    }

    fn reply(&mut self, code: u32, reply: Option<Outgoing>, faults: &[Fault]) -> Flow<()> {
        let plan = plan(code, reply, faults, self.model.habits.two_writes)?;
        self.perform(plan.before, Target::Main)?;
        let text = plan.text.filter(|_| !self.silent);
        let names: Vec<_> = faults.iter().map(Fault::to_string).collect();
        let line = match (text, names.as_slice()) {
            (None, []) => None,
            (Some(text), []) => Some(format!("< {text}")),
            (Some(text), names) => Some(format!("< {text} [{}]", names.join(", "))),
            (None, names) => Some(format!("< nothing [{}]", names.join(", "))),
        };
        if let Some(line) = line {
            self.backend.log.line(line);
        }
        self.perform(plan.acts, Target::Main)
    }

    fn perform(&mut self, acts: Vec<Act>, target: Target) -> Flow<()> {
        for act in acts {
            match act {
                Act::Bytes(_, _) if self.silent && target == Target::Main => {}
                Act::Bytes(bytes, fds) => self.send(&bytes, fds, target)?,
                Act::CloseAside(fds) => files::close_aside(fds),
                Act::Pause(time) | Act::StopReading(Some(time)) => self.pause(time)?,
                Act::StopReading(None) => self.stop_reading()?,
                Act::Send(request) => self.ask(&request)?,
                Act::FillEventfds => {
                    let filled = self.model.state.eventfds().filter(eventfd::fill).count();
                    self.backend.log.line(format!("* {filled} eventfds filled"));
                }
                Act::Close if target == Target::Channel => self.model.state.channel = None,
                Act::Close => return Err(End::Mock.into()),
                Act::Never => self.silent = true,
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8], fds: Vec<OwnedFd>, target: Target) -> Flow<()> {
        let mut fds = fds;
        let mut rest = bytes;
        while !rest.is_empty() {
            let socket = match (target, &self.model.state.channel) {
                (Target::Main, _) => &self.socket,
                (Target::Channel, Some(channel)) => channel,
                (Target::Channel, None) => return Ok(()),
            };
            match wire::write(socket.as_fd(), rest, &fds) {
                Ok(Some(sent)) => {
                    fds.clear();
                    rest = rest.get(sent..).unwrap_or_default();
                    continue;
                }
                Ok(None) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) if target == Target::Channel => {
                    self.backend
                        .program
                        .fail("the front-end has closed the channel".to_owned());
                    self.model.state.channel = None;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
            let mut watched = [
                Watched::new(socket, PollFlags::POLLOUT),
                Watched::new(&self.stop, PollFlags::POLLIN),
            ];
            wire::wait(&mut watched, None)?;
            let [writable, stop] = watched.map(|one| one.any());
            if stop && !writable {
                return Err(End::Stopped.into());
            }
        }
        Ok(())
    }

    /// Does nothing for a time, or until it is told to stop.
    fn pause(&mut self, time: Duration) -> Flow<()> {
        let until = Instant::now().checked_add(time);
        wire::wait(&mut [Watched::new(&self.stop, PollFlags::POLLIN)], until)?;
        Ok(())
    }

    /// Reads nothing until the front-end goes.
    fn stop_reading(&mut self) -> Flow<()> {
        let mut watched = [
            Watched::new(&self.socket, PollFlags::empty()),
            Watched::new(&self.stop, PollFlags::POLLIN),
        ];
        wire::wait(&mut watched, None)?;
        let [gone, _] = watched.map(|one| one.any());
        Err(if gone { End::FrontEnd } else { End::Stopped }.into())
    }
}
