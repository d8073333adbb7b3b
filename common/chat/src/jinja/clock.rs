//! The time that `strftime_now` writes.

use super::invalid;
use chrono::{DateTime, Local, NaiveDateTime};
use minijinja::Error;
use std::fmt::Write;

/// A moment: one for the whole run, so that a run's rows agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock(NaiveDateTime);

impl Clock {
    /// The local time, as transformers takes it. `SOURCE_DATE_EPOCH` (seconds since 1970, UTC) sets another, so that a run can
    /// be repeated on another day.
    pub fn now() -> Self {
        let set = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| Self::at(seconds.trim().parse().ok()?));
        set.unwrap_or_else(|| Self(Local::now().naive_local()))
    }

    /// Seconds since 1970, UTC.
    pub fn at(seconds: i64) -> Option<Self> {
        DateTime::from_timestamp(seconds, 0).map(|time| Self(time.naive_utc()))
    }

    /// Year, month and day.
    pub fn day(self) -> String {
        self.0.format("%Y-%m-%d").to_string()
    }

    /// As C's `strftime`.
    pub fn format(&self, format: &str) -> Result<String, Error> {
        let mut text = String::new();
        // A directive that chrono does not know is an error of the formatting.
        match write!(text, "{}", self.0.format(format)) {
            Ok(()) => Ok(text),
            Err(_) => Err(invalid(format!("strftime_now: unknown directive in {format:?}"))),
        }
    }
}
