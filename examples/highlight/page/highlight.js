// The input and output of the highlighter, as in model.py and labels.py; a test compares the constants.

export const LABELS = ["space", "operator", "name", "call", "definition", "keyword", "number", "string", "comment"];
export const ALPHABET = "\t\n !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";
export const OUTSIDE = 0;
export const OTHER = 1;
export const WINDOW = 128;
export const CONTEXT = 32;

const STRIDE = WINDOW - 2 * CONTEXT;
const CODES = new Map([...ALPHABET].map((character, index) => [character, index + 2]));

// A list of characters -> the numbers of all its windows, one after the other, and how many windows they are.
export function windows(characters) {
  const count = Math.ceil(characters.length / STRIDE);
  const numbers = new Array(count * WINDOW).fill(OUTSIDE);
  for (let window = 0; window < count; window++) {
    for (let step = 0; step < WINDOW; step++) {
      const character = characters[window * STRIDE + step - CONTEXT];
      if (character !== undefined) numbers[window * WINDOW + step] = CODES.get(character) ?? OTHER;
    }
  }
  return { numbers, count };
}

// Scores of windows, one after the other -> the best label of the characters in the middle of each.
export function join(scores) {
  const labels = [];
  for (let window = 0; window < scores.length; window += WINDOW * LABELS.length) {
    for (let step = CONTEXT; step < WINDOW - CONTEXT; step++) {
      const first = window + step * LABELS.length;
      labels.push(best(scores.subarray(first, first + LABELS.length)));
    }
  }
  return labels;
}

const best = (scores) => scores.reduce((highest, score, index) => (score > scores[highest] ? index : highest), 0);

// The labels of a changed text until the model has read it: those from before and after the change stay.
export function carried(labels, before, after) {
  const shorter = Math.min(before.length, after.length);
  let start = 0;
  while (start < shorter && before[start] === after[start]) start++;
  let end = 0;
  while (end < shorter - start && before[before.length - 1 - end] === after[after.length - 1 - end]) end++;
  const changed = new Array(after.length - start - end).fill(labels[start - 1] ?? LABELS.indexOf("name"));
  return [...labels.slice(0, start), ...changed, ...labels.slice(before.length - end, before.length)];
}

// Characters and their labels -> one element for each run of equal labels.
export function coloured(characters, labels) {
  const fragment = document.createDocumentFragment();
  for (let start = 0, end; start < characters.length; start = end) {
    end = start + 1;
    while (end < characters.length && labels[end] === labels[start]) end++;
    const span = document.createElement("span");
    span.className = LABELS[labels[start]];
    span.textContent = characters.slice(start, end).join("");
    fragment.append(span);
  }
  return fragment;
}
