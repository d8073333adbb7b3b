//! `pipelines`: runs recipes end to end and the quickstart, compares runs, examines the machine.

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use cli::pages::Pages;
use pipelines::programs::{Cargo, Programs};
use pipelines::signals::{Signals, Stopped};
use pipelines::{doctor, quickstart, report, run};
use std::path::PathBuf;
use std::process::ExitCode;

/// Run preprocess, train and infer one after the other as a recipe says, skipping stages that have not changed.
#[derive(Parser)]
#[command(name = "pipelines", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 a job does not fit this machine, 75 stopped by SIGINT, SIGTERM or SIGHUP after train \
                          saved a checkpoint (start the same command again), 129, 130 or 143 stopped during another program.";

#[derive(Subcommand)]
enum Command {
    /// Run the whole job on a CPU in minutes: make a dataset of coloured shapes and random models, preprocess,
    /// train, caption held-out pictures and compare with the truth.
    Quickstart(quickstart::Args),
    /// Run the stages of a recipe.
    Run(run::Args),
    /// Compare runs: one self-contained HTML page from their metrics.jsonl.
    Report(report::Args),
    /// Examine the machine: processor, memory, disk, GPU, MPI, Hugging Face cache, port; say what will work, and the next step for
    /// what will not.
    Doctor(doctor::Args),
    #[command(flatten)]
    Pages(Pages),
}

fn main() -> ExitCode {
    cli::log::start();
    let cpu = format!("{} kernels", kernels::cpu::isa());
    let cli: Cli = cli::args::parse(std::env::args_os(), cli::long_version!([], cpu));
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Stopped>() {
            Some(stopped) => {
                tracing::info!("{stopped}");
                ExitCode::from(stopped.code)
            }
            None => cli::exit::failed(&error),
        },
    }
}

fn execute(command: Command) -> Result<()> {
    let result = match command {
        Command::Quickstart(args) => quickstart::run(&args, &programs()?, &Signals::listen()?)?,
        Command::Run(args) => run::run(&args, &programs()?, &Signals::listen()?)?,
        Command::Report(args) => report::run(&args)?,
        Command::Doctor(args) => doctor::run(&args, &programs()?)?,
        Command::Pages(pages) => pages.run(Cli::command())?,
    };
    Ok(base::output::print(&mut std::io::stdout(), result)?)
}

/// The programs beside this one; `cargo run` builds them first.
fn programs() -> Result<Programs> {
    let executable = std::env::current_exe().context("the path of the running program")?;
    let started_by_cargo_run = std::env::var_os("CARGO_PKG_NAME").is_some_and(|name| name == env!("CARGO_PKG_NAME"));
    let cargo = std::env::var_os("CARGO").filter(|_| started_by_cargo_run);
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let cargo = cargo.zip(manifest).map(|(cargo, manifest)| Cargo {
        executable: PathBuf::from(cargo),
        manifest: PathBuf::from(manifest).join("Cargo.toml"),
    });
    let called = std::env::args_os().next().map_or_else(|| executable.clone(), PathBuf::from);
    Programs::beside(&executable, &called, cargo.as_ref())
}
