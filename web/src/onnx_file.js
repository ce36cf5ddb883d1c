// What is read of an .onnx file itself: onnxruntime-web hands on neither its metadata nor the files of its weights.
//
// Of the format, protobuf, only as much is read as leads there: https://protobuf.dev/programming-guides/encoding/

const METADATA_FIELD = 14; // `metadata_props` of onnx.proto's ModelProto
const EXTERNAL_DATA_FIELD = 13; // `external_data` of TensorProto
const INDEX_RANGES = "deploy_rnn.index_ranges";
const TABLE_ROWS = "deploy_rnn.table_rows"; // of older releases: the rows of tables, whose indices begin at 0

/**
 * Message -> field number -> the message in it; the fields of onnx.proto that lead to a tensor.
 * @type {Record<string, Record<number, string>>}
 */
const MESSAGES = {
  Model: { 7: "Graph", 25: "Function" },
  Graph: { 1: "Node", 5: "Tensor", 15: "Sparse" },
  Function: { 7: "Node", 11: "Attribute" },
  Node: { 5: "Attribute" },
  Attribute: { 5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse" },
  Sparse: { 1: "Tensor", 2: "Tensor" },
  Tensor: {},
};

/**
 * The names of the files that hold the weights of a graph.
 * @param {Uint8Array} file
 * @returns {Set<string>}
 */
export function externalFiles(file) {
  /** @type {Set<string>} */
  const names = new Set();

  /**
   * @param {Uint8Array} part
   * @param {string} message
   */
  function walk(part, message) {
    for (const [field, content] of texts(part)) {
      const inner = MESSAGES[message][field];
      if (inner !== undefined) walk(content, inner);
      if (message === "Tensor" && field === EXTERNAL_DATA_FIELD) {
        const [key, value] = entryOf(content);
        if (key === "location") names.add(value);
      }
    }
  }

  walk(file, "Model");
  return names;
}

/**
 * What an index into a table may be: `least` to `most`.
 * @typedef {{least: number, most: number}} IndexRange
 */

/**
 * Inputs that are indices into a table, as of an embedding -> what they may be.
 * @param {Uint8Array} file
 * @returns {Map<string, IndexRange>}
 */
export function indexRanges(file) {
  const properties = metadata(file);
  const entries = (/** @type {string} */ name) =>
    Object.entries(JSON.parse(properties.get(name) ?? "{}"));
  return new Map([
    ...entries(TABLE_ROWS).map(([name, rows]) => pair(name, 0, rows - 1)),
    ...entries(INDEX_RANGES).map(([name, [least, most]]) => pair(name, least, most)),
  ]);
}

/**
 * @param {string} name
 * @param {number} least
 * @param {number} most
 * @returns {[string, IndexRange]}
 */
function pair(name, least, most) {
  return [name, { least, most }];
}

/**
 * The number itself, or the one next to it that an index may be.
 * @param {number} number
 * @param {IndexRange | undefined} range undefined for any number
 */
export function nearest(number, range) {
  return range ? Math.min(Math.max(number, range.least), range.most) : number;
}

/**
 * @param {Uint8Array} file
 * @returns {Map<string, string>}
 */
function metadata(file) {
  /** @type {Map<string, string>} */
  const properties = new Map();
  for (const [field, content] of texts(file)) {
    if (field === METADATA_FIELD) properties.set(...entryOf(content));
  }
  return properties;
}

/**
 * @param {Uint8Array} content of a StringStringEntryProto
 * @returns {[string, string]} key and value
 */
function entryOf(content) {
  const decoder = new TextDecoder();
  const parts = new Map(texts(content)); // 1: the key, 2: the value
  return [decoder.decode(parts.get(1)), decoder.decode(parts.get(2))];
}

/**
 * The fields of a message that have a length, by number.
 * @param {Uint8Array} message
 * @returns {Generator<[number, Uint8Array]>}
 */
function* texts(message) {
  let next = 0;

  function number() {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (next >= message.length) throw new RangeError("it ends within a number");
      const byte = message[next++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }

  while (next < message.length) {
    const tag = number();
    const wire = tag % 8;
    if (wire === 0) number();
    else if (wire === 1) next += 8;
    else if (wire === 5) next += 4;
    else if (wire === 2) {
      const size = number();
      if (size > message.length - next) throw new RangeError("it ends within a field");
      yield [Math.floor(tag / 8), message.subarray(next, next + size)];
      next += size;
    } else throw new RangeError(`it has a field of type ${wire}`);
  }
}
