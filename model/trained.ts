// Which weights of a model are trained, by their names: those of --train, or LoRA's adapters. The others are frozen.
import { UserError } from "../base/errors.ts";
import { meant } from "../base/suggest.ts";
import { formatCount } from "../base/format.ts";
import { named } from "../runtime/tensor.ts";

/**
 * Whether a weight is among those that --train lists, such as "layers.*.qkv_proj,norm": dot paths of model/llama.ts, in which a
 * star is any part between dots. Undefined for "", which is all; where there are adapters, they alone. Throws UserError for a
 * name that no weight has.
 */
export function trainsOf(model: unknown, list: string): ((name: string) => boolean) | undefined {
  const names = named(model).map(([name]) => name);
  if (list === "") return names.some(isAdapter) ? isAdapter : undefined;
  const patterns = list.split(",").map((text) => {
    const parts = text.trim().split(".");
    const fits = (name: string) => {
      const own = name.split(".");
      return own.length === parts.length && own.every((part, i) => parts[i] === "*" || parts[i] === part);
    };
    if (names.some(fits)) return fits;
    const kinds = new Set(names.map((name) => name.replace(/\.\d+\./, ".*.")));
    throw new UserError(`Cannot train "${text}": no weight has that name; ${meant(text, Array.from(kinds))}`);
  });
  return (name) => patterns.some((fits) => fits(name));
}

/** Whether a parameter of that name is one of an adapter of LoRA. */
export function isAdapter(name: string): boolean {
  return name.includes(".lora.");
}

/** "2 of 12 tensors, 4.1k of 36.0k values; the others are frozen" */
export function describeTrained(model: unknown, list: string): string {
  const trains = trainsOf(model, list) ?? (() => true),
    all = named(model),
    trained = all.filter(([name]) => trains(name));
  const values = (weights: typeof all) => formatCount(weights.reduce((sum, [, { size }]) => sum + size, 0));
  return `${trained.length} of ${all.length} tensors, ${values(trained)} of ${
    values(all)
  } values; the others are frozen`;
}
