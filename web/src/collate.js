// Collate requests into one padded batch, and split its outputs back.

import { RunError } from "./errors.js";
import { nearest } from "./onnx_file.js";
import { specText, toCaller, toGraph } from "./signature.js";
import { joined, rowsOf, transposed, trimmed } from "./tensors.js";

/** @typedef {import("./manifest.js").TensorSpec} TensorSpec */
/** @typedef {import("./onnx_file.js").IndexRange} IndexRange */
/** @typedef {import("./request.js").Request} Request */
/** @typedef {import("./signature.js").Signature} Signature */
/** @typedef {import("./tensors.js").Tensor} Tensor */

/**
 * One tensor for each input, in the graph's layout.
 * @param {readonly Request[]} batch requests that agree in all sizes but rows and steps
 * @param {Signature} signature
 * @param {number | null} steps of the run; rows that are shorter are padded with zeros, or the indices next to 0
 * @param {ReadonlyMap<string, IndexRange>} indexRanges inputs that are indices -> what they may be
 * @returns {Map<string, Tensor>}
 */
export function collate(batch, signature, steps, indexRanges) {
  /** @type {Map<string, Tensor>} */
  const tensors = new Map();
  for (const spec of signature.inputs) {
    const parts = batch.map((request) => /** @type {Tensor} */ (request.tensors.get(spec.name)));
    const padding = nearest(0, indexRanges.get(spec.name));
    const whole =
      spec.batch === null ? parts[0] : joined(parts, spec.time === null ? null : steps, padding);
    tensors.set(spec.name, transposed(whole, toGraph(spec)));
  }
  return tensors;
}

/**
 * The outputs of each request, batch-first, without the steps that it did not have.
 * @param {ReadonlyMap<string, Tensor>} results what the graph gave, in its layout
 * @param {readonly Request[]} batch
 * @param {Signature} signature
 * @param {number | null} steps
 * @returns {Map<string, Tensor>[]}
 */
export function split(results, batch, signature, steps) {
  const isWhole = batch.length === 1 && batch[0].steps === steps;
  const specs = signature.outputs.filter(({ name }) => results.has(name));
  const wholes = specs.map((spec) => {
    const result = /** @type {Tensor} */ (results.get(spec.name));
    return /** @type {const} */ ([spec, inCallersLayout(result, spec, isWhole)]);
  });
  let start = 0;
  return batch.map((request) => {
    const stop = start + request.rows;
    const cut = (/** @type {TensorSpec} */ spec, /** @type {Tensor} */ whole) =>
      isWhole ? whole : cutOut(whole, spec, request, start, signature);
    const outputs = new Map(wholes.map(([spec, whole]) => [spec.name, cut(spec, whole)]));
    start = stop;
    return outputs;
  });
}

/**
 * What a request gets of an output of the run.
 * @param {Tensor} whole
 * @param {TensorSpec} spec
 * @param {Request} request
 * @param {number} start its first row
 * @param {Signature} signature
 */
function cutOut(whole, spec, request, start, signature) {
  let part = spec.batch === null ? whole : rowsOf(whole, start, start + request.rows);
  if (spec.time !== null && request.steps !== null)
    part = trimmed(part, spec.batch === null ? spec.time : 1, request.steps);
  const trimmedAxis = signature.trimmedAxes.get(spec.name);
  // The longest row of the run may be that of another request.
  return trimmedAxis === undefined
    ? part
    : trimmed(part, trimmedAxis, longestRow(request, signature));
}

/**
 * @param {Tensor} result
 * @param {TensorSpec} spec
 * @param {boolean} isWhole
 */
function inCallersLayout(result, spec, isWhole) {
  const order = toCaller(spec);
  if (result.shape.length === order.length) return transposed(result, order);
  // A model that calls `.squeeze()` drops an axis of size 1, here and in PyTorch.
  if (isWhole && order.every((axis, index) => axis === index)) return result;
  throw new RunError(
    `output \`${spec.name}\` has shape [${result.shape.join(", ")}], the graph declares ${specText(spec)}: the model ` +
      "drops an axis of size 1, as `.squeeze()` does; name the axis that it should drop, as in `.squeeze(-1)`.",
  );
}

/**
 * The steps of the longest row; Infinity where not exactly one input tells.
 * @param {Request} request
 * @param {Signature} signature
 */
function longestRow({ tensors }, { lengths }) {
  const [name] = lengths.keys();
  const data = lengths.size === 1 ? tensors.get(name)?.data : undefined;
  return data === undefined
    ? Infinity
    : Array.from(data, Number).reduce((most, length) => Math.max(most, length));
}
