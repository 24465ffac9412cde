//! `crisp pull`, and the pull of `crisp run`.
//!
//! ```text
//! credentials.rs   USER:PASSWORD, or a password that is asked for
//! progress.rs      bars on a terminal, lines elsewhere: on standard error; what was pulled goes to standard output
//! ```

mod credentials;
mod progress;

use serde_json::json;

use super::args::Pull;
use super::client::Client;
use super::error::{CliError, INTERRUPTED, Result};
use super::interrupts::Interrupts;
use super::output::Out;
use crate::api::v1::pull_event::Event;
use crate::api::v1::{Credentials, PullRequest, Pulled};

pub use credentials::credentials;
pub use progress::Progress;

/// Pulls an image and prints the name that it has now, with its digest.
pub async fn pull(client: &mut Client, args: &Pull, out: Out) -> Result {
    let credentials = args.creds.as_deref().map(credentials).transpose()?;
    let progress = if args.quiet { Progress::quiet() } else { Progress::new() };
    let mut interrupts = Interrupts::listen()?;
    let pulled = tokio::select! {
        pulled = fetch(client, &args.image, credentials, &args.platform, progress) => pulled?,
        _ = interrupts.next() => return Err(CliError::silent(INTERRUPTED)),
    };
    let Pulled { image_id, reference, size } = pulled;
    out.line(&reference, &json!({ "reference": reference, "image_id": image_id, "size": size }))
}

/// Pulls an image and shows how it goes.
pub async fn fetch(
    client: &mut Client,
    image: &str,
    credentials: Option<Credentials>,
    platform: &str,
    mut progress: Progress,
) -> Result<Pulled> {
    progress.begin(image);
    let request = PullRequest { image: image.to_owned(), credentials, platform: platform.to_owned() };
    let mut events = client.crisp.pull(request).await.map_err(refused)?.into_inner();
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Done(pulled)) => {
                progress.end(image);
                return Ok(pulled);
            }
            Some(event) => progress.event(&event),
            // Newer than this program.
            None => {}
        }
    }
    Err(CliError::new(format!("the server ended the pull of {image} without a result")))
}

fn refused(status: tonic::Status) -> CliError {
    let code = status.code();
    let error = CliError::from(status);
    match code {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            error.hint("give the registry's user with --creds USER; the password is then asked for")
        }
        _ => error,
    }
}
