// `Signature`: the inputs and outputs of a model, in the layout of its graphs and in that of callers.

import { namesIn } from "./sizes.js";

/** @typedef {import("./manifest.js").TensorSpec} TensorSpec */
/** @typedef {import("./manifest.js").Manifest} Manifest */
/** @typedef {import("./sizes.js").Size} Size */

/**
 * Callers see every tensor that has a batch axis batch-first: batch, then time, then the other axes in the graph's
 * order. A tensor without a batch axis stays as it is.
 */
export class Signature {
  /** @param {Pick<Manifest, "inputs" | "outputs" | "lengths" | "states">} manifest */
  constructor({ inputs, outputs, lengths, states }) {
    /** As the graphs have them. */
    this.inputs = inputs;
    this.outputs = outputs;
    /** As callers see them. */
    this.callerInputs = inputs.map(batchFirst);
    this.callerOutputs = outputs.map(batchFirst);
    this.lengths = lengths;
    this.states = states;
    /** Inputs that may be left out: lengths (then every step counts) and states (then zeros). */
    this.optional = new Set([...lengths.keys(), ...states.keys()]);
    const tensors = [...inputs, ...outputs];
    /** The name of the batch axis, if every tensor has it; null if requests cannot share a run. */
    this.batchAxis = batchAxis(tensors);
    /** The names of the time axes. */
    this.timeAxes = new Set(
      tensors.map(({ time, shape }) => (time === null ? 0 : shape[time])).filter(isName),
    );
    /** Whether there are lengths for the one time axis, without which no row can be padded. */
    this.lengthsCoverTime =
      this.batchAxis !== null &&
      this.timeAxes.size === 1 &&
      [...this.timeAxes].every((axis) => this.#limits(axis));
    /**
     * Outputs with an axis whose size no input tells -> that axis, in the layout of callers. `pad_packed_sequence`
     * without `total_length` makes one: it has as many steps as the longest row of the run.
     * @type {ReadonlyMap<string, number>}
     */
    this.trimmedAxes = trimmedAxes(this.inputs, this.callerOutputs);
  }

  /** @param {Size} axis */
  #limits(axis) {
    return [...this.lengths.values()].includes(axis);
  }

  /**
   * Where the axes of rows and steps are in an input with padding, in the layout of callers, and the input of its
   * lengths; undefined if nothing says where its rows end.
   * @param {TensorSpec} spec
   */
  padding(spec) {
    for (const lengths of this.callerInputs) {
      const limit = this.lengths.get(lengths.name);
      if (limit === undefined || lengths.shape.length !== 1) continue;
      const row = onlyAxis(spec, lengths.shape[0]);
      const time = onlyAxis(spec, limit);
      if (row !== -1 && time !== -1 && row !== time) return { lengths: lengths.name, row, time };
    }
    return undefined;
  }
}

/**
 * The graph's axes in the order in which callers see them.
 * @param {TensorSpec} spec
 * @returns {number[]}
 */
export function toCaller({ shape, batch, time }) {
  const axes = shape.map((_, axis) => axis);
  if (batch === null) return axes;
  const leading = time === null ? [batch] : [batch, time];
  return [...leading, ...axes.filter((axis) => !leading.includes(axis))];
}

/**
 * The axes of callers in the order of the graph.
 * @param {TensorSpec} spec
 * @returns {number[]}
 */
export function toGraph(spec) {
  const order = toCaller(spec);
  return order.map((_, axis) => order.indexOf(axis));
}

/**
 * A graph's tensor as callers see it.
 * @param {TensorSpec} spec
 * @returns {TensorSpec}
 */
export function batchFirst(spec) {
  const order = toCaller(spec);
  return {
    ...spec,
    shape: order.map((axis) => spec.shape[axis]),
    batch: spec.batch === null ? null : order.indexOf(spec.batch),
    time: spec.time === null ? null : order.indexOf(spec.time),
  };
}

/**
 * "x: float32 [B, T, 4]"
 * @param {TensorSpec} spec
 */
export function specText({ name, dtype, shape }) {
  return `${name}: ${dtype} [${shape.join(", ")}]`;
}

/** @param {readonly TensorSpec[]} tensors */
function batchAxis(tensors) {
  const names = new Set(tensors.map(({ batch, shape }) => (batch === null ? 0 : shape[batch])));
  const [name] = names;
  // A tensor without the axis, or with a fixed size, is for one request.
  return names.size === 1 && isName(name) ? name : null;
}

/**
 * @param {readonly TensorSpec[]} inputs
 * @param {readonly TensorSpec[]} outputs
 */
function trimmedAxes(inputs, outputs) {
  const known = new Set(inputs.flatMap(({ shape }) => shape.flatMap(namesIn)));
  /** @type {Map<string, number>} */
  const axes = new Map();
  for (const { name, shape } of outputs) {
    const axis = shape.findIndex((size) => namesIn(size).some((part) => !known.has(part)));
    if (axis !== -1) axes.set(name, axis);
  }
  return axes;
}

/**
 * The axis of this size; -1 if there is none, or several.
 * @param {TensorSpec} spec
 * @param {Size} size
 */
function onlyAxis({ shape }, size) {
  const axis = shape.indexOf(size);
  return axis === shape.lastIndexOf(size) ? axis : -1;
}

/**
 * @param {Size | undefined} size
 * @returns {size is string}
 */
function isName(size) {
  return typeof size === "string";
}
