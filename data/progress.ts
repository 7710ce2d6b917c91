// How far prepare is: a bar when stderr is a terminal, a line every few seconds when it is a file or a pipe.
import { ProgressBar } from "@std/cli/unstable-progress-bar";

const LINE_MS = 5_000;
const YIELD_MS = 200; // the bar's timer runs only when the event loop gets a turn

/** Told about work as it gets done. */
export interface Progress {
  /** bytes of input read and tokens written since the last call. */
  advance(bytes: number, tokens: number): Promise<void>;
  stop(): Promise<void>;
}

/** Shows progress on stderr until stop(). */
export function showProgress(totalBytes: number): Progress {
  return Deno.stderr.isTerminal() ? bar(totalBytes) : lines(totalBytes);
}

function bar(totalBytes: number): Progress {
  let tokens = 0, yielded = 0;
  const progressBar = new ProgressBar({
    max: totalBytes,
    clear: true,
    formatter: ({ styledTime, progressBar, styledData }) =>
      `[${styledTime}] [${progressBar}] [${styledData}] ${tokens.toLocaleString("en-US")} tokens`,
  });
  return {
    async advance(bytes, newTokens) {
      progressBar.value += bytes;
      tokens += newTokens;
      if (performance.now() - yielded < YIELD_MS) return;
      await new Promise((resolve) => setTimeout(resolve));
      yielded = performance.now();
    },
    stop: () => progressBar.stop(),
  };
}

function lines(totalBytes: number): Progress {
  let bytes = 0, tokens = 0, shown = performance.now();
  return {
    advance(newBytes, newTokens) {
      bytes += newBytes;
      tokens += newTokens;
      if (performance.now() - shown > LINE_MS) {
        shown = performance.now();
        const percent = Math.floor(Math.min(1, bytes / totalBytes) * 100);
        console.error(
          `${percent}% of ${(totalBytes / 1e6).toFixed(1)} MB, ${tokens.toLocaleString("en-US")} tokens`,
        );
      }
      return Promise.resolve();
    },
    stop: () => Promise.resolve(),
  };
}
