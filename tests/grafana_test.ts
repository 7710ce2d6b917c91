// docs/grafana.json asks for metrics that GET /metrics has.
import { assert, assertEquals } from "@std/assert";
import dashboard from "../docs/grafana.json" with { type: "json" };

const NAMES = new Set(
  Deno.readTextFileSync(new URL("../serve/prometheus.ts", import.meta.url)).match(/(?<=")loam_\w+(?=")/g),
);

Deno.test("every metric of the Grafana dashboard is one of /metrics", () => {
  const asked = dashboard.panels.flatMap(({ targets }) =>
    targets.flatMap(({ expr }) => expr.match(/loam_\w+/g)!)
  );
  assert(asked.length >= 8);
  assertEquals(asked.filter((name) => !NAMES.has(name)), []);
  assert(asked.includes("loam_validation_bits_per_byte"));
});

Deno.test("every panel of the Grafana dashboard shows the runs that are chosen, in a place of its own", () => {
  const places = dashboard.panels.map(({ gridPos: { x, y } }) => `${x},${y}`);
  assertEquals(new Set(places).size, places.length);
  for (const { targets } of dashboard.panels) {
    for (const { expr } of targets) {
      assertEquals(expr.match(/loam_\w+/g)!.length, expr.match(/\{run=~"\$run"\}/g)!.length, expr);
    }
  }
});
