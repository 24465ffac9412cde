//! Pulls images into a store and says what it took: `cargo run --release --example pull -- ROOT IMAGE…`
//!
//! Prints wall time, CPU time, peak memory, and how long the flush to the device took after that. `ROOT` must be a
//! directory of no value: it is used as a store and stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crisp_store::{LayerState, Options, Progress, ProgressEvent, PullRequest, Store};

struct Bars(Instant);

impl Progress for Bars {
    fn event(&self, event: ProgressEvent) {
        let at = self.0.elapsed().as_secs_f32();
        match event {
            ProgressEvent::Layer { state: LayerState::Downloading { bytes, total }, .. }
                if bytes != 0 && bytes != total => {}
            event => eprintln!("{at:7.3} {event:?}"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let root = PathBuf::from(args.next().ok_or("usage: pull ROOT IMAGE…")?);
    let start = Instant::now();
    let store = Store::open(root, Options::default())?;
    println!("open {:.3} s, {} images", start.elapsed().as_secs_f32(), store.images().len());
    for image in args {
        let reference = image.to_str().ok_or("not UTF-8")?.parse()?;
        let start = Instant::now();
        let cpu = cpu();
        let progress: Option<Arc<dyn Progress>> = match std::env::var_os("QUIET") {
            None => Some(Arc::new(Bars(start))),
            Some(_) => None,
        };
        let image = store.pull(PullRequest { reference, credentials: None, platform: None, progress }).await?;
        println!(
            "{} {}: {:.3} s, cpu {:.2} s, {} MB compressed, {} MB on disk, peak {} kB",
            image.tags.join(" "),
            image.id,
            start.elapsed().as_secs_f32(),
            self::cpu() - cpu,
            image.size / 1_000_000,
            image.unpacked / 1_000_000,
            status("VmHWM"),
        );
        let start = Instant::now();
        store.flush().await;
        println!("flush {:.3} s, now {} kB", start.elapsed().as_secs_f32(), status("RssAnon"));
    }
    Ok(())
}

/// Seconds of user and system time of this process.
fn cpu() -> f32 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f32>().ok()).unwrap_or_default();
    (ticks(12) + ticks(13)) / 100.0
}

fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
