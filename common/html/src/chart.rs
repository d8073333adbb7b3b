//! Histograms as inline SVG. Colours and fonts are the page's.

use crate::escaped;
use std::fmt::Write;

/// Size of a histogram, in its own units, and the height of its labels.
const BARS: (f64, f64) = (320.0, 120.0);
const LABELS: f64 = 12.0;

/// One bar of a histogram.
pub struct Bar {
    /// Shown when the pointer is over the bar.
    pub name: String,
    /// Its height.
    pub count: usize,
}

/// A histogram; `ends` are the smallest and the largest value.
pub fn bars(title: &str, bars: &[Bar], ends: [&str; 2]) -> String {
    let (width, height) = BARS;
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(1).max(1);
    let step = width / bars.len().max(1) as f64;
    let mut out =
        format!("<svg viewBox=\"0 0 {width} {}\" role=\"img\" aria-label=\"{}\">", height + LABELS, escaped(title));
    for (index, bar) in bars.iter().enumerate() {
        let tall = height * bar.count as f64 / most as f64;
        let _ = write!(
            out,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{tall:.2}\"><title>{}</title></rect>",
            index as f64 * step + 0.5,
            height - tall,
            (step - 1.0).max(0.5),
            escaped(&bar.name)
        );
    }
    let [first, last] = ends.map(escaped);
    let y = height + LABELS - 2.0;
    let _ = write!(
        out,
        "<text x=\"0\" y=\"{y}\">{first}</text><text x=\"{width}\" y=\"{y}\" text-anchor=\"end\">{last}</text></svg>"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_fills_the_chart() {
        let bar = |count| Bar { name: format!("<{count}>"), count };
        let svg = bars("t", &[bar(2), bar(4)], ["1", "9"]);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("height=\"120.00\"") && svg.contains("height=\"60.00\"") && !svg.contains("<4>"), "{svg}");
    }
}
