//! The image configuration (image-spec, config.md), reduced to what running a container needs.
//!
//! Read leniently, as engines do: an absent field, `null` and an empty value mean the same, unknown fields are
//! ignored. Docker's configurations and OCI's have the same fields here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::digest::Digest;
use crate::media::Platform;

/// How to run an image, as its author set it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Command line, first part.
    pub entrypoint: Vec<String>,
    /// Command line, second part: default arguments.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group`, … ; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// Paths that the image wants as volumes, sorted.
    pub volumes: Vec<String>,
    /// Signal that asks the program to stop, for example `SIGQUIT`; empty means SIGTERM.
    pub stop_signal: String,
    /// Labels, sorted.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp` and so on, sorted.
    pub exposed_ports: Vec<String>,
}

/// The whole document, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) architecture: String,
    pub(crate) os: String,
    pub(crate) variant: String,
    /// RFC 3339, as written.
    pub(crate) created: String,
    pub(crate) config: ImageConfig,
    /// Digests of the uncompressed layers, base first.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    variant: String,
    #[serde(default, deserialize_with = "or_default")]
    created: String,
    #[serde(default, deserialize_with = "or_default")]
    config: RawConfig,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    entrypoint: Words,
    #[serde(default, deserialize_with = "or_default")]
    cmd: Words,
    #[serde(default, deserialize_with = "or_default")]
    user: String,
    #[serde(default, deserialize_with = "or_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Old builders wrote a single word as a plain string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Default for Words {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::Many(words) => words,
            Words::One(word) => vec![word],
        }
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Document {
    pub(crate) fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: (!self.variant.is_empty()).then(|| self.variant.clone()),
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let RawDocument { architecture, os, variant, created, config, rootfs } = serde_json::from_slice(bytes)?;
        let RawConfig { env, entrypoint, cmd, user, working_dir, volumes, stop_signal, labels, exposed_ports } = config;
        Ok(Self {
            architecture,
            os,
            variant,
            created,
            diff_ids: rootfs.diff_ids,
            config: ImageConfig {
                env,
                entrypoint: entrypoint.into(),
                cmd: cmd.into(),
                user,
                working_dir,
                volumes: volumes.into_keys().collect(),
                stop_signal,
                labels,
                exposed_ports: exposed_ports.into_keys().collect(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_document_is_read() {
        let diff = Digest::sha256(b"layer");
        let text = format!(
            r#"{{"architecture":"arm","variant":"v7","os":"linux","created":"2026-01-01T00:00:00Z","author":"x","config":{{
            "Env":["A=1"],"Entrypoint":["/e"],"Cmd":["c"],"User":"1:2","WorkingDir":"/w","Volumes":{{"/v":{{}}}},
            "StopSignal":"SIGQUIT","Labels":{{"k":"v"}},"ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{}}}},
            "rootfs":{{"type":"layers","diff_ids":["{diff}"]}},"history":[]}}"#
        );
        let document = Document::parse(text.as_bytes()).unwrap();
        assert_eq!((document.architecture.as_str(), document.variant.as_str()), ("arm", "v7"));
        assert_eq!(document.diff_ids, [diff]);
        assert_eq!(document.config.volumes, ["/v"]);
        assert_eq!(document.config.exposed_ports, ["80/tcp"]);
        assert_eq!(document.config.stop_signal, "SIGQUIT");
    }

    #[test]
    fn null_means_absent_and_a_string_is_one_word() {
        let text = br#"{"os":null,"config":{"Env":null,"Entrypoint":"sh","Volumes":null,"Labels":null},"rootfs":{"diff_ids":null}}"#;
        let document = Document::parse(text).unwrap();
        assert_eq!(document.config, ImageConfig { entrypoint: vec!["sh".into()], ..ImageConfig::default() });
        assert_eq!(Document::parse(br#"{"config":null,"rootfs":{}}"#).unwrap().config, ImageConfig::default());
    }

    #[test]
    fn a_document_without_rootfs_is_no_image() {
        assert!(Document::parse(b"{}").is_err());
        assert!(Document::parse(br#"{"rootfs":{"diff_ids":["sha256:1"]}}"#).is_err());
    }
}
