//! Frames, sans-IO.
//!
//! ```text
//! u32 LE header length │ u32 LE payload length │ header (postcard) │ payload (raw bytes)
//! ```
//!
//! A receiver never believes a length: one above its limit is an error, and one below it
//! makes the buffer grow only as the bytes arrive.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Largest header, bytes.
pub const MAX_HEADER: usize = 16 << 20;
/// Largest payload, bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Bytes in front of the header: the two lengths.
const PREFIX: usize = 8;
/// Smallest step by which a receiving buffer grows, bytes.
const GROWTH: usize = 64 << 10;
/// Most payloads that are kept for later ones.
const MOST_SPARE: usize = 8;

/// Why a frame could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("frame header of {size} bytes, at most {limit} are allowed")]
    HeaderTooLarge { size: usize, limit: usize },
    #[error("frame payload of {size} bytes, at most {MAX_PAYLOAD} are allowed")]
    PayloadTooLarge { size: usize },
    #[error("frame header: {0}")]
    Header(#[from] postcard::Error),
}

/// One received frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// A postcard value; see [`Frame::decode`].
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads the header.
    ///
    /// # Errors
    /// When the header is not a `T`.
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, CodecError> {
        Ok(postcard::from_bytes(&self.header)?)
    }

    /// What the frame costs while it waits to be read, bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.header.len() + self.payload.len() + std::mem::size_of::<Self>()
    }
}

/// The lengths and the header of a frame whose payload of `payload` bytes follows.
///
/// # Errors
/// When a size is above its limit or the header cannot be serialized.
pub fn encode(header: &impl Serialize, payload: usize) -> Result<Vec<u8>, CodecError> {
    let frame = postcard::to_extend(header, vec![0; PREFIX])?;
    finish(frame, payload)
}

/// As [`encode`], for a header that is serialized already.
///
/// # Errors
/// When a size is above its limit.
pub fn encode_raw(header: &[u8], payload: usize) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::with_capacity(PREFIX + header.len());
    frame.extend_from_slice(&[0; PREFIX]);
    frame.extend_from_slice(header);
    finish(frame, payload)
}

fn finish(mut frame: Vec<u8>, payload: usize) -> Result<Vec<u8>, CodecError> {
    let sizes = Sizes { header: frame.len() - PREFIX, payload };
    sizes.check(MAX_HEADER)?;
    frame[..PREFIX].copy_from_slice(&sizes.to_bytes());
    Ok(frame)
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    header: usize,
    payload: usize,
}

impl Sizes {
    fn from_bytes(bytes: [u8; PREFIX]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        let header = u32::from_le_bytes([a, b, c, d]) as usize;
        Self { header, payload: u32::from_le_bytes([e, f, g, h]) as usize }
    }

    /// Both sizes are below their limits, which are below 2³².
    fn to_bytes(self) -> [u8; PREFIX] {
        let [a, b, c, d, ..] = (self.header as u64).to_le_bytes();
        let [e, f, g, h, ..] = (self.payload as u64).to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    fn check(self, max_header: usize) -> Result<(), CodecError> {
        if self.header > max_header {
            return Err(CodecError::HeaderTooLarge { size: self.header, limit: max_header });
        }
        if self.payload > MAX_PAYLOAD {
            return Err(CodecError::PayloadTooLarge { size: self.payload });
        }
        Ok(())
    }
}

/// Turns received bytes, cut anywhere, back into frames.
#[derive(Debug)]
pub struct Decoder {
    max_header: usize,
    prefix: Vec<u8>,
    sizes: Option<Sizes>,
    frame: Frame,
    ready: VecDeque<Frame>,
    ready_cost: usize,
    /// Payloads to be used again, empty.
    spare: Vec<Vec<u8>>,
}

impl Decoder {
    /// A decoder that refuses headers above `max_header` bytes (at most [`MAX_HEADER`]).
    #[must_use]
    pub fn new(max_header: usize) -> Self {
        Self {
            max_header: max_header.min(MAX_HEADER),
            prefix: Vec::with_capacity(PREFIX),
            sizes: None,
            frame: Frame::default(),
            ready: VecDeque::new(),
            ready_cost: 0,
            spare: Vec::new(),
        }
    }

    /// Lowers the limit of frames that have not begun yet.
    pub fn limit_header(&mut self, max_header: usize) {
        self.max_header = max_header.min(MAX_HEADER);
    }

    /// Takes a payload back that is done with. Fresh memory costs a page fault for every 4 KiB,
    /// which is as much as the rest of the way of a large payload.
    pub fn recycle(&mut self, mut payload: Vec<u8>) {
        payload.clear();
        if payload.capacity() >= GROWTH && self.spare.len() < MOST_SPARE {
            self.spare.push(payload);
        }
    }

    /// Frees what [`Self::recycle`] keeps.
    pub fn forget_recycled(&mut self) {
        self.spare = Vec::new();
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When a frame announces a size above its limit; nothing after it can be read.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), CodecError> {
        while !bytes.is_empty() {
            bytes = match self.sizes {
                None => self.push_prefix(bytes)?,
                Some(sizes) => self.push_body(sizes, bytes),
            };
        }
        Ok(())
    }

    /// The oldest complete frame.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let frame = self.ready.pop_front()?;
        self.ready_cost -= frame.cost();
        Some(frame)
    }

    /// What the frames that wait in [`Self::next_frame`] cost, bytes.
    #[must_use]
    pub fn ready_cost(&self) -> usize {
        self.ready_cost
    }

    /// Bytes of an incomplete frame are held.
    #[must_use]
    pub fn in_frame(&self) -> bool {
        self.sizes.is_some() || !self.prefix.is_empty()
    }

    fn push_prefix<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], CodecError> {
        let rest = fill(&mut self.prefix, PREFIX, bytes);
        if let Ok(prefix) = <[u8; PREFIX]>::try_from(self.prefix.as_slice()) {
            let sizes = Sizes::from_bytes(prefix);
            sizes.check(self.max_header)?;
            self.prefix.clear();
            self.sizes = Some(sizes);
            if sizes.payload >= GROWTH {
                self.frame.payload = self.spare.pop().unwrap_or_default();
            }
            self.finish_frame(sizes);
        }
        Ok(rest)
    }

    fn push_body<'a>(&mut self, sizes: Sizes, bytes: &'a [u8]) -> &'a [u8] {
        let rest = fill(&mut self.frame.header, sizes.header, bytes);
        let rest = fill(&mut self.frame.payload, sizes.payload, rest);
        self.finish_frame(sizes);
        rest
    }

    fn finish_frame(&mut self, sizes: Sizes) {
        let whole = self.frame.header.len() == sizes.header;
        if whole && self.frame.payload.len() == sizes.payload {
            let frame = std::mem::take(&mut self.frame);
            self.ready_cost += frame.cost();
            self.ready.push_back(frame);
            self.sizes = None;
        }
    }
}

/// Moves bytes from the front of `from` to `to` until `to` has `size` bytes; returns the rest.
fn fill<'a>(to: &mut Vec<u8>, size: usize, from: &'a [u8]) -> &'a [u8] {
    let missing = size - to.len();
    let (take, rest) = from.split_at(missing.min(from.len()));
    if to.capacity() - to.len() < take.len() {
        to.reserve_exact(to.len().max(GROWTH).max(take.len()).min(missing));
    }
    to.extend_from_slice(take);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(frames: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (header, payload) in frames {
            out.extend(encode_raw(header, payload.len()).unwrap());
            out.extend(payload);
        }
        out
    }

    #[test]
    fn header_round_trip() {
        let mut bytes = encode(&("move", 7u64), 3).unwrap();
        bytes.extend(b"abc");
        let mut decoder = Decoder::new(MAX_HEADER);
        decoder.push(&bytes).unwrap();
        let frame = decoder.next_frame().unwrap();
        assert_eq!(frame.decode::<(String, u64)>().unwrap(), ("move".into(), 7));
        assert_eq!(frame.payload, b"abc");
        assert!(frame.decode::<Vec<String>>().is_err());
        assert_eq!(decoder.ready_cost(), 0);
    }

    #[test]
    fn absurd_sizes_are_refused_at_once() {
        let mut huge = [0xff; 8];
        let refused = Decoder::new(MAX_HEADER).push(&huge);
        assert!(matches!(refused, Err(CodecError::HeaderTooLarge { .. })));
        huge[..4].fill(0);
        let refused = Decoder::new(MAX_HEADER).push(&huge);
        assert!(matches!(refused, Err(CodecError::PayloadTooLarge { .. })));
        assert!(encode(&(), MAX_PAYLOAD + 1).is_err());
        let long = encode_raw(&[0; 100], 0).unwrap();
        assert!(Decoder::new(99).push(&long).is_err());
    }

    #[test]
    fn a_large_announcement_allocates_little() {
        let mut bytes = Sizes { header: MAX_HEADER, payload: MAX_PAYLOAD }.to_bytes().to_vec();
        bytes.extend([1; 10]);
        let mut decoder = Decoder::new(MAX_HEADER);
        decoder.push(&bytes).unwrap();
        assert!(decoder.in_frame());
        assert!(decoder.frame.header.capacity() <= GROWTH);
        assert_eq!(decoder.frame.payload.capacity(), 0);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300),
                                             prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1usize..200, 1..20),
        ) {
            let bytes = wire(&frames);
            let mut decoder = Decoder::new(MAX_HEADER);
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while let Some(cut) = cuts.next().filter(|_| !rest.is_empty()) {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.push(now).unwrap();
                rest = later;
            }
            for (header, payload) in frames {
                prop_assert_eq!(decoder.next_frame(), Some(Frame { header, payload }));
            }
            prop_assert!(decoder.next_frame().is_none() && !decoder.in_frame());
        }

        #[test]
        fn random_bytes_never_panic_nor_allocate_much(
            bytes in prop::collection::vec(any::<u8>(), 0..4096),
            small in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if small {
                // Clears the high bytes of the first lengths, so that a body is reached.
                bytes.iter_mut().take(8).filter(|b| **b > 3).for_each(|b| *b = 0);
            }
            let mut decoder = Decoder::new(MAX_HEADER);
            let _refused = decoder.push(&bytes);
            let held = decoder.frame.header.capacity() + decoder.frame.payload.capacity();
            prop_assert!(held <= 2 * (bytes.len() + GROWTH));
            while let Some(frame) = decoder.next_frame() {
                prop_assert!(frame.header.len() + frame.payload.len() <= bytes.len());
            }
        }
    }
}
