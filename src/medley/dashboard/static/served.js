// What the pool serves: each pipeline as a row of stages, in the order in which a token visits them.

import { short } from "/chart.js";

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function nbytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit++) number /= 1024;
  return `${unit ? number.toFixed(1) : number} ${units[unit]}`;
}

const ms = (seconds) => `${(seconds * 1e3).toFixed(1)} ms`;

function facts(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    list.append(pair);
  }
  return list;
}

function stageBox(stage, last) {
  const box = element("li", "stage");
  const head = element("div", "stage-head");
  head.append(element("b", "", stage.machine), element("span", "", `layers ${stage.first}–${stage.last}`));
  const busy = element("meter");
  busy.max = 1;
  busy.value = stage.busy;
  busy.title = `busy ${Math.round(100 * stage.busy)} % of the last second`;
  const pairs = [
    ["pass", ms(stage.pass_s)],
    ["busy", `${Math.round(100 * stage.busy)} %`],
    ["queue", String(stage.queue)],
    ["KV", nbytes(stage.kv_nbytes)],
    ["memory", nbytes(stage.memory_nbytes)],
    ["reserve", stage.reserve || "none"],
  ];
  box.append(head, busy, facts(last || stage.rtt_s === null ? pairs : [...pairs, ["to the next", `${ms(stage.rtt_s)}, ${nbytes(stage.bytes_per_s)}/s`]]));
  return box;
}

function pipelineRow(pipeline) {
  const box = element("div", "pipeline");
  const words = [
    `generation ${pipeline.generation}`,
    `${pipeline.requests} requests`,
    `${pipeline.in_flight} batches in flight`,
    `${ms(pipeline.link_s)} of ${ms(pipeline.latency_s)} on links`,
  ];
  if (pipeline.recomputed) words.push(`${pipeline.recomputed} tokens computed again`);
  const head = element("p", "pipeline-head");
  const state = element("span", "badge", pipeline.state);
  state.dataset.state = pipeline.state;
  head.append(element("b", "", pipeline.name), " ", state, ` ${words.join(" · ")}`);
  const stages = element("ol", "stages");
  stages.append(...pipeline.stages.map((stage, i) => stageBox(stage, i === pipeline.stages.length - 1)));
  box.append(head, stages);
  return box;
}

function decisionItem(decision) {
  const item = element("li");
  const at = element("time", "", new Date(decision.at_ms).toLocaleTimeString());
  at.dateTime = new Date(decision.at_ms).toISOString();
  item.append(at, element("b", "", decision.subject), " ", decision.decision);
  return item;
}

function where(serving) {
  if (!serving.url) return "";
  return serving.keyed ? `${serving.url} (wants its key)` : serving.url;
}

export function servingBox(serving) {
  const box = element("div", "serving");
  const head = element("p", "serving-head");
  const state = element("span", "badge", serving.state);
  state.dataset.state = serving.state;
  const name = element("b", "", serving.name);
  name.title = serving.id;
  const words = [`${short(serving.tokens_per_s)} tokens/s`, `${serving.waiting} waiting`, where(serving)];
  head.append(name, " ", state, ` ${words.filter(Boolean).join(" · ")}`);
  box.append(head);
  if (serving.reason) box.append(element("p", "note", serving.reason));
  box.append(...serving.pipelines.map(pipelineRow));
  if (serving.spare.length) {
    const spare = serving.spare.map((machine) => `${machine.name} (${machine.state})`).join(", ");
    box.append(element("p", "note", `Beside them: ${spare}`));
  }
  if (serving.decisions.length) {
    const list = element("ol", "decisions");
    list.append(...[...serving.decisions].reverse().map(decisionItem));
    box.append(list);
  }
  return box;
}
