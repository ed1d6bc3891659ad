//! What the tests of the device's parts share.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longer than anything takes here, also on a machine that is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// An empty directory for one test, and the descriptors that were open before:
/// they are compared, so there is one test at a time.
pub(super) struct Place {
    directory: PathBuf,
    open: BTreeMap<String, PathBuf>,
    _one_at_a_time: MutexGuard<'static, ()>,
}

fn open_descriptors() -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let sockets = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let target = std::fs::read_link(entry.path()).ok()?;
        // Only what the tests make: others may run at the same time.
        let text = target.to_str()?;
        let ours = text.starts_with("socket:") || text.contains("/vuf-device");
        ours.then(|| (entry.file_name().to_string_lossy().into_owned(), target))
    });
    sockets.collect()
}

impl Place {
    pub(super) fn new(name: &str) -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("vuf-device.{}.{name}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        Self {
            directory,
            open: open_descriptors(),
            _one_at_a_time: guard,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
        if std::thread::panicking() {
            return;
        }
        // Tests that run beside this one have sockets, too, but not for long.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut left = open_descriptors();
            left.retain(|fd, target| self.open.get(fd) != Some(target));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left open: {left:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
