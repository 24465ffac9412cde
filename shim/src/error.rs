//! What can go wrong in the server, and the one map from it to gRPC codes.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::spec::SpecError;
use crisp_netns::{builtin, pin};
use crisp_store::durable::is_no_space;

/// What the server's functions end with.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The things that ids name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sandbox,
    Container,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sandbox => "pod sandbox",
            Self::Container => "container",
        })
    }
}

/// A failed request: what was tried on what, and why not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {kind} has the id {id:?}")]
    NotFound { kind: Kind, id: String },
    #[error("{count} {kind}s have ids that start with {id:?}: give more of it")]
    Ambiguous { kind: Kind, id: String, count: usize },
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    Timeout(String),
    #[error("image {image:?} is not on this node: pull it first")]
    NoImage { image: String },
    #[error("{}{error}", crate::cri::kubelet_word(.error))]
    Store {
        #[from]
        error: crisp_store::Error,
    },
    #[error("ImageVolumeMountFailed: image {image:?} is not on this node: pull it first")]
    NoVolumeImage { image: String },
    #[error("namespaces of {of}")]
    Pins { of: String, source: crisp_netns::pin::Error },
    #[error("network of {of}")]
    Network { of: String, source: crisp_netns::Error },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{runtime} {verb} of container {id}: {text}")]
    Runtime { runtime: String, verb: &'static str, id: String, text: String },
    #[error("start the monitor of container {id}")]
    Spawn { id: String, source: crisp_monitor::spawn::SpawnError },
    #[error("the monitor of container {id} is gone")]
    MonitorLost { id: String },
    #[error("record")]
    Record(#[from] crisp_store::durable::Error),
    #[error("{what} {}", .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cgroup")]
    Cgroup(#[from] crate::cgroup::CgroupError),
    #[error("{}; and undoing it failed too: {}", .error.chain(), .undo.chain())]
    Undo { error: Box<Self>, undo: Box<Self> },
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// For `map_err`: the namespaces of this sandbox.
    pub fn pins(id: &str) -> impl FnOnce(pin::Error) -> Self {
        move |source| Self::Pins { of: format!("pod sandbox {id}"), source }
    }

    /// For `map_err`: the network of this sandbox.
    pub fn network(id: &str) -> impl FnOnce(crisp_netns::Error) -> Self {
        move |source| Self::Network { of: format!("pod sandbox {id}"), source }
    }

    /// For `map_err`: what was tried on which path.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    /// The code that the CRI expects for it.
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::NoImage { .. } | Self::NoVolumeImage { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Invalid(_) | Self::Spec(_) => Code::InvalidArgument,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::TooLarge(_) => Code::ResourceExhausted,
            Self::Timeout(_) => Code::DeadlineExceeded,
            Self::Store { error } => crate::cri::store_code(error),
            Self::Network { source: crisp_netns::Error::NotReady(_), .. } | Self::MonitorLost { .. } => {
                Code::Unavailable
            }
            Self::Undo { error, .. } => error.code(),
            Self::Record(error) if error.is_no_space() => Code::ResourceExhausted,
            Self::Io { source, .. } if is_no_space(source) => Code::ResourceExhausted,
            Self::Pins { source, .. } => match source {
                pin::Error::SysctlRefused { .. } | pin::Error::NoRoot(_) | pin::Error::Id(_) => Code::InvalidArgument,
                _ => Code::Internal,
            },
            Self::Network { source: crisp_netns::Error::Builtin(source), .. } => match source {
                builtin::Error::PortInUse { .. }
                | builtin::Error::PortOfHost { .. }
                | builtin::Error::NoHostPorts(_)
                | builtin::Error::NoSubnet
                | builtin::Error::Subnet { .. } => Code::FailedPrecondition,
                builtin::Error::HostIp { .. } => Code::InvalidArgument,
                builtin::Error::NoAddress(_) => Code::ResourceExhausted,
                _ => Code::Internal,
            },
            Self::Network { .. }
            | Self::Runtime { .. }
            | Self::Spawn { .. }
            | Self::Record(_)
            | Self::Io { .. }
            | Self::Cgroup(_)
            | Self::Internal(_) => Code::Internal,
        }
    }

    /// The error and all its causes in one line, each once.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                let _ = write!(text, ": {cause_text}");
            }
            next = cause.source();
        }
        text
    }
}

/// The longest message that is sent: gRPC puts it into a header, and clients refuse long ones.
const MAX_MESSAGE: usize = 6 * 1024;

/// Words by which kubelet knows a cause (`cri-api/pkg/errors`). It looks for them at the start of the message, and its
/// client hands on the bare message only of code UNKNOWN.
const KUBELET_WORDS: [&str; 4] =
    ["RegistryUnavailable", "SignatureValidationFailed", "ImageVolumeMountFailed", "RROUnsupported"];

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let mut text = error.chain();
        let mut code = error.code();
        if let Some(at) = KUBELET_WORDS.iter().find_map(|word| text.find(word)) {
            text.drain(..at);
            code = Code::Unknown;
        }
        if text.len() > MAX_MESSAGE {
            text.truncate(text.floor_char_boundary(MAX_MESSAGE));
            text.push('…');
        }
        Self::new(code, text)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_thing_and_every_cause_once() {
        let error = Error::io("read", Path::new("/x"))(io::Error::from_raw_os_error(libc::ENOENT));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "read /x: No such file or directory (os error 2)");
    }

    #[test]
    fn when_undoing_fails_too_both_are_told_and_the_first_code_counts() {
        let error = Box::new(Error::NoImage { image: "i".into() });
        let undo = Box::new(Error::io("remove", Path::new("/x"))(io::Error::from_raw_os_error(libc::EBUSY)));
        let status = Status::from(Error::Undo { error, undo });
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("\"i\"") && status.message().contains("remove /x: Device"), "{status}");
    }

    #[test]
    fn a_word_that_kubelet_knows_stands_first() {
        let text = "cannot mount: ImageVolumeMountFailed: find in the image x".to_owned();
        let status = Status::from(Error::Runtime { runtime: "runc".into(), verb: "create", id: "1".into(), text });
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(status.message(), "ImageVolumeMountFailed: find in the image x");
    }

    #[test]
    fn a_message_that_no_header_could_hold_is_cut_between_characters() {
        let status = Status::from(Error::Invalid("ü".repeat(MAX_MESSAGE)));
        assert!(status.message().len() <= MAX_MESSAGE + '…'.len_utf8() && status.message().ends_with("ü…"));
    }
}
