//! Pod sandboxes.

use crisp_netns::Attachment;
use serde::{Deserialize, Serialize};

use super::{Epoch, Namespaces, Resources, SeccompProfile, StringMap};

/// What makes a sandbox unique beside its id: kubelet counts `attempt` up for each new one of the same pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxName {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
}

impl std::fmt::Display for SandboxName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// What `/etc/resolv.conf` of the pod holds, in this order: searches, servers, options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// What a pod sandbox was asked to be. `dns: None` means the node's resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Its name.
    pub name: SandboxName,
    /// Host name inside; empty with the node's network.
    pub hostname: String,
    /// Where the containers' logs go (absolute); empty: nowhere.
    pub log_directory: String,
    /// DNS.
    pub dns: Option<DnsConfig>,
    /// Host ports and container ports.
    pub ports: Vec<crisp_netns::PortMapping>,
    /// Labels.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// Cgroup that holds the pod's cgroups (cgroupfs form, absolute below each hierarchy's root); empty: the instance's own.
    pub cgroup_parent: String,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Traffic limits, from the `kubernetes.io/…-bandwidth` annotations.
    pub bandwidth: Option<crisp_netns::Bandwidth>,
    /// Sysctls of the pod's own namespaces.
    pub sysctls: StringMap,
    /// Whether privileged containers may join.
    pub privileged: bool,
    /// Kept, and given to nobody: the pod's PID namespace holder has a filter of its own.
    pub seccomp: SeccompProfile,
    /// Resources of the pod as a whole: for runtimes that run pods in machines; kept, and given to nobody here.
    pub overhead: Resources,
    /// Likewise.
    pub resources: Resources,
}

/// The facts of a sandbox, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What it was asked to be.
    pub config: SandboxConfig,
    /// The runtime handler as it was asked for: empty is the default one.
    pub runtime_handler: String,
    /// Who made it, when that was not a CRI client: `crisp run` writes `cli`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// Wall clock, ns.
    pub created_at: i64,
    /// When it was made, in terms of processes and mounts.
    pub epoch: Epoch,
    /// Whether RunPodSandbox got to its end. A record without it is undone by recovery.
    #[serde(default)]
    pub made: bool,
    /// The network that was attached; none with the node's network, before ADD, and after DEL.
    #[serde(default)]
    pub attachment: Option<Attachment>,
    /// Wall clock in ns of StopPodSandbox; from then on NOTREADY.
    #[serde(default)]
    pub stopped_at: Option<i64>,
}
