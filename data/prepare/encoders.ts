// Encodes blocks on several threads. Blocks go to the workers in turn and every worker answers in order, so that the results
// are the same for any number of workers.
import { errorOf } from "../../base/worker_scope.ts";
import type { Block } from "../read/block.ts";
import { BlockEncoder, type Encoded, type SplitOptions } from "./encode.ts";
import type { Answer, Start } from "./encode_worker.ts";
import type { Tokenizer } from "../tokenizer.ts";

/** Text that may wait for each worker, so that none runs dry while the reader unpacks the next stretch of a file. */
const WAITING_BYTES = 8 << 20;

/** Something that encodes blocks. Declare it with `using`, which ends the workers. */
export type Encoders = Disposable & {
  /** Bytes of text that may be on their way through encode() before the caller should wait for a result. */
  readonly room: number;
  /** Encodes a block, whose buffers are gone afterwards. Rejects with a UserError if the tokenizer throws one. */
  encode(block: Block): Promise<Encoded>;
};

/** Encodes on this thread. */
export function oneEncoder(tokenizer: Tokenizer, options: SplitOptions): Encoders {
  const encoder = new BlockEncoder(tokenizer, options);
  return {
    room: 0,
    encode: (block) => Promise.resolve(encoder.encode(block)),
    [Symbol.dispose]() {},
  };
}

/**
 * Encodes in workers, each of which starts with the first block that it gets, or at once.
 *
 * @param tokenizer What openTokenizer() takes.
 * @param atOnce For much text: all workers open the tokenizer while the caller still opens what it reads.
 */
export function workerEncoders(
  tokenizer: string,
  options: SplitOptions,
  n_workers: number,
  atOnce = false,
): Encoders {
  const start = () => new EncodeWorker({ tokenizer, options });
  const workers: EncodeWorker[] = atOnce ? Array.from({ length: n_workers }, start) : [];
  let blocks = 0;
  return {
    room: n_workers * WAITING_BYTES,
    encode(block) {
      const worker = workers[blocks++ % n_workers] ??= start();
      return worker.encode(block);
    },
    [Symbol.dispose]() {
      for (const worker of workers) worker.end();
    },
  };
}

class EncodeWorker {
  readonly #worker = new Worker(new URL("./encode_worker.ts", import.meta.url), { type: "module" });
  readonly #waiting: PromiseWithResolvers<Encoded>[] = []; // one for each block without an answer, oldest first
  #failure: Error | undefined;

  constructor(start: Start) {
    // What is thrown in these would end the program without the last commit.
    this.#worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      const answer = this.#waiting.shift();
      if ("encoded" in data) answer?.resolve(data.encoded);
      else answer?.reject(errorOf(data));
    };
    this.#worker.onmessageerror = () => this.#fail("it said what cannot be read");
    this.#worker.onerror = (event) => { // such as a worker that ran out of memory: there will be no more answers
      event.preventDefault();
      this.#fail(event.message);
    };
    this.#worker.postMessage(start);
  }

  encode({ text, ends }: Block): Promise<Encoded> {
    const answer = Promise.withResolvers<Encoded>();
    answer.promise.catch(() => {}); // it may fail before the caller comes to wait for it
    if (this.#failure) {
      answer.reject(this.#failure);
      return answer.promise;
    }
    this.#waiting.push(answer);
    this.#worker.postMessage({ text, ends }, [text.buffer, ends.buffer]);
    return answer.promise;
  }

  end(): void {
    this.#worker.terminate();
  }

  #fail(reason: string): void {
    this.#failure = new Error(`An encoder failed: ${reason}`);
    for (const { reject } of this.#waiting.splice(0)) reject(this.#failure);
  }
}
