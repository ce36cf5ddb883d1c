// Trial runs of a model: does batching or padding change its answers?
//
// A recurrent layer with lengths passes. A model that normalises over the batch, or smooths over time before its layer,
// does not, and nothing in its inputs tells: only running it does.

import { InputError, RunError } from "./errors.js";
import { nearest } from "./onnx_file.js";
import { makeRequest } from "./request.js";
import { count, sizeOf } from "./sizes.js";
import { ARRAYS, Tensor, trimmed } from "./tensors.js";

/** @typedef {import("./onnx_file.js").IndexRange} IndexRange */
/** @typedef {import("./request.js").Request} Request */
/** @typedef {import("./signature.js").Signature} Signature */
/** @typedef {Map<string, Tensor>} Outputs */

/**
 * A model to try.
 * @typedef {object} Subject
 * @property {Signature} signature
 * @property {(batch: Request[], steps: number) => Promise<Outputs[]>} run requests together, with so many steps
 * @property {ReadonlyMap<string, number>} leastSizes dynamic axes that may not have every size -> one that they take
 * @property {ReadonlyMap<string, IndexRange>} indexRanges inputs that are indices -> what they may be
 */

const TOLERANCE = 1e-3; // rounding differs with the sizes of a product

/**
 * Whether rows of several requests may share a run, and whether they may be padded: at most five small runs.
 * @param {Subject} subject
 * @param {number} short steps that it takes
 * @param {number} long more of them; as many, if it takes one number only
 */
export async function tryBatching(subject, short, long) {
  const rowsAreIndependent = await holds(() => rowsMaySit(subject, short));
  if (!rowsAreIndependent || !subject.signature.lengthsCoverTime)
    return { rowsAreIndependent, paddingIsHarmless: false };
  const check =
    short === long
      ? () => paddingIsNotRead(subject, short)
      : () => longerRunIsTheSame(subject, short, long);
  return { rowsAreIndependent, paddingIsHarmless: await holds(check) };
}

/**
 * Whether a row gets the same answer alone and next to another, which is longer if rows have lengths.
 * @param {Subject} subject
 * @param {number} steps
 */
async function rowsMaySit(subject, steps) {
  const { signature, run } = subject;
  if (signature.batchAxis === null) return false;
  // A size that neither the inputs nor their lengths tell may depend on what else is in the run.
  if (signature.trimmedAxes.size && signature.lengths.size !== 1) return false;
  const rows = [1, 2].map((seed) => example(subject, steps, seed));
  if (signature.lengths.size)
    rows[0] = shortened(rows[0], subject, Math.max(1, Math.floor(steps / 2)), 0);
  const together = await run(rows, steps);
  /** @type {Outputs[]} */
  const alone = [];
  for (const row of rows) alone.push(...(await run([row], steps)));
  return together.every((outputs, index) => isSame(outputs, alone[index]));
}

/**
 * Whether a row of `short` steps gets the same answer in a run of `long` steps.
 * @param {Subject} subject
 * @param {number} short
 * @param {number} long
 */
async function longerRunIsTheSame(subject, short, long) {
  const row = example(subject, short, 3);
  const [padded] = await subject.run([row], long);
  const [alone] = await subject.run([row], short);
  return isSame(padded, alone);
}

/**
 * Whether the values beyond a row's end do not matter, where the graph takes one number of steps only.
 * @param {Subject} subject
 * @param {number} steps
 */
async function paddingIsNotRead(subject, steps) {
  if (steps === 1) return true; // no row can be shorter
  const { signature } = subject;
  const length = Math.floor(steps / 2);
  const row = example(subject, steps, 4);
  const results = [];
  for (const padding of [0, 1]) {
    const [outputs] = await subject.run([shortened(row, subject, length, padding)], steps);
    // What the graph gives beyond the row's end may well depend on the padding.
    for (const { name, time } of signature.callerOutputs) {
      const output = outputs.get(name);
      if (output && time !== null) outputs.set(name, trimmed(output, time, length));
    }
    results.push(outputs);
  }
  return isSame(results[0], results[1]);
}

/**
 * A row of so many steps: random numbers, and 0 or 1 where they are whole, or the indices next to these.
 * @param {Subject} subject
 * @param {number} steps
 * @param {number} seed
 */
function example({ signature, leastSizes, indexRanges }, steps, seed) {
  const sizes = new Map(leastSizes);
  for (const axis of signature.timeAxes) sizes.set(axis, steps);
  if (signature.batchAxis !== null) sizes.set(signature.batchAxis, 1);
  const random = numbers(seed);
  const given = signature.callerInputs.filter(({ name }) => !signature.optional.has(name));
  const tensors = given.map(({ name, dtype, shape }) => {
    const concrete = shape.map((size) => sizeOf(size, sizes) || 1);
    const [least, most] = [0, 1].map((number) => nearest(number, indexRanges.get(name)));
    const values = Array.from({ length: count(concrete) }, () =>
      dtype.startsWith("float")
        ? 2 * random() - 1
        : least + Math.floor((most - least + 1) * random()),
    );
    return [name, new Tensor(dtype, concrete, filled(dtype, values))];
  });
  return makeRequest(Object.fromEntries(tensors), signature);
}

/**
 * @param {string} dtype
 * @param {number[]} values
 */
function filled(dtype, values) {
  const isBig = ARRAYS[dtype].name.startsWith("Big");
  return new ARRAYS[dtype](isBig ? values.map(BigInt) : values);
}

/**
 * Numbers from 0 to 1, the same for a seed each time.
 * @param {number} seed
 */
function numbers(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 0x915f77f5) + 0x3c6ef35f) >>> 0; // the upper bits are the random ones
    return state / 2 ** 32;
  };
}

/**
 * The row with fewer steps, and `padding` in all that is beyond them.
 * @param {Request} row
 * @param {Subject} subject
 * @param {number} length
 * @param {number} padding
 */
function shortened(row, { signature, indexRanges }, length, padding) {
  const tensors = signature.callerInputs.map(({ name, dtype, time }) => {
    const { shape, data } = /** @type {Tensor} */ (row.tensors.get(name));
    const values = Array.from(data, Number);
    if (signature.lengths.has(name)) {
      values.forEach((value, index) => (values[index] = Math.min(value, length)));
    } else if (time !== null) {
      const inner = count(shape.slice(time + 1));
      values.forEach((value, index) => {
        const step = Math.floor(index / inner) % shape[time];
        values[index] = step < length ? value : nearest(padding, indexRanges.get(name));
      });
    }
    return [name, new Tensor(dtype, shape, filled(dtype, values))];
  });
  return makeRequest(Object.fromEntries(tensors), signature);
}

/**
 * The result of a check; false if a run fails, since then nothing is known.
 * @param {() => Promise<boolean>} check
 */
async function holds(check) {
  try {
    return await check();
  } catch (error) {
    if (error instanceof InputError || error instanceof RunError) return false;
    throw error;
  }
}

/**
 * Whether all outputs are equal up to rounding.
 * @param {Outputs} outputs
 * @param {Outputs} expectedOutputs
 */
function isSame(outputs, expectedOutputs) {
  return [...outputs].every(([name, { shape, data }]) => {
    const expected = /** @type {Tensor} */ (expectedOutputs.get(name));
    if (String(shape) !== String(expected.shape)) return false;
    const wanted = Array.from(expected.data, Number);
    return Array.from(data, Number).every((value, index) => isClose(value, wanted[index]));
  });
}

/**
 * @param {number} value
 * @param {number} wanted
 */
function isClose(value, wanted) {
  if (Object.is(value, wanted) || value === wanted) return true; // NaN and infinity, too
  return Math.abs(value - wanted) <= TOLERANCE + TOLERANCE * Math.abs(wanted);
}
