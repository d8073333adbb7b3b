"use strict";
// Filters of the samples and of the rejected rows: what does not fit is hidden.
const $ = (id) => document.getElementById(id);
const samples = [...document.querySelectorAll(".sample")];
const text = new Map(samples.map((sample) => [sample, sample.textContent.toLowerCase()]));
const number = (id, without) => ($(id).value === "" ? without : Number($(id).value));
function filterSamples() {
  const wanted = $("find").value.trim().toLowerCase();
  let shown = 0;
  for (const sample of samples) {
    const { tokens, supervised } = sample.dataset;
    const fits = tokens >= number("min-tokens", 0) && tokens <= number("max-tokens", Infinity)
      && supervised >= number("min-supervised", 0) && supervised <= number("max-supervised", Infinity)
      && text.get(sample).includes(wanted);
    sample.hidden = !fits;
    shown += fits;
  }
  $("shown").textContent = `${shown} of ${samples.length} samples`;
}
function sortSamples() {
  const key = $("sort").value, sheet = $("sheet");
  const order = [...samples].sort((a, b) => (key === "row" ? a.dataset.row - b.dataset.row : b.dataset[key] - a.dataset[key]));
  sheet.append(...order);
}
function filterRejected() {
  const cause = $("cause").value, rows = [...document.querySelectorAll("#rejected tbody tr")];
  for (const row of rows) row.hidden = cause !== "" && row.dataset.cause !== cause;
  $("rejected-shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} listed rows`;
}
for (const id of ["find", "min-tokens", "max-tokens", "min-supervised", "max-supervised"]) $(id).oninput = filterSamples;
$("sort").onchange = sortSamples;
$("open").onclick = () => {
  const all = samples.filter((sample) => !sample.hidden), opened = all.some((sample) => !sample.open);
  for (const sample of all) sample.open = opened;
};
if ($("cause")) { $("cause").onchange = filterRejected; filterRejected(); }
filterSamples();
