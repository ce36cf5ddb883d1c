import assert from "node:assert/strict";
import { test } from "node:test";

import { BundleError } from "../src/errors.js";
import { readManifest } from "../src/manifest.js";

const ADDRESS = "http://host/tagger/manifest.json";
const DIGEST = "0".repeat(64);

const manifest = () => ({
  version: 2,
  name: "tagger",
  producer: "deploy-rnn 0.2.0",
  opset: 18,
  inputs: [
    { name: "x", dtype: "float32", shape: ["B", "T", 4], batch: 0, time: 1 },
    { name: "lengths", dtype: "int64", shape: ["B"], batch: 0, time: null },
    { name: "h_0", dtype: "float32", shape: [1, "B", 4], batch: 1, time: null },
  ],
  outputs: [{ name: "h_n", dtype: "float32", shape: [1, "B", 4], batch: 1, time: null }],
  lengths: { lengths: "T" },
  states: { h_0: "h_n" },
  graphs: [
    {
      file: "scan.onnx",
      form: "scan",
      precision: "float32",
      steps: null,
      nodes: 3,
      milliseconds: 0.5,
      ranges: { T: [2, null] },
    },
  ],
  sha256: { "scan.onnx": DIGEST, "weights.bin": DIGEST },
});

/** A manifest in which the value at a place such as "inputs.0.dtype" is another one, or (undefined) is missing. */
function changed(place, value) {
  const root = manifest();
  const keys = place.split("/");
  const last = keys.pop();
  const parent = keys.reduce((part, key) => part[key], root);
  parent[last] = value;
  return JSON.stringify(root);
}

test("a manifest is read", () => {
  const read = readManifest(JSON.stringify(manifest()), ADDRESS);
  assert.equal(read.name, "tagger");
  assert.deepEqual(read.inputs, manifest().inputs);
  assert.deepEqual(read.lengths, new Map([["lengths", "T"]]));
  assert.deepEqual(read.states, new Map([["h_0", "h_n"]]));
  assert.deepEqual(read.graphs[0].ranges, new Map([["T", [2, null]]]));
});

test("version 1 has no precision: it is that of the outputs", () => {
  const old = { ...manifest(), version: 1 };
  delete old.graphs[0].precision;
  assert.equal(readManifest(JSON.stringify(old), ADDRESS).graphs[0].precision, "float32");
  for (const tensor of [old.inputs[2], old.outputs[0]]) tensor.dtype = "float64";
  assert.equal(readManifest(JSON.stringify(old), ADDRESS).graphs[0].precision, "float64");
});

test("a field that is wrong is named", () => {
  for (const [place, value, message] of [
    ["name", undefined, "`name` is missing"],
    ["more", 1, "`more` is unknown"],
    ["name", "", '`name` must be a text of 1 to 2000 characters, got ""'],
    ["opset", 0, "`opset` must be a whole number, 1 or more, got 0"],
    ["inputs", {}, "`inputs` must be a list, got an object of 0"],
    [
      "inputs/0/dtype",
      "string",
      "`inputs[0].dtype` must be one of bool, uint8, uint16, uint32, uint64, int8, int16, int32, " +
        'int64, bfloat16, float16, float32, float64, got "string"',
    ],
    ["inputs/0/batch", 7, "`inputs[0].batch` must be a whole number, 0 to 2, got 7"],
    ["inputs/0/time", 0, "`inputs[0].time` must be another axis than `batch`, got 0"],
    [
      "inputs/0/shape/0",
      null,
      "`inputs[0].shape[0]` must be a whole number or the name of an axis, got null",
    ],
    ["inputs/1/name", "x", '`inputs[1].name` must be another name than the others, got "x"'],
    ["lengths/y", "T", '`a key of lengths` must be the name of an input, got "y"'],
    ["lengths/x", "T", '`a key of lengths` must be an input of whole numbers, got "x"'],
    ["states/h_0", "y", '`states.h_0` must be the name of an output, got "y"'],
    ["states/x", "h_n", '`states.x` must be an output that gives no other state, got "h_n"'],
    ["graphs", [], "`graphs` must be a list of at least 1, got a list of 0"],
    [
      "graphs/0/file",
      "other.onnx",
      '`graphs[0].file` must be the name of a file that `sha256` lists, got "other.onnx"',
    ],
    ["graphs/0/steps", 0, "`graphs[0].steps` must be a whole number, 1 or more, got 0"],
    ["graphs/0/milliseconds", -1, "`graphs[0].milliseconds` must be a number, 0 or more, got -1"],
    [
      "graphs/0/ranges/T",
      [2],
      "`graphs[0].ranges.T` must be a list of two: the least and the most, got a list of 1",
    ],
    [
      "graphs/0/ranges/T",
      [3, 2],
      "`graphs[0].ranges.T[1]` must be a whole number, 3 or more, got 2",
    ],
    ["sha256/scan.onnx", "abc", '`sha256.scan.onnx` must be 64 hexadecimal digits, got "abc"'],
    [
      "sha256/..",
      DIGEST,
      '`a key of sha256` must be the plain name of a file in the folder, other than the manifest, got ".."',
    ],
  ]) {
    const expected = new BundleError(`${ADDRESS} is not a manifest of version 2: ${message}.`);
    assert.throws(() => readManifest(changed(place, value), ADDRESS), expected, place);
  }
});

test("a later release, and what is no manifest at all, are refused", () => {
  const later = new BundleError(
    `${ADDRESS} has version 3; this module reads up to 2: install a newer one.`,
  );
  assert.throws(() => readManifest('{"version": 3, "else": true}', ADDRESS), later);
  assert.throws(
    () => readManifest("[]", ADDRESS),
    /is not a manifest of version 2: it must be an object, got a list of 0\.$/,
  );
  assert.throws(() => readManifest("{", ADDRESS), /manifest\.json is not JSON: SyntaxError/);
  assert.throws(
    () => readManifest("\n<!doctype html>", ADDRESS),
    /is not JSON: it is a page, .* check the address\.$/,
  );
});
