"use strict";
const $ = (id) => document.getElementById(id);
const { runs, charts } = JSON.parse($("data").textContent);
const WIDTH = 560, HEIGHT = 260, LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 30, EDGE = 50;
const DOT = 4, COLOURS = 8, CLIPPED_SHARE = 0.98;

/** About four significant digits. */
function number(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-2 || size >= 1e7) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}
/** The value of `series` at a step, between its points in proportion. */
function at(series, step) {
  let after = series.findIndex(([other]) => other >= step);
  if (after <= 0) return (series[after] ?? series.at(-1))[1];
  const [[from, low], [to, high]] = [series[after - 1], series[after]];
  return low + ((high - low) * (step - from)) / (to - from);
}
/** Exponential moving average without the pull of its start, as TensorBoard has it. */
function smoothed(values, weight) {
  let sum = 0, share = 1;
  return values.map((value) => { sum = weight * sum + (1 - weight) * value; share *= weight; return sum / (1 - share); });
}
function ticks(from, to, count) {
  if (to <= from) return [from];
  const rough = (to - from) / count, magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((step) => step >= rough * 0.999);
  const found = [];
  for (let tick = Math.ceil(from / step); tick * step <= to * (1 + 1e-9) + 1e-300; tick++) found.push(tick * step);
  return found;
}
function logTicks(from, to) {
  const found = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power++)
    for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
  const inside = found.filter((tick) => tick >= from && tick <= to);
  return inside.length >= 3 ? inside : ticks(from, to, 5);
}

/** Lines of a chart: one for each shown run and key. */
function lines(chart) {
  const axis = $("axis").value, found = [];
  runs.forEach((run, index) => {
    if (!$("run" + index).checked) return;
    for (const { key, dashed } of chart.keys) {
      const series = run.series[key];
      if (!series) continue;
      const place = axis === "step" ? (step) => step : (step) => at(run.series[axis], step);
      const name = chart.keys.length > 1 ? `${run.name}, ${key}` : run.name;
      // A schedule is no noise.
      const smooth = !dashed && key !== "learning_rate" && !key.endsWith("_lr");
      found.push({ name, smooth, colour: index % COLOURS, dashed, x: series.map(([step]) => place(step)), y: series.map(([, value]) => value) });
    }
  });
  return found;
}
function range(chart, drawn, mode) {
  const values = drawn.flatMap((line) => line.y);
  let low = Math.min(...values), high = Math.max(...values);
  if (mode === "log") return low > 0 ? [low, high > low ? high : low * 1.1] : null;
  if (mode === "clipped") high = [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) * CLIPPED_SHARE)];
  // Every number here has a meaningful zero, and an axis that leaves it out makes noise look like news.
  return [Math.min(0, low), high > Math.min(0, low) ? high : 1];
}
function draw(figure, chart) {
  const drawn = lines(chart), weight = Number($("smoothing").value);
  figure.hidden = !drawn.length;
  if (!drawn.length) return;
  let mode = chart.scaled ? $("scale").value : "linear";
  let [low, high] = range(chart, drawn, mode) ?? range(chart, drawn, (mode = "linear"));
  const yTicks = mode === "log" ? logTicks(low, high) : ticks(low, high, 5);
  if (mode === "linear") high = Math.max(high, yTicks.at(-1));
  const flat = mode === "log" ? Math.log : (value) => value;
  const y = (value) => HEIGHT - BOTTOM - ((flat(value) - flat(low)) / (flat(high) - flat(low))) * (HEIGHT - BOTTOM - TOP);
  const places = drawn.flatMap((line) => line.x), from = Math.min(...places), to = Math.max(...places);
  const x = (place) => LEFT + ((place - from) / (to - from || 1)) * (WIDTH - LEFT - RIGHT);
  const path = (xs, ys) => xs.map((place, index) => `${x(place).toFixed(1)},${y(ys[index]).toFixed(1)}`).join(" ");
  const parts = [`<clipPath id="clip-${chart.id}"><rect x="${LEFT - DOT}" y="${TOP - DOT}" width="${WIDTH - LEFT - RIGHT + 2 * DOT}" height="${HEIGHT - BOTTOM - TOP + 2 * DOT}"/></clipPath>`];
  for (const tick of yTicks) parts.push(`<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(tick)}" y2="${y(tick)}"/><text x="${LEFT - 7}" y="${y(tick) + 4}" text-anchor="end">${number(tick)}</text>`);
  for (const tick of ticks(from, to, 5)) parts.push(`<text x="${Math.min(x(tick), WIDTH - RIGHT)}" y="${HEIGHT - BOTTOM + 19}" text-anchor="${x(tick) > WIDTH - EDGE ? "end" : "middle"}">${number(tick)}</text>`);
  parts.push(`<g clip-path="url(#clip-${chart.id})">`);
  for (const line of drawn) {
    line.shown = weight > 0 && line.smooth && line.y.length > 2 ? smoothed(line.y, weight) : line.y;
    const style = `c${line.colour}${line.dashed ? " dashed" : ""}`;
    if (line.shown !== line.y) parts.push(`<polyline class="run faint ${style}" points="${path(line.x, line.y)}"/>`);
    parts.push(`<polyline class="run ${style}" points="${path(line.x, line.shown)}"/>`);
    if (line.x.length === 1) parts.push(`<circle class="dot ${style}" cx="${x(line.x[0])}" cy="${y(line.y[0])}" r="${DOT - 0.5}"/>`);
  }
  parts.push(`</g><line class="cursor" y1="${TOP}" y2="${HEIGHT - BOTTOM}" visibility="hidden"/>`);
  const svg = figure.querySelector("svg");
  svg.innerHTML = parts.join("");
  const words = drawn.map((line) => `${line.name} from ${number(line.y[0])} to ${number(line.y.at(-1))}`);
  svg.setAttribute("aria-label", `${chart.title} over ${$("axis").selectedOptions[0].textContent}: ${words.join("; ")}`);
  figure.querySelector(".mode").textContent = mode === "linear" ? "" : mode === "log" ? "logarithmic" : `clipped at ${number(high)}`;
  pointer(figure, svg, drawn, from, to, x);
}
/** Values of every line at the pointer. */
function pointer(figure, svg, drawn, from, to, x) {
  const tip = figure.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const place = Math.min(Math.max(((event.clientX - box.left) / box.width) * WIDTH, LEFT), WIDTH - RIGHT);
    const wanted = from + ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (to - from);
    const nearest = ({ x: xs }) => xs.reduce((best, other, index) => (Math.abs(other - wanted) < Math.abs(xs[best] - wanted) ? index : best), 0);
    const values = drawn.map((line) => {
      const index = nearest(line), raw = line.y[index], shown = line.shown[index];
      return `${line.name}: ${number(raw)}${shown === raw ? "" : ` (smoothed ${number(shown)})`}`;
    });
    tip.textContent = [`${$("axis").selectedOptions[0].textContent} ${number(wanted)}`, ...values].join("\n");
    tip.hidden = false;
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, place);
  };
  svg.onpointerleave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
}

const figures = charts.map((chart, index) => {
  chart.id = index;
  const figure = $("chart").content.firstElementChild.cloneNode(true);
  figure.querySelector("b").textContent = chart.title;
  figure.querySelector(".unit").textContent = chart.unit;
  $("charts").append(figure);
  return figure;
});
/** A spiky loss is read best on a logarithmic axis; one within a narrow range on a linear one. */
function firstScale() {
  const losses = runs.flatMap((run) => (run.series.loss ?? []).map(([, loss]) => loss)).filter((loss) => loss > 0);
  return Math.max(...losses) > 8 * Math.min(...losses) ? "log" : "linear";
}
function drawAll() {
  $("weight").textContent = Number($("smoothing").value).toFixed(2);
  charts.forEach((chart, index) => draw(figures[index], chart));
}
$("scale").value = firstScale();
for (const axis of ["tokens", "epoch"]) {
  // Runs are compared on an axis that all of them have.
  if (!runs.every((run) => run.series[axis])) $("axis").querySelector(`[value=${axis}]`).disabled = true;
}
for (const control of document.querySelectorAll("select, input")) control.oninput = drawAll;
drawAll();
