//! What server and monitor say to each other, over a unix stream socket; pure encoding and decoding for both sides.
//!
//! A frame is one line: `verb TAB key=value TAB key=value … NEWLINE`, values escaped ([`crate::text`]), at most [`MAX_FRAME`] bytes.
//! Both sides ignore keys that they do not know and take defaults for keys that are missing, so each may be newer than the
//! other. An unknown request is answered with an error that names it; an unknown message is skipped.
//!
//! ```text
//!   server ── hello seq=1 ───────► monitor        phases
//!          ◄─ state seq=1 ────────                  creating ──► created ──► running ──► exited ──► deleted
//!          ── start seq=2 ───────►                     │            │ (killed before      ▲
//!          ◄─ state (running) ────   pushed            ▼            │  or start failed)   │
//!          ◄─ reply seq=2 ────────                   failed         └─────────────────────┘
//!          ◄─ state (exited) ─────   pushed
//! ```
//!
//! After hello a client gets a `state` with `seq=0` at every change. `exited` comes when the record is in the run directory; `deleted` when the
//! runtime has forgotten the container too. `failed` and, after `deleted`, the end of the pipes end the monitor.

use crate::exit_record::ExitRecord;
use crate::text;

/// This build's version of the protocol, told in hello and state. Nothing depends on it yet: additions need no new one.
pub const VERSION: u32 = 1;
/// The longest frame that either side sends or takes.
pub const MAX_FRAME: usize = 32 * 1024;
/// The longest text inside a state or a reply; longer ones lose their head, for the cause stands at the end.
pub const MAX_TEXT: usize = 4 * 1024;

/// A process, named so that a reused number is noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// Its number in the server's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub start_time: u64,
}

/// What the server asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// First on each connection; answered with a state, and states are pushed from then on.
    Hello {
        /// The server's [`VERSION`].
        version: u32,
    },
    /// Answered with a state.
    Status,
    /// Run `runtime start`; answered when that returned. Started twice is no error.
    Start,
    /// Open the log file anew by its path. Lines written so far stay in the old file, all later ones go to the new one.
    ReopenLog,
    /// Set the size of the terminal; zero by zero is ignored.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters a line.
        cols: u16,
    },
}

/// How far a container (or an exec, which has no created and no deleted) has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// `runtime create` (or `runtime exec`) runs.
    #[default]
    Creating,
    /// It failed: see the state's text. Final.
    Failed,
    /// The process is there and waits for start.
    Created,
    /// It runs.
    Running,
    /// It ended: see the state's exit record.
    Exited,
    /// The runtime's own state of it is gone (or could not be removed: see the state's text). Final.
    Deleted,
}

/// Everything that a client may want to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// How far it has come.
    pub phase: Phase,
    /// The container's first process, from [`Phase::Created`] on.
    pub process: Option<Process>,
    /// Wall clock, nanoseconds since 1970; 0: not started.
    pub started_at: i64,
    /// From [`Phase::Exited`] on, and with [`Phase::Failed`].
    pub exit: Option<ExitRecord>,
    /// Why it failed, in the runtime's own words; or why `runtime delete` did.
    pub text: String,
    /// Log writes that failed (no space left…) and whose lines are lost.
    pub log_errors: u64,
}

/// What the monitor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The current state: an answer, or pushed at a change.
    State(State),
    /// The answer to a request that changes something: `Some` is why it could not be done.
    Reply(Option<String>),
}

/// Why a frame could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More than [`MAX_FRAME`] bytes without a newline: the connection is of no use any more.
    #[error("frame longer than {MAX_FRAME} bytes")]
    TooLong,
    /// A field without `=`, a broken escape, a number that is none.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// A verb of a newer peer: answer an error to `seq`, or skip it.
    #[error("unknown verb `{verb}`")]
    UnknownVerb {
        /// The verb.
        verb: String,
        /// The request's number, 0 if it had none.
        seq: u32,
    },
}

/// Appends the frame of `request` number `seq` (1 and up; its answer carries the same) to `out`.
pub fn encode_request(seq: u32, request: &Request, out: &mut Vec<u8>) {
    let verb = match request {
        Request::Hello { .. } => "hello",
        Request::Status => "status",
        Request::Start => "start",
        Request::ReopenLog => "reopen_log",
        Request::Resize { .. } => "resize",
    };
    let mut frame = Frame::new(verb, seq, out);
    match *request {
        Request::Hello { version } => frame.number("version", i64::from(version)),
        Request::Resize { rows, cols } => {
            frame.number("rows", i64::from(rows));
            frame.number("cols", i64::from(cols));
        }
        Request::Status | Request::Start | Request::ReopenLog => {}
    }
    frame.end();
}

/// Reads one frame, without its newline.
pub fn decode_request(frame: &[u8]) -> Result<(u32, Request), DecodeError> {
    let (mut seq, mut version, mut rows, mut cols) = (0, 0, 0, 0);
    let verb = fields(frame, |key, value| {
        match key {
            "seq" => seq = number(value)?,
            "version" => version = number(value)?,
            "rows" => rows = number(value)?,
            "cols" => cols = number(value)?,
            _ => {}
        }
        Ok(())
    })?;
    let request = match verb {
        "hello" => Request::Hello { version },
        "status" => Request::Status,
        "start" => Request::Start,
        "reopen_log" => Request::ReopenLog,
        "resize" => Request::Resize { rows, cols },
        _ => return Err(DecodeError::UnknownVerb { verb: verb.to_owned(), seq }),
    };
    Ok((seq, request))
}

const PHASES: [(Phase, &str); 6] = [
    (Phase::Creating, "creating"),
    (Phase::Failed, "failed"),
    (Phase::Created, "created"),
    (Phase::Running, "running"),
    (Phase::Exited, "exited"),
    (Phase::Deleted, "deleted"),
];

/// Appends the frame of `message`, the answer to request `seq` (0: pushed), to `out`.
pub fn encode_message(seq: u32, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Reply(error) => {
            let mut frame = Frame::new("reply", seq, out);
            if let Some(error) = error {
                frame.text("error", error);
            }
            frame.end();
        }
        Message::State(State { version, phase, process, started_at, exit, text, log_errors }) => {
            let mut frame = Frame::new("state", seq, out);
            frame.number("version", i64::from(*version));
            let phase = PHASES.iter().find(|(p, _)| p == phase).map_or("", |(_, name)| name);
            frame.text("phase", phase);
            if let Some(process) = process {
                frame.number("pid", i64::from(process.pid));
                frame.number("start_time", process.start_time.cast_signed());
            }
            frame.number("started_at", *started_at);
            if let Some(ExitRecord { exit_code, signal, oom_killed, started_at: _, finished_at, reason, message }) =
                exit
            {
                frame.number("exit_code", i64::from(*exit_code));
                frame.number("signal", i64::from(*signal));
                frame.number("oom_killed", i64::from(*oom_killed));
                frame.number("finished_at", *finished_at);
                frame.text("reason", reason);
                frame.text("message", message);
            }
            frame.text("text", text);
            frame.number("log_errors", log_errors.cast_signed());
            frame.end();
        }
    }
}

/// Reads one frame, without its newline.
pub fn decode_message(frame: &[u8]) -> Result<(u32, Message), DecodeError> {
    let mut seq = 0;
    let mut error = None;
    let mut state = State::default();
    let mut exit = ExitRecord::default();
    let (mut exited, mut phase_known) = (false, false);
    let mut process = Process::default();
    let verb = fields(frame, |key, value| {
        match key {
            "seq" => seq = number(value)?,
            "error" => error = Some(string(value)),
            "version" => state.version = number(value)?,
            "phase" => {
                let found = PHASES.iter().find(|(_, name)| name.as_bytes() == value);
                (state.phase, phase_known) = (found.map_or(Phase::Creating, |(p, _)| *p), found.is_some());
            }
            "pid" => process.pid = number(value)?,
            "start_time" => process.start_time = number::<i64>(value)?.cast_unsigned(),
            "started_at" => state.started_at = number(value)?,
            "exit_code" => (exit.exit_code, exited) = (number(value)?, true),
            "signal" => exit.signal = number(value)?,
            "oom_killed" => exit.oom_killed = value == b"1",
            "finished_at" => exit.finished_at = number(value)?,
            "reason" => exit.reason = string(value),
            "message" => exit.message = string(value),
            "text" => state.text = string(value),
            "log_errors" => state.log_errors = number::<i64>(value)?.cast_unsigned(),
            _ => {}
        }
        Ok(())
    })?;
    match verb {
        "reply" => Ok((seq, Message::Reply(error))),
        "state" if phase_known => {
            state.process = (process.pid > 0).then_some(process);
            exit.started_at = state.started_at;
            state.exit = exited.then_some(exit);
            Ok((seq, Message::State(state)))
        }
        "state" => Err(DecodeError::Malformed("unknown phase")),
        _ => Err(DecodeError::UnknownVerb { verb: verb.to_owned(), seq }),
    }
}

/// Collects bytes and hands out whole frames. It holds at most [`MAX_FRAME`] and the bytes of one push.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    start: usize,
}

impl Frames {
    /// Adds what was read from the socket.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, without its newline; `None`: read on.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, DecodeError> {
        let rest = &self.buffer[self.start..];
        match rest.iter().position(|&b| b == b'\n') {
            Some(len) if len < MAX_FRAME => {
                let from = self.start;
                self.start += len + 1;
                Ok(Some(&self.buffer[from..from + len]))
            }
            None if rest.len() < MAX_FRAME => Ok(None),
            _ => Err(DecodeError::TooLong),
        }
    }
}

/// The last [`MAX_TEXT`] bytes of `text`, at a character's start.
pub fn clip(text: &str) -> &str {
    let mut from = text.len().saturating_sub(MAX_TEXT);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

struct Frame<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Frame<'a> {
    fn new(verb: &str, seq: u32, out: &'a mut Vec<u8>) -> Self {
        out.extend_from_slice(verb.as_bytes());
        out.push(b'\t');
        let mut frame = Self { out };
        frame.number("seq", i64::from(seq));
        frame
    }

    fn number(&mut self, key: &str, value: i64) {
        self.text(key, &value.to_string());
    }

    fn text(&mut self, key: &str, value: &str) {
        text::push_pair(key, clip(value).as_bytes(), b'\t', self.out);
    }

    fn end(self) {
        self.out.pop();
        self.out.push(b'\n');
    }
}

fn fields(frame: &[u8], mut each: impl FnMut(&str, &[u8]) -> Result<(), DecodeError>) -> Result<&str, DecodeError> {
    let mut parts = frame.split(|&b| b == b'\t');
    let verb = parts.next().unwrap_or_default();
    for part in parts {
        let (key, value) = text::pair(part).ok_or(DecodeError::Malformed("field is not key=value"))?;
        each(key, &value)?;
    }
    std::str::from_utf8(verb).map_err(|_| DecodeError::Malformed("verb is not UTF-8"))
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Result<N, DecodeError> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|t| t.parse().ok()).ok_or(DecodeError::Malformed("not a number in range"))
}

fn string(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests;
