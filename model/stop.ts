// Ending a run early and in good order, when a signal asks for it.
import { ignoresHangup, synchronize } from "../ffi/library.ts";
import { Ranks } from "../dist/ranks.ts";

// SIGUSR1 and SIGUSR2 are for Slurm, before time is up; SIGHUP comes when a terminal is closed.
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const;
const LOOK_MS = 200; // mpirun leaves a second between SIGTERM and SIGKILL

/** A wish to end the run. Declare it with `using`: what comes after the run has its signals to itself. */
export class Stop implements Disposable {
  /** The signal that asked for it; "" as long as none has. */
  asked = "";
  #looked_ms = performance.now();
  #listeners: [Deno.Signal, () => void][] = [];

  /** Does not listen yet. */
  constructor(readonly ranks: Ranks = Ranks.alone()) {}

  /** Listens from now on. The first signal asks, the second one takes its usual effect at once, whatever runs then. */
  listen(): void {
    surviveHangup();
    for (const signal of SIGNALS) {
      if (signal === "SIGHUP" && survivesHangup) continue;
      const listener = () => {
        this.asked = signal;
        this[Symbol.dispose]();
        say(`${signal}: stopping after this micro-step; once more stops at once`);
      };
      Deno.addSignalListener(signal, listener);
      this.#listeners.push([signal, listener]);
    }
  }

  /** Listens no more. */
  [Symbol.dispose](): void {
    for (const [signal, listener] of this.#listeners) Deno.removeSignalListener(signal, listener);
    this.#listeners = [];
  }

  /** What this rank says in stepTogether() of a step whose micro-steps it has all done, or not. */
  wish(isWhole: boolean): number {
    return this.asked === "" ? 0 : isWhole ? 1 : Infinity;
  }

  /** Whether all ranks end after a step that they did with `stopping` of them asked; one on its own need not wait for that. */
  isAgreed({ stopping }: { stopping: number }): boolean {
    return stopping > 0 || this.ranks.isAlone && this.asked !== "";
  }

  /** look() of all ranks together: whether any of them was asked. */
  async agree(): Promise<boolean> {
    return (await this.ranks.sum(Number(await this.look())))[0]! > 0;
  }

  /** Lets signals and timers in where work takes long, as on a CPU: five times a second. Returns whether one has asked. */
  async look(): Promise<boolean> {
    if (performance.now() - this.#looked_ms < LOOK_MS) return this.asked !== "";
    await synchronize();
    this.#looked_ms = performance.now();
    return this.asked !== "";
  }
}

let survivesHangup: boolean | undefined;

/**
 * Keeps a process for good that was told to survive its terminal, by nohup for example: Deno forgets that with the first listener,
 * and would end it on SIGHUP without one. `deno task` forgets it before it starts a process.
 */
function surviveHangup(): void {
  if (survivesHangup !== undefined) return;
  survivesHangup = ignoresHangup();
  if (survivesHangup) Deno.addSignalListener("SIGHUP", () => {});
}

function say(text: string): void {
  try {
    console.error(text);
  } catch {
    // the terminal is gone: the run is stopping because of that
  }
}
