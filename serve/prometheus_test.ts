import { assert, assertEquals, assertMatch } from "@std/assert";
import { prometheusText } from "./prometheus.ts";
import { FakeRun, metricsAt } from "./testing.ts";
import { isInstalled } from "../tests/testing.ts";

type Sample = { name: string; labels: Record<string, string>; value: number };
type Family = { name: string; help: string; type: string; samples: Sample[] };

/** Reads Prometheus' text format 0.0.4 as its specification has it. Throws where a line is none of its own. */
function parse(text: string): Family[] {
  assert(text === "" || text.endsWith("\n"), "the last line must end with a line feed");
  const families: Family[] = [];
  for (const line of text.split("\n").slice(0, -1)) {
    const help = /^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)$/.exec(line);
    const type = /^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary|untyped)$/.exec(line);
    const family = families.at(-1);
    if (help) families.push({ name: help[1]!, help: help[2]!, type: "", samples: [] });
    else if (type) {
      assertEquals(type[1], family?.name, "TYPE follows the HELP of the same metric");
      assertEquals(family!.samples, [], "TYPE comes before samples");
      family!.type = type[2]!;
    } else {
      const sample = parseSample(line);
      assertEquals(sample.name, family?.name, "samples of a metric stand together");
      family!.samples.push(sample);
    }
  }
  return families;
}

function parseSample(line: string): Sample {
  const [, name, inner = "", value] = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
  assert(name !== undefined && value !== undefined, line);
  const labels: Record<string, string> = {};
  let rest = inner;
  while (rest) {
    const [all, label, escaped] = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)/.exec(rest) ??
      [];
    assert(all !== undefined, line);
    labels[label!] = escaped!.replace(/\\(.)/g, (_, c) => c === "n" ? "\n" : c);
    rest = rest.slice(all.length);
  }
  const number = value === "+Inf" ? Infinity : value === "-Inf" ? -Infinity : Number(value);
  assert(!Number.isNaN(number) || value === "NaN", line);
  return { name, labels, value: number };
}

Deno.test("prometheusText() is read back as what was meant", async () => {
  using odd = new FakeRun(25, { name: 'a "b" \\ c' });
  using other = new FakeRun(0, { name: "other" });
  const runs = [odd.run(), other.run()];
  for (const run of runs) await run.refresh();
  const families = parse(prometheusText(runs));
  const value = (name: string, run: string, more = {}) =>
    families.find((family) => family.name === name)?.samples
      .find(({ labels }) => JSON.stringify(labels) === JSON.stringify({ run, ...more }))?.value;
  assertEquals(value("loam_steps_total", 'a "b" \\ c'), 25);
  assertEquals(value("loam_validation_bits_per_byte", 'a "b" \\ c'), metricsAt(20).val_bpb);
  assertEquals(value("loam_step_duration_seconds", 'a "b" \\ c'), 0.1);
  assertEquals(value("loam_run_state", 'a "b" \\ c', { state: "stopped" }), 1);
  assertEquals(value("loam_run_state", 'a "b" \\ c', { state: "running" }), 0);
  assertEquals(value("loam_run_health", 'a "b" \\ c', { level: "warn" }), 1); // it was stopped
  assertEquals(value("loam_run_health", 'a "b" \\ c', { level: "good" }), 0);
  assertEquals(value("loam_steps_total", "other"), 0);
  assertEquals(value("loam_loss", "other"), undefined); // not known, so not there
});

Deno.test("prometheusText() has a series of each rank where there are several", async () => {
  const ranks = { step_ms: [90, 80], memory_bytes: [3e9, 1e9] };
  using several = new FakeRun(3, { name: "several", metrics: (step) => ({ ...metricsAt(step), ranks }) });
  using alone = new FakeRun(3, { name: "alone" });
  const runs = [several.run(), alone.run()];
  for (const run of runs) await run.refresh();
  const found = parse(prometheusText(runs)).filter(({ name }) => name.startsWith("loam_rank_"));
  assertEquals(
    found.map(({ name, samples }) => [name, ...samples.map(({ labels, value }) => ({ ...labels, value }))]),
    [
      ["loam_rank_step_duration_seconds", of("0", 0.09), of("1", 0.08)],
      ["loam_rank_memory_bytes", of("0", 3e9), of("1", 1e9)],
      ["loam_rank_slowest", of("0", 1), of("1", 0)],
    ],
  );
  function of(rank: string, value: number) {
    return { run: "several", rank, value };
  }
});

Deno.test("prometheusText() keeps the rules of promtool", async () => {
  using fake = new FakeRun(25);
  const run = fake.run();
  await run.refresh();
  const families = parse(prometheusText([run]));
  assertEquals(new Set(families.map(({ name }) => name)).size, families.length);
  for (const { name, help, type, samples } of families) {
    assertMatch(name, /^loam_[a-z_]+$/);
    assertMatch(help, /^[A-Z].*\.$/);
    assertEquals(name.endsWith("_total"), type === "counter", name);
    assert(!/_(count|sum|bucket)$/.test(name), `${name} ends as only histograms do`);
    assert(!/(gauge|counter|_info)/.test(name), `${name} names its type`);
    const units = /(milliseconds|minutes|hours|kilobytes|megabytes|percent|_ms|_s|_kb|_mb)(_|$)/;
    assert(!units.test(name), `${name} has a unit that is not a base unit, or an abbreviation`);
    const labels = samples.map(({ labels }) => JSON.stringify(labels));
    assertEquals(new Set(labels).size, labels.length, `${name} has a series twice`);
  }
});

Deno.test("prometheusText() of no runs is empty", () => {
  assertEquals(prometheusText([]), "");
});

Deno.test({
  name: "promtool reads prometheusText() and finds nothing to say (promtool)",
  ignore: !isInstalled("promtool"), // Debian: prometheus
  fn: async () => {
    using fake = new FakeRun(25, { name: 'a "b" \\ c' });
    fake.start(25);
    const run = fake.run();
    await run.refresh();
    const args = ["check", "metrics"], piped = { stdin: "piped", stdout: "piped", stderr: "piped" } as const;
    const promtool = new Deno.Command("promtool", { args, ...piped }).spawn();
    const stdin = promtool.stdin.getWriter();
    await stdin.write(new TextEncoder().encode(prometheusText([run])));
    await stdin.close();
    const { code, stdout, stderr } = await promtool.output();
    assertEquals([code, new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr)], [0, ""]);
  },
});
