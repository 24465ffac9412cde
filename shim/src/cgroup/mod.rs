//! Cgroups of pods and containers: where they are, and how they end. Making them and setting limits is the OCI runtime's: it
//! makes all that lead to a container, with the controllers that are needed, in every hierarchy.
//!
//! ```text
//! <hierarchy>/                        on v1 and hybrid nodes: each of them
//! ├── kubepods/…/pod<uid>/            made and removed by kubelet
//! │   └── <container id>/             made by the runtime
//! └── <instance>/                     removed by us, when there is no pod left
//!     └── <sandbox id>/               a pod without a cgroup parent; removed by us
//!         └── <container id>/         removed by the runtime, and by us where it does not
//! ```
//!
//! A runtime that is killed leaves cgroups behind that no runtime removes. All of them have a path that ends in an id of
//! ours, and only such a path is ever removed or killed in ([`OwnCgroup`]).

mod attach;
mod hierarchy;
mod kill;
mod path;
mod remove;

pub use hierarchy::{Hierarchies, Hierarchy, Version};
pub use kill::kill;
pub use path::{OwnCgroup, check_parent, container_path, pod_path};
pub use remove::{remove, remove_if_empty};

use std::io::Write;
use std::path::{Path, PathBuf};

/// What could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not a path of a cgroup.
    #[error("cgroup {path:?}: {problem}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file or directory of it.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Processes that do not end, most likely waiting for a device.
    #[error("{count} processes in {path} do not end")]
    Busy {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

/// Writes to a file that is there already; none is made.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

impl CgroupError {
    fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action, path: path.into(), source: source.into() }
    }
}

impl Hierarchies {
    /// The memory cgroup directory of a path, where OOM kills are told (`memory.events`, on v1 `memory.oom_control`).
    pub fn memory_dir(&self, path: &str) -> Option<PathBuf> {
        self.with("memory").map(|hierarchy| hierarchy.dir(path))
    }
}

#[cfg(test)]
mod tests;
