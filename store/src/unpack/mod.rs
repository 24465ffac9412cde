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
//!
//! A layer that needed something from below is *bound* to the layers that it was unpacked on; any other one is the same
//! wherever it is used. The attributes of the root itself don't bind: a snapshot takes them from the topmost layer that
//! lists its root.
//!
//! The archive is hostile. Names are resolved by [`tree`], which bounds depth and memory; [`Limits`] bounds the count.

mod entry;
mod finish;
mod input;
mod tree;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use tar_core::parse::{ParseError, ParseEvent, Parser};

use crate::merged::{self, Merged, Node};
pub(crate) use entry::wanted_xattr;
use entry::{Entry, Kind, Meta, Sparse};
use input::Input;
pub(crate) use input::Source;
pub(crate) use tree::as_os;
use tree::{Tree, split, times};

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
                let real = self.tree.real(b"");
                let real = real.strip_suffix(b"/").unwrap_or(&real).to_vec();
                self.tree.note(real, |pending| pending.opaque = true).map_err(on(&path, "note that it is opaque"))?;
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

    fn set_file(&self, path: &[u8], file: BorrowedFd<'_>, meta: &Meta) -> Result<(), Error> {
        let set = || -> io::Result<()> {
            if (meta.uid, meta.gid) != (0, 0) {
                rustix::fs::fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
            }
            // After the owner, whose change takes these bits away.
            if meta.mode & 0o7000 != 0 {
                rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode))?;
            }
            // So does it with security.capability.
            for (name, value) in &meta.xattrs {
                tolerate(name, true, rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty()))?;
            }
            Ok(rustix::fs::futimens(file, &times(meta.mtime))?)
        };
        set().map_err(on(path, "set its attributes"))
    }

    /// Attributes of an entry that must not be opened.
    fn set_named(&self, path: &[u8], base: &[u8], meta: &Meta, chmod: bool) -> Result<(), Error> {
        let here = self.tree.here();
        let set = || -> io::Result<()> {
            if (meta.uid, meta.gid) != (0, 0) {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                rustix::fs::chownat(here, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if chmod && meta.mode & 0o7000 != 0 {
                rustix::fs::chmodat(here, base, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
            }
            let full = merged::fd_path(here).join(as_os(base));
            for (name, value) in &meta.xattrs {
                tolerate(name, false, rustix::fs::lsetxattr(&full, &name[..], value, XattrFlags::empty()))?;
            }
            Ok(rustix::fs::utimensat(here, base, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
        };
        set().map_err(on(path, "set its attributes"))
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

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        let (base, target_base) = (split(path).1, split(target).1);
        let stat = |dir: BorrowedFd<'_>, base: &[u8]| match rustix::fs::statat(dir, base, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(on(path, "look at the target of the hard link")(e.into())),
        };
        if target_base.is_empty() {
            return Err(Error::Entry(name(path), "it is a hard link to the root".into()));
        }
        let dir = self.tree.find_parent(target).map_err(on(path, "find the target of the hard link"))?;
        if let Some(dir) = dir
            && let Some(found) = stat(dir.as_fd(), target_base)?
            && !merged::is_whiteout(&found)
        {
            let there = stat(self.tree.here(), base)?;
            if there.is_some_and(|there| (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)) {
                return Ok(());
            }
            let link = |here: BorrowedFd<'_>| rustix::fs::linkat(&dir, target_base, here, base, AtFlags::empty());
            return self.tree.replace(base, link).map_err(on(path, "make the hard link"));
        }
        self.link_from_below(path, target)
    }

    /// The target may be in a layer below. Both directories are on one file system, so that a link between them keeps
    /// what a hard link means, and costs nothing.
    fn link_from_below(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        let base = split(path).1;
        let stack = self.stack()?;
        let found = stack.get(target, false).map_err(on(path, "look for the target of the hard link below"))?;
        let leaf = match found {
            Some(Node::Leaf(leaf)) => leaf,
            Some(Node::Dir(_)) => {
                return Err(Error::Entry(name(path), format!("it is a hard link to the directory {:?}", name(target))));
            }
            None => {
                return Err(Error::Entry(
                    name(path),
                    format!("it is a hard link to {:?}, which is neither in this layer nor below", name(target)),
                ));
            }
        };
        self.bound = true;
        let link = |here: BorrowedFd<'_>| rustix::fs::linkat(&leaf.dir, &leaf.name[..], here, base, AtFlags::empty());
        self.tree.replace(base, link).map_err(on(path, "make the hard link into a layer below"))
    }

    /// This layer as far as it is, on top of those below.
    fn stack(&self) -> Result<Merged, Error> {
        let below = self.below.layers()?;
        let own = merged::fd_path(self.tree.root());
        let layers = std::iter::once(own.as_path()).chain(below.iter().map(PathBuf::as_path));
        Merged::open(layers).map_err(|e| Error::Below(e.to_string()))
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

/// A file system without this attribute, or a place where the kernel has no `user.` attributes (links, devices), is no
/// reason to refuse an image; engines pass over it.
fn tolerate(name: &[u8], regular: bool, result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM) if !regular && name.starts_with(b"user.") => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
