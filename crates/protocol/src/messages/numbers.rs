//! Numbers whose form on the wire matters: a .NET reader of integers refuses `45.0`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A share of a whole, from 0 to 100. What is read beyond that counts as the nearer end. Integral
/// values are written as JSON integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// Nothing yet.
    pub const ZERO: Self = Self(0.0);
    /// Everything.
    pub const COMPLETE: Self = Self(100.0);

    /// This many percent; beyond 0 and 100 the nearer end, and 0 for what is not a number.
    #[must_use]
    pub fn new(percent: f64) -> Self {
        // Adding zero makes a negative zero, which would be written as such, a plain one.
        Self(if percent.is_nan() {
            0.0
        } else {
            percent.clamp(0.0, 100.0) + 0.0
        })
    }

    /// The share that `done` is of `total`, rounded down to an integer, which every peer can read.
    /// All of nothing is complete.
    #[must_use]
    pub fn of(done: u64, total: u64) -> Self {
        let percent = (u128::from(done) * 100)
            .checked_div(u128::from(total))
            .unwrap_or(100);
        Self(f64::from(u8::try_from(percent).unwrap_or(100).min(100)))
    }

    /// The value, from 0 to 100.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// The value as an integer if it is one.
    fn integral(self) -> Option<u8> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float-to-integer cast saturates, and the value is from 0 to 100"
        )]
        let integer = self.0 as u8;
        (f64::from(integer).total_cmp(&self.0).is_eq()).then_some(integer)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.integral() {
            Some(integer) => serializer.serialize_u8(integer),
            None => serializer.serialize_f64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self::new)
    }
}

/// A length of time in whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Seconds(pub u64);

impl Seconds {
    /// The same as a duration.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl From<Duration> for Seconds {
    /// Rounds up.
    fn from(duration: Duration) -> Self {
        Self(
            duration
                .as_secs()
                .saturating_add(u64::from(duration.subsec_nanos() > 0)),
        )
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        seconds.as_duration()
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        rounded_up(deserializer).map(Self)
    }
}

/// Reads a count that some peers write with a fraction.
pub(super) fn rounded_up<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number that is not negative")
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<u64, E> {
            if number < 0.0 {
                return Err(E::invalid_value(de::Unexpected::Float(number), &self));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a float-to-integer cast saturates, and the value is not negative"
            )]
            Ok(number.ceil() as u64)
        }

        fn visit_unit<E: de::Error>(self) -> Result<u64, E> {
            Ok(0)
        }
    }

    deserializer.deserialize_any(Visitor)
}
