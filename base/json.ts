// What JSON from elsewhere holds.

/** Whether a value is an object of JSON, with its fields still to be checked. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value of JSON as a message quotes it: the first `most` characters of its text, or "missing" for undefined. */
export function show(value: unknown, most = 40): string {
  return value === undefined ? "missing" : JSON.stringify(value).slice(0, most);
}
