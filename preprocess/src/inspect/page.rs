//! The dataset as one self-contained page: no script, no request, readable on a phone, light and dark.

use super::report::{distributions, facts, numbers};
use super::row::Sample;
use super::table::{Dataset, Distribution};
use anyhow::Result;
use html::chart::{self, Bar};
use html::escaped;
use std::fmt::Write;
use std::path::Path;

/// Width of a sample's picture in the page, pixels.
const THUMBNAIL: usize = 224;
/// Most frequent source sizes that are listed.
const SIZES: usize = 10;

/// The page.
pub fn page(dir: &Path, dataset: &Dataset, samples: &[Sample]) -> Result<String> {
    let title = escaped(&dir.display().to_string());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{}</style></head>\n\
         <body><header><h1>{title}</h1><p>preprocess inspect</p></header>\n<dl>",
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
    counts(&mut page, "Most frequent source sizes", "no images", &dataset.source_sizes(SIZES)?)?;
    page += "<h2>Samples</h2>\n<p class=\"key\">Tokens: <span class=\"on\">supervised</span> <span>given</span></p>\n\
             <div class=\"samples\">\n";
    for sample in samples {
        article(&mut page, sample)?;
    }
    page += "</div>\n</body></html>\n";
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
        Bar { name: format!("{first}–{last}: {count}"), count }
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
    page.push_str("<table>");
    for (what, count) in counts {
        write!(page, "<tr><td>{}</td><td>{count}</td></tr>", escaped(what))?;
    }
    page.push_str("</table>\n");
    Ok(())
}

fn article(page: &mut String, sample: &Sample) -> Result<()> {
    page.push_str("<article>");
    for (name, picture) in &sample.pictures {
        let name = escaped(name);
        write!(page, "<img alt=\"{name}\" title=\"{name}\" src=\"{}\">", picture.shrunk(THUMBNAIL).data_uri()?)?;
    }
    write!(
        page,
        "<h3>row {} · {} · {} of {} tokens supervised</h3><div class=\"tokens\">",
        sample.row,
        escaped(&sample.id),
        sample.supervised(),
        sample.tokens.len()
    )?;
    for token in &sample.tokens {
        let class = if token.supervised { " class=\"on\"" } else { "" };
        write!(page, "<span{class} title=\"{}\">{}</span>", token.id, escaped(&token.text))?;
    }
    page.push_str("</div></article>\n");
    Ok(())
}
