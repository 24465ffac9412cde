//! One file for each verb that changes something: its whole story, read top to bottom.
//!
//! | verb | what it makes or ends |
//! |---|---|
//! | [`run_pod_sandbox`] | record, namespaces ([`crisp_netns::Pins`]), pod files, network |
//! | [`create_container`] | record, snapshot, bundle, monitor, `runtime create` |
//! | [`start_container`] | `runtime start`, by the monitor |
//! | [`stop_container`], [`remove_container`] | signal, kill; everything that create made |
//! | [`auto_remove`] | the pod, when its container has ended (`crisp run -d --rm`) |
//! | [`stop_pod_sandbox`], [`remove_pod_sandbox`] | containers, holder, network, namespaces; the record |
//! | [`exec_sync`] | a process in a container, by a helper of its own |
//! | [`holder`] | the process that keeps a pod's PID namespace, where one is shared |

pub mod auto_remove;
pub mod create_container;
pub mod exec_sync;
pub mod holder;
mod jobs;
mod launch;
pub mod pod_files;
pub mod remove_container;
pub mod remove_pod_sandbox;
pub mod reopen_log;
pub mod run_pod_sandbox;
pub mod start_container;
pub mod stop_container;
pub mod stop_pod_sandbox;

pub use jobs::{Jobs, Outcome};

use crate::error::{Error, Result};

/// Keeps both errors when undoing a failed step failed too.
fn both(error: Error, undone: Result<()>) -> Error {
    match undone {
        Ok(()) => error,
        Err(undo) => Error::Undo { error: Box::new(error), undo: Box::new(undo) },
    }
}
