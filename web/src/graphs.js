// `Graphs`: which graph of a bundle runs a batch.

import { BundleError, InputError } from "./errors.js";
import { shown } from "./fields.js";
import { nearest, rangeText, takes } from "./sizes.js";

/** @typedef {import("./manifest.js").Graph} Graph */
/** @typedef {import("./sizes.js").SizeRange} SizeRange */

/**
 * Dynamic axis -> the sizes that a graph has to be right for: that of the run, or those of each request.
 * @typedef {ReadonlyMap<string, ReadonlySet<number>>} Sizes
 */

/**
 * A graph, and the steps to give it, padding included; null if the model has no single time axis.
 * @typedef {{graph: Graph, steps: number | null}} Choice
 */

/** @type {SizeRange} */
const ANY = [1, null];

/**
 * The graphs in one precision: that which is asked for, or the only one.
 * @param {readonly Graph[]} graphs
 * @param {string | undefined} precision
 * @param {string} address of the bundle
 */
export function ofPrecision(graphs, precision, address) {
  const offered = [...new Set(graphs.map((graph) => graph.precision))];
  const chosen = precision ?? (offered.length === 1 ? offered[0] : undefined);
  if (chosen !== undefined && offered.includes(chosen)) {
    return graphs.filter((graph) => graph.precision === chosen);
  }
  const names = offered.join(" and ");
  // Graphs in several precisions would race, and the numbers depend on which of them wins.
  const rule = chosen === undefined ? "must say which" : `is ${shown(chosen)}`;
  throw new BundleError(`${address} has graphs in ${names}; \`precision\` ${rule}.`);
}

export class Graphs {
  /** @param {readonly Graph[]} graphs */
  constructor(graphs) {
    /** For any number of steps, the fastest first. */
    this.dynamic = graphs
      .filter(({ steps }) => steps === null)
      .sort((a, b) => a.milliseconds - b.milliseconds);
    /** Each for one number of steps, the fewest first. */
    this.buckets = graphs
      .filter(({ steps }) => steps !== null)
      .sort((a, b) => stepsOf(a) - stepsOf(b) || (a.file < b.file ? -1 : 1));
    /** The one that a first run is likely to need. */
    this.first = this.dynamic[0] ?? this.buckets[0];
  }

  /**
   * Pick the graph for a batch, of those that are right for its sizes.
   *
   * 1. The bucket of exactly these steps.
   * 2. The graph for any number of steps.
   * 3. The next larger bucket, if rows may be padded.
   *
   * @param {number | null} steps of the longest request; null if the model has no single time axis
   * @param {Sizes} sizes
   * @param {() => Promise<boolean>} mayPad called only where that matters, since the answer takes trial runs
   * @param {(axis: string) => string} place where an axis is in the inputs, for the error
   * @returns {Promise<Choice>}
   */
  async pick(steps, sizes, mayPad, place) {
    const dynamic = this.dynamic.find((graph) => misfit(graph, sizes) === undefined);
    const buckets = this.buckets.filter((graph) => misfit(graph, sizes) === undefined);
    if (dynamic === undefined && !buckets.length) this.#refuse(steps, sizes, place);
    if (steps === null) {
      if (dynamic !== undefined) return { graph: dynamic, steps };
      if (this.buckets.length === 1) return { graph: buckets[0], steps };
      throw new InputError(
        "the inputs differ in their steps; the bundle's graphs take one number for all.",
      );
    }
    const exact = buckets.find((graph) => graph.steps === steps);
    const graph = exact ?? dynamic;
    if (graph !== undefined) return { graph, steps };
    const larger = buckets.find((bucket) => stepsOf(bucket) > steps);
    if (larger !== undefined && (await mayPad())) return { graph: larger, steps: larger.steps };
    const rule = (await mayPad())
      ? `at most ${Math.max(...buckets.map(stepsOf))}`
      : `exactly ${this.buckets.map(stepsOf).join(" or ")}`;
    throw new InputError(
      `the inputs have ${steps} steps; the bundle's graphs take ${rule}: export another bucket.`,
    );
  }

  /**
   * Steps that every graph for any number of steps takes: these, or the next ones.
   * @param {number} steps
   * @param {ReadonlySet<string>} timeAxes
   */
  stepsWithin(steps, timeAxes) {
    for (const { ranges } of this.dynamic) {
      for (const axis of timeAxes) steps = nearest(ranges.get(axis) ?? ANY, steps);
    }
    return steps;
  }

  /**
   * Whether every graph takes this size of an axis.
   * @param {string} axis
   * @param {number} size
   */
  allTake(axis, size) {
    return [...this.dynamic, ...this.buckets].every(({ ranges }) =>
      takes(ranges.get(axis) ?? ANY, size),
    );
  }

  /** Dynamic axis with a range -> a size that the graphs take. */
  get leastSizes() {
    /** @type {Map<string, number>} */
    const sizes = new Map();
    for (const { ranges } of [...this.dynamic, ...this.buckets]) {
      for (const [axis, [least]] of ranges) sizes.set(axis, Math.max(sizes.get(axis) ?? 1, least));
    }
    return sizes;
  }

  /**
   * @param {number | null} steps
   * @param {Sizes} sizes
   * @param {(axis: string) => string} place
   */
  #refuse(steps, sizes, place) {
    const exact = this.buckets.filter((graph) => graph.steps === steps);
    for (const graph of [...exact, ...this.dynamic, ...this.buckets]) {
      const found = misfit(graph, sizes);
      if (found === undefined) continue;
      throw new InputError(
        `${place(found.axis)} has size ${found.size}; the model takes ${rangeText(found.range)}: with others it ` +
          "computes something else, which its graph does not have, or fails.",
      );
    }
  }
}

/**
 * The first size that a graph is not right for.
 * @param {Graph} graph
 * @param {Sizes} sizes
 */
function misfit({ ranges }, sizes) {
  for (const [axis, range] of ranges) {
    for (const size of sizes.get(axis) ?? []) {
      if (!takes(range, size)) return { axis, size, range };
    }
  }
  return undefined;
}

/** @param {Graph} graph one of the buckets */
function stepsOf({ steps }) {
  return /** @type {number} */ (steps);
}
