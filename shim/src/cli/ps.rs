//! `crisp ps`.

use std::collections::HashMap;

use crisp_cri_proto::v1;
use serde::Serialize;

use super::args::Ps;
use super::client::Client;
use super::error::Result;
use super::output::{Cell, Column, Out, Paint, Table, age, short};
use super::parse::time;
use super::world::{self, COMMAND, PORTS, World, fetch};
use crate::sys;

/// A container.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    namespace: String,
    pod: String,
    pod_id: String,
    image: String,
    image_id: String,
    command: String,
    state: &'static str,
    exit_code: Option<i32>,
    reason: String,
    created_at: String,
    ports: String,
    labels: HashMap<String, String>,
    #[serde(skip)]
    full_name: String,
    #[serde(skip)]
    created: i64,
    #[serde(skip)]
    finished: i64,
}

/// Lists containers.
pub async fn ps(client: &mut Client, args: &Ps, out: Out) -> Result {
    let world = fetch(client).await?;
    let shown: Vec<&v1::Container> = world.containers.iter().filter(|one| args.all || world::is_running(one)).collect();
    if args.quiet {
        let ids: String = shown.iter().map(|one| format!("{}\n", short(&one.id))).collect();
        return out.text(&ids);
    }
    let mut rows = Vec::new();
    for container in shown {
        let mut row = row(&world, container);
        if row.state == "exited" {
            let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            // It may have been removed since.
            let Ok(answer) = client.runtime.container_status(request).await else { continue };
            let status = answer.into_inner().status.unwrap_or_default();
            row.exit_code = Some(status.exit_code);
            row.reason = status.reason;
            row.finished = status.finished_at;
        }
        rows.push(row);
    }
    out.list(&rows, table)
}

fn row(world: &World, container: &v1::Container) -> Row {
    let pod = world.pod_of(container);
    let note = |key: &str| container.annotations.get(key).cloned().unwrap_or_default();
    let image = container.image.clone().unwrap_or_default();
    let named = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    Row {
        id: container.id.clone(),
        name: world::container_name(container).to_owned(),
        namespace: pod.map(world::pod_namespace).unwrap_or_default().to_owned(),
        pod: pod.map(world::pod_name).unwrap_or_default().to_owned(),
        pod_id: container.pod_sandbox_id.clone(),
        image: named,
        image_id: container.image_id.clone(),
        command: note(COMMAND),
        state: state(container.state),
        exit_code: None,
        reason: String::new(),
        created_at: time::show(container.created_at),
        ports: note(PORTS),
        labels: container.labels.clone(),
        full_name: world.name_of(container),
        created: container.created_at,
        finished: 0,
    }
}

/// A state in one word.
pub fn state(state: i32) -> &'static str {
    match v1::ContainerState::try_from(state) {
        Ok(v1::ContainerState::ContainerCreated) => "created",
        Ok(v1::ContainerState::ContainerRunning) => "running",
        Ok(v1::ContainerState::ContainerExited) => "exited",
        Ok(v1::ContainerState::ContainerUnknown) | Err(_) => "unknown",
    }
}

fn table(rows: &[Row]) -> Table {
    let now = sys::now();
    let has_ports = rows.iter().any(|row| !row.ports.is_empty());
    let mut columns = vec![
        Column::left("CONTAINER"),
        Column::left("NAME").gives(),
        Column::left("IMAGE").gives(),
        Column::left("COMMAND").gives(),
        Column::left("STATE"),
        Column::right("AGE"),
    ];
    if has_ports {
        columns.push(Column::left("PORTS").gives());
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let image = if row.image.starts_with("sha256:") { short(&row.image) } else { &row.image };
        let (state, paint) = condition(row, now);
        table.row(
            [
                short(&row.id).into(),
                Cell::new(&row.full_name),
                image.into(),
                Cell::new(&row.command),
                Cell::new(state).paint(paint),
                age(row.created, now).into(),
                Cell::new(&row.ports),
            ]
            .into_iter()
            .take(columns.len()),
        );
    }
    table
}

fn condition(row: &Row, now: i64) -> (String, Paint) {
    match (row.state, row.exit_code) {
        ("running", _) => ("running".to_owned(), Paint::Good),
        ("exited", Some(code)) => {
            let ago = age(row.finished, now);
            let paint = if code == 0 { Paint::Plain } else { Paint::Bad };
            match row.reason.as_str() {
                "" | "Completed" | "Error" => (format!("exited ({code}) {ago} ago"), paint),
                reason => (format!("exited ({code}, {reason}) {ago} ago"), paint),
            }
        }
        ("unknown", _) => ("unknown".to_owned(), Paint::Bad),
        (other, _) => (other.to_owned(), Paint::Plain),
    }
}
