// @ts-check
/// <reference lib="dom" />
// Finds and makes elements.

/**
 * The element of the page with an id.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 */
export function byId(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`internal: the page has no ${type.name} with id ${id}`);
  return found;
}

/**
 * Sets the text of the element with an id, unless it is the same: screen readers announce what is set.
 * @param {string} id
 * @param {string} text
 */
export function setText(id, text) {
  const target = byId(id, HTMLElement);
  if (target.textContent !== text) target.textContent = text;
}

/** Says what is wrong above the page. @param {string} text "" for nothing */
export function showProblem(text) {
  setText("problem", text);
  byId("problem", HTMLElement).hidden = text === "";
}

/**
 * A new element: make("p", { class: "muted" }, "text").
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * A colour of style.css as the current theme has it, in a form that a canvas takes.
 * @param {string} name without the dashes
 */
export function cssColor(name) {
  const probe = make("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}
