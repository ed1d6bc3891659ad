//! What is changed while a device is in use.

use super::*;

#[test]
fn one_ring_starts_and_stops_while_another_runs() {
    let all = ProtocolFeatures::STATUS | ProtocolFeatures::INFLIGHT_SHMFD;
    let mut rig = Rig::new(PLAIN.with(all), wanted());
    rig.start(0, 1);
    assert!(rig.go().ends_with("STATUS 15"));
    rig.start(1, 2);
    assert_eq!(rig.go(), "CALL 1, NUM 1, BASE 1, ADDR 1, KICK 1, ENABLE 1");
    rig.stop(0);
    assert_eq!(rig.go(), "DISABLE 0, STOP 0");
    rig.start(0, 3);
    assert_eq!(rig.go(), "CALL 0, NUM 0, BASE 0, ADDR 0, KICK 0, ENABLE 0");
    // Started anew before it was seen to stop.
    rig.start(0, 4);
    assert_eq!(
        rig.go(),
        "DISABLE 0, STOP 0, CALL 0, NUM 0, BASE 0, ADDR 0, KICK 0, ENABLE 0"
    );
    assert_eq!(rig.go(), "");
}

#[test]
fn a_call_descriptor_is_swapped_in_one_message() {
    let mut rig = Rig::new(PLAIN, wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.go();
    rig.wanted.run_mut(1).call = 3;
    assert_eq!(rig.go(), "CALL 1");
}

#[test]
fn rings_are_stopped_as_the_caller_chose_where_that_was_agreed() {
    use ProtocolFeatures as P;
    let skip = P::GET_VRING_BASE_SKIP_DRAIN | P::GET_VRING_BASE_INFLIGHT | P::INFLIGHT_SHMFD;
    let bare = Offer {
        features: VERSION_1,
        ..PLAIN
    };
    for (offer, words) in [
        (PLAIN, "DISABLE 0, STOP 0"),
        (PLAIN.with(skip), "DISABLE 0, SKIP 0"),
        // Without bit 30 there is nothing to disable.
        (bare, "STOP 0"),
    ] {
        let mut rig = Rig::new(offer, wanted());
        rig.start(0, 1);
        rig.go();
        rig.stop_as(0, Drain::Skip);
        assert_eq!(rig.go(), words);
    }
}

#[test]
fn nothing_goes_on_before_a_ring_has_stopped() {
    let mut rig = Rig::new(PLAIN.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS), wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.go();
    rig.stop(0);
    rig.stop(1);
    rig.wanted.memory = list(&[]);
    let mut steps = Vec::new();
    while let Next::Do(step) = rig.actual.next(&rig.wanted) {
        steps.push((rig.actual.send(&step), step));
    }
    let words: Vec<_> = steps.iter().map(|(_, step)| word(step)).collect();
    assert_eq!(words, ["DISABLE 0", "DISABLE 1", "STOP 0", "STOP 1"]);
    for (number, step) in &steps[..3] {
        rig.actual.done(*number, step, 7);
        assert_eq!(rig.actual.next(&rig.wanted), Next::Wait);
    }
    let (number, step) = &steps[3];
    rig.actual.done(*number, step, 7);
    assert_eq!(rig.go(), "REM 0");
}

#[test]
fn a_reset_is_made_in_the_best_way_there_is_and_keeps_memory() {
    use ProtocolFeatures as P;
    let cases = [
        (P::RESET_DEVICE | P::STATUS, "RESET_DEVICE", "STATUS 11, "),
        (P::RESET_DEVICE, "RESET_DEVICE", ""),
        (P::STATUS, "STATUS 0", "STATUS 11, "),
        (P::empty(), "(reset)", ""),
    ];
    for (more, reset, status) in cases {
        let mut rig = Rig::new(PLAIN.with(more | P::INFLIGHT_SHMFD), wanted());
        rig.start(0, 1);
        rig.go();
        rig.reset();
        assert_eq!(rig.go(), format!("DISABLE 0, STOP 0, {reset}"));
        rig.wanted.features = Some(VERSION_1);
        rig.start(0, 2);
        let anew = rig.go();
        let begin = format!("SET_FEATURES, {status}CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x64, ");
        assert!(anew.starts_with(&begin), "{anew}");
    }
}

#[test]
fn a_reset_says_no_more_than_there_is_to_say() {
    let offer = PLAIN.with(ProtocolFeatures::RESET_DEVICE);
    // Before the guest's driver came.
    let mut rig = Rig::up(
        offer,
        Wanted {
            features: None,
            ..wanted()
        },
    );
    rig.reset();
    assert_eq!(rig.go(), "(reset)");
    // Before a ring has run.
    let mut rig = Rig::up(offer, wanted());
    rig.reset();
    assert_eq!(rig.go(), "RESET_DEVICE");
    // In the middle of a ring's start.
    let mut rig = Rig::up(offer, wanted());
    rig.start(0, 1);
    let Next::Do(step) = rig.actual.next(&rig.wanted) else {
        panic!("nothing to do")
    };
    rig.actual.send(&step);
    rig.reset();
    assert_eq!(rig.go(), "(forget 0), RESET_DEVICE");
    // On a connection that is new.
    rig.reset();
    rig.wanted.features = Some(VERSION_1);
    rig.actual = Actual::new(&rig.wanted, None);
    assert!(!rig.go().contains("RESET"));
}

#[test]
fn other_features_stop_all_rings_first() {
    let offer = PLAIN.with(ProtocolFeatures::INFLIGHT_SHMFD);
    let mut rig = Rig::new(offer, wanted());
    rig.start(0, 1);
    rig.go();
    rig.wanted.features = Some(VERSION_1 | PACKED);
    assert_eq!(
        rig.go(),
        "DISABLE 0, STOP 0, SET_FEATURES, CALL 0, NUM 0, BASE 0, GET_INFLIGHT 2x64, \
         SET_INFLIGHT, ADDR 0, KICK 0, ENABLE 0"
    );
}

#[test]
fn a_table_is_replaced_while_rings_pause_and_slots_while_they_run() {
    let paused = |table: &str| {
        format!("DISABLE 0, STOP 0, {table}, CALL 0, NUM 0, BASE 0, ADDR 0, KICK 0, ENABLE 0")
    };
    for (more, grown, shrunk) in [
        (
            ProtocolFeatures::empty(),
            paused("TABLE 0+1"),
            paused("TABLE 0"),
        ),
        (
            ProtocolFeatures::CONFIGURE_MEM_SLOTS,
            "ADD 1".to_owned(),
            "REM 1".to_owned(),
        ),
    ] {
        let mut rig = Rig::new(PLAIN.with(more), wanted());
        rig.start(0, 1);
        rig.go();
        rig.wanted.memory = list(&[0, 1]);
        assert_eq!(rig.go(), grown);
        rig.wanted.memory = list(&[0]);
        assert_eq!(rig.go(), shrunk);
    }
}

#[test]
fn rings_that_are_held_do_not_start() {
    let mut rig = Rig::new(
        PLAIN,
        Wanted {
            held: true,
            ..wanted()
        },
    );
    rig.start(0, 1);
    assert!(rig.go().ends_with("TABLE 0"));
    rig.wanted.held = false;
    assert!(rig.go().starts_with("CALL 0"));
}
