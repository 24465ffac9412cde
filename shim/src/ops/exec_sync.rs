//! ExecSync: a process in a running container, its output, its exit code.
//!
//! ```text
//! server ── socket ──► helper (crisp-monitor exec) ──► runtime exec --detach ──► process
//!    ▲◄──── state: running, exited │ failed                                        │
//!    └───────────────────────────── stdout, stderr: pipes ─────────────────────────┘
//! ```
//!
//! The helper keeps the time limit, so it holds without the server too, and kills when the server hangs up.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crisp_monitor::exit_record::{ExitRecord, REASON_TIMEOUT};
use crisp_monitor::launch::Exec;
use crisp_monitor::protocol::{Frames, Message, Phase, decode_message};
use crisp_monitor::spawn::{self, ExecStdio};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::container::{Container, State};
use crate::error::{Error, Result};
use crate::node::{Node, blocking, make_dir, remove_dir};
use crate::sys;

/// What both streams may hold together. The contract speaks of 16 MiB for each, but clients refuse an answer of more than
/// 16 MiB in all; what comes beyond is read and dropped, so that the process is not held up.
const MAX_OUTPUT: usize = (16 << 20) - (64 << 10);
/// How long the streams may stay open after the process has ended: a child in the background may hold them for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// Runs `command` in the container with this id or prefix; a timeout of zero is none.
pub async fn exec_sync(node: &Arc<Node>, id: &str, command: Vec<String>, timeout: Duration) -> Result<Output> {
    let container = node.registry.container(id)?;
    if command.is_empty() {
        return Err(Error::Invalid("the command to execute is empty".to_owned()));
    }
    if container.state() != State::Running {
        return Err(Error::Precondition(format!("container {} is not running", container.id)));
    }
    node.host.cgroups.expect_move();
    let Started { socket, stdout, stderr } = start(node, &container, command, timeout).await?;
    let left = AtomicUsize::new(MAX_OUTPUT);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = {
        let streams = async { tokio::join!(collect(stdout, &mut out, &left), collect(stderr, &mut err, &left)) };
        tokio::pin!(streams);
        let states = last_state(socket);
        tokio::pin!(states);
        let mut drained = false;
        let ended = loop {
            tokio::select! {
                ended = &mut states => break ended,
                _ = &mut streams, if !drained => drained = true,
            }
        };
        if !drained && matches!(&ended, End::Exited(exit) if exit.reason != REASON_TIMEOUT) {
            let _ = tokio::time::timeout(DRAIN, streams).await;
        }
        ended
    };
    match ended {
        End::Exited(exit) if exit.reason == REASON_TIMEOUT => Err(Error::Timeout(format!(
            "the command in container {} was killed: its timeout of {} s was exceeded",
            container.id,
            timeout.as_secs()
        ))),
        End::Exited(exit) => Ok(Output { stdout: out, stderr: err, exit_code: exit.exit_code }),
        End::Failed(text) => Err(Error::Runtime {
            runtime: container.record().runtime.clone(),
            verb: "exec",
            id: container.id.clone(),
            text,
        }),
        End::Lost => {
            Err(Error::Internal(format!("the exec helper of container {} ended without a word", container.id)))
        }
    }
}

struct Started {
    socket: tokio::net::UnixStream,
    stdout: Receiver,
    stderr: Receiver,
}

async fn start(
    node: &Arc<Node>,
    container: &Arc<Container>,
    command: Vec<String>,
    timeout: Duration,
) -> Result<Started> {
    let (worker, container) = (Arc::clone(node), Arc::clone(container));
    let (child, dir, socket, stdout, stderr) = blocking(move || {
        let node = &*worker;
        let record = container.record();
        let exec_id = sys::new_id().map_err(Error::io("read", std::path::Path::new("/dev/urandom")))?;
        let dir = node.paths.exec(&exec_id);
        make_dir(&dir)?;
        let spawned = || -> Result<_> {
            let process = process(node, &container.id, command)?;
            let path = dir.join("process.json");
            std::fs::write(&path, process).map_err(Error::io("write", &path))?;
            let runtime = node.runtimes.get(&record.runtime)?;
            let mut exec = Exec::new(&container.id, &dir, runtime.call.clone());
            exec.timeout = (!timeout.is_zero()).then_some(timeout);
            exec.kill_on_hangup = true;
            exec.runtime_timeout = runtime.timeout;
            let pipe = || std::io::pipe().map_err(Error::io("make a pipe for", &dir));
            let ((out_reader, out_writer), (err_reader, err_writer)) = (pipe()?, pipe()?);
            let stdio = ExecStdio { stdin: None, stdout: Some(out_writer.as_fd()), stderr: Some(err_writer.as_fd()) };
            let (child, socket) = spawn::exec(node.monitor.as_fd(), &exec, &stdio)
                .map_err(|source| Error::Spawn { id: container.id.clone(), source })?;
            Ok((child, socket, OwnedFd::from(out_reader), OwnedFd::from(err_reader)))
        };
        match spawned() {
            Ok((child, socket, out, err)) => Ok((child, dir, socket, out, err)),
            Err(error) => {
                remove_dir(&dir)?;
                Err(error)
            }
        }
    })
    .await?;
    reap(child, dir.clone());
    let receiver = |fd: OwnedFd| {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Receiver::from_owned_fd(fd)
    };
    let ready = || -> std::io::Result<Started> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        Ok(Started { socket, stdout: receiver(stdout)?, stderr: receiver(stderr)? })
    };
    ready().map_err(Error::io("follow", &dir))
}

/// Waits for the helper and removes what it leaves, whether or not anybody still waits for the exec.
fn reap(child: std::process::Child, dir: PathBuf) {
    tokio::spawn(async move {
        sys::reaped(child).await;
        if let Err(error) = remove_dir(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove what an exec left");
        }
    });
}

/// The container's own process with other arguments, so that user, environment, directory and limits are the same.
fn process(node: &Node, id: &str, command: Vec<String>) -> Result<Vec<u8>> {
    let path = node.paths.container_dir(id).join("bundle/config.json");
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let no_spec = |error: serde_json::Error| Error::Internal(format!("{}: {error}", path.display()));
    let mut spec: serde_json::Value = serde_json::from_slice(&text).map_err(no_spec)?;
    let mut process = spec["process"].take();
    process["args"] = command.into();
    process["terminal"] = false.into();
    if let Some(process) = process.as_object_mut() {
        process.remove("consoleSize");
    }
    serde_json::to_vec(&process).map_err(no_spec)
}

/// Reads a stream to its end, keeping what there is room for.
async fn collect(mut stream: Receiver, into: &mut Vec<u8>, left: &AtomicUsize) {
    let mut buffer = vec![0_u8; 16 << 10];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let room = left.load(Ordering::Relaxed).min(read);
        left.fetch_sub(room, Ordering::Relaxed);
        into.extend_from_slice(&buffer[..room]);
    }
}

enum End {
    Exited(ExitRecord),
    Failed(String),
    Lost,
}

async fn last_state(mut socket: tokio::net::UnixStream) -> End {
    let mut frames = Frames::default();
    let mut buffer = [0_u8; 2048];
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        frames.push(&buffer[..read]);
        while let Ok(Some(frame)) = frames.next_frame() {
            let Ok((_, Message::State(state))) = decode_message(frame) else { continue };
            match (state.phase, state.exit) {
                (Phase::Failed, _) => return End::Failed(state.text),
                (Phase::Exited | Phase::Deleted, Some(exit)) => return End::Exited(exit),
                _ => {}
            }
        }
    }
    End::Lost
}
