// The page at /: its models once a second, and the highlighter once its model is there.

import { start } from "./editor.js";
import { refresh } from "./models.js";
import { useToken } from "./server.js";

const EVERY = 1000; // milliseconds

const element = (id) => document.getElementById(id);

let served = null; // the names that the highlighter was last started with

async function turn() {
  if (document.hidden) return;
  try {
    const { names, memory } = await refresh();
    state(`ready · ${names.length} ${names.length === 1 ? "model" : "models"}`);
    element("memory").textContent = memory ? ` · ${(memory / 1e6).toFixed(0)} MB` : "";
    ask("");
    if (served !== names.join("\n")) {
      served = names.join("\n");
      await start(names);
    }
  } catch (error) {
    failed(error);
  }
}

function failed(error) {
  served = null;
  element("memory").textContent = "";
  if (error.status === 401) {
    state("waits for a token");
    ask(error.message);
  } else {
    state(error instanceof TypeError ? "the server cannot be reached" : error.message, true);
  }
}

function state(text, bad = false) {
  if (element("state").textContent !== text) element("state").textContent = text;
  element("state").classList.toggle("bad", bad);
}

let tried = false;

// Show the form for the token, or hide it if nothing is amiss.
function ask(amiss) {
  element("token").hidden = !amiss;
  element("token-error").textContent = tried && amiss ? "It is not that one." : "";
}

element("token").addEventListener("submit", (event) => {
  event.preventDefault();
  tried = true;
  useToken(element("token-text").value);
  turn();
});

async function forever() {
  await turn();
  setTimeout(forever, EVERY);
}

forever();
