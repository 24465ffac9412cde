//! Kernel parameters of a pod: defaults, and what was asked for.
//!
//! They are set when the pod's namespaces are made, from inside its user namespace (`crisp_netns::Pins`, which is the one to
//! find a parameter's file). What is not the pod's to set is refused here, before anything is made.

use super::SpecError;
use crate::model::{NamespaceMode, SandboxConfig, StringMap};

/// Every port is for everybody in a network namespace of one's own.
const PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
/// Groups that may send echo requests without a capability (icmp(7)): all of them.
const PING: &str = "net.ipv4.ping_group_range";
/// The largest group that the parameter takes.
const MAX_GROUP: u32 = i32::MAX as u32;

/// What the pod's namespaces are given: the field's defaults where the pod has a network of its own, overridden by what
/// it asks for.
///
/// # Errors
/// A parameter of a namespace that is the node's, or of none.
pub fn of_pod(sandbox: &SandboxConfig) -> Result<StringMap, SpecError> {
    let mut sysctls = StringMap::new();
    let own_network = sandbox.namespaces.network != NamespaceMode::Node;
    if own_network {
        sysctls.insert(PORTS.0.to_owned(), PORTS.1.to_owned());
        if let Some(groups) = groups(sandbox) {
            sysctls.insert(PING.to_owned(), groups);
        }
    }
    for (name, value) in &sandbox.sysctls {
        let dotted = dotted(name);
        let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        let problem = match dotted.as_str() {
            net if net.starts_with("net.") => (!own_network).then_some("the pod uses the node's network"),
            ipc if of_ipc || ipc == "kernel.sem" => {
                (sandbox.namespaces.ipc == NamespaceMode::Node).then_some("the pod uses the node's IPC namespace")
            }
            _ => Some("it is the whole node's"),
        };
        if let Some(problem) = problem {
            return Err(SpecError::invalid("linux.sysctls", format!("{name} cannot be set: {problem}")));
        }
        // The pod's word is the last one.
        sysctls.insert(dotted, value.clone());
    }
    Ok(sysctls)
}

/// Both spellings of sysctl(8) name the same file; the first separator decides.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

fn swap(character: char) -> char {
    match character {
        '/' => '.',
        '.' => '/',
        other => other,
    }
}

/// The kernel refuses groups that the writer's user namespace does not have. The pod's only range is the whole of it.
fn groups(sandbox: &SandboxConfig) -> Option<String> {
    let Some(user) = &sandbox.namespaces.user else { return Some(format!("0 {MAX_GROUP}")) };
    let range = user.gids.iter().find(|range| range.length > 0)?;
    let last = range.container_id.saturating_add(range.length - 1).min(MAX_GROUP);
    (range.container_id <= last).then(|| format!("{} {last}", range.container_id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{IdMapping, UserMapping};
    use crate::spec::tests::sandbox;

    fn mapped(container_id: u32, length: u32) -> SandboxConfig {
        let range = vec![IdMapping { host_id: 100_000, container_id, length }];
        let mut sandbox = sandbox();
        sandbox.namespaces.user = Some(UserMapping { uids: range.clone(), gids: range });
        sandbox
    }

    #[test]
    fn a_pod_network_lets_everybody_ping_and_listen() {
        let sysctls = of_pod(&sandbox()).unwrap();
        assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(sysctls["net.ipv4.ping_group_range"], "0 2147483647");
    }

    #[test]
    fn the_node_network_is_left_alone() {
        let mut sandbox = sandbox();
        sandbox.namespaces.network = NamespaceMode::Node;
        assert!(of_pod(&sandbox).unwrap().is_empty());
    }

    #[test]
    fn the_pod_has_the_last_word_in_either_spelling() {
        for name in ["net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start"] {
            let mut sandbox = sandbox();
            sandbox.sysctls = [(name.to_owned(), "1024".to_owned())].into();
            assert_eq!(of_pod(&sandbox).unwrap()["net.ipv4.ip_unprivileged_port_start"], "1024");
        }
        let mut sandbox = sandbox();
        sandbox.sysctls = [("net/ipv4/conf/eth0.1/rp_filter".to_owned(), "1".to_owned())].into();
        assert_eq!(of_pod(&sandbox).unwrap()["net.ipv4.conf.eth0/1.rp_filter"], "1");
    }

    #[test]
    fn only_groups_that_the_pod_has_may_ping() {
        assert_eq!(of_pod(&mapped(0, 65_536)).unwrap()["net.ipv4.ping_group_range"], "0 65535");
        assert_eq!(of_pod(&mapped(0, u32::MAX)).unwrap()["net.ipv4.ping_group_range"], "0 2147483647");
        assert!(!of_pod(&mapped(0, 0)).unwrap().contains_key("net.ipv4.ping_group_range"));
    }

    #[test]
    fn what_is_the_nodes_is_refused_by_name() {
        let refused = |name: &str, node: fn(&mut SandboxConfig)| {
            let mut sandbox = sandbox();
            node(&mut sandbox);
            sandbox.sysctls = [(name.to_owned(), "1".to_owned())].into();
            of_pod(&sandbox).map_err(|error| error.to_string())
        };
        let net: fn(&mut SandboxConfig) = |sandbox| sandbox.namespaces.network = NamespaceMode::Node;
        let ipc: fn(&mut SandboxConfig) = |sandbox| sandbox.namespaces.ipc = NamespaceMode::Node;
        let error = refused("net.core.somaxconn", net).unwrap_err();
        assert_eq!(error, "linux.sysctls: net.core.somaxconn cannot be set: the pod uses the node's network");
        for name in ["kernel.shmmax", "kernel.msgmni", "kernel.sem", "kernel/sem", "fs.mqueue.msg_max"] {
            assert!(refused(name, ipc).unwrap_err().contains("the node's IPC namespace"), "{name}");
            assert!(refused(name, net).is_ok(), "{name}");
        }
        for name in ["", "vm.swappiness", "kernel.core_pattern", "kernel", "fs.file-max", "network.x"] {
            assert!(refused(name, |_| ()).unwrap_err().contains("the whole node's"), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_mapping_and_any_name_give_a_range_within_the_mapping(id: u32, length: u32, name: String) {
            let mut sandbox = mapped(id, length);
            sandbox.sysctls.insert(format!("net.{name}"), String::new());
            let sysctls = of_pod(&sandbox).unwrap();
            if let Some(range) = sysctls.get("net.ipv4.ping_group_range").filter(|range| !range.is_empty()) {
                let (low, high) = range.split_once(' ').unwrap();
                let (low, high): (u64, u64) = (low.parse().unwrap(), high.parse().unwrap());
                prop_assert!(low <= high && low == u64::from(id) && high < u64::from(id) + u64::from(length));
            }
        }
    }
}
