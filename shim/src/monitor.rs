//! The server's side of a monitor: a task that follows what it says, and the way to ask it something.
//!
//! ```text
//! Link::ask ──► queue ──► follow task ──► monitor.sock       one connection a container
//!                              │◄── state, reply ──
//!                              └──► Container.status (watch)
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use crisp_monitor::exit_record::ExitRecord;
use crisp_monitor::protocol::{Frames, Message, Phase, Request, State, VERSION, decode_message, encode_request};
use crisp_monitor::spawn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::container::Status;
use crate::error::{Error, Result};
use crate::model::Process;

/// How often a monitor that lives, and cannot be connected to, is tried again: the server ran out of descriptors, say.
const RETRY: Duration = Duration::from_millis(500);

type Question = (Request, oneshot::Sender<Option<String>>);

/// The way to a monitor.
#[derive(Debug, Clone)]
pub struct Link {
    questions: mpsc::Sender<Question>,
}

/// The other end of a [`Link`], for the follow task.
#[derive(Debug)]
pub struct Questions(mpsc::Receiver<Question>);

impl Link {
    /// A link to a monitor that is not followed yet, or never: asking such a one fails.
    pub fn new() -> (Self, Questions) {
        let (questions, asked) = mpsc::channel(4);
        (Self { questions }, Questions(asked))
    }

    /// Asks, and waits for the answer; an answer may say why not. `runtime` names who is asked in the error.
    pub async fn ask(&self, id: &str, runtime: &str, verb: &'static str, request: Request) -> Result<()> {
        let lost = || Error::MonitorLost { id: id.to_owned() };
        let (answer, answered) = oneshot::channel();
        self.questions.send((request, answer)).await.map_err(|_| lost())?;
        match answered.await.map_err(|_| lost())? {
            None => Ok(()),
            Some(text) => Err(Error::Runtime { runtime: runtime.to_owned(), verb, id: id.to_owned(), text }),
        }
    }
}

/// What a monitor in its first moments said.
#[derive(Debug, Clone)]
pub enum Birth {
    /// The process is there.
    Created(Process),
    /// The runtime's words.
    Failed(String),
}

/// Follows the monitor in `dir` until it ends, writing what it says into `status`. `child` is reaped at the end.
///
/// `birth` learns how creation went, or is dropped when the monitor ended before it said so. A new monitor that cannot be
/// connected to is ended, for nobody would ever hear of its container; one of an earlier server is tried again while it lives.
pub async fn follow(
    dir: &Path,
    mut child: Option<Child>,
    mut questions: Questions,
    status: watch::Sender<Status>,
    birth: Option<oneshot::Sender<Birth>>,
) {
    let end = match reach(dir, child.as_mut()).await {
        Ok(socket) => talk(socket, &mut questions.0, &status, birth).await,
        Err(error) => {
            drop(birth);
            Err(error)
        }
    };
    if let Err(error) = end {
        tracing::debug!(dir = %dir.display(), %error, "connection to the monitor ended");
    }
    drop(questions);
    let dir = dir.to_owned();
    // The monitor's last act is to write; it is a child of ours unless a server before us started it.
    let exit = tokio::task::spawn_blocking(move || {
        if let Some(mut child) = child {
            let _ = child.wait();
        }
        ExitRecord::read(&dir.join("exit.json"))
    });
    let exit = exit.await.ok().and_then(|read| read.ok()).flatten();
    status.send_modify(|status| {
        if status.exit.is_none() {
            match exit {
                Some(exit) => status.exit = Some(Arc::new(exit)),
                None => status.lost = true,
            }
        }
        status.over = true;
    });
}

/// A connection, or the error with which no monitor lives any more.
async fn reach(dir: &Path, child: Option<&mut Child>) -> std::io::Result<UnixStream> {
    if let Some(child) = child {
        return connect(dir).inspect_err(|error| {
            tracing::warn!(dir = %dir.display(), %error, "ending a monitor that cannot be connected to");
            if let Err(error) = child.kill() {
                tracing::warn!(dir = %dir.display(), %error, "the monitor could not be ended");
            }
        });
    }
    loop {
        match connect(dir) {
            Err(error) if spawn::is_locked(dir).unwrap_or(true) => {
                tracing::debug!(dir = %dir.display(), %error, "a monitor that lives cannot be connected to yet");
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

fn connect(dir: &Path) -> std::io::Result<UnixStream> {
    let socket = spawn::connect(dir)?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

async fn talk(
    socket: UnixStream,
    questions: &mut mpsc::Receiver<Question>,
    status: &watch::Sender<Status>,
    mut birth: Option<oneshot::Sender<Birth>>,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = socket.into_split();
    let (mut framer, mut out, mut next) = (Frames::default(), Vec::new(), 1_u32);
    let mut waiting: HashMap<u32, oneshot::Sender<Option<String>>> = HashMap::new();
    encode_request(next, &Request::Hello { version: VERSION }, &mut out);
    let mut buffer = [0_u8; 1024];
    let mut asking = true;
    loop {
        if !out.is_empty() {
            writer.write_all(&out).await?;
            out.clear();
        }
        tokio::select! {
            read = reader.read(&mut buffer) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                framer.push(&buffer[..read]);
                loop {
                    let frame = match framer.next_frame() {
                        Ok(Some(frame)) => frame,
                        Ok(None) => break,
                        Err(error) => return Err(std::io::Error::other(error)),
                    };
                    // A word that a newer monitor says and this server does not know is not for it.
                    let Ok((seq, message)) = decode_message(frame) else { continue };
                    match message {
                        Message::State(state) => heard(state, status, &mut birth),
                        Message::Reply(answer) => {
                            if let Some(asker) = waiting.remove(&seq) {
                                let _ = asker.send(answer);
                            }
                        }
                    }
                }
            }
            question = questions.recv(), if asking => match question {
                Some((request, asker)) => {
                    next += 1;
                    encode_request(next, &request, &mut out);
                    waiting.insert(next, asker);
                }
                None => asking = false,
            },
        }
    }
}

fn heard(state: State, status: &watch::Sender<Status>, birth: &mut Option<oneshot::Sender<Birth>>) {
    let State { version: _, phase, process, started_at, exit, text, log_errors } = state;
    let process = process.map(|p| Process { pid: p.pid, start_time: p.start_time });
    if log_errors > 0 {
        tracing::warn!(log_errors, ?process, "a container's log could not be written in part");
    }
    let news = match (phase, process) {
        (Phase::Failed, _) => Some(Birth::Failed(text)),
        (Phase::Creating, _) => None,
        (_, Some(process)) => Some(Birth::Created(process)),
        (_, None) => None,
    };
    status.send_modify(|status| {
        status.process = process.or(status.process);
        if started_at > 0 {
            status.started_at = Some(started_at);
        }
        if let Some(exit) = exit {
            status.exit = Some(Arc::new(exit));
        }
        status.over |= phase == Phase::Deleted;
    });
    if let Some(news) = news
        && let Some(birth) = birth.take()
    {
        let _ = birth.send(news);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_new_monitor_that_cannot_be_connected_to_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let (_link, questions) = Link::new();
        let (status, seen) = watch::channel(Status::default());
        let (tell, told) = oneshot::channel();
        let followed = follow(dir.path(), Some(child), questions, status, Some(tell));
        tokio::time::timeout(PATIENCE, followed).await.unwrap();
        assert!(told.await.is_err() && seen.borrow().lost && seen.borrow().over);
    }

    #[tokio::test]
    async fn a_monitor_that_lives_is_tried_until_it_can_be_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let lock = std::fs::File::create(dir.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        let (_link, questions) = Link::new();
        let (status, mut seen) = watch::channel(Status::default());
        let path = dir.path().to_owned();
        let followed = tokio::spawn(async move { follow(&path, None, questions, status, None).await });
        tokio::time::sleep(RETRY / 2).await;
        assert!(!seen.borrow_and_update().over);
        let listener = tokio::net::UnixListener::bind(dir.path().join("monitor.sock")).unwrap();
        let (socket, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        drop((socket, listener, lock));
        tokio::time::timeout(PATIENCE, followed).await.unwrap().unwrap();
        assert!(seen.borrow().over);
    }
}
