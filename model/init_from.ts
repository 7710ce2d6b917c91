// --init_from: a new run that begins with the weights of a model directory. Shape and tokenizer are that model's, not variables.
import { type Dataset, templateIn, withTemplate } from "../data/bins.ts";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { isDirectory, isFile, noDirectory } from "../base/files.ts";
import { resolveCheckpoint } from "../runtime/checkpoint.ts";
import { json, readJson } from "../runtime/trainer_state.ts";
import { storedConfig } from "./checkpoint.ts";
import type { LlamaConfig } from "./llama.ts";

/** Those that the model itself has. */
export const SHAPE = [
  ...["n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "n_inner", "rope_theta", "norm_eps"],
] as const satisfies (keyof LlamaConfig)[];

/** The variables of train.ts that a model directory decides. */
export type ShapeVariables = Record<typeof SHAPE[number] | "block_size", number>;

/**
 * The variables that say the shape of the model in a directory. block_size is the given one, else `usual` or the longest
 * sequence that the model was made for, if that is less. Throws UserError where `given`, the command line, contradicts it.
 */
export function shapeOf(path: string, given: Partial<ShapeVariables>, usual: number): ShapeVariables {
  if (!isDirectory(path) && !isFile(path)) { // RUN/best is a file
    const fetch = `fetch them: deno task download ${path.replace("models/", "hf://")}`;
    throw new UserError(
      `Cannot begin with the weights in ${path}: ${noDirectory(path)}; ` +
        (path.startsWith("models/") ? fetch : "name a model directory, a run or one of its checkpoints"),
    );
  }
  const model = storedConfig(resolveCheckpoint(path)),
    { block_size = Math.min(usual, model.block_size) } = given;
  if (model.lora) {
    throw new UserError(
      `Cannot begin with the weights in ${path}: they are adapters; merge them into their base: ` +
        `deno task export --checkpoint ${path} --merge --out ${path}-merged`,
    );
  }
  for (const name of SHAPE) {
    if (given[name] === undefined || given[name] === model[name]) continue;
    throw new UserError(
      `Cannot set ${name} to ${given[name]} with --init_from=${path}: it is ${
        model[name]
      } there; leave --${name} out`,
    );
  }
  if (block_size > model.block_size) {
    const limit = model.sliding_window === model.block_size ? "sliding_window" : "max_position_embeddings";
    throw new UserError(
      `Cannot set block_size to ${block_size} with --init_from=${path}: its config.json has ${limit} ${model.block_size}, ` +
        "and no longer sequence is computed; set it to that or less",
    );
  }
  return { ...Object.fromEntries(SHAPE.map((name) => [name, model[name]])), block_size } as ShapeVariables;
}

/**
 * The tokenizer of a model directory, for data that was made with the same one. dataTokenizer: the data's, undefined if it is
 * not known and only sizes can be compared. Throws UserError naming the first difference.
 */
export async function tokenizerOfModel(
  path: string,
  { vocab_size }: LlamaConfig,
  { dir, vocab_size: data_vocab_size, eot, template }: Pick<
    Dataset,
    "dir" | "vocab_size" | "eot" | "template"
  >,
  dataTokenizer: Tokenizer | undefined,
): Promise<Tokenizer> {
  const directory = resolveCheckpoint(path), cannot = `Cannot train the model in ${path}`;
  if (!isFile(`${directory}/tokenizer.json`)) {
    throw new UserError(`${cannot}: it has no tokenizer.json; put the one that it was trained with there`);
  }
  const own = await openTokenizer(directory);
  if (own.vocab_size > vocab_size) {
    throw new UserError(
      `${cannot}: its vocab_size is ${vocab_size}, its tokenizer has ${own.vocab_size} tokens; they are not of one model`,
    );
  }
  const different = data_vocab_size !== own.vocab_size
    ? `the data has a vocabulary of ${data_vocab_size} tokens, the model's tokenizer has ${own.vocab_size}`
    : eot !== own.eot
    ? `texts end with token ${eot} in the data and with ${own.eot} for the model`
    : dataTokenizer && differenceOf(dataTokenizer, own);
  if (different === undefined) return await withChats(directory, own, template);
  throw new UserError(
    `${cannot} on ${dir}: ${different}; prepare the data with its tokenizer: --tokenizer ${directory}`,
  );
}

/**
 * The tokenizer of a directory, whose files are also what lies there of how the model talks: the template of chats, or the one
 * that its data was made with, and generation_config.json with every token that ends a text, that of an answer too.
 */
async function withChats(
  directory: string,
  tokenizer: Tokenizer,
  ofData: string | undefined,
): Promise<Tokenizer> {
  const { allEnds } = await import("./conversations.ts"); // and a parser of Jinja, which no other run needs
  const generation = "generation_config.json";
  const path = `${directory}/${generation}`, settings = isFile(path) ? readJson(path) : {};
  const ends = allEnds(directory, tokenizer, ofData), eos_token_id = ends.length === 1 ? ends[0] : ends;
  const talking = withTemplate(tokenizer, ofData ?? templateIn(directory));
  const files = (start = tokenizer.bos) => ({
    ...talking.files(start),
    [generation]: json({ ...settings, bos_token_id: start, eos_token_id }),
  });
  return { ...tokenizer, files };
}

/** Text of several kinds and scripts, on which tokenizers with equal vocabularies and other rules differ. */
const PROBE = "It's 2024,  isn't it?\n\n\tfor (let i = 0; i < 1000; i++) {}\r\n wörld € 日本語 Привет 🧵 ÅÅ";

/** Where two tokenizers with vocabularies of one size differ, in words; undefined if nowhere. */
function differenceOf(data: Tokenizer, model: Tokenizer): string | undefined {
  const file = "tokenizer.json";
  if (data.files()[file] === model.files()[file]) return undefined; // which is quicker than 200,000 tokens
  for (let id = 0; id < model.vocab_size; id++) {
    const [a, b] = [data.decode([id]), model.decode([id])];
    if (a !== b) {
      return `token ${id} is ${JSON.stringify(a)} in the data and ${JSON.stringify(b)} for the model`;
    }
  }
  if (`${data.encode(PROBE)}` === `${model.encode(PROBE)}`) return undefined;
  return "the data's tokenizer has the same tokens as the model's, but cuts text otherwise";
}
