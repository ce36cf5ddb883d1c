// The text field: each text is labelled by the model, one at a time; of those that were typed meanwhile, only the latest
// is.

import { LABELS, carried, coloured } from "./highlight.js";

const MAX_CHARACTERS = 20000; // a browser is slow with the coloured elements of more

const element = (id) => document.getElementById(id);

// Connects the field with a model: `labelsOf` has a label for each of a list of characters, and `how` says where from.
// Returns what reads the text again.
export function connect(labelsOf, how) {
  let shown = { characters: [], labels: [] };
  let isReading = false;
  let hasChanged = false;

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

  function showLatency(count, milliseconds) {
    const text = count === MAX_CHARACTERS ? `the first ${count} characters` : `${count} characters`;
    element("highlight-error").textContent = "";
    element("latency").textContent = count ? `${text} read in ${milliseconds.toFixed(1)} ms, ${how}` : "";
  }

  element("source").addEventListener("input", read);
  return read;
}

// Shows why there is no text field; with "", the field.
export function showProblem(problem) {
  element("missing").textContent = problem;
  element("missing").hidden = !problem;
  element("highlight").hidden = Boolean(problem);
}

element("legend").append(...LABELS.slice(1).map((label) => {
  const item = document.createElement("li");
  item.className = label;
  item.textContent = label;
  return item;
}));
