import assert from "node:assert/strict";
import { test } from "node:test";

import { externalFiles, indexRanges } from "../src/onnx_file.js";

const bytes = (...parts) =>
  parts.flatMap((part) => (typeof part === "string" ? [...new TextEncoder().encode(part)] : part));
const field = (number, content) =>
  bytes([number * 8 + 2, (content.length % 128) | 128, content.length >> 7], content);
const property = (key, value) => field(14, bytes(field(1, bytes(key)), field(2, bytes(value))));

test("the ranges of indices are found among other fields, and the rows of tables", () => {
  const file = Uint8Array.from(
    bytes(
      [1 * 8, 150, 1], // a number
      field(7, new Array(300).fill(0)), // a graph
      property("deploy_rnn.form", "scan"),
      property("deploy_rnn.table_rows", '{"tokens": 1000}'),
      property("deploy_rnn.index_ranges", '{"shifted": [-1, 998]}'),
      [5 * 8 + 5, 0, 0, 0, 0, 6 * 8 + 1, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
  );
  const ranges = { tokens: { least: 0, most: 999 }, shifted: { least: -1, most: 998 } };
  assert.deepEqual(indexRanges(file), new Map(Object.entries(ranges)));
  assert.deepEqual(indexRanges(new Uint8Array()), new Map());
});

test("the files of weights are found, in the graph and in the body of a loop", () => {
  const tensor = (...entries) =>
    entries.flatMap(([key, value]) =>
      field(13, bytes(field(1, bytes(key)), field(2, bytes(value)))),
    );
  const weight = field(5, tensor(["location", "weights.bin"], ["offset", "0"]));
  const body = field(6, field(5, tensor(["location", "body.bin"])));
  const file = Uint8Array.from(
    field(7, bytes(weight, weight, field(5, []), field(1, field(5, body)))),
  );
  assert.deepEqual(externalFiles(file), new Set(["weights.bin", "body.bin"]));
  assert.deepEqual(externalFiles(new Uint8Array()), new Set());
});

test("what is no ONNX file is noticed", () => {
  assert.throws(() => indexRanges(Uint8Array.of(14 * 8 + 2, 200)), RangeError);
  assert.throws(() => indexRanges(Uint8Array.of(3)), RangeError);
});
