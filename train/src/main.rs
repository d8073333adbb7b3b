//! `train`: trains a LLaVA on shards.

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use train::collective::launch::run_ranks;
use train::config::Config;
use train::{recipe, trainer};

/// Train a LLaVA on shards that `preprocess shards` made, under ZeRO-2.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Recipe (TOML): its [train] table sets options; flags win over it.
    recipe: Option<PathBuf>,
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let matches =
        Cli::command().args_override_self(true).get_matches_from(common::args::with_dashes(std::env::args_os()));
    let outcome = Cli::from_arg_matches(&matches).map_err(anyhow::Error::from).and_then(|cli| {
        let config = recipe::resolve(cli.config, &matches, cli.recipe.as_deref())?;
        run(&config)
    });
    match outcome {
        Ok(report) => {
            report.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<Option<String>> {
    let device = common::device::cpu_autodiff();
    let timeout = Duration::from_secs(config.collective_timeout_seconds);
    let state = run_ranks(config.nproc, timeout, |collective| trainer::run(config, collective, &device))?;
    if !state.is_world_process_zero {
        return Ok(None);
    }
    let loss = state.log_history.last().map_or(f64::NAN, |metrics| metrics.loss);
    Ok(Some(format!("{} steps, last loss {loss:.4}, in {}", state.global_step, config.output_dir.display())))
}
