//! What the programs tell about themselves: logs, and the figures of `status`.

mod latency;
mod logging;
mod rates;
mod recorder;

pub(crate) use latency::Quantiles;
pub(crate) use logging::LogSettings;
pub(crate) use recorder::{Recorder, Traffic};
