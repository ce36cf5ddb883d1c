// The box that is typed into: each text is read by the served model, at most one at a time, the latest last.

import { LABELS, WINDOW, carried, coloured, join, windows } from "./highlight.js";
import { ask, infer, modelPath } from "./server.js";

const MODEL = "highlight";
const MOST = 20000; // characters; a browser is slow with more coloured pieces than these make

const element = (id) => document.getElementById(id);

let rows = 1; // of one request
let shown = { characters: [], labels: [] };
let reading = false;
let again = false;

// Show the box if the model is there, or say how to get it.
export async function start(names) {
  const why = names.includes(MODEL) ? await unfit() : `No model “${MODEL}” is served here.`;
  element("highlight-why").textContent = why;
  element("highlight-missing").hidden = !why;
  element("highlight").hidden = Boolean(why);
  if (!why) await read();
}

// Why the model of that name is not the highlighter; "" if it is.
async function unfit() {
  const [said, config] = await Promise.all([ask(modelPath(MODEL)), ask(`${modelPath(MODEL)}/config`)]);
  const { inputs, outputs } = await said.json();
  const fits = inputs[0].name === "characters" && outputs[0].name === "output" && outputs[0].shape[2] === LABELS.length;
  rows = Math.max(1, (await config.json()).max_batch_size);
  return fits ? "" : `The model “${MODEL}” that is served here is not the highlighter.`;
}

function show(characters, labels) {
  shown = { characters, labels };
  const rest = element("source").value.slice(characters.join("").length);
  element("coloured").replaceChildren(coloured(characters, labels), `${rest}\n`);
}

async function read() {
  const characters = [...element("source").value].slice(0, MOST);
  show(characters, carried(shown.labels, shown.characters, characters));
  again = reading;
  if (reading) return;
  reading = true;
  try {
    const started = performance.now();
    const found = await labels(characters);
    say(characters.length, performance.now() - started);
    if (!again) show(characters, found);
  } catch (error) {
    element("latency").textContent = "";
    element("highlight-error").textContent = error.message;
  }
  reading = false;
  if (again) await read();
}

async function labels(characters) {
  const { numbers, count } = windows(characters);
  const asked = [];
  for (let from = 0; from < count; from += rows) {
    const part = numbers.slice(from * WINDOW, (from + rows) * WINDOW);
    asked.push(infer(MODEL, "characters", [part.length / WINDOW, WINDOW], part, "output"));
  }
  const answers = await Promise.all(asked);
  return answers.flatMap((answer) => join(answer.values)).slice(0, characters.length);
}

function say(count, milliseconds) {
  const cut = count === MOST ? `the first ${MOST} characters` : `${count} characters`;
  element("highlight-error").textContent = "";
  element("latency").textContent = count ? `${cut} read in ${milliseconds.toFixed(1)} ms, from here and back` : "";
}

element("source").addEventListener("input", read);
element("legend").append(...LABELS.slice(1).map((label) => {
  const item = document.createElement("li");
  item.className = label;
  item.textContent = label;
  return item;
}));
