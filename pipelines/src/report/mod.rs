//! `pipelines report`: compares runs on one self-contained HTML page.

mod page;
mod pictures;
mod runs;
mod sources;

use anyhow::{Result, ensure};
use base::{counted, files};
use cli::outputs;
use pictures::Pictures;
use runs::Run;
use std::collections::HashSet;
use std::path::PathBuf;

/// Options of `pipelines report`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Run directories (or metrics.jsonl files) to compare, in the order of the legend
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub html: PathBuf,
    /// Replace whatever file that is; without it, only a page of this command is replaced
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub overwrite: bool,
    /// Pictures whose captions are shown, where a run's directory has captions.jsonl or captions-STEP.jsonl (written by
    /// infer caption)
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub captions: usize,
    /// Dataset or folder with these pictures [default: where a file of captions, or the run's shards, have them]
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
}

/// Reads the runs and writes the page. The text is the result for stdout.
///
/// # Errors
/// A page that would replace a file of something else; a run without metrics; a page that cannot be written.
pub fn run(args: &Args) -> Result<String> {
    ensure!(!args.runs.is_empty(), "no runs; give at least one run directory");
    let is_own = |head: &[u8]| html::is_page_of(head, page::GENERATOR);
    outputs::require_replaceable(&args.html, is_own, Some(args.overwrite), "--html")?;
    let mut runs = args.runs.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>>>()?;
    let names: HashSet<String> = runs.iter().map(|run| run.name.clone()).collect();
    if names.len() < runs.len() {
        // Folders of the same name in different places: only whole paths tell them apart.
        runs.iter_mut().zip(&args.runs).for_each(|(run, path)| run.name = path.display().to_string());
    }
    let pictures = runs
        .iter()
        .map(|run| Pictures::find(run, args.pictures.as_deref(), args.captions))
        .collect::<Result<Vec<_>>>()?;
    files::write_atomically(&args.html, page::page(&runs, &pictures, args.captions).as_bytes())?;
    let lines = runs.iter().map(Run::lines).sum::<usize>();
    Ok(format!("{}: {}, {}", args.html.display(), counted(runs.len(), "run"), counted(lines, "logged step")))
}
