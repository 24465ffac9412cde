//! Process, namespaces, security.

use super::*;

fn args(command: &[&str], args: &[&str], entrypoint: &[&str], cmd: &[&str]) -> Result<Vec<String>, SpecError> {
    let mut case = Case::new();
    (case.container.command, case.container.args) = (strings(command), strings(args));
    (case.image.entrypoint, case.image.cmd) = (strings(entrypoint), strings(cmd));
    case.build().map(|spec| spec.process.args)
}

#[test]
fn command_and_arguments_replace_those_of_the_image() {
    assert_eq!(args(&[], &[], &["e"], &["c"]).unwrap(), ["e", "c"]);
    assert_eq!(args(&["x"], &[], &["e"], &["c"]).unwrap(), ["x"], "the image's arguments were for its entrypoint");
    assert_eq!(args(&[], &["a"], &["e"], &["c"]).unwrap(), ["e", "a"]);
    assert_eq!(args(&["x"], &["a"], &["e"], &["c"]).unwrap(), ["x", "a"]);
    assert_eq!(args(&[], &[], &[""], &["c"]).unwrap(), ["c"], "an entrypoint of one empty string is none");
    for none in [args(&[], &[], &[], &[]), args(&[], &[], &[""], &[]), args(&[""], &[], &["e"], &["c"])] {
        assert!(matches!(none, Err(SpecError::NoCommand)));
    }
    assert!(args(&["a\0b"], &[], &[], &[]).unwrap_err().to_string().contains("NUL"));
}

#[test]
fn the_last_word_on_a_variable_wins() {
    let mut case = Case::new();
    case.image.env = strings(&["PATH=/image", "A=1", "B=1", "nothing", "C=x=y"]);
    case.container.envs = vec![("B".into(), "2".into()), ("D".into(), String::new())];
    let env = case.spec().process.env;
    assert_eq!(env, ["PATH=/image", "HOSTNAME=pod-host", "A=1", "B=2", "C=x=y", "D="]);
    case.container.tty = true;
    assert!(case.spec().process.env.contains(&"TERM=xterm".to_owned()) && case.spec().process.terminal);
    case.container.envs = vec![("HOSTNAME".into(), "mine".into()), ("TERM".into(), "vt100".into())];
    let env = case.spec().process.env;
    assert!(env.contains(&"HOSTNAME=mine".to_owned()) && env.contains(&"TERM=vt100".to_owned()));
    for name in ["", "A=B", "A\0"] {
        case.container.envs = vec![(name.into(), "x".into())];
        assert!(case.error().contains("envs"), "{name:?}");
    }
}

#[test]
fn the_working_directory_is_absolute() {
    let cwd = |container: &str, image: &str| {
        let mut case = Case::new();
        (case.container.working_dir, case.image.working_dir) = (container.into(), image.into());
        case.spec().process.cwd
    };
    assert_eq!(cwd("", ""), "/");
    assert_eq!(cwd("", "/image"), "/image");
    assert_eq!(cwd("/own", "/image"), "/own");
    assert_eq!(cwd("", "app"), "/app");
}

#[test]
fn limits_of_the_server_are_not_passed_on() {
    let mut case = Case::new();
    assert_eq!(case.spec().process.rlimits, []);
    case.open_files = Some((1024, 1 << 20));
    let limit = &case.spec().process.rlimits[0];
    assert_eq!((limit.soft, limit.hard), (1024, 4096), "more than its own nobody can give");
    case.host.can_raise_limits = true;
    assert_eq!(case.spec().process.rlimits[0].hard, 1 << 20);
}

#[test]
fn the_oom_score_is_clamped_where_it_cannot_be_lowered() {
    let score = |wanted, can_lower| {
        let mut case = Case::new();
        case.container.resources.oom_score_adj = wanted;
        case.host.can_lower_oom_score = can_lower;
        case.build().map(|spec| spec.process.oom_score_adj)
    };
    assert_eq!(score(-997, true).unwrap(), Some(-997));
    assert_eq!(score(-997, false).unwrap(), Some(-500));
    assert_eq!(score(1000, false).unwrap(), Some(1000));
    assert!(score(1001, true).is_err() && score(i64::MIN, true).is_err());
}

#[test]
fn inheritable_and_ambient_capabilities_stay_empty() {
    let mut case = Case::new();
    case.container.security.add_capabilities = strings(&["SYS_ADMIN"]);
    let capabilities = case.spec().process.capabilities;
    assert!(capabilities.effective.contains(&"CAP_SYS_ADMIN".to_owned()));
    assert_eq!(capabilities.bounding, capabilities.permitted);
    assert!(capabilities.inheritable.is_empty() && capabilities.ambient.is_empty());
}

fn namespaces(spec: &oci::Spec) -> Vec<(NamespaceType, Option<&str>)> {
    spec.linux.namespaces.iter().map(|one| (one.kind, one.path.as_deref().and_then(Path::to_str))).collect()
}

#[test]
fn a_container_joins_its_pod() {
    let spec = Case::new().spec();
    assert_eq!(
        namespaces(&spec),
        [
            (NamespaceType::Mount, None),
            (NamespaceType::Network, Some("/run/netns/x")),
            (NamespaceType::Uts, Some("/b/ns/uts")),
            (NamespaceType::Ipc, Some("/b/ns/ipc")),
            (NamespaceType::Pid, None),
            (NamespaceType::Cgroup, None),
        ]
    );
    assert_eq!(spec.hostname, "pod-host");
}

#[test]
fn what_is_the_nodes_is_not_joined() {
    let mut case = Case::new();
    case.sandbox.namespaces = Namespaces {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
        ..Default::default()
    };
    case.sandbox.hostname.clear();
    case.container.security.namespaces = Namespaces::default();
    let spec = case.spec();
    assert_eq!(namespaces(&spec), [(NamespaceType::Mount, None), (NamespaceType::Cgroup, None)]);
    assert_eq!(spec.hostname, "", "the node's own is not set");
    assert!(spec.process.env.contains(&"HOSTNAME=node-host".to_owned()));
    let shm = spec.mounts.iter().find(|mount| mount.destination == "/dev/shm").unwrap();
    assert_eq!(shm.source, Path::new("/dev/shm"));
}

#[test]
fn the_pid_namespace_is_the_pods_the_targets_or_ones_own() {
    let pid = |mode, target: &str| {
        let mut case = Case::new();
        case.container.security.namespaces.pid = mode;
        case.container.security.namespaces.target = target.into();
        case.build().map(|spec| {
            let joined = spec.linux.namespaces.into_iter().find(|one| one.kind == NamespaceType::Pid);
            joined.map(|one| one.path)
        })
    };
    let held = Some(Some(PathBuf::from("/proc/7/ns/pid")));
    assert_eq!(pid(NamespaceMode::Pod, "").unwrap(), held);
    assert_eq!(pid(NamespaceMode::Target, "c2").unwrap(), held);
    assert_eq!(pid(NamespaceMode::Container, "").unwrap(), Some(None));
    assert_eq!(pid(NamespaceMode::Node, "").unwrap(), None);
    assert!(pid(NamespaceMode::Target, "").unwrap_err().to_string().contains("TARGET without a container"));
    let mut case = Case::new();
    case.container.security.namespaces.pid = NamespaceMode::Pod;
    case.paths.pid = None;
    assert!(case.error().contains("PID namespace to join is not there"));
}

#[test]
fn a_container_cannot_leave_its_pod() {
    let mut case = Case::new();
    case.container.security.namespaces.network = NamespaceMode::Node;
    assert_eq!(case.error(), "namespace_options.network: NODE, but the sandbox has one of its own");
    case.container.security.namespaces.network = NamespaceMode::Container;
    assert!(case.error().contains("only POD and NODE"));
    let mut case = Case::new();
    case.container.security.namespaces.user = Some(mapping());
    assert!(case.error().contains("another mapping than the sandbox's"));
}

#[test]
fn only_cgroup_v2_has_a_cgroup_namespace_and_privileged_containers_have_none() {
    let has = |version, privileged, known: bool| {
        let mut case = Case::new();
        case.host = host(version);
        (case.sandbox.privileged, case.container.security.privileged) = (true, privileged);
        if !known {
            case.features.namespaces = None;
        }
        case.spec().linux.namespaces.iter().any(|one| one.kind == NamespaceType::Cgroup)
    };
    assert!(has(Version::V2, false, true));
    assert!(!has(Version::V2, true, true) && !has(Version::Hybrid, false, true) && !has(Version::V2, false, false));
}

#[test]
fn mappings_stand_beside_a_user_namespace_only_for_runtimes_that_want_them() {
    let mut case = Case::new();
    case.sandbox.namespaces.user = Some(mapping());
    let spec = case.spec();
    assert_eq!(namespaces(&spec)[1], (NamespaceType::User, Some("/b/ns/user")));
    assert_eq!(spec.linux.uid_mappings, []);
    case.features.mapping_beside_path = true;
    let ids = oci::IdMapping { container_id: 0, host_id: 100_000, size: 65_536 };
    assert_eq!((case.spec().linux.uid_mappings, case.spec().linux.gid_mappings), (vec![ids], vec![ids]));
    case.host.user_namespaces = false;
    assert!(case.error().contains("a user namespace is not possible: the kernel has none"));
}

#[test]
fn a_user_namespace_goes_with_no_namespace_of_the_node() {
    let mut case = Case::new();
    case.sandbox.namespaces.user = Some(mapping());
    case.sandbox.namespaces.network = NamespaceMode::Node;
    let why = "a user namespace is not possible: the pod uses the node's network namespace";
    assert_eq!(case.error(), why);
    case.host.kernel = KernelVersion { major: 6, minor: 1 };
    let check = |case: &Case| check_sandbox(&case.sandbox, &case.host).map_err(|error| error.to_string());
    assert_eq!(check(&case), Err(why.to_owned()), "and the sandbox itself is refused");
    case.sandbox.namespaces.network = NamespaceMode::Pod;
    check(&case).unwrap();
    case.host.kernel = KernelVersion { major: 5, minor: 15 };
    assert!(check(&case).unwrap_err().contains("5.19"));
}

#[test]
fn privileged_means_everything() {
    let mut case = Case::new();
    case.container.security.privileged = true;
    case.container.security.masked_paths = strings(&["/proc/kcore"]);
    case.container.security.readonly_paths = strings(&["/proc/sys"]);
    case.node.seccomp = Profile::load(&SeccompProfile::RuntimeDefault).unwrap();
    assert!(matches!(case.build(), Err(SpecError::PrivilegedInUnprivilegedSandbox)));
    case.sandbox.privileged = true;
    let spec = case.spec();
    assert_eq!(spec.linux.seccomp, None);
    assert!(spec.linux.masked_paths.is_empty() && spec.linux.readonly_paths.is_empty());
    assert_eq!(spec.process.capabilities.effective.len(), 41);
    assert!(spec.linux.resources.devices[0].allow);
    for destination in ["/sys", "/sys/fs/cgroup"] {
        let mount = spec.mounts.iter().find(|mount| mount.destination == destination).unwrap();
        assert!(mount.options.contains(&"rw".to_owned()), "{mount:?}");
    }
}

#[test]
fn paths_are_masked_exactly_as_asked_for() {
    let mut case = Case::new();
    assert!(case.spec().linux.masked_paths.is_empty(), "nothing asked for is procMount Unmasked");
    case.container.security.masked_paths = strings(&["/proc/kcore"]);
    case.container.security.no_new_privs = true;
    let spec = case.spec();
    assert_eq!(spec.linux.masked_paths, ["/proc/kcore"]);
    assert!(spec.process.no_new_privileges);
}

#[test]
fn a_profile_that_cannot_be_had_is_an_error() {
    let mut case = Case::new();
    case.node.seccomp = Profile::load(&SeccompProfile::RuntimeDefault).unwrap();
    assert!(case.spec().linux.seccomp.is_some());
    case.features.seccomp = Some(false);
    assert!(case.error().contains("the runtime was built without seccomp"));
    case.features.seccomp = None;
    case.host.seccomp_actions.clear();
    assert!(case.error().contains("the kernel has no seccomp filters"));
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_others_can_read_them() {
    let mut case = Case::new().volume("/data", |mount| mount.readonly = true);
    case.node.seccomp = Profile::load(&SeccompProfile::RuntimeDefault).unwrap();
    case.user.groups = vec![0, 10];
    let json = serde_json::to_string(&case.spec()).unwrap();
    assert_eq!(json, serde_json::to_string(&case.spec()).unwrap());
    assert_eq!(serde_json::from_str::<oci::Spec>(&json).unwrap(), case.spec());
    // An independent reader of the same specification.
    let read: oci_spec::runtime::Spec = serde_json::from_str(&json).unwrap();
    assert_eq!(read.version(), oci::VERSION);
    assert_eq!(read.mounts().as_ref().map(Vec::len), Some(case.spec().mounts.len()));
    let seccomp = read.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()).unwrap();
    assert_eq!(seccomp.syscalls().as_ref().map(Vec::len), Some(case.spec().linux.seccomp.unwrap().syscalls.len()));
}

#[test]
fn the_holder_of_a_pid_namespace_can_do_nothing() {
    let mut case = Case::new();
    case.container.security.namespaces.pid = NamespaceMode::Pod;
    let shared = shared(&case.sandbox, &case.container).unwrap();
    let holder = pause::Holder {
        rootfs: Path::new("/holder/rootfs"),
        args: &["/pause", "pause"],
        shared: &shared,
        paths: &case.paths,
        cgroup: "/pods/s",
        host: &case.host,
        features: &case.features,
    };
    let spec = pause::build(&holder).unwrap();
    assert!(spec.root.readonly && spec.process.no_new_privileges);
    assert_eq!(spec.process.capabilities, oci::Capabilities::default());
    assert_eq!((spec.process.user.uid, spec.process.user.gid), (65_535, 65_535));
    assert_eq!(spec.linux.resources.pids, Some(oci::Pids { limit: 32 }));
    let namespaces = namespaces(&spec);
    assert!(namespaces.contains(&(NamespaceType::Pid, None)));
    assert!(namespaces.contains(&(NamespaceType::Network, Some("/run/netns/x"))));
    let calls = &spec.linux.seccomp.unwrap().syscalls[0].names;
    for call in ["clone", "clone3", "fork", "socket", "ptrace", "mount", "kill"] {
        assert!(!calls.iter().any(|name| name == call), "{call}");
    }
}
