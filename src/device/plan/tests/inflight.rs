//! The in-flight buffer of the connection before.

use super::*;

/// A device that has lost its back-end, with what that kept.
fn regained(rig: &Rig, key: InflightKey) -> Rig {
    Rig {
        offer: rig.offer,
        wanted: rig.wanted.clone(),
        actual: Actual::new(&rig.wanted, Some(Held { generation: 9, key })),
    }
}

const KEY: InflightKey = InflightKey {
    packed: false,
    num_queues: 2,
    queue_size: 256,
};

#[test]
fn the_buffer_of_the_connection_before_is_handed_over() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.wanted.run_mut(1).size = 256;
    let order = regained(&rig, KEY).go();
    assert!(order.contains("BASE 1, SET_INFLIGHT, ADDR 0"), "{order}");
}

#[test]
fn a_buffer_with_room_to_spare_is_not_given_up() {
    // The larger ring was stopped, the other still has requests in flight.
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    let order = regained(&rig, KEY).go();
    assert!(order.contains("BASE 0, SET_INFLIGHT, ADDR 0"), "{order}");
}

#[test]
fn a_buffer_that_is_too_small_is_replaced_when_no_ring_runs() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    rig.go();
    rig.stop(0);
    rig.go();
    rig.start(0, 2);
    rig.wanted.run_mut(0).size = 256;
    let order = rig.go();
    let buffer = "CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x256, SET_INFLIGHT, ADDR 0";
    assert!(order.starts_with(buffer), "{order}");
}

#[test]
fn rings_pause_for_a_larger_buffer() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.start(0, 1);
    rig.go();
    rig.start(1, 2);
    rig.wanted.run_mut(1).size = 256;
    assert_eq!(
        rig.go(),
        "DISABLE 0, STOP 0, CALL 0, NUM 0, BASE 0, CALL 1, NUM 1, BASE 1, GET_INFLIGHT 2x256, \
         SET_INFLIGHT, ADDR 0, ADDR 1, KICK 0, KICK 1, ENABLE 0, ENABLE 1"
    );
    // Made large enough at once, it needs no pause.
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD), wanted());
    rig.wanted.max_ring_size = 256;
    rig.start(0, 1);
    assert!(rig.go().contains("GET_INFLIGHT 2x256"));
    rig.start(1, 2);
    rig.wanted.run_mut(1).size = 256;
    assert_eq!(rig.go(), "CALL 1, NUM 1, BASE 1, ADDR 1, KICK 1, ENABLE 1");
}
