//! Forward chains of other owners that drop what they do not know: Docker's and firewalls' of iptables or nftables.
//!
//! An accept in our own table does not help there, since every base chain of a hook has its say. So two rules go to the top
//! of each such chain: accept what comes from a pod's interface, and what goes to one. Before that our own forward chain closes
//! for what they drop (see [`super::rules`]), so that pods are not open to everybody meanwhile. In nftables, and so in iptables-nft, the rules carry a comment by which they
//! are found again; in iptables-legacy they are found by their whole text.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::names::Names;
use super::program;

/// What was found, for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forward {
    /// Chains that accept pods' traffic now because of our rules.
    pub(super) opened: Vec<String>,
    /// What could not be opened or looked at.
    pub(super) problems: Vec<String>,
}

/// A base chain on the forward hook.
#[derive(Debug)]
struct Chain {
    family: String,
    table: String,
    name: String,
    drops: bool,
    /// Handles of our rules in it.
    ours: Vec<u64>,
}

/// Chains that drop what they do not know.
#[derive(Debug, Default)]
pub(super) struct Dropping {
    chains: Vec<Chain>,
    legacy: Vec<(&'static str, PathBuf)>,
    problems: Vec<String>,
}

/// Finds them. Nothing is changed yet: our own chain is to close before theirs are opened.
pub(super) fn find(nft: Option<&Path>, names: &Names) -> Dropping {
    let mut found = Dropping::default();
    if let Some(nft) = nft {
        found.chains = chains(nft, names, &mut found.problems);
        found.chains.retain(|chain| chain.drops);
    }
    for (words, program) in legacies() {
        match program.and_then(|program| Ok((drops_legacy(&program)?, program))) {
            Ok((true, program)) => found.legacy.push((words, program)),
            Ok((false, _)) => {}
            Err(error) => found.problems.push(format!("{words} FORWARD may drop forwarded packets: {error}")),
        }
    }
    found
}

impl Dropping {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.legacy.is_empty()
    }

    /// Opens each, where it is not open already.
    pub(super) fn open(self, nft: Option<&Path>, names: &Names) -> Forward {
        let mut forward = Forward { opened: Vec::new(), problems: self.problems };
        for (nft, chain) in self.chains.iter().filter_map(|chain| Some((nft?, chain))) {
            let shown = format!("{} {} {}", chain.family, chain.table, chain.name);
            let done = if chain.ours.len() == 2 { Ok(()) } else { insert(nft, names, chain) };
            match done {
                Ok(()) => forward.opened.push(shown),
                Err(error) => forward.problems.push(format!("chain {shown} drops forwarded packets: {error}")),
            }
        }
        for (words, program) in self.legacy {
            match open_legacy(&program, names) {
                Ok(()) => forward.opened.push(format!("{words} FORWARD")),
                Err(error) => forward.problems.push(format!("{words} FORWARD drops forwarded packets: {error}")),
            }
        }
        forward
    }

    /// Leaves them as they are, for want of our own table.
    pub(super) fn leave(self) -> Forward {
        let mut problems = self.problems;
        let chains = self.chains.iter().map(|chain| format!("{} {} {}", chain.family, chain.table, chain.name));
        let legacy = self.legacy.iter().map(|(words, _)| format!("{words} FORWARD"));
        problems.extend(chains.chain(legacy).map(|chain| format!("chain {chain} drops forwarded packets")));
        Forward { opened: Vec::new(), problems }
    }
}

/// Takes our rules out of all chains.
pub(super) fn close(nft: Option<&Path>, names: &Names) -> Result<(), super::Error> {
    if let Some(nft) = nft {
        let mut problems = Vec::new();
        let mut commands = Vec::new();
        for chain in chains(nft, names, &mut problems) {
            for handle in chain.ours {
                let rule = json!({"family": chain.family, "table": chain.table, "chain": chain.name, "handle": handle});
                commands.push(json!({"delete": {"rule": rule}}));
            }
        }
        if !commands.is_empty() {
            program::run(nft, &["-j", "-f", "-"], &json!({"nftables": commands}).to_string())?;
        }
    }
    for program in legacies().into_iter().filter_map(|(_, program)| program.ok()) {
        for rule in legacy_rules(names) {
            // Ends with the first error: there is no such rule any more.
            while legacy(&program, "-D", &rule).is_ok() {}
        }
    }
    Ok(())
}

fn chains(nft: &Path, names: &Names, problems: &mut Vec<String>) -> Vec<Chain> {
    let list = |args: &[&str]| -> Result<Vec<Value>, String> {
        let output = program::run(nft, args, "").map_err(|error| error.to_string())?;
        let mut value: Value = serde_json::from_slice(&output).map_err(|error| error.to_string())?;
        match value["nftables"].take() {
            Value::Array(list) => Ok(list),
            _ => Err("its output is not what it was".to_owned()),
        }
    };
    let all = match list(&["-j", "list", "chains"]) {
        Ok(all) => all,
        Err(error) => {
            problems.push(format!("cannot see whether forwarded packets are dropped: {error}"));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for chain in all.iter().map(|object| &object["chain"]) {
        let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
        let (family, table, name) = (text("family"), text("table"), text("name"));
        let forwards = chain["hook"] == "forward" && chain["type"] == "filter";
        if !forwards || table == names.table || !matches!(family.as_str(), "ip" | "ip6" | "inet") {
            continue;
        }
        match list(&["-j", "-a", "list", "chain", &family, &table, &name]) {
            Ok(objects) => {
                let rules: Vec<&Value> = objects.iter().map(|o| &o["rule"]).filter(|rule| !rule.is_null()).collect();
                let drops = chain["policy"] == "drop" || rules.last().is_some_and(|rule| drops_all(rule));
                let ours = rules.iter().filter(|rule| rule["comment"] == names.comment.as_str());
                let ours = ours.filter_map(|rule| rule["handle"].as_u64()).collect();
                found.push(Chain { family, table, name, drops, ours });
            }
            Err(error) => problems.push(format!("cannot read chain {family} {table} {name}: {error}")),
        }
    }
    found
}

/// Whether a rule has no condition and ends in a drop or a reject. What iptables-nft has no native words for, nft before
/// 1.0.8 shows as `xt` with the extension's name.
fn drops_all(rule: &Value) -> bool {
    let Some(statements) = rule["expr"].as_array() else { return false };
    let is = |statement: &Value, keys: &[&str], extension: &[&str]| {
        let named = |object: &serde_json::Map<String, Value>| object.keys().all(|key| keys.contains(&key.as_str()));
        let extended = statement["xt"]["name"].as_str().is_some_and(|name| extension.contains(&name));
        extended || statement.as_object().is_some_and(named)
    };
    let Some((last, rest)) = statements.split_last() else { return false };
    is(last, &["drop", "reject"], &["REJECT"])
        && rest.iter().all(|statement| is(statement, &["counter", "log"], &["comment", "LOG", "NFLOG"]))
}

fn insert(nft: &Path, names: &Names, chain: &Chain) -> Result<(), super::Error> {
    let rule = |key: &str| {
        let matched =
            json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": format!("{}*", names.prefix)}});
        let expr = json!([matched, {"counter": null}, {"accept": null}]);
        let (family, table, name) = (&chain.family, &chain.table, &chain.name);
        json!({"rule": {"family": family, "table": table, "chain": name, "comment": names.comment, "expr": expr}})
    };
    // Half of a pair, as somebody's edits may leave it, is made anew.
    let delete = |handle: &u64| json!({"delete": {"rule": {"family": chain.family, "table": chain.table, "chain": chain.name, "handle": handle}}});
    let mut commands: Vec<Value> = chain.ours.iter().map(delete).collect();
    commands.extend(["iifname", "oifname"].map(|key| json!({"insert": rule(key)})));
    program::run(nft, &["-j", "-f", "-"], &json!({"nftables": commands}).to_string())?;
    tracing::info!(
        "opened chain {} {} {} for pods: it drops what it does not know",
        chain.family,
        chain.table,
        chain.name
    );
    Ok(())
}

/// The legacy tables that are in use in this network namespace, each with its program or the reason why there is none.
fn legacies() -> Vec<(&'static str, Result<PathBuf, String>)> {
    let tables =
        [("iptables-legacy", "iptables", "ip_tables_names"), ("ip6tables-legacy", "ip6tables", "ip6_tables_names")];
    let used = |file: &str| {
        // Not /proc/net, which shows the namespace of the process' first thread.
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        names.lines().any(|name| name == "filter")
    };
    let find = |name: &str, plain: &str| {
        let old = || {
            program::find(plain).filter(|program| {
                program::run(program, &["-V"], "")
                    .is_ok_and(|v| !v.is_empty() && String::from_utf8_lossy(&v).contains("legacy"))
            })
        };
        program::find(name).or_else(old).ok_or_else(|| format!("there is no program {name}"))
    };
    tables.into_iter().filter(|(.., file)| used(file)).map(|(name, plain, _)| (name, find(name, plain))).collect()
}

fn drops_legacy(program: &Path) -> Result<bool, String> {
    let listing = program::run(program, &["-w", "5", "-S", "FORWARD"], "").map_err(|error| error.to_string())?;
    let listing = String::from_utf8_lossy(&listing);
    let drops = |line: &str| {
        matches!(line, "-P FORWARD DROP" | "-A FORWARD -j DROP") || line.starts_with("-A FORWARD -j REJECT")
    };
    Ok(listing.lines().next().is_some_and(drops) || listing.lines().last().is_some_and(drops))
}

fn open_legacy(program: &Path, names: &Names) -> Result<(), super::Error> {
    for rule in legacy_rules(names) {
        if legacy(program, "-C", &rule).is_err() {
            legacy(program, "-I", &rule)?;
            tracing::info!("opened {} FORWARD for pods: it drops what it does not know", program.display());
        }
    }
    Ok(())
}

fn legacy_rules(names: &Names) -> [[String; 8]; 2] {
    let rule = |direction: &str| {
        let comment =
            [direction, &format!("{}+", names.prefix), "-m", "comment", "--comment", &names.comment, "-j", "ACCEPT"];
        comment.map(str::to_owned)
    };
    [rule("-i"), rule("-o")]
}

fn legacy(program: &Path, verb: &str, rule: &[String]) -> Result<Vec<u8>, super::Error> {
    let args: Vec<&str> = ["-w", "5", verb, "FORWARD"].into_iter().chain(rule.iter().map(String::as_str)).collect();
    program::run(program, &args, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_rule_without_condition_that_drops_is_a_policy() {
        for (expr, drops) in [
            (json!([{"drop": null}]), true),
            (
                json!([{"counter": {"packets": 1, "bytes": 2}}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]),
                true,
            ),
            (json!([{"match": {"op": "in"}}, {"drop": null}]), false),
            (json!([{"accept": null}]), false),
            (json!([{"counter": null}, {"xt": {"type": "target", "name": "REJECT"}}]), true),
            (json!([{"xt": {"type": "match", "name": "comment"}}, {"xt": {"type": "target", "name": "REJECT"}}]), true),
            (json!([{"xt": {"type": "match", "name": "policy"}}, {"xt": {"type": "target", "name": "REJECT"}}]), false),
            (json!([{"xt": {"type": "target", "name": "TCPMSS"}}]), false),
            (json!([]), false),
        ] {
            assert_eq!(drops_all(&json!({"expr": expr})), drops, "{expr}");
        }
    }
}
