// Requests to the server, and its errors.

const TOKEN = "deploy-rnn token";
const ROOT = new URL("..", import.meta.url); // of the server, which may be behind a prefix

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

// -> the Response to a request; throws Refused, with the server's message, if the request failed.
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  const response = await fetch(new URL(path, ROOT), { ...options, headers, cache: "no-store" });
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

export const modelPath = (name) => `v2/models/${encodeURIComponent(name)}`;
