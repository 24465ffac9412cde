//! Kernel parameters that belong to a pod's namespaces: which one, and the file that sets it.
//!
//! A parameter counts as the pod's only when the kernel keeps it per network or IPC namespace; all others would change
//! the whole machine (Kubernetes: "Using sysctls in a Kubernetes Cluster"; sysctl(8) for the spelling).

use std::ffi::CString;

/// The namespace that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Net,
    /// Of an interface that exists only once the network is attached: `net.ipv4.conf.eth0.…`.
    Interface,
    Ipc,
}

/// Finds the namespace of a parameter and its file below `/proc/sys`; the error is the reason of the refusal.
pub(crate) fn locate(name: &str) -> Result<(Scope, CString), &'static str> {
    // sysctl(8): the first separator decides; with dots, a slash stands for a dot inside a part (`eth0/100`).
    let parts: Vec<String> = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.split('/').map(str::to_owned).collect(),
        _ => name.split('.').map(|part| part.replace('/', ".")).collect(),
    };
    if parts.iter().any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("not a parameter's name");
    }
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    let scope = match words.as_slice() {
        ["net", "ipv4" | "ipv6", "conf" | "neigh", interface, _, ..]
            if !matches!(*interface, "all" | "default" | "lo") =>
        {
            Scope::Interface
        }
        ["net", _, ..] => Scope::Net,
        ["kernel", "sem"] | ["fs", "mqueue", _] => Scope::Ipc,
        ["kernel", leaf] if leaf.starts_with("shm") || leaf.starts_with("msg") => Scope::Ipc,
        _ => return Err("not a parameter of a network or IPC namespace"),
    };
    let path = CString::new(format!("/proc/sys/{}", words.join("/"))).map_err(|_| "its name holds a NUL byte")?;
    Ok((scope, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> String {
        locate(name).unwrap().1.into_string().unwrap()
    }

    #[test]
    fn finds_the_namespace() {
        for (name, scope) in [
            ("net.ipv4.ip_unprivileged_port_start", Scope::Net),
            ("net.core.somaxconn", Scope::Net),
            ("net.ipv4.conf.all.forwarding", Scope::Net),
            ("net.ipv6.conf.eth0.accept_ra", Scope::Interface),
            ("net/ipv4/neigh/eth0.7/mcast_solicit", Scope::Interface),
            ("kernel.shmmax", Scope::Ipc),
            ("kernel.shm_rmid_forced", Scope::Ipc),
            ("kernel.msgmni", Scope::Ipc),
            ("kernel.sem", Scope::Ipc),
            ("fs.mqueue.msg_max", Scope::Ipc),
        ] {
            assert_eq!(locate(name).unwrap().0, scope, "{name}");
        }
    }

    #[test]
    fn reads_both_spellings() {
        assert_eq!(path("net.ipv4.conf.eth0/100.rp_filter"), "/proc/sys/net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(path("net/ipv4/conf/eth0.100/rp_filter"), "/proc/sys/net/ipv4/conf/eth0.100/rp_filter");
    }

    #[test]
    fn refuses_what_would_reach_the_machine() {
        for name in [
            "",
            "net",
            "kernel.hostname",
            "kernel.core_pattern",
            "kernel.shm.x",
            "vm.swappiness",
            "fs.file-max",
            "net..x",
            "net/../kernel/core_pattern",
            "net.//.kernel",
            "/net/ipv4/tcp_syncookies",
            "net.ipv4.\0",
        ] {
            assert!(locate(name).is_err(), "{name:?}");
        }
    }
}
