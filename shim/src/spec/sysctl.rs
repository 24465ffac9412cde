//! Kernel parameters of a pod: defaults, and what was asked for.
//!
//! They are set when the pod's namespaces are made, from inside its user namespace; which parameter belongs to which
//! namespace, and that none of the node's is touched, is decided there (`crisp_netns::Pins`).

use crate::model::{NamespaceMode, SandboxConfig, StringMap};

/// Every port is for everybody in a network namespace of one's own.
const PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
/// Groups that may send echo requests without a capability (icmp(7)): all of them.
const PING: &str = "net.ipv4.ping_group_range";
/// The largest group that the parameter takes.
const MAX_GROUP: u32 = i32::MAX as u32;

/// What the pod's namespaces are given: the field's defaults where the pod has a network of its own, overridden by what
/// it asks for.
pub fn of_pod(sandbox: &SandboxConfig) -> StringMap {
    let mut sysctls = StringMap::new();
    if sandbox.namespaces.network != NamespaceMode::Node {
        sysctls.insert(PORTS.0.to_owned(), PORTS.1.to_owned());
        if let Some(groups) = groups(sandbox) {
            sysctls.insert(PING.to_owned(), groups);
        }
    }
    for (name, value) in &sandbox.sysctls {
        // Both spellings of sysctl(8) name the same file, and the pod's word is the last one.
        let dotted = if name.split_once(['.', '/']).is_some_and(|(first, _)| name[first.len()..].starts_with('/')) {
            name.chars().map(swap).collect()
        } else {
            name.clone()
        };
        sysctls.insert(dotted, value.clone());
    }
    sysctls
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
        let sysctls = of_pod(&sandbox());
        assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(sysctls["net.ipv4.ping_group_range"], "0 2147483647");
    }

    #[test]
    fn the_node_network_is_left_alone() {
        let mut sandbox = sandbox();
        sandbox.namespaces.network = NamespaceMode::Node;
        assert!(of_pod(&sandbox).is_empty());
    }

    #[test]
    fn the_pod_has_the_last_word_in_either_spelling() {
        for name in ["net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start"] {
            let mut sandbox = sandbox();
            sandbox.sysctls = [(name.to_owned(), "1024".to_owned())].into();
            assert_eq!(of_pod(&sandbox)["net.ipv4.ip_unprivileged_port_start"], "1024");
        }
        let mut sandbox = sandbox();
        sandbox.sysctls = [("net/ipv4/conf/eth0.1/rp_filter".to_owned(), "1".to_owned())].into();
        assert_eq!(of_pod(&sandbox)["net.ipv4.conf.eth0/1.rp_filter"], "1");
    }

    #[test]
    fn only_groups_that_the_pod_has_may_ping() {
        assert_eq!(of_pod(&mapped(0, 65_536))["net.ipv4.ping_group_range"], "0 65535");
        assert_eq!(of_pod(&mapped(0, u32::MAX))["net.ipv4.ping_group_range"], "0 2147483647");
        assert!(!of_pod(&mapped(0, 0)).contains_key("net.ipv4.ping_group_range"));
    }

    proptest! {
        #[test]
        fn any_mapping_and_any_name_give_a_range_within_the_mapping(id: u32, length: u32, name: String) {
            let mut sandbox = mapped(id, length);
            sandbox.sysctls.insert(name, String::new());
            if let Some(range) = of_pod(&sandbox).get("net.ipv4.ping_group_range").filter(|range| !range.is_empty()) {
                let (low, high) = range.split_once(' ').unwrap();
                let (low, high): (u64, u64) = (low.parse().unwrap(), high.parse().unwrap());
                prop_assert!(low <= high && low == u64::from(id) && high < u64::from(id) + u64::from(length));
            }
        }
    }
}
