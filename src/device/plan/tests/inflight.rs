//! The in-flight buffer of the connection before.

use super::*;

/// A device that has lost its back-end, with what that kept.
fn regained(rig: &Rig, key: InflightKey) -> Rig {
    Rig {
        offer: rig.offer,
        wanted: rig.wanted.clone(),
        actual: Actual::new(&rig.wanted, Some(key)),
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
    rig.wanted.rings[1].as_mut().unwrap().size = 256;
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
    rig.wanted.rings[0].as_mut().unwrap().size = 256;
    let order = rig.go();
    let buffer = "CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x256, SET_INFLIGHT, ADDR 0";
    assert!(order.starts_with(buffer), "{order}");
}
