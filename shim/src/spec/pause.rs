//! The holder of a pod's PID namespace: PID 1 of it, and nothing else.
//!
//! Whoever shares the namespace sees this process, and may try to become it: so it has a root file system with one
//! program in it, no user that anybody is, no capability, no way to gain one, and only the system calls that waiting and
//! reaping take. Of the pod's other namespaces it is a member like any container.

use std::path::{Path, PathBuf};

use super::namespaces::mappings;
use super::oci::{
    Capabilities, Linux, Mount, Namespace, NamespaceType, Pids, Process, Resources, Root, Seccomp, SeccompRule, Spec,
    User,
};
use super::{BundlePaths, Shared, SpecError, devices, oci};
use crate::host::{Features, HostFacts};

/// The user that it runs as: nobody's, by the field's custom. A mapping without it gives the last of its ids.
const USER: u32 = 65_535;

/// The program has one thread and its filter lets it start no other, but the runtime (in Go) starts some in its cgroup before
/// it becomes the program, and dies if it is refused them: up to eight were seen.
const PIDS: i64 = 32;

/// What a static program without threads calls that waits for signals and reaps, and what a runtime (in Go) calls between
/// loading the filter and executing the program.
const CALLS: [&str; 61] = [
    // of the program
    "arch_prctl",
    "brk",
    "execve",
    "exit",
    "exit_group",
    "fstat",
    "getpid",
    "getrandom",
    "gettid",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "pause",
    "poll",
    "ppoll",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "sched_getaffinity",
    "tgkill",
    "uname",
    "wait4",
    "waitid",
    "write",
    // of the runtime
    "capget",
    "close",
    "close_range",
    "dup3",
    "epoll_ctl",
    "epoll_pwait",
    "faccessat",
    "faccessat2",
    "fcntl",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getppid",
    "getuid",
    "madvise",
    "nanosleep",
    "openat",
    "prctl",
    "sched_yield",
    "setgroups",
    "statx",
];

/// What the holder's specification follows from.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// A directory that holds the program and empty `/proc`, `/dev`, and nothing else; on a mount without `noexec`.
    pub rootfs: &'a Path,
    /// The program in it, absolute, and its arguments.
    pub args: &'a [&'a str],
    /// What the pod has of its own.
    pub shared: &'a Shared<'a>,
    /// Where its namespaces are.
    pub paths: &'a BundlePaths,
    /// Its cgroup, absolute below each hierarchy's root.
    pub cgroup: &'a str,
    /// The node's facts.
    pub host: &'a HostFacts,
    /// The runtime's abilities.
    pub features: &'a Features,
}

/// Builds the specification.
///
/// # Errors
/// The pod shares no PID namespace.
pub fn build(holder: &Holder<'_>) -> Result<Spec, SpecError> {
    let Holder { rootfs, args, shared, paths, cgroup, host, features } = *holder;
    if shared.pid == crate::model::NamespaceMode::Node {
        return Err(SpecError::invalid("namespace_options.pid", "NODE needs no holder"));
    }
    let new = |kind| Namespace { kind, path: None };
    let join = |kind, path: &PathBuf| Namespace { kind, path: Some(path.clone()) };
    let mut namespaces = vec![new(NamespaceType::Mount), new(NamespaceType::Pid)];
    for (own, kind, path) in [
        (shared.user.is_some(), NamespaceType::User, &paths.user),
        (shared.net, NamespaceType::Network, &paths.net),
        (shared.uts, NamespaceType::Uts, &paths.uts),
        (shared.ipc, NamespaceType::Ipc, &paths.ipc),
    ] {
        if own {
            namespaces.push(join(kind, path));
        }
    }
    if super::namespaces::has_cgroup_namespace(host.cgroups.version, false, features) {
        namespaces.push(new(NamespaceType::Cgroup));
    }
    let (uid_mappings, gid_mappings) = mappings(shared, features);
    let last = |ranges: &[crate::model::IdMapping]| {
        ranges.first().map_or(USER, |range| USER.min(range.container_id.saturating_add(range.length.saturating_sub(1))))
    };
    let (uid, gid) = shared.user.map_or((USER, USER), |user| (last(&user.uids), last(&user.gids)));
    let score = if host.can_lower_oom_score { -998 } else { host.oom_score_adj };
    Ok(Spec {
        oci_version: oci::VERSION.to_owned(),
        process: Process {
            user: User { uid, gid, additional_gids: Vec::new() },
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            cwd: "/".to_owned(),
            capabilities: Capabilities::default(),
            no_new_privileges: true,
            oom_score_adj: Some(score),
            ..Default::default()
        },
        root: Root { path: rootfs.to_owned(), readonly: true },
        mounts: vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/dev", "tmpfs", &["nosuid", "noexec", "mode=755", "size=64k"]),
        ],
        linux: Linux {
            uid_mappings,
            gid_mappings,
            resources: Resources {
                devices: devices::rules(false, &[]),
                pids: host.cgroups.has("pids").then_some(Pids { limit: PIDS }),
                ..Default::default()
            },
            cgroups_path: cgroup.to_owned(),
            namespaces,
            seccomp: filter(host, features),
            ..Default::default()
        },
        ..Default::default()
    })
}

/// A node or runtime without seccomp does without.
fn filter(host: &HostFacts, features: &Features) -> Option<Seccomp> {
    let possible = host.has_seccomp() && features.seccomp != Some(false);
    possible.then(|| Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(1),
        architectures: vec![host.arch.seccomp.to_owned()],
        flags: None,
        syscalls: vec![SeccompRule {
            names: CALLS.map(str::to_owned).to_vec(),
            action: "SCMP_ACT_ALLOW".to_owned(),
            errno_ret: None,
            args: Vec::new(),
        }],
    })
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: kind.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}
