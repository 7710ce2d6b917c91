// The messages of a Worker, typed for modules that are checked without the types of Workers.
import { explain, mistakeOf, UserError } from "./errors.ts";

/** The Worker that a module runs in, seen from within. */
export type WorkerScope = {
  /** Called with each message from the thread that made the Worker. */
  onmessage: ((event: MessageEvent) => void) | null;
  /** Sends a message to that thread; buffers in transfer are moved to it. */
  postMessage(message: unknown, transfer?: Transferable[]): void;
};

/** The Worker that this runs in. Throws on the main thread. */
export function workerScope(): WorkerScope {
  const scope: object = globalThis;
  if (!isWorkerScope(scope)) throw new Error("internal: this module runs in a Worker only");
  return scope;
}

function isWorkerScope(scope: object): scope is WorkerScope {
  return "postMessage" in scope && "onmessage" in scope;
}

/** What failed in a Worker, as a message to the thread that made it. */
export type Failed = { error: string; isUserError: boolean };

/** The message of an error: in the words of mistakeOf(), or of explain() where it is a bug. */
export function failedBy(error: unknown): Failed {
  const mistake = mistakeOf(error);
  return { error: mistake ?? explain(error), isUserError: mistake !== undefined };
}

/** The error of such a message: a UserError, or one that is a bug. */
export function errorOf({ error, isUserError }: Failed): Error {
  return isUserError ? new UserError(error) : new Error(error);
}

/** Gives a Worker an order and waits for its answer. Throws errorOf() of what failed in it, an Error where it ended otherwise. */
export async function ask<Answer extends object>(
  worker: Worker,
  order: object,
  transfer: Transferable[] = [],
): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer | Failed>();
  worker.onmessage = ({ data }: MessageEvent<Answer | Failed>) => resolve(data);
  worker.onmessageerror = () => reject(new Error("The answer of a Worker cannot be read"));
  worker.onerror = (event) => {
    event.preventDefault();
    reject(new Error(`A Worker failed: ${event.message}`));
  };
  worker.postMessage(order, transfer);
  const answer = await promise;
  if (isFailed(answer)) throw errorOf(answer);
  return answer;
}

function isFailed(answer: object): answer is Failed {
  return "error" in answer;
}
