//! Mounts an overlay from the layers in the working directory, by the newest way that the kernel has.
//!
//! From 6.8 on each lower is its own `lowerdir+` (no limit but the kernel's 500). Before that all of them share the one page of
//! options of mount(2), which is why they are relative and their names short; 128 fit. Upper and work directory are
//! named by descriptor: short, and no character needs an escape.

use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, mount,
};

use crate::mounts::{MountError, attach, on};

/// Mounts `lowers` (topmost first, relative to the working directory) at `target`; without `upper` (and work directory) read-only.
pub(crate) fn mount_overlay(
    lowers: &[PathBuf],
    upper: Option<(&PathBuf, &PathBuf)>,
    volatile: bool,
    target: &Path,
) -> Result<(), MountError> {
    let writable = match upper {
        Some((upper, work)) => Some((descriptor(upper)?, descriptor(work)?)),
        None => None,
    };
    let writable = writable.as_ref().map(|(upper, work)| [("upperdir", name_of(upper)), ("workdir", name_of(work))]);
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(on("open overlay for", target))?;
    for (index, lower) in lowers.iter().enumerate() {
        match fsconfig_set_string(&context, "lowerdir+", lower) {
            Err(Errno::INVAL) if index == 0 => return mount_by_page(lowers, writable.as_ref(), volatile, target),
            Err(e) => return Err(refused(&context, &format!("layer {}: {e}", lower.display()), target)),
            Ok(()) => {}
        }
    }
    let finish = || {
        for (key, path) in writable.iter().flatten() {
            fsconfig_set_string(&context, *key, path.as_str())?;
        }
        if volatile {
            fsconfig_set_flag(&context, "volatile")?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let tree = finish().map_err(|e: Errno| refused(&context, &e.to_string(), target))?;
    attach(tree.as_fd(), target)
}

fn mount_by_page(
    lowers: &[PathBuf],
    writable: Option<&[(&str, String); 2]>,
    volatile: bool,
    target: &Path,
) -> Result<(), MountError> {
    let fail = |message: &str| MountError::Overlay { path: target.to_owned(), message: message.to_owned() };
    let mut options = String::from("lowerdir=");
    for (index, lower) in lowers.iter().enumerate() {
        let lower = lower.to_str().filter(|l| !l.contains([':', ',', '\\']));
        let lower =
            lower.ok_or_else(|| fail("a layer's name has a character that the kernel takes for a separator"))?;
        options.push_str(if index > 0 { ":" } else { "" });
        options.push_str(lower);
    }
    for (key, path) in writable.into_iter().flatten() {
        let _ = write!(options, ",{key}={path}");
    }
    options.push_str(if volatile { ",volatile" } else { "" });
    if options.len() >= rustix::param::page_size() {
        return Err(fail("too many layers for this kernel: their names do not fit into one page"));
    }
    let options = std::ffi::CString::new(options).map_err(|_| fail("a layer's name holds a NUL"))?;
    mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str()).map_err(|e| fail(&e.to_string()))
}

fn descriptor(path: &Path) -> Result<OwnedFd, MountError> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(on("open", path))
}

fn name_of(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// The kernel's own words, where it left some in the context: lines that begin with `e `.
fn refused(context: &OwnedFd, error: &str, target: &Path) -> MountError {
    let mut message = error.to_owned();
    let mut line = [0; 512];
    while let Ok(n @ 1..) = rustix::io::read(context, &mut line) {
        if let Some(text) = String::from_utf8_lossy(&line[..n]).strip_prefix("e ") {
            message = format!("{message}: {}", text.trim());
        }
    }
    MountError::Overlay { path: target.to_owned(), message }
}
