//! `crisp pods`.

use std::collections::HashMap;

use crisp_cri_proto::v1;
use serde::Serialize;

use super::args::Pods;
use super::client::Client;
use super::error::Result;
use super::output::{Cell, Column, Out, Paint, Table, age, short};
use super::parse::time;
use super::world::{self, fetch};
use crate::sys;

/// A pod.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    namespace: String,
    attempt: u32,
    state: &'static str,
    ips: Vec<String>,
    containers: usize,
    containers_running: usize,
    runtime: String,
    created_at: String,
    labels: HashMap<String, String>,
    #[serde(skip)]
    created: i64,
}

/// Lists pods.
pub async fn pods(client: &mut Client, args: &Pods, out: Out) -> Result {
    let world = fetch(client).await?;
    if args.quiet {
        let ids: String = world.pods.iter().map(|pod| format!("{}\n", short(&pod.id))).collect();
        return out.text(&ids);
    }
    let mut rows = Vec::new();
    for pod in &world.pods {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        // It may have been removed since.
        let Ok(answer) = client.runtime.pod_sandbox_status(request).await else { continue };
        let status = answer.into_inner().status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let running = world.containers_of(pod).filter(|container| world::is_running(container)).count();
        rows.push(Row {
            id: pod.id.clone(),
            name: world::pod_name(pod).to_owned(),
            namespace: world::pod_namespace(pod).to_owned(),
            attempt: pod.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            state: if world::is_ready(pod) { "ready" } else { "not ready" },
            ips: ips.filter(|ip| !ip.is_empty()).collect(),
            containers: world.containers_of(pod).count(),
            containers_running: running,
            runtime: pod.runtime_handler.clone(),
            created_at: time::show(pod.created_at),
            labels: pod.labels.clone(),
            created: pod.created_at,
        });
    }
    out.list(&rows, table)
}

fn table(rows: &[Row]) -> Table {
    let now = sys::now();
    let mut table = Table::new(&[
        Column::left("POD"),
        Column::left("NAMESPACE").gives(),
        Column::left("NAME").gives(),
        Column::left("STATE"),
        Column::right("RUNNING"),
        Column::left("IP").gives(),
        Column::right("AGE"),
    ]);
    for row in rows {
        let paint = if row.state == "ready" { Paint::Good } else { Paint::Plain };
        table.row([
            short(&row.id).into(),
            Cell::new(&row.namespace),
            Cell::new(&row.name),
            Cell::new(row.state).paint(paint),
            format!("{}/{}", row.containers_running, row.containers).into(),
            row.ips.join(", ").into(),
            age(row.created, now).into(),
        ]);
    }
    table
}
