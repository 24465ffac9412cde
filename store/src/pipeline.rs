//! One layer on its way from the socket to the disk, in one pass:
//!
//! ```text
//!   download task ─chunks─▶ thread "inflate": sha256, decompress, sha256 ─blocks─▶ thread "unpack": tar, files
//!                                             ◀──────────── spent blocks ──────────
//! ```
//!
//! Two threads, because decompression with both hashes costs about as much as the system calls that make the files.
//! Both ends are bounded, so a slow disk holds the socket back. Nothing is believed before the end: size and digest of
//! the blob and the digest of what was inside are compared when all of it came, and only then the result is `Ok`.
//! A download that is given up just goes away; the stream then ends without [`Chunk::End`].

mod blob;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc as blocks;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::digest::{Digest, Hasher, Mismatch};
use crate::sys;
use crate::unpack::{self, Below, Source, Unpacked};
use blob::{Blob, decoder};

/// Chunks of the socket that may wait for the inflate thread.
pub(crate) const CHUNKS: usize = 4;
/// Decompressed bytes go on in blocks of this size …
const BLOCK: usize = 128 << 10;
/// … of which so many may wait for the unpack thread.
const BLOCKS: usize = 4;

/// What the download task sends.
#[derive(Debug)]
pub(crate) enum Chunk {
    Data(Bytes),
    /// All of it came.
    End,
}

/// The layer that is expected.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) blob: Digest,
    /// Bytes of the blob.
    pub(crate) size: u64,
    /// Digest of the decompressed archive.
    pub(crate) diff_id: Digest,
}

/// Bounds on what a layer may become.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes that one layer may have when decompressed.
    pub layer_bytes: u64,
    /// Most decompressed bytes for each compressed one, once there are more than a gigabyte of them.
    pub ratio: u64,
    /// Most entries in one layer.
    pub entries: u64,
}

impl Default for Limits {
    /// 512 GiB, 400 : 1 and four million: far above any honest image, and below what fills a disk from a small blob.
    fn default() -> Self {
        Self { layer_bytes: 512 << 30, ratio: 400, entries: 4_000_000 }
    }
}

const RATIO_FROM: u64 = 1 << 30;

/// Why a layer did not get onto the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Size or digest of the blob differ.
    #[error("the blob is not what its descriptor says: {0}")]
    Blob(#[from] Mismatch),
    /// Digest of the content differs.
    #[error("the layer's content is {found}, its image says {expected}")]
    DiffId {
        /// What came.
        found: Digest,
        /// What the image's configuration says.
        expected: Digest,
    },
    /// The compressed data is damaged.
    #[error("cannot decompress it: {0}")]
    Decompress(#[source] io::Error),
    /// A compression that is not served.
    #[error("it is compressed with {0}, which layers must not be: gzip and zstd are known here")]
    Compression(&'static str),
    /// More bytes than the bounds allow.
    #[error("it is larger than {0} bytes when decompressed")]
    TooLarge(u64),
    /// The archive makes no sense, or the disk fails.
    #[error("{0}")]
    Unpack(#[from] unpack::Error),
    /// No thread could be had.
    #[error("cannot start a thread for it: {0}")]
    Thread(#[source] io::Error),
    /// The download was given up.
    #[error("the download was given up")]
    GivenUp,
    /// The unpack thread went away, with a reason of its own.
    #[error("it is not unpacked any more")]
    Downstream,
}

/// Starts both threads. `root` is the empty directory to fill, and `keep` what owns it: returned with the result, or
/// dropped, when there is none or nobody takes it, after the last file was written.
pub(crate) fn start<K: Send + 'static>(
    expected: Expected,
    chunks: mpsc::Receiver<Chunk>,
    root: OwnedFd,
    below: impl Below + Send + 'static,
    limits: Limits,
    keep: K,
) -> oneshot::Receiver<Result<(Unpacked, K), Error>> {
    let (report, result) = oneshot::channel();
    let work = move || {
        let unpacked = run(&expected, chunks, root, &below, limits);
        // The layers below, and a place among those that work.
        drop(below);
        let _ = report.send(unpacked.map(|unpacked| (unpacked, keep)));
    };
    if let Err(error) = std::thread::Builder::new().name("unpack".into()).stack_size(512 << 10).spawn(work) {
        // The closure is gone, and the sender with it; the receiver sees that.
        tracing::error!(%error, "cannot start a thread");
    }
    result
}

fn run(
    expected: &Expected,
    chunks: mpsc::Receiver<Chunk>,
    root: OwnedFd,
    below: &dyn Below,
    limits: Limits,
) -> Result<Unpacked, Error> {
    sys::own_umask().map_err(Error::Thread)?;
    let (full, filled) = blocks::sync_channel(BLOCKS);
    let (empty, spent) = blocks::sync_channel(BLOCKS + 2);
    std::thread::scope(|scope| {
        let mut blob = Blob::new(expected, chunks);
        let inflate = move || {
            let result = inflate(&mut blob, expected, &full, &spent, limits);
            if result.is_ok() {
                // Only now: an end that is not verified is no end.
                let _ = full.send(None);
            }
            (result, blob)
        };
        let inflating = std::thread::Builder::new()
            .name("inflate".into())
            .stack_size(512 << 10)
            .spawn_scoped(scope, inflate)
            .map_err(Error::Thread)?;
        let mut source = Blocks { filled, empty };
        let unpacked = unpack::unpack(&mut source, root, below, unpack::Limits { entries: limits.entries });
        drop(source);
        let Ok((inflated, mut blob)) = inflating.join() else { return Err(Error::Downstream) };
        // Each side ends when the other does; the one that began knows why.
        let error = match (inflated, unpacked) {
            (Ok(()), Ok(unpacked)) => return Ok(unpacked),
            (Err(Error::Downstream) | Ok(()), Err(error)) => error.into(),
            (Err(error), _) => error,
        };
        // Nonsense may be what the image's author made, or what a bad mirror made of it.
        match error {
            Error::Decompress(_) | Error::Compression(_) => blob.finish()?,
            Error::Unpack(unpack::Error::Tar(_) | unpack::Error::Entry(..) | unpack::Error::CutOff) => blob.finish()?,
            _ => {}
        }
        Err(error)
    })
}

/// The unpack thread's end.
struct Blocks {
    filled: blocks::Receiver<Option<Vec<u8>>>,
    empty: blocks::SyncSender<Vec<u8>>,
}

impl Source for Blocks {
    fn next(&mut self, spent: Vec<u8>) -> Result<Option<Vec<u8>>, unpack::Error> {
        if spent.capacity() > 0 {
            // No room means there are enough.
            let _ = self.empty.try_send(spent);
        }
        self.filled.recv().map_err(|_| unpack::Error::Source)
    }
}

fn inflate(
    blob: &mut Blob,
    expected: &Expected,
    full: &blocks::SyncSender<Option<Vec<u8>>>,
    spent: &blocks::Receiver<Vec<u8>>,
    limits: Limits,
) -> Result<(), Error> {
    let passed = decompress(blob, expected, full, spent, limits);
    // What a reader says about a stream that broke off is not the reason.
    if let Some(error) = blob.failed.take() {
        return Err(error);
    }
    let found = passed?;
    blob.finish()?;
    if found != expected.diff_id {
        return Err(Error::DiffId { found, expected: expected.diff_id.clone() });
    }
    Ok(())
}

/// Sends everything that is in the blob on and returns its digest.
fn decompress(
    blob: &mut Blob,
    expected: &Expected,
    full: &blocks::SyncSender<Option<Vec<u8>>>,
    spent: &blocks::Receiver<Vec<u8>>,
    limits: Limits,
) -> Result<Digest, Error> {
    let most = limits.layer_bytes.min(expected.size.saturating_mul(limits.ratio).max(RATIO_FROM));
    let mut hasher = Hasher::new(expected.diff_id.algorithm());
    let mut total = 0;
    let mut reader = decoder(blob)?;
    loop {
        let mut block = spent.try_recv().unwrap_or_default();
        block.resize(BLOCK, 0);
        let mut len = 0;
        while len < BLOCK {
            match reader.read(&mut block[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Decompress(e)),
            }
        }
        if len == 0 {
            return Ok(hasher.finish());
        }
        block.truncate(len);
        total += len as u64;
        if total > most {
            return Err(Error::TooLarge(most));
        }
        hasher.update(&block);
        full.send(Some(block)).map_err(|_| Error::Downstream)?;
    }
}

#[cfg(test)]
mod tests;
