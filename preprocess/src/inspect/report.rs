//! The dataset in words and bars.

use super::table::{Dataset, Distribution, Duplicates, Repeated};
use crate::shards::REJECTED_FILE;
use crate::verify::read_rejected;
use anyhow::Result;
use base::{Error, counted};
use cli::units::bytes;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// Characters of the longest bar.
const BAR: usize = 40;
/// Bars of a histogram in the terminal.
const ROWS: usize = 8;

/// One line of a summary: what, and the value.
pub type Fact = (&'static str, String);

/// The rejected rows of a cause, one a line.
pub fn rejected_of(dir: &Path, cause: &str) -> Result<String> {
    let rejected = read_rejected(&dir.join(REJECTED_FILE))?;
    let causes: BTreeSet<String> = rejected.iter().map(|row| row.cause.name()).collect();
    if !causes.contains(cause) {
        return Err(no_such_cause(cause, &causes).into());
    }
    let of_cause = rejected.iter().filter(|row| row.cause.name() == cause);
    Ok(of_cause.map(|row| row.to_string()).collect::<Vec<_>>().join("\n"))
}

fn no_such_cause(cause: &str, causes: &BTreeSet<String>) -> Error {
    if causes.is_empty() {
        let found = format!("{cause}, and no row was rejected");
        return Error::invalid("--cause", found, "a folder with rejected rows", "run without --cause");
    }
    let names = causes.iter().map(String::as_str);
    let nearest = base::nearest(cause, names.clone()).map(|name| format!("did you mean {name}? "));
    let expected = names.collect::<Vec<_>>().join(", ");
    let remedy = format!("{}choose a cause that rows were rejected for", nearest.unwrap_or_default());
    Error::invalid("--cause", cause, expected, remedy)
}

/// The numbers above the histograms.
pub fn facts(dataset: &Dataset) -> Result<Vec<Fact>> {
    let counts = &dataset.index.counts;
    let stored: u64 = dataset.index.shards.iter().map(|shard| shard.bytes).sum();
    let rows = counts.train + counts.validation;
    let per_row = stored.checked_div(rows as u64).unwrap_or_default();
    let about = &dataset.index.metadata;
    Ok(vec![
        (
            "rows",
            format!(
                "{} in = {} train + {} validation + {} rejected",
                counts.rows_in, counts.train, counts.validation, counts.rejected
            ),
        ),
        ("images", format!("{}, stored as {} at {} px", dataset.images.height(), about.pixels, about.crop_size)),
        (
            "disk",
            format!("{}, {}, {} a row", counted(dataset.index.shards.len(), "file"), bytes(stored), bytes(per_row)),
        ),
        ("repeated images", repeated(dataset.duplicates(Duplicates::Images)?, "image")),
        ("repeated captions", repeated(dataset.duplicates(Duplicates::Captions)?, "caption")),
        ("tokenizer", about.tokenizer_sha256.clone()),
    ])
}

fn repeated(repeated: Repeated, what: &str) -> String {
    match repeated {
        Repeated { distinct: 0, .. } => "none".into(),
        Repeated { distinct, occurrences, most } => {
            format!("{} in {occurrences} places, the most frequent {most} times", counted(distinct, what))
        }
    }
}

/// Titles and distributions, in the order in which they are shown.
pub fn distributions(dataset: &Dataset) -> Result<Vec<(&'static str, Distribution)>> {
    let columns = [
        ("tokens a row", &dataset.rows, "tokens"),
        ("supervised tokens a row", &dataset.rows, "answer_tokens"),
        ("images a row", &dataset.rows, "images"),
        ("width of the sources, pixels", &dataset.images, "width"),
        ("height of the sources, pixels", &dataset.images, "height"),
    ];
    let mut found = Vec::new();
    for (title, frame, column) in columns {
        if let Some(distribution) = Distribution::of(frame, column)? {
            found.push((title, distribution));
        }
    }
    Ok(found)
}

/// The whole report.
pub fn text(dir: &Path, dataset: &Dataset) -> Result<String> {
    let mut text = format!("{}", dir.display());
    for (what, value) in facts(dataset)? {
        write!(text, "\n{what:<14} {value}")?;
    }
    for (cause, rows) in dataset.causes()? {
        write!(text, "\nrejected       {rows} {cause}")?;
    }
    let sizes = dataset.source_sizes(5)?;
    let sizes: Vec<String> = sizes.iter().map(|(size, images)| format!("{size} ({images})")).collect();
    write!(text, "\nsource sizes   {}", sizes.join(", "))?;
    for (title, distribution) in distributions(dataset)? {
        write!(text, "\n\n{title}: {}", numbers(&distribution))?;
        histogram(&mut text, &distribution)?;
    }
    Ok(text)
}

/// Minimum to maximum in one line.
pub fn numbers(distribution: &Distribution) -> String {
    let Distribution { min, median, mean, p95, max, .. } = distribution;
    format!("min {min}, median {median:.0}, mean {mean:.1}, 95 % ≤ {p95:.0}, max {max}")
}

fn histogram(text: &mut String, distribution: &Distribution) -> std::fmt::Result {
    if distribution.min == distribution.max {
        return Ok(());
    }
    let together = distribution.bars.len().div_ceil(ROWS);
    let bars: Vec<(u64, usize)> =
        distribution.bars.chunks(together).map(|bars| (bars[0].0, bars.iter().map(|bar| bar.1).sum())).collect();
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1).max(1);
    let width = distribution.bar_width * together as u64;
    for (first, count) in bars {
        let last = (first + width - 1).min(distribution.max);
        write!(text, "\n  {first:>6} – {last:<6} {:<BAR$} {count}", "█".repeat((count * BAR).div_ceil(most)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_no_row_has_names_those_that_there_are() {
        let causes = BTreeSet::from(["bad_row", "missing_image"].map(str::to_owned));
        let error = no_such_cause("missing_imag", &causes).to_string();
        assert!(error.contains("expected bad_row, missing_image; did you mean missing_image? "), "{error}");
        let error = no_such_cause("x", &BTreeSet::new()).to_string();
        assert!(error.contains("found x, and no row was rejected, expected a folder with rejected rows"), "{error}");
    }
}
