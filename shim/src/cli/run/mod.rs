//! `crisp run`: image, pod, container, output, exit code, in one command.
//!
//! ```text
//! pull if missing ─► RunPodSandbox ─► CreateContainer ─► StartContainer ─┬─► name          (-d)
//!                                                                        └─► foreground.rs: log, Ctrl-C, exit code
//! ```
//!
//! What fails before the start takes the pod with it. From then on the pod is one like any other: if this program dies,
//! it runs on.

pub mod args;
mod dns;
mod foreground;
mod name;
mod request;

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use crisp_cri_proto::v1;
use serde_json::json;

use super::client::{self, Client};
use super::error::{CliError, INTERRUPTED, Result};
use super::interrupts::Interrupts;
use super::output::Out;
use super::{pull, rm, world};
use crate::api::v1::InfoRequest;
use crate::sys;
use args::{PullWhen, Run};
use request::Given;

/// crisp itself failed.
const FAILED: u8 = 125;
/// There is such a program, and it cannot be run.
const CANNOT_RUN: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;

/// A container that has been started.
#[derive(Debug)]
struct Started {
    name: String,
    pod: String,
    container: String,
}

/// Runs a container.
pub async fn run(run: Run, endpoint: &str, out: Out) -> Result<ExitCode> {
    let own = |error: CliError| if error.code == 1 { error.code(FAILED) } else { error };
    let mut interrupts = Interrupts::listen().map_err(own)?;
    let hint = "with -d it runs in the background, and \"crisp exec\" runs commands in it";
    super::no_terminal(run.interactive, run.tty, hint).map_err(own)?;
    let mut client = Client::connect(endpoint).await.map_err(own)?;
    let started = start(&mut client, &run, &mut interrupts).await.map_err(own)?;
    if run.detach {
        let Started { name, pod, container } = &started;
        out.line(name, &json!({ "name": name, "pod_id": pod, "container_id": container }))?;
        return Ok(ExitCode::SUCCESS);
    }
    foreground::follow(&mut client, &started, run.rm, interrupts).await.map_err(own)
}

async fn start(client: &mut Client, run: &Run, interrupts: &mut Interrupts) -> Result<Started> {
    let name = choose_name(client, run.name.as_deref()).await?;
    let image_id = tokio::select! {
        image = image(client, run) => image?,
        _ = interrupts.next() => return Err(CliError::silent(INTERRUPTED)),
    };
    let info = client.crisp.info(InfoRequest {}).await?.into_inner();
    let uid = uid()?;
    let here =
        std::env::current_dir().map_err(|error| CliError::new(format!("find the working directory: {error}")))?;
    let log_directory = Path::new(&info.logs).join(&uid);
    let given = Given {
        name: &name,
        uid: &uid,
        log_directory: &log_directory.to_string_lossy(),
        image_id: &image_id,
        here: &here,
        dns: dns::config(),
    };
    // Everything that can be refused is refused before the first effect.
    let pod_config = request::sandbox(run, &given).map_err(CliError::new)?;
    let container_config = request::container(run, &given).map_err(CliError::new)?;
    let request = v1::RunPodSandboxRequest { config: Some(pod_config.clone()), runtime_handler: run.runtime.clone() };
    let mut runtime = client.runtime.clone();
    let pod = tokio::select! {
        made = runtime.run_pod_sandbox(client::of_cli(request)) => made?.into_inner().pod_sandbox_id,
        _ = interrupts.next() => {
            let hint = format!("the server goes on with it: remove it with \"crisp rm --force {name}\"");
            return Err(CliError::new("interrupted while the pod was made").hint(hint).code(INTERRUPTED));
        }
    };
    match fill(client, &pod, pod_config, container_config, interrupts).await {
        Ok(container) => Ok(Started { name, pod, container }),
        Err(error) => {
            // The first error says more than what a removal could add; the pod is listed if it stays.
            tokio::select! {
                _ = rm::remove_pod(client, &pod) => {}
                _ = interrupts.next() => {}
            }
            Err(failure(error))
        }
    }
}

/// Makes and starts the container.
async fn fill(
    client: &mut Client,
    pod: &str,
    pod_config: v1::PodSandboxConfig,
    config: v1::ContainerConfig,
    interrupts: &mut Interrupts,
) -> Result<String> {
    interrupts.check()?;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod_config),
    };
    let mut runtime = client.runtime.clone();
    let made = async {
        let container = client.runtime.create_container(request).await?.into_inner().container_id;
        runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await?;
        Ok(container)
    };
    tokio::select! {
        made = made => made,
        _ = interrupts.next() => Err(CliError::silent(INTERRUPTED)),
    }
}

async fn choose_name(client: &mut Client, wanted: Option<&str>) -> Result<String> {
    let world = world::fetch(client).await?;
    let taken: HashSet<&str> =
        world.pods.iter().filter(|pod| world::is_cli(&pod.labels)).map(world::pod_name).collect();
    match wanted {
        Some(name) if taken.contains(name) => Err(CliError::new(format!("{name} is there already"))
            .hint(format!("remove it with \"crisp rm --force {name}\", or choose another --name"))),
        Some(name) => Ok(name.to_owned()),
        None => {
            let mut bytes = random()?.into_bytes().into_iter().cycle();
            let mut next =
                || bytes.by_ref().take(8).fold(0_usize, |number, byte| number.wrapping_mul(31) + usize::from(byte));
            Ok(name::made_up(&taken, &mut next))
        }
    }
}

/// Id of the image, pulled where that is asked for.
async fn image(client: &mut Client, run: &Run) -> Result<String> {
    if run.pull != PullWhen::Always {
        let image = Some(v1::ImageSpec { image: run.image.clone(), ..v1::ImageSpec::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        if let Some(image) = client.images.image_status(request).await?.into_inner().image {
            return Ok(image.id);
        }
    }
    if run.pull == PullWhen::Never {
        return Err(CliError::new(format!("image {} is not here", run.image))
            .hint(format!("\"crisp pull {}\" gets it; so does --pull missing", run.image)));
    }
    let credentials = run.creds.as_deref().map(pull::credentials).transpose()?;
    Ok(pull::fetch(client, &run.image, credentials, "", pull::Progress::new()).await?.image_id)
}

fn random() -> Result<String> {
    sys::new_id().map_err(|error: io::Error| CliError::new(format!("read /dev/urandom: {error}")))
}

/// A random UUID (RFC 9562, version 4).
fn uid() -> Result<String> {
    let hex = random()?;
    Ok(format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30]))
}

/// Gives the error of a start or an exec the exit code that shells have for it, where its text tells.
pub fn failure(error: CliError) -> CliError {
    let text = error.message.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if !text.contains("exec") {
        return error;
    }
    if has(&["executable file not found", "not found in $path", "no such file or directory"]) {
        return error.code(NOT_FOUND);
    }
    if has(&["permission denied", "is a directory", "exec format error"]) {
        return error.code(CANNOT_RUN);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_run_has_the_shells_codes() {
        let code = |text: &str| failure(CliError::new(text)).code;
        // runc 1.1 and 1.5, crun.
        let cases = [
            (
                "runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH",
                127,
            ),
            ("runc create failed: exec: \"/nope\": stat /nope: no such file or directory", 127),
            ("crun: executable file `nope` not found in $PATH: No such file or directory", 127),
            ("runc create failed: exec: \"/etc\": is a directory", 126),
            ("runc create failed: exec: \"/etc/passwd\": permission denied", 126),
            ("exec /bin/x: exec format error", 126),
            ("network of pod sandbox 1: plugin bridge: no such file or directory", 1),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn a_uid_is_a_uuid() {
        let uid = uid().unwrap();
        assert_eq!(uid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    }
}
