//! `crisp stop`.

use std::process::ExitCode;
use std::time::Duration;

use crisp_cri_proto::v1;

use super::args::Stop;
use super::client::Client;
use super::error::Result;
use super::output::Out;
use super::world::{Thing, World, fetch, full_name, is_cli};

/// Stops pods and containers.
pub async fn stop(client: &mut Client, args: &Stop, out: Out) -> Result<ExitCode> {
    let world = fetch(client).await?;
    Ok(super::each(&args.names, async |name: &String| {
        let id = match owner(&world, world.find(name)?) {
            Thing::Container(container) => {
                container_of(client, &container.id, args.time).await?;
                &container.id
            }
            Thing::Pod(pod) => {
                let containers: Vec<String> = world.containers_of(pod).map(|one| one.id.clone()).collect();
                pod_of(client, &pod.id, &containers, args.time).await?;
                &pod.id
            }
        };
        out.line(&format!("stopped {name}"), &serde_json::json!({ "stopped": name, "id": id }))
    })
    .await)
}

/// The only container of a pod of the CLI stands for its pod: `crisp ps` shows its id.
pub fn owner<'a>(world: &'a World, thing: Thing<'a>) -> Thing<'a> {
    match thing {
        Thing::Container(container) => match world.pod_of(container) {
            Some(pod) if is_cli(&pod.labels) && world.name_of(container) == full_name(pod) => Thing::Pod(pod),
            _ => thing,
        },
        Thing::Pod(_) => thing,
    }
}

/// Stops a container.
pub async fn container_of(client: &mut Client, id: &str, time: Duration) -> Result {
    let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: seconds(time) };
    client.runtime.stop_container(request).await?;
    Ok(())
}

/// Stops a pod's containers, all at once, and then the pod.
pub async fn pod_of(client: &mut Client, pod: &str, containers: &[String], time: Duration) -> Result {
    let stops = containers.iter().map(|id| {
        let mut client = client.clone();
        async move { container_of(&mut client, id, time).await }
    });
    futures_util::future::try_join_all(stops).await?;
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
    client.runtime.stop_pod_sandbox(request).await?;
    Ok(())
}

/// Whole seconds, a part of one being one: zero would mean "at once", or "no limit".
pub fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).unwrap_or(i64::MAX)
}
