"use strict";
// Draws a report from the JSON in #data: no library, no network. What it draws: reporting/html.py, at "page".

const page = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

window.addEventListener("error", (event) => {
  const fault = document.createElement("p");
  fault.id = "fault";
  fault.textContent = `This page's script failed: ${event.message} (line ${event.lineno})`;
  document.body.prepend(fault);
});

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "rect"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// ---- light and dark -------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null; // until the button is used, the system's
function theme() {
  document.documentElement.dataset.theme = chosen ?? (dark.matches ? "dark" : "light");
  draw();
}
dark.addEventListener("change", theme);
$("#theme").addEventListener("click", () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  theme();
});

const PALETTE = {
  light: ["#1f5fa8", "#c8501e", "#3a7d44", "#7d4a8c", "#b8860b", "#0f8b8d", "#c2377a", "#5a6472"],
  dark: ["#6fa8e8", "#ff9463", "#74c780", "#c493d6", "#e5bb4d", "#4fc7c9", "#f27fb2", "#aab4c2"],
};
const DASHES = ["", "6 3", "2 2", "8 3 2 3"];
function style(index) {
  const colours = PALETTE[document.documentElement.dataset.theme] ?? PALETTE.light;
  return { colour: colours[index % colours.length], dash: DASHES[Math.floor(index / colours.length) % DASHES.length] };
}

// ---- numbers --------------------------------------------------------------------------------------------------------

function short(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  const several = Math.log10(high / low) < 3 ? [1, 2, 5] : [1];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of several) found.push(m * 10 ** e);
  return found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
}

// Exponential mean over about `window` values, without the pull towards zero at its start.
function smooth(values, window) {
  if (window <= 1) return values;
  const decay = 1 - 1 / window;
  let total = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    total = decay * total + (1 - decay) * value;
    weight = decay * weight + 1 - decay;
    return total / weight;
  });
}

// ---- curves ---------------------------------------------------------------------------------------------------------

const selected = new Set(page.runs.map((run, i) => (run.selected ? i : -1)).filter((i) => i >= 0));
const hidden = page.charts.map(() => new Set()); // series of one experiment, switched off by their legend
const settings = { x: "epoch", smooth: 1, log: false };

function visible(chart, c) {
  return chart.series.map((series, s) => ({ ...series, s })).filter(({ run, s }) => selected.has(run) && !hidden[c].has(s));
}

function drawChart(chart, c) {
  const figure = $(`#chart-${c}`);
  const width = Math.max(260, figure.clientWidth), height = Math.round(Math.min(280, 150 + width * 0.22));
  const box = { left: 50, right: width - 10, top: chart.unit ? 20 : 8, bottom: height - 34 };
  const series = visible(chart, c).map((one) => {
    const x = page.runs[one.run].axes[one.axis][settings.x];
    const raw = one.axis === "steps" ? smooth(one.y, settings.smooth) : one.y;
    return { ...one, points: raw.map((y, i) => [x[i], y]).filter(([px, y]) => px !== null && y !== null) };
  });
  let points = series.flatMap((one) => one.points);
  const log = (settings.log || chart.log) && points.some(([, y]) => y > 0);
  if (log) points = points.filter(([, y]) => y > 0);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${chart.title} over ${settings.x}` });
  $("svg", figure)?.remove();
  $(".plot", figure).append(svg);
  if (!points.length) {
    svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing selected"));
    return;
  }
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (settings.x !== "epoch" || x1 - x0 > 3) x0 = Math.min(x0, 0);
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  if (!log) {
    if (y0 > 0 && y0 < 0.4 * y1) y0 = 0;
    const room = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
    [y0, y1] = [y0 === 0 ? 0 : y0 - room, y1 + room];
  } else [y0, y1] = [y0 / 1.15, y1 * 1.15];
  const scale = log ? Math.log10 : (v) => v;
  const px = (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left);
  const py = (y) => box.bottom - ((scale(y) - scale(y0)) / (scale(y1) - scale(y0))) * (box.bottom - box.top);
  for (const y of log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: py(y), y2: py(y) }));
    svg.append(make("text", { x: box.left - 6, y: py(y) + 4, "text-anchor": "end" }, short(Number(y.toPrecision(12)))));
  }
  for (const x of ticks(x0, x1, Math.max(3, Math.floor(width / 90)))) {
    svg.append(make("line", { class: "axis", x1: px(x), x2: px(x), y1: box.bottom, y2: box.bottom + 4 }));
    svg.append(make("text", { x: px(x), y: box.bottom + 16, "text-anchor": "middle" }, short(Number(x.toPrecision(12)))));
  }
  svg.append(make("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  svg.append(make("text", { x: box.right, y: height - 3, "text-anchor": "end" }, settings.x));
  if (chart.unit) svg.append(make("text", { x: box.left - 6, y: 11, "text-anchor": "end" }, chart.unit));
  for (const one of series) {
    const { colour, dash } = style(one.colour);
    const kept = one.points.filter(([, y]) => !log || y > 0);
    const d = kept.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    svg.append(make("path", { d, fill: "none", stroke: colour, "stroke-dasharray": dash, "stroke-linejoin": "round",
      "stroke-width": one.light ? 1 : 1.9, opacity: one.light ? 0.55 : 1 }));
    if (one.axis === "epochs" && (kept.length === 1 || (kept.length <= 40 && series.length <= 6)))
      for (const [x, y] of kept) svg.append(make("circle", { cx: px(x), cy: py(y), r: 2.4, fill: colour }));
  }
  svg.addEventListener("pointermove", (event) => tell(event, figure, chart, series, { px, py, box, x0, x1, width }));
  svg.addEventListener("pointerleave", () => $(".tip", figure)?.remove());
}

function tell(event, figure, chart, series, { box, x0, x1, width }) {
  const frame = $("svg", figure).getBoundingClientRect();
  const place = ((event.clientX - frame.left) / frame.width) * width;
  const x = x0 + ((place - box.left) / (box.right - box.left)) * (x1 - x0);
  const rows = series.map((one) => {
    if (!one.points.length) return null;
    const near = one.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    return { one, near };
  }).filter((row) => row && Math.abs(row.near[0] - x) <= (x1 - x0) * 0.12);
  $(".tip", figure)?.remove();
  if (!rows.length) return;
  if (chart.lower !== null) rows.sort((a, b) => (chart.lower ? a.near[1] - b.near[1] : b.near[1] - a.near[1]));
  const tip = make("div", { class: "tip" }, make("div", { class: "soft" }, `${settings.x} ${short(rows[0].near[0])}`));
  for (const { one, near } of rows.slice(0, 10)) {
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = style(one.colour).colour;
    tip.append(make("div", {}, swatch, `${short(near[1])}  ${one.label}`));
  }
  const plot = $(".plot", figure);
  plot.append(tip);
  const left = (place / width) * plot.clientWidth;
  tip.style.top = `${plot.offsetTop + 10}px`;
  if (left < plot.clientWidth / 2) tip.style.left = `${left + 14}px`;
  else tip.style.right = `${plot.clientWidth - left + 14}px`;
}

function drawLegend(chart, c) {
  const legend = $(`#chart-${c} .legend`);
  legend.replaceChildren();
  if (page.kind === "recipe" || chart.series.length < 2) return; // there, the table is the legend
  chart.series.forEach((series, s) => {
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = style(series.colour).colour;
    legend.append(make("button", { type: "button", "aria-pressed": !hidden[c].has(s), onclick: () => {
      hidden[c].has(s) ? hidden[c].delete(s) : hidden[c].add(s);
      draw();
    } }, swatch, series.label));
  });
}

function draw() {
  page.charts.forEach((chart, c) => {
    drawLegend(chart, c);
    drawChart(chart, c);
  });
  all("[data-colour]").forEach((swatch) => (swatch.style.background = style(Number(swatch.dataset.colour)).colour));
}

for (const [c, chart] of page.charts.entries())
  $("#charts")?.append(make("figure", { class: "card", id: `chart-${c}` }, make("figcaption", {}, chart.title),
    make("div", { class: "plot" }), make("div", { class: "legend" })));
all("[data-x]").forEach((button) => button.addEventListener("click", () => {
  settings.x = button.dataset.x;
  all("[data-x]").forEach((other) => other.setAttribute("aria-pressed", other === button));
  draw();
}));
$("#smooth")?.addEventListener("input", (event) => { settings.smooth = Number(event.target.value); draw(); });
$("#log")?.addEventListener("change", (event) => { settings.log = event.target.checked; draw(); });
let resizing = 0, before = innerWidth;
addEventListener("resize", () => { // a phone's address bar changes the height alone
  if (innerWidth === before) return;
  before = innerWidth;
  clearTimeout(resizing);
  resizing = setTimeout(draw, 100);
});

// ---- the table of experiments ---------------------------------------------------------------------------------------

function select(indexes) {
  selected.clear();
  indexes.forEach((i) => selected.add(i));
  all("#runs input").forEach((box) => (box.checked = selected.has(Number(box.value))));
  draw();
}
all("#runs input").forEach((box) => box.addEventListener("change", () => {
  box.checked ? selected.add(Number(box.value)) : selected.delete(Number(box.value));
  draw();
}));
all("[data-select]").forEach((button) => button.addEventListener("click", () => {
  const count = { all: Infinity, none: 0, best: 5 }[button.dataset.select];
  select(page.runs.map((_, i) => i).slice(0, count)); // the runs stand in order, the best first
}));

function compare(baseline) {
  const rows = all("#runs tbody tr");
  const base = rows.find((row) => row.dataset.run === String(baseline));
  for (const row of rows)
    all("td[data-key]", row).forEach((cell) => cell.classList.toggle("diff", row !== base
      && cell.textContent !== $(`td[data-key="${CSS.escape(cell.dataset.key)}"]`, base).textContent));
  if ($("#run")) show();
}
$("#baseline")?.addEventListener("change", (event) => compare(event.target.value));

all("#runs thead button").forEach((button) => button.addEventListener("click", () => {
  const column = button.closest("th").cellIndex, body = $("#runs tbody");
  const first = button.dataset.first === "down" ? -1 : 1; // the best on top, where there is such a thing
  const order = button.dataset.order ? (button.dataset.order === "up" ? -1 : 1) : first;
  all("#runs thead button").forEach((other) => delete other.dataset.order);
  button.dataset.order = order === 1 ? "up" : "down";
  const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const ranked = all("tr", body).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const [p, q] = [Number(x), Number(y)];
    return order * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
  });
  body.append(...ranked);
}));

// ---- one experiment: mistakes (views.js), pictures of epochs, config, environment ------------------------------------

function showPictures(folders, place) {
  place.replaceChildren();
  for (const { name, caption, epochs } of folders) {
    const picture = make("img", { alt: "" }), row = make("div", { class: "controls" }, `${name}, after epoch`);
    const choose = ([epoch, source], button) => {
      picture.src = source;
      picture.alt = `${name} after epoch ${epoch}`;
      all("button", row).forEach((other) => other.setAttribute("aria-pressed", other === button));
    };
    for (const item of epochs) {
      const button = make("button", { type: "button", onclick: () => choose(item, button) }, String(item[0]));
      row.append(button);
    }
    place.append(row, ...(caption ? [make("p", { class: "soft" }, caption)] : []), make("div", { class: "epochs" }, picture));
    choose(epochs[epochs.length - 1], row.lastChild);
  }
}

function keys(rows, base) {
  const table = make("table", { class: "keys" });
  for (const [key, value] of rows)
    table.append(make("tr", {}, make("td", {}, key),
      make("td", base && base.get(key) !== value ? { class: "diff" } : {}, value)));
  return table;
}

function show() {
  const index = Number($("#run")?.value ?? 0), run = page.runs[index];
  const decoded = $("#decoded");
  decoded.replaceChildren(...run.decoded.map((one, i) => make("option", { value: i }, one.name)));
  $("#mistakes").hidden = !run.decoded.length;
  decoded.onchange = () => showDecoded(run.decoded[Number(decoded.value)], $("#decoding"));
  if (run.decoded.length) showDecoded(run.decoded[0], $("#decoding"));
  $("#pictures").hidden = !run.pictures.length;
  showPictures(run.pictures, $("#pictures div"));
  const base = $("#baseline") ? page.runs[Number($("#baseline").value)] : null;
  $("#config").replaceChildren(keys(run.config, base && base !== run ? new Map(base.config) : null));
  $("#environment").replaceChildren(keys(run.environment, null));
}
$("#run")?.addEventListener("change", show);

theme();
if (page.runs.length) show();
