/**
 * The part of `@std/assert` that loam's tests use, with the same names, signatures and meaning, so that they run where the
 * JSR registry is out of reach. `links` in deno.json points here; `deno unlink offline/assert offline/cli` switches to the
 * real packages, and nothing else changes.
 *
 * @module
 */
import { equal } from "./equal.ts";
import { diff, print } from "./diff.ts";

export { equal };

/** What every assertion throws. */
export class AssertionError extends Error {
  override name = "AssertionError";
}

type ErrorClass<E extends Error> = abstract new (...args: never[]) => E;

/** expr is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Always fails. */
export function fail(msg?: string): never {
  throw new AssertionError(`Failed assertion${suffix(msg)}`);
}

/** actual and expected are deeply equal, as {@linkcode equal} sees it. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) return;
  throw new AssertionError(`Values are not equal${suffix(msg)}\n${diff(actual, expected)}`);
}

/** actual and expected are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  if (!equal(actual, expected)) return;
  throw new AssertionError(`Expected actual: ${print(actual)} not to be: ${print(expected)}${suffix(msg)}`);
}

/** |actual - expected| <= tolerance. Without a tolerance: 1e-7 of expected. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, msg?: string): void {
  if (Object.is(actual, expected)) return;
  const delta = Math.abs(expected - actual);
  const allowed = tolerance ?? (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  if (delta <= allowed) return;
  const text = (n: number) => Number.isInteger(n) ? `"${n}"` : `"${n.toExponential()}"`;
  throw new AssertionError(
    `Expected actual: ${text(actual)} to be close to ${text(expected)}: ` +
      `delta ${text(delta)} is greater than ${text(allowed)}${suffix(msg)}`,
  );
}

/** actual < expected. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  if (actual < expected) return;
  throw new AssertionError(msg ?? `Expect ${print(actual)} < ${print(expected)}`);
}

/** actual contains expected. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  if (actual.includes(expected)) return;
  throw new AssertionError(`Expected actual: "${actual}" to contain: "${expected}"${suffix(msg)}`);
}

/** actual matches the regular expression. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  if (expected.test(actual)) return;
  throw new AssertionError(`Expected actual: "${actual}" to match: "${expected}"${suffix(msg)}`);
}

/** fn throws. Returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** fn throws an ErrorClass whose message contains msgIncludes. Returns the error. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  classOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  let thrown: { error: unknown } | undefined;
  try {
    fn();
  } catch (error) {
    thrown = { error };
  }
  const note = typeof classOrMsg === "string" ? classOrMsg : msg;
  if (!thrown) throw new AssertionError(`Expected function to throw${suffix(note)}`);
  if (typeof classOrMsg === "function") checkError(thrown.error, "thrown", classOrMsg, msgIncludes, note);
  return thrown.error;
}

/** The promise fn returns rejects. Resolves to what it rejected with. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** The promise fn returns rejects with an ErrorClass whose message contains msgIncludes. Resolves to the error. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  classOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const note = typeof classOrMsg === "string" ? classOrMsg : msg;
  let promise: PromiseLike<unknown> | undefined;
  let rejected: { error: unknown } | undefined;
  try {
    promise = fn();
    await promise;
  } catch (error) {
    rejected = { error };
  }
  if (typeof promise?.then !== "function") {
    throw new AssertionError(`Function throws when expected to reject${suffix(note)}`);
  }
  if (!rejected) throw new AssertionError(`Expected function to reject${suffix(note)}`);
  if (typeof classOrMsg === "function") checkError(rejected.error, "rejected", classOrMsg, msgIncludes, note);
  return rejected.error;
}

function checkError<E extends Error>(
  error: unknown,
  how: "thrown" | "rejected",
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): void {
  if (!(error instanceof Error)) throw new AssertionError(`A non-Error object was ${how}${suffix(msg)}`);
  if (!(error instanceof ErrorClass)) {
    throw new AssertionError(
      `Expected error to be instance of "${ErrorClass.name}", but was "${kindOf(error)}"${suffix(msg)}`,
      { cause: error },
    );
  }
  if (msgIncludes && !plain(error.message).includes(plain(msgIncludes))) {
    throw new AssertionError(
      `Expected error message to include ${JSON.stringify(msgIncludes)}, ` +
        `but got ${JSON.stringify(error.message)}${suffix(msg)}`,
    );
  }
}

function plain(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/\x1b\[[0-9;]*m/g, ""); // terminal colours
}

function kindOf(value: unknown): string {
  if (value === null) return "null";
  return typeof value === "object" ? value.constructor?.name ?? "Object" : typeof value;
}

function suffix(msg: string | undefined): string {
  return msg ? `: ${msg}` : ".";
}
