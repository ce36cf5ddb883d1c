// The sizes of dynamic axes: their names, the expressions that they are written with, and their ranges.

/**
 * A number for a fixed axis; a name such as "B", or an expression such as "4*T", for a dynamic one.
 * @typedef {number | string} Size
 */

/**
 * The sizes that an axis may have: the least, and the most (null: any).
 * @typedef {readonly [number, number | null]} SizeRange
 */

/**
 * The names in a size; a function, as in "Max(1, T//2)", is none.
 * @param {Size} size
 * @returns {string[]}
 */
export function namesIn(size) {
  if (typeof size === "number") return [];
  return size.match(/(?<![\p{L}\p{N}_.])[\p{L}_][\p{L}\p{N}_.]*(?![\p{L}\p{N}_.(])/gu) ?? [];
}

/**
 * The size of an axis, which may be written with those of others; undefined if they do not tell it.
 * @param {Size} size
 * @param {ReadonlyMap<string, number>} sizes
 * @returns {number | undefined}
 */
export function sizeOf(size, sizes) {
  if (typeof size === "number") return size;
  return sizes.get(size) ?? evaluated(size, sizes);
}

/**
 * The value of sums, differences, products and whole quotients (`//`).
 * @param {string} text
 * @param {ReadonlyMap<string, number>} sizes
 * @returns {number | undefined}
 */
function evaluated(text, sizes) {
  const tokens = text.match(/\/\/|[-+*()]|\d+|[\p{L}_][\p{L}\p{N}_.]*|\S/gu) ?? [];
  let next = 0;

  /** @returns {number} NaN if something is unknown */
  function factor() {
    const token = tokens[next++] ?? "";
    if (token === "-") return -factor();
    if (token === "(") {
      const value = sum();
      return tokens[next++] === ")" ? value : NaN;
    }
    return /^\d+$/.test(token) ? Number(token) : (sizes.get(token) ?? NaN);
  }

  function product() {
    let value = factor();
    while (tokens[next] === "*" || tokens[next] === "//") {
      const isProduct = tokens[next++] === "*";
      const other = factor();
      value = isProduct ? value * other : Math.floor(value / other);
    }
    return value;
  }

  function sum() {
    let value = product();
    while (tokens[next] === "+" || tokens[next] === "-") {
      value += tokens[next++] === "+" ? product() : -product();
    }
    return value;
  }

  const value = sum();
  return next === tokens.length && Number.isInteger(value) ? value : undefined;
}

/**
 * @param {SizeRange} range
 * @param {number} size
 */
export function takes([least, most], size) {
  return size >= least && (most === null || size <= most);
}

/**
 * The size itself, or the end of the range that is next to it.
 * @param {SizeRange} range
 * @param {number} size
 */
export function nearest([least, most], size) {
  return Math.min(Math.max(size, least), most ?? Infinity);
}

/** @param {SizeRange} range */
export function rangeText([least, most]) {
  return most === null ? `${least} or more` : `${least} to ${most}`;
}

/** @param {readonly number[]} shape */
export function count(shape) {
  return shape.reduce((product, size) => product * size, 1);
}
