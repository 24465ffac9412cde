//! `crisp rmi`.

use std::process::ExitCode;

use super::args::Rmi;
use super::client::Client;
use super::error::{CliError, Result};
use super::output::{Out, short};
use crate::api::v1::{UntagRequest, UntagResponse};

/// Removes names, and images with their last one.
pub async fn rmi(client: &mut Client, args: &Rmi, out: Out) -> Result<ExitCode> {
    Ok(super::each(&args.images, async |image: &String| {
        let request = UntagRequest { image: image.clone(), force: args.force };
        let UntagResponse { untagged, removed } = match client.crisp.untag(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(with_way_out(status)),
        };
        let mut lines: Vec<String> = untagged.iter().map(|name| format!("untagged {name}")).collect();
        if !removed.is_empty() {
            lines.push(format!("removed {}", short(&removed)));
        }
        out.line(&lines.join("\n"), &serde_json::json!({ "untagged": untagged, "removed": removed }))
    })
    .await)
}

fn with_way_out(status: tonic::Status) -> CliError {
    let code = status.code();
    let error = CliError::from(status);
    match code {
        tonic::Code::NotFound => error.hint("\"crisp images\" shows what there is"),
        tonic::Code::FailedPrecondition => error.hint("\"crisp rmi --force\" removes it all the same"),
        _ => error,
    }
}
