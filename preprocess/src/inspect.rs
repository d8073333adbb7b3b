//! (skeleton)

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs the command; the text is its result for stdout.
pub fn run(_args: &Args) -> anyhow::Result<String> {
    todo!()
}
