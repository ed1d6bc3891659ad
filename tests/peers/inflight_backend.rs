//! A vhost-user-blk device for tests of recovery: it keeps the in-flight region as
//! the specification says, on split and packed rings, and kills itself at a chosen
//! moment. rust-vmm's `vhost` crate decodes the requests.
//!
//! One thread does everything, a batch of requests at a time, so that a test knows
//! what was done when it died.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a peer for the tests, which speaks to its user"
)]

#[path = "inflight_backend/disk.rs"]
mod disk;
#[path = "inflight_backend/memory.rs"]
mod memory;
#[path = "inflight_backend/packed.rs"]
mod packed;
#[path = "inflight_backend/ring.rs"]
mod ring;
#[path = "inflight_backend/split.rs"]
mod split;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{getsockopt, sockopt};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use vm_memory::{FileOffset, MmapRegion};

use disk::{Disk, SECTOR};
use memory::{Memory, Region};
use ring::{Chain, Ring, Setup};

const USAGE: &str = "\
usage: inflight_backend (--socket PATH | --fd=NUMBER) --file PATH [OPTION]...
       inflight_backend --print-capabilities

  --socket PATH      listen for a front-end here
  --fd=NUMBER        serve this socket: one that listens, or a connection, with which
                     the program ends
  --file PATH        the disk is this raw file
  --queues N         offer N queues, 1 to 4 (default 1)
  --journal PATH     append a line for each request executed: op sector len tag
  --no-inflight      do not offer INFLIGHT_SHMFD
  --in-order         offer IN_ORDER
  --out-of-order     take up to four requests, and complete the last one first
  --hold             take requests and never complete them; a ring is then stopped
                     only by the front-end's end
  --crash-after K    die, as if killed, at the K-th request taken; those that are
                     taken up again after a crash count
  --crash-at POINT   when it dies over it:
                       taken    it is recorded as in flight (the default)
                       done     it is executed
                       used     the driver has it back, but was not called
                       cleared  it is not in flight any more, and the driver was called
";

const MAX_QUEUES: u32 = 4;
const MAX_MEM_SLOTS: u64 = 32;
const OUT_OF_ORDER_BATCH: usize = 4;
const SEG_MAX: u32 = 126;

/// Each ring's part of the in-flight region begins at a multiple of this.
const REGION_ALIGNMENT: usize = 64;

/// The part of `virtio_blk_config` up to and including `num_queues`.
const CONFIG_SIZE: usize = 36;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Serve(options)) => *options,
        Ok(Asked::Usage) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Capabilities) => {
            println!(r#"{{"type": "block", "features": ["blk-file"]}}"#);
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprint!("inflight_backend: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("inflight_backend: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// A moment in the life of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Point {
    Taken,
    Done,
    Used,
    Cleared,
}

/// What was asked for.
enum Asked {
    Usage,
    Capabilities,
    Serve(Box<Options>),
}

struct Options {
    socket: PathBuf,
    fd: Option<RawFd>,
    file: PathBuf,
    journal: Option<PathBuf>,
    queues: u32,
    inflight: bool,
    in_order: bool,
    out_of_order: bool,
    hold: bool,
    crash_after: Option<u64>,
    crash_at: Point,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> std::result::Result<Asked, String> {
        let mut options = Self {
            socket: PathBuf::new(),
            fd: None,
            file: PathBuf::new(),
            journal: None,
            queues: 1,
            inflight: true,
            in_order: false,
            out_of_order: false,
            hold: false,
            crash_after: None,
            crash_at: Point::Taken,
        };
        while let Some(arg) = args.next() {
            let name = arg.to_string_lossy();
            let mut value = || args.next().ok_or(format!("{name} needs a value"));
            let mut text = || value().map(|value| value.to_string_lossy().into_owned());
            let bad = |text: &str| format!("{name} does not take {text}");
            match &*name {
                "--help" => return Ok(Asked::Usage),
                "--print-capabilities" => return Ok(Asked::Capabilities),
                fd if fd.starts_with("--fd=") => {
                    let number = fd.trim_start_matches("--fd=").parse().ok();
                    options.fd = Some(number.filter(|fd| *fd > 2).ok_or(bad(fd))?);
                }
                "--queues" => options.queues = text().and_then(|t| t.parse().or(Err(bad(&t))))?,
                "--no-inflight" => options.inflight = false,
                "--in-order" => options.in_order = true,
                "--out-of-order" => options.out_of_order = true,
                "--hold" => options.hold = true,
                "--crash-after" => {
                    let count = text().and_then(|t| t.parse().or(Err(bad(&t))))?;
                    options.crash_after = Some(count);
                }
                "--crash-at" => {
                    options.crash_at = match text()?.as_str() {
                        "taken" => Point::Taken,
                        "done" => Point::Done,
                        "used" => Point::Used,
                        "cleared" => Point::Cleared,
                        other => return Err(bad(other)),
                    }
                }
                "--socket" => options.socket = value()?.into(),
                "--file" => options.file = value()?.into(),
                "--journal" => options.journal = Some(value()?.into()),
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        if options.socket.as_os_str().is_empty() == options.fd.is_none() {
            return Err("one of --socket and --fd must be given".into());
        }
        if options.file.as_os_str().is_empty() {
            return Err("--file must be given".into());
        }
        if !(1..=MAX_QUEUES).contains(&options.queues) {
            return Err(format!("--queues takes 1 to {MAX_QUEUES}"));
        }
        if options.in_order && options.out_of_order {
            return Err("--in-order and --out-of-order exclude each other".into());
        }
        Ok(Asked::Serve(Box::new(options)))
    }
}

/// Where front-ends come from.
enum Door {
    Listener(UnixListener),
    /// There is one, and no other.
    Connection(UnixStream),
}

impl Door {
    fn open(options: &Options) -> io::Result<Self> {
        let Some(number) = options.fd else {
            remove_stale_socket(&options.socket)?;
            return UnixListener::bind(&options.socket).map(Self::Listener);
        };
        // SAFETY: whoever started the program has put it there, and nobody else here
        // knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        match getsockopt(&fd, sockopt::AcceptConn)? {
            true => Ok(Self::Listener(fd.into())),
            false => Ok(Self::Connection(fd.into())),
        }
    }
}

fn run(options: Options) -> std::result::Result<(), String> {
    let disk = Disk::open(&options.file, options.journal.as_deref())
        .map_err(|e| format!("cannot open the disk or the journal: {e}"))?;
    let door = Door::open(&options).map_err(|e| {
        let place = (&options.socket, options.fd);
        format!("cannot serve a socket ({place:?}): {e}")
    })?;

    let mut stdout = io::stdout();
    writeln!(stdout, "ready")
        .and_then(|()| stdout.flush())
        .map_err(|e| format!("cannot write to stdout: {e}"))?;

    let program = Arc::new(Program {
        options,
        disk,
        taken: AtomicU64::new(0),
    });
    let serve = |stream| match serve(stream, &program) {
        Ok(()) | Err(Error::Disconnected) => {}
        Err(e) => eprintln!("inflight_backend: the front-end was dropped: {e}"),
    };
    let listener = match door {
        Door::Listener(listener) => listener,
        Door::Connection(stream) => {
            serve(stream);
            return Ok(());
        }
    };
    loop {
        let (stream, _) = listener
            .accept()
            .map_err(|e| format!("cannot accept a front-end: {e}"))?;
        serve(stream);
    }
}

/// Makes way for our socket, but for nothing else: not a file that is no
/// socket, and not a socket that somebody still listens on.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// What outlives a connection.
struct Program {
    options: Options,
    disk: Disk,
    /// Requests taken so far.
    taken: AtomicU64,
}

impl Program {
    /// Counts a request that was taken.
    fn took(&self) -> u64 {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        self.reached(Point::Taken, number);
        number
    }

    /// Dies here if it was told to.
    fn reached(&self, point: Point, number: u64) {
        if self.options.crash_at == point && self.options.crash_after == Some(number) {
            // SAFETY: raise() takes a number and touches no memory.
            unsafe { libc::raise(libc::SIGKILL) };
        }
    }

    fn features(&self) -> u64 {
        let mut features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_F_RING_PACKED
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.options.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.options.in_order {
            features |= 1 << VIRTIO_F_IN_ORDER;
        }
        features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        features.set(
            VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            self.options.inflight,
        );
        features
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            let to = config.iter_mut().skip(offset);
            to.zip(value).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.disk.sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &(self.options.queues as u16).to_le_bytes());
        config
    }
}

/// Serves one front-end until it goes. What it leaves in flight stays recorded in
/// its region.
fn serve(stream: UnixStream, program: &Arc<Program>) -> Result<()> {
    let socket = stream.try_clone().map_err(Error::ReqHandlerError)?;
    let device = Device::new(Arc::clone(program), stream.try_clone());
    let device = Arc::new(Mutex::new(device.map_err(Error::ReqHandlerError)?));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
    loop {
        let asked = {
            let mut device = lock(&device);
            let busy = device.work();
            device.wait(&socket, busy).map_err(Error::ReqHandlerError)?
        };
        if asked {
            handler.handle_request()?;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(text: &str) -> Error {
    Error::ReqHandlerError(io::Error::other(text))
}

/// The in-flight region of all rings.
struct Inflight {
    map: Arc<MmapRegion>,
    num_queues: u16,
    queue_size: u16,
}

#[derive(Default)]
struct Vring {
    size: u32,
    base: u32,
    /// Descriptors, available ring, used ring, by the front-end's addresses.
    addr: (u64, u64, u64),
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    enabled: bool,
    /// None while it is stopped.
    ring: Option<Box<dyn Ring>>,
    /// There may be something to do.
    pending: bool,
    /// What was in flight when it was started.
    again: VecDeque<Chain>,
    /// What is in flight now, each with its number.
    held: Vec<(u64, Chain)>,
}

impl Vring {
    /// Takes a batch of requests and completes it, those of before first. Stops a
    /// ring that cannot be followed.
    fn work(&mut self, program: &Program, memory: &Memory) {
        let done = self
            .take(program, memory)
            .and_then(|()| self.complete(program, memory));
        if let Err(e) = done {
            eprintln!("inflight_backend: a ring is broken and was stopped: {e}");
            self.ring = None;
            signal(self.err.as_ref());
        }
    }

    fn take(&mut self, program: &Program, memory: &Memory) -> io::Result<()> {
        let options = &program.options;
        let room = match (options.hold, options.out_of_order) {
            (true, _) => usize::MAX,
            (false, true) => OUT_OF_ORDER_BATCH,
            (false, false) => 1,
        };
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        self.pending = false;
        while self.held.len() < room {
            let chain = match self.again.pop_front() {
                Some(chain) => chain,
                None => match ring.take(memory)? {
                    Some(chain) => chain,
                    None => break,
                },
            };
            self.held.push((program.took(), chain));
            self.pending = !options.hold;
        }
        Ok(())
    }

    fn complete(&mut self, program: &Program, memory: &Memory) -> io::Result<()> {
        let Some(ring) = self.ring.as_mut().filter(|_| !program.options.hold) else {
            return Ok(());
        };
        while let Some((number, chain)) = self.held.pop() {
            let written = program.disk.execute(memory, &chain.parts)?;
            program.reached(Point::Done, number);
            ring.put_used(memory, &chain, written)?;
            program.reached(Point::Used, number);
            ring.clear(&chain)?;
            signal(self.call.as_ref());
            program.reached(Point::Cleared, number);
        }
        Ok(())
    }
}

/// Adds 1 to an eventfd. One that is full or gone has been signalled often enough.
fn signal(fd: Option<&File>) {
    if let Some(mut fd) = fd {
        let _ = fd.write(&1_u64.to_ne_bytes());
    }
}

/// Waits until the front-end has closed the connection, or its half of it.
fn wait_for_end(socket: &UnixStream) -> io::Result<()> {
    let end = PollFlags::from_bits_retain(libc::POLLRDHUP);
    poll(&mut [PollFd::new(socket.as_fd(), end)], PollTimeout::NONE)?;
    Ok(())
}

/// What lives as long as one connection.
struct Device {
    program: Arc<Program>,
    /// To see the end of the connection while a request is being answered.
    socket: UnixStream,
    features: u64,
    protocol_features: VhostUserProtocolFeatures,
    memory: Memory,
    inflight: Option<Inflight>,
    vrings: Vec<Vring>,
}

impl Device {
    fn new(program: Arc<Program>, socket: io::Result<UnixStream>) -> io::Result<Self> {
        let queues = program.options.queues;
        Ok(Self {
            program,
            socket: socket?,
            features: 0,
            protocol_features: VhostUserProtocolFeatures::empty(),
            memory: Memory::default(),
            inflight: None,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
        })
    }

    /// Does one batch on each ring, and says whether there is more to do.
    fn work(&mut self) -> bool {
        let mut busy = false;
        for vring in &mut self.vrings {
            if vring.enabled && vring.pending {
                vring.work(&self.program, &self.memory);
            }
            busy |= vring.enabled && vring.pending && vring.ring.is_some();
        }
        busy
    }

    /// Waits for a request (true) or a kick. With `busy`, it only looks.
    fn wait(&mut self, socket: &UnixStream, busy: bool) -> io::Result<bool> {
        let readable = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(socket.as_fd(), readable)];
        let kicks = self.vrings.iter().filter_map(|vring| vring.kick.as_ref());
        fds.extend(kicks.map(|kick| PollFd::new(kick.as_fd(), readable)));
        let timeout = match busy {
            true => PollTimeout::ZERO,
            false => PollTimeout::NONE,
        };
        poll(&mut fds, timeout)?;
        let mut ready = fds.iter().map(|fd| fd.any() == Some(true));
        let asked = ready.next() == Some(true);
        let ready: Vec<bool> = ready.collect();

        let started = self.vrings.iter_mut().filter(|vring| vring.kick.is_some());
        for (vring, ready) in started.zip(ready) {
            if let Some(mut kick) = vring.kick.as_ref().filter(|_| ready) {
                // Nothing is left where two rings share an eventfd.
                let _ = kick.read(&mut [0; 8]);
                vring.pending = true;
            }
        }
        Ok(asked)
    }

    fn packed(&self) -> bool {
        self.features & 1 << VIRTIO_F_RING_PACKED != 0
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vrings.get_mut(index as usize);
        vring.ok_or_else(|| failure("there is no such ring"))
    }

    /// The size of one ring's part of the in-flight region.
    fn stride(&self, queue_size: u16) -> usize {
        let size = match self.packed() {
            true => packed::region_size(queue_size),
            false => split::region_size(queue_size),
        };
        size.next_multiple_of(REGION_ALIGNMENT)
    }

    fn region(&self, index: u32) -> io::Result<Option<Region>> {
        let agreed = VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        if !self.protocol_features.contains(agreed) {
            return Ok(None);
        }
        let known = self.inflight.as_ref();
        let known = known.filter(|inflight| index < inflight.num_queues.into());
        let inflight = known.ok_or_else(|| io::Error::other("a ring without in-flight region"))?;
        Ok(Some(Region {
            map: Arc::clone(&inflight.map),
            start: self.stride(inflight.queue_size) * index as usize,
            entries: inflight.queue_size,
        }))
    }

    fn start(&mut self, index: u32) -> io::Result<()> {
        let region = self.region(index)?;
        let packed = self.packed();
        let Some(vring) = self.vrings.get_mut(index as usize) else {
            return Err(io::Error::other("there is no such ring"));
        };
        let size = u16::try_from(vring.size).map_err(io::Error::other)?;
        if size == 0 || region.as_ref().is_some_and(|r| r.entries < size) {
            return Err(io::Error::other(
                "the ring's size is 0 or was not announced",
            ));
        }
        let (desc, avail, used) = vring.addr;
        let setup = Setup {
            size,
            base: vring.base,
            desc: self.memory.translate(desc)?,
            avail: self.memory.translate(avail)?,
            used: self.memory.translate(used)?,
            region,
        };
        let (ring, again) = match packed {
            true => packed::start(setup, &self.memory)?,
            false => split::start(setup, &self.memory)?,
        };
        vring.ring = Some(ring);
        vring.again = again;
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        for vring in &mut self.vrings {
            vring.enabled = false;
        }
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.features = 0;
        self.inflight = None;
        self.vrings.fill_with(Vring::default);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.program.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.program.features() != 0 {
            return Err(failure("a feature that was not offered"));
        }
        self.features = features;
        // Without the protocol's features there is no request to enable a ring.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.vrings.iter_mut().for_each(|v| v.enabled = true);
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.program.protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let features = VhostUserProtocolFeatures::from_bits_retain(features);
        if !self.program.protocol_features().contains(features) {
            return Err(failure("a protocol feature that was not offered"));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut memory = Memory::default();
        for (region, file) in regions.iter().zip(files) {
            memory.add(region, file).map_err(Error::ReqHandlerError)?;
        }
        self.memory = memory;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEM_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let added = self.memory.add(region, fd);
        added.map(|()| None).map_err(Error::ReqHandlerError)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region).map_err(Error::ReqHandlerError)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(failure("the log was not offered"))
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.program.options.queues.into())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.vring(index)?.size = num;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        self.vring(index)?.addr = (desc, avail, used);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.vring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let vring = self.vrings.get_mut(index as usize);
        let vring = vring.ok_or_else(|| failure("there is no such ring"))?;
        if self.program.options.hold && vring.held.len() + vring.again.len() > 0 {
            // They are never done, and the answer waits for them.
            wait_for_end(&self.socket).map_err(Error::ReqHandlerError)?;
            return Err(Error::Disconnected);
        }
        // What was in flight at the start, if the ring has not been enabled since.
        while vring.ring.is_some() && !vring.again.is_empty() {
            vring.work(&self.program, &self.memory);
        }
        if let Some(ring) = vring.ring.take() {
            vring.base = ring.base();
        }
        vring.kick = None;
        vring.call = None;
        Ok(VhostUserVringState::new(index, vring.base))
    }

    /// Starts the ring, with or without a kick.
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.ok_or_else(|| failure("rings are not polled"))?;
        let index = u32::from(index);
        if self.vring(index)?.ring.is_none() {
            self.start(index).map_err(Error::ReqHandlerError)?;
        }
        let vring = self.vring(index)?;
        vring.kick = Some(kick);
        vring.pending = true;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?.call = fd;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?.err = fd;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        vring.enabled = enable;
        vring.pending = true;
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let config = self.program.config().into_iter();
        // The crate takes an answer that is too short for an error.
        Ok(config.skip(offset as usize).take(size as usize).collect())
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        Err(failure("nothing there is writable"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(failure("not a GPU"))
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        Err(failure("there are no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        if inflight.num_queues == 0 || inflight.queue_size == 0 {
            return Err(failure("no ring is to be tracked"));
        }
        let size = self.stride(inflight.queue_size) * usize::from(inflight.num_queues);
        let mut answer = *inflight;
        answer.mmap_size = size as u64;
        answer.mmap_offset = 0;
        // All zero: each ring's part is initialised when the ring is started.
        let file = memfd_create("inflight", MFdFlags::MFD_CLOEXEC)
            .map(File::from)
            .map_err(io::Error::from)
            .and_then(|file| file.set_len(answer.mmap_size).map(|()| file))
            .map_err(Error::ReqHandlerError)?;
        Ok((answer, file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let (num_queues, queue_size) = (inflight.num_queues, inflight.queue_size);
        let needed = self.stride(queue_size) * usize::from(num_queues);
        if num_queues == 0 || queue_size == 0 || inflight.mmap_size < needed as u64 {
            return Err(failure("the in-flight region is too small"));
        }
        let offset = FileOffset::new(file, inflight.mmap_offset);
        let map = MmapRegion::from_file(offset, needed)
            .map_err(|e| Error::ReqHandlerError(io::Error::other(e)))?;
        self.inflight = Some(Inflight {
            map: Arc::new(map),
            num_queues,
            queue_size,
        });
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _passed: File,
    ) -> Result<Option<File>> {
        Err(failure("there is no device state"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(failure("there is no device state"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(failure("there is no shared memory"))
    }
}
