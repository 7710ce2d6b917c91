// What a run has read of its data: from this follows what the next step reads, whatever the batch was before.
import type { TrainerState } from "../runtime/trainer_state.ts";

/** What was read up to a step; parts of the state that a checkpoint has. */
export type Consumed = Pick<TrainerState, "order" | "samples" | "tokens">;

/** What is read here of the variables of train.ts. */
export type BatchConfig = { batch_size: number; gradient_accumulation_steps: number; block_size: number };

/** Tokens of a step, of all ranks. */
export function tokensPerStep(config: BatchConfig): number {
  return config.batch_size * config.gradient_accumulation_steps * config.block_size;
}

/** What a run that goes on has read. Of the windows in another order, of other data for example, it has read none. */
export function consumedBefore(saved: TrainerState | undefined, order: string): Consumed {
  return { order, samples: saved?.order === order ? saved.samples : 0, tokens: saved?.tokens ?? 0 };
}

/** And so many steps later. */
export function consume(before: Consumed, steps: number, config: BatchConfig): Consumed {
  const { order, samples, tokens } = before;
  return {
    order,
    samples: samples + steps * config.batch_size * config.gradient_accumulation_steps,
    tokens: tokens + steps * tokensPerStep(config),
  };
}
