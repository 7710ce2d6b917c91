// The metrics of a run through OpenTelemetry, for those who watch all their machines in one place. Deno itself exports them,
// with its logs, where OTEL_DENO=true and OTEL_EXPORTER_OTLP_ENDPOINT are set; without the first nothing here is loaded.
import type { StepMetrics } from "./metrics.ts";

// Name and unit (UCUM) of each gauge.
const GAUGES = {
  loss: ["loam.loss", "1"],
  val_loss: ["loam.val_loss", "1"],
  val_bpb: ["loam.val_bits_per_byte", "1"],
  lr: ["loam.learning_rate", "1"],
  grad_norm: ["loam.grad_norm", "1"],
  tokens_per_sec: ["loam.tokens_per_second", "{token}/s"],
  step_ms: ["loam.step.duration", "ms"],
  mfu: ["loam.mfu", "1"],
  memory_bytes: ["loam.memory", "By"],
  step: ["loam.step", "{step}"],
  tokens: ["loam.tokens", "{token}"],
  skipped: ["loam.skipped", "{step}"],
} as const satisfies Partial<Record<keyof StepMetrics, [string, string]>>;

/** What to call with each step of a run, where Deno exports telemetry; undefined elsewhere. */
export async function telemetry(run: string): Promise<((metrics: StepMetrics) => void) | undefined> {
  if (!isOn()) return undefined;
  const { metrics: api } = await import("@opentelemetry/api");
  const meter = api.getMeter("loam");
  const gauges = Object.entries(GAUGES).map(([key, [name, unit]]) =>
    [key as keyof typeof GAUGES, meter.createGauge(name, { unit })] as const
  );
  return (metrics) => {
    for (const [key, gauge] of gauges) {
      const value = metrics[key];
      if (typeof value === "number") gauge.record(value, { run });
    }
  };
}

function isOn(): boolean {
  try {
    return Deno.env.get("OTEL_DENO") === "true" || Deno.env.get("OTEL_DENO") === "1";
  } catch {
    return false; // a program that may not read the variable has not asked for it
  }
}
