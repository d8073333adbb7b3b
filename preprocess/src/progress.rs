//! Progress on stderr: a bar with rate and remaining time on a terminal, a line every few seconds otherwise.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Progress over rows.
pub struct Progress {
    name: &'static str,
    rows: usize,
    done: usize,
    rejected: usize,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Progress of `name` over `rows` rows.
    pub fn new(name: &'static str, rows: usize) -> Self {
        let style = "{msg} {wide_bar} {human_pos}/{human_len} rows, {per_sec}, {eta} left";
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(rows as u64).with_style(style).with_message(name)
        });
        let now = Instant::now();
        Self { name, rows, done: 0, rejected: 0, started: now, last_line: now, bar }
    }

    /// Some more rows are done, `rejected` of them rejected.
    pub fn advance(&mut self, rows: usize, rejected: usize) {
        self.done += rows;
        self.rejected += rejected;
        match &self.bar {
            Some(bar) => {
                bar.inc(rows as u64);
                if self.rejected > 0 {
                    bar.set_message(format!("{} ({} rejected)", self.name, self.rejected));
                }
            }
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                self.line();
            }
            None => {}
        }
    }

    /// The last word.
    pub fn finish(&self) {
        match &self.bar {
            Some(bar) => bar.finish(),
            None => self.line(),
        }
    }

    fn line(&self) {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let rate = self.done as f64 / seconds;
        let left = (self.rows - self.done.min(self.rows)) as f64 / rate.max(1e-9);
        let Self { name, rows, done, rejected, .. } = self;
        base::tell!("{name}: {done}/{rows} rows, {rejected} rejected, {rate:.0} rows/s, {left:.0} s left");
    }
}

/// A number of bytes for people: `68.2 GB`.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_printed_for_people() {
        assert_eq!(super::bytes(999), "999 B");
        assert_eq!(super::bytes(68_200_000_000), "68.2 GB");
    }
}
