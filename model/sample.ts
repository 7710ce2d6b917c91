// deno task sample: writes text with a trained model to stdout, token by token. Everything else goes to stderr.
import { openTokenizer } from "../data/tokenizer.ts";
import { runMain, UserError } from "../ffi/errors.ts";
import { chooseDevice, type DeviceName, open } from "../ffi/library.ts";
import { parseOverrides } from "../runtime/config.ts";
import { loadModel } from "./checkpoint.ts";
import { generate } from "./generate.ts";

const defaults = {
  checkpoint: "", // a run directory, one of its checkpoints, or a Hugging Face Llama directory
  prompt: "", // empty: the start of a document
  max_new_tokens: 100,
  temperature: 0.8, // 0 = always the likeliest token
  top_k: 50, // 0 = all tokens
  top_p: 1,
  seed: 1,
  device: "", // "" = cuda if it answers, else cpu
};

async function main(): Promise<void> {
  const o = { ...defaults, ...parseOverrides(Deno.args, defaults) };
  if (!o.checkpoint) throw new UserError("Cannot sample: name a model with --checkpoint=runs/...");
  if (!(o.temperature >= 0)) {
    throw new UserError(`Cannot sample with temperature ${o.temperature}: it must be at least 0`);
  }
  if (!(o.top_p > 0 && o.top_p <= 1)) {
    throw new UserError(`Cannot sample with top_p ${o.top_p}: it must be above 0 and at most 1`);
  }
  open((o.device || chooseDevice().name) as DeviceName);
  const { model, config, directory } = loadModel(o.checkpoint);
  const tokenizer = await openTokenizer(directory);
  if (tokenizer.vocab_size > config.vocab_size) {
    throw new UserError(
      `Cannot sample: the tokenizer in ${directory} has ${tokenizer.vocab_size} tokens, the model ${config.vocab_size}`,
    );
  }
  const prompt = [tokenizer.eot, ...tokenizer.encode(o.prompt)]; // documents begin with end-of-text
  const text = tokenizer.stream();
  const write = (part: string) => Deno.stdout.writeSync(new TextEncoder().encode(part));
  write(o.prompt);
  for (const token of generate(model, config, prompt, { ...o, stop: tokenizer.eot })) {
    write(text.write(token));
  }
  write(text.end() + "\n");
}

if (import.meta.main) await runMain(main);
