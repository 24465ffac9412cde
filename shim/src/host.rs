//! What this node can do: facts that do not change while the server runs, read once at its start.
//!
//! ```text
//! HostFacts ─┬─ kernel, arch        what a profile's conditions ask for
//!            ├─ cgroups             hierarchies, controllers, swap
//!            ├─ capabilities, oom   what this process can pass on
//!            └─ seccomp, LSMs, user namespaces, huge pages
//! Features   ── what an OCI runtime can do (`<runtime> features`)
//! mountinfo  ── the mount table, read anew when it matters
//! ```

use std::path::{Path, PathBuf};

use crate::cgroup::Hierarchies;
use crate::spec::CapSet;

mod arch;
mod features;
pub mod mountinfo;

pub use arch::Arch;
pub use features::Features;

use mountinfo::MountTable;

/// The node as it was at the start.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Version of the kernel.
    pub kernel: KernelVersion,
    /// The machine's architecture.
    pub arch: Arch,
    /// cgroups.
    pub cgroups: Hierarchies,
    /// Sizes of huge pages, in the form of the OCI and the CRI: `2MB`, `1GB`.
    pub huge_pages: Vec<String>,
    /// What can be given to containers: this process' own bounding set, as far as the kernel knows them.
    pub capabilities: CapSet,
    /// This process' own `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Whether a lower one than its own can be given (`CAP_SYS_RESOURCE` in the first user namespace).
    pub can_lower_oom_score: bool,
    /// This process' own hard limit of open files: without `CAP_SYS_RESOURCE` no container can have more.
    pub max_open_files: u64,
    /// Whether that limit can be exceeded.
    pub can_raise_limits: bool,
    /// Actions of seccomp filters that the kernel has; empty: it has no seccomp filters.
    pub seccomp_actions: Vec<String>,
    /// AppArmor is on.
    pub apparmor: bool,
    /// SELinux is on.
    pub selinux: bool,
    /// User namespaces can be made.
    pub user_namespaces: bool,
}

/// `5.12` of `5.12.0-generic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl KernelVersion {
    /// From `uname -r` or a profile's `minKernel`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().splitn(3, '.');
        let major = numbers.next()?.parse().ok()?;
        let rest = numbers.next()?;
        let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { major, minor: rest[..digits].parse().ok()? })
    }
}

/// A fact that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of the kernel.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// What it holds makes no sense.
    #[error("{path} holds no {what}")]
    Meaning {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Neither runtimes nor we can work here.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NoCgroups,
    /// A machine that no profile knows.
    #[error("architecture {0} is not known")]
    Arch(&'static str),
}

impl HostFacts {
    /// Reads the facts of this node and of this process.
    ///
    /// # Errors
    /// What could not be read, and without which nothing can run.
    pub fn read() -> Result<Self, HostError> {
        Self::read_below(Path::new("/"))
    }

    fn read_below(root: &Path) -> Result<Self, HostError> {
        let status = Status::read(root)?;
        let mounts = root.join("proc/self/mountinfo");
        let mounts = std::fs::read(&mounts).map_err(|source| HostError::Read { path: mounts, source })?;
        let cgroups = Hierarchies::find(&MountTable::parse(&mounts), root);
        if cgroups.all.is_empty() {
            return Err(HostError::NoCgroups);
        }
        let last: u32 = number(root, "proc/sys/kernel/cap_last_cap", "number")?;
        let known = CapSet::from_mask(2_u64.checked_shl(last).unwrap_or(0).wrapping_sub(1));
        let resource = CapSet::named("SYS_RESOURCE").is_some_and(|one| status.effective.contains(one));
        // In a child user namespace capabilities count for nothing against the machine's limits.
        let first_user_namespace = optional(root, "proc/self/uid_map")
            .is_none_or(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]));
        let actions = optional(root, "proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
        let seccomp_actions = if status.seccomp { words(&actions) } else { Vec::new() };
        let most_user_namespaces = optional(root, "proc/sys/user/max_user_namespaces");
        Ok(Self {
            kernel: kernel(root)?,
            arch: Arch::native().ok_or(HostError::Arch(std::env::consts::ARCH))?,
            cgroups,
            huge_pages: huge_pages(root),
            capabilities: status.bounding.and(known),
            oom_score_adj: number(root, "proc/self/oom_score_adj", "number")?,
            can_lower_oom_score: resource && first_user_namespace,
            max_open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX),
            can_raise_limits: resource && first_user_namespace,
            seccomp_actions,
            apparmor: optional(root, "sys/module/apparmor/parameters/enabled")
                .is_some_and(|text| text.starts_with('Y')),
            selinux: root.join("sys/fs/selinux/enforce").exists(),
            user_namespaces: root.join("proc/self/ns/user").exists()
                && most_user_namespaces.is_some_and(|most| most.trim() != "0"),
        })
    }

    /// `mount_setattr(2)` came with 5.12: recursive read-only mounts, and idmapped mounts for the first file systems.
    pub fn has_mount_setattr(&self) -> bool {
        self.kernel >= KernelVersion { major: 5, minor: 12 }
    }

    /// Overlays of id-mapped layers, which a pod with a user namespace has for a root, came with 5.19.
    pub fn has_idmapped_overlay(&self) -> bool {
        self.user_namespaces && self.kernel >= KernelVersion { major: 5, minor: 19 }
    }

    /// Whether the kernel has seccomp filters.
    pub fn has_seccomp(&self) -> bool {
        !self.seccomp_actions.is_empty()
    }
}

/// The lines of `/proc/self/status` that count.
struct Status {
    bounding: CapSet,
    effective: CapSet,
    seccomp: bool,
}

impl Status {
    fn read(root: &Path) -> Result<Self, HostError> {
        let path = root.join("proc/self/status");
        let text = std::fs::read_to_string(&path).map_err(|source| HostError::Read { path: path.clone(), source })?;
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let mask = |name: &str, what| {
            let mask = field(name).and_then(|digits| u64::from_str_radix(digits, 16).ok());
            mask.map(CapSet::from_mask).ok_or_else(|| HostError::Meaning { path: path.clone(), what })
        };
        Ok(Self {
            bounding: mask("CapBnd", "bounding set")?,
            effective: mask("CapEff", "effective set")?,
            seccomp: field("Seccomp").is_some(),
        })
    }
}

fn kernel(root: &Path) -> Result<KernelVersion, HostError> {
    let path = root.join("proc/sys/kernel/osrelease");
    let text = std::fs::read_to_string(&path).map_err(|source| HostError::Read { path: path.clone(), source })?;
    KernelVersion::parse(&text).ok_or(HostError::Meaning { path, what: "kernel version" })
}

fn number<T: std::str::FromStr>(root: &Path, file: &str, what: &'static str) -> Result<T, HostError> {
    let path = root.join(file);
    let text = std::fs::read_to_string(&path).map_err(|source| HostError::Read { path: path.clone(), source })?;
    text.trim().parse().map_err(|_| HostError::Meaning { path, what })
}

fn optional(root: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(root.join(file)).ok()
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// `hugepages-2048kB` is `2MB`: the largest unit that leaves a whole number (kernel: `hugetlb_cgroup`'s file names).
fn huge_pages(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("sys/kernel/mm/hugepages")).into_iter().flatten().flatten();
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok())
        .collect();
    sizes.sort_unstable();
    sizes
        .iter()
        .map(|kb| match kb {
            gb if gb % (1 << 20) == 0 => format!("{}GB", gb >> 20),
            mb if mb % (1 << 10) == 0 => format!("{}MB", mb >> 10),
            kb => format!("{kb}KB"),
        })
        .collect()
}

#[cfg(test)]
mod tests;
