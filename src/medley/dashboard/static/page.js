// The page: keeps what the coordinator said, and writes it into tables. Only textContent is ever written.

import { chart, short } from "/chart.js";
import { chatBox } from "/chat.js";
import { servingBox } from "/served.js";
import { Refused, key, stream } from "/stream.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = [500, 1000, 2000, 5000];
const CURVE_POINTS_MAX = 4000;
const DECISIONS_MAX = 100;

const state = { cluster: {}, nodes: new Map(), jobs: new Map(), curves: {}, decisions: [], models: [], servings: [],
  skewMs: 0 };
let dirty = false;

function take(snapshot) {
  state.cluster = snapshot.cluster || {};
  state.skewMs = (snapshot.now_ms || Date.now()) - Date.now();
  state.nodes = new Map((snapshot.nodes || []).map((n) => [n.id, n]));
  state.jobs = new Map((snapshot.jobs || []).map((j) => [j.id, j]));
  state.curves = snapshot.curves || {};
  state.decisions = snapshot.decisions || [];
  state.models = snapshot.models || [];
  state.servings = snapshot.servings || [];
}

const changes = {
  snapshot: (event) => take(event.snapshot),
  node: ({ node }) => state.nodes.set(node.id, node),
  node_gone: ({ id }) => state.nodes.delete(id),
  job: ({ job }) => state.jobs.set(job.id, job),
  models: ({ models }) => { state.models = models; },
  servings: ({ servings }) => { state.servings = servings; },
  decision: ({ decision }) => {
    state.decisions = [...state.decisions, decision].slice(-DECISIONS_MAX);
  },
  points: ({ job, curve, points }) => {
    const curves = (state.curves[job] ||= {});
    const known = (curves[curve] ||= []);
    const last = known.length ? known[known.length - 1][0] : -Infinity;
    known.push(...points.filter(([x]) => x > last));
    if (known.length > CURVE_POINTS_MAX) curves[curve] = known.filter((_, i) => i % 2 === 0 || i === known.length - 1);
  },
};

function redraw() {
  if (dirty) return;
  dirty = true;
  requestAnimationFrame(() => {
    dirty = false;
    render();
  });
}

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function badge(word) {
  const node = element("span", "badge", word);
  node.dataset.state = word;
  return node;
}

function cell(row, content, className) {
  const node = element("td", className);
  node.append(content instanceof Node ? content : String(content ?? "–"));
  row.append(node);
}

function progress(fraction) {
  if (fraction === null || fraction === undefined) return "–";
  const box = element("span", "progress");
  const bar = element("progress");
  bar.max = 1;
  bar.value = fraction;
  box.append(bar, ` ${Math.floor(fraction * 100)} %`);
  return box;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(s / 86400)} d`;
}

function ago(ms) {
  if (!ms) return "never";
  const seconds = (Date.now() + state.skewMs - ms) / 1000;
  return seconds < 2 ? "now" : `${duration(seconds)} ago`;
}

function fill(body, rows, columns, emptyText) {
  if (rows.length) return body.replaceChildren(...rows);
  const row = element("tr");
  const only = element("td", "empty", emptyText);
  only.colSpan = columns;
  row.append(only);
  body.replaceChildren(row);
}

// What runs stands first, then what waits, then what is over.
function rank(job) {
  return job.state === "running" ? 0 : job.started_ms ? 2 : 1;
}

function jobRow(job) {
  const row = element("tr");
  const name = element("span", "", job.name);
  name.title = job.id;
  if (job.reason) name.append(element("span", "why", job.reason));
  cell(row, name);
  cell(row, badge(job.state));
  cell(row, progress(job.progress));
  cell(row, job.commits, "n");
  cell(row, short(job.loss), "n");
  cell(row, short(job.heldout_loss), "n");
  cell(row, short(job.tokens_per_s), "n");
  cell(row, duration(job.left_s), "n");
  return row;
}

function nodeRow(node) {
  const row = element("tr");
  const name = element("span", "", node.name);
  name.title = node.id;
  cell(row, name);
  cell(row, (node.roles || []).join(", ") || "–");
  cell(row, badge(node.state));
  cell(row, short(node.tokens_per_s), "n");
  cell(row, ago(node.seen_ms), "n");
  cell(row, node.reason || "", "why");
  return row;
}

function decisionItem(decision) {
  const item = element("li");
  const at = element("time", "", new Date(decision.at_ms).toLocaleTimeString());
  at.dateTime = new Date(decision.at_ms).toISOString();
  item.append(at, element("b", "", decision.subject), " ", decision.decision);
  if (decision.reason) item.append(element("span", "why", ` because ${decision.reason}`));
  return item;
}

function choose(select, options) {
  const wanted = JSON.stringify(options);
  if (select.dataset.options === wanted) return;
  const chosen = select.value;
  select.dataset.options = wanted;
  select.replaceChildren(...options.map(([value, label]) => {
    const option = element("option", "", label);
    option.value = value;
    return option;
  }));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
  select.disabled = options.length === 0;
}

function figures(jobs, nodes) {
  const running = jobs.filter((j) => j.state === "running");
  const working = nodes.filter((n) => n.state === "working" || n.state === "serving").length;
  const speed = running.reduce((sum, j) => sum + (j.tokens_per_s || 0), 0);
  const shown = state.jobs.get($("shown-job").value);
  const values = {
    machines: `${working} of ${nodes.length}`,
    jobs: String(running.length),
    speed: running.length ? short(speed) : "–",
    heldout: shown ? short(shown.heldout_loss) : "–",
  };
  for (const [name, value] of Object.entries(values)) {
    document.querySelector(`[data-figure="${name}"]`).textContent = value;
  }
}

function charts() {
  const curves = state.curves[$("shown-job").value] || {};
  chart($("loss-chart"), [
    { name: "training", className: "first", points: curves.loss || [] },
    { name: "held-out", className: "second", points: curves.heldout_loss || [] },
  ], { unit: "loss [nats/token]", empty: "no loss yet" });
  chart($("speed-chart"), [
    { name: "all workers", className: "third", points: curves.tokens_per_s || [] },
  ], { unit: "tokens/s", fromZero: true, empty: "no tokens yet" });
}

function render() {
  const jobs = [...state.jobs.values()].sort((a, b) => rank(a) - rank(b) || (b.started_ms || 0) - (a.started_ms || 0));
  const nodes = [...state.nodes.values()].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  $("cluster").textContent = [state.cluster.name, state.cluster.address, state.cluster.version].filter(Boolean).join(" · ");
  choose($("shown-job"), jobs.map((j) => [j.id, j.name]));
  choose($("model"), state.models.map((m) => [m, m]));
  $("send").disabled = $("question").disabled = state.models.length === 0;
  $("question").placeholder = state.models.length ? "Ask the model a question" : "No model is served yet";
  figures(jobs, nodes);
  charts();
  fill($("jobs"), jobs.map(jobRow), 8, "No job yet: medley train JOB.yaml starts one.");
  fill($("nodes"), nodes.map(nodeRow), 6, "No machine yet: medley join adds one.");
  $("served").hidden = state.servings.length === 0;
  $("servings").replaceChildren(...state.servings.map(servingBox));
  $("decisions").replaceChildren(...[...state.decisions].reverse().map(decisionItem));
  if (!state.decisions.length) $("decisions").append(element("li", "empty", "No decision yet."));
}

function connection(word, sentence) {
  $("connection").dataset.state = word;
  $("connection").textContent = sentence;
}

async function follow() {
  for (let attempt = 0; ; attempt++) {
    try {
      for await (const event of stream("/api/events")) {
        attempt = 0;
        $("door").hidden = true;
        connection("live", "live");
        changes[event.kind]?.(event);
        redraw();
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        connection("lost", "locked");
        $("door").hidden = false;
        return;
      }
    }
    connection("lost", "no connection, trying again…");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
  }
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  follow();
});
$("shown-job").addEventListener("change", redraw);
chatBox({ talk: $("talk"), form: $("ask"), question: $("question"), send: $("send"), model: $("model") });
setInterval(redraw, 5000); // "last seen" grows even when nothing happens
follow();
