//! Who is asked next: hosts in order, and round again.
//!
//! ```text
//!   mirror 1 ─► mirror 2 ─► registry ─► (pause) ─► those whose failure may pass ─► …
//! ```
//!
//! A host whose answer is final (not found, refused, invalid) is not asked again; when the registry's own is, each mirror
//! is still asked once, but there is no second round. Hosts that did not answer lately come after those that did.

use std::{collections::VecDeque, time::Duration};

use super::{Failure, Kind};

/// Most failures that are kept for the message.
const MAX_FAILURES: usize = 32;

/// The order in which one thing is asked for, by host number.
#[derive(Debug)]
pub(super) struct Rota {
    queue: VecDeque<usize>,
    again: Vec<usize>,
    /// The registry itself, or what stands last for it.
    last: usize,
    /// The last one's answer is final.
    decided: bool,
    tries: u32,
    round: u32,
    backoff: Duration,
    longest_wait: Duration,
    wait: Duration,
    failures: Vec<(usize, Failure)>,
}

impl Rota {
    /// `hosts` in the order of preference, each at most `tries` times without progress.
    pub(super) fn new(hosts: Vec<usize>, tries: u32, backoff: Duration, longest_wait: Duration) -> Self {
        Self {
            last: hosts.iter().copied().max().unwrap_or_default(),
            queue: hosts.into(),
            decided: false,
            again: Vec::new(),
            tries,
            round: 0,
            backoff,
            longest_wait,
            wait: Duration::ZERO,
            failures: Vec::new(),
        }
    }

    /// The next host to ask, after the pause that is due; nothing when it is time to give up.
    pub(super) async fn next(&mut self) -> Option<usize> {
        if self.queue.is_empty() && !self.decided && !self.again.is_empty() && self.round + 1 < self.tries {
            let pause = self.backoff.saturating_mul(1 << self.round.min(6)).max(self.wait);
            tokio::time::sleep(pause.mul_f32(jitter())).await;
            self.again.sort_unstable();
            self.queue = self.again.drain(..).collect();
            self.round += 1;
            self.wait = Duration::ZERO;
        }
        self.queue.pop_front()
    }

    /// The host failed so.
    pub(super) fn failed(&mut self, host: usize, failure: Failure) {
        tracing::debug!(host = failure.host, url = failure.url, cause = %failure.cause, "request failed");
        let wait = match &failure.cause {
            super::Cause::Status { retry_after: Some(wait), .. } => *wait,
            _ => Duration::ZERO,
        };
        // Who asks for more patience than there is gets none.
        if failure.cause.is_transient() && wait <= self.longest_wait {
            self.wait = self.wait.max(wait);
            self.again.push(host);
        } else if host == self.last && failure.cause.kind() != Kind::RateLimited {
            self.decided = true;
        }
        let text = failure.to_string();
        self.failures.retain(|(known, other)| *known != host || other.to_string() != text);
        if self.failures.len() == MAX_FAILURES {
            self.failures.remove(0);
        }
        self.failures.push((host, failure));
    }

    /// Something came: the count of tries begins anew.
    pub(super) fn progressed(&mut self) {
        self.round = 0;
    }

    /// The failures of each host, in the order of the hosts.
    pub(super) fn into_failures(mut self) -> Vec<Failure> {
        self.failures.sort_by_key(|(host, _)| *host);
        self.failures.into_iter().map(|(_, failure)| failure).collect()
    }
}

/// Between 0.75 and 1.25, so that nodes which failed together do not come back together.
fn jitter() -> f32 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 1024;
    0.75 + random as f32 / 2048.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Cause;

    fn rota(hosts: &[usize], tries: u32) -> Rota {
        Rota::new(hosts.to_vec(), tries, Duration::from_millis(1), Duration::from_secs(1))
    }

    fn status(status: u16, retry_after: Option<u64>) -> Failure {
        let retry_after = retry_after.map(Duration::from_secs);
        Failure {
            host: "h".into(),
            url: "u".into(),
            cause: Cause::Status { status, message: String::new(), retry_after },
        }
    }

    async fn walk(rota: &mut Rota, mut answer: impl FnMut(usize) -> Failure) -> Vec<usize> {
        let mut asked = Vec::new();
        while let Some(host) = rota.next().await {
            asked.push(host);
            rota.failed(host, answer(host));
        }
        asked
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_what_is_final_is_not() {
        let mut all_down = rota(&[0, 1], 3);
        assert_eq!(walk(&mut all_down, |_| status(503, None)).await, [0, 1, 0, 1, 0, 1]);
        assert_eq!(all_down.into_failures().len(), 2);
        let mut mirror_lacks_it = rota(&[0, 1], 3);
        let answer = |host| status(if host == 0 { 404 } else { 500 }, None);
        assert_eq!(walk(&mut mirror_lacks_it, answer).await, [0, 1, 1, 1]);
        let mut registry_lacks_it = rota(&[0, 1], 3);
        let answer = |host| status(if host == 1 { 404 } else { 500 }, None);
        assert_eq!(walk(&mut registry_lacks_it, answer).await, [0, 1]);
        let mut mirror_was_down = rota(&[1, 0], 3);
        assert_eq!(walk(&mut mirror_was_down, answer).await, [1, 0]);
        assert!(matches!(registry_lacks_it.into_failures()[1].cause, Cause::Status { status: 404, .. }));
    }

    #[tokio::test]
    async fn retry_after_is_honoured_up_to_a_bound() {
        assert_eq!(walk(&mut rota(&[0], 3), |_| status(429, Some(60))).await, [0]);
        let start = std::time::Instant::now();
        assert_eq!(walk(&mut rota(&[0], 2), |_| status(429, Some(1))).await, [0, 0]);
        assert!(start.elapsed() >= Duration::from_millis(700));
    }

    #[tokio::test]
    async fn progress_gives_new_tries() {
        let mut rota = rota(&[0], 2);
        for _ in 0..10 {
            assert_eq!(rota.next().await, Some(0));
            rota.progressed();
            rota.failed(0, status(500, None));
        }
        assert_eq!(rota.into_failures().len(), 1);
    }
}
