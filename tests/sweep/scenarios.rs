//! What a front-end does, as tables of calls, and the messages that come of it.

use crate::common::{after, file, get_all_control_data, patient, protocol};
use crate::recorder::Recorder;
use std::cell::RefCell;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost_user_frontend::message::{
    CryptoSym, Inflight, Iotlb, Log, MemRegion, ProtocolFeatures, Request, VringAddr, VringState,
    crypto, iotlb,
};
use vhost_user_frontend::{
    BackendClient, CryptoKind, Direction, OnTimeout, Op, Options, Result, SharedRegion, Timeout,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vuf_mock_backend::{Mock, Script};
use zerocopy::FromZeros;

/// A client and what its caller holds.
pub struct Front {
    pub client: Arc<BackendClient>,
    pub reply_ack: bool,
    /// Virtio features beyond the usual ones.
    more: u64,
    /// Does what the back-end asks, where the client serves its channel.
    pub handler: Arc<Recorder>,
    eventfds: [OwnedFd; 3],
    /// The front-end's end of the back-end's channel, or of a state transfer.
    end: RefCell<Option<OwnedFd>>,
    inflight: RefCell<Option<(Inflight, OwnedFd)>>,
}

impl Front {
    /// With this deadline for all requests, or one that never passes.
    pub fn new(
        socket: UnixStream,
        reply_ack: bool,
        deadline: Option<u64>,
        on_timeout: OnTimeout,
    ) -> Self {
        let options = match deadline.map(after) {
            None => patient(),
            Some(deadline) => Options {
                quick: deadline,
                slow: deadline,
                drain: deadline,
                ..Options::default()
            },
        };
        let options = Options {
            on_timeout,
            ..options
        };
        if on_timeout == OnTimeout::Keep {
            // Whoever opened the socket may have wanted it so. It changes nothing.
            get_all_control_data(socket.as_fd());
        }
        let client = Arc::new(BackendClient::from_fd(socket.into(), &options).unwrap());
        Self {
            handler: Recorder::new(&client),
            client,
            reply_ack,
            more: 0,
            eventfds: [(); 3].map(eventfd),
            end: RefCell::default(),
            inflight: RefCell::default(),
        }
    }

    pub fn more(self, more: u64) -> Self {
        Self { more, ..self }
    }

    fn set_features(&self, features: u64) -> Result<u64> {
        self.client.set_features(features | self.more).map(nothing)
    }

    /// One end of a pair is kept, the other is for the call.
    fn pair(&self) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.end.replace(Some(ours.into()));
        theirs.into()
    }

    /// No two requests of a kind follow each other: what is missing between them could
    /// not be seen.
    pub fn list(&self) -> [Op<'_>; 14] {
        let ring = |num| VringState { index: 0, num };
        let fd = |at: usize| Some(self.eventfds[at].as_fd());
        let inflight = Inflight {
            mmap_size: 4096,
            mmap_offset: 0,
            num_queues: 1,
            queue_size: 256,
            padding: 0,
        };
        [
            Op::NetSetMtu(1500),
            Op::SetInflightFd(inflight, file(1)),
            Op::SetVringNum(ring(256)),
            Op::SetVringBase(ring(BASE)),
            Op::SetVringAddr(address(0)),
            Op::SetVringEndian(ring(0)),
            Op::SetVringCall(0, fd(0)),
            Op::SetVringErr(0, None),
            Op::SetVringKick(0, fd(1)),
            Op::SetVringEnable(0, true),
            Op::SetLogFd(file(2)),
            Op::SetVringCall(0, fd(2)),
            Op::SetStatus(15),
            Op::SendRarp([2, 0, 0, 0, 0, 1]),
        ]
    }

    fn transfer(&self, direction: Direction) -> Result<u64> {
        let theirs = self.pair();
        if let Some(own) = self.client.set_device_state_fd(direction, theirs.as_fd())? {
            self.end.replace(Some(own));
        }
        Ok(0)
    }
}

fn eventfd((): ()) -> OwnedFd {
    let eventfd = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
    // SAFETY: it has just been given away.
    unsafe { OwnedFd::from_raw_fd(eventfd.into_raw_fd()) }
}

/// One call.
pub struct Step {
    pub request: Request,
    /// Makes it. A number stands for what it brought.
    pub call: fn(&Front) -> Result<u64>,
}

/// See the module.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// It has so many cases, or more: a barrier that is gone shows here.
    pub least: usize,
    /// Statements of a script.
    pub device: &'static str,
    /// Virtio features beyond the usual ones.
    pub more: u64,
    /// With REPLY_ACK, without it, or both.
    pub reply_ack: &'static [bool],
    /// What comes first, and is faulted in a scenario of its own.
    setup: &'static [&'static [Step]],
    /// The client serves the back-end's channel, which it opens after what comes
    /// first of all.
    pub serves: bool,
    steps: &'static [Step],
}

impl Scenario {
    pub fn steps(&self) -> Vec<&'static Step> {
        let parts = self.setup.iter().copied().chain([self.steps]);
        let mut parts: Vec<Vec<&Step>> = parts.map(|steps| steps.iter().collect()).collect();
        if self.serves {
            let others = |step: &&Step| step.request != Request::SetBackendReqFd;
            parts.iter_mut().for_each(|steps| steps.retain(others));
            parts.insert(1, OPEN.iter().collect());
        }
        parts.concat()
    }

    /// How many of its steps are not faulted here.
    pub fn setup(&self) -> usize {
        let opening = if self.serves && self.setup.len() > 1 {
            OPEN.len()
        } else {
            0
        };
        self.setup.iter().map(|steps| steps.len()).sum::<usize>() + opening
    }
}

/// A call that works on every connection: it shows whether one still does.
pub const PROBE: Step = Step {
    request: Request::GetFeatures,
    call: |front| front.client.get_features(),
};

/// What most scenarios are like.
const USUAL: Scenario = Scenario {
    name: "",
    least: 0,
    device: "",
    more: 0,
    reply_ack: &[true, false],
    serves: false,
    setup: &[NEGOTIATE],
    steps: &[],
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "negotiate",
        least: 900,
        setup: &[],
        steps: NEGOTIATE,
        ..USUAL
    },
    Scenario {
        name: "capabilities",
        least: 540,
        steps: CAPABILITIES,
        ..USUAL
    },
    Scenario {
        name: "bring-up",
        least: 1620,
        steps: BRING_UP,
        ..USUAL
    },
    Scenario {
        name: "running",
        least: 810,
        setup: &[NEGOTIATE, BRING_UP],
        steps: RUNNING,
        ..USUAL
    },
    Scenario {
        name: "config",
        least: 744,
        steps: CONFIG,
        ..USUAL
    },
    Scenario {
        name: "memory hot-plug",
        least: 990,
        setup: &[NEGOTIATE, BRING_UP],
        steps: HOT_PLUG,
        ..USUAL
    },
    Scenario {
        name: "stop",
        least: 990,
        setup: &[NEGOTIATE, BRING_UP],
        steps: STOP,
        ..USUAL
    },
    Scenario {
        name: "device state",
        least: 720,
        steps: DEVICE_STATE,
        ..USUAL
    },
    Scenario {
        name: "device state, own channel",
        least: 720,
        device: "device state-channel own\n",
        steps: DEVICE_STATE,
        ..USUAL
    },
    Scenario {
        name: "inflight",
        least: 540,
        steps: INFLIGHT,
        ..USUAL
    },
    Scenario {
        name: "log",
        least: 1170,
        setup: &[NEGOTIATE, BRING_UP],
        steps: LOG,
        ..USUAL
    },
    Scenario {
        name: "channel",
        least: 990,
        serves: true,
        steps: SERVED,
        ..USUAL
    },
    Scenario {
        name: "legacy driver",
        least: 180,
        steps: LEGACY,
        ..USUAL
    },
    Scenario {
        name: "in-band kick",
        least: 90,
        // INBAND_NOTIFICATIONS needs it.
        reply_ack: &[true],
        setup: &[NEGOTIATE, BRING_UP],
        steps: IN_BAND,
        ..USUAL
    },
    Scenario {
        name: "status",
        least: 450,
        steps: STATUS,
        ..USUAL
    },
    Scenario {
        name: "reset",
        least: 540,
        setup: &[NEGOTIATE, BRING_UP],
        steps: RESET,
        ..USUAL
    },
    Scenario {
        name: "skip drain",
        least: 180,
        device: "device protocol-features +GET_VRING_BASE_INFLIGHT +GET_VRING_BASE_SKIP_DRAIN\n",
        setup: &[NEGOTIATE_SKIP_DRAIN, BRING_UP],
        steps: SKIP_DRAIN,
        ..USUAL
    },
    Scenario {
        name: "iommu",
        least: 360,
        device: "device features +33\n",
        more: ACCESS_PLATFORM,
        steps: IOMMU,
        ..USUAL
    },
    Scenario {
        name: "postcopy",
        least: 896,
        setup: &[NEGOTIATE_POSTCOPY],
        steps: POSTCOPY,
        ..USUAL
    },
    Scenario {
        name: "network",
        least: 360,
        device: "device features +3\n",
        more: MTU,
        steps: NETWORK,
        ..USUAL
    },
    Scenario {
        name: "crypto",
        least: 360,
        steps: CRYPTO,
        ..USUAL
    },
    Scenario {
        name: "display",
        least: 356,
        device: "device object 00010203-0405-0607-0809-0a0b0c0d0e0f\n",
        steps: DISPLAY,
        ..USUAL
    },
];

macro_rules! steps {
    ($($request:ident: $call:expr;)*) => {
        &[$(Step { request: Request::$request, call: $call },)*]
    };
}

/// A call that brings nothing.
fn nothing((): ()) -> u64 {
    0
}

/// VERSION_1, the bit of protocol features, LOG_ALL.
const FEATURES: u64 = 1 << 32 | 1 << 30 | LOG_ALL;
const LOG_ALL: u64 = 1 << 26;
pub const MTU: u64 = 1 << 3;
pub const ACCESS_PLATFORM: u64 = 1 << 33;
const USUAL_FEATURES: u64 = FEATURES & !LOG_ALL;
/// What a polite back-end does not offer.
const UNUSUAL: ProtocolFeatures =
    ProtocolFeatures::GET_VRING_BASE_INFLIGHT.union(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN);
const SLOTS: ProtocolFeatures = ProtocolFeatures::CONFIGURE_MEM_SLOTS;

/// Acknowledges all protocol features but these.
macro_rules! negotiate {
    ($without:expr) => {
        steps! {
            GetFeatures: |front| front.client.get_features();
            GetProtocolFeatures: |front| front.client.get_protocol_features();
            SetProtocolFeatures: |front| {
                let features = protocol(front.reply_ack) - $without;
                front.client.set_protocol_features(features.bits()).map(nothing)
            };
            SetOwner: |front| front.client.set_owner().map(nothing);
            SetFeatures: |front| front.set_features(USUAL_FEATURES);
        }
    };
}

pub const NEGOTIATE: &[Step] = negotiate!(UNUSUAL);
const NEGOTIATE_SKIP_DRAIN: &[Step] = negotiate!(ProtocolFeatures::empty());
const NEGOTIATE_POSTCOPY: &[Step] = negotiate!(UNUSUAL.union(SLOTS));

/// The client serves what the back-end asks.
pub const OPEN: &[Step] = steps! {
    GetShmemConfig: |front| Ok(front.client.get_shmem_config()?.memory_sizes[0]);
    SetBackendReqFd: |front| {
        let handler = Arc::<Recorder>::clone(&front.handler);
        front.client.open_backend_channel(handler).map(nothing)
    };
};

const CAPABILITIES: &[Step] = steps! {
    GetQueueNum: |front| front.client.get_queue_num();
    GetMaxMemSlots: |front| front.client.get_max_mem_slots();
    GetShmemConfig: |front| Ok(front.client.get_shmem_config()?.memory_sizes[0]);
};

const BRING_UP: &[Step] = steps! {
    SetMemTable: |front| {
        front.client.set_mem_table(&[region(0), region(1)]).map(nothing)
    };
    SetVringNum: |front| front.client.set_vring_num(0, 256).map(nothing);
    SetVringBase: |front| front.client.set_vring_base(0, BASE).map(nothing);
    SetVringAddr: |front| front.client.set_vring_addr(&address(0)).map(nothing);
    SetVringCall: |front| call_fd(front, 0);
    SetVringErr: |front| {
        front.client.set_vring_err(0, Some(front.eventfds[2].as_fd())).map(nothing)
    };
    SetVringKick: |front| {
        front.client.set_vring_kick(0, Some(front.eventfds[1].as_fd())).map(nothing)
    };
    SetVringEnable: |front| front.client.set_vring_enable(0, true).map(nothing);
};

/// What may change while a ring runs.
const RUNNING: &[Step] = steps! {
    SetVringCall: |front| call_fd(front, 1);
    SetVringAddr: |front| front.client.set_vring_addr(&address(0)).map(nothing);
    SetFeatures: |front| front.set_features(FEATURES);
};

const CONFIG: &[Step] = steps! {
    GetConfig: get_config;
    SetBackendReqFd: |front| {
        let theirs = front.pair();
        front.client.set_backend_req_fd(theirs.as_fd()).map(nothing)
    };
    SetConfig: |front| front.client.set_config(CONFIG_AT, 0, &[0xa5; 8]).map(nothing);
    GetConfig: get_config;
};

/// One of each kind: an answer of its own, and none or an acknowledgement.
const SERVED: &[Step] = steps! {
    GetConfig: get_config;
    SetVringNum: |front| front.client.set_vring_num(0, 256).map(nothing);
    SetMemTable: |front| front.client.set_mem_table(&[region(0)]).map(nothing);
};

const HOT_PLUG: &[Step] = steps! {
    GetMaxMemSlots: |front| front.client.get_max_mem_slots();
    AddMemReg: |front| front.client.add_mem_region(&region(2)).map(nothing);
    AddMemReg: |front| front.client.add_mem_region(&region(3)).map(nothing);
    RemMemReg: |front| front.client.remove_mem_region(&region(2).region).map(nothing);
};

const STOP: &[Step] = steps! {
    SetVringEnable: |front| front.client.set_vring_enable(0, false).map(nothing);
    GetVringBase: |front| {
        front.client.get_vring_base(0, Timeout::Default).map(u64::from)
    };
    SetVringCall: |front| front.client.set_vring_call(0, None).map(nothing);
    ResetOwner: |front| front.client.reset_owner().map(nothing);
    SetOwner: |front| front.client.set_owner().map(nothing);
};

const DEVICE_STATE: &[Step] = steps! {
    SetDeviceStateFd: |front| front.transfer(Direction::Save);
    CheckDeviceState: |front| front.client.check_device_state().map(nothing);
    SetDeviceStateFd: |front| front.transfer(Direction::Load);
    CheckDeviceState: |front| {
        front.end.take(); // the end of the state
        front.client.check_device_state().map(nothing)
    };
};

const INFLIGHT: &[Step] = steps! {
    GetInflightFd: |front| {
        let (inflight, fd) = front.client.get_inflight_fd(1, 256)?;
        front.inflight.replace(fd.map(|fd| (inflight, fd)));
        Ok(inflight.mmap_size)
    };
    SetVringNum: |front| front.client.set_vring_num(0, 256).map(nothing);
    SetInflightFd: |front| {
        let other = Inflight {
            mmap_size: 0x1000,
            mmap_offset: 0,
            num_queues: 1,
            queue_size: 256,
            padding: 0,
        };
        match &*front.inflight.borrow() {
            Some((inflight, fd)) => front.client.set_inflight_fd(inflight, fd.as_fd()),
            None => front.client.set_inflight_fd(&other, file(0)),
        }
        .map(nothing)
    };
};

const LOG: &[Step] = steps! {
    SetLogBase: |front| {
        let log = Log {
            mmap_size: 0x1000,
            mmap_offset: 0,
        };
        front.client.set_log_base(&log, file(4)).map(nothing)
    };
    SetLogFd: |front| front.client.set_log_fd(front.eventfds[2].as_fd()).map(nothing);
    SetFeatures: |front| front.set_features(FEATURES);
    SetVringAddr: |front| front.client.set_vring_addr(&address(1)).map(nothing);
    SetFeatures: |front| front.set_features(USUAL_FEATURES);
};

const LEGACY: &[Step] = steps! {
    SetVringEndian: |front| front.client.set_vring_endian(0, 1).map(nothing);
};

const IN_BAND: &[Step] = steps! {
    VringKick: |front| front.client.vring_kick(0).map(nothing);
};

const STATUS: &[Step] = steps! {
    SetStatus: |front| front.client.set_status(0x0b).map(nothing);
    GetStatus: |front| front.client.get_status().map(u64::from);
};

const RESET: &[Step] = steps! {
    ResetDevice: |front| front.client.reset_device().map(nothing);
    SetFeatures: |front| front.set_features(USUAL_FEATURES);
};

const SKIP_DRAIN: &[Step] = steps! {
    GetVringBaseSkipDrain: |front| front.client.get_vring_base_skip_drain(0).map(u64::from);
};

const IOMMU: &[Step] = steps! {
    IotlbMsg: |front| front.client.send_iotlb(&translation(iotlb::UPDATE)).map(nothing);
    IotlbMsg: |front| front.client.send_iotlb(&translation(iotlb::INVALIDATE)).map(nothing);
};

const POSTCOPY: &[Step] = steps! {
    PostcopyAdvise: |front| front.client.postcopy_advise().map(drop).map(nothing);
    PostcopyListen: |front| front.client.postcopy_listen().map(nothing);
    SetMemTable: |front| {
        let mut bases = [0; 2];
        front.client.postcopy_set_mem_table(&[region(0), region(1)], &mut bases)?;
        Ok(bases[1])
    };
    SetMemTable: CONFIRM.call;
    PostcopyEnd: |front| front.client.postcopy_end().map(nothing);
};

const NETWORK: &[Step] = steps! {
    NetSetMtu: |front| front.client.net_set_mtu(1500).map(nothing);
    SendRarp: |front| front.client.send_rarp([2, 0, 0, 0, 0, 1]).map(nothing);
};

const CRYPTO: &[Step] = steps! {
    CreateCryptoSession: |front| {
        let session = CryptoSym {
            key_len: 16,
            ..CryptoSym::new_zeroed()
        };
        front.client.create_crypto_session(crypto::CREATE_SYM[0], CryptoKind::Sym(&session))
    };
    CloseCryptoSession: |front| front.client.close_crypto_session(1).map(nothing);
};

const DISPLAY: &[Step] = steps! {
    GpuSetSocket: |front| {
        let theirs = front.pair();
        front.client.gpu_set_socket(theirs.as_fd()).map(nothing)
    };
    GetSharedObject: |front| {
        let uuid = std::array::from_fn(|byte| u8::try_from(byte).unwrap());
        front.client.get_shared_object(&uuid).map(drop).map(nothing)
    };
};

/// What has to follow a memory table that the back-end answered, or may have.
pub const CONFIRM: Step = Step {
    request: Request::SetMemTable,
    call: |front| front.client.postcopy_ack_mem_table().map(nothing),
};

fn translation(kind: u8) -> Iotlb {
    Iotlb {
        iova: 0x1000,
        size: 0x1000,
        user_addr: USER,
        perm: 3,
        kind,
        padding: [0; 6],
    }
}

const BASE: u32 = 7;
const CONFIG_AT: u32 = 16;
const USER: u64 = 0x7f00_0000_0000;

fn region(index: u32) -> SharedRegion<'static> {
    let at = 0x10_0000 * u64::from(index);
    let region = MemRegion {
        guest_addr: at,
        size: 0x10_0000,
        user_addr: USER + at,
        mmap_offset: 0,
        ..MemRegion::default()
    };
    SharedRegion {
        region,
        fd: file(usize::try_from(index).unwrap()),
    }
}

fn address(flags: u32) -> VringAddr {
    VringAddr {
        index: 0,
        flags,
        descriptor: USER,
        used: USER + 0x2000,
        available: USER + 0x1000,
        log: 0,
    }
}

fn call_fd(front: &Front, index: usize) -> Result<u64> {
    let fd = front.eventfds[index].as_fd();
    front.client.set_vring_call(0, Some(fd)).map(nothing)
}

fn get_config(front: &Front) -> Result<u64> {
    let mut bytes = [0; 8];
    front.client.get_config(CONFIG_AT, 0, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A message that goes to the back-end, and what a polite one makes of it.
#[derive(Debug)]
pub struct Message {
    /// Which message of the connection it is, from 1.
    pub nth: usize,
    /// Which step sends it.
    pub step: usize,
    /// The step sends another one after it.
    pub has_barrier: bool,
    /// It is that other one.
    pub is_barrier: bool,
    /// It is answered.
    pub answered: bool,
    pub need_reply: bool,
    /// Descriptors with the answer.
    pub fds: usize,
    pub name: String,
}

/// All messages of a scenario, with what each step brings. They are read off the
/// log of a back-end, so that none is forgotten.
pub fn messages(scenario: &Scenario, device: &str, reply_ack: bool) -> (Vec<Message>, Vec<u64>) {
    let steps = scenario.steps();
    let mut messages: Vec<Message> = Vec::new();
    let mut brought = Vec::new();
    for step in 0..steps.len() {
        let script = Script::parse(device).unwrap();
        let (socket, mock) = Mock::spawn(script).unwrap();
        let front = Front::new(socket, reply_ack, None, OnTimeout::Poison).more(scenario.more);
        let results = steps.iter().take(step + 1).map(|step| (step.call)(&front));
        brought = results.collect::<Result<_>>().unwrap();
        drop(front.client);
        let outcome = mock.finish().unwrap();
        assert!(outcome.is_met(), "{outcome}");
        let lines = || outcome.log.iter().zip(outcome.log.iter().skip(1));
        let known = messages.len();
        let asked = lines().filter_map(|(line, next)| Some((line.strip_prefix("> ")?, next)));
        for (nth, (text, next)) in (1..).zip(asked).skip(known) {
            let (before, reply) = (nth > known + 1, next.strip_prefix("< "));
            if let Some(first) = messages.last_mut().filter(|_| before) {
                first.has_barrier = true;
            }
            let fds = reply.and_then(|reply| reply.split_once(" fds="));
            messages.push(Message {
                nth,
                step,
                has_barrier: false,
                is_barrier: before,
                answered: reply.is_some(),
                need_reply: text.contains(" need-reply"),
                fds: fds.map_or(0, |(_, fds)| fds.parse().unwrap()),
                name: text.split(' ').next().unwrap().to_owned(),
            });
        }
        let last = messages.last().filter(|last| last.step == step);
        assert!(last.is_some(), "{:?} sends nothing", steps[step].request);
    }
    (messages, brought)
}
