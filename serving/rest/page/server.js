// Requests to the server, and its errors.

import { askForToken, currentToken } from "./token.js";

const ROOT = new URL("..", import.meta.url); // of the server, which may be behind a prefix

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const url = (path) => new URL(path, ROOT);
export const hasToken = () => currentToken() !== null;
export const modelPath = (name) => `v2/models/${encodeURIComponent(name)}`;

// -> the Response to a request; throws Refused, with the server's message, if the request failed. If the server requires
// a token, the user is asked for it first.
export async function ask(path, options = {}) {
  const token = currentToken();
  const headers = new Headers(options.headers);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  const response = await fetch(url(path), { ...options, headers, cache: "no-store" });
  if (response.status === 401) {
    await askForToken(token);
    return ask(path, options);
  }
  if (!response.ok) throw new Refused(response.status, await errorMessage(response));
  return response;
}

async function errorMessage(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return text || `HTTP ${response.status}`;
  }
}
