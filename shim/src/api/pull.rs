//! Pull: the store's events, thinned out to what an eye can follow, as a stream.
//!
//! ```text
//! store's threads ── event ──► Board (order of the first, latest of each layer) ── every 50 ms ──► stream
//! ```
//!
//! A client that reads slowly costs no more than one message a layer; one that leaves gives the pull up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crisp_cri_proto::v1::AuthConfig;
use crisp_store::digest::Digest;
use crisp_store::media::Platform;
use crisp_store::{Image, LayerState, Progress, ProgressEvent, PullRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::v1;
use super::v1::pull_event::Event;
use crate::error::{Error, Result};
use crate::node::Node;

/// What the client reads.
pub type Events = ReceiverStream<Result<v1::PullEvent, Status>>;

/// How often news are told.
const PERIOD: Duration = Duration::from_millis(50);

/// Takes the request apart.
pub fn request(request: v1::PullRequest) -> Result<PullRequest> {
    let v1::PullRequest { image, credentials, platform } = request;
    Ok(PullRequest {
        reference: image.parse().map_err(|error| Error::from(crisp_store::Error::Reference(error)))?,
        credentials: crate::cri::credentials(credentials.map(|v1::Credentials { username, password }| AuthConfig {
            username,
            password,
            ..AuthConfig::default()
        })),
        platform: if platform.is_empty() { None } else { Some(parse_platform(&platform)?) },
        progress: None,
    })
}

/// `os/architecture[/variant]`.
fn parse_platform(text: &str) -> Result<Platform> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None)
            if !os.is_empty() && !architecture.is_empty() && variant != Some("") =>
        {
            Ok(Platform::new(os, architecture, variant))
        }
        _ => Err(Error::Invalid(format!(
            "platform {text:?}: give os/architecture or os/architecture/variant, like linux/arm64 or linux/arm/v7"
        ))),
    }
}

/// Starts the pull; it ends with the stream.
pub fn pull(node: &Arc<Node>, mut request: PullRequest) -> Events {
    let (sender, receiver) = mpsc::channel(16);
    let board = Arc::new(Board::default());
    request.progress = Some(Arc::clone(&board) as Arc<dyn Progress>);
    let (node, reference) = (Arc::clone(node), request.reference.clone());
    tokio::spawn(async move {
        let pull = node.store.pull(request);
        tokio::pin!(pull);
        let mut ticks = tokio::time::interval(PERIOD);
        let result = loop {
            tokio::select! {
                result = &mut pull => break result,
                _ = ticks.tick() => {
                    if board.tell(&sender).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        };
        if board.tell(&sender).await.is_ok() {
            let last = match result {
                Ok(image) => Ok(event(Event::Done(pulled(&image, &reference.name())))),
                Err(error) => Err(Error::from(error).into()),
            };
            // The client may have left in this moment.
            let _ = sender.send(last).await;
        }
    });
    ReceiverStream::new(receiver)
}

fn pulled(image: &Image, repository: &str) -> v1::Pulled {
    let mut digests = image.repo_digests.iter();
    let reference = digests.find(|name| name.split('@').next() == Some(repository));
    v1::Pulled {
        image_id: image.id.to_string(),
        reference: reference.or(image.tags.first()).cloned().unwrap_or_default(),
        size: image.size,
    }
}

fn event(event: Event) -> v1::PullEvent {
    v1::PullEvent { event: Some(event) }
}

/// News that are not told yet.
#[derive(Debug, Default)]
struct Board(Mutex<News>);

#[derive(Debug, Default)]
struct News {
    steps: Vec<Event>,
    layers: BTreeMap<Digest, LayerState>,
}

impl Progress for Board {
    fn event(&self, event: ProgressEvent) {
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ProgressEvent::Resolving => news.steps.push(Event::Resolving(v1::Resolving {})),
            ProgressEvent::Resolved { digest, layers } => {
                let layers =
                    layers.into_iter().map(|(digest, size)| v1::LayerSize { digest: digest.to_string(), size });
                news.steps.push(Event::Resolved(v1::Resolved { digest: digest.to_string(), layers: layers.collect() }));
            }
            ProgressEvent::Layer { digest, state } => {
                news.layers.insert(digest, state);
            }
            // Told with what the pull returns.
            _ => {}
        }
    }
}

impl Board {
    fn take(&self) -> Vec<v1::PullEvent> {
        let News { steps, layers } = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let layers = layers.into_iter().map(|(digest, state)| Event::Layer(layer(&digest, state)));
        steps.into_iter().chain(layers).map(event).collect()
    }

    /// An error: nobody reads any more.
    async fn tell(&self, sender: &mpsc::Sender<Result<v1::PullEvent, Status>>) -> Result<(), ()> {
        for event in self.take() {
            sender.send(Ok(event)).await.map_err(|_| ())?;
        }
        Ok(())
    }
}

fn layer(digest: &Digest, state: LayerState) -> v1::Layer {
    let (state, bytes, total) = match state {
        LayerState::Present => (v1::LayerState::Present, 0, 0),
        LayerState::Queued => (v1::LayerState::Queued, 0, 0),
        LayerState::Downloading { bytes, total } => (v1::LayerState::Downloading, bytes, total),
        LayerState::Unpacking => (v1::LayerState::Unpacking, 0, 0),
        LayerState::Done => (v1::LayerState::Done, 0, 0),
        _ => (v1::LayerState::Unspecified, 0, 0),
    };
    v1::Layer { digest: digest.to_string(), state: state.into(), bytes, total }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_layers_progress_only_the_latest_is_told() {
        let board = Board::default();
        let digest = Digest::sha256(b"layer");
        board.event(ProgressEvent::Resolving);
        board.event(ProgressEvent::Resolved { digest: digest.clone(), layers: vec![(digest.clone(), 10)] });
        for bytes in 0..10 {
            let state = LayerState::Downloading { bytes, total: 10 };
            board.event(ProgressEvent::Layer { digest: digest.clone(), state });
        }
        let told: Vec<Event> = board.take().into_iter().filter_map(|event| event.event).collect();
        assert!(matches!(
            &told[..],
            [Event::Resolving(_), Event::Resolved(_), Event::Layer(v1::Layer { bytes: 9, .. })]
        ));
        assert!(board.take().is_empty());
    }

    #[test]
    fn platforms_have_two_or_three_words() {
        assert_eq!(parse_platform("linux/arm/v7").unwrap().to_string(), "linux/arm/v7");
        for text in ["linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"] {
            assert!(parse_platform(text).is_err(), "{text}");
        }
    }
}
