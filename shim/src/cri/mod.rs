//! The CRI: two services whose methods take a request apart, call one function, and put an answer together.

mod convert;
mod image_service;
mod info;
mod runtime_service;
mod stream;

use tonic::Code;

pub use convert::credentials;
pub use image_service::Images;
pub use runtime_service::Runtime;

/// Whether the store does not know the image.
pub fn is_unknown_image(error: &crisp_store::Error) -> bool {
    matches!(error, crisp_store::Error::NotFound(_))
}

/// The code of a store's error; part of the one map in `crate::error`.
pub fn store_code(error: &crisp_store::Error) -> Code {
    use crisp_store::{Error, LayerError};
    match error {
        Error::NotFound(_) => Code::NotFound,
        Error::Ambiguous { .. } | Error::Reference(_) | Error::SnapshotId(_) => Code::InvalidArgument,
        Error::Registry { source, .. } => registry_code(source),
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::Layer { source, .. } if error.is_no_space() => {
            let _ = source;
            Code::ResourceExhausted
        }
        Error::Layer { source, .. } => match &**source {
            LayerError::Registry(error) => registry_code(error),
            _ => Code::Internal,
        },
        _ if error.is_no_space() => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// The word, with a colon, by which kubelet knows that a registry could not be reached or did not serve.
pub fn kubelet_word(error: &crisp_store::Error) -> &'static str {
    use crisp_store::{Error, LayerError, registry::Kind};
    let kind = match error {
        Error::Registry { source, .. } => Some(source.kind()),
        Error::Layer { source, .. } => match &**source {
            LayerError::Registry(error) => Some(error.kind()),
            _ => None,
        },
        _ => None,
    };
    if kind == Some(Kind::Unavailable) { "RegistryUnavailable: " } else { "" }
}

fn registry_code(error: &crisp_store::registry::Error) -> Code {
    use crisp_store::registry::Kind;
    match error.kind() {
        Kind::NotFound => Code::NotFound,
        Kind::Unauthorized => Code::PermissionDenied,
        Kind::RateLimited => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Invalid | Kind::Config => Code::FailedPrecondition,
        Kind::PlatformMismatch => Code::NotFound,
    }
}
