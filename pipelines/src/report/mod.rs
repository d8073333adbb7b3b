//! `pipelines report`.

use anyhow::Result;

/// Options of `pipelines report`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// (not yet)
pub fn run(_args: &Args) -> Result<String> {
    Ok(String::new())
}
