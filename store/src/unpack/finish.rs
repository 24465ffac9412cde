//! The end of unpacking: directories get their attributes, and the sums are made.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};

use super::entry::{Meta, wanted_xattr};
use super::tree::times;
use super::{Error, Unpacked, Unpacker, on, tolerate};
use crate::merged::{self, Node, OPAQUE};

impl Unpacker<'_> {
    pub(super) fn finish(mut self) -> Result<Unpacked, Error> {
        let dirs = std::mem::take(&mut self.tree.dirs);
        // Opaque marks first: they decide what an implied directory sees below.
        for (path, _) in dirs.iter().filter(|(_, pending)| pending.opaque) {
            self.mark_opaque(path).map_err(on(path, "mark it opaque"))?;
        }
        let implied = dirs.iter().filter(|(path, pending)| pending.meta.is_none() && !path.is_empty());
        let implied: Vec<&Vec<u8>> = implied.map(|(path, _)| path).collect();
        if !implied.is_empty() {
            let stack = self.stack()?;
            self.bound = true;
            for path in implied {
                let found = stack.get(path, false).map_err(on(path, "look for it below"))?;
                if let Some(Node::Dir(dir)) = found
                    && let Some(below) = dir.parts().get(1)
                {
                    self.copy_attributes(below.as_fd(), path).map_err(on(path, "give it the attributes from below"))?;
                }
            }
        }
        for (path, meta) in dirs.iter().filter_map(|(path, pending)| Some((path, pending.meta.as_ref()?))) {
            self.set_dir(path, meta).map_err(on(path, "set its attributes"))?;
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
    fn open(&self, path: &[u8]) -> io::Result<std::os::fd::OwnedFd> {
        Ok(merged::open_dir(self.tree.root(), if path.is_empty() { b"." } else { path })?)
    }

    fn mark_opaque(&self, path: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(self.open(path)?, OPAQUE, b"y", XattrFlags::empty())?)
    }

    fn set_dir(&self, path: &[u8], meta: &Meta) -> io::Result<()> {
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
        if !meta.xattrs.is_empty() {
            let dir = self.open(path)?;
            for (name, value) in &meta.xattrs {
                tolerate(name, true, rustix::fs::fsetxattr(&dir, &name[..], value, XattrFlags::empty()))?;
            }
        }
        Ok(rustix::fs::utimensat(root, plain, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
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
