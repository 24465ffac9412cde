//! Owner, mode, extended attributes and times of what is no directory.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::Meta;
use super::tree::{as_os, times};
use super::{Error, Unpacker, name, on};
use crate::merged;

/// A disk with less than this, in bytes, has no room for an attribute.
const ROOM: u64 = 1 << 20;

impl Unpacker<'_> {
    pub(super) fn set_file(&self, path: &[u8], file: BorrowedFd<'_>, meta: &Meta) -> Result<(), Error> {
        let owner_and_mode = || -> io::Result<()> {
            if (meta.uid, meta.gid) != (0, 0) {
                rustix::fs::fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
            }
            // After the owner, whose change takes these bits away.
            if meta.mode & 0o7000 != 0 {
                rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode))?;
            }
            Ok(())
        };
        owner_and_mode().map_err(on(path, "set its owner and mode"))?;
        // The owner's change takes security.capability away, too.
        let set = |name: &[u8], value: &[u8]| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
        self.set_xattrs(path, meta, true, set)?;
        rustix::fs::futimens(file, &times(meta.mtime)).map_err(|e| on(path, "set its times")(e.into()))
    }

    /// Attributes of an entry that must not be opened.
    pub(super) fn set_named(&self, path: &[u8], base: &[u8], meta: &Meta, chmod: bool) -> Result<(), Error> {
        let here = self.tree.here();
        let owner_and_mode = || -> io::Result<()> {
            if (meta.uid, meta.gid) != (0, 0) {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                rustix::fs::chownat(here, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if chmod && meta.mode & 0o7000 != 0 {
                rustix::fs::chmodat(here, base, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
            }
            Ok(())
        };
        owner_and_mode().map_err(on(path, "set its owner and mode"))?;
        let full = merged::fd_path(here).join(as_os(base));
        let set = |name: &[u8], value: &[u8]| rustix::fs::lsetxattr(&full, name, value, XattrFlags::empty());
        self.set_xattrs(path, meta, false, set)?;
        let times = rustix::fs::utimensat(here, base, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW);
        times.map_err(|e| on(path, "set its times")(e.into()))
    }

    /// A file system without an attribute, or a place where the kernel has no `user.` ones (links, devices), is no reason
    /// to refuse an image; engines pass over it. One that is too large for the file system is, but the disk is not full
    /// then, whatever the kernel says.
    pub(super) fn set_xattrs(
        &self,
        path: &[u8],
        meta: &Meta,
        opened: bool,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), Error> {
        for (attribute, value) in &meta.xattrs {
            match set(attribute, value) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(Errno::PERM) if !opened && attribute.starts_with(b"user.") => {}
                Err(Errno::NOSPC) if self.has_room() => {
                    let why = format!("its attribute {} is too large for the file system", name(attribute));
                    return Err(Error::Entry(name(path), why));
                }
                Err(e) => return Err(on(path, "set its extended attributes")(e.into())),
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        rustix::fs::fstatvfs(self.tree.root()).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) >= ROOM)
    }
}
