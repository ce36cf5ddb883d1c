// The declared types are those of the code, and right for callers; `npm run check` compiles this, nobody runs it.

import * as declared from "../index.js";
import * as written from "../src/index.js";

export const module: typeof declared = written;
export const names: Record<keyof typeof declared, unknown> = written;
export const back: Record<keyof typeof written, unknown> = declared;

export async function use(): Promise<number[]> {
  const bundle = await declared.loadBundle(new URL("https://example.org/tagger"), {
    verify: false,
  });
  const { output } = await bundle.run({
    tokens: [
      [1, 2],
      [3, 4],
    ],
    lengths: BigInt64Array.of(2n, 1n),
  });
  const both = await bundle.run([{ tokens: [[1]] }, { tokens: [[1, 2]] }], { outputs: ["output"] });
  const stream = bundle.stream();
  await stream.run({
    input: { shape: [1, 2, 1], data: new Float32Array(2) },
    h_0: stream.states.h_0,
  });
  // @ts-expect-error: text is no input
  await bundle.run({ tokens: "text" });
  // @ts-expect-error: a list has no `output`
  both.output;
  return [...output.shape, both[0].output.data.length];
}
