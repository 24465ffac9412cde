//! What a monitor may cost: memory, threads, and how fast lines pass through it.

use std::fs;
use std::time::Duration;

use crisp_monitor::protocol::Phase;

use crate::common::{Sut, eventually, runc};

/// Of its own (not shared with the page cache), in kB.
const RSS_ANON: u64 = 128;
/// With the pages of the program that it touched, in kB.
const VM_RSS: u64 = 1250;

fn status(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn assert_small(what: &str, pid: u32) {
    let (anon, rss, threads) = (status(pid, "RssAnon:"), status(pid, "VmRSS:"), status(pid, "Threads:"));
    println!("{what}: RssAnon {anon} kB, VmRSS {rss} kB, {threads} thread(s)");
    assert!(anon <= RSS_ANON && rss <= VM_RSS && threads == 1, "{what}: {anon} kB, {rss} kB, {threads}");
}

#[test]
fn a_monitor_is_small_at_rest_and_at_work() {
    let mut sut = Sut::new(&runc(), "head -c 200000 /dev/zero; sleep 1; seq 3000000; seq 10 >&2; sleep 60");
    let pid = sut.spawn().pid();
    sut.client().until(|s| s.phase == Phase::Created);
    assert_small("created", pid);
    sut.start().unwrap();
    // Unfinished lines are the worst case.
    eventually("output", || fs::metadata(sut.launch.log_path.as_ref().unwrap()).unwrap().len() > 180_000);
    assert_small("running", pid);
    let mut peak = 0;
    eventually("all lines", || {
        peak = peak.max(status(pid, "RssAnon:"));
        fs::metadata(sut.launch.log_path.as_ref().unwrap()).unwrap().len() > 120_000_000
    });
    assert!(peak <= RSS_ANON, "{peak} kB while lines came");
    println!("busy: RssAnon at most {peak} kB");
    std::thread::sleep(Duration::from_millis(2500));
    assert_small("silent again", pid);
}

/// 100-byte lines from `cat` of a block that is in memory; the goal is three times containerd's 35 MB/s.
#[test]
fn lines_pass_quickly() {
    const BYTES: u64 = 300 << 20;
    let mut sut = Sut::new(&runc(), "for i in $(seq 30); do cat /block; done");
    let line = format!("{}\n", "x".repeat(99));
    let block = line.repeat(10 << 20).into_bytes();
    fs::write(sut.temp.path().join("layers/top/fs/block"), &block[..10 << 20]).unwrap();
    sut.create().unwrap();
    sut.start().unwrap();
    sut.client().until(|s| s.phase == Phase::Exited);
    let stat = fs::read_to_string(format!("/proc/{}/stat", sut.pid())).unwrap();
    let ticks: Vec<u64> =
        stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2).map(|t| t.parse().unwrap()).collect();
    sut.finish();
    let text = fs::read(sut.launch.log_path.as_ref().unwrap()).unwrap();
    let time = |line: &[u8]| -> f64 {
        let clock = std::str::from_utf8(&line[11..29]).unwrap();
        clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
    };
    let last = text[..text.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    let seconds = time(&text[last..]) - time(&text);
    let rate = BYTES as f64 / 1e6 / seconds;
    println!(
        "log throughput: {rate:.0} MB/s of 100-byte lines ({seconds:.2} s for {} MB; CPU: {} ms user, {} ms system)",
        BYTES / 1_000_000,
        ticks[0] * 10,
        ticks[1] * 10
    );
    // Loose, for machines that are busy; the bench compares.
    assert!(rate > 35.0, "{rate:.0} MB/s");
}
