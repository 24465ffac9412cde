//! What a specification needs to know of the node at this moment: the only I/O of building one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::devices::{self, DeviceNode};
use super::seccomp::Profile;
use super::{Shared, SpecError};
use crate::host::mountinfo::{MountPoint, MountTable};
use crate::model::{ContainerConfig, MountSource, Propagation};

/// The node, as far as one container is concerned. Missing `host_path`s are made before this is read.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// The node's host name: that of containers in its network.
    pub(super) hostname: String,
    /// Devices that the container gets.
    pub(super) devices: Vec<DeviceNode>,
    /// The seccomp profile, if one was asked for.
    pub(super) seccomp: Option<Profile>,
    /// Volumes' host paths with all links resolved.
    pub(super) sources: BTreeMap<String, PathBuf>,
    /// Read only when something depends on it.
    pub(super) mounts: MountTable,
}

impl Node {
    /// Reads it.
    ///
    /// # Errors
    /// A device or a volume that is not there, a profile that is none.
    pub fn read(container: &ContainerConfig, shared: &Shared<'_>) -> Result<Self, SpecError> {
        let mut node = Self {
            hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            devices: devices::find(container)?,
            seccomp: if container.security.privileged { None } else { Profile::load(&container.security.seccomp)? },
            ..Default::default()
        };
        for mount in &container.mounts {
            if let MountSource::Host(path) = &mount.source {
                if !path.starts_with('/') {
                    return Err(SpecError::invalid("mounts.host_path", format!("{path:?} is not absolute")));
                }
                let real = std::fs::canonicalize(path);
                let real = real.map_err(|source| SpecError::io("find volume", path, source))?;
                node.sources.insert(path.clone(), real);
            }
        }
        let propagates = container.mounts.iter().any(|mount| mount.propagation != Propagation::Private);
        if propagates || shared.user.is_some() {
            let table = MountTable::read();
            node.mounts = table.map_err(|source| SpecError::io("read", "/proc/self/mountinfo", source))?;
        }
        Ok(node)
    }

    /// The mount that a path without links lies on.
    pub(super) fn mount_of(&self, path: &Path) -> Option<&MountPoint> {
        self.mounts.holding(path)
    }
}
