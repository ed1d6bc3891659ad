//! What was sent, what is confirmed, and what was refused.

use super::*;

fn access(rig: &Rig) -> (bool, bool) {
    let access = rig.actual.access();
    (
        access.reaches_beyond(&rig.wanted.memory),
        access.runs_beyond(|ring| rig.wanted.start(ring)),
    )
}

fn send(rig: &mut Rig) -> (u64, Step) {
    let Next::Do(step) = rig.actual.next(&rig.wanted) else {
        panic!("nothing to send")
    };
    (rig.actual.send(&step), step)
}

#[test]
fn a_region_stays_accessible_until_its_removal_is_confirmed() {
    let mut rig = Rig::up(PLAIN.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS), wanted());
    rig.wanted.memory = list(&[]);
    assert_eq!(access(&rig), (true, false));
    let (number, step) = send(&mut rig);
    assert_eq!(word(&step), "REM 0");
    assert_eq!(access(&rig), (true, false));
    rig.actual.refuse(number);
    assert_eq!(access(&rig), (true, false), "it was refused");
    assert_eq!(rig.actual.next(&rig.wanted), Next::Nothing, "asked once");
    rig.actual.ask_again();
    let (number, step) = send(&mut rig);
    rig.actual.done(number, &step, 0);
    assert_eq!(access(&rig), (false, false));
}

#[test]
fn a_region_is_accessible_as_soon_as_it_was_sent() {
    let mut rig = Rig::up(PLAIN.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS), wanted());
    rig.wanted.memory = list(&[0, 1]);
    let (add, _) = send(&mut rig);
    rig.wanted.memory = list(&[0]);
    assert_eq!(access(&rig), (true, false));
    // Both are under way.
    let (remove, step) = send(&mut rig);
    assert_eq!(word(&step), "REM 1");
    rig.actual.confirm(add);
    assert_eq!(access(&rig), (true, false));
    rig.actual.confirm(remove);
    assert_eq!(access(&rig), (false, false));
}

#[test]
fn of_a_table_that_was_refused_any_part_may_be_in_use() {
    let mut rig = Rig::up(PLAIN, wanted());
    rig.wanted.memory = list(&[0, 1]);
    let (number, step) = send(&mut rig);
    assert_eq!(word(&step), "TABLE 0+1");
    rig.actual.refuse(number);
    rig.wanted.memory = list(&[0]);
    assert_eq!(access(&rig), (true, false));
    assert_eq!(rig.go(), "TABLE 0", "it may have lost that one, too");
    assert_eq!(access(&rig), (false, false));
}

#[test]
fn a_table_that_was_refused_is_not_sent_again() {
    let mut rig = Rig::up(PLAIN, wanted());
    rig.wanted.memory = list(&[0, 1]);
    let (number, _) = send(&mut rig);
    rig.actual.refuse(number);
    assert_eq!(rig.actual.next(&rig.wanted), Next::Nothing);
}

#[test]
fn a_ring_is_in_use_from_its_kick_to_the_answer_to_its_stop() {
    let mut rig = Rig::up(PLAIN, wanted());
    rig.start(0, 1);
    // All before the kick is acknowledged first.
    let mut last = 0;
    loop {
        match rig.actual.next(&rig.wanted) {
            Next::Do(step) => {
                let kicked = matches!(
                    step,
                    Step::Ring {
                        part: RingStep::Kick | RingStep::Enable,
                        ..
                    }
                );
                last = rig.actual.send(&step);
                assert_eq!(rig.actual.may_run(0), kicked, "{}", word(&step));
            }
            Next::Wait => rig.actual.confirm(last),
            _ => break,
        }
    }
    rig.actual.confirm(last);
    rig.stop(0);
    assert_eq!(access(&rig), (false, true));
    let (disable, _) = send(&mut rig);
    let (stop, _) = send(&mut rig);
    rig.actual.confirm(disable);
    assert_eq!(access(&rig), (false, true));
    rig.actual.confirm(stop);
    assert_eq!(access(&rig), (false, false));
}

#[test]
fn a_start_that_was_refused_is_undone() {
    let mut rig = Rig::up(PLAIN, wanted());
    rig.start(0, 1);
    let (call, _) = send(&mut rig);
    while let Next::Do(step) = rig.actual.next(&rig.wanted) {
        rig.actual.send(&step);
    }
    // No ring is kicked whose base may be refused.
    assert_eq!(rig.actual.next(&rig.wanted), Next::Wait);
    rig.actual.refuse(call);
    rig.stop(0);
    assert_eq!(rig.go(), "(forget 0)");
}

#[test]
fn a_reset_is_done_when_it_is_confirmed() {
    let mut rig = Rig::up(PLAIN.with(ProtocolFeatures::RESET_DEVICE), wanted());
    rig.reset();
    assert!(rig.actual.is_resetting(&rig.wanted));
    let (number, step) = send(&mut rig);
    assert!(rig.actual.is_resetting(&rig.wanted));
    rig.actual.done(number, &step, 0);
    assert!(!rig.actual.is_resetting(&rig.wanted));
}

#[test]
fn the_last_region_of_a_table_costs_the_connection() {
    let mut rig = Rig::up(PLAIN, wanted());
    rig.wanted.memory = list(&[]);
    assert_eq!(rig.actual.next(&rig.wanted), Next::Close);
    let mut rig = Rig::up(PLAIN, wanted());
    rig.reset();
    rig.go();
    rig.wanted.memory = list(&[]);
    assert_eq!(rig.actual.next(&rig.wanted), Next::Close);
}

#[test]
fn each_ring_is_stopped_in_its_own_way() {
    use ProtocolFeatures as P;
    let skip = P::GET_VRING_BASE_SKIP_DRAIN | P::GET_VRING_BASE_INFLIGHT | P::INFLIGHT_SHMFD;
    let mut rig = Rig::new(PLAIN.with(skip), wanted());
    rig.start(0, 1);
    rig.start(1, 2);
    rig.go();
    rig.stop_as(0, Drain::Finish);
    rig.stop_as(1, Drain::Skip);
    assert_eq!(rig.go(), "DISABLE 0, DISABLE 1, STOP 0, SKIP 1");
}
