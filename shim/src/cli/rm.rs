//! `crisp rm`.

use std::process::ExitCode;

use crisp_cri_proto::v1;

use super::args::Rm;
use super::client::Client;
use super::error::{CliError, Result};
use super::output::Out;
use super::stop::owner;
use super::world::{Thing, fetch, is_running};

/// Removes pods and containers.
pub async fn rm(client: &mut Client, args: &Rm, out: Out) -> Result<ExitCode> {
    let world = fetch(client).await?;
    Ok(super::each(&args.names, async |name: &String| {
        let thing = owner(&world, world.find(name)?);
        let runs = match thing {
            Thing::Container(container) => is_running(container),
            Thing::Pod(pod) => world.containers_of(pod).any(is_running),
        };
        if runs && !args.force {
            return Err(CliError::new(format!("{name} is running")).hint(format!(
                "stop it first with \"crisp stop {name}\", or kill and remove it with \"crisp rm --force {name}\""
            )));
        }
        let id = match thing {
            Thing::Container(container) => {
                let request = v1::RemoveContainerRequest { container_id: container.id.clone() };
                client.runtime.remove_container(request).await?;
                &container.id
            }
            Thing::Pod(pod) => {
                remove_pod(client, &pod.id).await?;
                &pod.id
            }
        };
        out.line(&format!("removed {name}"), &serde_json::json!({ "removed": name, "id": id }))
    })
    .await)
}

/// Kills and removes a pod and what is in it.
pub async fn remove_pod(client: &mut Client, id: &str) -> Result {
    client.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}
