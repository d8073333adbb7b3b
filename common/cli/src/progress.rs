//! Progress on stderr: a bar on a terminal, a line every few seconds otherwise, with rate and remaining time.

use crate::units::duration;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines where stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The bar that is on the terminal: log lines are written above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Progress over a known number of things.
pub struct Progress {
    unit: &'static str,
    total: u64,
    done: u64,
    /// Done before this process: no part of the rate.
    before: u64,
    begin: Instant,
    last_line: Option<Instant>,
    note: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Progress that stands at `done` of `total` `unit` (`rows`, `images`; `step` for [`Self::set`]).
    pub fn new(unit: &'static str, done: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}");
            let bar = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(done);
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
            bar
        });
        Self { unit, total, done, before: done, begin: Instant::now(), last_line: None, note: String::new(), bar }
    }

    /// What stands behind the number of things from here on.
    pub fn note(&mut self, note: String) {
        self.note = note;
    }

    /// Some more are done. The first line comes after the first interval.
    pub fn advance(&mut self, more: u64) {
        self.done += more;
        let text = self.rate_and_rest();
        let is_due = self.last_line.unwrap_or(self.begin).elapsed() >= LINE_INTERVAL;
        self.show(&text, is_due.then(|| self.line(&text)));
    }

    /// `done` are done, and `text` says what there is to say of them. The first and the last time are lines in any case.
    pub fn set(&mut self, done: u64, text: &str) {
        self.done = done;
        let is_due = self.last_line.is_none_or(|line| line.elapsed() >= LINE_INTERVAL);
        let line = || format!("{} {done}/{}  {text}", self.unit, self.total);
        self.show(text, (is_due || done >= self.total).then(line));
    }

    /// The last line, or the bar as it stands at the end.
    pub fn finish(self) {
        match &self.bar {
            Some(bar) => bar.finish(),
            None => tracing::info!("{}", self.line(&self.rate_and_rest())),
        }
    }

    /// On the bar, or as a line if one is due.
    fn show(&mut self, text: &str, line: Option<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_string());
            bar.set_position(self.done);
        } else if let Some(line) = line {
            self.last_line = Some(Instant::now());
            tracing::info!("{line}");
        }
    }

    fn line(&self, text: &str) -> String {
        format!("{}/{} {text}", self.done, self.total)
    }

    fn rate_and_rest(&self) -> String {
        let rate = (self.done - self.before) as f64 / self.begin.elapsed().as_secs_f64().max(1e-9);
        let rest = self.total.saturating_sub(self.done) as f64 / rate;
        let rest = if rest.is_finite() { format!(", {} left", duration(rest)) } else { String::new() };
        let Self { unit, note, .. } = self;
        let digits = if rate < 100.0 { 2 } else { 0 };
        format!("{unit}{note}, {rate:.digits$} {unit}/s{rest}")
    }
}

impl Drop for Progress {
    /// What comes later is written where the bar stands.
    fn drop(&mut self) {
        if self.bar.is_some() {
            SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// Writes to stderr, above the bar if one is shown.
pub(crate) fn above_the_bar<T>(write: impl FnOnce() -> T) -> T {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_this_process() {
        let begin = Instant::now() - Duration::from_secs(10);
        let mut progress = Progress::new("rows", 40, 100);
        (progress.begin, progress.done) = (begin, 60);
        progress.note(", 1 rejected".to_string());
        assert_eq!(progress.rate_and_rest(), "rows, 1 rejected, 2.00 rows/s, 20 s left");
        progress.done = 40;
        assert_eq!(progress.rate_and_rest(), "rows, 1 rejected, 0.00 rows/s");
    }
}
