//! The compressed bytes of a layer, verified as they come, and what decompresses them.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::{Chunk, Error, Expected};
use crate::digest::Verifier;

/// zstd's window costs memory here; the format allows more than any sane writer uses (RFC 8878, 3.1.1.1.2).
const ZSTD_WINDOW_LOG: u32 = 27;

/// Goes by the first bytes: media types lie, and pushers get them wrong.
pub(super) fn decoder<'a>(blob: &'a mut Blob) -> Result<Box<dyn Read + 'a>, Error> {
    let magic = blob.peek(6).map_err(Error::Decompress)?;
    match magic {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(blob))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(blob).map_err(Error::Decompress)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Error::Decompress)?;
            Ok(Box::new(decoder))
        }
        b"\xfd7zXZ\0" => Err(Error::Compression("xz")),
        [b'B', b'Z', b'h', ..] => Err(Error::Compression("bzip2")),
        _ => Ok(Box::new(blob)),
    }
}

/// The compressed bytes, verified as they come.
pub(super) struct Blob {
    chunks: mpsc::Receiver<Chunk>,
    now: Bytes,
    end: bool,
    verifier: Option<Verifier>,
    /// Why the stream broke off, which its readers don't know.
    pub(super) failed: Option<Error>,
}

impl Blob {
    pub(super) fn new(expected: &Expected, chunks: mpsc::Receiver<Chunk>) -> Self {
        let verifier = Some(Verifier::new(&expected.blob, expected.size));
        Self { chunks, now: Bytes::new(), end: false, verifier, failed: None }
    }

    fn fetch(&mut self) -> Result<Option<Bytes>, Error> {
        match self.chunks.blocking_recv() {
            Some(Chunk::Data(bytes)) => {
                if let Some(verifier) = &mut self.verifier {
                    verifier.update(&bytes)?;
                }
                Ok(Some(bytes))
            }
            Some(Chunk::End) => Ok(None),
            None => Err(Error::GivenUp),
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        while self.now.is_empty() && !self.end {
            match self.fetch() {
                Ok(Some(bytes)) => self.now = bytes,
                Ok(None) => self.end = true,
                Err(error) => {
                    self.failed = Some(error);
                    return Err(io::Error::other("the stream broke off"));
                }
            }
        }
        Ok(())
    }

    /// The first `n` bytes, if there are so many.
    fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.fill()?;
        let mut start = std::mem::take(&mut self.now);
        while start.len() < n && !self.end {
            self.fill()?;
            start = [start, std::mem::take(&mut self.now)].concat().into();
        }
        self.now = start;
        Ok(&self.now[..n.min(self.now.len())])
    }

    pub(super) fn finish(&mut self) -> Result<(), Error> {
        while !self.end {
            self.now = Bytes::new();
            if self.fill().is_err() {
                return Err(self.failed.take().unwrap_or(Error::GivenUp));
            }
        }
        Ok(self.verifier.take().map_or(Ok(()), Verifier::finish)?)
    }
}

impl Read for Blob {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let have = self.fill_buf()?;
        let n = have.len().min(into.len());
        into[..n].copy_from_slice(&have[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(&self.now)
    }

    fn consume(&mut self, n: usize) {
        self.now.advance(n);
    }
}
