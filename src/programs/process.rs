//! A back-end that was started here: its socket, its end.

use crate::backend_client::Timeout;
use crate::error::{Error, Kind, Result};
use crate::socket::{self, Bell, Child, Deadline, Exit, Origin, PASSED_FD, Spawn, Watch};
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a program has to end that was asked to, and then that was killed.
const END: Duration = Duration::from_secs(5);

/// Where a program writes.
#[derive(Debug, Clone, Copy, Default)]
pub enum Output<'a> {
    /// Where this process does.
    #[default]
    Inherited,
    /// Nowhere.
    Null,
    /// Here.
    Fd(BorrowedFd<'a>),
}

/// What kind of socket a back-end is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passed {
    /// One end of a connection.
    #[default]
    Connected,
    /// One that listens, at which the connection waits.
    Listening,
}

/// How a back-end is started.
#[derive(Debug, Clone, Default)]
pub struct ProcessOptions<'a> {
    /// Behind the program's name.
    pub arguments: Vec<OsString>,
    /// "NAME=value" each; `None` for this process's.
    pub environment: Option<Vec<OsString>>,
    /// Its standard output.
    pub stdout: Output<'a>,
    /// Its standard error.
    pub stderr: Output<'a>,
    /// What it finds under the number 3.
    pub passed: Passed,
    /// It is told of that in another way, by the arguments, than by `--fd=3`.
    pub own_arguments: bool,
    /// It leads a process group of its own.
    pub new_group: bool,
    /// It is killed (SIGKILL) when the thread that starts it ends, and so at the latest with
    /// this process. Of a program that changes its rights (set-user-ID, file capabilities)
    /// the kernel forgets that.
    pub kill_with_parent: bool,
}

/// A back-end that was started here. Dropped, it is killed if it still runs.
#[derive(Debug)]
pub struct BackendProcess {
    child: Child,
    /// Our end of the connection, until it is taken.
    socket: Mutex<Option<OwnedFd>>,
    /// How it has ended, once that was asked.
    exit: Mutex<Option<Exit>>,
    /// Nobody waits for it any longer.
    canceled: Bell,
    /// Who has started it: not a forked child.
    parent: Origin,
}

fn text(text: &OsStr, name: &str) -> Result<CString> {
    let no_text = |_| Error::invalid(format!("{name} has a NUL in it"));
    CString::new(text.as_bytes()).map_err(no_text)
}

impl BackendProcess {
    /// Starts a back-end with one end of a connection.
    pub fn start(program: &Path, options: &ProcessOptions<'_>) -> Result<Self> {
        let failed = |errno| Error::os(errno, "cannot make a connection");
        let sockets = || match options.passed {
            Passed::Connected => socket::pair().map(Some).map_err(failed),
            Passed::Listening => {
                let (listener, connection) = socket::listener_with_connection()?;
                Ok(Some((connection, listener)))
            }
        };
        let mut arguments = options.arguments.clone();
        if !options.own_arguments {
            arguments.push(format!("--fd={PASSED_FD}").into());
        }
        Self::run(program, &arguments, options, sockets)
    }

    /// Starts a program, with the socket that is ours and the one that is its, if any is
    /// made.
    pub(super) fn run(
        program: &Path,
        arguments: &[OsString],
        options: &ProcessOptions<'_>,
        sockets: impl FnOnce() -> Result<Option<(OwnedFd, OwnedFd)>>,
    ) -> Result<Self> {
        // Before anything is opened: it would get their numbers where they are closed.
        let inherited = (socket::standard_output(), socket::standard_error());
        for (output, name) in [(options.stdout, "stdout"), (options.stderr, "stderr")] {
            if matches!(output, Output::Fd(fd) if !socket::is_open(fd)) {
                return Err(Error::bad_fd(format!("the {name} for it is not open")));
            }
        }
        let (ours, theirs) = sockets()?.unzip();
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
            .and_then(|file| socket::above_standard(file.into()))
            .map_err(|errno| Error::os(errno, "cannot open /dev/null"))?;
        let output = |output, inherited: Option<BorrowedFd<'static>>| match output {
            Output::Fd(fd) => fd,
            Output::Null => null.as_fd(),
            Output::Inherited => inherited.unwrap_or(null.as_fd()),
        };
        let name = text(program.as_os_str(), "the program's path")?;
        let arguments = std::iter::once(program.as_os_str())
            .chain(arguments.iter().map(OsString::as_os_str))
            .map(|argument| text(argument, "an argument"))
            .collect::<Result<Vec<_>>>()?;
        let environment = match &options.environment {
            Some(environment) => environment
                .iter()
                .map(|variable| text(variable, "a variable of the environment"))
                .collect::<Result<Vec<_>>>()?,
            None => own_environment(),
        };
        let canceled = Bell::new().map_err(|errno| Error::os(errno, "cannot make an event"))?;
        let child = socket::spawn(&Spawn {
            program: &name,
            arguments: &arguments,
            environment: &environment,
            // It is no program that somebody speaks to.
            stdin: null.as_fd(),
            stdout: output(options.stdout, inherited.0),
            stderr: output(options.stderr, inherited.1),
            passed: theirs.as_ref().map(OwnedFd::as_fd),
            new_group: options.new_group,
            kill_with_parent: options.kill_with_parent,
        })
        .map_err(|errno| Error::os(errno, format_args!("cannot start {}", program.display())))?;
        Ok(Self {
            child,
            socket: Mutex::new(ours),
            exit: Mutex::new(None),
            canceled,
            parent: Origin::here(),
        })
    }

    fn exit_lock(&self) -> MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number. It may be another's once [`exit`](Self::exit) has told how it
    /// ended.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// Our end of the connection; once.
    pub fn take_socket(&self) -> Result<OwnedFd> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.take().ok_or_else(|| {
            let text = "the connection to the process was taken already";
            Error::new(Kind::State, text)
        })
    }

    /// Sends it a signal; one that has ended needs none.
    pub fn signal(&self, number: i32) -> Result<()> {
        match self.child.signal(number) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::os(errno, "cannot send a signal to the process")),
        }
    }

    /// How it has ended, if it has. Does not wait.
    pub fn exit(&self) -> Result<Option<Exit>> {
        let mut exit = self.exit_lock();
        if exit.is_none() {
            let failed = |errno| Error::os(errno, "cannot tell how the process has ended");
            *exit = self.child.reap().map_err(failed)?;
        }
        Ok(*exit)
    }

    /// Waits until it has ended, by default for 5 s.
    pub fn wait(&self, timeout: Timeout) -> Result<Exit> {
        let deadline = Deadline::after(timeout.or(Some(END)));
        self.wait_until(deadline)
    }

    pub(super) fn wait_until(&self, deadline: Deadline) -> Result<Exit> {
        loop {
            let last = deadline.passed();
            if let Some(exit) = self.exit()? {
                return Ok(exit);
            }
            if last {
                return Err(Error::new(Kind::TimedOut, "the process has not ended"));
            }
            let watches = [self.pidfd(), self.canceled.fd()].map(|fd| Watch {
                fd,
                read: true,
                write: false,
                end: false,
            });
            let [_, canceled] = socket::wait(watches, deadline)
                .map_err(|errno| Error::os(errno, "cannot wait for the process"))?;
            if canceled.readable {
                let freed = || Error::new(Kind::Canceled, "the process is being freed");
                return self.exit()?.ok_or_else(freed);
            }
        }
    }

    /// Waits under way end, and later ones do not wait any more.
    pub(crate) fn cancel(&self) {
        self.canceled.ring();
    }

    /// Ends it, as the convention says: SIGTERM, and SIGKILL if it has not ended
    /// within the time, by default 5 s. Not even that ends a program at once which
    /// hangs in the kernel: then it has timed out after another 5 s.
    pub fn terminate(&self, timeout: Timeout) -> Result<Exit> {
        self.signal(libc::SIGTERM)?;
        match self.wait(timeout) {
            Err(error) if error.kind == Kind::TimedOut => {}
            result => return result,
        }
        self.kill()
    }

    /// Ends it with SIGKILL, and waits for that as [`terminate`](Self::terminate)
    /// does.
    pub fn kill(&self) -> Result<Exit> {
        self.signal(libc::SIGKILL)?;
        self.wait(Timeout::After(END))
    }
}

impl BackendProcess {
    /// Drops a forked child's copy, unless another thread of the parent was changing it
    /// at the fork.
    pub(crate) fn close_in_child(self) {
        if self.socket.try_lock().is_err() || self.exit.try_lock().is_err() {
            std::mem::forget(self);
        }
    }
}

impl Drop for BackendProcess {
    fn drop(&mut self) {
        if self.parent.is_here() {
            // There is nobody to tell, and it is not waited for any longer.
            let _ = self.kill();
        }
    }
}

fn own_environment() -> Vec<CString> {
    std::env::vars_os()
        .filter_map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            CString::new(name.into_encoded_bytes()).ok()
        })
        .collect()
}
