// What determines the tokens of a dataset. Two prepares of equal recipes write equal files, so an interrupted one is gone on
// with, and a finished one left alone, when its recipe is the same; otherwise differences() says what is not.
import { hash } from "node:crypto";
import { tokenBytes } from "../bins.ts";
import type { ChatTemplate } from "../chat_template.ts";
import { type Part, type Recipe, sha256Of } from "../meta.ts";
import type { Input, Source } from "../read/inputs.ts";
import type { SettledOptions } from "./options.ts";
import { type Tokenizer, VOCABULARIES } from "../tokenizer.ts";

/** The recipe of what a command line asks for. */
export function describe(
  sources: Source[],
  part: Part | null,
  tokenizer: Tokenizer,
  options: SettledOptions,
  template?: ChatTemplate,
): Recipe {
  const { column, split_on, limit, dedup, shuffle_docs, skip_bad, val_fraction, seed, shard_tokens } =
    options;
  const by_position: Record<string, boolean> = options.by_position ? { by_position: true } : {};
  const { block_size, no_cut, date = "" } = options.conversations ?? {};
  const chat: Recipe["options"] = template
    ? { block_size: block_size!, no_cut: no_cut!, ...template.hasTime && { date } }
    : {};
  const named = Object.hasOwn(VOCABULARIES, tokenizer.name);
  return {
    tokenizer: named ? tokenizer.name : ".",
    tokenizer_sha256: named ? "" : sha256Of(tokenizer.files()),
    vocab_size: tokenizer.vocab_size,
    bos: tokenizer.bos,
    eot: tokenizer.eot,
    token_bytes: tokenBytes(tokenizer.vocab_size),
    inputs: sources.flatMap(({ inputs }) =>
      inputs.map(({ name, bytes, version }) => ({ name, bytes, version }))
    ),
    sources: groups(sources),
    options: {
      column,
      split_on,
      limit,
      dedup,
      shuffle_docs,
      skip_bad,
      val_fraction,
      seed,
      shard_tokens,
      ...by_position,
      ...chat,
    },
    part,
    ...template && { template: template.source },
  };
}

function groups(sources: Source[]): Recipe["sources"] {
  if (sources.some(({ weight }) => weight !== null)) {
    return sources.map(({ weight, inputs }) => ({ weight, files: inputs.length }));
  }
  return [{ weight: null, files: sources.reduce((sum, { inputs }) => sum + inputs.length, 0) }];
}

const LISTED = 3; // differences of inputs that are named one by one

/**
 * What differs between the recipe of a dataset and the one that is asked for now, both values each, such as
 * "limit is 100 there and 200 here". Empty if they are equal.
 *
 * Turning skip_bad on is no difference: up to where it stopped, the dataset without it had no bad input.
 */
export function differences(there: Partial<Recipe>, here: Recipe): string[] {
  const found: string[] = [];
  const compare = (name: string, a: unknown, b: unknown) => {
    if (show(a) !== show(b)) {
      found.push(`${name} is ${show(a)} there and ${show(b)} here`);
    }
  };
  compare("tokenizer", tokenizerOf(there), tokenizerOf(here));
  if (found.length === 0) {
    compare("the token that documents begin with", there.bos ?? there.eot ?? here.bos, here.bos);
  }
  compare("the chat template", templateOf(there), templateOf(here));
  const options: Recipe["options"] = there.options ?? {};
  for (const name of Object.keys(here.options)) {
    if (name === "skip_bad" && options[name] === false) continue;
    compare(name, options[name], here.options[name]);
  }
  compare("the number of parts", there.part?.count ?? 1, here.part?.count ?? 1);
  compare("the mix of inputs", mixOf(there), mixOf(here));
  return [...found, ...inputDifferences(there.inputs ?? [], here.inputs)];
}

function inputDifferences(there: Input[], here: Input[]): string[] {
  const before = new Map(there.map((file) => [file.name, file])), now = new Set(here.map(({ name }) => name));
  const found = here.flatMap((file) => {
    const old = before.get(file.name);
    if (old === undefined) return [`input "${file.name}" is new`];
    if (old.bytes !== file.bytes) {
      return [`input "${file.name}" has ${old.bytes} bytes there and ${file.bytes} here`];
    }
    if (old.version === file.version) return [];
    return [`input "${file.name}" is of ${show(old.version)} there and ${show(file.version)} here`];
  });
  found.push(
    ...there.filter(({ name }) => !now.has(name)).map(({ name }) => `input "${name}" is missing here`),
  );
  if (found.length > LISTED) return [...found.slice(0, LISTED), `and ${found.length - LISTED} more inputs`];
  const moved = here.findIndex(({ name }, i) => name !== there[i]?.name);
  if (found.length > 0 || moved < 0) return found;
  return [`input ${moved + 1} is "${there[moved]?.name}" there and "${here[moved]?.name}" here`];
}

function tokenizerOf({ tokenizer, tokenizer_sha256 }: Partial<Recipe>): string | undefined {
  return tokenizer === "." ? `a tokenizer.json of SHA-256 ${tokenizer_sha256?.slice(0, 12)}...` : tokenizer;
}

function templateOf({ template }: Partial<Recipe>): string | undefined {
  return template === undefined ? undefined : `one of SHA-256 ${hash("sha256", template).slice(0, 12)}...`;
}

/** The weights of a mix, with how many files each has; "none" without weights. */
function mixOf({ sources = [] }: Partial<Recipe>): string {
  const weighted = sources.filter(({ weight }) => weight !== null);
  return weighted.map(({ weight, files }) => `${weight} of ${files} files`).join(" and ") || "none";
}

function show(value: unknown): string {
  if (value === undefined || value === null || value === "") return "not given";
  return typeof value === "string" ? value : JSON.stringify(value);
}
