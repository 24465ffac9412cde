//! What a pull tells a caller who wants to draw it.

use crate::digest::Digest;

/// Receives the events of one pull. Called from several threads; must not block.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: ProgressEvent);
}

/// An event of a pull. Layers are named by the digest of their blob in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// The registry is asked what the name means.
    Resolving,
    /// The manifest is known: the layers from the base up, each with its compressed size in bytes.
    /// Each of them gets [`ProgressEvent::Layer`] events from here on.
    Resolved {
        /// Digest of the manifest, or of the index that led to it.
        digest: Digest,
        /// Blob digest and compressed size of each layer.
        layers: Vec<(Digest, u64)>,
    },
    /// A layer changed its state or made progress.
    Layer {
        /// Digest of the layer's blob.
        digest: Digest,
        /// The state it is in now.
        state: LayerState,
    },
    /// The image is there.
    Done,
}

/// Where a layer is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerState {
    /// It was there before the pull.
    Present,
    /// It waits for a free place.
    Queued,
    /// It comes from the registry and is unpacked as it comes.
    Downloading {
        /// Compressed bytes so far.
        bytes: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// All of it came; the rest is being unpacked.
    Unpacking,
    /// It is complete, verified and in place.
    Done,
}
