import assert from "node:assert/strict";
import { test } from "node:test";

import { Bundle } from "../src/bundle.js";
import { BundleError, InputError, RunError } from "../src/errors.js";
import { ofPrecision } from "../src/graphs.js";
import { graph, opener, spec, sums } from "./helpers.js";

const values = (outputs) =>
  Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.toNested()]));

test("a request runs in the graph of its steps, or in that for any number", async () => {
  const opened = [];
  const open = opener();
  const graphs = [
    graph("8.onnx", 8),
    graph("slow.onnx", null, { milliseconds: 2 }),
    graph("fast.onnx"),
    graph("2.onnx", 2),
  ];
  const bundle = await Bundle.open(sums(graphs), (one) => (opened.push(one.file), open(one)));
  assert.deepEqual(opened, ["fast.onnx"]);
  assert.deepEqual(
    values(
      await bundle.run({
        x: [
          [1, 2],
          [3, 4],
        ],
      }),
    ),
    {
      y: [
        [1, 3],
        [3, 7],
      ],
      total: [[3], [7]],
    },
  );
  assert.deepEqual(opened, ["fast.onnx", "2.onnx"]);
  assert.deepEqual(values(await bundle.run({ x: [[1, 2, 3]] }, { outputs: ["total"] })), {
    total: [[6]],
  });
  assert.deepEqual(opened, ["fast.onnx", "2.onnx"]);
});

test("a request is padded to the next bucket, where that is harmless", async () => {
  const runs = [];
  const bundle = await Bundle.open(sums([graph("8.onnx", 8), graph("4.onnx", 4)]), opener(runs));
  assert.deepEqual(values(await bundle.run({ x: [[1, 2, 3]] })), { y: [[1, 3, 6]], total: [[6]] });
  assert.deepEqual(runs.at(-1), [4, 1]);
  await assert.rejects(
    bundle.run({ x: [new Array(9).fill(1)] }),
    new InputError(
      "the inputs have 9 steps; the bundle's graphs take at most 8: export another bucket.",
    ),
  );
});

test("no request is padded where that changes the answer, or where nothing says that a row ends", async () => {
  const exactly = new InputError(
    "the inputs have 3 steps; the bundle's graphs take exactly 4 or 8: export another bucket.",
  );
  const graphs = [graph("8.onnx", 8), graph("4.onnx", 4)];
  const wrong = (rows, steps) => steps / 100; // a model that looks at its padding
  const dependent = await Bundle.open(sums(graphs), opener([], { wrong }));
  await assert.rejects(dependent.run({ x: [[1, 2, 3]] }), exactly);
  const without = await Bundle.open(sums(graphs, { lengths: false }), opener());
  await assert.rejects(without.run({ x: [[1, 2, 3]] }), exactly);
});

test("no request is padded to the only bucket if the values beyond a row's end matter", async () => {
  const graphs = [graph("4.onnx", 4)];
  const right = await Bundle.open(sums(graphs), opener());
  assert.deepEqual(values(await right.run({ x: [[1, 2, 3]] })), { y: [[1, 3, 6]], total: [[6]] });
  const wrong = await Bundle.open(sums(graphs), opener([], { readsPadding: true }));
  await assert.rejects(
    wrong.run({ x: [[1, 2, 3]] }),
    new InputError(
      "the inputs have 3 steps; the bundle's graphs take exactly 4: export another bucket.",
    ),
  );
});

test("an output as long as the longest row of a run is cut to that of each request", async () => {
  const manifest = sums([graph("a.onnx")]);
  manifest.outputs[0].shape = ["longest", "B"];
  manifest.outputs[0].time = null;
  manifest.outputs[0].batch = 1;
  const runs = [];
  const bundle = await Bundle.open(manifest, opener(runs, { trims: true }));
  const answers = await bundle.run([{ x: [[1, 2, 3]] }, { x: [[4, 5, 6]], lengths: [2] }], {
    outputs: ["y"],
  });
  assert.deepEqual(answers.map(values), [{ y: [[1, 3, 6]] }, { y: [[4, 9]] }]);
  assert.deepEqual(runs.at(-1), [3, 2]);
});

test("requests of unlike length share a run, and are cut apart again", async () => {
  const runs = [];
  const bundle = await Bundle.open(sums([graph("a.onnx")]), opener(runs));
  const requests = [{ x: [[1, 2, 3]] }, { x: [[4], [5]] }, { x: [[6, 7, 9]], lengths: [2] }];
  const expected = [
    { y: [[1, 3, 6]], total: [[6]] },
    { y: [[4], [5]], total: [[4], [5]] },
    { y: [[6, 13, 0]], total: [[13]] },
  ];
  assert.deepEqual((await bundle.run(requests)).map(values), expected);
  assert.deepEqual(runs.at(-1), [3, 4]);
  assert.deepEqual(await bundle.run([]), []);
});

test("requests run apart where a row would change the answer of another", async () => {
  const runs = [];
  const wrong = (rows) => rows - 1;
  const bundle = await Bundle.open(sums([graph("a.onnx")]), opener(runs, { wrong }));
  const answers = await bundle.run([{ x: [[1]] }, { x: [[2]] }], { outputs: ["total"] });
  assert.deepEqual(answers.map(values), [{ total: [[1]] }, { total: [[2]] }]);
  assert.deepEqual(runs.slice(-2), [
    [1, 1],
    [1, 1],
  ]);
});

test("without lengths only requests of equal steps share a run", async () => {
  const runs = [];
  const bundle = await Bundle.open(sums([graph("a.onnx")], { lengths: false }), opener(runs));
  const answers = await bundle.run([{ x: [[1]] }, { x: [[2, 3]] }, { x: [[4]] }], {
    outputs: ["total"],
  });
  assert.deepEqual(answers.map(values), [{ total: [[1]] }, { total: [[5]] }, { total: [[4]] }]);
  assert.deepEqual(runs.slice(-2), [
    [1, 2],
    [2, 1],
  ]);
});

test("sizes that a graph is not right for are refused, and requests run apart if only together they are", async () => {
  const ranges = new Map([
    ["T", [2, 4]],
    ["B", [1, 2]],
  ]);
  const runs = [];
  const bundle = await Bundle.open(sums([graph("a.onnx", null, { ranges })]), opener(runs));
  await assert.rejects(
    bundle.run({ x: [[1]] }),
    (error) =>
      error instanceof InputError &&
      error.message.startsWith("axis 1 of `x`, T, has size 1; the model takes 2 to 4: with "),
  );
  await bundle.run([
    {
      x: [
        [1, 2],
        [1, 2],
      ],
    },
    { x: [[1, 2]] },
  ]);
  assert.deepEqual(runs.slice(-2), [
    [2, 2],
    [2, 1],
  ]);
});

test("one request that is refused is named", async () => {
  const bundle = await Bundle.open(sums([graph("a.onnx")]), opener());
  await assert.rejects(
    bundle.run([{ x: [[1]] }, {}]),
    new InputError("request 1: input `x` is missing; the inputs are x, lengths."),
  );
  await assert.rejects(
    bundle.run({ x: [[1]] }, { outputs: ["z"] }),
    new InputError('there is no output "z"; the outputs are y, total.'),
  );
  await assert.rejects(
    bundle.run({ x: [[1]] }, { outputs: [] }),
    new InputError(
      "`outputs` (=a list of 0) must be a list of names, or left out for all: y, total.",
    ),
  );
  assert.throws(
    () => bundle.stream(),
    new InputError(
      "sums has no states to carry from chunk to chunk; export it with streaming=True.",
    ),
  );
});

test("a graph whose download failed is fetched again", async () => {
  let failures = 1;
  const open = opener();
  const bundle = await Bundle.open(sums([graph("a.onnx"), graph("2.onnx", 2)]), async (one) => {
    if (one.steps === 2 && failures--) throw new BundleError("2.onnx cannot be fetched.");
    return open(one);
  });
  await assert.rejects(bundle.run({ x: [[1, 2]] }), new BundleError("2.onnx cannot be fetched."));
  assert.deepEqual(values(await bundle.run({ x: [[1, 2]] }, { outputs: ["total"] })), {
    total: [[3]],
  });
});

test("what a bundle cannot be is refused", async () => {
  const half = sums([graph("a.onnx")]);
  half.inputs[0] = spec("x", "float16", ["T", "B"], 1, 0);
  await assert.rejects(
    Bundle.open(half, opener()),
    /^BundleError: `x` is float16, for which not every browser has an array/,
  );
  const bundle = await Bundle.open(sums([graph("a.onnx")]), opener());
  await bundle.close();
  await assert.rejects(bundle.run({ x: [[1]] }), new BundleError("sums is closed; load it again."));
});

test("an axis of size 1 that the model drops is named", async () => {
  const open = opener();
  const bundle = await Bundle.open(sums([graph("a.onnx")]), async (one) => {
    const session = await open(one);
    const run = async (tensors, names) => {
      const results = await session.run(tensors, names);
      for (const result of results.values())
        result.shape = result.shape.filter((size) => size !== 1);
      return results;
    };
    return { ...session, run };
  });
  await assert.rejects(
    bundle.run({ x: [[1, 2]] }),
    (error) =>
      error instanceof RunError &&
      error.message.startsWith("output `y` has shape [2], the graph declares y: float32 [T, B]: "),
  );
});

test("a bundle of several precisions is opened in the one that is asked for", () => {
  const graphs = [graph("a.onnx"), graph("b.onnx", null, { precision: "int8" })];
  assert.deepEqual(ofPrecision(graphs, "int8", "tagger/"), [graphs[1]]);
  assert.deepEqual(ofPrecision(graphs.slice(1), undefined, "tagger/"), [graphs[1]]);
  for (const [precision, rule] of [
    [undefined, "must say which"],
    ["float16", 'is "float16"'],
  ]) {
    assert.throws(
      () => ofPrecision(graphs, precision, "tagger/"),
      new BundleError(`tagger/ has graphs in float32 and int8; \`precision\` ${rule}.`),
    );
  }
});
