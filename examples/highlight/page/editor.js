// The text field: each text is labelled by the served model, one request at a time; of those that were typed meanwhile,
// only the latest is.

import { ask, modelPath } from "../../page/server.js";
import { LABELS, WINDOW, carried, coloured, join, windows } from "./highlight.js";
import { infer } from "./infer.js";

const MODEL = "highlight";
const MAX_CHARACTERS = 20000; // a browser is slow with the coloured elements of more
const RETRY = 1000; // milliseconds

const element = (id) => document.getElementById(id);

let rows = 1; // in one request
let shown = { characters: [], labels: [] };
let isReading = false;
let hasChanged = false;

// Show the text field once the model is there; until then, say why it is not.
async function start() {
  const problem = await findProblem();
  element("missing").textContent = problem;
  element("missing").hidden = !problem;
  element("highlight").hidden = Boolean(problem);
  if (problem) setTimeout(start, RETRY);
  else await read();
}

// Why the text field cannot work; "" if it can.
async function findProblem() {
  try {
    const [metadata, config] = await Promise.all([ask(modelPath(MODEL)), ask(`${modelPath(MODEL)}/config`)]);
    const { inputs, outputs } = await metadata.json();
    rows = Math.max(1, (await config.json()).max_batch_size);
    const isHighlighter =
      inputs[0].name === "characters" && outputs[0].name === "output" && outputs[0].shape[2] === LABELS.length;
    return isHighlighter ? "" : `The model “${MODEL}” of this server is not the highlighter.`;
  } catch (error) {
    if (error.status !== 404) return error.message;
    return `This server has no model “${MODEL}”: make it with deploy-rnn demo, and serve build/demo/highlight.`;
  }
}

function show(characters, labels) {
  shown = { characters, labels };
  const rest = element("source").value.slice(characters.join("").length);
  element("coloured").replaceChildren(coloured(characters, labels), `${rest}\n`);
}

async function read() {
  const characters = [...element("source").value].slice(0, MAX_CHARACTERS);
  show(characters, carried(shown.labels, shown.characters, characters));
  hasChanged = isReading;
  if (isReading) return;
  isReading = true;
  try {
    const started = performance.now();
    const labels = await labelsOf(characters);
    showLatency(characters.length, performance.now() - started);
    if (!hasChanged) show(characters, labels);
  } catch (error) {
    element("latency").textContent = "";
    element("highlight-error").textContent = error.message;
  }
  isReading = false;
  if (hasChanged) await read();
}

async function labelsOf(characters) {
  const { numbers, count } = windows(characters);
  const requests = [];
  for (let first = 0; first < count; first += rows) {
    const part = numbers.slice(first * WINDOW, (first + rows) * WINDOW);
    requests.push(infer(MODEL, "characters", [part.length / WINDOW, WINDOW], part, "output"));
  }
  const scores = await Promise.all(requests);
  return scores.flatMap(join).slice(0, characters.length);
}

function showLatency(count, milliseconds) {
  const text = count === MAX_CHARACTERS ? `the first ${count} characters` : `${count} characters`;
  element("highlight-error").textContent = "";
  element("latency").textContent = count ? `${text} read in ${milliseconds.toFixed(1)} ms, from here and back` : "";
}

element("source").addEventListener("input", read);
element("legend").append(...LABELS.slice(1).map((label) => {
  const item = document.createElement("li");
  item.className = label;
  item.textContent = label;
  return item;
}));

start();
