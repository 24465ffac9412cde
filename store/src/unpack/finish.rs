//! The end of unpacking: directories get their attributes, and the sums are made.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::{Meta, wanted_xattr};
use super::tree::times;
use super::{Error, Unpacked, Unpacker, on};
use crate::merged::{self, Merged, Node};

impl Unpacker<'_> {
    pub(super) fn finish(mut self) -> Result<Unpacked, Error> {
        let dirs = std::mem::take(&mut self.tree.dirs);
        let implied = dirs.iter().filter(|(path, pending)| pending.meta.is_none() && !path.is_empty());
        let implied: Vec<&Vec<u8>> = implied.map(|(path, _)| path).collect();
        if !implied.is_empty() {
            let (stack, lower) = (self.stack()?, self.lower()?);
            self.bound = true;
            for path in implied {
                let found = self.below(&stack, lower.as_ref(), path).map_err(on(path, "look for it below"))?;
                if let Some(below) = found {
                    self.copy_attributes(below.as_fd(), path).map_err(on(path, "give it the attributes from below"))?;
                }
            }
        }
        for (path, meta) in dirs.iter().filter_map(|(path, pending)| Some((path, pending.meta.as_ref()?))) {
            self.set_dir(path, meta)?;
        }
        self.count(dirs.len() as u64, dirs.len() as u64);
        if self.tree.replaced {
            // Something went again after it was counted.
            (self.bytes, self.inodes) = crate::usage::measure(&merged::fd_path(self.tree.root()).join("."));
        }
        Ok(Unpacked {
            bytes: self.bytes,
            inodes: self.inodes,
            bound: self.bound,
            root_listed: dirs.get(&b""[..]).is_some_and(|root| root.meta.is_some()),
        })
    }

    /// A directory by its real path: no links are in it, and nobody else is here.
    fn open(&self, path: &[u8]) -> io::Result<OwnedFd> {
        Ok(merged::open_dir(self.tree.root(), if path.is_empty() { b"." } else { path })?)
    }

    /// The directory that an implied one stands for: the one of this name below, or the one that a link below leads to.
    fn below(&self, stack: &Merged, lower: Option<&Merged>, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        if let Some(Node::Dir(dir)) = stack.get(path, false)?
            && let Some(below) = dir.parts().get(1)
        {
            return Ok(Some(rustix::io::fcntl_dupfd_cloexec(below, 0)?));
        }
        let Some(lower) = lower else { return Ok(None) };
        if self.hides(path)? {
            return Ok(None);
        }
        match lower.get(path, true) {
            Ok(Some(Node::Dir(dir))) => Ok(Some(rustix::io::fcntl_dupfd_cloexec(dir.top(), 0)?)),
            Ok(_) => Ok(None),
            // Links in a circle lead nowhere.
            Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn set_dir(&self, path: &[u8], meta: &Meta) -> Result<(), Error> {
        self.set_owner_and_mode(path, meta).map_err(on(path, "set its owner and mode"))?;
        if !meta.xattrs.is_empty() {
            let dir = self.open(path).map_err(on(path, "open it"))?;
            let set = |name: &[u8], value: &[u8]| rustix::fs::fsetxattr(&dir, name, value, XattrFlags::empty());
            self.set_xattrs(path, meta, true, set)?;
        }
        let plain = if path.is_empty() { b"." } else { path };
        let times = rustix::fs::utimensat(self.tree.root(), plain, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW);
        times.map_err(|e| on(path, "set its times")(e.into()))
    }

    fn set_owner_and_mode(&self, path: &[u8], meta: &Meta) -> io::Result<()> {
        let root = self.tree.root();
        let plain = if path.is_empty() { b"." } else { path };
        if (meta.uid, meta.gid) != (0, 0) || path.is_empty() {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(root, plain, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let mode = Mode::from_raw_mode(meta.mode);
        // The mode it was made with may be another one: it can be listed twice, or implied first.
        if Mode::from_raw_mode(rustix::fs::statat(root, plain, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) != mode {
            rustix::fs::chmodat(root, plain, mode, AtFlags::empty())?;
        }
        Ok(())
    }

    fn copy_attributes(&self, from: std::os::fd::BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        let stat: Stat = rustix::fs::fstat(from)?;
        let to = self.open(path)?;
        rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
        crate::xattr::copy(from, to.as_fd(), wanted_xattr)?;
        let last_modification = Timespec { tv_sec: stat.st_mtime as i64, tv_nsec: stat.st_mtime_nsec as _ };
        Ok(rustix::fs::futimens(&to, &Timestamps { last_access: last_modification, last_modification })?)
    }
}
