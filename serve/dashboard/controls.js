// @ts-check
/// <reference lib="dom" />
// What a person can set: axis, smoothing, scale, theme, search, help, token. The choices outlive the page.
import { signIn } from "./api.js";
import { byId, setText } from "./dom.js";
import { search } from "./panels.js";

/** @typedef {import("./series.js").XAxis} XAxis */
/** @typedef {{ axis: XAxis, smoothing: number, isLog: boolean }} Choices */

const KEPT_AS = "loam-choices";

/** @type {Choices} */
const DEFAULTS = { axis: "step", smoothing: 0.8, isLog: false };

/** @returns {Choices} those of last time */
export function keptChoices() {
  return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEPT_AS) ?? "{}") };
}

/**
 * Shows choices in the controls above the charts, and reports others.
 * @param {Choices} choices
 * @param {(choices: Choices) => void} onChange
 */
export function bindChoices(choices, onChange) {
  const form = byId("controls", HTMLFormElement), isLog = byId("log", HTMLInputElement);
  const smoothing = byId("smoothing", HTMLInputElement);
  const axes = [...form.querySelectorAll("input")].filter(({ name }) => name === "axis");
  for (const radio of axes) radio.checked = radio.value === choices.axis;
  isLog.checked = choices.isLog;
  smoothing.value = String(choices.smoothing);
  setText("smoothing-value", choices.smoothing.toFixed(2));

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    const axis = /** @type {XAxis} */ (axes.find((radio) => radio.checked)?.value);
    const chosen = { axis, smoothing: Number(smoothing.value), isLog: isLog.checked };
    setText("smoothing-value", chosen.smoothing.toFixed(2));
    localStorage.setItem(KEPT_AS, JSON.stringify(chosen));
    onChange(chosen);
  });
}

/**
 * The button for dark and light. What differs from the system's choice is kept.
 * @param {() => void} onChange
 */
export function bindTheme(onChange) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const { dataset } = document.documentElement;
  byId("theme", HTMLButtonElement).addEventListener("click", () => {
    const ofSystem = system.matches ? "dark" : "light";
    const next = (dataset.theme ?? ofSystem) === "dark" ? "light" : "dark";
    if (next === ofSystem) {
      delete dataset.theme;
      localStorage.removeItem("loam-theme");
    } else {
      dataset.theme = next;
      localStorage.setItem("loam-theme", next);
    }
    onChange();
  });
  system.addEventListener("change", onChange);
}

/** The keys / and ?, and the search. */
export function bindKeys() {
  const field = byId("search", HTMLInputElement), help = byId("help", HTMLDialogElement);
  field.addEventListener("input", search);
  byId("help-button", HTMLButtonElement).addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (isTyping(event) || document.querySelector("dialog[open]")) return;
    if (event.key === "?") help.showModal();
    if (event.key !== "/") return;
    event.preventDefault(); // Firefox searches the page
    field.focus();
  });
}

/** Whether a key belongs to a text field or to the browser. @param {KeyboardEvent} event */
function isTyping({ target, ctrlKey, metaKey, altKey }) {
  const isField = target instanceof HTMLInputElement && ["search", "password"].includes(target.type);
  return isField || ctrlKey || metaKey || altKey;
}

/** Asks for the server's token until it is right, then begins again. */
export function askForToken() {
  const dialog = byId("login", HTMLDialogElement);
  if (dialog.open) return;
  dialog.showModal();
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing behind it
  byId("login-form", HTMLFormElement).addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await signIn(byId("token", HTMLInputElement).value);
      location.reload();
    } catch (error) {
      setText("login-error", error instanceof Error ? error.message : String(error));
    }
  });
}
