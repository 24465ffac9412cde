//! Lists in pieces (the Stream RPCs), and lists that must fit one message.

use std::pin::Pin;

use crisp_cri_proto::MESSAGE_LIMIT;
use futures_util::{Stream, stream};
use prost::Message;
use tonic::{Response, Status};

/// What a Stream method answers.
pub type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items in one message of a stream, and bytes that the items of one should not pass.
const PIECE: usize = 100;
const PIECE_BYTES: usize = MESSAGE_LIMIT / 4;

/// Cuts a list into messages.
pub fn pieces<I, T>(items: Vec<I>, message: impl Fn(Vec<I>) -> T + Send + 'static) -> Response<Pieces<T>>
where
    I: Message + 'static,
    T: Send + 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while piece.len() < PIECE && bytes < PIECE_BYTES {
            let Some(item) = items.next() else { break };
            bytes += item.encoded_len();
            piece.push(item);
        }
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
        let stream = pieces((0..250).collect(), |piece: Vec<u32>| piece).into_inner();
        let lists: Vec<Vec<u32>> = stream.map(|piece| piece.unwrap()).collect().await;
        assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(lists.concat(), (0..250).collect::<Vec<_>>());
        let long = vec!["x".repeat(PIECE_BYTES / 2); 5];
        let stream = pieces(long, |piece: Vec<String>| piece.len()).into_inner();
        let lengths: Vec<usize> = stream.map(|piece| piece.unwrap()).collect().await;
        assert_eq!(lengths, [2, 2, 1], "a message stays well below what clients take");
    }
}
