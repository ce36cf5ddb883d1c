// A signal in chunks through a recurrent layer in this page.

import { loadBundle } from "deploy-rnn-web";

const CHUNK = 4; // samples
const PERIOD = 25; // milliseconds for each
const SHOWN = 400; // samples
const MOST = 100000; // kept for the comparison
const UNITS = ["fast", "middle", "slow"];

const element = (id) => document.getElementById(id);

let pointer = null; // its height from 0 to 1; null while it is elsewhere
let samples = [];
let answers = []; // one of three numbers for each sample
let chunks = 0;
let stream;

// What the layer is given: the pointer, or a square wave with a ripple.
function sample(number) {
  if (pointer !== null) return pointer;
  return (Math.floor(number / 80) % 2 ? 0.8 : 0.2) + 0.08 * Math.sin(number * 1.7);
}

const column = (values) => ({ shape: [1, values.length, 1], data: Float32Array.from(values) });

async function step() {
  const chunk = Array.from({ length: CHUNK }, (_, index) => sample(samples.length + index));
  const before = samples;
  const { output } = await stream.run({ input: column(chunk) });
  if (before !== samples) return; // begun anew meanwhile
  samples.push(...chunk);
  answers.push(...output.toNested()[0]);
  chunks++;
  draw();
  if (samples.length >= MOST) restart();
}

function restart() {
  samples = [];
  answers = [];
  chunks = 0;
  stream.reset();
  element("answer").textContent = "";
}

function draw() {
  const first = Math.max(0, samples.length - SHOWN);
  const points = (values) => values.map((value, index) => `${index},${(100 - 100 * value).toFixed(2)}`).join(" ");
  document.querySelector("polyline.signal").setAttribute("points", points(samples.slice(first)));
  UNITS.forEach((unit, index) => {
    const values = answers.slice(first).map((row) => row[index]);
    document.querySelector(`polyline.${unit}`).setAttribute("points", points(values));
  });
}

// The same samples as one request: what the stream has answered must be what this answers.
async function compare(bundle) {
  const inChunks = answers.flat();
  const count = chunks;
  const { output } = await bundle.run({ input: column(samples) });
  const difference = inChunks.reduce((most, value, index) => Math.max(most, Math.abs(value - output.data[index])), 0);
  element("answer").textContent =
    `${count} chunks, ${inChunks.length / UNITS.length} samples; largest difference ${difference && difference.toExponential(1)}`;
}

function follow(event) {
  const { top, height } = element("plot").getBoundingClientRect();
  pointer = Math.min(1, Math.max(0, 1 - (event.clientY - top) / height));
}

async function start() {
  const bundle = await loadBundle("smoother/");
  stream = bundle.stream();
  element("plot").addEventListener("pointermove", follow);
  element("plot").addEventListener("pointerleave", () => (pointer = null));
  element("compare").addEventListener("click", () => compare(bundle).catch(show));
  element("restart").addEventListener("click", restart);
  for (const button of document.querySelectorAll("button")) button.disabled = false;
  for (;;) {
    await step();
    await new Promise((resolve) => setTimeout(resolve, CHUNK * PERIOD));
  }
}

function show(error) {
  element("problem").textContent = error.message;
}

start().catch(show);
