//! The cheapest back-end there can be: it runs no device, and answers all that has
//! come by then with one write. What a front-end costs shows best against it.

use super::back_ends::{Ended, Place};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use vhost_user_frontend::message::{ProtocolFeatures, Request, flags};

/// VERSION_1, and that there are protocol features.
pub const FEATURES: u64 = 1 << 32 | 1 << 30;

const ARGUMENT: &str = "--be-the-acking-back-end";

/// A benchmark starts itself once more to be this. Never returns then.
pub fn be_it_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|it| it == ARGUMENT) {
        serve(Path::new(&arguments.next().unwrap()));
    }
}

/// Starts it in a process of its own.
pub fn start(place: &Place) -> (Ended, PathBuf) {
    let path = place.file("acker");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(ARGUMENT).arg(&path).stdout(Stdio::piped());
    (Ended::when_ready(command), path)
}

fn serve(path: &Path) -> ! {
    let listener = UnixListener::bind(path).unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    loop {
        let (socket, _) = listener.accept().unwrap();
        let thread = thread::Builder::new().stack_size(256 << 10);
        thread.spawn(move || connection(socket)).unwrap();
    }
}

fn protocol() -> u64 {
    use ProtocolFeatures as P;
    (P::MQ | P::REPLY_ACK | P::CONFIG | P::BACKEND_REQ | P::CONFIGURE_MEM_SLOTS).bits()
}

fn connection(mut socket: UnixStream) {
    let mut bytes = vec![0; 64 << 10];
    let mut control = nix::cmsg_space!([RawFd; 253]);
    let mut filled = 0;
    let mut replies = Vec::new();
    // The channel, on which nothing is ever asked.
    let mut kept: Vec<OwnedFd> = Vec::new();
    loop {
        let mut fds: Vec<OwnedFd> = Vec::new();
        {
            let mut parts = [IoSliceMut::new(&mut bytes[filled..])];
            let raw = socket.as_raw_fd();
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let Ok(got) = recvmsg::<UnixAddr>(raw, &mut parts, Some(&mut control), flags) else {
                return;
            };
            if got.bytes == 0 {
                return;
            }
            filled += got.bytes;
            for message in got.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(received) = message {
                    // SAFETY: the kernel just made these descriptors for us.
                    fds.extend(
                        received
                            .into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
            }
        }
        let mut start = 0;
        while let Some(header) = bytes[start..filled].first_chunk::<12>() {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let (code, asked, size) = (word(0), word(4), usize::try_from(word(8)).unwrap());
            let Some(payload) = bytes[start..filled].get(12..12 + size) else {
                break;
            };
            start += 12 + size;
            if code == Request::SetBackendReqFd.id() {
                kept.append(&mut fds);
            }
            answer(code, asked & flags::NEED_REPLY != 0, payload, &mut replies);
        }
        bytes.copy_within(start..filled, 0);
        filled -= start;
        if socket.write_all(&replies).is_err() {
            return;
        }
        replies.clear();
    }
}

fn answer(code: u32, asked: bool, payload: &[u8], replies: &mut Vec<u8>) {
    let request = Request::ALL.iter().find(|it| it.id() == code).unwrap();
    let number = match request {
        Request::GetFeatures => Some(FEATURES),
        Request::GetProtocolFeatures => Some(protocol()),
        Request::GetQueueNum | Request::GetMaxMemSlots => Some(256),
        Request::GetConfig | Request::GetVringBase => None,
        _ if asked => Some(0),
        _ => return,
    };
    let number = number.map(u64::to_ne_bytes);
    let reply = number.as_ref().map_or(payload, |it| &it[..]);
    let size = u32::try_from(reply.len()).unwrap();
    for word in [code, flags::VERSION | flags::REPLY, size] {
        replies.extend(word.to_ne_bytes());
    }
    replies.extend(reply);
}
