// @ts-check
/// <reference lib="dom" />
// The page of a model: a conversation with it, or a text that it goes on with, shown as it comes.
import { getModel, getRuns, RequestError, writeText } from "./api.js";
import { askForToken, bindTheme } from "./controls.js";
import { byId, make, setText, showProblem } from "./dom.js";

/** @typedef {{ role: string, content: string }} Message */

const form = byId("ask", HTMLFormElement), prompt = byId("prompt", HTMLTextAreaElement);
const cancel = byId("cancel", HTMLButtonElement), turns = byId("turns", HTMLElement);
let messages = /** @type {Message[]} */ ([]); // of the conversation
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

/** Whether the model answers, or goes on with a text. */
function isChat() {
  return document.body.dataset.mode === "chat";
}

/** Shows what there is for a conversation, or for a text. */
function setMode() {
  document.body.dataset.mode =
    form.ownerDocument.querySelector("[name=mode]:checked")?.getAttribute("value") ?? "chat";
  writing?.abort();
  showProblem("");
  setText("status", "");
  turns.hidden = !isChat();
  byId("text", HTMLElement).hidden = isChat();
  setText("said-title", isChat() ? "Conversation" : "Text");
  setText("prompt-label", isChat() ? "Message" : "Prompt");
  setText("write", isChat() ? "Send" : "Write");
  byId("write", HTMLElement).title = isChat() ? "Enter; Shift+Enter begins a line" : "Ctrl+Enter";
  prompt.placeholder = isChat()
    ? "Enter sends it, Shift+Enter begins a line"
    : "The model goes on from here; without a prompt it begins a document";
}

/** Has an answer or a text written. What is typed in the meantime is for the next. */
async function write() {
  writing?.abort();
  const mine = writing = new AbortController(), begun = performance.now();
  showProblem("");
  setText("status", "Writing");
  cancel.hidden = false;
  try {
    const { tokens, reason } = await (isChat() ? answer(mine.signal) : goOn(mine.signal));
    const seconds = (performance.now() - begun) / 1000, ends = reason === "stop" ? ", then it ended" : "";
    setText("status", `${tokens} tokens${ends}, ${(tokens / seconds).toFixed(1)} a second`);
  } catch (error) {
    if (mine !== writing) return; // the next text is under way
    setText("status", mine.signal.aborted ? "Stopped" : "");
    if (!mine.signal.aborted) showFailure(error);
  }
  if (mine === writing) cancel.hidden = true;
}

/** Goes on with a text. @param {AbortSignal} signal */
function goOn(signal) {
  setText("given", prompt.value);
  setText("written", "");
  const body = { ...settings(), prompt: prompt.value }, written = byId("written", HTMLElement);
  return writeText("completions", body, (text) => written.append(text), signal);
}

/**
 * Answers a message. One whose answer is stopped stays with what there is of it; one that is refused goes back to its field.
 * @param {AbortSignal} signal
 */
async function answer(signal) {
  const system = byId("system", HTMLTextAreaElement).value, mine = messages;
  const asked = { role: "user", content: prompt.value }, answered = { role: "assistant", content: "" };
  const shown = [show(asked), show(answered)], place = shown[1]?.lastElementChild;
  const all = [...system ? [{ role: "system", content: system }] : [], ...messages, asked];
  prompt.value = "";
  try {
    return await writeText("chat/completions", { ...settings(), messages: all }, (text) => {
      answered.content += text;
      place?.append(text);
      turns.scrollTop = turns.scrollHeight;
    }, signal);
  } catch (error) {
    if (!signal.aborted) prompt.value ||= asked.content;
    if (answered.content === "") shown.forEach((turn) => turn.remove());
    throw error;
  } finally {
    if (answered.content !== "") mine.push(asked, answered);
  }
}

/** Adds a message to those that are seen. @param {Message} message */
function show({ role, content }) {
  const who = role === "user" ? "You" : "Model";
  const turn = make(
    "article",
    { class: "turn", "data-role": role },
    make("h3", {}, who),
    make("p", { class: "prose" }, content),
  );
  turns.append(turn);
  return turn;
}

/** Begins a new conversation. */
function reset() {
  writing?.abort();
  messages = [];
  turns.replaceChildren();
  setText("status", "");
  prompt.focus();
}

/** How texts are written, as the form says. */
function settings() {
  const number = (/** @type {string} */ id) => byId(id, HTMLInputElement).valueAsNumber;
  const seed = number("seed"), stop = byId("stop", HTMLInputElement).value;
  return {
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
  if (!isChat() || cancel.hidden && prompt.value.trim() !== "") write(); // an answer ends before the next
});
form.addEventListener("keydown", (event) => {
  const sends = event.target === prompt && isChat() && !event.shiftKey && !event.isComposing;
  if (event.key !== "Enter" || !(sends || event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  form.requestSubmit();
});
for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", setMode);
cancel.addEventListener("click", () => writing?.abort());
byId("reset", HTMLButtonElement).addEventListener("click", reset);
bindTheme(() => {});
setMode();
start();
