//! The dataset as one self-contained page: no script, no request, readable on a phone, light and dark.

use super::report::{distributions, facts, numbers};
use super::row::Sample;
use super::table::{Dataset, Distribution};
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;

/// Width of a sample's picture in the page, pixels.
const THUMBNAIL: usize = 224;
/// Size of a chart in its own units.
const CHART: (f64, f64) = (320.0, 120.0);
/// Most frequent source sizes that are listed.
const SIZES: usize = 10;

/// The page.
pub fn html(dir: &Path, dataset: &Dataset, samples: &[Sample]) -> Result<String> {
    let title = escape(&dir.display().to_string());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{}</style></head>\n\
         <body><header><h1>{title}</h1><p>preprocess inspect</p></header>\n<dl>",
        include_str!("page.css")
    );
    for (what, value) in facts(dataset)? {
        write!(page, "<dt>{what}</dt><dd>{}</dd>", escape(&value))?;
    }
    page += "</dl>\n<h2>Distributions</h2>\n<div class=\"charts\">\n";
    for (title, distribution) in distributions(dataset)? {
        chart(&mut page, title, &distribution)?;
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

fn chart(page: &mut String, title: &str, distribution: &Distribution) -> Result<()> {
    let (width, height) = CHART;
    let most = distribution.bars.iter().map(|bar| bar.1).max().unwrap_or(1).max(1);
    let step = width / distribution.bars.len().max(1) as f64;
    if distribution.min == distribution.max {
        let (title, value) = (escape(title), distribution.min);
        writeln!(page, "<figure><figcaption>{title}</figcaption><p>{value} everywhere</p></figure>")?;
        return Ok(());
    }
    write!(
        page,
        "<figure><figcaption>{}</figcaption><p>{}</p><svg viewBox=\"0 0 {width} {}\" role=\"img\" aria-label=\"{}\">",
        escape(title),
        escape(&numbers(distribution)),
        height + 12.0,
        escape(title)
    )?;
    for (index, (first, count)) in distribution.bars.iter().enumerate() {
        let bar = height * *count as f64 / most as f64;
        let last = first + distribution.bar_width - 1;
        write!(
            page,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{bar:.2}\"><title>{first}–{last}: {count}</title></rect>",
            index as f64 * step + 0.5,
            height - bar,
            (step - 1.0).max(0.5)
        )?;
    }
    writeln!(
        page,
        "<text x=\"0\" y=\"{y}\">{}</text><text x=\"{width}\" y=\"{y}\" text-anchor=\"end\">{}</text></svg></figure>",
        distribution.min,
        distribution.max,
        y = height + 10.0
    )?;
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
        write!(page, "<tr><td>{}</td><td>{count}</td></tr>", escape(what))?;
    }
    page.push_str("</table>\n");
    Ok(())
}

fn article(page: &mut String, sample: &Sample) -> Result<()> {
    page.push_str("<article>");
    for (name, picture) in &sample.pictures {
        let name = escape(name);
        write!(page, "<img alt=\"{name}\" title=\"{name}\" src=\"{}\">", picture.shrunk(THUMBNAIL).data_uri()?)?;
    }
    write!(
        page,
        "<h3>row {} · {} · {} of {} tokens supervised</h3><div class=\"tokens\">",
        sample.row,
        escape(&sample.id),
        sample.supervised(),
        sample.tokens.len()
    )?;
    for token in &sample.tokens {
        let class = if token.supervised { " class=\"on\"" } else { "" };
        write!(page, "<span{class} title=\"{}\">{}</span>", token.id, escape(&token.text))?;
    }
    page.push_str("</div></article>\n");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(super::escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
