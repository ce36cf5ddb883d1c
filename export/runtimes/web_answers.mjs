// What node and a page do alike: requests of on_web.py and on_chromium.py, answered by onnxruntime-web. A tensor travels
// as its dtype, its shape, and its bytes in base64.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array,
  int8: Int8Array, int16: Int16Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array, bool: Uint8Array,
};
// No call takes more arguments than this everywhere.
const PIECE = 2 ** 14;

function toBase64(bytes) {
  const pieces = [];
  for (let start = 0; start < bytes.length; start += PIECE) {
    pieces.push(String.fromCharCode(...bytes.subarray(start, start + PIECE)));
  }
  return btoa(pieces.join(""));
}

function toJson({ type, dims, data }) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { dtype: type, shape: dims, data: toBase64(bytes) };
}

export class Answers {
  // `load` returns onnxruntime-web, `read` the bytes of the file of that path.
  constructor(load, read) {
    this.load = load;
    this.read = read;
  }

  async answer(request) {
    try {
      return await this.result(request);
    } catch (error) {
      return { error: error.message };
    }
  }

  async result(request) {
    this.ort ??= await this.load();
    if (request.version) return { version: this.ort.env.versions.web };
    if (request.open) {
      await this.session?.release();
      const file = await this.read(request.open);
      this.session = await this.ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
      return {};
    }
    const feeds = {};
    for (const [name, tensor] of Object.entries(request.run)) feeds[name] = this.fromJson(tensor);
    const outputs = {};
    for (const [name, tensor] of Object.entries(await this.session.run(feeds))) outputs[name] = toJson(tensor);
    return { outputs };
  }

  fromJson({ dtype, shape, data }) {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    return new this.ort.Tensor(dtype, new ARRAYS[dtype](bytes.buffer), shape);
  }
}
