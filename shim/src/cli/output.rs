//! What people and programs read: tables that fit the terminal, JSON, colours where they are wanted.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::args::Output;
use super::error::{self, Result};
pub use super::table::{Cell, Column, Paint, Table};

/// How standard output is written.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// What was asked for.
    pub format: Output,
    /// Escape codes are understood and wanted.
    pub colour: bool,
    /// Columns of the terminal; `None`: no terminal, lines may be as long as they are.
    pub width: Option<usize>,
}

impl Out {
    pub fn new(format: Output) -> Self {
        let terminal = io::stdout().is_terminal();
        let width = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
        Self { format, colour: terminal && wants_colour(), width: width.filter(|width| terminal && *width > 0) }
    }

    /// Rows as a table, or all that they hold as JSON.
    pub fn list<T: Serialize>(self, rows: &[T], table: impl FnOnce(&[T]) -> Table) -> Result {
        match self.format {
            Output::Json => self.json(&rows),
            Output::Table => self.text(&table(rows).render(self.width, self.colour)),
        }
    }

    /// One object as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other).map_err(error::output)?;
        self.text(&format!("{text}\n"))
    }

    /// As it is.
    pub fn text(self, text: &str) -> Result {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(error::output)
    }

    /// A line, or for programs the object that it is about.
    pub fn line<T: Serialize + ?Sized>(self, line: &str, value: &T) -> Result {
        match self.format {
            Output::Json => self.json(value),
            Output::Table => self.text(&format!("{}\n", printable(line))),
        }
    }
}

/// See no-color.org.
fn wants_colour() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The text without what would move the cursor or change colours: names and messages come from others.
pub fn printable(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The beginning of an id that people use.
pub fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// Nanoseconds since 1970 as how long ago that is.
pub fn age(at: i64, now: i64) -> String {
    if at <= 0 {
        return "-".to_owned();
    }
    span((now - at).max(0) / 1_000_000_000)
}

/// Seconds in their two largest units at most: `5s`, `3m`, `2h10m`, `4d`.
pub fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..36_000 => match seconds % 3600 / 60 {
            0 => format!("{}h", seconds / 3600),
            minutes => format!("{}h{minutes}m", seconds / 3600),
        },
        36_000..172_800 => format!("{}h", seconds / 3600),
        172_800..31_536_000 => format!("{}d", seconds / 86_400),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

/// Bytes as registries count them: 1 MB is 1,000,000 bytes.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            let digits = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.0} PB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (2_224_229, "2.2 MB"),
            (99_960_000, "100 MB"),
            (999_600_000, "1.0 GB"),
            (12_345_678_901, "12.3 GB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).ends_with(" PB"));
    }

    #[test]
    fn ages_are_short_and_never_negative() {
        let now = 1_800_000_000_000_000_000;
        let ago = |seconds: i64| age(now - seconds * 1_000_000_000, now);
        assert_eq!(
            [ago(0), ago(119), ago(120), ago(7199), ago(7800), ago(7200), ago(100_000), ago(200_000), ago(40_000_000)],
            ["0s", "119s", "2m", "119m", "2h10m", "2h", "27h", "2d", "1y"]
        );
        assert_eq!(ago(-50), "0s");
        assert_eq!(age(0, now), "-");
    }

    #[test]
    fn nothing_printed_moves_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\r\u{7}\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}".trim_end_matches('\n'));
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("abc"), "abc");
    }
}
