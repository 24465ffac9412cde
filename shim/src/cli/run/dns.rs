//! The DNS of a pod of `crisp run`, on a node whose own servers are out of its reach.

use std::path::Path;

use crisp_cri_proto::v1::DnsConfig;

/// What the pod's processes ask.
const OWN: &str = "/etc/resolv.conf";
/// The servers behind the stub on loopback (systemd-resolved(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Servers that a pod can reach, where the node asks itself on loopback and systemd-resolved tells whom it asks; else
/// nothing: the server copies the node's file.
pub fn config() -> Option<DnsConfig> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    choose(&read(OWN)?, read(BEHIND_STUB).as_deref())
}

fn choose(own: &str, behind: Option<&str>) -> Option<DnsConfig> {
    let own = parse(own);
    if own.servers.is_empty() || !own.servers.iter().all(|server| is_loopback(server)) {
        return None;
    }
    let mut behind = parse(behind?);
    behind.servers.retain(|server| !is_loopback(server));
    (!behind.servers.is_empty()).then_some(behind)
}

fn is_loopback(server: &str) -> bool {
    server.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// resolv.conf(5); of several `search` lines the last one counts.
fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search") => config.searches = words.collect(),
            Some("options") => config.options.extend(words),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_on_loopback_is_passed_by() {
        let stub = "# by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch a b\n";
        let behind = "nameserver 192.0.2.1\nnameserver fe80::1%2\nsearch lan\n";
        let chosen = choose(stub, Some(behind)).unwrap();
        assert_eq!(
            (chosen.servers, chosen.searches),
            (vec!["192.0.2.1".into(), "fe80::1%2".into()], vec!["lan".into()])
        );
        assert_eq!(choose("nameserver 127.0.0.53\nnameserver 192.0.2.9\n", Some(behind)), None);
        assert_eq!(choose(stub, Some(stub)), None);
        assert_eq!(choose(stub, None), None);
        assert_eq!(choose("", Some(behind)), None);
    }
}
