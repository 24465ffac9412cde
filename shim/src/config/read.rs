//! From TOML tables to a [`Config`], collecting mistakes instead of stopping at the first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::{Config, RuntimeConfig, list};

/// All that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has mistakes:{}", list(.mistakes))]
pub struct ConfigError {
    /// One sentence each.
    pub mistakes: Vec<String>,
}

impl ConfigError {
    pub(super) fn one(mistake: String) -> Self {
        Self { mistakes: vec![mistake] }
    }
}

/// Reads and merges the files, and checks what comes out.
pub(super) fn merged(files: &[PathBuf]) -> Result<Config, ConfigError> {
    let mut mistakes = Vec::new();
    let mut whole = Table::new();
    for file in files {
        match read(file) {
            Ok(table) => merge(&mut whole, table),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    let config = resolve(whole, &mut mistakes);
    if mistakes.is_empty() { Ok(config) } else { Err(ConfigError { mistakes }) }
}

fn read(file: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    text.parse().map_err(|error: toml::de::Error| format!("{}: {}", file.display(), error.to_string().trim_end()))
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn resolve(mut table: Table, mistakes: &mut Vec<String>) -> Config {
    let mut config = Config::default();
    let mut top = Section { name: String::new(), table: std::mem::take(&mut table), known: Vec::new(), mistakes };
    top.text("default_runtime", &mut config.default_runtime);
    for (name, value) in top.section("runtimes").map(|section| section.table).unwrap_or_default() {
        let Value::Table(table) = value else {
            top.mistakes.push(format!("runtimes.{name} must be a table: [runtimes.{name}]"));
            continue;
        };
        let mut runtime = config
            .runtimes
            .get(&name)
            .cloned()
            .unwrap_or_else(|| RuntimeConfig { path: PathBuf::from(&name), timeout: Duration::from_secs(120) });
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) || name.starts_with('.') {
            top.mistakes.push(format!("runtimes.{name}: a handler's name has letters, digits, '-', '_' and '.'"));
        }
        let mut section = top.sub(format!("runtimes.{name}"), table);
        section.path("path", &mut runtime.path);
        section.seconds("timeout_seconds", &mut runtime.timeout);
        section.end();
        config.runtimes.insert(name, runtime);
    }
    if let Some(mut section) = top.section("network") {
        section.parsed("mode", &mut config.network.mode, "\"auto\", \"builtin\" or \"cni\"", |text| match text {
            "auto" => Some(crisp_netns::Mode::Auto),
            "builtin" => Some(crisp_netns::Mode::Builtin),
            "cni" => Some(crisp_netns::Mode::Cni),
            _ => None,
        });
        section.texts("subnets", &mut config.network.subnets, |text| {
            text.parse::<crisp_netns::Subnet>().map(drop).map_err(|error| error.to_string())
        });
        section.end();
    }
    if let Some(mut section) = top.section("cni") {
        section.path("conf_dir", &mut config.cni.conf_dir);
        let mut dirs = Vec::new();
        section.texts("bin_dirs", &mut dirs, absolute);
        if !dirs.is_empty() {
            config.cni.bin_dirs = dirs.into_iter().map(PathBuf::from).collect();
        }
        section.seconds("timeout_seconds", &mut config.cni.timeout);
        section.end();
    }
    if let Some(mut section) = top.section("registry") {
        section.path("config_path", &mut config.registry.config_path);
        section.path("docker_config", &mut config.registry.docker_config);
        section.end();
    }
    if let Some(mut section) = top.section("images") {
        section.texts("pinned", &mut config.images.pinned, |name| {
            crisp_store::pin_pattern(name).map(drop).map_err(|error| error.to_string())
        });
        section.end();
    }
    if let Some(mut section) = top.section("log") {
        section.text("level", &mut config.log.level);
        section.end();
    }
    top.end();
    if !config.runtimes.contains_key(&config.default_runtime) {
        let known: Vec<&str> = config.runtimes.keys().map(String::as_str).collect();
        mistakes.push(format!(
            "default_runtime is {:?}, and there is no [runtimes.{}]; there is: {}",
            config.default_runtime,
            config.default_runtime,
            known.join(", ")
        ));
    }
    if let Err(error) = config.log.level.parse::<tracing_subscriber::EnvFilter>() {
        mistakes.push(format!("log.level {:?}: {error}", config.log.level));
    }
    config
}

fn absolute(text: &str) -> Result<(), String> {
    if text.starts_with('/') { Ok(()) } else { Err("must be an absolute path".to_owned()) }
}

/// A table whose keys are taken out one by one; what is left at the end is unknown.
struct Section<'a> {
    name: String,
    table: Table,
    known: Vec<&'static str>,
    mistakes: &'a mut Vec<String>,
}

impl Section<'_> {
    fn key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn wrong(&mut self, key: &str, value: &Value, want: &str) {
        let name = self.key(key);
        self.mistakes.push(format!("{name} = {value}: must be {want}"));
    }

    fn sub(&mut self, name: String, table: Table) -> Section<'_> {
        Section { name, table, known: Vec::new(), mistakes: self.mistakes }
    }

    fn section(&mut self, key: &'static str) -> Option<Section<'_>> {
        match self.take(key)? {
            Value::Table(table) => Some(self.sub(self.key(key), table)),
            other => {
                self.wrong(key, &other, &format!("a table: [{key}]"));
                None
            }
        }
    }

    fn text(&mut self, key: &'static str, into: &mut String) {
        self.parsed(key, into, "a text", |text| Some(text.to_owned()));
    }

    fn parsed<T>(&mut self, key: &'static str, into: &mut T, want: &str, parse: impl Fn(&str) -> Option<T>) {
        match self.take(key) {
            None => {}
            Some(value) => match value.as_str().and_then(parse) {
                Some(parsed) => *into = parsed,
                None => self.wrong(key, &value, want),
            },
        }
    }

    /// An absolute path, or a single name where the default is one.
    fn path(&mut self, key: &'static str, into: &mut PathBuf) {
        let name_will_do = !into.is_absolute();
        let want = if name_will_do { "an absolute path, or a name without '/'" } else { "an absolute path" };
        self.parsed(key, into, want, |text| {
            let named = name_will_do && !text.is_empty() && !text.contains('/');
            (text.starts_with('/') || named).then(|| PathBuf::from(text))
        });
    }

    fn seconds(&mut self, key: &'static str, into: &mut Duration) {
        match self.take(key) {
            None => {}
            Some(Value::Integer(n)) if (1..=86_400).contains(&n) => *into = Duration::from_secs(n.unsigned_abs()),
            Some(other) => self.wrong(key, &other, "a number of seconds, 1 to 86400"),
        }
    }

    fn texts(&mut self, key: &'static str, into: &mut Vec<String>, check: impl Fn(&str) -> Result<(), String>) {
        let Some(value) = self.take(key) else { return };
        let Value::Array(items) = value else {
            self.wrong(key, &value, "a list of texts");
            return;
        };
        into.clear();
        for item in items {
            match item.as_str().map(|text| (text, check(text))) {
                Some((text, Ok(()))) => into.push(text.to_owned()),
                Some((text, Err(why))) => self.mistakes.push(format!("{}: {text:?}: {why}", self.key(key))),
                None => self.wrong(key, &item, "a list of texts"),
            }
        }
    }

    fn end(self) {
        for unknown in self.table.keys() {
            self.mistakes.push(format!("{} is unknown; known here: {}", self.key(unknown), self.known.join(", ")));
        }
    }
}
