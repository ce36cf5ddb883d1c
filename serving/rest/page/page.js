// The page at /: the models of the server, updated once a second.

import { refresh } from "./models.js";
import { ask, hasToken } from "./server.js";

const INTERVAL = 1000; // milliseconds

const element = (id) => document.getElementById(id);

async function update() {
  if (document.hidden) return;
  try {
    const { names, memory } = await refresh();
    showState(`ready · ${names.length} ${names.length === 1 ? "model" : "models"}`);
    element("memory").textContent = memory ? ` · ${(memory / 1e6).toFixed(0)} MB` : "";
    // A page that is made for one model is of no use without it.
    for (const link of document.querySelectorAll("nav [data-model]")) link.hidden = !names.includes(link.dataset.model);
  } catch (error) {
    element("memory").textContent = "";
    showState(error instanceof TypeError ? "the server cannot be reached" : error.message, true);
  }
}

function showState(text, isBad = false) {
  if (element("state").textContent !== text) element("state").textContent = text;
  element("state").classList.toggle("bad", isBad);
}

document.addEventListener("token-needed", () => showState("a token is required"));

// A link cannot carry the token, so what it leads to is shown here.
async function showText(event) {
  if (!hasToken()) return;
  event.preventDefault();
  const link = event.currentTarget;
  const response = await ask(link.getAttribute("href"));
  element("text-title").textContent = link.textContent;
  element("text").querySelector("pre").textContent = await response.text();
  element("text").showModal();
}

for (const link of document.querySelectorAll("nav .text")) link.addEventListener("click", showText);

async function run() {
  await update();
  setTimeout(run, INTERVAL);
}

run();
