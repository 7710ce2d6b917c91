// The "pre_tokenizer" of a byte-level tokenizer.json: how text is cut into the pieces that are encoded one by one. The usual
// ones are cut by hand-written scanners, all others by the regular expressions that the file gives.
import { SplitPreTokenizer } from "@huggingface/tokenizers";
import type { Bpe } from "./bpe.ts";
import { type EncodeSegment, scanPieces } from "./byte_level.ts";
import { type Cut, RegexPieces } from "./regex_pieces.ts";
import { PATTERNS, type Scanner, scannerOf } from "./scanners.ts";

/** A pre-tokenizer of tokenizer.json, as far as it is looked at here. */
export type PreTokenizer = {
  /** Which one it is, such as Split. */
  type?: string;
  /** The steps of a Sequence. */
  pretokenizers?: PreTokenizer[];
  /** Where a Split cuts. */
  pattern?: { Regex?: string; String?: string };
  /** What becomes of the matches of a Split, such as Isolated. */
  behavior?: string;
  /** A Split keeps what matches, not what lies between. */
  invert?: boolean;
  /** Digits gives each digit for itself, not runs of them. */
  individual_digits?: boolean;
  /** ByteLevel puts a blank before text without one; true if left out. */
  add_prefix_space?: boolean;
  /** ByteLevel cuts by GPT-2's pattern too; true if left out. */
  use_regex?: boolean;
};

/** What a pre-tokenizer does. */
export type Cutting = {
  /** Text that does not begin with a blank gets one. */
  prefixBlank: boolean;
  /** The patterns that cut it, the first first. */
  cuts: { pattern: string; keep: Cut["keep"] }[];
};

/** Reads a pre-tokenizer. Throws RangeError saying what it is and what it should be, if it is not supported. */
export function readPreTokenizer(json: PreTokenizer | null | undefined): Cutting {
  const steps = flatten(json), last = steps.pop();
  if (last?.type !== "ByteLevel") {
    throw new RangeError(`its pre_tokenizer ends with ${last?.type ?? "nothing"}, should end with ByteLevel`);
  }
  const cuts = steps.map(readCut), prefixBlank = last.add_prefix_space ?? true; // true where the file does not say
  if (prefixBlank && cuts.length > 0) {
    throw new RangeError(
      `its pre_tokenizer has add_prefix_space behind ${steps[0]!.type}, should have ByteLevel alone`,
    );
  }
  if (last.use_regex ?? true) cuts.push({ pattern: PATTERNS.gpt2, keep: "all" });
  return { prefixBlank, cuts };
}

/** Encoding of text that is cut by patterns. */
export function encoderOf(cuts: Cutting["cuts"], bpe: Bpe): EncodeSegment {
  const scanners = cuts.map(({ pattern, keep }) => keep === "all" ? scannerOf(pattern) : undefined);
  if (!scanners.includes(undefined)) return scanPieces(scanners as Scanner[], bpe);
  const pieces = new RegexPieces(cuts.map(({ pattern, keep }) => ({ regex: compile(pattern), keep })), bpe);
  return (bytes, from, to, ids, n) => pieces.encode(bytes, from, to, ids, n);
}

function flatten(json: PreTokenizer | null | undefined): PreTokenizer[] {
  if (json === null || json === undefined) return [];
  return json.type === "Sequence" ? json.pretokenizers!.flatMap(flatten) : [json];
}

function readCut(
  { type, pattern, behavior, invert, individual_digits }: PreTokenizer,
): Cutting["cuts"][number] {
  if (type === "Digits") {
    return { pattern: individual_digits ? PATTERNS.digits : String.raw`\p{N}+`, keep: "all" };
  }
  if (type !== "Split") {
    throw new RangeError(`its pre_tokenizer has ${type}, should have Split, Digits and ByteLevel`);
  }
  const regex = pattern?.Regex ?? escape(pattern?.String ?? "");
  if (behavior === "Isolated") return { pattern: regex, keep: "all" };
  if (behavior === "Removed") return { pattern: regex, keep: invert ? "matches" : "gaps" };
  throw new RangeError(
    `its pre_tokenizer has a Split with behavior ${behavior}, should be Isolated or Removed`,
  );
}

function escape(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}

/** JavaScript's expression for one in the language of tokenizer.json, which is Oniguruma's. */
function compile(pattern: string): RegExp {
  const bare = pattern.replace(/\\./gs, "a").replace(/\[[^\]]*\]/g, "a");
  if (/[*+?]\+|\(\?>/.test(bare)) {
    throw new RangeError(
      `its pre_tokenizer has the pattern ${pattern} with possessive quantifiers, which are not supported; ` +
        `write it without them if it means the same`,
    );
  }
  try {
    const split = {
      type: "Split" as const,
      pattern: { Regex: pattern },
      behavior: "Isolated",
      invert: false,
    };
    const { source } = new SplitPreTokenizer(split as ConstructorParameters<typeof SplitPreTokenizer>[0])
      .pattern!;
    // Without regard to case, the long s and the Kelvin sign are letters too; the library leaves them out.
    const folded = /\(\?\w*i/.test(pattern)
      ? source.replaceAll("[sS]", "[sS\u017f]").replaceAll("[kK]", "[kK\u212a]")
      : source;
    return new RegExp(folded, "u");
  } catch (error) {
    throw new RangeError(`its pre_tokenizer has the pattern ${pattern}: ${(error as Error).message}`);
  }
}
