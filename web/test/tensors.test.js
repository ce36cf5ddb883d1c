import assert from "node:assert/strict";
import { test } from "node:test";

import { InputError } from "../src/errors.js";
import { Tensor, asTensor, joined, rowsOf, transposed, trimmed } from "../src/tensors.js";
import { spec } from "./helpers.js";

const floats = (shape, ...values) => new Tensor("float32", shape, Float32Array.from(values));

test("inputs may be nested lists, typed arrays, or numbers with a shape", () => {
  const x = spec("x", "float32", ["B", "T"]);
  assert.deepEqual(
    asTensor(
      [
        [1, 2],
        [3, 4],
      ],
      x,
    ),
    floats([2, 2], 1, 2, 3, 4),
  );
  assert.deepEqual(asTensor({ shape: [1, 2], data: [1, NaN] }, x), floats([1, 2], 1, NaN));
  assert.deepEqual(
    asTensor({ dims: [2], type: "float32", data: Float32Array.of(1, 2) }, x),
    floats([2], 1, 2),
  );
  assert.deepEqual(asTensor(Float32Array.of(1, 2), x), floats([2], 1, 2));
  assert.deepEqual(
    asTensor([Float32Array.of(1, 2), Float32Array.of(3, 4)], x),
    floats([2, 2], 1, 2, 3, 4),
  );
  assert.deepEqual(asTensor(5, x), floats([], 5));
  assert.deepEqual(asTensor([[], []], x), floats([2, 0]));
  const ids = asTensor([[1, 2n]], spec("ids", "int64", ["B", "T"]));
  assert.deepEqual(ids, new Tensor("int64", [1, 2], BigInt64Array.of(1n, 2n)));
  assert.deepEqual(asTensor([true, 0], spec("mask", "bool", ["B"])).toNested(), [true, false]);
});

test("inputs are copied: the caller may use its array again", () => {
  const data = Float32Array.of(1, 2);
  const tensor = asTensor({ shape: [2], data }, spec("x", "float32", ["T"]));
  data.fill(0);
  assert.deepEqual([...tensor.data], [1, 2]);
});

test("what is no tensor is refused with what to do", () => {
  const x = spec("x", "float32", ["B", "T"]);
  const ids = spec("ids", "int64", ["B", "T"]);
  const small = spec("n", "uint8", ["B"]);
  const mask = spec("mask", "bool", ["B"]);
  for (const [value, target, message] of [
    [
      "text",
      x,
      '`x` must be nested lists of numbers, or {data, shape} with a Float32Array, got "text".',
    ],
    [
      null,
      x,
      "`x` must be nested lists of numbers, or {data, shape} with a Float32Array, got null.",
    ],
    [
      [[1, 2], [3]],
      x,
      "`x` has 1 at [1], and 2 at [0]; rows of unlike length must be requests of their own: run([{x: ...}, {x: ...}]).",
    ],
    [
      [[1], 2],
      x,
      "`x` has 2 at [1], and 1 at [0]; rows of unlike length must be requests of their own: run([{x: ...}, {x: ...}]).",
    ],
    [
      [Float32Array.of(1, 2), Float32Array.of(3)],
      x,
      "`x` has 1 at [1], and 2 at [0]; rows of unlike length must be requests of their own: run([{x: ...}, {x: ...}]).",
    ],
    [
      [Float64Array.of(1)],
      x,
      "`x` is a Float64Array, the graph takes float32; use Float32Array.from(data).",
    ],
    [[[1, , 3]], x, "`x` has undefined at [0,1]; must be a number."], // prettier-ignore
    [
      [[[1], [2]], Float32Array.of(3, 4)],
      x,
      "`x` has a Float32Array at [1], and 2 at [0]; rows of unlike length must be requests of their own: run([{x: ...}, {x: ...}]).",
    ],
    [[["a"]], x, '`x` has "a" at [0,0]; must be a number.'],
    [[[1n]], x, "`x` has 1 at [0,0]; must be a number."],
    [[[1.5]], ids, "`ids` has 1.5 at [0,0]; must be a whole number, for int64."],
    [[256], small, "`n` has 256 at [0]; must be within the range of uint8."],
    [[-1], small, "`n` has -1 at [0]; must be within the range of uint8."],
    [[2], mask, "`mask` has 2 at [0]; must be true or false."],
    [
      { shape: [1], data: Int32Array.of(1) },
      ids,
      "`ids` is a Int32Array, the graph takes int64; use BigInt64Array.from(data, BigInt).",
    ],
    [
      Float64Array.of(1),
      x,
      "`x` is a Float64Array, the graph takes float32; use Float32Array.from(data).",
    ],
    [{ shape: [2], data: [1] }, x, "`x` has 1 values, its shape [2] has 2."],
    [{ data: [1] }, x, "`x` must have `data` and a `shape` of whole numbers, got an object of 1."],
    [
      { shape: [-1], data: [1] },
      x,
      "`x` must have `data` and a `shape` of whole numbers, got an object of 2.",
    ],
    [{ shape: [1], dtype: "float64", data: [1] }, x, '`x` is "float64", the graph takes float32.'],
  ]) {
    assert.throws(() => asTensor(value, target), new InputError(message));
  }
});

test("axes are put in another order", () => {
  const tensor = floats([2, 3, 1], 1, 2, 3, 4, 5, 6);
  assert.deepEqual(transposed(tensor, [1, 0, 2]), floats([3, 2, 1], 1, 4, 2, 5, 3, 6));
  assert.deepEqual(transposed(transposed(tensor, [2, 0, 1]), [1, 2, 0]), tensor);
  assert.equal(transposed(tensor, [0, 1, 2]), tensor);
});

test("rows are joined with padding, and cut apart", () => {
  const whole = joined([floats([1, 2], 1, 2), floats([2, 1], 3, 4)], 3, 0);
  assert.deepEqual(whole, floats([3, 3], 1, 2, 0, 3, 0, 0, 4, 0, 0));
  assert.deepEqual(trimmed(rowsOf(whole, 0, 1), 1, 2), floats([1, 2], 1, 2));
  assert.deepEqual(trimmed(rowsOf(whole, 1, 3), 1, 1), floats([2, 1], 3, 4));
  assert.deepEqual(joined([floats([1], 1), floats([1], 2)], null, 0), floats([2], 1, 2));
  assert.deepEqual(joined([floats([1, 1], 1)], 3, 7), floats([1, 3], 1, 7, 7));
  assert.equal(trimmed(whole, 1, Infinity), whole);
});

test("tensors become nested lists", () => {
  assert.deepEqual(floats([2, 1, 2], 1, 2, 3, 4).toNested(), [[[1, 2]], [[3, 4]]]);
  assert.equal(floats([], 7).toNested(), 7);
  assert.deepEqual(new Tensor("int64", [1], BigInt64Array.of(3n)).toNested(), [3n]);
});
