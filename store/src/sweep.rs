//! What nobody needs any more: renamed to `trash/`, where it counts for nothing, and deleted in the background.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Inner;
use crate::durable::{self, Disk};
use crate::error::Result;
use crate::layer::Layer;

/// A layer of a pull that failed or was cut off stays so long for the next try.
pub(crate) const KEEP: Duration = Duration::from_secs(600);

/// A directory in `tmp/`: published under its name, or discarded.
#[derive(Debug)]
pub(crate) struct Temp {
    inner: Arc<Inner>,
    pub(crate) path: PathBuf,
    published: bool,
}

impl Temp {
    /// Renames it into place.
    pub(crate) fn publish(mut self, to: &Path) -> durable::Result<()> {
        self.inner.disk.rename(&self.path, to)?;
        self.published = true;
        Ok(())
    }

    /// The name that nothing else in the store has.
    pub(crate) fn short(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.inner.discard(&self.path)
        {
            // The next start finds it.
            tracing::warn!(%error, "cannot discard a temporary directory");
        }
    }
}

/// Ten characters that no other call returns: 50 bits of a hash that the standard library seeds from the kernel.
fn random_name() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bits = RandomState::new().hash_one(0);
    (0..10).map(|i| char::from(LETTERS[(bits >> (i * 5)) as usize % 32])).collect()
}

impl Inner {
    /// Makes a fresh directory in `tmp/`.
    pub(crate) fn temp_dir(self: &Arc<Self>, mode: u32) -> Result<Temp> {
        let path = self.layout.tmp().join(random_name());
        self.disk.make_dir(&path, mode)?;
        Ok(Temp { inner: self.clone(), path, published: false })
    }

    /// Takes a directory out of the store at once, and its files away in the background.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        let trash = self.layout.trash().join(random_name());
        self.disk.rename(path, &trash)?;
        let disk = self.disk.clone();
        self.cleaner.push(move || delete(&disk, &trash));
        Ok(())
    }

    /// Discards the layers that no image, snapshot, pull or caller holds.
    pub(crate) fn sweep(&self) {
        let unused = {
            let mut index = self.index();
            let now = Instant::now();
            index.recent.retain(|(since, _)| now.duration_since(*since) < KEEP);
            index.layers.take_unused()
        };
        for layer in unused {
            if let Err(error) = self.discard(&self.layout.layer(&layer.short)) {
                tracing::warn!(layer = layer.short, %error, "cannot discard a layer that nothing uses");
            }
        }
    }

    /// Keeps a layer for a while though nothing uses it.
    pub(crate) fn keep(&self, layer: Arc<Layer>) {
        self.index().recent.push((Instant::now(), layer));
    }
}

pub(crate) fn delete(disk: &Disk, path: &Path) {
    if let Err(error) = disk.remove_tree(path) {
        tracing::warn!(%error, "cannot delete what is in the trash");
    }
}
