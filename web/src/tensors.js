// `Tensor`: numbers and their shape. From what a caller gives, and cut, joined and turned around for a run.

import { InputError } from "./errors.js";
import { shown } from "./fields.js";
import { count } from "./sizes.js";

/** @typedef {import("./manifest.js").TensorSpec} TensorSpec */
/** @typedef {import("../index.js").Data} Data */

const WHOLE_NUMBERS = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
};

/**
 * dtype -> the typed array that holds it. float16 and bfloat16 are left out: not every browser has an array for them.
 * @type {Record<string, new (size: any) => Data>}
 */
export const ARRAYS = {
  ...WHOLE_NUMBERS,
  bool: Uint8Array,
  float32: Float32Array,
  float64: Float64Array,
};

export class Tensor {
  /**
   * @param {string} dtype
   * @param {readonly number[]} shape
   * @param {Data} data row-major
   */
  constructor(dtype, shape, data) {
    this.dtype = dtype;
    this.shape = shape;
    this.data = data;
  }

  /**
   * Nested lists: of booleans for bool, of BigInt for int64 and uint64, else of numbers.
   * @returns {any}
   */
  toNested() {
    const values =
      this.dtype === "bool"
        ? Array.from(this.data, Boolean)
        : Array.from(/** @type {any} */ (this.data));
    let nested = values;
    for (const size of this.shape.slice(1).reverse()) {
      const rows = [];
      // Of no elements there is no saying how many rows they are.
      for (let start = 0; start < nested.length; start += size)
        rows.push(nested.slice(start, start + size));
      nested = rows;
    }
    return this.shape.length ? nested : values[0];
  }
}

/**
 * @param {string} dtype
 * @param {readonly number[]} shape
 */
export function zeros(dtype, shape) {
  return new Tensor(dtype, shape, new ARRAYS[dtype](count(shape)));
}

/**
 * An input as a caller gives it: nested lists of numbers, or of typed arrays; or numbers with their shape, as
 * `{data, shape}` or as a tensor of onnxruntime's.
 * @param {any} value
 * @param {TensorSpec} spec
 * @returns {Tensor}
 */
export function asTensor(value, spec) {
  const { name, dtype } = spec;
  if (typeof value === "object" && value !== null && !isList(value)) return withShape(value, spec);
  if (!isList(value) && !["number", "bigint", "boolean"].includes(typeof value)) {
    throw new InputError(
      `\`${name}\` must be nested lists of numbers, or {data, shape} with a ${ARRAYS[dtype].name}, ` +
        `got ${shown(value)}.`,
    );
  }
  const shape = shapeOf(value);
  /** @type {any} */
  const data = new ARRAYS[dtype](count(shape));
  let filled = 0;

  /**
   * @param {any} part
   * @param {number[]} place
   */
  function fill(part, place) {
    if (place.length === shape.length) {
      data[filled++] = asNumber(part, spec, place);
      return;
    }
    const size = shape[place.length];
    const isInnermost = place.length === shape.length - 1;
    if (!isList(part) || part.length !== size || !(Array.isArray(part) || isInnermost)) {
      const found = isList(part) && part.length !== size ? part.length : shown(part);
      throw new InputError(
        `\`${name}\` has ${found} at [${place}], and ${size} at [${place.map(() => 0)}]; rows of unlike length must ` +
          `be requests of their own: run([{${name}: ...}, {${name}: ...}]).`,
      );
    }
    if (!Array.isArray(part)) {
      data.set(typedData(part, spec), filled);
      filled += size;
      return;
    }
    for (let index = 0; index < size; index++) {
      if (isInnermost && isPlain(part[index], dtype)) data[filled++] = part[index];
      else fill(part[index], [...place, index]);
    }
  }

  fill(value, []);
  return new Tensor(dtype, shape, data);
}

/**
 * @param {any} value
 * @param {TensorSpec} spec
 */
function withShape(value, spec) {
  const { name } = spec;
  const dtype = value.dtype ?? value.type ?? spec.dtype;
  const shape = value.shape ?? value.dims;
  if (dtype !== spec.dtype)
    throw new InputError(`\`${name}\` is ${shown(dtype)}, the graph takes ${spec.dtype}.`);
  const isShape =
    Array.isArray(shape) && shape.every((size) => Number.isInteger(size) && size >= 0);
  if (!isShape || value.data === undefined) {
    throw new InputError(
      `\`${name}\` must have \`data\` and a \`shape\` of whole numbers, got ${shown(value)}.`,
    );
  }
  const data = Array.isArray(value.data)
    ? asTensor(value.data, spec).data
    : typedData(value.data, spec);
  if (data.length !== count(shape)) {
    throw new InputError(
      `\`${name}\` has ${data.length} values, its shape [${shape}] has ${count(shape)}.`,
    );
  }
  return new Tensor(spec.dtype, [...shape], data);
}

/**
 * @param {any} data
 * @param {TensorSpec} spec
 * @returns {Data}
 */
function typedData(data, { name, dtype }) {
  const expected = ARRAYS[dtype];
  // A copy: the caller may use its array again before the run begins.
  if (data instanceof expected) return /** @type {Data} */ (data.slice());
  const conversion = expected.name.startsWith("Big")
    ? `${expected.name}.from(data, BigInt)`
    : `${expected.name}.from(data)`;
  throw new InputError(
    `\`${name}\` is ${shown(data)}, the graph takes ${dtype}; use ${conversion}.`,
  );
}

/** @param {unknown} value */
function isList(value) {
  return Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));
}

/** @param {any} value */
function shapeOf(value) {
  const shape = [];
  for (let part = value; isList(part); part = part[0]) shape.push(part.length);
  return shape;
}

/**
 * Whether a value needs no closer look: most do not, and there may be millions.
 * @param {unknown} value
 * @param {string} dtype
 */
function isPlain(value, dtype) {
  return typeof value === "number" && (dtype === "float32" || dtype === "float64");
}

/**
 * @param {unknown} value
 * @param {TensorSpec} spec
 * @param {readonly number[]} place
 */
function asNumber(value, { name, dtype }, place) {
  const fail = (/** @type {string} */ rule) => {
    throw new InputError(`\`${name}\` has ${shown(value)} at [${place}]; must be ${rule}.`);
  };
  if (dtype === "bool") {
    if (value !== true && value !== false && value !== 0 && value !== 1) fail("true or false");
    return Number(value);
  }
  if (dtype.startsWith("float")) {
    if (typeof value !== "number") fail("a number");
    return value;
  }
  if (typeof value !== "bigint" && !Number.isSafeInteger(value))
    fail(`a whole number, for ${dtype}`);
  const number = BigInt(/** @type {number} */ (value));
  const bits = Number(dtype.replace(/\D+/, ""));
  const isKept = dtype.startsWith("u")
    ? BigInt.asUintN(bits, number) === number
    : BigInt.asIntN(bits, number) === number;
  if (!isKept) fail(`within the range of ${dtype}`);
  return bits === 64 ? number : Number(number);
}

/**
 * The tensor with its axes in this order.
 * @param {Tensor} tensor
 * @param {readonly number[]} order new axis -> old axis
 * @returns {Tensor}
 */
export function transposed(tensor, order) {
  if (order.every((axis, index) => axis === index)) return tensor;
  const strides = tensor.shape.map((_, axis) => count(tensor.shape.slice(axis + 1)));
  const result = zeros(
    tensor.dtype,
    order.map((axis) => tensor.shape[axis]),
  );
  const from = /** @type {any} */ (tensor.data);
  const to = /** @type {any} */ (result.data);
  let filled = 0;

  /**
   * @param {number} axis of the result
   * @param {number} start in the data of the tensor
   */
  function fill(axis, start) {
    const stride = strides[order[axis]];
    for (let index = 0; index < result.shape[axis]; index++, start += stride) {
      if (axis === order.length - 1) to[filled++] = from[start];
      else fill(axis + 1, start);
    }
  }

  fill(0, 0);
  return result;
}

/**
 * Rows below each other; with `steps`, axis 1 of each is padded to so many.
 * @param {readonly Tensor[]} parts of (rows, ...), or of (rows, steps, ...)
 * @param {number | null} steps
 * @param {number} padding
 * @returns {Tensor}
 */
export function joined(parts, steps, padding) {
  const [first] = parts;
  const rows = parts.reduce((sum, part) => sum + part.shape[0], 0);
  const rest = first.shape.slice(steps === null ? 1 : 2);
  const shape = steps === null ? [rows, ...rest] : [rows, steps, ...rest];
  if (parts.length === 1 && first.shape.every((size, axis) => size === shape[axis])) return first;
  const whole = zeros(first.dtype, shape);
  if (padding !== 0) {
    const number = typeof whole.data[0] === "bigint" ? BigInt(padding) : padding;
    /** @type {any} */ (whole.data).fill(number);
  }
  const rowSize = count(shape.slice(1));
  let start = 0;
  for (const { shape: partShape, data } of parts) {
    const partRowSize = count(partShape.slice(1));
    for (let row = 0; row < partShape[0]; row++, start += rowSize) {
      whole.data.set(
        /** @type {any} */ (data.subarray(row * partRowSize, (row + 1) * partRowSize)),
        start,
      );
    }
  }
  return whole;
}

/**
 * @param {Tensor} tensor
 * @param {number} start
 * @param {number} stop
 */
export function rowsOf(tensor, start, stop) {
  const rowSize = count(tensor.shape.slice(1));
  const data = tensor.data.slice(start * rowSize, stop * rowSize);
  return new Tensor(tensor.dtype, [stop - start, ...tensor.shape.slice(1)], data);
}

/**
 * The tensor with the first `size` of an axis, or with fewer if it has fewer.
 * @param {Tensor} tensor
 * @param {number} axis
 * @param {number} size
 */
export function trimmed(tensor, axis, size) {
  if (size >= tensor.shape[axis]) return tensor;
  const shape = tensor.shape.map((old, index) => (index === axis ? size : old));
  const result = zeros(tensor.dtype, shape);
  const inner = count(tensor.shape.slice(axis + 1));
  const outer = count(tensor.shape.slice(0, axis));
  for (let index = 0; index < outer; index++) {
    const start = index * tensor.shape[axis] * inner;
    result.data.set(
      /** @type {any} */ (tensor.data.subarray(start, start + size * inner)),
      index * size * inner,
    );
  }
  return result;
}
