//! The ranges that pods' addresses come from.
//!
//! Configured ones are taken as they are, unless another instance or another network of the host lies in them. Where none
//! are configured: the first free of `10.77.0.0/16` … `10.87.0.0/16`, `10.64.0.0/16` … `10.76.0.0/16`, `172.31.0.0/16` …
//! `172.16.0.0/16`, and a /64 of a random ULA prefix (RFC 4193) if the host has IPv6. The choice is kept as long as it
//! stays free. `10.88.0.0/16` and up are podman's and samples of CNI configurations', which show no route until they are used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Error;
use super::route::{HostRoute, PROTOCOL};
use crate::Subnet;

/// What bears on the choice.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) configured: &'a [Subnet],
    /// The choice before this one; empty at first.
    pub(super) before: &'a [Subnet],
    /// All routes of the host, both families.
    pub(super) routes: &'a [HostRoute],
    /// Our own claims' metric.
    pub(super) metric: u32,
    /// Why there is no IPv6.
    pub(super) ipv6_missing: Option<&'a str>,
    /// Makes the ULA prefix.
    pub(super) random: u64,
}

/// Chooses the ranges, IPv4 first.
///
/// # Errors
/// A configured range is taken, useless, or of a family that is missing; or all defaults are taken.
pub(super) fn choose(wish: &Wish<'_>) -> Result<Vec<Subnet>, Error> {
    let usable = |subnet: &Subnet| wish.ipv6_missing.is_none() || subnet.address().is_ipv4();
    if !wish.configured.is_empty() {
        for (at, subnet) in wish.configured.iter().enumerate() {
            let same_family = |other: &Subnet| other.address().is_ipv4() == subnet.address().is_ipv4();
            if wish.configured[..at].iter().any(same_family) {
                return Err(Error::Subnet {
                    subnet: *subnet,
                    reason: "only one range per IP version is served".to_owned(),
                });
            }
            if let Some(owner) = wish.routes.iter().find(|route| wish.is_foreign(route) && wish.lies_in(route, *subnet))
            {
                return Err(Error::Subnet {
                    subnet: *subnet,
                    reason: format!("{} is taken by {}", owner.subnet, say(owner)),
                });
            }
        }
        let mut subnets: Vec<Subnet> = wish.configured.iter().copied().filter(usable).collect();
        subnets.sort();
        return match (subnets.is_empty(), wish.configured.first()) {
            (true, Some(subnet)) => Err(Error::Subnet {
                subnet: *subnet,
                reason: format!("there is no IPv6 here: {}", wish.ipv6_missing.unwrap_or_default()),
            }),
            _ => Ok(subnets),
        };
    }
    let free = |subnet: &Subnet| !wish.routes.iter().any(|r| wish.is_foreign(r) && r.subnet.overlaps(subnet));
    let before = |ipv4: bool| wish.before.iter().copied().filter(move |subnet| subnet.address().is_ipv4() == ipv4);
    let tens = (77..=87).chain(64..=76).map(|second| Ipv4Addr::new(10, second, 0, 0));
    let others = (16..=31).rev().map(|second| Ipv4Addr::new(172, second, 0, 0));
    let defaults = tens.chain(others).filter_map(|ip| Subnet::new(ip.into(), 16));
    let ipv4 = before(true).chain(defaults).find(free).ok_or(Error::NoSubnet)?;
    let ula = |n: u64| {
        let prefix = (0xfdu128 << 120) | (u128::from((wish.random ^ n) & 0xff_ffff_ffff) << 80);
        Subnet::new(IpAddr::V6(Ipv6Addr::from_bits(prefix)), 64)
    };
    let ipv6 = before(false).chain((0..8).filter_map(ula)).filter(usable).find(free);
    Ok([Some(ipv4), ipv6].into_iter().flatten().collect())
}

impl Wish<'_> {
    /// Whether a route shows that its range has another owner. Default routes show nothing; routes to single pods neither,
    /// since addresses are taken one by one.
    fn is_foreign(&self, route: &HostRoute) -> bool {
        let theirs = route.protocol != PROTOCOL;
        route.subnet.prefix() > 0 && (theirs || (route.unreachable && route.metric != self.metric))
    }

    /// Of a configured range only what lies inside matters, not a wide route that it was cut out of; and another instance's.
    fn lies_in(&self, route: &HostRoute, subnet: Subnet) -> bool {
        let claim = route.protocol == PROTOCOL && route.subnet.overlaps(&subnet);
        claim || (route.subnet.prefix() >= subnet.prefix() && subnet.contains(route.subnet.address()))
    }
}

fn say(route: &HostRoute) -> String {
    match route.device {
        _ if route.protocol == PROTOCOL => "another instance's pod network".to_owned(),
        Some(index) => format!("a route of this host, by interface number {index}"),
        None => "a route of this host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: u32 = 7;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn route(text: &str) -> HostRoute {
        HostRoute { subnet: subnet(text), protocol: 2, metric: 0, device: Some(3), unreachable: false }
    }

    fn claim(text: &str, metric: u32) -> HostRoute {
        HostRoute { subnet: subnet(text), protocol: PROTOCOL, metric, device: None, unreachable: true }
    }

    fn wish<'a>(configured: &'a [Subnet], before: &'a [Subnet], routes: &'a [HostRoute]) -> Wish<'a> {
        Wish { configured, before, routes, metric: OURS, ipv6_missing: None, random: 0x1234_5678_9abc }
    }

    #[test]
    fn takes_the_first_default_that_is_free() {
        let routes = [route("0.0.0.0/0"), route("10.77.3.0/24"), claim("10.78.0.0/16", 8), claim("10.79.0.0/16", OURS)];
        let chosen = choose(&wish(&[], &[], &routes)).unwrap();
        assert_eq!(chosen, [subnet("10.79.0.0/16"), subnet("fd34:5678:9abc::/64")]);
    }

    #[test]
    fn goes_elsewhere_when_all_of_10_is_routed() {
        let routes = [route("10.0.0.0/8")];
        assert_eq!(choose(&wish(&[], &[], &routes)).unwrap()[0], subnet("172.31.0.0/16"));
        let routes = [route("10.0.0.0/8"), route("172.16.0.0/12")];
        assert!(matches!(choose(&wish(&[], &[], &routes)), Err(Error::NoSubnet)));
    }

    #[test]
    fn keeps_its_choice_until_somebody_else_has_it() {
        let before = [subnet("10.99.0.0/16"), subnet("fd00:9::/64")];
        assert_eq!(choose(&wish(&[], &before, &[])).unwrap(), before);
        let routes = [route("10.99.1.0/24")];
        assert_eq!(choose(&wish(&[], &before, &routes)).unwrap(), [subnet("10.77.0.0/16"), before[1]]);
    }

    #[test]
    fn a_configured_range_may_be_cut_out_of_a_wide_route_but_not_hold_others() {
        let mine = [subnet("10.213.5.0/24")];
        let wide = [route("10.0.0.0/8"), claim("10.214.0.0/16", 8)];
        assert_eq!(choose(&wish(&mine, &[], &wide)).unwrap(), mine);
        for other in [route("10.213.5.128/25"), route("10.213.5.0/24"), claim("10.213.0.0/16", 8)] {
            let routes = [other];
            let error = choose(&wish(&mine, &[], &routes)).unwrap_err().to_string();
            assert!(error.contains("10.213.5.0/24") && error.contains("taken"), "{error}");
        }
    }

    #[test]
    fn without_ipv6_there_is_ipv4() {
        let none = |configured: &[Subnet]| choose(&Wish { ipv6_missing: Some("no"), ..wish(configured, &[], &[]) });
        assert_eq!(none(&[]).unwrap(), [subnet("10.77.0.0/16")]);
        assert_eq!(none(&[subnet("fd00::/64"), subnet("10.1.0.0/16")]).unwrap(), [subnet("10.1.0.0/16")]);
        assert!(none(&[subnet("fd00::/64")]).is_err());
        assert!(choose(&wish(&[subnet("10.1.0.0/16"), subnet("10.2.0.0/16")], &[], &[])).is_err());
    }

    proptest! {
        #[test]
        fn a_default_never_meets_a_route(second in prop::collection::vec((any::<u8>(), 9u8..=32), 0..200), random in any::<u64>()) {
            let routes: Vec<_> = second.into_iter().map(|(b, prefix)| {
                let subnet = Subnet::new(Ipv4Addr::new(10, b, 1, 1).into(), prefix).unwrap();
                HostRoute { subnet, ..route("10.0.0.0/8") }
            }).collect();
            let chosen = choose(&Wish { random, ..wish(&[], &[], &routes) }).unwrap();
            prop_assert!(routes.iter().all(|route| chosen.iter().all(|subnet| !subnet.overlaps(&route.subnet))));
            prop_assert_eq!(chosen.len(), 2);
        }
    }
}
