//! The files of a pod that its containers see below `/etc`.
//!
//! ```text
//! <state>/pods/<id>/
//! ├── hosts         the node's with the node's network, else loopback and the pod's own addresses
//! ├── resolv.conf   from the DNS configuration, else a copy of the node's
//! └── hostname
//! ```

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::model::{DnsConfig, NamespaceMode, SandboxConfig};
use crate::node::{make_dir, remove_dir};

/// The host name that the pod's processes see.
pub fn hostname(config: &SandboxConfig) -> Result<String> {
    if !config.hostname.is_empty() && config.namespaces.network != NamespaceMode::Node {
        return Ok(config.hostname.clone());
    }
    let path = Path::new("/proc/sys/kernel/hostname");
    Ok(std::fs::read_to_string(path).map_err(Error::io("read", path))?.trim_end().to_owned())
}

/// Writes what does not depend on the network.
pub fn write(dir: &Path, config: &SandboxConfig, hostname: &str) -> Result<()> {
    make_dir(dir)?;
    let resolv = match &config.dns {
        Some(dns) => resolv_conf(dns),
        None => read_or_empty(Path::new("/etc/resolv.conf"))?,
    };
    put(&dir.join("resolv.conf"), &resolv)?;
    put(&dir.join("hostname"), &format!("{hostname}\n"))?;
    let hosts = match config.namespaces.network {
        NamespaceMode::Node => read_or_empty(Path::new("/etc/hosts"))?,
        _ => hosts(hostname, &[]),
    };
    put(&dir.join("hosts"), &hosts)
}

/// Adds the pod's addresses to its hosts.
pub fn add_addresses(dir: &Path, hostname: &str, ips: &[IpAddr]) -> Result<()> {
    put(&dir.join("hosts"), &hosts(hostname, ips))
}

/// Removes them all.
pub fn remove(dir: &Path) -> Result<()> {
    remove_dir(dir)
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        for ip in ips {
            let _ = writeln!(text, "{ip}\t{hostname}");
        }
    }
    text
}

/// resolv.conf(5); an empty configuration is an empty file.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

fn read_or_empty(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// In a user namespace the files belong to the pod's root.
pub fn own_by_pod_root(dir: &Path, config: &SandboxConfig) -> Result<()> {
    let Some(mapping) = &config.namespaces.user else { return Ok(()) };
    let first = |maps: &[crate::model::IdMapping]| maps.first().map(|map| map.host_id);
    for name in ["hosts", "resolv.conf", "hostname"] {
        let path = dir.join(name);
        std::os::unix::fs::chown(&path, first(&mapping.uids), first(&mapping.gids))
            .map_err(Error::io("change the owner of", &path))?;
    }
    Ok(())
}

/// In place: containers have the file itself mounted.
fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io("write", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).map_err(Error::io("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_searches_then_servers_then_options_and_may_be_empty() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a.b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }

    #[test]
    fn hosts_name_the_pod_by_each_address() {
        let text = hosts("web", &["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.1.2.3\tweb\nfd00::3\tweb\n"));
    }
}
