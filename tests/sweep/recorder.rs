//! Writes down what the back-end asks for.

use crate::common::file;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};
use vhost_user_frontend::message::{BackendRequest, Iotlb, ShmemArea, iotlb};
use vhost_user_frontend::{BackendClient, BackendHandler, HostNotifier, Uuid};

/// See the module.
pub struct Recorder {
    client: Weak<BackendClient>,
    log: Mutex<Vec<String>>,
    /// What begins so fails with that.
    failing: Mutex<Option<(&'static str, i32)>>,
    /// A miss is answered at once.
    posts: Mutex<bool>,
}

impl Recorder {
    pub fn new(client: &Arc<BackendClient>) -> Arc<Self> {
        Arc::new(Self {
            client: Arc::downgrade(client),
            log: Mutex::default(),
            failing: Mutex::default(),
            posts: Mutex::default(),
        })
    }

    pub fn fail(&self, what: &'static str, result: i32) {
        *self.failing.lock().unwrap() = Some((what, result));
    }

    pub fn post(&self) {
        *self.posts.lock().unwrap() = true;
    }

    /// What was written since.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Whether that was written, and not taken yet.
    pub fn has(&self, what: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line == what)
    }

    fn say(&self, what: String) -> i32 {
        let failing = *self.failing.lock().unwrap();
        let result = failing.filter(|(name, _)| what.starts_with(name));
        self.log.lock().unwrap().push(what);
        result.map_or(0, |(_, result)| result)
    }
}

impl BackendHandler for Recorder {
    fn handles(&self, _: BackendRequest) -> bool {
        true
    }
    fn iotlb_miss(&self, iova: u64, perm: u8) -> i32 {
        if *self.posts.lock().unwrap() {
            let entry = Iotlb {
                iova,
                size: 0x1000,
                user_addr: iova,
                perm,
                kind: iotlb::UPDATE,
                padding: [0; 6],
            };
            if let Err(error) = self.client.upgrade().unwrap().post_iotlb(&entry) {
                self.say(error.to_string());
            }
        }
        self.say(format!("miss {iova:#x} {perm}"))
    }
    fn host_notifier(&self, ring: u8, notifier: Option<HostNotifier>) -> i32 {
        self.say(match notifier {
            Some(HostNotifier { offset, size, .. }) => {
                format!("notifier {ring} {offset:#x} {size:#x}")
            }
            None => format!("notifier {ring} gone"),
        })
    }
    fn shared_object_lookup(&self, uuid: &Uuid) -> Result<OwnedFd, i32> {
        match self.say(format!("lookup {}", uuid[0])) {
            0 => Ok(file(2).try_clone_to_owned().unwrap()),
            code => Err(code),
        }
    }
    fn shmem_map(&self, area: &ShmemArea, _: OwnedFd) -> i32 {
        let ShmemArea {
            shmid,
            shm_offset,
            len,
            fd_offset,
            flags,
            ..
        } = area;
        self.say(format!(
            "map {shmid} {shm_offset:#x} {len:#x} from {fd_offset:#x} flags {flags}"
        ))
    }
    fn shmem_unmap(&self, area: &ShmemArea) -> i32 {
        let ShmemArea {
            shmid,
            shm_offset,
            len,
            ..
        } = area;
        self.say(format!("unmap {shmid} {shm_offset:#x} {len:#x}"))
    }
    fn config_changed(&self) {
        self.say("config".to_owned());
    }
    fn vring_call(&self, ring: u8) {
        self.say(format!("call {ring}"));
    }
    fn vring_err(&self, ring: u8) {
        self.say(format!("err {ring}"));
    }
    fn shared_object_added(&self, uuid: &Uuid) {
        self.say(format!("added {}", uuid[0]));
    }
    fn shared_object_removed(&self, uuid: &Uuid) {
        self.say(format!("removed {}", uuid[0]));
    }
}
