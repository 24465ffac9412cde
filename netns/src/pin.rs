//! A pod's namespaces: made, pinned so that they outlive every process, found again, removed.
//!
//! ```text
//! /run/netns/<instance>-<id>     nsfs: the network namespace, on the host, where CNI plugins and people look for it
//! <state>/ns/mnt                 nsfs: the private mount namespace ([`layout`]), and in it:
//!   /pods/<id>/ipc|uts|user      nsfs
//!   /pods/<id>/shm               tmpfs, the pod's /dev/shm
//! ```
//!
//! Namespaces are set up completely (loopback, names, kernel parameters) before the first of them is pinned. So a pin
//! that is there is good, and [`Pins::create`] finishes what a crash cut short by removing all of the pod's pins and making
//! them again.
//!
//! # How a container gets them
//! The runtime joins namespaces by path, and the private mount namespace has no path on the host. A process with a single
//! thread (or a thread that has done `unshare(CLONE_FS)`) fetches them:
//!
//! 1. open `/proc/thread-self/ns/mnt` for the way back, then [`layout::DIR`]`/`[`layout::MNT`], and `setns` into it;
//! 2. `open_tree(AT_FDCWD, "/pods/<id>/ipc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)`, and so for `uts`, `user`, `shm`, as
//!    far as the pod has them: mounts that belong to no namespace yet;
//! 3. `setns` back, `unshare(CLONE_NEWNS)`, make what is mounted below the bundle private;
//! 4. `move_mount` each onto an existing empty file (`shm`: directory) of the bundle, and name those paths in
//!    `config.json`. The network namespace has its own path on the host, and is copied by the `unshare`.
//!
//! The copies live in that process's mount namespace only and end with it; the pod's own stay. Steps 1 and 3 need
//! CAP_SYS_ADMIN and CAP_SYS_CHROOT; step 1 fails with EINVAL in a process whose root is shared between threads.

mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

pub use error::Error;
pub(crate) use error::on;

use crate::private::Private;
use crate::setup::Setup;
use crate::userns::{self, Made};
use crate::{enter, netdir, sys};

/// The names that whoever fetches a pod's namespaces relies on.
pub mod layout {
    /// Directory below the state directory.
    pub const DIR: &str = "ns";
    /// The private mount namespace's pin in [`DIR`].
    pub const MNT: &str = "mnt";
    /// Inside the private mount namespace: one directory for each pod, named by its id.
    pub const PODS: &str = "/pods";
    /// The pod's IPC namespace.
    pub const IPC: &str = "ipc";
    /// The pod's UTS namespace.
    pub const UTS: &str = "uts";
    /// The pod's user namespace.
    pub const USER: &str = "user";
    /// The pod's `/dev/shm`, a tmpfs.
    pub const SHM: &str = "shm";
}

/// Size of `/dev/shm` where none is asked for, in bytes: the field's custom.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// One line of a user namespace's mapping (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    pub container_id: u32,
    /// First id on the host.
    pub host_id: u32,
    /// How many ids.
    pub length: u32,
}

/// The mapping of a pod's user namespace. Both lists map id 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserMapping {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// The namespaces that a pod has of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodNamespaces {
    /// A network namespace, with `lo` up; else the host's.
    pub net: bool,
    /// An IPC namespace and a `/dev/shm`; else the host's.
    pub ipc: bool,
    /// A UTS namespace; else the host's.
    pub uts: bool,
    /// Host name in the UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in the UTS namespace.
    pub domainname: Option<String>,
    /// A user namespace that owns the others.
    pub user: Option<UserMapping>,
    /// Size of `/dev/shm` in bytes; `None`: [`DEFAULT_SHM_SIZE`].
    pub shm_size: Option<u64>,
    /// Kernel parameters of the network and IPC namespace, by sysctl(8) name.
    pub sysctls: BTreeMap<String, String>,
}

/// The pins of one instance.
#[derive(Debug)]
pub struct Pins {
    instance: String,
    netns_dir: PathBuf,
    private: Private,
}

impl Pins {
    /// Opens the pins of an instance, with `/run/netns` for network namespaces.
    ///
    /// # Errors
    /// The private mount namespace can be neither found nor made.
    pub fn open(state_dir: &Path, instance: &str) -> Result<Self, Error> {
        Self::open_in(state_dir, instance, Path::new("/run/netns"))
    }

    /// As [`Pins::open`], with another directory for network namespaces.
    ///
    /// # Errors
    /// As [`Pins::open`].
    pub fn open_in(state_dir: &Path, instance: &str, netns_dir: &Path) -> Result<Self, Error> {
        let private = Private::open(state_dir)?;
        Ok(Self { instance: instance.to_owned(), netns_dir: netns_dir.to_owned(), private })
    }

    /// Where a pod's network namespace is pinned on the host.
    #[must_use]
    pub fn net_path(&self, id: &str) -> PathBuf {
        self.netns_dir.join(format!("{}-{id}", self.instance))
    }

    /// Makes, sets up and pins what the pod has of its own. A pod whose pins are all there is left as it is; what a crash
    /// left half done is made anew.
    ///
    /// # Errors
    /// What was tried; nothing is left of the pod then, unless removing failed too, which `remove` finishes.
    pub fn create(&self, id: &str, namespaces: &PodNamespaces) -> Result<(), Error> {
        check_id(id)?;
        let setup = Setup::new(namespaces)?;
        if let Some(user) = &namespaces.user {
            root(&user.uids).ok_or(Error::NoRoot("user id"))?;
            root(&user.gids).ok_or(Error::NoRoot("group id"))?;
        }
        if self.exists(id, namespaces) {
            return Ok(());
        }
        self.remove(id)?;
        if namespaces.net {
            netdir::prepare(&self.netns_dir)?;
        }
        let created = enter::thread("pins", || self.make(id, namespaces, &setup));
        let created = created.unwrap_or_else(|source| {
            Err(Error::Namespace { action: "start a thread for", subject: format!("pod {id}"), source })
        });
        if created.is_err()
            && let Err(error) = self.remove(id)
        {
            tracing::warn!(id, error = &error as &dyn std::error::Error, "namespaces half made could not be removed");
        }
        created
    }

    /// The work of `create`, on a thread that changes its namespaces as it goes and then ends.
    fn make(&self, id: &str, namespaces: &PodNamespaces, setup: &Setup) -> Result<(), Error> {
        let fail = |action: &'static str, subject: &str| {
            let subject = format!("{subject} of pod {id}");
            move |errno: rustix::io::Errno| Error::Namespace { action, subject, source: errno.into() }
        };
        let mut flags = UnshareFlags::empty();
        flags.set(UnshareFlags::NEWNET, namespaces.net);
        flags.set(UnshareFlags::NEWIPC, namespaces.ipc);
        flags.set(UnshareFlags::NEWUTS, namespaces.uts);
        let made = match &namespaces.user {
            Some(mapping) => userns::make(mapping, flags, setup)?,
            None => {
                sys::unshare(flags).map_err(fail("make", "namespaces"))?;
                setup.run().map_err(|(step, errno)| setup.error(step, errno.into()))?;
                Made {
                    user: None,
                    net: own(namespaces.net, "net")?,
                    ipc: own(namespaces.ipc, "ipc")?,
                    uts: own(namespaces.uts, "uts")?,
                }
            }
        };
        let detached = |namespace: &OwnedFd| netdir::detached(namespace).map_err(fail("mount", "a namespace"));
        if let Some(net) = &made.net {
            netdir::attach(detached(net)?, &self.net_path(id))?;
        }
        // Mounts are made here, where their sources can be reached, and attached there.
        let mut pins = Vec::with_capacity(3);
        for (name, namespace) in [(layout::IPC, &made.ipc), (layout::UTS, &made.uts), (layout::USER, &made.user)] {
            if let Some(namespace) = namespace {
                pins.push((name, detached(namespace)?));
            }
        }
        let shm = namespaces.ipc.then(|| shm(namespaces)).transpose().map_err(fail("mount", "shm"))?;
        if pins.is_empty() {
            return Ok(());
        }
        let dir = Path::new(layout::PODS).join(id);
        sys::unshare(UnshareFlags::FS).map_err(fail("leave the root", "the thread"))?;
        self.private.enter().map_err(on("enter the private mount namespace for", &dir))?;
        rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o700)).map_err(on("make directory", &dir))?;
        for (name, mount) in pins {
            netdir::attach(mount, &dir.join(name))?;
        }
        if let Some(shm) = shm {
            let path = dir.join(layout::SHM);
            rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)).map_err(on("make directory", &path))?;
            rustix::mount::move_mount(shm, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(on("mount", &path))?;
        }
        Ok(())
    }

    /// Sets the kernel parameters of the network's interfaces (`net.ipv4.conf.eth0.…`), which are there only after the
    /// network was attached. All other parameters are set by [`Pins::create`].
    ///
    /// # Errors
    /// The parameter that the kernel refused.
    pub fn set_interface_sysctls(&self, id: &str, namespaces: &PodNamespaces) -> Result<(), Error> {
        let setup = Setup::of_interfaces(namespaces)?;
        if setup.is_empty() {
            return Ok(());
        }
        let path = self.net_path(id);
        enter::netns(&path, || setup.run().map_err(|(step, errno)| setup.error(step, errno.into())))
            .map_err(on("enter network namespace", &path))?
    }

    /// Removes all pins of a pod. Succeeds when there are none. What processes still use lives until they end.
    ///
    /// # Errors
    /// What could not be removed; call again.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        check_id(id)?;
        netdir::detach(&self.net_path(id))?;
        let dir = Path::new(layout::PODS).join(id);
        if rustix::fs::statat(self.private.pods(), id, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(());
        }
        self.private
            .inside(|| {
                for name in [layout::IPC, layout::UTS, layout::USER] {
                    netdir::detach(&dir.join(name))?;
                }
                let shm = dir.join(layout::SHM);
                while rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH).is_ok() {}
                for dir in [&shm, &dir] {
                    match rustix::fs::rmdir(dir) {
                        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                        Err(errno) => return Err(on("remove", dir)(errno)),
                    }
                }
                Ok(())
            })
            .map_err(on("enter the private mount namespace for", &dir))?
    }

    /// Whether every namespace that the pod has of its own is pinned, by a pin that really is one: a file that a reboot
    /// left behind is none.
    #[must_use]
    pub fn exists(&self, id: &str, namespaces: &PodNamespaces) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let net = || rustix::fs::open(self.net_path(id), flags, Mode::empty()).is_ok_and(netdir::is_namespace);
        let pinned = |name: &str| {
            rustix::fs::openat(self.private.pods(), format!("{id}/{name}"), flags, Mode::empty())
                .is_ok_and(netdir::is_namespace)
        };
        let device = |path: &str| {
            let stat = rustix::fs::statat(self.private.pods(), path, AtFlags::SYMLINK_NOFOLLOW);
            stat.map(|stat| stat.st_dev)
        };
        // Mounted: on a device of its own.
        let shm = || device(&format!("{id}/{}", layout::SHM)).is_ok_and(|shm| device(id).is_ok_and(|dir| dir != shm));
        check_id(id).is_ok()
            && (!namespaces.net || net())
            && (!namespaces.ipc || (pinned(layout::IPC) && shm()))
            && (!namespaces.uts || pinned(layout::UTS))
            && (namespaces.user.is_none() || pinned(layout::USER))
    }

    /// The ids of all pods of this instance that have a pin, or a file that was one.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn list(&self) -> Result<BTreeSet<String>, Error> {
        let pods = Path::new(layout::PODS);
        let mut ids = BTreeSet::new();
        for entry in Dir::read_from(self.private.pods()).map_err(on("read", pods))? {
            let entry = entry.map_err(on("read", pods))?;
            ids.extend(entry.file_name().to_str().ok().map(str::to_owned));
        }
        let entries = match std::fs::read_dir(&self.netns_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(valid(ids)),
            Err(error) => return Err(on("read", &self.netns_dir)(error)),
        };
        for entry in entries {
            let name = entry.map_err(on("read", &self.netns_dir))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix(&self.instance)?.strip_prefix('-'));
            ids.extend(id.map(str::to_owned));
        }
        Ok(valid(ids))
    }
}

fn valid(mut ids: BTreeSet<String>) -> BTreeSet<String> {
    ids.retain(|id| check_id(id).is_ok());
    ids
}

/// Ids have no '-', so that a pin of the instance `a-b` is never taken for one of the instance `a`.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if (1..=128).contains(&id.len()) && id.bytes().all(word) { Ok(()) } else { Err(Error::Id(id.to_owned())) }
}

/// The host's id of the pod's root.
fn root(ids: &[IdMapping]) -> Option<u32> {
    ids.iter().find(|ids| ids.container_id == 0 && ids.length > 0).map(|ids| ids.host_id)
}

/// One of the calling thread's namespaces.
fn own(wanted: bool, name: &str) -> Result<Option<OwnedFd>, Error> {
    if !wanted {
        return Ok(None);
    }
    let path = Path::new("/proc/thread-self/ns").join(name);
    Ok(Some(std::fs::File::open(&path).map_err(on("open", &path))?.into()))
}

/// A pod's `/dev/shm`, not attached anywhere yet.
fn shm(namespaces: &PodNamespaces) -> rustix::io::Result<OwnedFd> {
    let size = namespaces.shm_size.unwrap_or(DEFAULT_SHM_SIZE);
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: String| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value);
    rustix::mount::fsconfig_set_string(fs.as_fd(), "source", "shm")?;
    set("size", size.to_string())?;
    set("mode", "1777".to_owned())?;
    if let Some(user) = &namespaces.user {
        set("uid", root(&user.uids).unwrap_or_default().to_string())?;
        set("gid", root(&user.gids).unwrap_or_default().to_string())?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
