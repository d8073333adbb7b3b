//! Rows a step, and the end, of a resumed run: those of the run, or another number if it was allowed.

use crate::config::Config;
use crate::order::{BatchPlan, Cursor};
use crate::schedule::{Schedule, ScheduleBase};
use crate::state::TrainerState;
use anyhow::{Result, bail};
use base::counted;

/// The settings with which a run keeps its rows a step: with other accumulation where the number of ranks has changed.
///
/// # Errors
/// No accumulation gives that number of rows, and another is not allowed; names the numbers of ranks that do.
pub fn keep(config: &Config, world_size: usize, state: &TrainerState) -> Result<(Config, Option<String>)> {
    let rows = state.run.global_batch_size;
    let (micro_batch, given) = (config.per_device_train_batch_size, config.global_batch_size(world_size));
    if given == rows {
        return Ok((config.clone(), None));
    }
    if config.allow_global_batch_change {
        let line = format!("allow_global_batch_change: {given} rows a step, where the checkpoint had {rows}");
        return Ok((config.clone(), Some(line)));
    }
    let of_all_ranks = micro_batch * world_size;
    if rows.is_multiple_of(of_all_ranks) {
        let accumulation = rows / of_all_ranks;
        let line = format!(
            "gradient_accumulation_steps {accumulation} instead of {}: {} with micro-batches of {micro_batch} keep \
             the run's {rows} rows a step",
            config.gradient_accumulation_steps,
            counted(world_size, "rank")
        );
        return Ok((Config { gradient_accumulation_steps: accumulation, ..config.clone() }, Some(line)));
    }
    let ranks = divisors(rows, micro_batch).map(|numbers| format!("{numbers} ranks"));
    let sizes = divisors(rows, world_size).map(|sizes| format!("--per_device_train_batch_size {sizes}"));
    let change = format!("--allow_global_batch_change true to continue with {given} rows a step");
    let remedies: Vec<String> = ranks.into_iter().chain(sizes).chain([change]).collect();
    bail!(
        "the run has {rows} rows a step, which is not a multiple of {} × {}; use {}",
        counted(world_size, "rank"),
        counted(micro_batch, "row"),
        remedies.join("; or ")
    )
}

/// Numbers that make `rows` together with `by` and some accumulation.
fn divisors(rows: usize, by: usize) -> Option<String> {
    let whole = rows.is_multiple_of(by).then_some(rows / by)?;
    let found = (1..=whole).filter(|number| whole.is_multiple_of(*number));
    Some(found.map(|number| number.to_string()).collect::<Vec<_>>().join(" or "))
}

/// A run's steps: how rows make them, how many there are, and the learning rate of each.
#[derive(Clone, Debug)]
pub struct Steps {
    /// How rows become steps.
    pub plan: BatchPlan,
    /// Updates of the whole run.
    pub max_steps: u64,
    /// Learning rates.
    pub schedule: Schedule,
    /// Since when a step has another number of rows than at the start.
    pub base: Option<ScheduleBase>,
    /// Rows of a step at the start.
    pub initial_global_batch_size: usize,
}

impl Steps {
    /// Of settings for which [`keep`] has been asked; `state` is where the run goes on.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn of(config: &Config, rows: usize, world_size: usize, state: Option<&TrainerState>) -> base::Result<Self> {
        let plan = BatchPlan {
            rows,
            micro_batch_size: config.per_device_train_batch_size,
            accumulation: config.gradient_accumulation_steps,
            world_size,
            end: None,
        };
        let initial = state.map_or(plan.global_batch_size(), |state| state.run.initial_global_batch_size);
        let at_start = BatchPlan { micro_batch_size: initial, accumulation: 1, world_size: 1, ..plan };
        // What the run would have without any change.
        let steps = at_start.max_steps(config.max_steps, config.num_train_epochs);
        let schedule = Schedule::new(config, steps)?;
        let end = at_start.cursor_after(steps);
        let base = state.and_then(|state| base(state, &plan, end, steps));
        let Some(base) = base else {
            return Ok(Self { plan, max_steps: steps, schedule, base, initial_global_batch_size: initial });
        };
        Ok(Self {
            plan: BatchPlan { end: Some(end), ..plan },
            max_steps: base.last_step,
            schedule: schedule.on_from(Some(base)),
            base: Some(base),
            initial_global_batch_size: initial,
        })
    }
}

/// Since when a run that goes on has steps of another length than at its start, if it has.
fn base(state: &TrainerState, plan: &BatchPlan, end: Cursor, schedule_steps: u64) -> Option<ScheduleBase> {
    let is_same = state.run.global_batch_size == plan.global_batch_size();
    match state.run.schedule_base {
        None if is_same => None,
        Some(base) if is_same && base.schedule_steps == schedule_steps => Some(base),
        before => Some(ScheduleBase {
            global_step: state.global_step,
            position: before.map_or(state.global_step as f64, |base| base.position(state.global_step)),
            last_step: state.global_step + plan.steps_between(state.run.cursor, end),
            schedule_steps,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RunState;
    use clap::{Args, Command, FromArgMatches};

    fn config(words: &[&str]) -> Config {
        let words = std::iter::once(&"train").chain(words).map(std::ffi::OsString::from);
        let matches = Config::augment_args(Command::new("train")).get_matches_from(cli::args::with_dashes(words));
        Config::from_arg_matches(&matches).expect("options of train")
    }

    /// A run of `rows` rows a step that stands at a step and a row of its first epoch.
    fn state(rows: usize, global_step: u64, position: usize) -> TrainerState {
        let cursor = Cursor { epoch: 0, position };
        let run = RunState { global_batch_size: rows, initial_global_batch_size: rows, cursor, ..RunState::default() };
        TrainerState { global_step, run, ..TrainerState::default() }
    }

    #[test]
    fn rows_a_step_are_kept_or_the_error_names_what_would() {
        let words = |micro: &'static str, accumulation: &'static str| {
            ["--per_device_train_batch_size", micro, "--gradient_accumulation_steps", accumulation]
        };
        for (rows, micro, accumulation, ranks, expected) in [
            (12, "2", "2", 3, Ok(2)),
            (12, "2", "2", 1, Ok(6)),
            (12, "2", "2", 2, Ok(3)),
            (12, "2", "2", 6, Ok(1)),
            (12, "1", "1", 12, Ok(1)),
            (
                12,
                "2",
                "2",
                4,
                Err(
                    "4 ranks × 2 rows; use 1 or 2 or 3 or 6 ranks; or --per_device_train_batch_size 1 or 3; or --allow",
                ),
            ),
            (12, "5", "1", 5, Err("not a multiple of 5 ranks × 5 rows; use --allow_global_batch_change true")),
            (
                12,
                "4",
                "3",
                12,
                Err("use 1 or 3 ranks; or --per_device_train_batch_size 1; or --allow_global_batch_change true"),
            ),
        ] {
            let found = keep(&config(&words(micro, accumulation)), ranks, &state(rows, 4, 48));
            let name = format!("{rows} rows, {ranks} ranks, micro-batches of {micro}");
            match (found, expected) {
                (Ok((config, said)), Ok(expected)) => {
                    assert_eq!(config.gradient_accumulation_steps, expected, "{name}");
                    assert_eq!(config.global_batch_size(ranks), rows, "{name}");
                    assert_eq!(said.is_some(), accumulation != expected.to_string(), "{name}");
                }
                (Err(error), Err(named)) => assert!(error.to_string().contains(named), "{name}: {error}"),
                (found, expected) => panic!("{name}: {found:?} where {expected:?} is expected"),
            }
            let allowed = [&words(micro, accumulation)[..], &["--allow_global_batch_change"]].concat();
            let (kept, _) = keep(&config(&allowed), ranks, &state(rows, 4, 48)).expect("allowed");
            assert_eq!(kept.gradient_accumulation_steps.to_string(), accumulation, "{name}");
        }
    }

    /// 100 rows, 2 epochs of 4 rows a step: 50 steps. At step 10 of the first epoch, 8 rows a step.
    #[test]
    fn another_batch_ends_at_the_same_row_and_a_resume_after_it_changes_nothing() {
        let words = ["--num_train_epochs", "2", "--per_device_train_batch_size"];
        let [four, eight] = ["4", "8"].map(|size| config(&[&words[..], &[size]].concat()));
        let undisturbed = Steps::of(&four, 100, 1, Some(&state(4, 10, 40))).expect("steps");
        assert_eq!((undisturbed.max_steps, undisturbed.base, undisturbed.plan.end), (50, None, None));
        let changed = Steps::of(&eight, 100, 1, Some(&state(4, 10, 40))).expect("steps");
        // 60 rows and 100 rows: 8 and 13 steps.
        assert_eq!((changed.max_steps, changed.plan.end), (31, Some(Cursor { epoch: 2, position: 0 })));
        assert_eq!(changed.schedule.learning_rate(10), undisturbed.schedule.learning_rate(10));
        assert_eq!(changed.schedule.learning_rate(31), 0.0);
        let mut later = state(8, 18, 0);
        later.run = RunState { cursor: Cursor { epoch: 1, position: 0 }, ..later.run };
        later.run = RunState { initial_global_batch_size: 4, schedule_base: changed.base, ..later.run };
        let resumed = Steps::of(&eight, 100, 1, Some(&later)).expect("steps");
        assert_eq!((resumed.max_steps, resumed.base, resumed.plan.end), (31, changed.base, changed.plan.end));
        // Back to four rows: 25 steps for the second epoch.
        let back = Steps::of(&four, 100, 1, Some(&later)).expect("steps");
        assert_eq!(back.max_steps, 43);
        let difference = back.schedule.learning_rate(18) - changed.schedule.learning_rate(18);
        assert!(difference.abs() < 1e-18, "{difference}");
    }
}
