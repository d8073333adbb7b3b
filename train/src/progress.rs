//! Progress over the steps of a run: loss, learning rate, rate and remaining time.

use cli::Progress;
use cli::units::duration;
use std::collections::VecDeque;
use std::time::Instant;

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
pub struct StepProgress {
    max_steps: u64,
    progress: Progress,
    /// End of the newest steps, and their tokens.
    recent: VecDeque<(Instant, f64)>,
}

impl StepProgress {
    /// Starts at a step of a run of `max_steps`.
    pub fn new(step: u64, max_steps: u64) -> Self {
        let recent = VecDeque::from([(Instant::now(), 0.0)]);
        Self { max_steps, progress: Progress::new("step", step, max_steps), recent }
    }

    /// A step is done.
    pub fn step(&mut self, shown: &Shown) {
        self.recent.push_back((Instant::now(), shown.tokens));
        if self.recent.len() > WINDOW + 1 {
            self.recent.pop_front();
        }
        self.progress.set(shown.step, &self.text(shown));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_text_has_loss_rate_and_remaining_time() {
        let mut progress = StepProgress::new(0, 10);
        progress.recent.clear();
        let start = Instant::now();
        progress.recent.extend([(start, 0.0), (start + Duration::from_secs(2), 500.0)]);
        let shown = Shown { step: 4, epoch: 0.5, loss: 1.25, grad_norm: 2.0, learning_rate: 1e-3, tokens: 500.0 };
        let text = progress.text(&shown);
        assert_eq!(text, "epoch 0.50  loss 1.2500  grad_norm 2.000  lr 1.000e-3  250 tokens/s  12 s left");
    }
}
