//! `PodSandboxConfig` → [`SandboxConfig`].

use crisp_cri_proto::v1;
use crisp_netns::{Bandwidth, PortMapping, Protocol};

use super::common::{apparmor, invalid, namespaces, resources, seccomp, selinux, string_map, unserved};
use crate::cgroup::check_parent;
use crate::error::{Error, Result};
use crate::host::HostFacts;
use crate::model::{DnsConfig, NamespaceMode, Namespaces, SandboxConfig, SandboxName, StringMap};

/// Takes the request apart; everything in it is decided about here.
pub fn sandbox_config(config: Option<v1::PodSandboxConfig>, host: &HostFacts) -> Result<SandboxConfig> {
    let Some(v1::PodSandboxConfig {
        metadata,
        hostname,
        log_directory,
        dns_config,
        port_mappings,
        labels,
        annotations,
        linux,
        windows,
    }) = config
    else {
        return Err(Error::Invalid("config is missing".to_owned()));
    };
    if windows.is_some() {
        return Err(unserved("windows"));
    }
    let Some(v1::PodSandboxMetadata { name, uid, namespace, attempt }) = metadata else {
        return Err(Error::Invalid("metadata is missing".to_owned()));
    };
    if name.is_empty() {
        return Err(invalid("metadata.name", "is empty"));
    }
    let v1::LinuxPodSandboxConfig { cgroup_parent, security_context, sysctls, overhead, resources: pod_resources } =
        linux.unwrap_or_default();
    #[allow(deprecated, reason = "older kubelets send seccomp_profile_path")]
    let v1::LinuxSandboxSecurityContext {
        namespace_options,
        selinux_options,
        // User, groups and a read-only root would be those of a pause container: nothing of ours runs in a pod but the
        // PID namespace's holder, which has less than any of them can give.
        run_as_user,
        run_as_group,
        readonly_rootfs: _,
        supplemental_groups: _,
        supplemental_groups_policy: _,
        privileged,
        seccomp: seccomp_profile,
        apparmor: apparmor_profile,
        seccomp_profile_path,
    } = security_context.unwrap_or_default();
    if run_as_group.is_some() && run_as_user.is_none() {
        return Err(invalid("security_context.run_as_group", "needs a run_as_user"));
    }
    selinux("security_context.selinux_options", selinux_options, host)?;
    apparmor("security_context.apparmor", apparmor_profile, "", host)?;
    let namespaces = sandbox_namespaces(namespaces(namespace_options)?)?;
    if hostname.len() > 64 {
        return Err(invalid("hostname", "is longer than 64 bytes"));
    }
    let annotations = string_map(annotations);
    // The node's network goes with the node's name.
    let hostname = if namespaces.network == NamespaceMode::Node { String::new() } else { hostname };
    Ok(SandboxConfig {
        name: SandboxName { name, namespace, uid, attempt },
        hostname,
        log_directory,
        dns: dns_config.map(|v1::DnsConfig { servers, searches, options }| DnsConfig { servers, searches, options }),
        ports: ports(port_mappings, namespaces.network)?,
        labels: string_map(labels),
        bandwidth: bandwidth(&annotations)?,
        annotations,
        cgroup_parent: checked_parent(cgroup_parent)?,
        namespaces,
        sysctls: string_map(sysctls),
        privileged,
        seccomp: seccomp("security_context.seccomp", seccomp_profile, seccomp_profile_path)?,
        overhead: resources(overhead),
        resources: resources(pod_resources),
    })
}

fn sandbox_namespaces(namespaces: Namespaces) -> Result<Namespaces> {
    let shared_or_node = |field, mode| match mode {
        NamespaceMode::Pod | NamespaceMode::Node => Ok(()),
        NamespaceMode::Container | NamespaceMode::Target => Err(invalid(field, "a sandbox can have POD or NODE")),
    };
    shared_or_node("namespace_options.network", namespaces.network)?;
    shared_or_node("namespace_options.ipc", namespaces.ipc)?;
    if namespaces.pid == NamespaceMode::Target {
        return Err(invalid("namespace_options.pid", "a sandbox has no container to target yet"));
    }
    Ok(namespaces)
}

/// A path below each hierarchy's root, without steps out of it.
fn checked_parent(parent: String) -> Result<String> {
    if parent.is_empty() {
        return Ok(parent);
    }
    let slice = parent.ends_with(".slice") && !parent.contains('/');
    let absolute = if slice { parent } else { format!("/{}", parent.trim_matches('/')) };
    check_parent(&absolute).map_err(|error| invalid("linux.cgroup_parent", error))?;
    Ok(absolute)
}

fn ports(mappings: Vec<v1::PortMapping>, network: NamespaceMode) -> Result<Vec<PortMapping>> {
    let mut ports = Vec::new();
    for v1::PortMapping { protocol, container_port, host_port, host_ip } in mappings {
        let port =
            |field, number: i32| u16::try_from(number).map_err(|_| invalid(field, format_args!("{number} is no port")));
        let (container_port, host_port) =
            (port("port_mappings.container_port", container_port)?, port("port_mappings.host_port", host_port)?);
        let protocol = match v1::Protocol::try_from(protocol) {
            Ok(v1::Protocol::Tcp) => Protocol::Tcp,
            Ok(v1::Protocol::Udp) => Protocol::Udp,
            Ok(v1::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => return Err(invalid("port_mappings.protocol", format_args!("{protocol} is none"))),
        };
        let host_ip = match host_ip.as_str() {
            "" => None,
            text => match text.parse::<std::net::IpAddr>() {
                Ok(ip) if ip.is_unspecified() => None,
                Ok(ip) => Some(ip),
                Err(_) => return Err(invalid("port_mappings.host_ip", format_args!("{text:?} is no address"))),
            },
        };
        // With the node's network a port is where the process listens; without a host port it is only said, not asked.
        if network != NamespaceMode::Node && host_port != 0 {
            ports.push(PortMapping { protocol, container_port, host_port, host_ip });
        }
    }
    Ok(ports)
}

/// `kubernetes.io/ingress-bandwidth` and `egress-bandwidth`: bits a second, as Kubernetes quantities.
fn bandwidth(annotations: &StringMap) -> Result<Option<Bandwidth>> {
    let limit = |name: &str| match annotations.get(name) {
        None => Ok(None),
        Some(text) => match quantity(text) {
            Some(bits @ 1_000..=1_000_000_000_000_000) => Ok(Some(bits)),
            Some(bits) => Err(invalid(name, format_args!("{bits} bits a second is not within 1k and 1P"))),
            None => Err(invalid(name, format_args!("{text:?} is no quantity, like 10M"))),
        },
    };
    let bandwidth = Bandwidth {
        ingress: limit("kubernetes.io/ingress-bandwidth")?,
        egress: limit("kubernetes.io/egress-bandwidth")?,
    };
    Ok((bandwidth != Bandwidth::default()).then_some(bandwidth))
}

/// A quantity as Kubernetes writes them (apimachinery, `resource.Quantity`), rounded up to a whole number.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => (1_u64 << 40) as f64,
        "Pi" => (1_u64 << 50) as f64,
        "Ei" => (1_u64 << 60) as f64,
        power => 10_f64.powi(power.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let value = (number.parse::<f64>().ok()? * factor).ceil();
    (value < u64::MAX as f64).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        assert_eq!(quantity("10M"), Some(10_000_000));
        assert_eq!(quantity("1Ki"), Some(1024));
        assert_eq!(quantity("1.5G"), Some(1_500_000_000));
        assert_eq!((quantity("1e6"), quantity("1500m")), (Some(1_000_000), Some(2)));
        for text in ["", "M", "-1", "1x", "1.2.3", "e6", "1e", "99999999999999999999"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn a_cgroup_parent_stays_below_the_root() {
        assert_eq!(checked_parent("/kubepods/burstable/pod1/".into()).unwrap(), "/kubepods/burstable/pod1");
        assert_eq!(checked_parent("a".into()).unwrap(), "/a");
        assert_eq!(checked_parent("/kubepods.slice/pod.slice".into()).unwrap(), "/kubepods.slice/pod.slice");
        for parent in ["/../x", "/a/../../b", "/", "//", "kubepods-pod1.slice", "system.slice:crisp:x", "/a\n"] {
            assert!(checked_parent(parent.into()).is_err(), "{parent}");
        }
    }

    #[test]
    fn host_port_zero_is_no_host_port_and_an_unspecified_address_is_any() {
        let mapping = |host_port, host_ip: &str| v1::PortMapping {
            protocol: 0,
            container_port: 80,
            host_port,
            host_ip: host_ip.into(),
        };
        let made = ports(vec![mapping(0, ""), mapping(8080, "0.0.0.0")], NamespaceMode::Pod).unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!((made[0].host_port, made[0].host_ip), (8080, None));
        assert!(ports(vec![mapping(70_000, "")], NamespaceMode::Pod).is_err());
        assert!(ports(vec![mapping(1, "localhost")], NamespaceMode::Pod).is_err());
    }
}
