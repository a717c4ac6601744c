//! The formats of sealed secrets.

/// What the first byte of a sealed secret names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Format {
    /// XChaCha20-Poly1305, with a nonce of 24 bytes. The secret is bound to its place alone.
    One = 1,
    /// The same cipher. The secret is bound to its deployment, its place, and all that must not change beside it
    /// ([`Binding`](super::Binding)).
    Two = 2,
}

impl Format {
    /// The newest format that this version reads and writes.
    pub const NEWEST: Self = Self::Two;

    /// The format of a sealed secret. None: this version knows no such format.
    pub fn of(sealed: &[u8]) -> Option<Self> {
        Self::from_number((*sealed.first()?).into())
    }

    /// As it is written in the database.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The format of this number. None: this version does not know it.
    pub const fn from_number(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            _ => None,
        }
    }

    pub(super) const fn byte(self) -> u8 {
        self as u8
    }
}
