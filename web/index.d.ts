/** Numbers of a tensor: row-major, in the typed array of its dtype; `Uint8Array` for bool and uint8. */
export type Data =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

/** A number, or lists of them, each as long as the others at its depth; the innermost may be typed arrays. */
export type Nested = number | bigint | boolean | Data | readonly Nested[];

/** What `run` takes for an input. */
export type InputValue =
  | Nested
  | {
      readonly shape: readonly number[];
      readonly data: Data | readonly (number | bigint | boolean)[];
      readonly dtype?: string;
    }
  | { readonly dims: readonly number[]; readonly data: unknown; readonly type?: string };

/** Inputs by name. Lengths may be left out (every step counts), and states (zeros). */
export type Inputs = Readonly<Record<string, InputValue | undefined>>;

/** Outputs by name. */
export type Outputs = Record<string, Tensor>;

export class Tensor {
  constructor(dtype: string, shape: readonly number[], data: Data);
  /** numpy's name, such as "float32". */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Data;
  /** Nested lists: of booleans for bool, of BigInt for int64 and uint64, else of numbers. */
  toNested(): any;
}

/** An input or output, batch-first: (B, T, ...), states and lengths (B, ...). A dynamic axis has a name. */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly (number | string)[];
}

export interface RunOptions {
  /** The names of the outputs to compute; all, if left out. Of a stream: all but the states. */
  outputs?: readonly string[];
}

export interface Bundle {
  readonly name: string;
  /** "float32", "float64", "float16" or "int8". */
  readonly precision: string;
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];

  /**
   * Run the model once.
   *
   * Rejects with an InputError: an input that is missing, unknown, or of the wrong dtype or shape; a length or an index
   * out of range; steps that no graph takes; an unknown output. With a RunError: onnxruntime-web failed.
   */
  run(inputs: Inputs, options?: RunOptions): Promise<Outputs>;

  /**
   * Answer several requests, whose rows may have unlike lengths. They share runs, padded, if trial runs have shown that
   * this does not change the answers of this model, and else run one after the other. If one is refused, all are.
   */
  run(requests: readonly Inputs[], options?: RunOptions): Promise<Outputs[]>;

  /** Begin a sequence that comes in chunks. Throws an InputError if the bundle was exported without streaming. */
  stream(): Stream;

  /** Free the memory of all graphs. */
  close(): Promise<void>;
}

export interface Stream {
  /** State input -> what the chunks so far have made of it; none before the first. Another stream can begin with them. */
  readonly states: Outputs;

  /**
   * Run the next chunk. Chunks run in the order in which they are given. One that fails leaves the states as they were:
   * those already given after it are refused with a StreamError, and the stream goes on with the next.
   *
   * @param inputs as of `Bundle.run`, without the states; the first chunk may have them.
   */
  run(inputs: Inputs, options?: RunOptions): Promise<Outputs>;

  /** Begin a new sequence, once the chunks that were given have run. */
  reset(): void;
}

export interface LoadOptions {
  /** In which it computes, such as "int8"; must be given if the bundle has several. */
  precision?: string;
  /** In place of the browser's `fetch`, such as to send a token. */
  fetch?: (url: URL, init: RequestInit) => Promise<Response>;
  /** false: do not compare the files with their digests, as a page must that is neither on https nor on localhost. */
  verify?: boolean;
}

/**
 * Load a bundle: its manifest, its weights, and the graph that a first run is likely to need. Other graphs are fetched
 * when a run needs them.
 *
 * @param url the folder of the bundle; relative to the page. Rejects with a BundleError if it cannot be loaded.
 */
export function loadBundle(url: string | URL, options?: LoadOptions): Promise<Bundle>;

/** The base of the errors of this module. */
export class DeployError extends Error {}
/** A bundle that cannot be loaded: a file that is missing, damaged, or of a later release. */
export class BundleError extends DeployError {}
/** Inputs that the model does not take. */
export class InputError extends DeployError {}
/** onnxruntime-web failed, for a reason other than the inputs. */
export class RunError extends DeployError {}
/** A chunk that cannot run, since one before it has failed. */
export class StreamError extends DeployError {}
