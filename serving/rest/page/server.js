// Questions to the server, and its errors. Paths are relative: the page may stand behind a prefix.

const TOKEN = "deploy-rnn token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

// -> the Response of a request that succeeded; a Refused with the server's own words if it did not.
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer;
}

async function reason(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return text || `HTTP ${answer.status}`;
  }
}

export const modelPath = (name) => `v2/models/${encodeURIComponent(name)}`;

// One int64 input of `shape` with these numbers -> the first output, float32, and its shape: binary both ways.
export async function infer(name, input, shape, numbers, output) {
  const data = BigInt64Array.from(numbers, BigInt);
  const head = new TextEncoder().encode(JSON.stringify({
    inputs: [{ name: input, datatype: "INT64", shape, parameters: { binary_data_size: data.byteLength } }],
    outputs: [{ name: output, parameters: { binary_data: true } }],
  }));
  const answer = await ask(`${modelPath(name)}/infer`, {
    method: "POST",
    headers: { "Inference-Header-Content-Length": head.length },
    body: new Blob([head, data]),
  });
  const length = Number(answer.headers.get("Inference-Header-Content-Length"));
  const body = await answer.arrayBuffer();
  const [found] = JSON.parse(new TextDecoder().decode(body.slice(0, length))).outputs;
  return { values: new Float32Array(body.slice(length)), shape: found.shape };
}
