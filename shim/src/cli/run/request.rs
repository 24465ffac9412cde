//! From the options of `crisp run` to what the CRI is asked for: pure.
//!
//! A container gets what docker's do: the runtime's default seccomp profile, masked and read-only paths, a PID namespace
//! of its own, the host's resolv.conf or what stands behind it.

use std::collections::HashMap;
use std::path::Path;

use crisp_cri_proto::v1;

use super::args::{Network, Run};
use crate::cli::parse::{env, quantity};
use crate::cli::world::{COMMAND, NAMESPACE, ORIGIN_LABEL, PORTS};

/// What kubelet masks (kubelet: `defaultMaskedPaths`, moby: oci/defaults.go).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What kubelet makes read-only, likewise.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the options do not say.
#[derive(Debug)]
pub struct Given<'a> {
    pub name: &'a str,
    pub uid: &'a str,
    pub log_directory: &'a str,
    /// Id of the image.
    pub image_id: &'a str,
    /// Where relative volumes begin.
    pub here: &'a Path,
    /// Of the pod's own network; `None` is the node's file.
    pub dns: Option<v1::DnsConfig>,
}

/// For RunPodSandbox.
pub fn sandbox(run: &Run, given: &Given<'_>) -> Result<v1::PodSandboxConfig, String> {
    if run.network == Network::Host && !run.ports.is_empty() {
        return Err("-p makes no sense with --network host: the container's ports are the host's".to_owned());
    }
    let hostname = run.hostname.clone().unwrap_or_else(|| given.name.replace(['_', '.'], "-"));
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: given.name.to_owned(),
            uid: given.uid.to_owned(),
            namespace: NAMESPACE.to_owned(),
            attempt: 0,
        }),
        hostname: if run.network == Network::Host { String::new() } else { hostname },
        log_directory: given.log_directory.to_owned(),
        dns_config: given.dns.clone().filter(|_| run.network != Network::Host),
        port_mappings: run.ports.iter().map(|port| port.mapping()).collect(),
        labels: labels(run),
        annotations: annotations(run),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(run)),
                privileged: run.privileged,
                seccomp: Some(seccomp(run)),
                ..v1::LinuxSandboxSecurityContext::default()
            }),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        windows: None,
    })
}

/// For CreateContainer.
pub fn container(run: &Run, given: &Given<'_>) -> Result<v1::ContainerConfig, String> {
    let (command, args) = command(run);
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: given.name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec {
            image: given.image_id.to_owned(),
            user_specified_image: run.image.clone(),
            ..v1::ImageSpec::default()
        }),
        command,
        args,
        working_dir: run.workdir.clone(),
        envs: variables(run)?,
        mounts: run.volumes.iter().map(|volume| volume.mount(given.here)).collect(),
        labels: container_labels(run),
        annotations: annotations(run),
        log_path: format!("{}.log", given.name),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_period: run.cpus.map_or(0, |_| quantity::CPU_PERIOD),
                cpu_quota: run.cpus.unwrap_or(0),
                memory_limit_in_bytes: run.memory.unwrap_or(0),
                ..v1::LinuxContainerResources::default()
            }),
            security_context: Some(security(run)?),
        }),
        ..v1::ContainerConfig::default()
    })
}

/// Entrypoint and arguments. An entrypoint takes the place of the image's arguments, too; an empty one is none.
fn command(run: &Run) -> (Vec<String>, Vec<String>) {
    match run.entrypoint.as_deref() {
        None => (Vec::new(), run.command.clone()),
        Some("") => (run.command.clone(), Vec::new()),
        Some(program) => (vec![program.to_owned()], run.command.clone()),
    }
}

fn variables(run: &Run) -> Result<Vec<v1::KeyValue>, String> {
    let outer = |key: &str| std::env::var(key).ok();
    let mut variables = Vec::new();
    for file in &run.env_file {
        variables.extend(env::file(file, outer)?);
    }
    for text in &run.env {
        variables.extend(env::variable(text, outer)?);
    }
    Ok(variables.into_iter().map(|(key, value)| v1::KeyValue { key, value: value.into_bytes() }).collect())
}

fn labels(run: &Run) -> HashMap<String, String> {
    let origin = (ORIGIN_LABEL.to_owned(), crate::api::ORIGIN.to_owned());
    run.labels.iter().cloned().chain([origin]).collect()
}

/// In the foreground this program removes what has ended, in the background the server.
fn container_labels(run: &Run) -> HashMap<String, String> {
    let mut labels = labels(run);
    if run.rm && run.detach {
        labels.insert(crate::api::REMOVE_LABEL.to_owned(), String::new());
    }
    labels
}

fn annotations(run: &Run) -> HashMap<String, String> {
    let ports: Vec<String> = run.ports.iter().map(ToString::to_string).collect();
    let (command, args) = command(run);
    let command: Vec<String> = command.into_iter().chain(args).collect();
    [(PORTS, ports.join(", ")), (COMMAND, command.join(" "))]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn namespaces(run: &Run) -> v1::NamespaceOption {
    let network = match run.network {
        Network::Pod => v1::NamespaceMode::Pod,
        Network::Host => v1::NamespaceMode::Node,
    };
    v1::NamespaceOption {
        network: network.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..v1::NamespaceOption::default()
    }
}

fn seccomp(run: &Run) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let profile = if run.privileged { ProfileType::Unconfined } else { ProfileType::RuntimeDefault };
    v1::SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() }
}

fn security(run: &Run) -> Result<v1::LinuxContainerSecurityContext, String> {
    let (uid, gid, username) = user(run.user.as_deref().unwrap_or_default())?;
    let paths = |paths: &[&str]| paths.iter().filter(|_| !run.privileged).map(|path| (*path).to_owned()).collect();
    let number = |value: Option<i64>| value.map(|value| v1::Int64Value { value });
    Ok(v1::LinuxContainerSecurityContext {
        privileged: run.privileged,
        namespace_options: Some(namespaces(run)),
        run_as_user: number(uid),
        run_as_group: number(gid),
        run_as_username: username,
        readonly_rootfs: run.read_only,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(run)),
        ..v1::LinuxContainerSecurityContext::default()
    })
}

/// `UID[:GID]` or `NAME[:GID]`.
fn user(text: &str) -> Result<(Option<i64>, Option<i64>, String), String> {
    if text.is_empty() {
        return Ok((None, None, String::new()));
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let id = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let gid = match group {
        None => None,
        Some(group) => Some(id(group).ok_or_else(|| format!("--user {text:?}: the group must be a number"))?),
    };
    match id(user) {
        _ if user.is_empty() => Err(format!("--user {text:?}: the user is missing")),
        Some(uid) => Ok((Some(uid), gid, String::new())),
        None => Ok((None, gid, user.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn run(line: &str) -> Run {
        Line::try_parse_from(format!("run {line}").split_whitespace()).unwrap().run
    }

    fn given() -> Given<'static> {
        Given {
            name: "web_1",
            uid: "1-2",
            log_directory: "/l/1-2",
            image_id: "sha256:1",
            here: Path::new("/home"),
            dns: None,
        }
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let run = run("--rm -e A=1 busybox ls -e --rm");
        assert!(run.rm && !run.detach);
        assert_eq!((run.image.as_str(), run.command.join(" ")), ("busybox", "ls -e --rm".into()));
    }

    #[test]
    fn an_entrypoint_takes_the_place_of_the_images() {
        let made = |line: &str| {
            let config = container(&run(line), &given()).unwrap();
            (config.command.join(" "), config.args.join(" "))
        };
        assert_eq!(made("i a b"), (String::new(), "a b".into()));
        assert_eq!(made("--entrypoint sh i -c x"), ("sh".into(), "-c x".into()));
        assert_eq!(made("--entrypoint= i a b"), ("a b".into(), String::new()));
    }

    #[test]
    fn a_pod_of_the_cli_says_so() {
        let config = sandbox(&run("-p 8080:80 -l a=b i cmd x"), &given()).unwrap();
        let metadata = config.metadata.unwrap();
        assert_eq!((metadata.namespace.as_str(), metadata.name.as_str()), ("crisp", "web_1"));
        assert_eq!((config.labels[ORIGIN_LABEL].as_str(), config.labels["a"].as_str()), ("cli", "b"));
        assert_eq!((config.annotations[PORTS].as_str(), config.annotations[COMMAND].as_str()), ("8080:80", "cmd x"));
        assert_eq!((config.hostname.as_str(), config.port_mappings.len()), ("web-1", 1));
    }

    #[test]
    fn the_hosts_network_has_the_hosts_ports_and_name() {
        assert!(sandbox(&run("--network host -p 1:1 i"), &given()).unwrap_err().contains("--network host"));
        assert_eq!(sandbox(&run("--network host i"), &given()).unwrap().hostname, "");
    }

    #[test]
    fn only_a_privileged_container_is_not_confined() {
        let context = |line: &str| container(&run(line), &given()).unwrap().linux.unwrap().security_context.unwrap();
        let plain = context("i");
        assert_eq!((plain.masked_paths.len(), plain.readonly_paths.len(), plain.privileged), (12, 5, false));
        assert_eq!(plain.seccomp.unwrap().profile_type, 0);
        let privileged = context("--privileged i");
        assert!(privileged.masked_paths.is_empty() && privileged.privileged);
        assert_eq!(privileged.seccomp.unwrap().profile_type, 1);
    }

    #[test]
    fn limits_and_volumes() {
        let config = container(&run("--memory 256m --cpus 1.5 -v ./d:/d:ro i"), &given()).unwrap();
        let limits = config.linux.unwrap().resources.unwrap();
        assert_eq!((limits.memory_limit_in_bytes, limits.cpu_quota, limits.cpu_period), (256 << 20, 150_000, 100_000));
        assert_eq!((config.mounts[0].host_path.as_str(), config.mounts[0].readonly), ("/home/d", true));
    }

    #[test]
    fn users() {
        assert_eq!(user(""), Ok((None, None, String::new())));
        assert_eq!(user("1000:100"), Ok((Some(1000), Some(100), String::new())));
        assert_eq!(user("nobody"), Ok((None, None, "nobody".into())));
        assert!(user(":1").is_err() && user("a:b").is_err());
    }
}
