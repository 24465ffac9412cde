//! critest, the conformance suite of CRI, unmodified: every spec passes, but for those that `critest.txt` names with a reason.

use super::opts;
use crate::{
    fail::{Fail, Res, ensure},
    parts,
    server::{Kind, Server},
    sh,
    world::World,
};
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::process::Command;

/// How many specs pass at least. They fall silent together when critest finds no reason to run them.
const FLOOR: usize = 101;

/// An expectation: state (`fail` or `skip`) and reason by spec.
fn expected(kind: Kind) -> Res<BTreeMap<String, (String, String)>> {
    let file = parts::checkout().join("e2e/critest.txt");
    let text = std::fs::read_to_string(&file)?;
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let mut f = line.splitn(4, " | ");
        let (Some(who), Some(state), Some(spec), Some(why)) = (f.next(), f.next(), f.next(), f.next()) else {
            return Err(Fail::Wrong(format!(
                "{}: `server | fail or skip | spec | reason`, not `{line}`",
                file.display()
            )));
        };
        if who == "both" || who == format!("{kind:?}").to_lowercase() {
            all.insert(spec.to_owned(), (state.to_owned(), why.to_owned()));
        }
    }
    Ok(all)
}

/// Runs all specs and compares.
pub(crate) async fn conformance(world: &World, kind: Kind) -> Res<String> {
    let server = Server::start(world, &opts(world, kind)).await?;
    let dir = server.dir.join("critest");
    std::fs::create_dir_all(&dir)?;
    let report = dir.join("report.json");
    let endpoint = format!("unix://{}", server.sock.display());
    let mut c = Command::new(world.parts.get("critest", "critest")?);
    c.current_dir(&dir)
        .arg(format!("-runtime-endpoint={endpoint}"))
        .arg(format!("-image-endpoint={endpoint}"))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .arg("-ginkgo.no-color")
        .arg("-ginkgo.timeout=15m")
        .args(apparmor().then_some("-ginkgo.skip=AppArmor"))
        .env("PATH", format!("{}:{}", world.parts.dir("crictl")?.display(), std::env::var("PATH").unwrap_or_default()));
    let out = sh::output(&mut c, 1000).await?;
    let text = std::fs::read(&report)
        .map_err(|e| Fail::Wrong(format!("critest wrote no report ({e}): {}{}", out.stdout, out.stderr)))?;
    let report: Value = serde_json::from_slice(&text)?;
    if let Some(keep) = std::env::var_os("CRISP_E2E_REPORT") {
        std::fs::write(keep, &text)?;
    }
    let known = expected(kind)?;
    let (mut passed, mut failed, mut skipped, mut bad) = (0_usize, 0, 0, Vec::new());
    for spec in report[0]["SpecReports"].as_array().into_iter().flatten() {
        if spec["LeafNodeType"] != "It" {
            continue;
        }
        let mut words: Vec<&str> =
            spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        words.extend(spec["LeafNodeText"].as_str());
        let name = words.join(" ");
        let listed = known.get(&name).map(|(s, _)| s.as_str());
        match (spec["State"].as_str().unwrap_or_default(), listed) {
            ("passed", None) => passed += 1,
            ("passed", Some(_)) => bad.push(format!("{name}: passes, take it off the list")),
            ("skipped" | "pending", Some("skip")) => skipped += 1,
            ("skipped" | "pending", _) => bad.push(format!("{name}: skipped: {}", first(&spec["Failure"]["Message"]))),
            (_, Some("fail")) => failed += 1,
            (_, _) => bad.push(format!("{name}: fails: {}", first(&spec["Failure"]["Message"]))),
        }
    }
    let sums = format!("{passed} specs pass, {failed} fail and {skipped} are skipped as listed in e2e/critest.txt");
    ensure!(bad.is_empty(), "{sums}; not as expected: {}\n  {}", bad.len(), bad.join("\n  "));
    ensure!(passed >= FLOOR, "{sums}; at least {FLOOR} are to pass: {}{}", out.stdout, out.stderr);
    server.finish().await?;
    Ok(sums)
}

/// Whether the kernel enforces AppArmor. Then its specs would run, for which nothing here loads the profiles.
fn apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.trim() == "Y")
}

fn first(text: &Value) -> String {
    text.as_str().unwrap_or_default().chars().take(300).collect::<String>().replace('\n', " ")
}
