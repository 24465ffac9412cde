//! A profile: its JSON, what is checked of it, and what is left of it on one machine for one container.

use std::path::Path;

use serde::Deserialize;

use super::SeccompError;
use crate::host::{Arch, KernelVersion};
use crate::spec::CapSet;
use crate::spec::oci::{Seccomp, SeccompArg, SeccompRule};

/// More rules, or names in one, are refused.
const MAX_RULES: usize = 4096;
/// libseccomp's actions; NOTIFY is left out: nobody would listen.
const ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
const ARCHITECTURES: [&str; 22] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
/// Linux: the largest error number.
const MAX_ERRNO: u32 = 4095;

/// A checked profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    default_action: String,
    default_errno: Option<u32>,
    architectures: Vec<String>,
    arch_map: Vec<ArchMap>,
    flags: Option<Vec<String>>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    rule: SeccompRule,
    includes: Condition,
    excludes: Condition,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Condition {
    caps: Vec<CapSet>,
    arches: Vec<String>,
    min_kernel: Option<KernelVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProfile {
    default_action: String,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<RawRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<SeccompArg>>,
    includes: Option<RawCondition>,
    excludes: Option<RawCondition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCondition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self, SeccompError> {
        let raw: RawProfile =
            serde_json::from_slice(json).map_err(|source| SeccompError::Json { path: path.to_owned(), source })?;
        check(raw).map_err(|problem| SeccompError::Invalid { path: path.to_owned(), problem })
    }

    /// What is left of it: rules whose conditions hold, for the architectures that the machine can run.
    pub fn resolve(&self, arch: Arch, granted: CapSet, kernel: KernelVersion) -> Seccomp {
        let mut architectures = self.architectures.clone();
        if let Some(map) = self.arch_map.iter().find(|map| map.architecture == arch.seccomp) {
            architectures.push(map.architecture.clone());
            architectures.extend(map.sub_architectures.iter().flatten().cloned());
        }
        let applies = |Rule { includes, excludes, .. }: &&Rule| {
            let named = |condition: &Condition| condition.arches.iter().any(|name| name == arch.go);
            let included = (includes.arches.is_empty() || named(includes))
                && includes.caps.iter().all(|cap| granted.contains(*cap))
                && includes.min_kernel.is_none_or(|least| kernel >= least);
            let excluded = named(excludes)
                || excludes.caps.iter().any(|cap| granted.contains(*cap))
                || excludes.min_kernel.is_some_and(|least| kernel >= least);
            included && !excluded
        };
        Seccomp {
            default_action: self.default_action.clone(),
            default_errno_ret: self.default_errno,
            architectures,
            flags: self.flags.clone(),
            syscalls: self.rules.iter().filter(applies).map(|rule| rule.rule.clone()).collect(),
        }
    }
}

fn check(raw: RawProfile) -> Result<Profile, String> {
    if raw.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err("listenerPath is not served".to_owned());
    }
    let architectures = raw.architectures.unwrap_or_default();
    let arch_map = raw.arch_map.unwrap_or_default();
    if !architectures.is_empty() && !arch_map.is_empty() {
        return Err("architectures and archMap exclude each other".to_owned());
    }
    let mapped = arch_map
        .iter()
        .flat_map(|map| std::iter::once(&map.architecture).chain(map.sub_architectures.iter().flatten()));
    for name in architectures.iter().chain(mapped) {
        one_of(&ARCHITECTURES, name, "architecture")?;
    }
    let rules = raw.syscalls.unwrap_or_default();
    if rules.len() > MAX_RULES {
        return Err(format!("{} rules, more than {MAX_RULES}", rules.len()));
    }
    let (default_action, default_errno) = action(raw.default_action, raw.default_errno_ret, raw.default_errno)?;
    let rules = rules.into_iter().map(rule).collect::<Result<_, _>>()?;
    Ok(Profile { default_action, default_errno, architectures, arch_map, flags: raw.flags, rules })
}

fn rule(raw: RawRule) -> Result<Rule, String> {
    let RawRule { name, names, action: named, errno_ret, errno, args, includes, excludes } = raw;
    let mut names = names.unwrap_or_default();
    names.extend(name.filter(|name| !name.is_empty()));
    if names.is_empty() || names.len() > MAX_RULES || names.iter().any(String::is_empty) {
        return Err("a rule names no system call, an empty one, or too many".to_owned());
    }
    let (action, errno_ret) = action(named, errno_ret, errno)?;
    let args = args.unwrap_or_default();
    for arg in &args {
        one_of(&OPERATORS, &arg.op, "operator")?;
        if arg.index > 5 {
            return Err(format!("{} has no argument {}", names[0], arg.index));
        }
    }
    let rule = SeccompRule { names, action, errno_ret, args };
    Ok(Rule { rule, includes: condition(includes)?, excludes: condition(excludes)? })
}

fn condition(raw: Option<RawCondition>) -> Result<Condition, String> {
    let RawCondition { caps, arches, min_kernel } = raw.unwrap_or_default();
    let cap = |name: String| CapSet::named(&name).ok_or_else(|| format!("{name} is no capability"));
    let version = |text: String| KernelVersion::parse(&text).ok_or_else(|| format!("{text:?} is no kernel version"));
    Ok(Condition {
        caps: caps.unwrap_or_default().into_iter().map(cap).collect::<Result<_, _>>()?,
        arches: arches.unwrap_or_default(),
        min_kernel: min_kernel.filter(|text| !text.is_empty()).map(version).transpose()?,
    })
}

/// An action, and the number of its error: `errnoRet`, or by name in `errno`.
fn action(named: String, number: Option<u32>, name: Option<String>) -> Result<(String, Option<u32>), String> {
    if named == "SCMP_ACT_NOTIFY" {
        return Err("action SCMP_ACT_NOTIFY is not served".to_owned());
    }
    one_of(&ACTIONS, &named, "action")?;
    let number = match (number, name.as_deref()) {
        (Some(number), _) => Some(number),
        (None, None | Some("")) => None,
        (None, Some("EPERM")) => Some(1),
        (None, Some("EACCES")) => Some(13),
        (None, Some("EINVAL")) => Some(22),
        (None, Some("ENOSYS")) => Some(38),
        (None, Some(other)) => return Err(format!("errno {other} is not known: give its number in errnoRet")),
    };
    match number {
        Some(number) if number > MAX_ERRNO => Err(format!("errnoRet {number} is more than {MAX_ERRNO}")),
        number => Ok((named, number)),
    }
}

fn one_of(known: &[&str], name: &str, what: &str) -> Result<(), String> {
    if known.contains(&name) { Ok(()) } else { Err(format!("{name:?} is no {what}")) }
}
