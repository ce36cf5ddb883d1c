// deploy-rnn's bundles in a browser: what `deploy_rnn.serving.Engine` answers in Python, over onnxruntime-web.

import { Bundle } from "./bundle.js";
import { Files } from "./files.js";
import { Session } from "./session.js";

export { BundleError, DeployError, InputError, RunError, StreamError } from "./errors.js";
export { Tensor } from "./tensors.js";

const WEIGHTS = "weights.bin"; // of all graphs of a bundle

/**
 * Load a bundle: its manifest, its weights, and the graph that a first run is likely to need. Others are fetched when a
 * run needs them.
 *
 * @param {string | URL} url the folder of the bundle; relative to the page
 * @param {import("../index.js").LoadOptions} [options]
 * @returns {Promise<Bundle>}
 */
export async function loadBundle(url, options = {}) {
  const files = new Files(url, options);
  const manifest = await files.manifest();
  const digestOf = (/** @type {string} */ name) =>
    /** @type {string} */ (manifest.sha256.get(name));
  const unopened = new Set(manifest.graphs.map(({ file }) => file));
  /** @type {Promise<Uint8Array> | undefined} */
  let weights;

  /** @param {import("./manifest.js").Graph} graph */
  async function openGraph(graph) {
    if (manifest.sha256.has(WEIGHTS)) weights ??= files.read(WEIGHTS, digestOf(WEIGHTS));
    try {
      const [file, data] = await Promise.all([
        files.read(graph.file, digestOf(graph.file)),
        weights,
      ]);
      const externalData = data === undefined ? [] : [{ path: WEIGHTS, data }];
      const session = await Session.open(
        file,
        externalData,
        graph,
        manifest,
        String(files.address(graph.file)),
      );
      unopened.delete(graph.file);
      // Each session has a copy of its own.
      if (!unopened.size) weights = undefined;
      return session;
    } catch (error) {
      weights = undefined;
      throw error;
    }
  }

  return Bundle.open(manifest, openGraph);
}
