//! Out-of-memory kills, as the container's memory cgroup counts them.

use std::fs;
use std::path::Path;

/// Kills so far: `oom_kill` of `memory.events` (cgroup v2) or `memory.oom_control` (v1, kernel 4.13). Nothing to read counts as none.
pub(crate) fn kills(cgroup: &Path) -> u64 {
    let files = ["memory.events", "memory.oom_control"];
    let text = files.iter().find_map(|name| fs::read_to_string(cgroup.join(name)).ok());
    text.as_deref().and_then(count).unwrap_or(0)
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count() {
        let v2 = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n";
        assert_eq!((count(v2), count(v1), count("oom 5\n")), (Some(3), Some(4), None));
        assert_eq!(kills(Path::new("/nonexistent")), 0);
    }
}
