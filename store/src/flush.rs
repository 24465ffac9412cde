//! Makes what a pull wrote survive a power cut, in the background.
//!
//! ```text
//!   layer:  write back its files, a few megabytes at a time ─▶ record with durable=true, fsync
//!   image:  all its layers durable? ─▶ fsync its blobs ─▶ fsync its record; no lock is held
//! ```
//!
//! There is no fsync for each file (20,000 flushes of the device's cache), and no `syncfs` where it can be avoided (it
//! waits for what everybody else wrote, and fills the queue that other records' fsyncs stand in). Instead the data goes
//! out with `sync_file_range`, which also allocates its blocks; the fsync of the record that follows commits the journal
//! with all that came before it, and flushes the device's cache. That holds for ext4 and XFS, whose journals keep the
//! order of changes. Elsewhere (btrfs, f2fs, …) it is `syncfs` after all.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::{Layer, LayerRecord};
use crate::{Inner, Store, recover, sys};

/// Bytes on their way to the device at a time; files of no data cost only their inodes.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_FILES: usize = 128;
/// A layer waits for running pulls, which need the disk and the processors, but only so long.
const PATIENCE: Duration = Duration::from_secs(20);

const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;

impl Store {
    /// Makes everything that was pulled durable. For a clean stop: what is not flushed then, a reboot drops.
    pub async fn flush(&self) {
        let inner = self.0.clone();
        inner.hurry.store(true, Ordering::Release);
        let waited = tokio::task::spawn_blocking(move || {
            inner.flusher.wait();
            inner.hurry.store(false, Ordering::Release);
        });
        // Cancelled only when the runtime ends.
        let _ = waited.await;
    }
}

impl Inner {
    pub(crate) fn flush_layer_soon(self: &Arc<Self>, layer: &Arc<Layer>) {
        let (inner, layer, since) = (Arc::downgrade(self), Arc::downgrade(layer), Instant::now());
        self.flusher.push(move || {
            let Some(inner) = inner.upgrade() else { return };
            inner.wait_for_pulls(since);
            // Nobody may need it any more; and nobody may while this holds it, so it is for us to look then.
            let Some(layer) = layer.upgrade() else { return };
            if let Err(error) = inner.flush_layer(&layer)
                && inner.layout.layer(&layer.short).exists()
            {
                tracing::warn!(layer = layer.short, %error, "cannot make a layer durable: a reboot will drop it");
            }
            drop(layer);
            inner.sweep();
        });
    }

    pub(crate) fn flush_image_soon(self: &Arc<Self>, id: Digest) {
        let inner = Arc::downgrade(self);
        self.flusher.push(move || {
            let Some(inner) = inner.upgrade() else { return };
            if let Err(error) = inner.flush_image(&id) {
                tracing::warn!(image = %id, %error, "cannot make an image durable: a reboot may drop it");
            }
            // It may have been removed while this held its layers.
            inner.sweep();
        });
    }

    fn wait_for_pulls(&self, since: Instant) {
        let wait = || self.pulls.load(Ordering::Acquire) > 0 && !self.hurry.load(Ordering::Acquire);
        while wait() && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn flush_layer(&self, layer: &Layer) -> Result<()> {
        if layer.is_durable() {
            return Ok(());
        }
        let dir = self.layout.layer(&layer.short);
        let flush = || {
            write_back_tree(&dir.join("fs"))?;
            let root = File::open(&dir)?;
            if !matches!(rustix::fs::fstatfs(&root)?.f_type, EXT4 | XFS) {
                rustix::fs::syncfs(&root)?;
            }
            Ok(())
        };
        flush().map_err(Error::io("flush", &dir))?;
        let record = LayerRecord { durable: true, ..layer.record.clone() };
        self.disk.write(&dir.join(recover::RECORD), &record)?;
        // The name of the directory itself.
        self.disk.sync_dir(&self.layout.layers())?;
        layer.durable.store(true, Ordering::Release);
        Ok(())
    }

    /// Queues what an earlier try did not make durable.
    pub(crate) fn flush_again(self: &Arc<Self>, image: &Image) {
        if image.durable.load(Ordering::Acquire) {
            return;
        }
        image.held.iter().filter(|layer| !layer.is_durable()).for_each(|layer| self.flush_layer_soon(layer));
        self.flush_image_soon(image.id.clone());
    }

    fn flush_image(&self, id: &Digest) -> Result<()> {
        let Some(image) = self.index().images.get(id).cloned() else { return Ok(()) };
        if image.durable.load(Ordering::Acquire) || !image.held.iter().all(|layer| layer.is_durable()) {
            return Ok(());
        }
        let blobs = image.record.blobs.keys().map(|blob| self.layout.blob(blob));
        for path in blobs.chain([self.layout.image(id)]) {
            match self.disk.sync(&path) {
                // Removed meanwhile. Who writes it again has it flushed again.
                Err(error) if error.is_not_found() => return Ok(()),
                other => other?,
            }
        }
        image.durable.store(true, Ordering::Release);
        Ok(())
    }
}

/// Writes the data of all files below a directory to the device. A file that is gone meanwhile needs no flush.
fn write_back_tree(root: &Path) -> io::Result<()> {
    let mut batch: Vec<File> = Vec::new();
    let mut bytes = 0;
    let mut todo: Vec<PathBuf> = vec![root.to_owned()];
    let finish = |batch: &mut Vec<File>| batch.drain(..).try_for_each(|file| sys::write_back(file.as_fd(), true));
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            }
            if !kind.is_file() {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(entry.path(), flags, Mode::empty())?;
            bytes += rustix::fs::fstat(&file)?.st_size as u64;
            sys::write_back(file.as_fd(), false)?;
            batch.push(file.into());
            if bytes >= BATCH_BYTES || batch.len() >= BATCH_FILES {
                finish(&mut batch)?;
                bytes = 0;
            }
        }
    }
    finish(&mut batch)
}
