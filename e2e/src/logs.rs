//! Reads a container's log file as kubelet does.

use crate::fail::{Fail, Res, wrong};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// One line: `RFC3339Nano stream tag text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) time: String,
    pub(crate) stream: String,
    /// `F` full, `P` partial.
    pub(crate) tag: String,
    pub(crate) text: String,
}

/// All lines of the file; a malformed one is a failure.
pub(crate) fn read(path: &Path) -> Res<Vec<Line>> {
    let text = fs::read(path).map_err(|e| Fail::Wrong(format!("log {}: {e}", path.display())))?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = Vec::new();
    for l in text.split_terminator('\n') {
        let mut part = l.splitn(4, ' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) = (part.next(), part.next(), part.next(), part.next())
        else {
            return wrong(format!("not a log line: {:?}", &l[..l.len().min(200)]));
        };
        let stamped = time.len() >= 20 && time.as_bytes()[10] == b'T';
        if !stamped || !["stdout", "stderr"].contains(&stream) || !["F", "P"].contains(&tag) {
            return wrong(format!("not a log line: {:?}", &l[..l.len().min(200)]));
        }
        lines.push(Line { time: time.into(), stream: stream.into(), tag: tag.into(), text: text.into() });
    }
    Ok(lines)
}

/// What one stream said, pieces joined.
pub(crate) fn stream(lines: &[Line], name: &str) -> String {
    let mut all = String::new();
    for l in lines.iter().filter(|l| l.stream == name) {
        all += &l.text;
        if l.tag == "F" {
            all.push('\n');
        }
    }
    all
}

/// Waits until the log satisfies `ok`.
pub(crate) async fn until(path: &Path, secs: u64, what: &str, ok: impl Fn(&[Line]) -> bool) -> Res<Vec<Line>> {
    let end = Instant::now() + Duration::from_secs(secs);
    loop {
        let lines = if path.exists() { read(path)? } else { Vec::new() };
        if ok(&lines) {
            return Ok(lines);
        }
        if Instant::now() > end {
            return wrong(format!(
                "log {} lacks {what} after {secs} s; it ends with {:?}",
                path.display(),
                lines.last()
            ));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
