import assert from "node:assert/strict";
import { test } from "node:test";

import { Bundle } from "../src/bundle.js";
import { InputError, StreamError } from "../src/errors.js";
import { graph, opener, sums } from "./helpers.js";

const open = () => Bundle.open(sums([graph("a.onnx")], { lengths: false, states: true }), opener());

test("a stream holds the states", async () => {
  const bundle = await open();
  const stream = bundle.stream();
  assert.deepEqual(stream.states, {});
  const { y, total } = await stream.run({
    x: [
      [1, 2],
      [3, 4],
    ],
  });
  assert.deepEqual(
    [y.toNested(), total],
    [
      [
        [1, 3],
        [3, 7],
      ],
      undefined,
    ],
  );
  assert.deepEqual((await stream.run({ x: [[1], [1]] })).y.toNested(), [[4], [8]]);
  assert.deepEqual(stream.states.start.toNested(), [[4], [8]]);
  // Another stream goes on from there; this one begins anew.
  const other = bundle.stream();
  assert.deepEqual((await other.run({ x: [[1], [1]], ...stream.states })).y.toNested(), [[5], [9]]);
  stream.reset();
  assert.deepEqual((await stream.run({ x: [[1]] })).y.toNested(), [[1]]);
});

test("chunks run in the order in which they are given, on what their arrays had then", async () => {
  const stream = (await open()).stream();
  const data = new Float32Array(1);
  const chunks = [1, 2, 3].map((value) => {
    data[0] = value;
    return stream.run({ x: { shape: [1, 1], data } });
  });
  assert.deepEqual(
    (await Promise.all(chunks)).map(({ y }) => y.toNested()),
    [[[1]], [[3]], [[6]]],
  );
});

test("a chunk that fails leaves the states as they were, and those already given after it are refused", async () => {
  const stream = (await open()).stream();
  await stream.run({ x: [[1]] });
  const [wrong, after] = await Promise.allSettled([
    stream.run({ x: [[1], [1]] }),
    stream.run({ x: [[1]] }),
  ]);
  assert.deepEqual(
    wrong.reason,
    new InputError("the stream has 1 rows, this chunk has 2; a stream keeps its rows."),
  );
  assert.ok(after.reason instanceof StreamError);
  assert.deepEqual((await stream.run({ x: [[1]] })).y.toNested(), [[2]]);
  await assert.rejects(stream.run({ x: "" }), InputError);
  assert.deepEqual((await stream.run({ x: [[1]] })).y.toNested(), [[3]]);
});

test("states are given with the first chunk only", async () => {
  const stream = (await open()).stream();
  const { total } = await stream.run({ x: [[1]], start: [[10]] }, { outputs: ["total"] });
  assert.deepEqual(total.toNested(), [[11]]);
  await assert.rejects(
    stream.run({ x: [[1]], start: [[10]] }),
    new InputError(
      "the stream holds `start`; give it with the first chunk only, or begin another stream.",
    ),
  );
});
