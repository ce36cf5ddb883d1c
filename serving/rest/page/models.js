// The models of the server: their inputs and outputs, and their figures from /metrics.

import { ask, modelPath } from "./server.js";
import { makeTrial } from "./trial.js";

const LINE = /^deploy_rnn_(\w+)\{model="((?:[^"\\]|\\.)*)"(?:,outcome="(\w+)")?\} (\S+)$/gm;

const cards = new Map(); // name -> { card, figures }
let before = { time: 0, figures: new Map() };

// -> the names of the models that answer.
export async function refresh() {
  const index = await ask("v2/repository/index", { method: "POST", body: '{"ready": true}' });
  const names = (await index.json()).map((model) => model.name);
  await Promise.all(names.map(add));
  for (const name of cards.keys()) if (!names.includes(name)) remove(name);
  const text = await (await ask("metrics")).text();
  const now = { time: performance.now(), figures: parse(text) };
  for (const [name, figures] of now.figures) draw(name, figures, before.figures.get(name), (now.time - before.time) / 1e3);
  before = now;
  return { names, memory: Number(/^process_resident_memory_bytes (\S+)$/m.exec(text)?.[1] ?? NaN) };
}

// Prometheus' text -> model -> figure -> number.
function parse(text) {
  const figures = new Map();
  for (const [, figure, escaped, outcome, number] of text.matchAll(LINE)) {
    const name = escaped.replace(/\\(.)/g, (_, character) => (character === "n" ? "\n" : character));
    if (!figures.has(name)) figures.set(name, {});
    figures.get(name)[outcome ?? figure] = Number(number);
  }
  return figures;
}

async function add(name) {
  if (cards.has(name)) return;
  const model = await describe(name);
  if (cards.has(name)) return;
  const card = document.getElementById("model").content.firstElementChild.cloneNode(true);
  card.querySelector("h3").textContent = name;
  card.querySelector(".takes").textContent = model.inputs.map(signature).join(", ");
  card.querySelector(".gives").textContent = model.outputs.map(signature).join(", ");
  offerTrial(card.querySelector("details"), model);
  card.dataset.streaming = model.streaming;
  cards.set(name, card);
  const position = [...cards.keys()].sort().indexOf(name);
  const models = document.getElementById("models");
  models.insertBefore(card, models.children[position] ?? null);
}

function remove(name) {
  cards.get(name).remove();
  cards.delete(name);
}

// -> name, inputs, outputs, and whether it holds the states of streams; each axis is a number, or the name of a dynamic one.
async function describe(name) {
  const [metadata, config] = await Promise.all([ask(modelPath(name)), ask(`${modelPath(name)}/config`)]);
  const { inputs, outputs } = await metadata.json();
  const { input, parameters, sequence_batching: streams } = await config.json();
  const shapes = JSON.parse(parameters?.shapes?.string_value ?? "{}");
  const optional = new Set(input.filter((tensor) => tensor.optional).map((tensor) => tensor.name));
  const complete = (tensor) => ({
    ...tensor,
    shape: shapes[tensor.name] ?? tensor.shape.map((size, axis) => (size < 0 ? `${tensor.name}.${axis}` : size)),
    optional: optional.has(tensor.name),
  });
  return { name, inputs: inputs.map(complete), outputs: outputs.map(complete), streaming: streams !== undefined };
}

// The form is made when it is first opened: a server may have many models.
function offerTrial(details, model) {
  details.addEventListener("toggle", () => details.append(makeTrial(model)), { once: true });
}

const signature = ({ name, datatype, shape }) => `${name} ${datatype}[${shape.join(", ")}]`;

// `last`: the figures `seconds` ago, for the rate.
function draw(name, now, last, seconds) {
  const card = cards.get(name);
  if (card === undefined) return;
  const successes = now.success ?? 0;
  const rate = last === undefined || successes < last.success ? 0 : (successes - last.success) / seconds;
  const steps = now.steps_real_total + now.steps_padded_total;
  write(card.querySelector("dl"), {
    requests: successes.toLocaleString("en"),
    "per second": rate.toFixed(rate < 10 ? 1 : 0),
    "refused or failed": (now.failure ?? 0).toLocaleString("en"),
    waiting: now.queued_requests,
    "rows of a run": mean(now.rows_total, now.executions_total, 1),
    padding: mean(100 * now.steps_padded_total, steps, 1, " %"),
    "a run": mean(1e3 * now.compute_seconds_total, now.executions_total, 2, " ms"),
    "wait in queue": mean(1e3 * now.queue_seconds_total, successes, 2, " ms"),
    ...(card.dataset.streaming === "true" ? { streams: now.streams } : {}),
  });
}

const mean = (sum, count, digits, unit = "") => (count ? `${(sum / count).toFixed(digits)}${unit}` : "–");

function write(list, figures) {
  if (!list.children.length) list.append(...Object.keys(figures).map(tile));
  Object.values(figures).forEach((figure, index) => (list.children[index].lastChild.textContent = figure));
}

function tile(title) {
  const element = document.createElement("div");
  element.append(document.createElement("dt"), document.createElement("dd"));
  element.firstChild.textContent = title;
  return element;
}
