//! The rows of the table, their goals, and how it is printed.

use super::Figures;
use crate::budget::field;
use std::fs;

/// What a figure should reach.
#[derive(Clone, Copy)]
struct Goal {
    /// As a ratio to containerd, with the same CNI plugins and with the built-in network.
    same: Option<f64>,
    builtin: Option<f64>,
    /// In the row's own unit.
    absolute: Option<f64>,
}

const NONE: Goal = Goal { same: None, builtin: None, absolute: None };

const fn ratios(same: f64, builtin: Option<f64>) -> Goal {
    Goal { same: Some(same), builtin, absolute: None }
}

const fn absolute(goal: f64) -> Goal {
    Goal { same: None, builtin: None, absolute: Some(goal) }
}

/// Name, unit, whether less is better, goal.
type Row = (&'static str, &'static str, bool, Goal);

/// The rows of the table, in its order.
const ROWS: &[Row] = &[
    ("pod start p50", "ms", true, ratios(0.6, Some(0.33))),
    ("  RunPodSandbox p50", "ms", true, NONE),
    ("  CreateContainer p50", "ms", true, NONE),
    ("  StartContainer p50", "ms", true, NONE),
    ("pod stop p50", "ms", true, ratios(0.8, Some(0.3))),
    ("pods/s, 4 at a time", "1/s", false, ratios(2.0, Some(3.0))),
    ("ExecSync p50", "ms", true, ratios(0.7, None)),
    ("execs/s, 4 at a time", "1/s", false, ratios(1.5, None)),
    ("cold pull, gzip", "ms", true, ratios(0.4, None)),
    ("cold pull, zstd", "ms", true, ratios(0.5, None)),
    ("memory a pod, Pss", "kB", true, absolute(150.0)),
    ("threads a pod", "", true, absolute(1.0)),
    ("server with 40 pods, Pss", "kB", true, absolute(15_000.0)),
    ("kill -9 to first list, 40 pods", "ms", true, absolute(60.0)),
    ("ListContainers, 40 pods", "ms", true, NONE),
    ("log throughput", "MB/s", false, ratios(3.0, None)),
    ("pod start, 500 pods to 10 pods", "x", true, absolute(1.2)),
    ("ListContainers, 500 pods", "ms", true, absolute(5.0)),
];

/// Prints it: containerd, crisp on the same CNI plugins, crisp on its own network.
pub(super) fn print(all: &[(&str, Figures)]) {
    println!("\n{}", machine());
    let names: Vec<&str> = all.iter().map(|a| a.0).collect();
    println!("\n| figure | {} | ratio, same CNI | ratio, built-in | goal |", names.join(" | "));
    println!("|---|{}---|---|---|", "---|".repeat(all.len()));
    let bare = Figures::new();
    let figures = |i: usize| all.get(i).map_or(&bare, |a| &a.1);
    for (row, unit, less, goal) in ROWS {
        let cell = |i: usize| figures(i).get(row).map_or("-".into(), |v| format!("{} {unit}", short(*v)));
        let met = |value: f64, goal: f64| if (value <= goal) == *less || value == goal { "met" } else { "missed" };
        let ratio = |i: usize, goal: Option<f64>| match (figures(i).get(row), figures(0).get(row)) {
            (Some(a), Some(b)) if *b > 0.0 => {
                let r = a / b;
                let mark = goal.map(|g| format!(" (goal {g}: {})", met(r, g)));
                format!("{r:.2}{}", mark.unwrap_or_default())
            }
            _ => "-".into(),
        };
        let measured = [1, 2].into_iter().filter_map(|i| figures(i).get(row).copied());
        let worst = measured.reduce(if *less { f64::max } else { f64::min });
        let own = match (goal.absolute, worst) {
            (Some(g), Some(worst)) => format!("{g} {unit}: {}", met(worst, g)),
            _ => String::new(),
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {own} |",
            row.trim(),
            cell(0),
            cell(1),
            cell(2),
            ratio(1, goal.same),
            ratio(2, goal.builtin),
        );
    }
}

fn short(v: f64) -> String {
    if v >= 100.0 { format!("{v:.0}") } else { format!("{v:.1}") }
}

fn machine() -> String {
    let read = |p: &str| fs::read_to_string(p).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map(|m| m.trim_start_matches([' ', '\t', ':']).to_owned())
        .unwrap_or_default();
    let cgroup = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" };
    format!(
        "{} × {model}, {} GB, kernel {}, cgroup {cgroup}, runc 1.5.2, CNI plugins 1.9.1, load {} at the end",
        cpu.matches("model name").count(),
        field(&read("/proc/meminfo"), "MemTotal:") / 1_000_000,
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}
