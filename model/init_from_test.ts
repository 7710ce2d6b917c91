import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { open } from "../ffi/library.ts";
import { readSafetensors } from "../runtime/safetensors.ts";
import { modelDirectory, SMALL_MODEL } from "../tests/testing.ts";
import { loadModel } from "./checkpoint.ts";
import { shapeOf, tokenizerOfModel } from "./init_from.ts";

open("cpu");

Deno.test("shapeOf() takes all from the directory but block_size, and refuses what contradicts it", async () => {
  const path = await modelDirectory({ n_layer: 2, block_size: 48, rope_theta: 500, norm_eps: 1e-5 });
  const shape = {
    ...{ n_layer: 2, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 16, n_inner: 32 },
    ...{ rope_theta: 500, norm_eps: 1e-5 },
  };
  assertEquals(shapeOf(path, {}, 1024), { ...shape, block_size: 48 });
  assertEquals(shapeOf(path, {}, 32), { ...shape, block_size: 32 });
  assertEquals(shapeOf(path, { block_size: 40, n_layer: 2 }, 32), { ...shape, block_size: 40 });
  const refused = (given: Parameters<typeof shapeOf>[1]) =>
    assertThrows(() => shapeOf(path, given, 32), UserError).message.replace(path, "MODEL");
  for (const [name, value] of Object.entries(shape)) {
    assertEquals(
      refused({ [name]: 7 }),
      `Cannot set ${name} to 7 with --init_from=MODEL: it is ${value} there; leave --${name} out`,
    );
  }
  assertEquals(
    refused({ block_size: 49 }),
    "Cannot set block_size to 49 with --init_from=MODEL: its config.json has max_position_embeddings 48, and no longer " +
      "sequence is computed; set it to that or less",
  );
});

Deno.test("shapeOf() bounds block_size by a sliding window, and names what is no directory", async () => {
  const path = await modelDirectory({ family: "mistral", sliding_window: 24 });
  assertEquals(shapeOf(path, {}, 1024).block_size, 24);
  assertThrows(
    () => shapeOf(path, { block_size: 25 }, 32),
    UserError,
    "its config.json has sliding_window 24, and no longer sequence is computed; set it to that or less",
  );
  assertThrows(
    () => shapeOf(`${path}/none`, {}, 32),
    UserError,
    `Cannot begin with the weights in ${path}/none: there is no such directory; name a model directory, a run or one of`,
  );
});

Deno.test("tokenizerOfModel() is the model's, for data of the same tokens, ends and cuts alone", async () => {
  const path = await modelDirectory(), plain = await openTokenizer("bytes");
  const bytes = { ...plain, files: () => ({}) }; // as of another kind that has the same tokens
  const data = { dir: "DATA", vocab_size: 257, eot: 256 }, model = { ...SMALL_MODEL, vocab_size: 300 };
  for (const tokenizer of [plain, bytes, undefined]) {
    assertEquals((await tokenizerOfModel(path, model, data, tokenizer)).encode("Loom"), bytes.encode("Loom"));
  }
  const other =
    `Cannot train the model in MODEL on DATA: WHAT; prepare the data with its tokenizer: --tokenizer MODEL`;
  const cases: [string, Partial<typeof data>, typeof bytes, number?][] = [
    [other.replace("WHAT", "the data has a vocabulary of 50257 tokens, the model's tokenizer has 257"), {
      vocab_size: 50257,
    }, bytes],
    [
      other.replace("WHAT", "texts end with token 0 in the data and with 256 for the model"),
      { eot: 0 },
      bytes,
    ],
    [
      other.replace("WHAT", 'token 65 is "a" in the data and "A" for the model'),
      {},
      { ...bytes, decode: (ids) => bytes.decode(ids).toLowerCase() },
    ],
    [
      other.replace(
        "WHAT",
        "the data's tokenizer has the same tokens as the model's, but cuts text otherwise",
      ),
      {},
      { ...bytes, encode: (text) => bytes.encode(text.slice(1)) },
    ],
    [
      "Cannot train the model in MODEL: its vocab_size is 250, its tokenizer has 257 tokens; they are not of one model",
      {},
      bytes,
      250,
    ],
  ];
  for (const [message, change, tokenizer, vocab_size = 257] of cases) {
    const promise = tokenizerOfModel(path, { ...model, vocab_size }, { ...data, ...change }, tokenizer);
    assertEquals((await assertRejects(() => promise, UserError)).message.replaceAll(path, "MODEL"), message);
  }
  Deno.removeSync(`${path}/tokenizer.json`);
  assertEquals(
    (await assertRejects(() => tokenizerOfModel(path, model, data, bytes), UserError)).message,
    `Cannot train the model in ${path}: it has no tokenizer.json; put the one that it was trained with there`,
  );
});

Deno.test("loadModel() names a value that is not finite", async () => {
  const path = await modelDirectory(), file = `${path}/model.safetensors`;
  const { offset } = readSafetensors(file).tensors.get("model.norm.weight")!, bytes = Deno.readFileSync(file);
  new DataView(bytes.buffer).setFloat32(offset + 4 * 5, NaN, true);
  Deno.writeFileSync(file, bytes);
  assertEquals(
    assertThrows(() => loadModel(path), UserError).message,
    `Cannot load ${file}: element 5 of model.norm.weight (32) is NaN; use another copy of the model`,
  );
});
