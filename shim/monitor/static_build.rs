//! The recipe for the monitor's binary, shared by the server's build script (which embeds the result) and the monitor's own
//! tests (which measure it): static, small, and built apart from the workspace.
//!
//! A target triple given by name keeps `crt-static` from proc-macros and build scripts; a target directory of its own keeps
//! this cargo from waiting for the one that runs it; flags meant for the outer build do not reach it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `crisp-monitor` for this machine's architecture below `target_dir`, and tells where it is.
///
/// `workspace` is the directory of the workspace's Cargo.toml. The error is text for people.
pub(crate) fn build(workspace: &Path, target_dir: &Path) -> Result<PathBuf, String> {
    let triple = match env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => format!("{arch}-unknown-linux-gnu"),
        other => return Err(format!("the monitor is built for x86_64 and aarch64, not for {other}")),
    };
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo.args(["build", "--quiet", "--release", "--locked", "--package", "crisp-monitor", "--bin", "crisp-monitor"]);
    cargo.args(["--target", &triple]).arg("--target-dir").arg(target_dir);
    for name in
        ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"]
    {
        cargo.env_remove(name);
    }
    cargo.env(flags, "-C target-feature=+crt-static -C relocation-model=static");
    for (key, value) in
        [("OPT_LEVEL", "z"), ("LTO", "fat"), ("CODEGEN_UNITS", "1"), ("PANIC", "abort"), ("STRIP", "symbols")]
    {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    let output = cargo.output().map_err(|e| format!("run cargo for the monitor: {e}"))?;
    if !output.status.success() {
        return Err(format!("the monitor does not build:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target_dir.join(triple).join("release/crisp-monitor"))
}
