// The page at /: the models of the server, updated once a second.

import { refresh } from "./models.js";
import { useToken } from "./server.js";

const INTERVAL = 1000; // milliseconds

const element = (id) => document.getElementById(id);

async function update() {
  if (document.hidden) return;
  try {
    const { names, memory } = await refresh();
    showState(`ready · ${names.length} ${names.length === 1 ? "model" : "models"}`);
    element("memory").textContent = memory ? ` · ${(memory / 1e6).toFixed(0)} MB` : "";
    showTokenForm(false);
  } catch (error) {
    showError(error);
  }
}

function showError(error) {
  element("memory").textContent = "";
  if (error.status === 401) {
    showState("a token is required");
    showTokenForm(true);
  } else {
    showState(error instanceof TypeError ? "the server cannot be reached" : error.message, true);
  }
}

function showState(text, isBad = false) {
  if (element("state").textContent !== text) element("state").textContent = text;
  element("state").classList.toggle("bad", isBad);
}

let tokenTried = false;

function showTokenForm(isRequired) {
  element("token").hidden = !isRequired;
  element("token-error").textContent = tokenTried && isRequired ? "This token is wrong." : "";
}

element("token").addEventListener("submit", (event) => {
  event.preventDefault();
  tokenTried = true;
  useToken(element("token-text").value);
  update();
});

async function run() {
  await update();
  setTimeout(run, INTERVAL);
}

run();
