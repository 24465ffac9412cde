//! Runs other programs, each within a time, and says what they said when they fail.

use crate::fail::{Fail, Res, wrong};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::process::Command;

/// What a program answered.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `cmd` without input for at most `secs` seconds; its exit code is the caller's to judge.
pub(crate) async fn output(cmd: &mut Command, secs: u64) -> Res<Out> {
    let name = format!("{:?}", cmd.as_std());
    cmd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = cmd.spawn().map_err(|e| Fail::Wrong(format!("{name}: {e}")))?;
    let Ok(out) = tokio::time::timeout(Duration::from_secs(secs), child.wait_with_output()).await else {
        return wrong(format!("{name} did not end within {secs} s"));
    };
    let out = out?;
    Ok(Out {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}

/// Runs `cmd` and returns its stdout; any exit code but 0 is a failure.
pub(crate) async fn run(cmd: &mut Command, secs: u64) -> Res<String> {
    let name = format!("{:?}", cmd.as_std());
    let out = output(cmd, secs).await?;
    if out.code != 0 {
        let said = if out.stderr.trim().is_empty() { &out.stdout } else { &out.stderr };
        let said: Vec<&str> = said.trim().lines().rev().take(12).collect();
        let said: Vec<&str> = said.into_iter().rev().collect();
        return wrong(format!("{name} ended with {}: {}", out.code, said.join("\n")));
    }
    Ok(out.stdout)
}

/// Runs `program args…`.
pub(crate) async fn cmd(program: &str, args: &[&str], secs: u64) -> Res<String> {
    run(Command::new(program).args(args), secs).await
}

/// Runs a shell script in `dir`.
pub(crate) async fn script(dir: &Path, text: &str, secs: u64) -> Res<String> {
    run(Command::new("sh").arg("-ec").arg(text).current_dir(dir), secs).await
}
