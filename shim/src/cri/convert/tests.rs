//! What requests become, and what is refused.

use crisp_cri_proto::v1;
use tonic::{Code, Status};

use super::common::{apparmor, namespaces, seccomp, selinux};
use super::container_config;
use crate::host::HostFacts;
use crate::model::{Namespaces, SeccompProfile};

fn host(security_modules: bool) -> HostFacts {
    HostFacts { apparmor: security_modules, selinux: security_modules, ..HostFacts::read().unwrap() }
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 1 }),
        image: Some(v1::ImageSpec { image: "sha256:1".into(), ..Default::default() }),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext::default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn profile(kind: v1::security_profile::ProfileType, path: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() })
}

fn label() -> Option<v1::SeLinuxOption> {
    Some(v1::SeLinuxOption { level: "s0:c1".into(), ..Default::default() })
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    use v1::security_profile::ProfileType::Localhost;
    type Change = fn(&mut v1::ContainerConfig);
    let cases: [(&str, Change); 8] = [
        ("windows", |c| c.windows = Some(Default::default())),
        ("CDI_devices", |c| c.cdi_devices = vec![v1::CdiDevice { name: "vendor.com/gpu=0".into() }]),
        ("annotations cdi.k8s.io/*", |c| {
            c.annotations.insert("cdi.k8s.io/plugin_gpu".into(), "vendor.com/gpu=0".into());
        }),
        ("mounts.mount_options", |c| {
            c.mounts = vec![v1::Mount { mount_options: vec!["noatime".into()], ..Default::default() }];
        }),
        ("mounts.selinux_relabel", |c| c.mounts = vec![v1::Mount { selinux_relabel: true, ..Default::default() }]),
        ("security_context.capabilities.add_ambient_capabilities", |c| {
            context(c).capabilities =
                Some(v1::Capability { add_ambient_capabilities: vec!["NET_RAW".into()], ..Default::default() });
        }),
        ("security_context.apparmor", |c| context(c).apparmor = profile(Localhost, "mine")),
        ("security_context.selinux_options", |c| context(c).selinux_options = label()),
    ];
    for (field, change) in cases {
        let mut config = container();
        change(&mut config);
        let status = Status::from(container_config(Some(config), &host(true)).unwrap_err());
        assert_eq!(status.code(), Code::Unimplemented, "{field}");
        assert!(status.message().starts_with(&format!("{field} is not served")), "{status}");
    }
    assert!(container_config(Some(container()), &host(true)).is_ok());
}

#[test]
fn what_changes_nothing_on_this_host_is_no_error() {
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    for (new, old, with, without) in [
        (None, "", true, true),
        (None, "unconfined", true, true),
        (None, "runtime/default", false, true),
        (None, "localhost/mine", false, false),
        (profile(RuntimeDefault, ""), "", false, true),
        (profile(Unconfined, ""), "localhost/mine", true, true),
        (profile(Localhost, "mine"), "", false, false),
    ] {
        let served = |on| apparmor("f", new.clone(), old, &host(on)).is_ok();
        assert_eq!((served(true), served(false)), (with, without), "{new:?} {old:?}");
    }
    assert!(selinux("f", label(), &host(false)).is_ok() && selinux("f", label(), &host(true)).is_err());
    assert!(selinux("f", Some(Default::default()), &host(true)).is_ok(), "an empty label asks for nothing");
}

#[test]
fn a_seccomp_profile_is_named_by_its_new_or_its_old_field() {
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let file = || SeccompProfile::Localhost("/p.json".to_owned());
    for (new, old, wanted) in [
        (None, "", SeccompProfile::Unset),
        (None, "docker/default", SeccompProfile::RuntimeDefault),
        (None, "localhost//p.json", file()),
        (profile(Unconfined, ""), "runtime/default", SeccompProfile::Unconfined),
        (profile(RuntimeDefault, ""), "", SeccompProfile::RuntimeDefault),
        (profile(Localhost, "localhost//p.json"), "", file()),
        (profile(Localhost, "/p.json"), "", file()),
    ] {
        assert_eq!(seccomp("f", new, old.to_owned()).unwrap(), wanted);
    }
    assert!(seccomp("f", profile(Localhost, ""), String::new()).is_err());
    assert!(seccomp("f", None, "localhost/p.json".to_owned()).is_err(), "a path must be absolute");
}

#[test]
fn a_user_namespace_is_the_pods_with_one_range_of_each_or_none() {
    let range = |length| v1::IdMapping { host_id: 100_000, container_id: 0, length };
    let user = |mode: v1::NamespaceMode, uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>| {
        let options = Some(v1::UserNamespace { mode: mode.into(), uids, gids });
        namespaces(Some(v1::NamespaceOption { userns_options: options, ..Default::default() }))
            .map(|Namespaces { user, .. }| user)
    };
    let pod = user(v1::NamespaceMode::Pod, vec![range(65_536)], vec![range(65_536)]).unwrap().unwrap();
    assert_eq!((pod.uids[0].host_id, pod.gids[0].length), (100_000, 65_536));
    assert_eq!(user(v1::NamespaceMode::Node, vec![], vec![]).unwrap(), None);
    for (mode, uids, gids) in [
        (v1::NamespaceMode::Node, vec![range(1)], vec![]),
        (v1::NamespaceMode::Pod, vec![range(1)], vec![]),
        (v1::NamespaceMode::Pod, vec![range(1), range(1)], vec![range(1)]),
        (v1::NamespaceMode::Pod, vec![range(0)], vec![range(1)]),
        (v1::NamespaceMode::Pod, vec![range(u32::MAX)], vec![range(1)]),
        (v1::NamespaceMode::Container, vec![range(1)], vec![range(1)]),
    ] {
        assert!(user(mode, uids, gids).is_err(), "{mode:?}");
    }
}

#[test]
fn an_image_as_a_volume_is_read_only_and_has_no_host_path() {
    let mount = |host_path: &str, readonly: bool| {
        let mut config = container();
        config.mounts = vec![v1::Mount {
            container_path: "/m".into(),
            host_path: host_path.into(),
            readonly,
            image: Some(v1::ImageSpec { image: "i".into(), ..Default::default() }),
            ..Default::default()
        }];
        container_config(Some(config), &host(false))
    };
    assert!(mount("", true).unwrap().mounts[0].readonly);
    assert!(mount("", false).unwrap_err().to_string().contains("/m is an image, which is read-only"));
    assert!(mount("/tmp", true).unwrap_err().to_string().contains("/m has both an image and a host_path"));
}
