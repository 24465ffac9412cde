//! Containers.

use serde::{Deserialize, Serialize};

use super::{Epoch, GroupsPolicy, Namespaces, Resources, SeccompProfile, StringMap};

/// A name that is unique within the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerName {
    /// The container's name in its pod.
    pub name: String,
    /// How many containers of that name were there before.
    pub attempt: u32,
}

/// Where a mount's later mounts go, or come from (kernel: shared subtrees).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// `rprivate`.
    #[default]
    Private,
    /// `rslave`.
    HostToContainer,
    /// `rshared`.
    Bidirectional,
}

/// What is mounted: a path of the node, or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// An absolute path of the node.
    Host(String),
    /// An image, read-only (KEP-4639).
    Image {
        /// As it was asked for.
        reference: String,
        /// A path below the image's root; empty: the root.
        sub_path: String,
    },
}

/// A volume of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, inside.
    pub container_path: String,
    /// What.
    pub source: MountSource,
    /// Read-only, this mount only.
    pub readonly: bool,
    /// Read-only with all mounts below it (KEP-3857).
    pub recursive_read_only: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// Id mappings of the mount; empty: those of no user namespace.
    pub uid_mappings: Vec<super::IdMapping>,
    /// Likewise.
    pub gid_mappings: Vec<super::IdMapping>,
}

/// A device of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where, inside.
    pub container_path: String,
    /// Path on the node; a directory stands for all devices in it.
    pub host_path: String,
    /// A subset of `rwm`.
    pub permissions: String,
}

/// Who the process runs as, as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunAs {
    /// Numeric user.
    pub uid: Option<i64>,
    /// Numeric group.
    pub gid: Option<i64>,
    /// A name from the image's `/etc/passwd`; empty: not asked for.
    pub username: String,
    /// Supplementary groups.
    pub groups: Vec<i64>,
    /// Whether the image's memberships count too.
    pub policy: GroupsPolicy,
}

/// The security context of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Capabilities to add: `ALL`, or names with or without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// All devices, all capabilities, nothing masked.
    pub privileged: bool,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// User and groups.
    pub run_as: RunAs,
    /// Root file system read-only.
    pub readonly_rootfs: bool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Paths hidden from the container: exactly these.
    pub masked_paths: Vec<String>,
    /// Paths read-only in the container: exactly these.
    pub readonly_paths: Vec<String>,
    /// Seccomp.
    pub seccomp: SeccompProfile,
}

/// What a container was asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its name.
    pub name: ContainerName,
    /// The image as the user wrote it in the pod (`user_specified_image`), for status.
    pub user_image: String,
    /// The image to use: usually an id.
    pub image: String,
    /// Entrypoint; empty: the image's.
    pub command: Vec<String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Working directory; empty: the image's, else `/`.
    pub working_dir: String,
    /// Environment, later wins. Values are UTF-8: the OCI configuration is JSON and can carry nothing else, so others are refused by name.
    pub envs: Vec<(String, String)>,
    /// Volumes, in the order given.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Labels.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// Below the sandbox's log directory; empty: no log.
    pub log_path: String,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close it when the first attached client leaves.
    pub stdin_once: bool,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// The signal that stops it: a number; `None`: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// Limits.
    pub resources: Resources,
    /// Security.
    pub security: Security,
}

/// The parts of an OCI image configuration that a container takes over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageDefaults {
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Arguments.
    pub cmd: Vec<String>,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Paths of anonymous volumes.
    pub volumes: Vec<String>,
    /// `SIGTERM`, `15`, `RTMIN+3`.
    pub stop_signal: String,
}

/// Who the process really runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted, each once.
    pub groups: Vec<u32>,
}

/// A process that its number alone does not name: numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the node's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks after boot.
    pub start_time: u64,
}

/// The facts of a container, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// What it was asked to be.
    pub config: ContainerConfig,
    /// The image's id (config digest).
    pub image_id: String,
    /// A repository digest of the image, else its id.
    pub image_ref: String,
    /// Name of the runtime handler that runs it, never empty.
    pub runtime: String,
    /// Where its log is (absolute); empty: nowhere.
    pub log_path: String,
    /// Cgroup path below each hierarchy's root.
    pub cgroup: String,
    /// Who it runs as.
    pub user: ResolvedUser,
    /// The signal that stops it.
    pub stop_signal: i32,
    /// Ids of the mounted images, by the mount's `container_path`.
    #[serde(default)]
    pub image_mounts: StringMap,
    /// Destinations of the image's anonymous volumes.
    pub image_volumes: Vec<String>,
    /// Wall clock, ns.
    pub created_at: i64,
    /// When it was made, in terms of processes and mounts.
    pub epoch: Epoch,
    /// Set once CreateContainer got to its end: its init process. A record without it is undone by recovery.
    #[serde(default)]
    pub process: Option<Process>,
    /// Wall clock in ns of the start; written once the runtime has started it.
    #[serde(default)]
    pub started_at: Option<i64>,
    /// Why the runtime could not start it: CRI `StartError`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_error: Option<String>,
}
