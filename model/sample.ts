// deno task sample: writes text with a trained model to stdout, token by token. Everything else goes to stderr.
import { runMain, UserError } from "../base/errors.ts";
import { visible } from "../base/visible.ts";
import { between, each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { endsOf, loadModel, tokenizerFor, WEIGHT_TYPES, type WeightType } from "./checkpoint.ts";
import { openDevice } from "./device.ts";
import { generateAll } from "./generate.ts";

const defaults = {
  checkpoint: "", // a run directory, one of its checkpoints, its best (RUN/best), or a model directory of Hugging Face
  prompt: "", // empty: the start of a document
  prompt_file: "", // a file with a prompt on each line, in the place of prompt
  num_samples: 1, // texts for each prompt; they share each pass over the weights, the i-th has the seed + i
  max_new_tokens: 100, // fewer where the model ends the document
  temperature: 0.8, // 0 = always the likeliest token
  top_k: 50, // 0 = all tokens
  top_p: 1, // of the likeliest tokens only so many that their probabilities add up to this; 1 = all
  seed: 1, // the same seed writes the same text
  device: "", // "" = cuda if it answers, else cpu
  dtype: "auto", // of weights on a CPU: float32, bfloat16 (half the memory), or auto = bfloat16 where the files are
};

const ranges: Ranges<typeof defaults> = {
  ...each(whole(0), "max_new_tokens", "top_k", "seed"),
  num_samples: whole(1),
  temperature: between(0),
  top_p: between(0, 1, 0), // without 0
  dtype: WEIGHT_TYPES,
};

/** The command line: writes what the flags ask for. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./sample.ts", { with: { type: "text" } });
    return console.log(help("Write text with a trained model", defaults, source));
  }
  const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
  if (!o.checkpoint) throw new UserError("Cannot sample: name a model with --checkpoint=runs/...");
  if (o.prompt && o.prompt_file) {
    throw new UserError("Cannot sample from both --prompt and --prompt_file: leave one of them out");
  }
  openDevice(o.device);
  const { model, config, directory } = loadModel(o.checkpoint, { dtype: o.dtype as WeightType });
  const tokenizer = await tokenizerFor("sample", directory, config);
  const prompts = o.prompt_file ? promptsOf(o.prompt_file) : [o.prompt];
  const texts = prompts.flatMap((text) => {
    const prompt = tokenizer.prompt(text);
    if (prompt.length > config.block_size) {
      console.error(
        `warning: the prompt has ${prompt.length} tokens, the model sees the last ${config.block_size} of them (its block_size)`,
      );
    }
    return Array.from({ length: o.num_samples }, (_, i) => ({ text, prompt, seed: o.seed + i }));
  });
  const stop = endsOf(directory, tokenizer);
  const orders = texts.map(({ prompt, seed }) => ({ prompt, options: { ...o, seed, stop } }));
  const streams = texts.map(() => tokenizer.stream());
  const pages = new Pages(texts.map(({ text }) => text));
  for (const { index, token } of generateAll(model, config, orders)) {
    if (token !== undefined) pages.write(index, streams[index]!.write(token));
    else pages.end(index, streams[index]!.end() + "\n");
  }
}

/** The prompts in a file: its lines. Throws UserError where there is none. */
function promptsOf(path: string): string[] {
  const lines = Deno.readTextFileSync(path).split("\n").map((line) => line.replace(/\r$/, ""));
  if (lines.at(-1) === "") lines.pop();
  if (lines.length > 0) return lines;
  throw new UserError(
    `Cannot sample: ${path} holds no prompt; write one on each line, an empty line for none`,
  );
}

/** Prints texts that are written at the same time one below the other: the first that has not ended as it grows. */
class Pages {
  readonly #ended: boolean[];
  #current = 0;

  constructor(readonly texts: string[]) {
    this.#ended = texts.map(() => false);
    print(texts[0]!);
    texts[0] = "";
  }

  write(index: number, piece: string): void {
    if (index === this.#current) print(piece);
    else this.texts[index] += piece;
  }

  end(index: number, piece: string): void {
    this.write(index, piece);
    this.#ended[index] = true;
    while (this.#ended[this.#current] && this.#current + 1 < this.texts.length) {
      print(BETWEEN + this.texts[++this.#current]);
    }
  }
}
const BETWEEN = "---\n"; // a line between texts

/**
 * Writes to stdout at once: to a terminal without what would steer it, to a file or a program as it is. Ends the program when
 * nobody reads on, as in `... | head`.
 */
export function print(text: string): void {
  const bytes = new TextEncoder().encode(Deno.stdout.isTerminal() ? visible(text) : text);
  try {
    for (let done = 0; done < bytes.length;) done += Deno.stdout.writeSync(bytes.subarray(done));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(0);
    throw new UserError(`Cannot write the text: ${(error as Error).message}`);
  }
}

if (import.meta.main) await runMain(main);
