// The dashboard as a person meets it: a real server, run directories as trainers write them, and Chromium without a window.
/// <reference lib="dom" />
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { Model } from "../serve/model.ts";
import { FakeRun, metricsAt } from "../serve/testing.ts";
import {
  axe,
  CHROMIUM,
  contrast,
  faintTexts,
  legend,
  oklab,
  open,
  painted,
  picture,
  rgb,
  see,
  serve,
  SIGHTS,
} from "./browser.ts";
import { chatModelDirectory, modelDirectory } from "./testing.ts";

if (!CHROMIUM) {
  console.log("ignored for want of Chromium (Debian: chromium): the tests of tests/dashboard_test.ts");
}
const CHARTS = ["loss", "grad_norm", "lr", "tokens_per_sec", "mfu", "memory_bytes", "skipped"];
const TOKEN = "0123456789abcdef";

/** A test in which pages may be opened. The browser lives longer than a test, and so do its promises. */
function test(name: string, body: () => Promise<void>): void {
  Deno.test({ name, fn: body, ignore: !CHROMIUM, sanitizeOps: false, sanitizeResources: false });
}

// ---- what a run shows

test("the dashboard draws a curve in every chart", async () => {
  using run = new FakeRun(300);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(300);
  for (const key of CHARTS) assert(await painted(view.page, key, "run-1") > 100, `${key} is blank`);
  assert(await painted(view.page, "loss", "val") > 50, "no validation curve");
  assertEquals(await painted(view.page, "loss", "run-2"), 0); // no other run
  assert(!await view.page.isVisible("[data-chart=task_acc_norm]"), "a chart of tasks without any");
});

test("the dashboard draws the scores on tasks where a run has some", async () => {
  using run = new FakeRun(300, {
    metrics: (step) => ({ ...metricsAt(step), ...step % 50 === 0 && { task_acc_norm: 0.3 + step / 1000 } }),
  });
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(300);
  assert(await painted(view.page, "task_acc_norm", "run-1") > 100);
});

test("the dashboard says how the run is, how fast it is and when it ends", async () => {
  using run = new FakeRun(300);
  run.start(300);
  run.sample(300, "Once upon a time");
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(300);
  assertEquals(await view.text("state"), "Running");
  assertEquals(await view.text("device"), "cpu: a processor, 2 threads, avx2 · 0.8M parameters");
  assertEquals(await view.text("step"), "300");
  assertEquals(await view.text("of"), "of 1,000 steps · 30.0%");
  assertEquals(await view.text("speed"), "20,480");
  assertEquals(await view.text("speed-note"), "100 ms a step");
  assertEquals(await view.text("mfu"), "50.0%");
  assertMatch(await view.text("eta"), /^1 min \d+ s left$/); // 700 steps of 0.1 s
  assertMatch(await view.text("ends"), /^ends \d\d:\d\d$/);
  assertMatch(await view.text("loss-note"), /^↓ \d+\.\d% in 30 steps$/);
  const best = 1.1 + 4 / Math.sqrt(300);
  assertEquals(
    await view.text("val-loss-note"),
    `best ${best.toFixed(4)} at step 300\n${(best / 3).toFixed(4)} bits a byte`,
  );
  assertEquals(await view.text("sample"), "Once upon a time");
  assertMatch(
    await view.text("health"),
    /^Healthy: loss is falling, \d\.\d% in 30 steps; validation loss is 0\.1\d above training loss; the gradient norm is steady; speed is near its median of 20,480 tokens a second; 70 s left$/,
  );
  assertMatch(await view.page.title(), /^1\.2309 · 30\.0% · fake · loam$/);
});

test("the dashboard says why a run failed, and that it goes on", async () => {
  using run = new FakeRun(300);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(300);
  run.start(300);
  await view.page.getByText("Running", { exact: true }).waitFor();
  run.fail(new UserError("Cannot save: the disk is full"));
  await view.page.getByText("Failed", { exact: true }).waitFor();
  const warning = "Failed after step 300 of 1,000: Cannot save: the disk is full; no checkpoint was saved";
  assertEquals(await view.text("health"), warning);
  run.start(300);
  await view.page.getByText("Running", { exact: true }).waitFor();
  assertMatch(await view.text("health"), /^Healthy: /);
});

test("the dashboard draws a run of 100,000 steps from 150 kB", async () => {
  using run = new FakeRun(100_000, { config: { max_iters: 200_000 } });
  const watched = run.run();
  await watched.refresh(); // as the server does at its start
  await using server = serve({ runs: [watched] });
  await using view = await open(server.url);
  await view.drawn(100_000);
  assert(view.transferred() < 150_000, `${view.transferred()} bytes`);
});

test("the dashboard asks for single steps where a long run is zoomed into", async () => {
  using run = new FakeRun(20_000);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  const { page } = view, place = page.locator("[data-chart=loss] .place");
  await view.drawn(20_000);
  await page.focus("[data-chart=loss] .plot");
  await page.keyboard.press("ArrowLeft");
  for (let i = 0; i < 6; i++) await page.keyboard.press("+"); // 20,000 / 2^6 = 312 steps
  await page.waitForTimeout(1000);
  for (const step of ["19,999", "19,998", "19,997"]) {
    await page.keyboard.press("ArrowLeft");
    assertEquals(await place.textContent(), `step ${step}`);
  }
});

test("the dashboard paints within 300 ms", async () => {
  using run = new FakeRun(1000);
  await using server = serve({ runs: [run.run()] });
  await using view = await open("about:blank"); // starts the processes of a page
  const times: number[] = [];
  while (times.length < 5 && !times.some((ms) => ms <= 300)) { // other tests may take the machine meanwhile
    await view.page.goto(server.url);
    await view.drawn(1000);
    times.push(
      await view.page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]!.startTime),
    );
  }
  assert(Math.min(...times) <= 300, `${times.map(Math.round)} ms`);
});

test("the dashboard shows a run without a step, and its first steps when they come", async () => {
  using run = new FakeRun(0);
  run.start(0);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.page.getByText("No step yet").first().waitFor();
  assertEquals(await view.text("loss"), "–");
  run.steps(1, 1);
  await view.drawn(1);
  assert(await painted(view.page, "loss", "run-1") > 10, "a single step is a dot");
  assertEquals(await view.page.getByText("No step yet").first().isVisible(), false);
});

test("the dashboard warns of a loss that is not finite, of skipped steps, and of lines it cannot read", async () => {
  using run = new FakeRun(100);
  const lost = { step: 101, loss: null, lr: 1e-3, grad_norm: null, tokens: 206_848, tokens_per_sec: 20_480 };
  run.start(100);
  run.append(
    "metrics.jsonl",
    `garbage\n${JSON.stringify({ ...lost, step_ms: 100, mfu: null, memory_bytes: 1, skipped: 1 })}\n`,
  );
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.page.getByText("loss is not finite at step 101").waitFor();
  assertEquals([await view.text("loss"), await view.text("loss-note")], ["NaN", ""]);
  assertEquals(await view.text("mfu"), "–");
  assertStringIncludes(await view.text("health"), "1 update was skipped");
  assertStringIncludes(await view.text("health"), "1 line of metrics.jsonl could not be read");
  await view.drawn(100); // the history comes after what /stats says
  assert(await painted(view.page, "loss", "run-1") > 100, "what came before is there");
});

test("the dashboard leaves a gap where the loss was not finite, before the page was opened too", async () => {
  using run = new FakeRun(100);
  run.start(100);
  await using server = serve({ runs: [run.run()] });
  await using live = await open(server.url);
  await live.drawn(100);
  const lost = Array.from({ length: 50 }, (_, i) => ({ ...metricsAt(101 + i), loss: null, val_loss: null }));
  run.append("metrics.jsonl", lost.map((line) => JSON.stringify(line) + "\n").join(""));
  run.steps(151, 250);
  await live.drawn(250);
  await using later = await open(server.url);
  await later.drawn(250);
  assertEquals(await picture(later.page, "loss"), await picture(live.page, "loss"));
});

test("the dashboard marks values between steps that were not finite, where no line leads", async () => {
  using run = new FakeRun(0);
  const lines = Array.from(
    { length: 30 },
    (_, i) => ({ ...metricsAt(i + 1), ...(i % 2 === 1 && { loss: null }) }),
  );
  run.append("metrics.jsonl", lines.map((line) => JSON.stringify(line) + "\n").join(""));
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(29);
  assert(await painted(view.page, "loss", "run-1") > 100);
});

test("the dashboard leaves outliers beyond the edge, marks them there, and shows all after a click", async () => {
  const metrics = (step: number) => ({ ...metricsAt(step), grad_norm: step === 200 ? 80 : 1 + step % 5 });
  using run = new FakeRun(300, { metrics });
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  const { page } = view, chart = page.locator("[data-chart=grad_norm]");
  await view.drawn(300);
  assertEquals(await page.getByRole("button", { name: /^Show/ }).allInnerTexts(), ["Show up to 80"]);
  const before = await picture(page, "grad_norm");
  await chart.getByText("Show up to 80").click();
  assert(await picture(page, "grad_norm") !== before);
  await chart.getByText("Hide outliers").click();
  assertEquals(await picture(page, "grad_norm"), before);
  const { x, y, width } = (await chart.locator(".u-over").boundingBox())!;
  await page.mouse.click(x + width / 2, y + 4); // at the edge, where it is marked
  await chart.getByText("Hide outliers").waitFor();
});

test("the dashboard marks the steps that were not finite", async () => {
  const metrics = (step: number) => ({ ...metricsAt(step), ...(step === 60 && { loss: null as never }) });
  using run = new FakeRun(5000, { metrics }), well = new FakeRun(5000, { name: "well" });
  await using server = serve({ runs: [run.run(), well.run()] });
  await using view = await open(server.url);
  await view.drawn(5000);
  assert(await painted(view.page, "loss", "bad") > 20);
  assertEquals(await painted(view.page, "lr", "bad"), 0);
  await view.page.goto(`${server.url}?run=well`);
  await view.drawn(5000);
  assertEquals(await painted(view.page, "loss", "bad"), 0);
});

test("the dashboard says that a run was deleted, and lives on", async () => {
  using run = new FakeRun(50), other = new FakeRun(60, { name: "other" });
  await using server = serve({ runs: [run.run(), other.run()] });
  await using view = await open(server.url, { expected: /410/ });
  await view.drawn(50);
  Deno.removeSync(run.dir, { recursive: true });
  await view.page.getByText("The run fake is gone").waitFor({ timeout: 10_000 });
  await view.page.selectOption("#run", "other");
  await view.drawn(60);
  Deno.mkdirSync(run.dir); // which the end of the block removes
});

test("the dashboard offers the other runs where the one in the address is gone", async () => {
  using run = new FakeRun(60, { name: "other" });
  await using server = serve({ runs: [run.run()] });
  await using view = await open(`${server.url}?run=old`, { expected: /404/ });
  await view.page.getByText('There is no run "old" here').waitFor();
  assertEquals(await view.text("state"), "No run");
  await view.page.selectOption("#run", "other");
  await view.drawn(60);
});

// ---- live

test("the dashboard shows each step as it is done, and the curves grow", async () => {
  using run = new FakeRun(100);
  run.start(100);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(100);
  const before = await picture(view.page, "loss");
  for (const step of [109, 110]) {
    run.steps(step, step);
    await view.page.locator("#step", { hasText: String(step) }).waitFor();
    await view.drawn(step);
  }
  assertMatch(await view.text("val-loss-note"), /at step 110$/m);
  assert(await picture(view.page, "loss") !== before);
  run.sample(110, "A new text");
  await view.page.getByText("A new text").waitFor({ timeout: 2000 });
  run.stop();
  await view.page.locator("#state", { hasText: "Stopped" }).waitFor({ timeout: 2000 });
  assertMatch(await view.text("eta"), /^ended \d\d:\d\d$/);
});

test("the dashboard says that the server is gone, and shows what it missed when it is back", async () => {
  using run = new FakeRun(100);
  run.start(100);
  const first = serve({ runs: [run.run()] });
  await using view = await open(first.url, {
    expected: /ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY/,
  });
  await view.drawn(100);
  assertEquals(await view.text("connection"), "Connected");
  await first[Symbol.asyncDispose]();
  await view.page.getByText("Disconnected").waitFor();
  await view.page.getByText(/^No connection since \d\d:\d\d/).waitFor();
  run.steps(101, 150);
  await using _second = serve({ runs: [run.run()] }, Number(new URL(first.url).port));
  await view.page.getByText("Connected", { exact: true }).waitFor({ timeout: 10_000 });
  await view.drawn(150);
  assertEquals(await view.page.locator("#problem").isVisible(), false);
  run.steps(151, 151);
  await view.drawn(151);
});

test("the dashboard holds no connection while nobody sees it, and shows what it missed when it is seen", async () => {
  using run = new FakeRun(100);
  const watched = run.run();
  await using server = serve({ runs: [watched] });
  await using view = await open(server.url);
  await view.drawn(100);
  const see = (isSeen: boolean) =>
    view.page.evaluate((hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, !isSeen);
  await see(false);
  while (watched.listeners.size > 0) await view.page.waitForTimeout(10);
  run.steps(101, 120);
  await see(true);
  await view.drawn(120);
  assertEquals(watched.listeners.size, 1);
});

test("the dashboard cuts its curves when a run goes on from an earlier step", async () => {
  using run = new FakeRun(200);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(200);
  run.start(120);
  run.steps(121, 130);
  await view.drawn(130);
  assertEquals(await view.text("step"), "130");
});

// ---- what a person does

test("the dashboard compares runs in different colours, by step, tokens or time", async () => {
  using a = new FakeRun(200, { name: "a" }), b = new FakeRun(0, { name: "b" });
  const lines = Array.from({ length: 300 }, (_, i) => metricsAt(i + 1)).map((m) => ({
    ...m,
    loss: m.loss + 1,
  }));
  b.append("metrics.jsonl", lines.map((line) => JSON.stringify(line) + "\n").join(""));
  await using server = serve({ runs: [a.run(), b.run()] });
  await using view = await open(server.url);
  const { page } = view;
  await view.drawn(200);
  await page.click("#overview summary");
  await page.check('#runs input[value="b"]');
  await page.waitForFunction(() =>
    document.querySelectorAll("[data-chart=loss] .legend button").length === 4
  );
  assertEquals((await legend(page, "loss")).map((text) => text.replace(/ [\d.]+$/, "")), [
    "a",
    "a val",
    "b",
    "b val",
  ]);
  for (const color of ["run-1", "run-2"]) assert(await painted(page, "loss", color) > 100, color);
  assertEquals(new URL(page.url()).search, "?run=a&compare=b");

  await page.focus("[data-chart=loss] .plot");
  await page.keyboard.press("ArrowLeft"); // step 300 is beyond the end of a
  assertEquals(await legend(page, "loss"), ["a –", "a val –", "b 2.2325", "b val 1.3309"]);

  await page.check('input[value="tokens"]');
  await page.focus("[data-chart=lr] .plot");
  await page.keyboard.press("ArrowLeft");
  assertEquals(await page.textContent("[data-chart=lr] .place"), "614k tokens");
  await page.check('input[value="time"]');
  await page.focus("[data-chart=lr] .plot");
  await page.keyboard.press("ArrowLeft");
  assertEquals(await page.textContent("[data-chart=lr] .place"), "30 s");

  await page.reload(); // the address and the choices last
  await page.waitForFunction(() =>
    document.querySelectorAll("[data-chart=loss] .legend button").length === 4
  );
  assertEquals(await page.isChecked('input[value="time"]'), true);
});

test("the dashboard lists all runs: those that come, in any order, those with a word, and how they differ", async () => {
  using a = new FakeRun(30, { name: "a" });
  using b = new FakeRun(20, { name: "b", config: { learning_rate: 0.01 } });
  using c = new FakeRun(10, { name: "c" });
  const runs = [a.run(), b.run()], later = [c.run()];
  await using server = serve({ runs, look: () => runs.push(...later.splice(0)) });
  await using view = await open(server.url);
  const { page } = view, names = () => page.locator("#runs a").allInnerTexts();
  await view.drawn(30);
  await page.click("#overview summary");
  await page.locator("#counted", { hasText: "3 runs: 3 stopped" }).waitFor();
  await page.getByRole("button", { name: "Step" }).click();
  assertEquals(await names(), ["a", "b", "c"]);
  await page.keyboard.press("Enter"); // the head keeps the focus
  assertEquals(await names(), ["c", "b", "a"]);
  assertEquals(await page.locator("#order [aria-sort=ascending]").innerText(), "Step");
  await page.check('#runs input[value="b"]');
  await page.locator("#differences tbody tr").waitFor();
  assertEquals(await page.locator("#differences tbody tr").allInnerTexts(), ["learning_rate\t0.003\t0.01"]);
  await page.fill("#find", "c stop");
  assertEquals(await names(), ["c"]);
  await page.locator("#runs a").click();
  await view.drawn(10);
});

test("the dashboard shows earlier samples, and the latest one until then", async () => {
  using run = new FakeRun(30);
  run.sample(10, "def f(x):\n    return x\n");
  run.sample(20, "Once upon a time");
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  const { page } = view,
    font = () => page.evaluate(() => getComputedStyle(document.getElementById("sample")!).fontFamily);
  await page.getByText("Once upon a time").waitFor();
  assertEquals((await font()).includes("monospace"), false);
  await page.selectOption("#sample-step", "10");
  assertStringIncludes(await view.text("sample"), "    return x");
  assertStringIncludes(await font(), "monospace"); // since it is a program
  run.sample(30, "and the last");
  await page.locator("#sample-step option", { hasText: "30" }).waitFor({ state: "attached" });
  assertEquals(await page.inputValue("#sample-step"), "10"); // somebody reads it
});

test("the dashboard zooms all charts by dragging and by keys, and back", async () => {
  using run = new FakeRun(1000);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  const { page } = view;
  await view.drawn(1000);
  const whole = await picture(page, "lr"), trend = await view.text("loss-note");
  assertMatch(trend, /^↓ \d\.\d% in 100 steps$/);
  const box = (await page.locator("[data-chart=loss] .u-over").boundingBox())!;
  await page.mouse.move(box.x + box.width / 4, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 2, box.y + 60, { steps: 4 });
  await page.mouse.up();
  await page.getByText("Reset zoom").waitFor();
  assertEquals(await view.text("loss-note"), trend); // that of the whole run
  assert(await picture(page, "lr") !== whole, "the other charts zoom too");
  await page.getByText("Reset zoom").click();
  await page.mouse.move(0, 0);
  await page.waitForFunction(() => document.querySelector("[data-chart=lr] .place")!.textContent === "");
  assertEquals(await picture(page, "lr"), whole);

  await page.focus("[data-chart=loss] .plot");
  await page.keyboard.press("ArrowLeft");
  assertEquals(await page.textContent("[data-chart=loss] .place"), "step 1,000");
  assertMatch((await legend(page, "loss")).join(), /^train smoothed 1\.\d{4},val 1\.2265$/);
  await page.keyboard.press("+");
  assert(await page.isVisible("#reset-zoom"));
  await page.keyboard.press("Escape");
  assertEquals(await page.isVisible("#reset-zoom"), false);
});

test("the dashboard smooths, takes logarithms, hides curves and keeps the theme", async () => {
  using run = new FakeRun(300);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url, { colorScheme: "dark" });
  const { page } = view;
  await view.drawn(300);
  let before = await picture(page, "loss");
  const changes = async (what: string) => {
    await page.waitForTimeout(100);
    const after = await picture(page, "loss");
    assert(after !== before, what);
    before = after;
  };
  await page.check("#log");
  await changes("logarithm");
  await page.fill("#smoothing", "0.99");
  await changes("smoothing");
  await page.getByRole("button", { name: "val" }).click();
  await changes("hidden curve");
  assertEquals(await painted(page, "loss", "val"), 0);
  const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.click("#theme");
  await changes("theme");
  await page.reload();
  await view.drawn(300);
  assert(
    await page.evaluate(() => getComputedStyle(document.body).backgroundColor) !== dark,
    "theme is kept",
  );
  assertEquals(await page.isChecked("#log"), true);
  assertEquals(await page.inputValue("#smoothing"), "0.99");
});

test("the dashboard finds a variable with / and explains itself with ?", async () => {
  using run = new FakeRun(10);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  const { page } = view;
  await view.drawn(10);
  await page.keyboard.press("/");
  await page.keyboard.type("learning");
  assertEquals(await page.locator("#config tr:visible").allInnerTexts(), [
    "Variables",
    "learning_rate\t0.003",
  ]);
  await page.keyboard.type("?");
  assertEquals(await page.getByText("Nothing has this").isVisible(), true);
  assertEquals(await page.locator("#help").isVisible(), false);
  await page.locator("#search").blur();
  await page.keyboard.press("?");
  assertEquals(await page.locator("#help").isVisible(), true);
  await page.keyboard.press("Escape");
  assertEquals(await page.locator("#help").isVisible(), false);
});

test("the dashboard lists the ranks of a run, which is slowest, and that the others wait for it", async () => {
  const ranks = { step_ms: [90, 121.5, 88], memory_bytes: [3e9, 1e9, 2e9] };
  using run = new FakeRun(10, { metrics: (step) => ({ ...metricsAt(step), ranks }) });
  run.start(10);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  await view.drawn(10);
  await view.page.keyboard.press("/");
  await view.page.keyboard.type("rank");
  assertEquals(await view.page.locator("#config tr:visible").allInnerTexts(), [
    "Ranks",
    "rank 0\t90 ms · 3.00 GB",
    "rank 1, the slowest\t122 ms · 1.00 GB",
    "rank 2\t88 ms · 2.00 GB",
  ]);
  assertStringIncludes(
    await view.text("health"),
    "the other ranks wait for rank 1, whose own work takes 35.0% longer",
  );
});

test("the dashboard asks for the token and keeps it", async () => {
  using run = new FakeRun(100);
  await using server = serve({ runs: [run.run()], token: TOKEN });
  await using view = await open(server.url, { expected: /401/ });
  const { page } = view;
  await page.getByText("This server asks for its token").waitFor();
  await page.fill("#token", "wrong");
  await page.keyboard.press("Enter");
  await page.locator("#login-error", { hasText: "token" }).waitFor();
  await page.fill("#token", TOKEN);
  await page.keyboard.press("Enter");
  await view.drawn(100);
  await page.reload();
  await view.drawn(100);
  assertEquals(await page.locator("#login").isVisible(), false);
  assertEquals(await page.evaluate(() => document.cookie), ""); // scripts do not see it
});

// ---- a model

for (const colorScheme of ["light", "dark"] as const) {
  test(`the page of a model answers in view of what was said, stops, and begins anew, in ${colorScheme}`, async () => {
    const model = await Model.load(await chatModelDirectory("qwen3", { block_size: 512 }), "cpu");
    await using server = serve({ runs: [], model });
    const settings = { max_tokens: 12, temperature: 0.5, top_p: 0.9, seed: 3 };
    const ask = async (...messages: string[]) => {
      const roles = ["system", "user", "assistant", "user"];
      const said = messages.map((content, i) => ({ role: roles[i], content })).filter(({ content }) =>
        content
      );
      const body = JSON.stringify({ ...settings, messages: said }),
        headers = { "Content-Type": "application/json" };
      const answer = await fetch(`${server.url}v1/chat/completions`, { method: "POST", headers, body });
      return (await answer.json()).choices[0].message.content;
    };
    const first = await ask("", "Hi"), second = await ask("Be kind", "Hi", first, "And\nyou?");
    await using view = await open(server.url, { colorScheme, expected: /400/ });
    const { page } = view, turns = () => page.locator("#turns p").allTextContents();
    const done = page.locator("#status", { hasText: /^12 tokens, [\d.]+ a second$/ });
    await page.locator("#model", { hasText: model.name }).waitFor();
    for (const [id, value] of Object.entries(settings)) await page.fill(`#${id}`, `${value}`);
    await page.focus("#prompt");
    await page.keyboard.type("Hi");
    await page.keyboard.press("Enter");
    await done.waitFor();
    assertEquals(await turns(), ["Hi", first]);
    await page.fill("#system", "Be kind");
    await page.focus("#prompt");
    await page.keyboard.type("And");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("you?");
    await page.keyboard.press("Enter");
    await page.locator("#turns p").nth(3).waitFor();
    await done.waitFor();
    assertEquals(await turns(), ["Hi", first, "And\nyou?", second]);
    assertEquals(await page.evaluate(faintTexts), []);
    assertEquals(await axe(page), []);
    await page.fill("#prompt", "x".repeat(900));
    await page.keyboard.press("Enter");
    await page.locator("#problem", { hasText: /^The messages have \d+ tokens, the model reads 511/ })
      .waitFor();
    assertEquals([await page.inputValue("#prompt"), (await turns()).length], ["x".repeat(900), 4]); // to be mended
    model.worker.postMessage = () => {}; // no text comes to an end any more
    await page.fill("#prompt", "Go");
    await page.click("#write");
    await page.click("#cancel");
    await page.locator("#status", { hasText: /^Stopped$/ }).waitFor();
    await page.click("#reset");
    assertEquals(await turns(), []);
    model.close();
  });
}

test("the page of a model writes what the model writes, stops, and says why it cannot", async () => {
  const model = await Model.load(await modelDirectory({ vocab_size: 257 }), "cpu");
  await using server = serve({ runs: [], model, token: TOKEN });
  const asked = { prompt: "Once", max_tokens: 12, temperature: 0.5, top_p: 0.9, seed: 3 };
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${TOKEN}` };
  const body = JSON.stringify(asked);
  const answer = await fetch(`${server.url}v1/completions`, { method: "POST", headers, body });
  const { text } = (await answer.json()).choices[0];
  await using view = await open(server.url, { expected: /40[01]/ }); // what is refused below
  const { page } = view;
  await page.fill("#token", TOKEN);
  await page.keyboard.press("Enter");
  await page.locator("#model", { hasText: model.name }).waitFor();
  await page.check("[name=mode][value=text]");
  for (const [id, value] of Object.entries(asked)) await page.fill(`#${id}`, `${value}`);
  await page.keyboard.press("Control+Enter");
  await page.locator("#status", { hasText: /^12 tokens, [\d.]+ a second$/ }).waitFor();
  assertEquals(await page.locator("#given").textContent(), "Once");
  assertEquals(await page.locator("#written").textContent(), text);
  model.worker.postMessage = () => {}; // no text comes to an end any more
  await page.click("#write");
  await page.click("#cancel");
  await page.locator("#status", { hasText: /^Stopped$/ }).waitFor();
  await page.fill("#prompt", "x".repeat(model.block_size));
  await page.click("#write");
  await page.locator("#problem", { hasText: /^The prompt has \d+ tokens, the model reads/ }).waitFor();
  assertEquals(await page.evaluate(faintTexts), []);
  assertEquals(await axe(page), []);
  assertEquals(await page.locator("#runs-link").isVisible(), false);
  model.close();
});

test("the dashboard leads to the prompt page where there is a model, and back", async () => {
  using run = new FakeRun(10);
  const model = await Model.load(await modelDirectory({ vocab_size: 257 }), "cpu");
  await using server = serve({ runs: [run.run()], model });
  await using view = await open(server.url, { viewport: { width: 360, height: 700 } });
  const { page } = view;
  await view.drawn(10);
  await page.click("#prompt-link");
  await page.locator("#model", { hasText: model.name }).waitFor();
  assertEquals(await page.evaluate(() => document.scrollingElement!.scrollWidth), 360);
  await page.click("#runs-link");
  await view.drawn(10);
  model.close();
});

// ---- for everyone

for (const colorScheme of ["light", "dark"] as const) {
  test(`the dashboard can be read: contrast in ${colorScheme}`, async () => {
    using run = new FakeRun(100);
    run.append("metrics.jsonl", "garbage\n");
    await using server = serve({ runs: [run.run()] });
    await using view = await open(server.url, { colorScheme });
    await view.drawn(100);
    await view.page.getByText("could not be read").waitFor();
    for (const state of ["running", "stalled", "stopped", "finished", "failed"]) {
      await view.page.evaluate((state) => document.getElementById("now")!.dataset.state = state, state);
      assertEquals(await view.page.evaluate(faintTexts), [], state);
    }
  });

  test(`the dashboard's curves differ for the colour-blind too, in ${colorScheme}`, async () => {
    using run = new FakeRun(1);
    await using server = serve({ runs: [run.run()] });
    await using view = await open(server.url, { colorScheme });
    const surface = await rgb(view.page, "surface");
    const colors = await Promise.all([1, 2, 3, 4, 5, 6].map((n) => rgb(view.page, `run-${n}`)));
    for (const color of [...colors, await rgb(view.page, "val")]) assert(contrast(color, surface) >= 3);
    for (const [sight, matrix] of Object.entries(SIGHTS)) {
      const seen = colors.map((color) => oklab(see(matrix, color)));
      const distances = seen.flatMap((a, i) =>
        seen.slice(i + 1).map((b) => Math.hypot(...a.map((v, k) => v - b[k]!)))
      );
      assert(Math.min(...distances) > 0.1, `${sight}: ${Math.min(...distances)}`);
    }
  });
}

test("the dashboard gives every control a name, and Tab reaches all in order with a visible focus", async () => {
  using a = new FakeRun(100, { name: "a" }), b = new FakeRun(100, { name: "b" });
  await using server = serve({ runs: [a.run(), b.run()] });
  await using view = await open(server.url);
  const { page } = view;
  await view.drawn(100);
  await page.locator("#overview summary").waitFor();
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  const focusable = nodes.filter(({ properties }) =>
    properties?.some(({ name, value }) => name === "focusable" && value.value === true)
  );
  const nameless = focusable.filter(({ name }) => !name?.value).map(({ role }) => role?.value);
  assertEquals(nameless, []);
  assert(focusable.length > 20);

  const seen: string[] = [];
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press("Tab");
    const { at, isVisible } = await page.evaluate(() => {
      const active = document.activeElement!,
        shown = active.matches(".segments input") ? active.nextElementSibling! : active;
      const style = getComputedStyle(shown);
      return {
        at: active === document.body
          ? ""
          : active.id || active.closest("figure")?.dataset.chart || active.className || active.tagName,
        isVisible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
      };
    });
    if (at === "") break;
    assert(isVisible, `no visible focus on ${at}`);
    if (seen.at(-1) !== at) seen.push(at);
  }
  assertEquals(seen, [
    ...["skip", "run", "theme", "help-button", "SUMMARY", "INPUT", "smoothing", "log"],
    ...CHARTS,
    ...["sample", "search", "scroll", "log-tail"],
  ]);
});

test("the dashboard describes each chart in words, and has one heading, one main and no id twice", async () => {
  using run = new FakeRun(100);
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url);
  const { page } = view;
  await view.drawn(100);
  assertMatch(
    (await page.getAttribute("[data-chart=grad_norm] .plot", "aria-label"))!,
    /^Gradient norm: fake from 1\.5 at step 1 to 0\.51 at step 100, lowest 0\.51 at step 100, highest 1\.5 at step 1$/,
  );
  const facts = await page.evaluate(() => {
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    const count = (selector: string) => document.querySelectorAll(selector).length;
    return { twice: ids.filter((id, i) => ids.indexOf(id) !== i), h1: count("h1"), main: count("main") };
  });
  assertEquals(facts, { twice: [], h1: 1, main: 1 });
  assertEquals(await page.getAttribute("html", "lang"), "en");
});

for (const colorScheme of ["light", "dark"] as const) {
  test(`axe-core finds nothing wrong with the dashboard, in ${colorScheme}`, async () => {
    const metrics = (step: number) => ({ ...metricsAt(step), grad_norm: step === 50 ? 80 : 1 });
    using a = new FakeRun(100, { name: "a", metrics }), b = new FakeRun(120, { name: "b" });
    a.sample(50, "Once upon a time");
    await using server = serve({ runs: [a.run(), b.run()] });
    await using view = await open(`${server.url}?run=a&compare=b`, { colorScheme });
    const { page } = view;
    await view.drawn(120);
    await page.click("#overview summary");
    assertEquals(await axe(page), []);
    await page.locator("#help-button").click();
    assertEquals(await axe(page), []);
  });
}

test("the dashboard of several runs is less than six screens of a telephone long", async () => {
  const runs = ["a", "b", "c"].map((name) => new FakeRun(100, { name, config: { [name]: 1 } }));
  runs[0]!.sample(50, "Once upon a time\n".repeat(100));
  runs[0]!.append("log.txt", "a line of the log\n".repeat(100));
  await using server = serve({ runs: runs.map((run) => run.run()) });
  await using view = await open(`${server.url}?run=a&compare=b&compare=c`, {
    viewport: { width: 390, height: 844 },
  });
  await view.drawn(100);
  await view.page.click("#overview summary");
  await view.page.locator("#differences tbody tr").first().waitFor();
  const { scrollHeight, scrollWidth } = await view.page.evaluate(() => {
    const { scrollHeight, scrollWidth } = document.scrollingElement!;
    return { scrollHeight, scrollWidth };
  });
  assertEquals(scrollWidth, 390);
  assert(scrollHeight < 6 * 844, `${scrollHeight / 844} screens`);
  runs.forEach((run) => run[Symbol.dispose]());
});

test("the dashboard fits 360 pixels and moves nothing where motion is not wanted", async () => {
  using run = new FakeRun(100, { name: "a-run-with-a-name-that-is-much-too-long-for-a-telephone" });
  await using server = serve({ runs: [run.run()] });
  await using view = await open(server.url, {
    viewport: { width: 360, height: 700 },
    reducedMotion: "reduce",
  });
  await view.drawn(100);
  assertEquals(await view.page.evaluate(() => document.scrollingElement!.scrollWidth), 360);
  assertEquals(
    await view.page.evaluate(() =>
      document.getAnimations().length +
      Number.parseFloat(getComputedStyle(document.getElementById("progress")!).transitionDuration)
    ),
    0,
  );
});
