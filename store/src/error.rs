//! What can go wrong in the store.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::durable::is_no_space;
use crate::{durable, pipeline, reference, registry};

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No image has this name, id or prefix of an id.
    #[error("no image {0:?}")]
    NotFound(String),
    /// A prefix fits several image ids.
    #[error("{given:?} is ambiguous: {} image ids begin with it, among them {:?} and {:?}", ids.len(), ids[0].hex(), ids[1].hex())]
    Ambiguous {
        /// What was asked for.
        given: String,
        /// The ids, two or more.
        ids: Vec<Digest>,
    },
    /// Not an image name.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// The registry refused, failed or lied.
    #[error("pulling {image}: {}", unnamed(image, source))]
    Registry {
        /// The reference.
        image: String,
        /// What the registry client says.
        #[source]
        source: registry::Error,
    },
    /// The manifest or the configuration makes no sense.
    #[error("image {image}: {why}")]
    Invalid {
        /// The reference or id.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// A layer did not get onto the disk.
    #[error("pulling {image}: layer {layer}: {}", unnamed(layer, source))]
    Layer {
        /// The reference.
        image: String,
        /// Digest of the layer's blob.
        layer: Digest,
        /// Why; shared with everybody who waited for the layer.
        #[source]
        source: Arc<LayerError>,
    },
    /// A record could not be written, read or removed.
    #[error(transparent)]
    Record(#[from] durable::Error),
    /// A system call on a file of the store failed.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An id that cannot be a directory's name.
    #[error("{0:?} is no snapshot id: use up to 128 letters, digits, '-', '_' and '.', not beginning with '.'")]
    SnapshotId(String),
    /// Another process has the store.
    #[error("the store {} is in use by another process", .0.display())]
    Locked(PathBuf),
}

/// Why a layer is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The registry refused, failed or lied.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// It came, but its content is no layer or not the one that was promised, or it does not fit.
    #[error(transparent)]
    Content(#[from] pipeline::Error),
    /// Its directory or record could not be made.
    #[error(transparent)]
    Record(#[from] durable::Error),
    /// Its directory could not be made.
    #[error(transparent)]
    Store(#[from] Box<Error>),
    /// Nobody waited for it any more.
    #[error("the download was given up")]
    GivenUp,
}

/// Result of an operation of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, without the name of its subject where it begins with it.
fn unnamed(name: &impl Display, error: &impl Display) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{name}: ")).unwrap_or(&text).to_owned()
}

impl From<Error> for LayerError {
    fn from(error: Error) -> Self {
        match error {
            Error::Record(error) => Self::Record(error),
            other => Self::Store(Box::new(other)),
        }
    }
}

impl Error {
    /// True when the cause is a full device or quota.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Record(e) => e.is_no_space(),
            Self::Io { source, .. } => is_no_space(source),
            Self::Layer { source, .. } => match &**source {
                LayerError::Record(e) => e.is_no_space(),
                LayerError::Store(e) => e.is_no_space(),
                LayerError::Content(pipeline::Error::Unpack(crate::unpack::Error::Io { source, .. })) => {
                    is_no_space(source)
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// True when a layer is missing because one below it is.
    pub(crate) fn is_below(&self) -> bool {
        let below = |source: &LayerError| {
            matches!(source, LayerError::Content(pipeline::Error::Unpack(crate::unpack::Error::Below(_))))
        };
        matches!(self, Self::Layer { source, .. } if below(source))
    }

    pub(crate) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}
