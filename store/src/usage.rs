//! How much space the store takes: CRI's ImageFsInfo.
//!
//! For images the sizes are in the records. For what containers wrote there is no record: it is measured in the
//! background when somebody asks and the last figure is old.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::{Store, lock};

/// Space on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// A directory on it.
    pub mountpoint: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A figure of the writable layers younger than this is not measured anew.
const FRESH: Duration = Duration::from_secs(10);

/// The last figure of the writable layers.
#[derive(Debug, Default)]
pub(crate) struct Writable(Mutex<Measured>);

#[derive(Debug, Default)]
struct Measured {
    bytes: u64,
    inodes: u64,
    at: Option<Instant>,
    running: bool,
}

impl Store {
    /// What images take, and what the writable layers of snapshots take. Looks at no file: the second figure is the
    /// last one measured, and asking starts the next measurement.
    pub fn usage(&self) -> (Usage, Usage) {
        let inner = &self.0;
        inner.sweep();
        let index = inner.index();
        let (mut bytes, mut inodes) = (0, 0);
        for layer in index.layers.iter() {
            bytes += layer.record.bytes;
            inodes += layer.record.inodes;
        }
        let blobs: BTreeMap<_, _> = index.images.values().flat_map(|image| &image.record.blobs).collect();
        bytes += blobs.values().copied().sum::<u64>();
        inodes += (blobs.len() + index.images.len()) as u64;
        drop(index);
        let images = Usage { mountpoint: inner.layout.root().to_owned(), bytes, inodes };
        let (bytes, inodes) = self.writable_usage();
        (images, Usage { mountpoint: inner.layout.snapshots(), bytes, inodes })
    }

    fn writable_usage(&self) -> (u64, u64) {
        let mut measured = lock(&self.0.writable.0);
        if !measured.running && measured.at.is_none_or(|at| at.elapsed() >= FRESH) {
            measured.running = true;
            let inner = Arc::downgrade(&self.0);
            self.0.cleaner.push(move || {
                let Some(inner) = inner.upgrade() else { return };
                let (bytes, inodes) = measure(&inner.layout.snapshots());
                *lock(&inner.writable.0) = Measured { bytes, inodes, at: Some(Instant::now()), running: false };
            });
        }
        (measured.bytes, measured.inodes)
    }
}

/// Bytes on disk and inodes of a tree; entries that vanish meanwhile are left out.
pub(crate) fn measure(root: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut linked = HashSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&dir) else { continue };
        bytes += meta.blocks() * 512;
        inodes += 1;
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.nlink() < 2 || linked.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
                inodes += 1;
            }
        }
    }
    (bytes, inodes)
}
