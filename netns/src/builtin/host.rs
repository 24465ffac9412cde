//! What the host must be set to: forwarding, once, and said so in the log.

use std::io;
use std::path::PathBuf;

use super::Error;

/// Why pods can have no IPv6 address in the calling thread's network namespace; `None`: they can.
pub(super) fn ipv6_missing() -> Option<&'static str> {
    if !sysctl("net/ipv6/conf/all/disable_ipv6").exists() {
        return Some("the kernel has no IPv6");
    }
    let disabled = |name| read(name).is_ok_and(|value| value != "0");
    match (disabled("net/ipv6/conf/all/disable_ipv6"), disabled("net/ipv6/conf/default/disable_ipv6")) {
        (true, _) => Some("net.ipv6.conf.all.disable_ipv6 is set"),
        (_, true) => Some("net.ipv6.conf.default.disable_ipv6 is set"),
        _ => None,
    }
}

/// Makes the host forward packets of one family.
///
/// # Errors
/// The parameter can neither be read nor set.
pub(super) fn forward_ipv4() -> Result<(), Error> {
    set("net/ipv4/ip_forward", "1").map(|_| ())
}

/// The same for IPv6. A host that forwards ignores router advertisements and drops the routes it learned from them, unless
/// `accept_ra` is 2 (kernel: Documentation/networking/ip-sysctl.rst). An interface that believes them until now, whether it
/// has heard any yet or not, goes on doing so; those whose names start with `ours` never do.
///
/// # Errors
/// A parameter can neither be read nor set.
pub(super) fn forward_ipv6(ours: &str) -> Result<(), Error> {
    let all = "net/ipv6/conf/all/forwarding";
    if read(all).is_ok_and(|value| value != "0") {
        return Ok(());
    }
    let dir = sysctl("net/ipv6/conf");
    let list = std::fs::read_dir(&dir);
    let list = list.map_err(|source| Error::Sysctl { path: dir, value: "forwarding".to_owned(), source })?;
    for interface in list.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let accept = format!("net/ipv6/conf/{interface}/accept_ra");
        let spared = matches!(interface.as_str(), "all" | "default" | "lo") || interface.starts_with(ours);
        // 0: somebody else than the kernel handles advertisements there, and goes on doing so.
        if !spared && read(&accept).is_ok_and(|value| value == "1") {
            match set(&accept, "2") {
                // The interface went meanwhile.
                Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                done => _ = done?,
            }
        }
    }
    set(all, "1").map(|_| ())
}

/// Makes the host take nothing from the pod behind `link` as its router: with its defaults the kernel believes the router
/// advertisements of anybody on a link (CVE-2020-10749). A link without IPv6 has none at all. To be called before it is up.
///
/// # Errors
/// The parameter cannot be set; a kernel without IPv6 has none.
pub(super) fn distrust(link: &str, ipv6: bool) -> Result<(), Error> {
    let (name, value) = if ipv6 { ("accept_ra", "0") } else { ("disable_ipv6", "1") };
    let path = sysctl(&format!("net/ipv6/conf/{link}/{name}"));
    match std::fs::write(&path, value) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Sysctl { path, value: value.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn set(name: &str, value: &str) -> Result<bool, Error> {
    if read(name).is_ok_and(|current| current == value) {
        return Ok(false);
    }
    let path = sysctl(name);
    std::fs::write(&path, value).map_err(|source| Error::Sysctl { path, value: value.to_owned(), source })?;
    tracing::info!("set {} = {value}, which the built-in pod network needs", name.replace('/', "."));
    Ok(true)
}

fn read(name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(sysctl(name))?.trim().to_owned())
}

/// `/proc/sys/net` is the calling thread's.
fn sysctl(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
