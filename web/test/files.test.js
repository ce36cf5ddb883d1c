import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { test } from "node:test";

import { BundleError } from "../src/errors.js";
import { Files } from "../src/files.js";

globalThis.crypto ??= webcrypto; // node 18

const DATA = new TextEncoder().encode("weights");
const digest = async () => Buffer.from(await crypto.subtle.digest("SHA-256", DATA)).toString("hex");

/** Answers with each of these in turn, and notes what was asked for. */
function fetcher(answers, asked = []) {
  return async (url, { cache }) => {
    asked.push([String(url), cache]);
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return typeof answer === "number"
      ? new Response("", { status: answer, statusText: "Why" })
      : new Response(answer);
  };
}

test("files lie next to the manifest, whatever the address", async () => {
  for (const url of [
    "http://host/a",
    "http://host/a/",
    "http://host/a/manifest.json",
    new URL("http://host/a"),
  ]) {
    const asked = [];
    await new Files(url, { fetch: fetcher([DATA], asked) }).read("weights #1.bin", await digest());
    assert.deepEqual(asked, [["http://host/a/weights%20%231.bin", "default"]]);
  }
  assert.throws(
    () => new Files("a"),
    new BundleError('`url` (="a") must be the address of a bundle\'s folder.'),
  );
});

test("a file that the browser has kept from before is fetched again", async () => {
  const asked = [];
  const files = new Files("http://host/a", { fetch: fetcher(["old", DATA], asked) });
  assert.deepEqual(await files.read("w", await digest()), DATA);
  assert.deepEqual(
    asked.map(([, cache]) => cache),
    ["default", "reload"],
  );
});

test("a file that is not the one of the manifest is refused", async () => {
  const files = (verify) => new Files("http://host/a", { fetch: fetcher(["old", "old"]), verify });
  await assert.rejects(
    files(true).read("w", await digest()),
    (error) =>
      error instanceof BundleError &&
      error.message.startsWith("http://host/a/w is not the file that was exported: its sha256 "),
  );
  assert.equal(new TextDecoder().decode(await files(false).read("w", await digest())), "old");
});

test("what cannot be fetched is named", async () => {
  for (const [answer, message] of [
    [
      404,
      "http://host/a/w is not there (404); must be a file of a bundle, as `deploy-rnn export` writes it.",
    ],
    [503, "http://host/a/w cannot be fetched: status 503 Why."],
    [
      new TypeError("Failed to fetch"),
      "http://host/a/w cannot be fetched: Failed to fetch. Check that the server runs, and that it lets this " +
        "page read it.",
    ],
  ]) {
    const files = new Files("http://host/a", { fetch: fetcher([answer]) });
    await assert.rejects(
      files.read("w", ""),
      (error) => error instanceof BundleError && error.message === message,
    );
  }
});
