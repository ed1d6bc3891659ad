//! The canonical order, and what is acknowledged in it.

use super::*;

/// All that there is to do for two rings.
fn bring_up(offer: Offer, change: impl FnOnce(&mut Wanted)) -> String {
    let mut wanted = wanted();
    wanted.rings = vec![ring(1), ring(2)];
    change(&mut wanted);
    Rig::new(offer, wanted).go()
}

#[test]
fn without_bit_30_there_is_nothing_to_agree_on_or_to_enable() {
    let offer = Offer {
        features: VERSION_1,
        ..PLAIN
    };
    assert_eq!(
        bring_up(offer, |_| {}),
        "GET_FEATURES, SET_OWNER, SET_FEATURES, TABLE 0, CALL 0, NUM 0, BASE 0, CALL 1, \
         NUM 1, BASE 1, ADDR 0, ADDR 1, KICK 0, KICK 1"
    );
}

#[test]
fn a_plain_back_end_is_told_ring_by_ring_and_enabled_last() {
    let order = "GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER, \
                 SET_FEATURES, TABLE 0, CALL 0, NUM 0, BASE 0, CALL 1, NUM 1, BASE 1, \
                 ADDR 0, ADDR 1, KICK 0, KICK 1, ENABLE 0, ENABLE 1";
    assert_eq!(bring_up(PLAIN, |_| {}), order);
    // Acknowledgements are the connection's business.
    let nothing = Offer {
        protocol: ProtocolFeatures::empty(),
        ..PLAIN
    };
    assert_eq!(bring_up(nothing, |_| {}), order);
    // The layout of a ring is in its features and addresses.
    let packed = |wanted: &mut Wanted| wanted.features = Some(VERSION_1 | PACKED);
    assert_eq!(bring_up(PLAIN, packed), order);
}

#[test]
fn an_error_descriptor_comes_before_the_kick() {
    let order = bring_up(PLAIN, |wanted| {
        for ring in 0..2 {
            wanted.run_mut(ring).err = true;
        }
    });
    let rings = "ADDR 0, ERR 0, ADDR 1, ERR 1, KICK 0, KICK 1, ENABLE 0, ENABLE 1";
    assert!(order.ends_with(rings), "{order}");
}

#[test]
fn memory_in_slots_comes_one_by_one() {
    let offer = PLAIN.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
    let order = bring_up(offer, |wanted| wanted.memory = list(&[5, 0, 3]));
    let memory = "SET_OWNER, GET_MAX_MEM_SLOTS, SET_FEATURES, ADD 0, ADD 3, ADD 5, CALL 0";
    assert!(order.contains(memory), "{order}");
}

#[test]
fn an_in_flight_buffer_comes_before_any_address_and_kick() {
    let offer = PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD);
    let order = bring_up(offer, |wanted| {
        wanted.run_mut(1).size = 256;
    });
    let buffer = "BASE 1, GET_INFLIGHT 2x256, SET_INFLIGHT, ADDR 0";
    assert!(order.contains(buffer), "{order}");
}

#[test]
fn a_back_end_that_wants_no_in_flight_buffer_gets_none() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    loop {
        let Next::Do(step) = rig.actual.next(&rig.wanted) else {
            break;
        };
        assert!(!matches!(step, Step::SetInflight(_)));
        let number = rig.actual.send(&step);
        let told = match step {
            Step::GetInflight(_) => 0,
            _ => rig.offer.answer(&step),
        };
        rig.actual.done(number, &step, told);
    }
    assert!(rig.actual.confirmed.rings[0].enabled);
}

#[test]
fn with_a_status_the_driver_is_there_first_and_ready_last() {
    let order = bring_up(PLAIN.with(ProtocolFeatures::STATUS), |_| {});
    assert!(
        order.contains("SET_FEATURES, STATUS 11, TABLE 0,") && order.ends_with(", STATUS 15"),
        "{order}"
    );
}

#[test]
fn mtu_comes_before_memory_and_rings() {
    let mut wanted = wanted();
    wanted.features = Some(VERSION_1 | NET_MTU);
    wanted.mtu = Some(1500);
    let offer = PLAIN.with(ProtocolFeatures::MTU | ProtocolFeatures::RESET_DEVICE);
    let mut rig = Rig::up(offer, wanted);
    rig.start(0, 1);
    rig.go();
    // Another one may come while rings run.
    rig.wanted.mtu = Some(9000);
    assert_eq!(rig.go(), "MTU 9000");
    rig.reset();
    rig.go();
    rig.wanted.features = Some(VERSION_1 | NET_MTU);
    assert_eq!(rig.go(), "SET_FEATURES, MTU 9000");
    // The driver of now takes its own.
    rig.reset();
    rig.go();
    rig.wanted.features = Some(VERSION_1);
    assert_eq!(rig.go(), "SET_FEATURES");
}

#[test]
fn byte_order_comes_before_the_address() {
    let offer = PLAIN.with(ProtocolFeatures::CROSS_ENDIAN);
    let order = |features: u64, big: Option<bool>, offer: Offer| {
        bring_up(offer, |wanted| {
            wanted.rings.truncate(1);
            wanted.num_rings = 1;
            wanted.features = Some(features);
            wanted.big_endian = big;
        })
    };
    let legacy = order(0, Some(true), offer);
    assert!(legacy.contains("BASE 0, BIG 0, ADDR 0"), "{legacy}");
    let legacy = order(0, Some(false), offer);
    assert!(legacy.contains("BASE 0, LITTLE 0, ADDR 0"), "{legacy}");
    for other in [
        order(0, None, offer),
        order(VERSION_1, Some(true), offer),
        order(0, Some(false), PLAIN),
    ] {
        assert!(other.contains("BASE 0, ADDR 0"), "{other}");
    }
}

#[test]
fn everything_has_its_place() {
    let order = bring_up(PLAIN.with(ProtocolFeatures::all()), |wanted| {
        wanted.channel = true;
        wanted.config_size = 60;
        wanted.num_rings = 1;
        wanted.rings.truncate(1);
    });
    assert_eq!(
        order,
        "GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER, \
         GET_QUEUE_NUM, GET_MAX_MEM_SLOTS, GET_SHMEM_CONFIG, CHANNEL, GET_CONFIG, \
         SET_FEATURES, STATUS 11, ADD 0, CALL 0, NUM 0, BASE 0, GET_INFLIGHT 1x64, \
         SET_INFLIGHT, ADDR 0, KICK 0, ENABLE 0, STATUS 15"
    );
}

#[test]
fn of_many_rings_only_those_that_are_wanted_are_told_of() {
    let order = bring_up(PLAIN.with(ProtocolFeatures::MQ), |wanted| {
        wanted.rings = vec![
            ring(1),
            RingWanted::default(),
            ring(2),
            RingWanted::default(),
        ];
    });
    assert!(
        order.ends_with(
            "GET_QUEUE_NUM, SET_FEATURES, TABLE 0, CALL 0, NUM 0, BASE 0, CALL 2, NUM 2, \
             BASE 2, ADDR 0, ADDR 2, KICK 0, KICK 2, ENABLE 0, ENABLE 2"
        ),
        "{order}"
    );
}

#[test]
fn before_the_guest_has_a_driver_only_the_handshake_is_made() {
    let offer = PLAIN.with(ProtocolFeatures::STATUS);
    let mut wanted = wanted();
    wanted.features = None;
    let mut rig = Rig::new(offer, wanted);
    assert!(rig.go().ends_with("SET_OWNER"));
    assert!(rig.actual.connected(&rig.wanted));
}

// ---- what is acknowledged ----

#[test]
fn a_bit_is_not_acknowledged_without_what_it_needs() {
    use ProtocolFeatures as P;
    let acked = |offered: P, change: &dyn Fn(&mut Wanted)| {
        let mut wanted = Wanted {
            protocol: u64::MAX,
            channel: true,
            config_size: 1,
            ..Wanted::default()
        };
        change(&mut wanted);
        acknowledged::of(offered.bits() | 1 << 63, &wanted)
    };
    assert_eq!(acked(P::all(), &|_| {}), acknowledged::SERVED);
    let silent = acked(P::all(), &|wanted| wanted.channel = false);
    assert!(!silent.intersects(P::BACKEND_REQ | P::BACKEND_SEND_FD | P::SHMEM | P::SHARED_OBJECT));
    assert!(!acked(P::all(), &|wanted| wanted.config_size = 0).contains(P::CONFIG));
    let skip = P::GET_VRING_BASE_SKIP_DRAIN | P::GET_VRING_BASE_INFLIGHT;
    assert_eq!(acked(skip, &|_| {}), P::empty());
    // By itself it would let GET_VRING_BASE leave requests unfinished.
    let inflight = P::INFLIGHT_SHMFD | P::GET_VRING_BASE_INFLIGHT;
    assert_eq!(acked(inflight, &|_| {}), P::INFLIGHT_SHMFD);
    let chosen = acked(P::all(), &|wanted| wanted.protocol = P::MQ.bits());
    assert_eq!(chosen, P::MQ);
}
