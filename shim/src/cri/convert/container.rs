//! `ContainerConfig` → [`ContainerConfig`].

use crisp_cri_proto::v1;

use super::common::{
    apparmor, groups_policy, id_mappings, invalid, namespaces, resources, seccomp, selinux, string_map, unserved,
};
use crate::error::{Error, Result};
use crate::host::HostFacts;
use crate::model::{ContainerConfig, ContainerName, Device, Mount, MountSource, Propagation, RunAs, Security};

/// Takes the request apart; everything in it is decided about here.
pub fn container_config(config: Option<v1::ContainerConfig>, host: &HostFacts) -> Result<ContainerConfig> {
    let Some(v1::ContainerConfig {
        metadata,
        image,
        command,
        args,
        working_dir,
        envs,
        mounts,
        devices,
        labels,
        annotations,
        log_path,
        stdin,
        stdin_once,
        tty,
        linux,
        windows,
        cdi_devices,
        stop_signal,
    }) = config
    else {
        return Err(Error::Invalid("config is missing".to_owned()));
    };
    if windows.is_some() {
        return Err(unserved("windows"));
    }
    if !cdi_devices.is_empty() {
        return Err(unserved("CDI_devices"));
    }
    // Device plugins may ask for CDI devices by annotation, too.
    if annotations.keys().any(|key| key.starts_with("cdi.k8s.io/")) {
        return Err(unserved("annotations cdi.k8s.io/*"));
    }
    let Some(v1::ContainerMetadata { name, attempt }) = metadata else {
        return Err(Error::Invalid("metadata is missing".to_owned()));
    };
    if name.is_empty() {
        return Err(invalid("metadata.name", "is empty"));
    }
    // The annotations are those of the pull; a handler of its own for an image changes nothing with one snapshotter.
    let Some(v1::ImageSpec { image, annotations: _, user_specified_image, runtime_handler: _, image_ref: _ }) = image
    else {
        return Err(Error::Invalid("image is missing".to_owned()));
    };
    if image.is_empty() {
        return Err(invalid("image.image", "is empty"));
    }
    let v1::LinuxContainerConfig { resources: limits, security_context } = linux.unwrap_or_default();
    Ok(ContainerConfig {
        name: ContainerName { name, attempt },
        user_image: user_specified_image,
        image,
        command,
        args,
        working_dir,
        envs: envs.into_iter().map(env).collect::<Result<_>>()?,
        mounts: mounts.into_iter().map(|one| mount(one, host)).collect::<Result<_>>()?,
        devices: devices
            .into_iter()
            .map(|v1::Device { container_path, host_path, permissions }| Device {
                container_path,
                host_path,
                permissions,
            })
            .collect(),
        labels: string_map(labels),
        annotations: string_map(annotations),
        log_path,
        stdin,
        stdin_once,
        tty,
        stop_signal: signal(stop_signal)?,
        resources: resources(limits),
        security: security(security_context.unwrap_or_default(), host)?,
    })
}

/// Values are bytes in the contract; the runtime takes JSON, whose texts are UTF-8. Changing a value in silence would be
/// worse than refusing it.
fn env(v1::KeyValue { key, value }: v1::KeyValue) -> Result<(String, String)> {
    if key.is_empty() || key.contains(['=', '\0']) {
        return Err(invalid("envs", format_args!("{key:?} is no name of a variable")));
    }
    match String::from_utf8(value) {
        Ok(value) if !value.contains('\0') => Ok((key, value)),
        Ok(_) => Err(invalid("envs", format_args!("the value of {key} holds a NUL byte"))),
        Err(_) => Err(invalid(
            "envs",
            format_args!(
                "the value of {key} is not UTF-8: the OCI runtime's configuration is JSON and cannot carry it"
            ),
        )),
    }
}

fn mount(mount: v1::Mount, host: &HostFacts) -> Result<Mount> {
    let v1::Mount {
        container_path,
        host_path,
        readonly,
        selinux_relabel,
        propagation,
        uid_mappings,
        gid_mappings,
        recursive_read_only,
        image,
        image_sub_path,
        mount_options,
    } = mount;
    if !mount_options.is_empty() {
        return Err(unserved("mounts.mount_options"));
    }
    if selinux_relabel && host.selinux {
        return Err(unserved("mounts.selinux_relabel"));
    }
    let propagation = match v1::MountPropagation::try_from(propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(invalid("mounts.propagation", format_args!("{propagation} is none"))),
    };
    let name =
        |v1::ImageSpec { image, annotations: _, user_specified_image: _, runtime_handler: _, image_ref: _ }| image;
    let source = match image.map(name).filter(|image| !image.is_empty()) {
        Some(_) if !host_path.is_empty() => {
            return Err(invalid("mounts", format_args!("{container_path} has both an image and a host_path")));
        }
        Some(_) if !readonly => {
            return Err(invalid("mounts.readonly", format_args!("{container_path} is an image, which is read-only")));
        }
        Some(reference) => MountSource::Image { reference, sub_path: image_sub_path },
        None if !image_sub_path.is_empty() => {
            return Err(invalid("mounts.image_sub_path", format_args!("{container_path} has no image")));
        }
        None => MountSource::Host(host_path),
    };
    Ok(Mount {
        container_path,
        readonly,
        source,
        recursive_read_only,
        propagation,
        uid_mappings: id_mappings("mounts.uidMappings", uid_mappings)?,
        gid_mappings: id_mappings("mounts.gidMappings", gid_mappings)?,
    })
}

fn security(context: v1::LinuxContainerSecurityContext, host: &HostFacts) -> Result<Security> {
    #[allow(deprecated, reason = "older kubelets send apparmor_profile and seccomp_profile_path")]
    let v1::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp: seccomp_profile,
        apparmor: apparmor_new,
        apparmor_profile,
        seccomp_profile_path,
    } = context;
    selinux("security_context.selinux_options", selinux_options, host)?;
    // A privileged container runs without a profile, whatever is asked for.
    if !privileged {
        apparmor("security_context.apparmor", apparmor_new, &apparmor_profile, host)?;
    }
    let v1::Capability { add_capabilities, drop_capabilities, add_ambient_capabilities } =
        capabilities.unwrap_or_default();
    if !add_ambient_capabilities.is_empty() {
        return Err(unserved("security_context.capabilities.add_ambient_capabilities"));
    }
    let value = |number: Option<v1::Int64Value>| number.map(|v1::Int64Value { value }| value);
    Ok(Security {
        add_capabilities,
        drop_capabilities,
        privileged,
        namespaces: namespaces(namespace_options)?,
        run_as: RunAs {
            uid: value(run_as_user),
            gid: value(run_as_group),
            username: run_as_username,
            groups: supplemental_groups,
            policy: groups_policy(supplemental_groups_policy)?,
        },
        readonly_rootfs,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp: seccomp("security_context.seccomp", seccomp_profile, seccomp_profile_path)?,
    })
}

/// The contract's own numbers: names in order, not the kernel's.
fn signal(number: i32) -> Result<Option<i32>> {
    let signal = v1::Signal::try_from(number).map_err(|_| invalid("stop_signal", format_args!("{number} is none")))?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name =
        signal.as_str_name().trim_start_matches("SIGNAL_").replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-");
    match crate::signals::parse(&name) {
        Some(number) => Ok(Some(number)),
        None => Err(invalid("stop_signal", format_args!("{name} is no signal on Linux"))),
    }
}

/// The contract's number of a signal.
pub(super) fn signal_out(number: i32) -> i32 {
    let name = crate::signals::name(number).unwrap_or_default();
    let name = format!("SIGNAL_{}", name.replace("MIN+", "MINPLUS").replace("MAX-", "MAXMINUS"));
    v1::Signal::from_str_name(&name).unwrap_or(v1::Signal::RuntimeDefault).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_contract_is_known_and_leads_back() {
        for number in 1..=65 {
            let kernel = signal(number).unwrap().unwrap();
            // Two names of one signal come back as one of them.
            let back = signal(signal_out(kernel)).unwrap().unwrap();
            assert_eq!(back, kernel, "{number}");
        }
        assert_eq!(signal(0).unwrap(), None);
        assert!(signal(999).is_err());
    }

    #[test]
    fn an_environment_value_that_json_cannot_carry_is_refused_by_name() {
        let pair = |value: &[u8]| v1::KeyValue { key: "TOKEN".into(), value: value.to_vec() };
        assert_eq!(env(pair("grün".as_bytes())).unwrap().1, "grün");
        assert!(env(pair(b"\xff")).unwrap_err().to_string().contains("TOKEN"));
    }
}
