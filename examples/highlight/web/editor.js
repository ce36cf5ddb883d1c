// The text field, labelled by a model in this page.

import { loadBundle } from "deploy-rnn-web";

import { connect, showProblem } from "./field.js";
import { CONTEXT, WINDOW, join, windows } from "./highlight.js";

const ROWS = 16; // windows in one run: between runs, the page answers to keys
const STRIDE = WINDOW - 2 * CONTEXT;

let bundle;
let known = new Map(); // a window of the last text -> the labels of its middle: a key changes one or two of them

async function labelsOf(characters) {
  const { numbers, count } = windows(characters);
  const all = Array.from({ length: count }, (_, index) => numbers.slice(index * WINDOW, (index + 1) * WINDOW));
  const byText = new Map(all.map((window) => [window.join(), window]));
  const unknown = [...byText.keys()].filter((text) => !known.has(text));
  for (let first = 0; first < unknown.length; first += ROWS) {
    const texts = unknown.slice(first, first + ROWS);
    const { output } = await bundle.run({ characters: texts.map((text) => byText.get(text)) });
    const labels = join(output.data);
    texts.forEach((text, index) => known.set(text, labels.slice(index * STRIDE, (index + 1) * STRIDE)));
    await new Promise((resolve) => setTimeout(resolve));
  }
  known = new Map([...byText.keys()].map((text) => [text, known.get(text)]));
  return all.flatMap((window) => known.get(window.join())).slice(0, characters.length);
}

const read = connect(labelsOf, "in this page");
try {
  bundle = await loadBundle("highlight/");
  showProblem("");
  await read();
} catch (error) {
  showProblem(error.message);
}
