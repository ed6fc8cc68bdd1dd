"use strict";
// A plot asks the service for the minimum and maximum of each column of pixels of the rows that are shown; it never has
// more of an array than that. `first` and `last` are the rows shown, `rows` all there are.

const TILE = 256;
const HEIGHT = { plain: 280, gadget: 220 };
const KEPT_TILES = 96;
const CREDENTIALS = tokenOfGadget();
// for ticks that are so far apart: the text, and what is added where the year, month, day, hour, minute or second changes
const DAY = "\n{YYYY}-{MM}-{DD}", MINUTE = `${DAY} {HH}:{mm}`;
const TIMES = [
  [365 * 86400e3, "{YYYY}", null, null, null, null, null, null, 1],
  [28 * 86400e3, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
  [86400e3, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
  [60e3, "{HH}:{mm}", DAY, null, DAY, null, null, null, 1],
  [1e3, "{HH}:{mm}:{ss}", DAY, null, DAY, null, null, null, 1],
  [1, ":{ss}.{fff}", MINUTE, null, MINUTE, null, MINUTE, null, 1],
];

for (const figure of document.querySelectorAll("figure.plot")) {
  new Plot(figure).show();
}

function tokenOfGadget() {
  const token = new URLSearchParams(location.search).get("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function ask(path, query, signal) {
  return fetch(`${path}?${new URLSearchParams(query)}`, { headers: CREDENTIALS, signal });
}

function Plot(figure) {
  const own = (selector) => figure.querySelector(selector);
  const { name, units } = figure.dataset;
  const place = own(".drawing");
  const select = own("select.column");
  const readout = own(".readout");
  const told = own(".source");
  const sonogram = own(".sonogram") ? new Sonogram(own(".sonogram"), name, Number(figure.dataset.rate)) : null;
  const height = document.querySelector(".gadget") ? HEIGHT.gadget : HEIGHT.plain;
  let rows = Number(figure.dataset.rows);
  let first = 0, last = rows;
  let found = null, chart = null, asking = null, waiting = null;

  const column = () => (select ? select.value : "");
  const width = () => Math.max(120, place.clientWidth || figure.clientWidth);

  this.show = async () => {
    asking?.abort();
    asking = new AbortController();
    const mine = asking, began = performance.now();
    figure.dataset.state = "loading";
    try {
      const query = { name, start: first, stop: last, width: Math.min(4096, Math.round(width())), column: column() };
      const answer = await ask("/plot", query, mine.signal);
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.error.message);
      if (mine !== asking) return;
      found = body;
      rows = body.rows;
      draw();
      tell();
      figure.dataset.ms = (performance.now() - began).toFixed(1);
      figure.dataset.state = "ready";
      // uPlot lays itself out in a task of its own
      setTimeout(() => sonogram?.show(first, last, column(), chart));
    } catch (error) {
      if (error.name === "AbortError") return;
      figure.dataset.state = "failed";
      told.textContent = error.message;
      told.className = "source failed";
    }
  };

  function tell() {
    Object.assign(figure.dataset, { start: found.start, stop: found.stop, step: found.step, source: found.source });
    const each = found.step === 1 ? "every row" : `${count(found.step)} rows a column`;
    const how = { rows: `${each}, read as they are`, pyramid: `${each}, from the pyramid`, sample: `a sample of ${each}: peaks may be missing; add the transformation minmax` };
    told.textContent = how[found.source];
    told.className = `source ${found.source}`;
  }

  // -- drawing

  function draw() {
    const data = [found.x, found.low, found.high];
    const range = [at(first), at(last)];
    if (chart) {
      chart.batch(() => {
        chart.setData(data, false);
        chart.setScale("x", { min: range[0], max: range[1] });
      });
      return;
    }
    chart = new uPlot(options(range), data, place);
    chart.over.addEventListener("wheel", turn, { passive: false });
    chart.over.addEventListener("dblclick", () => go(0, rows));
  }

  function options(range) {
    const colour = (what) => getComputedStyle(document.documentElement).getPropertyValue(what).trim();
    const wave = { stroke: colour("--wave"), width: 1.2, points: { size: 4, fill: colour("--wave") } };
    const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const labels = { seconds: "seconds", rows: "row", time: `${found.x_label}, UTC` };
    return {
      width: width(), height, ms: 1, legend: { show: false },
      tzDate: (milliseconds) => uPlot.tzDate(new Date(milliseconds), "Etc/UTC"),
      scales: { x: { time: found.x_kind === "time", range: (_u, low, high) => [low, high], min: range[0], max: range[1] } },
      series: [{}, { ...wave }, { ...wave }],
      bands: [{ series: [2, 1], fill: colour("--wave-fill") }],
      axes: [
        { ...axis, label: labels[found.x_kind], labelSize: 18, labelFont: axis.font, size: 38, space: 70, values: found.x_kind === "time" ? TIMES : (_u, places) => places.map(count) },
        { ...axis, label: units || undefined, labelSize: 18, labelFont: axis.font, size: room, values: (_u, places) => places.map(count) },
      ],
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => null } },
      hooks: { setCursor: [point], setSelect: [choose] },
    };
  }

  function point(u) {
    const number = u.cursor.idx;
    if (number == null || !found || found.low[number] == null) { readout.textContent = ""; return; }
    const low = figures(found.low[number]), high = figures(found.high[number]);
    const value = low === high ? low : `${low} to ${high}`;
    readout.textContent = `${moment(found.x[number])}: ${value}${units ? ` ${units}` : ""}`;
  }

  function moment(place) {
    if (found.x_kind === "time") return new Date(place).toISOString().replace("T", " ").replace(/\.?0*Z$/, "");
    return found.x_kind === "seconds" ? `${figures(place)} s` : `row ${count(place)}`;
  }

  // -- from rows to places on the axis, and back; between two columns by a straight line, and the same beyond the ends

  function at(row) {
    const x = found.x;
    if (x.length === 1) return x[0] + (row - found.start) / Math.max(1, found.step) * (found.x_kind === "time" ? 1000 : 1);
    const place = (row - found.start) / found.step;
    const left = Math.min(x.length - 2, Math.max(0, Math.floor(place)));
    return x[left] + (place - left) * (x[left + 1] - x[left]);
  }

  function rowAt(value) {
    const x = found.x;
    if (x.length < 2) return found.start;
    let left = 0, right = x.length - 1;
    while (right - left > 1) {
      const middle = (left + right) >> 1;
      if (x[middle] <= value) left = middle; else right = middle;
    }
    const length = x[right] - x[left];
    return found.start + (left + (length ? (value - x[left]) / length : 0)) * found.step;
  }

  // -- moving

  const go = (from, to) => {
    const length = Math.min(rows, Math.max(2, Math.round(to - from)));
    const begin = Math.max(0, Math.min(rows - length, Math.round(from)));
    if (begin === first && begin + length === last) return;
    first = begin;
    last = begin + length;
    chart?.setScale("x", { min: at(first), max: at(last) });
    clearTimeout(waiting);
    waiting = setTimeout(this.show, 40);
  };

  function choose(u) {
    if (u.select.width < 4) return;
    const from = rowAt(u.posToVal(u.select.left, "x")), to = rowAt(u.posToVal(u.select.left + u.select.width, "x"));
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    go(from, to);
  }

  function turn(event) {
    event.preventDefault();
    const share = event.offsetX / chart.over.clientWidth;
    zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), share);
  }

  function zoom(factor, share = 0.5) {
    const middle = first + (last - first) * share, length = (last - first) * factor;
    go(middle - length * share, middle + length * (1 - share));
  }

  const half = () => (last - first) / 2;
  const doing = {
    in: () => zoom(0.5), out: () => zoom(2), all: () => go(0, rows),
    back: () => go(first - half(), last - half()), forth: () => go(first + half(), last + half()),
  };
  for (const button of figure.querySelectorAll("button[data-do]")) {
    button.addEventListener("click", doing[button.dataset.do]);
  }
  select?.addEventListener("change", this.show);

  // -- another size, another light

  let lastWidth = width();
  new ResizeObserver(() => {
    if (!chart || Math.abs(width() - lastWidth) < 2) return;
    lastWidth = width();
    chart.setSize({ width: width(), height });
    clearTimeout(waiting);
    waiting = setTimeout(this.show, 150);
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    chart?.destroy();
    chart = null;
    if (found) draw();
  });
}

// -- the spectrogram below a plot: tiles of 256 columns, stretched to the rows that are shown

function Sonogram(box, name, rate) {
  const canvas = box.querySelector("canvas"), paper = canvas.getContext("2d");
  const hertz = box.querySelector(".hertz");
  const kept = new Map();
  let round = 0;
  for (const share of [1, 0.5, 0]) {
    const label = document.createElement("span");
    label.textContent = share ? `${count(rate / 2000 * share)} kHz` : "0";
    hertz.append(label);
  }

  this.show = async (first, last, column, chart) => {
    const mine = ++round, area = chart.over;
    canvas.style.marginLeft = `${area.offsetLeft}px`;
    canvas.style.width = `${area.clientWidth}px`;
    canvas.width = area.clientWidth;
    const zoom = Math.max(0, Math.ceil(Math.log2((last - first) / canvas.width)));
    const length = TILE * 2 ** zoom, scale = canvas.width / (last - first);
    const numbers = [];
    for (let number = Math.floor(first / length); number * length < last; number++) numbers.push(number);
    box.dataset.state = "loading";
    const done = await Promise.all(numbers.map(async (number) => {
      const picture = await tile(zoom, number, column).catch(() => null);
      if (mine !== round || !picture) return !!picture;
      paper.drawImage(picture, (number * length - first) * scale, 0, length * scale, canvas.height);
      return true;
    }));
    if (mine === round) box.dataset.state = done.every(Boolean) ? "ready" : "failed";
  };

  async function tile(zoom, number, column) {
    const key = `${zoom}/${number}/${column}`;
    if (kept.has(key)) return kept.get(key);
    const answer = await ask("/spectrogram", { name, zoom, tile: number, column });
    if (!answer.ok) throw new Error(String(answer.status));
    const picture = await createImageBitmap(await answer.blob());
    if (kept.size >= KEPT_TILES) kept.delete(kept.keys().next().value);
    kept.set(key, picture);
    return picture;
  }
}

// as wide as the longest text beside the axis needs
function room(_u, texts) {
  return 18 + 8 * Math.max(4, ...(texts ?? []).map((text) => text.length));
}

function count(number) {
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-4 || size >= 1e15)) return number.toExponential(2);
  return number.toLocaleString("en", { maximumFractionDigits: size < 1 ? 6 : 3 });
}

function figures(number) {
  return Number.isInteger(number) && Math.abs(number) < 1e15 ? number.toLocaleString("en") : String(Number(number.toPrecision(6)));
}
