//! Why no specification can be built.

use std::path::PathBuf;

use super::{SeccompError, UserError};

/// Why no specification can be built: all of it is known before anything is done.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A field with a value that makes no sense.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, in the words of the CRI.
        field: &'static str,
        /// What is wrong with which value.
        problem: String,
    },
    /// Neither the container nor its image names a program.
    #[error("no command specified, neither in the container nor in its image")]
    NoCommand,
    /// No such capability.
    #[error("capability to {list}: {name} is no capability")]
    UnknownCapability {
        /// As it was given.
        name: String,
        /// `add` or `drop`.
        list: &'static str,
    },
    /// The sandbox was not made for it.
    #[error("a privileged container needs a privileged sandbox")]
    PrivilegedInUnprivilegedSandbox,
    /// What node or runtime cannot do.
    #[error("{what} is not possible: {why}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What lacks.
        why: String,
    },
    /// The same for recursive read-only mounts: kubelet knows this error by its first word.
    #[error("RROUnsupported: mount {destination} cannot be read-only recursively: {why}")]
    RecursiveReadOnly {
        /// Where it should be.
        destination: String,
        /// What lacks.
        why: &'static str,
    },
    /// A source that cannot pass mounts on as it was asked to.
    #[error(
        "mount {destination}: {source_path} is not on a {wanted} mount, as propagation {propagation} needs; \
             try `mount --make-rshared {mountpoint}` on the node"
    )]
    Propagation {
        /// Where it should be.
        destination: String,
        /// What should be there.
        source_path: PathBuf,
        /// The mount that holds it.
        mountpoint: PathBuf,
        /// What was asked for.
        propagation: &'static str,
        /// `shared`, or `shared or slave`.
        wanted: &'static str,
    },
    /// A file, directory or device of the node.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

impl SpecError {
    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }

    pub(super) fn unsupported(what: &'static str, why: impl Into<String>) -> Self {
        Self::Unsupported { what, why: why.into() }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}
