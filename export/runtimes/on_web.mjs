// onnxruntime-web in node: a line of JSON on the standard input for each request, a line on the standard output for each
// answer. The package is looked for from the current folder upwards, and in NODE_PATH.
import fs from "node:fs";
import { createRequire } from "node:module";
import readline from "node:readline";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array,
  int8: Int8Array, int16: Int16Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array, bool: Uint8Array,
};
const require = createRequire(`${process.cwd()}/`);
let ort;
let session;

function fromJson({ dtype, shape, data }) {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return new ort.Tensor(dtype, new ARRAYS[dtype](bytes.buffer), shape);
}

function toJson({ type, dims, data }) {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return { dtype: type, shape: dims, data: bytes.toString("base64") };
}

function load() {
  try {
    ort = require("onnxruntime-web");
  } catch {
    throw new Error("node does not find onnxruntime-web; run: npm install onnxruntime-web, in this folder or one above it");
  }
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
}

async function answer(request) {
  if (!ort) load();
  if (request.version) return { version: ort.env.versions.web };
  if (request.open) {
    const file = new Uint8Array(fs.readFileSync(request.open));
    session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    return {};
  }
  const feeds = Object.fromEntries(Object.entries(request.run).map(([name, tensor]) => [name, fromJson(tensor)]));
  const results = await session.run(feeds);
  return { outputs: Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, toJson(tensor)])) };
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  let result;
  try {
    result = await answer(JSON.parse(line));
  } catch (error) {
    result = { error: error.message };
  }
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
