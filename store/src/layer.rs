//! Layers: unpacked directories that snapshots stack.
//!
//! A layer is found by the chain that it ends (image-spec, config.md, "Layer ChainID") or, when it took nothing from the
//! layers below (see [`crate::unpack`]), by its diff id alone: then one directory serves every image that has it
//! anywhere. Whoever holds an `Arc<Layer>` keeps the directory; [`crate::sweep`] removes what only the index holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::durable::Record;

/// What `layers/<short id>/record.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// The chain that it was unpacked on, itself at the end.
    pub(crate) chain_id: Digest,
    /// It holds something from the layers below, so that only this chain can use it.
    pub(crate) bound: bool,
    /// Its root directory was listed: a snapshot takes root's attributes from the topmost such layer.
    pub(crate) root_listed: bool,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// The boot in which it was written.
    pub(crate) boot_id: String,
    /// Its files are known to be on the device. Until then it counts only in the boot that wrote it.
    pub(crate) durable: bool,
}

impl Record for LayerRecord {
    const KIND: &'static str = "layer";
    const VERSION: u32 = 1;
}

/// An unpacked layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Its directory below `layers/`.
    pub(crate) short: String,
    pub(crate) record: LayerRecord,
    pub(crate) durable: AtomicBool,
}

impl Layer {
    pub(crate) fn new(short: String, record: LayerRecord) -> Self {
        let durable = AtomicBool::new(record.durable);
        Self { short, record, durable }
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }
}

/// All layers that are in place.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    by_short: HashMap<String, Arc<Layer>>,
    by_chain: HashMap<Digest, Arc<Layer>>,
    by_diff: HashMap<Digest, Arc<Layer>>,
}

impl Layers {
    /// The layer for a place in an image.
    pub(crate) fn find(&self, chain_id: &Digest, diff_id: &Digest) -> Option<&Arc<Layer>> {
        self.by_diff.get(diff_id).or_else(|| self.by_chain.get(chain_id))
    }

    pub(crate) fn get(&self, short: &str) -> Option<&Arc<Layer>> {
        self.by_short.get(short)
    }

    /// Adds a layer; false, and nothing done, if there is one that serves as well.
    pub(crate) fn insert(&mut self, layer: Arc<Layer>) -> bool {
        if self.find(&layer.record.chain_id, &layer.record.diff_id).is_some() {
            return false;
        }
        if layer.record.bound {
            self.by_chain.insert(layer.record.chain_id.clone(), layer.clone());
        } else {
            self.by_diff.insert(layer.record.diff_id.clone(), layer.clone());
        }
        self.by_short.insert(layer.short.clone(), layer);
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.by_short.values()
    }

    /// Takes out the layers that nobody else holds.
    pub(crate) fn take_unused(&mut self) -> Vec<Arc<Layer>> {
        // Each is held twice here: by its short id and by one of the digests. More can only be added by a holder, or
        // under the lock that the caller has.
        let unused: Vec<_> = self.by_short.values().filter(|layer| Arc::strong_count(layer) == 2).cloned().collect();
        for layer in &unused {
            self.by_short.remove(&layer.short);
            let (map, key) = match layer.record.bound {
                true => (&mut self.by_chain, &layer.record.chain_id),
                false => (&mut self.by_diff, &layer.record.diff_id),
            };
            map.remove(key);
        }
        unused
    }
}

/// The chain ids of a stack of layers, base first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, bound: bool) -> Arc<Layer> {
        let digest = Digest::sha256(name.as_bytes());
        Arc::new(Layer::new(
            name.into(),
            LayerRecord {
                diff_id: digest.clone(),
                chain_id: Digest::sha256(digest.as_str().as_bytes()),
                bound,
                root_listed: false,
                bytes: 1,
                inodes: 1,
                boot_id: String::new(),
                durable: false,
            },
        ))
    }

    #[test]
    fn a_free_layer_serves_every_chain_and_a_bound_one_its_own() {
        let (free, bound) = (layer("free", false), layer("bound", true));
        let mut layers = Layers::default();
        assert!(layers.insert(free.clone()) && layers.insert(bound.clone()));
        assert!(!layers.insert(layer("free", false)), "one is enough");
        let other = Digest::sha256(b"another chain");
        assert!(layers.find(&other, &free.record.diff_id).is_some());
        assert!(layers.find(&other, &bound.record.diff_id).is_none());
        assert!(layers.find(&bound.record.chain_id, &bound.record.diff_id).is_some());
    }

    #[test]
    fn only_what_nobody_holds_is_taken() {
        let (held, unused) = (layer("held", false), layer("unused", true));
        let mut layers = Layers::default();
        assert!(layers.insert(held.clone()) && layers.insert(unused));
        let taken = layers.take_unused();
        assert_eq!(taken.iter().map(|layer| layer.short.as_str()).collect::<Vec<_>>(), ["unused"]);
        assert_eq!(layers.iter().count(), 1);
        assert!(layers.take_unused().is_empty());
    }

    #[test]
    fn chains_as_the_specification_defines_them() {
        let [a, b]: [Digest; 2] = ["a", "b"].map(|text| Digest::sha256(text.as_bytes()));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, [a.clone(), Digest::sha256(format!("{a} {b}").as_bytes())]);
    }
}
