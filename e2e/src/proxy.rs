//! Keeps HTTP to loopback from a proxy: the registries here are ours, and clients ask a proxy from the environment even
//! for them unless `no_proxy` names the address.

use crate::fail::Res;
use std::{env, os::unix::process::CommandExt, process::Command};

const PROXIES: [&str; 6] = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// Some programs read one, some the other, some both.
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Where a proxy is set and loopback is not exempt from it, executes this program again with the exception: a process
/// cannot change its own environment safely, and all that it starts shall have it too.
pub(crate) fn spare_loopback() -> Res {
    let var = |name: &str| env::var(name).unwrap_or_default();
    if PROXIES.iter().all(|name| var(name).is_empty()) {
        return Ok(());
    }
    let Some(list) = with_loopback(&EXCEPTIONS.map(var)) else { return Ok(()) };
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).envs(EXCEPTIONS.map(|name| (name, &list)));
    Err(again.exec().into())
}

/// The lists in one, with loopback added; `None` if it is in each that says anything.
fn with_loopback(lists: &[String]) -> Option<String> {
    let lists: Vec<Vec<&str>> = lists
        .iter()
        .map(|list| list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect())
        .filter(|list: &Vec<_>| !list.is_empty())
        .collect();
    if !lists.is_empty() && lists.iter().all(|list| list.contains(&"127.0.0.1") || list.contains(&"*")) {
        return None;
    }
    let mut all: Vec<&str> = Vec::new();
    for entry in lists.into_iter().flatten().chain(["127.0.0.1", "localhost"]) {
        if !all.contains(&entry) {
            all.push(entry);
        }
    }
    Some(all.join(","))
}

#[cfg(test)]
mod tests {
    use super::with_loopback;

    #[test]
    fn loopback_is_added_once_and_nothing_is_lost() {
        let with = |a: &str, b: &str| with_loopback(&[a.into(), b.into()]);
        assert_eq!(with("", ""), Some("127.0.0.1,localhost".into()));
        assert_eq!(with("a.example, .b", ""), Some("a.example,.b,127.0.0.1,localhost".into()));
        assert_eq!(with("127.0.0.1", "x"), Some("127.0.0.1,x,localhost".into()));
        for there in ["127.0.0.1", "x, 127.0.0.1,y", "*"] {
            assert_eq!((with(there, ""), with(there, there)), (None, None));
        }
        let again = with("x", "y");
        assert_eq!(again.and_then(|list| with(&list, &list)), None);
    }
}
