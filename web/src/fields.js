// `Field`: a value in JSON from anyone; of a wrong one it says what it is and where.

const MOST = 2 ** 31 - 1; // sizes, counts and versions are far below
const MOST_CHARACTERS = 2000;
const SHOWN_CHARACTERS = 60;

/** A value that is missing, or is not what it must be. */
export class FieldError extends Error {
  name = "FieldError";
}

export class Field {
  /**
   * @param {unknown} value
   * @param {string} place where it is, such as "graphs[0].steps"; "" for the whole file
   */
  constructor(value, place = "") {
    this.value = value;
    this.place = place;
  }

  /**
   * @param {string} rule what the value must be
   * @returns {never}
   */
  fail(rule) {
    const name = this.place ? `\`${this.place}\`` : "it";
    throw new FieldError(`${name} must be ${rule}, got ${shown(this.value)}`);
  }

  /**
   * The fields of an object that has these keys and no others.
   * @param {readonly string[]} required
   * @param {readonly string[]} [optional]
   * @returns {Record<string, Field>}
   */
  fields(required, optional = []) {
    const entries = this.entries();
    for (const key of required) {
      if (!entries.has(key)) throw new FieldError(`\`${this.#placeOf(key)}\` is missing`);
    }
    for (const [key, field] of entries) {
      if (!required.includes(key) && !optional.includes(key))
        throw new FieldError(`\`${field.place}\` is unknown`);
    }
    return Object.fromEntries(entries);
  }

  /**
   * The fields of an object by key.
   * @returns {Map<string, Field>}
   */
  entries() {
    const { value } = this;
    if (typeof value !== "object" || value === null || Array.isArray(value)) this.fail("an object");
    return new Map(
      Object.entries(value).map(([key, item]) => [key, new Field(item, this.#placeOf(key))]),
    );
  }

  /**
   * The values of a list of at least so many.
   * @param {number} [least]
   * @returns {Field[]}
   */
  items(least = 0) {
    if (!Array.isArray(this.value)) this.fail("a list");
    if (this.value.length < least) this.fail(`a list of at least ${least}`);
    return this.value.map((item, index) => new Field(item, `${this.place}[${index}]`));
  }

  /** @returns {string} */
  text() {
    const { value } = this;
    if (typeof value !== "string" || !value || value.length > MOST_CHARACTERS) {
      this.fail(`a text of 1 to ${MOST_CHARACTERS} characters`);
    }
    return value;
  }

  /**
   * @param {readonly string[]} choices
   * @returns {string}
   */
  choice(choices) {
    const { value } = this;
    if (typeof value !== "string" || !choices.includes(value))
      this.fail(`one of ${choices.join(", ")}`);
    return value;
  }

  /**
   * @param {number} least
   * @param {number} [most]
   * @returns {number}
   */
  wholeNumber(least, most = MOST) {
    const { value } = this;
    const isWhole = typeof value === "number" && Number.isInteger(value);
    if (!isWhole || value < least || value > most) {
      this.fail(
        most === MOST ? `a whole number, ${least} or more` : `a whole number, ${least} to ${most}`,
      );
    }
    return value;
  }

  /**
   * A size: a whole number, or the name of an axis.
   * @param {number} least
   * @returns {number | string}
   */
  nameOrNumber(least) {
    if (typeof this.value === "string") return this.text();
    if (typeof this.value !== "number") this.fail("a whole number or the name of an axis");
    return this.wholeNumber(least);
  }

  /** @returns {number} */
  number() {
    const { value } = this;
    if (typeof value !== "number" || !(value >= 0)) this.fail("a number, 0 or more");
    return value;
  }

  /**
   * @template T
   * @param {(field: Field) => T} read
   * @returns {T | null}
   */
  orNull(read) {
    return this.value === null ? null : read(this);
  }

  /** @param {string} key */
  #placeOf(key) {
    return this.place ? `${this.place}.${key}` : key;
  }
}

/**
 * A value for a message: its beginning.
 * @param {unknown} value
 */
export function shown(value) {
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (ArrayBuffer.isView(value)) return `a ${value.constructor.name}`;
  if (typeof value === "bigint") return String(value);
  if (typeof value === "function") return "a function";
  if (typeof value === "object" && value !== null)
    return `an object of ${Object.keys(value).length}`;
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return text.length <= SHOWN_CHARACTERS ? text : `${text.slice(0, SHOWN_CHARACTERS)}...`;
}
