//! From a container's record to what its monitor is told: snapshot, volumes, `config.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crisp_monitor::launch::{Launch, Overlay, Pins, View};
use crisp_netns::pin::layout;
use crisp_store::{Image, Snapshot};

use crate::cgroup;
use crate::error::{Error, Result};
use crate::model::{
    ContainerConfig, ContainerRecord, ImageDefaults, MountSource, Process, SandboxRecord, StringMap, UserMapping,
};
use crate::node::{Node, make_dir};
use crate::runtimes::Runtime;
use crate::spec::{self, BundlePaths, Inputs};

/// Soft and hard limit of open files: systemd's own for services. The server's are no measure: programs that take memory by
/// the limit (old Java, MySQL) suffer from high ones.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Everything that a container is made from.
#[derive(Debug)]
pub struct Plan {
    pub sandbox: Arc<SandboxRecord>,
    pub record: ContainerRecord,
    pub image: Arc<Image>,
    pub runtime: Runtime,
    /// Whose PID namespace it joins.
    pub pid_owner: Option<Process>,
}

/// Makes snapshot, volumes and bundle. Whatever it made when it fails, `remove_container::take_away` removes.
pub fn prepare(node: &Node, plan: Plan) -> Result<(Launch, ContainerRecord)> {
    let Plan { sandbox, mut record, image, runtime, pid_owner } = plan;
    let config = &record.config;
    let shared = spec::shared(&sandbox.config, config)?;
    let defaults = defaults(&image);
    let snapshot = node.store.prepare(&record.id, &image)?;
    let file = |path| snapshot.read_file(path, spec::user::MAX_FILE as u64);
    let passwd = file("etc/passwd")?.unwrap_or_default();
    let group = file("etc/group")?.unwrap_or_default();
    let user = spec::user::resolve(&config.security.run_as, &defaults.user, &passwd, &group)
        .map_err(|error| Error::Invalid(error.to_string()))?;
    if let Some(mapping) = shared.user {
        own_by_pod_root(&snapshot, mapping)?;
    }
    for mount in &config.mounts {
        make_missing_source(mount)?;
    }
    let dir = node.paths.container_dir(&record.id);
    let bundle = dir.join("bundle");
    for dir in [&dir, &bundle, &bundle.join("rootfs")] {
        make_dir(dir)?;
    }
    let mut paths = BundlePaths::new(&bundle, &node.paths.pod(&sandbox.id), &node.pins.net_path(&sandbox.id));
    paths.pid = pid_owner.map(|process| PathBuf::from(format!("/proc/{}/ns/pid", process.pid)));
    let destinations = spec::image_volumes(&defaults, config);
    paths.image_volumes = image_volumes(node, &record.id, &snapshot, &destinations, shared.user)?;
    let (views, image_ids) = image_mounts(node, &record.id, config, &bundle, &mut paths.image_mounts)?;
    let inputs = Inputs {
        sandbox: &sandbox.config,
        container: config,
        image: &defaults,
        user: &user,
        host: &node.host,
        features: &runtime.features,
        node: &spec::Node::read(config, &shared)?,
        cgroup: &record.cgroup,
        paths: &paths,
        open_files: Some(OPEN_FILES),
    };
    let json = serde_json::to_vec(&spec::build(&inputs)?).map_err(|error| Error::Internal(error.to_string()))?;
    let path = bundle.join("config.json");
    std::fs::write(&path, json).map_err(Error::io("write", &path))?;
    let launch = Launch {
        tty: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        log_path: (!record.log_path.is_empty()).then(|| PathBuf::from(&record.log_path)),
        rootfs: Some(Overlay {
            layers_dir: snapshot.layers_dir.clone(),
            lowers: snapshot.lowers.iter().map(PathBuf::from).collect(),
            upper: snapshot.upper.clone(),
            work: snapshot.work.clone(),
            volatile: true,
        }),
        views,
        pins: Some(Pins {
            mnt_ns: node.paths.state().join(layout::DIR).join(layout::MNT),
            dir: Path::new(layout::PODS).join(&sandbox.id),
            ipc: shared.ipc,
            uts: shared.uts,
            user: shared.user.is_some(),
            shm: shared.ipc,
        }),
        idmap: shared.user.is_some(),
        memory_cgroup: node.host.cgroups.memory_dir(&record.cgroup),
        exit_disk: Some(node.paths.container_exit(&record.id)),
        runtime_timeout: runtime.timeout,
        ..Launch::new(&record.id, &dir, runtime.call)
    };
    record.image_mounts = image_ids;
    record.user = user;
    record.image_volumes = destinations;
    Ok((launch, record))
}

fn defaults(image: &Image) -> ImageDefaults {
    let config = &image.config;
    ImageDefaults {
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        user: config.user.clone(),
        working_dir: config.working_dir.clone(),
        volumes: config.volumes.clone(),
        stop_signal: config.stop_signal.clone(),
    }
}

/// Where the container's cgroup is, below each hierarchy's root.
pub fn cgroup(node: &Node, sandbox: &SandboxRecord, id: &str) -> Result<String> {
    let pod = cgroup::pod_path(&sandbox.config.cgroup_parent, &node.instance, &sandbox.id)?;
    Ok(cgroup::container_path(&pod, id))
}

/// The signal that stops it: as asked for, else the image's, else SIGTERM.
pub fn stop_signal(config: &ContainerConfig, image: &str) -> Result<i32> {
    match config.stop_signal {
        Some(signal) => Ok(signal),
        None if image.is_empty() => Ok(libc::SIGTERM),
        None => crate::signals::parse(image)
            .ok_or_else(|| Error::Invalid(format!("the image's stop signal {image:?} is none"))),
    }
}

/// The log's path: really below the log directory (kubernetes#44043); its directory is made.
pub fn log_path(directory: &str, below: &str) -> Result<String> {
    if directory.is_empty() || below.is_empty() {
        return Ok(String::new());
    }
    let plain = Path::new(below).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || !directory.starts_with('/') {
        return Err(Error::Invalid(format!("log path {below:?} is not below the log directory {directory:?}")));
    }
    let directory = Path::new(directory);
    let path = directory.join(below);
    let parent = path.parent().unwrap_or(directory);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(directory).map_err(Error::io("make directory", directory))?;
    let real = |path: &Path| std::fs::canonicalize(path).map_err(Error::io("find directory", path));
    // What is there already may be a link that leads out; what is made from here on is not.
    let there = parent.ancestors().find(|dir| dir.exists()).unwrap_or(directory);
    let link = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
    if link || !real(there)?.starts_with(real(directory)?) {
        return Err(Error::Invalid(format!("log path {below:?} leads out of the log directory by a symbolic link")));
    }
    builder.create(parent).map_err(Error::io("make directory", parent))?;
    Ok(path.to_string_lossy().into_owned())
}

/// A volume's source that is not there is made a directory, as both other runtimes do and charts rely on.
fn make_missing_source(mount: &crate::model::Mount) -> Result<()> {
    match &mount.source {
        MountSource::Host(path) if !Path::new(path).exists() && path.starts_with('/') => {
            let path = Path::new(path);
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o755).create(path).map_err(Error::io("make the missing volume", path))
        }
        _ => Ok(()),
    }
}

/// In a user namespace, the writable layer belongs to the pod's root, whose ids the lower layers are shown with.
fn own_by_pod_root(snapshot: &Snapshot, mapping: &UserMapping) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let upper = &snapshot.upper;
    let meta = std::fs::metadata(upper).map_err(Error::io("look at", upper))?;
    let (uid, gid) = (on_host(&mapping.uids, meta.uid()), on_host(&mapping.gids, meta.gid()));
    for dir in [upper, &snapshot.work] {
        chown(dir, Some(uid), Some(gid)).map_err(Error::io("change the owner of", dir))?;
    }
    Ok(())
}

/// What an id inside is outside; unmapped ones become the kernel's overflow id.
fn on_host(maps: &[crate::model::IdMapping], id: u32) -> u32 {
    let mapped = maps.iter().find_map(|map| {
        let offset = id.checked_sub(map.container_id).filter(|offset| *offset < map.length)?;
        map.host_id.checked_add(offset)
    });
    mapped.unwrap_or(65_534)
}

/// A directory for each anonymous volume, filled from the image.
fn image_volumes(
    node: &Node,
    id: &str,
    snapshot: &Snapshot,
    destinations: &[String],
    user: Option<&UserMapping>,
) -> Result<BTreeMap<String, PathBuf>> {
    let root = node.paths.volumes(id);
    let mut volumes = BTreeMap::new();
    for (number, destination) in destinations.iter().enumerate() {
        let dir = root.join(number.to_string());
        make_dir(&dir)?;
        snapshot.copy_out(destination.trim_start_matches('/'), &dir)?;
        if let Some(mapping) = user {
            shift_owners(&dir, mapping)?;
        }
        volumes.insert(destination.clone(), dir);
    }
    Ok(volumes)
}

/// Gives a copied tree to the pod's ids: each file once, whatever its names, and with the set-id bits that a change of the
/// owner takes away.
fn shift_owners(dir: &Path, mapping: &UserMapping) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, lchown};
    let mut linked = BTreeSet::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
        if !meta.is_dir() && meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        let (uid, gid) = (on_host(&mapping.uids, meta.uid()), on_host(&mapping.gids, meta.gid()));
        lchown(&path, Some(uid), Some(gid)).map_err(Error::io("change the owner of", &path))?;
        if meta.is_file() && meta.mode() & 0o6000 != 0 {
            std::fs::set_permissions(&path, meta.permissions()).map_err(Error::io("set the mode of", &path))?;
        }
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(Error::io("read", &path))?;
            todo.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

/// A view for each mounted image, pinned in the store under `<id>.<n>`.
fn image_mounts(
    node: &Node,
    id: &str,
    config: &ContainerConfig,
    bundle: &Path,
    targets: &mut BTreeMap<String, PathBuf>,
) -> Result<(Vec<View>, StringMap)> {
    let (mut views, mut ids) = (Vec::new(), StringMap::new());
    for mount in &config.mounts {
        let MountSource::Image { reference, sub_path } = &mount.source else { continue };
        let image = match node.store.find(reference) {
            Err(error) if crate::cri::is_unknown_image(&error) => {
                return Err(Error::NoVolumeImage { image: reference.clone() });
            }
            found => found?,
        };
        let view = node.store.view(&view_id(id, views.len()), &image)?;
        ids.insert(mount.container_path.clone(), image.id.to_string());
        let target = PathBuf::from(format!("views/{}", views.len()));
        targets.insert(mount.container_path.clone(), bundle.join(&target));
        views.push(View {
            target,
            layers_dir: view.layers_dir,
            lowers: view.lowers.into_iter().map(PathBuf::from).collect(),
            sub_path: sub_path.into(),
        });
    }
    Ok((views, ids))
}

/// The store's name for a container's n-th mounted image.
pub fn view_id(container: &str, number: usize) -> String {
    format!("{container}.{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_tree_belongs_to_the_pods_ids_once() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("a"), "").unwrap();
        std::fs::set_permissions(file("a"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::fs::hard_link(file("a"), file("b")).unwrap();
        let maps = vec![crate::model::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
        shift_owners(dir.path(), &UserMapping { uids: maps.clone(), gids: maps }).unwrap();
        let meta = std::fs::metadata(file("b")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (100_000, 100_000, 0o4755));
    }

    #[test]
    fn a_log_stays_below_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let directory = logs.to_str().unwrap();
        assert_eq!(log_path(directory, "c/0.log").unwrap(), format!("{directory}/c/0.log"));
        assert!(logs.join("c").is_dir());
        assert_eq!((log_path("", "a").unwrap(), log_path(directory, "").unwrap()), (String::new(), String::new()));
        assert!(log_path(directory, "../a.log").is_err());
        assert!(log_path(directory, "/etc/a.log").is_err());
        std::os::unix::fs::symlink(dir.path(), logs.join("out")).unwrap();
        assert!(log_path(directory, "out/a.log").is_err());
        assert!(log_path(directory, "out/new/a.log").is_err());
        std::os::unix::fs::symlink("/etc/passwd", logs.join("l.log")).unwrap();
        assert!(log_path(directory, "l.log").is_err());
    }
}
