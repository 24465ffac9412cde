//! State-changing requests run as tasks of their own, and calls for the same thing join the one that runs.
//!
//! A handler only waits: a client that goes away (kubelet's deadline) kills nothing, and its retry gets the result
//! of the task that still runs instead of "name is reserved".

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::{Error, Result};

/// What a job ends with: the id it is about, shared by all who wait.
pub type Outcome = Result<String, Arc<Error>>;

/// A running job.
pub type Job = watch::Receiver<Option<Outcome>>;

/// The running jobs by key.
#[derive(Debug, Default)]
pub struct Jobs {
    running: Mutex<HashMap<String, Job>>,
}

impl Jobs {
    /// Runs `work` under `key`, or waits for the job that runs under it already.
    pub async fn join<W>(self: &Arc<Self>, key: String, work: W) -> Outcome
    where
        W: Future<Output = Result<String>> + Send + 'static,
    {
        let mut job = self.start(key, work);
        match job.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(Arc::new(Error::Internal("the task that did this ended without a result".to_owned()))),
        }
    }

    /// Starts `work` under `key`, or gives the job that runs under it already. When this returns the job can be joined.
    pub fn start<W>(self: &Arc<Self>, key: String, work: W) -> Job
    where
        W: Future<Output = Result<String>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = running.get(&key) {
            return job.clone();
        }
        let (tell, job) = watch::channel(None);
        running.insert(key.clone(), job.clone());
        let jobs = Arc::clone(self);
        tokio::spawn(async move {
            // On a panic too (development builds), or the key would be taken for ever.
            let free = Free { jobs, key };
            let outcome = work.await.map_err(Arc::new);
            drop(free);
            tell.send_replace(Some(outcome));
        });
        job
    }

    /// Waits until no job runs under `key`.
    pub async fn settled(&self, key: &str) {
        let job = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        if let Some(mut job) = job {
            let _ = job.wait_for(Option::is_some).await;
        }
    }
}

struct Free {
    jobs: Arc<Jobs>,
    key: String,
}

impl Drop for Free {
    fn drop(&mut self) {
        self.jobs.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn callers_of_one_key_share_one_run_and_its_result() {
        let jobs = Arc::new(Jobs::default());
        let runs = Arc::new(AtomicU32::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(runs.fetch_add(1, Ordering::Relaxed).to_string())
            }
        };
        let (a, b) = tokio::join!(jobs.join("k".into(), work()), jobs.join("k".into(), work()));
        assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("0", "0"));
        assert_eq!(jobs.join("k".into(), work()).await.unwrap(), "1", "a finished job is not joined");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_ends_nothing() {
        let jobs = Arc::new(Jobs::default());
        let (tell, told) = tokio::sync::oneshot::channel();
        let call = jobs.join("k".into(), async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = tell.send(());
            Ok(String::new())
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
        told.await.unwrap();
    }
}
