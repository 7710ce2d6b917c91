// deno task sample: writes text with a trained model to stdout, token by token. Everything else goes to stderr.
import { openTokenizer } from "../data/tokenizer.ts";
import { runMain, UserError } from "../base/errors.ts";
import { visible } from "../base/visible.ts";
import { between, each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { endsOf, loadModel } from "./checkpoint.ts";
import { openDevice, requireDevice } from "./device.ts";
import { generate } from "./generate.ts";

const defaults = {
  checkpoint: "", // a run directory, one of its checkpoints, its best (RUN/best), or a Hugging Face Llama directory
  prompt: "", // empty: the start of a document
  max_new_tokens: 100, // fewer where the model ends the document
  temperature: 0.8, // 0 = always the likeliest token
  top_k: 50, // 0 = all tokens
  top_p: 1, // of the likeliest tokens only so many that their probabilities add up to this; 1 = all
  seed: 1, // the same seed writes the same text
  device: "", // "" = cuda if it answers, else cpu
};

const ranges: Ranges<typeof defaults> = {
  ...each(whole(0), "max_new_tokens", "top_k", "seed"),
  temperature: between(0),
  top_p: between(0, 1, 0), // without 0
};

/** The command line: writes what the flags ask for. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./sample.ts", { with: { type: "text" } });
    return console.log(help("Write text with a trained model", defaults, source));
  }
  const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
  if (!o.checkpoint) throw new UserError("Cannot sample: name a model with --checkpoint=runs/...");
  requireDevice(o.device);
  openDevice(o.device);
  const { model, config, directory } = loadModel(o.checkpoint);
  const tokenizer = await openTokenizer(directory);
  if (tokenizer.vocab_size > config.vocab_size) {
    throw new UserError(
      `Cannot sample: the tokenizer in ${directory} has ${tokenizer.vocab_size} tokens, the model ${config.vocab_size}`,
    );
  }
  const prompt = tokenizer.prompt(o.prompt);
  if (prompt.length > config.block_size) {
    console.error(
      `warning: the prompt has ${prompt.length} tokens, the model sees the last ${config.block_size} of them (its block_size)`,
    );
  }
  const text = tokenizer.stream();
  print(o.prompt);
  for (const token of generate(model, config, prompt, { ...o, stop: endsOf(directory, tokenizer) })) {
    print(text.write(token));
  }
  print(text.end() + "\n");
}

/**
 * Writes to stdout at once: to a terminal without what would steer it, to a file or a program as it is. Ends the program when
 * nobody reads on, as in `... | head`.
 */
function print(text: string): void {
  const bytes = new TextEncoder().encode(Deno.stdout.isTerminal() ? visible(text) : text);
  try {
    for (let done = 0; done < bytes.length;) done += Deno.stdout.writeSync(bytes.subarray(done));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(0);
    throw new UserError(`Cannot write the text: ${(error as Error).message}`);
  }
}

if (import.meta.main) await runMain(main);
