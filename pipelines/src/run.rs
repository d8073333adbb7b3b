//! `pipelines run`: a recipe's stages, one after the other.

use crate::programs::Programs;
use crate::recipe::Recipe;
use crate::signals::{Signals, Stopped};
use crate::stage::{Outcome, Stage};
use anyhow::{Context, Result, ensure};
use cli::exit::WrongUsage;
use std::path::PathBuf;

/// Options of `pipelines run`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Recipe file (pipelines/recipes holds the ones for the real job). Its paths are relative to the working directory
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// Run all stages again, also unchanged ones; their outputs are replaced
    #[arg(long)]
    pub force: bool,
    /// Check the recipe, print the stages' command lines and run nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs the stages. The text is the result for stdout.
///
/// # Errors
/// A recipe that cannot be used, or the first stage that fails; [`Stopped`].
pub fn run(args: &Args, programs: &Programs, signals: &Signals) -> Result<String> {
    let recipe = Recipe::read(&args.recipe).map_err(WrongUsage::of)?;
    let stages = recipe.stages(programs).with_context(|| args.recipe.display().to_string()).map_err(WrongUsage::of)?;
    if let Some(purpose) = &recipe.purpose {
        tracing::info!("{}: {purpose}", args.recipe.display());
    }
    let place = || args.recipe.display().to_string();
    // Before the first stage works, perhaps for hours.
    for stage in &stages {
        stage.require_options(programs).with_context(place)?;
    }
    if args.dry_run {
        return Ok(stages.iter().map(Stage::command_line).collect::<Vec<_>>().join("\n"));
    }
    for (index, stage) in stages.iter().enumerate() {
        stage.require_inputs(&stages[..index]).with_context(place)?;
    }
    run_stages(&stages, 0, programs, signals, args.force)
}

/// Runs stages in their order, after `done` others; returns one line for each.
///
/// # Errors
/// The first stage that fails; [`Stopped`].
pub fn run_stages(
    stages: &[Stage],
    done: usize,
    programs: &Programs,
    signals: &Signals,
    force: bool,
) -> Result<String> {
    ensure!(!stages.is_empty(), "no stages");
    let mut lines = Vec::with_capacity(stages.len());
    for (index, stage) in stages.iter().enumerate() {
        tracing::info!("== stage {} of {}: {}", done + index + 1, done + stages.len(), stage.name);
        if let Some(signal) = signals.received() {
            let message =
                format!("stopped as requested before stage {}; start the same command again to continue", stage.name);
            return Err(Stopped { message, code: 128 + signal as u8 }.into());
        }
        let outcome = match stage.run(programs, signals, force)? {
            Outcome::Skipped => "unchanged".to_string(),
            Outcome::Ran(time) => format!("{:.1} s", time.as_secs_f64()),
        };
        lines.push(format!("{:<14} {outcome:>10}  {}", stage.name, stage.output.display()));
    }
    Ok(lines.join("\n"))
}
