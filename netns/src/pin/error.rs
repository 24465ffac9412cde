//! Why a pod's namespaces could not be made, found or removed.

use std::io;
use std::path::{Path, PathBuf};

/// What could not be done with a pod's namespaces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id cannot be part of a path.
    #[error("{0:?} is no pod id: letters, digits and '_' only, at most 128")]
    Id(String),
    /// A mapping that leaves the pod without root.
    #[error("the user namespace does not map {0} 0, which namespaces belong to")]
    NoRoot(&'static str),
    /// A parameter that is not the pod's to set.
    #[error("cannot set sysctl {name:?} for the pod: {reason}")]
    SysctlRefused {
        /// The parameter.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The kernel refused a parameter.
    #[error("set sysctl {name} to {value:?}")]
    Sysctl {
        /// The parameter.
        name: String,
        /// The value.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step on a path.
    #[error("{action} {}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step that has no path.
    #[error("{action} {subject}")]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Turns a system call's error into one that says what was tried on which path.
pub(crate) fn on<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |source| Error::Path { action, path: path.to_owned(), source: source.into() }
}
