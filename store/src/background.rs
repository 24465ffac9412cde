//! Work that nobody waits for: one thread per [`Background`], there only while there is work.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// A queue of jobs, done one after the other.
#[derive(Clone)]
pub(crate) struct Background {
    name: &'static str,
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

impl Background {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, shared: Arc::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job.
    pub(crate) fn push(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.queue();
        queue.jobs.push_back(Box::new(job));
        if !queue.running {
            let this = self.clone();
            match std::thread::Builder::new().name(self.name.into()).stack_size(256 << 10).spawn(move || this.run()) {
                Ok(_) => queue.running = true,
                // The next push tries again, and what is left undone the next start of the program does.
                Err(error) => tracing::warn!(thread = self.name, %error, "cannot start a thread"),
            }
        }
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let Some(job) = queue.jobs.pop_front() else {
                queue.running = false;
                self.shared.1.notify_all();
                return;
            };
            drop(queue);
            job();
        }
    }

    /// Blocks until nothing is left to do.
    pub(crate) fn wait(&self) {
        let mut queue = self.queue();
        while queue.running {
            queue = self.shared.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").field("name", &self.name).field("jobs", &self.queue().jobs.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_in_order_and_wait_waits_for_all() {
        let background = Background::new("test");
        let seen = Arc::new(Mutex::new(Vec::new()));
        for round in 0..3 {
            for i in 0..10 {
                let seen = seen.clone();
                background.push(move || seen.lock().unwrap().push(round * 10 + i));
            }
            background.wait();
            assert_eq!(*seen.lock().unwrap(), (0..(round + 1) * 10).collect::<Vec<_>>());
        }
    }
}
