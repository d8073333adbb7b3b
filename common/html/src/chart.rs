//! Charts as inline SVG: lines over steps, bars of a histogram. Colours and fonts are the page's.

use crate::{escaped, number};
use std::fmt::Write;

/// Size of the drawing, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
/// Room for labels: left, right, top, bottom.
const MARGINS: [f64; 4] = [58.0, 14.0, 12.0, 30.0];
/// Most points of a drawn line; longer series are averaged in groups.
const MAX_POINTS: usize = 400;

/// One line.
pub struct Line {
    /// Shown when the pointer is over the chart.
    pub name: String,
    /// Index of its colour.
    pub colour: usize,
    /// Drawn with gaps: a second kind of line of the same run.
    pub dashed: bool,
    /// (step, value), finite values only are drawn.
    pub points: Vec<(f64, f64)>,
}

/// Where values are on the drawing.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let span = if self.to > self.from { self.to - self.from } else { 1.0 };
        self.start + (value - self.from) / span * (self.end - self.start)
    }
}

/// A chart of lines, or `None` without a single finite value.
pub fn lines(title: &str, series: &[Line]) -> Option<String> {
    let lines: Vec<(&Line, Vec<(f64, f64)>)> = series.iter().map(|line| (line, thinned(&line.points))).collect();
    let all = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let (x_from, x_to) = range(all().map(|(x, _)| x))?;
    // Every number here has a meaningful zero, and an axis that leaves it out makes noise look like news.
    let (y_from, y_to) = range(all().map(|(_, y)| y).chain([0.0]))?;
    let [left, right, top, bottom] = MARGINS;
    let y_ticks = ticks(y_from, y_to, 5);
    let x_ticks = ticks(x_from, x_to, 6);
    let x = Scale { from: x_from, to: x_to, start: left, end: WIDTH - right };
    let first = y_ticks.first().copied().unwrap_or(y_from).min(y_from);
    let last = y_ticks.last().copied().unwrap_or(y_to).max(y_to);
    let y = Scale { from: first, to: last, start: HEIGHT - bottom, end: top };
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-x=\"{x_from},{x_to},{left},{}\">\n",
        escaped(title),
        WIDTH - right
    );
    axes(&mut out, &x, &y, &x_ticks, &y_ticks);
    for (line, points) in &lines {
        polyline(&mut out, line, points, &x, &y);
    }
    out.push_str("<line class=\"cursor\" y1=\"12\" y2=\"230\" visibility=\"hidden\"/>\n</svg>");
    Some(out)
}

fn axes(out: &mut String, x: &Scale, y: &Scale, x_ticks: &[f64], y_ticks: &[f64]) {
    for &tick in y_ticks {
        let at = y.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            x.start, x.end
        );
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            x.start - 7.0,
            at + 4.0,
            number(tick)
        );
    }
    for &tick in x_ticks {
        let (at, below) = (x.at(tick), y.start + 19.0);
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>", number(tick));
    }
}

fn polyline(out: &mut String, line: &Line, points: &[(f64, f64)], x: &Scale, y: &Scale) {
    let drawn: Vec<String> = points.iter().map(|&(px, py)| format!("{:.1},{:.1}", x.at(px), y.at(py))).collect();
    let values: Vec<String> = points.iter().map(|&(px, py)| format!("{px},{}", number(py))).collect();
    let class = format!("run c{}{}", line.colour, if line.dashed { " dashed" } else { "" });
    if let [only] = &points {
        let (cx, cy) = (x.at(only.0), y.at(only.1));
        let _ = writeln!(out, "<circle class=\"dot c{}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"/>", line.colour);
    }
    let _ = writeln!(
        out,
        "<polyline class=\"{class}\" points=\"{}\" data-name=\"{}\" data-values=\"{}\"/>",
        drawn.join(" "),
        escaped(&line.name),
        values.join(";")
    );
}

/// Finite points, averaged in groups of equal size when there are too many.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let group = finite.len().div_ceil(MAX_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let count = group.len() as f64;
        let (x, y) = group.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / count, y / count)
    };
    finite.chunks(group).map(mean).collect()
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    (low <= high).then_some((low, high))
}

/// About `count` round numbers that cover a range.
fn ticks(from: f64, to: f64, count: usize) -> Vec<f64> {
    if to <= from {
        return vec![from];
    }
    let rough = (to - from) / count as f64;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|&step| step >= rough).unwrap_or(rough);
    let (first, last) = ((from / step).ceil() as i64, (to / step).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

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
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1000.0, 5), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(ticks(1.0, 1.0, 5), [1.0]);
    }

    #[test]
    fn long_series_are_thinned_and_holes_left_out() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).chain([(1e9, f64::NAN)]).collect();
        assert!(thinned(&points).len() <= MAX_POINTS);
        assert!(
            lines("x", &[Line { name: "a".into(), colour: 0, dashed: false, points: vec![(1.0, f64::NAN)] }]).is_none()
        );
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let line = Line { name: "\"><script>".into(), colour: 0, dashed: false, points: vec![(0.0, 1.0), (1.0, 2.0)] };
        assert!(!lines("t", &[line]).expect("drawn").contains("<script>"));
    }

    #[test]
    fn the_highest_bar_fills_the_chart() {
        let bar = |count| Bar { name: format!("<{count}>"), count };
        let svg = bars("t", &[bar(2), bar(4)], ["1", "9"]);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("height=\"120.00\"") && svg.contains("height=\"60.00\"") && !svg.contains("<4>"), "{svg}");
    }
}
