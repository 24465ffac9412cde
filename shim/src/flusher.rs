//! Makes records durable behind the requests that wrote them.
//!
//! ```text
//! update: temporary file ─► rename ─► answer            survives kill -9: the page cache does
//!                              └─► queue ─► thread: fsync of the file and of its directory
//! ```
//!
//! A busy disk takes hundreds of milliseconds for an fsync, and a power cut ends the pods that the records are of. So
//! nobody waits for it: what was not flushed when the power went is an older record, an empty one, or none, and `recover`
//! undoes what it was of.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use crisp_store::durable::Disk;

/// The way to the thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Flusher {
    queue: Sender<PathBuf>,
}

impl Flusher {
    /// Starts the thread.
    pub fn start(disk: Disk) -> std::io::Result<Self> {
        let (queue, queued) = channel();
        let thread = std::thread::Builder::new().name("crisp-flush".to_owned()).stack_size(128 << 10);
        thread.spawn(move || run(&disk, &queued))?;
        Ok(Self { queue })
    }

    /// Has a record flushed soon.
    pub fn soon(&self, record: PathBuf) {
        // Without the thread the kernel writes it back, in its own time.
        let _ = self.queue.send(record);
    }
}

fn run(disk: &Disk, queued: &Receiver<PathBuf>) {
    while let Ok(first) = queued.recv() {
        // What is written often is flushed once.
        let records: BTreeSet<PathBuf> = std::iter::once(first).chain(queued.try_iter()).collect();
        for record in records {
            match disk.sync(&record) {
                // Removed since.
                Err(error) if error.is_not_found() => {}
                Err(error) => tracing::warn!(%error, "a record could not be flushed: a power cut now may undo it"),
                Ok(()) => {}
            }
        }
    }
}
