// Writes tokens with a model, one after the other, keeping keys and values of earlier tokens in a cache. Several texts share each
// pass over the weights, and each is what it would be alone.
import { UserError } from "../base/errors.ts";
import { copyToDevice, type Logprobs, logprobs, sample, type Sampling } from "../ffi/library.ts";
import { release } from "../runtime/memory.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { type Address, bytesPerElement, empty, fixed, rows, type Tensor } from "../runtime/tensor.ts";
import { forward, type KVCache, type Llama, type LlamaConfig, logits, paddedVocab } from "./llama.ts";

export type { Logprobs, Sampling };

/** How to go on with a text. */
export type GenerateOptions = Sampling & {
  max_new_tokens: number;
  seed: number; // the same seed writes the same text
  stop?: readonly number[]; // tokens of which each ends the text, not yielded
};

/** A text to write: tokens to go on with, at least one, and how. */
export type Order = { prompt: readonly number[]; options: GenerateOptions };

/**
 * Continues prompt (at least one token id). Yields each new token as it is chosen. Text longer than block_size goes on from
 * its last half block. Uses step memory, so it may not run inside a training step.
 */
export function* generate(
  m: Llama,
  c: LlamaConfig,
  prompt: readonly number[],
  options: GenerateOptions,
): Generator<number> {
  for (const { token } of generateAll(m, c, [{ prompt, options }])) {
    if (token !== undefined) yield token;
  }
}

/**
 * Continues several texts, up to 8 at a time. Yields the place of a text in orders and its next token, or none at its end. Each
 * text is what generate() writes: to the bit on a CPU, but for the order of sums of a matrix product on a GPU.
 */
export function* generateAll(
  m: Llama,
  c: LlamaConfig,
  orders: readonly Order[],
): Generator<{ index: number; token?: number }> {
  const writing = new Map<Text, number>();
  let begun = 0;
  try {
    while (begun < orders.length || writing.size > 0) {
      while (begun < orders.length && writing.size < MOST_TEXTS) {
        const { prompt, options } = orders[begun]!;
        writing.set(begin(c, prompt, options), begun++);
      }
      for (const pass of passes([...writing.keys()])) {
        for (const { text, token, isLast } of step(m, c, pass)) {
          const index = writing.get(text)!;
          if (token !== undefined) yield { index, token };
          if (!isLast) continue;
          writing.delete(text);
          end(c, text);
          yield { index };
        }
      }
    }
  } finally {
    for (const text of writing.keys()) end(c, text);
  }
}

// ---- texts in progress

/** Texts that are written at a time: of so many rows or fewer the CPU's products read each weight once. */
export const MOST_TEXTS = 8;

/** What to say of tokens beside themselves. */
export type Telling = {
  logprobs?: number; // the probability of each token, and so many of the likeliest in its place
  echo?: boolean; // tell of the prompt, too
};

/** A text that is being written. */
export type Text = {
  readonly options: GenerateOptions & Telling;
  readonly random: () => number;
  readonly tokens: number[]; // the prompt, and what was written
  readonly cache: Cache;
  fresh: number[]; // tokens that the cache does not hold yet
  written: number;
};

/** What step() did for a text. */
export type Step = {
  text: Text;
  token?: number; // none where the text has ended before it
  logprobs?: Logprobs; // of the token
  echo?: Logprobs[]; // of the tokens of the prompt but the first, once; [] where no probabilities are asked for
  isLast: boolean; // the text has ended
};

/**
 * A text to give to step(), until end(). earlier: one that is not gone on with, and is given back: what the two have in common at
 * their start is read from its cache.
 */
export function begin(
  c: LlamaConfig,
  prompt: readonly number[],
  options: GenerateOptions & Telling,
  earlier?: Text,
): Text {
  const room = Math.min(c.block_size, prompt.length + options.max_new_tokens);
  const goesOn = earlier !== undefined && earlier.cache.room >= room;
  if (earlier && !goesOn) end(c, earlier);
  const cache = goesOn
    ? { ...earlier.cache, pos: inCommon(c, prompt, earlier) }
    : takeCache(c, Math.min(c.block_size, earlier ? 2 * room : room)); // more than that, for a text that grows
  const fresh = prompt.slice(-c.block_size).slice(cache.pos);
  return { options, random: randomNumbers(options.seed), tokens: [...prompt], cache, fresh, written: 0 };
}

/** How many tokens at the start of a prompt a text has in its cache, but for the last one, whose logits are wanted. */
function inCommon(c: LlamaConfig, prompt: readonly number[], { tokens, cache }: Text): number {
  if (Math.max(prompt.length, tokens.length) > c.block_size) return 0; // the cache does not hold its start
  const most = Math.min(cache.pos, prompt.length - 1);
  let n = 0;
  while (n < most && prompt[n] === tokens[n]) n++;
  return n;
}

/** Gives back what a text holds. */
export function end(c: LlamaConfig, text: Text): void {
  poolOf(c).push(text.cache);
}

/** Texts in the passes over the weights that go on with each of them by one token: a prompt alone, all others together. */
export function passes(texts: readonly Text[]): Text[][] {
  const isPrompt = ({ fresh }: Text) => fresh.length > 1, together = texts.filter((text) => !isPrompt(text));
  return [...texts.filter(isPrompt).map((text) => [text]), ...together.length > 0 ? [together] : []];
}

/** Goes on with texts by one token, in one pass over the weights. All have as many fresh tokens: see passes(). */
export function step(m: Llama, c: LlamaConfig, texts: readonly Text[]): Step[] {
  const T = texts[0]!.fresh.length;
  try {
    const { hidden, values } = noGrad(() => {
      const idx = empty([texts.length, T], "i32");
      copyToDevice(idx.address, Int32Array.from(texts.flatMap(({ fresh }) => fresh)));
      const hidden = forward(m, idx, c, { cache: joined(texts) });
      const last = T === 1 ? hidden.view(texts.length, c.n_embd) : rows(hidden, T - 1, 1);
      return { hidden, values: logits(m, last) };
    });
    return texts.map((text, row) => {
      const echo = tellOfPrompt(m, c, text, hidden);
      text.cache.pos += T;
      return { ...draw(c, text, addressOf(values, row)), ...echo && { echo } };
    });
  } finally {
    endStep();
  }
}

/** Chooses the next token of a text from its logits. */
function draw(c: LlamaConfig, text: Text, logits: Address): Step {
  const { options, tokens, cache } = text, { max_new_tokens, stop } = options;
  if (text.written >= max_new_tokens) return { text, isLast: true };
  const token = choose(logits, c, options, text.random());
  if (stop?.includes(token)) return { text, isLast: true };
  tokens.push(token);
  text.fresh = [token];
  if (cache.pos === c.block_size) {
    cache.pos = 0;
    text.fresh = tokens.slice(-Math.ceil(c.block_size / 2));
  }
  const told = options.logprobs === undefined ? [] : tellOf(logits, c, [token], options.logprobs);
  return { text, token, ...told[0] && { logprobs: told[0] }, isLast: ++text.written >= max_new_tokens };
}

/** A token drawn from logits (V padded) by 32 random bits. Throws UserError when a logit is not finite. */
export function choose(logits: Address, c: LlamaConfig, o: Sampling, random: number): number {
  const token = sample(logits, c.vocab_size, o, random);
  if (token < 0) throw notFinite();
  return token;
}

function notFinite(): UserError {
  return new UserError(
    "Cannot choose a token: the model's logits are not finite, its weights are damaged; use an earlier checkpoint",
  );
}

// ---- probabilities

const ROWS_AT_ONCE = 64; // of a prompt, whose logits are in memory together

/** The probabilities of the tokens of a prompt but the first, from its hidden states (1, T, C), where that was asked for. */
function tellOfPrompt(m: Llama, c: LlamaConfig, text: Text, hidden: Tensor): Logprobs[] | undefined {
  const { options: { echo, logprobs }, written, fresh } = text, T = fresh.length, told: Logprobs[] = [];
  if (!echo || written > 0) return undefined;
  if (logprobs === undefined) return [];
  for (let row = 0; row < T - 1; row += ROWS_AT_ONCE) {
    const n = Math.min(ROWS_AT_ONCE, T - 1 - row), values = noGrad(() => logits(m, rows(hidden, row, n)));
    told.push(...tellOf(values.address, c, fresh.slice(row + 1, row + 1 + n), logprobs));
    release(values.buf.block);
  }
  return told;
}

function tellOf(logits: Address, c: LlamaConfig, targets: number[], n: number): Logprobs[] {
  const told = logprobs(logits, targets, c.vocab_size, paddedVocab(c), Math.min(n, c.vocab_size));
  if (!told.every(({ target }) => Number.isFinite(target))) throw notFinite();
  return told;
}

function addressOf(t: Tensor, row: number): Address {
  return t.address + BigInt(row * t.shape.at(-1)! * bytesPerElement(t.dtype));
}

// ---- caches

/** Keys and values of the first pos tokens of a text, of at most `room`: (K, room, D) each in a layer. */
export type Cache = { pos: number; room: number; layers: { k: Tensor; v: Tensor }[] };

const ROOM_STEP = 256; // tokens: caches of a few sizes are used again by other texts

/** A cache with room for so many tokens: the smallest that is free, or a new one, which stays for the life of the process. */
function takeCache(c: LlamaConfig, tokens: number): Cache {
  const pool = poolOf(c).sort((a, b) => a.room - b.room), free = pool.findIndex(({ room }) => room >= tokens);
  if (free >= 0) return { ...pool.splice(free, 1)[0]!, pos: 0 };
  const room = Math.min(c.block_size, Math.ceil(tokens / ROOM_STEP) * ROOM_STEP);
  const heads = () => fixed([c.n_kv_head, room, c.head_dim], "act", "cache");
  return { pos: 0, room, layers: Array.from({ length: c.n_layer }, () => ({ k: heads(), v: heads() })) };
}

/** The caches of a configuration that no text uses. */
function poolOf(c: LlamaConfig): Cache[] {
  const pool = pools.get(c) ?? [];
  pools.set(c, pool);
  return pool;
}
const pools = new WeakMap<LlamaConfig, Cache[]>();

/** The caches of texts as those of the rows of a batch. */
function joined(texts: readonly Text[]): KVCache {
  const caches = texts.map(({ cache }) => cache);
  const layers = caches[0]!.layers.map((_, i) => ({
    k: caches.map(({ layers }) => layers[i]!.k),
    v: caches.map(({ layers }) => layers[i]!.v),
  }));
  return { pos: caches.map(({ pos }) => pos), layers };
}

/** 32 random bits after the other, whole numbers from 0, from a 32-bit seed (splitmix32). */
export function randomNumbers(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = state + 0x9e3779b9 | 0;
    let z = state ^ state >>> 16;
    z = Math.imul(z, 0x21f0aaad);
    z ^= z >>> 15;
    z = Math.imul(z, 0x735a2d97);
    z ^= z >>> 15;
    return z >>> 0;
  };
}
