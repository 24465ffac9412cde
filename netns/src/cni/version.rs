//! Versions of the CNI specification, and what each of them knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version that this runtime speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Version(u8, u8, u8);

/// All of them, in order.
pub(crate) const SUPPORTED: [Version; 7] = [
    Version(0, 1, 0),
    Version(0, 2, 0),
    Version(0, 3, 0),
    Version(0, 3, 1),
    Version(0, 4, 0),
    Version(1, 0, 0),
    Version(1, 1, 0),
];

/// The shape of a result in a family of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `ip4` and `ip6`, one address each.
    Pair,
    /// A list `ips` whose entries say their IP version.
    Versioned,
    /// A list `ips`.
    Plain,
}

impl Version {
    /// What a configuration without a version has.
    pub(crate) const OLDEST: Self = SUPPORTED[0];
    pub(crate) const NEWEST: Self = SUPPORTED[SUPPORTED.len() - 1];

    pub(crate) fn shape(self) -> Shape {
        match self {
            Self(0, 0..=2, _) => Shape::Pair,
            Self(0, ..) => Shape::Versioned,
            _ => Shape::Plain,
        }
    }

    /// Plugins can be chained: each gets the result of the one before it.
    pub(crate) fn chains(self) -> bool {
        self >= Self(0, 3, 0)
    }

    /// CHECK exists, and DEL gets the result of ADD.
    pub(crate) fn checks(self) -> bool {
        self >= Self(0, 4, 0)
    }

    /// STATUS and GC exist.
    pub(crate) fn has_status(self) -> bool {
        self >= Self(1, 1, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = SUPPORTED.into_iter().find(|version| version.to_string() == text);
        found.ok_or_else(|| format!("CNI version {text:?} is not spoken: {} to {}", Self::OLDEST, Self::NEWEST))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_the_shape_of_its_family() {
        let shape = |text: &str| text.parse::<Version>().unwrap().shape();
        assert_eq!([shape("0.1.0"), shape("0.2.0")], [Shape::Pair; 2]);
        assert_eq!([shape("0.3.0"), shape("0.3.1"), shape("0.4.0")], [Shape::Versioned; 3]);
        assert_eq!([shape("1.0.0"), shape("1.1.0")], [Shape::Plain; 2]);
        for text in ["", "1", "1.2.0", "2.0.0", "0.3.2", "v1.0.0"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
