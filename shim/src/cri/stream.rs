//! Lists in pieces (the Stream RPCs), and lists that must fit one message.

use std::pin::Pin;

use crisp_cri_proto::MESSAGE_LIMIT;
use futures_util::{Stream, stream};
use prost::Message;
use tonic::{Response, Status};

/// What a Stream method answers.
pub type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items in one message of a stream.
const PIECE: usize = 100;

/// Cuts a list into messages.
pub fn pieces<I, T>(items: Vec<I>, message: impl Fn(Vec<I>) -> T + Send + 'static) -> Response<Pieces<T>>
where
    I: Send + 'static,
    T: Send + 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let piece: Vec<I> = items.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then(|| Ok(message(piece)))
    });
    Response::new(Box::pin(stream::iter(messages)))
}

/// Refuses an answer that Kubernetes' client would refuse, and says what to call instead.
pub fn fits<T: Message>(message: T, instead: &str) -> Result<Response<T>, Status> {
    let size = message.encoded_len();
    if size > MESSAGE_LIMIT {
        let text =
            format!("the list takes {size} bytes, more than a message may have ({MESSAGE_LIMIT}): call {instead}");
        return Err(Status::resource_exhausted(text));
    }
    Ok(Response::new(message))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_list_comes_whole_and_in_order_in_pieces() {
        let stream = pieces((0..250).collect(), |piece: Vec<i32>| piece).into_inner();
        let pieces: Vec<Vec<i32>> = stream.map(|piece| piece.unwrap()).collect().await;
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(pieces.concat(), (0..250).collect::<Vec<_>>());
    }
}
