// What deploy-rnn notes in an .onnx file (deploy_rnn/metadata.py); onnxruntime-web does not hand it on.
//
// Of the format, protobuf, only as much is read as leads there: https://protobuf.dev/programming-guides/encoding/

const METADATA_FIELD = 14; // `metadata_props` of onnx.proto's ModelProto
const TABLE_ROWS = "deploy_rnn.table_rows";

/**
 * Inputs that are indices into a table, as of an embedding -> how many rows it has.
 * @param {Uint8Array} file
 * @returns {Map<string, number>}
 */
export function tableRows(file) {
  const text = metadata(file).get(TABLE_ROWS) ?? "{}";
  return new Map(Object.entries(JSON.parse(text)));
}

/**
 * @param {Uint8Array} file
 * @returns {Map<string, string>}
 */
function metadata(file) {
  /** @type {Map<string, string>} */
  const properties = new Map();
  const decoder = new TextDecoder();
  for (const [field, entry] of texts(file)) {
    if (field !== METADATA_FIELD) continue;
    const parts = new Map(texts(entry)); // 1: the key, 2: the value
    properties.set(decoder.decode(parts.get(1)), decoder.decode(parts.get(2)));
  }
  return properties;
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
