//! What tests of namespaces share: a state directory whose mounts go away with it. Root.
#![allow(dead_code)] // each test binary uses its own part
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crisp_netns::Pins;
use rustix::mount::UnmountFlags;

/// A directory for one test, with a name that no other test or run has.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    pub(crate) name: String,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ct{:x}x{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&format!("crisp-netns-{name}-")).tempdir().unwrap();
        Self { dir, name }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.path("netns")
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::open_in(&self.state(), &self.name, &self.netns_dir()).unwrap()
    }

    /// Every mount below the directory, as the kernel lists them.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.map(PathBuf::from).filter(|point| point.starts_with(self.dir.path())).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts().iter().rev() {
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
    }
}

/// Takes all that is pinned below a state directory away for good.
pub(crate) fn destroy(state: &Path, pins: Pins) {
    for id in pins.list().unwrap() {
        pins.remove(&id).unwrap();
    }
    drop(pins);
    let dir = state.join("ns");
    for mount in [dir.join("mnt"), dir.clone()] {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH).unwrap();
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// The identity of a namespace: its inode.
pub(crate) fn inode(path: impl AsRef<Path>) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}

/// Runs `work` on a thread that no longer shares its root directory, so that it can change its mount namespace.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[allow(deprecated)] // sound for this flag; the replacement is unsafe for the sake of others
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::unshare(rustix::thread::UnshareFlags::FS).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Where the Go parts of the test bed are.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("CRISP_CACHE").map_or_else(|| PathBuf::from("/var/cache/crisp"), PathBuf::from)
}
