// onnxruntime-web in node: a line of JSON on the standard input for each request, a line on the standard output for each
// answer. The package is looked for from the current folder upwards, and in NODE_PATH.
import fs from "node:fs";
import { createRequire } from "node:module";
import readline from "node:readline";
import { Answers } from "./web_answers.mjs";

const require = createRequire(`${process.cwd()}/`);

function load() {
  let ort;
  try {
    ort = require("onnxruntime-web");
  } catch {
    throw new Error("node does not find onnxruntime-web; run: npm install onnxruntime-web, in this folder or one above it");
  }
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return ort;
}

const answers = new Answers(load, (path) => new Uint8Array(fs.readFileSync(path)));
for await (const line of readline.createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answers.answer(JSON.parse(line)))}\n`);
}
