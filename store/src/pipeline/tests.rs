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
    assert!(matches!(pass(&rubbish, &rubbish, &rubbish, 1000, true).await, Err(Error::Unpack(unpack::Error::Tar(_)))));
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
