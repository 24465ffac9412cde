//! Mounts, in the order in which the runtime makes them.
//!
//! ```text
//! defaults   /proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup   ┐ a volume at the same place takes a default's;
//! pod        /dev/shm /etc/hosts /etc/resolv.conf /etc/hostname    │ one at /dev or /sys those below it, too
//! image      anonymous volumes                                     │
//! container  volumes, images                                       ┘
//!            ── stable sort by depth: what lies below comes after, else as given
//! ```
//!
//! Rules: runtime-spec "Mounts"; KEP-3857 (recursive read-only), KEP-4639 (images), KEP-127 (user namespaces); the kernel's
//! shared subtrees and mount_namespaces(7) on locked flags. Links in destinations are the runtime's to resolve, inside
//! the root file system.

use std::path::{Path, PathBuf};

use super::namespaces::{Shared, has_cgroup_namespace};
use super::oci::{self, IdMapping};
use super::{Inputs, SpecError};
use crate::cgroup::Version;
use crate::model::{ContainerConfig, ImageDefaults, Mount, MountSource, Propagation};

/// Group of terminals where there is an `/etc/group` that knows one: `tty`, of 5, everywhere.
const TTY_GROUP: u32 = 5;

/// Destinations of the image's anonymous volumes that this container needs a directory for: not those where it mounts
/// something itself, and none that would take the place of what every container has.
pub fn image_volumes(image: &ImageDefaults, container: &ContainerConfig) -> Vec<String> {
    let taken: Vec<String> = container.mounts.iter().filter_map(|mount| clean(&mount.container_path)).collect();
    let mut volumes: Vec<String> = Vec::new();
    for volume in &image.volumes {
        // Image builders take a relative one as relative to the root.
        let Some(path) = clean(&format!("/{volume}")) else { continue };
        let system = ["/proc", "/sys", "/dev"].iter().any(|dir| Path::new(&path).starts_with(dir));
        let pod = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"].contains(&path.as_str());
        if !system && !pod && !taken.contains(&path) && !volumes.contains(&path) {
            volumes.push(path);
        }
    }
    volumes
}

/// `mounts` and `linux.rootfsPropagation`.
pub(super) fn build(inputs: &Inputs<'_>, shared: &Shared<'_>) -> Result<(Vec<oci::Mount>, String), SpecError> {
    let Inputs { container, image, paths, .. } = *inputs;
    let mut propagation = Propagation::Private;
    let mut volumes = Vec::new();
    for mount in &container.mounts {
        let destination = clean(&mount.container_path).ok_or_else(|| {
            let problem = format!("{:?} is not an absolute path below /", mount.container_path);
            SpecError::invalid("mounts.container_path", problem)
        })?;
        volumes.push(volume(inputs, shared, mount, destination)?);
        propagation = propagation.max_of(mount.propagation);
    }
    let mut mounts = defaults(inputs, shared);
    mounts.extend(of_pod(inputs, shared));
    for destination in image_volumes(image, container) {
        let source = paths.image_volumes.get(&destination).ok_or_else(|| {
            SpecError::invalid("image", format!("no directory was made for its volume {destination}"))
        })?;
        mounts.push(bind(destination, source.clone(), &[]));
    }
    mounts.retain(|default| !volumes.iter().any(|volume| takes_place(&volume.destination, &default.destination)));
    mounts.extend(volumes);
    mounts.sort_by_key(|mount| mount.destination.matches('/').count());
    let rootfs_propagation = match propagation {
        // The runtime's own choice keeps the node's mounts out.
        Propagation::Private => "",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    Ok((mounts, rootfs_propagation.to_owned()))
}

/// Whether a volume stands for a default: at its place, or at the directory that the default would be mounted in.
fn takes_place(volume: &str, default: &str) -> bool {
    volume == default || ["/dev", "/sys"].contains(&volume) && Path::new(default).starts_with(volume)
}

fn defaults(inputs: &Inputs<'_>, shared: &Shared<'_>) -> Vec<oci::Mount> {
    let Inputs { container, host, features, .. } = *inputs;
    let privileged = container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, options: &[&str]| oci::Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: kind.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    };
    let mut pts = mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
    let has_tty_group = shared.user.is_none_or(|user| {
        user.gids.iter().any(|range| TTY_GROUP.checked_sub(range.container_id).is_some_and(|at| at < range.length))
    });
    if has_tty_group {
        pts.options.push(format!("gid={TTY_GROUP}"));
    }
    let mut cgroup = mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]);
    let version = host.cgroups.version;
    if version == Version::V2 && !has_cgroup_namespace(version, privileged, features) {
        // Mounted from the node's own cgroup namespace, it changes the node's mount as well.
        cgroup.options.extend(host.cgroups.unified_options.iter().cloned());
    }
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        pts,
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        cgroup,
    ]
}

/// What all containers of a pod share. The files follow the root file system in being read-only; `/dev/shm` does not,
/// since programs need it most where nothing else can be written.
fn of_pod(inputs: &Inputs<'_>, shared: &Shared<'_>) -> Vec<oci::Mount> {
    let Inputs { container, node, paths, .. } = *inputs;
    let shm = if shared.ipc { paths.shm.clone() } else { "/dev/shm".into() };
    let mut mounts = vec![bind("/dev/shm".to_owned(), shm, &[])];
    for (destination, source) in
        [("/etc/hosts", &paths.hosts), ("/etc/resolv.conf", &paths.resolv_conf), ("/etc/hostname", &paths.hostname)]
    {
        let mut mount = bind(destination.to_owned(), source.clone(), &[]);
        if container.security.readonly_rootfs {
            mount.options.push("ro".to_owned());
            mount.options.extend(locked_flags(node.mount_of(source), shared));
        }
        mounts.push(mount);
    }
    mounts
}

fn volume(
    inputs: &Inputs<'_>,
    shared: &Shared<'_>,
    mount: &Mount,
    destination: String,
) -> Result<oci::Mount, SpecError> {
    let Inputs { node, paths, .. } = *inputs;
    let Mount { container_path, source, readonly, recursive_read_only, propagation, uid_mappings, gid_mappings } =
        mount;
    let mut built = match source {
        MountSource::Image { reference, .. } => {
            if *propagation != Propagation::Private {
                let problem = format!("{destination} is an image, which has no mounts to propagate");
                return Err(SpecError::invalid("mounts.propagation", problem));
            }
            let source = paths.image_mounts.get(container_path).ok_or_else(|| {
                SpecError::invalid("mounts.image", format!("{reference} is not there for {destination}"))
            })?;
            // KEP-4639: nobody writes to it. Set-id bits and devices of an image have no power here.
            bind(destination, source.clone(), &["ro", "nosuid", "nodev"])
        }
        MountSource::Host(path) => {
            let source = node.sources.get(path).ok_or_else(|| {
                SpecError::invalid("mounts.host_path", format!("{path} was not looked up for {destination}"))
            })?;
            check_propagation(inputs, &destination, source, *propagation)?;
            let mut built = bind(destination, source.clone(), &[]);
            built.options[1] = match propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            }
            .to_owned();
            if *recursive_read_only {
                check_recursive_read_only(inputs, mount)?;
                built.options.push("rro".to_owned());
            } else if *readonly {
                built.options.push("ro".to_owned());
            }
            if *readonly {
                built.options.extend(locked_flags(node.mount_of(source), shared));
            }
            built
        }
    };
    // An image's layers are mapped already, whatever kubelet says of each mount.
    let image = matches!(source, MountSource::Image { .. });
    if !image && (!uid_mappings.is_empty() || !gid_mappings.is_empty()) {
        check_idmap(inputs, &built.destination)?;
        built.uid_mappings = uid_mappings.iter().map(IdMapping::from).collect();
        built.gid_mappings = gid_mappings.iter().map(IdMapping::from).collect();
    }
    Ok(built)
}

/// A bind mount that takes over no later mounts.
fn bind(destination: String, source: PathBuf, options: &[&str]) -> oci::Mount {
    let options = ["rbind", "rprivate"].iter().chain(options).map(|option| (*option).to_owned()).collect();
    oci::Mount { destination, kind: "bind".to_owned(), source, options, ..Default::default() }
}

/// In a user namespace these flags of an inherited mount cannot be cleared, and a remount that does not repeat them
/// fails (mount_namespaces(7)).
fn locked_flags(mount: Option<&crate::host::mountinfo::MountPoint>, shared: &Shared<'_>) -> Vec<String> {
    let options = mount.filter(|_| shared.user.is_some()).map_or(&[][..], |mount| &mount.options);
    options.iter().filter(|option| ["nosuid", "nodev", "noexec"].contains(&option.as_str())).cloned().collect()
}

fn check_propagation(
    inputs: &Inputs<'_>,
    destination: &str,
    source: &Path,
    propagation: Propagation,
) -> Result<(), SpecError> {
    let (name, wanted) = match propagation {
        Propagation::Private => return Ok(()),
        Propagation::HostToContainer => ("HOST_TO_CONTAINER", "shared or slave"),
        Propagation::Bidirectional => ("BIDIRECTIONAL", "shared"),
    };
    let mount = inputs.node.mount_of(source);
    let slave_will_do = propagation == Propagation::HostToContainer;
    if mount.is_some_and(|mount| mount.shared || slave_will_do && mount.slave) {
        return Ok(());
    }
    Err(SpecError::Propagation {
        destination: destination.to_owned(),
        source_path: source.to_owned(),
        mountpoint: mount.map_or_else(|| "/".into(), |mount| mount.mountpoint.clone()),
        propagation: name,
        wanted,
    })
}

fn check_recursive_read_only(inputs: &Inputs<'_>, mount: &Mount) -> Result<(), SpecError> {
    let destination = || mount.container_path.clone();
    if !mount.readonly || mount.propagation != Propagation::Private {
        let problem = format!("{} is neither readonly nor of propagation PRIVATE", destination());
        return Err(SpecError::invalid("mounts.recursive_read_only", problem));
    }
    let why = match (inputs.host.has_mount_setattr(), inputs.features.recursive_read_only()) {
        (true, true) => return Ok(()),
        (false, _) => "the kernel is older than 5.12",
        (true, false) => "the runtime does not know the mount option rro",
    };
    Err(SpecError::RecursiveReadOnly { destination: destination(), why })
}

fn check_idmap(inputs: &Inputs<'_>, destination: &str) -> Result<(), SpecError> {
    let why = match (inputs.host.has_mount_setattr(), inputs.features.idmap) {
        (true, true) => return Ok(()),
        (false, _) => "the kernel is older than 5.12",
        (true, false) => "the runtime does not know id mappings of mounts",
    };
    Err(SpecError::unsupported("an id mapping of a mount", format!("{destination}: {why}")))
}

impl Propagation {
    /// The stronger of two: nothing that one mount needs is taken away by another.
    fn max_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::Bidirectional, _) | (_, Self::Bidirectional) => Self::Bidirectional,
            (Self::HostToContainer, _) | (_, Self::HostToContainer) => Self::HostToContainer,
            (Self::Private, Self::Private) => Self::Private,
        }
    }
}

/// An absolute path without `.`, `..` and doubled separators; `None` for others, and for the root itself.
pub(super) fn clean(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("/{}", parts.join("/")))
}
