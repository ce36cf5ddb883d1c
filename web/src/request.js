// A request: the inputs of one caller, checked and complete.

import { InputError } from "./errors.js";
import { shown } from "./fields.js";
import { nearest } from "./onnx_file.js";
import { specText } from "./signature.js";
import { count } from "./sizes.js";
import { Tensor, asTensor, zeros } from "./tensors.js";

/** @typedef {import("./manifest.js").TensorSpec} TensorSpec */
/** @typedef {import("./onnx_file.js").IndexRange} IndexRange */
/** @typedef {import("./signature.js").Signature} Signature */
/** @typedef {import("./sizes.js").Size} Size */

/**
 * @typedef {object} Request
 * @property {ReadonlyMap<string, Tensor>} tensors one for each input, in the layout of callers
 * @property {number} rows size of the batch axis; 1 if the model has none
 * @property {number | null} steps size of the time axis; null if the model has none, or several of different size
 * @property {ReadonlyMap<string, number>} otherSizes of all other dynamic axes; requests that share a run agree in them
 */

/**
 * Check what a caller gives, and fill in what it left out.
 * @param {unknown} inputs tensors by name, as `asTensor` takes them
 * @param {Signature} signature
 * @returns {Request}
 */
export function makeRequest(inputs, signature) {
  const given = givenTensors(inputs, signature);
  const sizes = boundSizes(given, signature);
  /** @type {Map<string, Tensor>} */
  const tensors = new Map();
  for (const spec of signature.callerInputs) {
    tensors.set(spec.name, given.get(spec.name) ?? leftOut(spec, signature, sizes));
  }
  for (const [name, axis] of signature.lengths) {
    const lengths = given.get(name);
    if (lengths) checkLengths(name, lengths, limit(axis, sizes));
  }
  const steps = new Set(
    [...signature.timeAxes].map((axis) => sizes.get(axis)).filter((size) => size !== undefined),
  );
  // Several time axes are not padded: requests must agree in each of them.
  const isOfRun = (/** @type {string} */ axis) =>
    axis === signature.batchAxis || (signature.timeAxes.size === 1 && signature.timeAxes.has(axis));
  return {
    tensors,
    rows: signature.batchAxis === null ? 1 : /** @type {number} */ (sizes.get(signature.batchAxis)),
    steps: steps.size === 1 ? [...steps][0] : null,
    otherSizes: new Map([...sizes].filter(([axis]) => !isOfRun(axis))),
  };
}

/**
 * @param {unknown} inputs
 * @param {Signature} signature
 * @returns {Map<string, Tensor>}
 */
export function givenTensors(inputs, { callerInputs, optional }) {
  if (
    typeof inputs !== "object" ||
    inputs === null ||
    Array.isArray(inputs) ||
    ArrayBuffer.isView(inputs)
  ) {
    throw new InputError(`\`inputs\` must be an object of tensors by name, got ${shown(inputs)}.`);
  }
  const names = callerInputs.map(({ name }) => name);
  const values = new Map(Object.entries(inputs).filter(([, value]) => value !== undefined));
  for (const name of values.keys()) {
    if (!names.includes(name))
      throw new InputError(`there is no input \`${name}\`; the inputs are ${names.join(", ")}.`);
  }
  const missing = names.find((name) => !values.has(name) && !optional.has(name));
  if (missing !== undefined)
    throw new InputError(`input \`${missing}\` is missing; the inputs are ${names.join(", ")}.`);
  const present = callerInputs.filter(({ name }) => values.has(name));
  return new Map(present.map((spec) => [spec.name, asTensor(values.get(spec.name), spec)]));
}

/**
 * Dynamic axis -> its size, which must be the same in every tensor that has the axis.
 * @param {ReadonlyMap<string, Tensor>} tensors
 * @param {Signature} signature
 */
function boundSizes(tensors, { callerInputs }) {
  /** @type {Map<string, number>} */
  const sizes = new Map();
  /** @type {Map<string, TensorSpec>} */
  const owners = new Map();
  for (const spec of callerInputs) {
    const tensor = tensors.get(spec.name);
    if (tensor === undefined) continue;
    checkShape(tensor, spec);
    spec.shape.forEach((axis, index) => {
      const size = tensor.shape[index];
      if (typeof axis === "number") return;
      const owner = owners.get(axis) ?? spec;
      const other = sizes.get(axis) ?? size;
      if (other !== size) {
        throw new InputError(
          `\`${spec.name}\` has ${axis}=${size}, \`${owner.name}\` has ${axis}=${other}; the model takes ` +
            `${specText(owner)} and ${specText(spec)}.`,
        );
      }
      owners.set(axis, owner);
      sizes.set(axis, size);
    });
  }
  return sizes;
}

/**
 * @param {Tensor} tensor
 * @param {TensorSpec} spec
 */
function checkShape({ shape }, spec) {
  const fits = (/** @type {Size} */ axis, /** @type {number} */ index) =>
    typeof axis === "number" ? axis === shape[index] : shape[index] > 0;
  if (shape.length !== spec.shape.length || !spec.shape.every(fits)) {
    throw new InputError(
      `\`${spec.name}\` has shape [${shape.join(", ")}], the model takes ${specText(spec)} with no size 0.`,
    );
  }
}

/**
 * An input that may be left out: lengths that count every step, or a state of zeros.
 * @param {TensorSpec} spec
 * @param {Signature} signature
 * @param {ReadonlyMap<string, number>} sizes
 */
function leftOut(spec, signature, sizes) {
  const shape = spec.shape.map((size) =>
    typeof size === "number" ? size : (sizes.get(size) ?? 0),
  );
  if (count(shape) === 0) {
    throw new InputError(
      `input \`${spec.name}\` is missing, and no other input tells the size of ${specText(spec)}.`,
    );
  }
  const tensor = zeros(spec.dtype, shape);
  const axis = signature.lengths.get(spec.name);
  if (axis === undefined) return tensor;
  const most = limit(axis, sizes);
  if (most === undefined) {
    throw new InputError(
      `input \`${spec.name}\` is missing; the model computes how many steps a row has at most.`,
    );
  }
  const { data } = tensor;
  /** @type {any} */ (data).fill(typeof data[0] === "bigint" ? BigInt(most) : most);
  return tensor;
}

/**
 * The longest length that a row can have; undefined if no input has the axis that limits it.
 * @param {Size} axis
 * @param {ReadonlyMap<string, number>} sizes
 */
function limit(axis, sizes) {
  return typeof axis === "number" ? axis : sizes.get(axis);
}

/**
 * Check what onnxruntime does not: with a length of 0, or beyond T, it reads memory that is not the row's.
 * @param {string} name
 * @param {Tensor} lengths
 * @param {number | undefined} most
 */
function checkLengths(name, { data }, most = Infinity) {
  const values = Array.from(/** @type {ArrayLike<any>} */ (data), Number);
  const row = values.findIndex((length) => length < 1 || length > most);
  if (row === -1) return;
  const rule = most === Infinity ? "1 step or more" : `1 to ${most} steps`;
  throw new InputError(`\`${name}\` has ${values[row]} in row ${row}; a row has ${rule}.`);
}

/**
 * The request with others in the place of indices that are in no row of a table, where they are padding.
 * @param {Request} request
 * @param {ReadonlyMap<string, IndexRange>} indexRanges inputs that are indices -> what they may be
 * @param {Signature} signature
 * @returns {Request}
 */
export function withCheckedIndices(request, indexRanges, signature) {
  const tensors = new Map(request.tensors);
  for (const spec of signature.callerInputs) {
    const range = indexRanges.get(spec.name);
    const tensor = tensors.get(spec.name);
    if (range !== undefined && tensor !== undefined && /^u?int/.test(spec.dtype)) {
      tensors.set(spec.name, checkedIndices(spec, tensor, range, request, signature));
    }
  }
  return { ...request, tensors };
}

/**
 * onnxruntime takes -1 for the last row of a table; PyTorch refuses it.
 * @param {TensorSpec} spec
 * @param {Tensor} tensor
 * @param {IndexRange} range
 * @param {Request} request
 * @param {Signature} signature
 */
function checkedIndices(spec, tensor, range, request, signature) {
  const { least, most } = range;
  const isWrong = (/** @type {number | bigint} */ index) => index < least || index > most;
  const other = nearest(0, range);
  if (!tensor.data.some(isWrong)) return tensor;
  const padding = signature.padding(spec);
  const lengths = padding && request.tensors.get(padding.lengths)?.data;
  const data = tensor.data.slice();
  data.forEach((/** @type {number | bigint} */ index, /** @type {number} */ position) => {
    if (!isWrong(index)) return;
    const place = placeOf(position, tensor.shape);
    const isPadding =
      padding && lengths && place[padding.time] >= Number(lengths[place[padding.row]]);
    if (!isPadding) {
      throw new InputError(
        `\`${spec.name}\` has ${index} at [${place.join(", ")}]; must be from ${least} to ${most}: it is an ` +
          "index into a table.",
      );
    }
    /** @type {any} */ (data)[position] = typeof index === "bigint" ? BigInt(other) : other;
  });
  return new Tensor(tensor.dtype, tensor.shape, data);
}

/**
 * @param {number} position in row-major order
 * @param {readonly number[]} shape
 */
function placeOf(position, shape) {
  return shape.map((size, axis) => Math.floor(position / count(shape.slice(axis + 1))) % size);
}
