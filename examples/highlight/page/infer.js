// An inference in binary form, both ways.

import { ask, modelPath } from "../../page/server.js";

// One int64 input of `shape` with these numbers -> the values of one float32 output.
export async function infer(name, input, shape, numbers, output) {
  const data = BigInt64Array.from(numbers, BigInt);
  const head = new TextEncoder().encode(JSON.stringify({
    inputs: [{ name: input, datatype: "INT64", shape, parameters: { binary_data_size: data.byteLength } }],
    outputs: [{ name: output, parameters: { binary_data: true } }],
  }));
  const response = await ask(`${modelPath(name)}/infer`, {
    method: "POST",
    headers: { "Inference-Header-Content-Length": head.length },
    body: new Blob([head, data]),
  });
  const length = Number(response.headers.get("Inference-Header-Content-Length"));
  const body = await response.arrayBuffer();
  return new Float32Array(body.slice(length));
}
