// A line chart in SVG: axes with units, a legend, and the values under the pointer. Colours come from the style sheet.

const NS = "http://www.w3.org/2000/svg";
const BOX = { width: 560, height: 240, left: 56, right: 12, top: 10, bottom: 38 };
const POINTS_MAX = 700;

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

export function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) || 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size >= 100) return String(Math.round(value));
  return String(+value.toPrecision(3));
}

// Seconds as an axis reads best: the unit fits the whole span.
function timeScale(span) {
  if (span < 180) return { unit: "s", seconds: 1 };
  if (span < 3 * 3600) return { unit: "min", seconds: 60 };
  return { unit: "h", seconds: 3600 };
}

function thinned(points) {
  const every = Math.ceil(points.length / POINTS_MAX);
  return every < 2 ? points : points.filter((_, i) => i % every === 0 || i === points.length - 1);
}

function range(values, fromZero) {
  let low = fromZero ? 0 : Math.min(...values);
  let high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  if (!fromZero) low -= room;
  high += room;
  return [low, high];
}

// series: [{name, className, points: [[seconds, value], ...]}]; options: {unit, fromZero, empty}
export function chart(host, series, { unit, fromZero = false, empty = "nothing yet" }) {
  const lines = series
    .map((s) => ({ ...s, points: thinned(s.points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y))) }))
    .filter((s) => s.points.length > 0);
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${BOX.width} ${BOX.height}`);
  svg.setAttribute("role", "img");
  const all = lines.flatMap((s) => s.points);
  if (all.length === 0) {
    draw(svg, "text", { x: BOX.width / 2, y: BOX.height / 2, class: "empty" }, empty);
    host.replaceChildren(svg);
    return;
  }
  const time = timeScale(Math.max(...all.map(([x]) => x)));
  const [x0, x1] = [0, Math.max(...all.map(([x]) => x), 1e-9)];
  const [y0, y1] = range(all.map(([, y]) => y), fromZero);
  const toX = (x) => BOX.left + ((x - x0) / (x1 - x0)) * (BOX.width - BOX.left - BOX.right);
  const toY = (y) => BOX.height - BOX.bottom - ((y - y0) / (y1 - y0)) * (BOX.height - BOX.top - BOX.bottom);

  for (const y of ticks(y0, y1, 4)) {
    draw(svg, "line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: toY(y), y2: toY(y), class: "grid" });
    draw(svg, "text", { x: BOX.left - 7, y: toY(y) + 4, class: "tick end" }, short(y));
  }
  for (const t of ticks(x0 / time.seconds, x1 / time.seconds, 6)) {
    const x = toX(t * time.seconds);
    draw(svg, "line", { x1: x, x2: x, y1: BOX.height - BOX.bottom, y2: BOX.height - BOX.bottom + 4, class: "axis" });
    draw(svg, "text", { x, y: BOX.height - BOX.bottom + 16, class: "tick middle" }, short(t));
  }
  const floor = BOX.height - BOX.bottom;
  draw(svg, "line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: floor, y2: floor, class: "axis" });
  draw(svg, "text", { x: BOX.width - BOX.right, y: BOX.height - 6, class: "tick end" }, `time since start [${time.unit}]`);
  draw(svg, "text", { x: 12, y: (BOX.top + floor) / 2, class: "tick middle",
    transform: `rotate(-90 12 ${(BOX.top + floor) / 2})` }, unit);

  for (const s of lines) {
    const path = s.points.map(([x, y], i) => `${i ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("");
    draw(svg, "path", { d: path, class: `line ${s.className}` });
    if (s.points.length < 40) {
      for (const [x, y] of s.points) draw(svg, "circle", { cx: toX(x), cy: toY(y), r: 2.4, class: `dot ${s.className}` });
    }
  }
  let at = BOX.left + 4;
  for (const s of lines) {
    draw(svg, "line", { x1: at, x2: at + 18, y1: BOX.height - 10, y2: BOX.height - 10, class: `line ${s.className}` });
    at += 24 + draw(svg, "text", { x: at + 23, y: BOX.height - 6, class: "tick" }, s.name).textContent.length * 6.2 + 16;
  }
  pointer(svg, lines, toX, toY, time);
  host.replaceChildren(svg);
}

function pointer(svg, lines, toX, toY, time) {
  const mark = draw(svg, "line", { y1: BOX.top, y2: BOX.height - BOX.bottom, class: "pointer" });
  const label = draw(svg, "text", { y: BOX.top + 8, class: "tick value" });
  svg.addEventListener("pointermove", (event) => {
    const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const nearest = lines.map((s) => ({
      name: s.name,
      point: s.points.reduce((a, b) => (Math.abs(toX(b[0]) - inside.x) < Math.abs(toX(a[0]) - inside.x) ? b : a)),
    }));
    const x = toX(nearest[0].point[0]);
    mark.setAttribute("x1", x);
    mark.setAttribute("x2", x);
    label.setAttribute("x", x > BOX.width / 2 ? x - 6 : x + 6);
    label.setAttribute("text-anchor", x > BOX.width / 2 ? "end" : "start");
    const seconds = nearest[0].point[0] / time.seconds;
    label.textContent = [`${short(seconds)} ${time.unit}`, ...nearest.map((n) => `${n.name} ${short(n.point[1])}`)].join(" · ");
    svg.classList.add("pointed");
  });
  svg.addEventListener("pointerleave", () => svg.classList.remove("pointed"));
}
