//! The addresses of one subnet: which are taken, and which is next.
//!
//! ```text
//! 10.77.0.0/16    .0.0 the range's own    .0.1 the host, as pods see it behind NAT    .0.2 … .255.254 pods
//! ```
//! Addresses are handed out in a circle: one that came back is given again only after all others, so that peers that
//! still talk to a pod that went reach nobody, not somebody else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Subnet;

/// No more addresses than these of a subnet are used: enough, and arithmetic stays in 64 bits.
const MOST: u64 = 1 << 32;

/// The address pool of one subnet.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    subnet: Subnet,
    /// Offsets from 2 up to this one are pods' addresses.
    end: u64,
    used: BTreeSet<u64>,
    last: u64,
}

impl Pool {
    /// `None`: the subnet has no room for a host's and a pod's address.
    pub(super) fn new(subnet: Subnet) -> Option<Self> {
        let bits = if subnet.address().is_ipv4() { 32 } else { 128 } - u32::from(subnet.prefix());
        let size = 1u64.checked_shl(bits).filter(|size| *size <= MOST).unwrap_or(MOST);
        // The last address of an IPv4 range is its broadcast address.
        let end = if subnet.address().is_ipv4() { size.checked_sub(2)? } else { size.checked_sub(1)? };
        (end >= 2).then(|| Self { subnet, end, used: BTreeSet::new(), last: 1 })
    }

    pub(super) fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The address that stands for the host where NAT must show pods one.
    pub(super) fn host(&self) -> IpAddr {
        self.at(1)
    }

    /// The next free address; `None`: all are taken.
    pub(super) fn take(&mut self) -> Option<IpAddr> {
        let first_free = |range: std::ops::RangeInclusive<u64>| {
            let mut candidate = *range.start();
            for used in self.used.range(range.clone()) {
                if *used != candidate {
                    break;
                }
                candidate += 1;
            }
            (candidate <= *range.end()).then_some(candidate)
        };
        let after = (self.last < self.end).then(|| first_free(self.last + 1..=self.end)).flatten();
        let offset = after.or_else(|| first_free(2..=self.last.max(2)))?;
        self.used.insert(offset);
        self.last = offset;
        Some(self.at(offset))
    }

    /// Marks an address as taken; one that is not of this subnet is fine.
    pub(super) fn hold(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.used.insert(offset);
        }
    }

    /// Gives an address back.
    pub(super) fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.used.remove(&offset);
        }
    }

    /// The address handed out last, for [`Pool::resume`].
    pub(super) fn last(&self) -> IpAddr {
        self.at(self.last)
    }

    /// Goes on after an address that was handed out before a restart.
    pub(super) fn resume(&mut self, last: IpAddr) {
        if let Some(offset) = self.offset(last) {
            self.last = offset;
        }
    }

    fn at(&self, offset: u64) -> IpAddr {
        match self.subnet.address() {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() + u32::try_from(offset).unwrap_or(u32::MAX))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() + u128::from(offset))),
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u64> {
        let offset = match (self.subnet.address(), address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => u64::from(address.to_bits().checked_sub(base.to_bits())?),
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                address.to_bits().checked_sub(base.to_bits())?.try_into().ok()?
            }
            _ => return None,
        };
        (2..=self.end).contains(&offset).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(subnet: &str) -> Pool {
        Pool::new(subnet.parse().unwrap()).unwrap()
    }

    #[test]
    fn keeps_the_ends_and_the_host_out() {
        let mut pool = pool("192.0.2.0/29");
        assert_eq!(pool.host().to_string(), "192.0.2.1");
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(|ip| ip.to_string()).collect();
        assert_eq!(all, ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"]);
    }

    #[test]
    fn an_address_that_came_back_is_the_last_to_be_given() {
        let mut pool = pool("192.0.2.0/29");
        let first = pool.take().unwrap();
        pool.release(first);
        let next: Vec<_> = (0..5).map(|_| pool.take().unwrap()).collect();
        assert_eq!(next.iter().position(|ip| *ip == first), Some(4));
    }

    #[test]
    fn an_address_that_a_record_holds_is_not_given() {
        let mut pool = pool("192.0.2.0/29");
        pool.hold("192.0.2.2".parse().unwrap());
        pool.hold("198.51.100.2".parse().unwrap());
        assert_eq!(pool.take().unwrap().to_string(), "192.0.2.3");
    }

    #[test]
    fn goes_on_after_a_restart() {
        let mut before = pool("fd00:1::/64");
        before.take();
        let last = before.take().unwrap();
        let mut after = pool("fd00:1::/64");
        after.resume(before.last());
        assert_eq!(before.last(), last);
        assert_eq!(after.take(), before.take());
    }

    #[test]
    fn tiny_ranges_are_no_pool() {
        for subnet in ["192.0.2.0/30", "fd00::/126"] {
            assert!(Pool::new(subnet.parse().unwrap()).is_some(), "{subnet}");
        }
        for subnet in ["192.0.2.0/31", "192.0.2.0/32", "fd00::/127", "fd00::/128"] {
            assert!(Pool::new(subnet.parse().unwrap()).is_none(), "{subnet}");
        }
    }

    proptest! {
        /// Whatever is taken and released: no address is given twice, all lie inside, none is lost.
        #[test]
        fn never_gives_one_address_twice(prefix in 24u8..=30, steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..600)) {
            let subnet = Subnet::new("10.213.7.0".parse().unwrap(), prefix).unwrap();
            let mut pool = Pool::new(subnet).unwrap();
            let room = (1usize << (32 - prefix)) - 3;
            let mut held: Vec<IpAddr> = Vec::new();
            for (take, index) in steps {
                if take {
                    match pool.take() {
                        Some(ip) => {
                            prop_assert!(subnet.contains(ip) && !held.contains(&ip));
                            held.push(ip);
                        }
                        None => prop_assert_eq!(held.len(), room),
                    }
                } else if !held.is_empty() {
                    pool.release(held.swap_remove(index.index(held.len())));
                }
            }
        }
    }
}
