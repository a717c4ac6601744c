//! A text that means something to the proxy when it goes to a client.

/// What is looked for, and what happens then.
pub struct Marker {
    text: Vec<u8>,
    pub(super) then: Then,
}

/// What the proxy does when a marker has gone to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It ends the connection that the marker came over.
    Cut,
    /// It holds every byte of all connections, as [`FaultProxy::freeze`](super::FaultProxy::freeze) does.
    Freeze,
    /// Nothing that the client sends over that connection from then on arrives: whoever is killed for the marker has
    /// not acked it.
    Mute,
}

impl Marker {
    /// This text, which is not empty.
    pub fn new(text: &str, then: Then) -> Self {
        assert!(!text.is_empty(), "a marker is a text");
        Self { text: text.as_bytes().to_vec(), then }
    }
}

/// Finds a marker in a stream of chunks, also where it is split between two (Knuth, Morris, Pratt: no byte is looked
/// at twice, and none is kept).
pub(super) struct Finder {
    text: Vec<u8>,
    /// For each length of a match: how long the match is that remains where the next byte does not fit.
    shorter: Vec<usize>,
    /// How much of the text the bytes so far end with.
    matched: usize,
}

impl Finder {
    pub(super) fn of(marker: &Marker) -> Self {
        let text = marker.text.clone();
        let mut shorter = vec![0; text.len()];
        let mut length = 0;
        for index in 1..text.len() {
            while length > 0 && text[index] != text[length] {
                length = shorter[length - 1];
            }
            length += usize::from(text[index] == text[length]);
            shorter[index] = length;
        }
        Self { text, shorter, matched: 0 }
    }

    /// How often the marker ends in the next chunk.
    pub(super) fn count_in(&mut self, chunk: &[u8]) -> usize {
        let mut found = 0;
        for byte in chunk {
            while self.matched > 0 && self.text[self.matched] != *byte {
                self.matched = self.shorter[self.matched - 1];
            }
            self.matched += usize::from(self.text[self.matched] == *byte);
            if self.matched == self.text.len() {
                found += 1;
                self.matched = self.shorter[self.matched - 1];
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_wherever_the_chunks_are_cut() {
        let text = b"..aab.aabaab.aaab";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut finder = Finder::of(&Marker::new("aab", Then::Mute));
                let chunks = [&text[..first], &text[first..second], &text[second..]];
                let found: usize = chunks.into_iter().map(|chunk| finder.count_in(chunk)).sum();
                assert_eq!(found, 4, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn what_only_begins_like_a_marker_is_none() {
        let mut finder = Finder::of(&Marker::new("abcabd", Then::Mute));
        assert_eq!(finder.count_in(b"abcabcab"), 0);
        assert_eq!(finder.count_in(b"d"), 1, "the first half may be the beginning of another one");
    }
}
