// Tensors as JSON text.

const MAX_VALUES = 20000; // a text field becomes slow with more
const SHOWN = { rows: 4, values: 8 };

// Numbers of this datatype, nested as the shape. Whole numbers stay below 10, since they are often indices.
export function randomText(datatype, shape) {
  const count = shape.reduce((product, size) => product * size, 1);
  if (!(count <= MAX_VALUES)) throw new Error(`[${shape.join(", ")}] has ${count} values; at most ${MAX_VALUES} are made here.`);
  return JSON.stringify(nested(shape, () => randomValue(datatype)));
}

function randomValue(datatype) {
  if (datatype === "BOOL") return Math.random() < 0.5;
  if (/^U?INT/.test(datatype)) return Math.floor(10 * Math.random());
  return Math.round(2000 * Math.random() - 1000) / 1000;
}

const nested = ([size, ...rest], value) =>
  size === undefined ? value() : Array.from({ length: size }, () => nested(rest, value));

// Text -> its shape, and the text without white space. Values in a flat list have the shape of the fields above.
export function readTensor(tensor, text, expectedShape) {
  const values = parse(tensor.name, text);
  const shape = nestedShape(tensor.name, values);
  const data = text.replace(/\s+/g, "");
  const rank = tensor.shape.length;
  if (shape.length === rank) return { shape, data };
  const needed = expectedShape.reduce((product, size) => product * size, 1);
  if (shape.length !== 1 || shape[0] !== needed) {
    throw new Error(`“${tensor.name}” is nested ${shape.length} deep; must be ${rank}, as [${tensor.shape.join(", ")}].`);
  }
  return { shape: expectedShape, data };
}

function parse(name, text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`“${name}” is not JSON; must be numbers in brackets, such as [[1, 2], [3, 4]].`);
  }
}

function nestedShape(name, values) {
  if (!Array.isArray(values)) {
    if (typeof values === "number" || typeof values === "boolean") return [];
    throw new Error(`“${name}” has ${JSON.stringify(values)}; must be numbers, true or false.`);
  }
  const shapes = values.map((value) => nestedShape(name, value));
  const first = shapes[0] ?? [];
  if (shapes.some((shape) => shape.join() !== first.join())) throw new Error(`“${name}” has rows of different length.`);
  return [values.length, ...first];
}

// The beginning of an output of an answer.
export function preview({ name, datatype, shape, data }) {
  const position = { at: 0 };
  return `${name} ${datatype}[${shape.join(", ")}]\n${bracketed(shape, data, position, 0)}`;
}

function bracketed(shape, data, position, depth) {
  if (!shape.length) return format(data[position.at++]);
  const [size, ...rest] = shape;
  const isRow = rest.length === 0;
  const shown = Math.min(size, isRow ? SHOWN.values : SHOWN.rows);
  const step = rest.reduce((product, axis) => product * axis, 1);
  const start = position.at;
  const items = [];
  for (let index = 0; index < shown; index++) {
    position.at = start + index * step;
    items.push(bracketed(rest, data, position, depth + 1));
  }
  if (size > shown) items.push(`… ${size - shown} more`);
  return `[${items.join(isRow ? ", " : `,\n${" ".repeat(depth + 1)}`)}]`;
}

function format(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Number(value.toPrecision(5)).toString();
}
