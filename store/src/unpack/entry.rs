//! One entry of an archive, as the tree needs it: what tar-core parsed, with Go's reading of the format where that
//! differs, because images are made to be read by Go programs.

use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, PAX_MTIME, PAX_SIZE, PaxExtensions, SparseEntry};

use super::Error;

/// Names an entry that hides the same name without this prefix in lower layers (image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Marks the directory that it is in as opaque. Others with this prefix are notes of aufs, of no meaning here.
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// The kernel's bound on a value (linux/limits.h, XATTR_SIZE_MAX).
const MAX_XATTR: usize = 64 << 10;

/// What an entry does to the tree.
#[derive(Debug, PartialEq)]
pub(super) enum Kind {
    Dir,
    /// Data of so many bytes follow; where they belong if the file has holes.
    File {
        size: u64,
        sparse: Option<Sparse>,
    },
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    /// `path` is what it hides.
    Whiteout,
    /// `path` is the directory.
    Opaque,
    Ignore,
}

/// The pieces of data of a file with holes.
#[derive(Debug, PartialEq)]
pub(super) struct Sparse {
    pub(super) map: Vec<SparseEntry>,
    pub(super) size: u64,
}

/// Owner, permissions, times and extended attributes.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// Components joined by `/`; no `.`, `..` or empty one; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    /// Bytes of content in the archive, padding not counted.
    pub(super) content: u64,
}

impl Entry {
    pub(super) fn new(parsed: &ParsedEntry<'_>, sparse: Option<(Vec<SparseEntry>, u64)>) -> Result<Self, Error> {
        let named = || String::from_utf8_lossy(&parsed.path).into_owned();
        let mut path = clean(&parsed.path);
        if path.contains(&0) {
            return Err(Error::Entry(named(), "its name contains a zero byte".into()));
        }
        if let Some((attribute, _)) = parsed.xattrs.iter().find(|(_, value)| value.len() > MAX_XATTR) {
            let attribute = String::from_utf8_lossy(attribute);
            return Err(Error::Entry(named(), format!("its attribute {attribute} is larger than {MAX_XATTR} bytes")));
        }
        let owner =
            |id: u64| u32::try_from(id).map_err(|_| Error::Entry(named(), format!("owner {id} is out of range")));
        let meta = Meta {
            mode: parsed.mode & 0o7777,
            uid: owner(parsed.uid)?,
            gid: owner(parsed.gid)?,
            mtime: mtime(parsed),
            xattrs: parsed
                .xattrs
                .iter()
                .filter(|(name, _)| wanted_xattr(name))
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
        };
        let mut content = 0;
        let target = || match &parsed.link_target {
            Some(target) if !target.contains(&0) => Ok(target.to_vec()),
            _ => Err(Error::Entry(named(), "it is a link without a proper target".into())),
        };
        let mut kind = match parsed.entry_type {
            // In archives from before POSIX a directory is a file whose name ends in a slash.
            EntryType::Regular if parsed.header.as_bytes()[156] == 0 && parsed.path.ends_with(b"/") => Kind::Dir,
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
                check_size(parsed)?;
                content = parsed.size;
                Kind::File { size: parsed.size, sparse: sparse.map(|(map, size)| Sparse { map, size }) }
            }
            // Whatever size the header of one of these states: no content follows.
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink(target()?),
            EntryType::Link => Kind::Hardlink(clean(&target()?)),
            EntryType::Char | EntryType::Block => Kind::Device {
                block: parsed.entry_type == EntryType::Block,
                major: parsed.dev_major.unwrap_or(0),
                minor: parsed.dev_minor.unwrap_or(0),
            },
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(Error::Entry(
                    named(),
                    format!("entries of type {:?} have no meaning in a layer", char::from(other.to_byte())),
                ));
            }
        };
        let split = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let base = &path[split..];
        if base == OPAQUE {
            kind = Kind::Opaque;
            path.truncate(split.saturating_sub(1));
        } else if base.starts_with(AUFS) {
            kind = Kind::Ignore;
        } else if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::Entry(named(), "it is a whiteout of nothing".into()));
            }
            kind = Kind::Whiteout;
            path.drain(split..split + WHITEOUT.len());
        }
        Ok(Self { path, kind, meta, content })
    }
}

/// As if the root of the layer were `/` and the current directory: no name leads out of it.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A layer must not reach into overlayfs' own bookkeeping: a redirect there would name other directories.
pub(crate) fn wanted_xattr(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
}

/// tar-core passes over a PAX size that is no number; going on with the header's would read contents as headers.
fn check_size(parsed: &ParsedEntry<'_>) -> Result<(), Error> {
    let stated = parsed.pax.into_iter().flat_map(PaxExtensions::new).flatten().filter(|pax| pax.key() == Ok(PAX_SIZE));
    for pax in stated {
        if pax.value().ok().and_then(|text| text.parse::<u64>().ok()).is_none() {
            return Err(Error::Entry(
                String::from_utf8_lossy(&parsed.path).into_owned(),
                "its PAX size is no number".into(),
            ));
        }
    }
    Ok(())
}

/// PAX times have fractions and may lie before 1970.
fn mtime(parsed: &ParsedEntry<'_>) -> (i64, u32) {
    let pax = parsed.pax.and_then(|pax| PaxExtensions::new(pax).flatten().find(|pax| pax.key() == Ok(PAX_MTIME)));
    pax.and_then(|pax| parse_time(pax.value().ok()?)).unwrap_or((i64::try_from(parsed.mtime).unwrap_or(0), 0))
}

fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    // -1.25 is a quarter second before -1: seconds go down, nanoseconds always count up.
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_cannot_leave_the_root() {
        for (given, cleaned) in [
            ("./", ""),
            ("a//b/./c", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
            ("../../x", "x"),
            ("a/../../b", "b"),
            ("a/b/..", "a"),
            ("..", ""),
        ] {
            assert_eq!(clean(given.as_bytes()), cleaned.as_bytes(), "{given}");
        }
    }

    #[test]
    fn pax_times() {
        assert_eq!(parse_time("12"), Some((12, 0)));
        assert_eq!(parse_time("12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(parse_time("1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(parse_time("x"), None);
        assert_eq!(parse_time("1.-5"), None);
    }

    #[test]
    fn overlay_bookkeeping_is_left_out() {
        assert!(!wanted_xattr(b"trusted.overlay.redirect"));
        assert!(!wanted_xattr(b"user.overlay.opaque"));
        assert!(wanted_xattr(b"security.capability"));
    }

    proptest! {
        #[test]
        fn a_clean_name_has_only_proper_components(name in "[a./]{0,20}") {
            let cleaned = String::from_utf8(clean(name.as_bytes())).unwrap();
            prop_assert!(cleaned.is_empty() || cleaned.split('/').all(|part| !matches!(part, "" | "." | "..")));
        }
    }
}
