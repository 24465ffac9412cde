//! Which namespaces a container shares with its pod, which are its own, and which are the node's.
//!
//! | kind | the pod's | its own | the node's |
//! |---|---|---|---|
//! | network, IPC | pinned | – | as the sandbox says |
//! | UTS | pinned | – | with the node's network |
//! | PID | of the holder, or of the target | CONTAINER | as container or sandbox says |
//! | user | pinned | – | unless the sandbox has a mapping |
//! | cgroup | – | on cgroup v2 | for privileged containers and on v1 |
//! | mount | – | always | – |

use super::oci::{IdMapping, Namespace, NamespaceType};
use super::{Inputs, SpecError};
use crate::cgroup::Version;
use crate::host::{Features, HostFacts};
use crate::model::{ContainerConfig, NamespaceMode, Namespaces, SandboxConfig, UserMapping};

/// What a container shares with its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared<'a> {
    /// The pod's network namespace; else the node's.
    pub net: bool,
    /// The pod's UTS namespace; else the node's.
    pub uts: bool,
    /// The pod's IPC namespace; else the node's.
    pub ipc: bool,
    /// PID: `Pod` (needs the pod's holder), `Container`, `Target` or `Node`.
    pub pid: NamespaceMode,
    /// The mapping of the pod's user namespace; else the node's.
    pub user: Option<&'a UserMapping>,
}

/// What a container shares. Network, IPC and user namespace are the sandbox's affair; a container that says nothing of
/// them (or POD) takes what the sandbox has.
///
/// # Errors
/// The container asks for another one than its sandbox has, or for a combination that the kernel has not.
pub fn shared<'a>(sandbox: &'a SandboxConfig, container: &ContainerConfig) -> Result<Shared<'a>, SpecError> {
    let (pod, own) = (&sandbox.namespaces, &container.security.namespaces);
    for (field, pod, own) in
        [("namespace_options.network", pod.network, own.network), ("namespace_options.ipc", pod.ipc, own.ipc)]
    {
        match own {
            NamespaceMode::Pod => {}
            NamespaceMode::Node if pod == NamespaceMode::Node => {}
            NamespaceMode::Node => return Err(SpecError::invalid(field, "NODE, but the sandbox has one of its own")),
            NamespaceMode::Container | NamespaceMode::Target => {
                return Err(SpecError::invalid(field, "only POD and NODE are possible"));
            }
        }
    }
    let pid = match own.pid {
        // A sandbox with the node's processes has nothing else to share.
        NamespaceMode::Pod if pod.pid == NamespaceMode::Node => NamespaceMode::Node,
        NamespaceMode::Target if own.target.is_empty() => {
            return Err(SpecError::invalid("namespace_options.target_id", "TARGET without a container"));
        }
        pid => pid,
    };
    if let Some(user) = &own.user
        && pod.user.as_ref() != Some(user)
    {
        return Err(SpecError::invalid("namespace_options.userns_options", "another mapping than the sandbox's"));
    }
    let shared = Shared {
        net: pod.network != NamespaceMode::Node,
        uts: pod.network != NamespaceMode::Node,
        ipc: pod.ipc != NamespaceMode::Node,
        pid,
        user: pod.user.as_ref(),
    };
    if shared.user.is_some() {
        own_all([("network", pod.network), ("IPC", pod.ipc), ("PID", pid)])?;
    }
    Ok(shared)
}

/// What a sandbox asks for and no container of it could have.
///
/// # Errors
/// A user namespace that this node has not, or not with the other namespaces.
pub fn check_sandbox(sandbox: &SandboxConfig, host: &HostFacts) -> Result<(), SpecError> {
    let Namespaces { network, ipc, pid, user, .. } = &sandbox.namespaces;
    if user.is_none() {
        return Ok(());
    }
    if !host.user_namespaces {
        return Err(no_user_namespaces());
    }
    if !host.has_idmapped_overlay() {
        return Err(SpecError::unsupported(USER, "the kernel cannot map the ids of a root file system: 5.19 can"));
    }
    own_all([("network", *network), ("IPC", *ipc), ("PID", *pid)])
}

/// With a user namespace: the kernel lets nobody mount a proc, sysfs or mqueue of a namespace that belongs to a user
/// namespace above.
fn own_all(modes: [(&str, NamespaceMode); 3]) -> Result<(), SpecError> {
    match modes.iter().find(|(_, mode)| *mode == NamespaceMode::Node) {
        Some((name, _)) => Err(SpecError::unsupported(USER, format!("the pod uses the node's {name} namespace"))),
        None => Ok(()),
    }
}

const USER: &str = "a user namespace";

fn no_user_namespaces() -> SpecError {
    SpecError::unsupported(USER, "the kernel has none, or user.max_user_namespaces is 0")
}

/// `linux.namespaces`.
pub(super) fn build(inputs: &Inputs<'_>, shared: &Shared<'_>) -> Result<Vec<Namespace>, SpecError> {
    let Inputs { container, host, features, paths, .. } = *inputs;
    let new = |kind| Namespace { kind, path: None };
    let join = |kind, path: &std::path::Path| Namespace { kind, path: Some(path.to_owned()) };
    let mut list = vec![new(NamespaceType::Mount)];
    if shared.user.is_some() {
        if !host.user_namespaces {
            return Err(no_user_namespaces());
        }
        list.push(join(NamespaceType::User, &paths.user));
    }
    if shared.net {
        list.push(join(NamespaceType::Network, &paths.net));
    }
    if shared.uts {
        list.push(join(NamespaceType::Uts, &paths.uts));
    }
    if shared.ipc {
        list.push(join(NamespaceType::Ipc, &paths.ipc));
    }
    match (shared.pid, &paths.pid) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Container, _) => list.push(new(NamespaceType::Pid)),
        (NamespaceMode::Pod | NamespaceMode::Target, Some(path)) => list.push(join(NamespaceType::Pid, path)),
        (NamespaceMode::Pod | NamespaceMode::Target, None) => {
            return Err(SpecError::invalid("namespace_options.pid", "the PID namespace to join is not there"));
        }
    }
    if has_cgroup_namespace(host.cgroups.version, container.security.privileged, features) {
        list.push(new(NamespaceType::Cgroup));
    }
    Ok(list)
}

/// With v1 the field never had one, and a privileged container is meant to see the node's.
pub(super) fn has_cgroup_namespace(version: Version, privileged: bool, features: &Features) -> bool {
    version == Version::V2 && !privileged && features.has_namespace("cgroup")
}

/// `linux.uidMappings` and `gidMappings`: only for runtimes that want them beside a namespace to join.
pub(super) fn mappings(shared: &Shared<'_>, features: &Features) -> (Vec<IdMapping>, Vec<IdMapping>) {
    match shared.user {
        Some(UserMapping { uids, gids }) if features.mapping_beside_path => {
            (uids.iter().map(IdMapping::from).collect(), gids.iter().map(IdMapping::from).collect())
        }
        _ => Default::default(),
    }
}
