//! The instance's nftables table, as documents for `nft -f -`: one transaction each.
//!
//! ```text
//! table inet <instance>-pods
//!   any4 any6   protocol . host port                → pod address . port     one element a host port, with
//!   at4  at6    host address . protocol . host port → pod address . port     the pod's id as comment
//!   self4 self6 pod address . pod address            a pod that comes back to itself through a host port
//!   guard        raw prerouting  nobody but the host speaks to loopback addresses; pods have no foreign source addresses
//!   prerouting   dstnat          to an address of the host: hostports
//!   output       -100            the same for the host's own clients
//!   postrouting  srcnat          loopback clients and returning pods get the host's address; pods to outside: masquerade
//!   forward      filter          only where an owner's own forward chain drops, and had to be opened: what comes from
//!                                outside reaches pods by host ports alone
//! ```
//! Rules never change with pods; attaching and detaching only add and delete elements, whatever the number of pods.
//! Loopback clients of IPv4 need `route_localnet` on the pod's interface: without the guard that would let the pod reach
//! services on the host's 127.0.0.1 (CVE-2020-8558), so the guard goes in first, and stands before conntrack, where
//! answers to such clients still carry the address that the pod saw. For neighbours on the host's own links the kernel would
//! refuse loopback addresses only after `prerouting` has translated them. IPv6 has the same guard in the kernel (`ip6_rcv_core`).

use std::fmt::Write as _;
use std::net::IpAddr;

use super::names::Names;
use super::ports::{Host, Listener};
use crate::Subnet;

/// What the table says besides pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Layout {
    /// The ranges that pods' addresses come from, each with the address that stands for the host.
    pub(super) subnets: Vec<(Subnet, IpAddr)>,
    /// Addresses of pods outside those ranges: they were given before the configuration changed.
    pub(super) strays: Vec<IpAddr>,
    /// Whether other owners' forward chains were opened, so that this one closes for what they dropped.
    pub(super) closed: bool,
}

/// A pod's part of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) id: &'a str,
    pub(super) ips: &'a [IpAddr],
    pub(super) listeners: &'a [Listener],
}

/// Makes the table anew with all its pods, whatever is there.
pub(super) fn remake<'a>(names: &Names, layout: &Layout, pods: impl IntoIterator<Item = Entry<'a>>) -> String {
    let Names { table, prefix, .. } = names;
    let mut doc = format!(
        r#"table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  map any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map at4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map at6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  set self4 {{ type ipv4_addr . ipv4_addr; }}
  set self6 {{ type ipv6_addr . ipv6_addr; }}
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "{prefix}*" accept
    ip saddr 127.0.0.0/8 drop
    ip6 saddr :: accept
    fib saddr . iif oif missing drop
  }}
  chain hostports {{
    dnat ip to ip daddr . meta l4proto . th dport map @at4
    dnat ip to meta l4proto . th dport map @any4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6
    dnat ip6 to meta l4proto . th dport map @any6
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump hostports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump hostports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
"#
    );
    // Writing to a String cannot fail.
    for (_, host) in &layout.subnets {
        let (family, loopback, own) = match host {
            IpAddr::V4(_) => ("ip", "127.0.0.0/8", "self4"),
            IpAddr::V6(_) => ("ip6", "::1", "self6"),
        };
        let _ = writeln!(doc, "    oifname \"{prefix}*\" {family} saddr {loopback} snat {family} to {host}");
        let _ = writeln!(doc, "    {family} saddr . {family} daddr @{own} snat {family} to {host}");
    }
    let ranges = layout.subnets.iter().map(|(subnet, _)| (subnet.address().is_ipv4(), subnet.to_string()));
    for (ipv4, source) in ranges.chain(layout.strays.iter().map(|ip| (ip.is_ipv4(), ip.to_string()))) {
        let family = if ipv4 { "ip" } else { "ip6" };
        let _ = writeln!(doc, "    oifname != \"{prefix}*\" {family} saddr {source} masquerade fully-random");
    }
    doc.push_str("  }\n");
    if layout.closed {
        let _ = write!(
            doc,
            r#"  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname != "{prefix}*" accept
    iifname "{prefix}*" accept
    ct status dnat accept
    ct state new drop
  }}
"#
        );
    }
    doc.push_str("}\n");
    for pod in pods {
        doc.push_str(&add(names, &pod));
    }
    doc
}

/// Adds a pod's elements; those that are there already stay.
pub(super) fn add(names: &Names, pod: &Entry<'_>) -> String {
    let table = &names.table;
    let comment = format!("comment \"{}\"", pod.id);
    elements(pod).fold(String::new(), |mut doc, (set, key, value)| {
        let value = value.map(|value| format!(" : {value}")).unwrap_or_default();
        let _ = writeln!(doc, "add element inet {table} {set} {{ {key} {comment}{value} }}");
        doc
    })
}

/// Deletes a pod's elements, those too that are not there: each is added first, since nft before 1.0.8 knows no `destroy`.
pub(super) fn remove(names: &Names, pod: &Entry<'_>) -> String {
    let table = &names.table;
    elements(pod).fold(add(names, pod), |mut doc, (set, key, value)| {
        let value = value.map(|value| format!(" : {value}")).unwrap_or_default();
        let _ = writeln!(doc, "delete element inet {table} {set} {{ {key}{value} }}");
        doc
    })
}

/// Removes the table, whether it is there or not.
pub(super) fn drop_table(names: &Names) -> String {
    let table = &names.table;
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// Set or map, key, and value of each of a pod's elements. A listener of a family that the pod has no address in has none.
fn elements<'a>(pod: &'a Entry<'_>) -> impl Iterator<Item = (&'static str, String, Option<String>)> + 'a {
    let address = |ipv4: bool| pod.ips.iter().find(move |ip| ip.is_ipv4() == ipv4);
    let ports = pod.listeners.iter().filter_map(move |listener| {
        let ip = address(listener.host.is_ipv4())?;
        let (protocol, port) = (listener.protocol.as_str(), listener.port);
        let (set, key) = match listener.host {
            Host::Any4 => ("any4", format!("{protocol} . {port}")),
            Host::Any6 => ("any6", format!("{protocol} . {port}")),
            Host::At(at) if at.is_ipv4() => ("at4", format!("{at} . {protocol} . {port}")),
            Host::At(at) => ("at6", format!("{at} . {protocol} . {port}")),
        };
        Some((set, key, Some(format!("{ip} . {}", listener.target))))
    });
    let own = [(true, "self4"), (false, "self6")].into_iter().filter_map(move |(ipv4, set)| {
        let ip = address(ipv4)?;
        let listens = pod.listeners.iter().any(|listener| listener.host.is_ipv4() == ipv4);
        listens.then(|| (set, format!("{ip} . {ip}"), None))
    });
    ports.chain(own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ports::listeners;
    use super::*;
    use crate::{PortMapping, Protocol};

    fn mapping(host_ip: &str) -> PortMapping {
        let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
        PortMapping { protocol: Protocol::Sctp, container_port: 80, host_port: 8080, host_ip }
    }

    fn ips() -> [IpAddr; 2] {
        ["10.77.0.5".parse().unwrap(), "fd00:1::5".parse().unwrap()]
    }

    #[test]
    fn each_host_port_is_one_element_that_names_its_pod() {
        let (names, ips) = (Names::new("crisp"), ips());
        let listeners = listeners(&[mapping("")]);
        let doc = add(&names, &Entry { id: "web", ips: &ips, listeners: &listeners });
        assert_eq!(
            doc,
            "add element inet crisp-pods any4 { sctp . 8080 comment \"web\" : 10.77.0.5 . 80 }\n\
             add element inet crisp-pods any6 { sctp . 8080 comment \"web\" : fd00:1::5 . 80 }\n\
             add element inet crisp-pods self4 { 10.77.0.5 . 10.77.0.5 comment \"web\" }\n\
             add element inet crisp-pods self6 { fd00:1::5 . fd00:1::5 comment \"web\" }\n"
        );
    }

    #[test]
    fn a_pod_without_host_ports_has_no_elements() {
        let (names, ips) = (Names::new("crisp"), ips());
        let none = Entry { id: "web", ips: &ips, listeners: &[] };
        assert_eq!(add(&names, &none) + &remove(&names, &none), "");
        let listeners = listeners(&[mapping("::")]);
        let v4_only = Entry { id: "web", ips: &ips[..1], listeners: &listeners };
        assert_eq!(add(&names, &v4_only), "");
    }

    proptest! {
        /// What removing deletes is what adding adds, element by element.
        #[test]
        fn removing_undoes_adding(hosts in prop::collection::vec(prop::sample::select(vec!["", "0.0.0.0", "::", "192.0.2.1", "fd00:2::1"]), 0..5), both in any::<bool>()) {
            let (names, ips) = (Names::new("crisp"), ips());
            let listeners = listeners(&hosts.into_iter().map(mapping).collect::<Vec<_>>());
            let pod = Entry { id: "web", ips: if both { &ips } else { &ips[..1] }, listeners: &listeners };
            let doc = remove(&names, &pod);
            let of = |verb: &str| doc.lines().filter_map(|line| line.strip_prefix(verb)).map(|l| l.replace(" comment \"web\"", "")).collect::<Vec<_>>();
            prop_assert_eq!(of("add "), of("delete "));
            prop_assert_eq!(of("add ").len(), add(&names, &pod).lines().count());
        }
    }
}
