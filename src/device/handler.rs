//! What the back-end asks: for the caller's functions, and what the library wants to
//! hear itself.

use crate::backend_client::{BackendHandler, HostNotifier, Uuid};
use crate::message::{BackendRequest, Iotlb, ShmemArea};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The caller's handler, and the news that the library wants for itself.
pub(super) struct Handler {
    pub(super) theirs: Option<Arc<dyn BackendHandler>>,
    pub(super) changed: Arc<AtomicBool>,
}

const UNHANDLED: i32 = -libc::EOPNOTSUPP;

impl BackendHandler for Handler {
    fn handles(&self, request: BackendRequest) -> bool {
        let theirs = self.theirs.as_ref();
        request == BackendRequest::ConfigChange || theirs.is_some_and(|it| it.handles(request))
    }
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.iotlb_miss(iova, perm))
    }
    fn iotlb_access_fail(&self, message: &Iotlb) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.iotlb_access_fail(message))
    }
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.host_notifier(ring, notifier))
    }
    fn shared_object_lookup(&self, uuid: &Uuid) -> std::result::Result<OwnedFd, i32> {
        self.theirs
            .as_ref()
            .map_or(Err(UNHANDLED), |it| it.shared_object_lookup(uuid))
    }
    fn shmem_map(&self, area: &ShmemArea, fd: OwnedFd) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.shmem_map(area, fd))
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        self.theirs
            .as_ref()
            .map_or(UNHANDLED, |it| it.shmem_unmap(area))
    }
    fn config_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }
    fn vring_call(&self, ring: u8) {
        if let Some(it) = &self.theirs {
            it.vring_call(ring);
        }
    }
    fn vring_err(&self, ring: u8) {
        if let Some(it) = &self.theirs {
            it.vring_err(ring);
        }
    }
    fn shared_object_added(&self, uuid: &Uuid) {
        if let Some(it) = &self.theirs {
            it.shared_object_added(uuid);
        }
    }
    fn shared_object_removed(&self, uuid: &Uuid) {
        if let Some(it) = &self.theirs {
            it.shared_object_removed(uuid);
        }
    }
}
