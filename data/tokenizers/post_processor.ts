// What a tokenizer puts before a text: the post_processor of tokenizer.json. transformers looks for it there and nowhere else.
import type { Tokenizer } from "./types.ts";
import type { Json } from "./tokenizer_file.ts";

/** A special token as it is written, and its id. */
export type SpecialToken = {
  /** As it is written. */
  token: string;
  /** Its number in the vocabulary. */
  id: number;
};

/** post_processor, as far as it is looked at here. */
type PostProcessor = {
  type: string;
  processors?: PostProcessor[];
  single?: { SpecialToken?: { id: string } }[];
  special_tokens?: Record<string, { ids: number[]; tokens: string[] }>;
};

/**
 * The token that begins every text, undefined if none does. Throws RangeError if it adds more than that, or is of an
 * unknown kind.
 */
export function startOf({ post_processor }: Json): SpecialToken | undefined {
  const [start, ...more] = post_processor ? startsOf(post_processor as PostProcessor) : [];
  if (more.length === 0) return start;
  const all = [start!, ...more].map(({ token }) => token).join(" ");
  throw new RangeError(`its post_processor begins texts with ${all}, should add one token at most`);
}

function startsOf({ type, processors, single, special_tokens }: PostProcessor): SpecialToken[] {
  if (type === "ByteLevel") return [];
  if (type === "Sequence") return processors!.flatMap(startsOf);
  if (type !== "TemplateProcessing") {
    throw new RangeError(
      `its post_processor has ${type}, should have TemplateProcessing, ByteLevel or nothing`,
    );
  }
  const pieces = single!.map(({ SpecialToken }) => SpecialToken?.id), text = pieces.indexOf(undefined);
  if (text < pieces.length - 1) {
    throw new RangeError(`its post_processor ends texts with ${pieces.at(-1)}, should add nothing there`);
  }
  return pieces.slice(0, text).flatMap((piece) => {
    const { ids, tokens } = special_tokens![piece!]!;
    return ids.map((id, i) => ({ id, token: tokens[i]! }));
  });
}

/** A post_processor that begins every text with a token. */
export function beginWith({ token, id }: SpecialToken): Json {
  const [special, sequence] = ["SpecialToken", "Sequence"].map((kind) => (id: string, type_id: number) => ({
    [kind]: { id, type_id },
  })) as [Piece, Piece];
  return {
    type: "TemplateProcessing",
    single: [special(token, 0), sequence("A", 0)],
    pair: [special(token, 0), sequence("A", 0), special(token, 1), sequence("B", 1)],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}

type Piece = (id: string, type_id: number) => Json;

/** How a tokenizer begins documents and prompts. start: what it begins a text with by itself. */
export function beginning(
  start: number | undefined,
  { eot, encode }: Pick<Tokenizer, "eot" | "encode">,
): Pick<Tokenizer, "bos" | "prompt"> {
  const bos = start ?? eot;
  return {
    bos,
    prompt(text) {
      const ids = Array.from(encode(text));
      if (start !== undefined || ids.length === 0) ids.unshift(bos);
      return ids;
    },
  };
}

/** What transformers finds out from tokenizer_config.json where tokenizer.json says how a text is encoded. */
export function configOf(bos_token: string, eos_token: string): Json {
  return {
    tokenizer_class: "PreTrainedTokenizerFast", // does what tokenizer.json says, and nothing else
    bos_token,
    eos_token,
    add_bos_token: true, // llama.cpp and older transformers ask for it here
    add_eos_token: false,
  };
}
