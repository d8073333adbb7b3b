//! From logits to the next token: transformers' processors in transformers' order, then the largest or a seeded draw.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt;

/// How the next token is chosen. The default is greedy: temperature 0, nothing else changed.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingConfig {
    /// 0 takes the most likely token; otherwise logits are divided by it and a token is drawn.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens (and those equal to the last of them) can be drawn; 0 is off.
    pub top_k: usize,
    /// Only the smallest set of tokens whose probabilities reach `top_p` can be drawn; 1 is off.
    pub top_p: f32,
    /// Divides positive and multiplies negative logits of every token of prompt and answer so far; 1 is off.
    pub repetition_penalty: f32,
    /// Seed of sampling: the same request gives the same text.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingConfig {
    /// Refuses values outside their ranges.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), OutOfRange> {
        let Self { temperature, top_p, repetition_penalty, .. } = *self;
        let checks = [
            ("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "a number ≥ 0 (0 is greedy)"),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0 and at most 1"),
            (
                "repetition_penalty",
                repetition_penalty,
                repetition_penalty.is_finite() && repetition_penalty > 0.0,
                "a number above 0 (1 is off)",
            ),
        ];
        match checks.into_iter().find(|(.., holds, _)| !holds) {
            None => Ok(()),
            Some((setting, found, _, expected)) => Err(OutOfRange { setting, found, expected }),
        }
    }
}

/// A setting with a value that it cannot have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfRange {
    /// Its name.
    pub setting: &'static str,
    /// Its value.
    pub found: f32,
    /// The values that it can have.
    pub expected: &'static str,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}", self.setting, self.found, self.expected)
    }
}

impl std::error::Error for OutOfRange {}

/// The processors and the random state of one sequence.
///
/// # Source
/// transformers `generation/logits_process.py` (`RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`,
/// `TopKLogitsWarper`, `TopPLogitsWarper`) in the order of `GenerationMixin._get_logits_processor`.
///
/// # Differs
/// The draw itself cannot repeat torch's random numbers; it is reproducible by `seed` here.
pub struct Sampler {
    config: SamplingConfig,
    /// One entry a vocabulary token, true once it stood in prompt or answer; empty while the penalty is off.
    seen: Vec<bool>,
    random: StdRng,
}

impl Sampler {
    /// A sampler of one sequence; `prompt` are its ids as the model sees them (`<image>` included).
    pub fn new(config: SamplingConfig, prompt: &[u32]) -> Self {
        let random = StdRng::seed_from_u64(config.seed);
        let mut sampler = Self { config, seen: Vec::new(), random };
        prompt.iter().for_each(|&id| sampler.mark(id));
        sampler
    }

    /// Chooses the next token; `logits` are changed in place.
    ///
    /// # Shapes
    /// `logits`: `[V]`, not empty.
    pub fn next(&mut self, logits: &mut [f32]) -> u32 {
        self.penalize(logits);
        let id = if self.config.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        self.mark(id);
        id
    }

    /// Whether it takes the largest logit as it is, and so needs no other.
    pub fn is_argmax(&self) -> bool {
        self.config.temperature == 0.0 && self.config.repetition_penalty == 1.0
    }

    fn mark(&mut self, id: u32) {
        if self.config.repetition_penalty == 1.0 {
            return;
        }
        let index = id as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        self.seen[index] = true;
    }

    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.config.repetition_penalty;
        for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }

    fn draw(&mut self, logits: &mut [f32]) -> u32 {
        for logit in logits.iter_mut() {
            *logit /= self.config.temperature;
        }
        if self.config.top_k > 0 && self.config.top_k < logits.len() {
            keep_top_k(logits, self.config.top_k);
        }
        if self.config.top_p < 1.0 {
            keep_top_p(logits, self.config.top_p);
        }
        multinomial(logits, self.random.random::<f64>())
    }
}

/// Index of the largest value, the first of equals (as torch's argmax on a CPU); NaN never wins.
pub fn argmax(logits: &[f32]) -> u32 {
    /// Values compared side by side.
    const LANES: usize = 16;
    let larger = |largest: f32, logit: f32| if logit > largest { logit } else { largest };
    let (lanes, rest) = logits.as_chunks::<LANES>();
    let largest = lanes.iter().fold([f32::NEG_INFINITY; LANES], |largest, logits| {
        std::array::from_fn(|lane| larger(largest[lane], logits[lane]))
    });
    let largest = largest.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

/// Everything below the k-th largest becomes −∞; ties with it stay, as in transformers.
fn keep_top_k(logits: &mut [f32], k: usize) {
    let mut values = logits.to_vec();
    let (_, kth, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let kth = *kth;
    logits.iter_mut().filter(|logit| **logit < kth).for_each(|logit| *logit = f32::NEG_INFINITY);
}

/// Tokens whose ascending cumulative probability is ≤ 1 − top_p become −∞; the most likely always stays.
fn keep_top_p(logits: &mut [f32], top_p: f32) {
    let mut ascending: Vec<u32> =
        (0..logits.len() as u32).filter(|&id| logits[id as usize] > f32::NEG_INFINITY).collect();
    ascending.sort_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]));
    let Some((&largest, rest)) = ascending.split_last() else { return };
    let max = logits[largest as usize];
    let total: f32 = ascending.iter().map(|&id| (logits[id as usize] - max).exp()).sum();
    let mut cumulative = 0f32;
    for &id in rest {
        cumulative += (logits[id as usize] - max).exp() / total;
        if cumulative > 1.0 - top_p {
            break;
        }
        logits[id as usize] = f32::NEG_INFINITY;
    }
}

/// The token at which the cumulative probability passes `uniform` (in 0..1).
fn multinomial(logits: &[f32], uniform: f64) -> u32 {
    let max = logits[argmax(logits) as usize];
    let weight = |logit: f32| f64::from((logit - max).exp());
    let total: f64 = logits.iter().map(|&logit| weight(logit)).filter(|weight| weight.is_finite()).sum();
    let mut left = uniform * total;
    let mut last = argmax(logits);
    for (id, &logit) in logits.iter().enumerate() {
        let weight = weight(logit);
        if weight > 0.0 {
            last = id as u32;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: f32 = f32::NEG_INFINITY;

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(SamplingConfig::default(), &[]);
        assert_eq!(sampler.next(&mut [0.5, 2.0, 2.0, f32::NAN]), 1);
        assert_eq!(sampler.next(&mut [f32::NAN, -2.0]), 1);
    }

    // Expected values: the named classes of transformers 5.24 on torch 2.15.
    #[test]
    fn repetition_penalty_divides_positive_and_multiplies_negative() {
        let config = SamplingConfig { repetition_penalty: 2.0, ..Default::default() };
        let sampler = Sampler::new(config, &[0, 2, 2]);
        let mut logits = [1.0, 1.0, -1.0, -1.0];
        sampler.penalize(&mut logits);
        assert_eq!(logits, [0.5, 1.0, -2.0, -1.0]);
    }

    #[test]
    fn top_k_keeps_ties_with_the_last() {
        let mut logits = [1.0, 3.0, 2.0, 2.0, 0.0];
        keep_top_k(&mut logits, 2);
        assert_eq!(logits, [OUT, 3.0, 2.0, 2.0, OUT]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let probabilities = [0.1f32, 0.5, 0.15, 0.25];
        let logits = probabilities.map(f32::ln);
        for (top_p, kept) in [(0.4, 0b0010), (0.6, 0b1010), (0.8, 0b1110), (0.95, 0b1111), (1e-6, 0b0010)] {
            let mut changed = logits;
            keep_top_p(&mut changed, top_p);
            #[allow(clippy::needless_range_loop)]
            for id in 0..4 {
                assert_eq!(changed[id] > OUT, kept >> id & 1 == 1, "top_p {top_p}, token {id}");
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let config = SamplingConfig { temperature: 1.0, seed: 7, ..Default::default() };
        let logits = [0.1f32, 0.2, 0.7].map(f32::ln);
        let run = || {
            let mut sampler = Sampler::new(config.clone(), &[]);
            (0..20_000).map(|_| sampler.next(&mut logits.clone())).collect::<Vec<_>>()
        };
        let drawn = run();
        assert_eq!(drawn, run());
        for (id, expected) in [0.1, 0.2, 0.7].into_iter().enumerate() {
            let share = drawn.iter().filter(|&&drawn| drawn == id as u32).count() as f64 / 20_000.0;
            assert!((share - expected).abs() < 0.015, "token {id}: {share} where {expected} is expected");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let ok = SamplingConfig::default();
        assert!(ok.validate().is_ok());
        for bad in [
            SamplingConfig { temperature: -1.0, ..ok.clone() },
            SamplingConfig { temperature: f32::NAN, ..ok.clone() },
            SamplingConfig { top_p: 0.0, ..ok.clone() },
            SamplingConfig { top_p: 1.5, ..ok.clone() },
            SamplingConfig { repetition_penalty: 0.0, ..ok.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
