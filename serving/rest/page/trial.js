// The form to try a model: input, answer, latency as seen from here, and the same request as a command. A model of streams
// is tried chunk by chunk.

import { ask, hasToken, modelPath, url } from "./server.js";
import { preview, randomText, readTensor } from "./tensors.js";

const DEFAULT_SIZES = { B: 1, T: 8 };
const OTHER_SIZE = 4;

export function makeTrial(model) {
  const form = document.getElementById("trial").content.firstElementChild.cloneNode(true);
  new Trial(model, form).start();
  return form;
}

class Trial {
  constructor(model, form) {
    this.model = model;
    this.form = form;
    this.sizes = new Map(); // name of an axis -> its field
    this.texts = new Map(); // name of an input -> its field
    this.stream = null; // { id, chunks } while one is open
    this.isRandom = true;
  }

  part = (selector) => this.form.querySelector(selector);

  start() {
    const required = this.model.inputs.filter((tensor) => !tensor.optional);
    const axes = new Set(required.flatMap((tensor) => tensor.shape.filter((size) => typeof size === "string")));
    for (const axis of axes) this.part(".sizes").append(this.sizeField(axis));
    this.part(".inputs").append(...this.model.inputs.map((tensor) => this.inputField(tensor)));
    this.part(".random").addEventListener("click", () => this.fill());
    this.part(".last").addEventListener("click", () => this.run(true));
    this.part(".copy").addEventListener("click", () => copy(this.part(".curl"), this.part(".copy")));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run(false);
    });
    this.showStream();
    this.fill();
  }

  sizeField(axis) {
    const label = document.createElement("label");
    const field = document.createElement("input");
    Object.assign(field, { type: "number", min: 1, step: 1, required: true, value: DEFAULT_SIZES[axis] ?? OTHER_SIZE });
    field.addEventListener("input", () => field.validity.valid && this.fill());
    label.append(`${axis} = `, field);
    this.sizes.set(axis, field);
    return label;
  }

  inputField(tensor) {
    const label = document.createElement("label");
    const field = document.createElement("textarea");
    Object.assign(field, { rows: tensor.optional ? 1 : 2, spellcheck: false, autocomplete: "off" });
    if (tensor.optional) field.placeholder = "may be left empty";
    field.addEventListener("input", () => (this.isRandom = false));
    label.append(`${tensor.name} ${tensor.datatype}[${tensor.shape.join(", ")}], as JSON`, field);
    this.texts.set(tensor.name, field);
    return label;
  }

  shapeOf = (tensor) => tensor.shape.map((size) => (typeof size === "string" ? Number(this.sizes.get(size)?.value) : size));

  // Random numbers in place of every input that is needed.
  fill() {
    this.showError("");
    try {
      for (const tensor of this.model.inputs) {
        const text = tensor.optional ? "" : randomText(tensor.datatype, this.shapeOf(tensor));
        this.texts.get(tensor.name).value = text;
      }
      this.isRandom = true;
    } catch (error) {
      this.showError(error.message);
    }
  }

  // The body of a request, with the numbers as they were typed: a browser would round large ones.
  body(isLast) {
    const inputs = [];
    for (const tensor of this.model.inputs) {
      const text = this.texts.get(tensor.name).value.trim();
      if (!text && tensor.optional) continue;
      const { shape, data } = readTensor(tensor, text, this.shapeOf(tensor));
      const fields = ascii(JSON.stringify({ name: tensor.name, datatype: tensor.datatype, shape }));
      inputs.push(`${fields.slice(0, -1)},"data":${data}}`);
    }
    const parameters = this.stream === null ? "" : `"parameters":${JSON.stringify(this.parameters(isLast))},`;
    return `{${parameters}"inputs":[${inputs.join(",")}]}`;
  }

  parameters(isLast) {
    const parameters = { sequence_id: this.stream.id };
    if (this.stream.chunks === 0) parameters.sequence_start = true;
    if (isLast) parameters.sequence_end = true;
    return parameters;
  }

  async run(isLast) {
    if (this.model.streaming) this.stream ??= { id: `page-${Math.random().toString(36).slice(2)}`, chunks: 0 };
    this.showError("");
    let body;
    try {
      body = this.body(isLast);
    } catch (error) {
      this.fail(error, this.stream?.chunks > 0);
      return;
    }
    this.showCommand(body);
    this.setBusy(true);
    try {
      const { answer, milliseconds } = await this.send(body);
      this.showAnswer(answer, milliseconds, isLast);
    } catch (error) {
      this.fail(error, false);
    }
    this.setBusy(false);
    this.showStream();
  }

  async send(body) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const started = performance.now();
    const response = await ask(`${modelPath(this.model.name)}/infer`, options);
    const text = await response.text();
    return { milliseconds: performance.now() - started, answer: JSON.parse(text) };
  }

  showAnswer(answer, milliseconds, isLast) {
    let what = `answered in ${milliseconds.toFixed(1)} ms`;
    if (this.stream !== null) {
      this.stream.chunks += 1;
      what = `chunk ${this.stream.chunks}${isLast ? ", the last," : ""} ${what}`;
      if (isLast) this.stream = null;
      if (this.isRandom) this.fill();
    }
    this.part(".latency").textContent = `${what}, from this browser and back`;
    this.part(".answer").textContent = answer.outputs.map(preview).join("\n\n");
    this.part(".answer").hidden = false;
  }

  // A mistake in the input leaves the stream as it was; after an error of the server it has to begin again.
  fail(error, keepsStream) {
    const hasEnded = this.stream?.chunks > 0 && !keepsStream;
    if (!keepsStream) this.stream = null;
    this.part(".latency").textContent = "";
    this.part(".answer").hidden = true;
    this.showError(`${error.message}${hasEnded ? " The next chunk begins a new stream." : ""}`);
  }

  showError(text) {
    this.part(".error").textContent = text;
  }

  showStream() {
    if (!this.model.streaming) return;
    const isOpen = this.stream !== null;
    this.part(".run").textContent = isOpen ? "Send the next chunk" : "Send the first chunk of a stream";
    this.part(".last").hidden = !isOpen;
  }

  setBusy(isBusy) {
    for (const button of this.form.querySelectorAll(".run, .last")) button.disabled = isBusy;
  }

  showCommand(body) {
    const token = hasToken() ? ' -H "Authorization: Bearer $DEPLOY_RNN_TOKEN"' : "";
    const address = url(`${modelPath(this.model.name)}/infer`).href;
    this.part(".curl").textContent = `curl ${quoted(address)}${token} -d ${quoted(body)}`;
    this.part(".command").hidden = false;
  }
}

// For a POSIX shell: names may come from strangers.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// JSON without characters that a terminal might not show as they are.
const ascii = (json) =>
  json.replace(/[^\x20-\x7e]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

// A page that does not come from localhost or by https may not write to the clipboard: then the text is selected.
async function copy(element, button) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(element);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
