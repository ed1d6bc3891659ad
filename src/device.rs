//! Layer 2: the device. It is built on layer 1, and knows no socket.

pub(crate) mod memfd;
mod memory;
