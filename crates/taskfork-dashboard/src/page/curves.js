// Curves of the last 15 minutes, and what they mean in words.

import { bytes, clock, duration, median, short } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 900;
const HEIGHT = 100;
// The curves grow to 15 minutes.
const LONGEST = 15 * 60 * 1000;
const SHORTEST = 60 * 1000;
// Points further apart than this are not connected: the server did not answer in between.
const GAP = 5000;

const CHARTS = [
  { title: "Calls per second", show: short, lines: [["calls", "calls"]] },
  { title: "Errors per second", show: short, lines: [["errors", "errors"]] },
  { title: "Time of calls", show: duration, lines: [["p50", "median"], ["p90", "90 %"], ["p99", "99 %"]] },
  { title: "Waiting and busy", show: short, lines: [["busy", "busy workers"], ["queue", "waiting"]] },
  { title: "Memory of all workers", show: bytes, lines: [["memory", "memory"]] },
];

export class Curves {
  constructor(parent) {
    this.charts = CHARTS.map((chart) => ({ ...chart, ...make(parent, chart) }));
  }

  update(points, now) {
    for (const chart of this.charts) draw(chart, points, now);
  }
}

function make(parent, { title, lines }) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = title;
  const value = document.createElement("span");
  caption.append(name, value);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  for (const y of [1, HEIGHT / 2, HEIGHT - 1]) {
    const line = document.createElementNS(SVG, "line");
    line.setAttribute("class", "grid");
    for (const [key, to] of [["x1", 0], ["x2", WIDTH], ["y1", y], ["y2", y]]) line.setAttribute(key, to);
    svg.append(line);
  }
  const legend = document.createElement("div");
  legend.className = "legend";
  const top = document.createElement("span");
  legend.append(top);
  const groups = lines.map(([, label], place) => {
    const group = document.createElementNS(SVG, "g");
    svg.append(group);
    if (lines.length > 1) {
      const entry = document.createElement("span");
      entry.className = "abc"[place];
      entry.textContent = label;
      legend.append(entry);
    }
    return group;
  });
  figure.append(caption, svg, legend);
  parent.append(figure);
  return { svg, groups, top, value };
}

function draw(chart, points, now) {
  const keys = chart.lines.map(([key]) => key);
  const span = Math.min(LONGEST, Math.max(SHORTEST, now - (points[0]?.at ?? now)));
  let most = 0;
  for (const point of points) for (const key of keys) most = Math.max(most, point[key] ?? 0);
  chart.lines.forEach(([key], place) => {
    const pieces = [];
    let piece = [];
    let last = null;
    for (const point of points) {
      const value = point[key];
      if (value === null || value === undefined || (last !== null && point.at - last > GAP)) {
        if (piece.length > 0) pieces.push(piece);
        piece = [];
      }
      last = point.at;
      if (value === null || value === undefined) continue;
      const x = Math.max(0, WIDTH - ((now - point.at) / span) * WIDTH);
      const y = HEIGHT - 2 - (most === 0 ? 0 : value / most) * (HEIGHT - 4);
      piece.push(`${x.toFixed(1)},${y.toFixed(1)}`);
    }
    if (piece.length > 0) pieces.push(piece);
    const group = chart.groups[place];
    while (group.childElementCount > pieces.length) group.lastElementChild.remove();
    while (group.childElementCount < pieces.length) {
      const line = document.createElementNS(SVG, "polyline");
      line.setAttribute("class", "abc"[place]);
      group.append(line);
    }
    pieces.forEach((it, at) => group.children[at].setAttribute("points", it.join(" ")));
  });
  const latest = points.at(-1);
  const values = chart.lines.map(([key, label]) => `${label} ${chart.show(latest?.[key]) || "unknown"}`);
  set(chart.value, chart.show(latest?.[keys[0]]));
  set(chart.top, `from ${clock(now - span)}${most === 0 ? "" : `, top ${chart.show(most)}`}`);
  const text = `${chart.title}: now ${values.join(", ")}; at most ${chart.show(most)} in the last 15 minutes`;
  if (chart.svg.getAttribute("aria-label") !== text) chart.svg.setAttribute("aria-label", text);
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Whether calls take longer than before.
export function slower(points) {
  const now = median(points.slice(-8).map((it) => it.p50));
  const before = median(points.slice(0, -16).map((it) => it.p50));
  if (now === null) return "No call has ended in the last seconds.";
  if (before === null || points.length < 24) return `The median time of a call is ${duration(now)}. It is too early to compare.`;
  const ratio = now / before;
  const both = `the median time of a call is ${duration(now)}, and was ${duration(before)} before`;
  if (ratio > 1.5) return `Calls are getting slower: ${both} (${short(ratio)} times). Other methods than before have that effect too.`;
  if (ratio < 1 / 1.5) return `Calls are getting faster: ${both}.`;
  return `Calls take as long as before: ${both}.`;
}

// Whether the memory of a worker grows. That of all grows with their number.
export function grows(points) {
  const known = points.filter((it) => it.memory > 0 && it.workers > 0).map((it) => ({ at: it.at, memory: it.memory / it.workers }));
  if (known.length < 10) return "It is too early to say whether memory grows.";
  const first = known.slice(0, Math.max(3, Math.floor(known.length / 10)));
  const before = median(first.map((it) => it.memory));
  const now = median(known.slice(-3).map((it) => it.memory));
  const both = `from ${bytes(before)} a worker at ${clock(first[0].at)} to ${bytes(now)} now`;
  if (now > before * 1.3 && now - before > 4 * 1024 * 1024) return `Memory grows: ${both} (${short(now / before)} times).`;
  if (now < before / 1.3) return `Memory has become less: ${both}.`;
  return `Memory does not grow: ${both}.`;
}
