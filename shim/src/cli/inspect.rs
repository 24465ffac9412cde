//! `crisp inspect`: always JSON, a list with an object for each name.

use std::process::ExitCode;

use crisp_cri_proto::v1;
use serde_json::{Value, json};

use super::args::Inspect;
use super::client::Client;
use super::error::{CliError, Result};
use super::output::Out;
use super::parse::time;
use super::ps::state;
use super::world::{self, Thing, World, fetch};

/// Shows all that is known.
pub async fn inspect(client: &mut Client, args: &Inspect, out: Out) -> Result<ExitCode> {
    let world = fetch(client).await?;
    let mut found = Vec::new();
    let code = super::each(&args.names, async |name: &String| {
        found.push(one(client, &world, name).await?);
        Ok(())
    })
    .await;
    out.json(&found)?;
    Ok(code)
}

async fn one(client: &mut Client, world: &World, name: &str) -> Result<Value> {
    match world.maybe(name)? {
        Some(Thing::Pod(pod)) => self::pod(client, world, pod).await,
        Some(Thing::Container(container)) => self::container(client, world, container).await,
        None => image(client, name).await?.ok_or_else(|| {
            CliError::new(format!("no pod, container or image is called {name:?}, or has an id that begins so"))
                .hint("\"crisp ps --all\", \"crisp pods\" and \"crisp images\" show what there is")
        }),
    }
}

async fn pod(client: &mut Client, world: &World, pod: &v1::PodSandbox) -> Result<Value> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = client.runtime.pod_sandbox_status(request).await?.into_inner();
    let status = answer.status.unwrap_or_default();
    let metadata = status.metadata.unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    let containers: Vec<Value> = world
        .containers_of(pod)
        .map(|one| json!({ "id": one.id, "name": world::container_name(one), "state": state(one.state) }))
        .collect();
    Ok(json!({
        "kind": "pod",
        "id": status.id,
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "attempt": metadata.attempt,
        "state": if world::is_ready(pod) { "ready" } else { "not ready" },
        "created_at": time::show(status.created_at),
        "ips": ips.filter(|ip| !ip.is_empty()).collect::<Vec<_>>(),
        "runtime": status.runtime_handler,
        "labels": status.labels,
        "annotations": status.annotations,
        "containers": containers,
        "info": info(&answer.info),
    }))
}

async fn container(client: &mut Client, world: &World, container: &v1::Container) -> Result<Value> {
    let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let answer = client.runtime.container_status(request).await?.into_inner();
    let status = answer.status.unwrap_or_default();
    let metadata = status.metadata.unwrap_or_default();
    let pod = world.pod_of(container);
    let ended = status.state == i32::from(v1::ContainerState::ContainerExited);
    let mounts: Vec<Value> = status.mounts.iter().map(mount).collect();
    Ok(json!({
        "kind": "container",
        "id": status.id,
        "name": metadata.name,
        "attempt": metadata.attempt,
        "pod": pod.map(world::pod_name),
        "namespace": pod.map(world::pod_namespace),
        "pod_id": container.pod_sandbox_id,
        "image": status.image.map(|image| image.image),
        "image_id": status.image_id,
        "state": state(status.state),
        "created_at": time::show(status.created_at),
        "started_at": time::show(status.started_at),
        "finished_at": time::show(status.finished_at),
        "exit_code": ended.then_some(status.exit_code),
        "reason": status.reason,
        "message": status.message,
        "log_path": status.log_path,
        "mounts": mounts,
        "labels": status.labels,
        "annotations": status.annotations,
        "info": info(&answer.info),
    }))
}

fn mount(mount: &v1::Mount) -> Value {
    json!({
        "source": mount.image.as_ref().map_or(&mount.host_path, |image| &image.image),
        "destination": mount.container_path,
        "readonly": mount.readonly,
    })
}

async fn image(client: &mut Client, name: &str) -> Result<Option<Value>> {
    let image = v1::ImageSpec { image: name.to_owned(), ..v1::ImageSpec::default() };
    let request = v1::ImageStatusRequest { image: Some(image), verbose: true };
    let answer = client.images.image_status(request).await?.into_inner();
    let Some(image) = answer.image else { return Ok(None) };
    Ok(Some(json!({
        "kind": "image",
        "id": image.id,
        "tags": image.repo_tags,
        "digests": image.repo_digests,
        "size": image.size,
        "pinned": image.pinned,
        "info": info(&answer.info),
    })))
}

/// What the server says beyond the contract: one JSON object in a text.
fn info(info: &std::collections::HashMap<String, String>) -> Value {
    let Some(text) = info.get("info") else { return Value::Null };
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
}
