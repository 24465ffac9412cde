//! Log files in the CRI's format, as the monitor writes them: read from the end, filtered, followed through rotations.
//!
//! ```text
//! 2026-01-31T12:00:00.123456789Z stdout F a line
//! 2026-01-31T12:00:00.123456789Z stderr P the beginning of a long line, without its end
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse::time::rfc3339;

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339 with nanoseconds.
    pub time: &'a str,
    pub stream: Stream,
    /// The container's line ends here.
    pub full: bool,
    pub text: &'a [u8],
}

/// Reads a line of the file without its end; nothing when it has another form.
pub fn line(bytes: &[u8]) -> Option<Line<'_>> {
    let mut parts = bytes.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are a list, "F" or "P" first.
    let full = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let dated = time.len() >= 20 && time.as_bytes()[0].is_ascii_digit();
    dated.then_some(Line { time, stream, full, text: parts.next().unwrap_or_default() })
}

/// What of a log is shown, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Show {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Nanoseconds since 1970.
    pub since: Option<i64>,
    /// The time before each line.
    pub timestamps: bool,
}

/// A log that is being shown.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: BufReader<File>,
    show: Show,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
    /// Whether the next text of stdout, stderr begins a line of the container's.
    fresh: [bool; 2],
}

impl Log {
    /// Opens it where it is to be shown from.
    pub fn open(path: &Path, show: Show) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if let Some(lines) = show.tail {
            let at = tail(&file, lines)?;
            file.seek(SeekFrom::Start(at))?;
        }
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), show, rest: Vec::new(), fresh: [true; 2] })
    }

    /// Shows what is there by now; whether that was anything. A line in another form is shown as it is.
    pub fn pump(&mut self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<bool> {
        let mut any = false;
        loop {
            let read = self.file.read_until(b'\n', &mut self.rest)?;
            if self.rest.last() != Some(&b'\n') {
                if read == 0 && !self.next_file()? {
                    out.flush()?;
                    err.flush()?;
                    return Ok(any);
                }
                continue;
            }
            any = true;
            let whole = std::mem::take(&mut self.rest);
            let bytes = &whole[..whole.len() - 1];
            match line(bytes) {
                Some(line) => self.one(&line, out, err)?,
                None => out.write_all(&whole)?,
            }
        }
    }

    fn one(&mut self, line: &Line<'_>, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
        if let (Some(since), Some(at)) = (self.show.since, rfc3339(line.time))
            && at < since
        {
            return Ok(());
        }
        let (to, stream): (&mut dyn Write, usize) = match line.stream {
            Stream::Stdout => (out, 0),
            Stream::Stderr => (err, 1),
        };
        if self.show.timestamps && self.fresh[stream] {
            write!(to, "{} ", line.time)?;
        }
        to.write_all(line.text)?;
        if line.full {
            to.write_all(b"\n")?;
        }
        self.fresh[stream] = line.full;
        Ok(())
    }

    /// Goes on with the file that has taken this one's place, if one has.
    fn next_file(&mut self) -> io::Result<bool> {
        let open = self.file.get_ref().metadata()?;
        let there = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if (open.dev(), open.ino()) == (there.dev(), there.ino()) {
            if self.file.stream_position()? <= there.len() {
                return Ok(false);
            }
            // Emptied in place.
            self.file.seek(SeekFrom::Start(0))?;
        } else {
            self.file = BufReader::new(File::open(&self.path)?);
        }
        self.rest.clear();
        Ok(true)
    }
}

/// Where the last `lines` lines begin. Looks at more and more of the end, so that a long log is not read whole.
fn tail(file: &File, lines: usize) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut window: u64 = 64 << 10;
    loop {
        let from = size.saturating_sub(window);
        let (ends, start) = ends(file, from)?;
        // The first line of the window may be cut; it does not count, unless it is the file's first.
        if ends.len() > lines || from == 0 {
            let skipped = ends.len().saturating_sub(lines);
            return Ok(if skipped == 0 { start } else { ends[skipped - 1] });
        }
        window = window.saturating_mul(8);
    }
}

/// From the first whole line at or after `from`: where each of the container's lines ends, and where the first begins.
fn ends(file: &File, from: u64) -> io::Result<(Vec<u64>, u64)> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(from))?;
    let mut at = from;
    let mut bytes = Vec::new();
    if from > 0 {
        at += reader.read_until(b'\n', &mut bytes)? as u64;
    }
    let start = at;
    let mut ends = Vec::new();
    loop {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes)?;
        if bytes.pop() != Some(b'\n') {
            return Ok((ends, start));
        }
        at += read as u64;
        if line(&bytes).is_none_or(|line| line.full) {
            ends.push(at);
        }
    }
}

/// Shows a log until `ended` is over, and then what is left of it. The monitor writes without telling, so the file is
/// looked at: often while it grows, ten times a second while it does not.
pub async fn follow(mut log: Log, ended: impl Future<Output = ()>) -> io::Result<()> {
    const BUSY: Duration = Duration::from_millis(5);
    const IDLE: Duration = Duration::from_millis(100);
    tokio::pin!(ended);
    let mut pause = BUSY;
    loop {
        pause =
            if log.pump(&mut io::stdout().lock(), &mut io::stderr().lock())? { BUSY } else { (pause * 2).min(IDLE) };
        tokio::select! {
            () = &mut ended => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    log.pump(&mut io::stdout().lock(), &mut io::stderr().lock()).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "2026-01-31T12:00:00.000000000Z";

    fn shown(path: &Path, show: Show) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        Log::open(path, show).unwrap().pump(&mut out, &mut err).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    fn log(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, lines.concat()).unwrap();
        (dir, path)
    }

    #[test]
    fn lines() {
        let read = line(b"2026-01-31T12:00:00.000000000Z stderr P a  b ").unwrap();
        assert_eq!((read.stream, read.full, read.text), (Stream::Stderr, false, b"a  b ".as_slice()));
        let empty = line(b"2026-01-31T12:00:00.000000000Z stdout F ").unwrap();
        assert!(empty.full && empty.text.is_empty());
        for text in
            ["", "x", "2026-01-31T12:00:00.000000000Z", "2026-01-31T12:00:00.000000000Z stdin F x", "time stdout F x"]
        {
            assert_eq!(line(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn streams_are_apart_and_parts_are_joined() {
        let lines = [
            format!("{TIME} stdout F one\n"),
            format!("{TIME} stdout P tw\n"),
            format!("{TIME} stderr F bad\n"),
            format!("{TIME} stdout F o\n"),
            format!("{TIME} stdout F unfin"),
        ];
        let (_dir, path) = log(&lines.each_ref().map(String::as_str));
        assert_eq!(shown(&path, Show::default()), ("one\ntwo\n".into(), "bad\n".into()));
        let timed = shown(&path, Show { timestamps: true, ..Show::default() });
        assert_eq!(timed.0, format!("{TIME} one\n{TIME} two\n"));
    }

    #[test]
    fn the_tail_counts_the_containers_lines() {
        let long = "x".repeat(30_000);
        let part = format!("{TIME} stdout P {long}\n");
        let end = format!("{TIME} stdout F .\n");
        let mut lines = [part.as_str(), part.as_str(), part.as_str(), end.as_str()].repeat(10);
        let last = format!("{TIME} stdout F last\n");
        lines.push(&last);
        let (_dir, path) = log(&lines);
        let tail = |lines| shown(&path, Show { tail: Some(lines), ..Show::default() }).0;
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "last\n");
        assert_eq!(tail(2), format!("{long}{long}{long}.\nlast\n"));
        assert_eq!(tail(11), tail(100));
        assert_eq!(tail(11).lines().count(), 11);
    }

    #[test]
    fn since_leaves_out_what_came_before() {
        let lines = ["2026-01-31T11:59:59.999999999Z stdout F old\n", "2026-01-31T12:00:00.000000000Z stdout F new\n"];
        let (_dir, path) = log(&lines);
        let since = rfc3339("2026-01-31T12:00:00Z");
        assert_eq!(shown(&path, Show { since, ..Show::default() }).0, "new\n");
    }

    #[test]
    fn a_log_is_followed_through_its_rotation() {
        let (dir, path) = log(&[&format!("{TIME} stdout F 1\n")]);
        let mut log = Log::open(&path, Show::default()).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert!(log.pump(&mut out, &mut err).unwrap());
        let append = |path: &Path, text: &str| {
            let mut file = File::options().append(true).create(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(&path, &format!("{TIME} stdout F "));
        assert!(!log.pump(&mut out, &mut err).unwrap());
        append(&path, "2\n");
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        assert!(log.pump(&mut out, &mut err).unwrap());
        append(&path, &format!("{TIME} stdout F 3\n"));
        assert!(log.pump(&mut out, &mut err).unwrap());
        assert!(!log.pump(&mut out, &mut err).unwrap());
        assert_eq!(String::from_utf8(out).unwrap(), "1\n2\n3\n");
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(bytes: Vec<u8>) {
            let _ = line(&bytes);
        }

        #[test]
        fn what_was_written_is_read(text in "[^\n]{0,80}", full: bool, err: bool) {
            let stream = if err { "stderr" } else { "stdout" };
            let tag = if full { "F" } else { "P" };
            let whole = format!("{TIME} {stream} {tag} {text}");
            let read = line(whole.as_bytes()).unwrap();
            prop_assert_eq!((read.time, read.full, read.text), (TIME, full, text.as_bytes()));
        }
    }
}
