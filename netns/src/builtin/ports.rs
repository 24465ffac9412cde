//! Host ports: what a mapping listens on, and which pod has it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Error;
use crate::{PortMapping, Protocol};

/// The host addresses that one forwarding rule serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Host {
    /// Every IPv4 address of the host.
    Any4,
    /// Every IPv6 address of the host.
    Any6,
    /// This one.
    At(IpAddr),
}

/// One port of the host in one address family, and the pod's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) host: Host,
    pub(super) target: u16,
}

impl Host {
    pub(super) fn is_ipv4(self) -> bool {
        match self {
            Self::Any4 => true,
            Self::Any6 => false,
            Self::At(ip) => ip.is_ipv4(),
        }
    }

    /// Whether clients on the host itself come through 127.0.0.0/8 or ::1.
    pub(super) fn has_loopback(self) -> bool {
        match self {
            Self::Any4 | Self::Any6 => true,
            Self::At(ip) => ip.is_loopback(),
        }
    }

    /// As sockets do: the unspecified address meets every address of its family.
    fn meets(self, other: Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && (self == other || !matches!((self, other), (Self::At(_), Self::At(_))))
    }
}

/// What the mappings listen on. `host_port` 0 is no host port; no `host_ip` means both families; `0.0.0.0` and `::` one.
/// Equal entries count once.
pub(super) fn listeners(mappings: &[PortMapping]) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let hosts: &[Host] = match mapping.host_ip.map(|ip| ip.to_canonical()) {
            None => &[Host::Any4, Host::Any6],
            Some(ip) if ip.is_unspecified() => &[if ip.is_ipv4() { Host::Any4 } else { Host::Any6 }],
            Some(ip) => &[Host::At(ip)],
        };
        for &host in hosts {
            let (protocol, port, target) = (mapping.protocol, mapping.host_port, mapping.container_port);
            listeners.push(Listener { protocol, port, host, target });
        }
    }
    listeners.sort();
    listeners.dedup();
    listeners
}

/// Who has which host port.
#[derive(Debug, Default)]
pub(super) struct Ports {
    taken: BTreeMap<(Protocol, u16), Vec<(Host, String)>>,
}

impl Ports {
    /// Takes all listeners for the pod, or none.
    ///
    /// # Errors
    /// [`Error::PortInUse`] names the pod that has one of them; it may be the same pod, mapping one port twice.
    pub(super) fn take(&mut self, id: &str, listeners: &[Listener]) -> Result<(), Error> {
        for (at, listener) in listeners.iter().enumerate() {
            let (protocol, port) = (listener.protocol, listener.port);
            let others = self.taken.get(&(protocol, port)).into_iter().flatten();
            let owner = others.filter(|(host, _)| host.meets(listener.host)).map(|(_, owner)| owner.as_str()).next();
            let mine = |earlier: &Listener| {
                (earlier.protocol, earlier.port) == (protocol, port) && earlier.host.meets(listener.host)
            };
            let owner = owner.or_else(|| listeners[..at].iter().any(mine).then_some(id));
            if let Some(owner) = owner {
                return Err(Error::PortInUse { protocol: protocol.as_str(), port, pod: owner.to_owned() });
            }
        }
        for listener in listeners {
            let key = (listener.protocol, listener.port);
            self.taken.entry(key).or_default().push((listener.host, id.to_owned()));
        }
        Ok(())
    }

    /// Gives back all that the pod has.
    pub(super) fn release(&mut self, id: &str, listeners: &[Listener]) {
        for listener in listeners {
            let key = (listener.protocol, listener.port);
            if let Some(owners) = self.taken.get_mut(&key) {
                owners.retain(|(_, owner)| owner != id);
                if owners.is_empty() {
                    self.taken.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host_ip: &str, host_port: u16) -> PortMapping {
        let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip }
    }

    #[test]
    fn an_empty_host_address_means_both_families_and_port_0_nothing() {
        let hosts = |mapping| listeners(&[mapping]).iter().map(|l| l.host).collect::<Vec<_>>();
        assert_eq!(hosts(tcp("", 8080)), [Host::Any4, Host::Any6]);
        assert_eq!(hosts(tcp("0.0.0.0", 8080)), [Host::Any4]);
        assert_eq!(hosts(tcp("::", 8080)), [Host::Any6]);
        assert_eq!(hosts(tcp("::ffff:192.0.2.1", 8080)), [Host::At("192.0.2.1".parse().unwrap())]);
        assert_eq!(hosts(tcp("", 0)), []);
        assert_eq!(listeners(&[tcp("", 8080), tcp("0.0.0.0", 8080)]).len(), 2);
    }

    #[test]
    fn a_second_pod_learns_who_has_the_port() {
        let mut ports = Ports::default();
        let first = listeners(&[tcp("", 8080), tcp("192.0.2.1", 8081)]);
        ports.take("first", &first).unwrap();
        for taken in [tcp("", 8080), tcp("127.0.0.1", 8080), tcp("::", 8080), tcp("", 8081), tcp("192.0.2.1", 8081)] {
            let refused = ports.take("second", &listeners(&[tcp("", 9), taken.clone()])).unwrap_err();
            assert!(matches!(refused, Error::PortInUse { ref pod, .. } if pod == "first"), "{taken:?}: {refused}");
        }
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp("", 8080) };
        ports.take("second", &listeners(&[udp, tcp("192.0.2.2", 8081), tcp("", 9)])).unwrap();
        ports.release("first", &first);
        ports.take("third", &listeners(&[tcp("", 8080)])).unwrap();
    }

    #[test]
    fn one_pod_cannot_lead_one_port_to_two() {
        let twice = [tcp("", 8080), PortMapping { container_port: 81, ..tcp("", 8080) }];
        assert!(
            matches!(Ports::default().take("a", &listeners(&twice)), Err(Error::PortInUse { pod, .. }) if pod == "a")
        );
    }

    proptest! {
        /// A refused pod changes nothing, and what was given back is free.
        #[test]
        fn all_or_nothing(asked in prop::collection::vec((0u16..4, 0usize..4), 1..6), held in prop::collection::vec((0u16..4, 0usize..4), 1..6)) {
            let hosts = ["", "0.0.0.0", "192.0.2.1", "::1"];
            let map = |list: &[(u16, usize)]| listeners(&list.iter().map(|(port, host)| tcp(hosts[*host], 1 + port)).collect::<Vec<_>>());
            let (held, asked) = (map(&held), map(&asked));
            let mut ports = Ports::default();
            prop_assume!(ports.take("held", &held).is_ok());
            let before = format!("{ports:?}");
            if ports.take("asked", &asked).is_ok() {
                ports.release("asked", &asked);
            }
            prop_assert_eq!(before, format!("{ports:?}"));
        }
    }
}
