//! The real client through a whole life, on the polite mock and on each of the
//! strict ones.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Guest, client, met, no_leak, on};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vhost_user_frontend::message::ProtocolFeatures;
use vhost_user_frontend::{BackendClient, Direction, Result, Timeout};
use vuf_mock_backend::{Mock, Mode, Script};

/// Everything that the client can do and that was agreed.
fn life(client: &BackendClient, guest: &Guest, reply_ack: bool) -> Result<()> {
    guest.negotiate(client, reply_ack)?;
    let agreed = client.acked_protocol_features();
    let has = |feature| agreed.contains(feature);
    if has(ProtocolFeatures::MQ) {
        assert!(client.get_queue_num()? >= 4);
    }
    if has(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
        assert!(client.get_max_mem_slots()? >= 8);
    }
    if has(ProtocolFeatures::BACKEND_REQ) {
        client.set_backend_req_fd(UnixStream::pair().unwrap().0.as_fd())?;
    }
    if has(ProtocolFeatures::CONFIG) {
        let mut config = [0; 4];
        client.get_config(0, 0, &mut config)?;
        assert_eq!(config, [0, 1, 2, 3]);
        client.set_config(0, 0, &[9])?;
        client.get_config(0, 0, &mut config)?;
        assert_eq!(config, [9, 1, 2, 3]);
    }
    if has(ProtocolFeatures::SHMEM) {
        assert_eq!(client.get_shmem_config()?.memory_sizes[0], 0x10_0000);
    }
    if has(ProtocolFeatures::INFLIGHT_SHMFD) {
        let (inflight, fd) = client.get_inflight_fd(2, 256)?;
        client.set_inflight_fd(&inflight, fd.unwrap().as_fd())?;
    }
    guest.start(client)?;
    if has(ProtocolFeatures::LOG_SHMFD) {
        guest.log(client)?;
    }
    guest.stop(client)?;
    if has(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
        client.remove_mem_region(&guest.region().region)?;
        client.add_mem_region(&guest.region())?;
    }
    if has(ProtocolFeatures::DEVICE_STATE) {
        let state = save(client)?;
        assert_eq!(state, b"state of the mock device");
        load(client, &state)?;
    }
    Ok(())
}

/// The end of the channel to read or write, once the back-end has the other.
fn state_channel(client: &BackendClient, direction: Direction) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let own = client.set_device_state_fd(direction, theirs.as_fd())?;
    Ok(own.map_or(ours, UnixStream::from))
}

fn save(client: &BackendClient) -> Result<Vec<u8>> {
    let mut state = Vec::new();
    state_channel(client, Direction::Save)?
        .read_to_end(&mut state)
        .unwrap();
    client.check_device_state()?;
    Ok(state)
}

fn load(client: &BackendClient, state: &[u8]) -> Result<()> {
    let mut channel = state_channel(client, Direction::Load)?;
    channel.write_all(state).unwrap();
    channel.shutdown(Shutdown::Write).unwrap();
    client.check_device_state()
}

#[test]
fn a_whole_life_in_every_mode() {
    let _guard = no_leak();
    for mode in Mode::ALL {
        for reply_ack in [true, false] {
            let (client, mock) = client(&format!("mode {mode}"));
            let guest = Guest::new(2);
            life(&client, &guest, reply_ack)
                .unwrap_or_else(|error| panic!("{mode}, REPLY_ACK {reply_ack}: {error}"));
            drop(client);
            let outcome = met(mock);
            assert_eq!(
                outcome.log.last().unwrap(),
                "= the front-end closed",
                "{mode}"
            );
        }
    }
}

#[test]
fn with_everything_that_a_mode_can_offer() {
    let _guard = no_leak();
    // What the client knows and the back-end has a handler for.
    let more = [
        ("dpdk", "+CONFIG"),
        ("libvhost-user", "+INFLIGHT_SHMFD"),
        ("rust-vmm-new", "+INFLIGHT_SHMFD +SHMEM"),
        ("rust-vmm-old", "+INFLIGHT_SHMFD +LOG_SHMFD +DEVICE_STATE"),
    ];
    for (mode, features) in more {
        let (client, mock) = client(&format!("mode {mode}\ndevice protocol-features {features}"));
        life(&client, &Guest::new(2), true).unwrap_or_else(|error| panic!("{mode}: {error}"));
        drop(client);
        met(mock);
    }
}

#[test]
fn every_message_is_in_the_log() {
    let _guard = no_leak();
    let (client, mock) = client("device protocol-features MQ REPLY_ACK");
    let guest = Guest::new(1);
    guest.negotiate(&client, true).unwrap();
    guest.start(&client).unwrap();
    drop(client);
    let right = "\
= connected
> GET_FEATURES
< GET_FEATURES value=0x544000000
> GET_PROTOCOL_FEATURES
< GET_PROTOCOL_FEATURES value=9 (MQ REPLY_ACK)
> SET_PROTOCOL_FEATURES value=9 (MQ REPLY_ACK)
> SET_OWNER need-reply
< SET_OWNER value=0
> SET_FEATURES need-reply value=0x144000000
< SET_FEATURES value=0
> SET_MEM_TABLE need-reply regions=1 fds=1 [0x0+0x100000@0x7f0000000000]
< SET_MEM_TABLE value=0
> SET_VRING_NUM need-reply index=0 num=256
< SET_VRING_NUM value=0
> SET_VRING_BASE need-reply index=0 num=7
< SET_VRING_BASE value=0
> SET_VRING_ADDR need-reply index=0 flags=0 desc=0x7f0000000000 used=0x7f0000002000 avail=0x7f0000001000 log=0
< SET_VRING_ADDR value=0
> SET_VRING_KICK need-reply index=0 no-fd=0 fds=1
< SET_VRING_KICK value=0
> SET_VRING_CALL need-reply index=0 no-fd=0 fds=1
< SET_VRING_CALL value=0
> SET_VRING_ERR need-reply index=0 no-fd=1
< SET_VRING_ERR value=0
> SET_VRING_ENABLE need-reply index=0 num=1
< SET_VRING_ENABLE value=0
= the front-end closed";
    assert_eq!(met(mock).log.join("\n"), right);
}

#[test]
fn large_state_through_a_channel_of_either_side() {
    let _guard = no_leak();
    for channel in ["given", "own"] {
        let script = format!("device state-size 300000\ndevice state-channel {channel}");
        let (client, mock) = client(&script);
        Guest::new(1).negotiate(&client, true).unwrap();
        let mut state = save(&client).unwrap();
        assert_eq!(state.len(), 300_000);
        state.reverse();
        load(&client, &state).unwrap();
        assert_eq!(
            save(&client).unwrap(),
            state,
            "what was loaded is saved again"
        );
        drop(client);
        met(mock);
    }
}

#[test]
fn a_script_goes_on_over_connections() {
    let _guard = no_leak();
    let script = "\
expect SET_VRING_ENABLE: close
expect GET_FEATURES
expect SET_INFLIGHT_FD fds=1
";
    let (client, mock) = client(script);
    let second = on(
        mock.connect().unwrap(),
        Timeout::After(Duration::from_secs(10)),
    );
    let guest = Guest::new(1);
    guest.negotiate(&client, true).unwrap();
    let (inflight, fd) = client.get_inflight_fd(1, 256).unwrap();
    client
        .set_inflight_fd(&inflight, fd.as_ref().unwrap().as_fd())
        .unwrap();
    assert!(guest.start(&client).is_err(), "it closed");
    guest.negotiate(&second, true).unwrap();
    second
        .set_inflight_fd(&inflight, fd.unwrap().as_fd())
        .unwrap();
    guest.start(&second).unwrap();
    drop((client, second));
    met(mock);
}

#[test]
fn it_stops_when_told_whatever_it_does() {
    let _guard = no_leak();
    let scripts = [
        "",
        "stop-reading",
        "delay 100s",
        "never",
        "expect SET_OWNER: delay 100s",
    ];
    for script in scripts {
        let (socket, mock) = Mock::spawn(Script::parse(script).unwrap()).unwrap();
        let owner = [3_u32, 1, 0].map(u32::to_ne_bytes).concat();
        (&socket).write_all(&owner).unwrap();
        let outcome = mock.finish().unwrap();
        let handled = outcome.log.iter().any(|line| line == "> SET_OWNER");
        // What was sent before is still handled where it reads at all.
        assert_eq!(handled, script != "stop-reading", "{script}: {outcome}");
        drop(socket);
    }
    let (socket, mock) = Mock::spawn(Script::default()).unwrap();
    drop(mock);
    drop(OwnedFd::from(socket));
}
