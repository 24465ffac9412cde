//! `crisp info` and `crisp version`.

use std::process::ExitCode;

use crisp_cri_proto::v1;
use serde_json::json;

use super::args::Output;
use super::client::Client;
use super::error::{CliError, Result};
use super::output::{Cell, Column, Out, Paint, Table, size, span};
use crate::api::v1::InfoRequest;

/// What the server is and how it is.
pub async fn info(client: &mut Client, endpoint: &str, out: Out) -> Result {
    let info = client.crisp.info(InfoRequest {}).await?.into_inner();
    let status = client.runtime.status(v1::StatusRequest { verbose: false }).await?.into_inner();
    let counts = info.counts.unwrap_or_default();
    let conditions = status.status.unwrap_or_default().conditions;
    let handlers: Vec<&str> =
        status.runtime_handlers.iter().map(|one| one.name.as_str()).filter(|name| !name.is_empty()).collect();
    if out.format == Output::Json {
        let conditions: Vec<_> = conditions
            .iter()
            .map(
                |one| json!({ "type": one.r#type, "status": one.status, "reason": one.reason, "message": one.message }),
            )
            .collect();
        return out.json(&json!({
            "version": info.version,
            "instance": info.instance,
            "endpoint": endpoint,
            "pid": info.pid,
            "uptime_seconds": info.uptime,
            "root": info.root,
            "state": info.state,
            "logs": info.logs,
            "runtimes": handlers,
            "conditions": conditions,
            "pods": counts.pods,
            "pods_ready": counts.pods_ready,
            "containers": counts.containers,
            "containers_running": counts.containers_running,
            "images": counts.images,
            "image_bytes": counts.image_bytes,
        }));
    }
    let mut table = Table::new(&[Column::left("crisp"), Column::left(env!("CARGO_PKG_VERSION"))]);
    let mut row = |key: &str, value: String| table.row([key.into(), value.into()]);
    row("server", format!("{}, instance {}, pid {}", info.version, info.instance, info.pid));
    row("up for", span(i64::try_from(info.uptime).unwrap_or(i64::MAX)));
    row("endpoint", endpoint.to_owned());
    row("root", info.root);
    row("state", info.state);
    row("runtimes", if handlers.is_empty() { "none usable".to_owned() } else { handlers.join(", ") });
    row("pods", format!("{}, {} ready", counts.pods, counts.pods_ready));
    row("containers", format!("{}, {} running", counts.containers, counts.containers_running));
    row("images", format!("{}, {} on disk", counts.images, size(counts.image_bytes)));
    for condition in conditions {
        let (text, paint) = match (condition.status, condition.message.as_str()) {
            (true, "") => ("ready".to_owned(), Paint::Good),
            (true, message) => (format!("ready: {message}"), Paint::Good),
            (false, message) => (format!("not ready: {message}"), Paint::Bad),
        };
        let key = condition.r#type.strip_suffix("Ready").unwrap_or(&condition.r#type).to_lowercase();
        table.row([key.into(), Cell::new(text).paint(paint)]);
    }
    out.text(&table.render(None, out.colour))
}

/// The versions of both sides. Ours is told without a server, too.
pub async fn version(endpoint: &str, out: Out) -> Result<ExitCode> {
    let ours = env!("CARGO_PKG_VERSION");
    let server = async {
        let mut client = Client::connect(endpoint).await?;
        Ok::<_, CliError>(client.runtime.version(v1::VersionRequest::default()).await?.into_inner())
    };
    let server = server.await;
    let theirs = server.as_ref().ok().map(|answer| format!("{} {}", answer.runtime_name, answer.runtime_version));
    let api = server.as_ref().ok().map(|answer| answer.runtime_api_version.clone());
    let line = match (&theirs, &api) {
        (Some(theirs), Some(api)) => format!("crisp {ours}\nserver: {theirs}, CRI {api}"),
        _ => format!("crisp {ours}"),
    };
    out.line(&line, &json!({ "version": ours, "server": theirs, "cri": api }))?;
    match server {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}
