//! Mounts.

use super::*;

fn destinations(spec: &oci::Spec) -> Vec<&str> {
    spec.mounts.iter().map(|mount| mount.destination.as_str()).collect()
}

fn options(case: &Case, destination: &str) -> Vec<String> {
    case.spec().mounts.into_iter().find(|mount| mount.destination == destination).unwrap().options
}

#[test]
fn what_lies_below_is_mounted_after() {
    let case = Case::new().volume("/data/deep/", |_| ()).volume("/data", |_| ()).volume("/a/../etc/x", |_| ());
    assert_eq!(
        destinations(&case.spec()),
        [
            "/proc",
            "/dev",
            "/sys",
            "/data",
            "/dev/pts",
            "/dev/mqueue",
            "/dev/shm",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/data/deep",
            "/etc/x",
            "/sys/fs/cgroup",
        ]
    );
}

#[test]
fn a_volume_takes_the_place_of_a_default() {
    let sources = |destination: &str| {
        let case = Case::new().volume(destination, |_| ());
        let spec = case.spec();
        let at = |path: &str| spec.mounts.iter().filter(|mount| mount.destination == path).count();
        (at(destination), spec.mounts.len(), destinations(&spec).join(" "))
    };
    for destination in ["/proc", "/dev/shm", "/etc/hosts", "/sys/fs/cgroup"] {
        assert_eq!((sources(destination).0, sources(destination).1), (1, 10), "{destination}");
    }
    let (_, _, with_dev) = sources("/dev");
    assert!(!with_dev.contains("/dev/"), "{with_dev}");
    let (_, _, with_sys) = sources("/sys");
    assert!(!with_sys.contains("/sys/fs/cgroup"), "{with_sys}");
    let (_, count, _) = sources("/etc");
    assert_eq!(count, 11, "a volume above the pod's files hides none of them");
}

#[test]
fn a_destination_is_absolute_and_not_the_root() {
    for path in ["", "relative", "/", "/..", "/a/..", "/a\0"] {
        assert!(Case::new().volume(path, |_| ()).error().contains("mounts.container_path"), "{path:?}");
    }
}

#[test]
fn a_volume_is_bound_from_where_its_links_lead() {
    let case = Case::new().volume("/data", |mount| mount.readonly = true);
    let mount = case.spec().mounts.into_iter().find(|mount| mount.destination == "/data").unwrap();
    assert_eq!((mount.source.to_str(), mount.kind.as_str()), (Some("/real/src"), "bind"));
    assert_eq!(mount.options, ["rbind", "rprivate", "ro"]);
}

const SHARED: &[u8] = b"27 1 0:1 / / rw shared:1 - ext4 /dev/x rw\n";
const SLAVE: &[u8] = b"27 1 0:1 / / rw master:1 - ext4 /dev/x rw\n";
const PRIVATE: &[u8] = b"27 1 0:1 / / rw shared:1 - ext4 /dev/x rw\n30 27 0:2 / /real rw - ext4 /dev/y rw\n";

fn propagating(propagation: Propagation, table: &[u8]) -> Case {
    let mut case = Case::new().volume("/data", |mount| mount.propagation = propagation);
    case.node.mounts = MountTable::parse(table);
    case
}

#[test]
fn propagation_needs_a_source_that_can() {
    let case = propagating(Propagation::Bidirectional, SHARED);
    assert_eq!(options(&case, "/data"), ["rbind", "rshared"]);
    assert_eq!(case.spec().linux.rootfs_propagation, "rshared");
    for table in [SHARED, SLAVE] {
        let case = propagating(Propagation::HostToContainer, table);
        assert_eq!(options(&case, "/data"), ["rbind", "rslave"]);
        assert_eq!(case.spec().linux.rootfs_propagation, "rslave");
    }
    let error = propagating(Propagation::Bidirectional, SLAVE).error();
    assert!(error.contains("is not on a shared mount") && error.contains("make-rshared /"), "{error}");
    let error = propagating(Propagation::HostToContainer, PRIVATE).error();
    assert!(error.contains("is not on a shared or slave mount") && error.contains("/real"), "{error}");
    assert_eq!(Case::new().volume("/data", |_| ()).spec().linux.rootfs_propagation, "");
}

#[test]
fn the_propagation_of_the_root_is_only_ever_raised() {
    let set = |propagation| move |mount: &mut Mount| mount.propagation = propagation;
    let mut case = Case::new()
        .volume("/a", set(Propagation::Bidirectional))
        .volume("/b", set(Propagation::HostToContainer))
        .volume("/c", set(Propagation::Private));
    case.node.mounts = MountTable::parse(SHARED);
    assert_eq!(case.spec().linux.rootfs_propagation, "rshared");
}

#[test]
fn recursive_read_only_needs_read_only_private_and_a_runtime_that_knows_it() {
    let volume = |change: fn(&mut Mount)| {
        Case::new().volume("/data", move |mount| {
            (mount.readonly, mount.recursive_read_only) = (true, true);
            change(mount);
        })
    };
    let mut case = volume(|_| ());
    assert_eq!(options(&case, "/data"), ["rbind", "rprivate", "rro"]);
    case.features.mount_options = None;
    assert!(case.error().starts_with("RROUnsupported: "), "kubelet looks at the first word");
    case = volume(|_| ());
    case.host.kernel = KernelVersion { major: 5, minor: 11 };
    assert!(case.error().starts_with("RROUnsupported: ") && case.error().contains("older than 5.12"));
    assert!(volume(|mount| mount.readonly = false).error().contains("neither readonly nor"));
    let mut case = volume(|mount| mount.propagation = Propagation::HostToContainer);
    case.node.mounts = MountTable::parse(SHARED);
    assert!(case.error().contains("neither readonly nor of propagation PRIVATE"));
}

#[test]
fn an_id_mapping_is_passed_on_or_refused() {
    let ids = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
    let mut case = Case::new().volume("/data", |mount| {
        (mount.uid_mappings, mount.gid_mappings) = (vec![ids], vec![ids]);
    });
    let mount = case.spec().mounts.into_iter().find(|mount| mount.destination == "/data").unwrap();
    assert_eq!((mount.uid_mappings.len(), mount.gid_mappings[0].host_id), (1, 100_000));
    case.features.idmap = false;
    assert!(case.error().contains("/data: the runtime does not know id mappings of mounts"));
}

#[test]
fn an_image_is_mounted_to_be_read_only() {
    let mut case = Case::new().volume("/model/", |mount| {
        mount.source = MountSource::Image { reference: "m".into(), sub_path: String::new() };
    });
    assert!(case.error().contains("m is not there for /model"));
    case.paths.image_mounts.insert("/model/".into(), "/b/views/0".into());
    assert_eq!(options(&case, "/model"), ["rbind", "rprivate", "ro", "nosuid", "nodev"]);
    case.container.mounts[0].propagation = Propagation::Bidirectional;
    assert!(case.error().contains("mounts.propagation"));
}

#[test]
fn volumes_of_an_image_are_directories_of_the_containers_own() {
    let mut case = Case::new().volume("/taken", |_| ());
    case.image.volumes =
        strings(&["/data/", "/taken/", "rel", "/data", "/proc/x", "/dev", "/", "/sys/y", "/etc/hosts"]);
    assert_eq!(image_volumes(&case.image, &case.container), ["/data", "/rel"]);
    assert!(case.error().contains("no directory was made for its volume /data"));
    for volume in ["/data", "/rel"] {
        case.paths.image_volumes.insert(volume.into(), PathBuf::from("/v").join(volume.trim_start_matches('/')));
    }
    assert_eq!(options(&case, "/rel"), ["rbind", "rprivate"]);
}

#[test]
fn files_of_the_pod_follow_the_root_file_system() {
    let mut case = Case::new();
    assert_eq!(options(&case, "/etc/hosts"), ["rbind", "rprivate"]);
    case.container.security.readonly_rootfs = true;
    assert!(case.spec().root.readonly);
    for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"] {
        assert_eq!(options(&case, file), ["rbind", "rprivate", "ro"]);
    }
    assert_eq!(options(&case, "/dev/shm"), ["rbind", "rprivate"], "programs need somewhere to write");
}

#[test]
fn in_a_user_namespace_flags_of_the_source_are_repeated() {
    let mut case = Case::new().volume("/data", |mount| mount.readonly = true).volume("/rw", |_| ());
    case.sandbox.namespaces.user = Some(mapping());
    case.node.mounts = MountTable::parse(b"27 1 0:1 / / ro,nosuid,nodev,noexec,relatime - ext4 /dev/x rw\n");
    assert_eq!(options(&case, "/data"), ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"]);
    assert_eq!(options(&case, "/rw"), ["rbind", "rprivate"]);
    case.sandbox.namespaces.user = None;
    assert_eq!(options(&case, "/data"), ["rbind", "rprivate", "ro"]);
}

#[test]
fn terminals_belong_to_a_group_that_the_pod_has() {
    let mut case = Case::new();
    assert!(options(&case, "/dev/pts").contains(&"gid=5".to_owned()));
    let mut few = mapping();
    few.gids[0].length = 5;
    case.sandbox.namespaces.user = Some(few);
    assert!(!options(&case, "/dev/pts").iter().any(|option| option.starts_with("gid=")));
}

#[test]
fn a_cgroup_mount_without_a_namespace_repeats_what_the_node_has() {
    let mut case = Case::new();
    assert!(!options(&case, "/sys/fs/cgroup").contains(&"nsdelegate".to_owned()));
    (case.sandbox.privileged, case.container.security.privileged) = (true, true);
    assert!(options(&case, "/sys/fs/cgroup").contains(&"nsdelegate".to_owned()));
    case.host = host(Version::Hybrid);
    assert!(!options(&case, "/sys/fs/cgroup").contains(&"nsdelegate".to_owned()), "there it is mounted apart");
}
