// Reads tokenizer.json. The vocabulary and the merges of byte-level BPE, which are most of it, go from the bytes of the file
// into tables without a string or an object for each, in a fifth of the time and memory of JSON.parse.
import { isObject } from "../../base/json.ts";
import { UserError } from "../../base/errors.ts";
import { JsonWalker } from "./json_walker.ts";

/** A JSON object. */
export type Json = Record<string, unknown>;

/** A place in the bytes of a file. */
export type Span = {
  /** The first byte. */
  from: number;
  /** Behind the last byte. */
  to: number;
};

/** A tokenizer.json whose two long lists are left where they are. */
export type TokenizerFile = {
  /** The whole file. */
  bytes: Uint8Array;
  /** Where the value of each of its keys is in bytes. */
  parts: Map<string, Span>;
  /** Everything but model.vocab and model.merges, for which it has null. */
  json: Json;
  /** Where model.vocab is in bytes, if the model has one. */
  vocab?: Span;
  /** Where model.merges is in bytes, if the model has them. */
  merges?: Span;
};

/** Reads a tokenizer.json. Throws UserError if it cannot be read or is not JSON. */
export function readTokenizerFile(path: string): TokenizerFile {
  const bytes = readBytes(path), { parts, ...lists } = findParts(path, bytes);
  let text = "", from = 0;
  for (const span of Object.values(lists).sort((a, b) => a.from - b.from)) {
    text += `${decode(bytes.subarray(from, span.from))}null`;
    from = span.to;
  }
  return { bytes, parts, json: parseJson(path, text + decode(bytes.subarray(from))), ...lists };
}

/** The text of a tokenizer.json with other values of some keys; everything else stays as it is, byte by byte. */
export function withParts({ bytes, parts }: TokenizerFile, values: Json): string {
  const spans = Object.entries(values).flatMap(([key, value]) => {
    const span = parts.get(key);
    return span ? [{ ...span, text: JSON.stringify(value) }] : [];
  });
  const added = Object.entries(values).filter(([key]) => !parts.has(key));
  let text = "", from = bytes.indexOf(0x7b) + 1; // behind the first brace
  text += decode(bytes.subarray(0, from)) + added.map((pair) => `${pairText(pair)},`).join("");
  for (const span of spans.sort((a, b) => a.from - b.from)) {
    text += decode(bytes.subarray(from, span.from)) + span.text;
    from = span.to;
  }
  return text + decode(bytes.subarray(from));
}

function pairText([key, value]: [string, unknown]): string {
  return `${JSON.stringify(key)}:${JSON.stringify(value)}`;
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
  if (isObject(json)) return json;
  throw new UserError(`Cannot read "${path}": it is ${text.slice(0, 40)}, should be an object`);
}

/** The text of bytes. */
export function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** Finds the values of all keys, and model.vocab and model.merges. */
function findParts(path: string, bytes: Uint8Array): Pick<TokenizerFile, "parts" | "vocab" | "merges"> {
  const lists: { vocab?: Span; merges?: Span } = {}, parts = new Map<string, Span>();
  const walker = new JsonWalker(bytes);
  try {
    forEachKey(walker, (key) => {
      const from = walker.at;
      if (key === "model") {
        forEachKey(walker, (key) => {
          const from = walker.at;
          walker.skip();
          if (key === "vocab" || key === "merges") lists[key] = { from, to: walker.at };
        });
      } else walker.skip();
      parts.set(key, { from, to: walker.at });
    });
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    parseJson(path, decode(bytes)); // says better what is wrong, but for
    throw new UserError(`Cannot read "${path}": its model is no object, should be one`);
  }
  return { parts, ...lists };
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
