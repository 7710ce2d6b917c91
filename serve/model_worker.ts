// The Worker that holds a model: the server answers others while it computes. Its first message names the model, every other
// one is a text to go on with. It answers with tokens.
import { explain, UserError } from "../base/errors.ts";
import { workerScope } from "../base/worker_scope.ts";
import { loadModel } from "../model/checkpoint.ts";
import { openDevice } from "../model/device.ts";
import { generate, type GenerateOptions } from "../model/generate.ts";

/** The first message. */
export type Start = { checkpoint: string; device: string; stop: SharedArrayBuffer };

/** A text to go on with, as tokens. Texts are numbered from 1. */
export type Job = { number: number; prompt: number[]; options: GenerateOptions };

/** What the Worker says. A text of a UserError is meant for the person at the terminal. */
export type Said =
  | { kind: "ready"; block_size: number; vocab_size: number }
  | { kind: "token"; token: number }
  | { kind: "end" } // of the text: the model ended it, it is long enough, or it was stopped
  | { kind: "error"; message: string; isUserError: boolean };

const worker = workerScope();
let write: (job: Job) => void;

worker.onmessage = ({ data }: MessageEvent<Start>) => {
  attempt(() => {
    openDevice(data.device);
    const { model, config } = loadModel(data.checkpoint);
    const stopped = new Int32Array(data.stop); // a busy Worker reads no messages, but this it sees
    write = ({ number, prompt, options }) => {
      for (const token of generate(model, config, prompt, options)) {
        if (Atomics.load(stopped, 0) >= number) break;
        say({ kind: "token", token });
      }
      say({ kind: "end" });
    };
    say({ kind: "ready", block_size: config.block_size, vocab_size: config.vocab_size });
  });
  worker.onmessage = ({ data }: MessageEvent<Job>) => attempt(() => write(data));
};

function attempt(act: () => void): void {
  try {
    act();
  } catch (error) {
    const isUserError = error instanceof UserError;
    say({ kind: "error", message: isUserError ? error.message : explain(error), isUserError });
  }
}

function say(what: Said): void {
  worker.postMessage(what);
}
