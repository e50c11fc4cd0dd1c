//! Times as the wire writes them. The grammar is this module's, the calendar is jiff's.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::SignedDuration;
use jiff::civil::DateTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Nanoseconds of the smallest step that peers keep (a .NET tick).
const TICK: u32 = 100;

/// Ticks of a second.
const SECOND: i64 = 10_000_000;

/// The longest text: `YYYY-MM-DDTHH:MM:SS.fffffffZ`.
const MAX_TEXT: usize = 28;

/// A moment in UTC, from year 1 to the end of year 9999, in steps of 100 ns: what a .NET peer
/// holds.
///
/// Read from `YYYY-MM-DDTHH:MM:SS`, with up to nine digits of a fraction (those after the seventh
/// are dropped) and `Z`, an offset `+HH:MM` or `-HH:MM`, or nothing, which means UTC. Written with
/// `Z` and as few digits of a fraction as say the same.
///
/// ```
/// # use migration_ipc_protocol::Timestamp;
/// let time: Timestamp = "2024-01-01T21:30:00.1200000+09:00".parse()?;
/// assert_eq!(time.to_string(), "2024-01-01T12:30:00.12Z");
/// # Ok::<(), migration_ipc_protocol::ParseTimestampError>(())
/// ```
// Ticks since `UNIX_EPOCH`. Invariant: from `MIN` to `MAX`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text is not a time of the form that [`Timestamp`] describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time of the form YYYY-MM-DDTHH:MM:SS[.fffffff][Z|+HH:MM|-HH:MM]")]
pub struct ParseTimestampError;

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Self = Self(-62_135_596_800 * SECOND);
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Self = Self(0);
    /// 9999-12-31T23:59:59.9999999Z.
    pub const MAX: Self = Self(253_402_300_800 * SECOND - 1);

    /// The clock's reading, rounded down to a step; beyond [`Self::MIN`] and [`Self::MAX`] these.
    #[must_use]
    pub fn from_system_time(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self::UNIX_EPOCH + after,
            Err(before) => Self::UNIX_EPOCH - before.duration(),
        }
    }

    /// The same moment for the operating system; `None` where its type does not reach (that of
    /// Windows begins in 1601).
    #[must_use]
    pub fn to_system_time(self) -> Option<SystemTime> {
        let distance = from_ticks(self.0.unsigned_abs());
        if self.0 < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(distance)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(distance)
        }
    }

    /// The moment `micros` microseconds after 1970-01-01T00:00:00Z; beyond [`Self::MIN`] and
    /// [`Self::MAX`] these.
    #[must_use]
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_mul(10)).clamp(Self::MIN, Self::MAX)
    }

    /// Microseconds since 1970-01-01T00:00:00Z, rounded down.
    #[must_use]
    pub const fn unix_micros(self) -> i64 {
        self.0.div_euclid(10)
    }

    /// The time since `earlier`; zero if that is later.
    #[must_use]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        if self > earlier {
            from_ticks(self.0.abs_diff(earlier.0))
        } else {
            Duration::ZERO
        }
    }

    /// Writes the text into `buffer` and returns it.
    fn write(self, buffer: &mut [u8; MAX_TEXT]) -> &str {
        let seconds = SignedDuration::from_secs(self.0.div_euclid(SECOND));
        let civil = EPOCH.saturating_add(seconds);
        let mut text = Text { buffer, length: 0 };
        text.digits::<4>(civil.year().unsigned_abs().into());
        text.push(b'-');
        text.digits::<2>(civil.month().unsigned_abs().into());
        text.push(b'-');
        text.digits::<2>(civil.day().unsigned_abs().into());
        text.push(b'T');
        text.digits::<2>(civil.hour().unsigned_abs().into());
        text.push(b':');
        text.digits::<2>(civil.minute().unsigned_abs().into());
        text.push(b':');
        text.digits::<2>(civil.second().unsigned_abs().into());
        let fraction = u32::try_from(self.0.rem_euclid(SECOND)).unwrap_or_default();
        if fraction > 0 {
            text.push(b'.');
            text.digits::<7>(fraction);
            text.trim_zeros();
        }
        text.push(b'Z');
        text.finish()
    }
}

/// What [`Timestamp::UNIX_EPOCH`] is in the calendar.
const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// The whole ticks of a duration; as many as there can be when it is longer.
fn to_ticks(duration: Duration) -> i64 {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    seconds
        .saturating_mul(SECOND)
        .saturating_add((duration.subsec_nanos() / TICK).into())
}

fn from_ticks(ticks: u64) -> Duration {
    let second = SECOND.unsigned_abs();
    let fraction = u32::try_from(ticks % second).unwrap_or_default();
    Duration::new(ticks / second, fraction * TICK)
}

/// ASCII written from left to right. Invariant: `buffer[..length]` is ASCII.
struct Text<'a> {
    buffer: &'a mut [u8; MAX_TEXT],
    length: usize,
}

impl<'a> Text<'a> {
    fn push(&mut self, byte: u8) {
        self.buffer[self.length] = byte;
        self.length += 1;
    }

    /// Appends the last `N` decimal digits of `value`.
    fn digits<const N: usize>(&mut self, mut value: u32) {
        for place in self.buffer[self.length..self.length + N].iter_mut().rev() {
            *place = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
        self.length += N;
    }

    fn trim_zeros(&mut self) {
        while self.buffer[self.length - 1] == b'0' {
            self.length -= 1;
        }
    }

    fn finish(self) -> &'a str {
        std::str::from_utf8(&self.buffer[..self.length]).unwrap_or_default()
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// Rounds down to a step, and stops at [`Timestamp::MAX`].
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(to_ticks(duration))).clamp(Self::MIN, Self::MAX)
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    /// Rounds down to a step, and stops at [`Timestamp::MIN`].
    fn sub(self, duration: Duration) -> Self {
        let up = duration.saturating_add(Duration::from_nanos((TICK - 1).into()));
        Self(self.0.saturating_sub(to_ticks(up))).clamp(Self::MIN, Self::MAX)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self::from_system_time(time)
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, ParseTimestampError> {
        parse(text.as_bytes()).ok_or(ParseTimestampError)
    }
}

fn parse(text: &[u8]) -> Option<Timestamp> {
    let (date_time, rest) = text.split_first_chunk::<19>()?;
    for (place, mark) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
        if date_time[place] != mark {
            return None;
        }
    }
    let (fraction, rest) = parse_fraction(rest)?;
    let offset = parse_offset(rest)?;
    let civil = DateTime::new(
        i16::try_from(number(&date_time[0..4])?).ok()?,
        two_digits(&date_time[5..7])?,
        two_digits(&date_time[8..10])?,
        two_digits(&date_time[11..13])?,
        two_digits(&date_time[14..16])?,
        two_digits(&date_time[17..19])?,
        0,
    )
    .ok()?;
    let seconds = civil.duration_since(EPOCH).as_secs() - offset;
    let time = Timestamp(seconds * SECOND + fraction);
    (Timestamp::MIN..=Timestamp::MAX)
        .contains(&time)
        .then_some(time)
}

/// The ticks of an optional fraction, and what follows it.
fn parse_fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.', text)) = text.split_first() else {
        return Some((0, text));
    };
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=9).contains(&length) {
        return None;
    }
    let (digits, rest) = text.split_at(length);
    let kept = &digits[..length.min(7)];
    let missing = u32::try_from(7 - kept.len()).ok()?;
    Some((i64::from(number(kept)?) * 10_i64.pow(missing), rest))
}

/// How many seconds local time is ahead of UTC.
fn parse_offset(text: &[u8]) -> Option<i64> {
    match text {
        [] | [b'Z'] => Some(0),
        [sign @ (b'+' | b'-'), hours @ .., b':', ten, one] if hours.len() == 2 => {
            let hours = number(hours).filter(|hours| *hours <= 14)?;
            let minutes = number(&[*ten, *one]).filter(|minutes| *minutes <= 59)?;
            let ahead = i64::from(hours * 3600 + minutes * 60);
            Some(if *sign == b'-' { -ahead } else { ahead })
        }
        _ => None,
    }
}

fn two_digits(digits: &[u8]) -> Option<i8> {
    i8::try_from(number(digits)?).ok()
}

/// The value of at most nine decimal digits.
fn number(digits: &[u8]) -> Option<i32> {
    digits.iter().try_fold(0, |value, byte| {
        byte.is_ascii_digit()
            .then(|| value * 10 + i32::from(byte - b'0'))
    })
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.write(&mut [0; MAX_TEXT]))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.write(&mut [0; MAX_TEXT]))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}
