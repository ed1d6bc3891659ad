//! The program: its arguments, its exit status, what it prints.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vhost_user_frontend::{BackendClient, Options};

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vuf-mock-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// The program on a socket in this folder.
fn command(folder: &Folder, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vuf-mock-backend"));
    command.arg("--socket").arg(folder.socket()).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The same, once it is ready.
fn start(folder: &Folder, args: &[&str]) -> Child {
    let mut child = command(folder, args).spawn().unwrap();
    let mut line = String::new();
    // Unbuffered beyond this line: nothing follows.
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    if line != "ready\n" {
        let mut error = String::new();
        child
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        panic!("{line:?} {error}");
    }
    child
}

/// How it ended: exit status and standard error.
fn end(child: Child) -> (i32, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

fn client(folder: &Folder) -> BackendClient {
    BackendClient::connect(&folder.socket(), &Options::default()).unwrap()
}

#[test]
fn expectations_decide_the_exit_status() {
    let folder = Folder::new("exit");
    let met = start(&folder, &["--once", "-e", "expect GET_FEATURES"]);
    client(&folder).get_features().unwrap();
    assert_eq!(end(met), (0, String::new()));
    assert!(!folder.socket().exists(), "it removes its socket");

    let unmet = start(
        &folder,
        &[
            "--once",
            "-e",
            "expect GET_FEATURES",
            "-e",
            "expect SET_OWNER",
        ],
    );
    client(&folder).get_features().unwrap();
    assert_eq!(
        end(unmet),
        (
            1,
            "not met: line 2: expect SET_OWNER: did not come\n".to_owned()
        )
    );
}

#[test]
fn a_script_a_mode_and_a_log() {
    let folder = Folder::new("script");
    let (script, log) = (folder.0.join("script"), folder.0.join("log"));
    fs::write(&script, "# nothing\non GET_PROTOCOL_FEATURES: close").unwrap();
    let (script, log) = (script.to_str().unwrap(), log.to_str().unwrap());
    let args = [
        "--connections",
        "2",
        "--script",
        script,
        "--mode",
        "libvhost-user",
        "--log",
        log,
    ];
    let child = start(&folder, &args);
    for _ in 0..2 {
        let client = client(&folder);
        client.get_features().unwrap();
        client.get_protocol_features().unwrap_err();
    }
    assert_eq!(end(child), (0, String::new()));
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<_> = log
        .lines()
        .map(|line| line.trim_start().split_once(' ').unwrap().1)
        .collect();
    let once = [
        "= connected",
        "> GET_FEATURES",
        "< GET_FEATURES value=0x144000000",
        "> GET_PROTOCOL_FEATURES",
        "< nothing [close]",
        "= closed",
    ];
    assert_eq!(lines, [once, once].concat());
}

#[test]
fn signals_end_it() {
    let folder = Folder::new("signal");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for connected in [false, true] {
            let child = start(&folder, &["-e", "expect SET_OWNER"]);
            let front = connected.then(|| client(&folder));
            if let Some(front) = &front {
                front.get_features().unwrap();
            }
            kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
            let (status, error) = end(child);
            assert_eq!(status, 1, "{error}");
            assert!(!folder.socket().exists());
        }
    }
}

#[test]
fn it_can_call_the_front_end() {
    let folder = Folder::new("connect");
    // Started before anybody listens.
    let child = start(&folder, &["--connect", "--once"]);
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client =
        BackendClient::accept(std::os::fd::AsFd::as_fd(&listener), &Options::default()).unwrap();
    client.get_features().unwrap();
    drop(client);
    assert_eq!(end(child).0, 0);
    assert!(folder.socket().exists(), "it is not its own");
}

#[test]
fn a_dead_socket_is_taken_over_and_a_living_one_is_not() {
    let folder = Folder::new("socket");
    drop(UnixListener::bind(folder.socket()).unwrap());
    // A child that another test is about to start may hold it for a moment yet.
    while UnixStream::connect(folder.socket()).is_ok() {
        std::thread::yield_now();
    }
    let child = start(&folder, &["--once"]);
    let second = command(&folder, &[]).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    // The second one's look counted as a connection; it is over at once.
    let start = Instant::now();
    assert_eq!(end(child).0, 0);
    assert!(start.elapsed() < Duration::from_secs(5));
    fs::write(folder.socket(), "precious").unwrap();
    assert_eq!(
        command(&folder, &[]).output().unwrap().status.code(),
        Some(2)
    );
    assert_eq!(fs::read(folder.socket()).unwrap(), b"precious");
    assert!(UnixStream::connect(folder.socket()).is_err());
}

#[test]
fn mistakes_are_told() {
    let folder = Folder::new("usage");
    let script = folder.0.join("script");
    fs::write(
        &script,
        "expect GET_FEATURES\n\n  on GET_FEATURES: shrt 3\n",
    )
    .unwrap();
    let script = script.to_str().unwrap();
    let cases: [(&[&str], String); 5] = [
        (&["--script", script], format!("vuf-mock-backend: {script}: line 3, column 20: \"shrt\": no such fault;")),
        (&["-e", "never", "-e", "nevr"], "vuf-mock-backend: statement of the command line: line 2, column 1: \"nevr\": no such statement;".to_owned()),
        (&["--what"], "vuf-mock-backend: unknown argument --what\nusage: vuf-mock-backend --socket PATH".to_owned()),
        (&["--script", "/no/such/file"], "vuf-mock-backend: /no/such/file: No such file or directory".to_owned()),
        (&["--log", "/no/such/folder/log"], "vuf-mock-backend: /no/such/folder/log: No such file".to_owned()),
    ];
    for (args, right) in cases {
        let output = command(&folder, args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with(&right), "{error}");
        assert!(output.stdout.is_empty(), "it was not ready");
    }
    let help = command(&folder, &["--help"]).output().unwrap();
    assert!(help.status.success() && help.stdout.starts_with(b"usage: "));
}
