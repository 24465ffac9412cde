//! An address range in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 range such as `10.88.0.0/16`. The host bits of the address are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

/// A text that is no address range, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subnet: {reason}")]
pub struct ParseError {
    text: String,
    reason: &'static str,
}

impl Subnet {
    /// The range of `prefix` bits that `address` lies in; `None` when the prefix is longer than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let host_bits = 32u32.checked_sub(prefix.into())?;
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let host_bits = 128u32.checked_sub(prefix.into())?;
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Some(Self { address, prefix })
    }

    /// The first address of the range.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that are fixed.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.prefix) == Some(*self)
    }

    /// Whether the two ranges share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = |reason| ParseError { text: text.to_owned(), reason };
        let (address, prefix) = text.split_once('/').ok_or_else(|| fail("no /prefix"))?;
        let address: IpAddr = address.parse().map_err(|_| fail("not an IP address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| fail("not a prefix length"))?;
        let subnet = Self::new(address, prefix).ok_or_else(|| fail("prefix longer than the address"))?;
        if subnet.address != address {
            return Err(fail("host bits are set"));
        }
        Ok(subnet)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_cidr_notation() {
        for text in ["10.88.0.0/16", "0.0.0.0/0", "192.0.2.1/32", "fd00:1::/64", "::/0", "fd00::1/128"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/-1", "x/8"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn knows_what_lies_in_it() {
        let subnet: Subnet = "10.88.0.0/16".parse().unwrap();
        assert!(subnet.contains("10.88.255.255".parse().unwrap()));
        assert!(!subnet.contains("10.89.0.0".parse().unwrap()));
        assert!(!subnet.contains("::".parse().unwrap()));
        assert!(subnet.overlaps(&"10.0.0.0/8".parse().unwrap()));
        assert!(!subnet.overlaps(&"10.89.0.0/16".parse().unwrap()));
    }
}
