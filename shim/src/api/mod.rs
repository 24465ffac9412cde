//! `crisp.v1`: what the CLI asks for and the CRI has no word for.

use tonic::metadata::MetadataMap;

/// `origin` in the record of a pod that `crisp run` made.
pub const ORIGIN: &str = "cli";

/// Who makes a pod: nothing for a CRI client.
pub fn origin(metadata: &MetadataMap) -> String {
    match metadata.get("crisp-origin").and_then(|value| value.to_str().ok()) {
        Some(ORIGIN) => ORIGIN.to_owned(),
        _ => String::new(),
    }
}

/// Whether a list is to show pods that `crisp run` made.
pub fn wants_all(metadata: &MetadataMap) -> bool {
    metadata.get("crisp-all").is_some_and(|value| value == "true")
}
