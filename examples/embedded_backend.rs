//! A vhost-user-blk device on rust-vmm's `vhost-user-backend`: a disk in RAM or
//! in a raw file, for the demo and the tests to drive.
//!
//! It serves one front-end after another. The disk and its write-cache mode
//! outlive a connection, as they would outlive a guest that is restarted;
//! everything that was negotiated does not.

#![allow(
    clippy::as_conversions,
    reason = "the bindings' constants are u32, whatever the field that holds them"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to its user"
)]

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem::offset_of;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{getsockopt, sockopt};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Backend, Error as ProtocolError, Listener};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{Error as DaemonError, VhostUserBackend, VhostUserDaemon};
use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Error as RingError, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap, Le32, Le64,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

const USAGE: &str = "\
usage: embedded_backend (--socket PATH | --fd=NUMBER) (--file PATH | --ram BYTES)
                        [--queues N] [--read-only] [--channel]
       embedded_backend --print-capabilities

  --socket PATH  listen for a vhost-user front-end here
  --fd=NUMBER    do so on this socket, which listens already
  --file PATH    the disk is this raw file
  --ram BYTES    the disk is this much zeroed memory, lost on exit
  --queues N     offer N queues, 1 to 64 (default 1)
  --read-only    refuse writes
  --channel      accept a channel for requests of its own, of which it makes none
";

const SECTOR: u64 = 512;

/// The crate's masks of queues per thread are 64 bits wide.
const MAX_QUEUES: u16 = 64;
const MAX_QUEUE_SIZE: usize = 1024;

/// A request of a driver that respects it fits a ring of 128 without indirect
/// descriptors: header and status take the other two.
const SEG_MAX: u32 = 126;

/// Data moves through a buffer of this size, so that a request's length, which
/// the driver chooses, is never an allocation size.
const BOUNCE: usize = 64 << 10;

/// The part of `virtio_blk_config` up to and including write-zeroes: what a
/// device without secure erase and zones has.
const CONFIG_SIZE: usize = 60;
const _: () = assert!(offset_of!(virtio_blk_config, max_secure_erase_sectors) == CONFIG_SIZE);
const CAPACITY_OFFSET: usize = offset_of!(virtio_blk_config, capacity);
const SEG_MAX_OFFSET: usize = offset_of!(virtio_blk_config, seg_max);
const BLK_SIZE_OFFSET: usize = offset_of!(virtio_blk_config, blk_size);
const WRITEBACK_OFFSET: usize = offset_of!(virtio_blk_config, wce);
const NUM_QUEUES_OFFSET: usize = offset_of!(virtio_blk_config, num_queues);

const DRAIN_TIME: Duration = Duration::from_secs(2);

const DISK_ID: &[u8] = b"embedded-backend";

const STATUS_OK: u8 = VIRTIO_BLK_S_OK as u8;
const STATUS_IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const STATUS_UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// What migrates: a tag with a version, then the write-cache mode.
const STATE_TAG: &[u8; 8] = b"vubblk\0\x01";

/// One byte more than a good state has is enough to know a bad one.
const STATE_LIMIT: u64 = STATE_TAG.len() as u64 + 2;

/// The bitmap type is what makes SET_LOG_BASE work: each write to guest memory
/// goes through it.
type Memory = GuestMemoryMmap<BitmapMmapRegion>;
type SharedMemory = GuestMemoryAtomic<Memory>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<Memory>>;
type GuestReader<'a> = Reader<'a, BitmapMmapRegion>;
type GuestWriter<'a> = Writer<'a, BitmapMmapRegion>;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Ok(options)) => options,
        Ok(Err(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprint!("embedded_backend: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(problem) = run(&options);
    eprintln!("embedded_backend: {problem}");
    ExitCode::FAILURE
}

/// What the convention wants to be told (docs/interop/vhost-user.json of QEMU).
const CAPABILITIES: &str = "{\"type\": \"block\", \"features\": [\"read-only\", \"blk-file\"]}\n";

/// Where front-ends connect.
#[derive(Debug)]
enum Door {
    Path(PathBuf),
    Fd(RawFd),
}

#[derive(Debug)]
enum Backing {
    File(PathBuf),
    Ram(u64),
}

#[derive(Debug)]
struct Options {
    door: Door,
    backing: Backing,
    queues: u16,
    read_only: bool,
    channel: bool,
}

impl Options {
    /// Or a text, if nothing else was asked for.
    fn parse(
        mut args: impl Iterator<Item = OsString>,
    ) -> Result<Result<Self, &'static str>, String> {
        let mut door = None;
        let mut backing = None;
        let mut queues = 1;
        let mut read_only = false;
        let mut channel = false;

        while let Some(arg) = args.next() {
            let name = arg.to_string_lossy();
            let mut value = || args.next().ok_or(format!("{name} needs a value"));
            match &*name {
                "--help" => return Ok(Err(USAGE)),
                "--print-capabilities" => return Ok(Err(CAPABILITIES)),
                fd if fd.starts_with("--fd") || fd == "--socket" => {
                    let one = match fd.strip_prefix("--fd=") {
                        Some(text) => Door::Fd(number("--fd", &text.into())?),
                        None => Door::Path(value()?.into()),
                    };
                    if fd == "--fd" || door.replace(one).is_some() {
                        return Err("one of --socket PATH and --fd=NUMBER comes once".into());
                    }
                }
                "--file" | "--ram" if backing.is_some() => {
                    return Err("--file and --ram exclude each other and come once".into());
                }
                "--file" => backing = Some(Backing::File(value()?.into())),
                "--ram" => backing = Some(Backing::Ram(number(&name, &value()?)?)),
                "--queues" => queues = number(&name, &value()?)?,
                "--read-only" => read_only = true,
                "--channel" => channel = true,
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(format!("--queues takes 1 to {MAX_QUEUES}"));
        }
        Ok(Ok(Self {
            door: door.ok_or("one of --socket and --fd is missing")?,
            backing: backing.ok_or("one of --file and --ram is missing")?,
            queues,
            read_only,
            channel,
        }))
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &OsString) -> Result<T, String> {
    let text = value.to_string_lossy();
    text.parse()
        .map_err(|_| format!("{name}: {text} is not a number that fits"))
}

fn run(options: &Options) -> Result<Infallible, String> {
    let disk = Arc::new(
        Disk::open(options)
            .map_err(|e| format!("cannot open the disk ({:?}): {e}", options.backing))?,
    );
    let mut listener = options.door.open()?;

    let mut stdout = io::stdout();
    writeln!(stdout, "ready")
        .and_then(|()| stdout.flush())
        .map_err(|e| format!("cannot write to stdout: {e}"))?;

    loop {
        serve(&disk, &mut listener)?;
    }
}

impl Door {
    fn open(&self) -> Result<Listener, String> {
        match self {
            Self::Path(path) => remove_stale_socket(path)
                .map_err(|e| e.to_string())
                .and_then(|()| Listener::new(path, false).map_err(|e| e.to_string()))
                .map_err(|e| format!("cannot listen on {}: {e}", path.display())),
            Self::Fd(number) => {
                // SAFETY: whoever started the program has put it there, and nobody else
                // here knows of it.
                let fd = unsafe { OwnedFd::from_raw_fd(*number) };
                match getsockopt(&fd, sockopt::AcceptConn) {
                    // SAFETY: a socket that listens, and `fd` gives it away.
                    Ok(true) => Ok(unsafe { Listener::from_raw_fd(fd.into_raw_fd()) }),
                    Ok(false) => Err(format!("{number} is no socket that listens")),
                    Err(e) => Err(format!("{number} is no socket: {e}")),
                }
            }
        }
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

/// Waits for one front-end and serves it until it goes.
///
/// The daemon is made anew each time because it remembers what the last
/// front-end negotiated, and refuses a second SET_OWNER. An error is returned
/// only for what would fail the next front-end too.
fn serve(disk: &Arc<Disk>, listener: &mut Listener) -> Result<(), String> {
    let memory = SharedMemory::new(Memory::new());
    let session = Arc::new(Session::new(Arc::clone(disk), memory.clone()));
    let mut daemon = VhostUserDaemon::new("vhost-user-blk".into(), session, memory)
        .map_err(|e| format!("cannot start the device: {e}"))?;
    daemon
        .start(listener)
        .map_err(|e| format!("cannot accept a front-end: {e}"))?;

    match daemon.wait() {
        Ok(()) | Err(DaemonError::HandleRequest(ProtocolError::Disconnected)) => {}
        Err(e) => eprintln!("embedded_backend: the front-end was dropped: {e}"),
    }
    end(daemon)
}

/// Lets the queues finish what they are at before the next front-end comes,
/// which may be the same one and send it again. But not for ever: a queue's
/// thread can hang in an eventfd that belongs to the front-end.
fn end(daemon: VhostUserDaemon<Arc<Session>>) -> Result<(), String> {
    let (ended, wait) = mpsc::channel();
    thread::Builder::new()
        .spawn(move || {
            drop(daemon);
            // Nobody listens any more when it took too long.
            let _ = ended.send(());
        })
        .map_err(|e| format!("cannot end a session: {e}"))?;
    if wait.recv_timeout(DRAIN_TIME).is_err() {
        eprintln!("embedded_backend: a queue of the last front-end hangs and was left behind");
    }
    Ok(())
}

/// What outlives a connection.
struct Disk {
    /// A memfd when the disk is in RAM, so that both kinds are read and
    /// written by the same code.
    file: File,
    sectors: u64,
    read_only: bool,
    queues: u16,
    channel: bool,
    /// The config space's one writable field: whether a completed write may
    /// still be in a volatile cache.
    writeback: AtomicBool,
}

impl Disk {
    fn open(options: &Options) -> io::Result<Self> {
        let mut file = match &options.backing {
            Backing::File(path) => OpenOptions::new()
                .read(true)
                .write(!options.read_only)
                .open(path)?,
            Backing::Ram(size) => {
                let file = File::from(memfd_create("disk", MFdFlags::MFD_CLOEXEC)?);
                file.set_len(*size)?;
                file
            }
        };
        // Unlike the metadata, this is right for a block device too.
        let size = file.seek(SeekFrom::End(0))?;
        if size == 0 || size % SECTOR != 0 {
            return Err(io::Error::other(format!(
                "its size, {size}, is not a multiple of {SECTOR} above 0"
            )));
        }
        Ok(Self {
            file,
            sectors: size / SECTOR,
            read_only: options.read_only,
            queues: options.queues,
            channel: options.channel,
            writeback: AtomicBool::new(true),
        })
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        let mut put = |offset: usize, value: &[u8]| copy(config.iter_mut().skip(offset), value);
        put(CAPACITY_OFFSET, &self.sectors.to_le_bytes());
        put(SEG_MAX_OFFSET, &SEG_MAX.to_le_bytes());
        put(BLK_SIZE_OFFSET, &(SECTOR as u32).to_le_bytes());
        put(WRITEBACK_OFFSET, &[self.writeback_byte()]);
        put(NUM_QUEUES_OFFSET, &self.queues.to_le_bytes());
        config
    }

    fn writeback_byte(&self) -> u8 {
        self.writeback.load(Ordering::Relaxed).into()
    }

    fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }

    /// The file offset of `len` bytes from `sector`, if the disk has them all.
    fn offset(&self, sector: u64, len: usize) -> io::Result<u64> {
        let len = u64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = sector.checked_add(len / SECTOR);
        if len % SECTOR != 0 || end.is_none_or(|end| end > self.sectors) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sector
            .checked_mul(SECTOR)
            .ok_or(io::ErrorKind::InvalidInput.into())
    }

    fn read(&self, sector: u64, data: &mut GuestWriter) -> io::Result<()> {
        let mut left = data.available_bytes();
        let mut offset = self.offset(sector, left)?;
        let mut bounce = vec![0; left.min(BOUNCE)];
        while left > 0 {
            let (chunk, _) = bounce.split_at_mut(left.min(BOUNCE));
            self.file.read_exact_at(chunk, offset)?;
            data.write_all(chunk)?;
            left = left.saturating_sub(chunk.len());
            offset = offset.saturating_add(chunk.len() as u64);
        }
        Ok(())
    }

    fn write(&self, sector: u64, data: &mut GuestReader, stable: bool) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut left = data.available_bytes();
        let mut offset = self.offset(sector, left)?;
        let mut bounce = vec![0; left.min(BOUNCE)];
        while left > 0 {
            let (chunk, _) = bounce.split_at_mut(left.min(BOUNCE));
            data.read_exact(chunk)?;
            self.file.write_all_at(chunk, offset)?;
            left = left.saturating_sub(chunk.len());
            offset = offset.saturating_add(chunk.len() as u64);
        }
        if stable {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn save_state(&self) -> Vec<u8> {
        let mut state = STATE_TAG.to_vec();
        state.push(self.writeback_byte());
        state
    }

    fn load_state(&self, state: &[u8]) -> io::Result<()> {
        match state.strip_prefix(STATE_TAG) {
            Some([writeback @ (0 | 1)]) => {
                self.set_writeback(*writeback == 1);
                Ok(())
            }
            _ => Err(io::Error::other("not a state that this device has saved")),
        }
    }
}

/// What lives as long as one connection: the device as its front-end sees it.
struct Session {
    disk: Arc<Disk>,
    /// Shared with the daemon, which replaces what is in it.
    memory: SharedMemory,
    acked_features: AtomicU64,
    transfer: Mutex<Option<JoinHandle<io::Result<()>>>>,
    /// Kept, so that the front-end does not see it end.
    channel: Mutex<Option<Backend>>,
    leaked_fds: Mutex<Vec<RawFd>>,
}

impl Session {
    fn new(disk: Arc<Disk>, memory: SharedMemory) -> Self {
        Self {
            disk,
            memory,
            acked_features: AtomicU64::new(0),
            transfer: Mutex::new(None),
            channel: Mutex::new(None),
            leaked_fds: Mutex::new(Vec::new()),
        }
    }

    /// Without FLUSH a driver has no way to ask for a stable write, so each is.
    fn writes_are_stable(&self) -> bool {
        let flush = self.acked_features.load(Ordering::Relaxed) & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        !flush || self.disk.writeback_byte() == 0
    }

    /// Serves what is in the ring, a ring's worth at most, and says whether there
    /// is more; `Err` is a ring that cannot be followed.
    ///
    /// The caller holds the ring's lock from before a request is taken until
    /// its completion is signalled. GET_VRING_BASE takes that lock, so the base
    /// it answers never counts a request that is not complete.
    fn serve_ring(&self, vring: &mut VringState<SharedMemory>) -> Result<bool, RingError> {
        vring.disable_notification()?;
        let mut completed = false;
        for _ in 0..vring.get_queue().size() {
            let Some(chain) = self.next_chain(vring)? else {
                break;
            };
            let head = chain.head_index();
            vring.add_used(head, self.serve_chain(chain))?;
            completed = true;
        }
        if completed && vring.needs_notification()? {
            // A full counter (EAGAIN) is a notification that is pending
            // already; a front-end that closed its end is about to go.
            let _ = vring.signal_used_queue();
        }
        vring.enable_notification()
    }

    fn next_chain(&self, vring: &mut VringState<SharedMemory>) -> Result<Option<Chain>, RingError> {
        // Not `pop_descriptor_chain`: it hides a broken ring as an empty one,
        // which `enable_notification` then reports as non-empty, for ever.
        Ok(vring.get_queue_mut().iter(self.memory.memory())?.next())
    }

    /// Serves one request and returns how many bytes were written for it.
    fn serve_chain(&self, chain: Chain) -> u32 {
        let memory = self.memory.memory();
        let memory = memory.deref();
        let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory))
        else {
            eprintln!("embedded_backend: a request points outside guest memory");
            return 0;
        };
        // The last writable byte is the status, however the driver split them.
        let status_at = writer.available_bytes().checked_sub(1);
        let Some(Ok(mut status)) = status_at.map(|at| writer.split_at(at)) else {
            eprintln!("embedded_backend: a request has no room for its status");
            return 0;
        };
        let code = self.execute(&mut reader, &mut writer);
        let written = status
            .write_all(&[code])
            .map_or(0, |()| writer.bytes_written().saturating_add(1));
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    fn execute(&self, reader: &mut GuestReader, writer: &mut GuestWriter) -> u8 {
        let Ok((kind, sector)) = read_header(reader) else {
            return STATUS_IOERR;
        };
        let result = match kind {
            VIRTIO_BLK_T_IN => self.disk.read(sector, writer),
            VIRTIO_BLK_T_OUT => self.disk.write(sector, reader, self.writes_are_stable()),
            VIRTIO_BLK_T_FLUSH => self.disk.file.sync_data(),
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                copy(id.iter_mut(), DISK_ID);
                writer.write_all(&id)
            }
            _ => return STATUS_UNSUPP,
        };
        match result {
            Ok(()) => STATUS_OK,
            Err(_) => STATUS_IOERR,
        }
    }
}

/// Reads `struct virtio_blk_outhdr`: type, I/O priority (unused), sector.
fn read_header(reader: &mut GuestReader) -> io::Result<(u32, u64)> {
    let kind: Le32 = reader.read_obj()?;
    let _priority: Le32 = reader.read_obj()?;
    let sector: Le64 = reader.read_obj()?;
    Ok((kind.into(), sector.into()))
}

impl VhostUserBackend for Session {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringMutex<SharedMemory>;

    fn num_queues(&self) -> usize {
        self.disk.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let mut features = VhostUserVirtioFeatures::all().bits()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_CONFIG_WCE;
        if self.disk.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.disk.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        features
    }

    fn acked_features(&self, features: u64) {
        self.acked_features.store(features, Ordering::Relaxed);
    }

    /// BACKEND_REQ only if told so: a disk has only CONFIG_CHANGE to send, and the
    /// crate's proxy cannot.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let channel = match self.disk.channel {
            true => VhostUserProtocolFeatures::BACKEND_REQ,
            false => VhostUserProtocolFeatures::empty(),
        };
        channel
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::DEVICE_STATE
    }

    fn set_backend_req_fd(&self, channel: Backend) {
        *lock(&self.channel) = Some(channel);
    }

    fn reset_device(&self) {
        self.acked_features.store(0, Ordering::Relaxed);
        self.disk.set_writeback(true);
    }

    /// The daemon has told the rings already.
    fn set_event_idx(&self, _enabled: bool) {}

    /// An answer of another length than was asked for is how the crate is told
    /// of an error.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.disk
            .config()
            .into_iter()
            .skip(offset as usize)
            .take(size as usize)
            .collect()
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        match buf {
            [writeback @ (0 | 1)] if offset as usize == WRITEBACK_OFFSET => {
                self.disk.set_writeback(*writeback == 1);
                Ok(())
            }
            _ => Err(io::Error::other("only the writeback byte is writable")),
        }
    }

    /// `self.memory` is the very object that the daemon has just updated.
    fn update_memory(&self, _memory: SharedMemory) -> io::Result<()> {
        Ok(())
    }

    /// One thread for each queue.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.disk.queues).map(|queue| 1 << queue).collect()
    }

    /// Without it the daemon's threads would never end, and dropping the daemon
    /// waits for them.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let (consumer, notifier) = new_event_consumer_and_notifier(flags)
            .inspect_err(|e| eprintln!("embedded_backend: cannot create an exit event: {e}"))
            .ok()?;
        lock(&self.leaked_fds).push(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        vrings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(queue)) else {
            return Ok(());
        };
        loop {
            let mut ring = vring.get_mut();
            // The ring may have been stopped while the event was on its way.
            if !ring.is_enabled() || !ring.get_queue().ready() {
                return Ok(());
            }
            match self.serve_ring(&mut ring) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(e) => {
                    // An error returned from here would end the thread, and with
                    // it the queue for the rest of the connection; a stopped ring
                    // can be set up again.
                    eprintln!("embedded_backend: a ring is broken and was stopped: {e}");
                    ring.get_queue_mut().set_ready(false);
                    return Ok(());
                }
            }
            // A busy driver must not keep the lock from a request to stop.
            drop(ring);
            thread::yield_now();
        }
    }

    /// The transfer runs in a thread, because the other end of `channel` is
    /// served only after this returns; CHECK_DEVICE_STATE collects it.
    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        mut channel: File,
    ) -> io::Result<Option<File>> {
        let disk = Arc::clone(&self.disk);
        let transfer = thread::Builder::new().spawn(move || match direction {
            VhostTransferStateDirection::SAVE => channel.write_all(&disk.save_state()),
            VhostTransferStateDirection::LOAD => {
                let mut state = Vec::new();
                channel.take(STATE_LIMIT).read_to_end(&mut state)?;
                disk.load_state(&state)
            }
        })?;
        *lock(&self.transfer) = Some(transfer);
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        let transfer = lock(&self.transfer)
            .take()
            .ok_or(io::Error::other("no state was transferred"))?;
        transfer
            .join()
            .map_err(|_| io::Error::other("the transfer panicked"))?
    }
}

impl Drop for Session {
    /// `vhost-user-backend` 0.24 takes the fds of exit events apart with
    /// `into_raw_fd` and never closes them. A program that starts a daemon for
    /// each connection would run out of fds.
    fn drop(&mut self) {
        for fd in lock(&self.leaked_fds).drain(..) {
            // SAFETY: the daemon's threads hold the last references to this
            // session, so they have ended, and nobody else knows this fd.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// Copies as much as there is room for.
fn copy<'a>(to: impl Iterator<Item = &'a mut u8>, from: &[u8]) {
    to.zip(from).for_each(|(to, from)| *to = *from);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
