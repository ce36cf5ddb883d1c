import assert from "node:assert/strict";
import { test } from "node:test";

import { InputError } from "../src/errors.js";
import { makeRequest, withCheckedIndices } from "../src/request.js";
import { Signature, toGraph } from "../src/signature.js";
import { graph, spec, sums } from "./helpers.js";

const signature = new Signature(sums([graph("a.onnx")], { states: true }));
const bigs = (...values) => BigInt64Array.of(...values);

test("callers see every tensor batch-first", () => {
  assert.deepEqual(
    signature.callerInputs.map(({ shape }) => shape),
    [["B", "T"], ["B"], ["B", 1]],
  );
  assert.deepEqual(toGraph(spec("x", "float32", [4, "T", "B"], 2, 1)), [2, 1, 0]);
  assert.equal(signature.batchAxis, "B");
  assert.deepEqual(signature.timeAxes, new Set(["T"]));
  assert.ok(signature.lengthsCoverTime);
  assert.deepEqual(signature.trimmedAxes, new Map());
});

test("an output as long as the longest row of a run is known by its axis", () => {
  const manifest = sums([graph("a.onnx")]);
  manifest.outputs[0].shape = ["longest", "B"];
  assert.deepEqual(new Signature(manifest).trimmedAxes, new Map([["y", 1]]));
});

test("what is left out is filled in", () => {
  const request = makeRequest(
    {
      x: [
        [1, 2, 3],
        [4, 5, 6],
      ],
    },
    signature,
  );
  assert.deepEqual([request.rows, request.steps, request.otherSizes.size], [2, 3, 0]);
  assert.deepEqual(request.tensors.get("lengths").data, bigs(3n, 3n));
  assert.deepEqual(request.tensors.get("start").shape, [2, 1]);
  assert.deepEqual(request.tensors.get("start").data, Float32Array.of(0, 0));
});

test("inputs that the model does not take are refused with what to do", () => {
  for (const [inputs, message] of [
    [[], "`inputs` must be an object of tensors by name, got a list of 0."],
    [{}, "input `x` is missing; the inputs are x, lengths, start."],
    [{ x: [[1]], y: [[1]] }, "there is no input `y`; the inputs are x, lengths, start."],
    [{ x: [1] }, "`x` has shape [1], the model takes x: float32 [B, T] with no size 0."],
    [{ x: [[], []] }, "`x` has shape [2, 0], the model takes x: float32 [B, T] with no size 0."],
    [
      { x: [[1]], start: [[1, 2]] },
      "`start` has shape [1, 2], the model takes start: float32 [B, 1] with no size 0.",
    ],
    [
      { x: [[1]], lengths: bigs(1n, 1n) },
      "`lengths` has B=2, `x` has B=1; the model takes x: float32 [B, T] and lengths: int64 [B].",
    ],
    [
      {
        x: [
          [1, 2],
          [1, 2],
        ],
        lengths: [2, 0],
      },
      "`lengths` has 0 in row 1; a row has 1 to 2 steps.",
    ],
    [{ x: [[1, 2]], lengths: [3] }, "`lengths` has 3 in row 0; a row has 1 to 2 steps."],
  ]) {
    assert.throws(() => makeRequest(inputs, signature), new InputError(message));
  }
});

test("an index must be in its table, but in padding", () => {
  const manifest = sums([graph("a.onnx")]);
  manifest.inputs[0].dtype = "int64";
  const ofIndices = new Signature(manifest);
  const range = (least, most) => new Map([["x", { least, most }]]);
  const check = (inputs, ranges = range(0, 9)) =>
    withCheckedIndices(makeRequest(inputs, ofIndices), ranges, ofIndices);
  const checked = check({
    x: [
      [9, 0],
      [3, -1],
    ],
    lengths: [2, 1],
  });
  assert.deepEqual(checked.tensors.get("x").data, bigs(9n, 0n, 3n, 0n));
  const shifted = check({ x: [[2, -1]], lengths: [1] }, range(1, 3));
  assert.deepEqual(shifted.tensors.get("x").data, bigs(2n, 1n));
  const rule = "must be from 0 to 9: it is an index into a table.";
  assert.throws(() => check({ x: [[9, 10]] }), new InputError(`\`x\` has 10 at [0, 1]; ${rule}`));
  assert.throws(
    () =>
      check({
        x: [
          [1, 1],
          [-1, 1],
        ],
      }),
    new InputError(`\`x\` has -1 at [1, 0]; ${rule}`),
  );
});
