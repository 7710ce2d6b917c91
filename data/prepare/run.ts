// A dataset in the making: its shards and counts in DIR/unfinished, and the commit points from which a killed run goes on.
import { formatCount } from "../../base/format.ts";
import { join } from "node:path";
import { UserError } from "../../base/errors.ts";
import { makeDirectory, removeTree } from "../../base/files.ts";
import type { Encoded } from "./encode.ts";
import type { Meta, Recipe } from "../meta.ts";
import type { Work } from "./progress.ts";
import { publish, UNFINISHED } from "./publish.ts";
import { TRAINED } from "../bins.ts";
import { asMistake } from "../../base/system_error.ts";
import { type Counts, emptyCounts, type State, writeState } from "./state.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { ShardWriter, SPLITS } from "./writer.ts";

const COMMIT_MS = 5_000; // a killed run repeats this much work at most

/** Declare it with `using`: where nothing was committed, nothing stays. */
export class Run implements Disposable {
  /** What is written. */
  readonly counts: Counts;
  /** What was said of the first conversation that cannot be read. */
  first_bad: string | undefined;
  readonly #dir: string;
  readonly #unfinished: string;
  readonly #recipe: Recipe;
  readonly #writer: ShardWriter;
  #committed: { at_ms: number; documents: number; shards: number };
  #keep: boolean; // unfinished holds what the next run goes on with
  #passedOver: number; // bytes of input that the reader will count once more, since it skips what is done

  /** Goes on from a state, or begins. */
  constructor(dir: string, recipe: Recipe, state?: State) {
    this.#dir = dir;
    this.#unfinished = join(dir, UNFINISHED);
    this.#recipe = recipe;
    this.#keep = state !== undefined;
    this.counts = { ...emptyCounts(), ...state?.counts };
    this.#passedOver = this.counts.read;
    makeDirectory(this.#unfinished);
    const shard_tokens = recipe.options.shard_tokens as number;
    const masks = recipe.template !== undefined;
    this.#writer = new ShardWriter(this.#unfinished, { ...recipe, shard_tokens, masks }, state?.written);
    this.#committed = this.#now();
  }

  /** Writes a block that took `read` bytes of input; returns how much work it was. */
  add(encoded: Encoded, read: number): Work {
    const { counts } = this, { documents } = encoded, again = Math.min(read, this.#passedOver);
    const work: Work = { read: read - again, documents, text: 0, tokens: 0 };
    this.#passedOver -= again;
    for (const split of SPLITS) {
      const { ids, mask, ends, bytes } = encoded[split], size = counts[split];
      this.#writer.append(split, ids, ends, mask);
      size.documents += ends.length;
      size.tokens += ids.length;
      size.bytes += bytes;
      if (this.#recipe.template !== undefined) size.trained = (size.trained ?? 0) + trainedIn(mask);
      work.text += bytes;
      work.tokens += ids.length;
    }
    counts.documents += documents;
    counts.read += work.read;
    for (const what of ["empty", "bad", "cut", "too_long"] as const) counts[what] += encoded[what];
    this.first_bad ??= encoded.first_bad;
    counts.smallest = Math.min(counts.smallest, encoded.smallest);
    counts.largest = Math.max(counts.largest, encoded.largest);
    if (this.#isDue()) this.commit();
    return work;
  }

  /** All that has been written, by this run and those before. */
  work(): Work {
    const { read, documents, train, val } = this.counts;
    return { read, documents, text: train.bytes + val.bytes, tokens: train.tokens + val.tokens };
  }

  /** Makes this the point from which a killed run goes on. */
  commit(): void {
    writeState(this.#unfinished, this.#recipe, this.counts, this.#writer.commit());
    this.#committed = this.#now();
    this.#keep = true;
  }

  /** Adds to a mistake how the user goes on when it is mended; leaves any other error as it is. */
  explain(error: unknown): unknown {
    const mistake = asMistake(`Cannot prepare "${this.#dir}"`, error), { documents } = this.#committed;
    if (!(mistake instanceof UserError) || !this.#keep || documents === 0) return mistake;
    const count = formatCount(documents);
    return new UserError(
      `${mistake.message}; the first ${count} documents are done, the same command goes on behind them`,
    );
  }

  /** Gives up what has been written. */
  discard(): void {
    this.#keep = false;
  }

  /** Ends the dataset, of which so many documents were left out, and puts it in the place of the one in the directory. */
  publish({ bad, duplicates }: { bad: number; duplicates: number }, tokenizer: Tokenizer): Meta {
    this.commit();
    const { train, val, empty, cut, too_long } = this.counts, chat = this.#recipe.template !== undefined;
    const meta: Meta = {
      format: "loam-bins",
      version: 1,
      ...this.#recipe,
      train,
      val,
      left_out: { empty, duplicates, bad, ...chat && { too_long } },
      ...chat && { cut },
      shards: this.#writer.finish(),
    };
    publish(this.#dir, meta, meta.tokenizer === "." ? tokenizer.files() : {});
    return meta;
  }

  /** Closes the shards. Removes the unfinished dataset, unless it may be gone on with. */
  [Symbol.dispose](): void {
    this.#writer[Symbol.dispose]();
    if (this.#keep) return;
    removeTree(this.#unfinished);
  }

  #isDue(): boolean {
    return this.#writer.shards > this.#committed.shards ||
      performance.now() - this.#committed.at_ms > COMMIT_MS;
  }

  #now(): { at_ms: number; documents: number; shards: number } {
    return {
      at_ms: performance.now(),
      documents: this.counts.documents,
      shards: this.#writer.shards,
    };
  }
}

/** How many bytes of a mask say that a token is trained on. */
function trainedIn(mask: Uint8Array): number {
  let count = 0;
  for (const byte of mask) count += byte & TRAINED;
  return count;
}
