//! Reads the body of an answer, up to its end or to the end of the JSON object in it.
//!
//! A server may be wrong about the length, the chunks and the end of its answer. A pair is complete with the last brace
//! of its object, so nothing after that is awaited.

use std::io::{self, Write};
use std::mem;

use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_ENCODING;
use zeroize::Zeroizing;

use super::answer::{Body, End};

/// The longest answer, in bytes without compression: twice the room for a pair of the longest tokens.
pub(super) const MAX_ANSWER: usize = 128 * 1024;

/// The most pieces of an answer: a short piece costs as much as a long one.
const MAX_PIECES: usize = 1_024;

/// Bytes, enough for most answers. Wiping a buffer costs by its capacity.
const TYPICAL_ANSWER: usize = 2 * 1024;

pub(super) struct Received {
    bytes: Zeroizing<Vec<u8>>,
    end: BodyEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyEnd {
    Reached,
    /// The object is complete, and the rest of the body is not awaited.
    NotAwaited,
    TooLong,
    CutOff,
}

impl Received {
    pub(super) fn body(&self) -> Body<'_> {
        match self.end {
            BodyEnd::Reached | BodyEnd::NotAwaited => Body::Whole(&self.bytes),
            BodyEnd::TooLong => Body::TooLong,
            BodyEnd::CutOff => Body::CutOff(&self.bytes),
        }
    }

    pub(super) fn leaves_connection_usable(&self) -> bool {
        self.end == BodyEnd::Reached
    }
}

/// Reads the body, whatever length was announced.
pub(super) async fn receive(headers: &HeaderMap, body: &mut Incoming) -> Received {
    let mut decoder = Decoder::Undecided { says_deflate: says_deflate(headers), text: Text::default() };
    let mut end = BodyEnd::TooLong;
    for _ in 0..MAX_PIECES {
        match body.frame().await.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(chunk))) => {
                let taken = decoder.take(&chunk);
                let text = decoder.text();
                if text.object_ended {
                    // If the end of the body is here too, the connection can be reused.
                    let is_over = matches!(body.frame().now_or_never(), Some(None));
                    end = if is_over { BodyEnd::Reached } else { BodyEnd::NotAwaited };
                } else if text.is_full {
                    break;
                } else if taken.is_err() {
                    // The part before the fault may be an object without its end.
                    end = BodyEnd::CutOff;
                } else {
                    continue;
                }
            }
            // Trailers are ignored.
            Some(Ok(Err(_))) => continue,
            None => end = BodyEnd::Reached,
            Some(Err(_)) => end = BodyEnd::CutOff,
        }
        break;
    }
    Received { bytes: mem::take(&mut decoder.text().bytes), end }
}

fn says_deflate(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_ENCODING)
        .is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"deflate"))
}

/// Undoes a compression (RFC 9110, section 8.4.1) that we did not ask for. Its window of about 32 KiB is not wiped.
enum Decoder {
    Undecided { says_deflate: bool, text: Text },
    Identity(Text),
    Gzip(Box<MultiGzDecoder<Text>>),
    Zlib(Box<ZlibDecoder<Text>>),
    Deflate(Box<DeflateDecoder<Text>>),
}

impl Decoder {
    fn take(&mut self, chunk: &[u8]) -> io::Result<()> {
        let Some(first) = chunk.first() else { return Ok(()) };
        if let Self::Undecided { says_deflate, text } = self {
            let text = mem::take(text);
            // No text begins like gzip. `deflate` means zlib, and no JSON or form begins like its header (RFC 1950,
            // section 2.2). Some servers send raw deflate instead.
            *self = match (first, *says_deflate) {
                (0x1f, _) => Self::Gzip(Box::new(MultiGzDecoder::new(text))),
                (b'{' | b'<', _) | (_, false) => Self::Identity(text),
                (first, true) if first & 0x0f == 8 => Self::Zlib(Box::new(ZlibDecoder::new(text))),
                (_, true) => Self::Deflate(Box::new(DeflateDecoder::new(text))),
            };
        }
        match self {
            Self::Undecided { text, .. } | Self::Identity(text) => text.write_all(chunk),
            Self::Gzip(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
            Self::Zlib(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
            Self::Deflate(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
        }
    }

    fn text(&mut self) -> &mut Text {
        match self {
            Self::Undecided { text, .. } | Self::Identity(text) => text,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        }
    }
}

/// The decompressed body, up to [`MAX_ANSWER`].
#[derive(Default)]
struct Text {
    bytes: Zeroizing<Vec<u8>>,
    end: End,
    object_ended: bool,
    is_full: bool,
}

impl Write for Text {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.object_ended {
            return Ok(chunk.len());
        }
        if self.bytes.len() + chunk.len() > MAX_ANSWER {
            self.is_full = true;
            return Err(io::Error::other("the answer is too long"));
        }
        append(&mut self.bytes, chunk);
        self.object_ended = self.end.is_in(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A full buffer is copied to a larger one and wiped: a `Vec` that grows would leave a copy of a token behind.
fn append(buffer: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let length = buffer.len() + chunk.len();
    if length > buffer.capacity() {
        let room = length.next_power_of_two().max(TYPICAL_ANSWER);
        let mut larger = Zeroizing::new(Vec::with_capacity(room));
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
    buffer.extend_from_slice(chunk);
}
