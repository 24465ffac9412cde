//! Snapshots: what a container's root file system is mounted from.
//!
//! ```text
//!   snapshots/<id>/record.json   the layers, so that they stay while it is there
//!   snapshots/<id>/upper         what the container changes
//!   snapshots/<id>/work          overlayfs' own
//! ```
//!
//! A snapshot is made in `tmp/` and renamed into place whole; removing renames it to `trash/`. Both are fresh each time:
//! overlayfs refuses to mount an upper directory again that was mounted `volatile`. A view has no layers of its own to
//! write to: its `upper` is the topmost *lower* directory and only carries the attributes of the root.
//!
//! Mount with the working directory at `layers_dir`: the relative paths keep the options of 128 layers below the one
//! page that old kernels take.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::copy_out::copy_out;
use crate::durable::Record;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::Layer;
use crate::merged::{Merged, Node};
use crate::{Store, recover};

/// What `snapshots/<id>/record.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// Short ids, topmost first.
    pub(crate) layers: Vec<String>,
    /// It is a view.
    pub(crate) view: bool,
}

impl Record for SnapshotRecord {
    const KIND: &'static str = "snapshot";
    const VERSION: u32 = 1;
}

/// A snapshot and the layers that it needs.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) view: bool,
    /// All its layers are there.
    pub(crate) whole: bool,
    /// Topmost first.
    pub(crate) layers: Vec<Arc<Layer>>,
}

/// The directories of a container's root file system.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The caller's name for it.
    pub id: String,
    /// Working directory for the mount: what `lowers` are relative to.
    pub layers_dir: PathBuf,
    /// Lower directories, topmost first.
    pub lowers: Vec<String>,
    /// Upper directory.
    pub upper: PathBuf,
    /// Work directory.
    pub work: PathBuf,
    held: Vec<Arc<Layer>>,
}

/// The directories of a read-only image volume.
#[derive(Debug, Clone)]
pub struct View {
    /// The caller's name for it.
    pub id: String,
    /// Working directory for the mount: what `lowers` are relative to.
    pub layers_dir: PathBuf,
    /// Lower directories, topmost first: always two or more, as an overlay without upper directory needs.
    pub lowers: Vec<String>,
}

/// Longest snapshot id.
const MAX_ID: usize = 128;

fn check_id(id: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(good) {
        return Err(Error::SnapshotId(id.to_owned()));
    }
    Ok(())
}

impl Store {
    /// Makes a fresh snapshot of an image; one of that id that is there goes. Writes no data and waits for no disk.
    pub fn prepare(&self, id: &str, image: &Image) -> Result<Snapshot> {
        let held = self.make_snapshot(id, image, false)?;
        Ok(self.as_snapshot(id, &held))
    }

    /// Pins an image's layers under an id, for a read-only mount of them. Removed like a snapshot.
    pub fn view(&self, id: &str, image: &Image) -> Result<View> {
        let held = self.make_snapshot(id, image, true)?;
        let mut lowers = vec![format!("../snapshots/{id}/upper")];
        lowers.extend(lower_paths(&held));
        Ok(View { id: id.to_owned(), layers_dir: self.0.layout.layers(), lowers })
    }

    /// The snapshot of this id, if there is one that can be mounted. A view is none.
    pub fn snapshot(&self, id: &str) -> Option<Snapshot> {
        let held = self.0.index().snapshots.get(id).filter(|held| !held.view && held.whole)?.layers.clone();
        Some(self.as_snapshot(id, &held))
    }

    /// Ids of all snapshots and views, sorted; also of those whose layers a power cut took.
    pub fn snapshots(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.0.index().snapshots.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// Removes a snapshot or view; that there is none is no error. Its files go in the background.
    pub fn remove_snapshot(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let path = self.0.layout.snapshot(id);
        if path.exists() {
            self.0.discard(&path)?;
        }
        self.0.index().snapshots.remove(id);
        self.0.sweep();
        Ok(())
    }

    fn make_snapshot(&self, id: &str, image: &Image, view: bool) -> Result<Vec<Arc<Layer>>> {
        check_id(id)?;
        let inner = &self.0;
        let held: Vec<_> = stack(&image.held);
        let temp = inner.temp_dir(0o711)?;
        let record = SnapshotRecord { layers: held.iter().map(|layer| layer.short.clone()).collect(), view };
        inner.disk.write_volatile(&temp.path.join(recover::RECORD), &record)?;
        let upper = temp.path.join("upper");
        inner.disk.make_dir(&upper, 0o755)?;
        if !view {
            inner.disk.make_dir(&temp.path.join("work"), 0o700)?;
        }
        copy_root(held.iter().find(|layer| layer.record.root_listed).map(|top| inner.layer_root(&top.short)), &upper)?;
        let path = inner.layout.snapshot(id);
        if path.exists() {
            inner.discard(&path)?;
        }
        temp.publish(&path)?;
        inner.index().snapshots.insert(id.to_owned(), Held { view, whole: true, layers: held.clone() });
        Ok(held)
    }

    fn as_snapshot(&self, id: &str, held: &[Arc<Layer>]) -> Snapshot {
        let path = self.0.layout.snapshot(id);
        Snapshot {
            id: id.to_owned(),
            layers_dir: self.0.layout.layers(),
            lowers: lower_paths(held),
            upper: path.join("upper"),
            work: path.join("work"),
            held: held.to_vec(),
        }
    }
}

/// The layers to stack, topmost first. overlayfs refuses a directory that occurs twice; the upper one of the two
/// decides everything that the lower one would have decided, so the lower one goes.
fn stack(layers: &[Arc<Layer>]) -> Vec<Arc<Layer>> {
    let mut stack: Vec<Arc<Layer>> = Vec::with_capacity(layers.len());
    for layer in layers.iter().rev() {
        if !stack.iter().any(|above| above.short == layer.short) {
            stack.push(layer.clone());
        }
    }
    stack
}

fn lower_paths(held: &[Arc<Layer>]) -> Vec<String> {
    held.iter().map(|layer| format!("{}/fs", layer.short)).collect()
}

/// overlayfs shows the root of the upper directory as the root of the whole.
fn copy_root(from: Option<PathBuf>, upper: &Path) -> Result<()> {
    let Some(from) = from else { return Ok(()) };
    let copy = || {
        let meta = std::fs::metadata(&from)?;
        std::os::unix::fs::chown(upper, Some(meta.uid()), Some(meta.gid()))?;
        std::fs::set_permissions(upper, std::fs::Permissions::from_mode(meta.mode() & 0o7777))
    };
    copy().map_err(Error::io("copy the attributes of", &from))
}

impl Snapshot {
    fn merged(&self) -> Result<Merged> {
        let lowers: Vec<_> = self.held.iter().map(|layer| self.layers_dir.join(&layer.short).join("fs")).collect();
        let all = std::iter::once(self.upper.as_path()).chain(lowers.iter().map(PathBuf::as_path));
        Merged::open(all).map_err(Error::io("open the layers of", &self.upper))
    }

    /// Reads a regular file of the merged tree, `etc/passwd` for example; links are resolved inside. `None` if there is
    /// no such file.
    ///
    /// # Errors
    /// The file is larger than `max` bytes, or no regular file, or the disk fails.
    pub fn read_file(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
        use std::io::Read;
        let shown = Path::new("/").join(path);
        let read = |merged: Merged| -> std::io::Result<Option<Vec<u8>>> {
            let Some(node) = merged.get(path.as_bytes(), true)? else { return Ok(None) };
            let Node::Leaf(leaf) = node else { return Err(std::io::ErrorKind::IsADirectory.into()) };
            let mut bytes = Vec::new();
            leaf.open()?.take(max + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > max {
                return Err(std::io::Error::other(format!("it is larger than {max} bytes")));
            }
            Ok(Some(bytes))
        };
        read(self.merged()?).map_err(Error::io("read in the image", &shown))
    }

    /// Copies the directory `path` of the merged tree, as an image's VOLUME wants it, into `dest`, an existing directory
    /// that only the caller writes to: owners, modes, times, extended attributes, hard links; symbolic links as links.
    /// `dest` itself takes the attributes of `path`. False if the image has no such directory.
    ///
    /// # Errors
    /// `path` is no directory, or the disk fails or is full; what was copied until then stays.
    pub fn copy_out(&self, path: &str, dest: &Path) -> Result<bool> {
        copy_out(&self.merged()?, path.as_bytes(), dest).map_err(Error::io("copy an image's volume to", dest))
    }
}
