//! The container's output: read from its pipes or its terminal, cut into lines, logged.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::cri_log::Framer;
use crate::log_file::LogFile;
use crate::runtime::Tail;
use crate::stamp;
use crate::sys::Pages;

/// Read at once. A pipe holds 64 KiB; more than this at a time gains little and costs memory for as long as lines come.
const CHUNK: usize = 16 * 1024;
/// How long a terminal that nobody has open is left alone; the kernel has no way to tell when somebody opens it again.
const CLOSED_TERMINAL: Duration = Duration::from_millis(100);
/// Reads of one stream when the container has ended: what its pipe can hold, and as much again.
const DRAIN_READS: usize = 16;

/// One source of lines.
#[derive(Debug)]
struct Source {
    name: &'static str,
    fd: OwnedFd,
    framer: Framer,
    is_terminal: bool,
    /// Nobody has the terminal open; it is looked at again then.
    closed_until: Option<Instant>,
}

/// Both of them (a terminal has one).
#[derive(Debug)]
pub(crate) struct Streams {
    sources: [Option<Source>; 2],
    chunk: Pages,
    line_max: usize,
    /// The container has ended: a terminal that nobody has open stays so.
    over: bool,
}

impl Streams {
    /// None yet.
    pub(crate) fn new(line_max: u32) -> io::Result<Self> {
        Ok(Self { sources: [None, None], chunk: Pages::new(CHUNK)?, line_max: line_max as usize, over: false })
    }

    /// Adds a non-blocking descriptor; `slot` 0 or 1.
    pub(crate) fn add(&mut self, slot: usize, name: &'static str, fd: OwnedFd) -> io::Result<()> {
        let framer = Framer::new(self.line_max)?;
        self.sources[slot] = Some(Source { name, fd, framer, is_terminal: false, closed_until: None });
        Ok(())
    }

    /// Adds the master of the container's terminal, which is all its output.
    pub(crate) fn add_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        self.add(0, "stdout", master)?;
        self.sources[0].iter_mut().for_each(|source| source.is_terminal = true);
        Ok(())
    }

    /// The terminal's master.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.sources[0].as_ref().filter(|source| source.is_terminal).map(|source| source.fd.as_fd())
    }

    /// What to poll for reading.
    pub(crate) fn fd(&self, slot: usize) -> Option<BorrowedFd<'_>> {
        let source = self.sources[slot].as_ref()?;
        source.closed_until.is_none_or(|until| Instant::now() >= until).then(|| source.fd.as_fd())
    }

    /// When a closed terminal is to be looked at again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sources[0].as_ref()?.closed_until
    }

    /// Whether nobody can write any more.
    pub(crate) fn ended(&self) -> bool {
        self.sources.iter().all(Option::is_none)
    }

    /// Before the container is created only the runtime writes: its errors, not lines of the container's.
    pub(crate) fn divert(&mut self, slot: usize, said: &mut Tail) {
        let Some(source) = &self.sources[slot] else { return };
        for _ in 0..DRAIN_READS {
            match rustix::io::read(&source.fd, self.chunk.bytes_mut()) {
                Ok(n @ 1..) => said.add(&self.chunk.bytes()[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => {
                    self.sources[slot] = None;
                    return;
                }
            }
        }
    }

    /// Reads once and logs; `true`: there may be more. At the end of the stream the rest is logged and the source closed.
    pub(crate) fn pump(&mut self, slot: usize, log: &mut LogFile) -> bool {
        let Some(Source { name, fd, framer, is_terminal, closed_until }) = &mut self.sources[slot] else {
            return false;
        };
        let result = rustix::io::read(&*fd, self.chunk.bytes_mut());
        *closed_until = None;
        let time = stamp::format(stamp::now());
        match result {
            Ok(n @ 1..) => {
                framer.push(&self.chunk.bytes()[..n], |tag, a, b| log.line(&time, name, tag, [a, b]));
                log.flush();
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // Nobody has it open now; who has it as its controlling terminal may open it again.
            Err(Errno::IO) if *is_terminal && !self.over => {
                *closed_until = Some(Instant::now() + CLOSED_TERMINAL);
                false
            }
            // The end: closed by all writers.
            Ok(_) | Err(_) => {
                framer.flush(|tag, a, b| log.line(&time, name, tag, [a, b]));
                log.flush();
                self.sources[slot] = None;
                false
            }
        }
    }

    /// Logs what is in the pipes now, unfinished lines too; for the container's end. Bounded, whoever goes on writing.
    pub(crate) fn drain(&mut self, log: &mut LogFile) {
        self.over = true;
        for slot in 0..self.sources.len() {
            for _ in 0..DRAIN_READS {
                if !self.pump(slot, log) {
                    break;
                }
            }
        }
        let time = stamp::format(stamp::now());
        for Source { name, framer, .. } in self.sources.iter_mut().flatten() {
            framer.flush(|tag, a, b| log.line(&time, name, tag, [a, b]));
        }
        log.flush();
    }

    /// Gives buffers back, for a container that is silent.
    pub(crate) fn release(&mut self) {
        self.chunk.release();
        self.sources.iter_mut().flatten().for_each(|s| s.framer.release());
    }
}
