// Values of every line at the pointer.
for (const svg of document.querySelectorAll("svg[data-x]")) {
  const [from, to, left, right] = svg.dataset.x.split(",").map(Number);
  const lines = [...svg.querySelectorAll("polyline")].map((line) => ({
    name: line.dataset.name,
    values: line.dataset.values.split(";").filter(Boolean).map((pair) => {
      const comma = pair.indexOf(",");
      return [Number(pair.slice(0, comma)), pair.slice(comma + 1)];
    }),
  }));
  const cursor = svg.querySelector(".cursor");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  svg.parentElement.append(tip);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const step = from + ((Math.min(Math.max(x, left), right) - left) / (right - left)) * (to - from);
    const near = (values) => values.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
    const found = lines.filter((line) => line.values.length);
    tip.textContent = [`step ${Math.round(step)}`, ...found.map((line) => `${line.name}: ${near(line.values)[1]}`)].join("\n");
    tip.hidden = false;
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, Math.min(Math.max(x, left), right));
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
}
