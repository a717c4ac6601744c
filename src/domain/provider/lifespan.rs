//! A duration that may be unlimited.

use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::domain::clock::Timestamp;

/// In provider files and the database: a number of whole seconds, or the word `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lifespan {
    Ends(Duration),
    Unlimited,
}

impl Lifespan {
    pub const NONE: Self = Self::Ends(Duration::ZERO);
    pub const UNLIMITED: &str = "unlimited";

    pub const fn secs(secs: u32) -> Self {
        Self::Ends(Duration::from_secs(secs as u64))
    }

    /// None: unlimited.
    pub const fn duration(self) -> Option<Duration> {
        match self {
            Self::Ends(duration) => Some(duration),
            Self::Unlimited => None,
        }
    }

    /// Whether a thing that began to live at `from` is alive at `at`.
    pub fn reaches(self, from: Timestamp, at: Timestamp) -> bool {
        match self {
            Self::Ends(duration) => at < from.plus(duration),
            Self::Unlimited => true,
        }
    }
}

impl Serialize for Lifespan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ends(duration) => serializer.serialize_u64(duration.as_secs()),
            Self::Unlimited => serializer.serialize_str(Self::UNLIMITED),
        }
    }
}

impl<'de> Deserialize<'de> for Lifespan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecondsOrUnlimited;
        impl Visitor<'_> for SecondsOrUnlimited {
            type Value = Lifespan;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(formatter, "a whole number of seconds up to {} or \"unlimited\"", u32::MAX)
            }

            fn visit_u64<E: de::Error>(self, secs: u64) -> Result<Lifespan, E> {
                let secs = u32::try_from(secs);
                secs.map(Lifespan::secs).map_err(|_| E::invalid_value(de::Unexpected::Other("number"), &self))
            }

            fn visit_i64<E: de::Error>(self, secs: i64) -> Result<Lifespan, E> {
                self.visit_u64(u64::try_from(secs).unwrap_or(u64::MAX))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Lifespan, E> {
                match text {
                    Lifespan::UNLIMITED => Ok(Lifespan::Unlimited),
                    _ => Err(E::invalid_value(de::Unexpected::Other("text"), &self)),
                }
            }
        }
        deserializer.deserialize_any(SecondsOrUnlimited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_as_it_was_written() {
        for lifespan in [Lifespan::NONE, Lifespan::secs(600), Lifespan::secs(u32::MAX), Lifespan::Unlimited] {
            let text = serde_json::to_string(&lifespan).unwrap();
            assert_eq!(serde_json::from_str::<Lifespan>(&text).unwrap(), lifespan, "{text}");
        }
        for wrong in ["-1", "4294967296", "1.5", "\"never\"", "true", "null"] {
            assert!(serde_json::from_str::<Lifespan>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_lives_ten_minutes_is_dead_when_they_are_over() {
        let at = Timestamp::from_millis;
        assert!(Lifespan::secs(600).reaches(at(1), at(600_000)));
        assert!(!Lifespan::secs(600).reaches(at(1), at(600_001)));
        assert!(!Lifespan::NONE.reaches(at(1), at(1)));
        assert!(Lifespan::Unlimited.reaches(at(1), at(i64::MAX)));
    }
}
