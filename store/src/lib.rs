//! Images for crisp: pulling, unpacking, layers, snapshots.
//!
//! ```text
//! <root>/
//!   lock                          held by the one process that has the store
//!   layers/<short id>/fs          an unpacked layer, ready to be a lower directory
//!   layers/<short id>/record.json which one it is (diff id, chain id), its size, whether it is durable
//!   images/<config digest>.json   an image: its names, its blobs, its layers
//!   blobs/<digest>                configurations, manifests, indexes; layers are not kept compressed
//!   snapshots/<id>/               record.json, upper, work: a container's root file system
//!   tmp/                          in the making; renamed into place when whole
//!   trash/                        renamed out of place; deleted in the background
//! ```
//!
//! A [`Store`] is the only writer of such a tree. What is on disk are facts; the index in memory is rebuilt from them at
//! open (`recover.rs`). A crash (`kill -9`) at any instruction leaves only things in `tmp/` and `trash/` or layers that
//! nothing uses. A power cut may take away what was not flushed yet (`flush.rs`); it is pulled again.
//!
//! What happens in a pull, in order: `pull.rs` asks the registry, `flight.rs` shares downloads between pulls, `pipeline.rs`
//! verifies and decompresses, `unpack/` writes files, `publish.rs` records the image. Then `snapshot.rs` stacks layers for
//! a container, `names.rs` finds and removes images, `sweep.rs` removes what nothing uses.

mod background;
mod config;
mod copy_out;
pub mod digest;
pub mod durable;
mod error;
mod flight;
mod flush;
mod image;
mod layer;
mod layout;
pub mod media;
mod merged;
mod names;
mod pipeline;
mod progress;
mod publish;
mod pull;
mod recover;
pub mod reference;
pub mod registry;
mod snapshot;
mod sweep;
mod sys;
mod unpack;
mod usage;
mod xattr;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use background::Background;
use digest::Digest;
use durable::Disk;
use layer::{Layer, Layers};
use layout::Layout;

pub use config::ImageConfig;
pub use error::{Error, LayerError, Result};
pub use image::{Image, ImageLayer, pin_pattern};
pub use names::Removed;
pub use pipeline::{Error as ContentError, Limits};
pub use progress::{LayerState, Progress, ProgressEvent};
pub use pull::PullRequest;
pub use snapshot::{Snapshot, View};
pub use unpack::Error as UnpackError;
pub use usage::Usage;

/// How a store works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How registries are reached.
    pub registry: registry::RegistryOptions,
    /// Images that garbage collectors should keep: a name (any tag, if it has none), or the beginning of one and `*`.
    pub pinned: Vec<String>,
    /// Bounds on what a layer may become.
    pub limits: Limits,
    /// Layers that are downloaded and unpacked at once, over all pulls.
    pub layers_at_once: usize,
    /// How long a download goes on after the last caller that waited for it went away.
    pub linger: Duration,
    /// What stands for the present boot; read from the kernel if `None`.
    pub boot_id: Option<String>,
    /// Where records go: the real disk, or one that fails for a test.
    pub disk: Disk,
}

impl Default for Options {
    fn default() -> Self {
        // One layer keeps about two processors busy; another one fills the gaps while it waits for the network.
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            registry: registry::RegistryOptions::default(),
            pinned: Vec::new(),
            limits: Limits::default(),
            layers_at_once: (processors + 1).min(6),
            linger: Duration::from_secs(30),
            boot_id: None,
            disk: Disk::new(),
        }
    }
}

/// The images, layers and snapshots below one directory. A clone is another handle to the same store.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    disk: Disk,
    registry: registry::Registry,
    pinned: Vec<String>,
    limits: Limits,
    linger: Duration,
    boot_id: String,
    index: Mutex<Index>,
    /// Held while image records change: the index is not, so readers never wait for a disk.
    writer: Mutex<()>,
    /// Layers on their way, by chain id.
    flights: Mutex<HashMap<Digest, flight::Flight>>,
    slots: Arc<tokio::sync::Semaphore>,
    /// Running pulls.
    pulls: AtomicUsize,
    /// Somebody waits for the flusher.
    hurry: AtomicBool,
    flusher: Background,
    cleaner: Background,
    writable: usage::Writable,
    _lock: std::fs::File,
}

/// What is there.
#[derive(Debug, Default)]
struct Index {
    layers: Layers,
    images: BTreeMap<Digest, Arc<Image>>,
    snapshots: HashMap<String, snapshot::Held>,
    /// Layers that stay for a while though nothing may use them, and since when.
    recent: Vec<(Instant, Arc<Layer>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks leaves maps that are whole, if perhaps without the last change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        lock(&self.writer)
    }

    /// A layer's files.
    fn layer_root(&self, short: &str) -> PathBuf {
        self.layout.layer(short).join("fs")
    }
}

impl Store {
    /// Opens the store below `root`, whose parent exists, and brings it in order. What takes long is done in the
    /// background.
    ///
    /// # Errors
    /// Another process has it, the registry options make no sense, or the disk fails.
    pub fn open(root: PathBuf, options: Options) -> Result<Self> {
        sys::return_large_blocks();
        let layout = Layout::new(root);
        let Options { registry, pinned, limits, layers_at_once, linger, boot_id, disk } = options;
        let store = Self(Arc::new(Inner {
            _lock: recover::prepare(&layout, &disk)?,
            registry: registry::Registry::new(registry)
                .map_err(|source| Error::Registry { image: "any image".into(), source })?,
            boot_id: boot_id.map_or_else(recover::boot_id, Ok)?,
            index: Mutex::default(),
            writer: Mutex::default(),
            flights: Mutex::default(),
            slots: Arc::new(tokio::sync::Semaphore::new(layers_at_once.max(1))),
            pulls: AtomicUsize::new(0),
            hurry: AtomicBool::new(false),
            flusher: Background::new("store-flush"),
            cleaner: Background::new("store-clean"),
            writable: usage::Writable::default(),
            layout,
            disk,
            // Bad ones are told by whoever reads the configuration.
            pinned: pinned.iter().filter_map(|name| pin_pattern(name).ok()).collect(),
            limits,
            linger,
        }));
        store.recover()?;
        Ok(store)
    }
}
