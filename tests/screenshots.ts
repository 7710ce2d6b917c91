// deno task screenshots: draws docs/dashboard.png and docs/dashboard-dark.png, the dashboard of a made-up run, in Chromium.
// --all=DIRECTORY draws every state there is instead, at three widths, light and dark, for somebody to look at.
/// <reference lib="dom" />
import type { Browser } from "playwright-core";
import { runMain, UserError } from "../base/errors.ts";
import { help, readFlags } from "../base/flags.ts";
import type { StepMetrics } from "../runtime/metrics.ts";
import { FakeRun, metricsAt } from "../serve/testing.ts";
import { CHROMIUM, launch, serve } from "./browser.ts";

const defaults = {
  all: "", // a directory for the pictures of every state; "" = those of docs
};

const STEPS = 3000, WIDTHS = [390, 900, 1440], THEMES = ["light", "dark"] as const;

async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const source = Deno.readTextFileSync(new URL(import.meta.url));
    return console.log(help("Draw the dashboard for docs", defaults, source));
  }
  const { all } = { ...defaults, ...readFlags(args, defaults) };
  if (!CHROMIUM) {
    throw new UserError("Cannot draw the dashboard: there is no Chromium; on Debian: apt install chromium");
  }
  const browser = await launch(CHROMIUM);
  if (all) Deno.mkdirSync(all, { recursive: true });
  for (const [state, make] of Object.entries(STATES)) {
    if (!all && state !== "running") continue;
    const runs = make();
    const { url, [Symbol.asyncDispose]: close } = serve({ runs: runs.map((run) => run.run()) });
    const [first, ...others] = runs.map(({ dir }) => dir.replace(/.*\//, ""));
    const query = new URLSearchParams([["run", first!], ...others.map((name) => ["compare", name])]);
    for (const theme of THEMES) {
      const draw = (path: string, width: number) =>
        picture(browser, `${url}?${query}`, path, width, theme, all !== "");
      if (!all) await draw(`docs/dashboard${theme === "dark" ? "-dark" : ""}.png`, 1280);
      else for (const width of WIDTHS) await draw(`${all}/${state}-${width}-${theme}.png`, width);
    }
    await close();
    runs.forEach((run) => run[Symbol.dispose]());
  }
  await browser.close();
}

/** Writes one picture of a page: of its first screen, or of all of it with the list of runs open. */
async function picture(
  browser: Browser,
  url: string,
  path: string,
  width: number,
  colorScheme: typeof THEMES[number],
  fullPage: boolean,
): Promise<void> {
  const viewport = { width, height: fullPage && width < 500 ? 844 : 960 };
  const page = await browser.newPage({ viewport, colorScheme, reducedMotion: "reduce" });
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#health")?.textContent !== "");
  if (fullPage && await page.locator("#overview").isVisible()) await page.click("#overview summary");
  await page.waitForTimeout(1000); // for the history, and for a last drawing
  await page.screenshot({ path, fullPage });
  const height = await page.evaluate(() => document.scrollingElement!.scrollHeight);
  const { size } = Deno.statSync(path);
  console.log(
    `${path}: ${(size / 1000).toFixed(0)} kB; the page is ${
      (height / viewport.height).toFixed(1)
    } screens long`,
  );
  await page.close();
}

// ---- made-up runs

const STATES: Record<string, () => FakeRun[]> = {
  running: () => [train("kjv", 2160)],
  finished: () => [ended(train("kjv", STEPS))],
  failed:
    () => [failed(train("kjv", 1200), "Cannot save runs/kjv/checkpoints/step_001200: the disk is full")],
  stopped: () => [ended(train("kjv", 1200))],
  lost: () => [train("kjv", 1203, { lostFrom: 1201 })],
  several: () => [
    train("kjv", 2160),
    ended(train("kjv-wide", STEPS, { config: { n_layer: 2, batch_size: 16 } })),
    failed(
      train("kjv-fast", 900, { config: { learning_rate: 0.01 }, slower: 0.2 }),
      "the process was killed",
    ),
  ],
  empty: () => [train("kjv", 0)],
};

/** A run that is still running. lostFrom: the step from which its loss is not finite; slower: what is added to its loss. */
function train(name: string, steps: number, { config = {}, lostFrom = Infinity, slower = 0 } = {}): FakeRun {
  const metrics = (step: number) => {
    const lost = { loss: null as never, grad_norm: null as never, skipped: step - lostFrom + 1 }; // as JSON has NaN
    const made = measured(step);
    if (step >= lostFrom) return { ...made, ...lost };
    const { val_loss } = made;
    return {
      ...made,
      loss: made.loss + slower,
      ...val_loss !== undefined && { val_loss: val_loss + slower },
    };
  };
  const run = new FakeRun(0, {
    name,
    config: { max_iters: STEPS, n_layer: 4, batch_size: 8, ...config },
    metrics,
  });
  run.start(0, {
    device: `cpu (as asked): AMD EPYC, 2 threads, avx512, GEMM: onednn /usr/lib/libdnnl.so.2.6`,
  });
  run.steps(1, steps);
  for (let step = 250; step <= steps; step += 250) run.sample(step, SAMPLE);
  run.append("log.txt", `run ${name}\n${LINES.slice(0, Math.floor(steps / 500)).join("")}`);
  return run;
}

function ended(run: FakeRun): FakeRun {
  run.stop();
  return run;
}

function failed(run: FakeRun, why: string): FakeRun {
  run.fail(new UserError(why));
  return run;
}

/** What a small model measures that trains on prose: noise, a spike and a slow step. */
function measured(step: number): StepMetrics {
  const { val_loss: _, val_bpb: __, ...plain } = metricsAt(step);
  const loss = 1.42 + 1.9 * Math.exp(-step / 600) + 2.1 * Math.exp(-step / 90), isSpike = step === 1733;
  const val_loss = loss + 0.04 + step / 60_000 + 0.01 * noise(step, 4);
  const speed = 28_000 * (1 + 0.03 * noise(step, 1)) * (step === 1210 ? 0.06 : 1);
  return {
    ...plain,
    loss: loss + 0.06 * noise(step, 2) + (isSpike ? 1.5 : 0),
    lr: 3e-3 * Math.min(1, step / 100) * (0.55 + 0.45 * Math.cos(Math.PI * step / STEPS)),
    grad_norm: (0.6 + 2 * Math.exp(-step / 60)) * (1 + 0.2 * noise(step, 3)) + (isSpike ? 21 : 0),
    tokens_per_sec: speed,
    step_ms: 2048e3 / speed,
    mfu: 0.46 * speed / 28_000,
    memory_bytes: 299e6 + 2e6 * Math.min(1, step / 250),
    ...step % 250 === 0 && { val_loss, val_bpb: val_loss / Math.LN2 / 2.2 },
  };
}

/** A number between -1 and 1, always the same for a step and a kind. */
function noise(step: number, kind: number): number {
  const x = Math.sin(12.9898 * step + 78.233 * kind) * 43_758.5453;
  return 2 * (x - Math.floor(x)) - 1;
}

const SAMPLE =
  `And the LORD said unto Moses, Behold, I have given thee the land, and thou shalt be with the people.

And it came to pass in the morning, that the children of Israel went up against them, and smote them with the edge of the sword.`;

const LINES = Array.from(
  { length: STEPS / 500 },
  (_, i) =>
    `step ${500 * (i + 1)}/${STEPS} | loss ${measured(500 * (i + 1)).loss.toFixed(4)} | 28,001 tok/s\n`,
);

if (import.meta.main) await runMain(main);
