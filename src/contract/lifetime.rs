//! The lifetime that a request asks for.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// A lifetime of 1 to 86400 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "u64", extend("minimum" = 1, "maximum" = Self::MAX))]
pub struct LifetimeSecs(u32);

impl LifetimeSecs {
    /// The lifetime of a `token.request` that names none.
    pub const DEFAULT: Duration = Duration::from_mins(5);
    pub const MAX: u32 = 86_400;

    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

/// Takes `300` and `300.0`: both are integers in JSON Schema, and some languages write the second form.
impl<'de> Deserialize<'de> for LifetimeSecs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seconds;
        impl Visitor<'_> for Seconds {
            type Value = LifetimeSecs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a whole number from 1 to 86400")
            }

            fn visit_u64<E: de::Error>(self, secs: u64) -> Result<LifetimeSecs, E> {
                LifetimeSecs::try_from(secs).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, secs: i64) -> Result<LifetimeSecs, E> {
                self.visit_u64(u64::try_from(secs).unwrap_or(0))
            }

            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
            fn visit_f64<E: de::Error>(self, secs: f64) -> Result<LifetimeSecs, E> {
                if secs.trunc().total_cmp(&secs).is_ne() {
                    return Err(E::invalid_type(Unexpected::Float(secs), &self));
                }
                self.visit_u64(secs as u64)
            }
        }
        deserializer.deserialize_u64(Seconds)
    }
}

impl TryFrom<u64> for LifetimeSecs {
    type Error = &'static str;

    fn try_from(secs: u64) -> Result<Self, Self::Error> {
        match u32::try_from(secs) {
            Ok(secs @ 1..=Self::MAX) => Ok(Self(secs)),
            _ => Err("must be a whole number from 1 to 86400"),
        }
    }
}
