//! What plugins are told about a pod: `CNI_ARGS` for all of them, capability arguments for those that declare them.
//!
//! The keys and shapes are conventions: `CONVENTIONS.md` of the CNI project, and for `K8S_…` and the pod's annotations what
//! Kubernetes runtimes have always handed over.

use serde_json::{Map, Value, json};

use super::error::Error;
use crate::{Pod, Subnet};

/// The pod's annotations, as a capability.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The text of `CNI_ARGS`.
pub(crate) fn cni_args(pod: &Pod<'_>) -> Result<String, Error> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", pod.namespace),
        ("K8S_POD_NAME", pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id),
        ("K8S_POD_UID", pod.uid),
    ];
    // There is no way to write these characters inside a value.
    if let Some((what, value)) = pairs.into_iter().find(|(_, value)| value.contains([';', '=', '\0'])) {
        return Err(Error::Argument { what, value: value.to_owned() });
    }
    Ok(pairs.map(|(key, value)| format!("{key}={value}")).join(";"))
}

/// All capability arguments that this runtime can give for the pod, by capability.
pub(crate) fn capabilities(pod: &Pod<'_>, pod_ranges: &[Subnet]) -> Map<String, Value> {
    let mut given = Map::new();
    let mut give = |capability: &str, value: Value| given.insert(capability.to_owned(), value);
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_str(),
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    if !ports.is_empty() {
        give("portMappings", ports.into());
    }
    if let Some(limits) = pod.bandwidth {
        // The plugin demands a burst beside a rate; this is its largest: the rate alone limits.
        let burst = u64::from(u32::MAX);
        let mut value = json!({});
        for (direction, rate) in [("ingress", limits.ingress), ("egress", limits.egress)] {
            if let Some(rate) = rate.filter(|rate| *rate > 0) {
                value[format!("{direction}Rate")] = rate.into();
                value[format!("{direction}Burst")] = burst.into();
            }
        }
        if value != json!({}) {
            give("bandwidth", value);
        }
    }
    if let Some(dns) = pod.dns {
        give("dns", json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    if !pod_ranges.is_empty() {
        give("ipRanges", pod_ranges.iter().map(|range| json!([{"subnet": range}])).collect());
    }
    if !pod.cgroup_parent.is_empty() {
        give("cgroupPath", pod.cgroup_parent.into());
    }
    give(ANNOTATIONS, json!(pod.annotations));
    for (capability, value) in pod.capabilities {
        give(capability, value.clone());
    }
    given
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::{Bandwidth, Dns, PortMapping, Protocol};

    fn with<T>(name: &str, work: impl FnOnce(&Pod<'_>) -> T) -> T {
        let port = |host_port, host_ip: Option<&str>| PortMapping {
            protocol: Protocol::Sctp,
            container_port: 80,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        work(&Pod {
            id: "a1",
            name,
            namespace: "default",
            uid: "u-1",
            netns: Path::new("/run/netns/x"),
            ports: &[port(8080, None), port(0, None), port(81, Some("::1"))],
            bandwidth: Some(Bandwidth { ingress: Some(1000), egress: None }),
            dns: Some(&Dns { servers: vec!["10.0.0.10".to_owned()], ..Dns::default() }),
            cgroup_parent: "/kubepods/pod1",
            annotations: &BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            capabilities: &BTreeMap::from([("mac".to_owned(), json!("c2:11:22:33:44:55"))]),
        })
    }

    #[test]
    fn the_pod_is_named() {
        assert_eq!(
            with("web", cni_args).unwrap(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=a1;K8S_POD_UID=u-1"
        );
        for name in ["a;IP=10.0.0.1", "a=b", "a\0"] {
            assert!(with(name, cni_args).is_err());
        }
    }

    #[test]
    fn capabilities_have_the_conventions_shapes() {
        let given = with("web", |pod| capabilities(pod, &["10.1.0.0/24".parse().unwrap()]));
        assert_eq!(
            Value::Object(given),
            json!({
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": ""},
                    {"hostPort": 81, "containerPort": 80, "protocol": "sctp", "hostIP": "::1"}],
                "bandwidth": {"ingressRate": 1000, "ingressBurst": 4_294_967_295u32},
                "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
                "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
                "cgroupPath": "/kubepods/pod1",
                "io.kubernetes.cri.pod-annotations": {"a": "b"},
                "mac": "c2:11:22:33:44:55",
            })
        );
    }
}
