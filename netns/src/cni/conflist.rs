//! Network configurations on disk (CNI specification, section 1).
//!
//! ```text
//! /etc/cni/net.d/
//! ├── 10-pods.conflist     a list of plugins; the first valid file in lexical order serves
//! ├── 20-old.conf          one plugin, taken as a list of one
//! ├── 30-any.json          either
//! └── <network name>/      more plugins of that network: `*.conf`, unless its list says `loadOnlyInlinedPlugins`
//! ```
//!
//! The directory is read whenever it is needed, some 50 µs: nothing is cached and nothing watched, so there is no stale
//! copy and no watch that is lost when the directory is removed and made again.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::version::Version;

/// Longer files are refused.
const LONGEST: u64 = 1 << 20;

/// A network, as configured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    /// All versions that both the configuration and this runtime know, lowest first; at least one.
    pub(crate) versions: Vec<Version>,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    /// At least one; each has a `type` that is a file name.
    pub(crate) plugins: Vec<Map<String, Value>>,
}

/// What a configuration directory holds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The network that serves.
    pub(crate) conflist: Option<Conflist>,
    /// Files before it that were refused, with the reason. Without a network: all of them.
    pub(crate) refused: Vec<(PathBuf, String)>,
}

impl Found {
    /// Whether somebody put a configuration there, valid or not.
    pub(crate) fn any(&self) -> bool {
        self.conflist.is_some() || !self.refused.is_empty()
    }

    /// What to tell a person where no network serves.
    pub(crate) fn complaint(&self, dir: &Path) -> String {
        if self.refused.is_empty() {
            return format!("no CNI configuration in {}", dir.display());
        }
        let refused: Vec<String> =
            self.refused.iter().map(|(path, reason)| format!("{}: {reason}", path.display())).collect();
        format!("no valid CNI configuration: {}", refused.join("; "))
    }
}

/// Reads the directory. One that is missing is empty; one that cannot be read counts as a refused file.
pub(crate) fn load(dir: &Path) -> Found {
    let mut found = Found::default();
    let files = match files(dir, &["conf", "conflist", "json"]) {
        Ok(files) => files,
        Err(error) => {
            found.refused.push((dir.to_owned(), error.to_string()));
            return found;
        }
    };
    for path in files {
        match read_settled(&path) {
            Ok(conflist) => {
                found.conflist = Some(conflist);
                break;
            }
            Err(reason) => found.refused.push((path, reason)),
        }
    }
    found
}

/// Reads a file. One that was written this moment may be only half there: it gets a little time, so that another network
/// does not serve in between.
fn read_settled(path: &Path) -> Result<Conflist, String> {
    let mut attempts = 0..5;
    loop {
        let read = read(path);
        let fresh = || {
            let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < Duration::from_secs(1)))
        };
        if read.is_ok() || !fresh() || attempts.next().is_none() {
            return read;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
}

fn read(path: &Path) -> Result<Conflist, String> {
    let mut list = object(path)?;
    if !list.contains_key("plugins") && path.extension().is_none_or(|extension| extension != "conflist") {
        list = wrap(list);
    }
    let name = text(&list, "name")?.ok_or("it has no name")?;
    if !is_name(name) {
        return Err(format!("{name:?} is not a network's name"));
    }
    let versions = versions(&list)?;
    let inlined_only = flag(&list, "loadOnlyInlinedPlugins")?;
    let mut plugins = match list.get("plugins") {
        None | Some(Value::Null) if inlined_only => return Err("loadOnlyInlinedPlugins, and no plugins".to_owned()),
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(plugins)) => plugins.iter().map(plugin).collect::<Result<_, _>>()?,
        Some(_) => return Err("plugins is not a list".to_owned()),
    };
    if !inlined_only && let Some(dir) = path.parent() {
        let dir = dir.join(name);
        for path in files(&dir, &["conf"]).map_err(|error| format!("read {}: {error}", dir.display()))? {
            let read = object(&path).and_then(|fields| plugin(&fields.into()));
            plugins.push(read.map_err(|reason| format!("{}: {reason}", path.display()))?);
        }
    }
    if plugins.is_empty() {
        return Err("it has no plugins".to_owned());
    }
    Ok(Conflist {
        path: path.to_owned(),
        name: name.to_owned(),
        versions,
        disable_check: flag(&list, "disableCheck")?,
        disable_gc: flag(&list, "disableGC")?,
        plugins,
    })
}

/// A configuration of one plugin as a list of one.
fn wrap(plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["name", "cniVersion"] {
        list.extend(plugin.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    list.insert("plugins".to_owned(), vec![Value::Object(plugin)].into());
    list.insert("loadOnlyInlinedPlugins".to_owned(), true.into());
    list
}

fn versions(list: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let single = text(list, "cniVersion")?;
    let mut versions = match list.get("cniVersions") {
        None | Some(Value::Null) => {
            vec![single.filter(|text| !text.is_empty()).map_or(Ok(Version::OLDEST), str::parse)?]
        }
        Some(Value::Array(several)) => {
            let several = several.iter().map(|version| version.as_str().ok_or("cniVersions holds no text"));
            let several: Vec<&str> = several.collect::<Result<_, _>>()?;
            // Those that only newer runtimes know are for newer runtimes.
            several.into_iter().chain(single).filter_map(|version| version.parse().ok()).collect()
        }
        Some(_) => return Err("cniVersions is not a list".to_owned()),
    };
    versions.sort_unstable();
    versions.dedup();
    if versions.is_empty() {
        return Err(format!("none of its cniVersions is spoken: {} to {}", Version::OLDEST, Version::NEWEST));
    }
    Ok(versions)
}

fn plugin(value: &Value) -> Result<Map<String, Value>, String> {
    let Value::Object(plugin) = value else { return Err("a plugin's configuration is not an object".to_owned()) };
    let kind = text(plugin, "type")?.ok_or("a plugin has no type")?;
    if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\\', '\0']) {
        return Err(format!("a plugin's type {kind:?} is not a file name"));
    }
    Ok(plugin.clone())
}

/// The files of a directory with one of the extensions, in lexical order; none where there is no directory.
fn files(dir: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let known = path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known));
        if known && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn object(path: &Path) -> Result<Map<String, Value>, String> {
    let mut text = Vec::new();
    // Not blocking: somebody may have put a FIFO there.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|errno| errno.to_string())?;
    File::from(file).take(LONGEST + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key} is not a text")),
    }
}

/// A truth value; configurations in the field write it as a text, too.
fn flag(fields: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(format!("{key} is neither true nor false")),
    }
}

/// Section 1, `name`.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-'))
}

#[cfg(test)]
#[path = "conflist_tests.rs"]
mod tests;
