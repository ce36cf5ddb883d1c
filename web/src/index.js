// deploy-rnn's bundles in a browser: what `deploy_rnn.serving.Engine` answers in Python, over onnxruntime-web.

import { Bundle } from "./bundle.js";
import { BundleError } from "./errors.js";
import { Files } from "./files.js";
import { ofPrecision } from "./graphs.js";
import { externalFiles } from "./onnx_file.js";
import { Session } from "./session.js";

export { BundleError, DeployError, InputError, RunError, StreamError } from "./errors.js";
export { Tensor } from "./tensors.js";

/**
 * Load a bundle: its manifest, and the graph that a first run is likely to need, with its weights. Others are fetched
 * when a run needs them.
 *
 * @param {string | URL} url the folder of the bundle; relative to the page
 * @param {import("../index.js").LoadOptions} [options]
 * @returns {Promise<Bundle>}
 */
export async function loadBundle(url, options = {}) {
  const files = new Files(url, options);
  const whole = await files.manifest();
  const graphs = ofPrecision(whole.graphs, options.precision, String(files.address("")));
  const manifest = { ...whole, graphs };
  const unopened = new Set(graphs.map(({ file }) => file));
  /** @type {Map<string, Promise<Uint8Array>>} */
  const weights = new Map();

  /**
   * A file of weights, which graphs share.
   * @param {string} name
   * @param {string} address of the graph
   */
  async function weightsIn(name, address) {
    const digest = manifest.sha256.get(name);
    if (digest === undefined) {
      throw new BundleError(
        `${address} has weights in "${name}", which the manifest does not list.`,
      );
    }
    const data = weights.get(name) ?? files.read(name, digest);
    weights.set(name, data);
    return { path: name, data: await data };
  }

  /** @param {import("./manifest.js").Graph} graph */
  async function openGraph(graph) {
    const address = String(files.address(graph.file));
    try {
      const file = await files.read(graph.file, String(manifest.sha256.get(graph.file)));
      const names = [...namesOf(file, address)];
      const externalData = await Promise.all(names.map((name) => weightsIn(name, address)));
      const session = await Session.open(file, externalData, graph, manifest, address);
      unopened.delete(graph.file);
      // Each session has a copy of its own.
      if (!unopened.size) weights.clear();
      return session;
    } catch (error) {
      weights.clear();
      throw error;
    }
  }

  return Bundle.open(manifest, openGraph);
}

/**
 * The files that hold the weights of a graph.
 * @param {Uint8Array} file
 * @param {string} address
 */
function namesOf(file, address) {
  try {
    return externalFiles(file);
  } catch (error) {
    throw new BundleError(`${address} is not an ONNX file: ${error}.`, { cause: error });
  }
}
