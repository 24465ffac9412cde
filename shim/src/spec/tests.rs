//! What a container's specification says, as behaviours. Fixtures for the other tests of `spec`, too.

use std::path::{Path, PathBuf};

use super::oci::NamespaceType;
use super::seccomp::Profile;
use super::*;
use crate::cgroup::{Hierarchies, Hierarchy, Version};
use crate::host::mountinfo::MountTable;
use crate::host::{Arch, KernelVersion};
use crate::model::{
    ContainerName, IdMapping, Mount, MountSource, NamespaceMode, Namespaces, Propagation, SandboxName, SeccompProfile,
    Security, UserMapping,
};

mod container;
mod mount;
mod pod;
mod run;

pub(super) fn sandbox() -> SandboxConfig {
    SandboxConfig {
        name: SandboxName { name: "pod".into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
        hostname: "pod-host".into(),
        log_directory: String::new(),
        dns: None,
        ports: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        namespaces: Namespaces::default(),
        bandwidth: None,
        sysctls: Default::default(),
        privileged: false,
        seccomp: SeccompProfile::Unset,
        overhead: Default::default(),
        resources: Default::default(),
    }
}

pub(super) fn container() -> ContainerConfig {
    ContainerConfig {
        name: ContainerName { name: "c".into(), attempt: 0 },
        user_image: "i".into(),
        image: "i".into(),
        command: vec!["/bin/true".into()],
        args: Vec::new(),
        working_dir: String::new(),
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: Default::default(),
        security: Security {
            namespaces: Namespaces { pid: NamespaceMode::Container, ..Default::default() },
            ..Default::default()
        },
    }
}

pub(super) fn host(version: Version) -> HostFacts {
    let controllers = ["cpu", "cpuset", "memory", "pids", "hugetlb"].map(str::to_owned).to_vec();
    let unified = version == Version::V2;
    HostFacts {
        kernel: KernelVersion { major: 6, minor: 1 },
        arch: Arch::native().unwrap(),
        cgroups: Hierarchies {
            version,
            all: vec![Hierarchy { mountpoint: "/sys/fs/cgroup".into(), controllers, unified }],
            unified_options: vec!["nsdelegate".into()],
            swap: true,
        },
        huge_pages: vec!["2MB".into()],
        capabilities: CapSet::ALL,
        oom_score_adj: -500,
        can_lower_oom_score: true,
        max_open_files: 4096,
        can_raise_limits: false,
        seccomp_actions: vec!["allow".into()],
        apparmor: false,
        selinux: false,
        user_namespaces: true,
    }
}

pub(super) fn features() -> Features {
    Features {
        mount_options: Some(["ro", "rro"].map(str::to_owned).into()),
        namespaces: Some(["cgroup", "ipc", "mount", "network", "pid", "user", "uts"].map(str::to_owned).into()),
        seccomp: Some(true),
        idmap: true,
        mapping_beside_path: false,
        ..Default::default()
    }
}

pub(super) fn mapping() -> UserMapping {
    let range = vec![IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
    UserMapping { uids: range.clone(), gids: range }
}

/// Everything that a specification follows from, to be changed by a test.
struct Case {
    sandbox: SandboxConfig,
    container: ContainerConfig,
    image: ImageDefaults,
    user: ResolvedUser,
    host: HostFacts,
    features: Features,
    node: Node,
    paths: BundlePaths,
    open_files: Option<(u64, u64)>,
}

impl Case {
    fn new() -> Self {
        let mut paths = BundlePaths::new(Path::new("/b"), Path::new("/p"), Path::new("/run/netns/x"));
        paths.pid = Some("/proc/7/ns/pid".into());
        Self {
            sandbox: sandbox(),
            container: container(),
            image: ImageDefaults::default(),
            user: ResolvedUser::default(),
            host: host(Version::V2),
            features: features(),
            node: Node { hostname: "node-host".into(), ..Default::default() },
            paths,
            open_files: None,
        }
    }

    /// A volume of `/src`, which is there.
    fn volume(mut self, destination: &str, change: impl Fn(&mut Mount)) -> Self {
        let mut mount = Mount {
            container_path: destination.to_owned(),
            source: MountSource::Host("/src".into()),
            readonly: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        };
        change(&mut mount);
        self.container.mounts.push(mount);
        self.node.sources.insert("/src".into(), "/real/src".into());
        self
    }

    fn build(&self) -> Result<oci::Spec, SpecError> {
        build(&Inputs {
            sandbox: &self.sandbox,
            container: &self.container,
            image: &self.image,
            user: &self.user,
            host: &self.host,
            features: &self.features,
            node: &self.node,
            cgroup: "/pods/c",
            paths: &self.paths,
            open_files: self.open_files,
        })
    }

    fn spec(&self) -> oci::Spec {
        self.build().unwrap()
    }

    fn error(&self) -> String {
        self.build().unwrap_err().to_string()
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}
