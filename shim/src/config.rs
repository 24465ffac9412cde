//! The configuration: read from `/etc/crisp/config.toml` and `/etc/crisp/config.toml.d/*.toml`, checked, resolved.
//!
//! No file is needed. Files are merged in order, later keys win. Every mistake in them is reported at once, an unknown
//! key with the known ones beside it; with a mistake nothing starts.

mod read;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use read::ConfigError;

/// Where the configuration is unless `--config` names another file.
pub const DEFAULT_FILE: &str = "/etc/crisp/config.toml";
/// The configuration as it stands in the repository: every key with its default, commented.
pub const DEFAULT_TEXT: &str = include_str!("../../deploy/config.toml");

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The runtime handler for pods that name none.
    pub default_runtime: String,
    /// OCI runtimes by handler name.
    pub runtimes: BTreeMap<String, RuntimeConfig>,
    /// Pod network.
    pub network: NetworkConfig,
    /// CNI.
    pub cni: CniConfig,
    /// Registries.
    pub registry: RegistryConfig,
    /// Images.
    pub images: ImagesConfig,
    /// Log of the server itself.
    pub log: LogConfig,
}

/// An OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeConfig {
    /// Absolute, or a name that is looked up in PATH.
    pub path: PathBuf,
    /// How long one call of it may take before it is killed.
    pub timeout: Duration,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkConfig {
    /// Which network serves new pods.
    pub mode: crisp_netns::Mode,
    /// Ranges of the built-in network.
    pub subnets: Vec<String>,
}

/// `[cni]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CniConfig {
    /// Where network configurations are.
    pub conf_dir: PathBuf,
    /// Where plugins are.
    pub bin_dirs: Vec<PathBuf>,
    /// How long one plugin may run.
    pub timeout: Duration,
}

/// `[registry]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistryConfig {
    /// `certs.d`: a directory a registry host, each with a `hosts.toml`.
    pub config_path: PathBuf,
    /// Docker's `config.json`: credentials for pulls that bring none.
    pub docker_config: PathBuf,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImagesConfig {
    /// Names of images that kubelet is told not to collect.
    pub pinned: Vec<String>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogConfig {
    /// A level, or filters by module.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        let runtime = |path: &str| RuntimeConfig { path: path.into(), timeout: Duration::from_secs(120) };
        Self {
            default_runtime: "runc".to_owned(),
            runtimes: BTreeMap::from([("runc".to_owned(), runtime("runc"))]),
            network: NetworkConfig { mode: crisp_netns::Mode::Auto, subnets: Vec::new() },
            cni: CniConfig {
                conf_dir: "/etc/cni/net.d".into(),
                bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
                timeout: Duration::from_secs(300),
            },
            registry: RegistryConfig {
                config_path: "/etc/crisp/certs.d".into(),
                docker_config: "/root/.docker/config.json".into(),
            },
            images: ImagesConfig { pinned: Vec::new() },
            log: LogConfig { level: "info".to_owned() },
        }
    }
}

impl Config {
    /// Reads `file` and the files of `<file>.d`. A missing file is an error only when it was asked for by name.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        let main = file.unwrap_or(Path::new(DEFAULT_FILE));
        if file.is_some() || main.exists() {
            files.push(main.to_owned());
        }
        let mut dir = main.as_os_str().to_owned();
        dir.push(".d");
        files.extend(drop_ins(Path::new(&dir))?);
        read::merged(&files)
    }
}

/// `*.toml` in the order of their names.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::one(format!("{}: {error}", dir.display()))),
        Ok(entries) => entries,
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

/// One line a mistake, for a person.
fn list(mistakes: &[String]) -> String {
    let mut text = String::new();
    for mistake in mistakes {
        let _ = write!(text, "\n  {mistake}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file))
    }

    #[test]
    fn the_commented_file_says_what_the_defaults_are() {
        assert_eq!(load(DEFAULT_TEXT).unwrap(), Config::default());
        let live: String = DEFAULT_TEXT
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') && key.contains('=') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .filter(|line| !line.contains("crun") && !line.contains("youki") && !line.starts_with("subnets"))
            .collect();
        assert_eq!(load(&live).unwrap(), Config::default());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "default_runtime = 3\n[network]\nmode = \"bridge\"\nsubnet = []\nsubnets = [\"10.0.0.0/99\"]\n[runtimes.x]\npath = \"x y\"\nfoo = 1\n[nope]\n";
        let text = load(text).unwrap_err().to_string();
        for part in ["default_runtime", "\"bridge\"", "network.subnet", "10.0.0.0/99", "runtimes.x.foo", "nope"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn drop_ins_win_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[log]\nlevel = \"warn\"\n[network]\nmode = \"cni\"").unwrap();
        std::fs::create_dir(dir.path().join("c.toml.d")).unwrap();
        std::fs::write(dir.path().join("c.toml.d/2.toml"), "[log]\nlevel = \"debug\"").unwrap();
        std::fs::write(dir.path().join("c.toml.d/1.toml"), "[log]\nlevel = \"trace\"").unwrap();
        let config = Config::load(Some(&file)).unwrap();
        assert_eq!((config.log.level.as_str(), config.network.mode), ("debug", crisp_netns::Mode::Cni));
    }
}
