// Reads tokenizer.json. The vocabulary and the merges of byte-level BPE, which are most of it, go from the bytes of the file
// into tables without a string or an object for each, in a fifth of the time and memory of JSON.parse.
import { UserError } from "../../ffi/errors.ts";
import { JsonWalker } from "./json_walker.ts";

/** A JSON object. */
export type Json = Record<string, unknown>;

/** A place in the bytes of a file. */
export interface Span {
  from: number;
  to: number;
}

/** A tokenizer.json whose two long lists are left where they are. */
export interface TokenizerFile {
  bytes: Uint8Array;
  /** Everything but model.vocab and model.merges, for which it has null. */
  json: Json;
  /** Where model.vocab is in bytes, if the model has one. */
  vocab?: Span;
  /** Where model.merges is in bytes, if the model has them. */
  merges?: Span;
}

/**
 * Reads a tokenizer.json.
 *
 * @throws {UserError} if it cannot be read or is not JSON.
 */
export function readTokenizerFile(path: string): TokenizerFile {
  const bytes = readBytes(path), lists = findLists(path, bytes);
  let text = "", from = 0;
  for (const span of Object.values(lists).sort((a, b) => a.from - b.from)) {
    text += `${decode(bytes.subarray(from, span.from))}null`;
    from = span.to;
  }
  return { bytes, json: parseJson(path, text + decode(bytes.subarray(from))), ...lists };
}

/** The bytes of a file. Throws UserError if it cannot be read. */
export function readBytes(path: string): Uint8Array {
  try {
    return Deno.readFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(`Cannot read "${path}": ${(error as Error).message}`);
  }
}

/** The object in a JSON text. Throws UserError if there is none. */
export function parseJson(path: string, text: string): Json {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new UserError(`Cannot read "${path}": ${(error as Error).message}`);
  }
  if (typeof json === "object" && json !== null && !Array.isArray(json)) return json as Json;
  throw new UserError(`Cannot read "${path}": it is ${text.slice(0, 40)}, should be an object`);
}

/** The text of bytes. */
export function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** Finds model.vocab and model.merges. */
function findLists(path: string, bytes: Uint8Array): { vocab?: Span; merges?: Span } {
  const lists: { vocab?: Span; merges?: Span } = {}, walker = new JsonWalker(bytes);
  try {
    forEachKey(walker, (key) => {
      if (key !== "model") return walker.skip();
      forEachKey(walker, (key) => {
        const from = walker.at;
        walker.skip();
        if (key === "vocab" || key === "merges") lists[key] = { from, to: walker.at };
      });
    });
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    parseJson(path, decode(bytes)); // says better what is wrong, but for
    throw new UserError(`Cannot read "${path}": its model is no object, should be one`);
  }
  return lists;
}

/** Calls visit() at each value of an object; it must step over the value. */
function forEachKey(walker: JsonWalker, visit: (key: string) => void): void {
  const units = new Uint16Array(64); // longer keys are none that are looked for
  walker.enter();
  while (walker.step()) {
    const length = walker.string(units, 0);
    walker.toValue();
    visit(length <= units.length ? String.fromCharCode(...units.subarray(0, length)) : "");
  }
}
