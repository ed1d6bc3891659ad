//! What the model answers, byte by byte where it matters.

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::*;
use crate::catalog::{self, REQUESTS, feature as p, mask};
use crate::message::Region;
use crate::message::tests::{region, request};

const ASKED: u32 = flags::VERSION | flags::NEED_REPLY;

fn agreed(mode: Mode) -> Model {
    let mut model = Model::new(mode, Device::of(mode));
    model.device.protocol = mask(&[3]) | Device::of(Mode::Polite).protocol;
    model.state.features = Some(model.device.features);
    model.state.protocol = model.device.protocol;
    (model.state.features_served, model.state.protocol_served) = (true, true);
    model
}

fn ask(model: &mut Model, code: u32, payload: &[u8]) -> Option<Outgoing> {
    model.answer(request(code, ASKED, payload)).unwrap()
}

fn payload(model: &mut Model, code: u32, request: &[u8]) -> Vec<u8> {
    ask(model, code, request).unwrap().payload
}

fn value(model: &mut Model, code: u32, request: &[u8]) -> u64 {
    u64::from_ne_bytes(payload(model, code, request).try_into().unwrap())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_ne_bytes).collect()
}

#[test]
fn every_request_is_answered_as_the_table_says() {
    for kind in REQUESTS {
        let least = kind.size.least();
        let size = if kind.id == id::SET_LOG_BASE {
            16
        } else {
            least
        };
        let mut model = agreed(Mode::Polite);
        let reply = ask(&mut model, kind.id, &vec![0xff; size]).unwrap();
        assert_eq!(
            (reply.header.code, reply.header.flags),
            (kind.id, 5),
            "{}",
            kind.name
        );
        assert_eq!(
            reply.payload.len(),
            reply.header.size as usize,
            "{}",
            kind.name
        );
        if kind.answer == Answer::Ack {
            assert_eq!(reply.payload.len(), 8, "{}", kind.name);
        }
        // Without being asked, only what is always answered is.
        let mut model = agreed(Mode::Polite);
        let reply = model
            .answer(request(kind.id, flags::VERSION, &vec![0xff; size]))
            .unwrap();
        let always = matches!(kind.answer, Answer::Always(_)) || kind.id == id::SET_LOG_BASE;
        assert_eq!(reply.is_some(), always, "{}", kind.name);
    }
}

#[test]
fn acknowledgements_follow_the_rule_of_the_mode() {
    // (REPLY_ACK acknowledged, GET_FEATURES served, GET_PROTOCOL_FEATURES served)
    let acked = |mode, acked, features, protocol| {
        let mut model = agreed(mode);
        model.state.protocol = if acked { mask(&[p::REPLY_ACK]) } else { 0 };
        (model.state.features_served, model.state.protocol_served) = (features, protocol);
        assert!(
            model
                .answer(request(id::SET_OWNER, flags::VERSION, &[]))
                .unwrap()
                .is_none()
        );
        ask(&mut model, id::SET_OWNER, &[]).is_some()
    };
    for mode in [Mode::Dpdk, Mode::LibvhostUser] {
        assert!(acked(mode, false, false, false));
    }
    for (mode, least) in [
        (Mode::Polite, 0),
        (Mode::RustVmmNew, 1),
        (Mode::RustVmmOld, 2),
    ] {
        assert!(!acked(mode, false, true, true), "{mode}");
        assert_eq!(acked(mode, true, false, false), least == 0, "{mode}");
        assert_eq!(acked(mode, true, true, false), least <= 1, "{mode}");
        assert!(acked(mode, true, true, true), "{mode}");
    }
    // The request that switches them on is acknowledged.
    let mut model = agreed(Mode::RustVmmNew);
    model.state.protocol = 0;
    assert_eq!(
        value(&mut model, id::SET_PROTOCOL_FEATURES, &8_u64.to_ne_bytes()),
        0
    );
}

#[test]
fn libvhost_user_echoes_flags() {
    let mut model = agreed(Mode::LibvhostUser);
    let mut bits = |code: u32, size: usize| {
        ask(&mut model, code, &vec![0xff; size])
            .unwrap()
            .header
            .flags
    };
    assert_eq!(
        (bits(id::GET_FEATURES, 0), bits(id::GET_VRING_BASE, 8)),
        (0xd, 0xd)
    );
    assert_eq!((bits(id::GET_QUEUE_NUM, 0), bits(id::SET_OWNER, 0)), (5, 5));
}

#[test]
fn numbers_of_the_device() {
    let mut dpdk = agreed(Mode::Dpdk);
    assert_eq!(value(&mut dpdk, id::GET_QUEUE_NUM, &[]), 128, "pairs");
    assert_eq!(value(&mut dpdk, id::GET_MAX_MEM_SLOTS, &[]), 8);
    let mut new = agreed(Mode::RustVmmNew);
    assert_eq!(value(&mut new, id::GET_QUEUE_NUM, &[]), 4);
    let shmem = payload(&mut new, id::GET_SHMEM_CONFIG, &[]);
    assert_eq!((shmem.len(), shmem[0], shmem[10]), (2056, 1, 0x10));
    assert_eq!(value(&mut new, id::SET_STATUS, &15_u64.to_ne_bytes()), 0);
    assert_eq!(value(&mut new, id::GET_STATUS, &[]), 15);
}

#[test]
fn rings_remember_their_base() {
    for (mode, told) in [
        (Mode::Polite, 0x8005_0007),
        (Mode::Dpdk, 7),
        (Mode::LibvhostUser, 0x8005_0007),
    ] {
        let mut model = agreed(mode);
        ask(&mut model, id::SET_VRING_BASE, &words(&[1, 0x8005_0007]));
        let mut kick = request(id::SET_VRING_KICK, ASKED, &1_u64.to_ne_bytes());
        kick.fds.push(scratch_file(0).unwrap());
        model.answer(kick).unwrap();
        assert_eq!(model.state.eventfds().count(), 1);
        assert_eq!(
            payload(&mut model, id::GET_VRING_BASE, &words(&[1, 0])),
            words(&[1, told])
        );
        assert_eq!(
            model.state.eventfds().count(),
            0,
            "kick and call are dropped"
        );
        model.device.bases.insert(1, 9);
        assert_eq!(
            payload(&mut model, id::GET_VRING_BASE, &words(&[1, 0])),
            words(&[1, 9])
        );
    }
    let mut model = agreed(Mode::Polite);
    assert_eq!(
        value(&mut model, id::SET_VRING_NUM, &words(&[4, 256])),
        1,
        "there are four"
    );
}

#[test]
fn configuration() {
    let request = |offset, size: u32| [words(&[offset, size, 0]), vec![0; size as usize]].concat();
    let mut polite = agreed(Mode::Polite);
    assert_eq!(
        payload(&mut polite, id::GET_CONFIG, &request(8, 3))[12..],
        [8, 9, 10]
    );
    assert_eq!(
        payload(&mut polite, id::GET_CONFIG, &request(62, 3)),
        [],
        "beyond its end"
    );
    let mut dpdk = agreed(Mode::Dpdk);
    assert_eq!(
        payload(&mut dpdk, id::GET_CONFIG, &request(8, 3))[12..],
        [0, 1, 2],
        "offset ignored"
    );
    let head = words(&[0, 3, 0]);
    assert_eq!(
        payload(&mut dpdk, id::GET_CONFIG, &head),
        head,
        "as long as it was"
    );
    let mut new = agreed(Mode::RustVmmNew);
    assert_eq!(
        payload(&mut new, id::GET_CONFIG, &request(62, 3)),
        words(&[62, 0, 0])
    );
    assert_eq!(
        value(
            &mut new,
            id::SET_CONFIG,
            &[words(&[4, 2, 0]), vec![7, 7]].concat()
        ),
        0
    );
    assert_eq!(
        payload(&mut new, id::GET_CONFIG, &request(3, 4))[12..],
        [3, 7, 7, 6]
    );
    assert_eq!(
        value(
            &mut new,
            id::SET_CONFIG,
            &[words(&[63, 2, 0]), vec![7, 7]].concat()
        ),
        1
    );
}

#[test]
fn the_log_is_answered_differently() {
    let log = [0x1000_u64, 0].map(u64::to_ne_bytes).concat();
    let sizes = [
        (Mode::Polite, vec![0; 8]),
        (Mode::Dpdk, vec![]),
        (Mode::LibvhostUser, log[..8].to_vec()),
        (Mode::RustVmmNew, log.clone()),
    ];
    for (mode, right) in sizes {
        assert_eq!(
            payload(&mut agreed(mode), id::SET_LOG_BASE, &log),
            right,
            "{mode}"
        );
    }
    let mut without = agreed(Mode::Polite);
    without.state.protocol = 0;
    assert!(ask(&mut without, id::SET_LOG_BASE, &log[..8]).is_none());
}

#[test]
fn inflight_buffers_have_the_size_of_the_format() {
    let wish = [&[0; 16][..], &[2, 0, 0, 1, 0, 0, 0, 0]].concat();
    let mut model = agreed(Mode::Polite);
    let mut size = |features| {
        model.state.features = Some(features);
        let reply = ask(&mut model, id::GET_INFLIGHT_FD, &wish).unwrap();
        assert_eq!((reply.payload.len(), reply.fds.len()), (24, 1));
        assert_eq!(reply.payload[16..], wish[16..]);
        let size = u64::from_ne_bytes(reply.payload[..8].try_into().unwrap());
        let file = File::from(reply.fds.into_iter().next().unwrap());
        assert_eq!(file.metadata().unwrap().len(), size);
        size
    };
    assert_eq!(size(0), 2 * (16_u64 * 256 + 16).next_multiple_of(64));
    assert_eq!(
        size(mask(&[virtio::RING_PACKED])),
        2 * (32_u64 * 256 + 32).next_multiple_of(64)
    );
}

#[test]
fn regions_come_and_go() {
    let mut model = agreed(Mode::Polite);
    let other = Region {
        guest: 0x9000,
        user: 0x9000,
        ..region()
    };
    let mut table = request(
        id::SET_MEM_TABLE,
        ASKED,
        &[words(&[2, 0]), region().bytes(), other.bytes()].concat(),
    );
    table.fds = vec![scratch_file(1).unwrap(), scratch_file(2).unwrap()];
    model.answer(table).unwrap();
    assert_eq!(model.state.regions, [region(), other]);
    let single = |region: Region| [vec![0; 8], region.bytes()].concat();
    assert_eq!(value(&mut model, id::REM_MEM_REG, &single(region())), 0);
    assert_eq!(
        value(&mut model, id::REM_MEM_REG, &single(region())),
        1,
        "it is gone"
    );
    let kept: Vec<_> = model
        .state
        .files
        .drain(..)
        .map(|fd| File::from(fd).metadata().unwrap().len())
        .collect();
    assert_eq!((model.state.regions.len(), kept), (1, vec![2]));
    assert_eq!(value(&mut model, id::ADD_MEM_REG, &single(region())), 0);
    assert!(model.state.maps(region().user) && !model.state.maps(0x1000));
}

#[test]
fn postcopy_tells_where_memory_is() {
    let mut model = agreed(Mode::Polite);
    assert_eq!(
        ask(&mut model, id::POSTCOPY_ADVISE, &[]).unwrap().fds.len(),
        1
    );
    assert_eq!(value(&mut model, id::POSTCOPY_LISTEN, &[]), 0);
    let table = [words(&[1, 0]), region().bytes()].concat();
    let reply = payload(&mut model, id::SET_MEM_TABLE, &table);
    let told = Region::list(&reply);
    assert_eq!(
        (reply.len(), told[0].guest, told[0].user),
        (40, region().guest, 0x7e00_0000_0000)
    );
    assert!(
        ask(&mut model, id::SET_MEM_TABLE, &[0; 8]).is_none(),
        "the front-end's last word"
    );
    let second = payload(
        &mut model,
        id::ADD_MEM_REG,
        &[vec![0; 8], region().bytes()].concat(),
    );
    assert_eq!(Region::list(&second)[0].user, 0x7e10_0000_0000);
    assert_eq!(value(&mut model, id::POSTCOPY_END, &[]), 0);
    assert_eq!(payload(&mut model, id::SET_MEM_TABLE, &table).len(), 8);
    // Who answers unasked differs.
    let unasked = |mode, code| {
        agreed(mode)
            .answer(request(code, 1, &[]))
            .unwrap()
            .is_some()
    };
    assert!(
        unasked(Mode::LibvhostUser, id::POSTCOPY_LISTEN)
            && !unasked(Mode::Dpdk, id::POSTCOPY_LISTEN)
    );
    let mut without = agreed(Mode::Polite);
    without.state.protocol = mask(&[p::PAGEFAULT]);
    assert_eq!(value(&mut without, id::POSTCOPY_LISTEN, &[]), 0);
    assert!(!unasked(Mode::Polite, id::POSTCOPY_LISTEN));
    assert!(unasked(Mode::Dpdk, id::POSTCOPY_END) && !unasked(Mode::RustVmmNew, id::POSTCOPY_END));
    assert!(unasked(Mode::Polite, id::IOTLB_MSG) && !unasked(Mode::Dpdk, id::IOTLB_MSG));
}

#[test]
fn refusals_take_the_shape_of_the_request() {
    let refuse = |mode: Mode, code: u32| {
        let kind = catalog::request(code).unwrap();
        let mut payload = vec![1; kind.size.least()];
        payload.extend([1; 4]);
        let reply = agreed(mode).refuse(&request(code, flags::VERSION, &payload), 7);
        reply.map(|reply| (reply.payload, reply.fds.len()))
    };
    let number = |value: u64| Some((value.to_ne_bytes().to_vec(), 0));
    assert_eq!(refuse(Mode::Polite, id::GET_QUEUE_NUM), number(7));
    assert_eq!(refuse(Mode::Polite, id::SET_OWNER), None, "nobody asked");
    assert_eq!(refuse(Mode::Polite, id::GET_VRING_BASE), None);
    assert_eq!(refuse(Mode::Polite, id::SET_DEVICE_STATE_FD), number(0x107));
    assert_eq!(refuse(Mode::Polite, id::GET_CONFIG), Some((vec![], 0)));
    let (config, _) = refuse(Mode::RustVmmNew, id::GET_CONFIG).unwrap();
    assert_eq!(config, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
    let (inflight, fds) = refuse(Mode::Polite, id::GET_INFLIGHT_FD).unwrap();
    assert_eq!((&inflight[..8], inflight[16], fds), (&[0; 8][..], 1, 0));
    let (session, _) = refuse(Mode::Polite, id::CREATE_CRYPTO_SESSION).unwrap();
    assert_eq!(session[1064..], (-7_i64).to_ne_bytes());
    let mut model = agreed(Mode::Dpdk);
    model.state.protocol = 0;
    let reply = model
        .refuse(&request(id::GET_CONFIG, ASKED, &[0; 20]), 7)
        .unwrap();
    assert_eq!(
        reply.payload,
        7_u64.to_ne_bytes(),
        "an acknowledgement in place of the reply"
    );
}

#[test]
fn features_without_protocol_features_enable_all_rings() {
    let mut model = agreed(Mode::Polite);
    ask(&mut model, id::SET_FEATURES, &mask(&[30, 32]).to_ne_bytes());
    assert!(model.state.rings.is_empty());
    ask(&mut model, id::SET_FEATURES, &mask(&[32]).to_ne_bytes());
    assert!(model.state.rings.len() == 4 && model.state.rings.values().all(|ring| ring.enabled));
    ask(&mut model, id::RESET_DEVICE, &[]);
    assert!(model.state.rings.values().all(|ring| !ring.enabled) && model.state.features.is_none());
}

#[test]
fn shared_objects_are_given_to_who_knows_them() {
    for (mode, body) in [(Mode::Polite, 0), (Mode::LibvhostUser, 16)] {
        let mut model = agreed(mode);
        model.device.objects.push(u128::from_be_bytes([7; 16]));
        let known = ask(&mut model, id::GET_SHARED_OBJECT, &[7; 16]).unwrap();
        assert_eq!((known.payload.len(), known.fds.len()), (body, 1));
        assert_eq!(
            ask(&mut model, id::GET_SHARED_OBJECT, &[8; 16])
                .unwrap()
                .fds
                .len(),
            0
        );
    }
}

#[test]
fn libvhost_user_answers_before_it_is_broken() {
    let broken = |code: u32, bits: u32, payload: &[u8]| {
        let reply = agreed(Mode::LibvhostUser).broken(&request(code, bits, payload));
        reply.map(|reply| reply.payload)
    };
    assert_eq!(
        broken(id::SET_FEATURES, ASKED, &[1; 8]),
        Some(vec![0; 8]),
        "yes"
    );
    assert_eq!(broken(id::SET_FEATURES, flags::VERSION, &[1; 8]), None);
    assert_eq!(
        broken(id::SET_LOG_BASE, flags::VERSION, &[1; 8]),
        Some(vec![1; 8])
    );
    assert_eq!(
        broken(id::POSTCOPY_LISTEN, flags::VERSION, &[]),
        Some(vec![0xff; 8])
    );
    assert_eq!(
        broken(id::GET_INFLIGHT_FD, flags::VERSION, &[1; 20]).unwrap()[..8],
        [0; 8]
    );
}
