//! Untag: what `crisp rmi` means.
//!
//! ```text
//! a name    the name goes; with the last one the image, unless a container uses it
//! an id     the image goes with its name; with several names, or used by a container, only by force
//! ```

use crisp_store::{Image, Removed, reference::Reference};

use crate::error::{Error, Result};
use crate::node::Node;

/// What is gone.
#[derive(Debug)]
pub struct Gone {
    pub untagged: Vec<String>,
    pub removed: Option<String>,
}

/// Takes a name or an image away.
pub fn untag(node: &Node, given: &str, force: bool) -> Result<Gone> {
    if given.is_empty() {
        return Err(Error::Invalid("image is empty: name one".to_owned()));
    }
    let image = node.store.find(given)?;
    if let Some(name) = name_of(&image, given) {
        if image.tags.len() <= 1 && !force {
            refuse_used(node, &image)?;
        }
        // Whoever holds an image keeps its layers from being removed.
        drop(image);
        return Ok(match node.store.untag(&name)? {
            Removed::Untagged(name) => Gone { untagged: vec![name], removed: None },
            Removed::Image(id) => Gone { untagged: vec![name], removed: Some(id.to_string()) },
        });
    }
    if !force {
        if image.tags.len() > 1 {
            return Err(Error::Precondition(format!("image {given} has several names: {}", image.tags.join(", "))));
        }
        refuse_used(node, &image)?;
    }
    let (id, untagged) = (image.id.clone(), image.tags.clone());
    drop(image);
    node.store.remove(id.as_str())?;
    Ok(Gone { untagged, removed: Some(id.to_string()) })
}

/// The image's own name that was given, in full; nothing when it was found by its id.
fn name_of(image: &Image, given: &str) -> Option<String> {
    let reference: Reference = given.parse().ok()?;
    let name = match reference.digest() {
        Some(digest) => reference.with_digest(digest.clone()),
        None => reference,
    };
    let name = name.to_string();
    let known = image.tags.contains(&name) || image.repo_digests.contains(&name);
    known.then_some(name)
}

/// An image in use may go, its layers stay for the container; but its name is then gone from lists and statuses, and a
/// person rarely means that.
fn refuse_used(node: &Node, image: &Image) -> Result<()> {
    let id = image.id.to_string();
    match node.registry.containers().iter().map(|container| container.record()).find(|record| record.image_id == id) {
        None => Ok(()),
        Some(record) => Err(Error::Precondition(format!(
            "container {} ({}) uses image {}",
            &record.id[..12.min(record.id.len())],
            record.config.name.name,
            image.tags.first().unwrap_or(&id)
        ))),
    }
}
