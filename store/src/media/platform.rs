//! Platforms, and which of an image's manifests runs best on one.
//!
//! The order is the field's (containerd's `platforms.Only`): the host's own variant first, then each lower one, then
//! the 32-bit architecture that the same processor runs.
//!
//! ```text
//!   linux/amd64/v3   amd64/v3, v2, amd64, then 386
//!   linux/arm64/v8   arm64/v8 = arm64, then arm/v8, v7, v6, v5
//!   linux/arm/v7     arm/v7 = arm, v6, v5
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Descriptor, null_is_default};

/// What an image runs on, in Go's words (`GOOS`, `GOARCH`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system: `linux`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// Processor: `amd64`, `arm64`, …
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// Level of the processor: `v7` of arm, `v3` of amd64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform of three words.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The machine this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, host_variant())
    }

    /// How well an image for `image` runs here: 0 is best, nothing when it does not run. An image that does not say
    /// what it is for is taken at its owner's word.
    pub fn rank(&self, image: &Self) -> Option<u32> {
        if !image.os.is_empty() && normal_os(&image.os) != normal_os(&self.os) {
            return None;
        }
        if image.architecture.is_empty() {
            return Some(u32::MAX);
        }
        let (host, host_level) = self.normal();
        let (arch, level) = image.normal();
        let below = |top: Level| match level {
            Level::Number(n) if Level::Number(n) <= top => Some(top.distance(n)),
            _ => None,
        };
        if host == arch {
            return match host_level {
                Level::Number(_) => below(host_level),
                Level::Named(_) => (level == host_level).then_some(0),
            };
        }
        const OTHER: u32 = 10_000;
        match (host.as_str(), arch.as_str()) {
            ("amd64", "386") => Some(OTHER),
            ("arm64", "arm") => below(Level::Number(80)).map(|rank| OTHER + rank),
            _ => None,
        }
    }

    /// The manifests among `entries` that may run here, best first. Those that name no platform come last: only their
    /// config can tell. Attestations are left out.
    pub(super) fn order<'a>(&self, entries: &'a [Descriptor]) -> Vec<&'a Descriptor> {
        let mut ranked: Vec<(u32, &Descriptor)> = entries
            .iter()
            .filter(|entry| !entry.is_attestation())
            .filter_map(|entry| match &entry.platform {
                Some(platform) => self.rank(platform).map(|rank| (rank, entry)),
                None => Some((u32::MAX, entry)),
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Architecture by its usual name, and its level as a number where it has one.
    fn normal(&self) -> (String, Level) {
        let variant = self.variant.as_deref().unwrap_or_default().to_ascii_lowercase();
        let lower = self.architecture.to_ascii_lowercase();
        let (arch, implied) = match lower.as_str() {
            "x86_64" | "x86-64" | "amd64" => ("amd64", 10),
            "i386" | "i686" | "386" => ("386", 10),
            "aarch64" | "arm64" => ("arm64", 80),
            "armhf" | "arm" => ("arm", 70),
            "armel" => ("arm", 60),
            other => return (other.to_owned(), Level::Named(variant)),
        };
        (arch.to_owned(), Level::of(&variant, implied))
    }
}

/// A variant that can be compared. `v8.1` is 81; a name that is no number only equals itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Number(u32),
    Named(String),
}

impl Level {
    fn of(variant: &str, implied: u32) -> Self {
        if variant.is_empty() {
            return Self::Number(implied);
        }
        let digits = variant.strip_prefix('v').unwrap_or(variant);
        let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
        match (major.parse::<u8>(), minor.parse::<u8>()) {
            (Ok(major), Ok(minor)) if minor < 10 => Self::Number(u32::from(major) * 10 + u32::from(minor)),
            _ => Self::Named(variant.to_owned()),
        }
    }

    fn distance(&self, lower: u32) -> u32 {
        match self {
            Self::Number(top) => top.saturating_sub(lower),
            Self::Named(_) => 0,
        }
    }
}

fn normal_os(os: &str) -> String {
    os.to_ascii_lowercase()
}

/// The x86-64 level (psABI) of this processor; nothing where levels are not told apart.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    macro_rules! has { ($($name:tt),*) => { true $(&& std::is_x86_feature_detected!($name))* } }
    if !has!("cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3") {
        return None;
    }
    if !has!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave") {
        return Some("v2");
    }
    if !has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl") {
        return Some("v3");
    }
    Some("v4")
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

impl fmt::Display for Platform {
    /// `os/architecture[/variant]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |text: &str| if text.is_empty() { "unknown".to_owned() } else { clean(text) };
        write!(f, "{}/{}", word(&self.os), word(&self.architecture))?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{}", clean(variant)),
            _ => Ok(()),
        }
    }
}

/// An image's words go into messages: short, and printable.
fn clean(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;

    fn platform(text: &str) -> Platform {
        let mut words = text.split('/');
        Platform::new(words.next().unwrap(), words.next().unwrap_or_default(), words.next())
    }

    /// The texts of what `host` would try, in order.
    fn order(host: &str, images: &[&str]) -> Vec<String> {
        let entries: Vec<Descriptor> = images
            .iter()
            .map(|text| {
                let mut entry = Descriptor::new("m", Digest::sha256(text.as_bytes()), 1);
                entry.platform = (!text.is_empty()).then(|| platform(text));
                entry
            })
            .collect();
        platform(host)
            .order(&entries)
            .into_iter()
            .map(|entry| entry.platform.as_ref().map(ToString::to_string).unwrap_or_default())
            .collect()
    }

    #[test]
    fn the_best_level_the_host_can_run_comes_first() {
        let images = ["linux/386", "linux/amd64", "linux/amd64/v4", "linux/amd64/v2", "linux/amd64/v3", "linux/arm64"];
        assert_eq!(order("linux/amd64/v3", &images), ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]);
        assert_eq!(order("linux/amd64", &images), ["linux/amd64", "linux/386"]);
    }

    #[test]
    fn arm_falls_back_from_v8_down() {
        let images = ["linux/arm/v5", "linux/arm/v7", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v8"];
        assert_eq!(
            order("linux/arm64", &images),
            ["linux/arm64/v8", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
        );
        assert_eq!(order("linux/arm/v6", &images), ["linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(order("linux/arm", &["linux/arm/v7", "linux/arm"]), ["linux/arm/v7", "linux/arm"]);
    }

    #[test]
    fn entries_without_platform_come_last_and_attestations_never() {
        assert_eq!(order("linux/amd64", &["", "unknown/unknown", "linux/amd64"]), ["linux/amd64", ""]);
        assert_eq!(order("linux/amd64", &["windows/amd64", "linux/s390x"]), Vec::<String>::new());
        assert_eq!(order("linux/riscv64", &["linux/riscv64/x", "linux/riscv64"]), ["linux/riscv64"]);
    }

    #[test]
    fn other_spellings_mean_the_same() {
        assert_eq!(platform("linux/amd64").rank(&platform("Linux/x86_64")), Some(0));
        assert_eq!(platform("linux/arm64").rank(&platform("linux/aarch64")), Some(0));
        assert_eq!(platform("linux/amd64").rank(&Platform::default()), Some(u32::MAX));
    }

    #[test]
    fn the_host_runs_its_own_images() {
        let host = Platform::host();
        assert_eq!(host.rank(&host), Some(0));
        assert!(host.rank(&Platform { variant: None, ..host.clone() }).is_some());
    }

    proptest! {
        #[test]
        fn hostile_words_neither_panic_nor_reach_a_terminal(os: String, arch: String, variant: String) {
            let image = Platform { os, architecture: arch, variant: Some(variant) };
            let _ = Platform::host().rank(&image);
            let _ = image.rank(&Platform::host());
            prop_assert!(image.to_string().bytes().all(|b| b.is_ascii_graphic()));
            prop_assert!(image.to_string().len() < 120);
        }
    }
}
