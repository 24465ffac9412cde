//! Pulls images into a store and says what it took: `cargo run --release --example pull -- ROOT IMAGE…`
//!
//! Prints wall time, CPU time, peak memory, how long the flush to the device took after that, and how long records that
//! were written durably meanwhile took. `ROOT` must be a directory of no value: it is used as a store and stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crisp_store::durable::Disk;
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
    let store = Store::open(root.clone(), Options::default())?;
    println!("open {:.3} s, {} images", start.elapsed().as_secs_f32(), store.images().len());
    for image in args {
        let watch = Records::start(&root);
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
        println!("records meanwhile: {}", watch.stop());
        let watch = Records::start(&root);
        let start = Instant::now();
        store.flush().await;
        println!("flush {:.3} s, now {} kB", start.elapsed().as_secs_f32(), status("RssAnon"));
        println!("records meanwhile: {}", watch.stop());
    }
    Ok(())
}

/// Writes a small record every 10 ms, as the server does when pods start.
struct Records {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Records {
    fn start(root: &Path) -> Self {
        let path = root.with_extension("record");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut took = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                if let Err(error) = Disk::new().write_bytes(&path, &[b'x'; 4000], true) {
                    eprintln!("{error}");
                }
                took.push(start.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            took.sort();
            took
        });
        Self { stop, thread }
    }

    fn stop(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let took = self.thread.join().unwrap_or_default();
        let at = |part: usize| {
            took.get((took.len() * part / 100).min(took.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        format!("{} writes, p50 {:?}, p95 {:?}, longest {:?}", took.len(), at(50), at(95), at(100))
    }
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
