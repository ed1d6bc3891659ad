//! A vhost-user peer for the tests that runs no device: rust-vmm's `vhost`
//! crate decodes each request, and this program writes down what it understood.
//!
//! A test sends through our library, then compares the log: what stands there
//! went through a decoder that we did not write. Each request is one line,
//! `NAME key=value ...`, written before the request is answered.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to its user"
)]

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMMap, VhostUserMMapFlags, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags,
    VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    VhostUserFrontendReqHandler,
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_MQ;
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use vm_memory::ByteValued;

const USAGE: &str = "\
usage: foreign_backend --socket PATH --log FILE [OPTION]...

  --socket PATH              listen for a front-end here
  --log FILE                 append a line for each request
  --features HEX             virtio features to offer
  --protocol-features HEX    protocol features to offer (the vhost crate always adds REPLY_ACK)
  --queues N                 answer to GET_QUEUE_NUM (default 4)
  --max-slots N              answer to GET_MAX_MEM_SLOTS (default 32)
  --config-size N            size of the config space (default 256)
  --select                   byte 0 of the config space selects its content, as in
                             virtio-input: byte 2 is a size, 3 times byte 0, and so
                             many bytes from 8 on have the value of byte 0
  --refuse NAME              fail this request; may come several times
  --keep-open                go on after a refusal instead of closing, as rust-vmm's daemon does
  --state-fd own|passed      the channel for the device state (default passed)
  --no-inflight-buffer       answer GET_INFLIGHT_FD with an mmap size of 0
  --drop-base-high           answer GET_VRING_BASE without the upper 16 bits
  --before REQUEST=ASK       before this request is answered, ask on the back-end's channel
  --after REQUEST=ASK        the same once it is answered; both may come several times, and
                             ASK is one of SHARED_OBJECT_ADD, SHARED_OBJECT_REMOVE,
                             SHARED_OBJECT_LOOKUP, SHMEM_MAP, SHMEM_UNMAP
  --need-channel-reply       want answers there, and log them
";

/// Every request that the crate passes on and lets a handler fail.
/// SET_BACKEND_REQ_FD is missing because its handler returns nothing.
const REFUSABLE: &[&str] = &[
    "ADD_MEM_REG",
    "CHECK_DEVICE_STATE",
    "GET_CONFIG",
    "GET_FEATURES",
    "GET_INFLIGHT_FD",
    "GET_MAX_MEM_SLOTS",
    "GET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "GET_SHARED_OBJECT",
    "GET_SHMEM_CONFIG",
    "GET_VRING_BASE",
    "GPU_SET_SOCKET",
    "REM_MEM_REG",
    "RESET_DEVICE",
    "RESET_OWNER",
    "SET_CONFIG",
    "SET_DEVICE_STATE_FD",
    "SET_FEATURES",
    "SET_INFLIGHT_FD",
    "SET_LOG_BASE",
    "SET_MEM_TABLE",
    "SET_OWNER",
    "SET_PROTOCOL_FEATURES",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
    "SET_VRING_ERR",
    "SET_VRING_KICK",
    "SET_VRING_NUM",
];

const DEVICE_STATE: &[u8] = b"device-state-v1\n";

/// One byte more than a good state has is enough to know a bad one.
const DEVICE_STATE_LIMIT: u64 = 17;

/// What is asked about on the back-end's channel. Any UUID but nil and max is
/// valid.
const OBJECT_UUID: [u8; 16] = *b"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f";

/// In the file of SHMEM_MAP, where the mapping begins.
const MAPPED: &[u8] = b"mapped by the back-end";

/// Shared memory regions 0 and 3, so that a test sees a gap.
const SHMEM_SIZES: [u64; 4] = [0x10_0000, 0, 0, 0x2000];

const INFLIGHT_BYTES_PER_DESCRIPTOR: u64 = 64;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprint!("foreign_backend: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(problem) = run(options);
    eprintln!("foreign_backend: {problem}");
    ExitCode::FAILURE
}

struct Options {
    socket: PathBuf,
    log: PathBuf,
    features: u64,
    protocol_features: u64,
    queues: u64,
    max_slots: u64,
    config_size: u32,
    select: bool,
    refused: HashSet<&'static str>,
    keep_open: bool,
    own_state_fd: bool,
    inflight_buffer: bool,
    drop_base_high: bool,
    before: Vec<(&'static str, Ask)>,
    after: Vec<(&'static str, Ask)>,
    need_channel_reply: bool,
}

impl Options {
    /// `None` means that the usage text was asked for.
    fn parse(
        mut args: impl Iterator<Item = OsString>,
    ) -> std::result::Result<Option<Self>, String> {
        let mut options = Self {
            socket: PathBuf::new(),
            log: PathBuf::new(),
            features: default_features(),
            protocol_features: default_protocol_features().bits(),
            queues: 4,
            max_slots: 32,
            config_size: 256,
            select: false,
            refused: HashSet::new(),
            keep_open: false,
            own_state_fd: false,
            inflight_buffer: true,
            drop_base_high: false,
            before: Vec::new(),
            after: Vec::new(),
            need_channel_reply: false,
        };
        while let Some(arg) = args.next() {
            let name = arg.to_string_lossy();
            let mut value = || args.next().ok_or(format!("{name} needs a value"));
            let mut text = || value().map(|value| value.to_string_lossy().into_owned());
            let bad = |text: &str| format!("{name} does not take {text}");
            match &*name {
                "--help" => return Ok(None),
                "--features" => options.features = text().and_then(|t| hex(&t).ok_or(bad(&t)))?,
                "--protocol-features" => {
                    options.protocol_features = text().and_then(|t| hex(&t).ok_or(bad(&t)))?;
                }
                "--queues" => options.queues = text().and_then(|t| t.parse().or(Err(bad(&t))))?,
                "--max-slots" => {
                    options.max_slots = text().and_then(|t| t.parse().or(Err(bad(&t))))?;
                }
                "--config-size" => {
                    options.config_size = text().and_then(|t| t.parse().or(Err(bad(&t))))?;
                }
                "--select" => options.select = true,
                "--refuse" => {
                    let request = text()?;
                    let known = REFUSABLE.iter().find(|name| **name == request);
                    options.refused.insert(known.ok_or(bad(&request))?);
                }
                "--before" | "--after" => {
                    let ask = text()?;
                    let known = parse_ask(&ask).ok_or(bad(&ask))?;
                    match &*name {
                        "--before" => options.before.push(known),
                        _ => options.after.push(known),
                    }
                }
                "--keep-open" => options.keep_open = true,
                "--state-fd" => {
                    options.own_state_fd = match text()?.as_str() {
                        "own" => true,
                        "passed" => false,
                        other => return Err(bad(other)),
                    }
                }
                "--no-inflight-buffer" => options.inflight_buffer = false,
                "--drop-base-high" => options.drop_base_high = true,
                "--need-channel-reply" => options.need_channel_reply = true,
                "--socket" => options.socket = value()?.into(),
                "--log" => options.log = value()?.into(),
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        if options.socket.as_os_str().is_empty() || options.log.as_os_str().is_empty() {
            return Err("--socket and --log must be given".into());
        }
        Ok(Some(options))
    }
}

/// What the crate can ask on the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    non_camel_case_types,
    reason = "the names of the specification, for the log"
)]
enum Ask {
    SHARED_OBJECT_ADD,
    SHARED_OBJECT_REMOVE,
    SHARED_OBJECT_LOOKUP,
    SHMEM_MAP,
    SHMEM_UNMAP,
}

const ASKS: &[Ask] = &[
    Ask::SHARED_OBJECT_ADD,
    Ask::SHARED_OBJECT_REMOVE,
    Ask::SHARED_OBJECT_LOOKUP,
    Ask::SHMEM_MAP,
    Ask::SHMEM_UNMAP,
];

fn parse_ask(text: &str) -> Option<(&'static str, Ask)> {
    let (request, ask) = text.split_once('=')?;
    let mut requests = REFUSABLE.iter().chain(&["SET_BACKEND_REQ_FD"]);
    let request = requests.find(|name| **name == request)?;
    let ask = ASKS.iter().find(|known| format!("{known:?}") == ask)?;
    Some((request, *ask))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

fn default_features() -> u64 {
    VhostUserVirtioFeatures::all().bits()
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_F_RING_PACKED
        | 1 << VIRTIO_BLK_F_MQ
}

/// Every feature whose requests the crate dispatches. Not GPA_ADDRESSES and
/// GET_VRING_BASE_INFLIGHT: they have no request of their own and change what
/// the front-end must send, so a test asks for them by number.
fn default_protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::SHARED_OBJECT
        | VhostUserProtocolFeatures::DEVICE_STATE
        | VhostUserProtocolFeatures::SHMEM
}

fn run(options: Options) -> std::result::Result<Infallible, String> {
    let log = Log::open(&options.log)
        .map_err(|e| format!("cannot open the log {}: {e}", options.log.display()))?;
    let listener = remove_stale_socket(&options.socket)
        .and_then(|()| UnixListener::bind(&options.socket))
        .map_err(|e| format!("cannot listen on {}: {e}", options.socket.display()))?;

    let mut stdout = io::stdout();
    writeln!(stdout, "ready")
        .and_then(|()| stdout.flush())
        .map_err(|e| format!("cannot write to stdout: {e}"))?;

    let options = Arc::new(options);
    loop {
        let (stream, _) = listener
            .accept()
            .map_err(|e| format!("cannot accept a front-end: {e}"))?;
        serve(stream, &options, &log).map_err(|e| format!("cannot write the log: {e}"))?;
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

/// Serves one front-end. Only a log that cannot be written is an error.
fn serve(stream: UnixStream, options: &Arc<Options>, log: &Log) -> io::Result<()> {
    let recorder = Recorder {
        options: Arc::clone(options),
        log: log.clone(),
        protocol_features: VhostUserProtocolFeatures::empty(),
        bases: HashMap::new(),
        selected: 0,
        inflight: None,
        channel: None,
        last: String::new(),
        transfer: None,
    };
    let recorder = Arc::new(Mutex::new(recorder));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&recorder));

    log.line("CONNECTED")?;
    loop {
        match handler.handle_request() {
            Ok(()) => {
                let mut recorder = recorder.lock().map_err(|_| io::ErrorKind::Other)?;
                let last = std::mem::take(&mut recorder.last);
                recorder.ask_all(&options.after, &last)?;
            }
            Err(Error::Disconnected) => break,
            Err(error) => {
                log.line(format_args!("ERROR {error:?}"))?;
                // Only the handler's own errors leave the stream in step.
                if !(options.keep_open && matches!(error, Error::ReqHandlerError(_))) {
                    break;
                }
            }
        }
    }
    log.line("DISCONNECTED")
}

#[derive(Clone)]
struct Log(Arc<File>);

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(file)))
    }

    /// One write for each line, so that a reader never sees half of one.
    fn line(&self, line: impl Display) -> io::Result<()> {
        (&*self.0).write_all(format!("{line}\n").as_bytes())
    }
}

/// What one connection has to remember.
struct Recorder {
    options: Arc<Options>,
    log: Log,
    protocol_features: VhostUserProtocolFeatures,
    bases: HashMap<u32, u32>,
    /// Byte 0 of the config space, with `--select`.
    selected: u8,
    /// Kept only to stay open, as in a real back-end.
    inflight: Option<File>,
    channel: Option<Backend>,
    /// The name of the request that came last.
    last: String,
    transfer: Option<JoinHandle<io::Result<()>>>,
}

impl Recorder {
    /// Writes a request's line; an error is what the handler must return.
    fn record(&mut self, request: impl Display) -> Result<()> {
        let line = request.to_string();
        self.log.line(&line).map_err(Error::ReqHandlerError)?;
        let name = line.split(' ').next().unwrap_or_default();
        name.clone_into(&mut self.last);
        self.ask_all(&self.options.before, name)
            .map_err(Error::ReqHandlerError)?;
        if self.options.refused.contains(name) {
            return Err(failure("refused as told on the command line"));
        }
        Ok(())
    }

    /// Asks what is to be asked about this request, one after the other.
    fn ask_all(&self, asks: &[(&'static str, Ask)], request: &str) -> io::Result<()> {
        let asks = asks.iter().filter(|(name, _)| *name == request);
        for (_, ask) in asks {
            let result = match self.ask(*ask) {
                Ok(()) if self.options.need_channel_reply => "acked",
                Ok(()) => "sent",
                Err(error) if is_refusal(&error) => "refused",
                Err(_) => "failed",
            };
            self.log
                .line(format_args!("BACKEND_REQUEST name={ask:?} result={result}"))?;
        }
        Ok(())
    }

    /// With the same values each time: what is mapped is taken away by the other.
    fn ask(&self, ask: Ask) -> io::Result<()> {
        let channel = self.channel.as_ref();
        let channel = channel.ok_or_else(|| io::Error::other("no channel"))?;
        let object = VhostUserSharedMsg::from_slice(&OBJECT_UUID);
        let object = object.ok_or_else(|| io::Error::other("not a UUID"))?;
        let mut area = VhostUserMMap {
            shmid: 3,
            fd_offset: 0x2000,
            shm_offset: 0x1000,
            len: 0x1000,
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..VhostUserMMap::default()
        };
        match ask {
            Ask::SHARED_OBJECT_ADD => channel.shared_object_add(object),
            Ask::SHARED_OBJECT_REMOVE => channel.shared_object_remove(object),
            // The crate wants to give a descriptor away.
            Ask::SHARED_OBJECT_LOOKUP => {
                channel.shared_object_lookup(object, &memfd("object", 0x1000)?)
            }
            Ask::SHMEM_MAP => {
                let file = memfd("shmem", 0x3000)?;
                file.write_all_at(MAPPED, 0x2000)?;
                channel.shmem_map(&area, &file)
            }
            Ask::SHMEM_UNMAP => {
                area.fd_offset = 0;
                area.flags = 0;
                channel.shmem_unmap(&area)
            }
        }
        .map(|_| ())
    }

    /// Writes the device state to `channel` or reads it from there, in a thread
    /// because the other end is served only after the request is answered.
    fn transfer(
        &mut self,
        direction: VhostTransferStateDirection,
        mut channel: File,
    ) -> io::Result<()> {
        let work = move || match direction {
            VhostTransferStateDirection::SAVE => channel.write_all(DEVICE_STATE),
            VhostTransferStateDirection::LOAD => {
                let mut state = Vec::new();
                channel.take(DEVICE_STATE_LIMIT).read_to_end(&mut state)?;
                if state != DEVICE_STATE {
                    return Err(io::Error::other("not the state that was saved"));
                }
                Ok(())
            }
        };
        self.transfer = Some(thread::Builder::new().spawn(work)?);
        Ok(())
    }
}

/// Whether the front-end has answered, and said no.
fn is_refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(Error::FrontendInternalError))
}

fn failure(text: &str) -> Error {
    Error::ReqHandlerError(io::Error::other(text))
}

fn yes_no(fd: Option<&File>) -> &'static str {
    if fd.is_some() { "yes" } else { "no" }
}

fn size(file: &File) -> Result<u64> {
    let metadata = file.metadata().map_err(Error::ReqHandlerError)?;
    Ok(metadata.len())
}

fn memfd(name: &str, size: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

/// The fields of a region, each name led by `prefix`.
fn region_fields(prefix: &str, region: &VhostUserMemoryRegion) -> String {
    // Copied out because the fields of a packed struct cannot be borrowed.
    let (guest, size) = (region.guest_phys_addr, region.memory_size);
    let (user, offset) = (region.user_addr, region.mmap_offset);
    format!(
        "{prefix}guest_addr={guest:#x} {prefix}size={size:#x} \
         {prefix}user_addr={user:#x} {prefix}mmap_offset={offset:#x}"
    )
}

fn inflight_fields(inflight: &VhostUserInflight) -> String {
    format!(
        "mmap_size={:#x} mmap_offset={:#x} num_queues={} queue_size={}",
        inflight.mmap_size, inflight.mmap_offset, inflight.num_queues, inflight.queue_size
    )
}

impl VhostUserBackendReqHandlerMut for Recorder {
    fn set_owner(&mut self) -> Result<()> {
        self.record("SET_OWNER")
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.record("RESET_OWNER")
    }

    fn reset_device(&mut self) -> Result<()> {
        self.record("RESET_DEVICE")
    }

    fn get_features(&mut self) -> Result<u64> {
        self.record("GET_FEATURES")?;
        Ok(self.options.features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.record(format_args!("SET_FEATURES features={features:#x}"))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        self.record("GET_PROTOCOL_FEATURES")?;
        Ok(VhostUserProtocolFeatures::from_bits_retain(
            self.options.protocol_features,
        ))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol_features = VhostUserProtocolFeatures::from_bits_retain(features);
        self.record(format_args!("SET_PROTOCOL_FEATURES features={features:#x}"))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut fields = format!("nregions={}", regions.len());
        for (i, (region, file)) in regions.iter().zip(&files).enumerate() {
            let prefix = format!("r{i}.");
            let region = region_fields(&prefix, region);
            let fd_size = size(file)?;
            write!(fields, " {region} {prefix}fd_size={fd_size:#x}")
                .map_err(|e| failure(&e.to_string()))?;
        }
        self.record(format_args!("SET_MEM_TABLE {fields}"))?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        self.record("GET_MAX_MEM_SLOTS")?;
        Ok(self.options.max_slots)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let fields = region_fields("", region);
        let fd_size = size(&fd)?;
        self.record(format_args!(
            "ADD_MEM_REG {fields} fd=yes fd_size={fd_size:#x}"
        ))?;
        Ok(None)
    }

    /// Without `fd=`: the crate accepts an fd here, and closes it unseen.
    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let fields = region_fields("", region);
        self.record(format_args!("REM_MEM_REG {fields}"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let fd_size = size(&file)?;
        self.record(format_args!(
            "SET_LOG_BASE mmap_size={:#x} mmap_offset={:#x} fd=yes fd_size={fd_size:#x}",
            log.mmap_size, log.mmap_offset
        ))
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        self.record("GET_QUEUE_NUM")?;
        Ok(self.options.queues)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.record(format_args!("SET_VRING_NUM index={index} num={num}"))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let flags = flags.bits();
        self.record(format_args!(
            "SET_VRING_ADDR index={index} flags={flags:#x} desc={desc:#x} used={used:#x} \
                 avail={avail:#x} log={log:#x}"
        ))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.bases.insert(index, base);
        self.record(format_args!("SET_VRING_BASE index={index} base={base:#x}"))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.record(format_args!("GET_VRING_BASE index={index}"))?;
        let mut base = self.bases.get(&index).copied().unwrap_or(0);
        if self.options.drop_base_high {
            base &= 0xffff;
        }
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = yes_no(fd.as_ref());
        self.record(format_args!("SET_VRING_KICK index={index} fd={fd}"))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = yes_no(fd.as_ref());
        self.record(format_args!("SET_VRING_CALL index={index} fd={fd}"))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = yes_no(fd.as_ref());
        self.record(format_args!("SET_VRING_ERR index={index} fd={fd}"))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let enable = u8::from(enable);
        self.record(format_args!(
            "SET_VRING_ENABLE index={index} enable={enable}"
        ))
    }

    /// Byte `i` of the config space is `i & 0xff`, unless `--select` was given.
    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let flags = flags.bits();
        self.record(format_args!(
            "GET_CONFIG offset={offset:#x} size={size:#x} flags={flags:#x}"
        ))?;
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= self.options.config_size)
            .ok_or(failure("beyond the config space"))?;
        let size = self.selected.saturating_mul(3);
        let selected = |i: u32| match i {
            0 => self.selected,
            2 => size,
            8.. if i < u32::from(size).saturating_add(8) => self.selected,
            _ => 0,
        };
        let plain = |i: u32| i.to_le_bytes()[0];
        Ok(match self.options.select {
            true => (offset..end).map(selected).collect(),
            false => (offset..end).map(plain).collect(),
        })
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], flags: VhostUserConfigFlags) -> Result<()> {
        let size = buf.len();
        let flags = flags.bits();
        let data: String = buf.iter().map(|byte| format!("{byte:02x}")).collect();
        self.record(format_args!(
            "SET_CONFIG offset={offset:#x} size={size:#x} flags={flags:#x} data={data}"
        ))?;
        if let (0, [selected, ..]) = (offset, buf) {
            self.selected = *selected;
        }
        Ok(())
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        let agreed = |feature| self.protocol_features.contains(feature);
        backend.set_shared_object_flag(agreed(VhostUserProtocolFeatures::SHARED_OBJECT));
        backend.set_shmem_flag(agreed(VhostUserProtocolFeatures::SHMEM));
        backend.set_reply_ack_flag(self.options.need_channel_reply);
        self.channel = Some(backend);
        // This handler cannot fail; a log that cannot be written fails the
        // next request.
        let _ = self.record("SET_BACKEND_REQ_FD fd=yes");
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        self.record("GPU_SET_SOCKET fd=yes")
    }

    /// The object is a file that begins with its UUID.
    fn get_shared_object(&mut self, object: VhostUserSharedMsg) -> Result<File> {
        self.record(format_args!("GET_SHARED_OBJECT uuid={}", object.uuid))?;
        memfd("object", 0x1000)
            .and_then(|file| file.write_all_at(object.as_slice(), 0).map(|()| file))
            .map_err(Error::ReqHandlerError)
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let fields = inflight_fields(inflight);
        self.record(format_args!("GET_INFLIGHT_FD {fields}"))?;
        let mut answer = *inflight;
        answer.mmap_offset = 0;
        answer.mmap_size = if self.options.inflight_buffer {
            u64::from(inflight.num_queues)
                .saturating_mul(inflight.queue_size.into())
                .saturating_mul(INFLIGHT_BYTES_PER_DESCRIPTOR)
        } else {
            0
        };
        // The crate has no way to answer without an fd, even for no buffer.
        let file = memfd("inflight", answer.mmap_size).map_err(Error::ReqHandlerError)?;
        Ok((answer, file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let fields = inflight_fields(inflight);
        let fd_size = size(&file)?;
        self.inflight = Some(file);
        self.record(format_args!(
            "SET_INFLIGHT_FD {fields} fd=yes fd_size={fd_size:#x}"
        ))
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        passed: File,
    ) -> Result<Option<File>> {
        self.record(format_args!(
            "SET_DEVICE_STATE_FD direction={} phase={} fd=yes",
            u32::from(direction),
            u32::from(phase)
        ))?;
        let (channel, answer) = if self.options.own_state_fd {
            let (reader, writer) =
                pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::ReqHandlerError(e.into()))?;
            match direction {
                VhostTransferStateDirection::SAVE => (writer.into(), Some(reader.into())),
                VhostTransferStateDirection::LOAD => (reader.into(), Some(writer.into())),
            }
        } else {
            (passed, None)
        };
        self.transfer(direction, channel)
            .map_err(Error::ReqHandlerError)?;
        Ok(answer)
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.record("CHECK_DEVICE_STATE")?;
        let transfer = self
            .transfer
            .take()
            .ok_or(failure("no state was transferred"))?;
        transfer
            .join()
            .map_err(|_| failure("the transfer panicked"))?
            .map_err(Error::ReqHandlerError)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.record("GET_SHMEM_CONFIG")?;
        Ok(VhostUserShMemConfig::new(2, &SHMEM_SIZES))
    }
}
