//! `crisp.v1`: what the CLI asks for and the CRI has no word for; and how the server knows the CLI's pods.
//!
//! ```text
//! proto/crisp/v1/crisp.proto ── build.rs ──► v1     messages, client, server
//! service.rs   Info, Wait                    pull.rs    Pull: events of a pull, thinned out
//! untag.rs     Untag
//! ```
//!
//! `crisp run` sends `crisp-origin: cli` with RunPodSandbox, and the pod's record keeps it. Lists leave such pods out
//! unless the request says `crisp-all: true`: kubelet kills pods that it does not know.

mod pull;
mod service;
mod untag;

use std::path::{Path, PathBuf};

use tonic::metadata::MetadataMap;

use crate::model::SandboxRecord;

pub use service::service;

/// Messages, client and server of the protobuf package `crisp.v1`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("crisp.v1");
}

/// `origin` in the record of a pod that `crisp run` made.
pub const ORIGIN: &str = "cli";
/// Label of a container of such a pod: the server removes the pod when the container has ended.
pub const REMOVE_LABEL: &str = "io.crisp.remove";
/// Metadata of RunPodSandbox: who makes the pod.
pub const ORIGIN_HEADER: &str = "crisp-origin";
/// Metadata of lists: `true` asks for the CLI's pods, too.
pub const ALL_HEADER: &str = "crisp-all";

/// Who makes a pod: nothing for a CRI client.
pub fn origin(metadata: &MetadataMap) -> String {
    match metadata.get(ORIGIN_HEADER).and_then(|value| value.to_str().ok()) {
        Some(ORIGIN) => ORIGIN.to_owned(),
        _ => String::new(),
    }
}

/// Whether a list is to show pods that `crisp run` made.
pub fn wants_all(metadata: &MetadataMap) -> bool {
    metadata.get(ALL_HEADER).is_some_and(|value| value == "true")
}

/// The log directory that goes with the pod: of a pod of the CLI, and directly below `logs` ([`crate::paths::Paths::logs`]).
/// Any other place is the client's, who may keep more there than this pod's logs.
pub fn log_directory(logs: &Path, record: &SandboxRecord) -> Option<PathBuf> {
    owned_log_directory(logs, &record.origin, &record.config.log_directory)
}

fn owned_log_directory(logs: &Path, origin: &str, directory: &str) -> Option<PathBuf> {
    let name = Path::new(directory).strip_prefix(logs).ok()?.to_str()?;
    let plain = !name.is_empty() && name != ".." && !name.contains('/');
    (origin == ORIGIN && plain).then(|| logs.join(name))
}

impl std::fmt::Debug for v1::Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_its_own_goes_with_a_pod() {
        let logs = Path::new("/var/lib/crisp/logs");
        let owned = |origin, directory| owned_log_directory(logs, origin, directory);
        assert_eq!(owned("cli", "/var/lib/crisp/logs/1-2"), Some(logs.join("1-2")));
        assert_eq!(owned("cli", "/var/lib/crisp/logs/1-2/"), Some(logs.join("1-2")));
        assert_eq!(owned("", "/var/lib/crisp/logs/1-2"), None);
        for other in ["", "/", "/var/lib/crisp/logs", "/var/lib/crisp/logs/", "/var/log/pods/x"] {
            assert_eq!(owned("cli", other), None, "{other}");
        }
        for other in ["/var/lib/crisp/logs/..", "/var/lib/crisp/logs/a/b", "/var/lib/crisp/logs/../sandboxes"] {
            assert_eq!(owned("cli", other), None, "{other}");
        }
    }

    #[test]
    fn only_the_cli_marks_its_pods() {
        let mut metadata = MetadataMap::new();
        assert_eq!((origin(&metadata).as_str(), wants_all(&metadata)), ("", false));
        metadata.insert(ORIGIN_HEADER, "cli".parse().unwrap());
        metadata.insert(ALL_HEADER, "true".parse().unwrap());
        assert_eq!((origin(&metadata).as_str(), wants_all(&metadata)), ("cli", true));
        metadata.insert(ORIGIN_HEADER, "kubelet".parse().unwrap());
        assert_eq!(origin(&metadata), "");
    }

    #[test]
    fn a_password_is_not_shown() {
        let credentials = v1::Credentials { username: "me".into(), password: "hunter2".into() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
