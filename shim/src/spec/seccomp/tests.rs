use proptest::prelude::*;

use super::*;
use crate::host::{Arch, KernelVersion};

const NEW: KernelVersion = KernelVersion { major: 6, minor: 1 };

fn parse(json: &str) -> Result<Profile, SeccompError> {
    Profile::parse(Path::new("/p.json"), json.as_bytes())
}

fn amd64() -> Arch {
    Arch::of_go("amd64").unwrap()
}

/// The rules of the built-in profile for a call, for a container with these capabilities.
fn built_in(call: &str, caps: &[&str], arch: &str, kernel: KernelVersion) -> Vec<oci::SeccompRule> {
    let profile = Profile::load(&SeccompProfile::RuntimeDefault).unwrap().unwrap();
    let granted = caps.iter().map(|name| CapSet::named(name).unwrap()).fold(CapSet::NONE, CapSet::or);
    let resolved = profile.resolve(Arch::of_go(arch).unwrap(), granted, kernel);
    assert_eq!((resolved.default_action.as_str(), resolved.default_errno_ret), ("SCMP_ACT_ERRNO", Some(1)));
    resolved.syscalls.into_iter().filter(|rule| rule.names.iter().any(|name| name == call)).collect()
}

fn allowed_outright(call: &str, caps: &[&str]) -> bool {
    let rules = built_in(call, caps, "amd64", NEW);
    rules.iter().any(|rule| rule.action == "SCMP_ACT_ALLOW" && rule.args.is_empty())
}

#[test]
fn the_built_in_profile_allows_ordinary_calls_only() {
    for call in ["read", "openat", "execve", "mmap", "futex", "connect", "epoll_wait", "seccomp", "shmget", "ptrace"] {
        assert!(allowed_outright(call, &[]), "{call}");
    }
    for call in [
        "mount",
        "move_mount",
        "fsopen",
        "umount2",
        "pivot_root",
        "setns",
        "kexec_load",
        "kexec_file_load",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "io_uring_setup",
        "io_uring_enter",
        "init_module",
        "reboot",
        "swapon",
        "clock_settime",
        "settimeofday",
        "chroot",
        "acct",
        "iopl",
        "nfsservctl",
        "quotactl",
        "sethostname",
        "syslog",
        "vhangup",
        "mbind",
        "kcmp",
    ] {
        assert_eq!(built_in(call, &[], "amd64", NEW), [], "{call}");
    }
}

#[test]
fn capabilities_open_the_calls_that_they_are_for() {
    for (cap, call) in [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "clone"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_ADMIN", "unshare"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("SYSLOG", "syslog"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
        ("SYS_MODULE", "init_module"),
        ("SYS_BOOT", "reboot"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_CHROOT", "chroot"),
        ("SYS_NICE", "mbind"),
        ("SYS_RAWIO", "iopl"),
        ("SYS_PTRACE", "userfaultfd"),
    ] {
        assert!(!allowed_outright(call, &[]), "{call}");
        assert!(allowed_outright(call, &[cap]), "{call} with {cap}");
    }
    assert!(!allowed_outright("kexec_load", &["SYS_ADMIN", "SYS_BOOT"]), "only privileged containers load kernels");
}

#[test]
fn a_call_has_one_kind_of_rule_whatever_is_granted() {
    // libseccomp refuses rules for one call that contradict each other.
    for caps in [&[][..], &["SYS_ADMIN"], &["SYS_ADMIN", "BPF", "PERFMON", "SYSLOG", "SYS_PTRACE"]] {
        for call in ["clone", "clone3", "unshare", "bpf", "syslog", "perf_event_open", "ptrace", "process_vm_readv"] {
            let rules = built_in(call, caps, "amd64", NEW);
            assert!(rules.len() <= 1, "{call} with {caps:?}: {rules:?}");
        }
    }
}

#[test]
fn new_namespaces_are_seen_in_the_flags() {
    let clone = &built_in("clone", &[], "amd64", NEW)[0];
    // CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
    assert_eq!(clone.args[0].value, 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x7000_0000);
    assert_eq!((clone.args[0].index, clone.args[0].value_two), (0, 0));
    assert_eq!(built_in("clone", &[], "s390x", NEW)[0].args[0].index, 1, "there the flags come second");
    let clone3 = &built_in("clone3", &[], "amd64", NEW)[0];
    assert_eq!((clone3.action.as_str(), clone3.errno_ret), ("SCMP_ACT_ERRNO", Some(38)));
    assert_eq!(built_in("unshare", &[], "amd64", NEW)[0].args[0].value, clone.args[0].value | 0x80);
}

#[test]
fn arguments_restrict_sockets_and_personalities() {
    let socket = built_in("socket", &[], "amd64", NEW);
    assert_eq!((socket.len(), socket[0].args[0].op.as_str(), socket[0].args[0].value), (1, "SCMP_CMP_NE", 40));
    let values: Vec<u64> = built_in("personality", &[], "amd64", NEW).iter().map(|rule| rule.args[0].value).collect();
    assert_eq!(values, [0, 8, 0x20000, 0x20008, 0xffff_ffff]);
}

#[test]
fn old_kernels_and_other_machines_differ() {
    let old = KernelVersion { major: 4, minor: 4 };
    assert_eq!(built_in("ptrace", &[], "amd64", old), []);
    assert_eq!(built_in("ptrace", &["SYS_PTRACE"], "amd64", old).len(), 1);
    assert_eq!(built_in("arch_prctl", &[], "arm64", NEW), []);
    assert_eq!(built_in("sync_file_range2", &[], "arm64", NEW).len(), 1);
}

#[test]
fn the_architectures_are_those_of_the_machine() {
    let profile = Profile::load(&SeccompProfile::RuntimeDefault).unwrap().unwrap();
    let of = |arch| profile.resolve(Arch::of_go(arch).unwrap(), CapSet::NONE, NEW).architectures;
    assert_eq!(of("amd64"), ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    assert_eq!(of("ppc64le"), [""; 0], "not in the map: the native one alone");
}

#[test]
fn the_plain_oci_form_is_a_profile_too() {
    let profile = parse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":2,"args":null},
        {"name":"rmdir","names":null,"action":"SCMP_ACT_ERRNO","errno":"ENOSYS","includes":{},"excludes":null}]}"#,
    )
    .unwrap();
    let resolved = profile.resolve(amd64(), CapSet::NONE, NEW);
    assert_eq!(resolved.architectures, ["SCMP_ARCH_X86_64"]);
    assert_eq!(resolved.flags.as_deref(), Some(&["SECCOMP_FILTER_FLAG_LOG".to_owned()][..]));
    assert_eq!(resolved.syscalls[0].errno_ret, Some(2));
    assert_eq!((resolved.syscalls[1].names[0].as_str(), resolved.syscalls[1].errno_ret), ("rmdir", Some(38)));
}

#[test]
fn every_word_of_a_profile_must_be_known() {
    let with = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
    for (json, problem) in [
        (r#"{"defaultAction":"ALLOW"}"#.to_owned(), "\"ALLOW\" is no action"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(), "SCMP_ACT_NOTIFY is not served"),
        (r#"{"defaultAction":"SCMP_ACT_LOG","listenerPath":"/s"}"#.to_owned(), "listenerPath is not served"),
        (r#"{"defaultAction":"SCMP_ACT_LOG","architectures":["Z80"]}"#.to_owned(), "\"Z80\" is no architecture"),
        (r#"{"defaultAction":"SCMP_ACT_LOG","archMap":[{"architecture":"Z80"}]}"#.to_owned(), "\"Z80\" is no"),
        (with(r#"{"action":"SCMP_ACT_LOG"}"#), "names no system call"),
        (with(r#"{"names":["x"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}"#), "more than 4095"),
        (with(r#"{"names":["x"],"action":"SCMP_ACT_ERRNO","errno":"EWHAT"}"#), "errno EWHAT is not known"),
        (
            with(r#"{"names":["x"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}"#),
            "argument 6",
        ),
        (
            with(r#"{"names":["x"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"EQ"}]}"#),
            "\"EQ\" is no op",
        ),
        (with(r#"{"names":["x"],"action":"SCMP_ACT_LOG","includes":{"caps":["SUPER"]}}"#), "SUPER is no capability"),
        (with(r#"{"names":["x"],"action":"SCMP_ACT_LOG","includes":{"minKernel":"new"}}"#), "no kernel version"),
    ] {
        let error = parse(&json).unwrap_err();
        assert!(matches!(error, SeccompError::Invalid { .. }) && error.to_string().contains(problem), "{error}");
    }
    for json in ["", "{}", "[]", "not json", r#"{"defaultAction":1}"#] {
        assert!(matches!(parse(json), Err(SeccompError::Json { .. })), "{json}");
    }
}

#[test]
fn a_file_is_read_up_to_a_limit() {
    let load = |path: &Path| Profile::load(&SeccompProfile::Localhost(path.to_str().unwrap().to_owned()));
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("profile.json");
    std::fs::write(&file, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    assert!(load(&file).unwrap().is_some());
    std::fs::write(&file, vec![b' '; 1 + usize::try_from(MAX_LEN).unwrap()]).unwrap();
    assert!(matches!(load(&file), Err(SeccompError::TooLarge(_))));
    assert!(matches!(load(&tmp.path().join("none")), Err(SeccompError::Read { .. })));
    assert!(matches!(load(tmp.path()), Err(SeccompError::NotAFile(_))));
    assert!(matches!(load(Path::new("profile.json")), Err(SeccompError::NotAFile(_))));
    let pipe = tmp.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    assert!(matches!(load(&pipe), Err(SeccompError::NotAFile(_))), "and nobody waits for a writer");
}

proptest! {
    #[test]
    fn any_bytes_are_a_profile_or_an_error(json: Vec<u8>) {
        let _ = Profile::parse(Path::new("/p"), &json);
    }

    #[test]
    fn a_rule_counts_exactly_when_its_conditions_hold(
        wanted in proptest::option::of(0_usize..41), barred in proptest::option::of(0_usize..41), granted: u64,
        least in 3_u32..8, kernel in 3_u32..8,
    ) {
        let name = |number: usize| CapSet::from_mask(1 << number).names()[0].clone();
        let list = |number: Option<usize>| number.map(|number| format!("{:?}", name(number))).unwrap_or_default();
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["x"],"action":"SCMP_ACT_LOG",
            "includes":{{"caps":[{}],"minKernel":"{least}.0"}},"excludes":{{"caps":[{}]}}}}]}}"#,
            list(wanted), list(barred)
        );
        let has = |number: Option<usize>| number.is_none_or(|number| granted & (1 << number) != 0);
        let holds = has(wanted) && (barred.is_none() || !has(barred)) && kernel >= least;
        let kernel = KernelVersion { major: kernel, minor: 0 };
        let resolved = parse(&json).unwrap().resolve(amd64(), CapSet::from_mask(granted), kernel);
        prop_assert_eq!(resolved.syscalls.len(), usize::from(holds));
    }
}
