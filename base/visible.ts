// What comes from files, servers or a model may hold characters that steer a terminal or forge a line of a log. Everything
// that is printed passes through here.

// C0 but for tab and newline, DEL and C1; what turns the direction of text around; what ends a line besides a newline.
// deno-lint-ignore no-control-regex
const STEERING = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/**
 * A text with such characters written out, as \u001b for an escape: JSON stays the same JSON. Tabs and newlines remain.
 */
export function visible(text: string): string {
  return text.replace(STEERING, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The same in one line, with \n, \r and \t for what they are: for messages, and for names and values in tables. */
export function oneLine(text: string): string {
  return visible(text.replace(/[\n\r\t]/g, (c) => ({ "\n": "\\n", "\r": "\\r", "\t": "\\t" })[c]!));
}
