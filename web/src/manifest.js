// The manifest of a bundle, docs/bundle.md: every field is checked before anything is opened.

import { BundleError } from "./errors.js";
import { Field, FieldError } from "./fields.js";

/** @typedef {import("./sizes.js").Size} Size */
/** @typedef {import("./sizes.js").SizeRange} SizeRange */

/**
 * An input or output, the same in all graphs.
 * @typedef {object} TensorSpec
 * @property {string} name
 * @property {string} dtype
 * @property {readonly Size[]} shape
 * @property {number | null} batch its batch axis
 * @property {number | null} time its time axis
 */

/**
 * One .onnx file.
 * @typedef {object} Graph
 * @property {string} file
 * @property {string} form
 * @property {number | null} steps null: any number
 * @property {number} milliseconds
 * @property {string} precision
 * @property {ReadonlyMap<string, SizeRange>} ranges dynamic axes that may not have every size
 */

/**
 * @typedef {object} Manifest
 * @property {string} name
 * @property {readonly TensorSpec[]} inputs
 * @property {readonly TensorSpec[]} outputs
 * @property {ReadonlyMap<string, Size>} lengths inputs that are the lengths of the rows -> what limits them
 * @property {ReadonlyMap<string, string>} states inputs that carry a state -> the outputs that give it
 * @property {readonly Graph[]} graphs
 * @property {ReadonlyMap<string, string>} sha256 file -> its digest
 */

export const MANIFEST = "manifest.json";
export const VERSION = 2; // it reads this one and older ones

const FIELDS = [
  "version",
  "name",
  "producer",
  "opset",
  "inputs",
  "outputs",
  "lengths",
  "states",
  "graphs",
  "sha256",
];
const FORMS = ["native", "scan", "unrolled"];
const PRECISIONS = ["float32", "float64", "float16", "int8"];
const DTYPES = [
  "bool",
  "uint8",
  "uint16",
  "uint32",
  "uint64",
  "int8",
  "int16",
  "int32",
  "int64",
  "bfloat16",
  "float16",
  "float32",
  "float64",
];
const MOST_LEAST = 1e6; // the smallest size of an axis: a model is tried with it

/**
 * @param {string} text JSON
 * @param {string} address of the file, for messages
 * @returns {Manifest}
 */
export function readManifest(text, address) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const isPage = text.trimStart().startsWith("<");
    const advice = isPage
      ? "it is a page, as servers send for what they do not have; check the address"
      : error;
    throw new BundleError(`${address} is not JSON: ${advice}.`);
  }
  let version = VERSION;
  try {
    version = readVersion(value);
    // A later release may have changed any other field, so none of them is looked at.
    if (version <= VERSION) return manifestOf(new Field(value), version);
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    throw new BundleError(`${address} is not a manifest of version ${version}: ${error.message}.`);
  }
  throw new BundleError(
    `${address} has version ${version}; this module reads up to ${VERSION}: install a newer one.`,
  );
}

/** @param {any} value */
function readVersion(value) {
  const version = new Field(value).entries().get("version");
  if (version === undefined) throw new FieldError("`version` is missing");
  return version.wholeNumber(1);
}

/**
 * @param {Field} root
 * @param {number} version
 * @returns {Manifest}
 */
function manifestOf(root, version) {
  const fields = root.fields(FIELDS);
  fields.producer.text();
  fields.opset.wholeNumber(1);
  const inputs = readTensors(fields.inputs);
  const outputs = readTensors(fields.outputs);
  const sha256 = readDigests(fields.sha256);
  return {
    name: fields.name.text(),
    inputs: [...inputs.values()],
    outputs: [...outputs.values()],
    lengths: readLengths(fields.lengths, inputs),
    states: readStates(fields.states, inputs, outputs),
    graphs: readGraphs(fields.graphs, sha256, version === 1 ? precisionOfVersion1(outputs) : null),
    sha256,
  };
}

/** @param {Field} field */
function readTensors(field) {
  /** @type {Map<string, TensorSpec>} */
  const tensors = new Map();
  for (const item of field.items()) {
    const tensor = readTensor(item);
    if (tensors.has(tensor.name))
      new Field(tensor.name, `${item.place}.name`).fail("another name than the others");
    tensors.set(tensor.name, tensor);
  }
  return tensors;
}

/**
 * @param {Field} field
 * @returns {TensorSpec}
 */
function readTensor(field) {
  const fields = field.fields(["name", "dtype", "shape", "batch", "time"]);
  const shape = fields.shape.items().map((item) => item.nameOrNumber(0));
  const readAxis = (/** @type {Field} */ axis) => {
    if (!shape.length) axis.fail("null, as `shape` has no axes");
    return axis.wholeNumber(0, shape.length - 1);
  };
  const batch = fields.batch.orNull(readAxis);
  const time = fields.time.orNull(readAxis);
  if (time !== null && time === batch) fields.time.fail("another axis than `batch`");
  return { name: fields.name.text(), dtype: fields.dtype.choice(DTYPES), shape, batch, time };
}

/**
 * @param {Field} field
 * @param {ReadonlyMap<string, TensorSpec>} inputs
 */
function readLengths(field, inputs) {
  /** @type {Map<string, Size>} */
  const lengths = new Map();
  for (const [name, limit] of field.entries()) {
    const key = new Field(name, `a key of ${field.place}`);
    const tensor = inputs.get(name) ?? key.fail("the name of an input");
    if (!/^u?int/.test(tensor.dtype)) key.fail("an input of whole numbers");
    lengths.set(name, limit.nameOrNumber(1));
  }
  return lengths;
}

/**
 * @param {Field} field
 * @param {ReadonlyMap<string, TensorSpec>} inputs
 * @param {ReadonlyMap<string, TensorSpec>} outputs
 */
function readStates(field, inputs, outputs) {
  /** @type {Map<string, string>} */
  const states = new Map();
  for (const [name, output] of field.entries()) {
    const first =
      inputs.get(name) ?? new Field(name, `a key of ${field.place}`).fail("the name of an input");
    const last = outputs.get(output.text()) ?? output.fail("the name of an output");
    if (first.dtype !== last.dtype || first.shape.length !== last.shape.length) {
      output.fail(`an output of the dtype of \`${name}\`, and with as many axes`);
    }
    if ([...states.values()].includes(last.name))
      output.fail("an output that gives no other state");
    states.set(name, last.name);
  }
  return states;
}

/** @param {Field} field */
function readDigests(field) {
  /** @type {Map<string, string>} */
  const digests = new Map();
  for (const [name, digest] of field.entries()) {
    if (!/^[^/\\:\0]+$/.test(name) || name === "." || name === ".." || name === MANIFEST) {
      new Field(name, `a key of ${field.place}`).fail(
        "the plain name of a file in the folder, other than the manifest",
      );
    }
    if (!/^[0-9a-f]{64}$/.test(digest.text())) digest.fail("64 hexadecimal digits");
    digests.set(name, digest.text());
  }
  return digests;
}

/**
 * @param {Field} field
 * @param {ReadonlyMap<string, string>} sha256
 * @param {string | null} precision that of a manifest of version 1, whose graphs have none
 */
function readGraphs(field, sha256, precision) {
  /** @type {Graph[]} */
  const graphs = [];
  for (const item of field.items(1)) {
    const graph = readGraph(item, sha256, precision);
    if (graphs.some((other) => other.file === graph.file)) {
      new Field(graph.file, `${item.place}.file`).fail("another file than the others");
    }
    graphs.push(graph);
  }
  return graphs;
}

/**
 * @param {Field} field
 * @param {ReadonlyMap<string, string>} sha256
 * @param {string | null} precision
 * @returns {Graph}
 */
function readGraph(field, sha256, precision) {
  const names = ["file", "form", "steps", "nodes", "milliseconds"];
  if (precision === null) names.push("precision");
  const fields = field.fields(names, ["ranges", "row_ends"]);
  const file = fields.file.text();
  if (!sha256.has(file)) fields.file.fail("the name of a file that `sha256` lists");
  fields.nodes.wholeNumber(0);
  return {
    file,
    form: fields.form.choice(FORMS),
    steps: fields.steps.orNull((steps) => steps.wholeNumber(1)),
    milliseconds: fields.milliseconds.number(),
    precision: precision ?? fields.precision.choice(PRECISIONS),
    ranges: fields.ranges ? readRanges(fields.ranges) : new Map(),
  };
}

/**
 * From {"T": [2, 200], "B": [1, null]}.
 * @param {Field} field
 */
function readRanges(field) {
  /** @type {Map<string, SizeRange>} */
  const ranges = new Map();
  for (const [name, pair] of field.entries()) {
    const ends = pair.items();
    if (ends.length !== 2) pair.fail("a list of two: the least and the most");
    const least = ends[0].wholeNumber(1, MOST_LEAST);
    ranges.set(name, [least, ends[1].orNull((most) => most.wholeNumber(least))]);
  }
  return ranges;
}

/** @param {ReadonlyMap<string, TensorSpec>} outputs */
function precisionOfVersion1(outputs) {
  const floats = [...outputs.values()].filter(({ dtype }) => dtype.startsWith("float"));
  return floats.length && floats.every(({ dtype }) => dtype === "float64") ? "float64" : "float32";
}
