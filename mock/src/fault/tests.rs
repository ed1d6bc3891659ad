//! Each fault, byte by byte.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use super::*;

fn fault(text: &str) -> Fault {
    let mut words = Words::of(text, 1);
    let fault = Fault::parse(&mut words).unwrap();
    words.done().unwrap();
    fault
}

/// `12+2` for twelve bytes with two descriptors, `|` between the acts.
fn outline(acts: &[Act]) -> String {
    let one = |act: &Act| match act {
        Act::Bytes(bytes, fds) if fds.is_empty() => format!("{}", Hex(bytes)),
        Act::Bytes(bytes, fds) => format!("{}+{}", Hex(bytes), fds.len()),
        Act::CloseAside(fds) => format!("aside {}", fds.len()),
        Act::Pause(time) => format!("pause {}", Time(*time)),
        Act::Send(request) => format!("send {}", request.kind.name),
        Act::FillEventfds => "fill".to_owned(),
        Act::StopReading(time) => format!("stop {time:?}"),
        Act::Close => "close".to_owned(),
        Act::Never => "never".to_owned(),
    };
    acts.iter().map(one).collect::<Vec<_>>().join(" | ")
}

/// What becomes of the reply to GET_QUEUE_NUM (17) that says 4.
fn spoilt(faults: &[&str]) -> String {
    let faults: Vec<_> = faults.iter().map(|text| fault(text)).collect();
    outline(&acts(17, Some(Outgoing::number(17, 4)), &faults))
}

/// All the acts in their order.
fn acts(code: u32, reply: Option<Outgoing>, faults: &[Fault]) -> Vec<Act> {
    let Plan {
        mut before, acts, ..
    } = plan(code, reply, faults, false).unwrap();
    before.extend(acts);
    before
}

const WHOLE: &str = "110000000500000008000000 0400000000000000";

fn whole() -> String {
    WHOLE.replace(' ', "")
}

#[test]
fn a_reply_as_it_is() {
    assert_eq!(spoilt(&[]), whole());
}

#[test]
fn each_fault_changes_these_bytes() {
    let cases = [
        ("payload 0102", "110000000500000002000000 0102"),
        ("code 18", "120000000500000008000000 0400000000000000"),
        (
            "code SET_VRING_ENABLE",
            "120000000500000008000000 0400000000000000",
        ),
        ("flags 0x1", "110000000100000008000000 0400000000000000"),
        ("size 16", "110000000500000010000000 0400000000000000"),
        ("size +4", "11000000050000000c000000 0400000000000000"),
        ("size -4", "110000000500000004000000 0400000000000000"),
        ("huge", "1100000005000000ffffffff 0400000000000000"),
        ("pad 2", "11000000050000000a000000 0400000000000000 0000"),
        ("trim 2", "110000000500000006000000 040000000000"),
        ("trim 9", "110000000500000000000000"),
        ("reply 5", "110000000500000008000000 0500000000000000"),
        ("short 3", "110000000500000008000000 0400000000"),
        ("short 40", ""),
    ];
    for (text, bytes) in cases {
        assert_eq!(spoilt(&[text]), bytes.replace(' ', ""), "{text}");
    }
}

#[test]
fn each_fault_changes_the_sending() {
    let (head, body) = WHOLE.split_once(' ').unwrap();
    let whole = whole();
    assert_eq!(
        spoilt(&["split 12"]),
        format!("{head} | pause 20ms | {body}")
    );
    assert_eq!(
        spoilt(&["split 12 5ms"]),
        format!("{head} | pause 5ms | {body}")
    );
    assert_eq!(spoilt(&["split 99"]), whole);
    let (one, two) = whole.split_at(16);
    let (two, three) = two.split_at(16);
    let pieces = format!("{one} | pause 1ms | {two} | pause 1ms | {three}");
    assert_eq!(spoilt(&["pieces 8 1ms"]), pieces);
    assert_eq!(spoilt(&["duplicate"]), format!("{whole} | {whole}"));
    assert_eq!(
        spoilt(&["duplicate 2"]),
        format!("{whole} | {whole} | {whole}")
    );
    assert_eq!(spoilt(&["drop"]), "");
    assert_eq!(spoilt(&["delay 200ms"]), format!("pause 200ms | {whole}"));
    assert_eq!(spoilt(&["fill-eventfds"]), format!("fill | {whole}"));
    assert_eq!(
        spoilt(&["send CONFIG_CHANGE"]),
        format!("send CONFIG_CHANGE_MSG | {whole}")
    );
    assert_eq!(spoilt(&["close"]), "close");
    assert_eq!(spoilt(&["close-after"]), format!("{whole} | close"));
    assert_eq!(spoilt(&["raw 0102"]), format!("{whole} | 0102"));
    assert_eq!(spoilt(&["stop-reading"]), format!("{whole} | stop None"));
    assert_eq!(
        spoilt(&["stop-reading 5ms"]),
        format!("{whole} | stop Some(5ms)")
    );
    assert_eq!(spoilt(&["never"]), "never");
}

#[test]
fn faults_add_up() {
    let text = spoilt(&["code 1", "short 4", "split 12 1ms", "close-after"]);
    assert_eq!(
        text,
        "010000000500000008000000 | pause 1ms | 04000000 | close"
    );
}

#[test]
fn descriptors_more_and_less() {
    let fds = |text: &str, have: usize| {
        let have = (0..have).map(|_| scratch_file(0).unwrap()).collect();
        let reply = Outgoing::reply(31, Vec::new()).with(have);
        match acts(31, Some(reply), &[fault(text)]).as_slice() {
            [Act::Bytes(_, fds)] => fds.len(),
            acts => panic!("{acts:?}"),
        }
    };
    assert_eq!(
        (
            fds("fds +2", 1),
            fds("fds -1", 1),
            fds("fds -3", 1),
            fds("fds 5", 1)
        ),
        (3, 0, 0, 5)
    );
}

#[test]
fn descriptors_of_other_files() {
    let files = |kind: &str| {
        let reply = Outgoing::reply(31, Vec::new()).with(vec![scratch_file(4096).unwrap()]);
        let faults = [fault("fds +1"), fault(&format!("files {kind}"))];
        outline(&acts(31, Some(reply), &faults))
    };
    assert_eq!(files("directory"), "1f0000000500000000000000+2");
    assert_eq!(files("lingering"), "1f0000000500000000000000+2 | aside 2");
    let error = crate::Script::parse("on any: files none").unwrap_err();
    assert!(
        error.reason.contains("there are directory, path, zero"),
        "{error}"
    );
}

#[test]
fn copies_have_descriptors_of_their_own() {
    let reply = Outgoing::reply(31, Vec::new()).with(vec![scratch_file(0).unwrap()]);
    let head = "1f0000000500000000000000+1";
    assert_eq!(
        outline(&acts(31, Some(reply), &[fault("duplicate")])),
        format!("{head} | {head}")
    );
}

#[test]
fn nothing_to_spoil() {
    let faults = [fault("short 3"), fault("close-after")];
    let plan = plan(3, None, &faults, false).unwrap();
    assert_eq!((outline(&plan.acts), plan.text), ("close".to_owned(), None));
    let reply = outline(&acts(3, None, &[fault("reply 0")]));
    assert_eq!(reply, "0300000005000000080000000000000000000000");
}

#[test]
fn two_writes_without_a_pause() {
    let (head, body) = WHOLE.split_once(' ').unwrap();
    let plan = plan(17, Some(Outgoing::number(17, 4)), &[], true).unwrap();
    assert_eq!(outline(&plan.acts), format!("{head} | {body}"));
}

#[test]
fn each_fault_is_written_as_it_is_read() {
    let texts = [
        "refuse 1",
        "refuse 0x10000",
        "reply 0",
        "payload 00ff",
        "code GET_FEATURES",
        "code 99",
        "flags 0x5",
        "size +4",
        "size -4",
        "size 4",
        "size 0xffffffff",
        "pad 1",
        "trim 1",
        "fds +1",
        "drop",
        "short 3",
        "split 12 20ms",
        "pieces 1 50us",
        "duplicate 1",
        "delay 2000ms",
        "send CONFIG_CHANGE_MSG need-reply within=10000ms",
        "fill-eventfds",
        "close",
        "close-after",
        "raw 00",
        "stop-reading",
        "stop-reading 5ms",
        "never",
    ];
    for text in texts {
        assert_eq!(fault(text).to_string(), text);
    }
}

#[test]
fn a_back_ends_request() {
    let text = "send SHMEM_MAP shmid=3 len=0x1000 flags=1 need-reply answer=0 within=50ms";
    let Fault::Send(request) = fault(text) else {
        panic!("not a request")
    };
    assert_eq!(
        (request.kind.id, request.fds, request.need_reply),
        (9, 1, true)
    );
    assert_eq!(request.payload.len(), 40);
    assert_eq!(
        (request.payload[0], request.payload[25], request.payload[32]),
        (3, 0x10, 1)
    );
    assert_eq!(
        (request.within, request.answer),
        (Some(Duration::from_millis(50)), Some(0))
    );
    let Fault::Send(request) = fault("send VRING_HOST_NOTIFIER_MSG index=2 no-fd=1") else {
        panic!()
    };
    assert_eq!((request.fds, request.within), (0, None));
    assert_eq!(request.payload[..2], [2, 1]);
    let Fault::Send(request) = fault("send CONFIG_CHANGE need-reply no-wait") else {
        panic!()
    };
    assert_eq!(request.within, None);
}
