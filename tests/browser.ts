// Opens the dashboard in Chromium, and looks at what it shows: texts, pixels, colours.
/// <reference lib="dom" />
import { assertEquals } from "@std/assert";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { type AppOptions, createApp } from "../serve/app.ts";
import { listen } from "../serve/listen.ts";

/** The browser, undefined where none is installed. */
export const CHROMIUM: string | undefined = ["chromium", "chromium-browser", "google-chrome"]
  .map((name) => `/usr/bin/${name}`).find(exists);

let browser: Browser;
Deno.test.beforeAll(async () => {
  if (CHROMIUM) browser = await launch(CHROMIUM);
});
Deno.test.afterAll(() => browser?.close());

/** Starts the browser. */
export async function launch(executablePath: string): Promise<Browser> {
  Deno.env.set("__IS_WSL_TEST__", "1"); // else importing it looks at /proc/sys, which Deno shows to no one
  const { chromium } = await import("playwright-core");
  const args = Deno.uid() === 0 ? ["--no-sandbox"] : []; // root has no sandbox
  return await chromium.launch({ executablePath, args });
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** A server on a port of its own, until the end of the block. */
export function serve(options: AppOptions, port = 0): AsyncDisposable & { url: string } {
  const { url, close } = listen(createApp(options), { hostname: "127.0.0.1", port, flag: "--port" });
  return { url, [Symbol.asyncDispose]: close };
}

/** A page that is open until the end of the block; the console must hold no error then, but for expected ones. */
export class View implements AsyncDisposable {
  readonly #errors: string[] = [];
  #bytes = 0;

  constructor(readonly page: Page, readonly expected: RegExp | undefined) {
    page.on("console", (message) => message.type() === "error" && this.#errors.push(message.text()));
    page.on("pageerror", (error) => this.#errors.push(error.stack ?? error.message));
  }

  /** Bytes that came over the network, headers and all, as they were sent. */
  transferred(): number {
    return this.#bytes;
  }

  async open(url: string): Promise<void> {
    const session = await this.page.context().newCDPSession(this.page);
    await session.send("Network.enable");
    session.on("Network.loadingFinished", ({ encodedDataLength }) => this.#bytes += encodedDataLength);
    await this.page.goto(url);
  }

  /** Waits until the loss chart ends with a step. */
  async drawn(step: number): Promise<void> {
    await this.page.waitForFunction(
      (end) => document.querySelector("[data-chart=loss] .plot")?.getAttribute("aria-label")?.includes(end),
      ` at step ${step}, lowest`,
      { timeout: 10_000 },
    );
  }

  /** The text of an element. */
  async text(id: string): Promise<string> {
    return await this.page.locator(`#${id}`).innerText();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.page.context().close();
    assertEquals(this.#errors.filter((error) => !this.expected?.test(error)), []);
  }
}

/** Opens the dashboard. expected: console messages that belong to the test. */
export async function open(
  url: string,
  options: BrowserContextOptions & { expected?: RegExp } = {},
): Promise<View> {
  const { expected, ...context } = options;
  const page = await (await browser.newContext({ viewport: { width: 1280, height: 900 }, ...context }))
    .newPage();
  const view = new View(page, expected);
  await view.open(url);
  return view;
}

/** How many pixels of a chart have nearly the colour of a CSS variable. */
export async function painted(page: Page, chart: string, variable: string): Promise<number> {
  return await page.evaluate(([chart, color]) => {
    const canvas = document.querySelector<HTMLCanvasElement>(`[data-chart=${chart}] canvas`)!;
    const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
      const near = color.every((value, k) => Math.abs(data[i + k]! - value) < 8);
      if (near && data[i + 3]! > 200) count++;
    }
    return count;
  }, [chart, await rgb(page, variable)] as const);
}

/** The pixels of a chart, to be compared. */
export async function picture(page: Page, chart: string): Promise<string> {
  return await page.evaluate((chart) => {
    return document.querySelector<HTMLCanvasElement>(`[data-chart=${chart}] canvas`)!.toDataURL();
  }, chart);
}

/** What stands in the legend of a chart. */
export async function legend(page: Page, chart: string): Promise<string[]> {
  return (await page.locator(`[data-chart=${chart}] .legend button`).allInnerTexts()).map((text) =>
    text.replace(/\s+/g, " ").trim()
  );
}

/** A CSS variable as red, green and blue, 0 to 255. */
export async function rgb(page: Page, variable: string): Promise<number[]> {
  return await page.evaluate((variable) => {
    const probe = document.body.appendChild(document.createElement("span"));
    probe.style.color = `var(--${variable})`;
    const values = getComputedStyle(probe).color.match(/\d+/g)!.slice(0, 3).map(Number);
    probe.remove();
    return values;
  }, variable);
}

/** What axe-core finds wrong with a page for people who cannot see or point, as "rule: element". */
export async function axe(page: Page): Promise<string[]> {
  const { default: source } = await import("axe-core/axe.min.js", { with: { type: "text" } });
  await page.evaluate(source);
  return await page.evaluate(async () => {
    type Violation = { id: string; nodes: { target: string[] }[] };
    const { run } = Reflect.get(globalThis, "axe") as { run: () => Promise<{ violations: Violation[] }> };
    const { violations } = await run();
    return violations.flatMap(({ id, nodes }) => nodes.map(({ target }) => `${id}: ${target.join(" ")}`));
  });
}

// ---- colours

/**
 * Texts of the page whose colour is too near to what is behind them, as "ratio text". Runs in the page. 4.5 to 1 is what WCAG
 * asks of text of normal size.
 */
export function faintTexts(): string[] {
  const parse = (color: string) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const behind = (element: Element | null): number[] => {
    if (!element) return [255, 255, 255];
    const color = parse(getComputedStyle(element).backgroundColor);
    return color[3] === 0 ? behind(element.parentElement) : color;
  };
  const luminance = (color: number[]) => {
    const [r, g, b] = color.slice(0, 3).map((v) =>
      v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4
    );
    return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
  };
  const found: string[] = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE)
      .map(({ textContent }) => textContent!.trim()).join("");
    if (!text || !element.checkVisibility()) continue;
    const levels = [parse(getComputedStyle(element).color), behind(element)].map(luminance).sort((a, b) =>
      b - a
    );
    const ratio = (levels[0]! + 0.05) / (levels[1]! + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${text}`);
  }
  return found;
}

/** 0 to 1, from 0 to 255. */
function linear(value: number): number {
  const v = value / 255;
  return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
}

/** The contrast of two colours, 1 to 21, as WCAG defines it. */
export function contrast(a: number[], b: number[]): number {
  const [high, low] = [a, b].map((color) => {
    const [r, g, b] = color.map(linear);
    return 0.2126 * r! + 0.7152 * g! + 0.0722 * b! + 0.05;
  }).sort((x, y) => y - x);
  return high! / low!;
}

/** How people see: matrices on linear red, green and blue, from Machado, Oliveira and Fernandes (2009), severity 1. */
export const SIGHTS: Record<string, number[][]> = {
  normal: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  protanopia: [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [
    -0.003882,
    -0.048116,
    1.051998,
  ]],
  deuteranopia: [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [
    -0.01182,
    0.04294,
    0.968881,
  ]],
  tritanopia: [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [
    0.004733,
    0.691367,
    0.3039,
  ]],
};

/** A colour as somebody sees it, linear. */
export function see(sight: number[][], color: number[]): number[] {
  const light = color.map(linear);
  return sight.map((row) =>
    Math.min(1, Math.max(0, row.reduce((sum, weight, i) => sum + weight * light[i]!, 0)))
  );
}

/** Linear red, green and blue in a space where distances are as people see them (Ottosson's Oklab). */
export function oklab([r = 0, g = 0, b = 0]: number[]): number[] {
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}
