//! Capabilities: names, sets, and which ones a container gets.
//!
//! Kubernetes' rule: the runtime's default list, plus what is added, minus what is dropped; `ALL` counts before single
//! names, in any letter case, with or without `CAP_` (`SecurityContext.capabilities`).

use super::SpecError;
use crate::model::Security;

/// capabilities(7), by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nothing is said: the list that all runtimes of the field agree on.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities: bit N is capability N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const NONE: Self = Self(0);
    /// All that have a name here.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// Of a mask as in `/proc/<pid>/status`; those without a name are left out.
    pub fn from_mask(mask: u64) -> Self {
        Self(mask & Self::ALL.0)
    }

    /// The one of this name, which may lack `CAP_` and be in any case.
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == bare).map(|bit| Self(1 << bit))
    }

    /// In both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// In one of both.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In this one only.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are in it.
    pub fn contains(self, other: Self) -> bool {
        self.and(other) == other
    }

    /// The kernel's names.
    pub fn names(self) -> Vec<String> {
        (0..NAMES.len()).filter(|bit| self.0 & (1 << bit) != 0).map(|bit| format!("CAP_{}", NAMES[bit])).collect()
    }
}

/// What the container gets. `host` is what this process itself can give: what is asked for beyond that is left out, since
/// a container that does not use it works without.
///
/// # Errors
/// A name that is no capability.
pub fn granted(security: &Security, host: CapSet) -> Result<CapSet, SpecError> {
    let add = Request::parse(&security.add_capabilities, "add")?;
    let drop = Request::parse(&security.drop_capabilities, "drop")?;
    if security.privileged {
        return Ok(host);
    }
    let mut set = DEFAULT.iter().filter_map(|name| CapSet::named(name)).fold(CapSet::NONE, CapSet::or);
    if add.all {
        set = CapSet::ALL;
    }
    if drop.all {
        set = CapSet::NONE;
    }
    Ok(set.or(add.single).without(drop.single).and(host))
}

struct Request {
    all: bool,
    single: CapSet,
}

impl Request {
    fn parse(names: &[String], list: &'static str) -> Result<Self, SpecError> {
        let mut request = Self { all: false, single: CapSet::NONE };
        for name in names {
            if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") {
                request.all = true;
            } else {
                let capability =
                    CapSet::named(name).ok_or_else(|| SpecError::UnknownCapability { name: name.clone(), list })?;
                request.single = request.single.or(capability);
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Result<Vec<String>, SpecError> {
        on(add, drop, CapSet::ALL)
    }

    fn on(add: &[&str], drop: &[&str], host: CapSet) -> Result<Vec<String>, SpecError> {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let security = Security { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() };
        granted(&security, host).map(CapSet::names)
    }

    #[test]
    fn without_a_word_the_usual_fourteen() {
        let names = of(&[], &[]).unwrap();
        assert_eq!(names.len(), 14);
        assert!(names.contains(&"CAP_NET_RAW".to_owned()) && !names.contains(&"CAP_SYS_ADMIN".to_owned()));
    }

    #[test]
    fn names_come_in_any_case_with_or_without_prefix() {
        for name in ["SYS_ADMIN", "sys_admin", "CAP_SYS_ADMIN", "cap_Sys_Admin"] {
            assert!(of(&[name], &[]).unwrap().contains(&"CAP_SYS_ADMIN".to_owned()), "{name}");
        }
    }

    #[test]
    fn all_counts_before_single_names() {
        assert_eq!(of(&["NET_ADMIN"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert_eq!(of(&["ALL"], &["CHOWN"]).unwrap().len(), 40);
        assert_eq!(of(&["ALL", "KILL"], &["all"]).unwrap(), ["CAP_KILL"]);
        assert_eq!(of(&["KILL"], &["ALL", "KILL"]).unwrap(), [""; 0], "a single drop is the last word");
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let error = of(&["SYS_ADMINISTRATOR"], &[]).unwrap_err().to_string();
        assert_eq!(error, "capability to add: SYS_ADMINISTRATOR is no capability");
        assert!(of(&[], &["CAP_"]).is_err() && of(&[""], &[]).is_err());
    }

    #[test]
    fn nothing_is_given_that_the_host_does_not_have() {
        let host = CapSet::ALL.without(CapSet::named("SYS_RESOURCE").unwrap());
        assert_eq!(on(&["ALL"], &[], host).unwrap().len(), 40);
        assert_eq!(on(&["SYS_RESOURCE"], &["ALL"], host).unwrap(), [""; 0]);
        let privileged = Security { privileged: true, ..Default::default() };
        assert_eq!(granted(&privileged, host).unwrap(), host);
    }

    #[test]
    fn a_mask_of_a_newer_kernel_is_cut_to_known_names() {
        assert_eq!(CapSet::from_mask(u64::MAX), CapSet::ALL);
        assert!(CapSet::ALL.contains(CapSet::named("CHECKPOINT_RESTORE").unwrap()));
    }
}
