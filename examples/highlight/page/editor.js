// The text field, labelled by the served model.

import { ask, modelPath } from "../../page/server.js";
import { connect, showProblem } from "./field.js";
import { LABELS, WINDOW, join, windows } from "./highlight.js";
import { infer } from "./infer.js";

const MODEL = "highlight";
const RETRY = 1000; // milliseconds

let rows = 1; // in one request

// Show the text field once the model is there; until then, say why it is not.
async function start() {
  const problem = await findProblem();
  showProblem(problem);
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

const read = connect(labelsOf, "from here and back");
start();
