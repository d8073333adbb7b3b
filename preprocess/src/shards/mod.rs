//! `preprocess shards`: rows and images → shards. Reads top to bottom in [`run`].

mod args;
mod census;
pub mod index;
pub mod ledger;
mod pipeline;
mod plan;
mod sample;
mod tokenizer;
mod writers;

pub use args::{Args, KINDS, Part};
pub use ledger::{Cause, LEDGER_DIR, REJECTED_FILE, Rejected};
pub use tokenizer::TOKENIZER_DIR;

use anyhow::{Context, Result, bail};
use base::Error;
use chat::dataset::{EXAMPLE, Source};
use cli::{Progress, units};
use images::image_files::ImageSources;
use ledger::ShardLedger;
use pipeline::Job;
use plan::{Input, ModelFacts, Plan};
use sample::RowProcessor;
use shards::{PixelFormat, ShardMetadata, TABLES};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use store::processors::Processors;

/// Runs the command; the text is its result for stdout.
pub fn run(args: &Args) -> Result<String> {
    let model = Processors::read(&args.model)?;
    let source = Source::find(&args.data, Some(&TABLES))?;
    tracing::info!("{}: {}", args.data.display(), source.describe());
    model.require_rows_for_all_ids(&args.model)?;
    model.chat.check_system(&args.system_prompt).context("--system-prompt")?;
    let images = ImageSources::find_in(source.folder(), &source.picture_folders())?;
    let input = Input::scan(&source, &images, args.limit.unwrap_or(usize::MAX), args.workers())?;
    for warning in &input.warnings {
        tracing::warn!("{}: {warning}", args.data.display());
    }
    let plan = Plan::new(args, input, images.describe(), facts(&model, args.pixels));
    if plan.rows() == 0 {
        let remedy = format!("add rows to it; {EXAMPLE}");
        let expected = "conversations or captions";
        let found = format!("no rows: {}", plan.records.layout);
        return Err(Error::invalid(args.data.display(), found, expected, remedy).into());
    }
    plan.record(&args.output)?;
    tokenizer::copy(&args.model, &args.output)?;
    let lock = PartLock::take(&args.output, args.part)?;
    std::fs::create_dir_all(args.output.join(LEDGER_DIR)).map_err(Error::io(&args.output))?;

    let wanted = unfinished(&args.output, &plan, args.part)?;
    let rows = (0..plan.shards()).filter(|&shard| wanted[shard]).map(|shard| plan.rows_of_shard(shard)).sum();
    announce(&plan, args, rows);
    if let Some(day) = model.chat.date() {
        tracing::info!(
            "the chat template writes the date into every row: {day}. Set SOURCE_DATE_EPOCH (seconds since 1970) to write \
             another date, and to continue this folder on another day"
        );
    }
    let mut progress = Progress::new("rows", 0, rows as u64);
    let questions = args.questions();
    let processor = RowProcessor {
        chat: &model.chat,
        image_processor: &model.images,
        images: &images,
        questions: &questions,
        plan: &plan,
        turned: AtomicUsize::new(0),
    };
    let job =
        Job { processor, source: &source, output: &args.output, wanted, workers: args.workers(), strict: args.strict };
    if rows > 0 {
        job.run(&mut progress)?;
        progress.finish();
        tell_of_turned(job.processor.turned.into_inner());
    }
    lock.release()?;
    if args.part.of == 1 {
        return index::join(&args.output, &plan, args.max_rejected);
    }
    Ok(format!(
        "part {} is done: {rows} rows; when all are, run preprocess index {}{}",
        args.part,
        args.output.display(),
        if args.max_rejected == args::MAX_REJECTED {
            String::new()
        } else {
            format!(" --max-rejected {}", args.max_rejected)
        }
    ))
}

/// Cameras store a picture as the sensor lay, and how to turn it: viewers do, and the models' own preprocessing does not.
fn tell_of_turned(pictures: usize) {
    if pictures > 0 {
        tracing::warn!(
            "{} with an EXIF orientation: their pixels are taken as they are stored, as in transformers, and may lie on their side; \
             exiftran -ai FILE or jhead -autorot FILE turns the files themselves",
            base::counted(pictures, "JPEG file")
        );
    }
}

/// What the run takes from the model directory.
fn facts(model: &Processors, pixels: PixelFormat) -> ModelFacts {
    ModelFacts {
        metadata: ShardMetadata::new(&model.chat, &model.images, pixels),
        eos_token_ids: model.chat.eos_token_ids.clone(),
        chat_date: model.chat.date(),
        image_seq_length: model.config.image_seq_length(),
        max_position_embeddings: model.config.text.max_position_embeddings,
    }
}

/// Per shard: this part makes it and it is not finished.
fn unfinished(output: &Path, plan: &Plan, part: Part) -> Result<Vec<bool>> {
    (0..plan.shards()).map(|shard| Ok(part.makes(shard) && ShardLedger::read(output, shard)?.is_none())).collect()
}

fn announce(plan: &Plan, args: &Args, rows: usize) {
    let side = plan.metadata.crop_size;
    let files = &plan.image_files;
    let expected = |format: PixelFormat| {
        // Files are stored as they are; those in an archive or a table have no sizes here.
        let of_row = match files.found as u64 {
            found if format.stores_source() && found > 0 => files.bytes / found,
            _ => format.expected_bytes(side),
        };
        units::bytes(of_row * plan.rows() as u64)
    };
    let others = PixelFormat::ALL.iter().copied().filter(|&format| format != args.pixels);
    let others: Vec<String> = others.map(|format| format!("{format} {}", expected(format))).collect();
    tracing::info!(
        "{} rows, {} of them to do in part {}; {} pixels: about {} in all expected ({})",
        plan.rows(),
        rows,
        args.part,
        args.pixels,
        expected(args.pixels),
        others.join(", ")
    );
}

/// Keeps two processes from writing the same part; gone when the part is done, released by the system when killed.
struct PartLock {
    file: File,
    path: PathBuf,
}

impl PartLock {
    fn take(output: &Path, part: Part) -> Result<Self> {
        let path = output.join(format!(".part-{}-of-{}.lock", part.number, part.of));
        let file = File::create(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another preprocess is writing part {part} there; wait for it or stop it", output.display())
            }
            // A file system without locks: the user's own order has to do.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { file, path }),
        }
    }

    fn release(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| self.path.display().to_string())?;
        drop(self.file);
        Ok(())
    }
}
