"use strict";
// Charts as SVG, drawn at the width that there is. Text from files goes in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const groups = data.groups;

function el(parent, name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function svg(parent, name, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function words(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const short = Number(value.toPrecision(digits));
  return (Math.abs(short) < 1e6 && (Math.abs(short) >= 1e-4 || short === 0) ? String(short) : short.toExponential()).replace("-", "−");
}

const withUnit = (spec) => (spec.unit ? `${spec.label} (${spec.unit})` : spec.label);

const tip = document.getElementById("tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16}px`;
}
const hideTip = () => { tip.style.visibility = "hidden"; };

function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((s) => s * power >= raw * 0.999) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function canvasFor(box, height) {
  box.replaceChildren();
  const width = Math.max(240, Math.floor(box.clientWidth));
  return [svg(box, "svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }), width];
}

// At most two lines of a title; what does not fit ends in an ellipsis.
function lined(text, width) {
  const room = Math.max(8, Math.floor(width / 7.9));
  if (text.length <= room) return [text];
  const cut = text.lastIndexOf(" ", room), at = cut > room / 3 ? cut : room, rest = text.slice(at).trim();
  return [text.slice(0, at), rest.length <= room ? rest : `${rest.slice(0, room - 1)}…`];
}

// A strip for each group over a common axis: nothing overlaps, and targets can be compared.
function drawHistogram(box, chart, names) {
  const n = chart.series.length, left = 46, right = 14, strip = 74, bottom = 44, narrow = box.clientWidth < 560;
  const titles = chart.series.map((s) => lined(names[s.group], box.clientWidth - left - right - (narrow ? 0 : 200)));
  const head = 36 + 16 * (Math.max(...titles.map((lines) => lines.length)) - 1);
  const [root, width] = canvasFor(box, n * (strip + head) + bottom);
  const inner = width - left - right;
  const edges = chart.edges, first = edges[0], last = edges[edges.length - 1];
  const x = (value) => left + (inner * (value - first)) / (last - first);
  const share = (counts, total) => counts.map((count) => (total ? count / total : 0));
  const total = chart.reference ? chart.reference.reduce((a, b) => a + b, 0) : 0;
  const reference = chart.reference ? share(chart.reference, total) : [];
  const marks = ticks(first, last, inner / 80);
  chart.series.forEach((series, k) => {
    const whole = share(series.counts, series.n), kept = series.survivors ? share(series.survivors, series.n) : whole;
    const top = Math.max(...whole, ...reference, 1e-9);
    const base = (k + 1) * (strip + head), y = (part) => base - (strip * part) / top;
    const shell = svg(root, "g", { class: `g${series.group % 8}` });
    for (const mark of marks) svg(shell, "line", { class: "grid", x1: x(mark), x2: x(mark), y1: base - strip, y2: base });
    const title = names[series.group];
    const said = `${series.n.toLocaleString("en")} crystals, mean ${words(series.mean)}`;
    titles[k].forEach((line, row) => svg(shell, "text", { class: "strong", x: left, y: base - strip - 9 - 16 * (titles[k].length - 1 - row) }, line));
    if (!narrow) svg(shell, "text", { x: width - right, y: base - strip - 9, "text-anchor": "end" }, said);
    whole.forEach((part, bin) => {
      const [a, b] = [x(edges[bin]), x(edges[bin + 1])], gap = Math.min(1, (b - a) / 5);
      const bar = (value, kind) => value > 0 && svg(shell, "rect", { class: kind, x: a + gap / 2, width: Math.max(0.5, b - a - gap), y: y(value), height: base - y(value) });
      if (series.survivors) bar(part, "pale");
      bar(kept[bin], "filled");
      if (!part) return;
      const over = svg(shell, "rect", { x: a, width: b - a, y: base - strip, height: strip, fill: "transparent" });
      const lines = [title, `${words(edges[bin])} to ${words(edges[bin + 1])} ${chart.unit}`, `${series.counts[bin]} crystals (${words(100 * part)} %)`];
      if (series.survivors) lines.push(`${series.survivors[bin]} survive`);
      over.addEventListener("pointermove", (event) => showTip(event, lines.join("\n")));
      over.addEventListener("pointerleave", hideTip);
    });
    if (reference.length) {
      const path = reference.map((part, bin) => `${bin ? "L" : "M"}${x(edges[bin])} ${y(part)}H${x(edges[bin + 1])}`).join("");
      svg(shell, "path", { class: "reference", d: path });
    }
    if (series.target !== null) svg(shell, "line", { class: "target", x1: x(series.target), x2: x(series.target), y1: base - strip - 2, y2: base });
    svg(shell, "line", { class: "base", x1: left, x2: width - right, y1: base, y2: base });
    svg(shell, "text", { x: left - 6, y: base, "text-anchor": "end" }, "0");
    svg(shell, "text", { x: left - 6, y: base - strip + 8, "text-anchor": "end" }, `${words(100 * top, 2)} %`);
  });
  const floor = n * (strip + head);
  for (const mark of marks) svg(root, "text", { x: x(mark), y: floor + 17, "text-anchor": "middle" }, words(mark, 6));
  svg(root, "text", { class: "axis", x: left + inner / 2, y: floor + 38, "text-anchor": "middle" }, withUnit(chart));
}

// A shape and a colour for each group, so that neither is needed alone.
const SHAPES = [
  (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  (r) => `M0 ${-1.25 * r}L${1.15 * r} ${0.85 * r}H${-1.15 * r}Z`,
  (r) => `M${-0.9 * r} ${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
  (r) => `M0 ${-1.3 * r}L${1.1 * r} 0L0 ${1.3 * r}L${-1.1 * r} 0Z`,
  (r) => `M0 ${1.25 * r}L${1.15 * r} ${-0.85 * r}H${-1.15 * r}Z`,
  (r) => `M${-r} ${-0.4 * r}H${-0.4 * r}V${-r}H${0.4 * r}V${-0.4 * r}H${r}V${0.4 * r}H${0.4 * r}V${r}H${-0.4 * r}V${0.4 * r}H${-r}Z`,
  (r) => `M${-1.2 * r} ${-0.6 * r}H${1.2 * r}V${0.6 * r}H${-1.2 * r}Z`,
  (r) => `M${-0.6 * r} ${-1.2 * r}H${0.6 * r}V${1.2 * r}H${-0.6 * r}Z`,
];
const shape = (group, r) => SHAPES[group % SHAPES.length](r);

function frame(box, height, xRange, yRange, xTitle, yTitle, extra = 0) {
  const left = 58, right = 16 + extra, top = 10, bottom = 48;
  const [root, width] = canvasFor(box, height);
  const x = (v) => left + ((width - left - right) * (v - xRange[0])) / (xRange[1] - xRange[0]);
  const y = (v) => height - bottom - ((height - bottom - top) * (v - yRange[0])) / (yRange[1] - yRange[0]);
  for (const mark of ticks(...xRange, (width - left - right) / 80)) {
    svg(root, "line", { class: "grid", x1: x(mark), x2: x(mark), y1: top, y2: height - bottom });
    svg(root, "text", { x: x(mark), y: height - bottom + 17, "text-anchor": "middle" }, words(mark, 6));
  }
  for (const mark of ticks(...yRange, (height - top - bottom) / 55)) {
    svg(root, "line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) });
    svg(root, "text", { x: left - 7, y: y(mark) + 4, "text-anchor": "end" }, words(mark, 6));
  }
  svg(root, "path", { class: "base", fill: "none", d: `M${left} ${top}V${height - bottom}H${width - right}` });
  svg(root, "text", { class: "axis", x: left + (width - left - right) / 2, y: height - 8, "text-anchor": "middle" }, xTitle);
  svg(root, "text", { class: "axis", transform: `translate(14 ${top + (height - top - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle);
  return { root, width, left, right, top, bottom, x, y };
}

function padded(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null && value !== undefined) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!(high > low)) { low = (Number.isFinite(low) ? low : 0) - 0.5; high = low + 1; }
  const room = 0.045 * (high - low);
  return [low - room, high + room];
}

function mark(parent, group, x, y, r, text) {
  const made = svg(parent, "path", { class: `point g${group % 8}`, d: shape(group, r), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
  made.addEventListener("pointermove", (event) => showTip(event, text));
  made.addEventListener("pointerleave", hideTip);
}

function legend(box, names, used, hidden, redraw) {
  box.replaceChildren();
  for (const group of used) {
    const button = el(box, "button", { type: "button", class: `g${group % 8}`, "aria-pressed": String(!hidden.has(group)) });
    svg(svg(button, "svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }), "path", { d: shape(group, 5) });
    button.append(names[group]);
    button.addEventListener("click", () => {
      if (!hidden.delete(group)) hidden.add(group);
      redraw();
    });
  }
}

const hiddenGroups = new Map();
const hiddenOf = (key) => hiddenGroups.get(key) || hiddenGroups.set(key, new Set()).get(key);

function drawScatter(box) {
  const points = data.points, hidden = hiddenOf("scatter");
  const [across, up] = ["scatter-x", "scatter-y"].map((id) => points.axes[Number(document.getElementById(id).value)]);
  const used = [...new Set(points.group)].sort((a, b) => a - b);
  legend(document.getElementById("scatter-legend"), groups.map((g) => g.label), used, hidden, () => drawScatter(box));
  const xs = points.values[across.key], ys = points.values[up.key];
  const asked = groups.map((g) => [g.targets[across.key], g.targets[up.key]].map((t) => (typeof t === "number" ? t : null)));
  const height = Math.round(Math.max(300, Math.min(500, box.clientWidth * 0.6)));
  const at = frame(box, height, padded([...xs, ...asked.map((a) => a[0])]), padded([...ys, ...asked.map((a) => a[1])]), withUnit(across), withUnit(up));
  const radius = xs.length > 1200 ? 2.6 : xs.length > 400 ? 3.2 : 4.2;
  points.group.forEach((group, k) => {
    if (hidden.has(group) || xs[k] === null || ys[k] === null) return;
    mark(at.root, group, at.x(xs[k]), at.y(ys[k]), radius, `${points.ids[k]}\n${across.label} ${words(xs[k], 4)} ${across.unit}\n${up.label} ${words(ys[k], 4)} ${up.unit}`);
  });
  asked.forEach(([a, b], group) => {
    if (hidden.has(group) || !used.includes(group)) return;
    if (a !== null && b !== null) {
      const cross = svg(at.root, "g", { class: `g${group % 8}`, transform: `translate(${at.x(a)} ${at.y(b)})` });
      const d = "M-9 0a9 9 0 1 0 18 0a9 9 0 1 0 -18 0M-14 0H14M0 -14V14";
      svg(cross, "path", { class: "ring", d });
      svg(cross, "path", { class: "ring over", d });
      svg(cross, "path", { class: "filled", d: shape(group, 4) });
    } else if (a !== null) {
      svg(at.root, "line", { class: "target", x1: at.x(a), x2: at.x(a), y1: at.top, y2: height - at.bottom });
    } else if (b !== null) {
      svg(at.root, "line", { class: "target", x1: at.left, x2: at.width - at.right, y1: at.y(b), y2: at.y(b) });
    }
  });
}

function drawParity(box, parity, key) {
  const hidden = hiddenOf(key);
  const used = [...new Set(parity.group)].sort((a, b) => a - b);
  legend(document.querySelector(`[data-legend="${key}"]`), parity.groups, used, hidden, () => drawParity(box, parity, key));
  const range = padded([...parity.measured, ...parity.predicted]);
  const extra = parity.failed ? 58 : 0;
  const height = Math.round(Math.max(320, Math.min(560, box.clientWidth * 0.72)));
  const unit = parity.unit ? ` (${parity.unit})` : "";
  const at = frame(box, height, range, range, `By DFT${unit}`, `Predicted${unit}`, extra);
  svg(at.root, "line", { class: "target", x1: at.x(range[0]), y1: at.y(range[0]), x2: at.x(range[1]), y2: at.y(range[1]) });
  const middle = at.width - 16 - 22;
  if (extra) {
    svg(at.root, "rect", { class: "band", x: middle - 22, y: at.top, width: 44, height: height - at.top - at.bottom, rx: 6 });
    svg(at.root, "text", { class: "strong", x: middle, y: height - at.bottom + 17, "text-anchor": "middle" }, "Err");
  }
  parity.predicted.forEach((value, k) => {
    if (hidden.has(parity.group[k])) return;
    const measured = parity.measured[k];
    const said = measured === null ? "failed in DFT" : `by DFT ${words(measured, 4)} ${parity.unit}`;
    mark(at.root, parity.group[k], measured === null ? middle + ((k % 5) - 2) * 5 : at.x(measured), at.y(value), 4.2, `${parity.ids[k]}\n${said}\npredicted ${words(value, 4)} ${parity.unit}`);
  });
}

const DRAW = {
  histogram: (box) => drawHistogram(box, data.histograms[box.dataset.place], groups.map((g) => g.label)),
  change: (box) => drawHistogram(box, data.changes[box.dataset.place], data.change_names),
  scatter: drawScatter,
  parity: (box) => drawParity(box, data.parities[box.dataset.place], `parity-${box.dataset.place}`),
};

if (data.points) {
  const selects = ["scatter-x", "scatter-y"].map((id) => document.getElementById(id));
  selects.forEach((select, place) => {
    data.points.axes.forEach((axis, k) => el(select, "option", { value: k }, withUnit(axis)));
    select.value = String(place);
    select.addEventListener("change", () => drawScatter(document.getElementById("scatter")));
  });
}
const charts = [...document.querySelectorAll(".chart")];
const widths = new Map();
const redraw = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (widths.get(target) === target.clientWidth) continue;
    widths.set(target, target.clientWidth);
    DRAW[target.dataset.chart](target);
  }
});
for (const box of charts) {
  widths.set(box, box.clientWidth);
  DRAW[box.dataset.chart](box);
  redraw.observe(box);
}
