// What the tests of tokenizers share: the committed fixtures, random texts, and Python to compare with.
import { assert } from "@std/assert";

const fixtures = new URL("../../tests/fixtures/", import.meta.url).pathname;

/** Python with tiktoken, tokenizers and transformers, undefined without it. */
export const python: string | undefined = Deno.env.get("LOAM_PYTHON");

function lines<T>(file: string): T[] {
  return Deno.readTextFileSync(`${fixtures}${file}`).trim().split("\n").map((line) => JSON.parse(line));
}

/** Small tokenizer.json of every kind, by name. */
export const TOKENIZERS = new Map(lines<[string, Record<string, unknown>]>("tokenizers.jsonl"));

const [names, ...rows] = lines<string[]>("tokenizer_ids.jsonl");

/** Difficult texts. */
export const TEXTS: string[] = rows.map((row) => row[0]!);

/** For each of TEXTS the checksum of its ids in Python. */
export function checksumsOf(name: string): string[] {
  const column = 1 + names!.indexOf(name);
  assert(column > 0, name);
  return rows.map((row) => row[column]!);
}

/** FNV-1a over the ids, as in make_tokenizers.py. */
export function checksum(ids: Iterable<number>): string {
  let hash = 0x811c9dc5;
  for (const id of ids) hash = Math.imul(hash ^ id, 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}

/** Pieces of text that a vocabulary of characters gets, each with the merges of every pair that makes it. */
export function withPieces(json: { model: unknown }, pieces: string[]): void {
  const model = json.model as { vocab: Record<string, number>; merges: string[] };
  let next = Math.max(...Object.values(model.vocab)) + 1;
  for (const piece of pieces) model.vocab[piece] = next++;
  model.merges = pieces.flatMap((piece) => {
    const points = Array.from(piece);
    return points.slice(1).map((_, i) => [points.slice(0, i + 1).join(""), points.slice(i + 1).join("")])
      .filter((pair) => pair.every((part) => Object.hasOwn(model.vocab, part))).map((pair) => pair.join(" "));
  });
}

/** Runs a Python program with an argument as JSON file, and returns the JSON that it prints. */
export async function askPython<T>(program: string, argument: unknown): Promise<T> {
  const path = Deno.makeTempFileSync();
  try {
    Deno.writeTextFileSync(path, JSON.stringify(argument));
    const source = `import json, sys\nargument = json.load(open(sys.argv[1]))\n${program}`;
    const { success, stdout, stderr } = await new Deno.Command(python!, { args: ["-c", source, path] })
      .output();
    assert(success, new TextDecoder().decode(stderr));
    return JSON.parse(new TextDecoder().decode(stdout));
  } finally {
    Deno.removeSync(path);
  }
}

/** Whole numbers below a limit, the same for the same seed. */
export function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = Math.imul(state, 1103515245) + 12345 >>> 0;
    return Math.floor(state / 2 ** 32 * below);
  };
}

const PARTS = Array.from("a b Z é 中 1 ٣ ½ ' s S d ! / 👍 ʰ ª ǅ ſ ß 한").concat(
  [
    "ll",
    "LL",
    "'ve",
    "'RE",
    " the",
    "Abc",
    "e\u0301",
    "\u0301",
    "<|",
    "|>",
    " ",
    "  ",
    "\n",
    "\r",
    "\t",
    "\u00a0",
    "\u0085",
  ],
  ["\ufeff", "\u2028", "\u3000", "\0", "456", "\u0897", "\u{16d63}\u{16d67}", "\u212a", "<|endoftext|>"],
);

/** Random mixtures of parts that patterns treat differently and of characters of every plane. */
export function randomTexts(count: number, seed: number): string[] {
  const random = randomNumbers(seed);
  const character = () => {
    const point = [0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000][random(6)]!;
    const chosen = random(point);
    return String.fromCodePoint((chosen & 0x1ff800) === 0xd800 ? 0xfffd : chosen);
  };
  return Array.from({ length: count }, () => {
    const share = random(4);
    return Array.from(
      { length: 1 + random(40) },
      () => random(4) < share ? character() : PARTS[random(PARTS.length)]!,
    ).join("");
  });
}
