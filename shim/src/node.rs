//! Everything a request needs, opened once: the one argument of every verb.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crisp_netns::{Network, NetworkOptions, Pins};
use crisp_store::durable::{Disk, Record};
use crisp_store::{Store, registry::RegistryOptions};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::flusher::Flusher;
use crate::host::HostFacts;
use crate::model::{ContainerRecord, Epoch, SandboxRecord};
use crate::ops::Jobs;
use crate::paths::{self, Paths};
use crate::registry::Registry;
use crate::runtimes::Runtimes;
use crate::{epoch, sys};

/// The monitor, as `build.rs` made it.
static MONITOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crisp-monitor"));
/// SHA-256 of [`MONITOR`] in hexadecimal digits, by `build.rs`.
const MONITOR_HASH: &str = env!("CRISP_MONITOR_SHA256");

/// Where and as what the server runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Prefix of everything it names in the kernel.
    pub instance: String,
    /// What survives a reboot.
    pub root: PathBuf,
    /// What belongs to this boot.
    pub state: PathBuf,
}

/// The server's state.
#[derive(Debug)]
pub struct Node {
    pub instance: String,
    pub config: Config,
    pub paths: Paths,
    pub disk: Disk,
    pub flusher: Flusher,
    pub epoch: Epoch,
    pub host: HostFacts,
    pub store: Store,
    pub network: Network,
    pub pins: Pins,
    pub runtimes: Runtimes,
    pub registry: Registry,
    pub jobs: Arc<Jobs>,
    /// The monitor's program, open.
    pub monitor: OwnedFd,
    /// Its path, for the PID namespace holder's root file system.
    pub monitor_path: PathBuf,
    /// Held as long as the server lives: one server a root, a state directory, an instance.
    _locks: [File; 3],
}

/// `format.json`: what a server must understand to use this root.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    /// Features that an older server must not ignore.
    incompatible: Vec<String>,
}

impl Record for Format {
    const KIND: &'static str = "format";
    const VERSION: u32 = 1;
}
impl Record for SandboxRecord {
    const KIND: &'static str = "sandbox";
    const VERSION: u32 = 1;
}
impl Record for ContainerRecord {
    const KIND: &'static str = "container";
    const VERSION: u32 = 1;
}

impl Node {
    /// Opens the roots. Nothing that runs is touched: that is `recover`'s part.
    pub fn open(place: &Place, config: Config) -> Result<Arc<Self>> {
        let paths = Paths::new(&place.root, &place.state);
        for dir in [place.root.clone(), place.state.clone(), paths.sandboxes(), paths.containers(), paths.pods()] {
            make_dir(&dir)?;
        }
        for dir in [paths.container_dirs(), paths.execs(), paths.logs(), paths.all_volumes()] {
            make_dir(&dir)?;
        }
        // Before anything is looked at: recovery removes what no record knows.
        let locks = [
            lock(&paths.lock(), "--root")?,
            lock(&paths.state_lock(), "--state")?,
            lock(&paths::instance_lock(&place.instance), "--instance")?,
        ];
        let disk = Disk::new();
        match disk.read::<Format>(&paths.format())? {
            None => disk.write(&paths.format(), &Format { incompatible: Vec::new() })?,
            Some(format) if format.incompatible.is_empty() => {}
            Some(format) => {
                return Err(Error::Precondition(format!(
                    "{} was written by a newer crisp and needs {}: run that version again",
                    place.root.display(),
                    format.incompatible.join(", ")
                )));
            }
        }
        let (monitor, monitor_path) = install_monitor(&paths)?;
        let subnets = config.network.subnets.iter().filter_map(|subnet| subnet.parse().ok()).collect();
        let network = Network::open(NetworkOptions {
            instance: place.instance.clone(),
            mode: config.network.mode,
            subnets,
            cni_conf_dir: config.cni.conf_dir.clone(),
            cni_bin_dirs: config.cni.bin_dirs.clone(),
            root_dir: place.root.clone(),
            state_dir: place.state.clone(),
            plugin_timeout: config.cni.timeout,
            cluster_dir: "/etc/kubernetes".into(),
        });
        let network = network.map_err(|source| Error::Network { of: "this node".to_owned(), source })?;
        let pins = Pins::open(&place.state, &place.instance)
            .map_err(|source| Error::Pins { of: "this node".to_owned(), source })?;
        let registry = RegistryOptions {
            config_path: config.registry.config_path.clone(),
            docker_config: Some(config.registry.docker_config.clone()),
            ..Default::default()
        };
        let store = crisp_store::Options { registry, pinned: config.images.pinned.clone(), ..Default::default() };
        Ok(Arc::new(Self {
            instance: place.instance.clone(),
            epoch: epoch::current().map_err(Error::io("read the epoch from", Path::new("/proc")))?,
            host: HostFacts::read().map_err(|error| Error::Internal(error.to_string()))?,
            store: Store::open(paths.store(), store)?,
            runtimes: Runtimes::find(&config, &paths),
            registry: Registry::default(),
            jobs: Arc::new(Jobs::default()),
            config,
            paths,
            flusher: Flusher::start(disk.clone()).map_err(Error::io("start a thread for", &place.root))?,
            disk,
            network,
            pins,
            monitor,
            monitor_path,
            _locks: locks,
        }))
    }

    /// Writes a record that others may read once this returns, and has it flushed soon.
    pub fn keep<T: Record>(&self, path: PathBuf, record: &T) -> Result<()> {
        self.disk.write_unflushed(&path, record)?;
        self.flusher.soon(path);
        Ok(())
    }
}

/// Runs what may block on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(format!("a worker thread ended: {error}"))),
    }
}

/// Mode 0711: with a user namespace, a container's root passes through on the way to its own files.
pub fn make_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(Error::io("make directory", path))
}

/// Removes what may not be there. A container fills its volumes: the tree may be of any depth.
pub fn remove_dir(path: &Path) -> Result<()> {
    crisp_store::durable::remove_tree(path).map_err(Error::io("remove", path))
}

fn lock(path: &Path, option: &str) -> Result<File> {
    let mut options = File::options();
    let file =
        options.create(true).truncate(false).write(true).mode(0o600).open(path).map_err(Error::io("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(Error::Precondition(format!(
            "another crisp server holds {}: stop it, or give this one an {option} of its own",
            path.display()
        ))),
    }
}

/// Writes the monitor once and opens it. The open file is what runs: a file that is replaced later never mixes versions.
fn install_monitor(paths: &Paths) -> Result<(OwnedFd, PathBuf)> {
    let mut last = None;
    for dir in [paths.bin(), paths.bin_on_disk()] {
        make_dir(&dir)?;
        let path = dir.join(format!("monitor-{MONITOR_HASH}"));
        if sys::is_noexec(&dir) {
            continue;
        }
        let complete = std::fs::metadata(&path).is_ok_and(|found| found.len() == MONITOR.len() as u64);
        if !complete {
            let temp = dir.join(".monitor");
            let mut options = File::options();
            let mut file = options
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o755)
                .open(&temp)
                .map_err(Error::io("open", &temp))?;
            file.write_all(MONITOR).and_then(|()| file.rewind()).map_err(Error::io("write", &temp))?;
            drop(file);
            std::fs::rename(&temp, &path).map_err(Error::io("rename", &temp))?;
        }
        match rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => return Ok((fd, path)),
            Err(error) => last = Some(Error::io("open", &path)(error.into())),
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::Precondition(format!(
            "neither {} nor {} may hold programs (mounted noexec): give --state or --root on another file system",
            paths.bin().display(),
            paths.bin_on_disk().display()
        ))
    }))
}
