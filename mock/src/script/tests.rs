//! What is understood, and what is said about the rest.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use super::*;
use crate::message::tests::request;

fn error(text: &str) -> String {
    Script::parse(text).unwrap_err().to_string()
}

#[test]
fn a_whole_script() {
    let script = Script::parse(
        "# comment
         mode dpdk
         device queues 4
         on GET_FEATURES nth=2: short 3, close-after   # the second
         on any need-reply: fds +1

         expect next GET_FEATURES
         expect SET_MEM_TABLE fds=2 regions=2: refuse 7
         send CONFIG_CHANGE need-reply: size +1
         delay 5ms
         close",
    )
    .unwrap();
    assert_eq!((script.mode, script.device.queues), (Mode::Dpdk, 4));
    assert_eq!(script.rules.len(), 2);
    assert_eq!(script.rules[0].nth, Some(Nth::Only(2)));
    let lines: Vec<_> = script.steps.iter().map(|step| step.line).collect();
    assert_eq!(lines, [7, 8, 9, 10, 11]);
    assert_eq!(
        script.steps[1].source,
        "expect SET_MEM_TABLE fds=2 regions=2: refuse 7"
    );
    assert!(
        matches!(&script.steps[2].what, What::Do(Fault::Send(request)) if request.faults.len() == 1)
    );
}

#[test]
fn patterns() {
    let pattern = |text: &str| {
        let script = Script::parse(&format!("expect {text}")).unwrap();
        match &script.steps[0].what {
            What::Expect { pattern, .. } => pattern.clone(),
            what => panic!("{what:?}"),
        }
    };
    let state = [3_u32, 256].map(u32::to_ne_bytes).concat();
    let num = request(8, 9, &state);
    for text in [
        "any",
        "8",
        "SET_VRING_NUM",
        "SET_VRING_NUM index=3 num=0x100 need-reply size=8 fds=0",
    ] {
        assert!(pattern(text).fits(&num, false), "{text}");
    }
    for text in [
        "9",
        "SET_VRING_NUM index=2",
        "any no-need-reply",
        "any fds=1",
        "any size=9",
        "any refused",
    ] {
        assert!(!pattern(text).fits(&num, false), "{text}");
    }
    assert!(pattern("any refused").fits(&num, true));
    assert!(pattern("SET_VRING_NUM index=2").names(&num));
}

#[test]
fn nth() {
    let nth = |text: &str| {
        Script::parse(&format!("on any nth={text}: drop"))
            .unwrap()
            .rules[0]
            .nth
    };
    assert_eq!(
        (nth("2"), nth("2+")),
        (Some(Nth::Only(2)), Some(Nth::From(2)))
    );
    assert!(Nth::From(2).is(3) && !Nth::From(2).is(1) && !Nth::Only(2).is(3));
}

#[test]
fn the_device() {
    let device = |text: &str| Script::parse(text).unwrap().device;
    let polite = device("");
    assert_eq!(
        device("device features 0x140000000").features,
        0x1_4000_0000
    );
    assert_eq!(device("device features 32 30").features, 0x1_4000_0000);
    assert_eq!(
        device("device features -34 +5").features,
        polite.features & !(1 << 34) | 1 << 5
    );
    assert_eq!(device("device protocol-features MQ REPLY_ACK").protocol, 9);
    assert_eq!(device("device protocol-features none").protocol, 0);
    assert_eq!(
        device("device protocol-features -REPLY_ACK").protocol,
        polite.protocol & !8
    );
    assert_eq!(device("device config 0102ff").config, [1, 2, 255]);
    assert_eq!(device("device config-size 3").config, [0, 1, 2]);
    assert_eq!(
        device("device shmem 0=4096 7=0x2000")
            .shmem
            .into_iter()
            .collect::<Vec<_>>(),
        [(0, 4096), (7, 8192)]
    );
    assert_eq!(device("device state 0102").state, [1, 2]);
    assert_eq!(device("device state-size 70000").state.len(), 70_000);
    assert_eq!(
        device("device state-channel own").state_channel,
        StateChannel::Own
    );
    assert_eq!(device("device base 1=7").bases[&1], 7);
    assert_eq!(device("device slots 8").slots, 8);
    assert_eq!(
        device("device when-broken silent").when_broken,
        WhenBroken::Silent
    );
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    assert_eq!(
        device(&format!("device object {uuid}")).objects,
        [0x0011_2233_4455_6677_8899_aabb_ccdd_eeff]
    );
    // The mode holds wherever it stands.
    assert_eq!(device("device queues 6\nmode libvhost-user").slots, 509);
}

#[test]
fn errors_name_place_and_word() {
    let cases = [
        (
            "on GET_FEATURES: shrt 3",
            "line 1, column 18: \"shrt\": no such fault; there are refuse,",
        ),
        (
            "\n\n  expct GET_FEATURES",
            "line 3, column 3: \"expct\": no such statement; there are mode,",
        ),
        (
            "expect GET_FEATURE",
            "line 1, column 8: \"GET_FEATURE\": no request of the front-end;",
        ),
        ("expect", "line 1, column 7: a request, or any is missing"),
        (
            "expect SET_OWNER ring=1",
            "line 1, column 18: \"ring=1\": no such condition; there are fds=,",
        ),
        (
            "expect SET_VRING_NUM ring=1",
            "\"ring=1\": no such condition; there are index=, num=, fds=,",
        ),
        (
            "expect SET_MEM_TABLE fds=two",
            "line 1, column 26: \"two\": not a number",
        ),
        ("expect SET_OWNER nth=2", "\"expect\": nth= is for on;"),
        (
            "expect SET_OWNER refused: drop",
            "what is refused is not answered",
        ),
        (
            "on SET_OWNER refused: drop",
            "what is refused is not answered",
        ),
        (
            "on GET_FEATURES",
            "line 1, column 16: a colon and what to do is missing",
        ),
        (
            "on GET_FEATURES:",
            "line 1, column 17: what to do about the reply is missing",
        ),
        (
            "on GET_FEATURES: drop,",
            "what to do about the reply is missing",
        ),
        (
            "on GET_FEATURES: drop drop",
            "line 1, column 23: \"drop\": nothing more was expected",
        ),
        (
            "on GET_FEATURES: short",
            "line 1, column 23: a number of bytes is missing",
        ),
        ("on GET_FEATURES: short 0", "\"0\": must be at least 1"),
        ("on GET_FEATURES: delay 3", "\"3\": not a time;"),
        (
            "on GET_FEATURES: fds +300",
            "\"+300\": a message takes no more than 253",
        ),
        (
            "on GET_FEATURES: payload 0",
            "\"0\": not bytes in hexadecimal",
        ),
        (
            "on GET_FEATURES: code FOO",
            "\"FOO\": no request of the front-end, and no number",
        ),
        ("on any nth=0: drop", "\"0\": the first is nth=1"),
        (
            "short 3",
            "\"short\": spoils a reply: write `on REQUEST: short ...`",
        ),
        (
            "drop",
            "\"drop\": spoils a reply: write `on REQUEST: drop ...`",
        ),
        ("close-after", "on a line of its own it is: close"),
        (
            "send FOO",
            "\"FOO\": no request of the back-end; there are IOTLB_MSG, CONFIG_CHANGE_MSG,",
        ),
        (
            "send SHMEM_MAP foo=1",
            "\"foo=1\": SHMEM_MAP takes shmid=, fd-offset=,",
        ),
        (
            "send SHMEM_MAP shmid=256",
            "\"256\": too large for this field",
        ),
        (
            "send CONFIG_CHANGE answer=0",
            "an answer was asked for, but none will be waited for",
        ),
        (
            "mode qemu",
            "line 1, column 6: \"qemu\": no such mode; there are polite, dpdk, libvhost-user, rust-vmm-old, rust-vmm-new",
        ),
        (
            "mode dpdk\nmode dpdk",
            "line 2, column 6: \"dpdk\": the mode was given before",
        ),
        ("mode dpdk now", "\"now\": nothing more was expected"),
        ("device", "what to change is missing"),
        (
            "device speed 3",
            "\"speed\": the device has no such thing; it has features,",
        ),
        ("device queues 300", "\"300\": must be below 257"),
        ("device features", "bits is missing"),
        ("device features 64", "\"64\": must be below 64"),
        (
            "device protocol-features +FOO",
            "\"FOO\": no protocol feature; there are MQ,",
        ),
        ("device shmem 5", "\"5\": write ID=SIZE"),
        ("device object 12", "\"12\": not a UUID"),
    ];
    for (text, right) in cases {
        let found = error(text);
        assert!(found.contains(right), "{text:?}: {found}");
    }
}
