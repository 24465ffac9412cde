//! From what a container was asked to be to the OCI `config.json` that a runtime executes.
//!
//! ```text
//!   Node::read ──────────────┐  the only I/O: device nodes, mount table, seccomp profile, real paths of volumes
//!   user::resolve ───────────┤  passwd and group of the image
//!   HostFacts, Features ─────┤  what node and runtime can do
//!   BundlePaths ─────────────┤  where the monitor lays namespaces and mounts
//!                            ▼
//!                          build ──► oci::Spec ──► config.json
//!       ┌──────────┬─────────┼──────────┬───────────┬──────────┐
//!    process   namespaces  mounts    devices    resources   seccomp
//!                                               capabilities
//!   sysctl::of_pod ──► what the pod's pins set        pause::build ──► the PID namespace holder's spec
//! ```
//!
//! [`build`] is pure: the same inputs give the same bytes. What a field asks for and this node or runtime cannot do is
//! refused by name ([`SpecError`]) before anything is done; what merely cannot be limited as sharply is clamped where the
//! field's topic says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::host::{Features, HostFacts};
use crate::model::{ContainerConfig, ImageDefaults, ResolvedUser, SandboxConfig};

mod capabilities;
mod devices;
mod error;
mod mounts;
mod namespaces;
mod node;
pub mod oci;
pub mod pause;
mod process;
mod resources;
mod seccomp;
pub mod sysctl;
pub mod user;

pub use capabilities::CapSet;
pub use error::SpecError;
pub use mounts::image_volumes;
pub use namespaces::{Shared, check_sandbox, shared};
pub use node::Node;
pub use seccomp::SeccompError;
pub use user::UserError;

/// Everything that a container's specification follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What the sandbox was asked to be.
    pub sandbox: &'a SandboxConfig,
    /// What the container was asked to be.
    pub container: &'a ContainerConfig,
    /// What its image says.
    pub image: &'a ImageDefaults,
    /// Who it runs as: [`user::resolve`].
    pub user: &'a ResolvedUser,
    /// The node's facts.
    pub host: &'a HostFacts,
    /// The runtime's abilities.
    pub features: &'a Features,
    /// What was read from the node for this container.
    pub node: &'a Node,
    /// The container's cgroup, absolute below each hierarchy's root.
    pub cgroup: &'a str,
    /// Where things are.
    pub paths: &'a BundlePaths,
    /// Soft and hard limit of open files; `None`: whatever the runtime starts with. The hard one is cut to what this
    /// process may give.
    pub open_files: Option<(u64, u64)>,
}

/// Where a container finds what is not its own: paths as the OCI runtime sees them, in the monitor's mount namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundlePaths {
    /// The root file system.
    pub rootfs: PathBuf,
    /// The pod's IPC namespace.
    pub ipc: PathBuf,
    /// The pod's UTS namespace.
    pub uts: PathBuf,
    /// The pod's user namespace.
    pub user: PathBuf,
    /// The pod's network namespace.
    pub net: PathBuf,
    /// The PID namespace to join, of the pod's holder or of the target container: `/proc/<pid>/ns/pid`.
    pub pid: Option<PathBuf>,
    /// The pod's `/dev/shm`.
    pub shm: PathBuf,
    /// The pod's `/etc/hosts`.
    pub hosts: PathBuf,
    /// The pod's `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The pod's `/etc/hostname`.
    pub hostname: PathBuf,
    /// Directories of the image's anonymous volumes, by destination ([`image_volumes`]). Their owners are ids of the
    /// pod's user namespace already.
    pub image_volumes: BTreeMap<String, PathBuf>,
    /// What is mounted of images, by the mount's `container_path` as it was given.
    pub image_mounts: BTreeMap<String, PathBuf>,
}

impl BundlePaths {
    /// The usual layout: the monitor's in `bundle`, the pod's files in `pod`, its network namespace at `net`.
    pub fn new(bundle: &Path, pod: &Path, net: &Path) -> Self {
        Self {
            rootfs: bundle.join("rootfs"),
            ipc: bundle.join("ns/ipc"),
            uts: bundle.join("ns/uts"),
            user: bundle.join("ns/user"),
            net: net.to_owned(),
            pid: None,
            shm: bundle.join("shm"),
            hosts: pod.join("hosts"),
            resolv_conf: pod.join("resolv.conf"),
            hostname: pod.join("hostname"),
            image_volumes: BTreeMap::new(),
            image_mounts: BTreeMap::new(),
        }
    }
}

/// Builds the specification.
///
/// # Errors
/// The first thing asked for that is wrong, or that this node or runtime cannot do.
pub fn build(inputs: &Inputs<'_>) -> Result<oci::Spec, SpecError> {
    let Inputs { sandbox, container, features, host, node, paths, .. } = *inputs;
    let security = &container.security;
    if security.privileged && !sandbox.privileged {
        return Err(SpecError::PrivilegedInUnprivilegedSandbox);
    }
    let shared = namespaces::shared(sandbox, container)?;
    let granted = capabilities::granted(security, host.capabilities)?;
    let (mounts, rootfs_propagation) = mounts::build(inputs, &shared)?;
    let (uid_mappings, gid_mappings) = namespaces::mappings(&shared, features);
    let mut resources = resources::build(&container.resources, host)?;
    resources.devices = devices::rules(security.privileged, &node.devices);
    let paths_of = |list: &[String]| if security.privileged { Vec::new() } else { list.to_vec() };
    Ok(oci::Spec {
        oci_version: oci::VERSION.to_owned(),
        process: process::build(inputs, granted)?,
        root: oci::Root { path: paths.rootfs.clone(), readonly: security.readonly_rootfs },
        hostname: if shared.uts { sandbox.hostname.clone() } else { String::new() },
        mounts,
        annotations: BTreeMap::new(),
        linux: oci::Linux {
            uid_mappings,
            gid_mappings,
            resources,
            cgroups_path: inputs.cgroup.to_owned(),
            namespaces: namespaces::build(inputs, &shared)?,
            devices: node.devices.iter().map(|device| device.node.clone()).collect(),
            seccomp: seccomp::build(inputs, granted)?,
            rootfs_propagation,
            masked_paths: paths_of(&security.masked_paths),
            readonly_paths: paths_of(&security.readonly_paths),
        },
    })
}

#[cfg(test)]
mod tests;
