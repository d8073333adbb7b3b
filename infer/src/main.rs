//! `infer`: generates, captions, scores, merges and serves.

use anyhow::Result;
use base::output;
use clap::CommandFactory;
use cli::check::{Answer, CheckArgs};
use infer::args::{CAPTION_KINDS, Cli, Command, EVAL_KINDS};
use infer::{caption, eval, export, generate, merge, quantize, score, serve};
use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { kernels::cuda::prepare() };
    cli::log::start();
    let cpu = format!("{} kernels, {}", kernels::cpu::isa(), images::image_processor::decoder_build());
    let cli: Cli = cli::args::parse(std::env::args_os(), cli::long_version!(["cuda", "wgpu", "ndarray"], cpu));
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::exit::failed(&error),
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(args, &mut std::io::stdout()),
        Command::Caption(args) => print(&caption::run(args)?),
        Command::Eval(args) => print(&eval::run(args)?),
        Command::Score(args) => print(&score::run(args)?),
        Command::Merge(args) => print(&merge::run(args)?),
        Command::Quantize(args) => print(&quantize::run(args)?),
        Command::Export(args) => print(&export::run(args)?),
        Command::Options(args) => print(&options(&args.subcommand)?),
        Command::CheckOptions(args) => print(&Answer::of(check(args)).to_json()?),
        Command::Pages(pages) => print(&pages.run(Cli::command())?),
        Command::Serve(args) => serve::run(args, |address| print(&format!("listening on http://{address}"))),
    }
}

/// A closed pipe (`infer … | head`) is the reader's choice and an error like any other, not a panic.
fn print(text: &str) -> Result<()> {
    Ok(output::print(&mut std::io::stdout(), text)?)
}

/// What is checked of a command line before anything is read.
fn check(args: &CheckArgs) -> base::Result<()> {
    match args.parse::<Cli>()?.command {
        Command::Caption(args) => args.sampling.sampling().map(drop),
        Command::Eval(args) => args.sampling.sampling().map(drop),
        _ => Ok(()),
    }
}

/// The options of a subcommand as JSON.
fn options(subcommand: &str) -> Result<String> {
    let kinds = match subcommand {
        "caption" => &CAPTION_KINDS[..],
        "eval" => &EVAL_KINDS,
        _ => &[],
    };
    Ok(cli::options::json(&Cli::command(), subcommand, kinds)?)
}
