//! `crisp exec`, without a terminal: ExecSync.

use std::io::{self, Write};
use std::process::ExitCode;

use crisp_cri_proto::v1;

use super::args::Exec;
use super::client::Client;
use super::error::{self, Result};
use super::run::failure;
use super::world::fetch;

/// Runs a command in a container; its exit code is ours.
pub async fn exec(client: &mut Client, args: Exec) -> Result<ExitCode> {
    let Exec { timeout, interactive, tty, name, command } = args;
    super::no_terminal(interactive, tty, "without them the command runs, and its output is shown when it has ended")?;
    let container_id = fetch(client).await?.container(&name)?.id.clone();
    let request = v1::ExecSyncRequest { container_id, cmd: command, timeout: timeout.map_or(0, super::stop::seconds) };
    let answer = client.runtime.exec_sync(request).await.map_err(|status| failure(status.into()))?;
    let v1::ExecSyncResponse { stdout, stderr, exit_code } = answer.into_inner();
    let write = |mut to: Box<dyn Write>, bytes: &[u8]| to.write_all(bytes).and_then(|()| to.flush());
    write(Box::new(io::stdout()), &stdout)
        .and_then(|()| write(Box::new(io::stderr()), &stderr))
        .map_err(error::output)?;
    Ok(exit(exit_code))
}

/// An exit code as the shell sees it.
pub fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}
