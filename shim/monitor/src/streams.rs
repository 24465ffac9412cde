//! The container's output: read from its pipes or its terminal, cut into lines, logged.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::cri_log::Framer;
use crate::log_file::LogFile;
use crate::runtime::Tail;
use crate::stamp;
use crate::sys::Pages;

/// Read at once. A pipe holds 64 KiB; more than this at a time gains little and costs memory for as long as lines come.
const CHUNK: usize = 16 * 1024;
/// Reads of one stream when the container has ended: what its pipe can hold, and as much again.
const DRAIN_READS: usize = 16;

/// One source of lines.
#[derive(Debug)]
struct Source {
    name: &'static str,
    fd: OwnedFd,
    framer: Framer,
}

/// Both of them (a terminal has one).
#[derive(Debug)]
pub(crate) struct Streams {
    sources: [Option<Source>; 2],
    chunk: Pages,
    line_max: usize,
}

impl Streams {
    /// None yet.
    pub(crate) fn new(line_max: u32) -> io::Result<Self> {
        Ok(Self { sources: [None, None], chunk: Pages::new(CHUNK)?, line_max: line_max as usize })
    }

    /// Adds a non-blocking descriptor; `slot` 0 or 1.
    pub(crate) fn add(&mut self, slot: usize, name: &'static str, fd: OwnedFd) -> io::Result<()> {
        self.sources[slot] = Some(Source { name, fd, framer: Framer::new(self.line_max)? });
        Ok(())
    }

    /// What to poll for reading.
    pub(crate) fn fd(&self, slot: usize) -> Option<BorrowedFd<'_>> {
        self.sources[slot].as_ref().map(|s| s.fd.as_fd())
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
        let Some(Source { name, fd, framer }) = &mut self.sources[slot] else { return false };
        let result = rustix::io::read(&*fd, self.chunk.bytes_mut());
        let time = stamp::format(stamp::now());
        match result {
            Ok(n @ 1..) => {
                framer.push(&self.chunk.bytes()[..n], |tag, a, b| log.line(&time, name, tag, [a, b]));
                log.flush();
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // The end: closed by all writers, or (a terminal: EIO) by its last user.
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
