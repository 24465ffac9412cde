//! One download for each layer, whoever and however many want it.
//!
//! ```text
//!   claim ─▶ present            the index has it
//!         ─▶ another's flight   wait ─▶ landed: look in the index again
//!         │                          ─▶ failed: claim again, and fly oneself or with a third one
//!         ─▶ one's own flight   wait ─▶ landed, or failed: that is the caller's error
//! ```
//!
//! Every caller has asked the registry for the manifest with its own credentials before it gets here; only the download
//! is shared. A flight uses the session of the caller that started it. If it fails the others don't fail with it: each
//! tries once with its own. A flight goes on when its callers go away, for [`crate::Options::linger`]: kubelet calls
//! again soon, and finds it under way. Then it ends, and its files go.
//!
//! A flight is one's own if it uses the session of one's own call, whoever of that call started it. A layer that needs
//! those below claims them and waits as any caller does ([`Lower`]), so that it outlives the failure of another's flight
//! too.
//!
//! Flights have the chain id as their key. So a flight waits for shorter chains only, and no two wait for each other. A
//! layer that comes on two chains at once comes twice, unless one has landed when the other finds a place to work.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use rustix::fs::{Mode, OFlags};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::digest::Digest;
use crate::error::{Error, LayerError};
use crate::layer::{Layer, LayerRecord};
use crate::media::Descriptor;
use crate::pipeline::{self, CHUNKS, Chunk, Expected};
use crate::progress::LayerState;
use crate::registry::{Cause, Failure, Session};
use crate::sweep::Temp;
use crate::unpack::{Below, Error as UnpackError, Unpacked};
use crate::{Inner, lock, recover};

/// Waiters hear of progress in steps of this many bytes.
const STEP: u64 = 1 << 20;

/// A layer on its way, and those who wait for it.
#[derive(Debug)]
pub(crate) struct Flight {
    session: Session,
    status: Arc<watch::Sender<Status>>,
}

type Outcome = Result<Arc<Layer>, Arc<LayerError>>;

/// A place among those that work; not there while its holder waits for layers below.
type Permit = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// Where a flight is.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) state: LayerState,
    outcome: Option<Outcome>,
}

/// A layer that is wanted: where it comes from, and its place in the image.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) session: Session,
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    /// The chain that it ends.
    pub(crate) chain_id: Digest,
    /// The layer that it lies on.
    pub(crate) below: Option<Arc<Self>>,
    /// Why this call's one try failed: layers above that come to need it later don't try again.
    pub(crate) failed: OnceLock<Arc<LayerError>>,
}

pub(crate) enum Claim {
    Present(Arc<Layer>),
    /// On its way; `mine` with the session of this call.
    Wait {
        status: watch::Receiver<Status>,
        mine: bool,
    },
}

impl Inner {
    /// Finds the layer or its flight, or starts one.
    pub(crate) fn claim(self: &Arc<Self>, wanted: &Arc<Wanted>) -> Claim {
        // This lock first: a flight puts its layer into the index before it leaves the map.
        let mut flights = lock(&self.flights);
        if let Some(layer) = self.there(wanted) {
            return Claim::Present(layer);
        }
        if let Some(flight) = flights.get(&wanted.chain_id) {
            return Claim::Wait { status: flight.status.subscribe(), mine: flight.session.is(&wanted.session) };
        }
        let (sender, status) = watch::channel(Status { state: LayerState::Queued, outcome: None });
        let flight = Arc::new(sender);
        flights.insert(wanted.chain_id.clone(), Flight { session: wanted.session.clone(), status: flight.clone() });
        let (inner, wanted) = (self.clone(), wanted.clone());
        tokio::spawn(async move {
            // Leaves the map however this task ends.
            let landing = Landing { inner: &inner, chain: &wanted.chain_id };
            let outcome = tokio::select! {
                outcome = fly(&inner, &wanted, &flight) => outcome,
                () = deserted(&flight, inner.linger) => Err(LayerError::GivenUp),
            };
            let outcome = outcome.map_err(Arc::new);
            if let Err(error) = &outcome
                && !matches!(**error, LayerError::GivenUp)
            {
                wanted.failed.get_or_init(|| error.clone());
            }
            drop(landing);
            flight.send_modify(|status| {
                status.state = LayerState::Done;
                status.outcome = Some(outcome);
            });
        });
        Claim::Wait { status, mine: true }
    }

    fn there(&self, wanted: &Wanted) -> Option<Arc<Layer>> {
        self.index().layers.find(&wanted.chain_id, &wanted.diff_id).cloned()
    }

    /// Waits for a layer that was claimed, telling `tell` how it goes.
    pub(crate) async fn land(
        self: &Arc<Self>,
        wanted: &Arc<Wanted>,
        mut claim: Claim,
        tell: impl Fn(LayerState),
    ) -> Result<Arc<Layer>, Arc<LayerError>> {
        loop {
            let (mut status, mine) = match claim {
                Claim::Present(layer) => return Ok(layer),
                Claim::Wait { status, mine } => (status, mine),
            };
            match wait(&mut status, &tell).await {
                Err(error) if mine => return Err(error),
                // Landed: it is in the index now. Failed, for another: our own try.
                _ => claim = self.claim(wanted),
            }
        }
    }
}

async fn wait(status: &mut watch::Receiver<Status>, tell: impl Fn(LayerState)) -> Outcome {
    loop {
        let Status { state, outcome } = status.borrow_and_update().clone();
        if let Some(outcome) = outcome {
            return outcome;
        }
        tell(state);
        if status.changed().await.is_err() {
            return Err(Arc::new(LayerError::GivenUp));
        }
    }
}

/// Resolves when nobody has waited for `linger`.
async fn deserted(flight: &watch::Sender<Status>, linger: Duration) {
    loop {
        flight.closed().await;
        tokio::time::sleep(linger).await;
        if flight.is_closed() {
            return;
        }
    }
}

struct Landing<'a> {
    inner: &'a Inner,
    chain: &'a Digest,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        lock(&self.inner.flights).remove(self.chain);
    }
}

async fn fly(
    inner: &Arc<Inner>,
    wanted: &Arc<Wanted>,
    flight: &watch::Sender<Status>,
) -> Result<Arc<Layer>, LayerError> {
    let permit = inner.slots.clone().acquire_owned().await.map_err(|_| LayerError::GivenUp)?;
    let permit = Arc::new(Mutex::new(Some(permit)));
    // On another chain, while this one waited for its place.
    if let Some(layer) = inner.there(wanted) {
        return Ok(layer);
    }
    loop {
        match attempt(inner, wanted, flight, &permit).await {
            // Another host may have the right ones.
            Err(error) if is_mismatch(&error) && wanted.session.reject(&wanted.descriptor.digest) => {
                tracing::warn!(layer = %wanted.descriptor.digest, %error, "asking another host for a layer");
            }
            other => return other,
        }
    }
}

/// Other bytes than promised, or more of them.
fn is_mismatch(error: &LayerError) -> bool {
    match error {
        LayerError::Content(pipeline::Error::Blob(_)) => true,
        LayerError::Registry(error) => matches!(error.failures(), [Failure { cause: Cause::Mismatch(_), .. }]),
        _ => false,
    }
}

async fn attempt(
    inner: &Arc<Inner>,
    wanted: &Wanted,
    flight: &watch::Sender<Status>,
    permit: &Permit,
) -> Result<Arc<Layer>, LayerError> {
    let tell = |state| flight.send_modify(|status| status.state = state);
    let temp = inner.temp_dir(0o711)?;
    let fs = temp.path.join("fs");
    inner.disk.make_dir(&fs, 0o755)?;
    let root = rustix::fs::open(&fs, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", &fs)(e.into()))?;
    let (chunks, receiver) = mpsc::channel(CHUNKS);
    let (_alive, given_up) = oneshot::channel();
    let below = Lower {
        inner: inner.clone(),
        below: wanted.below.clone(),
        permit: permit.clone(),
        given_up: Mutex::new(given_up),
        held: Mutex::default(),
        runtime: Handle::current(),
    };
    let total = wanted.descriptor.size;
    let expected = Expected { blob: wanted.descriptor.digest.clone(), size: total, diff_id: wanted.diff_id.clone() };
    let result = pipeline::start(expected, receiver, root, below, inner.limits, temp);
    let sent = download(wanted, &chunks, |bytes| tell(LayerState::Downloading { bytes, total })).await;
    if sent.is_ok() {
        tell(LayerState::Unpacking);
    }
    drop(chunks);
    let unpacked = result.await.unwrap_or(Err(pipeline::Error::GivenUp));
    // If the download failed, unpacking did for want of data.
    sent?;
    let (unpacked, temp) = unpacked?;
    publish(inner, wanted, unpacked, temp)
}

/// Sends the blob on; stops without error when nobody takes it, who then knows why.
async fn download(wanted: &Wanted, chunks: &mpsc::Sender<Chunk>, tell: impl Fn(u64)) -> Result<(), LayerError> {
    let mut blob = std::pin::pin!(wanted.session.blob(&wanted.descriptor));
    let (mut bytes, mut told) = (0, 0);
    tell(0);
    while let Some(chunk) = blob.next().await {
        let chunk = chunk?;
        bytes += chunk.len() as u64;
        if chunks.send(Chunk::Data(chunk)).await.is_err() {
            return Ok(());
        }
        if bytes - told >= STEP {
            told = bytes;
            tell(bytes);
        }
    }
    tell(bytes);
    let _ = chunks.send(Chunk::End).await;
    Ok(())
}

fn publish(inner: &Arc<Inner>, wanted: &Wanted, unpacked: Unpacked, temp: Temp) -> Result<Arc<Layer>, LayerError> {
    let Unpacked { bytes, inodes, bound, root_listed } = unpacked;
    let record = LayerRecord {
        diff_id: wanted.diff_id.clone(),
        chain_id: wanted.chain_id.clone(),
        bound,
        root_listed,
        bytes,
        inodes,
        boot_id: inner.boot_id.clone(),
        durable: false,
    };
    inner.disk.write_volatile(&temp.path.join(recover::RECORD), &record)?;
    let short = temp.short();
    let layer = Arc::new(Layer::new(short.clone(), record));
    let mut index = inner.index();
    if let Some(there) = index.layers.find(&wanted.chain_id, &wanted.diff_id) {
        return Ok(there.clone());
    }
    temp.publish(&inner.layout.layer(&short))?;
    index.layers.insert(layer.clone());
    drop(index);
    inner.keep(layer.clone());
    inner.flush_layer_soon(&layer);
    Ok(layer)
}

/// The layers below one that is being unpacked, wherever they are.
struct Lower {
    inner: Arc<Inner>,
    below: Option<Arc<Wanted>>,
    /// Given back while waiting: those that are waited for may need it.
    permit: Permit,
    /// Resolves when the flight is over.
    given_up: Mutex<oneshot::Receiver<()>>,
    /// So that they stay until the end.
    held: Mutex<Option<Vec<Arc<Layer>>>>,
    runtime: Handle,
}

impl Lower {
    /// Topmost first.
    async fn wait(&self) -> Result<Vec<Arc<Layer>>, UnpackError> {
        let mut layers = Vec::new();
        let mut next = self.below.as_ref();
        while let Some(wanted) = next {
            let landed = match wanted.failed.get() {
                Some(error) => Err(error.clone()),
                None => self.inner.land(wanted, self.inner.claim(wanted), |_| {}).await,
            };
            layers.push(landed.map_err(|e| UnpackError::Below(format!("the layer {}: {e}", wanted.diff_id)))?);
            next = wanted.below.as_ref();
        }
        Ok(layers)
    }
}

impl Below for Lower {
    fn layers(&self) -> Result<Vec<PathBuf>, UnpackError> {
        let mut held = lock(&self.held);
        if held.is_none() {
            let permit = lock(&self.permit).take();
            drop(permit);
            let mut given_up = lock(&self.given_up);
            let found = self.runtime.block_on(async {
                let found = tokio::select! {
                    found = self.wait() => found?,
                    _ = &mut *given_up => return Err(UnpackError::Source),
                };
                let permit = self.inner.slots.clone().acquire_owned().await.map_err(|_| UnpackError::Source)?;
                Ok((found, permit))
            });
            let (found, permit) = found?;
            *lock(&self.permit) = Some(permit);
            *held = Some(found);
        }
        let layers = held.iter().flatten();
        Ok(layers.map(|layer| self.inner.layer_root(&layer.short)).collect())
    }
}
