//! Content digests: `sha256:<64 hex digits>` or `sha512:<128 hex digits>`.
//!
//! A [`Digest`] can only hold a well-formed value (image-spec, descriptor.md, "Digests"), so its text is safe as a file
//! name and in a URL path. [`Hasher`] makes one from bytes; [`Verifier`] holds a stream against digest and size.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// The hash behind a digest. Others that the specification registers are optional there, and refused here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256: what every registry uses.
    Sha256,
    /// SHA-512: registered by the specification, rare.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A well-formed content digest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    text: Box<str>,
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No `algorithm:hex` shape.
    #[error("{0:?} is not a digest: expected sha256:<64 lower-case hex digits>")]
    Shape(String),
    /// A shape that fits, with an algorithm that is not served.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    Algorithm(String),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` by `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The whole text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hash that made it.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits after the colon.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(algorithm.name().len() + 1 + algorithm.hex_len());
        text.push_str(algorithm.name());
        text.push(':');
        for byte in hash {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        Self { algorithm, text: text.into() }
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let shape = || ParseError::Shape(text.chars().take(80).collect());
        let (name, hex) = text.split_once(':').ok_or_else(shape)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ if !name.is_empty()
                && name.len() <= 32
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+') =>
            {
                return Err(ParseError::Algorithm(name.to_owned()));
            }
            _ => return Err(shape()),
        };
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(shape());
        }
        Ok(Self { algorithm, text: text.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text.into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Hashes bytes as they come.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// An empty hash.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// An empty SHA-256.
    pub fn sha256() -> Self {
        Self::new(Algorithm::Sha256)
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &hash.finalize()),
            State::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// Holds a stream of bytes against the digest and the size that a descriptor promised.
#[derive(Debug, Clone)]
pub struct Verifier {
    expected: Digest,
    expected_size: u64,
    seen: u64,
    hasher: Hasher,
}

/// The content is not what its descriptor promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Fewer or more bytes.
    #[error("{digest}: expected {expected} bytes, got {got}")]
    Size {
        /// What was asked for.
        digest: Digest,
        /// Bytes promised.
        expected: u64,
        /// Bytes seen (the count at which reading stopped).
        got: u64,
    },
    /// Other bytes.
    #[error("expected {expected}, the content is {got}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What the bytes hash to.
        got: Digest,
    },
}

impl Verifier {
    /// Expects `size` bytes that hash to `digest`.
    pub fn new(digest: &Digest, size: u64) -> Self {
        Self { expected: digest.clone(), expected_size: size, seen: 0, hasher: Hasher::new(digest.algorithm()) }
    }

    /// Adds `bytes`; fails as soon as there are more than promised.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        if self.seen > self.expected_size {
            return Err(self.wrong_size());
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// Bytes seen so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The verdict, at the end of the stream.
    pub fn finish(self) -> Result<(), Mismatch> {
        if self.seen != self.expected_size {
            return Err(self.wrong_size());
        }
        let got = self.hasher.finish();
        if got == self.expected { Ok(()) } else { Err(Mismatch::Digest { expected: self.expected, got }) }
    }

    fn wrong_size(&self) -> Mismatch {
        Mismatch::Size { digest: self.expected.clone(), expected: self.expected_size, got: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_what_it_was_given() {
        assert_eq!(Digest::sha256(b"").as_str(), EMPTY);
        assert_eq!(Digest::sha256(b"").hex(), &EMPTY[7..]);
        assert!(Digest::of(Algorithm::Sha512, b"abc").as_str().starts_with("sha512:ddaf35a193617aba"));
    }

    #[test]
    fn refuses_what_could_leave_a_directory_or_is_not_canonical() {
        for bad in ["", "sha256", "sha256:", "sha256:../../etc/passwd", ":abc", "sha256:00", "../x:0"] {
            assert!(matches!(bad.parse::<Digest>(), Err(ParseError::Shape(_))), "{bad}");
        }
        assert!(EMPTY.to_uppercase().parse::<Digest>().is_err());
        assert_eq!("md5:00".parse::<Digest>(), Err(ParseError::Algorithm("md5".into())));
        assert!(serde_json::from_str::<Digest>("\"sha256:/\"").is_err());
    }

    #[test]
    fn verifier_names_what_differs() {
        let mut more = Verifier::new(&Digest::sha256(b"ab"), 2);
        more.update(b"a").unwrap();
        assert!(matches!(more.update(b"bc"), Err(Mismatch::Size { expected: 2, got: 3, .. })));
        let mut less = Verifier::new(&Digest::sha256(b"ab"), 2);
        less.update(b"a").unwrap();
        assert!(matches!(less.finish(), Err(Mismatch::Size { expected: 2, got: 1, .. })));
        let mut other = Verifier::new(&Digest::sha256(b"ab"), 2);
        other.update(b"ba").unwrap();
        assert!(matches!(other.finish(), Err(Mismatch::Digest { .. })));
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(bytes: Vec<u8>, long: bool) {
            let digest = Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &bytes);
            prop_assert_eq!(&digest.to_string().parse::<Digest>().unwrap(), &digest);
            prop_assert_eq!(serde_json::from_str::<Digest>(&serde_json::to_string(&digest).unwrap()).unwrap(), digest);
        }

        #[test]
        fn parse_never_panics(text: String) {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert!(!digest.hex().contains('/'));
            }
        }

        #[test]
        fn pieces_verify_like_the_whole(bytes: Vec<u8>, cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let mut verifier = Verifier::new(&Digest::sha256(&bytes), bytes.len() as u64);
            verifier.update(&bytes[..cut]).unwrap();
            verifier.update(&bytes[cut..]).unwrap();
            prop_assert!(verifier.finish().is_ok());
        }
    }
}
