//! What the tests of a device on a scripted back-end begin with.

pub mod blk_peer;
pub mod blk_ring;
pub mod stepper;
pub mod vmm;
