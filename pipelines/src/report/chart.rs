//! Line charts as inline SVG.

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

/// The chart, or `None` without a single finite value.
pub fn svg(title: &str, lines: &[Line]) -> Option<String> {
    let lines: Vec<(&Line, Vec<(f64, f64)>)> = lines.iter().map(|line| (line, thinned(&line.points))).collect();
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

/// A value with about four significant digits: `0.0002`, `1.234`, `12,345`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if size < 1e-2 {
        return format!("{value:.2e}").replace(".00e", "e").replace("0e", "e");
    }
    if size >= 1000.0 {
        return thousands(value.round() as i64);
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 4) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

fn thousands(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if value < 0 { "−" } else { "" }, groups.join(","))
}

/// Text for HTML, attributes included.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0002, "2e-4"), (1.23456, "1.235"), (12345.0, "12,345"), (0.5, "0.5"), (100.0, "100"), (0.0, "0")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

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
            svg("x", &[Line { name: "a".into(), colour: 0, dashed: false, points: vec![(1.0, f64::NAN)] }]).is_none()
        );
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let line = Line { name: "\"><script>".into(), colour: 0, dashed: false, points: vec![(0.0, 1.0), (1.0, 2.0)] };
        assert!(!svg("t", &[line]).expect("drawn").contains("<script>"));
    }
}
