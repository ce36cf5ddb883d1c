// What the tests share: small manifests, and sessions that compute in JavaScript.

import { Tensor } from "../src/tensors.js";

export const spec = (name, dtype, shape, batch = null, time = null) => ({
  name,
  dtype,
  shape,
  batch,
  time,
});

export const graph = (file, steps = null, more = {}) => ({
  file,
  form: steps === null ? "scan" : "unrolled",
  steps,
  milliseconds: 1,
  precision: "float32",
  ranges: new Map(),
  ...more,
});

/** A model that sums up: y[t] = the sum of x to step t, total = the sum to the row's end; time-first in its graphs. */
export const sums = (graphs, { lengths = true, states = false } = {}) => ({
  name: "sums",
  inputs: [
    spec("x", "float32", ["T", "B"], 1, 0),
    ...(lengths ? [spec("lengths", "int64", ["B"], 0)] : []),
    ...(states ? [spec("start", "float32", [1, "B"], 1)] : []),
  ],
  outputs: [spec("y", "float32", ["T", "B"], 1, 0), spec("total", "float32", [1, "B"], 1)],
  lengths: new Map(lengths ? [["lengths", "T"]] : []),
  states: new Map(states ? [["start", "total"]] : []),
  graphs,
});

/** Opens sessions of `sums`; `runs` gets the shape of x of each run. */
export function opener(
  runs = [],
  { indexRanges = new Map(), wrong = () => 0, readsPadding = false, trims = false } = {},
) {
  return async () => ({
    indexRanges,
    release: async () => {},
    run: async (tensors, names) => {
      const {
        shape: [steps, rows],
        data,
      } = tensors.get("x");
      runs.push([steps, rows]);
      const total = Float32Array.from(tensors.get("start")?.data ?? new Float32Array(rows));
      const y = new Float32Array(steps * rows);
      for (let row = 0; row < rows; row++) {
        const length = readsPadding ? steps : Number(tensors.get("lengths")?.data[row] ?? steps);
        for (let step = 0; step < length; step++) {
          total[row] += data[step * rows + row] + wrong(rows, steps);
          y[step * rows + row] = total[row];
        }
      }
      // As `pad_packed_sequence` does: as many steps as the longest row.
      const longest = trims ? Math.max(...Array.from(tensors.get("lengths").data, Number)) : steps;
      const output = new Tensor("float32", [longest, rows], y.slice(0, longest * rows));
      const all = { y: output, total: new Tensor("float32", [1, rows], total) };
      return new Map(names.map((name) => [name, all[name]]));
    },
  });
}
