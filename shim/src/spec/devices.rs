//! Devices: those asked for, all of the node's for privileged containers, and what the device cgroup allows.

use std::collections::BTreeSet;
use std::fs::FileType;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::SpecError;
use super::mounts::clean;
use super::oci::{self, DeviceRule};
use crate::model::{ContainerConfig, Device};

/// What every container may use: `null`, `full`, `zero`, `random`, `urandom`, `tty`, `console`, `ptmx` and the ptys
/// (runtime-spec, "Default Devices"). `None` is any minor number.
const DEFAULT: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];
/// Below `/dev`, what is a file system of its own or the terminal of whoever started this process.
const NOT_DEVICES: [&str; 8] = ["pts", "shm", "fd", "mqueue", "hugepages", ".lxc", ".udev", "console"];
/// More devices, or deeper directories, are not read: a machine with all its disks has a few thousand.
const MAX_DEVICES: usize = 16_384;
const MAX_DEPTH: usize = 8;

/// A device of the node, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// As the runtime makes it.
    pub node: oci::Device,
    /// What the container may do with it, of `rwm`.
    pub access: String,
}

/// Finds the devices of a container. Looks at the node, so that a device that came since is there too.
pub(super) fn find(container: &ContainerConfig) -> Result<Vec<DeviceNode>, SpecError> {
    let mut found = Vec::new();
    if container.security.privileged {
        walk(Path::new("/dev"), "/dev", "rwm", &NOT_DEVICES, 0, &mut found)?;
    }
    for device in &container.devices {
        let added = resolve(device)?;
        let taken: BTreeSet<&str> = added.iter().map(|device| device.node.path.as_str()).collect();
        // The later word on a place counts, that of the container over "all devices" too.
        found.retain(|device: &DeviceNode| !taken.contains(device.node.path.as_str()));
        found.extend(added);
    }
    Ok(found)
}

fn resolve(device: &Device) -> Result<Vec<DeviceNode>, SpecError> {
    let Device { container_path, host_path, permissions } = device;
    let access = match permissions.as_str() {
        "" => "rwm",
        some if some.bytes().all(|byte| b"rwm".contains(&byte)) => some,
        other => {
            return Err(SpecError::invalid(
                "devices.permissions",
                format!("{other:?} is not a selection of r, w and m"),
            ));
        }
    };
    let inside = clean(if container_path.is_empty() { host_path } else { container_path })
        .ok_or_else(|| SpecError::invalid("devices.container_path", format!("{container_path:?} is not absolute")))?;
    if !host_path.starts_with('/') {
        return Err(SpecError::invalid("devices.host_path", format!("{host_path:?} is not absolute")));
    }
    let real = std::fs::canonicalize(host_path).map_err(|source| SpecError::io("find device", host_path, source))?;
    let mut found = Vec::new();
    if real.is_dir() {
        walk(&real, &inside, access, &[], 0, &mut found)?;
        if found.is_empty() {
            return Err(SpecError::invalid("devices.host_path", format!("there is no device in {host_path}")));
        }
        return Ok(found);
    }
    found.extend(node(&real, &inside, access)?);
    if found.is_empty() {
        return Err(SpecError::invalid(
            "devices.host_path",
            format!("{host_path} is neither a device nor a directory"),
        ));
    }
    Ok(found)
}

/// All devices of a directory; links in it are other names of devices found under their own.
fn walk(
    dir: &Path,
    inside: &str,
    access: &str,
    skip: &[&str],
    depth: usize,
    found: &mut Vec<DeviceNode>,
) -> Result<(), SpecError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // Gone since its parent was read.
        Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SpecError::io("list devices of", dir, source)),
    };
    let mut names: Vec<(PathBuf, FileType)> =
        entries.flatten().filter_map(|entry| Some((entry.path(), entry.file_type().ok()?))).collect();
    names.sort_by(|one, other| one.0.cmp(&other.0));
    for (path, kind) in names {
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !skip.contains(name)) else {
            continue;
        };
        let inside = format!("{}/{name}", inside.trim_end_matches('/'));
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&path, &inside, access, &[], depth + 1, found)?;
        } else if found.len() < MAX_DEVICES {
            match node(&path, &inside, access) {
                Ok(node) => found.extend(node),
                Err(SpecError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// The device at `path`, if it is one.
fn node(path: &Path, inside: &str, access: &str) -> Result<Option<DeviceNode>, SpecError> {
    let meta = std::fs::symlink_metadata(path).map_err(|source| SpecError::io("look at device", path, source))?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Ok(None),
    };
    Ok(Some(DeviceNode {
        node: oci::Device {
            path: inside.to_owned(),
            kind: kind.to_owned(),
            major: i64::from(rustix::fs::major(meta.rdev())),
            minor: i64::from(rustix::fs::minor(meta.rdev())),
            file_mode: meta.mode() & 0o777,
            uid: meta.uid(),
            gid: meta.gid(),
        },
        access: access.to_owned(),
    }))
}

/// `linux.resources.devices`: nothing, then the defaults, making nodes of any kind, and the container's own.
pub(super) fn rules(privileged: bool, devices: &[DeviceNode]) -> Vec<DeviceRule> {
    let any = |allow| DeviceRule { allow, access: "rwm".to_owned(), ..Default::default() };
    if privileged {
        return vec![any(true)];
    }
    let rule = |kind: &str, major, minor, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: access.to_owned(),
    };
    let mut rules = vec![any(false), rule("c", None, None, "m"), rule("b", None, None, "m")];
    rules.extend(DEFAULT.map(|(major, minor)| rule("c", Some(major), minor, "rwm")));
    rules.extend(
        devices.iter().map(|DeviceNode { node, access }| rule(&node.kind, Some(node.major), Some(node.minor), access)),
    );
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::container;

    fn find_one(host_path: &str, container_path: &str, permissions: &str) -> Result<Vec<DeviceNode>, SpecError> {
        let mut container = container();
        container.devices = vec![Device {
            host_path: host_path.to_owned(),
            container_path: container_path.to_owned(),
            permissions: permissions.to_owned(),
        }];
        find(&container)
    }

    #[test]
    fn a_device_is_found_and_allowed() {
        let found = find_one("/dev/null", "/dev/nothing", "rw").unwrap();
        assert_eq!((found[0].node.major, found[0].node.minor), (1, 3));
        assert_eq!((found[0].node.path.as_str(), found[0].node.kind.as_str()), ("/dev/nothing", "c"));
        let rules = rules(false, &found);
        assert_eq!((rules[0].allow, rules[0].major), (false, None), "all is forbidden first");
        let last = rules.last().unwrap();
        assert_eq!((last.allow, last.major, last.minor, last.access.as_str()), (true, Some(1), Some(3), "rw"));
    }

    #[test]
    fn links_are_followed_and_directories_expanded() {
        let tmp = tempfile::tempdir().unwrap();
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert_eq!(find_one(link.to_str().unwrap(), "/dev/z", "").unwrap()[0].node.minor, 5);
        let expanded = find_one("/dev/pts", "/dev/terminals/", "r").unwrap();
        assert!(expanded.iter().all(|device| device.node.path.starts_with("/dev/terminals/")));
        assert!(expanded.iter().any(|device| device.node.path == "/dev/terminals/ptmx"), "{expanded:?}");
    }

    #[test]
    fn what_is_no_device_is_refused_by_name() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().to_str().unwrap();
        let text = |host: &str, inside: &str, access: &str| find_one(host, inside, access).unwrap_err().to_string();
        assert!(text("/dev/no-such-device", "/dev/x", "r").contains("cannot find device /dev/no-such-device"));
        assert!(text("/etc/passwd", "/dev/x", "r").contains("/etc/passwd is neither a device nor a directory"));
        assert!(text(dir, "/dev/x", "r").contains("there is no device in"));
        assert!(text("/dev/null", "/dev/x", "rx").contains("\"rx\""));
        assert!(text("null", "/dev/x", "r").contains("not absolute"));
        assert!(text("/dev/null", "x", "r").contains("not absolute"));
    }

    #[test]
    fn a_privileged_container_has_all_devices() {
        let mut container = container();
        container.security.privileged = true;
        let found = find(&container).unwrap();
        let has = |path: &str| found.iter().any(|device| device.node.path == path);
        assert!(has("/dev/null") && has("/dev/full") && !has("/dev/console"));
        assert!(!found.iter().any(|device| device.node.path.starts_with("/dev/pts/")));
        assert_eq!(rules(true, &found), [DeviceRule { allow: true, access: "rwm".into(), ..Default::default() }]);
    }
}
