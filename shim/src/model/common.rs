//! Small types that sandboxes and containers share.

use std::collections::BTreeMap;

pub use crisp_netns::{IdMapping, UserMapping};
use serde::{Deserialize, Serialize};

/// Labels and annotations, in a stable order; values may be empty and are given back unaltered.
pub type StringMap = BTreeMap<String, String>;

/// Whose namespace a process lives in (CRI `NamespaceMode`, without TARGET's id).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// One namespace for the whole pod.
    #[default]
    Pod,
    /// One of the container's own.
    Container,
    /// The node's.
    Node,
    /// That of another container of the pod (PID only): see [`Namespaces::target`].
    Target,
}

/// The namespaces that a pod or container asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network: `Pod` or `Node`. With `Node` the UTS namespace is the node's too.
    pub network: NamespaceMode,
    /// PID: any mode.
    pub pid: NamespaceMode,
    /// IPC: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// The container whose PID namespace is joined (mode `Target`), as given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// The pod's user namespace; `None` is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserMapping>,
}

/// A seccomp profile as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompProfile {
    /// Nothing was asked for: unconfined.
    #[default]
    Unset,
    /// No filter.
    Unconfined,
    /// The built-in profile.
    RuntimeDefault,
    /// A file on the node, absolute, without the `localhost/` prefix.
    Localhost(String),
}

/// How supplementary groups are found (KEP-3619).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupsPolicy {
    /// Those asked for, and the memberships in the image's `/etc/group`.
    #[default]
    Merge,
    /// Those asked for only.
    Strict,
}

/// Limits and weights (CRI `LinuxContainerResources`). Zero and empty mean "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds; -1 is no limit.
    pub cpu_quota: i64,
    /// Relative CPU weight, 2..=262144.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit: i64,
    /// Memory plus swap in bytes; -1 is no limit.
    pub memory_swap_limit: i64,
    /// -1000..=1000.
    pub oom_score_adj: i64,
    /// CPUs, as in `0-3,5`.
    pub cpuset_cpus: String,
    /// Memory nodes.
    pub cpuset_mems: String,
    /// (page size such as `2MB`, limit in bytes).
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files and what to write to them, last.
    pub unified: StringMap,
}

/// The boot and the PID 1 that a thing was made under: processes, mounts and namespaces of another epoch are gone.
///
/// The boot id alone does not do: a node that is itself a container keeps it over its own restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Start time of PID 1 in clock ticks after boot (field 22 of `/proc/1/stat`).
    pub init_start: u64,
}
