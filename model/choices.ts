// What a run on a GPU computes with and could do otherwise: which algorithm of cuBLASLt makes each large matrix product, and which
// kernels make attention. Another one adds up in another order, so the choices belong to the run: kernels.json of its directory
// and of each checkpoint has them. The library's own cache only proposes some to a run that begins.
import { hash } from "node:crypto";
import { isFile, writeAtomic } from "../base/files.ts";
import { isObject } from "../base/json.ts";
import type { Ranks } from "../dist/ranks.ts";
import { chooseGemms, device, gemmChoices } from "../ffi/library.ts";
import type { Inputs } from "../runtime/inputs.ts";
import type { Parameters } from "../runtime/optim.ts";
import { KERNELS } from "../runtime/sums.ts";
import { backward, endStep, withOwnTape } from "../runtime/tape.ts";
import { json } from "../runtime/trainer_state.ts";
import { type Llama, type LlamaConfig, loss, type Recompute } from "./llama.ts";

/** The contents of kernels.json, beside their sha256. */
export type Choices = {
  gpu: string; // "NVIDIA H200"
  blas: string; // "cuBLASLt 13.1.0"
  attention: string; // portable or hopper
  gemms: string[]; // gemm_choices() in kernels.h
};

/** What the open device computes with, for heads of head_dim; undefined on a CPU, which chooses nothing. */
export function choicesNow(head_dim: number): Choices | undefined {
  if (device.library !== "cuda" && device.library !== "emu") return undefined;
  return { ...kindsNow(head_dim), gemms: gemmChoices() };
}

function kindsNow(head_dim: number): Omit<Choices, "gemms"> {
  const { name, blas = "", attention = "" } = device;
  return {
    gpu: name,
    blas: blas.split(" ").slice(0, 2).join(" "), // without its path
    attention: head_dim === 32 ? "portable" : attention.split(",")[0]!, // the text goes on with the reason
  };
}

/** Choices as the text of kernels.json. */
export function choicesText(choices: Choices): string {
  return json({ ...choices, sha256: sha256Of(choices) });
}

function sha256Of({ gpu, blas, attention, gemms }: Choices): string {
  return hash("sha256", JSON.stringify([gpu, blas, attention, gemms]));
}

/** Reads a kernels.json; undefined where it is not as choicesText() wrote it. */
function readChoices(path: string): Choices | undefined {
  let value: unknown;
  try {
    value = JSON.parse(Deno.readTextFileSync(path));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  const isWhole = isObject(value) && Array.isArray(value.gemms) &&
    value.sha256 === sha256Of(value as Choices);
  return isWhole ? value as Choices : undefined;
}

/** Writes the choices so far into the directory of a run, unless they are there. Nothing on a CPU. */
export function keepChoices(out_dir: string, head_dim: number): void {
  const choices = choicesNow(head_dim), path = `${out_dir}/${KERNELS}`;
  if (choices === undefined) return;
  const text = choicesText(choices);
  if (!isFile(path) || Deno.readTextFileSync(path) !== text) writeAtomic(path, text);
}

/** What is read here of the parts of a run. */
export type ChoosingRun = {
  config: { out_dir: string; eval_only: boolean; head_chunk: number; recompute: string };
  c: LlamaConfig;
  checkpoint: string | undefined; // that it goes on from
  ranks: Ranks;
  model: Llama;
  inputs: Inputs;
  optimizer: { parameters: Parameters; meetProducts(): void };
};

/**
 * Has the device compute with what the run has computed with: its checkpoint first, then its directory. Of several ranks the first
 * one chooses for all, what is new too, before the first step. Returns what there is to warn of, on the first rank.
 */
export async function takeChoices(run: ChoosingRun): Promise<string[]> {
  const { config, c, checkpoint, ranks } = run;
  if (choicesNow(c.head_dim) === undefined) return [];
  const places = [...checkpoint ? [checkpoint] : [], config.out_dir];
  const warnings = ranks.rank > 0 ? [] : takeFiles(places.map((place) => `${place}/${KERNELS}`), c.head_dim);
  if (ranks.isAlone) return warnings;
  if (ranks.rank === 0 && !config.eval_only) meetProducts(run);
  const first = await ranks.fromFirst(choicesNow(c.head_dim)!), here = kindsNow(c.head_dim);
  const isAlike = first.gpu === here.gpu && first.blas === here.blas && first.attention === here.attention;
  const refused = chooseGemms(isAlike ? first.gemms : [], false); // no rank times anything from here on
  const [others = 0] = await ranks.sum(isAlike && refused === 0 ? 0 : 1);
  if (others > 0) {
    warnings.push(
      `${others} of ${ranks.world_size} ranks have another GPU, cuBLASLt or attention than rank 0 (${first.gpu}, ${first.blas}, ` +
        `${first.attention}): they do not multiply with its algorithms`,
    );
  }
  return warnings;
}

/** Takes the choices of files for shapes without one, the first file first; returns what is wrong with them. */
function takeFiles(paths: string[], head_dim: number): string[] {
  const now = kindsNow(head_dim), warnings = new Set<string>();
  for (const path of paths.filter(isFile)) {
    const kept = readChoices(path);
    if (kept === undefined) {
      warnings.add(
        `${path} is damaged: what it alone knows of matrix products is timed anew, and bits may differ from those before`,
      );
      continue;
    }
    if (kept.attention !== now.attention) {
      warnings.add(
        `the run computed attention with the ${kept.attention} kernels, now with the ${now.attention} ones: bits differ from ` +
          `those before; --attention=${kept.attention} takes the same where the GPU can`,
      );
    }
    if (kept.gpu !== now.gpu || kept.blas !== now.blas) {
      warnings.add(
        `the run multiplied with ${kept.blas} on ${kept.gpu}, now with ${now.blas} on ${now.gpu}: matrix products are timed ` +
          "anew, and bits may differ from those before",
      );
      continue;
    }
    const refused = chooseGemms(kept.gemms, true);
    if (refused === 0) continue;
    warnings.add(
      `${now.blas} refuses ${refused} of ${kept.gemms.length} choices in ${path}: these matrix products are timed anew, and bits ` +
        "may differ from those before",
    );
  }
  return [...warnings];
}

/** Multiplies what a step multiplies, so that all is chosen: a gradient is first overwritten, then added to. */
function meetProducts({ config, c, model, inputs, optimizer }: ChoosingRun): void {
  const options = { head_chunk: config.head_chunk, recompute: config.recompute as Recompute };
  withOwnTape(() => {
    for (const _ of [1, 2]) {
      backward(loss(model, inputs.idx, inputs.targets, c, options));
      endStep();
    }
  });
  optimizer.meetProducts();
  optimizer.parameters.zeroGrad();
}
