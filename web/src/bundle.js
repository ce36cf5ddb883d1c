// `Bundle`: a loaded model. Its requests are checked, padded, run in the right graph, and cut apart again.

import { collate, split } from "./collate.js";
import { BundleError, InputError } from "./errors.js";
import { shown } from "./fields.js";
import { Graphs } from "./graphs.js";
import { makeRequest, withCheckedIndices } from "./request.js";
import { Signature } from "./signature.js";
import { Stream } from "./stream.js";
import { ARRAYS } from "./tensors.js";
import { tryBatching } from "./trials.js";

/** @typedef {import("./graphs.js").Choice} Choice */
/** @typedef {import("./manifest.js").Graph} Graph */
/** @typedef {import("./manifest.js").Manifest} Manifest */
/** @typedef {import("./onnx_file.js").IndexRange} IndexRange */
/** @typedef {import("./request.js").Request} Request */
/** @typedef {import("./tensors.js").Tensor} Tensor */

/**
 * A graph that is ready to run.
 * @typedef {object} Session
 * @property {ReadonlyMap<string, IndexRange>} indexRanges inputs that are indices -> what they may be
 * @property {(tensors: ReadonlyMap<string, Tensor>, outputs: readonly string[]) => Promise<Map<string, Tensor>>} run
 * @property {() => Promise<void>} release
 */

const TRIAL_STEPS = [3, 7]; // of a shorter and of a longer row, where the model takes any number of steps

export class Bundle {
  #signature;
  #graphs;
  #openGraph;
  /** @type {Map<string, Promise<Session>>} */
  #sessions = new Map();
  /** @type {ReadonlyMap<string, IndexRange>} */
  #indexRanges = new Map();
  /** @type {Promise<{rowsAreIndependent: boolean, paddingIsHarmless: boolean}> | undefined} */
  #trials;
  #isClosed = false;

  /**
   * @param {Manifest} manifest
   * @param {(graph: Graph) => Promise<Session>} openGraph
   */
  constructor(manifest, openGraph) {
    this.#signature = new Signature(manifest);
    this.#graphs = new Graphs(manifest.graphs);
    this.#openGraph = openGraph;
    this.name = manifest.name;
    this.precision = manifest.graphs[0].precision;
    this.inputs = this.#signature.callerInputs.map(publicSpec);
    this.outputs = this.#signature.callerOutputs.map(publicSpec);
  }

  /**
   * Open the graph that a first run is likely to need; others are opened when a run needs them.
   * @param {Manifest} manifest
   * @param {(graph: Graph) => Promise<Session>} openGraph
   */
  static async open(manifest, openGraph) {
    for (const { name, dtype } of [...manifest.inputs, ...manifest.outputs]) {
      if (!Object.hasOwn(ARRAYS, dtype)) {
        throw new BundleError(
          `\`${name}\` is ${dtype}, for which not every browser has an array; export the model with float32 ` +
            "inputs and outputs.",
        );
      }
    }
    const bundle = new Bundle(manifest, openGraph);
    bundle.#indexRanges = (await bundle.#session(bundle.#graphs.first)).indexRanges;
    return bundle;
  }

  /**
   * @param {any} inputs one request, or a list of them
   * @param {{outputs?: readonly string[]}} [options]
   * @returns {Promise<any>}
   */
  async run(inputs, { outputs } = {}) {
    // Before anything is awaited: the caller may use its arrays again.
    const names = this.#outputNames(outputs);
    if (!Array.isArray(inputs))
      return Object.fromEntries(await this.#runOne(this.#request(inputs), names));
    const requests = inputs.map((request, index) => {
      try {
        return this.#request(request);
      } catch (error) {
        if (!(error instanceof InputError)) throw error;
        throw new InputError(`request ${index}: ${error.message}`, { cause: error });
      }
    });
    const answers = await this.#runAll(requests, names);
    return answers.map((answer) => Object.fromEntries(answer));
  }

  stream() {
    if (!this.#signature.states.size) {
      throw new InputError(
        `${this.name} has no states to carry from chunk to chunk; export it with streaming=True.`,
      );
    }
    return new Stream(this, this.#signature);
  }

  async close() {
    this.#isClosed = true;
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    for (const opened of await Promise.allSettled(sessions)) {
      if (opened.status === "fulfilled") await opened.value.release();
    }
  }

  /**
   * @param {unknown} inputs
   * @returns {Request}
   */
  #request(inputs) {
    return withCheckedIndices(
      makeRequest(inputs, this.#signature),
      this.#indexRanges,
      this.#signature,
    );
  }

  /** @param {readonly string[] | undefined} outputs */
  #outputNames(outputs) {
    const names = this.outputs.map(({ name }) => name);
    if (outputs === undefined) return names;
    if (!Array.isArray(outputs) || !outputs.length) {
      throw new InputError(
        `\`outputs\` (=${shown(outputs)}) must be a list of names, or left out for all: ${names.join(", ")}.`,
      );
    }
    const unknown = outputs.find((name) => !names.includes(name));
    if (unknown !== undefined) {
      throw new InputError(
        `there is no output ${shown(unknown)}; the outputs are ${names.join(", ")}.`,
      );
    }
    return outputs;
  }

  /**
   * @param {Request} request
   * @param {readonly string[]} names
   */
  async #runOne(request, names) {
    const [answer] = await this.#runBatch(await this.#choose([request]), [request], names);
    return answer;
  }

  /**
   * Rows share runs where that does not change their answers.
   * @param {readonly Request[]} requests
   * @param {readonly string[]} names
   */
  async #runAll(requests, names) {
    /** @type {Map<string, Tensor>[]} */
    const answers = new Array(requests.length);
    for (const numbers of await this.#groups(requests)) {
      const batch = numbers.map((number) => requests[number]);
      const results = await this.#runGroup(batch, names);
      numbers.forEach((number, index) => (answers[number] = results[index]));
    }
    return answers;
  }

  /**
   * @param {readonly Request[]} batch
   * @param {readonly string[]} names
   */
  async #runGroup(batch, names) {
    if (batch.length > 1) {
      const choice = await this.#choose(batch).catch(ignoreRefusal);
      if (choice !== undefined) return this.#runBatch(choice, batch, names);
    }
    // No graph takes all of them, but one may take each.
    const answers = [];
    for (const request of batch) answers.push(await this.#runOne(request, names));
    return answers;
  }

  /**
   * The numbers of the requests that may share a run.
   * @param {readonly Request[]} requests
   * @returns {Promise<Iterable<number[]>>}
   */
  async #groups(requests) {
    const numbers = [...requests.keys()];
    if (requests.length < 2) return numbers.map((number) => [number]);
    const { rowsAreIndependent, paddingIsHarmless } = await this.#tried();
    if (!rowsAreIndependent) return numbers.map((number) => [number]);
    /** @type {Map<string, number[]>} */
    const groups = new Map();
    for (const number of numbers) {
      const { otherSizes, steps } = requests[number];
      const key = JSON.stringify([[...otherSizes], paddingIsHarmless ? null : steps]);
      groups.set(key, [...(groups.get(key) ?? []), number]);
    }
    return groups.values();
  }

  /**
   * @param {readonly Request[]} batch
   * @returns {Promise<Choice>}
   */
  #choose(batch) {
    const mayPad = async () => (await this.#tried()).paddingIsHarmless;
    return this.#graphs.pick(longest(batch), this.#sizes(batch), mayPad, (axis) =>
      this.#place(axis),
    );
  }

  /**
   * @param {Choice} choice
   * @param {readonly Request[]} batch
   * @param {readonly string[]} names
   */
  async #runBatch({ graph, steps }, batch, names) {
    const session = await this.#session(graph);
    const tensors = collate(batch, this.#signature, steps, this.#indexRanges);
    const results = await session.run(tensors, names);
    return split(results, batch, this.#signature, steps);
  }

  /**
   * @param {Graph} graph
   * @returns {Promise<Session>}
   */
  #session(graph) {
    if (this.#isClosed) throw new BundleError(`${this.name} is closed; load it again.`);
    const opened = this.#sessions.get(graph.file) ?? this.#openGraph(graph);
    this.#sessions.set(graph.file, opened);
    // A download that failed may succeed the next time.
    opened.catch(() => this.#sessions.delete(graph.file));
    return opened;
  }

  /** The results of the trials, which run when something first depends on them. */
  #tried() {
    this.#trials ??= this.#try();
    this.#trials.catch(() => (this.#trials = undefined));
    return this.#trials;
  }

  #try() {
    const signature = this.#signature;
    const graphs = this.#graphs;
    const names = this.outputs.map(({ name }) => name);
    // Not padded: that this is harmless is what the trials have to show.
    const run = async (/** @type {Request[]} */ batch, /** @type {number} */ steps) => {
      const choice = await graphs.pick(steps, new Map(), async () => false, String);
      return this.#runBatch(choice, batch, names);
    };
    let [short, long] = TRIAL_STEPS;
    if (graphs.dynamic.length) {
      short = graphs.stepsWithin(short, signature.timeAxes);
      long = graphs.stepsWithin(short + TRIAL_STEPS[1] - TRIAL_STEPS[0], signature.timeAxes);
    } else {
      short = graphs.buckets[0].steps ?? short;
      long = graphs.buckets.at(-1)?.steps ?? short;
    }
    // The trials are on one row and on two.
    if (signature.batchAxis !== null && !graphs.allTake(signature.batchAxis, 1)) {
      return Promise.resolve({ rowsAreIndependent: false, paddingIsHarmless: false });
    }
    return tryBatching(
      { signature, run, leastSizes: graphs.leastSizes, indexRanges: this.#indexRanges },
      short,
      long,
    );
  }

  /**
   * The sizes that a graph has to be right for.
   * @param {readonly Request[]} batch
   */
  #sizes(batch) {
    /** @type {Map<string, Set<number>>} */
    const sizes = new Map();
    for (const [axis, size] of batch[0].otherSizes) sizes.set(axis, new Set([size]));
    // The model sees the rows of the run.
    const { batchAxis, timeAxes } = this.#signature;
    if (batchAxis !== null)
      sizes.set(batchAxis, new Set([batch.reduce((sum, { rows }) => sum + rows, 0)]));
    // Padding must not take a request to where the model computes something else.
    const steps = batch.map((request) => request.steps).filter((count) => count !== null);
    for (const axis of timeAxes) sizes.set(axis, new Set([...(sizes.get(axis) ?? []), ...steps]));
    return sizes;
  }

  /**
   * "axis 1 of `x`, T,"
   * @param {string} axis
   */
  #place(axis) {
    const spec = this.inputs.find(({ shape }) => shape.includes(axis));
    return spec === undefined
      ? axis
      : `axis ${spec.shape.indexOf(axis)} of \`${spec.name}\`, ${axis},`;
  }
}

/** @param {readonly Request[]} batch */
function longest(batch) {
  const steps = batch.map((request) => request.steps).filter((count) => count !== null);
  return steps.length ? Math.max(...steps) : null;
}

/** @param {unknown} error */
function ignoreRefusal(error) {
  if (error instanceof InputError) return undefined;
  throw error;
}

/** @param {import("./manifest.js").TensorSpec} spec */
function publicSpec({ name, dtype, shape }) {
  return Object.freeze({ name, dtype, shape });
}
