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

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc as blocks;

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

use crate::digest::{Digest, Hasher, Mismatch, Verifier};
use crate::sys;
use crate::unpack::{self, Below, Source, Unpacked};

/// Chunks of the socket that may wait for the inflate thread.
pub(crate) const CHUNKS: usize = 4;
/// Decompressed bytes go on in blocks of this size …
const BLOCK: usize = 128 << 10;
/// … of which so many may wait for the unpack thread.
const BLOCKS: usize = 4;
/// zstd's window costs memory here; the format allows more than any sane writer uses (RFC 8878, 3.1.1.1.2).
const ZSTD_WINDOW_LOG: u32 = 27;

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

/// Goes by the first bytes: media types lie, and pushers get them wrong.
fn decoder<'a>(blob: &'a mut Blob) -> Result<Box<dyn Read + 'a>, Error> {
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
struct Blob {
    chunks: mpsc::Receiver<Chunk>,
    now: Bytes,
    end: bool,
    verifier: Option<Verifier>,
    failed: Option<Error>,
}

impl Blob {
    fn new(expected: &Expected, chunks: mpsc::Receiver<Chunk>) -> Self {
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

    fn finish(&mut self) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    //! These give themselves a umask and make files, in threads of their own, as root.

    use std::io::Write;
    use std::path::PathBuf;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    struct Nothing;

    impl Below for Nothing {
        fn layers(&self) -> Result<Vec<PathBuf>, unpack::Error> {
            Err(unpack::Error::Below("there are none".into()))
        }
    }

    /// An archive with one file, `f`, of so many bytes.
    fn archive(bytes: usize) -> Vec<u8> {
        let mut header = tar_core::Header::new_ustar();
        header.set_path(b"f").unwrap();
        header.set_entry_type(tar_core::EntryType::Regular);
        header.set_mode(0o644).unwrap();
        header.set_uid(0).unwrap();
        header.set_gid(0).unwrap();
        header.set_mtime(0).unwrap();
        header.set_size(bytes as u64).unwrap();
        header.set_checksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend((0..bytes).map(|i| (i % 251) as u8));
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
        tar
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    /// Sends `sent` in pieces as the blob that `promised` is; returns what came of it.
    async fn pass(promised: &[u8], sent: &[u8], tar: &[u8], piece: usize, end: bool) -> Result<(Unpacked, u64), Error> {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let (chunks, receiver) = mpsc::channel(CHUNKS);
        let expected =
            Expected { blob: Digest::sha256(promised), size: promised.len() as u64, diff_id: Digest::sha256(tar) };
        let result = start(expected, receiver, root, Nothing, Limits::default(), ());
        for chunk in sent.chunks(piece) {
            if chunks.send(Chunk::Data(Bytes::copy_from_slice(chunk))).await.is_err() {
                break;
            }
        }
        if end {
            let _ = chunks.send(Chunk::End).await;
        }
        drop(chunks);
        let (unpacked, ()) = result.await.unwrap()?;
        Ok((unpacked, std::fs::metadata(dir.path().join("f")).map_or(0, |meta| meta.len())))
    }

    #[tokio::test]
    async fn every_compression_in_pieces_of_any_size() {
        let tar = archive(1_000_000);
        let (front, back) = tar.split_at(300_000);
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        // A frame that decoders skip: zstd:chunked keeps its table of contents in one.
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        let blobs = [
            tar.clone(),
            gzip(&tar),
            [gzip(front), gzip(back)].concat(),
            zstd(&tar),
            [zstd(front), skipped.clone(), zstd(back), skipped.clone()].concat(),
            [skipped, zstd(&tar)].concat(),
        ];
        for (i, blob) in blobs.iter().enumerate() {
            for piece in [3, 4000, usize::MAX] {
                if piece == 3 && blob.len() > 100_000 {
                    continue;
                }
                let (unpacked, size) = pass(blob, blob, &tar, piece, true).await.unwrap();
                assert_eq!((unpacked.inodes, size), (2, 1_000_000), "{i} {piece}");
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_believed_before_the_end() {
        let tar = archive(100_000);
        let good = gzip(&tar);
        let (mut flipped, mut longer) = (good.clone(), good.clone());
        flipped[good.len() / 2] ^= 1;
        longer.push(0);
        for (sent, end) in [(&flipped, true), (&longer, true), (&good[..good.len() - 1].to_vec(), true)] {
            let error = pass(&good, sent, &tar, 1000, end).await.unwrap_err();
            assert!(matches!(error, Error::Blob(_)), "{error}");
        }
        // Whoever sends rubbish is to blame, not the image, if it is not what was promised.
        let rubbish = vec![b'x'; good.len()];
        assert!(matches!(pass(&good, &rubbish, &tar, 1000, true).await, Err(Error::Blob(_))));
        assert!(matches!(
            pass(&rubbish, &rubbish, &rubbish, 1000, true).await,
            Err(Error::Unpack(unpack::Error::Tar(_)))
        ));
        assert!(matches!(pass(&good, &good, b"other", 1000, true).await, Err(Error::DiffId { .. })));
        assert!(matches!(pass(&good, &good, &tar, 1000, false).await, Err(Error::GivenUp)));
        assert!(matches!(pass(&good, &good[..50], &tar, 1000, false).await, Err(Error::GivenUp)));
    }

    #[tokio::test]
    async fn a_window_that_takes_too_much_memory_is_refused() {
        let tar = archive(1000);
        // A frame header (RFC 8878) that asks for a window of 2^(10+21) bytes, two gigabytes.
        let blob = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3][..], &[0; 64]].concat();
        assert!(matches!(pass(&blob, &blob, &tar, 1000, true).await, Err(Error::Decompress(_))));
    }
}
