//! The process: what is run, with which environment, where, as whom.

use std::collections::HashMap;

use super::capabilities::CapSet;
use super::oci::{Capabilities, Process, Rlimit, User};
use super::{Inputs, SpecError};
use crate::model::{ContainerConfig, ImageDefaults};

/// Where programs are looked for when neither image nor container says it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn build(inputs: &Inputs<'_>, granted: CapSet) -> Result<Process, SpecError> {
    let Inputs { container, image, user, host, .. } = *inputs;
    let names = granted.names();
    let capabilities = Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        // A program with file capabilities would take these from a container that was meant to have fewer.
        inheritable: Vec::new(),
        ambient: Vec::new(),
    };
    let mut rlimits = Vec::new();
    if let Some((soft, hard)) = inputs.open_files {
        let hard = if host.can_raise_limits { hard } else { hard.min(host.max_open_files) };
        rlimits.push(Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: soft.min(hard), hard });
    }
    Ok(Process {
        terminal: container.tty,
        user: User { uid: user.uid, gid: user.gid, additional_gids: user.groups.clone() },
        args: args(container, image)?,
        env: env(inputs)?,
        cwd: cwd(container, image)?,
        capabilities,
        rlimits,
        no_new_privileges: container.security.no_new_privs,
        oom_score_adj: Some(oom_score_adj(container.resources.oom_score_adj, host)?),
    })
}

/// Program and arguments (Kubernetes: "Define a Command and Arguments for a Container").
///
/// A command of the container's own makes the image's arguments meaningless, so they are dropped with its entrypoint.
fn args(container: &ContainerConfig, image: &ImageDefaults) -> Result<Vec<String>, SpecError> {
    // Images are built with an entrypoint of one empty string to take away that of their base.
    let entrypoint = |list: &[String]| if list == [""] { Vec::new() } else { list.to_vec() };
    let mut args =
        if container.command.is_empty() { entrypoint(&image.entrypoint) } else { entrypoint(&container.command) };
    args.extend(match (container.command.is_empty(), container.args.is_empty()) {
        (_, false) => container.args.clone(),
        (true, true) => image.cmd.clone(),
        (false, true) => Vec::new(),
    });
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    match args.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(SpecError::invalid("command", format!("{arg:?} holds a NUL byte"))),
        None => Ok(args),
    }
}

/// Defaults, then the image's, then the container's: the last word on a name wins, in the place of the first.
fn env(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let Inputs { sandbox, container, image, node, .. } = *inputs;
    let hostname = if sandbox.hostname.is_empty() { &node.hostname } else { &sandbox.hostname };
    let mut list: Vec<(&str, &str)> = vec![("PATH", PATH), ("HOSTNAME", hostname)];
    if container.tty {
        list.push(("TERM", "xterm"));
    }
    // An image's entry without `=` says nothing.
    list.extend(image.env.iter().filter_map(|entry| entry.split_once('=')));
    list.extend(container.envs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut env: Vec<String> = Vec::with_capacity(list.len());
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (name, value) in list {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let problem = format!("{name:?} is no name of a variable, or its value holds a NUL byte");
            return Err(SpecError::invalid("envs", problem));
        }
        let entry = format!("{name}={value}");
        match places.get(name) {
            Some(place) => env[*place] = entry,
            None => {
                places.insert(name, env.len());
                env.push(entry);
            }
        }
    }
    Ok(env)
}

/// The container's, else the image's, else `/`. The runtime makes it when it is missing, inside the root file system.
fn cwd(container: &ContainerConfig, image: &ImageDefaults) -> Result<String, SpecError> {
    let given = [&container.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    let Some(dir) = given else { return Ok("/".to_owned()) };
    if dir.contains('\0') {
        return Err(SpecError::invalid("working_dir", format!("{dir:?} holds a NUL byte")));
    }
    // Image builders take a relative one as relative to the root.
    Ok(if dir.starts_with('/') { dir.clone() } else { format!("/{dir}") })
}

/// A process without `CAP_SYS_RESOURCE` cannot give its children a lower score than its own.
fn oom_score_adj(wanted: i64, host: &crate::host::HostFacts) -> Result<i32, SpecError> {
    let score = i32::try_from(wanted).ok().filter(|score| (-1000..=1000).contains(score));
    let score = score.ok_or_else(|| {
        SpecError::invalid("linux.resources.oom_score_adj", format!("{wanted} is not within -1000..=1000"))
    })?;
    Ok(if host.can_lower_oom_score { score } else { score.max(host.oom_score_adj) })
}
