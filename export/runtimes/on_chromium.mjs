// onnxruntime-web in a page: on_chromium.py serves it, hands it requests, and takes the answers.
import { Answers } from "./web_answers.mjs";

async function load() {
  const ort = await import("./onnxruntime-web/ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./onnxruntime-web/", location.href).href;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return ort;
}

async function read() {
  const response = await fetch("file");
  return new Uint8Array(await response.arrayBuffer());
}

const answers = new Answers(load, read);
for (;;) {
  const request = await (await fetch("request")).json();
  if (request === null) continue;
  await fetch("answer", { method: "POST", body: JSON.stringify(await answers.answer(request)) });
}
