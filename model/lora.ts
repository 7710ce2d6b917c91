// LoRA: what its flags say, and adapters in the layout of PEFT: adapter_model.safetensors, adapter_config.json, and beside them
// base.json, the sha256 of each file of the model that they are for: of its config.json and its weights.
import { basename } from "node:path";
import { UserError } from "../base/errors.ts";
import { isDirectory, isFile, sha256OfFile } from "../base/files.ts";
import { isObject } from "../base/json.ts";
import { meant } from "../base/suggest.ts";
import type { SafetensorsFile } from "../runtime/safetensors.ts";
import type { Sums } from "../runtime/sums.ts";
import { json, readJson } from "../runtime/trainer_state.ts";
import { type Lora, LORA_TARGETS, type LoraTarget } from "./llama.ts";

/** The variables of train.ts that say what is adapted. */
export type LoraVariables = { lora_rank: number; lora_alpha: number; lora_targets: string };

/** What they mean; undefined where the rank is 0. Throws UserError for a target that is none. */
export function loraOf(
  { lora_rank: rank, lora_alpha: alpha, lora_targets }: LoraVariables,
): Lora | undefined {
  if (rank === 0) return undefined;
  const wanted = lora_targets.split(",").map((name) => name.trim());
  for (const name of wanted) {
    if (LORA_TARGETS.some((target) => target === name)) continue;
    throw new UserError(
      `Cannot adapt "${name}": lora_targets are of ${LORA_TARGETS.join(", ")}; ${
        meant(name, [...LORA_TARGETS])
      }`,
    );
  }
  return { rank, alpha, targets: LORA_TARGETS.filter((target) => wanted.includes(target)) };
}

/** The model that adapters are for: its directory, and the sha256 of its config.json and of each of its files with weights. */
export type Base = { path: string; sha256: Record<string, string> };

/** That of an open model. sums: its checksums, which were compared; without them its files are read. */
export function baseOf(path: string, weights: Map<string, SafetensorsFile>, sums: Sums | undefined): Base {
  const files = [`${path}/config.json`, ...Array.from(new Set(weights.values()), (file) => file.path).sort()];
  const sha256 = files.map((file) => [basename(file), sums?.get(basename(file)) ?? sha256OfFile(file)]);
  return { path, sha256: Object.fromEntries(sha256) };
}

// ---- files

const CONFIG = "adapter_config.json", BASE = "base.json";

/** What each target is to PEFT, which knows the matrices that are stacked in it. */
const MODULES: Record<LoraTarget, string[]> = {
  qkv_proj: ["q_proj", "k_proj", "v_proj"],
  o_proj: ["o_proj"],
  gate_up_proj: ["gate_proj", "up_proj"],
  down_proj: ["down_proj"],
};

/** What else a config of PEFT may say, with the values that change nothing. */
const PLAIN: Record<string, unknown> = {
  bias: "none",
  fan_in_fan_out: false,
  use_rslora: false,
  use_dora: false,
  modules_to_save: null,
  layers_to_transform: null,
  rank_pattern: {},
  alpha_pattern: {},
};

/** The small files beside adapters, by name. */
export function adapterFiles(
  { rank, alpha, targets }: Lora,
  { path, sha256 }: Base,
): Record<string, string> {
  return {
    [CONFIG]: json({
      peft_type: "LORA",
      task_type: "CAUSAL_LM",
      base_model_name_or_path: path,
      r: rank,
      lora_alpha: alpha,
      lora_dropout: 0,
      target_modules: targets.flatMap((name) => MODULES[name]),
      inference_mode: true,
      ...PLAIN,
    }),
    [BASE]: json({ sha256 }),
  };
}

/** What the adapters in a directory are, and for which base; undefined where it has none. Throws UserError for those of other kinds. */
export function readAdapterConfig(directory: string): { lora: Lora; path: string } | undefined {
  const file = `${directory}/${CONFIG}`;
  if (!isFile(file)) return undefined;
  const said = readJson(file),
    { r: rank, lora_alpha: alpha, target_modules, base_model_name_or_path: path } = said;
  const wrong = (key: string, should: string) =>
    new UserError(
      `Cannot use ${file}: ${key} is ${JSON.stringify(said[key])?.slice(0, 60)}, should be ${should}`,
    );
  if (said.peft_type !== "LORA") throw wrong("peft_type", '"LORA"');
  if (!Number.isSafeInteger(rank) || (rank as number) < 1) throw wrong("r", "a whole number above 0");
  if (!Number.isFinite(alpha)) throw wrong("lora_alpha", "a number");
  if (typeof path !== "string") throw wrong("base_model_name_or_path", "the directory of the base");
  for (const [key, value] of Object.entries(PLAIN)) {
    if (JSON.stringify(said[key] ?? value) !== JSON.stringify(value)) throw wrong(key, JSON.stringify(value));
  }
  const modules = Array.isArray(target_modules) ? target_modules : [];
  const targets = LORA_TARGETS.filter((name) => MODULES[name].every((part) => modules.includes(part)));
  const known = targets.flatMap((name) => MODULES[name]);
  if (known.length === 0 || modules.some((name) => !known.includes(name))) {
    throw wrong(
      "target_modules",
      "a list of q_proj with k_proj and v_proj, o_proj, gate_proj with up_proj, down_proj",
    );
  }
  return { lora: { rank: rank as number, alpha: alpha as number, targets }, path };
}

/** Throws UserError where there is no model at the path that adapters name as their base. */
export function requireBaseAt(directory: string, path: string): void {
  if (isDirectory(path)) return;
  throw new UserError(
    `Cannot load ${directory}: it holds adapters for the model in ${path}, which is not there; put it there, a link does`,
  );
}

/** Throws UserError where a base is not the one that the adapters in a directory were trained with, as far as base.json says. */
export function requireSameBase(directory: string, { path, sha256 }: Base): void {
  if (!isFile(`${directory}/${BASE}`)) return; // PEFT does not say
  const known = readJson(`${directory}/${BASE}`).sha256, wanted = isObject(known) ? known : {};
  for (const name of new Set([...Object.keys(wanted), ...Object.keys(sha256)])) {
    if (wanted[name] === sha256[name]) continue;
    const short = (sum: unknown) =>
      typeof sum === "string" ? `the sha256 ${sum.slice(0, 12)}...` : "no such file";
    throw new UserError(
      `Cannot load ${directory}: it is an adapter for another base: ${path}/${name} has ${
        short(sha256[name])
      }, ` +
        `should have ${short(wanted[name])}; put the model there that it was trained with`,
    );
  }
}
