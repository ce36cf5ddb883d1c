// The server's token: the user is asked for it once, whichever page, form or tab needs it first.

const KEY = "deploy-rnn token";
const TABS_ANSWER = 200; // milliseconds

const tabs = new BroadcastChannel(KEY); // of this server only, as every tab's storage
let question = null; // while the user is being asked

export const currentToken = () => sessionStorage.getItem(KEY);

// -> when there is another token than the one that was refused, which may be null.
export function askForToken(refused) {
  if (currentToken() !== refused) return Promise.resolve();
  question ??= find(refused).then((token) => {
    sessionStorage.setItem(KEY, token);
    question = null;
  });
  return question;
}

async function find(refused) {
  const known = await askTabs();
  if (known !== null && known !== refused) return known;
  return askUser(refused === null ? "" : "This token is wrong.");
}

tabs.addEventListener("message", ({ data }) => {
  if (data === null && currentToken() !== null) tabs.postMessage(currentToken());
});

// -> the token of another tab; null if none has one.
function askTabs() {
  return new Promise((resolve) => {
    const listen = ({ data }) => data !== null && resolve(data);
    tabs.addEventListener("message", listen);
    tabs.postMessage(null);
    setTimeout(() => {
      tabs.removeEventListener("message", listen);
      resolve(null);
    }, TABS_ANSWER);
  });
}

function askUser(problem) {
  const form = makeForm(problem);
  document.querySelector("main").prepend(form);
  document.dispatchEvent(new Event("token-needed"));
  form.querySelector("input").focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      form.remove();
      resolve(form.querySelector("input").value);
    });
  });
}

function makeForm(problem) {
  const form = document.createElement("form");
  const label = document.createElement("label");
  const field = document.createElement("input");
  const button = document.createElement("button");
  const error = document.createElement("span");
  Object.assign(form, { id: "token", className: "notice" });
  Object.assign(label, { htmlFor: "token-text", textContent: "This server requires a token." });
  Object.assign(field, { id: "token-text", type: "password", autocomplete: "off", required: true });
  Object.assign(button, { textContent: "Use" });
  Object.assign(error, { id: "token-error", textContent: problem });
  error.setAttribute("role", "alert");
  form.append(label, field, button, error);
  return form;
}
