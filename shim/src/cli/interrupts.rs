//! Ctrl-C and SIGTERM, counted.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::error::{CliError, INTERRUPTED, Result};

/// How often this program was asked to end.
#[derive(Debug)]
pub struct Interrupts {
    count: watch::Receiver<u32>,
    seen: u32,
}

impl Interrupts {
    /// From now on a signal is only counted.
    pub fn listen() -> Result<Self> {
        let wrong = |error| CliError::new(format!("listen for signals: {error}"));
        let mut int = signal(SignalKind::interrupt()).map_err(wrong)?;
        let mut term = signal(SignalKind::terminate()).map_err(wrong)?;
        let (sender, count) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let more = tokio::select! {
                    more = int.recv() => more,
                    more = term.recv() => more,
                };
                if more.is_none() {
                    return;
                }
                sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { count, seen: 0 })
    }

    /// Waits for the next one and gives its number, from 1.
    pub async fn next(&mut self) -> u32 {
        let seen = self.seen;
        if self.count.wait_for(|count| *count > seen).await.is_err() {
            // The listener is gone: there will be no more.
            std::future::pending::<()>().await;
        }
        self.seen += 1;
        self.seen
    }

    /// An error if there was one.
    pub fn check(&self) -> Result {
        if *self.count.borrow() == 0 { Ok(()) } else { Err(CliError::silent(INTERRUPTED)) }
    }
}
