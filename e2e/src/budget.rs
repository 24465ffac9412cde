//! What a running container may cost, and the server.

use crate::{
    fail::{Res, ensure},
    server::{Kind, Server},
};
use std::{fs, path::Path};

/// A monitor's own memory (RssAnon), all of it (VmRSS), and a server with 40 pods (Pss), in kB.
const MONITOR_ANON: u64 = 128;
const MONITOR_RSS: u64 = 1280;
const SERVER_PSS: u64 = 15 * 1024;

/// Checks crisp's processes against the budget; containerd has none.
pub(crate) fn check(server: &Server) -> Res {
    if server.kind != Kind::Crisp {
        return Ok(());
    }
    let Some(pid) = server.pid() else { return Ok(()) };
    let monitors = monitors(server);
    ensure!(!monitors.is_empty(), "no monitor is running");
    for m in monitors {
        let status = fs::read_to_string(format!("/proc/{m}/status"))?;
        let (anon, rss, threads) = (field(&status, "RssAnon:"), field(&status, "VmRSS:"), field(&status, "Threads:"));
        ensure!(
            anon <= MONITOR_ANON && rss <= MONITOR_RSS && threads == 1,
            "monitor {m}: RssAnon {anon} kB, VmRSS {rss} kB, {threads} threads"
        );
    }
    let pss = field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss:");
    ensure!(pss <= SERVER_PSS, "the server's Pss is {pss} kB");
    Ok(())
}

/// The monitors of a server: processes of its embedded binary, other than the server itself.
pub(crate) fn monitors(server: &Server) -> Vec<u32> {
    let state = server.state.to_string_lossy().into_owned();
    let root = server.root.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let ours = |d: &str| exe.starts_with(Path::new(d));
        if Some(pid) != server.pid() && (ours(&state) || ours(&root)) {
            found.push(pid);
        }
    }
    found
}

/// A number after its name in a status file, in its own unit.
pub(crate) fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
