// What JSON from elsewhere holds.

/** Whether a value is an object of JSON, with its fields still to be checked. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
