//! The directory on the host where network namespaces are pinned: `/run/netns`, shared with `ip netns`.
//!
//! `ip netns add` binds the directory onto itself, once, and marks it shared, so that pins come and go in all mount
//! namespaces alike. Pins made before that would be covered by copies and could not be removed any more; so it is done
//! here too, in the same way and under the same lock, before the first pin (iproute2, `ip/ipnetns.c`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::pin::{Error, on};

/// Makes the directory and, where nobody did before, turns it into a shared mount.
pub(crate) fn prepare(dir: &Path) -> Result<(), Error> {
    if is_mount_point(dir).unwrap_or(false) {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(on("make directory", dir))?;
    let lock = File::open(dir).map_err(on("open directory", dir))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(on("lock directory", dir))?;
    if is_mount_point(dir).map_err(on("look at", dir))? {
        return Ok(());
    }
    rustix::mount::mount_bind_recursive(dir, dir).map_err(on("bind to itself", dir))?;
    rustix::mount::mount_change(dir, MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(on("share mounts below", dir))
}

/// Whether something is mounted at this very path.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// A mount of a namespace that is not attached anywhere yet. It can be carried into another mount namespace.
pub(crate) fn detached(namespace: impl AsFd) -> rustix::io::Result<OwnedFd> {
    rustix::mount::open_tree(
        namespace,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

/// Makes an empty file at `path` and attaches the detached mount there.
pub(crate) fn attach(mount: impl AsFd, path: &Path) -> Result<(), Error> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(on("make", path))?;
    rustix::mount::move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(on("pin a namespace at", path))
}

/// Takes away every mount at `path`, and the file. Succeeds when there is none.
pub(crate) fn detach(path: &Path) -> Result<(), Error> {
    for attempt in 0.. {
        loop {
            match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => break,
                Err(errno) => return Err(on("unmount", path)(errno)),
            }
        }
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => break,
            // Somebody mounted there between the two calls (`ip netns` setting the directory up).
            Err(Errno::BUSY) if attempt < 20 => std::thread::sleep(Duration::from_millis(5)),
            Err(errno) => return Err(on("remove", path)(errno)),
        }
    }
    Ok(())
}

/// Whether the descriptor leads to a namespace rather than to a file that a pin left behind.
pub(crate) fn is_namespace(fd: impl AsFd) -> bool {
    is_nsfs(fd).unwrap_or(false)
}

/// The same, for whom "cannot tell" is not "no".
pub(crate) fn is_nsfs(fd: impl AsFd) -> rustix::io::Result<bool> {
    /// `NSFS_MAGIC` of `linux/magic.h`.
    const NSFS: u64 = 0x6e73_6673;
    Ok(u64::try_from(rustix::fs::fstatfs(fd)?.f_type).is_ok_and(|magic| magic == NSFS))
}
