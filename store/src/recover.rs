//! Opens a store: what a crash, a reboot or a power cut left becomes a whole again.
//!
//! | found | then |
//! |---|---|
//! | anything in `tmp/`, `trash/`, half-written files | deleted in the background |
//! | a layer without a good record, or written in another boot and not durable | discarded |
//! | a snapshot without a good record | discarded |
//! | a snapshot whose layers are not there | kept until its container is removed, but cannot be mounted any more |
//! | an image without a good record, blobs that hash to their names, or all its layers | its record is removed |
//! | blobs that no image names | removed |
//! | layers that nothing names | kept for ten minutes: a pull that was cut off may go on |
//! | a record that cannot be read, or that a newer version wrote | an error: what it stands for may be in use |

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::config::Document;
use crate::digest::{Digest, Verifier};
use crate::durable::{self, Disk, ErrorKind};
use crate::error::{Error, Result};
use crate::image::{Image, ImageRecord};
use crate::layer::{Layer, LayerRecord, chain_ids};
use crate::layout::Layout;
use crate::snapshot::{Held, SnapshotRecord};
use crate::sweep::delete;
use crate::{Inner, Store};

/// The record of a layer or snapshot, in its directory.
pub(crate) const RECORD: &str = "record.json";
/// Largest manifest, index or configuration; the registry client allows no larger ones.
const MAX_BLOB: u64 = 8 << 20;

/// Makes the directories and takes the lock; the lock is held as long as the file.
pub(crate) fn prepare(layout: &Layout, disk: &Disk) -> Result<std::fs::File> {
    // Containers with user namespaces reach their layers and upper directories by path: these let them through.
    for (dir, mode) in [
        (layout.root().to_owned(), 0o711),
        (layout.layers(), 0o711),
        (layout.snapshots(), 0o711),
        (layout.tmp(), 0o711),
        (layout.images(), 0o700),
        (layout.blobs(), 0o700),
        (layout.trash(), 0o700),
    ] {
        disk.make_dir(&dir, mode)?;
    }
    let path = layout.root().join("lock");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(layout.root().to_owned())),
        Err(e) => Err(Error::io("lock", &path)(e.into())),
    }
}

/// The boot that the machine is in.
pub(crate) fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().to_owned())
}

/// Damage is a reason to drop what cannot be used; a disk that fails, or a newer version's record, is none.
fn unless_damaged<T>(read: durable::Result<T>) -> Result<Result<T, String>> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(error) if matches!(error.kind, ErrorKind::Damaged(_)) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

impl Store {
    pub(crate) fn recover(&self) -> Result<()> {
        let inner = &self.0;
        inner.empty(&inner.layout.trash())?;
        for name in inner.disk.list(&inner.layout.tmp())? {
            inner.discard(&inner.layout.tmp().join(name))?;
        }
        for dir in [inner.layout.images(), inner.layout.blobs(), inner.layout.tmp()] {
            inner.disk.sweep(&dir)?;
        }
        for short in inner.disk.list(&inner.layout.layers())? {
            inner.recover_layer(&short)?;
        }
        for id in inner.disk.list(&inner.layout.snapshots())? {
            inner.recover_snapshot(&id)?;
        }
        for name in inner.disk.list(&inner.layout.images())? {
            inner.recover_image(&name)?;
        }
        inner.recover_blobs()?;
        let layers: Vec<_> = inner.index().layers.iter().cloned().collect();
        for layer in layers {
            if !layer.is_durable() {
                inner.flush_layer_soon(&layer);
            }
            inner.keep(layer);
        }
        let images: Vec<_> = inner.index().images.keys().cloned().collect();
        images.into_iter().for_each(|id| inner.flush_image_soon(id));
        Ok(())
    }
}

impl Inner {
    /// Deletes what is in a directory now, in the background.
    fn empty(&self, dir: &Path) -> Result<()> {
        for name in self.disk.list(dir)? {
            let (disk, path) = (self.disk.clone(), dir.join(name));
            self.cleaner.push(move || delete(&disk, &path));
        }
        Ok(())
    }

    fn recover_layer(&self, short: &str) -> Result<()> {
        let dir = self.layout.layer(short);
        let why = match unless_damaged(self.disk.read::<LayerRecord>(&dir.join(RECORD)))? {
            Ok(None) => "it has no record".to_owned(),
            Err(damage) => damage,
            Ok(Some(record)) if !record.durable && record.boot_id != self.boot_id => {
                "it was not flushed before the machine went down".to_owned()
            }
            Ok(Some(record)) => {
                self.disk.sweep(&dir)?;
                match self.index().layers.insert(Arc::new(Layer::new(short.to_owned(), record))) {
                    true => return Ok(()),
                    false => "another one serves as well".to_owned(),
                }
            }
        };
        tracing::info!(layer = short, why, "discarding a layer");
        self.discard(&dir)
    }

    fn recover_snapshot(&self, id: &str) -> Result<()> {
        let dir = self.layout.snapshot(id);
        let why = match unless_damaged(self.disk.read::<SnapshotRecord>(&dir.join(RECORD)))? {
            Ok(None) => "it has no record".to_owned(),
            Err(damage) => damage,
            Ok(Some(record)) => {
                let mut index = self.index();
                let layers: Vec<_> =
                    record.layers.iter().filter_map(|short| index.layers.get(short).cloned()).collect();
                let whole = layers.len() == record.layers.len();
                if !whole {
                    tracing::warn!(snapshot = id, "layers of a snapshot are gone: it cannot be mounted any more");
                }
                index.snapshots.insert(id.to_owned(), Held { view: record.view, whole, layers });
                return Ok(());
            }
        };
        tracing::info!(snapshot = id, why, "discarding a snapshot");
        self.discard(&dir)
    }

    fn recover_image(&self, name: &str) -> Result<()> {
        let path = self.layout.images().join(name);
        let why = match unless_damaged(self.disk.read::<ImageRecord>(&path))? {
            Ok(None) => return Ok(()),
            Err(damage) => damage,
            Ok(Some(record)) if self.layout.image(&record.id) != path => {
                "its record has another image's name".to_owned()
            }
            Ok(Some(record)) => match self.assemble(record)? {
                Ok(image) => {
                    self.index().images.insert(image.id.clone(), Arc::new(image));
                    return Ok(());
                }
                Err(why) => why,
            },
        };
        tracing::info!(record = name, why, "dropping an image");
        Ok(self.disk.remove(&path)?)
    }

    /// Makes an image of its record; or says what it lacks.
    fn assemble(&self, record: ImageRecord) -> Result<Result<Image, String>> {
        let mut config = None;
        for (digest, size) in &record.blobs {
            let blob = match unless_damaged(self.disk.read_bytes(&self.layout.blob(digest), MAX_BLOB))? {
                Ok(Some(blob)) => blob,
                Ok(None) => return Ok(Err(format!("its blob {digest} is gone"))),
                Err(damage) => return Ok(Err(damage)),
            };
            let mut verifier = Verifier::new(digest, *size);
            if let Err(error) = verifier.update(&blob).and_then(|()| verifier.finish()) {
                return Ok(Err(error.to_string()));
            }
            if *digest == record.id {
                config = Some(blob);
            }
        }
        let Some(config) = config else { return Ok(Err("it has no configuration".into())) };
        let document = match Document::parse(&config) {
            Ok(document) => document,
            Err(error) => return Ok(Err(format!("configuration: {error}"))),
        };
        let diff_ids: Vec<Digest> = record.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let index = self.index();
        let held: Result<Vec<_>, _> = chain_ids(&diff_ids)
            .iter()
            .zip(&diff_ids)
            .map(|(chain, diff)| {
                index.layers.find(chain, diff).cloned().ok_or_else(|| format!("its layer {diff} is gone"))
            })
            .collect();
        Ok(held.map(|held| Image::new(record, &document, held, &self.pinned)))
    }

    fn recover_blobs(&self) -> Result<()> {
        let images: HashMap<_, _> = self.index().images.clone().into_iter().collect();
        let named: BTreeSet<&str> =
            images.values().flat_map(|image| image.record.blobs.keys()).map(Digest::as_str).collect();
        for name in self.disk.list(&self.layout.blobs())? {
            if !named.contains(name.as_str()) {
                self.disk.remove(&self.layout.blobs().join(name))?;
            }
        }
        Ok(())
    }
}
