//! Cuts a stream of bytes into the lines of a CRI log: `<time> <stream> <tag> <content>\n`. No I/O.
//!
//! Tag `F` ends a line of the container's, tag `P` says that more of it follows. A line longer than the limit becomes pieces
//! of exactly the limit, the last one `F`; what is left without a newline at the end of the stream is `P`. Content is
//! kept byte for byte but for the newline itself: carriage returns, NUL and broken UTF-8 stay.

use std::io;

use crate::sys::Pages;

/// What follows a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// The line ends here.
    Full,
    /// More of the line may follow.
    Partial,
}

/// Cuts one stream. It holds at most one unfinished line of at most the limit.
#[derive(Debug)]
pub(crate) struct Framer {
    carry: Pages,
    len: usize,
    limit: usize,
}

impl Framer {
    /// `limit` bytes of content a piece, at least 1.
    pub(crate) fn new(limit: usize) -> io::Result<Self> {
        let limit = limit.max(1);
        Ok(Self { carry: Pages::new(limit)?, len: 0, limit })
    }

    /// Takes the next bytes and calls `emit` for each piece that is known to be whole, with its content in two parts.
    pub(crate) fn push(&mut self, mut input: &[u8], mut emit: impl FnMut(Tag, &[u8], &[u8])) {
        while !input.is_empty() {
            // A piece of the full length is cut only when it is clear that no newline follows.
            let room = self.limit - self.len;
            let window = &input[..input.len().min(room + 1)];
            let (tag, content, taken) = match window.iter().position(|&b| b == b'\n') {
                Some(at) => (Tag::Full, at, at + 1),
                None if window.len() > room => (Tag::Partial, room, room),
                None => {
                    self.carry.bytes_mut()[self.len..][..input.len()].copy_from_slice(input);
                    self.len += input.len();
                    return;
                }
            };
            emit(tag, &self.carry.bytes()[..self.len], &input[..content]);
            self.len = 0;
            input = &input[taken..];
        }
    }

    /// Emits what is left: at the end of the stream, or because nobody can wait for the line to end.
    pub(crate) fn flush(&mut self, emit: impl FnOnce(Tag, &[u8], &[u8])) {
        if self.len > 0 {
            emit(Tag::Partial, &self.carry.bytes()[..self.len], b"");
            self.len = 0;
        }
    }

    /// Gives memory back that a line took which has ended.
    pub(crate) fn release(&mut self) {
        if self.len == 0 {
            self.carry.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(limit: usize, chunks: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
        let mut framer = Framer::new(limit).unwrap();
        let mut out = Vec::new();
        for chunk in chunks {
            framer.push(chunk, |tag, a, b| out.push((tag, [a, b].concat())));
        }
        framer.flush(|tag, a, b| out.push((tag, [a, b].concat())));
        out
    }

    #[test]
    fn lines_are_cut_at_the_limit_and_not_before() {
        use Tag::{Full, Partial};
        let cut = |text: &str| -> Vec<(Tag, String)> {
            pieces(4, &[text.as_bytes()]).into_iter().map(|(t, c)| (t, String::from_utf8(c).unwrap())).collect()
        };
        assert_eq!(cut("abcd\n"), [(Full, "abcd".into())]);
        assert_eq!(cut("abcde\n"), [(Partial, "abcd".into()), (Full, "e".into())]);
        assert_eq!(cut("abcdefgh\n\n"), [(Partial, "abcd".into()), (Full, "efgh".into()), (Full, String::new())]);
        assert_eq!(cut("a\r\nb"), [(Full, "a\r".into()), (Partial, "b".into())]);
        assert_eq!(cut(""), []);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_and_chunks_do_not_matter(
            chunks in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..20), 0..20),
            limit in 1usize..9,
        ) {
            let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let stream = chunks.concat();
            let cut = pieces(limit, &slices);
            prop_assert_eq!(&cut, &pieces(limit, &[&stream]));
            let mut back = Vec::new();
            for (tag, content) in &cut {
                prop_assert!(content.len() <= limit && !content.contains(&b'\n'));
                back.extend_from_slice(content);
                if *tag == Tag::Full { back.push(b'\n') }
            }
            prop_assert_eq!(back, stream);
            // Only pieces of the full length are cut from a line that goes on.
            for (index, (tag, content)) in cut.iter().enumerate() {
                prop_assert!(*tag == Tag::Full || content.len() == limit || index + 1 == cut.len());
            }
        }
    }
}
