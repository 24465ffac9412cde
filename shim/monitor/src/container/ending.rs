//! The end of a container: the record, what is told, what the runtime has to forget.

use std::time::Instant;

use crisp_monitor::exit_record::{self, ExitRecord, REASON_CREATE_ERROR, REASON_START_ERROR};
use crisp_monitor::launch::Launch;
use crisp_monitor::protocol::Phase;

use super::{LINGER, Monitor};
use crate::process::exit_code;
use crate::runtime::{self, Job, Verb};
use crate::{complain, stamp};

/// The record of a container that never was.
pub(super) fn not_created(text: &str) -> ExitRecord {
    ExitRecord {
        exit_code: 128,
        finished_at: stamp::now(),
        reason: REASON_CREATE_ERROR.to_owned(),
        message: text.to_owned(),
        ..ExitRecord::default()
    }
}

impl Monitor {
    pub(super) fn exited(&mut self, status: i32, finished_at: i64) {
        self.streams.drain(&mut self.log);
        self.stdin = None;
        let (exit_code, signal) = exit_code(status);
        let started_at = self.state.started_at.min(finished_at);
        let mut record = ExitRecord {
            exit_code,
            signal,
            // 137: an init or a shell passes on how its child was killed.
            oom_killed: exit_code == 137 && self.oom.is_fresh(),
            started_at,
            finished_at,
            ..ExitRecord::default()
        };
        if let Some(text) = self.start_error.take() {
            (record.exit_code, record.signal) = (128, 0);
            (record.reason, record.message) = (REASON_START_ERROR.to_owned(), text);
        }
        self.state.started_at = started_at;
        self.keep(record);
        self.enter(Phase::Exited);
        self.delete();
        // While the runtime deletes. Flushed at the very end: the disk may be busy, and others wait for us until then.
        if let (Some(record), Some(path)) = (&self.state.exit, &self.launch.exit_disk)
            && let Err(e) = record.write(path, false)
        {
            complain(&format!("write exit record {}: {e}", path.display()));
        }
    }

    /// Makes the record on the disk durable, unless the container is removed by now.
    pub(super) fn flush(&self) {
        if let Some(path) = &self.launch.exit_disk
            && let Err(e) = exit_record::sync(path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            complain(&format!("flush exit record {}: {e}", path.display()));
        }
    }

    /// Writes the record to the run directory, and shows it.
    fn keep(&mut self, record: ExitRecord) {
        if let Err(e) = record.write(&self.launch.exit_run, false) {
            complain(&format!("write exit record {}: {e}", self.launch.exit_run.display()));
        }
        self.state.exit = Some(record);
    }

    /// For what is half made, or what the runtime does not take for stopped. Not always: runc then waits for 100 ms.
    pub(super) fn delete_by_force(&mut self) {
        self.by_force = true;
        self.delete();
    }

    /// Makes the runtime forget the container. It also kills what still lives where the PID namespace is shared.
    fn delete(&mut self) {
        let Launch { id, dir, runtime, runtime_timeout, .. } = &self.launch;
        let mut command = runtime::command(runtime, dir, Verb::Delete);
        if self.by_force {
            command.arg("--force");
        }
        command.arg(id);
        match Job::spawn(Verb::Delete, command, dir, *runtime_timeout) {
            Ok(job) => self.job = Some(job),
            Err(e) => self.deleted(Some(format!("run {}: {e}", runtime.path.display()))),
        }
    }

    pub(super) fn deleted(&mut self, failure: Option<String>) {
        if self.state.phase == Phase::Creating {
            let record = not_created(&self.state.text);
            self.keep(record);
            self.enter(Phase::Failed);
        } else {
            self.state.text = failure.unwrap_or_default();
            self.linger = Some(Instant::now() + LINGER);
            self.enter(Phase::Deleted);
        }
    }
}
