//! A back-end on a thread of this process, for tests.

use crate::{Backend, Script};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// What happened while a script was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Each message and what else happened, in order. `>` came from the
    /// front-end, `<` went to it, `!` is what is wrong, `*` what the script did,
    /// `=` the connection.
    pub log: Vec<String>,
    /// The expectations that were not met, the messages that the mode refused
    /// although nobody expected that, and the back-end's requests that were not
    /// answered as they should. Empty if all is well.
    pub unmet: Vec<String>,
}

impl Outcome {
    /// Whether all expectations were met.
    pub fn is_met(&self) -> bool {
        self.unmet.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        self.unmet
            .iter()
            .try_for_each(|line| writeln!(f, "not met: {line}"))
    }
}

/// A back-end that runs on its own thread until [`finish`](Self::finish) or drop.
#[derive(Debug)]
pub struct Mock {
    connections: Option<Sender<UnixStream>>,
    /// Closed to make it stop.
    running: Option<UnixStream>,
    thread: Option<JoinHandle<io::Result<Outcome>>>,
}

impl Mock {
    /// Starts one, and gives the front-end's end of a connection to it.
    pub fn spawn(script: Script) -> io::Result<(UnixStream, Self)> {
        let (sender, receiver) = channel();
        let (ours, theirs) = UnixStream::pair()?;
        let thread = thread::Builder::new()
            .name("vuf-mock-backend".to_owned())
            .spawn(move || serve(Backend::new(script), &receiver, &theirs))?;
        let mock = Self {
            connections: Some(sender),
            running: Some(ours),
            thread: Some(thread),
        };
        Ok((mock.connect()?, mock))
    }

    /// Another connection. It is served when those before it have ended, and the
    /// script goes on where it was.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let sent = self
            .connections
            .as_ref()
            .map(|connections| connections.send(theirs));
        match sent {
            Some(Ok(())) => Ok(ours),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Lets it handle what was sent, stops it, and tells what happened. Fails
    /// only where a system call does that should not.
    pub fn finish(mut self) -> io::Result<Outcome> {
        self.stop()
    }

    fn stop(&mut self) -> io::Result<Outcome> {
        self.connections = None;
        self.running = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            _ => Err(io::Error::other(
                "the thread of the mock back-end has panicked",
            )),
        }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        if self.thread.is_some() {
            _ = self.stop();
        }
    }
}

fn serve(
    mut backend: Backend,
    connections: &Receiver<UnixStream>,
    stop: &UnixStream,
) -> io::Result<Outcome> {
    while let Ok(connection) = connections.recv() {
        backend.serve(connection, stop.as_fd())?;
    }
    Ok(backend.finish())
}
