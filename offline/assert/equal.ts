// Deep equality, the meaning of "equal" in assertEquals.

type Keys = Set<string | symbol>;
type Numbers = ArrayLike<number | bigint>;

/**
 * Whether a and b have the same prototype and the same contents all the way down. NaN equals NaN and 0 equals -0; Maps and
 * Sets are compared without regard to order; a property set to undefined differs from a missing one; cycles are fine.
 */
export function equal(a: unknown, b: unknown): boolean {
  return sameValue(a, b, new Map());
}

function sameValue(a: unknown, b: unknown, seen: Map<object, object>): boolean {
  if (a === b || Object.is(a, b)) return true;
  if (!isObject(a) || !isObject(b) || !samePrototype(a, b)) return false;

  if (a instanceof Date) return Object.is(a.getTime(), (b as Date).getTime());
  if (a instanceof RegExp || a instanceof URL || a instanceof URLSearchParams) return String(a) === String(b);
  if (a instanceof ArrayBuffer) return sameNumbers(new Uint8Array(a), new Uint8Array(b as ArrayBuffer));
  if (a instanceof DataView) return sameNumbers(bytesOf(a), bytesOf(b as DataView));
  if (ArrayBuffer.isView(a)) return sameNumbers(a as unknown as Numbers, b as unknown as Numbers);

  if (seen.get(a) === b) return true; // a cycle: this pair is being compared further out
  seen.set(a, b);
  const same = a instanceof Map
    ? sameEntries(a, b as Map<unknown, unknown>, seen)
    : a instanceof Set
    ? sameEntries(new Map(a.entries()), new Map((b as Set<unknown>).entries()), seen)
    : sameProperties(a, b, seen);
  if (!same) seen.delete(a);
  return same;
}

function sameProperties(a: object, b: object, seen: Map<object, object>): boolean {
  const aKeys = keysOf(a), bKeys = keysOf(b);
  if (aKeys.size !== bKeys.size) return false;
  for (const key of aKeys) {
    if (!bKeys.has(key)) return false;
    if (!sameValue(Reflect.get(a, key), Reflect.get(b, key), seen)) return false;
  }
  return true;
}

/** Every entry of a has an equal one in b that no earlier entry took. */
function sameEntries(a: Map<unknown, unknown>, b: Map<unknown, unknown>, seen: Map<object, object>): boolean {
  if (a.size !== b.size) return false;
  const left = new Map(b);
  for (const [key, value] of a) {
    const match = isObject(key)
      ? left.keys().find((k) => sameValue(key, k, seen) && sameValue(value, left.get(k), seen))
      : key;
    if (!left.has(match) || !sameValue(value, left.get(match), seen)) return false;
    left.delete(match);
  }
  return true;
}

function sameNumbers(a: Numbers, b: Numbers): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) {
    if (a[i] !== b[i] && !(Number.isNaN(a[i]) && Number.isNaN(b[i]))) return false;
  }
  return true;
}

/** Own enumerable keys of plain objects and arrays; of other objects also hidden ones and those of their classes. */
function keysOf(object: object): Keys {
  if (isPlain(object)) return new Set(Reflect.ownKeys({ ...object }));
  const keys: Keys = new Set();
  for (let o = object; o && o !== Object.prototype && o !== Array.prototype; o = Object.getPrototypeOf(o)) {
    for (const key of Reflect.ownKeys(o)) keys.add(key);
  }
  return keys;
}

function isPlain(object: object): boolean {
  const prototype = Object.getPrototypeOf(object);
  return prototype === null || prototype === Object.prototype || prototype === Array.prototype;
}

/** Object.create(null) counts as {}. */
function samePrototype(a: object, b: object): boolean {
  return (Object.getPrototypeOf(a) ?? Object.prototype) === (Object.getPrototypeOf(b) ?? Object.prototype);
}

function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}
