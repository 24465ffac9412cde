//! Every path the server makes, in one place.
//!
//! ```text
//! <root>  /var/lib/crisp                      <state>  /run/crisp
//! ├── format.json    version, feature flags   ├── crisp.sock
//! ├── lock           one server a root        ├── lock                one server a state directory
//! ├── store/         images (crisp-store)     ├── bin/monitor-<hash>
//! ├── cni/ network/  attachments              ├── ns/                 private mount namespace (crisp-netns)
//! ├── holder/monitor-<hash>/  holders' roots   ├── pods/<id>/{hosts,resolv.conf,hostname}
//! ├── logs/<pod uid>/ of pods made by the CLI  ├── containers/<id>/{bundle/,lock,monitor.sock,monitor.conf,exit.json}
//! ├── sandboxes/<id>/record.json              ├── execs/<id>/
//! ├── containers/<id>/{record,exit}.json      └── runtimes/<handler>/ the OCI runtimes' own state (--root)
//! └── volumes/<container id>/<n>/
//!
//! /run/netns/<instance>-<id>   network namespaces, where CNI plugins and people look
//! /run/crisp-<instance>.lock   one server an instance
//! ```

use std::path::{Path, PathBuf};

/// What bears the instance's name in the kernel is told from other servers' by that name alone. Not an abstract socket: any
/// user, and any container on the node's network, could take its name and keep the server from starting.
pub fn instance_lock(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/crisp-{instance}.lock"))
}

/// The two roots; every other path derives from them and from ids.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// Both roots must be absolute.
    pub fn new(root: &Path, state: &Path) -> Self {
        Self { root: root.to_owned(), state: state.to_owned() }
    }

    /// What survives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// What belongs to this boot.
    pub fn state(&self) -> &Path {
        &self.state
    }
    pub fn format(&self) -> PathBuf {
        self.root.join("format.json")
    }
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
    pub fn state_lock(&self) -> PathBuf {
        self.state.join("lock")
    }
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }
    pub fn sandbox_record(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("record.json")
    }
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
    pub fn container_record(&self, id: &str) -> PathBuf {
        self.container(id).join("record.json")
    }
    pub fn container_exit(&self, id: &str) -> PathBuf {
        self.container(id).join("exit.json")
    }
    /// Anonymous volumes of a container's image.
    pub fn volumes(&self, container: &str) -> PathBuf {
        self.all_volumes().join(container)
    }
    pub fn all_volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
    pub fn socket(&self) -> PathBuf {
        self.state.join("crisp.sock")
    }
    pub fn bin(&self) -> PathBuf {
        self.state.join("bin")
    }
    /// Where the monitor goes when the state directory may not hold programs.
    pub fn bin_on_disk(&self) -> PathBuf {
        self.root.join("bin")
    }
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }
    pub fn pod(&self, id: &str) -> PathBuf {
        self.pods().join(id)
    }
    pub fn container_dirs(&self) -> PathBuf {
        self.state.join("containers")
    }
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.container_dirs().join(id)
    }
    pub fn execs(&self) -> PathBuf {
        self.state.join("execs")
    }
    pub fn exec(&self, id: &str) -> PathBuf {
        self.execs().join(id)
    }
    /// The OCI runtime's `--root`: one per handler, since each keeps its own format there.
    pub fn runtime_root(&self, handler: &str) -> PathBuf {
        self.state.join("runtimes").join(handler)
    }
    pub fn holder(&self) -> PathBuf {
        self.root.join("holder")
    }
}
