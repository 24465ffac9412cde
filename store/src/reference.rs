//! Image references: what a person or a pod writes, made whole.
//!
//! ```text
//!   busybox                          docker.io/library/busybox:latest
//!   quay.io/app:1.2                  quay.io/app:1.2
//!   localhost:5000/app@sha256:…      localhost:5000/app@sha256:…          (no tag is made up beside a digest)
//!   app:1.2@sha256:…                 docker.io/library/app:1.2@sha256:…   (the digest decides, the tag is a note)
//! ```
//!
//! The grammar and the defaults are those of the distribution project's `reference` package, which docker and
//! containerd share. What it accepts is safe in a URL path; digests are well-formed.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::{self, Digest};

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The host that serves [`DEFAULT_REGISTRY`].
pub const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
const DEFAULT_TAG: &str = "latest";
/// Longest `registry/repository` that registries accept.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A whole image reference: registry, repository, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference, and what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was given.
    #[error("the image reference is empty: name an image, for example \"busybox\" or \"registry.example/app:1.0\"")]
    Empty,
    /// A URL instead of a name.
    #[error("image reference {0:?} starts with a scheme: write it without, for example \"registry.example/app:1.0\"")]
    Scheme(String),
    /// An image id, which no registry can resolve.
    #[error("image reference {0:?} is an image id, and registries know names only: give the image's name")]
    Id(String),
    /// Upper case in the repository.
    #[error("image reference {0:?}: the repository must be lower case, try {1:?}")]
    UpperCase(String, String),
    /// A registry that is no host, or a bad port.
    #[error("image reference {0:?}: {1:?} is not a registry host (expected host or host:port)")]
    Registry(String, String),
    /// A repository that breaks the grammar.
    #[error(
        "image reference {0:?}: {1:?} is not a repository name (lower-case letters and digits, joined by single '.', '_', \"__\" or '-', components split by '/')"
    )]
    Repository(String, String),
    /// A tag that breaks the grammar.
    #[error(
        "image reference {0:?}: {1:?} is not a tag (at most 128 of letters, digits, '_', '.', '-'; not starting with '.' or '-')"
    )]
    Tag(String, String),
    /// A digest that breaks the grammar.
    #[error("image reference {0:?}: {1}")]
    Digest(String, #[source] digest::ParseError),
    /// A name that is too long.
    #[error("image reference {0:?}…: registry and repository are {1} characters long, at most 255 are allowed")]
    TooLong(String, usize),
}

impl Reference {
    /// The registry as written: host, or `host:port`; `docker.io` when none was named.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host, or `host:port`, that serves the registry's HTTP API.
    pub fn registry_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { &self.registry }
    }

    /// The repository in the registry, for example `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `latest` is filled in when neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest. Where there is one, it decides and the tag is a note.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What the registry is asked for: the digest, or else the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// `registry/repository@digest`, without tag: an entry of CRI `repo_digests`.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// `registry/repository:tag` without digest: an entry of CRI `repo_tags`; nothing when there is no tag.
    pub fn without_digest(&self) -> Option<Self> {
        self.tag.as_ref().map(|_| Self { digest: None, ..self.clone() })
    }

    /// The short form that people write: `busybox:latest` for `docker.io/library/busybox:latest`.
    pub fn familiar(&self) -> String {
        let mut text = String::new();
        if self.registry == DEFAULT_REGISTRY {
            text.push_str(self.repository.strip_prefix("library/").unwrap_or(&self.repository));
        } else {
            text.push_str(&self.name());
        }
        self.push_suffix(&mut text);
        text
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let shown = || text.chars().take(300).collect::<String>();
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.contains("://") {
            return Err(Error::Scheme(shown()));
        }
        if is_id(text) {
            return Err(Error::Id(shown()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| Error::Digest(shown(), e))?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(Error::Tag(shown(), tag.to_owned()));
        }
        let (registry, path) = split_registry(name);
        if !is_registry(registry) {
            return Err(Error::Registry(shown(), registry.to_owned()));
        }
        if !path.split('/').all(is_component) {
            let lower = path.to_ascii_lowercase();
            return Err(if lower != path && lower.split('/').all(is_component) {
                Error::UpperCase(shown(), text.replacen(path, &lower, 1))
            } else {
                Error::Repository(shown(), path.to_owned())
            });
        }
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let length = registry.len() + 1 + repository.len();
        if length > MAX_NAME {
            return Err(Error::TooLong(text.chars().take(60).collect(), length));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// 64 hex digits, with or without `sha256:` before them.
fn is_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A colon after the last slash starts the tag; one before it belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// The first component is a registry when it could not be part of a repository: a dot, a port, upper case, `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':', '['])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_registry(text: &str) -> bool {
    // The URL parser knows more rules, for example that 300.1.1.1 is no address.
    if url::Url::parse(&format!("http://{text}/")).is_err() {
        return false;
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        if address.parse::<Ipv6Addr>().is_err() {
            return false;
        }
        match (rest.is_empty(), rest.strip_prefix(':')) {
            (true, _) => (None, None),
            (false, Some(port)) => (None, Some(port)),
            (false, None) => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(is_label))
        && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else { return false };
    is_word(first)
        && is_word(last)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'_' | b'-'))
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

impl fmt::Display for Reference {
    /// The full form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.push_suffix(&mut text);
        f.write_str(&text)
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn fills_in_registry_library_and_tag() {
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000/a:b"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("Reg/a", "Reg/a:latest", "Reg/a:latest"),
            ("quay.io/a__b/c-d.e", "quay.io/a__b/c-d.e:latest", "quay.io/a__b/c-d.e:latest"),
        ] {
            assert_eq!((parse(text).to_string().as_str(), parse(text).familiar().as_str()), (full, familiar));
        }
    }

    #[test]
    fn a_digest_decides_and_a_tag_beside_it_is_kept() {
        let both = parse(&format!("busybox:1.36@{D}"));
        assert_eq!((both.tag(), both.target()), (Some("1.36"), D));
        assert_eq!(both.without_digest().unwrap().to_string(), "docker.io/library/busybox:1.36");
        let digest = parse(&format!("busybox@{D}"));
        assert_eq!((digest.tag(), digest.target()), (None, D));
        assert_eq!(digest.without_digest(), None);
        assert_eq!(both.with_digest(D.parse().unwrap()), digest);
        assert_eq!(parse("busybox").target(), "latest");
    }

    #[test]
    fn docker_io_is_served_by_another_host() {
        assert_eq!(
            (parse("busybox").registry(), parse("busybox").registry_host()),
            ("docker.io", "registry-1.docker.io")
        );
        assert_eq!(parse("quay.io/a").registry_host(), "quay.io");
    }

    #[test]
    fn says_what_is_wrong_and_how_to_write_it() {
        let error = |text: &str| text.parse::<Reference>().unwrap_err();
        assert_eq!(error(""), Error::Empty);
        assert!(matches!(error("https://quay.io/a"), Error::Scheme(_)));
        assert!(matches!(error(&D[7..]), Error::Id(_)));
        assert!(matches!(error(D), Error::Id(_)));
        assert_eq!(error("a/BusyBox:X"), Error::UpperCase("a/BusyBox:X".into(), "a/busybox:X".into()));
        assert!(matches!(error("host:99999/a"), Error::Registry(..)));
        assert!(matches!(error("[::g]/a"), Error::Registry(..)));
        assert!(matches!(error("300.1.1.1/a"), Error::Registry(..)));
        assert!(matches!(error("-a.b/c"), Error::Registry(..)));
        assert!(matches!(error("a//b"), Error::Repository(..)));
        assert!(matches!(error("a/../b"), Error::Repository(..)));
        assert!(matches!(error("a:b:c"), Error::Repository(..)));
        assert!(matches!(error("a:.b"), Error::Tag(..)));
        assert!(matches!(error("a:"), Error::Tag(..)));
        assert!(matches!(error("a@sha256:1"), Error::Digest(..)));
        assert!(matches!(error(&"a".repeat(300)), Error::TooLong(..)));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_becomes_a_fixed_point(text in "[a-zA-Z0-9:/@._\\-\\[\\]]{0,80}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&parse(&reference.to_string()), &reference);
                prop_assert_eq!(&parse(&reference.familiar()), &reference);
                prop_assert!(!reference.repository().split('/').any(|c| c == ".." || c.is_empty()));
                let url = format!("http://{}/v2/", reference.registry());
                prop_assert!(url::Url::parse(&url).is_ok(), "{}", url);
            }
        }
    }
}
