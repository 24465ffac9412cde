//! Statuses.

use std::collections::HashMap;

use crisp_cri_proto::v1;
use crisp_monitor::exit_record::{ExitRecord, REASON_START_ERROR};

use super::common::{namespaces_out, resources_out};
use super::container::signal_out;
use crate::container::{Container, State};
use crate::model::{
    ContainerConfig, ContainerName, ContainerRecord, IdMapping, Mount, MountSource, Propagation, SandboxName,
};
use crate::node::Node;
use crate::sandbox::Sandbox;

pub fn sandbox_metadata(name: &SandboxName) -> v1::PodSandboxMetadata {
    let SandboxName { name, namespace, uid, attempt } = name.clone();
    v1::PodSandboxMetadata { name, uid, namespace, attempt }
}

pub fn container_metadata(name: &ContainerName) -> v1::ContainerMetadata {
    let ContainerName { name, attempt } = name.clone();
    v1::ContainerMetadata { name, attempt }
}

pub fn sandbox_state(ready: bool) -> i32 {
    let state = if ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready };
    state.into()
}

pub fn container_state(state: State) -> i32 {
    (match state {
        State::Created => v1::ContainerState::ContainerCreated,
        State::Running => v1::ContainerState::ContainerRunning,
        State::Exited => v1::ContainerState::ContainerExited,
        State::Unknown => v1::ContainerState::ContainerUnknown,
    })
    .into()
}

/// The image as the user wrote it, where kubelet says so.
pub fn image_spec(config: &ContainerConfig) -> v1::ImageSpec {
    let user = if config.user_image.is_empty() { &config.image } else { &config.user_image };
    v1::ImageSpec { image: user.clone(), user_specified_image: config.user_image.clone(), ..v1::ImageSpec::default() }
}

pub fn sandbox_status(node: &Node, sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let record = sandbox.record();
    let ready = sandbox.is_ready(node);
    // With the node's network the addresses are the node's, which kubelet knows better.
    let mut ips = record.attachment.iter().flat_map(|attachment| &attachment.ips).map(ToString::to_string);
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    v1::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: Some(sandbox_metadata(&record.config.name)),
        state: sandbox_state(ready),
        created_at: record.created_at,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespaces_out(&record.config.namespaces)) }),
        }),
        labels: record.config.labels.clone().into_iter().collect(),
        annotations: record.config.annotations.clone().into_iter().collect(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub fn container_status(node: &Node, container: &Container) -> v1::ContainerStatus {
    let record = container.record();
    let status = container.status();
    let config = &record.config;
    let (exit_code, reason, message) = ending(&record, status.exit.as_deref(), status.state());
    let started_at = status.started_at.or(record.started_at).unwrap_or(0);
    v1::ContainerStatus {
        id: container.id.clone(),
        metadata: Some(container_metadata(&config.name)),
        state: container_state(status.state()),
        created_at: record.created_at,
        started_at,
        finished_at: status.exit.as_ref().map_or(0, |exit| exit.finished_at),
        exit_code,
        image: Some(named_image(node, &record)),
        image_ref: record.image_ref.clone(),
        reason,
        message,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        mounts: config.mounts.iter().map(|one| mount(one, &record)).collect(),
        log_path: record.log_path.clone(),
        resources: Some(v1::ContainerResources { linux: Some(resources_out(&config.resources)), windows: None }),
        image_id: record.image_id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: record.user.uid.into(),
                gid: record.user.gid.into(),
                supplemental_groups: record.user.groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        stop_signal: signal_out(record.stop_signal),
    }
}

/// As the user wrote it; else a tag of the image, which says more than its id.
fn named_image(node: &Node, record: &ContainerRecord) -> v1::ImageSpec {
    let mut spec = image_spec(&record.config);
    if record.config.user_image.is_empty()
        && let Ok(image) = node.store.find(&record.image_id)
        && let Some(name) = image.tags.first().or(image.repo_digests.first())
    {
        spec.image.clone_from(name);
    }
    spec
}

/// Exit code, reason and message.
fn ending(record: &ContainerRecord, exit: Option<&ExitRecord>, state: State) -> (i32, String, String) {
    let text = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
    let (code, (reason, message)) = match (exit, &record.start_error) {
        (Some(_), Some(error)) => (128, text(REASON_START_ERROR, error)),
        (Some(exit), None) if exit.oom_killed => (exit.exit_code, text("OOMKilled", &exit.message)),
        (Some(exit), None) if !exit.reason.is_empty() => (exit.exit_code, text(&exit.reason, &exit.message)),
        (Some(exit), None) if exit.exit_code == 0 => (0, text("Completed", "")),
        (Some(exit), None) => (exit.exit_code, text("Error", "")),
        (None, _) if state == State::Unknown => {
            (255, text("Unknown", "its monitor is gone, so its output and its exit are not seen any more"))
        }
        (None, _) => (0, text("", "")),
    };
    (code, reason, message)
}

fn mount(mount: &Mount, record: &ContainerRecord) -> v1::Mount {
    let Mount { container_path, source, readonly, recursive_read_only, propagation, uid_mappings, gid_mappings } =
        mount;
    let ids = |maps: &[IdMapping]| {
        let one =
            |&IdMapping { container_id, host_id, length }: &IdMapping| v1::IdMapping { host_id, container_id, length };
        maps.iter().map(one).collect()
    };
    let (host_path, image, image_sub_path) = match source {
        MountSource::Host(path) => (path.clone(), None, String::new()),
        MountSource::Image { reference, sub_path } => {
            let image_ref = record.image_mounts.get(container_path).cloned().unwrap_or_default();
            let image = v1::ImageSpec { image: reference.clone(), image_ref, ..v1::ImageSpec::default() };
            (String::new(), Some(image), sub_path.clone())
        }
    };
    v1::Mount {
        container_path: container_path.clone(),
        host_path,
        readonly: *readonly,
        selinux_relabel: false,
        propagation: (match propagation {
            Propagation::Private => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        })
        .into(),
        uid_mappings: ids(uid_mappings),
        gid_mappings: ids(gid_mappings),
        recursive_read_only: *recursive_read_only,
        image,
        image_sub_path,
        mount_options: Vec::new(),
    }
}

/// `info` of a verbose status: one JSON object under the key that crictl looks for.
pub fn spec_info(info: &serde_json::Value) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContainerRecord, Epoch, Process, ResolvedUser, Security};

    fn record(start_error: Option<&str>) -> ContainerRecord {
        let name = ContainerName { name: "c".into(), attempt: 0 };
        ContainerRecord {
            id: "1".into(),
            sandbox_id: "2".into(),
            config: ContainerConfig {
                name,
                user_image: String::new(),
                image: "i".into(),
                command: Vec::new(),
                args: Vec::new(),
                working_dir: String::new(),
                envs: Vec::new(),
                mounts: Vec::new(),
                devices: Vec::new(),
                labels: Default::default(),
                annotations: Default::default(),
                log_path: String::new(),
                stdin: false,
                stdin_once: false,
                tty: false,
                stop_signal: None,
                resources: Default::default(),
                security: Security::default(),
            },
            image_id: "i".into(),
            image_ref: "i".into(),
            runtime: "runc".into(),
            log_path: String::new(),
            cgroup: String::new(),
            user: ResolvedUser::default(),
            stop_signal: 15,
            image_mounts: Default::default(),
            image_volumes: Vec::new(),
            created_at: 1,
            epoch: Epoch { boot_id: String::new(), init_start: 0 },
            process: Some(Process { pid: 1, start_time: 1 }),
            started_at: Some(2),
            start_error: start_error.map(str::to_owned),
        }
    }

    #[test]
    fn every_end_has_its_code_and_reason() {
        let exit = |exit_code, oom_killed, reason: &str| ExitRecord {
            exit_code,
            oom_killed,
            reason: reason.into(),
            ..ExitRecord::default()
        };
        for (exit, start_error, code, reason) in [
            (exit(0, false, ""), None, 0, "Completed"),
            (exit(3, false, ""), None, 3, "Error"),
            (exit(137, true, ""), None, 137, "OOMKilled"),
            (exit(255, false, "Unknown"), None, 255, "Unknown"),
            (exit(128, false, REASON_START_ERROR), Some("no such file"), 128, REASON_START_ERROR),
            // Whatever ended the process: the user is told why it never ran.
            (exit(137, false, ""), Some("no such file"), 128, REASON_START_ERROR),
        ] {
            let (got, why, message) = ending(&record(start_error), Some(&exit), State::Exited);
            assert_eq!((got, why.as_str()), (code, reason));
            assert_eq!(message, start_error.unwrap_or_default());
        }
        let (code, reason, _) = ending(&record(None), None, State::Unknown);
        assert_eq!((code, reason.as_str()), (255, "Unknown"));
        assert_eq!(ending(&record(None), None, State::Running), (0, String::new(), String::new()));
    }
}
