//! The tree of a layer while it is made. Nobody else writes to it.
//!
//! A name is split into parent and base. The parent is resolved here, one component at a time, with the tree's root
//! as `/`: a link on the way (`var/run → /run`) leads to another place in the tree and never out of it, and the base
//! is never followed. One fd is kept, that of the last parent: archives list a directory's entries together.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::entry::Meta;
use crate::durable::remove_tree_at;
use crate::merged;

const MAX_LINKS: usize = 40;
/// Directories on the way to an entry. Real images have a few dozen; each level of a name costs an inode.
const MAX_DEPTH: usize = 256;
/// Bytes of memory for directories that are to be finished.
const MAX_PENDING: usize = 128 << 20;
/// Names of directories that nobody listed.
const IMPLIED: Mode = Mode::from_raw_mode(0o755);
const PATH_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What is still to be done about a directory once all entries are there: times would change again, a set-group-ID
/// bit or a default ACL would leak into entries made later.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The attributes, if an entry gave them; else the directory was only implied by a name in it.
    pub(super) meta: Option<Meta>,
}

impl Pending {
    fn bytes(&self, path: &[u8]) -> usize {
        let xattrs = self.meta.iter().flat_map(|meta| &meta.xattrs);
        size_of::<(Vec<u8>, Self)>() + path.len() + xattrs.map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The parent that was entered last.
    here: Option<Here>,
    /// All directories by their real path.
    pub(super) dirs: BTreeMap<Vec<u8>, Pending>,
    /// Bytes that `dirs` takes.
    pending: usize,
    /// Directories that were made because a name led through them.
    pub(super) implied: u64,
    /// Something was made and removed again, so that sums kept on the way are off.
    pub(super) replaced: bool,
}

#[derive(Debug)]
struct Here {
    /// As the archive named it.
    named: Vec<u8>,
    /// Where that is, links resolved.
    real: Vec<u8>,
    fd: OwnedFd,
}

/// Splits a clean path into parent and base.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn join(dir: &[u8], base: &[u8]) -> Vec<u8> {
    if dir.is_empty() { base.to_vec() } else { [dir, b"/", base].concat() }
}

fn mark_opaque(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(merged::open_dir(dir, name)?, merged::OPAQUE, b"y", XattrFlags::empty())?)
}

/// Whether a directory may have entries.
fn check_depth(real: &[u8]) -> io::Result<()> {
    if real.split(|b| *b == b'/').count() >= MAX_DEPTH {
        return Err(io::Error::other(format!("it is more than {MAX_DEPTH} directories deep")));
    }
    Ok(())
}

impl Tree {
    /// `root` is an empty directory.
    pub(super) fn new(root: OwnedFd) -> Self {
        let dirs = BTreeMap::from([(Vec::new(), Pending::default())]);
        Self { root, here: None, dirs, pending: 0, implied: 0, replaced: false }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes `parent` the present directory, and it and its parents where they are missing.
    pub(super) fn enter(&mut self, parent: &[u8]) -> io::Result<()> {
        if self.here.as_ref().is_some_and(|here| here.named == parent) {
            return Ok(());
        }
        let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let plain = if parent.is_empty() { &b"."[..] } else { parent };
        let (real, fd) = match rustix::fs::openat2(&self.root, plain, PATH_DIR, Mode::empty(), flags) {
            Ok(fd) => (parent.to_vec(), fd),
            // Missing or a link in it; or a kernel that does not know openat2.
            Err(_) => self.walk(parent)?,
        };
        check_depth(&real)?;
        self.here = Some(Here { named: parent.to_vec(), real, fd });
        Ok(())
    }

    /// Notes what is to be done about a directory.
    pub(super) fn note(&mut self, real: Vec<u8>, change: impl FnOnce(&mut Pending)) -> io::Result<()> {
        let known = self.dirs.get(&real).map_or(0, |pending| pending.bytes(&real));
        let pending = self.dirs.entry(real.clone()).or_default();
        change(pending);
        self.pending = self.pending.saturating_sub(known) + pending.bytes(&real);
        if self.pending > MAX_PENDING {
            return Err(io::Error::other("the layer's directories take too much memory"));
        }
        Ok(())
    }

    fn imply(&mut self, dir: BorrowedFd<'_>, part: &[u8], real: &[u8], opaque: bool) -> io::Result<()> {
        check_depth(real)?;
        rustix::fs::mkdirat(dir, part, IMPLIED)?;
        if opaque {
            mark_opaque(dir, part)?;
        }
        self.implied += 1;
        self.note(join(real, part), |pending| pending.meta = None)
    }

    /// Has `base` in the present directory hide what layers below have in it: at once, because what follows in the archive
    /// may look for something there.
    pub(super) fn mark_opaque(&self, base: &[u8]) -> io::Result<()> {
        mark_opaque(self.here(), base)
    }

    fn walk(&mut self, parent: &[u8]) -> io::Result<(Vec<u8>, OwnedFd)> {
        let parts = |path: &[u8]| -> VecDeque<Vec<u8>> {
            path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec).collect()
        };
        let mut todo = parts(parent);
        let (mut real, mut fd) = (Vec::new(), self.open_real(b"")?);
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                real.truncate(split(&real).0.len());
                fd = self.open_real(&real)?;
                continue;
            }
            match rustix::fs::openat(&fd, &part[..], PATH_DIR | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(next) => {
                    real = join(&real, &part);
                    fd = next;
                }
                Err(Errno::NOENT) => {
                    self.imply(fd.as_fd(), &part, &real, false)?;
                    todo.push_front(part);
                }
                Err(Errno::NOTDIR | Errno::LOOP) => match rustix::fs::readlinkat(&fd, &part[..], Vec::new()) {
                    Ok(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP.into());
                        }
                        let target = target.into_bytes();
                        if target.starts_with(b"/") {
                            real.clear();
                            fd = self.open_real(b"")?;
                        }
                        for part in parts(&target).into_iter().rev() {
                            todo.push_front(part);
                        }
                    }
                    Err(_) => {
                        // A whiteout beside entries of the same name: what is below is hidden, these are not.
                        if !merged::is_whiteout(&rustix::fs::statat(&fd, &part[..], AtFlags::SYMLINK_NOFOLLOW)?) {
                            return Err(Errno::NOTDIR.into());
                        }
                        rustix::fs::unlinkat(&fd, &part[..], AtFlags::empty())?;
                        self.imply(fd.as_fd(), &part, &real, true)?;
                        todo.push_front(part);
                    }
                },
                Err(e) => return Err(e.into()),
            }
        }
        Ok((real, fd))
    }

    /// A directory by its real path, which has no links in it.
    fn open_real(&self, real: &[u8]) -> io::Result<OwnedFd> {
        let mut fd = rustix::fs::openat(&self.root, ".", PATH_DIR, Mode::empty())?;
        for part in real.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            fd = rustix::fs::openat(&fd, part, PATH_DIR | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(fd)
    }

    /// The present directory.
    pub(super) fn here(&self) -> BorrowedFd<'_> {
        self.here.as_ref().map_or(self.root.as_fd(), |here| here.fd.as_fd())
    }

    /// The real path of `base` in the present directory.
    pub(super) fn real(&self, base: &[u8]) -> Vec<u8> {
        join(self.here.as_ref().map_or(b"", |here| &here.real), base)
    }

    /// An fd for the parent of `path` that outlives the next `enter`; `None` if it does not exist. Makes nothing.
    pub(super) fn find_parent(&mut self, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let parent = split(path).0;
        let plain = if parent.is_empty() { &b"."[..] } else { parent };
        match rustix::fs::openat2(&self.root, plain, PATH_DIR, Mode::empty(), flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(Errno::NOSYS) => Ok(Some(self.walk(parent)?.1)),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes `base` in the present directory with `make`; what has the name now goes first.
    pub(super) fn replace<T>(
        &mut self,
        base: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match make(self.here()) {
            Err(Errno::EXIST) => {
                self.clear(base)?;
                Ok(make(self.here())?)
            }
            other => Ok(other?),
        }
    }

    /// Makes the directory `base`, or keeps the one that is there, and notes its attributes for later.
    pub(super) fn make_dir(&mut self, base: &[u8], meta: Meta) -> io::Result<()> {
        let mode = Mode::from_raw_mode(meta.mode & 0o1777);
        let mut opaque = false;
        match rustix::fs::mkdirat(self.here(), base, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(self.here(), base, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    opaque = merged::is_whiteout(&stat);
                    self.clear(base)?;
                    rustix::fs::mkdirat(self.here(), base, mode)?;
                }
            }
            Err(e) => return Err(e.into()),
        }
        if opaque {
            self.mark_opaque(base)?;
        }
        self.note(self.real(base), |pending| pending.meta = Some(meta))
    }

    /// Removes what is called `base` in the present directory, whole.
    pub(super) fn clear(&mut self, base: &[u8]) -> io::Result<()> {
        self.replaced = true;
        if let Some(here) = &mut self.here
            && here.named != here.real
        {
            // The name led here over a link, which may be what goes: look again next time.
            here.named = here.real.clone();
        }
        remove_tree_at(self.here(), base)?;
        let real = self.real(base);
        // All that is below sorts between these: a zero is the next character after a slash.
        let below = [&real[..], b"/"].concat()..[&real[..], b"0"].concat();
        let mut gone: Vec<Vec<u8>> = self.dirs.range(below).map(|(path, _)| path.clone()).collect();
        gone.push(real);
        for path in gone {
            let bytes = self.dirs.remove(&path).map_or(0, |pending| pending.bytes(&path));
            self.pending = self.pending.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Hides `base` of the layers below.
    pub(super) fn white_out(&mut self, base: &[u8]) -> io::Result<bool> {
        match rustix::fs::mknodat(self.here(), base, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(true),
            // What this layer itself has under that name stays (image-spec, layer.md); a directory hides less than the
            // whiteout would, unless it is opaque.
            Err(Errno::EXIST) => {
                if self.dirs.contains_key(&self.real(base)) {
                    self.mark_opaque(base)?;
                }
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }
}

pub(crate) fn as_os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

/// Access time and modification time alike, as engines do.
pub(super) fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}
