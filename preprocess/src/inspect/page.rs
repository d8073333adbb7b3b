//! The dataset as one self-contained page: no request, readable on a phone, light and dark. Without its script, everything is
//! shown and nothing is filtered.

use super::report::{distributions, facts, numbers};
use super::row::Sample;
use super::table::{Dataset, Distribution};
use crate::shards::Rejected;
use anyhow::Result;
use html::chart::{self, Bar};
use html::escaped;
use std::fmt::Write;
use std::path::Path;

/// Width of a sample's picture in the page, pixels.
const THUMBNAIL: usize = 224;
/// Most frequent source sizes that are listed.
const SIZES: usize = 10;
/// Rejected rows of a cause that are listed.
const REJECTED_OF_A_CAUSE: usize = 200;

/// What the page says that it was made by.
pub const GENERATOR: &str = "preprocess inspect";

/// The page.
pub fn page(dir: &Path, dataset: &Dataset, rejected: &[Rejected], samples: &[Sample]) -> Result<String> {
    let title = escaped(&dir.display().to_string());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">{}<title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{}</style></head>\n\
         <body><header><h1>{title}</h1><p>preprocess inspect</p></header>\n<main><dl>",
        html::generator(GENERATOR),
        include_str!("page.css")
    );
    for (what, value) in facts(dataset)? {
        write!(page, "<dt>{what}</dt><dd>{}</dd>", escaped(&value))?;
    }
    page += "</dl>\n<h2>Distributions</h2>\n<div class=\"charts\">\n";
    for (title, distribution) in distributions(dataset)? {
        figure(&mut page, title, &distribution)?;
    }
    page += "</div>\n";
    counts(&mut page, "Rejected rows by cause", "none", &dataset.causes()?)?;
    rejected_rows(&mut page, &dataset.causes()?, rejected)?;
    counts(&mut page, "Most frequent source sizes", "no images", &dataset.source_sizes(SIZES)?)?;
    page += include_str!("filters.html");
    for sample in samples {
        tile(&mut page, sample)?;
    }
    write!(page, "</div>\n</main><script>\n{}</script>\n</body></html>\n", include_str!("page.js"))?;
    Ok(page)
}

fn figure(page: &mut String, title: &str, distribution: &Distribution) -> Result<()> {
    let heading = escaped(title);
    if distribution.min == distribution.max {
        writeln!(page, "<figure><figcaption>{heading}</figcaption><p>{} everywhere</p></figure>", distribution.min)?;
        return Ok(());
    }
    let bar = |&(first, count): &(u64, usize)| {
        let last = first + distribution.bar_width - 1;
        let values = if first == last { first.to_string() } else { format!("{first}–{last}") };
        Bar { name: format!("{values}: {count}"), count }
    };
    let bars: Vec<Bar> = distribution.bars.iter().map(bar).collect();
    let [first, last] = [distribution.min, distribution.max].map(|end| end.to_string());
    let svg = chart::bars(title, &bars, [&first, &last]);
    let numbers = escaped(&numbers(distribution));
    writeln!(page, "<figure><figcaption>{heading}</figcaption><p>{numbers}</p>{svg}</figure>")?;
    Ok(())
}

fn counts(page: &mut String, title: &str, nothing: &str, counts: &[(String, usize)]) -> Result<()> {
    writeln!(page, "<h2>{title}</h2>")?;
    if counts.is_empty() {
        writeln!(page, "<p>{nothing}</p>")?;
        return Ok(());
    }
    write!(page, "<table aria-label=\"{title}\">")?;
    for (what, count) in counts {
        write!(page, "<tr><td>{}</td><td>{count}</td></tr>", escaped(what))?;
    }
    page.push_str("</table>\n");
    Ok(())
}

/// The rows that were rejected, to be filtered by cause.
fn rejected_rows(page: &mut String, causes: &[(String, usize)], rejected: &[Rejected]) -> Result<()> {
    if causes.is_empty() {
        return Ok(());
    }
    page.push_str("<details id=\"rejected\"><summary>Rejected rows</summary>\n<form class=\"filters\" onsubmit=\"return false\"><label>Cause <select id=\"cause\"><option value=\"\">all</option>");
    for (cause, count) in causes {
        write!(page, "<option value=\"{0}\">{0} ({count})</option>", escaped(cause))?;
    }
    page.push_str(
        "</select></label> <output id=\"rejected-shown\" for=\"cause\"></output></form>\n<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Rejected rows\"><table>\
         <thead><tr><th scope=\"col\">row</th><th scope=\"col\">id</th><th scope=\"col\">image</th><th scope=\"col\">cause</th>\
         <th scope=\"col\">detail</th></tr></thead><tbody>\n",
    );
    for (cause, _) in causes {
        let of_cause = rejected.iter().filter(|row| row.cause.name() == *cause);
        for row in of_cause.take(REJECTED_OF_A_CAUSE) {
            let [id, image] = [&row.id, &row.image].map(|name| escaped(name.as_deref().unwrap_or_default()));
            let detail = escaped(&row.detail);
            let cause = escaped(cause);
            writeln!(
                page,
                "<tr data-cause=\"{cause}\"><td>{}</td><td>{id}</td><td>{image}</td><td>{cause}</td><td>{detail}</td></tr>",
                row.row
            )?;
        }
    }
    writeln!(
        page,
        "</tbody></table></div>\n<p>At most {REJECTED_OF_A_CAUSE} rows of a cause; rejected.jsonl has all.</p></details>"
    )?;
    Ok(())
}

/// A sample: its pictures and lengths; opened, its tokens.
fn tile(page: &mut String, sample: &Sample) -> Result<()> {
    let (tokens, supervised) = (sample.tokens.len(), sample.supervised());
    write!(
        page,
        "<details class=\"sample\" data-row=\"{}\" data-tokens=\"{tokens}\" data-supervised=\"{supervised}\"><summary>",
        sample.row
    )?;
    for (name, picture) in &sample.pictures {
        let name = escaped(name);
        let uri = picture.shrunk(THUMBNAIL).data_uri()?;
        write!(page, "<img loading=\"lazy\" alt=\"{name}\" title=\"{name}\" src=\"{uri}\">")?;
    }
    let id = escaped(&sample.id);
    write!(
        page,
        "<span>row {} · id {id}<br>{supervised} of {tokens} supervised</span></summary><div class=\"tokens\">",
        sample.row
    )?;
    for token in &sample.tokens {
        let class = if token.supervised { " class=\"on\"" } else { "" };
        write!(page, "<span{class} title=\"{}\">{}</span>", token.id, escaped(&token.text))?;
    }
    page.push_str("</div></details>\n");
    Ok(())
}
