//! Verifies the chain of an audit log, line by line.

use super::chain::{ChainEnd, Link, OfChain, Torn};
use crate::domain::secret::KeyRing;

/// In bytes. Lines of the audit log are far shorter.
pub const LONGEST_LINE: usize = 64 * 1024;

/// What is wrong with a line. The first one that is found ends the look: behind it nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("no file begins with this line: the lines before it were cut off")]
    Beheaded,
    #[error("it has no chain: it was inserted or changed, or written while `audit.chain` was off")]
    Unchained,
    #[error(
        "its sequence number is {found}, and {expected} comes here: {} removed, or the files are not given in \
         order, the oldest first", were(.found - .expected)
    )]
    Missing { expected: u64, found: u64 },
    #[error(
        "its sequence number is {found}, and {expected} comes here: it was moved or repeated, another chain begins, or \
         the files are not given in order, the oldest first"
    )]
    OutOfOrder { expected: u64, found: u64 },
    #[error(
        "its code is not that of this line behind the one before: it was changed, or exchanged for another one"
    )]
    Changed,
    #[error("it is longer than any line of an audit log")]
    TooLong,
}

/// Why nobody can say whether a line is right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key `{0}` is not among the encryption keys; put it back into encryption.keys for this command")]
pub struct UnknownKey(pub String);

/// Why the look ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1 in its file.
    pub line: u64,
    pub why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error(transparent)]
    UnknownKey(#[from] UnknownKey),
}

/// An unfinished line of a writer that was killed, or that still writes. It stands outside of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornLine(pub u64);

/// Takes the lines of all files in order.
#[derive(Debug)]
pub struct Verifier<'a> {
    keys: &'a KeyRing,
    /// The first sequence number. None: no line was taken yet.
    first: Option<u64>,
    end: ChainEnd,
    /// In this file.
    line: u64,
    /// The line before, which has no chain: right if this line says that it is torn.
    unchained: Option<Torn>,
}

impl<'a> Verifier<'a> {
    pub const fn new(keys: &'a KeyRing) -> Self {
        Self { keys, first: None, end: ChainEnd::NEW, line: 0, unchained: None }
    }

    /// The first and the last sequence number. None: there was no line.
    pub fn range(&self) -> Option<(u64, u64)> {
        self.first.map(|first| (first, self.end.sequence))
    }

    /// Takes the next line, without its line feed.
    ///
    /// # Errors
    /// [`Fault`]: this line, or the one before, is not right, or nobody can say.
    pub fn take(&mut self, line: &[u8]) -> Result<Option<TornLine>, Fault> {
        self.line += 1;
        let Some(linked) = Link::read(line) else {
            let is_second = self.unchained.is_some();
            let at = if is_second { self.line - 1 } else { self.line };
            if is_second || self.line == 1 {
                return Err(Fault { line: at, why: Broken::Unchained.into() });
            }
            self.unchained = Some(Torn::of(line));
            return Ok(None);
        };
        let about_chain = OfChain::read(line);
        let torn = match self.unchained.take() {
            None => None,
            Some(torn) => {
                if about_chain != Some(OfChain::TornLine(torn)) {
                    return Err(Fault { line: self.line - 1, why: Broken::Unchained.into() });
                }
                Some(TornLine(self.line - 1))
            }
        };
        self.check(&linked, about_chain.as_ref()).map_err(|why| Fault { line: self.line, why })?;
        self.first.get_or_insert(linked.end.sequence);
        self.end = linked.end;
        Ok(torn)
    }

    /// Takes what stands behind the last line feed of a file.
    ///
    /// # Errors
    /// As [`Verifier::take`].
    pub fn take_unfinished(&mut self, rest: &[u8]) -> Result<Option<TornLine>, Fault> {
        if Link::read(rest).is_some() {
            return self.take(rest);
        }
        self.line += 1;
        Ok(Some(TornLine(self.line)))
    }

    /// Says that a line is too long to be taken.
    pub fn too_long(&self) -> Fault {
        Fault { line: self.line + 1, why: Broken::TooLong.into() }
    }

    /// After the last line of a file.
    ///
    /// # Errors
    /// [`Fault`]: its last line has no chain.
    pub fn end_of_file(&mut self) -> Result<(), Fault> {
        let line = std::mem::take(&mut self.line);
        match self.unchained.take() {
            None => Ok(()),
            Some(_) => Err(Fault { line, why: Broken::Unchained.into() }),
        }
    }

    fn check(&self, link: &Link<'_>, about_chain: Option<&OfChain>) -> Result<(), Why> {
        let (before, found) = (self.before(link, about_chain)?, link.end.sequence);
        let expected = before.sequence.saturating_add(1);
        if found > expected {
            return Err(Broken::Missing { expected, found }.into());
        }
        if found < expected {
            return Err(Broken::OutOfOrder { expected, found }.into());
        }
        let key = self.keys.keys().iter().find(|key| key.id() == link.key_id);
        let key = key.ok_or_else(|| UnknownKey(link.key_id.to_owned()))?;
        let is_right = key.audit_key().accepts(&before.code, link.content, &link.end.code);
        if is_right { Ok(()) } else { Err(Broken::Changed.into()) }
    }

    /// The line before. The first line of all says itself what came before it: older files may be gone.
    fn before(&self, link: &Link<'_>, about_chain: Option<&OfChain>) -> Result<ChainEnd, Broken> {
        match (self.first, about_chain) {
            (Some(_), _) => Ok(self.end),
            (None, Some(OfChain::FileBegun(code))) => {
                Ok(ChainEnd { sequence: link.end.sequence.saturating_sub(1), code: *code })
            }
            (None, _) => Err(Broken::Beheaded),
        }
    }
}

fn were(lines: u64) -> String {
    if lines == 1 { "a line before it was".to_owned() } else { format!("{lines} lines before it were") }
}
