// The trainer's side of the server that runs beside it. Whatever happens to the server, training goes on.
import { report } from "./refusal.ts";
import type { Said, Told } from "./worker.ts";

const STOP_MS = 1000; // for last answers

/** A server in a Worker. Declare it with `await using` before the log of the run, so that it sees the run end. */
export class ServerBeside implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #stopped = Promise.withResolvers<void>();
  #tell: (line: string) => void = () => {};

  /** Starts the Worker, which loads its modules while the caller goes on. */
  constructor(script: URL = new URL("./worker.ts", import.meta.url)) {
    this.#worker = new Worker(script, { type: "module" });
    // What is thrown in these would end the trainer.
    this.#worker.onmessage = ({ data }: MessageEvent<Said>) => this.#hear(data);
    this.#worker.onmessageerror = () => this.#fail("The server said what cannot be read");
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(event.message);
    };
  }

  /** Serves a run directory on a port of this machine. tell gets the line that says where. */
  serve(dir: string, port: number, tell: (line: string) => void): void {
    this.#tell = tell;
    this.#say({ kind: "serve", dir, port });
  }

  /** Lets those who watch see the end, then ends the Worker. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#tell = () => {}; // the log may be closed
    this.#say({ kind: "stop" });
    const impatience = setTimeout(this.#stopped.resolve, STOP_MS);
    await this.#stopped.promise;
    clearTimeout(impatience);
    this.#worker.terminate();
  }

  #hear(said: Said): void {
    if (said.kind === "serving") this.#tellWhere(said.url);
    if (said.kind === "failed") this.#fail(said.message);
    if (said.kind === "stopped") this.#stopped.resolve();
  }

  #tellWhere(url: string): void {
    try {
      this.#tell(`serving at ${url}`);
    } catch (error) {
      report(
        `warning: Cannot log that the server is at ${url}: ${(error as Error).message}; training goes on`,
      );
    }
  }

  #fail(message: string): void {
    report(`warning: ${message}; training goes on without the server`);
    this.#stopped.resolve();
  }

  #say(what: Told): void {
    this.#worker.postMessage(what);
  }
}
