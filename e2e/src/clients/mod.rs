//! The clients that people really use, unmodified, against a server of each one's own.

mod crictl;
mod critest;
mod kubelet;
mod older;

use crate::{
    fail::{Fail, Res},
    run::Sums,
    server::{Kind, Opts},
    world::World,
};
use std::time::Instant;

/// Names that real clients pull from, served by our registry.
pub(crate) fn mirrors(host: &str) -> Vec<(String, String)> {
    let toml = format!("[host.\"http://{host}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    ["gcr.io", "registry.k8s.io", "k8s.gcr.io", "docker.io"].iter().map(|h| ((*h).to_owned(), toml.clone())).collect()
}

/// A server for a client: everything as usual, and the mirrors.
fn opts(world: &World, kind: Kind) -> Opts {
    Opts { hosts: mirrors(&world.host), ..Opts::new(kind) }
}

/// Runs those whose name holds one of the words.
pub(crate) async fn all(world: &World, kind: Kind, words: &[String]) -> Res<Sums> {
    let mut sums = Sums::default();
    for name in ["crictl", "older", "kubelet", "critest"] {
        if !words.is_empty() && !words.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let t = Instant::now();
        let result = match name {
            "crictl" => crictl::life_cycle(world, kind).await,
            "older" => older::life_cycle(world, kind).await,
            "kubelet" => kubelet::static_pod(world, kind).await,
            _ => critest::conformance(world, kind).await,
        };
        let took = t.elapsed().as_secs_f64();
        match result {
            Ok(text) => {
                sums.passed += 1;
                println!("test clients::{name} ... ok ({took:.0} s) {text}");
            }
            Err(Fail::Skip(why)) => {
                sums.skipped += 1;
                println!("test clients::{name} ... skipped: {why}");
            }
            Err(Fail::Wrong(why)) => {
                sums.failed += 1;
                println!("test clients::{name} ... FAILED ({took:.0} s): {why}");
            }
        }
    }
    println!("{}", sums.line());
    Ok(sums)
}
