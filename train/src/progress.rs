//! Progress on stderr: a bar with loss, learning rate, rate and remaining time on a terminal, a line every few seconds
//! otherwise.

use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Steps that rate and remaining time are averaged over.
const WINDOW: usize = 20;

/// What a step shows.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Finished optimizer updates.
    pub step: u64,
    /// Passes over the data, with fraction.
    pub epoch: f64,
    /// Loss of the step.
    pub loss: f64,
    /// Gradient norm of the step, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of the step, all ranks.
    pub tokens: f64,
}

/// Progress over the steps of a run. One rank shows it.
pub struct Progress {
    max_steps: u64,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// End of the newest steps, and their tokens.
    recent: VecDeque<(Instant, f64)>,
}

impl Progress {
    /// Starts at a step of a run of `max_steps`.
    pub fn new(step: u64, max_steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}");
            let bar = ProgressBar::new(max_steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(step);
            bar
        });
        Self { max_steps, bar, last_line: None, recent: VecDeque::from([(Instant::now(), 0.0)]) }
    }

    /// A step is done.
    pub fn step(&mut self, shown: &Shown) {
        self.recent.push_back((Instant::now(), shown.tokens));
        if self.recent.len() > WINDOW + 1 {
            self.recent.pop_front();
        }
        let last = shown.step >= self.max_steps;
        if let Some(bar) = &self.bar {
            bar.set_message(self.text(shown));
            bar.set_position(shown.step);
            if last {
                bar.finish();
            }
        } else if last || self.last_line.is_none_or(|line| line.elapsed() >= LINE_INTERVAL) {
            self.last_line = Some(Instant::now());
            self.say(&format!("step {}/{}  {}", shown.step, self.max_steps, self.text(shown)));
        }
    }

    /// A line of its own, above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // Progress is a courtesy: a closed stderr does not stop the work.
            None => crate::tell!("{line}"),
        }
    }

    /// Time that is not training (an evaluation, a checkpoint) has passed: it does not count as slow steps.
    pub fn pause(&mut self) {
        self.recent.clear();
        self.recent.push_back((Instant::now(), 0.0));
    }

    fn text(&self, shown: &Shown) -> String {
        let Shown { step, epoch, loss, grad_norm, learning_rate, .. } = shown;
        let (Some((first, _)), Some((last, _))) = (self.recent.front(), self.recent.back()) else {
            return String::new();
        };
        let seconds = last.duration_since(*first).as_secs_f64().max(1e-9);
        let steps = (self.recent.len() - 1) as f64;
        let tokens: f64 = self.recent.iter().skip(1).map(|(_, tokens)| tokens).sum();
        let left = seconds / steps.max(1.0) * self.max_steps.saturating_sub(*step) as f64;
        format!(
            "epoch {epoch:.2}  loss {loss:.4}  grad_norm {grad_norm:.3}  lr {learning_rate:.3e}  {:.0} tokens/s  {} left",
            tokens / seconds,
            duration(left)
        )
    }
}

/// Seconds for people: `8 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if minutes == 0 => format!("{seconds} s"),
        () if hours == 0 => format!("{minutes} min {} s", seconds % 60),
        () if days == 0 => format!("{hours} h {} min", minutes % 60),
        () => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_for_people() {
        let cases =
            [(8.2, "8 s"), (200.0, "3 min 20 s"), (18_610.0, "5 h 10 min"), (183_700.0, "2 d 3 h"), (0.0, "0 s")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn the_text_has_loss_rate_and_remaining_time() {
        let mut progress = Progress { max_steps: 10, bar: None, last_line: None, recent: VecDeque::new() };
        let start = Instant::now();
        progress.recent.extend([(start, 0.0), (start + Duration::from_secs(2), 500.0)]);
        let shown = Shown { step: 4, epoch: 0.5, loss: 1.25, grad_norm: 2.0, learning_rate: 1e-3, tokens: 500.0 };
        let text = progress.text(&shown);
        assert_eq!(text, "epoch 0.50  loss 1.2500  grad_norm 2.000  lr 1.000e-3  250 tokens/s  12 s left");
    }
}
