//! Starting the back-ends that front-ends are compared on, each in a process of its
//! own, and ending them.

use super::acker;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A directory for sockets and disks.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vuf-bench.{}.{count}", std::process::id());
        let place = Self(std::env::temp_dir().join(name));
        fs::create_dir(&place.0).unwrap();
        place
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that is ended with this, and with this process whatever ends that.
pub struct Ended(pub Child);

impl Ended {
    fn start(command: &mut Command) -> Self {
        let last_will = || {
            let signal = libc::c_ulong::try_from(libc::SIGKILL).unwrap();
            // SAFETY: no pointer is passed.
            nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })?;
            Ok(())
        };
        // SAFETY: between fork and exec it makes one system call, and nothing else.
        let child = unsafe { command.pre_exec(last_will) }.spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Starts it, and returns when it has said that it is ready.
    pub fn when_ready(mut command: Command) -> Self {
        let mut it = Self::start(&mut command);
        let mut line = String::new();
        let mut stdout = BufReader::new(it.0.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{command:?}");
        it
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Acker,
    Embedded,
    Qemu,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Acker => "acking process",
            Self::Embedded => "embedded back-end",
            Self::Qemu => "qemu-storage-daemon",
        }
    }

    /// How many queues it takes.
    pub fn most_queues(self) -> u16 {
        match self {
            Self::Acker | Self::Qemu => 255,
            // The masks of `vhost-user-backend` are 64 bits wide.
            Self::Embedded => 64,
        }
    }

    /// Why it cannot be had here, if so.
    pub fn missing(self) -> Option<&'static str> {
        let quiet = |mut command: Command| {
            let command = command.stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let mut qemu = Command::new(QEMU);
        qemu.arg("--version");
        (self == Self::Qemu && !quiet(qemu)).then_some("there is no qemu-storage-daemon")
    }
}

/// The first two CPUs that this process may use; with one, that is both.
static CPUS: LazyLock<(usize, usize)> = LazyLock::new(|| {
    let mut set = no_cpus();
    let size = size_of_val(&set);
    // SAFETY: `set` has so many bytes, and outlives the call.
    let result = unsafe { libc::sched_getaffinity(0, size, &raw mut set) };
    assert_eq!(result, 0);
    let most = usize::try_from(libc::CPU_SETSIZE).unwrap();
    // SAFETY: no CPU is beyond what a set has room for.
    let mut cpus = (0..most).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
    let first = cpus.next().unwrap();
    (first, cpus.next().unwrap_or(first))
});

fn no_cpus() -> libc::cpu_set_t {
    // SAFETY: all zero is a set of none.
    unsafe { std::mem::zeroed() }
}

/// This thread, and what it starts.
fn keep_on(cpu: usize) {
    let mut set = no_cpus();
    // SAFETY: it is one that a set has shown.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` has so many bytes, and outlives the call.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(result, 0);
}

const QEMU: &str = "qemu-storage-daemon";

/// A back-end that listens.
pub struct BackEnd {
    process: Ended,
    pub socket: PathBuf,
    _place: Place,
}

impl BackEnd {
    /// On another CPU than this process is kept on from here on: where the kernel
    /// puts the two makes more of a difference than what front-end it is.
    pub fn start(kind: Kind, queues: u16) -> Self {
        let place = Place::new();
        let socket = place.file("socket");
        let (ours, theirs) = *CPUS;
        keep_on(theirs);
        let it = Self::spawn(kind, queues, place, socket);
        keep_on(ours);
        it
    }

    /// How often its threads have gone to sleep so far.
    pub fn sleeps(&self) -> u64 {
        let tasks = format!("/proc/{}/task", self.process.0.id());
        // A thread may end meanwhile, which then is not counted.
        let of = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u64>().ok()
        };
        let tasks = fs::read_dir(tasks).unwrap();
        tasks.filter_map(|task| of(task.ok()?)).sum()
    }

    fn spawn(kind: Kind, queues: u16, place: Place, socket: PathBuf) -> Self {
        let (process, socket) = match kind {
            Kind::Acker => acker::start(&place),
            Kind::Embedded => (embedded(&place, queues), socket),
            Kind::Qemu => (qemu(&place, queues), socket),
        };
        Self {
            process,
            socket,
            _place: place,
        }
    }
}

fn embedded(place: &Place, queues: u16) -> Ended {
    let this = std::env::current_exe().unwrap();
    let built = this.ancestors().nth(2).unwrap();
    let mut command = Command::new(built.join("examples/embedded_backend"));
    command.arg("--socket").arg(place.file("socket"));
    command.args(["--ram", "16777216", "--channel", "--queues"]);
    command.arg(queues.to_string()).stdout(Stdio::piped());
    Ended::when_ready(command)
}

fn qemu(place: &Place, queues: u16) -> Ended {
    let disk = fs::File::create(place.file("disk")).unwrap();
    disk.set_len(16 << 20).unwrap();
    let shown = |name| place.file(name).into_os_string().into_string().unwrap();
    let mut command = Command::new(QEMU);
    command.arg("--blockdev").arg(format!(
        "driver=file,node-name=disk,filename={}",
        shown("disk")
    ));
    command.arg("--export").arg(format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},\
         addr.type=unix,addr.path={}",
        shown("socket")
    ));
    let pid = place.file("pid");
    command.arg("--pidfile").arg(&pid);
    let mut it = Ended::start(&mut command);
    // It writes that when it listens, and says nothing.
    let begin = Instant::now();
    while fs::read(&pid).is_ok_and(|text| text.is_empty()) || !pid.exists() {
        assert_eq!(it.0.try_wait().unwrap(), None, "{QEMU} has ended");
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    it
}
