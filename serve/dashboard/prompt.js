// @ts-check
/// <reference lib="dom" />
// The prompt page: sends what is typed to the model and shows its text as it comes.
import { getModel, getRuns, RequestError, writeText } from "./api.js";
import { askForToken, bindTheme } from "./controls.js";
import { byId, setText, showProblem } from "./dom.js";

const form = byId("ask", HTMLFormElement), prompt = byId("prompt", HTMLTextAreaElement);
const cancel = byId("cancel", HTMLButtonElement), written = byId("written", HTMLElement);
let writing = /** @type {AbortController | null} */ (null);

/** Shows which model is here, and whether there are runs to look at. */
async function start() {
  try {
    const model = await getModel();
    setText("model", model ?? "no model is served: deno task serve --checkpoint PATH");
    document.title = model ? `${model} · loam` : "loam";
    byId("runs-link", HTMLElement).hidden = (await getRuns()).length === 0;
  } catch (error) {
    showFailure(error);
  }
}

/** Has a text written. What is typed in the meantime is for the next. */
async function write() {
  writing?.abort();
  const mine = writing = new AbortController(), begun = performance.now();
  showProblem("");
  setText("given", prompt.value);
  setText("written", "");
  setText("status", "Writing");
  cancel.hidden = false;
  try {
    const { tokens, reason } = await writeText(request(), (text) => written.append(text), mine.signal);
    const seconds = (performance.now() - begun) / 1000, ends = reason === "stop" ? ", then it ended" : "";
    setText("status", `${tokens} tokens${ends}, ${(tokens / seconds).toFixed(1)} a second`);
  } catch (error) {
    if (mine !== writing) return; // the next text is under way
    setText("status", mine.signal.aborted ? "Stopped" : "");
    if (!mine.signal.aborted) showFailure(error);
  }
  if (mine === writing) cancel.hidden = true;
}

/** The body of the request that the form asks for. */
function request() {
  const number = (/** @type {string} */ id) => byId(id, HTMLInputElement).valueAsNumber;
  const seed = number("seed"), stop = byId("stop", HTMLInputElement).value;
  return {
    prompt: prompt.value,
    max_tokens: number("max_tokens"),
    temperature: number("temperature"),
    top_p: number("top_p"),
    ...Number.isNaN(seed) ? {} : { seed },
    ...stop ? { stop } : {},
  };
}

/** @param {unknown} error */
function showFailure(error) {
  if (error instanceof RequestError && error.status === 401) askForToken();
  else if (error instanceof RequestError) showProblem(error.message);
  else showProblem("No connection to the server");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
cancel.addEventListener("click", () => writing?.abort());
bindTheme(() => {});
start();
