// `Stream`: a sequence that comes in chunks; it holds the states from one to the next.

import { InputError, StreamError } from "./errors.js";
import { givenTensors } from "./request.js";

/** @typedef {import("./signature.js").Signature} Signature */
/** @typedef {import("./tensors.js").Tensor} Tensor */

export class Stream {
  #bundle;
  #signature;
  /** @type {Record<string, Tensor>} */
  #states = {};
  /** @type {number | undefined} */
  #rows;
  /** @type {Promise<unknown>} */
  #last = Promise.resolve();
  #failures = 0;

  /**
   * @param {import("./bundle.js").Bundle} bundle
   * @param {Signature} signature
   */
  constructor(bundle, signature) {
    this.#bundle = bundle;
    this.#signature = signature;
  }

  /** State input -> what the chunks so far have made of it; empty before the first. */
  get states() {
    return { ...this.#states };
  }

  /** Begin a new sequence, once the chunks that were given have run. */
  reset() {
    this.#enqueue(async () => {
      this.#states = {};
      this.#rows = undefined;
    });
  }

  /**
   * @param {any} inputs
   * @param {{outputs?: readonly string[]}} [options]
   * @returns {Promise<any>}
   */
  async run(inputs, { outputs } = {}) {
    // Before anything is awaited: the caller may use its arrays again.
    const given = givenTensors(inputs, this.#signature);
    const failures = this.#failures;
    return this.#enqueue(async () => {
      if (failures !== this.#failures) {
        throw new StreamError(
          "a chunk that was given before this one has failed; give that one again, then this one.",
        );
      }
      try {
        return await this.#runChunk(given, outputs);
      } catch (error) {
        this.#failures++;
        throw error;
      }
    });
  }

  /**
   * One after the other, whatever becomes of each.
   * @template T
   * @param {() => Promise<T>} task
   * @returns {Promise<T>}
   */
  #enqueue(task) {
    const result = this.#last.then(task);
    this.#last = result.catch(() => {});
    return result;
  }

  /**
   * @param {ReadonlyMap<string, Tensor>} given
   * @param {readonly string[] | undefined} outputs
   */
  async #runChunk(given, outputs) {
    const rows = this.#checkedRows(given);
    const { states } = this.#signature;
    const stateOutputs = [...states.values()];
    const names = outputs ?? this.#defaultOutputs();
    const inputs = { ...Object.fromEntries(given), ...this.#states };
    const all = await this.#bundle.run(inputs, {
      outputs: [...new Set([...names, ...stateOutputs])],
    });
    this.#states = Object.fromEntries([...states].map(([input, output]) => [input, all[output]]));
    this.#rows = rows;
    return Object.fromEntries(names.map((name) => [name, all[name]]));
  }

  /** All outputs but the states; these, if there are no others. */
  #defaultOutputs() {
    const names = this.#bundle.outputs.map(({ name }) => name);
    const stateOutputs = [...this.#signature.states.values()];
    const others = names.filter((name) => !stateOutputs.includes(name));
    return others.length ? others : names;
  }

  /** @param {ReadonlyMap<string, Tensor>} given */
  #checkedRows(given) {
    const spec = this.#signature.callerInputs.find(
      ({ name, batch }) => batch !== null && given.has(name),
    );
    const rows = spec && given.get(spec.name)?.shape[/** @type {number} */ (spec.batch)];
    const state = [...given.keys()].find((name) => Object.hasOwn(this.#states, name));
    if (state !== undefined) {
      throw new InputError(
        `the stream holds \`${state}\`; give it with the first chunk only, or begin another stream.`,
      );
    }
    if (this.#rows !== undefined && rows !== this.#rows) {
      throw new InputError(
        `the stream has ${this.#rows} rows, this chunk has ${rows}; a stream keeps its rows.`,
      );
    }
    return rows;
  }
}
