#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::files::conventional_for_tests;
use super::*;
use crate::backend_client::Timeout;
use crate::error::Kind;
use crate::socket::{self, Exit, Role};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// More than anything takes that goes well.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of a test's own, which goes with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("vuf-programs-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A program that a shell runs. Another process writes it: a file that is open for
    /// writing, be it in a child of another test for a moment, cannot be run.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let text = format!("#!/bin/sh\n{text}\n");
        let write = "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"";
        let mut shell = Command::new("/bin/sh");
        let shell = shell.args(["-c", write, "sh"]).arg(&path).arg(text);
        assert!(shell.status().unwrap().success());
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn described(device_type: &str, binary: &str) -> String {
    format!(r#"{{"description": "a test", "type": "{device_type}", "binary": "{binary}"}}"#)
}

// ---- files ----

fn search(place: &Place, names: &[&str]) -> Search {
    Search {
        directories: Some(names.iter().map(|name| place.path(name)).collect()),
        ..Search::default()
    }
}

fn binaries(found: &[BackendProgram]) -> Vec<&str> {
    found
        .iter()
        .map(|program| program.binary.to_str().unwrap())
        .collect()
}

#[test]
fn the_most_specific_file_of_a_name_counts() {
    let place = Place::new("specific");
    place.file("general/50-fs.json", &described("fs", "/general"));
    place.file("general/10-net.json", &described("net", "/net"));
    place.file("middle/50-fs.json", &described("fs", "/middle"));
    place.file("special/50-fs.json", &described("fs", "/special"));
    place.file("special/60-fs.json", &described("fs", "/sixty"));
    let mut search = search(&place, &["general", "middle", "special", "absent"]);
    // In the order of their names, over all directories.
    assert_eq!(binaries(&find(&search)), ["/net", "/special", "/sixty"]);
    search.device_type = Some("fs".into());
    assert_eq!(binaries(&find(&search)), ["/special", "/sixty"]);
    search.device_type = Some("gpu".into());
    assert_eq!(find(&search), []);

    search.device_type = None;
    search.all = true;
    let found = find(&search);
    let all = ["/net", "/special", "/middle", "/general", "/sixty"];
    assert_eq!(binaries(&found), all);
    let special = place.path("special/50-fs.json");
    let hidden: Vec<_> = found.iter().map(|it| it.hidden_by.as_ref()).collect();
    assert_eq!(hidden, [None, None, Some(&special), Some(&special), None]);
    assert!(found[1].is_usable() && !found[2].is_usable());
}

#[test]
fn an_empty_file_hides_others() {
    let place = Place::new("empty");
    place.file("general/50-fs.json", &described("fs", "/general"));
    let mask = place.file("special/50-fs.json", "");
    let mut search = search(&place, &["general", "special"]);
    assert_eq!(find(&search), []);
    search.all = true;
    let found = find(&search);
    assert_eq!(binaries(&found), ["/general"]);
    assert_eq!(found[0].hidden_by.as_ref(), Some(&mask));
    // And where it is the less specific one, it hides nothing.
    search.directories.as_mut().unwrap().reverse();
    search.all = false;
    assert_eq!(binaries(&find(&search)), ["/general"]);
}

#[test]
fn a_directory_that_is_there_twice_counts_once() {
    let place = Place::new("twice");
    place.file("one/50-fs.json", &described("fs", "/one"));
    place.file("two/50-fs.json", &described("fs", "/two"));
    let mut search = search(&place, &["one", "two", "one"]);
    search.all = true;
    assert_eq!(binaries(&find(&search)), ["/one", "/two"]);
}

#[test]
fn what_need_not_be_understood_is_passed_over() {
    let place = Place::new("unknown");
    let text = r#"{"tags": ["a", {"b": [1.5e3]}], "type": "a type of tomorrow",
        "binary": "/b\u0069n", "new": {"binary": 1}, "description": "\ud83d\ude00"}"#;
    let file = place.file("d/50.json", text);
    place.file("d/50.json~", &described("fs", "/backup"));
    place.file("d/.50.json", &described("fs", "/hidden"));
    place.file("d/README", "text");
    let expected = BackendProgram {
        file,
        device_type: "a type of tomorrow".into(),
        description: "😀".into(),
        binary: "/bin".into(),
        hidden_by: None,
        problem: None,
    };
    assert_eq!(find(&search(&place, &["d"])), [expected]);
}

#[test]
fn a_file_that_is_of_no_use_is_told_with_all() {
    let place = Place::new("useless");
    let useless = [
        (r#"{"type": "fs", "binary": "/a""#, "comma"),
        (r#"[{"type": "fs", "binary": "/a"}]"#, "no object"),
        (r#"{"type": "fs"}"#, "no binary"),
        (r#"{"type": "fs", "binary": ""}"#, "no binary"),
        (r#"{"binary": "/a"}"#, "no type"),
        (r#"{"type": "fs", "binary": "virtiofsd"}"#, "absolute"),
        (r#"{"type": "fs", "binary": 1}"#, "binary is no text"),
        (r#"{"type": ["fs"], "binary": "/a"}"#, "type is no text"),
        (
            r#"{"type": "fs", "binary": "/a\u0000b"}"#,
            "binary is no text",
        ),
        (
            r#"{"type": "fs", "binary": "/a", "description": null}"#,
            "description is no text",
        ),
        (r#"{"type": "fs", "binary": "/a", "type": "fs"}"#, "twice"),
        (" ", "missing"),
    ];
    for (number, (text, _)) in useless.iter().enumerate() {
        place.file(&format!("d/{number:02}.json"), text);
    }
    // None of these is waited for, nor read to its end.
    let pipe = place.path("d/50-pipe.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    place.directory("d/51-directory.json");
    symlink("/dev/zero", place.path("d/52-device.json")).unwrap();
    symlink("nowhere", place.path("d/53-dangling.json")).unwrap();
    let large = format!(r#"{{"type": "fs", "binary": "/{}"}}"#, "x".repeat(1 << 20));
    place.file("d/54-large.json", &large);
    let more = ["no file", "no file", "no file", "No such file", "mebibyte"];

    let mut search = search(&place, &["d"]);
    assert_eq!(find(&search), []);
    search.all = true;
    let found = find(&search);
    let words: Vec<_> = useless.iter().map(|(_, word)| *word).chain(more).collect();
    assert_eq!(found.len(), words.len());
    for (program, word) in found.iter().zip(words) {
        let problem = program.problem.as_ref().unwrap();
        assert!(
            problem.contains(word),
            "{}: {problem}",
            program.file.display()
        );
        assert!(!program.is_usable());
    }
}

#[test]
fn a_file_of_no_use_still_hides_others() {
    let place = Place::new("broken");
    place.file("general/50-fs.json", &described("fs", "/general"));
    place.file("special/50-fs.json", "{");
    assert_eq!(find(&search(&place, &["general", "special"])), []);
}

#[test]
fn a_directory_that_cannot_be_read_is_told_with_all() {
    let place = Place::new("unreadable");
    place.file("file", "");
    let mut search = search(&place, &["file"]);
    assert_eq!(find(&search), []);
    search.all = true;
    let found = find(&search);
    assert_eq!(found[0].file, place.path("file"));
    assert!(found[0].problem.as_ref().unwrap().contains("directory"));
}

#[test]
fn the_directories_are_those_of_the_convention() {
    let list = |variables: &[(&str, &str)]| -> Vec<String> {
        let paths = conventional_for_tests(variables);
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        paths.iter().map(text).collect()
    };
    let at = |base: &str| format!("{base}/qemu/vhost-user");
    let expected = ["/usr/share", "/usr/share", "/usr/local/share", "/etc"].map(at);
    assert_eq!(list(&[]), expected);
    let expected = [
        "/usr/share",
        "/usr/share",
        "/usr/local/share",
        "/etc",
        "/home/me/.config",
    ];
    assert_eq!(list(&[("HOME", "/home/me")]), expected.map(at));
    let set = [
        ("HOME", "/home/me"),
        ("XDG_CONFIG_HOME", "/conf"),
        ("XDG_DATA_DIRS", "/first:relative::/second"),
    ];
    let expected = ["/usr/share", "/second", "/first", "/etc", "/conf"];
    assert_eq!(list(&set), expected.map(at));
    // Empty is not set, and what is not absolute is nothing.
    let set = [
        ("HOME", "/home/me"),
        ("XDG_CONFIG_HOME", "relative"),
        ("XDG_DATA_DIRS", ""),
    ];
    let expected = [
        "/usr/share",
        "/usr/share",
        "/usr/local/share",
        "/etc",
        "/home/me/.config",
    ];
    assert_eq!(list(&set), expected.map(at));
    assert_eq!(list(&[("HOME", "home")]).len(), 4);
}

// ---- capabilities ----

fn asked(binary: &Path) -> crate::error::Result<Capabilities> {
    super::capabilities::ask(binary, Timeout::After(PATIENCE))
}

#[test]
fn a_program_says_what_it_can_do() {
    let place = Place::new("says");
    let text = r#"[ "$*" = --print-capabilities ] || exit 9
        echo ignored >&2
        echo '{"type": "gpu", "features": ["render-node", "virgl", "of tomorrow"], "new": 1}'"#;
    let said = asked(&place.script("program", text)).unwrap();
    assert_eq!(said.device_type, "gpu");
    assert_eq!(said.features, ["render-node", "virgl", "of tomorrow"]);
    let said = asked(&place.script("few", r#"printf '{"type": "block"}'"#)).unwrap();
    assert_eq!(said.features, [""; 0]);
}

#[test]
fn what_it_says_is_checked() {
    let place = Place::new("checked");
    let cases = [
        ("exit 3", Kind::Nack, "exit status 3"),
        ("kill -9 $$", Kind::Disconnected, "signal 9"),
        ("echo usage", Kind::Protocol, "no value"),
        (r#"echo '{"features": []}'"#, Kind::Protocol, "no type"),
        (
            r#"echo '{"type": "fs", "features": "a"}'"#,
            Kind::Protocol,
            "no list",
        ),
        (
            r#"echo '{"type": "fs", "features": [1]}'"#,
            Kind::Protocol,
            "no text",
        ),
        (r#"echo '{"type": "fs"}'; exit 1"#, Kind::Nack, "status 1"),
        ("exec cat /dev/zero", Kind::Protocol, "mebibyte"),
    ];
    for (number, (text, kind, word)) in cases.into_iter().enumerate() {
        let error = asked(&place.script(&number.to_string(), text)).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(
            error.to_string().contains("--print-capabilities"),
            "{error}"
        );
    }
    let error = asked(&place.path("nothing")).unwrap_err();
    assert_eq!(error.kind, Kind::Os(nix::errno::Errno::ENOENT), "{error}");
}

#[test]
fn it_is_what_its_file_says() {
    let place = Place::new("same");
    let binary = place.script("program", r#"echo '{"type": "fs"}'"#);
    let binary = binary.to_str().unwrap();
    place.file("d/1.json", &described("fs", binary));
    place.file("d/2.json", &described("block", binary));
    place.file("d/3.json", "{}");
    let mut search = search(&place, &["d"]);
    search.all = true;
    let ask = |program: &BackendProgram| program.ask(Timeout::After(PATIENCE));
    let found = find(&search);
    assert_eq!(ask(&found[0]).unwrap().device_type, "fs");
    let error = ask(&found[1]).unwrap_err();
    assert_eq!(error.kind, Kind::Protocol, "{error}");
    let error = ask(&found[2]).unwrap_err();
    assert_eq!(error.kind, Kind::State, "{error}");
}

#[test]
fn a_program_that_is_late_is_killed() {
    let place = Place::new("late");
    let pid = place.path("pid");
    let text = format!(
        "echo $$ >{0}.new; mv {0}.new {0}; echo '{{'; exec sleep 1000",
        pid.display()
    );
    let program = place.script("program", &text);
    // It has to have begun, or nothing is seen of its end.
    let mut limit = Duration::from_millis(200);
    while !pid.exists() {
        assert!(limit < PATIENCE, "it does not begin");
        let error = super::capabilities::ask(&program, Timeout::After(limit)).unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut, "{error}");
        limit *= 2;
    }
    let pid = fs::read_to_string(pid).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
}

#[test]
fn a_child_of_its_own_holds_nothing_up() {
    let place = Place::new("grandchild");
    let text = format!(
        "sleep 1000 & echo $! >{}; echo '{{\"type\": \"fs\"}}'",
        place.path("pid").display()
    );
    let begin = Instant::now();
    let said = asked(&place.script("program", &text)).unwrap();
    assert_eq!(said.device_type, "fs");
    assert!(begin.elapsed() < PATIENCE);
    let pid = fs::read_to_string(place.path("pid")).unwrap();
    let mut kill = Command::new("kill");
    assert!(kill.args(["-9", pid.trim()]).status().unwrap().success());
}

// ---- processes ----

fn options(arguments: &[&str]) -> ProcessOptions<'static> {
    ProcessOptions {
        arguments: arguments
            .iter()
            .map(|argument| (*argument).into())
            .collect(),
        ..ProcessOptions::default()
    }
}

fn shell(text: &str, options: ProcessOptions<'_>) -> BackendProcess {
    let options = ProcessOptions {
        arguments: ["-c", text, "sh"]
            .into_iter()
            .map(Into::into)
            .chain(options.arguments)
            .collect(),
        ..options
    };
    BackendProcess::start(Path::new("/bin/sh"), &options).unwrap()
}

fn said(process: &BackendProcess) -> String {
    let mut stream = UnixStream::from(process.take_socket().unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn it_gets_a_connection_and_is_told_where() {
    let process = shell("echo \"$*\" >&3", options(&["--more"]));
    assert_eq!(said(&process), "--more --fd=3\n");
    assert_eq!(
        process.wait(Timeout::After(PATIENCE)).unwrap(),
        Exit::Code(0)
    );
    let error = process.take_socket().unwrap_err();
    assert_eq!(error.kind, Kind::State);
}

#[test]
fn it_may_be_told_in_another_way() {
    let options = ProcessOptions {
        own_arguments: true,
        environment: Some(vec!["NAME=a value".into()]),
        ..options(&["one", "two words", ""])
    };
    let process = shell("printf '%s|' \"$@\" \"$NAME\" \"$HOME\" >&3", options);
    assert_eq!(said(&process), "one|two words||a value||");
}

#[test]
fn it_has_no_other_descriptor() {
    // Not close-on-exec: somebody else's fault.
    let loose = nix::fcntl::fcntl(
        std::io::stderr().as_fd(),
        nix::fcntl::FcntlArg::F_DUPFD(100),
    )
    .unwrap();
    let process = shell(
        "cd /proc/self/fd && echo * >&3; readlink 0 >&3",
        options(&[]),
    );
    let text = said(&process);
    nix::unistd::close(loose).unwrap();
    let (fds, stdin) = text.split_once('\n').unwrap();
    // The shell has opened one to look.
    assert!(fds.starts_with("0 1 2 3"), "{fds}");
    assert!(fds.split(' ').count() <= 5, "{fds}");
    assert!(!fds.split(' ').any(|fd| fd == loose.to_string()), "{fds}");
    assert_eq!(stdin, "/dev/null\n");
}

#[test]
fn it_writes_where_it_is_told() {
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let options = ProcessOptions {
        stdout: Output::Null,
        stderr: Output::Fd(theirs.as_fd()),
        ..options(&[])
    };
    let process = shell(
        "echo lost; echo kept >&2; name=$(readlink /proc/$$/fd/1); echo $name >&2",
        options,
    );
    drop(theirs);
    let mut text = String::new();
    fs::File::from(ours).read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept\n/dev/null\n");
    drop(process);
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    // SIGPIPE is ignored in Rust programs, this one as well.
    let process = shell("cat /proc/self/status >&3", options(&[]));
    let text = said(&process);
    let mask = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    for signal in [libc::SIGPIPE, libc::SIGTERM, libc::SIGCHLD] {
        assert_eq!(mask("SigIgn:") >> (signal - 1) & 1, 0, "{signal}");
    }
}

#[test]
fn a_group_of_its_own() {
    let text = "cut -d ' ' -f 5 /proc/self/stat >&3";
    let process = shell(text, options(&[]));
    let own = said(&process);
    let options = ProcessOptions {
        new_group: true,
        ..options(&[])
    };
    let process = shell(text, options);
    assert_eq!(said(&process), format!("{}\n", process.pid()));
    assert_ne!(own, format!("{}\n", process.pid()));
}

#[test]
fn a_socket_that_listens_has_the_connection_already() {
    let options = ProcessOptions {
        passed: Passed::Listening,
        ..options(&[])
    };
    // What is at 3 is no connection: the shell cannot write there.
    let process = shell("echo >&3 || exec sleep 1000", options);
    let socket = process.take_socket().unwrap();
    socket::check(socket.as_fd(), Role::Connected).unwrap();
    let mut stream = UnixStream::from(socket);
    stream.write_all(b"it is taken by the queue").unwrap();
    assert_eq!(process.exit().unwrap(), None);
    // Its name is gone.
    let name = stream.peer_addr().unwrap();
    let path = name.as_pathname().unwrap();
    assert!(!path.exists(), "{}", path.display());
}

#[test]
fn how_it_ends_is_told() {
    let process = shell("exit 7", options(&[]));
    let patience = || Timeout::After(PATIENCE);
    assert_eq!(process.wait(patience()).unwrap(), Exit::Code(7));
    assert_eq!(process.exit().unwrap(), Some(Exit::Code(7)));
    // It is too late for these, and no fault.
    process.signal(libc::SIGTERM).unwrap();
    assert_eq!(process.terminate(patience()).unwrap(), Exit::Code(7));

    let process = shell("kill -USR1 $$; sleep 1000", options(&[]));
    assert_eq!(
        process.wait(patience()).unwrap(),
        Exit::Signal(libc::SIGUSR1)
    );

    let process = shell("exec sleep 1000", options(&[]));
    assert_eq!(process.exit().unwrap(), None);
    let short = Timeout::After(Duration::from_millis(10));
    assert_eq!(process.wait(short).unwrap_err().kind, Kind::TimedOut);
    assert_eq!(
        process.terminate(patience()).unwrap(),
        Exit::Signal(libc::SIGTERM)
    );
}

#[test]
fn one_that_does_not_listen_to_reason_is_killed() {
    let process = shell(
        "trap '' TERM; echo ready >&3; exec 3>&-; while :; do sleep 1; done",
        options(&[]),
    );
    assert_eq!(said(&process), "ready\n");
    let begin = Instant::now();
    let short = Timeout::After(Duration::from_millis(50));
    assert_eq!(
        process.terminate(short).unwrap(),
        Exit::Signal(libc::SIGKILL)
    );
    assert!(begin.elapsed() < PATIENCE);
    // Nor one that is stopped.
    let process = shell("kill -STOP $$", options(&[]));
    let status = format!("/proc/{}/stat", process.pid());
    while !fs::read_to_string(&status).unwrap().contains(") T ") {
        assert!(begin.elapsed() < PATIENCE, "it does not stop");
        std::thread::yield_now();
    }
    assert_eq!(
        process.terminate(short).unwrap(),
        Exit::Signal(libc::SIGKILL)
    );
}

#[test]
fn dropped_it_leaves_nothing_behind() {
    let process = shell("exec sleep 1000", options(&[]));
    let directory = PathBuf::from(format!("/proc/{}", process.pid()));
    assert!(directory.exists());
    drop(process);
    assert!(!directory.exists());
}

#[test]
fn what_cannot_be_started_is_told() {
    use nix::errno::Errno;
    let place = Place::new("cannot");
    let start = |path: &Path, options| BackendProcess::start(path, &options).unwrap_err();
    let error = start(&place.path("nothing"), options(&[]));
    assert_eq!(error.kind, Kind::Os(Errno::ENOENT), "{error}");
    assert!(error.to_string().contains("nothing"), "{error}");
    let text = place.file("text", "no program");
    let error = start(&text, options(&[]));
    assert_eq!(error.kind, Kind::Os(Errno::EACCES), "{error}");
    let error = start(Path::new("/bin/sh"), options(&["a\0b"]));
    assert_eq!(error.kind, Kind::Argument(Errno::EINVAL), "{error}");
}

#[test]
fn several_threads_may_wait() {
    let process = shell("exec sleep 1000", options(&[]));
    let waits = || process.wait(Timeout::After(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(waits)).collect();
        process.signal(libc::SIGKILL).unwrap();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Exit::Signal(libc::SIGKILL));
        }
    });
}
