// deno task export: models for llama.cpp and transformers. What these make of them is compared where LOAM_PYTHON names a Python
// with gguf, torch and transformers, or LOAM_LLAMA_CPP a directory in which `npm install node-llama-cpp` has run.
import {
  assert,
  assertEquals,
  assertLess,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { UserError } from "../base/errors.ts";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { characterTokenizer } from "../data/tokenizers/character_level.ts";
import { askPython, randomTexts, TEXTS, TOKENIZERS, withPieces } from "../data/tokenizers/testing.ts";
import { open } from "../ffi/library.ts";
import { loadModel } from "../model/checkpoint.ts";
import { exportModel } from "../model/export.ts";
import { generate } from "../model/generate.ts";
import type { LlamaConfig } from "../model/llama.ts";
import { readSafetensors, toFloat32 } from "../runtime/safetensors.ts";
import { crashes, ERRORS, failing, unsynced } from "./disk.ts";
import { type Answer, askLlamaCpp, LLAMA_CPP, type Question } from "./llama_cpp.ts";
import {
  copy,
  emptyDirectory,
  freshPath,
  list,
  modelDirectory,
  refuse,
  runWithFullDisk,
  SMALL_MODEL,
  succeed,
} from "./testing.ts";

open("cpu");

const PYTHON = Deno.env.get("LOAM_PYTHON");

const WIDE = { n_layer: 2, n_embd: 64, n_head: 4, n_kv_head: 2, n_inner: 96, block_size: 64 };

/** A model directory with the files of a tokenizer. Its weights are those of modelDirectory(). */
async function modelWith(files: Record<string, string>, more = 0): Promise<[string, Tokenizer]> {
  const scratch = emptyDirectory();
  for (const [name, text] of Object.entries(files)) Deno.writeTextFileSync(`${scratch}/${name}`, text);
  const tokenizer = await openTokenizer(scratch);
  const directory = await modelDirectory({ vocab_size: tokenizer.vocab_size + more, n_embd: 32 });
  for (const [name, text] of Object.entries(files)) Deno.writeTextFileSync(`${directory}/${name}`, text);
  const config = JSON.parse(Deno.readTextFileSync(`${directory}/config.json`));
  const ids = { bos_token_id: tokenizer.bos, eos_token_id: tokenizer.eot };
  Deno.writeTextFileSync(`${directory}/config.json`, JSON.stringify({ ...config, ...ids }));
  return [directory, tokenizer];
}

// ---- the command

Deno.test("export writes a GGUF file, over an earlier one only with --overwrite", async () => {
  const model = await modelDirectory(WIDE), out = `${emptyDirectory()}/sub/model.gguf`;
  const flags = [`--checkpoint=${model}`, "--format=gguf", "--dtype=f32", `--out=${out}`];
  assertEquals(
    await succeed("export", ...flags),
    `${out}: llama of 94,656 parameters, f32, 385 kB, tokenizer gpt-2\n`,
  );
  const first = Deno.readFileSync(out);
  assertEquals(
    await refuse("export", ...flags, "--dtype=q8_0"),
    `Cannot write ${out}: it is there already; add --overwrite to write another in its place`,
  );
  assertEquals(Deno.readFileSync(out), first);
  await succeed("export", ...flags, "--dtype=q8_0", "--overwrite");
  assertLess(Deno.statSync(out).size, first.length / 3);
  assertEquals(list(out.replace("/model.gguf", "")), ["model.gguf"]);
});

Deno.test("export says why when the disk is full, and leaves nothing", async () => {
  const model = await modelDirectory(WIDE), directory = emptyDirectory();
  const flags = [`--checkpoint=${model}`, `--out=${directory}/model.gguf`];
  const { code, stdout, stderr } = await runWithFullDisk(4096, "export", ...flags);
  assertEquals([code, stdout], [1, ""]);
  assertMatch(stderr, /^error: Cannot write \/\S+\/model\.gguf: File too large \(os error 27\)\n$/);
  assertEquals(list(directory), []);
});

Deno.test("whatever change the system refuses, an export says so and leaves the earlier file", async () => {
  const model = await modelDirectory(), directory = emptyDirectory(), out = `${directory}/model.gguf`;
  await unsynced(() => exportModel({ checkpoint: model, dtype: "f32", out }));
  const earlier = Deno.readFileSync(out);
  for (const error of ["broken", "full"] as const) {
    for (let n = 1;; n++) {
      Deno.writeFileSync(out, earlier);
      const options = { checkpoint: model, dtype: "f16", out, overwrite: true };
      const { failed } = await failing(n, error, () => exportModel(options));
      if (failed === undefined) break;
      assert(failed instanceof UserError, String(failed));
      assertStringIncludes(failed.message, ERRORS[error]);
      const isRenamed = failed.message.startsWith(`Cannot write to ${directory}: `); // the last change
      assertEquals([isRenamed || isSame(Deno.readFileSync(out), earlier), list(directory)], [true, [
        "model.gguf",
      ]]);
    }
  }
});

Deno.test("an export over another may end at any moment: one of the two is whole", async () => {
  const model = await modelDirectory(),
    directory = emptyDirectory(),
    path = "/model.gguf",
    out = directory + path;
  const write = (dtype: string) => exportModel({ checkpoint: model, dtype, out, overwrite: true });
  await unsynced(() => write("f16"));
  const earlier = Deno.readFileSync(out);
  await unsynced(() => write("bf16"));
  const later = Deno.readFileSync(out);
  Deno.writeFileSync(out, earlier);
  let done = 0;
  const { changes, states } = await crashes(directory, async () => {
    await write("bf16");
    done = 1;
  }, () => done);
  assert(changes > 20);
  for (const { files, story, said } of states) {
    const found = files.get(path)!, whole = said === 1 ? [later] : [earlier, later];
    assert(whole.some((content) => isSame(found, content)), story);
  }
});

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

Deno.test("export says in one line what it cannot do", async () => {
  const model = await modelDirectory(),
    out = freshPath(),
    file = `${emptyDirectory()}/a`,
    here = emptyDirectory();
  Deno.writeTextFileSync(file, "");
  const edited = (change: Record<string, unknown>) => {
    const other = copy(model), path = `${other}/config.json`;
    Deno.writeTextFileSync(path, JSON.stringify({ ...JSON.parse(Deno.readTextFileSync(path)), ...change }));
    return other;
  };
  const without = (name: string) => {
    const other = copy(model);
    Deno.removeSync(`${other}/${name}`);
    return other;
  };
  const own = edited({
    model_type: "loam",
    architectures: null,
    settings: {},
    note: "not a Llama: layers.0.q_norm",
  });
  const gpt = edited({ model_type: "gpt2", architectures: ["GPT2LMHeadModel"] });
  const turning = await modelDirectory({ family: "smollm3", no_rope_layers: [0] });
  const noTokenizer = without("tokenizer.json"), small = edited({ vocab_size: 200 });
  const run = emptyDirectory();
  Deno.writeTextFileSync(`${run}/trainer_state.json`, "{}");
  const cases: [Parameters<typeof exportModel>[0], string][] = [
    [{}, "Cannot export: name a model with --checkpoint=runs/..."],
    [{ checkpoint: model }, "Cannot export: name what to write with --out=model.gguf"],
    [{ checkpoint: model, format: "hf" }, "Cannot export: name what to write with --out=model-hf"],
    [{ checkpoint: model, format: "ggml", out }, "Cannot use --format=ggml: it should be gguf or hf"],
    [
      { checkpoint: model, dtype: "q4_0", out },
      "Cannot use --dtype=q4_0: it should be f32, bf16, f16 or q8_0",
    ],
    [
      { checkpoint: model, format: "hf", dtype: "q8_0", out },
      "Cannot use dtype q8_0 with format hf: it must be f32, bf16 or f16; q8_0 is one of gguf",
    ],
    [
      { checkpoint: `${out}/none`, out },
      `Cannot find a checkpoint in ${out}/none: there is no such directory`,
    ],
    [
      { checkpoint: model, out: here },
      `Cannot write ${here}: it is a directory, should be a file; use --out=${here}/model.gguf`,
    ],
    [
      { checkpoint: model, out: file, overwrite: true },
      `Cannot write ${file}: it is there already and no GGUF file; choose another --out`,
    ],
    [
      { checkpoint: model, format: "hf", out: file },
      `Cannot write ${file}: it is a file, should be a directory`,
    ],
    [
      { checkpoint: model, format: "hf", out: model },
      `Cannot write ${model}: it holds a model already; add --overwrite to write another in its place`,
    ],
    [
      { checkpoint: model, format: "hf", out: run, overwrite: true },
      `Cannot write ${run}: it has trainer_state.json, which no export writes; choose another directory`,
    ],
    [
      { checkpoint: own, out },
      `Cannot export ${own}: its model_type is loam, a model/llama.ts that was edited, which neither llama.cpp nor ` +
      "transformers computes (not a Llama: layers.0.q_norm); sample and serve run it",
    ],
    [{ checkpoint: own, format: "hf", out }, `Cannot export ${own}: its model_type is loam, `],
    [{ checkpoint: gpt, out }, `Cannot load ${gpt}/config.json: model_type is "gpt2", and should be `],
    [
      { checkpoint: noTokenizer, out },
      `Cannot export ${noTokenizer}: it has no tokenizer.json, without which nobody can give it text; put that of its data there`,
    ],
    [
      { checkpoint: turning, out },
      `Cannot export ${turning} to GGUF: its no_rope_layers are 0, should have 0 for each fourth layer alone; --format=hf `,
    ],
    [{ checkpoint: small, out }, `Cannot export: the tokenizer in ${small} has 257 tokens, the model 200`],
  ];
  for (const [options, message] of cases) {
    const { message: said } = await assertRejects(() => exportModel(options), UserError);
    assertEquals(said.slice(0, message.length), message);
  }
  assertEquals(list(out), []);
});

Deno.test("export refuses weights that are not finite, or too large for a type, by the tensor's name", async () => {
  const model = await modelDirectory(), path = `${model}/model.safetensors`, out = freshPath();
  const name = "model.layers.0.mlp.up_proj.weight", { offset } = readSafetensors(path).tensors.get(name)!;
  const plant = (value: number) => {
    const bytes = Deno.readFileSync(path);
    new DataView(bytes.buffer).setFloat32(offset + 8, value, true);
    Deno.writeFileSync(path, bytes);
  };
  const cases = [
    [NaN, `Cannot export ${name}: it has NaN, should have finite numbers alone; use another checkpoint`],
    [1e9, `Cannot export ${name}: it has 1000000000, too large for f16; use --dtype=f32`],
  ] as const;
  for (const format of ["gguf", "hf"]) {
    for (const [value, message] of cases) {
      plant(value);
      await assertRejects(
        () => exportModel({ checkpoint: model, format, dtype: "f16", out }),
        UserError,
        message,
      );
    }
  }
  assertEquals([list(out), Deno.lstatSync(model).isDirectory], [[], true]);
});

Deno.test("export refuses a tokenizer that llama.cpp cannot do, by what it has", async () => {
  const cases: [string, string][] = [
    ["roberta_like", "its pre_tokenizer has add_prefix_space, which llama.cpp has not"],
    [
      "removing",
      String.raw`its pre_tokenizer cuts text by \s+ and \p{L}+|\p{N}, for which llama.cpp has no name`,
    ],
    ["kimi_like", String.raw`its pre_tokenizer cuts text by [\p{Han}]+|`],
  ];
  for (const [name, message] of cases) {
    const [directory] = await modelWith(filesOf(name)), out = freshPath();
    const options = { checkpoint: directory, out };
    const { message: said } = await assertRejects(() => exportModel(options), UserError);
    const begin = `Cannot export "${directory}/tokenizer.json" to GGUF: ${message}`;
    assertEquals(said.slice(0, begin.length), begin);
    assertStringIncludes(said, "; --format=hf writes a directory for transformers instead");
    assertEquals(list(out), []);
    await unsynced(() => exportModel({ ...options, format: "hf" }));
  }
});

/** The files of one of the small tokenizers. */
function filesOf(name: string, model: Record<string, unknown> = {}): Record<string, string> {
  const json = TOKENIZERS.get(name)! as {
    model: object;
    added_tokens: { special: boolean; content: string }[];
  };
  const eos_token = json.added_tokens.find(({ special, content }) => special && content !== "<unk>")!.content;
  return {
    "tokenizer.json": JSON.stringify({ ...json, model: { ...json.model, ...model } }),
    "tokenizer_config.json": JSON.stringify({ eos_token }),
  };
}

Deno.test("export --format=hf writes a directory that loam reads too, in each type", async () => {
  const model = await modelDirectory(WIDE), out = freshPath(), name = "model.layers.1.mlp.down_proj.weight";
  const values = (directory: string) => {
    const file = readSafetensors(`${directory}/model.safetensors`), { dtype } = file.tensors.get(name)!;
    return { dtype, floats: toFloat32(file.read(name), dtype) };
  };
  const exact = values(model).floats;
  Deno.mkdirSync(out);
  Deno.writeTextFileSync(`${out}/model.safetensors.1.tmp`, ""); // left by a kill
  await exportModel({ checkpoint: model, format: "hf", out });
  Deno.writeTextFileSync(`${out}/chat_template.jinja`, "of another model");
  for (const [dtype, stored, torch_dtype, error] of TYPES) {
    const said = await exportModel({ checkpoint: model, format: "hf", dtype, out, overwrite: true });
    assertEquals(said, `${out}: a model of 94,656 parameters, ${dtype}, for transformers`);
    const { floats, dtype: written } = values(out);
    assertEquals(written, stored);
    floats.forEach((value, i) => assert(Math.abs(value - exact[i]!) <= error * Math.abs(exact[i]!)));
    const config = JSON.parse(Deno.readTextFileSync(`${out}/config.json`));
    assertEquals([config.torch_dtype, config.architectures], [torch_dtype, ["LlamaForCausalLM"]]);
    assertEquals(list(out), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
  }
  assertEquals(loadModel(out).config, loadModel(model).config);
  assertEquals((await openTokenizer(out)).encode("Loom"), (await openTokenizer(model)).encode("Loom"));
});

/** The dtypes of format hf, and what each is off by at most, relative to a value that is not tiny. */
const TYPES = [
  ["f32", "F32", "float32", 0],
  ["bf16", "BF16", "bfloat16", 2 ** -8],
  ["f16", "F16", "float16", 2 ** -10],
] as const;

Deno.test("a GGUF file holds the weights of its model, queries and keys in pairs of neighbours", async () => {
  const model = await modelDirectory({ ...WIDE, vocab_size: 260 }), out = `${freshPath()}.gguf`;
  await exportModel({ checkpoint: model, dtype: "f32", out });
  const { settings, tensors } = readGguf(out), file = readSafetensors(`${model}/model.safetensors`);
  const name = model.split("/").at(-1), floats = (name: string) => toFloat32(file.read(name), "F32");
  assertEquals(tensors.size, file.tensors.size);
  assertEquals(tensors.get("token_embd.weight"), floats("model.embed_tokens.weight"));
  assertEquals(tensors.get("blk.1.ffn_up.weight"), floats("model.layers.1.mlp.up_proj.weight"));
  assertEquals(tensors.get("blk.1.attn_v.weight"), floats("model.layers.1.self_attn.v_proj.weight"));
  assertEquals(tensors.get("output.weight"), floats("lm_head.weight"));
  for (const part of ["q", "k"]) {
    const rows = floats(`model.layers.1.self_attn.${part}_proj.weight`),
      C = WIDE.n_embd,
      D = SMALL_MODEL.head_dim;
    const expected = rows.map((_, i) => { // row 2j of a head is row j of its first half there, 2j + 1 of its second
      const row = Math.floor(i / C), d = row % D, from = row - d + (d % 2) * D / 2 + Math.floor(d / 2);
      return rows[from * C + i % C]!;
    });
    assertEquals(tensors.get(`blk.1.attn_${part}.weight`), expected);
  }
  assertEquals(settings.slice(0, 17), [
    ["general.architecture", "llama"],
    ["general.type", "model"],
    ["general.name", name],
    ["general.file_type", 0],
    ["general.quantization_version", 2],
    ["llama.vocab_size", 260],
    ["llama.context_length", 64],
    ["llama.embedding_length", 64],
    ["llama.block_count", 2],
    ["llama.feed_forward_length", 96],
    ["llama.attention.head_count", 4],
    ["llama.attention.head_count_kv", 2],
    ["llama.attention.key_length", 16],
    ["llama.attention.value_length", 16],
    ["llama.attention.layer_norm_rms_epsilon", Math.fround(1e-6)],
    ["llama.rope.dimension_count", 16],
    ["llama.rope.freq_base", 10000],
  ]);
});

/** Settings, of which lists are left out, and float32 tensors of a file. */
function readGguf(path: string): { settings: [string, unknown][]; tensors: Map<string, Float32Array> } {
  const bytes = Deno.readFileSync(path),
    view = new DataView(bytes.buffer),
    settings: [string, unknown][] = [];
  let at = 8;
  const u32 = () => view.getUint32((at += 4) - 4, true),
    u64 = () => Number(view.getBigUint64((at += 8) - 8, true));
  const string = () => {
    const length = u64();
    return new TextDecoder().decode(bytes.subarray(at, at += length));
  };
  const value = (type: number): unknown => {
    if (type === 4 || type === 5) return u32();
    if (type === 6) return view.getFloat32((at += 4) - 4, true);
    if (type === 7) return bytes[at++] === 1;
    if (type === 8) return string();
    const inner = u32();
    for (let n = u64(); n > 0; n--) value(inner);
    return null;
  };
  const [n_tensors, n_settings] = [u64(), u64()];
  for (let i = 0; i < n_settings; i++) settings.push([string(), value(u32())]);
  const infos = Array.from({ length: n_tensors }, () => {
    const name = string(), shape = Array.from({ length: u32() }, u64);
    assertEquals(u32(), 0, name);
    return { name, size: shape.reduce((a, b) => a * b), offset: u64() };
  });
  const data = Math.ceil(at / 32) * 32;
  return {
    settings,
    tensors: new Map(
      infos.map(({ name, size, offset }) => [name, new Float32Array(bytes.buffer, data + offset, size)]),
    ),
  };
}

// ---- what others make of it

function live(name: string, wants: "LOAM_PYTHON" | "LOAM_LLAMA_CPP", fn: () => Promise<void>): void {
  Deno.test({
    name: `${name} (${wants})`,
    ignore: !{ LOAM_PYTHON: PYTHON, LOAM_LLAMA_CPP: LLAMA_CPP }[wants],
    fn,
  });
}

live(
  "gguf-py reads every tensor as it was, queries and keys in llama.cpp's order",
  "LOAM_PYTHON",
  async () => {
    const llama3 = { rope_type: "llama3" as const, factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
    const cases: [Partial<LlamaConfig>, name: string, dtypes: string[]][] = [
      [WIDE, "llama", ["f32", "bf16", "f16", "q8_0"]],
      [{ ...WIDE, tie_word_embeddings: true }, "llama", ["f32", "q8_0"]],
      [{ ...WIDE, rope_scaling: { ...llama3, original_max_position_embeddings: 64 } }, "llama", ["bf16"]],
      [{ ...WIDE, family: "qwen2" }, "qwen2", ["bf16"]],
      [{ ...WIDE, family: "qwen3" }, "qwen3", ["q8_0"]],
      [{ ...WIDE, family: "smollm3", n_layer: 4, no_rope_layers: [1, 1, 1, 0] }, "smollm3", ["f32"]],
    ];
    const jobs = [], expected = [];
    for (const [shape, name, dtypes] of cases) {
      const directory = await modelDirectory(shape);
      for (const dtype of dtypes) {
        const out = `${freshPath()}.gguf`;
        await exportModel({ checkpoint: directory, dtype, out });
        jobs.push({ directory, heads: [4, 2], dtype, out });
        expected.push([dtype, name, [], []]);
      }
    }
    assertEquals(await askPython(READ_GGUF, jobs), expected);
  },
);

// The permutation is that of Hugging Face's own conversion of Meta's weights, the other way round; names and types are gguf-py's,
// the frequencies transformers'.
const READ_GGUF = `
import gguf, numpy as np, torch
from safetensors.numpy import load_file
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
results = []
for job in argument:
    reader, weights = gguf.GGUFReader(job["out"]), load_file(job["directory"] + "/model.safetensors")
    arch = reader.fields["general.architecture"].contents()
    names = gguf.get_tensor_name_map(next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), 8)
    found, wrong = {t.name: t for t in reader.tensors}, []
    for name, w in weights.items():
        n = next((n for part, n in zip(["q_proj", "k_proj"], job["heads"]) if part in name), None)
        if n and arch in ["llama", "smollm3"]:
            w = w.reshape(n, 2, w.shape[0] // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        t = found.pop(names.get_name(name, try_suffixes=(".weight", ".bias")))
        qtype = gguf.GGMLQuantizationType[job["dtype"].upper()]
        if w.ndim == 1: qtype = gguf.GGMLQuantizationType.F32
        expected = gguf.quants.quantize(w, qtype)
        if t.tensor_type != qtype or t.data.tobytes() != expected.tobytes() or tuple(t.shape[::-1]) != w.shape:
            wrong.append(name)
    config = AutoConfig.from_pretrained(job["directory"])
    if config.rope_parameters["rope_type"] == "llama3":
        slow, D = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0], config.head_dim
        factors = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, D, 2).float() / D) / slow
        if not np.allclose(found.pop("rope_freqs.weight").data, factors.numpy(), rtol=1e-6): wrong.append("rope_freqs")
        assert factors.max() > 7.9 and factors.min() == 1
    results.append([job["dtype"], arch, wrong, list(found)])
print(json.dumps(results))
`;

live("transformers opens what --format=hf writes, and computes the same", "LOAM_PYTHON", async () => {
  const model = await modelDirectory(WIDE), jobs = [];
  for (const [dtype] of TYPES) {
    const out = freshPath();
    await exportModel({ checkpoint: model, format: "hf", dtype, out });
    jobs.push([model, out]);
  }
  const results = await askPython<[string, string, number[], number][]>(OPEN_HF, jobs);
  assertEquals(results.map(([name, dtype, ids]) => [name, dtype, ids]), [
    ["LlamaForCausalLM", "torch.float32", [256, 79, 110, 99, 101]],
    ["LlamaForCausalLM", "torch.bfloat16", [256, 79, 110, 99, 101]],
    ["LlamaForCausalLM", "torch.float16", [256, 79, 110, 99, 101]],
  ]);
  results.forEach(([, , , error], i) => assert(error <= [0, 0.05, 0.01][i]!, `${error}`));
});

const OPEN_HF = `
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
results = []
for source, target in argument:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    ids = tokenizer("Once")["input_ids"]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(torch.tensor([ids])).logits
        error = (model.float()(torch.tensor([ids])).logits - expected).abs().max() / expected.abs().max()
    dtype = AutoModelForCausalLM.from_pretrained(target, dtype="auto").dtype
    results.append([type(model).__name__, str(dtype), ids, error.item()])
print(json.dumps(results))
`;

live("llama.cpp writes the same greedy text in f32", "LOAM_LLAMA_CPP", async () => {
  const original_max_position_embeddings = 64, low_freq_factor = 1, high_freq_factor = 4, family = "llama";
  const shapes: Partial<LlamaConfig>[] = [
    WIDE,
    { ...WIDE, tie_word_embeddings: true, rope_theta: 500000, norm_eps: 1e-5 },
    { ...WIDE, n_kv_head: 4, head_dim: 24 },
    { ...WIDE, n_head: 6, n_kv_head: 2, head_dim: 8, vocab_size: 300 },
    { ...WIDE, family: "mistral", sliding_window: 64, max_position_embeddings: 128 },
    {
      ...WIDE,
      family: "qwen2",
      rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings },
    },
    { ...WIDE, family: "qwen3", head_dim: 24, tie_word_embeddings: true },
    { ...WIDE, family: "smollm3", n_layer: 5, no_rope_layers: [1, 1, 1, 0, 1] },
    { ...WIDE, rope_scaling: { rope_type: "linear", factor: 3 } },
    {
      ...WIDE,
      family,
      rope_scaling: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
      },
    },
    {
      ...WIDE,
      rope_scaling: {
        ...{ rope_type: "yarn", factor: 4, original_max_position_embeddings, attention_factor: 0.3 },
        ...{ beta_fast: 8, beta_slow: 2 },
      },
    },
  ];
  const letters = characterTokenizer("letters", Array.from("abcdefghijklmnopqrstuvwxyz .'"));
  const directories = [
    ...await Promise.all(shapes.map(modelDirectory)),
    (await modelWith(letters.files()))[0],
  ];
  const questions: Question[] = [], expected: Answer[] = [];
  for (const directory of directories) {
    const tokenizer = await openTokenizer(directory);
    const { model, config } = loadModel(directory),
      prompt = tokenizer.prompt("once upon a time"),
      path = `${freshPath()}.gguf`;
    const options = { max_new_tokens: 24, temperature: 0, top_k: 0, top_p: 1, seed: 1 };
    const written = Array.from(generate(model, config, prompt, options));
    await exportModel({ checkpoint: directory, dtype: "f32", out: path });
    questions.push({ path, texts: [], prompt, tokens: written.length });
    const { bos, eot: eos } = tokenizer, adds_bos = prompt[0] === bos;
    expected.push({ bos, eos, adds_bos, ids: [], written, text: tokenizer.decode(written) });
  }
  const answers = await askLlamaCpp(questions);
  answers.forEach((answer, i) => {
    const { text, ...rest } = expected[i]!;
    const isUtf8 = !text.includes("\ufffd"); // of the bytes that weights by chance write, parts of characters may be missing
    assertEquals(answer, { ...rest, text: isUtf8 ? text : answer.text }, String(i));
  });
  assert(!expected.at(-1)!.text.includes("\ufffd"));
});

/** The small tokenizers that llama.cpp does exactly, and by which name. */
const EXACT = {
  gpt2_like: "gpt-2",
  llama3_like: "llama-bpe",
  phi4_like: "dbrx",
  smollm_like: "smollm",
  deepseek_like: "deepseek-v3",
  superbpe_like: "superbpe",
};

live("llama.cpp gives texts the same tokens", "LOAM_LLAMA_CPP", async () => {
  const texts = [...TEXTS, ...randomTexts(200, 7)], newer = /[\u0897\u{16d63}\u{16d67}]/u; // letters of Unicode 16
  const composed = texts.filter((text) => text.normalize("NFC") === text && !newer.test(text));
  const characters = await openTokenizer(
    new URL("fixtures/formats/nanogpt_char/meta.pkl", import.meta.url).pathname,
  );
  const whole = texts.filter((text) => !text.includes("\0")); // which ends a token's text in llama.cpp
  const all = Array.from(characters.decode(Array.from({ length: characters.eot }, (_, id) => id)));
  const cases: [files: Record<string, string>, pre: string, texts: string[]][] = [
    ...Object.entries(EXACT).map(([name, pre]) =>
      [filesOf(name), pre, texts] as [Record<string, string>, string, string[]]
    ),
    [filesOf("llama3_like", { ignore_merges: false }), "smaug-bpe", texts],
    [filesOf("qwen_like"), "qwen2", composed],
    [filesOf("qwen35_like"), "qwen35", composed],
    [piecesOf("llama2_like"), "default", whole],
    [piecesOf("gemma_like"), "default", whole],
    [piecesOf("mistral_like"), "default", whole.filter((text) => !/^[ ▁]/.test(text))],
    [(await openTokenizer("bytes")).files(), "gpt-2", texts],
    [(await openTokenizer("gpt2")).files(), "gpt-2", composed],
    [(await openTokenizer("cl100k")).files(), "dbrx", composed],
    [(await openTokenizer("o200k")).files(), "gpt-4o", LATIN],
    [filesOf("gpt_oss_like"), "gpt-4o", LATIN],
    [characters.files(), "gpt-2", [all.join(""), all.toReversed().join(""), ...all]],
  ];
  const questions: Question[] = [], expected: number[][][] = [], heads: unknown[] = [];
  for (const [files, pre, texts] of cases) {
    const [directory, tokenizer] = await modelWith(files, 3), path = `${freshPath()}.gguf`;
    assertStringIncludes(await exportModel({ checkpoint: directory, out: path }), `, tokenizer ${pre}`);
    questions.push({ path, texts, prompt: [], tokens: 0 });
    expected.push(texts.map((text) => Array.from(tokenizer.encode(text))));
    heads.push([tokenizer.bos, tokenizer.eot, tokenizer.prompt("a").length > tokenizer.encode("a").length]);
  }
  const answers = await askLlamaCpp(questions);
  assertEquals(answers.map(({ bos, eos, adds_bos }) => [bos, eos, adds_bos]), heads);
  for (const [i, { ids }] of answers.entries()) {
    cases[i]![2].forEach((text, n) =>
      assertEquals(ids[n], expected[i]![n], `${cases[i]![1]}: ${JSON.stringify(text)}`)
    );
  }
});

/** The files of a small tokenizer of characters that has longer tokens, too. */
function piecesOf(name: string): Record<string, string> {
  const files = filesOf(name), json = JSON.parse(files["tokenizer.json"]!);
  withPieces(json, [
    "▁▁",
    "▁t",
    "he",
    "▁the",
    "in",
    "▁a",
    "an",
    "▁an",
    "and",
    "▁and",
    "ll",
    "▁▁▁▁",
    "aa",
    "aaa",
    "é▁",
    "'s",
  ]);
  return { ...files, "tokenizer.json": JSON.stringify(json) };
}

/** Texts without what llama.cpp cuts elsewhere with the cuts of o200k. */
const LATIN = TEXTS.filter((text) => /^[\x20-\x7e\n]*$/.test(text)).concat(
  "größer Öl naïve, I'VE 1234 中文 👍🏽",
);
