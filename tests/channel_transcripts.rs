//! Every request of the back-end byte by byte, and the bytes of its answer.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{FEATURES, Peer, adopted, both, hex, identity, memory, no_fd_leak, patient, protocol};
use nix::sys::socket::MsgFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use vhost_user_frontend::message::{BackendRequest, Iotlb, Request, ShmemArea};
use vhost_user_frontend::{BackendHandler, HostNotifier, Uuid};

/// One request, and what comes of it.
struct Transcript {
    request: BackendRequest,
    /// Header and payload, hexadecimal.
    asked: &'static str,
    /// Whether the first of the test's files goes with it.
    fd: bool,
    /// What the handler is told.
    told: &'static str,
    /// What it returns.
    result: i32,
    /// Header and payload of the answer, hexadecimal; empty for none.
    answered: &'static str,
}

const TRANSCRIPTS: &[Transcript] = &[
    Transcript {
        request: BackendRequest::Iotlb,
        asked: "01000000 09000000 20000000
                0010000000000000 0000000000000000 0000000000000000 02 01 000000000000",
        fd: false,
        told: "miss 0x1000 2",
        result: 0,
        answered: "01000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::Iotlb,
        asked: "01000000 09000000 20000000
                0010000000000000 0020000000000000 0000000000000000 03 04 000000000000",
        fd: false,
        told: "denied 0x1000 0x2000 3",
        result: -1,
        answered: "01000000 05000000 08000000  ffffffffffffffff",
    },
    Transcript {
        request: BackendRequest::ConfigChange,
        asked: "02000000 01000000 00000000",
        fd: false,
        told: "config",
        result: 0,
        answered: "",
    },
    Transcript {
        request: BackendRequest::ConfigChange,
        asked: "02000000 09000000 00000000",
        fd: false,
        told: "config",
        result: 0,
        answered: "02000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::HostNotifier,
        asked: "03000000 09000000 18000000  0500000000000000 0010000000000000 0030000000000000",
        fd: true,
        told: "notifier 5 at 0x3000 of 0x1000",
        result: 0,
        answered: "03000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::HostNotifier,
        asked: "03000000 09000000 18000000  0501000000000000 0000000000000000 0000000000000000",
        fd: false,
        told: "notifier 5 gone",
        result: -22,
        answered: "03000000 05000000 08000000  eaffffffffffffff",
    },
    Transcript {
        request: BackendRequest::VringCall,
        asked: "04000000 09000000 08000000  ff000000 00000000",
        fd: false,
        told: "call 255",
        result: 0,
        answered: "04000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::VringErr,
        asked: "05000000 09000000 08000000  40000000 00000000",
        fd: false,
        told: "err 64",
        result: 0,
        answered: "05000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::SharedObjectAdd,
        asked: "06000000 09000000 10000000  00112233445566778899aabbccddeeff",
        fd: false,
        told: "added 00 ff",
        result: 0,
        answered: "06000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::SharedObjectRemove,
        asked: "07000000 09000000 10000000  00112233445566778899aabbccddeeff",
        fd: false,
        told: "removed 00 ff",
        result: 0,
        answered: "07000000 05000000 08000000  0000000000000000",
    },
    // Answered in any case.
    Transcript {
        request: BackendRequest::SharedObjectLookup,
        asked: "08000000 01000000 10000000  00112233445566778899aabbccddeeff",
        fd: false,
        told: "lookup 00 ff",
        result: -2,
        answered: "08000000 05000000 08000000  feffffffffffffff",
    },
    Transcript {
        request: BackendRequest::SharedObjectLookup,
        asked: "08000000 01000000 10000000  00112233445566778899aabbccddeeff",
        fd: true,
        told: "lookup 00 ff",
        result: 0,
        answered: "08000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::ShmemMap,
        asked: "09000000 09000000 28000000
                03 00000000000000 0010000000000000 0020000000000000 0040000000000000
                0100000000000000",
        fd: true,
        told: "map 3 at 0x2000 of 0x4000 from 0x1000 flags 1",
        result: 0,
        answered: "09000000 05000000 08000000  0000000000000000",
    },
    Transcript {
        request: BackendRequest::ShmemUnmap,
        asked: "0a000000 09000000 28000000
                03 00000000000000 0000000000000000 0020000000000000 0040000000000000
                0000000000000000",
        fd: false,
        told: "unmap 3 at 0x2000 of 0x4000",
        result: 0,
        answered: "0a000000 05000000 08000000  0000000000000000",
    },
];

#[derive(Default)]
struct Told {
    log: Mutex<Vec<String>>,
    result: Mutex<i32>,
}

impl Told {
    fn say(&self, what: String) -> i32 {
        self.log.lock().unwrap().push(what);
        *self.result.lock().unwrap()
    }
}

fn is_the_file(fd: &OwnedFd) {
    assert_eq!(identity(fd.as_fd()), identity(memory(0)));
}

fn ends(uuid: &Uuid) -> String {
    format!("{:02x} {:02x}", uuid[0], uuid[15])
}

impl BackendHandler for Told {
    fn handles(&self, _: BackendRequest) -> bool {
        true
    }
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        self.say(format!("miss {iova:#x} {perm}"))
    }
    fn iotlb_access_fail(&self, message: &Iotlb) -> i32 {
        let Iotlb {
            iova, size, perm, ..
        } = message;
        self.say(format!("denied {iova:#x} {size:#x} {perm}"))
    }
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        self.say(match notifier {
            None => format!("notifier {ring} gone"),
            Some(HostNotifier { fd, offset, size }) => {
                is_the_file(&fd);
                format!("notifier {ring} at {offset:#x} of {size:#x}")
            }
        })
    }
    fn shared_object_lookup(&self, uuid: &Uuid) -> Result<OwnedFd, i32> {
        match self.say(format!("lookup {}", ends(uuid))) {
            0 => Ok(memory(0).try_clone_to_owned().unwrap()),
            code => Err(code),
        }
    }
    fn shmem_map(&self, area: &ShmemArea, fd: OwnedFd) -> i32 {
        is_the_file(&fd);
        let ShmemArea {
            shmid,
            fd_offset,
            shm_offset,
            len,
            flags,
            ..
        } = area;
        self.say(format!(
            "map {shmid} at {shm_offset:#x} of {len:#x} from {fd_offset:#x} flags {flags}"
        ))
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        let ShmemArea {
            shmid,
            shm_offset,
            len,
            ..
        } = area;
        self.say(format!("unmap {shmid} at {shm_offset:#x} of {len:#x}"))
    }
    fn config_changed(&self) {
        self.say("config".into());
    }
    fn vring_call(&self, ring: u8) {
        self.say(format!("call {ring}"));
    }
    fn vring_err(&self, ring: u8) {
        self.say(format!("err {ring}"));
    }
    fn shared_object_added(&self, uuid: &Uuid) {
        self.say(format!("added {}", ends(uuid)));
    }
    fn shared_object_removed(&self, uuid: &Uuid) {
        self.say(format!("removed {}", ends(uuid)));
    }
}

#[test]
fn every_back_end_request_is_understood_and_answered_byte_by_byte() {
    let _leak = no_fd_leak();
    let told = Arc::new(Told::default());
    let (client, peer) = adopted(FEATURES, protocol(true), patient());
    let open = || {
        client.get_shmem_config().unwrap();
        client
            .open_backend_channel(Arc::<Told>::clone(&told))
            .unwrap();
    };
    let take = || {
        peer.expect(Request::GetShmemConfig);
        let mut sizes = vec![0; 2056];
        sizes[8 + 8 * 3 + 2] = 1; // 64 KiB
        peer.reply(Request::GetShmemConfig, &sizes);
        let mut message = peer.expect(Request::SetBackendReqFd);
        peer.ack(Request::SetBackendReqFd, 0);
        Peer::on(message.fds.remove(0))
    };
    let ((), channel) = both(open, take);
    for transcript in TRANSCRIPTS {
        let context = format!("{:?}: {}", transcript.request, transcript.told);
        *told.result.lock().unwrap() = transcript.result;
        let lookup = transcript.request == BackendRequest::SharedObjectLookup;
        let fds = [memory(0)];
        let with = transcript.fd && !lookup;
        channel.send(&hex(transcript.asked), if with { &fds } else { &[] });
        client.process_backend_requests().unwrap();
        let mut log = told.log.lock().unwrap();
        assert_eq!(std::mem::take(&mut *log), [transcript.told]);
        let answer = hex(transcript.answered);
        if !answer.is_empty() {
            let (bytes, fds) = channel.read(answer.len(), MsgFlags::MSG_WAITALL).unwrap();
            assert_eq!(bytes, answer, "{context}");
            assert_eq!(fds.len(), usize::from(transcript.fd && lookup), "{context}");
            fds.iter().for_each(is_the_file);
        }
        channel.expect_silence();
    }
    let covered = |request| TRANSCRIPTS.iter().any(|one| one.request == request);
    assert!(BackendRequest::ALL.iter().all(|request| covered(*request)));
}
