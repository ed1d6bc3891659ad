//! What a device says to a back-end, line by line, in `device_transcripts/`: for
//! each scenario what goes over the socket. Back-ends that insist on an order or on
//! sound messages are told the same, and have nothing to object to.
//!
//! After a change that is meant, `VUF_WRITE_TRANSCRIPTS=1 cargo test` writes the
//! files anew.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "common/front.rs"]
mod front;

use front::{Front, PACKED, PLUGGED, RAM, VERSION_1, eventfd, options};
use nix::errno::Errno;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use vhost_user_frontend::message::{Flow, Request, Socket};
use vhost_user_frontend::{Base, DeviceOptions, EventKind, Kind, Peer, Recovery, StopMode};
use vuf_mock_backend::{Mock, Script};

/// What is done with which back-end.
struct Scenario {
    name: &'static str,
    /// The mock's script but for its mode: what is offered is the same in each.
    script: &'static str,
    rings: u32,
    config_size: u32,
    acts: fn(&mut Front, &Mock),
    /// The modes of the mock to which all of it makes sense, besides the polite one.
    modes: &'static [&'static str],
}

const ALL: &[&str] = &["dpdk", "libvhost-user", "rust-vmm-old", "rust-vmm-new"];
const RUST_VMM: &[&str] = &["rust-vmm-old", "rust-vmm-new"];

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "blk_of_rust_vmm",
        script: "device features +1
                 device protocol-features MQ LOG_SHMFD REPLY_ACK BACKEND_REQ CONFIG \
                 BACKEND_SEND_FD RESET_DEVICE CONFIGURE_MEM_SLOTS DEVICE_STATE",
        rings: 1,
        config_size: 60,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            front.device.write_config(32, &[1]).unwrap();
            front.settle();
            front.device.stop(None, StopMode::Drain);
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "virtiofsd",
        script: "device protocol-features MQ LOG_SHMFD REPLY_ACK BACKEND_REQ BACKEND_SEND_FD \
                 RESET_DEVICE CONFIGURE_MEM_SLOTS DEVICE_STATE",
        rings: 2,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0, 1]);
            // The guest is rebooted.
            front.device.reset();
            front.settle();
            front.bring_up(VERSION_1, &[0, 1]);
            front.device.reset();
            front.settle();
        },
        modes: RUST_VMM,
    },
    Scenario {
        name: "net_of_dpdk",
        script: "device features +34 +35
                 device protocol-features MQ LOG_SHMFD RARP REPLY_ACK MTU BACKEND_REQ \
                 CRYPTO_SESSION BACKEND_SEND_FD HOST_NOTIFIER STATUS
                 device slots 8",
        rings: 2,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1 | PACKED, &[0, 1]);
            front.device.stop(None, StopMode::Drain);
            front.settle();
            front.start(&[0, 1], Base::Resume);
            front.settle();
            front.device.reset();
            front.settle();
            front.bring_up(VERSION_1, &[0, 1]);
        },
        modes: &["dpdk"],
    },
    Scenario {
        name: "blk_of_libvhost_user",
        script: "device protocol-features MQ LOG_SHMFD REPLY_ACK BACKEND_REQ PAGEFAULT CONFIG \
                 BACKEND_SEND_FD HOST_NOTIFIER CONFIGURE_MEM_SLOTS
                 expect SET_VRING_ENABLE
                 send CONFIG_CHANGE_MSG",
        rings: 1,
        config_size: 60,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            // It is read again at once.
            front.until(|front| front.device.counters().unwrap().backend_requests_served == 1);
        },
        modes: ALL,
    },
    Scenario {
        name: "no_reply_ack",
        script: "device protocol-features MQ CONFIG",
        rings: 2,
        config_size: 8,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0, 1]);
            hot_plug(front);
            swap_call(front);
            write_config(front);
            front.device.stop(Some(&[1]), StopMode::Drain);
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "no_protocol_features",
        script: "device features 0x100000000",
        rings: 1,
        config_size: 8,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            hot_plug(front);
            write_config(front); // which it has not
            front.device.stop(None, StopMode::Drain);
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "sparse_rings",
        script: "device protocol-features MQ REPLY_ACK\ndevice queues 4",
        rings: 4,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0, 2]);
            front.start(&[3], Base::New);
            front.settle();
            front.device.stop(Some(&[0]), StopMode::Drain);
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "pause_and_resume",
        script: "device protocol-features MQ REPLY_ACK\ndevice base 0=0x1234\ndevice base 1=0x1234",
        rings: 2,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0, 1]);
            front.pretend_used(0x1234);
            front.device.stop(None, StopMode::Drain);
            front.settle();
            assert_eq!(front.device.vring_base(0).unwrap(), 0x1234);
            front.start(&[0, 1], Base::Resume);
            front.settle();
            // Without a look at what was stopped.
            front.device.stop(None, StopMode::Drain);
            front.start(&[0, 1], Base::Resume);
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "reset_without_a_message",
        script: "device protocol-features MQ REPLY_ACK",
        rings: 1,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            front.device.reset();
            front.settle();
            front.bring_up(VERSION_1, &[0]);
        },
        modes: ALL,
    },
    Scenario {
        name: "memory_in_a_table",
        script: "device protocol-features MQ REPLY_ACK",
        rings: 1,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            hot_plug(front);
        },
        modes: ALL,
    },
    Scenario {
        name: "memory_in_slots",
        script: "device protocol-features MQ REPLY_ACK CONFIGURE_MEM_SLOTS\ndevice slots 8",
        rings: 1,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            hot_plug(front);
            // Two at once, of which one takes the place of another.
            let moved = front.region(PLUGGED, 3);
            front.device.add_memory(front.region(PLUGGED, 1)).unwrap();
            front.settle();
            let list = vec![front.region(RAM, 0), moved, front.region(PLUGGED * 2, 2)];
            let busy = front.device.set_memory(list.clone(), false).unwrap_err();
            assert_eq!(busy.kind, Kind::Argument(Errno::EBUSY));
            front.device.set_memory(list, true).unwrap();
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "call_swap",
        script: "device protocol-features MQ REPLY_ACK",
        rings: 2,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0, 1]);
            swap_call(front);
            front.device.set_call(0, None).unwrap();
            front.settle();
        },
        modes: ALL,
    },
    Scenario {
        name: "reconnect_with_inflight",
        script: "device protocol-features MQ REPLY_ACK INFLIGHT_SHMFD
                 expect SET_VRING_ENABLE index=1
                 close",
        rings: 2,
        config_size: 0,
        acts: |front, mock| {
            front.negotiate(VERSION_1);
            front.start(&[0, 1], Base::New);
            let lost = front.until_event(EventKind::Lost);
            assert_eq!(lost.recovery, Recovery::Inflight);
            front.device.set_fd(mock.connect().unwrap().into()).unwrap();
            front.until_event(EventKind::Recovered);
        },
        modes: ALL,
    },
    Scenario {
        name: "a_larger_ring_with_inflight",
        script: "device protocol-features MQ REPLY_ACK INFLIGHT_SHMFD",
        rings: 2,
        config_size: 0,
        acts: |front, _| {
            front.bring_up(VERSION_1, &[0]);
            let larger = [front.ring(1, 128, Base::New)];
            // The other one pauses for a larger buffer.
            front.device.start(&larger).unwrap();
            front.settle();
        },
        modes: ALL,
    },
];

/// More memory and less again.
fn hot_plug(front: &mut Front) {
    front.device.add_memory(front.region(PLUGGED, 1)).unwrap();
    front.settle();
    front.device.remove_memory(PLUGGED, front::SIZE).unwrap();
    front.settle();
    assert!(front.device.quiet().quiesced);
}

fn write_config(front: &mut Front) {
    for at in 0..3 {
        front.device.write_config(at, &[7]).unwrap();
    }
    front.settle();
}

fn swap_call(front: &mut Front) {
    front.device.set_call(1, Some(eventfd().as_fd())).unwrap();
    front.settle();
}

/// What was sent and received, as the mock has it and as the trace has it.
struct Told {
    log: Vec<String>,
    sent: Vec<String>,
}

fn play(scenario: &Scenario, mode: &str) -> Told {
    let script = format!(
        "mode {mode}\ndevice features 0x144000000\n{}",
        scenario.script
    );
    let (socket, mock) = Mock::spawn(Script::parse(&script).unwrap()).unwrap();
    let options = DeviceOptions {
        config_size: scenario.config_size,
        ..options(scenario.rings)
    };
    let mut front = Front::new(Peer::Fd, options);
    let sent = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&sent);
    let sink = move |record: &vhost_user_frontend::TraceRecord| {
        if record.flow == Flow::Sent && record.socket == Socket::Main {
            lines.lock().unwrap().push(record.text().to_owned());
        }
    };
    front.device.set_trace(Some(Arc::new(sink))).unwrap();
    front.device.set_fd(socket.into()).unwrap();
    (scenario.acts)(&mut front, &mock);
    drop(front);
    let outcome = mock.finish().unwrap();
    assert!(
        outcome.is_met(),
        "{} with {mode}:\n{outcome}",
        scenario.name
    );
    let sent = sent.lock().unwrap().clone();
    Told {
        log: outcome.log,
        sent,
    }
}

fn from_the_front(log: &[String]) -> Vec<&str> {
    let sent = log.iter().filter(|line| line.starts_with("> "));
    sent.map(String::as_str).collect()
}

#[test]
fn each_scenario_has_its_transcript() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/device_transcripts");
    let write = std::env::var_os("VUF_WRITE_TRANSCRIPTS").is_some();
    for scenario in SCENARIOS {
        let told = play(scenario, "polite");
        let path = folder.join(scenario.name).with_extension("txt");
        let text = told.log.join("\n") + "\n";
        if write {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{} differs", scenario.name);
        assert_eq!(told.sent, from_the_front(&told.log), "{}", scenario.name);
    }
    let files = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(files, SCENARIOS.len(), "a transcript of no scenario");
}

#[test]
fn back_ends_that_are_strict_take_the_same() {
    for scenario in SCENARIOS {
        let polite = play(scenario, "polite");
        for mode in scenario.modes {
            let told = play(scenario, mode);
            let name = scenario.name;
            assert_eq!(
                from_the_front(&told.log),
                from_the_front(&polite.log),
                "{name}, {mode}"
            );
        }
    }
}

/// The back-ends of rust-vmm say no and hang up, while the next requests are on
/// their way to them.
#[test]
fn a_refusal_is_told_of_though_the_connection_is_gone() {
    for _ in 0..100 {
        let script = "mode rust-vmm-new\non SET_VRING_NUM: refuse 22";
        let (socket, mock) = Mock::spawn(Script::parse(script).unwrap()).unwrap();
        let mut front = Front::new(Peer::Fd, options(1));
        front.device.set_fd(socket.into()).unwrap();
        front.negotiate(VERSION_1);
        front.start(&[0], Base::New);
        let refused = front.until_event(EventKind::Refused);
        let error = refused.error.unwrap();
        let named = (error.request, error.kind);
        assert_eq!(named, (Some(Request::SetVringNum), Kind::Nack), "{error}");
        drop(front);
        mock.finish().unwrap();
    }
}

#[test]
fn a_configuration_that_was_never_read_has_not_changed() {
    let script = "expect GET_PROTOCOL_FEATURES: close";
    let (socket, mock) = Mock::spawn(Script::parse(script).unwrap()).unwrap();
    let options = DeviceOptions {
        config_size: 8,
        ..options(1)
    };
    let mut front = Front::new(Peer::Fd, options);
    front.device.set_fd(socket.into()).unwrap();
    front.until_event(EventKind::Lost);
    front.device.set_fd(mock.connect().unwrap().into()).unwrap();
    front.until(|front| {
        let last = front.events.last();
        last.is_some_and(|event| event.kind == EventKind::Applied)
    });
    let kinds: Vec<_> = front.events.iter().map(|event| event.kind).collect();
    assert!(!kinds.contains(&EventKind::ConfigChanged), "{kinds:?}");
}

#[test]
fn a_configuration_that_always_changes_holds_up_nothing() {
    let script = "on GET_CONFIG: send CONFIG_CHANGE_MSG no-wait, delay 2ms";
    let (socket, mock) = Mock::spawn(Script::parse(script).unwrap()).unwrap();
    let options = DeviceOptions {
        config_size: 8,
        ..options(1)
    };
    let mut front = Front::new(Peer::Fd, options);
    front.device.set_fd(socket.into()).unwrap();
    front.bring_up(VERSION_1, &[0]);
    front.device.stop(None, StopMode::Drain);
    front.settle();
    drop(front);
    mock.finish().unwrap();
}
