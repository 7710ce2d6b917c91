// nanoGPT's meta.pkl, which stands beside bins of characters: a Python pickle of {"vocab_size": n, "stoi": {character: id},
// "itos": {id: character}}. A pickle is a program that may do anything; only what builds dicts, texts and whole numbers is
// known here, and nothing is run.
import { UserError } from "../../base/errors.ts";
import { characterTokenizer } from "./character_level.ts";
import type { Tokenizer } from "./types.ts";
import { readBytes } from "./tokenizer_file.ts";

/** What a pickle holds. */
type Value = string | number | Map<Value, Value>;

/**
 * The tokenizer of the meta.pkl at a path: its characters, and behind them an end of text that nanoGPT's data does
 * not have. Throws UserError if the file cannot be read or is anything else.
 */
export function openMetaPkl(path: string): Tokenizer {
  const bytes = readBytes(path);
  try {
    return characterTokenizer(path, charactersOf(unpickle(bytes)));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UserError(
      `Cannot use "${path}": ${error.message}; should be what nanoGPT's prepare.py writes: vocab_size, stoi and itos`,
    );
  }
}

/** The characters in the order of their ids, which stoi and itos have to agree on. */
function charactersOf(meta: Value): string[] {
  const [size, stoi, itos] = ["vocab_size", "stoi", "itos"].map((key) =>
    meta instanceof Map ? meta.get(key) : undefined
  );
  if (!(stoi instanceof Map && itos instanceof Map)) throw new RangeError("it has no dicts stoi and itos");
  if (size !== stoi.size || size !== itos.size) {
    throw new RangeError(`its vocab_size is ${size}, stoi has ${stoi.size} and itos ${itos.size} entries`);
  }
  return Array.from({ length: size }, (_, id) => {
    const character = itos.get(id);
    if (typeof character === "string" && stoi.get(character) === id) return character;
    throw new RangeError(`itos has no character ${id} of which stoi has the id`);
  });
}

// ---- pickles

const MARK = Symbol(); // where the items of a dict begin on the stack

/** Reads a pickle of protocol 2 to 5. Throws RangeError for anything but dicts, texts and whole numbers. */
function unpickle(bytes: Uint8Array): Value {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length),
    utf8 = new TextDecoder("utf-8", { fatal: true });
  const stack: (Value | typeof MARK)[] = [], memo = new Map<number, Value>();
  let at = 0;
  const take = (n: number): number => { // returns where n bytes begin
    if (at + n > bytes.length) throw new RangeError(`it ends at byte ${bytes.length}, in the middle`);
    at += n;
    return at - n;
  };
  const uint8 = () => view.getUint8(take(1)), uint32 = () => view.getUint32(take(4), true);
  const text = (n: number) => {
    const from = take(n);
    try {
      return utf8.decode(bytes.subarray(from, from + n));
    } catch {
      throw new RangeError(`its text at byte ${from} is not UTF-8`);
    }
  };
  const value = (found: Value | typeof MARK | undefined): Value => {
    if (found === undefined || found === MARK) throw new RangeError(`it is no pickle at byte ${at}`);
    return found as Value;
  };
  const setItems = (items: (Value | typeof MARK)[]) => {
    const dict = stack.at(-1);
    if (!(dict instanceof Map) || items.length % 2 === 1) {
      throw new RangeError(`it is no pickle at byte ${at}`);
    }
    for (let i = 0; i < items.length; i += 2) dict.set(value(items[i]), value(items[i + 1]));
  };
  const put = (key: number) => memo.set(key, value(stack.at(-1)));

  if (bytes[0] !== 0x80) throw new RangeError("it is no pickle of protocol 2 to 5");
  while (true) {
    const start = at, opcode = uint8();
    switch (opcode) {
      case 0x80: // PROTO
        uint8();
        break;
      case 0x95: // FRAME
        take(8);
        break;
      case 0x7d: // EMPTY_DICT
        stack.push(new Map());
        break;
      case 0x28: // MARK
        stack.push(MARK);
        break;
      case 0x73: // SETITEM
        setItems(stack.splice(-2));
        break;
      case 0x75: { // SETITEMS
        const items = stack.splice(stack.lastIndexOf(MARK) + 1);
        if (stack.pop() !== MARK) throw new RangeError(`it is no pickle at byte ${start}`);
        setItems(items);
        break;
      }
      case 0x4b: // BININT1
        stack.push(uint8());
        break;
      case 0x4d: // BININT2
        stack.push(view.getUint16(take(2), true));
        break;
      case 0x4a: // BININT
        stack.push(view.getInt32(take(4), true));
        break;
      case 0x8c: // SHORT_BINUNICODE
        stack.push(text(uint8()));
        break;
      case 0x58: // BINUNICODE
        stack.push(text(uint32()));
        break;
      case 0x94: // MEMOIZE
        put(memo.size);
        break;
      case 0x71: // BINPUT
        put(uint8());
        break;
      case 0x72: // LONG_BINPUT
        put(uint32());
        break;
      case 0x68: // BINGET
        stack.push(value(memo.get(uint8())));
        break;
      case 0x6a: // LONG_BINGET
        stack.push(value(memo.get(uint32())));
        break;
      case 0x2e: // STOP
        return value(stack.pop());
      default:
        throw new RangeError(
          `it has more than dicts, texts and whole numbers (opcode 0x${
            opcode.toString(16).padStart(2, "0")
          } at byte ${start})`,
        );
    }
  }
}
