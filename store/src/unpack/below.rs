//! Hard links, which may lead into the layers below, and the view of those layers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::tree::split;
use super::{Error, Unpacker, name, on};
use crate::merged::{self, Merged, Node};

impl Unpacker<'_> {
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
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
        let look =
            |stack: Merged| stack.get(target, false).map_err(on(path, "look for the target of the hard link below"));
        let mut found = look(self.stack()?)?;
        // It may lie behind a link below that a directory of this layer hides.
        if found.is_none()
            && !self.hides(target).map_err(on(path, "look for the target of the hard link"))?
            && let Some(lower) = self.lower()?
        {
            found = look(lower)?;
        }
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
    pub(super) fn stack(&self) -> Result<Merged, Error> {
        let below = self.below.layers()?;
        let own = merged::fd_path(self.tree.root());
        let layers = std::iter::once(own.as_path()).chain(below.iter().map(PathBuf::as_path));
        Merged::open(layers).map_err(|e| Error::Below(e.to_string()))
    }

    /// The layers below without this one, if there are any.
    pub(super) fn lower(&self) -> Result<Option<Merged>, Error> {
        let below = self.below.layers()?;
        if below.is_empty() {
            return Ok(None);
        }
        Merged::open(below.iter().map(PathBuf::as_path)).map(Some).map_err(|e| Error::Below(e.to_string()))
    }

    /// Whether this layer says that what is below at `path` does not count: by a whiteout, an opaque directory, or something
    /// else in place of a directory on the way.
    pub(super) fn hides(&self, path: &[u8]) -> io::Result<bool> {
        let mut dir = merged::open_dir(self.tree.root(), b".")?;
        for part in path.split(|b| *b == b'/') {
            dir = match merged::open_dir(dir.as_fd(), part) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(false),
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(true),
                Err(e) => return Err(e.into()),
            };
            if merged::is_opaque(&dir) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
