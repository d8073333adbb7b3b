//! `preprocess`: assembles a LLaVA and turns a dataset into shards.

use anyhow::Result;
use base::output::print;
use clap::{CommandFactory, Parser, Subcommand};
use cli::check::{Answer, CheckArgs};
use cli::pages::Pages;
#[cfg(feature = "inspect")]
use preprocess::inspect;
use preprocess::{model, shards, verify};
use std::process::ExitCode;

/// Assemble a LLaVA from CLIP and Qwen2, and turn a CC3M-595K-style dataset into tokenized, pixel-normalized Parquet shards.
#[derive(Parser)]
#[command(name = "preprocess", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Assemble a LLaVA model directory from a vision tower and a language model.
    Model(model::Args),
    /// Turn chat.json and images into shards.
    Shards(shards::Args),
    /// Join the shards that --part runs made.
    Index(shards::index::Args),
    /// Re-read every row of finished shards.
    Verify(verify::Args),
    /// Show the content of shards.
    #[cfg(feature = "inspect")]
    Inspect(inspect::Args),
    /// Print the options of a subcommand as JSON, for programs that run this one.
    #[command(hide = true)]
    Options {
        /// `model`, `shards`, …
        subcommand: String,
    },
    /// Say what of a command line would be refused, for programs that run this one.
    #[command(hide = true)]
    CheckOptions(CheckArgs),
    #[command(flatten)]
    Pages(Pages),
}

fn main() -> ExitCode {
    cli::log::start();
    let cpu = format!("{} kernels, {}", kernels::cpu::isa(), images::image_processor::decoder_build());
    let cli: Cli = cli::args::parse(std::env::args_os(), cli::long_version!(["inspect"], cpu));
    let done = run(cli.command).and_then(|report| Ok(print(&mut std::io::stdout(), report)?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::exit::failed(&error),
    }
}

fn run(command: Command) -> Result<String> {
    match command {
        Command::Model(args) => model::run(&args),
        Command::Shards(args) => shards::run(&args),
        Command::Index(args) => shards::index::run(&args),
        Command::Verify(args) => verify::run(&args),
        #[cfg(feature = "inspect")]
        Command::Inspect(args) => inspect::run(&args, shows_colors()),
        Command::Options { subcommand } => options(&subcommand),
        Command::CheckOptions(args) => Ok(Answer::of(args.parse::<Cli>()).to_json()?),
        Command::Pages(pages) => Ok(pages.run(Cli::command())?),
    }
}

/// The options of a subcommand as JSON.
fn options(subcommand: &str) -> Result<String> {
    let kinds = match subcommand {
        "model" => &model::KINDS[..],
        "shards" => &shards::KINDS[..],
        _ => &[],
    };
    Ok(cli::options::json(&Cli::command(), subcommand, kinds)?)
}

/// stdout is a terminal whose user did not turn colours off.
#[cfg(feature = "inspect")]
fn shows_colors() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout()) && std::env::var_os("NO_COLOR").is_none()
}
