//! Where a test takes hold of the disk: each effect passes a [`Seam`].

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

/// An effect on the disk, as a [`Seam`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A temporary file is created and filled.
    Write,
    /// A file is flushed to the device.
    Sync,
    /// A file or directory takes its name.
    Rename,
    /// A directory is flushed to the device.
    SyncDir,
    /// A file, link or tree is removed.
    Remove,
    /// A directory is made.
    MakeDir,
}

/// Called before each effect; an error takes the place of the effect.
pub trait Seam: Send + Sync + fmt::Debug {
    /// `path` is what the effect is on; for a rename, the new name.
    fn before(&self, effect: Effect, path: &Path) -> io::Result<()>;
}

/// What a [`Countdown`] does at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// This one effect fails with `EIO`.
    Fail,
    /// This one and all later ones fail: as seen from the disk, the program was killed here.
    Die,
    /// The program aborts.
    Abort,
}

/// A [`Seam`] that lets `k` effects pass.
#[derive(Debug)]
pub struct Countdown {
    left: AtomicI64,
    then: Then,
}

impl Countdown {
    /// Lets `k` effects pass, then does `then`.
    pub fn new(k: u32, then: Then) -> Self {
        Self { left: AtomicI64::new(i64::from(k)), then }
    }

    /// From an environment variable that holds k (for a program under test): aborts there.
    pub fn abort_from_env(name: &str) -> Option<Self> {
        let k = std::env::var(name).ok()?.parse().ok()?;
        Some(Self::new(k, Then::Abort))
    }

    /// True once the countdown has ended.
    pub fn reached(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }
}

impl Seam for Countdown {
    fn before(&self, _: Effect, _: &Path) -> io::Result<()> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        match self.then {
            _ if left > 0 => Ok(()),
            Then::Abort => std::process::abort(),
            Then::Fail if left < 0 => Ok(()),
            Then::Fail | Then::Die => Err(rustix::io::Errno::IO.into()),
        }
    }
}
