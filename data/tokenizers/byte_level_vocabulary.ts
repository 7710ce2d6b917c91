// The vocabulary and the merges of a tokenizer.json of byte-level BPE, read from the bytes of the file into tables.
import { byteCharacters } from "./byte_level_files.ts";
import { ByteStrings } from "./byte_strings.ts";
import { JsonWalker } from "./json_walker.ts";
import type { PieceTable } from "./piece_table.ts";
import type { Span } from "./tokenizer_file.ts";

const LONGEST = (1 << 16) - 1; // units of a string in the file, at most
const LARGEST_ID = 1 << 24;

/** Byte of each UTF-16 unit in a byte-level vocabulary, -1 for those that stand for none. */
const BYTES = new Int16Array(0x10000).fill(-1);
byteCharacters().forEach((character, byte) => BYTES[character.charCodeAt(0)] = byte);

/** The bytes that a token stands for, undefined if a character of it stands for none. */
export function byteToken(token: string): Uint8Array | undefined {
  const bytes = Int16Array.from({ length: token.length }, (_, i) => BYTES[token.charCodeAt(i)]!);
  return bytes.includes(-1) ? undefined : Uint8Array.from(bytes);
}

/** A vocabulary by ids. */
export type Vocabulary = {
  /** Tokens of both kinds. */
  size: number;
  /** The bytes that ids stand for; none for ids that have no token or one of the others. */
  tokens: ByteStrings;
  /** Tokens that text cannot become, since a character of them stands for no byte. */
  others: Map<number, string>;
};

/** Reads model.vocab. */
export function readVocabulary(file: Uint8Array, { from }: Span): Vocabulary {
  const walker = new JsonWalker(file, from), { units, bytes } = new Room();
  const written = new ByteStrings(1 << 16, 1 << 19),
    places: number[] = [],
    others = new Map<number, string>();
  for (walker.enter(); walker.step();) {
    const length = readString(walker, units);
    walker.toValue();
    const id = walker.number();
    if (id > LARGEST_ID) {
      throw new RangeError(`its vocabulary has the id ${id}, should have none above ${LARGEST_ID}`);
    }
    places[id] = written.length;
    const known = toBytes(units, 0, length, bytes, 0);
    written.push(bytes, 0, known ? length : 0);
    if (!known) others.set(id, String.fromCharCode(...units.subarray(0, length)));
  }
  return { size: written.length, tokens: inOrder(written, places), others };
}

/** The joins of model.merges in the order of their ranks, three numbers each: left id, right id and id of the join. */
export function readMerges(file: Uint8Array, { from }: Span, table: PieceTable): Int32Array {
  const walker = new JsonWalker(file, from), { units, bytes } = new Room();
  let joins = new Int32Array(1 << 18), n = 0;
  for (walker.enter(); walker.step();) {
    const start = walker.at, [middle, end] = readMerge(walker, units, bytes);
    if (n + 3 > joins.length) joins = grown(joins);
    joins[n] = table.token(table.find(bytes, 0, middle));
    joins[n + 1] = table.token(table.find(bytes, middle, end));
    joins[n + 2] = table.token(table.find(bytes, 0, end));
    if (joins[n]! < 0 || joins[n + 1]! < 0 || joins[n + 2]! < 0) {
      const merge = new TextDecoder().decode(file.subarray(start, walker.at));
      throw new RangeError(`its merge ${n / 3} is ${merge}, should be two tokens that make a token`);
    }
    n += 3;
  }
  return joins.subarray(0, n);
}

/** Room for a string of the file, and for the bytes of two. */
class Room {
  readonly units = new Uint16Array(LONGEST);
  readonly bytes = new Uint8Array(2 * LONGEST);
}

/** Reads one merge, "left right" or ["left", "right"], into bytes; returns where left and right end in them. */
function readMerge(walker: JsonWalker, units: Uint16Array, bytes: Uint8Array): [number, number] {
  if (!walker.isList()) {
    const length = readString(walker, units), space = units.subarray(0, length).indexOf(0x20);
    const known = toBytes(units, 0, space, bytes, 0) && toBytes(units, space + 1, length, bytes, space);
    return known ? [space, length - 1] : [0, 0];
  }
  let end = 0, middle = 0, known = true;
  for (walker.enter(); walker.step();) {
    const length = readString(walker, units);
    known &&= toBytes(units, 0, length, bytes, end);
    middle = end;
    end += length;
  }
  return known && end <= bytes.length ? [middle, end] : [0, 0];
}

/** Reads a string into units and returns its length. */
function readString(walker: JsonWalker, units: Uint16Array): number {
  const start = walker.at, length = walker.string(units, 0);
  if (length <= units.length) return length;
  throw new RangeError(
    `it has a string of ${length} characters at byte ${start}, should have none above ${LONGEST}`,
  );
}

/** Writes the bytes for which units[from, to) stand to bytes at n; false if a unit stands for none. */
function toBytes(units: Uint16Array, from: number, to: number, bytes: Uint8Array, n: number): boolean {
  for (let i = from; i < to; i++) {
    const byte = BYTES[units[i]!]!;
    if (byte < 0) return false;
    bytes[n++] = byte;
  }
  return true;
}

/** The strings at places, one for each id. */
function inOrder(written: ByteStrings, places: number[]): ByteStrings {
  const { bytes } = written, tokens = new ByteStrings(places.length, written.start(written.length));
  for (let id = 0; id < places.length; id++) {
    const place = places[id];
    if (place === undefined) tokens.push(bytes, 0, 0);
    else tokens.push(bytes, written.start(place), written.start(place + 1));
  }
  return tokens;
}

function grown(array: Int32Array): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(2 * array.length);
  larger.set(array);
  return larger;
}
