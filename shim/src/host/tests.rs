use super::*;

/// A root with the files of a machine, and what `more` changes in it.
fn machine(more: &[(&str, &str)]) -> Result<HostFacts, HostError> {
    let tmp = tempfile::tempdir().unwrap();
    let files = [
        ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nSeccomp:\t0\n"),
        ("proc/self/mountinfo", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"),
        ("proc/self/oom_score_adj", "-999\n"),
        ("proc/self/uid_map", "         0          0 4294967295\n"),
        ("proc/self/ns/user", ""),
        ("proc/sys/kernel/cap_last_cap", "40\n"),
        ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
        ("proc/sys/kernel/seccomp/actions_avail", "kill_process errno allow\n"),
        ("proc/sys/user/max_user_namespaces", "96365\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0"),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0"),
        ("sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages", "0"),
    ];
    for (path, text) in files.iter().chain(more) {
        let path = tmp.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    HostFacts::read_below(tmp.path())
}

#[test]
fn a_machine_is_read() {
    let facts = machine(&[]).unwrap();
    assert_eq!(facts.kernel, KernelVersion { major: 6, minor: 1 });
    assert_eq!(facts.huge_pages, ["64KB", "2MB", "1GB"]);
    assert_eq!((facts.oom_score_adj, facts.can_lower_oom_score), (-999, true));
    assert_eq!(facts.capabilities, CapSet::ALL);
    assert!(facts.has_seccomp() && facts.has_mount_setattr() && facts.user_namespaces);
    assert!(!facts.apparmor && !facts.selinux);
}

#[test]
fn an_older_kernel_knows_fewer_capabilities() {
    let facts = machine(&[("proc/sys/kernel/cap_last_cap", "37\n")]).unwrap();
    assert_eq!(facts.capabilities.names().len(), 38);
    let newer = machine(&[("proc/sys/kernel/cap_last_cap", "63\n")]).unwrap();
    assert_eq!(newer.capabilities, CapSet::ALL);
}

#[test]
fn without_the_capability_nothing_is_lowered_or_raised() {
    let status = "CapEff:\t000001fffeffffff\nCapBnd:\t000001fffeffffff\nSeccomp:\t0\n";
    let facts = machine(&[("proc/self/status", status)]).unwrap();
    assert!(!facts.can_lower_oom_score && !facts.can_raise_limits);
    let nested = machine(&[("proc/self/uid_map", "0 100000 65536\n")]).unwrap();
    assert!(!nested.can_lower_oom_score, "in a user namespace the capability is worth nothing here");
}

#[test]
fn what_is_missing_is_told() {
    let error = machine(&[("proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/x rw\n")]).unwrap_err();
    assert!(matches!(error, HostError::NoCgroups));
    assert!(matches!(machine(&[("proc/sys/kernel/osrelease", "?")]), Err(HostError::Meaning { .. })));
    let status = "CapEff:\t0\nCapBnd:\t0\n";
    assert!(!machine(&[("proc/self/status", status)]).unwrap().has_seccomp());
}

#[test]
fn this_node_is_read() {
    let facts = HostFacts::read().unwrap();
    assert!(!facts.cgroups.all.is_empty() && facts.max_open_files > 0);
}

#[test]
fn kernel_versions_compare_by_number() {
    let version = |text| KernelVersion::parse(text).unwrap();
    assert!(version("5.9") < version("5.12.1") && version("4.19-rc1") < version("5.0"));
    for text in ["", "5", "five.1", "5."] {
        assert_eq!(KernelVersion::parse(text), None, "{text}");
    }
}
