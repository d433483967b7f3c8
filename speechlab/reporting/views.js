"use strict";
// The four views of an experiment's mistakes (scoring/views.py): classes, aligned, trials, audio. Part of page.js's
// script, whose make, all, short and ticks they use.

// A player loads nothing until it is used: a page may have hundreds, and a browser plays only so many.
function player(key, label) {
  return make("audio", { controls: "", preload: "none", src: page.media[key], "aria-label": label });
}
document.addEventListener("play", (event) => { // only one sound at a time
  for (const other of all("audio")) if (other !== event.target) other.pause();
}, true);

// A card's picture, or the spectrogram of its sound: with a player it is grey on white, which dark pages turn over.
function picture(item, alt) {
  return make("img", { src: page.media[item.picture], alt, ...(item.clip ? { class: "spectrogram" } : {}) });
}

// What any card, item or track may carry; its text comes last.
function carried(item, label) {
  const parts = [];
  if (item.picture) parts.push(picture(item, label));
  if (item.clip) parts.push(player(item.clip, label));
  (item.clips ?? []).forEach((clip, i) => parts.push(player(clip, `${label}, ${i + 1}`)));
  if (item.text) parts.push(make("div", { class: "text" }, item.text));
  return parts;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function card(item) {
  const parts = carried(item, `${item.ref}, taken for ${item.hyp}`), text = item.text ? [parts.pop()] : [];
  const took = make("div", { class: "took" }, `${item.ref} \u2192 `, make("i", {}, item.hyp));
  const figure = make("figure", { title: item.id }, ...parts, took);
  if (item.prob !== null) figure.append(make("div", { class: "soft" }, percent(item.prob)));
  if (item.prob_ref !== null) figure.append(make("div", { class: "soft" }, `${item.ref} ${percent(item.prob_ref)}`));
  figure.append(...text);
  return figure;
}

function matrix(decoded, gallery, note) {
  const { classes, counts } = decoded, n = classes.length;
  const worst = Math.max(1, ...counts.flatMap((row, i) => row.filter((_, j) => i !== j)));
  const head = make("tr", {}, make("th", { title: "rows: true, columns: answered" }));
  classes.forEach((name) => head.append(make("th", {}, make("span", {}, name))));
  const table = make("table", { class: "matrix", "aria-label": "confusion matrix: rows are true, columns answered" },
    make("thead", {}, head));
  const body = make("tbody", {});
  counts.forEach((row, i) => {
    const total = row.reduce((a, b) => a + b, 0);
    const line = make("tr", {}, make("th", {}, classes[i]));
    row.forEach((count, j) => {
      const cell = make("td", { title: `${classes[i]} \u2192 ${classes[j]}: ${count}` }, count && n <= 12 ? String(count) : "");
      const share = i === j ? 0.12 + 0.5 * (count / (total || 1)) : count ? 0.15 + 0.75 * Math.sqrt(count / worst) : 0;
      if (share) cell.style.background = `rgba(var(--${i === j ? "right" : "miss"}), ${share.toFixed(2)})`;
      cell.addEventListener("click", () => {
        const again = cell.getAttribute("aria-selected") === "true";
        all("td", table).forEach((other) => other.setAttribute("aria-selected", false));
        cell.setAttribute("aria-selected", !again);
        note.textContent = again ? "" : `${classes[i]} taken for ${classes[j]}: ${count} of ${total} `
          + `(${total ? ((100 * count) / total).toFixed(2) : 0} %)`;
        gallery(again ? null : [classes[i], classes[j]]);
      });
      line.append(cell);
    });
    body.append(line);
  });
  table.append(body);
  return table;
}

function showClasses(decoded, place) {
  const note = make("p", { class: "soft", role: "status" });
  const cards = make("div", { class: `gallery${decoded.cards.some((item) => item.clip) ? " wide" : ""}` });
  const caption = make("h3", {});
  const gallery = (pair) => {
    const wanted = decoded.cards.filter((item) => !pair || (item.ref === pair[0] && item.hyp === pair[1]));
    caption.textContent = pair ? `Mistakes: ${pair[0]} taken for ${pair[1]}` : "Worst mistakes";
    cards.replaceChildren(...wanted.map(card));
    if (!wanted.length) cards.append(make("p", { class: "soft" }, pair ? "none among those kept here" : "none"));
  };
  const two = make("div", { class: "two" });
  if (decoded.counts)
    two.append(make("div", {}, make("h3", {}, "Confusion matrix"), make("p", { class: "soft" },
      "Rows: what it is. Columns: the answer. A field chooses the cards below."),
      make("div", { class: "scroll" }, matrix(decoded, gallery, note)), note));
  if (decoded.pairs.length)
    two.append(make("div", {}, make("h3", {}, "Most often"), make("table", {}, ...decoded.pairs.map(([ref, hyp, count]) =>
      make("tr", {}, make("td", {}, `${ref} \u2192 ${hyp}`), make("td", { class: "num" }, String(count)))))));
  const shares = decoded.n === null || decoded.errors === null ? String(decoded.cards.length)
    : `${decoded.cards.length} of ${decoded.errors} errors on ${decoded.n} items`;
  place.append(two, caption, make("p", { class: "soft" },
    `What the network was surest of, and wrong: ${shares}. True class \u2192 answer, and how sure it was.`), cards);
  gallery(null);
}

function showAligned(decoded, place) {
  place.append(make("p", { class: "soft" }, "Above what it is, below the answer; what differs is marked."));
  for (const item of decoded.items) {
    const line = make("div", { class: "pairs" });
    for (const [ref, hyp, off] of item.pairs)
      line.append(make("span", off ? { class: "off" } : {}, make("small", { class: "ref" }, ref || "\u00b7"),
        make("small", { class: "hyp" }, hyp || "\u00b7")));
    const sound = carried(item, item.title);
    place.append(make("div", { class: "aligned" }, make("div", { class: "soft" }, item.title), line,
      ...(sound.length ? [make("div", { class: "sound" }, ...sound)] : [])));
  }
}

// ---- trials: histograms and DET

// The normal distribution's quantile (Acklam's rational approximation, off by 1e-9): DET curves have such axes.
function probit(p) {
  const ratio = (x, over, under) => over.reduce((sum, k) => sum * x + k, 0) / under.reduce((sum, k) => sum * x + k, 0);
  const far = [-7.784894002430293e-3, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968,
    2.938163982698783];
  const farUnder = [7.784695709041462e-3, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1];
  if (p < 0.02425) return ratio(Math.sqrt(-2 * Math.log(p)), far, farUnder);
  if (p > 1 - 0.02425) return -ratio(Math.sqrt(-2 * Math.log(1 - p)), far, farUnder);
  const q = p - 0.5;
  return q * ratio(q * q, [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269,
    -30.66479806614716, 2.506628277459239], [-54.47609879822406, 161.5858368580409, -155.6989798598866,
    66.80131188771972, -13.28068155288572, 1]);
}

// An empty plot with its axes: where its drawing goes, and what turns values into places.
function plot(label, width, height, xs, ys, scale, xTicks, yTicks, xName, yName) {
  const box = { left: 44, right: width - 10, top: 20, bottom: height - 36 };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.style.maxWidth = `${width}px`;
  const at = (value, [low, high], from, to) => from + ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (to - from);
  const px = (x) => at(x, xs, box.left, box.right), py = (y) => at(y, ys, box.bottom, box.top);
  for (const y of yTicks) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: py(y), y2: py(y) }));
    svg.append(make("text", { x: box.left - 6, y: py(y) + 4, "text-anchor": "end" }, short(Number(y.toPrecision(12)))));
  }
  for (const x of xTicks) {
    svg.append(make("line", { class: "grid", x1: px(x), x2: px(x), y1: box.top, y2: box.bottom }));
    svg.append(make("text", { x: px(x), y: box.bottom + 16, "text-anchor": "middle" }, short(Number(x.toPrecision(12)))));
  }
  svg.append(make("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  svg.append(make("text", { x: box.right, y: height - 3, "text-anchor": "end" }, xName));
  svg.append(make("text", { x: 2, y: 11 }, yName));
  return { svg, px, py, box };
}

function histograms({ target, nontarget, edges, threshold }, width) {
  const share = (counts) => { // of its own kind: there are many more non-targets than targets
    const total = counts.reduce((a, b) => a + b, 0) || 1;
    return counts.map((count) => (100 * count) / total);
  };
  const kinds = [["nontarget", "non-target", share(nontarget)], ["target", "target", share(target)]];
  const top = 1.05 * Math.max(1, ...kinds.flatMap(([, , shares]) => shares));
  const ends = [edges[0], edges[edges.length - 1]];
  if (threshold !== null) [ends[0], ends[1]] = [Math.min(ends[0], threshold), Math.max(ends[1], threshold)];
  const { svg, px, py, box } = plot("histograms of the scores", width, 240, ends, [0, top], (v) => v,
    ticks(...ends, 6), ticks(0, top, 4), "score", "% of the trials of a kind");
  for (const [kind, name, shares] of kinds) {
    const corners = shares.map((y, i) => `L${px(edges[i]).toFixed(1)} ${py(y).toFixed(1)}L${px(edges[i + 1]).toFixed(1)} ${py(y).toFixed(1)}`);
    const d = `M${px(edges[0]).toFixed(1)} ${py(0)}${corners.join("")}L${px(edges[edges.length - 1]).toFixed(1)} ${py(0)}Z`;
    svg.append(make("path", { d, class: `histogram ${kind}`, "aria-label": name }));
  }
  if (threshold !== null) {
    const left = px(threshold) > (box.left + box.right) / 2;
    svg.append(make("line", { class: "threshold", x1: px(threshold), x2: px(threshold), y1: box.top, y2: box.bottom }));
    svg.append(make("text", { x: px(threshold) + (left ? -5 : 5), y: box.top + 10, "text-anchor": left ? "end" : "start" },
      `threshold ${short(threshold)}`));
  }
  return svg;
}

const DET_TICKS = [0.01, 0.1, 0.5, 2, 5, 10, 20, 40, 60, 80, 95];

// `det`: pairs in %, neither 0 nor 100, which such axes have no place for.
function detCurve(det, width) {
  const equal = Math.min(...det.map(([x, y]) => Math.max(x, y)));
  const high = Math.min(99.9, Math.max(60, 1.5 * equal));
  const inside = det.filter(([x, y]) => x <= high && y <= high);
  const low = Math.max(0.005, Math.min(1, ...inside.flat()) / 1.3);
  const within = DET_TICKS.filter((p) => p >= low && p <= high);
  const { svg, px, py } = plot("DET curve", width, Math.min(340, width), [low, high], [low, high], (p) => probit(p / 100),
    within, within, "false accepts, %", "misses, %");
  svg.append(make("line", { class: "even", x1: px(low), y1: py(low), x2: px(high), y2: py(high) }));
  const seen = inside.filter(([x, y]) => x >= low && y >= low);
  svg.append(make("path", { class: "det",
    d: seen.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("") }));
  return svg;
}

function showTrials(decoded, place) {
  const two = make("div", { class: "two plots" }), room = place.clientWidth || 520;
  place.append(two);
  const key = (kind, name) => make("span", {}, make("span", { class: `swatch ${kind}` }), name);
  if (decoded.edges)
    two.append(make("div", {}, make("h3", {}, "Scores"), histograms(decoded, Math.min(540, room)),
      make("div", { class: "legend" }, key("target", "target"), key("nontarget", "non-target"))));
  const det = decoded.det.filter((pair) => pair.every((p) => p > 0 && p < 100));
  if (det.length > 1)
    two.append(make("div", {}, make("h3", {}, "DET curve"), detCurve(det, Math.min(420, room)),
      make("p", { class: "soft" }, "The nearer to the lower left, the better; the broken line is where both are equal.")));
  if (!decoded.cards.length) return;
  const cards = make("div", { class: "gallery wide" });
  for (const item of decoded.cards)
    cards.append(make("figure", {}, make("div", { class: "took" }, `${short(item.score)} `, item.target
      ? make("i", { class: "target" }, "target") : make("i", { class: "nontarget" }, "non-target")),
    make("div", { class: "soft" }, item.id), ...carried(item, item.id)));
  place.append(make("h3", {}, "Worst pairs"), make("p", { class: "soft" },
    "Targets with a low score, and non-targets with a high one."), cards);
}

// ---- items with figures and sounds

function figureText(value, decimals) {
  if (value === undefined) return "";
  return value.toFixed(value === 0 || Math.abs(value) >= 10 ** (1 - decimals) ? decimals : decimals + 2);
}

function showAudio(decoded, place) {
  const table = make("table", { class: "items" }), head = make("tr", {}, make("th", {}, "item"));
  for (const column of decoded.columns) {
    const name = column.unit ? `${column.label}, ${column.unit}` : column.label;
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => { // the worst first; then the best
      const worst = column.lower === false ? 1 : -1, order = button.dataset.order === "worst" ? -worst : worst;
      all("button", head).forEach((other) => { if (other !== button) delete other.dataset.order; });
      button.dataset.order = order === worst ? "worst" : "best";
      const value = (body) => body.item.figures[column.name];
      table.append(...all("tbody", table).sort((a, b) => {
        if (value(a) === undefined || value(b) === undefined) return (value(a) === undefined) - (value(b) === undefined);
        return order * (value(a) - value(b));
      }));
    });
    head.append(make("th", { class: "num" }, button));
  }
  const first = $("button", head);
  if (first && decoded.columns[0].lower !== null) first.dataset.order = "worst"; // so they stand in the file
  table.append(make("thead", {}, head));
  for (const item of decoded.items) {
    const own = carried(item, item.title);
    const body = make("tbody", {}, make("tr", {}, make("td", {}, make("div", {}, item.title), ...own),
      ...decoded.columns.map((column) => make("td", { class: "num" }, figureText(item.figures[column.name], column.decimals)))));
    body.item = item;
    if (item.tracks.length) {
      const tracks = make("div", { class: "tracks" }, ...item.tracks.map((track) =>
        make("figure", {}, make("figcaption", {}, track.name), ...carried(track, `${item.title}: ${track.name}`))));
      body.append(make("tr", {}, make("td", { colspan: 1 + decoded.columns.length }, tracks)));
    }
    table.append(body);
  }
  const sorted = decoded.columns.length ? " A figure's name sorts by it, the worst first." : "";
  place.append(make("p", { class: "soft" }, `${decoded.items.length} items.${sorted}`), make("div", { class: "scroll sounds" }, table));
}

const VIEWS = { classes: showClasses, aligned: showAligned, trials: showTrials, audio: showAudio };
function showDecoded(decoded, place) {
  place.replaceChildren();
  VIEWS[decoded.view](decoded, place);
}
