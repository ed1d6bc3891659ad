//! What a back-end says of itself: `--print-capabilities`.

use super::json::{self, Json};
use super::process::{BackendProcess, Output, ProcessOptions};
use crate::backend_client::Timeout;
use crate::error::{Error, Kind, Result};
use crate::socket::{self, Deadline, Exit, Watch};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

/// How long a back-end has to print them.
const TIME: Duration = Duration::from_secs(5);
const READ_SIZE: usize = 4096;

/// What a back-end says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// What kind of device it is, as "block".
    pub device_type: String,
    /// What it can do, in words that depend on the kind of device.
    pub features: Vec<String>,
}

/// Runs a back-end for what it says of itself. It has ended when this returns.
pub(crate) fn ask(program: &Path, timeout: Timeout) -> Result<Capabilities> {
    let deadline = Deadline::after(timeout.or(Some(TIME)));
    let named = |mut error: Error| {
        error.message = format!("{} --print-capabilities: {error}", program.display()).into();
        error
    };
    let text = output(program, deadline).map_err(named)?;
    understand(&text).map_err(named)
}

fn output(program: &Path, deadline: Deadline) -> Result<Vec<u8>> {
    let failed = |errno| Error::os(errno, "cannot read what it prints");
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    let options = ProcessOptions {
        stdout: Output::Fd(theirs.as_fd()),
        stderr: Output::Null,
        ..ProcessOptions::default()
    };
    let process = BackendProcess::run(program, &["--print-capabilities".into()], &options, || {
        Ok(None)
    })?;
    drop(theirs);
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
    let mut text = Vec::new();
    let exit = loop {
        // A child of its own may hold the pipe, so its end is looked at, too: first,
        // and then what it has printed by then.
        let last = deadline.passed();
        let exit = process.exit()?;
        let ended = take(ours.as_fd(), &mut text).map_err(failed)?;
        if text.len() > json::MAX_SIZE {
            return Err(Error::protocol("it prints more than a mebibyte"));
        }
        match exit {
            Some(exit) => break exit,
            None if last => {
                return Err(Error::new(Kind::TimedOut, "it has not ended in time"));
            }
            None => {}
        }
        let watch = |fd, read| Watch {
            fd,
            read,
            write: false,
            end: false,
        };
        let result = match ended {
            // Its end would be told for ever.
            true => socket::wait([watch(process.pidfd(), true)], deadline).map(drop),
            false => {
                let both = [watch(process.pidfd(), true), watch(ours.as_fd(), true)];
                socket::wait(both, deadline).map(drop)
            }
        };
        result.map_err(failed)?;
    };
    match exit {
        Exit::Code(0) => Ok(text),
        Exit::Code(code) => {
            let value = u64::try_from(code).ok();
            let text = format!("it does not know that, or failed: exit status {code}");
            Err(Error::new(Kind::Nack, text).with_value(value))
        }
        Exit::Signal(signal) => {
            let text = format!("it was ended by signal {signal}");
            Err(Error::new(Kind::Disconnected, text))
        }
        // What it has printed tells.
        Exit::Unknown => Ok(text),
    }
}

/// Takes what is there, but not much more than is allowed. Whether it has come to an
/// end.
fn take(pipe: BorrowedFd<'_>, text: &mut Vec<u8>) -> nix::Result<bool> {
    let mut buffer = [0; READ_SIZE];
    while text.len() <= json::MAX_SIZE {
        match read(pipe, &mut buffer) {
            Ok(0) => return Ok(true),
            Ok(bytes) => text.extend_from_slice(buffer.get(..bytes).unwrap_or_default()),
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

fn understand(text: &[u8]) -> Result<Capabilities> {
    let wrong = |what: &str| Error::protocol(format!("it prints what is not understood: {what}"));
    let value = json::parse(text).map_err(|error| wrong(&error.to_string()))?;
    let device_type = match value.get("type").and_then(Json::as_str) {
        Some(name) if !name.is_empty() && !name.contains('\0') => name.to_owned(),
        _ => return Err(wrong("no type")),
    };
    let features = match value.get("features") {
        None => Vec::new(),
        Some(Json::Array(features)) => features
            .iter()
            .map(|feature| feature.as_str().filter(|name| !name.contains('\0')))
            .map(|feature| feature.map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| wrong("a feature that is no text"))?,
        Some(_) => return Err(wrong("features that are no list")),
    };
    Ok(Capabilities {
        device_type,
        features,
    })
}
