// `Files`: those of a bundle, from where it is served. Each is compared with its digest in the manifest.

import { BundleError } from "./errors.js";
import { shown } from "./fields.js";
import { MANIFEST, readManifest } from "./manifest.js";

/** @typedef {(url: URL, init: RequestInit) => Promise<Response>} Fetch */

export class Files {
  #base;
  #fetch;
  #verify;

  /**
   * @param {string | URL} url the folder of the bundle, or its manifest.json; relative to the page
   * @param {object} [options]
   * @param {Fetch} [options.fetch] in place of the browser's
   * @param {boolean} [options.verify] false: the files may be any
   */
  constructor(
    url,
    { fetch = (address, init) => globalThis.fetch(address, init), verify = true } = {},
  ) {
    this.#base = folderOf(url);
    this.#fetch = fetch;
    this.#verify = verify;
    if (verify && globalThis.crypto?.subtle === undefined) {
      throw new BundleError(
        `the files of ${this.#base} cannot be checked: this page is not in a secure context. Serve it by https, ` +
          "or from localhost, or pass {verify: false}.",
      );
    }
  }

  /** @param {string} name */
  address(name) {
    return new URL(encodeURIComponent(name), this.#base);
  }

  async manifest() {
    const address = this.address(MANIFEST);
    // The browser asks whether what it has is still the newest.
    const data = await this.#get(address, "no-cache");
    return readManifest(new TextDecoder().decode(data), String(address));
  }

  /**
   * @param {string} name
   * @param {string} digest its sha256, in hexadecimal
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async read(name, digest) {
    const address = this.address(name);
    const data = await this.#get(address, "default");
    if (!this.#verify || (await sha256(data)) === digest) return data;
    // What the browser keeps may be from before the bundle was replaced.
    const fresh = await this.#get(address, "reload");
    if ((await sha256(fresh)) === digest) return fresh;
    throw new BundleError(
      `${address} is not the file that was exported: its sha256 is not that of the manifest, ${digest.slice(0, 12)}...; ` +
        "if the bundle was replaced meanwhile, load it again, else copy it again.",
    );
  }

  /**
   * @param {URL} address
   * @param {RequestCache} cache
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async #get(address, cache) {
    let response;
    try {
      response = await this.#fetch(address, { cache });
      if (response.ok) return new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new BundleError(
        `${address} cannot be fetched: ${reason}. Check that the server runs, and that it lets this page read it.`,
        { cause: error },
      );
    }
    if (response.status === 404) {
      throw new BundleError(
        `${address} is not there (404); must be a file of a bundle, as \`deploy-rnn export\` writes it.`,
      );
    }
    throw new BundleError(
      `${address} cannot be fetched: status ${response.status} ${response.statusText}`.trim() + ".",
    );
  }
}

/** @param {string | URL} url */
function folderOf(url) {
  const page = globalThis.document?.baseURI ?? globalThis.location?.href;
  let address;
  try {
    address = new URL(url, page);
  } catch {
    throw new BundleError(
      `\`url\` (=${shown(String(url))}) must be the address of a bundle's folder.`,
    );
  }
  const path = address.pathname;
  if (path.endsWith(`/${MANIFEST}`)) address.pathname = path.slice(0, -MANIFEST.length);
  else if (!path.endsWith("/")) address.pathname = `${path}/`;
  return address;
}

/** @param {Uint8Array<ArrayBuffer>} data */
async function sha256(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
