//! What an OCI runtime can do, as it says itself (`<runtime> features`, runtime-spec `features.md`).
//!
//! Runtimes older than the verb (runc before 1.1), or without it, are taken for what every runtime of that age could do.
//! Unknown members are skipped, missing ones are "not said"; what the specification lets be null may be null.

use std::collections::BTreeSet;

use serde::Deserialize;

/// A larger answer is refused: runc's is 7 kB.
const MAX_LEN: usize = 1 << 20;

/// A runtime's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Its own words on its version, if any (`org.opencontainers.runc.version`).
    pub version: Option<String>,
    /// Mount options that it knows; `None`: not said.
    pub mount_options: Option<BTreeSet<String>>,
    /// Namespaces that it knows; `None`: not said.
    pub namespaces: Option<BTreeSet<String>>,
    /// Whether it was built with seccomp; `None`: not said.
    pub seccomp: Option<bool>,
    /// Whether it knows AppArmor.
    pub apparmor: bool,
    /// Whether it knows SELinux.
    pub selinux: bool,
    /// cgroup v1; `None`: not said.
    pub cgroup_v1: Option<bool>,
    /// cgroup v2; `None`: not said.
    pub cgroup_v2: Option<bool>,
    /// The systemd cgroup driver.
    pub cgroup_systemd: bool,
    /// Id mappings of mounts (runtime-spec 1.1).
    pub idmap: bool,
    /// Whether a user namespace to join needs its mapping beside its path. runc before 1.2 refuses a path without one;
    /// from 1.2 on it reads the mapping from the namespace and warns that both will be an error. Those that answer in the
    /// words of runtime-spec 1.1 are taken for new ones.
    pub mapping_beside_path: bool,
}

/// An answer that is none.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// Not JSON, or not the JSON of the specification.
    #[error("the runtime's features are not the JSON of the OCI specification")]
    Json(#[from] serde_json::Error),
    /// Too much to be true.
    #[error("the runtime's features take {0} bytes, more than {MAX_LEN}")]
    TooLarge(usize),
}

impl Default for Features {
    /// A runtime that says nothing.
    fn default() -> Self {
        Self {
            version: None,
            mount_options: None,
            namespaces: None,
            seccomp: None,
            apparmor: false,
            selinux: false,
            cgroup_v1: None,
            cgroup_v2: None,
            cgroup_systemd: false,
            idmap: false,
            mapping_beside_path: true,
        }
    }
}

impl Features {
    /// Reads what the runtime printed.
    ///
    /// # Errors
    /// It is no answer. A runtime without the verb exits with an error instead: take [`Features::default`] then.
    pub fn parse(json: &[u8]) -> Result<Self, FeaturesError> {
        if json.len() > MAX_LEN {
            return Err(FeaturesError::TooLarge(json.len()));
        }
        let raw: Raw = serde_json::from_slice(json)?;
        let linux = raw.linux.unwrap_or_default();
        let cgroup = linux.cgroup.unwrap_or_default();
        let enabled = |switch: Option<Switch>| switch.and_then(|switch| switch.enabled);
        let annotations = raw.annotations.unwrap_or_default();
        let mapping_beside_path = linux.mount_extensions.is_none();
        Ok(Self {
            version: annotations
                .into_iter()
                .find(|(name, _)| name.starts_with("org.opencontainers.") && name.ends_with(".version"))
                .map(|(_, version)| version),
            mount_options: raw.mount_options,
            namespaces: linux.namespaces,
            seccomp: enabled(linux.seccomp),
            apparmor: enabled(linux.apparmor) == Some(true),
            selinux: enabled(linux.selinux) == Some(true),
            cgroup_v1: cgroup.v1,
            cgroup_v2: cgroup.v2,
            cgroup_systemd: cgroup.systemd == Some(true),
            idmap: enabled(linux.mount_extensions.and_then(|extensions| extensions.idmap)) == Some(true),
            mapping_beside_path,
        })
    }

    /// Recursive read-only mounts: the option `rro`.
    pub fn recursive_read_only(&self) -> bool {
        self.mount_options.as_ref().is_some_and(|options| options.contains("rro"))
    }

    /// Whether it knows a namespace; all runtimes know the six old ones.
    pub fn has_namespace(&self, name: &str) -> bool {
        match &self.namespaces {
            Some(names) => names.contains(name),
            None => name != "cgroup" && name != "time",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    mount_options: Option<BTreeSet<String>>,
    linux: Option<Linux>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Option<BTreeSet<String>>,
    cgroup: Option<Cgroup>,
    seccomp: Option<Switch>,
    apparmor: Option<Switch>,
    selinux: Option<Switch>,
    mount_extensions: Option<MountExtensions>,
}

#[derive(Default, Deserialize)]
struct Cgroup {
    v1: Option<bool>,
    v2: Option<bool>,
    systemd: Option<bool>,
}

#[derive(Deserialize)]
struct Switch {
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct MountExtensions {
    idmap: Option<Switch>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_is_understood() {
        let features = Features::parse(
            br#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.3.0","mountOptions":["ro","rro"],"new":{"a":[1]},
            "linux":{"namespaces":["cgroup","user"],"cgroup":{"v1":true,"v2":true,"systemd":true,"rdma":true},
            "seccomp":{"enabled":true,"actions":["SCMP_ACT_ALLOW"]},"apparmor":{"enabled":false},
            "mountExtensions":{"idmap":{"enabled":true}}},
            "annotations":{"org.opencontainers.runc.commit":"x","org.opencontainers.runc.version":"1.5.2"}}"#,
        )
        .unwrap();
        assert!(features.recursive_read_only() && features.idmap && features.cgroup_systemd);
        assert!(!features.mapping_beside_path);
        assert_eq!((features.seccomp, features.apparmor, features.selinux), (Some(true), false, false));
        assert_eq!(features.version.as_deref(), Some("1.5.2"));
        assert!(features.has_namespace("cgroup") && !features.has_namespace("pid"));
    }

    #[test]
    fn what_is_not_said_is_not_taken_for_there() {
        for answer in ["{}", r#"{"linux":null,"mountOptions":null,"annotations":null}"#] {
            let features = Features::parse(answer.as_bytes()).unwrap();
            assert_eq!(features, Features::default());
            assert!(!features.recursive_read_only() && !features.idmap && features.mapping_beside_path);
            assert!(features.has_namespace("pid") && !features.has_namespace("cgroup"));
        }
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(matches!(Features::parse(b"No help topic for 'features'"), Err(FeaturesError::Json(_))));
        assert!(matches!(Features::parse(b"[]"), Err(FeaturesError::Json(_))));
        assert!(matches!(Features::parse(&vec![b' '; MAX_LEN + 1]), Err(FeaturesError::TooLarge(_))));
    }
}
