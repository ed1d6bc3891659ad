//! Threads that use a device because it belongs to a group, without a call on it: who
//! frees it has to wait for them.

use super::Device;
use crate::connection::ThreadMark;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

#[derive(Debug, Default)]
struct Inside {
    threads: Vec<ThreadMark>,
    /// The device is being freed.
    leaving: bool,
}

/// Who is in a device.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    inside: Mutex<Inside>,
    left: Condvar,
}

impl Visitors {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn are_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// From now on nobody comes in. Whether this thread may wait for those inside: it
    /// is not one of them.
    pub(super) fn begin_leaving(&self) -> bool {
        let mut inside = self.lock();
        inside.leaving = true;
        !inside.threads.contains(&ThreadMark::here())
    }

    /// Waits until nobody is inside.
    pub(super) fn wait(&self) {
        let mut inside = self.lock();
        while !inside.threads.is_empty() {
            inside = self
                .left
                .wait(inside)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// This thread is inside, until this is dropped.
#[derive(Debug)]
struct Stay(Arc<Visitors>);

impl Drop for Stay {
    fn drop(&mut self) {
        let here = ThreadMark::here();
        let mut inside = self.0.lock();
        if let Some(at) = inside.threads.iter().position(|thread| *thread == here) {
            inside.threads.swap_remove(at);
        }
        self.0.left.notify_all();
    }
}

/// This thread is in a device.
#[derive(Debug)]
pub(super) struct Visit {
    /// Let go of first: who frees the device closes it.
    device: Arc<Device>,
    _stay: Stay,
}

impl Visit {
    /// Unless the device is gone, or being freed.
    pub(super) fn new(visitors: &Arc<Visitors>, device: &Weak<Device>) -> Option<Self> {
        let mut inside = visitors.lock();
        if inside.leaving {
            return None;
        }
        inside.threads.push(ThreadMark::here());
        drop(inside);
        let stay = Stay(Arc::clone(visitors));
        Some(Self {
            device: device.upgrade()?,
            _stay: stay,
        })
    }

    pub(super) fn is(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.device, device)
    }
}

impl Deref for Visit {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}
