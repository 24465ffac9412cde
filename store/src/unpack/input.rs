//! The byte stream of an archive: blocks from a [`Source`], headers looked at in one piece, contents passed on
//! without copying.

use super::Error;

/// Where the uncompressed archive comes from.
pub(crate) trait Source {
    /// The next block, never empty; `None` at the end. `spent` is a block that is no longer needed, to be filled again.
    fn next(&mut self, spent: Vec<u8>) -> Result<Option<Vec<u8>>, Error>;
}

/// Reads ahead in a [`Source`].
pub(super) struct Input<'a> {
    source: &'a mut dyn Source,
    block: Vec<u8>,
    at: usize,
    /// Bytes that precede `block`: a header that crosses the border of two blocks.
    carry: Vec<u8>,
    carried: usize,
    end: bool,
}

impl<'a> Input<'a> {
    pub(super) fn new(source: &'a mut dyn Source) -> Self {
        Self { source, block: Vec::new(), at: 0, carry: Vec::new(), carried: 0, end: false }
    }

    /// Fetches the next block once the present one is used up; false at the end.
    fn fetch(&mut self) -> Result<bool, Error> {
        while self.at == self.block.len() && !self.end {
            match self.source.next(std::mem::take(&mut self.block))? {
                Some(block) => self.block = block,
                None => self.end = true,
            }
            self.at = 0;
        }
        Ok(self.at < self.block.len())
    }

    /// At least `n` bytes in one piece; fewer only when the archive ends before.
    pub(super) fn need(&mut self, n: usize) -> Result<&[u8], Error> {
        if self.carry.is_empty() {
            self.fetch()?;
            if self.block.len() - self.at >= n {
                return Ok(&self.block[self.at..]);
            }
        }
        while self.carry.len() - self.carried < n && self.fetch()? {
            let missing = n - (self.carry.len() - self.carried);
            let end = self.block.len().min(self.at + missing);
            self.carry.extend_from_slice(&self.block[self.at..end]);
            self.at = end;
        }
        Ok(&self.carry[self.carried..])
    }

    /// The bytes at hand, at most `max`; empty only at the end.
    pub(super) fn some(&mut self, max: u64) -> Result<&[u8], Error> {
        let have = if self.carry.is_empty() {
            self.fetch()?;
            &self.block[self.at..]
        } else {
            &self.carry[self.carried..]
        };
        Ok(&have[..usize::try_from(max).map_or(have.len(), |max| max.min(have.len()))])
    }

    /// Goes on by `n` of the bytes that were returned last.
    pub(super) fn consume(&mut self, n: usize) {
        if self.carry.is_empty() {
            self.at += n;
        } else {
            self.carried += n;
            if self.carried == self.carry.len() {
                self.carry.clear();
                self.carried = 0;
            }
        }
    }

    /// Goes on by `n` bytes; an archive that ends before is cut off.
    pub(super) fn skip(&mut self, mut n: u64) -> Result<(), Error> {
        while n > 0 {
            let have = self.some(n)?.len();
            if have == 0 {
                return Err(Error::CutOff);
            }
            self.consume(have);
            n -= have as u64;
        }
        Ok(())
    }

    /// Reads on to the end: what follows the end mark counts for the digest.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        loop {
            let have = self.some(u64::MAX)?.len();
            if have == 0 {
                return Ok(());
            }
            self.consume(have);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) struct Blocks(Vec<Vec<u8>>);

    impl Source for Blocks {
        fn next(&mut self, _: Vec<u8>) -> Result<Option<Vec<u8>>, Error> {
            Ok(if self.0.is_empty() { None } else { Some(self.0.remove(0)) })
        }
    }

    proptest! {
        #[test]
        fn any_mix_of_reads_gives_the_stream(
            sizes in prop::collection::vec(1usize..40, 0..12),
            reads in prop::collection::vec((any::<bool>(), 1usize..60, 0usize..60), 0..40),
        ) {
            let whole: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|i| i as u8).collect();
            let mut at = 0;
            let blocks = sizes.iter().map(|n| { at += n; whole[at - n..at].to_vec() }).collect();
            let mut source = Blocks(blocks);
            let mut input = Input::new(&mut source);
            let mut pos = 0;
            for (need, n, take) in reads {
                let bytes = if need { input.need(n).unwrap() } else { input.some(n as u64).unwrap() };
                prop_assert!(whole[pos..].starts_with(bytes));
                if need {
                    prop_assert!(bytes.len() >= n.min(whole.len() - pos));
                } else {
                    prop_assert!(bytes.is_empty() == (pos == whole.len()));
                }
                let take = take.min(bytes.len());
                input.consume(take);
                pos += take;
            }
            let rest = (whole.len() - pos) as u64;
            prop_assert!(input.skip(rest).is_ok());
            prop_assert!(input.skip(1).is_err());
        }
    }
}
