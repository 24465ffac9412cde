//! The private mount namespace that holds the pins of all pods, so that the host's mount table stays short.
//!
//! ```text
//! <state>/ns        on the host: bound to itself and private, because the kernel refuses to bind a mount namespace
//!  │                below a mount that propagates
//!  └── mnt          nsfs: the private mount namespace
//!
//!  /                in it: a small tmpfs; nothing of the host, so nothing of the host is kept busy
//!  └── pods/<id>/
//!       ├── ipc, uts, user    nsfs
//!       └── shm               tmpfs, the pod's /dev/shm
//! ```
//!
//! The namespace is complete before it is pinned. A crash before that leaves nothing that lives; a crash after it leaves
//! the pin, which the next server finds. After a reboot `mnt` may be there as a plain file: it is replaced. Nothing else is, since
//! all pods' pins would go with it: a namespace that cannot be entered now is an error.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::pin::{Error, layout, on};
use crate::{enter, netdir, sys};

/// The opened private mount namespace.
#[derive(Debug)]
pub(crate) struct Private {
    namespace: OwnedFd,
    /// `/pods` in it. Paths below this descriptor can be looked at from outside; only mounting needs to be inside.
    pods: OwnedFd,
}

impl Private {
    /// Opens the namespace that a server before left, or makes it.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, Error> {
        let dir = state_dir.join(layout::DIR);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(on("make directory", &dir))?;
        let lock = File::open(&dir).map_err(on("open directory", &dir))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(on("lock directory", &dir))?;
        if !netdir::is_mount_point(&dir).map_err(on("look at", &dir))? {
            rustix::mount::mount_bind(&dir, &dir).map_err(on("bind to itself", &dir))?;
        }
        rustix::mount::mount_change(&dir, MountPropagationFlags::PRIVATE).map_err(on("make private", &dir))?;
        let pin = dir.join(layout::MNT);
        let find = || Self::find(&pin).map_err(on("enter the private mount namespace at", &pin));
        if let Some(found) = find()? {
            return Ok(found);
        }
        netdir::detach(&pin)?;
        File::create_new(&pin).map_err(on("make", &pin))?;
        pin_new(&dir, &pin)?;
        find()?.ok_or_else(|| on("find the private mount namespace at", &pin)(io::ErrorKind::NotFound))
    }

    /// What is pinned at `pin`; `None`: nothing, or a file that a reboot left.
    fn find(pin: &Path) -> io::Result<Option<Self>> {
        let namespace = match File::open(pin) {
            Ok(file) => OwnedFd::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !netdir::is_nsfs(&namespace)? {
            return Ok(None);
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let pods = inside(namespace.as_fd(), || rustix::fs::open(layout::PODS, flags, Mode::empty()))??;
        Ok(Some(Self { namespace, pods }))
    }

    /// Moves the calling thread, which must not share its root with others, into the namespace.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        inside(self.namespace.as_fd(), work)
    }

    /// The directory of all pods.
    pub(crate) fn pods(&self) -> BorrowedFd<'_> {
        self.pods.as_fd()
    }
}

fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    enter::thread("pins", || {
        // Threads share their root and working directory; setns refuses to move both for all of them.
        sys::unshare(UnshareFlags::FS)?;
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
        Ok(work())
    })?
}

/// Makes the namespace and pins it. The kernel pins only one that is younger by number than the caller's own
/// (`mnt_ns_loop`), and since 6.18 each CPU hands out numbers of its own: where the first is refused, one made on the CPU
/// that made the caller's is not.
fn pin_new(dir: &Path, pin: &Path) -> Result<(), Error> {
    let bind = |namespace: OwnedFd| rustix::mount::mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), pin);
    let mut bound = bind(make(dir, None)?);
    let allowed = rustix::thread::sched_getaffinity(None).map_err(on("find the CPUs for", dir))?;
    let mut cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    while bound == Err(rustix::io::Errno::INVAL)
        && let Some(cpu) = cpus.next()
    {
        bound = bind(make(dir, Some(cpu))?);
    }
    bound.map_err(on("pin the private mount namespace at", pin))
}

/// Makes the namespace, complete but not pinned: it lives as long as the descriptor.
fn make(scratch: &Path, cpu: Option<usize>) -> Result<OwnedFd, Error> {
    let made = enter::thread("pins", || -> io::Result<OwnedFd> {
        if let Some(cpu) = cpu {
            let mut one = rustix::thread::CpuSet::new();
            one.set(cpu);
            rustix::thread::sched_setaffinity(None, &one)?;
        }
        sys::unshare(UnshareFlags::NEWNS)?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("tmpfs", scratch, "tmpfs", flags, Some(c"mode=0700"))?;
        let namespace = File::open("/proc/thread-self/ns/mnt")?;
        rustix::process::chdir(scratch)?;
        // pivot_root(2), "pivot_root(".", ".")": the old root ends up above the new one and is taken off.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        rustix::fs::mkdir(layout::PODS, Mode::from_raw_mode(0o700))?;
        Ok(namespace.into())
    });
    made.flatten().map_err(on("make a private mount namespace at", scratch))
}
