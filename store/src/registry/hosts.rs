//! Which hosts serve a registry, in the order in which they are asked: containerd's `certs.d`.
//!
//! ```text
//!   certs.d/
//!     quay.io/hosts.toml            mirrors and settings of one registry
//!     registry.local_5000_/…        host:5000; registry.local:5000/ is found too
//!     docker.example/ca.crt, client.cert + client.key       docker's way, when there is no hosts.toml
//!     _default/hosts.toml           for registries without a directory of their own
//! ```
//!
//! The hosts of a file come in the order in which they are written, its `server` (or the registry itself) last. A file
//! that cannot be read or understood is an error: guessing would pull from a place that nobody meant.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::header::HeaderMap;

use super::{
    Error,
    hosts_toml::{self, Bad},
    tls::Tls,
};
use crate::reference::{DEFAULT_REGISTRY, DEFAULT_REGISTRY_HOST, Reference};

/// Largest `hosts.toml`, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// One host that may be asked.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// `https://host[:port][/path]/v2`, without a slash at the end.
    pub(super) base: String,
    /// `host`, or `host:port`.
    pub(super) name: String,
    /// Whether it may say what a tag is.
    pub(super) resolve: bool,
    /// Whether it may be asked for content.
    pub(super) pull: bool,
    /// Sent along with each request to this host, and to no other.
    pub(super) headers: HeaderMap,
    pub(super) tls: Tls,
    /// Replaces the general limit.
    pub(super) connect: Option<Duration>,
    /// For a mirror, the registry it stands for: the `ns` parameter.
    pub(super) namespace: Option<String>,
}

/// The hosts for the registry of `reference`, at least one.
pub(super) fn load(config_path: &Path, reference: &Reference) -> Result<Vec<Host>, Error> {
    let registry = reference.registry();
    let Some(dir) = directory(config_path, registry)? else {
        return Ok(vec![origin(reference, Tls::default())]);
    };
    let path = dir.join("hosts.toml");
    match read_bounded(&path) {
        // containerd takes an empty file for none.
        Ok(text) if !text.trim().is_empty() => hosts_toml::parse(&text, &dir, reference).map_err(|e| match e {
            Bad::Here(reason) => Error::Config { path, reason },
            Bad::There(error) => error,
        }),
        Ok(_) => Ok(vec![origin(reference, Tls::from_docker_dir(&dir)?)]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(vec![origin(reference, Tls::from_docker_dir(&dir)?)])
        }
        Err(error) => Err(Error::Config { path, reason: error.to_string() }),
    }
}

/// The first directory there is for `registry`.
fn directory(config_path: &Path, registry: &str) -> Result<Option<PathBuf>, Error> {
    if config_path.as_os_str().is_empty() {
        return Ok(None);
    }
    let underscored = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    for name in underscored.as_deref().into_iter().chain([registry, "_default"]) {
        let path = config_path.join(name);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Ok(Some(path)),
            Ok(_) => return Err(Error::Config { path, reason: "it is not a directory".to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Config { path, reason: error.to_string() }),
        }
    }
    Ok(None)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    fs::read_to_string(path)
}

/// The registry itself, as it is reached without being told how.
pub(super) fn origin(reference: &Reference, tls: Tls) -> Host {
    let name = reference.registry_host().to_owned();
    Host {
        base: format!("{}://{name}/v2", default_scheme(&name, &tls)),
        name,
        resolve: true,
        pull: true,
        headers: HeaderMap::new(),
        tls,
        connect: None,
        namespace: None,
    }
}

/// Plain HTTP where it stays on this machine, unless the port or TLS settings say otherwise.
pub(super) fn default_scheme(host: &str, tls: &Tls) -> &'static str {
    let (name, port) = split_port(host);
    if is_loopback(name) && port != Some("443") && tls.is_default() { "http" } else { "https" }
}

/// Whether `host` (without port) is this machine by definition, not by a name server's word.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|a| a.is_loopback())
}

/// Whether two ways to write a registry (`host`, `host:443`, a URL, docker's aliases) mean the same one.
pub(super) fn same_registry(a: &str, b: &str) -> bool {
    canonical(a) == canonical(b)
}

/// A registry without scheme, path and default port, in lower case.
pub(super) fn canonical(registry: &str) -> String {
    let lower = registry.trim().to_ascii_lowercase();
    let rest = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://")).unwrap_or(&lower);
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.strip_suffix(":443").unwrap_or(host);
    match host {
        "index.docker.io" | DEFAULT_REGISTRY_HOST => DEFAULT_REGISTRY.to_owned(),
        host => host.to_owned(),
    }
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    /// The hosts for `image`, with these files in the configuration directory.
    fn load_with(image: &str, files: &[(&str, &str)]) -> Result<Vec<Host>, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        load(dir.path(), &reference(image))
    }

    fn bases(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|host| host.base.as_str()).collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        for (image, base) in [
            ("busybox", "https://registry-1.docker.io/v2"),
            ("quay.io/a", "https://quay.io/v2"),
            ("localhost:5000/a", "http://localhost:5000/v2"),
            ("localhost:443/a", "https://localhost:443/v2"),
            ("127.0.0.9:1/a", "http://127.0.0.9:1/v2"),
            ("[::1]:5000/a", "http://[::1]:5000/v2"),
            ("10.0.0.1:5000/a", "https://10.0.0.1:5000/v2"),
            ("localhost.example/a", "https://localhost.example/v2"),
        ] {
            assert_eq!(bases(&load_with(image, &[]).unwrap()), [base]);
            assert_eq!(bases(&load(Path::new(""), &reference(image)).unwrap()), [base]);
        }
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://origin.example"
            [host."https://z.example:8443"]
              capabilities = ["pull"]
              dial_timeout = "1.5s"
            [host."http://a.example/sub"]
              [host."http://a.example/sub".header]
              X-Key = ["1", "2"]
              Authorization = "Basic eA=="
            [host."https://m.example/api/mirror"]
              override_path = true
            [host."https://k.example/v2/"]
        "#;
        let hosts = load_with("docker.io/a/b", &[("docker.io/hosts.toml", text)]).unwrap();
        assert_eq!(
            bases(&hosts),
            [
                "https://z.example:8443/v2",
                "http://a.example/sub/v2",
                "https://m.example/api/mirror",
                "https://k.example/v2",
                "https://origin.example/v2"
            ]
        );
        assert_eq!(
            (hosts[0].resolve, hosts[0].pull, hosts[0].connect),
            (false, true, Some(Duration::from_millis(1500)))
        );
        assert_eq!(hosts[1].headers.get_all("x-key").iter().count(), 2);
        assert_eq!(hosts[0].namespace.as_deref(), Some("docker.io"));
        assert!(!format!("{hosts:?}").contains("eA=="));
    }

    #[test]
    fn without_server_the_registry_itself_comes_last_and_is_no_mirror() {
        let text = "skip_verify = true\n[host.\"http://m.example\"]";
        let hosts = load_with("busybox", &[("docker.io/hosts.toml", text)]).unwrap();
        assert_eq!(bases(&hosts), ["http://m.example/v2", "https://registry-1.docker.io/v2"]);
        assert_eq!((hosts[1].namespace.clone(), hosts[1].tls.is_default()), (None, false));
    }

    #[test]
    fn directories_of_ports_and_the_default_one_are_found() {
        let at = |mirror: &str| format!("[host.\"https://{mirror}\"]");
        let (under, colon, default) = (at("u.example"), at("c.example"), at("d.example"));
        let files = [
            ("h:5_5_/x", ""),
            ("h_5_/hosts.toml", &under),
            ("h:6/hosts.toml", &colon),
            ("_default/hosts.toml", &default),
        ];
        for (image, first) in [("h:5/a", "u"), ("h:6/a", "c"), ("h:7/a", "d")] {
            let hosts = load_with(image, &files.map(|(path, text)| (path, text as &str))).unwrap();
            assert_eq!(hosts[0].base, format!("https://{first}.example/v2"));
        }
    }

    #[test]
    fn a_mistake_is_reported_with_its_file() {
        for text in [
            "server = 1",
            "[host.\"ftp://a\"]",
            "[host.\"https://u:p@a\"]",
            "[host.\"https://a\"]\ncapabilities = [\"fly\"]",
            "[host.\"https://a\"]\ndial_timeout = \"soon\"",
            "[host.\"https://a\"]\nca = \"missing.pem\"",
            "[host.\"https://a\".header]\n\"a b\" = \"c\"",
            "= nonsense",
        ] {
            let error = load_with("busybox", &[("docker.io/hosts.toml", text)]).unwrap_err();
            assert!(matches!(&error, Error::Config { .. }), "{text}: {error}");
        }
        let future = load_with("busybox", &[("docker.io/hosts.toml", "[host.\"https://a\"]\nfuture = 1")]);
        assert_eq!(future.unwrap().len(), 2);
    }

    #[test]
    fn one_registry_has_several_spellings() {
        assert!(same_registry("https://index.docker.io/v1/", "docker.io"));
        assert!(same_registry("Quay.io:443", "https://quay.io/v2"));
        assert!(!same_registry("quay.io:80", "quay.io"));
        assert!(!same_registry("docker.io.evil.example", "docker.io"));
    }

    proptest! {
        #[test]
        fn any_file_is_refused_or_gives_hosts(text in "\\PC{0,60}|(\\[host\\.\"[a-z:/.\\[\\]@?#0-9]{0,20}\"\\]\n?){1,3}") {
            if let Ok(hosts) = load_with("busybox", &[("docker.io/hosts.toml", &text)]) {
                prop_assert!(!hosts.is_empty());
                for host in hosts {
                    let url = format!("{}/a/manifests/b", host.base);
                    prop_assert!(Url::parse(&url).is_ok(), "{}", url);
                }
            }
        }
    }
}
