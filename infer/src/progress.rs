//! Progress on stderr: a bar with rate and remaining time on a terminal, one line every few seconds otherwise.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between two lines when stderr is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts finished things out of a known number.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    terminal: bool,
    begin: Instant,
    last_line: Instant,
    already_done: u64,
}

impl Progress {
    /// Starts at `done` of `total` `what` ("pictures", "rows").
    pub fn new(total: usize, done: usize, what: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        let template = format!("{{bar:30}} {{pos}}/{{len}} {what} {{per_sec}} {{eta}} left {{msg}}");
        bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(done as u64);
        bar.reset_eta();
        let now = Instant::now();
        Self { bar, what, terminal, begin: now, last_line: now, already_done: done as u64 }
    }

    /// One more is done.
    pub fn advance(&mut self) {
        self.bar.inc(1);
        if !self.terminal && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.line();
        }
    }

    /// The last line.
    pub fn finish(self) {
        if self.terminal {
            self.bar.finish();
        } else {
            self.line();
        }
    }

    fn line(&self) {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let rate = (done - self.already_done) as f64 / self.begin.elapsed().as_secs_f64().max(1e-9);
        let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
        let left = if rate > 0.0 { format!(", {left:.0} s left") } else { String::new() };
        base::tell!("{done}/{total} {}, {rate:.2}/s{left}", self.what);
    }
}
