//! Turns the tar stream of a layer into a directory that overlayfs can stack.
//!
//! ```text
//!   Source ─▶ Input ─▶ tar-core ─▶ Entry ─▶ Tree            one pass, in the archive's order
//!                                             └▶ finish     directories: times, special modes, what is implied
//! ```
//!
//! | in the archive | in the directory |
//! |---|---|
//! | `.wh.x` | `x`, a character device 0/0; nothing where this layer has an `x` of its own, which is opaque if a directory |
//! | `d/.wh..wh..opq` | `trusted.overlay.opaque=y` on `d` |
//! | a name in a directory that is not listed | the directory, with owner, mode and times from below, else root and 0755 |
//! | a hard link to what only a layer below has | a hard link between the two layers' directories |
//! | a name that occurs twice | the last one; directories keep what is in them |
//! | `var/run/pid` over a lower layer's `var/run → /run` | a directory `var/run` that hides the link, with the attributes of `/run` |
//!
//! The last row is what engines make that unpack each layer by itself: the tree that authors have tested.
//!
//! A layer that needed something from below is *bound* to the layers that it was unpacked on; any other one is the same
//! wherever it is used. The attributes of the root itself don't bind: a snapshot takes them from the topmost layer that
//! lists its root.
//!
//! The archive is hostile. Names are resolved by [`tree`], which bounds depth and memory; [`Limits`] bounds the count.

mod attributes;
mod below;
mod entry;
mod finish;
mod input;
mod tree;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use tar_core::parse::{ParseError, ParseEvent, Parser};

pub(crate) use entry::wanted_xattr;
use entry::{Entry, Kind, Meta, Sparse};
use input::Input;
pub(crate) use input::Source;
pub(crate) use tree::as_os;
use tree::{Tree, split};

/// Longest name and link target in an archive: PATH_MAX.
const MAX_PATH: u32 = 4096;
/// What one inode and one block are counted as.
const BLOCK: u64 = 4096;

/// Bounds on what one layer may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The format is broken.
    #[error("not a tar archive: {0}")]
    Tar(#[from] ParseError),
    /// An entry makes no sense: its name, and why.
    #[error("entry {0:?}: {1}")]
    Entry(String, String),
    /// A system call failed.
    #[error("entry {name:?}: cannot {verb}: {source}")]
    Io {
        /// The entry.
        name: String,
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ends in the middle of an entry.
    #[error("the archive is cut off")]
    CutOff,
    /// More entries than the bounds allow.
    #[error("it has more than {0} entries")]
    TooMany(u64),
    /// A layer below is not coming.
    #[error("it needs the layers below: {0}")]
    Below(String),
    /// The source failed; it knows why.
    #[error("its data did not come")]
    Source,
}

/// The layers below, asked for only when an entry needs them.
pub(crate) trait Below {
    /// Waits until they are there; topmost first.
    fn layers(&self) -> Result<Vec<PathBuf>, Error>;
}

/// What a layer became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes on disk, by whole blocks.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// It holds something from the layers below.
    pub(crate) bound: bool,
    /// Its root directory was listed.
    pub(crate) root_listed: bool,
}

/// Unpacks an archive into `root`, an empty directory that nobody else writes to. The calling thread's umask must be 0.
pub(crate) fn unpack(
    source: &mut dyn Source,
    root: OwnedFd,
    below: &dyn Below,
    limits: Limits,
) -> Result<Unpacked, Error> {
    let mut input = Input::new(source);
    let mut parser = Parser::new(tar_core::parse::Limits { max_path_len: Some(MAX_PATH), ..Default::default() });
    parser.set_ignore_pax_errors(true);
    parser.set_allow_empty_path(true);
    let mut unpacker = Unpacker { tree: Tree::new(root), below, bytes: 0, inodes: 0, bound: false };
    let mut entries = 0;
    let mut need = tar_core::HEADER_SIZE;
    loop {
        let have = input.need(need)?;
        if have.len() < need {
            // Some writers leave out the end mark, or half of it.
            if have.iter().all(|b| *b == 0) {
                break;
            }
            return Err(Error::CutOff);
        }
        let (consumed, entry) = match parser.parse(have)? {
            ParseEvent::NeedData { min_bytes } => {
                need = min_bytes;
                continue;
            }
            ParseEvent::Entry { consumed, entry } => (consumed, Entry::new(&entry, None)?),
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                (consumed, Entry::new(&entry, Some((sparse_map, real_size)))?)
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                input.consume(consumed);
                need = tar_core::HEADER_SIZE;
                continue;
            }
            ParseEvent::End { .. } => break,
        };
        input.consume(consumed);
        need = tar_core::HEADER_SIZE;
        entries += 1;
        let content = entry.content;
        unpacker.add(entry, &mut input)?;
        // One name may imply many directories.
        if entries + unpacker.tree.implied > limits.entries {
            return Err(Error::TooMany(limits.entries));
        }
        input.skip(content.next_multiple_of(tar_core::HEADER_SIZE as u64) - content)?;
    }
    input.drain()?;
    unpacker.finish()
}

struct Unpacker<'a> {
    tree: Tree,
    below: &'a dyn Below,
    bytes: u64,
    inodes: u64,
    bound: bool,
}

fn name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Puts the entry's name and what was tried beside an error.
fn on<'a>(path: &'a [u8], verb: &'static str) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { name: name(path), verb, source }
}

impl Unpacker<'_> {
    fn add(&mut self, entry: Entry, input: &mut Input<'_>) -> Result<(), Error> {
        let Entry { path, kind, meta, content } = entry;
        if path.is_empty() && !matches!(kind, Kind::Opaque | Kind::Ignore) {
            // The root: always there.
            if kind != Kind::Dir {
                return Err(Error::Entry(".".into(), "the root of a layer must be a directory".into()));
            }
            return self.tree.note(Vec::new(), |root| root.meta = Some(meta)).map_err(on(&path, "note its attributes"));
        }
        let (parent, base) = split(&path);
        if !matches!(kind, Kind::Opaque | Kind::Ignore) {
            self.tree.enter(parent).map_err(on(&path, "enter its directory"))?;
        }
        match kind {
            Kind::Ignore => input.skip(content),
            // A whiteout is an empty file, but nobody checks.
            Kind::Whiteout => {
                let made = self.tree.white_out(base).map_err(on(&path, "make the whiteout"))?;
                self.inodes += u64::from(made);
                input.skip(content)
            }
            Kind::Opaque => {
                self.tree.enter(&path).map_err(on(&path, "enter the directory"))?;
                self.tree.mark_opaque(b".").map_err(on(&path, "mark it opaque"))?;
                input.skip(content)
            }
            Kind::Dir => self.tree.make_dir(base, meta).map_err(on(&path, "make the directory")),
            Kind::File { size, sparse } => self.file(&path, &meta, size, sparse, input),
            Kind::Hardlink(target) => self.hard_link(&path, &target),
            Kind::Symlink(target) => {
                self.tree
                    .replace(base, |here| rustix::fs::symlinkat(&target[..], here, base))
                    .map_err(on(&path, "make the symbolic link"))?;
                self.count(1, 0);
                self.set_named(&path, base, &meta, false)
            }
            Kind::Device { block, major, minor } => {
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                self.node(&path, kind, rustix::fs::makedev(major, minor), &meta)
            }
            Kind::Fifo => self.node(&path, FileType::Fifo, 0, &meta),
        }
    }

    fn count(&mut self, inodes: u64, blocks: u64) {
        self.inodes += inodes;
        self.bytes += blocks * BLOCK;
    }

    fn file(
        &mut self,
        path: &[u8],
        meta: &Meta,
        size: u64,
        sparse: Option<Sparse>,
        input: &mut Input<'_>,
    ) -> Result<(), Error> {
        let base = split(path).1;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        let file = self
            .tree
            .replace(base, |here| rustix::fs::openat(here, base, flags, mode))
            .map_err(on(path, "make the file"))?;
        match sparse {
            None => fill(&file, path, 0, size, input)?,
            Some(Sparse { map, size: whole }) => {
                let mut left = size;
                for piece in map {
                    let end = piece.offset.checked_add(piece.length);
                    if piece.length > left || end.is_none_or(|end| end > whole) {
                        return Err(Error::Entry(name(path), "its map of holes does not fit its size".into()));
                    }
                    left -= piece.length;
                    fill(&file, path, piece.offset, piece.length, input)?;
                }
                input.skip(left)?;
                rustix::fs::ftruncate(&file, whole).map_err(|e| on(path, "set its size")(e.into()))?;
            }
        }
        self.count(1, size.div_ceil(BLOCK));
        self.set_file(path, file.as_fd(), meta)
    }

    fn node(&mut self, path: &[u8], kind: FileType, device: rustix::fs::Dev, meta: &Meta) -> Result<(), Error> {
        let base = split(path).1;
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        self.tree
            .replace(base, |here| rustix::fs::mknodat(here, base, kind, mode, device))
            .map_err(on(path, "make the device node or FIFO"))?;
        self.count(1, 0);
        self.set_named(path, base, meta, true)
    }
}

/// Copies `size` bytes of content to the file at `offset`.
fn fill(file: &OwnedFd, path: &[u8], mut offset: u64, size: u64, input: &mut Input<'_>) -> Result<(), Error> {
    let mut left = size;
    while left > 0 {
        let bytes = input.some(left)?;
        if bytes.is_empty() {
            return Err(Error::CutOff);
        }
        let n = match rustix::io::pwrite(file, bytes, offset) {
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(on(path, "write it")(e.into())),
        };
        input.consume(n);
        offset += n as u64;
        left -= n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
