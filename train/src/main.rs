//! `train`: trains a LLaVA on shards.

use anyhow::{Context, Result, bail};
use base::error::Mismatch;
use base::output::print;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use cli::check::{self, Answer, CheckArgs};
use cli::exit::{DoesNotFit, WrongUsage};
use cli::pages::Pages;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use store::hub::{self, Wanted};
use train::collective::{guard, launch};
use train::config::Config;
use train::devices;
use train::plan::{self, PlanArgs};
use train::run::folder;
use train::setup;
use train::signals::{STOPPED, StopRequest, resume_command};
use train::trainer::{self, Finished};
use train::trainer_options;
use train::{probe, recipe};

/// Train a LLaVA on shards that `preprocess shards` made, under ZeRO-2.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Settings {
    /// Recipe (TOML): its [train] table sets options; flags win over it.
    recipe: Option<PathBuf>,
    #[command(flatten)]
    config: Config,
}

#[derive(Subcommand)]
enum Command {
    /// Say what a run will do and need, from configuration files alone: parameters, steps, memory, disk, and whether it fits
    /// this machine. Takes train's options.
    Plan(Box<PlanCli>),
    /// List what this machine can compute on, and what is missing for more.
    Devices,
    /// Print the options as JSON, for programs that run this one.
    #[command(hide = true)]
    Options,
    /// Say what of a command line would be refused, for programs that run this one.
    #[command(hide = true)]
    CheckOptions(CheckArgs),
    /// Print what is found on the machine as JSON, for `pipelines doctor`.
    #[command(hide = true)]
    Probe {
        /// Folder for a run.
        folder: PathBuf,
    },
    #[command(flatten)]
    Pages(Pages),
}

#[derive(Args)]
struct PlanCli {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    plan: PlanArgs,
}

const EXIT_CODES: &str = "Exit codes: 0 trained to the end, 1 failed, 2 wrong options, values or recipe, 3 the job does not fit this machine \
                          (also of train plan; --force starts it), 75 stopped by SIGINT or SIGTERM and saved \
                          in a checkpoint (EX_TEMPFAIL: the printed command, with --resume_from_checkpoint true, resumes). A second signal \
                          ends the program at once, without a checkpoint: 130 or 143.";

/// What a process did.
enum Done {
    /// Its work, and what there is to say of it.
    Said(Option<String>),
    /// It was asked to stop, has saved, and says how to go on.
    Stopped(String),
    /// It has said what does not fit.
    DoesNotFit,
    /// It waited for the rank that is its child.
    StoodGuard(ExitCode),
}

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { kernels::cuda::prepare() };
    cli::log::start();
    let args = cli::args::with_dashes(std::env::args_os());
    let is_plan = args.get(1).is_some_and(|word| word == "plan");
    let translated = match args.get(1).is_some_and(|word| word == check::SUBCOMMAND) {
        true => Ok(trainer_options::Translated { words: args.clone(), ..Default::default() }),
        false => trainer_options::translate(args.clone(), &flags(), if is_plan { PLAN_OPTIONS } else { &[] }),
    };
    let translated = match translated {
        Ok(translated) => translated,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(cli::exit::USAGE);
        }
    };
    let matches = match command().try_get_matches_from(cli::args::with_dashes(translated.words)) {
        Ok(matches) => matches,
        Err(error) => return wrong_usage(&error, is_plan),
    };
    let outcome = Cli::from_arg_matches(&matches).map_err(WrongUsage::of).and_then(|cli| {
        let tell_notes = || {
            if launch::local_rank(0) == 0 {
                translated.notes.iter().for_each(|note| tracing::info!("{note}"));
            }
        };
        match cli.command {
            Some(Command::Plan(plan)) => show_plan(&plan, &matches, tell_notes),
            Some(Command::Options) => told(&train::config::options().to_json()?),
            Some(Command::CheckOptions(args)) => told(&Answer::of(check_options(&args)).to_json()?),
            Some(Command::Probe { folder }) => told(&serde_json::to_string(&probe::look(&folder))?),
            Some(Command::Devices) => Ok(Done::Said(Some(devices::table()))),
            Some(Command::Pages(pages)) => told(&pages.run(command())?),
            None => train(cli.settings, &matches, args, tell_notes),
        }
    });
    match outcome {
        Ok(Done::StoodGuard(code)) => code,
        Ok(Done::DoesNotFit) => ExitCode::from(cli::exit::DOES_NOT_FIT),
        Ok(Done::Said(report)) => {
            // What was made is in files: stdout that takes no line does not make the run a failure.
            if let Some(Err(error)) = report.map(|report| print(&mut std::io::stdout(), report)) {
                tracing::warn!("{error}");
            }
            ExitCode::SUCCESS
        }
        Ok(Done::Stopped(report)) => {
            if let Err(error) = print(&mut std::io::stdout(), report) {
                tracing::warn!("{error}");
            }
            ExitCode::from(STOPPED)
        }
        Err(error) => cli::exit::failed(&error),
    }
}

fn show_plan(cli: &PlanCli, matches: &ArgMatches, tell_notes: impl FnOnce()) -> Result<Done> {
    let PlanCli { settings: Settings { recipe, config }, plan } = cli;
    tell_notes();
    let matches = matches.subcommand_matches("plan").context("the matches of plan")?;
    let stages = recipe::merge_stages(config, matches, recipe.as_deref()).map_err(WrongUsage::of)?;
    let (report, fits) = plan::run(&stages, plan, recipe.as_deref())?;
    let said = told(&report)?;
    Ok(if fits { said } else { Done::DoesNotFit })
}

/// What is checked of a command line before any work.
fn check_options(args: &CheckArgs) -> base::Result<()> {
    let words = cli::args::with_dashes(args.line("train"));
    let translated = trainer_options::translate(words, &flags(), &[])?;
    let refused = |error| base::Error::Usage(cli::args::refused(&error, recipe::HELP));
    let matches = command().try_get_matches_from(cli::args::with_dashes(translated.words)).map_err(refused)?;
    let settings = Settings::from_arg_matches(&matches).map_err(refused)?;
    recipe::resolve(settings.config, &matches, settings.recipe.as_deref()).map(drop)
}

/// Prints what a command is for: where it cannot be printed, the command has failed.
fn told(text: &str) -> Result<Done> {
    print(&mut std::io::stdout(), text)?;
    Ok(Done::Said(None))
}

fn train(settings: Settings, matches: &ArgMatches, args: Vec<OsString>, tell_notes: impl FnOnce()) -> Result<Done> {
    let Settings { recipe, config } = settings;
    if let Some(code) = guard::stand_guard(&args)? {
        return Ok(Done::StoodGuard(code));
    }
    tell_notes();
    let mut config = recipe::resolve(config, matches, recipe.as_deref()).map_err(WrongUsage::of)?;
    config.model_name_or_path = hub::resolve(&config.model_name_or_path, Wanted::Llava)?;
    setup::settle_dtype(&config, launch::local_rank(0))?;
    setup::require_named_cpu(&config)?;
    require_fit(&config)?;
    run(&config, args)
}

/// Before anything is loaded: one process of a machine compares what the run needs with what is there.
fn require_fit(config: &Config) -> Result<()> {
    if launch::local_rank(0) != 0 {
        return Ok(());
    }
    folder::require_writable_disk(&config.output_dir)?;
    let misfits = plan::misfits(config);
    let of_settings: Vec<String> =
        misfits.iter().filter(|misfit| !misfit.can_be_tried()).map(ToString::to_string).collect();
    if !of_settings.is_empty() && !config.force {
        bail!("the job cannot start: {}", of_settings.join("\n"));
    }
    let way_out = match misfits.iter().any(plan::Misfit::can_be_tried) {
        true => "train plan shows all of it; --force true starts it all the same",
        false => "train plan shows all of it",
    };
    let misfits: Vec<String> = misfits.iter().map(ToString::to_string).collect();
    match (misfits.is_empty(), config.force) {
        (true, _) => Ok(()),
        (false, true) => {
            misfits.iter().for_each(|misfit| tracing::warn!("--force: {misfit}"));
            Ok(())
        }
        (false, false) => {
            Err(DoesNotFit(format!("the job does not fit this machine ({way_out}):\n{}", misfits.join("\n"))).into())
        }
    }
}

/// Options of `train plan` that have the names of other programs' options.
const PLAN_OPTIONS: &[&str] = &["vision_tower", "language_model"];

/// The parser: the last of two equal options counts.
fn command() -> clap::Command {
    let lenient = |command: clap::Command| command.args_override_self(true);
    let cpu = format!("{} kernels, {}", kernels::cpu::isa(), images::image_processor::decoder_build());
    let command = lenient(Cli::command().long_version(cli::long_version!(["cuda", "wgpu", "ndarray"], cpu)));
    let end = command.get_after_help().map(|end| format!("\n{end}\n")).unwrap_or_default();
    command.after_long_help(trainer_options::help() + &end).mut_subcommand("plan", lenient)
}

/// Options that are true or false.
fn flags() -> Vec<String> {
    let command = Cli::command();
    let is_flag =
        |arg: &&clap::Arg| arg.get_default_values().first().is_some_and(|value| value == "true" || value == "false");
    command.get_arguments().filter(is_flag).map(|arg| arg.get_id().to_string()).collect()
}

/// The message of wrong usage: clap's own, unless it is about a value, or an unknown option, which names the nearest known one.
fn wrong_usage(error: &clap::Error, is_plan: bool) -> ExitCode {
    let unknown = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(option))) => option,
        _ => {
            let help = if is_plan { "train plan --help" } else { recipe::HELP };
            let Some(refused) = cli::args::refused_value(error, help) else { error.exit() };
            let place = refused.place.replace('-', "_").replacen("__", "--", 1);
            tracing::error!("{}", Mismatch { place, ..refused });
            return ExitCode::from(cli::exit::USAGE);
        }
    };
    let command = Cli::command();
    let plan = command.find_subcommand("plan").filter(|_| is_plan).into_iter().flat_map(clap::Command::get_arguments);
    let known = command.get_arguments().chain(plan).filter_map(clap::Arg::get_long_and_visible_aliases).flatten();
    let trainers: Vec<String> =
        trainer_options::TRAINER_OPTIONS.iter().map(|(name, _)| name.replace('_', "-")).collect();
    let known = known.chain(trainers.iter().map(String::as_str));
    let name = unknown.trim_start_matches('-').split('=').next().unwrap_or_default();
    let suggestion = match trainer_options::meant(name).or_else(|| base::nearest(name, known)) {
        Some(nearest) => format!("did you mean --{}? (train --help lists all)", nearest.replace('-', "_")),
        None => "train --help lists all options".to_string(),
    };
    tracing::error!("unknown option --{}: {suggestion}", name.replace('-', "_"));
    ExitCode::from(cli::exit::USAGE)
}

fn run(config: &Config, args: Vec<OsString>) -> Result<Done> {
    let stop_request = StopRequest::listen().context("listening to SIGINT and SIGTERM")?;
    let timeout = Duration::from_secs(config.collective_timeout_seconds);
    let Finished { state, stopped_in, has_trained } =
        launch::run_ranks(config.nproc, config.ranks_per_host, timeout, |rank| {
            let device = setup::device(config, launch::local_rank(rank.rank()))?;
            trainer::run(config, rank, &device, &stop_request)
        })?;
    // The launcher gets the exit code from rank 0: it might end the others, and rank 0 before it has spoken, as soon as one of
    // them ends with another code than 0.
    if !state.is_world_process_zero {
        return Ok(Done::Said(None));
    }
    let (step, max_steps) = (state.global_step, state.max_steps);
    let loss = state.log_history.iter().rev().find_map(|entry| entry.loss()).unwrap_or(f64::NAN);
    Ok(match stopped_in {
        None if !has_trained => {
            Done::Said(Some(format!("step {step}: nothing was left to train, in {}", config.output_dir.display())))
        }
        None => Done::Said(Some(format!(
            "{step} steps, loss {loss:.4} since the last logged step, in {}",
            config.output_dir.display()
        ))),
        Some(checkpoint) => Done::Stopped(format!(
            "stopped as requested at step {step} of {max_steps}, saved in {}; resume with\n{}",
            checkpoint.display(),
            resume_command(args, launch::launched_processes())
        )),
    })
}
