//! What was measured: how often, how much, and how long each took.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

/// The longest time that is told apart, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// Operations of one kind.
#[derive(Clone, Debug)]
pub struct Sample {
    /// How many.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// How long all of them took together, in seconds.
    pub seconds: f64,
    /// How long each took, in microseconds.
    times: Histogram<u64>,
}

/// How long operations took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: u64,
    /// 90 % of them.
    pub p90: u64,
    /// 99 % of them.
    pub p99: u64,
    /// All of them.
    pub max: u64,
}

impl Default for Sample {
    fn default() -> Self {
        let times = Histogram::new_with_bounds(1, LONGEST, 3);
        let times = times.expect("three digits of an hour in microseconds are possible");
        Self { operations: 0, bytes: 0, seconds: 0.0, times }
    }
}

impl Sample {
    /// Counts one operation.
    pub(super) fn note(&mut self, took: Duration, bytes: u64) {
        self.operations += 1;
        self.bytes += bytes;
        let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST);
        self.times.saturating_record(micros);
    }

    /// Counts those of another sample as well.
    pub(super) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        // Both have the same bounds.
        let _ = self.times.add(&other.times);
    }

    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// MiB per second.
    pub fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / (1 << 20) as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// How long operations took.
    pub fn latency(&self) -> Latency {
        let at = |quantile| self.times.value_at_quantile(quantile);
        Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: self.times.max() }
    }

    /// Times with the share of operations that took no longer: microseconds, 0 to 1.
    pub fn distribution(&self) -> Vec<(u64, f64)> {
        let total = self.times.len().max(1) as f64;
        let mut sum = 0;
        let mut points = Vec::new();
        for step in self.times.iter_recorded() {
            sum += step.count_since_last_iteration();
            points.push((step.value_iterated_to(), sum as f64 / total));
        }
        points
    }
}

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Whole {
            operations: u64,
            bytes: u64,
            seconds: f64,
            operations_per_second: f64,
            mib_per_second: f64,
            latency_us: Latency,
            /// Microseconds, and how many took so long: no longer than a thousandth more.
            histogram_us: Vec<(u64, u64)>,
        }
        let buckets = self.times.iter_recorded();
        let histogram_us =
            buckets.map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
        Whole {
            operations: self.operations,
            bytes: self.bytes,
            seconds: self.seconds,
            operations_per_second: self.rate(),
            mib_per_second: self.mib_per_second(),
            latency_us: self.latency(),
            histogram_us,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_noted() {
        let mut sample = Sample::default();
        for micros in 1..=100 {
            sample.note(Duration::from_micros(micros * 10), 1 << 20);
        }
        sample.seconds = 2.0;
        let Latency { p50, p90, p99, max } = sample.latency();
        assert_eq!((p50, p90, p99, max), (500, 900, 990, 1000));
        assert_eq!((sample.rate(), sample.mib_per_second()), (50.0, 50.0));
        let points = sample.distribution();
        assert_eq!(points.first().unwrap(), &(10, 0.01));
        assert_eq!(points.last().unwrap().1, 1.0);
        let mut twice = sample.clone();
        twice.add(&sample);
        assert_eq!((twice.operations, twice.latency()), (200, sample.latency()));
    }
}
