import assert from "node:assert/strict";
import { test } from "node:test";

import { namesIn, nearest, rangeText, sizeOf, takes } from "../src/sizes.js";

test("names are found in expressions, functions are not", () => {
  assert.deepEqual(namesIn("T"), ["T"]);
  assert.deepEqual(namesIn("Max(1, T//2) + audio.1"), ["T", "audio.1"]);
  assert.deepEqual(namesIn("größe"), ["größe"]);
  assert.deepEqual(namesIn(7), []);
});

test("sizes are computed from others", () => {
  const sizes = new Map([
    ["T", 6],
    ["B", 2],
  ]);
  for (const [size, value] of [
    [3, 3],
    ["T", 6],
    ["4*T", 24],
    ["T//4", 1],
    ["(T - 1)*B + 1", 11],
    ["-T + 7", 1],
    ["-T//4", -2],
    ["U", undefined],
    ["T//", undefined],
    ["(T", undefined],
    ["T T", undefined],
    ["Max(1, T)", undefined],
    ["T//0", undefined],
  ]) {
    assert.equal(sizeOf(size, sizes), value, String(size));
  }
});

test("ranges", () => {
  assert.deepEqual(
    [1, 2, 5, 6].map((size) => takes([2, 5], size)),
    [false, true, true, false],
  );
  assert.deepEqual(
    [1, 3, 9].map((size) => nearest([2, 5], size)),
    [2, 3, 5],
  );
  assert.ok(takes([2, null], 1e9));
  assert.deepEqual([rangeText([2, 5]), rangeText([2, null])], ["2 to 5", "2 or more"]);
});
