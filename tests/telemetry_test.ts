// OTEL_DENO=true, against a collector of our own.
import { assert, assertEquals } from "@std/assert";
import settings from "../deno.json" with { type: "json" };
import { dataset, freshPath, ROOT, SMALL } from "./testing.ts";

/** The parts of OTLP's JSON that are read here. */
type Export = {
  resourceMetrics: { scopeMetrics: { scope: { name: string }; metrics: Metric[] }[] }[];
};
type Metric = {
  name: string;
  unit: string;
  gauge: {
    dataPoints: { asDouble?: number; attributes: { key: string; value: { stringValue: string } }[] }[];
  };
};

Deno.test("OTEL_DENO=true sends a gauge for each metric of a step", async () => {
  const found = new Map<string, Metric>();
  const collector = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    if (new URL(request.url).pathname === "/v1/metrics") {
      const { resourceMetrics } = await request.json() as Export;
      const scopes = resourceMetrics.flatMap(({ scopeMetrics }) => scopeMetrics);
      for (const { scope, metrics } of scopes) {
        if (scope.name === "loam") metrics.forEach((m) => found.set(m.name, m));
      }
    }
    return new Response("{}");
  });
  const out = freshPath();
  const flags = [
    ...SMALL,
    `--data_dir=${await dataset()}`,
    `--out_dir=${out}`,
    "--max_iters=5",
    "--eval_interval=5",
  ];
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...settings.tasks.train.command.split(" ").slice(1), ...flags],
    cwd: ROOT,
    env: {
      OTEL_DENO: "true",
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collector.addr.port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    },
    stdout: "null",
    stderr: "piped",
  }).output();
  await collector.shutdown();
  assert(success, new TextDecoder().decode(stderr));

  assertEquals([...found.keys()].sort(), [
    ...[
      "loam.grad_norm",
      "loam.learning_rate",
      "loam.loss",
      "loam.memory",
      "loam.mfu",
      "loam.skipped",
      "loam.step",
    ],
    ...[
      "loam.step.duration",
      "loam.tokens",
      "loam.tokens_per_second",
      "loam.val_bits_per_byte",
      "loam.val_loss",
    ],
  ]);
  const last = JSON.parse(Deno.readTextFileSync(`${out}/metrics.jsonl`).trimEnd().split("\n").at(-1)!);
  const { unit, gauge } = found.get("loam.tokens_per_second")!;
  assertEquals(unit, "{token}/s");
  const [{ asDouble, attributes }] = gauge.dataPoints as [Metric["gauge"]["dataPoints"][number]];
  assertEquals(asDouble, last.tokens_per_sec);
  assertEquals(attributes.map(({ key, value }) => [key, value.stringValue]), [["run", out]]);
});
