//! Parts that sandboxes and containers have in common.

use std::collections::HashMap;

use crisp_cri_proto::v1;

use crate::error::{Error, Result};
use crate::host::HostFacts;
use crate::model::{
    GroupsPolicy, IdMapping, NamespaceMode, Namespaces, Resources, SeccompProfile, StringMap, UserMapping,
};

pub fn unserved(field: &str) -> Error {
    Error::Unimplemented(format!("{field} is not served by this version of crisp"))
}

pub fn invalid(field: &str, problem: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("{field}: {problem}"))
}

pub fn string_map(map: HashMap<String, String>) -> StringMap {
    map.into_iter().collect()
}

pub fn namespace_mode(field: &str, number: i32) -> Result<NamespaceMode> {
    match v1::NamespaceMode::try_from(number) {
        Ok(v1::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(v1::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(v1::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(v1::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(invalid(field, format_args!("{number} is no namespace mode"))),
    }
}

pub fn namespaces(option: Option<v1::NamespaceOption>) -> Result<Namespaces> {
    let Some(v1::NamespaceOption { network, pid, ipc, target_id, userns_options }) = option else {
        return Ok(Namespaces::default());
    };
    Ok(Namespaces {
        network: namespace_mode("namespace_options.network", network)?,
        pid: namespace_mode("namespace_options.pid", pid)?,
        ipc: namespace_mode("namespace_options.ipc", ipc)?,
        target: target_id,
        user: user_mapping(userns_options)?,
    })
}

/// KEP-127: POD with exactly one range of users and one of groups, or NODE with none.
fn user_mapping(option: Option<v1::UserNamespace>) -> Result<Option<UserMapping>> {
    const FIELD: &str = "namespace_options.userns_options";
    let Some(v1::UserNamespace { mode, uids, gids }) = option else { return Ok(None) };
    match namespace_mode(FIELD, mode)? {
        NamespaceMode::Node if uids.is_empty() && gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(invalid(FIELD, "mode NODE has no mappings")),
        NamespaceMode::Pod if uids.len() == 1 && gids.len() == 1 => {
            Ok(Some(UserMapping { uids: id_mappings(FIELD, uids)?, gids: id_mappings(FIELD, gids)? }))
        }
        NamespaceMode::Pod => Err(invalid(FIELD, "mode POD needs exactly one mapping of users and one of groups")),
        NamespaceMode::Container | NamespaceMode::Target => {
            Err(invalid(FIELD, "a user namespace is the pod's or the node's"))
        }
    }
}

pub fn id_mappings(field: &str, mappings: Vec<v1::IdMapping>) -> Result<Vec<IdMapping>> {
    let one = |v1::IdMapping { host_id, container_id, length }| {
        let fits = host_id.checked_add(length).is_some() && container_id.checked_add(length).is_some();
        if length == 0 || !fits {
            return Err(invalid(field, format_args!("{host_id}:{container_id}:{length} is no range of ids")));
        }
        Ok(IdMapping { container_id, host_id, length })
    };
    mappings.into_iter().map(one).collect()
}

/// Labels mean something only where SELinux is on; there they are not served.
pub fn selinux(field: &str, options: Option<v1::SeLinuxOption>, host: &HostFacts) -> Result<()> {
    let Some(v1::SeLinuxOption { user, role, r#type, level }) = options else { return Ok(()) };
    let empty = [user, role, r#type, level].iter().all(String::is_empty);
    if empty || !host.selinux { Ok(()) } else { Err(unserved(field)) }
}

/// RuntimeDefault changes nothing where there is no AppArmor; what asks for a profile in any case is not served.
pub fn apparmor(field: &str, profile: Option<v1::SecurityProfile>, old: &str, host: &HostFacts) -> Result<()> {
    use v1::security_profile::ProfileType;
    let wanted = match profile {
        Some(v1::SecurityProfile { profile_type, localhost_ref: _ }) => match ProfileType::try_from(profile_type) {
            Ok(ProfileType::RuntimeDefault) => host.apparmor,
            Ok(ProfileType::Unconfined) => false,
            Ok(ProfileType::Localhost) => true,
            Err(_) => return Err(invalid(field, format_args!("{profile_type} is no profile type"))),
        },
        None => match old {
            "" | "unconfined" => false,
            "runtime/default" => host.apparmor,
            _ => true,
        },
    };
    if wanted { Err(unserved(field)) } else { Ok(()) }
}

/// The new field, else the one that is older than it.
pub fn seccomp(field: &str, profile: Option<v1::SecurityProfile>, old: String) -> Result<SeccompProfile> {
    use v1::security_profile::ProfileType;
    let Some(v1::SecurityProfile { profile_type, localhost_ref }) = profile else {
        return match old.as_str() {
            "" => Ok(SeccompProfile::Unset),
            "unconfined" => Ok(SeccompProfile::Unconfined),
            "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
            path => localhost(field, path),
        };
    };
    match ProfileType::try_from(profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SeccompProfile::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(SeccompProfile::Unconfined),
        Ok(ProfileType::Localhost) => localhost(field, &localhost_ref),
        Err(_) => Err(invalid(field, format_args!("{profile_type} is no profile type"))),
    }
}

fn localhost(field: &str, path: &str) -> Result<SeccompProfile> {
    let path = path.strip_prefix("localhost/").unwrap_or(path);
    if path.starts_with('/') {
        Ok(SeccompProfile::Localhost(path.to_owned()))
    } else {
        Err(invalid(field, format_args!("{path:?} is not an absolute path of a profile")))
    }
}

pub fn resources(resources: Option<v1::LinuxContainerResources>) -> Resources {
    let Some(v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes,
    }) = resources
    else {
        return Resources::default();
    };
    let hugepage = |v1::HugepageLimit { page_size, limit }| (page_size, limit);
    Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit: memory_limit_in_bytes,
        memory_swap_limit: memory_swap_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits: hugepage_limits.into_iter().map(hugepage).collect(),
        unified: string_map(unified),
    }
}

pub fn groups_policy(number: i32) -> Result<GroupsPolicy> {
    match v1::SupplementalGroupsPolicy::try_from(number) {
        Ok(v1::SupplementalGroupsPolicy::Merge) => Ok(GroupsPolicy::Merge),
        Ok(v1::SupplementalGroupsPolicy::Strict) => Ok(GroupsPolicy::Strict),
        Err(_) => Err(invalid("supplemental_groups_policy", format_args!("{number} is no policy"))),
    }
}

pub fn mode_out(mode: NamespaceMode) -> i32 {
    (match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target => v1::NamespaceMode::Target,
    })
    .into()
}

pub fn namespaces_out(namespaces: &Namespaces) -> v1::NamespaceOption {
    let Namespaces { network, pid, ipc, target, user } = namespaces;
    let ranges = |maps: &[IdMapping]| {
        maps.iter()
            .map(|&IdMapping { container_id, host_id, length }| v1::IdMapping { host_id, container_id, length })
            .collect()
    };
    v1::NamespaceOption {
        network: mode_out(*network),
        pid: mode_out(*pid),
        ipc: mode_out(*ipc),
        target_id: target.clone(),
        userns_options: user.as_ref().map(|UserMapping { uids, gids }| v1::UserNamespace {
            mode: mode_out(NamespaceMode::Pod),
            uids: ranges(uids),
            gids: ranges(gids),
        }),
    }
}

pub fn resources_out(resources: &Resources) -> v1::LinuxContainerResources {
    let Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit,
        memory_swap_limit,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
    } = resources.clone();
    v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes: memory_limit,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits: hugepage_limits
            .into_iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size, limit })
            .collect(),
        unified: unified.into_iter().collect(),
        memory_swap_limit_in_bytes: memory_swap_limit,
    }
}
