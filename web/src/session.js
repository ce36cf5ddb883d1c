// `Session`: one opened graph in onnxruntime-web, in its own layout.

import * as ort from "onnxruntime-web/wasm";

import { BundleError, InputError, RunError } from "./errors.js";
import { indexRanges } from "./onnx_file.js";
import { specText } from "./signature.js";
import { Tensor } from "./tensors.js";

/** @typedef {import("./manifest.js").Graph} Graph */
/** @typedef {import("./manifest.js").Manifest} Manifest */
/** @typedef {import("./manifest.js").TensorSpec} TensorSpec */
/** @typedef {import("./onnx_file.js").IndexRange} IndexRange */

const ERRORS_ONLY = 3; // warnings of onnxruntime are about nodes, which its user cannot change

export class Session {
  #session;

  /**
   * @param {ort.InferenceSession} session
   * @param {ReadonlyMap<string, IndexRange>} indexRanges inputs that are indices -> what they may be
   */
  constructor(session, indexRanges) {
    this.#session = session;
    this.indexRanges = indexRanges;
  }

  /**
   * @param {Uint8Array} file
   * @param {{path: string, data: Uint8Array}[]} externalData the files that hold its weights
   * @param {Graph} graph
   * @param {Manifest} manifest
   * @param {string} address of the file, for messages
   */
  static async open(file, externalData, graph, manifest, address) {
    // More threads need headers that few servers send, and a recurrent step is small.
    ort.env.wasm.numThreads ??= 1;
    let session;
    try {
      session = await ort.InferenceSession.create(file, {
        executionProviders: ["wasm"],
        logSeverityLevel: ERRORS_ONLY,
        externalData,
      });
    } catch (error) {
      const message = messageOf(error);
      if (message.includes("no available backend")) {
        throw new RunError(
          `onnxruntime-web cannot start: ${message}. Its ort-wasm-simd-threaded.wasm must be served next to its ` +
            "ort.wasm.bundle.min.mjs, or where `env.wasm.wasmPaths` says.",
          { cause: error },
        );
      }
      throw new BundleError(`${address} cannot be opened: ${message}`, { cause: error });
    }
    compare("inputs", manifest.inputs, session.inputMetadata, graph, address);
    compare("outputs", manifest.outputs, session.outputMetadata, graph, address);
    return new Session(session, indexRanges(file));
  }

  /**
   * @param {ReadonlyMap<string, Tensor>} tensors
   * @param {readonly string[]} outputs their names
   * @returns {Promise<Map<string, Tensor>>}
   */
  async run(tensors, outputs) {
    const feeds = [...tensors].map(([name, { dtype, shape, data }]) => [
      name,
      new ort.Tensor(/** @type {any} */ (dtype), /** @type {any} */ (data), shape),
    ]);
    let results;
    try {
      results = await this.#session.run(Object.fromEntries(feeds), outputs);
    } catch (error) {
      throw asOurs(error);
    }
    return new Map(
      outputs.map((name) => {
        const { type, dims, data } = results[name];
        return [name, new Tensor(type, dims, /** @type {any} */ (data))];
      }),
    );
  }

  async release() {
    await this.#session.release();
  }
}

/**
 * @param {string} what
 * @param {readonly TensorSpec[]} specs
 * @param {readonly ort.InferenceSession.ValueMetadata[]} found
 * @param {Graph} graph
 * @param {string} address
 */
function compare(what, specs, found, graph, address) {
  const byName = new Map(found.map((tensor) => [tensor.name, tensor]));
  if (byName.size !== specs.length || !specs.every(({ name }) => byName.has(name))) {
    throw new BundleError(
      `${address} has other ${what} than the manifest says: ${[...byName.keys()].join(", ")}.`,
    );
  }
  for (const spec of specs) {
    const tensor = byName.get(spec.name);
    if (tensor?.isTensor && !agrees(spec, tensor, what === "inputs", graph.steps)) {
      const steps = graph.steps === null ? "" : `, with ${graph.steps} steps`;
      const text = `${tensor.name}: ${tensor.type} [${tensor.shape.join(", ")}]`;
      throw new BundleError(
        `${address} has \`${text}\`, where the manifest says \`${specText(spec)}\`${steps}.`,
      );
    }
  }
}

/**
 * Whether dtypes, axes and what is a number in both are the same; and whether an input varies where it has to, and has
 * the steps of its bucket.
 * @param {TensorSpec} spec
 * @param {{type: string, shape: readonly (number | string)[]}} tensor
 * @param {boolean} isInput
 * @param {number | null} steps
 */
function agrees(spec, { type, shape }, isInput, steps) {
  if (spec.dtype !== type || spec.shape.length !== shape.length) return false;
  return spec.shape.every((size, axis) => {
    const actual = shape[axis];
    if (typeof actual !== "number") return !(isInput && steps !== null && axis === spec.time);
    if (typeof size === "number") return size === actual;
    if (!isInput) return true;
    return steps !== null && (axis !== spec.time || actual === steps);
  });
}

const MACHINE_FAULT = /memory|alloc|implemented|terminate|unreachable/i; // any inputs may meet it

/** @param {unknown} error */
function asOurs(error) {
  const message = messageOf(error);
  const reason = message.slice(message.lastIndexOf("Status Message:"));
  const isOfNode = message.includes("while running") && message.includes("Status Message:");
  if (message.includes("ERROR_CODE: 2") || (isOfNode && !MACHINE_FAULT.test(reason))) {
    return new InputError(`the graph cannot take these inputs: ${message}`, { cause: error });
  }
  return new RunError(`onnxruntime-web failed: ${message}`, { cause: error });
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
