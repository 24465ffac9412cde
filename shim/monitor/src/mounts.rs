//! Everything that is mounted for one container, in a mount namespace that the host never sees.
//!
//! Runs in the child that becomes `runtime create`:
//!
//! ```text
//! 1. setns into the pod's private namespace; clone ipc, uts, user (nsfs) and shm there as detached mounts; setns back
//! 2. unshare: a copy of the host's mounts, still in their peer groups (Bidirectional volumes reach the host)
//! 3. <bundle> becomes a private mount of itself      nothing mounted below it is propagated anywhere
//!    ├── ns/{ipc,uts,user}   from 1
//!    ├── shm/                from 1
//!    ├── layers/             scratch: the layers, mapped by the pod's user namespace; gone at the end
//!    ├── scratch/            scratch: an image while its sub path is looked up; gone at the end
//!    ├── <view target>       image volumes, read-only
//!    └── rootfs/             the overlay
//! ```
//!
//! The runtime makes the container's namespace as a copy of this one; when `create` returns, this one is gone. A crash can
//! leave empty directories in the bundle, and no mount.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use crisp_monitor::launch::{Launch, Overlay, Pins, View};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::overlay::mount_overlay;
use crate::sys::{self, MountChange};

/// What was tried on what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("{what} {}: {source}", path.display())]
    Path { what: &'static str, path: PathBuf, source: io::Error },
    /// kubelet looks for this word at the start of the text (Kubernetes: `ErrImageVolumeMountFailed`).
    #[error("ImageVolumeMountFailed: {0}")]
    View(Box<Self>),
    #[error("mount overlay at {}: {message}", path.display())]
    Overlay { path: PathBuf, message: String },
}

pub(crate) fn on<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> MountError {
    move |source| MountError::Path { what, path: path.to_owned(), source: source.into() }
}

const DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Does all of it; without anything to mount the process stays in the host's namespace.
pub(crate) fn prepare(launch: &Launch) -> Result<(), MountError> {
    let Launch { bundle, rootfs, views, pins, idmap, .. } = launch;
    if rootfs.is_none() && views.is_empty() && pins.is_none() {
        return Ok(());
    }
    let pinned = pins.as_ref().map(|pins| clone_pins(pins, *idmap)).transpose()?.unwrap_or_default();
    let map = pinned.map.as_ref().map(AsFd::as_fd);
    enclose(bundle)?;
    for (name, tree) in &pinned.trees {
        let target = bundle.join(name);
        if *name == SHM {
            make_dir(&target)?
        } else {
            make_file(&target)?
        }
        attach(tree.as_fd(), &target)?;
    }
    for view in views {
        mount_view(bundle, view, map).map_err(|e| MountError::View(Box::new(e)))?;
    }
    if let Some(Overlay { layers_dir, lowers, upper, work, volatile }) = rootfs {
        let target = bundle.join("rootfs");
        make_dir(&target)?;
        let layers = Layers::open(bundle, layers_dir, map)?;
        rustix::process::fchdir(&layers.dir).map_err(on("enter", layers_dir))?;
        mount_overlay(lowers, Some((upper, work)), *volatile, &target)?;
    }
    std::env::set_current_dir("/").map_err(on("enter", Path::new("/")))
}

const SHM: &str = "shm";

#[derive(Default)]
struct Pinned {
    /// Where below the bundle, and what.
    trees: Vec<(&'static str, OwnedFd)>,
    /// The user namespace to map layers by.
    map: Option<OwnedFd>,
}

fn clone_pins(pins: &Pins, idmap: bool) -> Result<Pinned, MountError> {
    let Pins { mnt_ns, dir, ipc, uts, user, shm } = pins;
    let back = Path::new("/proc/self/ns/mnt");
    let host = File::open(back).map_err(on("open", back))?;
    enter(&File::open(mnt_ns).map_err(on("open", mnt_ns))?, mnt_ns)?;
    let mut pinned = Pinned::default();
    for (wanted, name, target) in
        [(ipc, "ipc", "ns/ipc"), (uts, "uts", "ns/uts"), (user, "user", "ns/user"), (shm, SHM, SHM)]
    {
        if *wanted {
            let path = dir.join(name);
            pinned.trees.push((target, clone_tree(CWD, &path).map_err(on("clone the pod's pin", &path))?));
        }
    }
    if idmap {
        let path = dir.join("user");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        pinned.map = Some(open(&path, flags, Mode::empty()).map_err(on("open the pod's pin", &path))?);
    }
    enter(&host, back)?;
    Ok(pinned)
}

fn enter(namespace: &File, path: &Path) -> Result<(), MountError> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(on("enter", path))
}

/// Steps 2 and 3. The mount that holds the bundle leaves its peer group only while the bundle is mounted on itself.
fn enclose(bundle: &Path) -> Result<(), MountError> {
    let holder = mount_point(bundle)?;
    let outside = open(&holder, DIR, Mode::empty()).map_err(on("open", &holder))?;
    sys::unshare_mounts().map_err(on("make a mount namespace for", bundle))?;
    let rejoin = can_rejoin();
    // Without a way back into the peer group, follow the host at least: mounts from there arrive, none of ours leave.
    let apart = if rejoin { MountPropagationFlags::PRIVATE } else { MountPropagationFlags::DOWNSTREAM };
    mount_change(&holder, apart).map_err(on("make private", &holder))?;
    let tree = clone_tree(CWD, bundle).map_err(on("clone", bundle))?;
    attach(tree.as_fd(), bundle)?;
    mount_change(bundle, MountPropagationFlags::PRIVATE).map_err(on("make private", bundle))?;
    if rejoin {
        let inside = open(&holder, DIR, Mode::empty()).map_err(on("open", &holder))?;
        let flags = MoveMountFlags::MOVE_MOUNT_SET_GROUP
            | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
            | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        match move_mount(&outside, "", &inside, "", flags) {
            // It has no peer group: it is private on the host, too.
            Err(rustix::io::Errno::INVAL) => {}
            other => other.map_err(on("rejoin the peer group of", &holder))?,
        }
    }
    Ok(())
}

/// Whether the kernel knows MOVE_MOUNT_SET_GROUP (5.15): flags are looked at before descriptors.
fn can_rejoin() -> bool {
    let Ok(root) = open("/", DIR, Mode::empty()) else { return false };
    let result = move_mount(&root, "proc/self/no-such-file", &root, "", MoveMountFlags::MOVE_MOUNT_SET_GROUP);
    result == Err(rustix::io::Errno::NOENT)
}

/// The mount point that holds `path`: the next directory upwards that is a mount's root.
fn mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let path = fs::canonicalize(path).map_err(on("resolve", path))?;
    for dir in path.ancestors() {
        let stat = rustix::fs::statx(CWD, dir, rustix::fs::AtFlags::SYMLINK_NOFOLLOW, rustix::fs::StatxFlags::empty());
        let stat = stat.map_err(on("look at", dir))?;
        if stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT) {
            return Ok(dir.to_owned());
        }
    }
    Ok("/".into())
}

/// The layers directory, mapped if asked for. A mapped one is mounted in the bundle as long as this lives.
struct Layers {
    dir: OwnedFd,
    mounted: Option<PathBuf>,
}

impl Layers {
    fn open(bundle: &Path, layers: &Path, map: Option<BorrowedFd<'_>>) -> Result<Self, MountError> {
        let Some(idmap) = map else {
            return Ok(Self { dir: open(layers, DIR, Mode::empty()).map_err(on("open", layers))?, mounted: None });
        };
        // Of the whole store: a view's first lower lies beside the layers.
        let (Some(store), Some(name)) = (layers.parent(), layers.file_name()) else {
            return Err(on("find the store of", layers)(io::Error::from(io::ErrorKind::InvalidInput)));
        };
        let tree = clone_tree(CWD, store).map_err(on("clone", store))?;
        let change = MountChange { read_only: true, private: true, idmap: Some(idmap) };
        sys::set_mount(tree.as_fd(), change).map_err(on("map ids of", store))?;
        let target = bundle.join("layers");
        make_dir(&target)?;
        attach(tree.as_fd(), &target)?;
        let mapped = target.join(name);
        Ok(Self { dir: open(&mapped, DIR, Mode::empty()).map_err(on("open", &mapped))?, mounted: Some(target) })
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let Some(target) = &self.mounted {
            let _ = unmount(target, UnmountFlags::DETACH);
        }
    }
}

fn mount_view(bundle: &Path, view: &View, map: Option<BorrowedFd<'_>>) -> Result<(), MountError> {
    let View { target, layers_dir, lowers, sub_path } = view;
    if target.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err(on("mount a view at", target)(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let target = bundle.join(target);
    let layers = Layers::open(bundle, layers_dir, map)?;
    rustix::process::fchdir(&layers.dir).map_err(on("enter", layers_dir))?;
    // One layer is shown as it is: an overlay needs two.
    let scratch = bundle.join("scratch");
    let root = if let [only] = lowers.as_slice() {
        openat(&layers.dir, only, DIR, Mode::empty()).map_err(on("open", &layers_dir.join(only)))?
    } else {
        make_dir(&scratch)?;
        mount_overlay(lowers, None, false, &scratch)?;
        open(&scratch, DIR, Mode::empty()).map_err(on("open", &scratch))?
    };
    let content = if sub_path.as_os_str().is_empty() {
        root
    } else {
        // What an image's links say never leads out of it.
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        openat2(&root, sub_path, flags, Mode::empty(), within).map_err(on("find in the image", sub_path))?
    };
    let tree = clone_tree(&content, Path::new("")).map_err(on("clone", sub_path))?;
    let change = MountChange { read_only: true, private: true, idmap: None };
    sys::set_mount(tree.as_fd(), change).map_err(on("make read-only", sub_path))?;
    let stat = rustix::fs::fstat(&tree).map_err(on("look at", sub_path))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        make_dir(&target)?
    } else {
        make_file(&target)?
    }
    attach(tree.as_fd(), &target)?;
    if lowers.len() > 1 {
        unmount(&scratch, UnmountFlags::DETACH).map_err(on("unmount", &scratch))?;
    }
    Ok(())
}

fn clone_tree(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(dir, path, flags)?)
}

/// Attaches a detached mount.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: &Path) -> Result<(), MountError> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(on("mount at", target))
}

/// Passable for a container's mapped root, which has to reach what is mounted below.
fn make_dir(path: &Path) -> Result<(), MountError> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(on("make directory", path))
}

fn make_file(path: &Path) -> Result<(), MountError> {
    path.parent().map_or(Ok(()), make_dir)?;
    File::options().create(true).append(true).open(path).map_err(on("make file", path)).map(drop)
}
