//! The simulator of `tests/simulator/` with histories from the bytes of an input.

#![allow(dead_code, reason = "not all of it is used here")]

#[path = "../../tests/simulator/action.rs"]
pub mod action;
#[path = "../../tests/simulator/backend.rs"]
mod backend;
#[path = "../../tests/simulator/ledger.rs"]
mod ledger;
#[path = "../../tests/simulator/packed.rs"]
mod packed;
#[path = "../../tests/simulator/wire.rs"]
mod wire;
#[path = "../../tests/simulator/world.rs"]
mod world;

use action::{Action, print};
use ledger::Class;

/// An input that begins like this is a history; any other is a run of
/// [`device`](super::device) with a back-end that answers in bytes of any kind.
pub const HISTORY: &[u8] = b"sim";

/// Most actions of a history.
const ACTIONS: usize = 120;

/// One history; panics if a promise is broken.
pub fn run(data: &[u8]) {
    let history: Vec<Action> = data
        .chunks_exact(6)
        .take(ACTIONS)
        .map(|bytes| Action::decode(bytes.try_into().unwrap()))
        .collect();
    let all = Class::ALL.iter().map(|(_, class)| *class).collect();
    let outcome = world::play(&history, &all, false);
    if let Some(broken) = outcome.violation {
        let (class, text) = (broken.class.name(), broken.text);
        panic!("{class}: {text}\n{}", print(&history));
    }
}
