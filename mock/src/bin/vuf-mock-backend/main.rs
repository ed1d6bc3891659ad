//! `vuf-mock-backend`: runs a script on a socket.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

mod door;
mod options;

use door::{Door, named};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use options::{Command, Options};
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use vuf_mock_backend::{Backend, End, Outcome, Script};

/// An expectation was not met.
const UNMET: u8 = 1;
/// The arguments or the script make no sense, or nothing can be served.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Say(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("vuf-mock-backend: {error}\n{}", options::USAGE);
            return ExitCode::from(FAILED);
        }
    };
    match run(&options) {
        Ok(outcome) if outcome.is_met() => ExitCode::SUCCESS,
        Ok(outcome) => {
            outcome
                .unmet
                .iter()
                .for_each(|line| eprintln!("not met: {line}"));
            ExitCode::from(UNMET)
        }
        Err(error) => {
            eprintln!("vuf-mock-backend: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let mut backend = Backend::new(script(options)?);
    if let Some(path) = &options.log {
        backend.log_to(match path.to_str() {
            Some("-") => Box::new(io::stderr()),
            _ => Box::new(fs::File::create(path).map_err(|error| named(path, &error))?),
        });
    }
    // Before it says that it is ready: from then on it may be told to stop.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let stop = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let path = &options.socket;
    let door = if options.connect {
        Door::Caller(path)
    } else {
        Door::listen(path)?
    };
    println!("ready");
    io::stdout().flush()?;
    let mut left = options.connections;
    while left != Some(0) {
        let Some(connection) = door.next(stop.as_fd())? else {
            break;
        };
        if backend.serve(connection, stop.as_fd())? == End::Stopped {
            break;
        }
        left = left.map(|left| left.saturating_sub(1));
    }
    Ok(backend.finish())
}

/// That of the file, and then that of the command line.
fn script(options: &Options) -> Result<Script, Box<dyn Error>> {
    let mut text = String::new();
    if let Some(path) = &options.script {
        text = fs::read_to_string(path).map_err(|error| named(path, &error))?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
    }
    let lines = text.lines().count();
    for statement in &options.statements {
        text.push_str(statement);
        text.push('\n');
    }
    Script::parse(&text).map_err(|mut error| {
        let place = match &options.script {
            Some(path) if error.line <= lines => path.to_string_lossy().into_owned(),
            _ => {
                error.line = error.line.saturating_sub(lines);
                "statement of the command line".to_owned()
            }
        };
        format!("{place}: {error}").into()
    })
}
