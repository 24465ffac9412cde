//! `hosts.toml`: the hosts of one registry, as containerd writes them.
//!
//! ```toml
//! server = "https://registry.example"        # the registry itself, asked last; settings at the top are its
//! [host."https://mirror.example"]            # asked before it, in the order of the file
//! capabilities = ["pull", "resolve"]
//! ca = "ca.pem"                              # files are relative to this one
//! client = [["client.cert", "client.key"]]
//! skip_verify = false
//! override_path = false                      # the API is at the URL's path, not at /v2 below it
//! dial_timeout = "3s"
//! [host."https://mirror.example".header]
//! X-Key = "value"
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use super::{
    Error,
    hosts::{Host, default_scheme, origin, same_registry},
    tls::Tls,
};
use crate::reference::Reference;

/// Why a file is no good: something in it, or a file that it names.
pub(super) enum Bad {
    Here(String),
    There(Error),
}

/// `hosts.toml` as a whole.
#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    root: Entry,
}

/// The settings of one host; at the top of the file, those of `server`.
#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A file with certificate and key, a list of such files, or a list of pairs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    File(String),
    Files(Vec<String>),
    Pairs(Vec<(String, String)>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

pub(super) fn parse(text: &str, dir: &Path, reference: &Reference) -> Result<Vec<Host>, Bad> {
    let file: File = toml::from_str(text).map_err(|e| Bad::Here(e.to_string().trim_end().to_owned()))?;
    let mut hosts = Vec::with_capacity(file.host.len() + 1);
    for (url, value) in file.host {
        let entry: Entry =
            value.try_into().map_err(|e| Bad::Here(format!("host {url:?}: {}", e.to_string().trim_end())))?;
        hosts.push(build(Some(&url), entry, dir, reference)?);
    }
    hosts.push(build(file.server.as_deref(), file.root, dir, reference)?);
    Ok(hosts)
}

/// One host from its URL (none: the registry itself) and its settings.
fn build(url: Option<&str>, entry: Entry, dir: &Path, reference: &Reference) -> Result<Host, Bad> {
    let what = url.map_or_else(|| "server".to_owned(), |url| format!("host {url:?}"));
    let bad = |reason: &str| Bad::Here(format!("{what}: {reason}"));
    for key in entry.unknown.keys() {
        tracing::warn!(file = %dir.join("hosts.toml").display(), host = %what, key, "unknown key ignored");
    }
    let files = |list: Option<OneOrMany>| -> Vec<PathBuf> {
        list.map(OneOrMany::into_vec).unwrap_or_default().iter().map(|file| dir.join(file)).collect()
    };
    let pairs: Vec<(PathBuf, PathBuf)> = match entry.client {
        None => Vec::new(),
        Some(Client::File(file)) => vec![(dir.join(&file), dir.join(&file))],
        Some(Client::Files(files)) => files.iter().map(|file| (dir.join(file), dir.join(file))).collect(),
        Some(Client::Pairs(pairs)) => pairs.iter().map(|(cert, key)| (dir.join(cert), dir.join(key))).collect(),
    };
    let tls = Tls::load(&files(entry.ca), &pairs, entry.skip_verify.unwrap_or(false)).map_err(Bad::There)?;
    let mut host = match url.filter(|url| !url.is_empty()) {
        Some(url) => at(url, entry.override_path, tls).map_err(|reason| bad(&reason))?,
        None => origin(reference, tls),
    };
    if !entry.capabilities.is_empty() {
        (host.resolve, host.pull) = (false, false);
        for capability in &entry.capabilities {
            match capability.to_ascii_lowercase().as_str() {
                "resolve" => host.resolve = true,
                "pull" => host.pull = true,
                "push" => {}
                _ => return Err(bad(&format!("unknown capability {capability:?}: use pull, resolve, push"))),
            }
        }
    }
    for (name, values) in entry.header {
        let name: HeaderName = name.parse().map_err(|_| bad(&format!("{name:?} is not a header name")))?;
        for value in values.into_vec() {
            let mut value: HeaderValue =
                value.parse().map_err(|_| bad(&format!("the value of header {name} has forbidden characters")))?;
            value.set_sensitive(true);
            host.headers.append(name.clone(), value);
        }
    }
    host.connect = match entry.dial_timeout.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let limit = go_duration(text).filter(|limit| !limit.is_zero());
            Some(limit.ok_or_else(|| bad(&format!("dial_timeout {text:?} is not a duration such as \"3s\"")))?)
        }
    };
    host.namespace = (!same_registry(&host.name, reference.registry())).then(|| reference.registry().to_owned());
    Ok(host)
}

/// A host by URL. The API lives under `/v2` of the path, unless `override_path` says that the path is the API's.
fn at(text: &str, override_path: bool, tls: Tls) -> Result<Host, String> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("{}://{text}", default_scheme(text.split('/').next().unwrap_or_default(), &tls))
    };
    let url = Url::parse(&with_scheme).map_err(|e| format!("not a URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("scheme {:?} is not served: use https or http", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "a user in the URL is not served: give credentials with the pull or in docker's config.json".to_owned()
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a URL here has no query".to_owned());
    }
    let name = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => return Err("the URL has no host".to_owned()),
    };
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    Ok(Host {
        base: format!("{}://{name}{path}", url.scheme()),
        name,
        resolve: true,
        pull: true,
        headers: HeaderMap::new(),
        tls,
        connect: None,
        namespace: None,
    })
}

/// A duration as Go writes it: `1m30s`, `500ms`, `1.5s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "5", "s", "1.2.3s", "1y", "-1s", "9e99h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_duration_panic(text in "[0-9.a-zµ]{0,12}|\\PC{0,12}") {
            let _ = go_duration(&text);
        }
    }
}
