// Ending a run early and in good order, when a signal asks for it.
import { synchronize } from "../ffi/library.ts";
import { Ranks } from "../dist/ranks.ts";

// SIGUSR1 and SIGUSR2 are for Slurm, before time is up; SIGHUP comes when a terminal is closed.
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const;
const LOOK_MS = 1000;

/** A wish to end the run. */
export class Stop {
  /** The signal that asked for it; "" as long as none has. */
  asked = "";
  #looked_ms = performance.now();

  /** Listens from now on. The first signal asks, the second one takes its usual effect at once, whatever runs then. */
  constructor(readonly ranks: Ranks = Ranks.alone()) {
    const survivesHangup = ignoresHangup(); // asked first: Deno forgets it with the first listener
    if (survivesHangup) Deno.addSignalListener("SIGHUP", () => {});
    const signals = SIGNALS.filter((signal) => signal !== "SIGHUP" || !survivesHangup);
    const listeners = signals.map((signal) => () => {
      this.asked = signal;
      signals.forEach((other, i) => Deno.removeSignalListener(other, listeners[i]!));
      say(`${signal}: stopping after this step; once more stops at once`);
    });
    signals.forEach((signal, i) => Deno.addSignalListener(signal, listeners[i]!));
  }

  /** Whether all ranks end after a step that they did with `stopping` of them asked; one on its own need not wait for that. */
  isAgreed({ stopping }: { stopping: number }): boolean {
    return stopping > 0 || this.ranks.isAlone && this.asked !== "";
  }

  /** look() of all ranks together: whether any of them was asked. */
  async agree(): Promise<boolean> {
    return (await this.ranks.sum(Number(await this.look())))[0]! > 0;
  }

  /** Lets signals and timers in where work takes long, as on a CPU: once a second. Returns whether one has asked. */
  async look(): Promise<boolean> {
    if (performance.now() - this.#looked_ms < LOOK_MS) return this.asked !== "";
    await synchronize();
    this.#looked_ms = performance.now();
    return this.asked !== "";
  }
}

/** Whether this process was told to survive its terminal, by nohup for example. Not known outside of Linux. */
function ignoresHangup(): boolean {
  try {
    const status = Deno.readTextFileSync("/proc/self/status");
    return /^SigIgn:\s*[0-9a-f]+[13579bdf]$/m.test(status); // an odd mask: SIGHUP is signal 1
  } catch {
    return false;
  }
}

function say(text: string): void {
  try {
    console.error(text);
  } catch {
    // the terminal is gone: the run is stopping because of that
  }
}
